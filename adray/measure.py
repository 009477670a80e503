"""How fast finished trials predict and what memory that takes, each alone on its device; `python -m adray measure`.

Each trial is loaded from its checkpoint in a fresh process, so that the peak memory is its own, warmed up and timed
call by call with the device synchronised. Measurements on one machine take turns; what else keeps the machine busy is
recorded with the figures. They lie in `measure.json` beside `result.json`, see `adray.results.measurements.FIELDS`.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import fnmatch
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.config import build
from adray.errors import InputError
from adray.fields import check_range
from adray.files import canonical_hash
from adray.job import environment, reset_peaks, resident_mb
from adray.results.measurements import FIELDS, add_measurement
from adray.results.store import TrialRecord, all_trials, read_trial
from adray.results.trial_files import find_checkpoint, stored_test_images
from adray.settings import Settings, get_globals, use_settings

if TYPE_CHECKING:
    import numpy as np
    import torch

    from adray.predict import Predictor
    from adray.types import Batch

logger = logging.getLogger(__name__)

MIB = 2**20
_WARM_UP_CALLS = 10
_LEAST_CALLS = 5
_LIMIT_SECONDS = 3600.0
_SAME_SIZE = 1.02  # checkpoints this near in size are of the same network and number of memories
_OTHER_CORES = 0.5
_OTHER_SHARE = 0.05  # of all cores: a large machine's own services are no neighbour
_OTHER_GPU_MB = 1024  # torch's own CUDA context takes about half of it
_UNSTEADY = 1.5
_PATH = ("dataset", "category", "configuration", "id8")
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


@dataclass(frozen=True)
class Request:
    """One trial to be measured on one device, as plain values that travel to the measuring process.

    Attributes:
        folder: of the trial, with a checkpoint.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        threads: CPU threads.
        repeats: timed calls per figure, at most.
        seconds: time per figure after which no further call is timed; five are always.
        settings: where weights lie, and plugins.
    """

    folder: Path
    device: str
    threads: int
    repeats: int
    seconds: float
    settings: Settings


# In the measuring process


def measure_trial(request: Request) -> dict[str, Any]:
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
    paths = stored_test_images(request.folder, 16)
    start = {"load_average": _load_average(), "gpu_other_mb": _gpu_in_use_mb(request.device)}
    start["host_base_mb"] = resident_mb("VmRSS")
    predictor = load_predictor(request.folder, request.device)
    images = _prepared_images(predictor, paths)
    busy, began = _other_cpu_seconds(), time.monotonic()
    figures = _latency(predictor, images, request) | _throughput(predictor, images, request)
    figures |= _from_file(predictor, paths, request)
    after = _other_cpu_seconds()
    elapsed = time.monotonic() - began
    figures["other_cores"] = (
        None if busy is None or after is None else max(0.0, after - busy) / elapsed
    )
    kind = torch.device(request.device).type
    versions = environment(request.device)
    row = {
        "kind": kind,
        "device": torch.cuda.get_device_name(request.device) if kind == "cuda" else _processor(),
        "threads": request.threads,
        "host": versions.pop("host"),
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            key: value for key, value in versions.items() if key not in ("device", "threads")
        },
        "input_size": predictor.trainer.train_config.input_size,
        "precision": predictor.trainer.train_config.precision,
        **figures,
        **_sizes(predictor, request.folder),
        **start,
    }
    row = {
        name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()
    }
    return {**row, "warnings": _doubts(row)}


def _prepared_images(predictor: Predictor, paths: Sequence[Path]) -> torch.Tensor:
    """Test images, or noise where there are none, (N, 3, S, S) float32 as the model takes them, on its device."""
    import torch

    from adray.data.decode import decode_image
    from adray.data.normalization import normalize_images

    config = predictor.trainer.train_config
    if paths:
        decoded = [
            torch.from_numpy(decode_image(path, config.img_size, config.crop_size))
            for path in paths
        ]
        pixels = torch.stack(decoded)
    else:
        generator = torch.Generator().manual_seed(0)
        shape = (16, 3, config.input_size, config.input_size)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return normalize_images(pixels.to(predictor.trainer.device), config.normalize)


def _batches(images: torch.Tensor, size: int) -> Iterator[Batch]:
    """Endless batches of `size` that go round the images."""
    import torch

    from adray.types import Batch

    positions = torch.arange(size, device=images.device)
    batch = Batch(
        images[positions % len(images)].contiguous(), torch.zeros_like(positions), None, positions
    )
    while size > 1:  # made once, since it may be large
        yield batch
    number = 0
    while True:
        yield replace(batch, image=images[number % len(images)][None])
        number += 1


def _latency(predictor: Predictor, images: torch.Tensor, request: Request) -> dict[str, Any]:
    _reset_peaks(request.device)
    times = _predict_times(predictor, images, 1, request)
    gpu = _gpu_peaks(request.device)
    return {
        **_spread("latency", times),
        "latency_repeats": len(times),
        "host_peak_mb": resident_mb("VmHWM"),
        "gpu_peak_mb": gpu[0],
    }


def _throughput(predictor: Predictor, images: torch.Tensor, request: Request) -> dict[str, Any]:
    """Images per second at the trial's evaluation batch size, and the best of a few others."""
    import numpy as np

    config = predictor.trainer.train_config
    size = config.eval_batch_size or config.batch_size
    _reset_peaks(request.device)
    times = _predict_times(predictor, images, size, request)
    host_peak, (gpu_peak, gpu_reserved) = resident_mb("VmHWM"), _gpu_peaks(request.device)
    rates = {size: 1e3 * size / float(np.median(times))}
    others = (1, size // 4, size * 4) if request.device.startswith("cuda") else (1, size // 4)
    for other in sorted({n for n in others if n >= 1} - {size}):
        rate = _rate_if_it_fits(predictor, images, other, request)
        rates |= {other: rate} if rate else {}
    best = max(rates, key=lambda n: rates[n])
    return {
        "batch_size": size,
        "images_per_second": rates[size],
        "images_per_second_p5": 1e3 * size / float(np.quantile(times, 0.95)),
        "images_per_second_p95": 1e3 * size / float(np.quantile(times, 0.05)),
        "best_batch_size": best,
        "best_images_per_second": rates[best],
        "host_peak_batch_mb": host_peak,
        "gpu_peak_batch_mb": gpu_peak,
        "gpu_reserved_mb": gpu_reserved,
    }


def _rate_if_it_fits(
    predictor: Predictor, images: torch.Tensor, size: int, request: Request
) -> float | None:
    """Images per second at a batch size, None where the GPU's memory does not do for it."""
    import numpy as np
    import torch

    try:
        return 1e3 * size / float(np.median(_predict_times(predictor, images, size, request)))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _from_file(predictor: Predictor, paths: Sequence[Path], request: Request) -> dict[str, Any]:
    """One image file at a time: decoded, resized, copied to the device, scored, its map copied back."""
    if not paths:
        return dict.fromkeys(("file_ms", "file_p5_ms", "file_p95_ms"))
    number = 0

    def call() -> None:
        nonlocal number
        list(predictor.predict([paths[number % len(paths)]]))
        number += 1

    return _spread("file", _times(call, request))


def _predict_times(
    predictor: Predictor, images: torch.Tensor, size: int, request: Request
) -> np.ndarray:
    batches = _batches(images, size)
    return _times(lambda: predictor.trainer.predict_batch(next(batches)), request)


def _times(call: Callable[[], Any], request: Request) -> np.ndarray:
    """Milliseconds of each of the calls that follow a warm-up, the device waited for before and after each."""
    import numpy as np

    wait = _synchronizer(request.device)
    began = time.perf_counter()
    for _ in range(_WARM_UP_CALLS):
        call()
        wait()
        if time.perf_counter() - began > request.seconds / 4:
            break
    times: list[float] = []
    until = time.perf_counter() + request.seconds
    while len(times) < request.repeats and (
        len(times) < _LEAST_CALLS or time.perf_counter() < until
    ):
        start = time.perf_counter()
        call()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return np.array(times)


def _spread(name: str, times: np.ndarray) -> dict[str, float]:
    import numpy as np

    low, middle, high = (float(value) for value in np.quantile(times, (0.05, 0.5, 0.95)))
    return {f"{name}_ms": middle, f"{name}_p5_ms": low, f"{name}_p95_ms": high}


def _sizes(predictor: Predictor, folder: Path) -> dict[str, Any]:
    """Numbers in the network, and bytes in memory and on disk."""
    model, checkpoint = predictor.trainer.model, find_checkpoint(folder)
    tensors = [*model.parameters(), *model.buffers()]
    places = {Path(str(m.weight_file)) for m in model.modules() if getattr(m, "weight_file", None)}
    files = [
        file
        for place in places
        for file in ([place] if place.is_file() else place.rglob("*"))
        if file.is_file()
    ]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model_mb": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB,
        "checkpoint_mb": checkpoint.stat().st_size / MIB if checkpoint else None,
        "weight_files_mb": sum(file.stat().st_size for file in files) / MIB,
    }


