"""How fast finished trials predict and what memory that takes, each alone on its device.

Each trial is loaded from its checkpoint in a fresh process, so that the peak memory is its own,
warmed up and timed call by call with the device synchronised. Measurements on one machine take
turns, and what else keeps the machine busy is recorded with the figures. They lie in `measure.json`
beside `result.json`, see `adray.results.measurements.FIELDS`.

`Request` says what is asked. From top to bottom: one trial in its own process (`measure_trial`),
that process and its turn (`measure_apart`), which trials of a store (`find_trials`), what is
printed (`format_table`, `format_csv`), and the command, `python -m adray measure`.
"""

from __future__ import annotations

import csv
import fcntl
import fnmatch
import itertools
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from adray.config import build
from adray.errors import InputError
from adray.files import canonical_hash, spreadsheet_text
from adray.language.catalogue import spoken
from adray.language.sentence import Sentence
from adray.machine import (
    MIB,
    environment,
    gpu_allocated_peak_mb,
    gpu_in_use_mb,
    gpu_reserved_peak_mb,
    load_average,
    other_cpu_seconds,
    processor_name,
    reset_peaks,
    resident_mb,
)
from adray.results.measurements import FIELDS
from adray.results.store import (
    TrialRecord,
    done_of,
    read_store,
    read_trial,
    sound_trials,
    without_searches,
)
from adray.results.trial_files import find_checkpoint, stored_test_images
from adray.settings import Settings, get_globals, use_settings
from adray.types import Json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from adray.predict import Predictor
    from adray.types import Batch

logger = logging.getLogger(__name__)

Figures = dict[str, float | None]
"""Some of the numbers in `FIELDS`, by name."""

_IMAGES = 16  # different ones, that the calls go round
_WARM_UP_CALLS = 10
_LEAST_CALLS = 5
LIMIT_SECONDS = 3600.0
_SAME_SIZE = 1.02  # checkpoints this near in size are of the same network and number of memories
_OTHER_CORES = 0.5
_OTHER_SHARE = 0.05  # of all cores: a large machine's own services are no neighbour
_OTHER_GPU_MB = 1024  # torch's own CUDA context takes about half of it
_UNSTEADY = 1.5


@dataclass(frozen=True)
class Request:
    """One trial to be measured on one device, in plain values that travel to another process."""

    folder: Path
    """Of the trial, with a checkpoint."""
    device: str
    """``cpu``, ``cuda`` or ``cuda:1``."""
    threads: int
    """CPU threads."""
    repeats: int
    """Timed calls per figure, at most."""
    seconds: float
    """Time per figure after which no further call is timed; five are always."""
    settings: Settings
    """Where weights lie, and plugins."""
    accept_other_weights: bool = False
    """Whether to go on where something is not as it was trained, see `load_predictor`."""


# ---- one trial, in its own process ----


def measure_trial(request: Request) -> Json:
    """Measure one trial in this process, which should be a fresh one.

    Returns:
        The keys of `FIELDS`.

    Raises:
        InputError: for a checkpoint that cannot be loaded.
    """
    import timm  # noqa: F401  what its import takes is no trial's memory
    import torch

    from adray.predict import load_predictor

    use_settings(request.settings)
    torch.set_num_threads(request.threads)
    paths = stored_test_images(request.folder, _IMAGES)

    # Before there is a model: what others take, and what Python and its libraries take.
    before = {
        "load_average": load_average(),
        "gpu_other_mb": gpu_in_use_mb(request.device),
        "host_base_mb": resident_mb("VmRSS"),
    }
    accept = request.accept_other_weights
    predictor = load_predictor(request.folder, request.device, accept_other_weights=accept)
    images = _prepared_images(predictor, paths)

    busy = other_cpu_seconds()
    started = time.monotonic()
    figures = _latency(predictor, images, request)
    figures |= _throughput(predictor, images, request)
    figures |= _from_file(predictor, paths, request)
    figures["other_cores"] = _other_cores(busy, started)

    row = _conditions(predictor, request) | figures | _sizes(predictor, request.folder) | before
    for name, value in row.items():
        if isinstance(value, float):
            row[name] = round(value, 4)
    row["warnings"] = _doubts(row) + [f"accepted: {text}" for text in predictor.accepted]
    return row


