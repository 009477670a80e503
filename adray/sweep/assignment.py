"""What a worker gets of a trial, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from adray.conditions import Condition, Corruption
from adray.config import TrainConfig, VerdictConfig, build, to_plain
from adray.job import CheckpointKind, Job
from adray.registry import ModelRegistry
from adray.results.store import TrialRecord
from adray.settings import Settings
from adray.sweep.plan import PlannedTrial
from adray.sweep.resources import RETRY_LEVELS
from adray.types import Json, Sharing

ATTEMPTS = 3
"""Times that a trial may start whose process crashes without a log, or whose store is away."""
_NOT_STORED = ("identity", "folder", "threads", "gpu", "visible_gpus", "corruptions")
"""Fields that `trial.json` has elsewhere, or that are no part of what was asked."""


@dataclass(frozen=True)
class Assignment:
    """All that a worker gets of a trial; nothing else of the driver reaches it."""

    id8: str
    """First eight digits of the trial's id."""
    cell: str
    """``dataset/category/configuration``, and the condition unless it is plain, for people."""
    folder: str
    """Place of the trial in the store, absolute."""
    identity: Json
    """All that decides the result, as JSON: configuration, hyperparameters, data, weights, seed."""
    train: TrainConfig
    """How it is trained; the evaluation batch, which decides no result, may be smaller at a
    retry level."""
    settings: Settings
    """Paths and limits, absolute."""
    limit_seconds: float
    """Time after which the trial counts as hung and is stopped."""
    attempts: int = 0
    """Times that it failed before."""
    retry_level: int = 0
    """Number in `RETRY_LEVELS`: how it runs after it ran out of memory; 0 as planned."""
    attempts_left: int = ATTEMPTS
    """Times that it may still start, this one included, where its process crashes or its store
    is away."""
    save_maps: int = 8
    """Pictures per class."""
    checkpoint: CheckpointKind = "named"
    """What the file of the trained model holds; ``none`` keeps no file."""
    watched: bool = False
    """Whether it reports after each epoch, so that a search's scheduler may stop it."""
    waits: bool = False
    """Whether another sweep works on it, whose result is waited for."""
    driver: str = ""
    """``host-pid`` of the sweep that it runs for."""
    sharing: Sharing | None = None
    """What other trials want of the same frozen stage; None for a trial by itself."""
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    """What is asked of verdicts, which decides no score."""
    search: str = ""
    """Name of the search that tries it; empty for a trial of a grid."""
    leaky: bool = False
    """Whether that search chooses by the test set."""
    corruptions: tuple[Corruption, ...] = ()
    """Under what its test images are scored again once it is done."""
    threads: int = 1
    """CPU threads."""
    gpu: float = 0.0
    """Part of a GPU, or number of GPUs; 0 runs on the CPU."""
    visible_gpus: str = ""
    """Its GPUs, as `CUDA_VISIBLE_DEVICES` names them."""
    neighbours: int = 0
    """Trials that its GPU had when it started."""

    @property
    def configuration(self) -> str:
        """Give the name of the configuration."""
        return str(self.identity["configuration"])

    def job(self) -> Job:
        """Make the job. Every hyperparameter is given, so that no default of this process counts."""
        identity = self.identity
        resolved = ModelRegistry.resolve(
            identity["configuration"], train=to_plain(self.train), model=identity["model"]
        )
        return Job(
            resolved,
            tuple(identity["datasets"]),
            tuple(identity["categories"]),
            identity["seed"],
            identity.get("evaluation", "test"),
            self.verdict,
            build(Condition, identity.get("condition", {}), "condition"),
        )

    def stored(self) -> Json:
        """Give what `trial.json` keeps of it, so that the trial can be run again. JSON."""
        plain = to_plain(self)
        return {key: value for key, value in plain.items() if key not in _NOT_STORED}