def _doubts(row: dict[str, Any]) -> list[str]:
    doubts = []
    if (row["other_cores"] or 0) > max(_OTHER_CORES, _OTHER_SHARE * (os.cpu_count() or 1)):
        doubts.append(f"other processes kept {row['other_cores']:.1f} CPU cores busy meanwhile")
    if (row["gpu_other_mb"] or 0) > _OTHER_GPU_MB:
        doubts.append(
            f"{row['gpu_other_mb']:.0f} MB of the GPU were in use before the model was there"
        )
    if row["latency_p95_ms"] > _UNSTEADY * row["latency_ms"]:
        doubts.append(
            f"times are unsteady: p95 is {row['latency_p95_ms'] / row['latency_ms']:.1f} times the median"
        )
    if row["file_ms"] is None:
        doubts.append(
            "the trial's test images are not there: noise was measured, and nothing from a file"
        )
    return doubts


def _synchronizer(device: str) -> Callable[[], None]:
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return partial(torch.cuda.synchronize, device)


def _reset_peaks(device: str) -> None:
    if not reset_peaks(device):
        logger.warning(
            "the kernel does not let peak memory be reset; host peaks include what loading took"
        )


def _gpu_peaks(device: str) -> tuple[float | None, float | None]:
    """Largest memory of tensors, and held by torch, in MB."""
    if not device.startswith("cuda"):
        return None, None
    import torch

    return torch.cuda.max_memory_allocated(device) / MIB, torch.cuda.max_memory_reserved(
        device
    ) / MIB


