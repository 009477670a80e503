"""What a sweep needs of its site, looked at before anything starts; `python -m adray check FILE` looks and stops there.

The plan knows which weight files, data sets and images are missing or broken. Here it is joined by what the machine
must have: folders that can be written, disk for checkpoints, memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from adray.config import SweepConfig, to_plain
from adray.data.inspect_files import check_pixels
from adray.data.synthetic import write_synthetic
from adray.errors import InputError
from adray.job import job_samples
from adray.results.trial_files import find_checkpoint
from adray.settings import Settings
from adray.sweep.plan import Plan, PlannedTrial, absolute_settings, make_plan

_PICTURE_MB = 0.2
_TIGHT = 0.8
"""Part of the free disk above which a sweep that still fits is remarked on."""
_SHARED_MEMORY_MB = 256
"""What Ray's object store and loader processes need of ``/dev/shm``."""


def prepare(config: SweepConfig, only: Sequence[str] = ()) -> tuple[Settings, Plan]:
    """What a sweep begins with: its settings with absolute paths, the data that it generates, and its plan.

    Raises:
        InputError: see `make_plan`.
    """
    settings = prepare_data(config)
    return settings, make_plan(config, settings, only)


def prepare_data(config: SweepConfig) -> Settings:
    """A sweep's settings with absolute paths, once the data that it generates are there."""
    settings = absolute_settings(config.settings)
    for name, spec in config.generate.items():
        write_synthetic(Path(settings.dataset_dir) / name, **to_plain(spec))
    return settings


def check_site(plan: Plan, config: SweepConfig, settings: Settings) -> tuple[list[str], list[str]]:
    """Whether this machine can take the sweep.

    Args:
        plan: the trials, of which those that are done need nothing more.
        config: of the sweep.
        settings: with absolute paths.

    Returns:
        Problems, for which nothing should start, and remarks; one sentence each.
    """
    wanted = plan.of("new", "stale", "failed")
    need, free = predicted_disk_mb(plan, config), _free_mb(Path(settings.output_dir))
    remarks = [
        f"disk: about {_size(need)} for {len(wanted)} trials, {_size(free)} free at {settings.output_dir}"
    ]
    problems = []
    if reason := _unwritable("output_dir", settings.output_dir):
        problems.append(reason)
    elif need > free:
        problems.append(
            f"the sweep needs about {_size(need)} at {settings.output_dir}, where {_size(free)} are free; make room, "
            "set keep: none, or choose another settings.output_dir"
        )
    elif need > _TIGHT * free:
        remarks.append("that is close to full; keep: none writes no checkpoints")
    if reason := _unwritable("cache_dir", settings.cache_dir):
        remarks.append(f"{reason}; until then images are decoded anew for each trial")
    elif reason := _cache_shortage(wanted, settings):
        remarks.append(reason)
    return problems, remarks + _memory_remarks(wanted)


def predicted_disk_mb(plan: Plan, config: SweepConfig) -> float:
    """What the trials that are not done will write at most, in MB: checkpoints and pictures.

    A configuration's checkpoints are as large as those that the store already has of it, else as its row says.
    """
    wanted = plan.of("new", "stale", "failed")
    configurations = {trial.job.configuration for trial in wanted}
    measured: dict[str, list[float]] = defaultdict(list)
    for trial in plan.of("done"):
        if (
            trial.folder
            and trial.job.configuration in configurations
            and (file := find_checkpoint(trial.folder))
        ):
            measured[trial.job.configuration].append(file.stat().st_size / 2**20)
    total = 0.0
    for trial in wanted:
        known = measured.get(trial.job.configuration)
        checkpoint = statistics.median(known) if known else trial.job.resolved.spec.checkpoint_mb
        total += (checkpoint if config.keep != "none" else 0.0) + 2 * config.save_maps * _PICTURE_MB
    return total


def predicted_cache_mb(wanted: Sequence[PlannedTrial]) -> float:
    """What the decoded images of some trials take in the cache, in MB: once per data and size, with masks."""
    sizes = {}
    for trial in wanted:
        config = trial.job.resolved.train_config
        key = (trial.job.datasets, trial.job.categories, config.img_size, config.crop_size)
        sizes[key] = trial.images * config.input_size**2 * 4
    return sum(sizes.values()) / 2**20