def _prepared_images(predictor: Predictor, paths: Sequence[Path]) -> torch.Tensor:
    """Make test images as the model takes them, or noise where there are none.

    Returns:
        (N, 3, H, W) float32, normalised, on the model's device.
    """
    import numpy as np
    import torch

    from adray.data.decode import first_seen
    from adray.data.geometry import Geometry
    from adray.data.normalization import normalize_images

    config = predictor.trainer.train_config
    if paths:
        geometry = Geometry.of(config, predictor.trainer.roi)
        rule = predictor.trainer.pixels
        decoded = [first_seen(path, geometry, rule)[0] for path in paths]
        pixels = torch.from_numpy(np.stack(decoded))
    else:
        generator = torch.Generator().manual_seed(0)
        shape = (_IMAGES, 3, *config.input_shape)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return normalize_images(pixels.to(predictor.trainer.device), config.normalize)


def _conditions(predictor: Predictor, request: Request) -> Json:
    """Say what is measured, where, when and with which versions."""
    import torch

    kind = torch.device(request.device).type
    is_gpu = kind == "cuda"
    versions = environment(request.device)
    host = versions.pop("host")
    for name in ("device", "threads"):
        del versions[name]
    return {
        "kind": kind,
        "device": torch.cuda.get_device_name(request.device) if is_gpu else processor_name(),
        "threads": request.threads,
        "host": host,
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "input_size": predictor.trainer.train_config.input_size,
        "precision": predictor.trainer.train_config.precision,
    }


def _latency(predictor: Predictor, images: torch.Tensor, request: Request) -> Figures:
    """Measure one prepared image at a time."""
    _reset_peaks(request.device)
    times = _predict_times(predictor, images, 1, request)
    return {
        **_spread("latency", times),
        "latency_repeats": len(times),
        "host_peak_mb": resident_mb("VmHWM"),
        "gpu_peak_mb": gpu_allocated_peak_mb(request.device),
    }


def _throughput(predictor: Predictor, images: torch.Tensor, request: Request) -> Figures:
    """Measure images per second at the trial's evaluation batch size, and at a few others."""
    import numpy as np

    config = predictor.trainer.train_config
    size = config.eval_batch_size or config.batch_size
    _reset_peaks(request.device)
    times = _predict_times(predictor, images, size, request)

    # Read here: the other batch sizes below raise the peaks.
    peaks: Figures = {
        "host_peak_batch_mb": resident_mb("VmHWM"),
        "gpu_peak_batch_mb": gpu_allocated_peak_mb(request.device),
        "gpu_reserved_mb": gpu_reserved_peak_mb(request.device),
    }
    rates = {size: _rate(size, times)}
    for other in _other_batch_sizes(size, request.device):
        rate = _rate_if_it_fits(predictor, images, other, request)
        if rate:
            rates[other] = rate
    best = max(rates, key=lambda tried: rates[tried])
    return {
        "batch_size": size,
        "images_per_second": rates[size],
        "images_per_second_p5": 1e3 * size / float(np.quantile(times, 0.95)),
        "images_per_second_p95": 1e3 * size / float(np.quantile(times, 0.05)),
        "best_batch_size": best,
        "best_images_per_second": rates[best],
        **peaks,
    }


