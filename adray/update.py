"""Add normal images to a trained model, or take some away, without its old images and in seconds.

Means and covariances are the same as if the model had been fitted on all images from the start. A
memory bank becomes a coreset of itself and the new patches. The model is a new trial beside its
parent. Its calibration normals are those of the parent, which never train, scored anew: an image
that is one of them is left out of what is added. So is one that the model has learnt from.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.changed_data import settings_of
from adray.conditions import Condition
from adray.config import CROSS, VerdictConfig, build
from adray.data.checks import checked_fingerprint
from adray.errors import InputError
from adray.files import canonical_hash, file_sha256, write_json
from adray.job import Job, job_identity, job_samples
from adray.language.sentence import Sentence, sentence_of
from adray.machine import Meter, environment
from adray.registry import ModelRegistry, Resolved
from adray.results.store import (
    UPDATED,
    TrialRecord,
    dead_partials,
    partial_folder,
    read_trial,
)
from adray.results.trial_files import checkpoint_of
from adray.settings import Settings, get_globals, use_settings
from adray.types import Batch, Json

if TYPE_CHECKING:
    from adray.data.loaders import Loaders
    from adray.trainer import BaseTrainer

logger = logging.getLogger(__name__)

VERSION = 1
"""Raised by hand when an update makes other models of the same images."""


@dataclass(frozen=True)
class Picture:
    """An image that is added or taken away."""

    file: Path
    """Where it lies now."""
    path: Path
    """Under which it is learnt, or was: its turned views follow from the name."""
    sha256: str
    """Of the file."""


@dataclass(frozen=True)
class Updated:
    """A model that was updated."""

    folder: Path
    """Of the new trial."""
    result: Json
    """What its `result.json` holds."""
    added: int
    """Images that were added."""
    removed: int
    """Images that were taken away."""
    known: int
    """Images that were left out, since the parent has learnt from them, or is calibrated by them."""
    existed: bool
    """Whether this very update had been made before."""


@dataclass(frozen=True)
class _Parent:
    """The trial that is updated."""

    record: TrialRecord
    """What the store says of it."""
    settings: Settings
    """Where its images and weights lie."""
    job: Job
    """What it did."""

    @property
    def folder(self) -> Path:
        """Give its folder."""
        return self.record.folder

    @property
    def update(self) -> Json:
        """Give what it says of its own update. JSON, empty for a training."""
        return dict(self.record.identity.get("update", {}))

    @property
    def names(self) -> dict[str, str]:
        """Give the names under which images were added, by sha256. None before there were any."""
        assert self.record.result is not None, "it is done"
        return dict(self.record.result.get("update", {}).get("names", {}))

    @property
    def trained(self) -> int:
        """Count the images that it has learnt from."""
        assert self.record.result is not None, "it is done"
        return int(self.record.result["counts"]["train"])


def update_trial(
    folder: Path, added: Sequence[Path], removed: Sequence[Path], device: str, out: Path | None
) -> Updated:
    """Make a new trial of a finished one and further images.

    Args:
        folder: of the parent, which is left as it is.
        added: normal images, perhaps none.
        removed: images that the parent has learnt from, perhaps none.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        out: folder of the new trial, or None for one in the parent's.

    Raises:
        InputError: for a trial that cannot be updated, images that cannot be added or taken away,
            and data that are no longer those of the parent.
    """
    parent = _open_parent(folder)
    _check_method(parent, removed)
    _check_data(parent)

    from adray.trial import open_loaders

    loaders = open_loaders(parent.job, device)
    new, known = _new_pictures(added, parent, loaders)
    gone = _learnt_pictures(removed, parent, loaders)
    _check_counts(parent, new, gone, known)

    about = _update_of(parent, new, gone)
    identity = {**parent.record.identity, "update": about}
    place = out or _place(parent, identity)
    result = _made_before(place, identity)
    if result is not None:
        return Updated(place, result, len(new), len(gone), known, existed=True)
    if place.exists():
        raise InputError(Sentence.of("update other trial", place=str(place)))

    for left in dead_partials(place.parent):
        shutil.rmtree(left, ignore_errors=True)
    working = partial_folder(place.with_name(_name_of(identity)))
    try:
        record = {**parent.record.trial, "id": canonical_hash(identity), "identity": identity}
        write_json(working / "trial.json", record | {"environment": environment(device)})
        result = _run(parent, loaders, new, gone, working, device)
        working.rename(place)
    except OSError:
        # Of two commands that make the same update the first wins.
        earlier = _made_before(place, identity)
        if earlier is None:
            raise
        return Updated(place, earlier, len(new), len(gone), known, existed=True)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return Updated(place, result, len(new), len(gone), known, existed=False)


def _made_before(place: Path, identity: Json) -> Json | None:
    """Read the result of this very update, None where it was not made yet."""
    record = read_trial(place)
    if record is None or record.identity != identity:
        return None
    return record.result


# What can be updated


def _open_parent(folder: Path) -> _Parent:
    """Read the trial that is to be updated.

    Raises:
        InputError: for a folder that is no finished trial.
    """
    record = read_trial(folder)
    if record is None or record.result is None:
        raise InputError(Sentence.of("update not finished", folder=str(folder)))
    settings = settings_of(record) or get_globals()
    # Plug-ins are looked up in the settings of this process, and images and weights too.
    use_settings(settings)
    return _Parent(record, settings, _job_of(record))


def _check_method(parent: _Parent, removed: Sequence[Path]) -> None:
    """Refuse a model that no images can be added to, or none taken away from.

    Raises:
        InputError: names those that can.
    """
    identity = parent.record.identity
    name = identity["configuration"]
    updates = _updates(parent.job.resolved)
    if not updates:
        raise InputError(
            Sentence.of(
                "update no sums",
                name=name,
                updating_configurations=", ".join(updating_configurations()),
            )
        )
    if removed and updates == "coreset":
        raise InputError(Sentence.of("update coreset", name=name))
    if identity["train"].get("tile") is not None:
        raise InputError(Sentence.of("update tiles", folder=str(parent.folder)))
    if identity["train"].get("calibration") == CROSS:
        raise InputError(Sentence.of("update cross", folder=str(parent.folder)))


def updating_configurations() -> list[str]:
    """List the configurations that images can be added to."""
    names = []
    for name in ModelRegistry.list_models():
        if _updates(ModelRegistry.resolve(name)):
            names.append(name)
    return names


def _updates(resolved: Resolved) -> str:
    """Say how images are added to a configuration, see `Method.updates`. Empty where not at all."""
    # The weights of a bank compare all training images, which no model keeps.
    if getattr(resolved.config, "soft_weights", "none") != "none":
        return ""
    return ModelRegistry.method(resolved.spec.name).updates


def _job_of(record: TrialRecord) -> Job:
    """Make the job that a trial did. Every hyperparameter is given."""
    identity = record.identity
    resolved = ModelRegistry.resolve(
        identity["configuration"], train=identity["train"], model=identity["model"]
    )
    return Job(
        resolved,
        tuple(identity["datasets"]),
        tuple(identity["categories"]),
        identity["seed"],
        identity.get("evaluation", "test"),
        build(VerdictConfig, record.assignment.get("verdict", {}), "verdict"),
        build(Condition, identity.get("condition", {}), "condition"),
    )


def _check_data(parent: _Parent) -> None:
    """Refuse data, weights and code that are no longer those of the parent.

    With other images others would be held out, and some that trained would calibrate.

    Raises:
        InputError: with what differs.
    """
    job = parent.job
    samples = job_samples(job, parent.settings)
    split_mode = job.resolved.train_config.split_mode
    fingerprint = checked_fingerprint(job.place, samples, split_mode, parent.settings)
    present = job_identity(job, parent.settings, fingerprint)
    before = dict(parent.record.identity)
    before.pop("update", None)
    if present["data"] != before["data"]:
        raise InputError(
            Sentence.of("update images changed", place=job.place, folder=str(parent.folder))
        )
    for name in ("weights", "versions"):
        if present[name] != before[name]:
            raise InputError(
                Sentence.of(
                    "update surroundings",
                    name=name,
                    folder=str(parent.folder),
                    before=str(before[name]),
                    present=str(present[name]),
                )
            )


# Which images


def _new_pictures(
    paths: Sequence[Path], parent: _Parent, loaders: Loaders
) -> tuple[list[Picture], int]:
    """Leave out what the parent has learnt from, or is judged or calibrated by, and copies.

    Returns:
        The images to add, and the number of those that are left out.
    """
    taken = _learnt(parent, loaders)
    held_out = [] if loaders.valid is None else loaders.valid.samples
    for sample in (*held_out, *loaders.test.samples):
        taken.add(_hash_of(sample.path))
    pictures = []
    for path in paths:
        digest = _hash_of(path)
        if digest not in taken:
            pictures.append(Picture(path, path, digest))
            taken.add(digest)
    return pictures, len(paths) - len(pictures)


def _learnt(parent: _Parent, loaders: Loaders) -> set[str]:
    """Hash the images that the parent has learnt from."""
    learnt = {_hash_of(sample.path) for sample in loaders.train.samples}
    learnt |= set(parent.update.get("added", ()))
    return learnt - set(parent.update.get("removed", ()))


def _learnt_pictures(paths: Sequence[Path], parent: _Parent, loaders: Loaders) -> list[Picture]:
    """Check that the parent has learnt from images that are to be taken away.

    Raises:
        InputError: with the first that it has not, and for copies.
    """
    if not paths:
        return []
    learnt = _learnt(parent, loaders)
    before = {_hash_of(sample.path): sample.path for sample in loaders.train.samples}
    before |= {digest: Path(name) for digest, name in parent.names.items()}
    pictures = []
    for path in paths:
        digest = _hash_of(path)
        if digest not in learnt:
            raise InputError(
                Sentence.of("update not learnt", folder=str(parent.folder), path=str(path))
            )
        learnt.remove(digest)
        pictures.append(Picture(path, before.get(digest, path), digest))
    return pictures


def _hash_of(path: Path) -> str:
    """Hash an image file.

    Raises:
        InputError: for one that cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(
            Sentence.of("update unreadable", path=str(path), error=sentence_of(error))
        ) from error


