"""What a sweep needs of its site, looked at before anything starts.

The plan knows which weight files, data sets and images are missing or broken. Here it is joined by
what the machine must have: folders that can be written, disk for checkpoints, memory.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from adray.components.backbone import weight_megabytes
from adray.config import SweepConfig, to_plain
from adray.data.inspect_files import check_pixels
from adray.data.synthetic import write_synthetic
from adray.errors import InputError
from adray.file_system import FileSystem, colliding, free_bytes, probe
from adray.job import job_samples
from adray.language.catalogue import language_of, load_catalogue
from adray.language.sentence import Sentence, Term
from adray.machine import available_memory
from adray.registry import ModelRegistry
from adray.results.trial_files import find_checkpoint
from adray.settings import Settings, absolute_settings
from adray.sweep.leases import in_use
from adray.sweep.plan import Plan, PlannedTrial, make_plan

_PICTURE_MB = 0.2
_TIGHT = 0.8
"""Part of the free disk above which a sweep that still fits is remarked on."""
_LACKS = {
    "moves_folders": "it moves no folder in one step, so that a trial is published file by file, the result last",
    "replaces_files": "it replaces no file in one step, so that a power cut may tear a table, which is made again",
    "syncs_files": "it flushes no file, so that a power cut may cost what was written just before",
    "syncs_folders": "it flushes no folder, so that a power cut may cost a result published just before",
}
"""Field of `FileSystem` to what follows for a store where it is not so."""
_SHARED_MEMORY_MB = 256
_TOLD_BYTES = 0.5e9
"""Of patches kept while fitting, from which on a plan says so."""
"""What Ray's object store and loader processes need of ``/dev/shm``."""


def prepare(config: SweepConfig, only: Sequence[str] = ()) -> tuple[Settings, Plan]:
    """Make what a sweep begins with: settings with absolute paths, generated data, and the plan.

    Raises:
        InputError: see `make_plan`.
    """
    settings = prepare_data(config)
    return settings, make_plan(config, settings, only)


def prepare_data(config: SweepConfig) -> Settings:
    """Give a sweep's settings with absolute paths, once the data that it generates are there."""
    settings = absolute_settings(config.settings)
    for name, spec in config.generate.items():
        write_synthetic(Path(settings.dataset_dir) / name, **to_plain(spec))
    return settings


def check_site(plan: Plan, config: SweepConfig, settings: Settings) -> tuple[list[str], list[str]]:
    """Look whether this machine can take the sweep.

    Args:
        plan: the trials, of which those that are done need nothing more.
        config: of the sweep.
        settings: with absolute paths.

    Returns:
        Problems, for which nothing should start, and remarks; one sentence each.
    """
    problems, remarks = _look_at_store(plan, config, settings)
    wanted = plan.of("new", "stale", "failed")
    remarks += _cache_remarks(wanted, settings)
    if config.keep == "whole":
        remarks += _bound_remarks(wanted)
    remarks += _memory_remarks(wanted)
    too_large, known = _fit_memory(wanted)
    problems += too_large
    remarks += known
    remarks += [Sentence.of("site lease", lease=lease) for lease in in_use()]

    say = load_catalogue(language_of(os.environ))
    return [said.text(say) for said in problems], [said.text(say) for said in remarks]


def _look_at_store(
    plan: Plan, config: SweepConfig, settings: Settings
) -> tuple[list[Sentence], list[Sentence]]:
    """Say what keeps the store from taking the sweep, and what is worth a remark."""
    output_dir = settings.output_dir
    try:
        file_system = _tried(output_dir)
    except OSError as error:
        return [_unwritable("output_dir", output_dir, error)], []

    wanted = plan.of("new", "stale", "failed")
    need = predicted_disk_mb(plan, config)
    free = file_system.free_bytes / 2**20
    sizes = {"need": _size(need), "free": _size(free), "folder": str(output_dir)}
    remarks = [Sentence.of("site disk", trials=len(wanted), **sizes)]
    for lack in _lacks(file_system):
        remarks.append(Sentence.of("site lacks", kind=file_system.kind, lack=Term(lack)))

    problems = _names_that_are_one(plan, file_system)
    if need > free:
        problems.append(Sentence.of("site disk_full", **sizes))
    elif need > _TIGHT * free:
        remarks.append(Sentence.of("site disk_tight"))
    return problems, remarks


def _lacks(file_system: FileSystem) -> list[str]:
    """Say what a store's file system does not know, and what follows."""
    return [said for name, said in _LACKS.items() if not getattr(file_system, name)]


def _names_that_are_one(plan: Plan, file_system: FileSystem) -> list[Sentence]:
    """Say which cells would share a folder, since the file system takes their names for one."""
    kind = file_system.kind or Term("this file system")
    problems = []
    for names in colliding([trial.cell for trial in plan.trials], file_system):
        problems.append(Sentence.of("site one_folder", names=" and ".join(names), kind=kind))
    return problems


def _bound_remarks(wanted: Sequence[PlannedTrial]) -> list[Sentence]:
    """Remark on configurations that read files of weights at every start, whatever is kept."""
    bound: dict[str, None] = {}
    for trial in wanted:
        resolved = trial.job.resolved
        if resolved.weight_files and not hasattr(resolved.config, "weights"):
            bound[trial.job.configuration] = None
    return [Sentence.of("site bound", name=name) for name in bound]