def _cache_shortage(wanted: Sequence[PlannedTrial], settings: Settings) -> str:
    """Why decoded images will not all stay in the cache, empty where they will."""
    need = predicted_cache_mb(wanted)
    room = min(settings.cache_gb * 1e9 / 2**20, _free_mb(Path(settings.cache_dir)))
    if need <= room:
        return ""
    return (
        f"cache: decoded images take about {_size(need)}, but {settings.cache_dir} has room for {_size(room)}: some "
        "will be decoded again; raise settings.cache_gb or free disk"
    )


def check_all_pixels(plan: Plan, settings: Settings) -> list[str]:
    """Decode every image of the sweep; what cannot be decoded, one sentence each."""
    looked: dict[object, list[str]] = {}
    for trial in plan.trials:
        key = (trial.job.datasets, trial.job.categories)
        if key not in looked:
            try:
                looked[key] = check_pixels(job_samples(trial.job, settings), settings.cache_dir)
            except InputError:
                looked[key] = []  # the plan has said why
    return [problem for problems in looked.values() for problem in problems]


def _unwritable(name: str, folder: str) -> str:
    """Why a folder cannot be written, empty where it can; tried, since permissions do not tell all, and undone."""
    made = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".adray-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"settings.{name} {folder} cannot be written ({error.strerror}); mend it, or choose another folder"
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
    return ""


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _free_mb(folder: Path) -> float:
    return shutil.disk_usage(_existing(folder)).free / 2**20


def _memory_remarks(wanted: Sequence[PlannedTrial]) -> list[str]:
    """Configurations that want more memory than the machine has, and a small ``/dev/shm``."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    needs = {trial.job.configuration: trial.job.resolved.spec.memory_gb for trial in wanted}
    remarks = [
        f"{name} takes about {need:g} GB of host memory and this machine has {total:.0f}: it may be killed"
        for name, need in needs.items()
        if need > total
    ]
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := _free_mb(shared)) < _SHARED_MEMORY_MB:
        remarks.append(
            f"/dev/shm has {_size(free)} free; give it at least {_size(_SHARED_MEMORY_MB)}"
        )
    return remarks


def _size(megabytes: float) -> str:
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Say all that is missing for a sweep, at once, and start nothing."""
    from adray.config_file import load_sweep

    parser = argparse.ArgumentParser(
        prog="python -m adray check",
        description="Look at a sweep's file, data, weights and this machine, and say all that is missing at once.",
        epilog="exit codes: 0 the sweep can start, 2 something is missing",
    )
    parser.add_argument("file", help="the sweep's YAML file")
    parser.add_argument(
        "--full",
        action="store_true",
        help="also decode every image, which takes as long as it takes",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change values of the file"
    )
    parser.add_argument(
        "--address", help="also look at every node of a Ray cluster, HOST:PORT or auto"
    )
    options = parser.parse_args(argv)
    config = load_sweep(options.file, options.set)
    settings, plan = prepare(config)
    problems, remarks = check_site(plan, config, settings)
    problems = [
        *plan.problems,
        *problems,
        *(check_all_pixels(plan, settings) if options.full else []),
    ]
    problems += _check_cluster(plan, settings, options.address) if options.address else []
    blocked = len(plan.of("impossible"))
    print(f"{len(plan.trials)} trials: {len(plan.of('done'))} done, {blocked} cannot run")
    for remark in [*plan.remarks, *remarks]:
        print(f"  {remark}")
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)
    if not problems:
        print("ready: nothing is missing")
    return 2 if problems else 0


def _check_cluster(plan: Plan, settings: Settings, address: str) -> list[str]:
    """What makes nodes of a cluster unfit; a folder is made in the store for the time of the look."""
    from adray.sweep.nodes import check_nodes
    from adray.sweep.ray_site import local_site, ray_site

    Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=settings.output_dir, prefix=".adray-") as marker,
        ray_site(address, local_site(None, None)),
    ):
        unfit = check_nodes(plan, settings, Path(marker))
    return [problem for found in unfit.values() for problem in found]