def assign(
    trial: PlannedTrial,
    settings: Settings,
    *,
    limit_seconds: float,
    save_maps: int = 8,
    checkpoint: CheckpointKind = "named",
    driver: str = "",
    sharing: Sharing | None = None,
) -> Assignment:
    """Write down what a worker gets of a planned trial.

    See the fields of `Assignment` for the arguments.
    """
    return Assignment(
        id8=trial.id8,
        cell=trial.title,
        folder=str(trial.folder),
        identity=trial.identity,
        train=trial.job.resolved.train_config,
        settings=settings,
        limit_seconds=limit_seconds,
        attempts=trial.attempts,
        save_maps=save_maps,
        checkpoint=checkpoint,
        watched=trial.watched,
        driver=driver,
        sharing=sharing,
        verdict=trial.job.verdict,
        search=trial.search,
        leaky=trial.leaky,
        corruptions=trial.lacking,
    )


def assignment_from(plain: Any) -> Assignment:
    """Build an assignment from what `to_plain` made of it."""
    return build(Assignment, plain, "assignment")


def assignment_of_record(record: TrialRecord, folder: Path) -> Assignment:
    """Read the assignment that ran a trial of the store, for a run into `folder`."""
    own = {"identity": record.identity, "folder": str(folder)}
    stored = dict(record.assignment)
    # As version 0.1 wrote it.
    if not stored.pop("keep_checkpoint", True):
        stored["checkpoint"] = "none"
    assignment = assignment_from({**stored, **own})
    return replace(assignment, attempts=record.attempts, sharing=None)


def at_retry_level(assignment: Assignment, level: int) -> Assignment:
    """Give the assignment at a retry level, where the evaluation batch may be smaller."""
    train = assignment.train
    divisor = RETRY_LEVELS[level].eval_divisor
    if divisor > 1:
        batch_size = train.eval_batch_size or train.batch_size
        train = replace(train, eval_batch_size=max(1, batch_size // divisor))
    return replace(assignment, train=train, retry_level=level)


@dataclass(frozen=True)
class PlacedTrial:
    """A trial, and what Ray must find for it."""

    assignment: Assignment
    """What to run."""
    bundle: dict[str, float]
    """CPUs and memory, as Ray names them. Trials of equal bundles follow each other in one process,
    so those on other GPUs, and those that want a fresh process, ask for some bytes more."""
    labels: list[dict[str, str]] | None
    """Labels that its node must have, as Ray takes them for its one bundle; None where there is only
    one node."""


@dataclass(frozen=True)
class Outcome:
    """What came of one start of a trial."""

    status: Literal["done", "failed", "taken", "stopped", "crashed", "interrupted"]
    """``done`` has a result; ``failed`` raised an error; ``taken`` is being worked on by another
    sweep; ``stopped`` was ended by a search's scheduler; ``crashed`` lost its process;
    ``interrupted`` ended with its whole round."""
    kind: str = ""
    """Of a failure, as `failure.json` has it; of a crash ``explained``, ``silent`` or
    ``node_lost``; of an interruption ``started``, ``not_started`` or ``alone``."""
    reason: str = ""
    """Why it failed or crashed, for people."""
    image_auroc: float | None = None
    """Image AUROC of a result; None where it is undefined, or there is none."""
    seconds: float = 0.0
    """Duration of a trial that is done."""
    objective: float | None = None
    """What a search's scheduler last heard of a trial that it stopped."""
    percent: float | None = None
    """Part of the epochs that a stopped trial had done."""


def outcome_from(plain: Json | None, assignment: Assignment) -> Outcome:
    """Read an outcome from what Ray Tune last heard of a trial.

    A watched trial whose last report has no status was stopped by its scheduler between two epochs.
    Any other trial that returned without one has lost its process, whatever Ray says.
    """
    given = plain or {}
    if "status" in given:
        known = Outcome.__dataclass_fields__
        return Outcome(**{key: value for key, value in given.items() if key in known})
    if assignment.watched:
        return Outcome("stopped", objective=given.get("objective"), percent=given.get("percent"))
    return Outcome("crashed", "silent")