def _other_batch_sizes(size: int, device: str) -> list[int]:
    """Choose batch sizes to try besides one, rising."""
    # A larger one only helps a GPU.
    others = {1, size // 4}
    if device.startswith("cuda"):
        others.add(size * 4)
    return sorted(others - {0, size})


def _rate_if_it_fits(
    predictor: Predictor, images: torch.Tensor, size: int, request: Request
) -> float | None:
    """Measure images per second at a batch size, None where the GPU's memory does not do for it."""
    import torch

    try:
        return _rate(size, _predict_times(predictor, images, size, request))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _from_file(predictor: Predictor, paths: Sequence[Path], request: Request) -> Figures:
    """Measure one image file at a time, from decoding to the copy of its map in host memory."""
    if not paths:
        return dict.fromkeys(("file_ms", "file_p5_ms", "file_p95_ms"))
    following = itertools.cycle(paths)
    times = _times(lambda: list(predictor.predict([next(following)])), request)
    return {**_spread("file", times)}


def _predict_times(
    predictor: Predictor, images: torch.Tensor, size: int, request: Request
) -> np.ndarray:
    batches = _batches(images, size, predictor.trainer.first_tile)
    return _times(lambda: predictor.trainer.predict_batch(next(batches)), request)


def _batches(images: torch.Tensor, size: int, tile: int) -> Iterator[Batch]:
    """Yield endless batches of `size` that go round the images, each as the same tile."""
    import torch

    from adray.types import Batch

    positions = torch.arange(size, device=images.device)
    chosen = images[positions % len(images)].contiguous()
    label = torch.zeros_like(positions)
    batch = Batch(chosen, label, None, positions, tile=torch.full_like(positions, tile))
    if size > 1:
        # Made once and given again, since it may be large.
        yield from itertools.repeat(batch)
    for image in itertools.cycle(images.split(1)):
        yield replace(batch, image=image)


def _times(call: Callable[[], object], request: Request) -> np.ndarray:
    """Time each of the calls that follow a warm-up, the device waited for before and after each.

    Returns:
        (R,) milliseconds.
    """
    import numpy as np

    wait = _synchronizer(request.device)
    # A slow model warms up in fewer calls: a quarter of the time must do.
    started = time.perf_counter()
    for _ in range(_WARM_UP_CALLS):
        call()
        wait()
        if time.perf_counter() - started > request.seconds / 4:
            break

    times: list[float] = []
    until = time.perf_counter() + request.seconds
    while len(times) < request.repeats:
        if len(times) >= _LEAST_CALLS and time.perf_counter() >= until:
            break
        start = time.perf_counter()
        call()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return np.array(times)


def _synchronizer(device: str) -> Callable[[], None]:
    """Make a function that waits until the device has done all that it was asked."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return partial(torch.cuda.synchronize, device)


def _rate(size: int, times: np.ndarray) -> float:
    """Give images per second from the median of a batch's milliseconds (R,)."""
    import numpy as np

    return 1e3 * size / float(np.median(times))


def _spread(name: str, times: np.ndarray) -> dict[str, float]:
    import numpy as np

    low, middle, high = np.quantile(times, (0.05, 0.5, 0.95)).tolist()
    return {f"{name}_ms": middle, f"{name}_p5_ms": low, f"{name}_p95_ms": high}


def _reset_peaks(device: str) -> None:
    if not reset_peaks(device):
        logger.warning(
            "the kernel does not let peak memory be reset; host peaks include what loading took"
        )


def _other_cores(busy_before: float | None, started: float) -> float | None:
    """Count the CPU cores that other processes kept busy on average.

    Args:
        busy_before: `other_cpu_seconds` at the start.
        started: the start on the monotonic clock.
    """
    busy = other_cpu_seconds()
    elapsed = time.monotonic() - started
    if busy is None or busy_before is None:
        return None
    return max(0.0, busy - busy_before) / elapsed


def _sizes(predictor: Predictor, folder: Path) -> Figures:
    """Count the numbers in the network, and its MB in memory and on disk."""
    model = predictor.trainer.model
    checkpoint = find_checkpoint(folder)
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model_mb": sum(tensor.nbytes for tensor in tensors) / MIB,
        "checkpoint_mb": checkpoint.stat().st_size / MIB if checkpoint else None,
        "weight_files_mb": sum(file.stat().st_size for file in _weight_files(model)) / MIB,
    }


def _weight_files(model: nn.Module) -> set[Path]:
    """Find the files that the frozen parts of a network were loaded from."""
    files: set[Path] = set()
    for module in model.modules():
        if not getattr(module, "weight_file", None):
            continue
        # A chat model's weights are a folder of files.
        place = Path(str(module.weight_file))
        inside = [place] if place.is_file() else place.rglob("*")
        files.update(filter(Path.is_file, inside))
    return files


def _doubts(row: Json) -> list[str]:
    """Say what casts doubt on the figures of a measurement, one sentence each."""
    doubts = []

    # What could not be found out is None, and casts no doubt.
    other_cores = row["other_cores"] or 0
    if other_cores > max(_OTHER_CORES, _OTHER_SHARE * (os.cpu_count() or 1)):
        doubts.append(f"other processes kept {other_cores:.1f} CPU cores busy meanwhile")
    gpu_other_mb = row["gpu_other_mb"] or 0
    if gpu_other_mb > _OTHER_GPU_MB:
        doubts.append(f"{gpu_other_mb:.0f} MB of the GPU were in use before the model was there")

    unsteady = row["latency_p95_ms"] / row["latency_ms"]
    if unsteady > _UNSTEADY:
        doubts.append(f"times are unsteady: p95 is {unsteady:.1f} times the median")
    if row["file_ms"] is None:
        doubts.append(
            "the trial's test images are not there: noise was measured, and nothing from a file"
        )
    return doubts


