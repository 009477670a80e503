"""One trial: what decides its result, and what must be right before it runs; without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adray.components.backbone import (
    find_weights,
    missing_weights,
)
from adray.conditions import PLAIN, Condition, Corruption
from adray.conditions import VERSION as CONDITIONS_VERSION
from adray.config import CROSS, TILE_DEFAULTS, VerdictConfig, stored_values
from adray.data.auxiliary import (
    auxiliary_fingerprint,
    auxiliary_samples,
    find_auxiliary,
    missing_auxiliary,
)
from adray.data.base import SYNTHETIC, defects_of, split_of
from adray.data.defect_channels import check_defects_config
from adray.data.readers import list_samples, resolve_dataset
from adray.data.splits import check_training_defects, training_defects
from adray.errors import InputError
from adray.fields import check_choice
from adray.files import canonical_hash, file_sha256
from adray.language.sentence import Sentence
from adray.model_specs import CORE_VERSION, ModelSpec
from adray.registry import ModelRegistry, Resolved
from adray.results.record_shape import TRIAL_FORMAT
from adray.results.store import cell_folder, merged_name
from adray.settings import Settings
from adray.source_code import source_hash
from adray.types import Json

if TYPE_CHECKING:
    from adray.data.base import Sample

EVALUATIONS = ("test", "synthetic")
CheckpointKind = Literal["none", "named", "whole"]
"""What becomes of a trained model: nothing, a file that names its frozen backbones, or one that
holds them too."""


@dataclass(frozen=True)
class Job:
    """One trial, with everything decided that its result depends on."""

    resolved: Resolved
    """Configuration with every hyperparameter."""
    datasets: tuple[str, ...]
    """Names of the data sets; several are merged."""
    categories: tuple[str, ...]
    """Names of the categories, merged into one training set; ``("all",)`` is every one."""
    seed: int
    """Of splits and of everything random in the model."""
    evaluation: str = "test"
    """``test`` scores the test set. ``synthetic`` leaves it alone and scores the held-out normals
    and synthetic defects drawn on them, which is what a search may choose by."""
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    """What is asked of verdicts, which moves no score and so is no part of the identity."""
    condition: Condition = PLAIN
    """How its training differs from the plain case."""
    corruptions: tuple[Corruption, ...] = ()
    """Under what its test images are scored again once it is done, which changes no result of it
    and so is no part of the identity."""

    @property
    def configuration(self) -> str:
        """Give the name of the configuration."""
        return self.resolved.spec.name

    @property
    def is_cross(self) -> bool:
        """Tell whether training normals calibrate the verdicts, and none is held out."""
        return self.resolved.train_config.calibration == CROSS

    def with_holdout(self) -> Job:
        """Give the same job with verdicts that held-out normals calibrate."""
        train_config = replace(self.resolved.train_config, calibration="holdout")
        return replace(self, resolved=replace(self.resolved, train_config=train_config))

    @property
    def names(self) -> tuple[str, str, str]:
        """Give the folder names of data set, category and configuration."""
        return merged_name(self.datasets), merged_name(self.categories), self.configuration

    @property
    def place(self) -> str:
        """Name data set and category, for messages."""
        return "/".join(self.names[:2])

    def cell(self, settings: Settings) -> Path:
        """Give the folder in which the trials of this configuration on this category lie."""
        custom = False
        for name in self.datasets:
            data = resolve_dataset(name, settings)
            custom |= data.layout == "custom" or data.root.parent.name == "custom"
        return cell_folder(settings.output_dir, *self.names, custom=custom)


def job_samples(job: Job, settings: Settings) -> list[Sample]:
    """List the images that a job trains and tests on.

    Raises:
        InputError: for data that cannot be read, and for a supervised configuration those without
            labelled training defects and their masks.
    """
    config = job.resolved.train_config
    samples = list_samples(
        job.datasets,
        job.categories,
        settings,
        seed=job.seed,
        split_mode=config.split_mode,
        train_defects=config.train_defects,
    )
    if ModelRegistry.method(job.configuration).supervised:
        check_training_defects(samples)
    check_defects_config(samples)
    return samples


def unused_defects(job: Job, samples: Sequence[Sample]) -> list[Sentence]:
    """Remark on labelled defects that a job leaves out, if there are any."""
    remarks = []
    count = len(training_defects(samples))
    if count and not ModelRegistry.method(job.configuration).supervised:
        remarks.append(Sentence.of("unused training_defects", place=job.place, number=count))
    held_out = len(defects_of(split_of(samples, "validation")))
    if held_out:
        remarks.append(Sentence.of("unused validation_defects", place=job.place, number=held_out))
    return remarks


def check_job(job: Job, settings: Settings) -> list[str]:
    """Check a job before its images and weights are looked at.

    Returns:
        Remarks, one sentence each.

    Raises:
        InputError: for values that the model cannot take, auxiliary images that it needs and that
            are missing or cannot be read, and a synthetic evaluation where nothing is held out.
    """
    check_choice("evaluation", job.evaluation, EVALUATIONS)
    config = job.resolved.train_config
    if job.is_cross:
        _check_cross(job)
    if config.tile is not None and ModelRegistry.method(job.configuration).supervised:
        raise InputError(
            Sentence.of("job tile labelled", tile=config.tile, configuration=job.configuration)
        )
    if config.tile_model == "position" and not ModelRegistry.method(job.configuration).by_tile:
        raise InputError(
            Sentence.of(
                "job tile_model",
                configuration=job.configuration,
                placing_configurations=", ".join(configurations_that("by_tile")),
            )
        )
    if config.aspect != 1 and not ModelRegistry.method(job.configuration).any_aspect:
        raise InputError(
            Sentence.of(
                "job aspect",
                aspect=f"{config.aspect:g}",
                configuration=job.configuration,
                aspect_configurations=", ".join(configurations_that("any_aspect")),
            )
        )
    if job.evaluation == SYNTHETIC and config.holdout <= 0:
        raise InputError(
            Sentence.of(
                "job holdout drawn", holdout=f"{config.holdout:g}", configuration=job.configuration
            )
        )

    method = ModelRegistry.method(job.configuration)
    if job.condition.is_dirty and method.supervised:
        raise InputError(
            Sentence.of(
                "job contamination labelled",
                contamination=str(job.condition.contamination),
                configuration=job.configuration,
            )
        )
    remarks = method.check_inputs(job.resolved.config, config)
    return remarks + _check_auxiliary(job, settings)


def configurations_that(can: Literal["by_tile", "any_aspect", "crosses"]) -> list[str]:
    """List the configurations whose method can do something.

    Args:
        can: the field of `adray.method.Method` that says so.
    """
    names = []
    for name in ModelRegistry.list_models():
        if getattr(ModelRegistry.method(name), can):
            names.append(name)
    return names


def _check_cross(job: Job) -> None:
    """Refuse calibration by training normals where a job cannot have it.

    Raises:
        InputError: names the configurations that can, or what else to do.
    """
    if not ModelRegistry.method(job.configuration).crosses:
        raise InputError(
            Sentence.of(
                "job cross pass", crossing_configurations=", ".join(configurations_that("crosses"))
            )
        )
    if job.resolved.train_config.tile is not None:
        raise InputError(Sentence.of("job cross tile"))
    if job.evaluation == SYNTHETIC:
        raise InputError(Sentence.of("job cross drawn", configuration=job.configuration))
    if job.condition.is_dirty and job.condition.hold_out == "clean":
        raise InputError(Sentence.of("job cross clean"))


def _check_auxiliary(job: Job, settings: Settings) -> list[str]:
    """Look for the images that a model trains with beside the products, where it has any.

    Returns:
        A remark where they are missing and the model can do without.

    Raises:
        InputError: where they are missing otherwise, or none of them can be read.
    """
    name = job.resolved.auxiliary
    if not name:
        return []
    instead = ModelRegistry.method(job.configuration).without_auxiliary
    if instead and find_auxiliary(name, settings) is None:
        return [f"{missing_auxiliary(name, settings)}; without them {instead}"]
    auxiliary_samples(name, settings)
    return []


def job_identity(job: Job, settings: Settings, data_fingerprint: str) -> Json:
    """Gather all that decides a trial's result, and whose hash is the trial's id.

    Raises:
        InputError: where a weight file is missing.
    """
    train_config = stored_values(job.resolved.train_config)
    # Scores do not depend on it.
    del train_config["eval_batch_size"]
    # What is as in the plain case says nothing, and trials of before there was more keep their id.
    if train_config["tile"] is None:
        for name in TILE_DEFAULTS:
            train_config.pop(name, None)
    # One of the two says all, and trials from before there were two keep their id.
    del train_config["holdout" if job.is_cross else "calibration"]
    versions = {"model": job.resolved.spec.version, "core": CORE_VERSION}
    if job.evaluation == SYNTHETIC:
        from adray.data.synthetic_defects import VERSION

        versions["defects"] = VERSION
    if not job.condition.is_plain:
        versions["conditions"] = CONDITIONS_VERSION

    identity = {
        "configuration": job.configuration,
        "trainer": job.resolved.spec.trainer,
        "versions": versions,
        "datasets": list(job.datasets),
        "categories": list(job.categories),
        "data": data_fingerprint,
        "model": stored_values(job.resolved.config),
        "train": train_config,
        "weights": {name: _weight_hash(name, settings) for name in job.resolved.weight_files},
        "seed": job.seed,
    }

    # Named only where they say something, so that they change the id of no other trial.
    source = _source_of(job.resolved.spec)
    if source:
        identity["source"] = source
    if job.resolved.auxiliary:
        identity["auxiliary"] = auxiliary_fingerprint(job.resolved.auxiliary, settings)
    if job.evaluation == SYNTHETIC:
        identity["evaluation"] = job.evaluation
    if not job.condition.is_plain:
        identity["condition"] = job.condition.stored()
    return identity


def _source_of(spec: ModelSpec) -> str:
    """Hash the code of a plug-in's trainer, for which it is loaded. Empty for a model of adray."""
    if spec.trainer.startswith("adray."):
        return ""
    return source_hash(ModelRegistry.trainer_class(spec.name).__module__)


def _weight_hash(name: str, settings: Settings) -> str:
    path = find_weights(name, settings.backbone_dir)
    if path is None:
        raise InputError(missing_weights(name, settings.backbone_dir))
    return file_sha256(path)


def trial_record(identity: Json, recorded: Json) -> Json:
    """Give what `trial.json` holds: format, id, all that went into it, and what was only recorded."""
    return {
        "format": TRIAL_FORMAT,
        "id": canonical_hash(identity),
        "identity": identity,
        "environment": recorded,
    }