def _gpu_in_use_mb(device: str) -> float | None:
    if not device.startswith("cuda"):
        return None
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / MIB


def _other_cpu_seconds() -> float | None:
    """CPU seconds that all processes but this one have taken since the machine started; None off Linux."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _, _, interrupt, soft, steal = (int(field) for field in fields[1:9])
    total = (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")
    return total - time.process_time()


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
    )
    return name or f"{os.uname().machine} CPU"


# In the command's own process


def measure_apart(request: Request) -> dict[str, Any]:
    """Measure one trial in a process of its own, when no other measurement runs on this machine.

    Returns:
        The keys of `FIELDS`, or only ``reason`` where it did not succeed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, request), daemon=True)
    with take_turn(request.settings.cache_dir):
        process.start()
        sender.close()
        try:
            if receiver.poll(_LIMIT_SECONDS):
                return receiver.recv()
            return {
                "reason": f"the measurement took longer than {_LIMIT_SECONDS:.0f} seconds and was stopped"
            }
        except EOFError:
            process.join(10)
            return {
                "reason": f"the measuring process was killed or ran out of memory (exit code {process.exitcode})"
            }
        finally:
            process.join(10)
            process.kill()
            process.join()


def _answer(sender: Any, request: Request) -> None:
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
    """Wait until no other measurement runs on this machine; the node-local cache folder holds the lock."""
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    with (Path(cache_dir) / "measure.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another measurement runs on this machine; waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def choose_trials(records: Iterable[TrialRecord], every: bool = False) -> list[TrialRecord]:
    """The finished trials that are worth measuring.

    Speed and memory do not depend on what a network has learnt, but on its shape: unless `every` one is asked for,
    of the trials with one configuration, one set of hyperparameters and one image size only those stay whose
    checkpoints differ in size by more than 2 %, as memory banks of different training sets do.
    """
    done = [record for record in records if record.status == "done"]
    if every:
        return done
    groups: dict[str, list[TrialRecord]] = {}
    for record in done:
        identity = record.trial["identity"]
        sizes = {key: identity["train"].get(key) for key in ("img_size", "crop_size", "precision")}
        shape = canonical_hash([identity["configuration"], identity["model"], sizes])
        groups.setdefault(shape, []).append(record)
    return [chosen for group in groups.values() for chosen in _different_sizes(group)]


def _different_sizes(group: list[TrialRecord]) -> list[TrialRecord]:
    """One trial per size of checkpoint; the first where none kept one."""
    checkpoints = [
        (file.stat().st_size, r) for r in group if (file := find_checkpoint(r.folder)) is not None
    ]
    chosen: list[tuple[int, TrialRecord]] = []
    for size, record in sorted(checkpoints, key=lambda pair: pair[0]):
        if not chosen or size > _SAME_SIZE * chosen[-1][0]:
            chosen.append((size, record))
    return [record for _, record in chosen] or group[:1]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure trials, store what was found beside them and print it; the exit code is 1 where one failed."""
    options = parse_options(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    records = _records(Path(options.store), options.only, options.all)
    devices = _devices(options.device)
    rows = []
    for number, record in enumerate(records, start=1):
        for device in devices:
            row = _measure(record, device, options)
            rows.append({**_names(record), **row})
            logger.info(
                "%d/%d  %s on %s",
                number,
                len(records),
                "/".join(rows[-1][key] for key in _PATH),
                device,
            )
    print(_as_csv(rows) if options.format == "csv" else _as_table(rows))
    return int(any("failed" in row for row in rows))


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m adray measure",
        description="Measure how fast finished trials predict and what memory that takes, from their checkpoints, "
        "each alone in a fresh process. Run it while nothing else runs on the machine; what does is recorded.",
    )
    parser.add_argument("store", help="the output_dir of a sweep, or the folder of one trial")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="trials by dataset/category/configuration or id",
    )
    parser.add_argument(
        "--all", action="store_true",
        help="every trial; by default one of those whose configuration, hyperparameters, image size and size of "
        "checkpoint are the same, since what was learnt does not change the speed",
    )  # fmt: skip
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "both"),
        help="the CPU, and the GPU where there is one, by default",
    )
    parser.add_argument(
        "--threads", type=int, default=_available_cpus(), help="CPU threads (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=200, help="timed calls per figure (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="no further call after this time per figure (default: %(default)s)",
    )
    parser.add_argument(
        "--format", choices=("table", "csv"), default="table", help="default: %(default)s"
    )
    parser.add_argument(
        "--backbone-dir", help="folder of pretrained weights; by default that of the sweep"
    )
    parser.add_argument("--plugins", nargs="*", help="modules that register models of your own")
    options = parser.parse_args(argv)
    check_range("--threads", options.threads, 1, 1024)
    check_range("--repeats", options.repeats, 1, 1_000_000)
    check_range("--seconds", options.seconds, 0.01, _LIMIT_SECONDS / 10)
    return options


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _records(store: Path, patterns: Sequence[str], every: bool) -> list[TrialRecord]:
    """The trials to be measured, of a store or the one in a folder.

    Raises:
        InputError: where there are none.
    """
    if not store.is_dir():
        raise InputError(
            f"store {store} does not exist; name the output_dir of a sweep, or a trial's folder"
        )
    single = read_trial(store)
    if single is not None and single.status == "done":
        return [single]
    own = (record for record in all_trials(store) if not record.searched)
    found = [record for record in own if not patterns or _matches(record, patterns)]
    chosen = choose_trials(found, every)
    if not chosen:
        which = f" that matches --only {' '.join(patterns)}" if patterns else ""
        raise InputError(
            f"{store} holds no finished trial{which}; see `python -m adray status STORE`"
        )
    return chosen


def _matches(record: TrialRecord, patterns: Sequence[str]) -> bool:
    names = _names(record)
    cell = "/".join(names[key] for key in _PATH[:3])
    return any(fnmatch.fnmatchcase(cell, p) or record.trial["id"].startswith(p) for p in patterns)


def _names(record: TrialRecord) -> dict[str, str]:
    identity = record.trial["identity"]
    cell = (
        "+".join(identity["datasets"]),
        "+".join(identity["categories"]),
        identity["configuration"],
    )
    return dict(zip(_PATH, (*cell, record.trial["id"][:8]), strict=True))


def _devices(wanted: str | None) -> list[str]:
    import torch

    if torch.cuda.is_available():
        return {"cpu": ["cpu"], "cuda": ["cuda"]}.get(wanted or "both", ["cpu", "cuda"])
    if wanted in ("cuda", "both"):
        raise InputError(f"--device {wanted}: torch finds no GPU here; use --device cpu")
    return ["cpu"]


def _measure(record: TrialRecord, device: str, options: argparse.Namespace) -> dict[str, Any]:
    """A measurement, stored beside the trial; or the reason why there is none."""
    if find_checkpoint(record.folder) is None:
        return {
            "reason": "the trial kept no checkpoint; set keep: all in the sweep's file and run the trial again"
        }
    settings = _settings(record, options)
    row = measure_apart(
        Request(record.folder, device, options.threads, options.repeats, options.seconds, settings)
    )
    if "reason" in row:
        return {**row, "failed": True}
    add_measurement(record, row)
    return row


def _settings(record: TrialRecord, options: argparse.Namespace) -> Settings:
    """Those that the trial ran with, where its folder says so, with what the command line gives instead."""
    stored = record.assignment.get("settings")
    settings = build(Settings, stored, "settings") if stored else get_globals()
    given = {
        "backbone_dir": options.backbone_dir,
        "plugins": options.plugins and tuple(options.plugins),
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return replace(settings, cache_dir=get_globals().cache_dir, **changes)


def _as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Names and main figures in columns, then reasons and warnings, one a line."""
    import pandas as pd

    measured = [row for row in rows if "reason" not in row]
    cells = [
        [
            *(row[key] for key in _PATH),
            *(_shown(row[name], how) for name, (_, how) in _COLUMNS.items()),
        ]
        for row in measured
    ]
    frame = pd.DataFrame(cells, columns=[*_PATH, *(title for title, _ in _COLUMNS.values())])
    lines = [frame.to_string(index=False)] if measured else []
    for row in rows:
        remarks = [row["reason"]] if "reason" in row else row["warnings"]
        lines += ["/".join(row[key] for key in _PATH) + f": {remark}" for remark in remarks]
    return "\n".join(lines)


def _shown(value: Any, how: str) -> str:
    return "n/a" if value is None else how.format(value)


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """All fields but the versions, one trial and device a line."""
    from io import StringIO

    text = StringIO()
    columns = [*_PATH, *(name for name in FIELDS if name != "versions"), "reason"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "warnings": "; ".join(row.get("warnings", []))} for row in rows)
    return text.getvalue().rstrip("\n")


if __name__ == "__main__":
    from adray.__main__ import run_command

    sys.exit(run_command(main))