# ---- the process that measures, and its turn ----


def measure_apart(request: Request) -> Json:
    """Measure one trial in a process of its own, when no other measurement runs on this machine.

    Returns:
        The keys of `FIELDS`, or only ``reason`` where it did not succeed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, request), daemon=True)

    with take_turn(request.settings.cache_dir):
        process.start()
        # The other end must be open in that process alone, else its death is never seen here.
        sender.close()
        try:
            if receiver.poll(LIMIT_SECONDS):
                return receiver.recv()
            limit = f"{LIMIT_SECONDS:.0f} seconds"
            return {"reason": f"the measurement took longer than {limit} and was stopped"}
        except EOFError:
            process.join(10)
            end = f"exit code {process.exitcode}"
            return {"reason": f"the measuring process was killed or ran out of memory ({end})"}
        finally:
            process.join(10)
            process.kill()
            process.join()


def _answer(sender: Connection, request: Request) -> None:
    """Send a measurement, or the reason why there is none."""
    try:
        row = measure_trial(request)
    except InputError as error:
        row = {"reason": str(error)}
    except Exception as error:
        logger.exception("%s could not be measured", request.folder)
        row = {"reason": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    sender.send(row)


@contextmanager
def take_turn(cache_dir: str | Path) -> Iterator[None]:
    """Wait until no other measurement runs on this machine.

    Args:
        cache_dir: the node-local folder that holds the lock.
    """
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    with (Path(cache_dir) / "measure.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(spoken("measure waits"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---- which trials of a store ----


def find_trials(store: Path, patterns: Sequence[str], every: bool) -> list[TrialRecord]:
    """Find the trials to be measured, of a store those that are worth it.

    Args:
        store: the output folder of a sweep, or the folder of one trial.
        patterns: of ``<dataset>/<category>/<configuration>``, or beginnings of ids. An empty list
            stands for all trials.
        every: also those that another one stands for, see `choose_trials`.

    Raises:
        InputError: where there are none.
    """
    if not store.is_dir():
        raise InputError(Sentence.of("measure no store", store=str(store)))
    # The folder of one trial is meant as it is, also where another trial would stand for it.
    single = read_trial(store)
    if single is not None and single.status == "done":
        return [single]

    own = without_searches(sound_trials(read_store(store)))
    if patterns:
        own = [record for record in own if _matches(record, patterns)]
    chosen = choose_trials(own, every)
    if not chosen:
        if patterns:
            raise InputError(
                Sentence.of("measure none of these", store=str(store), patterns=" ".join(patterns))
            )
        raise InputError(Sentence.of("measure none", store=str(store)))
    return chosen


def _matches(record: TrialRecord, patterns: Sequence[str]) -> bool:
    *cell, _ = names_of(record).values()
    for pattern in patterns:
        if fnmatch.fnmatchcase("/".join(cell), pattern) or record.trial["id"].startswith(pattern):
            return True
    return False


def choose_trials(records: Iterable[TrialRecord], every: bool = False) -> list[TrialRecord]:
    """Choose the finished trials that are worth measuring.

    Speed and memory do not depend on what a network has learnt, but on its shape. Unless `every`
    one is asked for, of the trials with one configuration, one set of hyperparameters and one image
    size only those stay whose checkpoints differ in size by more than 2 %, as memory banks of
    different training sets do.
    """
    done = done_of(records)
    if every:
        return done

    groups: dict[str, list[TrialRecord]] = {}
    for record in done:
        groups.setdefault(_shape_of(record), []).append(record)
    chosen: list[TrialRecord] = []
    for group in groups.values():
        chosen += _different_sizes(group)
    return chosen


def _shape_of(record: TrialRecord) -> str:
    """Hash what the shape of a trial's network depends on."""
    identity = record.identity
    sizes = {
        key: identity["train"].get(key)
        for key in ("img_size", "crop_size", "fit", "aspect", "tile", "precision")
    }
    return canonical_hash([identity["configuration"], identity["model"], sizes])


def _different_sizes(group: list[TrialRecord]) -> list[TrialRecord]:
    """Choose one trial per size of checkpoint, the first one where none kept a checkpoint."""
    sized: list[tuple[int, TrialRecord]] = []
    for record in group:
        checkpoint = find_checkpoint(record.folder)
        if checkpoint is not None:
            sized.append((checkpoint.stat().st_size, record))
    if not sized:
        return group[:1]

    # From small to large, each compared with the last one chosen.
    chosen: list[TrialRecord] = []
    largest = 0
    for size, record in sorted(sized, key=lambda pair: pair[0]):
        if not chosen or size > _SAME_SIZE * largest:
            chosen.append(record)
            largest = size
    return chosen