def predicted_disk_mb(plan: Plan, config: SweepConfig) -> float:
    """Predict what the trials that are not done will write, in MB: checkpoints and pictures.

    A configuration's checkpoints are as large as those that the store already has of it, else as
    its row says. Whole ones hold the files of their backbones besides.
    """
    measured = _checkpoint_sizes(plan)
    total = 0.0
    for trial in plan.of("new", "stale", "failed"):
        if config.keep != "none":
            known = measured.get(trial.job.configuration)
            predicted = trial.job.resolved.spec.checkpoint_mb
            total += statistics.median(known) if known else predicted
        if config.keep == "whole":
            total += sum(map(weight_megabytes, trial.job.resolved.weight_files))
        total += 2 * config.save_maps * _PICTURE_MB
    return total


def _checkpoint_sizes(plan: Plan) -> dict[str, list[float]]:
    """Read the sizes in MB of the checkpoints of trials that are done, by configuration."""
    sizes: dict[str, list[float]] = defaultdict(list)
    for trial in plan.of("done"):
        file = find_checkpoint(trial.folder) if trial.folder else None
        if file is not None:
            sizes[trial.job.configuration].append(file.stat().st_size / 2**20)
    return sizes


def predicted_cache_mb(wanted: Sequence[PlannedTrial]) -> float:
    """Predict what decoded images take in the cache, in MB: once per data and size, with masks."""
    sizes = {}
    for trial in wanted:
        config = trial.job.resolved.train_config
        geometry = (config.img_size, config.crop_size, config.fit, config.aspect)
        key = (trial.job.datasets, trial.job.categories, *geometry)
        pixels = trial.images * math.prod(config.input_shape)
        sizes[key] = pixels * 4  # bytes: three channels and a mask
    return sum(sizes.values()) / 2**20


def _cache_remarks(wanted: Sequence[PlannedTrial], settings: Settings) -> list[Sentence]:
    """Say why the cache cannot be used as it should, nothing where it can."""
    cache_dir = settings.cache_dir
    try:
        file_system = _tried(cache_dir)
    except OSError as error:
        problem = _unwritable("cache_dir", cache_dir, error)
        return [Sentence.of("site no_cache", problem=problem)]

    remarks = []
    if not file_system.locks:
        remarks.append(Sentence.of("site no_locks", kind=file_system.kind))
    need = predicted_cache_mb(wanted)
    room = min(settings.cache_gb * 1e9, file_system.free_bytes) / 2**20
    if need > room:
        said = Sentence.of(
            "site cache_small", need=_size(need), folder=str(cache_dir), room=_size(room)
        )
        remarks.append(said)
    return remarks


def check_all_pixels(plan: Plan, settings: Settings) -> list[str]:
    """Decode every image of the sweep once, and say what cannot be decoded, one sentence each."""
    problems: dict[object, list[str]] = {}
    for trial in plan.trials:
        key = (trial.job.datasets, trial.job.categories)
        if key not in problems:
            problems[key] = _undecodable(trial, settings)

    found: list[str] = []
    for of_data in problems.values():
        found += of_data
    return found


def _undecodable(trial: PlannedTrial, settings: Settings) -> list[str]:
    """Say which images of a trial cannot be decoded."""
    try:
        return check_pixels(job_samples(trial.job, settings), settings.cache_dir)
    except InputError:
        return []  # the plan has said why


def _tried(folder: str) -> FileSystem:
    """Try out what the file system of a folder can do. What was made for it is undone.

    Raises:
        OSError: where it cannot be written.
    """
    made = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return probe(Path(folder))
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _unwritable(name: str, folder: str, error: OSError) -> Sentence:
    """Make the sentence for a folder that cannot be written."""
    reason = str(error.strerror)
    return Sentence.of("site unwritable", name=name, folder=str(folder), error=reason)


def _memory_remarks(wanted: Sequence[PlannedTrial]) -> list[Sentence]:
    """Remark on configurations that want more memory than there is, and on a small ``/dev/shm``."""
    total = available_memory() / 1e9
    needs = {trial.job.configuration: trial.job.resolved.spec.memory_gb for trial in wanted}
    remarks = []
    for name, need in needs.items():
        if need > total:
            sizes = {"need": f"{need:g}", "total": f"{total:.0f}"}
            remarks.append(Sentence.of("site memory", name=name, **sizes))

    shared = Path("/dev/shm")
    free = free_bytes(shared) / 2**20 if shared.is_dir() else math.inf
    if free < _SHARED_MEMORY_MB:
        sizes = {"free": _size(free), "least": _size(_SHARED_MEMORY_MB)}
        remarks.append(Sentence.of("site shared_memory", **sizes))
    return remarks


def _fit_memory(wanted: Sequence[PlannedTrial]) -> tuple[list[Sentence], list[Sentence]]:
    """Say what fits keep of their training images, and which of them is too much for this machine.

    Args:
        wanted: the trials that would run.

    Returns:
        Problems and remarks, for each configuration its largest trial.
    """
    largest: dict[str, tuple[int, str]] = {}
    for trial in wanted:
        resolved = trial.job.resolved
        method = ModelRegistry.method(trial.job.configuration)
        pieces = trial.training.pieces
        need = method.fit_bytes(resolved.config, resolved.train_config, pieces)
        name = trial.job.configuration
        largest[name] = max(largest.get(name, (0, "")), (need, trial.job.place))

    problems = []
    remarks = []
    total = available_memory()
    for name, (need, place) in largest.items():
        if need < _TOLD_BYTES:
            continue
        sizes = {"name": name, "place": place, "need": f"{need / 1e9:.1f}"}
        if need > total:
            problems.append(Sentence.of("site fit_large", **sizes, total=f"{total / 1e9:.0f}"))
        else:
            remarks.append(Sentence.of("site fit", **sizes))
    return problems, remarks


def _size(megabytes: float) -> str:
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"