def _check_counts(
    parent: _Parent, new: Sequence[Picture], gone: Sequence[Picture], known: int
) -> None:
    """Refuse an update that changes nothing, or leaves too few images.

    Raises:
        InputError: with the numbers.
    """
    if not new and not gone:
        if known:
            raise InputError(
                Sentence.of("update all known", known=known, folder=str(parent.folder))
            )
        raise InputError(Sentence.of("update nothing"))
    left = parent.trained + len(new) - len(gone)
    least = parent.job.resolved.min_normals
    if left < least:
        raise InputError(
            Sentence.of(
                "update few left",
                left=left,
                trained=parent.trained,
                configuration=parent.job.configuration,
                least=least,
            )
        )


# The new trial


def _update_of(parent: _Parent, new: Sequence[Picture], gone: Sequence[Picture]) -> Json:
    """Say what an update is made of, which is part of the new trial's id. JSON."""
    before = parent.update
    # An image that was taken away and comes again is there, and the other way round.
    added = set(before.get("added", ())) | {picture.sha256 for picture in new}
    removed = set(before.get("removed", ())) - {picture.sha256 for picture in new}
    removed |= {picture.sha256 for picture in gone}
    return {
        "version": VERSION,
        "parent": parent.record.trial["id"],
        "added": sorted(added),
        "removed": sorted(removed),
    }