# ---- what is printed ----

_PATH = ("dataset", "category", "configuration", "id8")
"""Columns that name a trial."""
_COLUMNS = {
    "input_size": ("px", "{:.0f}"),
    "device": ("device", "{}"),
    "threads": ("threads", "{:.0f}"),
    "latency_ms": ("ms", "{:.2f}"),
    "latency_p5_ms": ("p5", "{:.2f}"),
    "latency_p95_ms": ("p95", "{:.2f}"),
    "file_ms": ("ms from file", "{:.2f}"),
    "images_per_second": ("images/s", "{:.1f}"),
    "batch_size": ("at batch", "{:.0f}"),
    "best_images_per_second": ("best images/s", "{:.1f}"),
    "best_batch_size": ("at batch", "{:.0f}"),
    "host_peak_mb": ("host MB", "{:.0f}"),
    "gpu_peak_mb": ("GPU MB", "{:.0f}"),
    "parameters": ("parameters", "{:.0f}"),
    "checkpoint_mb": ("checkpoint MB", "{:.1f}"),
}
"""Field to title and format, in the order of the table."""


def names_of(record: TrialRecord) -> dict[str, str]:
    """Give data set, category, configuration and short id of a trial, by the names in `_PATH`."""
    configuration = record.identity["configuration"]
    names = (record.dataset, record.category, configuration, record.trial["id"][:8])
    return dict(zip(_PATH, names, strict=True))


def format_table(rows: Sequence[Json]) -> str:
    """Put names and main figures in columns, then reasons and warnings, one a line."""
    import pandas as pd

    lines = []
    measured = [row for row in rows if "reason" not in row]
    if measured:
        titles = [title for title, _ in _COLUMNS.values()]
        cells = [_cells(row) for row in measured]
        table = pd.DataFrame(cells, columns=[*_PATH, *titles])
        lines.append(table.to_string(index=False))

    for row in rows:
        name = "/".join(row[key] for key in _PATH)
        for remark in [row["reason"]] if "reason" in row else row["warnings"]:
            lines.append(f"{name}: {remark}")
    return "\n".join(lines)


def _cells(row: Json) -> list[str]:
    cells = [row[key] for key in _PATH]
    for name, (_, form) in _COLUMNS.items():
        value = row[name]
        cells.append("n/a" if value is None else form.format(value))
    return cells


def format_csv(rows: Sequence[Json]) -> str:
    """Put all fields but the versions in CSV, one trial and device a line."""
    columns = [*_PATH, *FIELDS, "reason"]
    columns.remove("versions")
    text = StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {**row, "warnings": "; ".join(row.get("warnings", []))}
        for name, value in cells.items():
            cells[name] = spreadsheet_text(value) if isinstance(value, str) else value
        writer.writerow(cells)
    return text.getvalue().rstrip("\n")


# ---- where and with which settings ----


def choose_devices(wanted: str | None) -> list[str]:
    """Choose the devices to measure on.

    Args:
        wanted: ``cpu``, ``cuda``, ``both``, or None for those that are there.

    Raises:
        InputError: for a GPU where there is none.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if wanted in ("cuda", "both") and not has_gpu:
        raise InputError(Sentence.of("measure no gpu", wanted=wanted))
    if wanted in ("cpu", "cuda"):
        return [wanted]
    return ["cpu", "cuda"] if has_gpu else ["cpu"]


def settings_of(
    record: TrialRecord, backbone_dir: str | None, plugins: Sequence[str] | None
) -> Settings:
    """Give the settings that a trial ran with, as far as its folder says, with some replaced.

    Args:
        record: the trial.
        backbone_dir: folder of weights instead, None for the trial's own.
        plugins: modules that register models instead, None for the trial's own.
    """
    stored = record.assignment.get("settings")
    settings = build(Settings, stored, "settings") if stored else get_globals()
    if backbone_dir is not None:
        settings = replace(settings, backbone_dir=backbone_dir)
    if plugins is not None:
        settings = replace(settings, plugins=tuple(plugins))
    return replace(settings, cache_dir=get_globals().cache_dir)
