"""What a job is judged and calibrated by, settled by its images before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adray.config import CROSS
from adray.data.base import SYNTHETIC, categories_of, defects_of, normals_of, split_of
from adray.data.conditions import divide
from adray.data.folds import calibration_folds
from adray.errors import InputError
from adray.job import Job
from adray.language.sentence import Sentence

if TYPE_CHECKING:
    from adray.data.base import Sample
    from adray.registry import Resolved


@dataclass(frozen=True)
class Settled:
    """How a job is judged, as its images allow."""

    evaluation: str
    """One of `adray.job.EVALUATIONS`."""
    calibration: int
    """Number of normals by which verdicts are calibrated."""
    training: int = 0
    """Number of images that train, labelled defects left out."""
    disguised: int = 0
    """Number of them that are defects, put there by a condition."""
    tested: int = 0
    """Number of test images."""
    remarks: tuple[Sentence, ...] = ()
    """What they do not allow."""
    kind: str = "holdout"
    """How verdicts are calibrated: ``holdout`` or ``cross``, as in `TrainConfig.calibration`."""

    @property
    def images(self) -> int:
        """Count the images that are opened."""
        held_out = 0 if self.kind == CROSS else self.calibration
        return self.training + held_out + self.tested

    def applied_to(self, job: Job) -> Job:
        """Give the job as it runs."""
        job = replace(job, evaluation=self.evaluation)
        return job if self.kind == CROSS else job.with_holdout()


def settle(job: Job, samples: Sequence[Sample]) -> Settled:
    """Decide what a job is judged by: its test images, or without defects those that are drawn.

    Args:
        job: what is wanted.
        samples: its images.

    Raises:
        InputError: for fewer training normals than the configuration or the condition needs, and
            where there is nothing to score.
    """
    if not job.is_cross:
        return _settle_holdout(job, samples)
    brought = normals_of(split_of(samples, "validation"))
    if not brought:
        return _settle_cross(job, samples)

    # Exact, where cross calibration is approximate.
    settled = _settle_holdout(job.with_holdout(), samples)
    remark = Sentence.of("settle exact", place=job.place, normals=len(brought))
    return replace(settled, remarks=(remark, *settled.remarks))


def _settle_cross(job: Job, samples: Sequence[Sample]) -> Settled:
    """Decide what a job is judged by whose training normals calibrate its verdicts.

    Raises:
        InputError: for fewer images beside a fold than the configuration needs, and for none to
            score.
    """
    parts = divide(samples, 0, job.seed, job.condition)
    training = normals_of(parts.train)
    _check_normals(job, len(training), 0)
    largest = 0
    if len(training) > 1:
        # Near-duplicates are found later, in the decoded pictures.
        folds = calibration_folds(training, None, job.seed)
        largest = int(np.bincount(folds.number).max())
    check_folds(job.resolved, len(training), largest)

    test = parts.test
    if not test:
        raise InputError(Sentence.of("settle cross_no_test", place=job.place))
    remarks = _without_defects(test)
    if not defects_of(test):
        remarks = [Sentence.of("settle cross_no_defects", place=job.place)]
    disguised = sum(sample in parts.made for sample in training)
    return Settled(
        job.evaluation,
        len(training),
        training=len(training),
        disguised=disguised,
        tested=len(test),
        remarks=tuple(remarks),
        kind=CROSS,
    )


def check_folds(resolved: Resolved, normals: int, largest: int) -> None:
    """Refuse folds beside which a configuration has too few images to be fitted on.

    Args:
        resolved: the configuration.
        normals: that train.
        largest: images in the largest fold, 0 where there can be no folds.

    Raises:
        InputError: with the numbers.
    """
    least = resolved.min_normals
    if not largest or normals - largest < least:
        said = Sentence.of(
            "settle folds",
            left=normals - largest,
            normals=normals,
            configuration=resolved.spec.name,
            least=max(least, 1),
        )
        raise InputError(said)


def _settle_holdout(job: Job, samples: Sequence[Sample]) -> Settled:
    """Decide what a job is judged by whose held-out normals calibrate its verdicts.

    Raises:
        InputError: for fewer training normals than the configuration needs, and where there is
            nothing to score.
    """
    config = job.resolved.train_config
    parts = divide(samples, config.holdout, job.seed, job.condition)
    held_out = parts.held_out
    test = parts.test
    normals = len(normals_of(parts.train))
    disguised = sum(sample in parts.made for sample in parts.train)
    settled = Settled(job.evaluation, len(held_out), normals, disguised, len(test))
    _check_normals(job, normals, len(held_out))

    remarks = []
    if config.holdout > 0 and not held_out:
        remarks.append(Sentence.of("settle too_few", place=job.place, normals=normals))

    if job.evaluation == SYNTHETIC or defects_of(test):
        remarks += _without_defects(test)
        return replace(settled, remarks=tuple(remarks))

    # No defect has happened yet: the commonest start of a line.
    if held_out:
        drawn = Sentence.of("settle drawn", place=job.place, normals=len(held_out))
        return replace(settled, evaluation=SYNTHETIC, remarks=(drawn,))
    if not test:
        raise InputError(Sentence.of("settle nothing", place=job.place))
    remarks.append(Sentence.of("settle no_defects", place=job.place))
    return replace(settled, remarks=tuple(remarks))


def _check_normals(job: Job, count: int, held_out: int) -> None:
    """Refuse fewer normal training images than the configuration needs.

    Raises:
        InputError: with both numbers.
    """
    least = job.resolved.min_normals
    if count < least:
        remedy = Sentence.of("settle add_some")
        if job.condition.has_fewer:
            rule = f'{{models: [{job.configuration}], conditions: ["{job.condition.label}"]}}'
            remedy = Sentence.of("settle leave_out", exclude=f"grid.exclude: [{rule}]")
        said = Sentence.of(
            "settle few_beside" if held_out else "settle few",
            place=job.place,
            configuration=job.configuration,
            least=least,
            normals=count,
            held_out=held_out,
            remedy=remedy,
        )
        raise InputError(said)


def _without_defects(test: Sequence[Sample]) -> list[Sentence]:
    """Remark on categories of several that have no defect in the test."""
    remarks = []
    for dataset, category in sorted(categories_of(test) - categories_of(defects_of(test))):
        place = f"{dataset}/{category}"
        remarks.append(Sentence.of("settle category_without_defects", place=place))
    return remarks