def _place(parent: _Parent, identity: Json) -> Path:
    """Choose the folder of a new trial: in the folder of the training that all began with."""
    first = parent.folder
    if first.name.startswith(UPDATED):
        first = first.parent
    return first / _name_of(identity)


def _name_of(identity: Json) -> str:
    """Name the folder of an updated trial."""
    return f"{UPDATED}{canonical_hash(identity)[:8]}"


def _run(
    parent: _Parent,
    loaders: Loaders,
    new: Sequence[Picture],
    gone: Sequence[Picture],
    folder: Path,
    device: str,
) -> Json:
    """Update the model, evaluate it and write the files of the new trial.

    Raises:
        InputError: for an image that cannot be read, and one that the model was not trained on.
    """
    from adray.trial import Trained, finish_job, make_trainer

    meter = Meter(device)
    trainer = make_trainer(parent.job, device)
    trainer.load_model(checkpoint_of(parent.folder))
    trainer.model.eval()
    trainer.update(parent.trained, _PictureBatches(trainer, new), _PictureBatches(trainer, gone))
    trainer.check_model()
    meter.lap("fit_seconds")

    about = {
        "parent": parent.record.trial["id"],
        "parent_folder": str(parent.folder),
        "added": [str(picture.file) for picture in new],
        "removed": [str(picture.file) for picture in gone],
        "names": parent.names | {picture.sha256: picture.path.name for picture in new},
        "train": parent.trained + len(new) - len(gone),
    }
    trained = Trained(trainer, loaders, update=about)
    return finish_job(parent.job, folder, trained, meter, save_maps=0, checkpoint="named")


class _PictureBatches:
    """Images in batches with their features, read as the model reads any.

    Args:
        trainer: holds the model.
        samples: the images.
    """

    def __init__(self, trainer: BaseTrainer, samples: Sequence[Picture]) -> None:
        self.samples = samples
        self._trainer = trainer

    def __len__(self) -> int:
        """Count the batches."""
        return -(-len(self.samples) // self._trainer.train_config.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            InputError: for an image that cannot be read.
        """
        import numpy as np
        import torch

        from adray.data.normalization import normalize_images
        from adray.predictor import TrialModel

        trainer = self._trainer
        model: Any = trainer.model
        reader = TrialModel(trainer)
        for number in range(len(self)):
            first = number * trainer.train_config.batch_size
            chunk = self.samples[first : first + trainer.train_config.batch_size]
            pixels = []
            for picture in chunk:
                outcome = reader.read(picture.file, 0)
                if outcome.image is None:
                    raise InputError(
                        Sentence.of("update image", path=str(picture.file), reason=outcome.reason)
                    )
                pixels.append(outcome.image)

            stacked = torch.from_numpy(np.stack(pixels)).to(trainer.device)
            image = normalize_images(stacked, trainer.train_config.normalize)
            index = torch.arange(first, first + len(chunk), device=trainer.device)
            with torch.no_grad(), trainer.autocast():
                features = model.features(image)
            yield Batch(image, torch.zeros_like(index), None, index, features)
