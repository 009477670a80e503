"""Ray Tune, which nothing else here imports: a `Source` gives trials and hears what happens.

Ray's own account is not trusted: a run that was interrupted, a trainable that returns nothing and a
trial killed for memory all look finished there. Who listens reads off the store what is done.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from adray.config import to_plain
from adray.sweep.assignment import (
    Assignment,
    Outcome,
    PlacedTrial,
    assignment_from,
    outcome_from,
)
from adray.sweep.worker import Report, run_assignment, store_is_there
from adray.types import Json


class Source(Protocol):
    """Gives trials to run, and hears of them in the driver while they run."""

    @property
    def stops(self) -> bool:
        """Tell whether all trials are to end now."""

    def next_trial(self) -> PlacedTrial | None:
        """Give a trial that may start now. None while there is no room for any."""

    def tick(self) -> None:
        """Take note that time has passed. Called several times a second."""

    def started(self, assignment: Assignment) -> None:
        """Take note that a process took up a trial."""

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        """Take note that a trial ended in any way but with the whole run."""


def run_trials(
    source: Source, count: int, scratch: Path, *, watched: bool = False
) -> Exception | None:
    """Run some trials to their end.

    Args:
        source: gives them one by one and hears of each that starts and ends.
        count: how many to run.
        scratch: a folder for Tune's own files, which nobody reads; on a cluster one that every node
            reaches.
        watched: whether they report to a scheduler that may stop them.

    Returns:
        What Ray raised in place of an end; the memory monitor's kill of one trial arrives as a
        RuntimeError.
    """
    tuner = tune.Tuner(
        tune.with_resources(_watched_trial if watched else SweepTrial, _resources_of),
        tune_config=tune.TuneConfig(
            search_alg=_Feed(source),
            num_samples=count,
            scheduler=_asha() if watched else None,
            reuse_actors=not watched,
            trial_dirname_creator=_trial_name,
            trial_name_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            callbacks=[_Callback(source)],
            failure_config=tune.FailureConfig(max_failures=0),
            stop=_Stopper(source),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        return error
    return None


def _asha() -> ASHAScheduler:
    """Make the scheduler that stops the hopeless at 4, 12 and 36 % of their epochs.

    The end lies beyond 100, or it would stop a trial as that finishes.
    """
    return ASHAScheduler(
        "percent", "objective", "max", max_t=101, grace_period=4, reduction_factor=3
    )


# In the worker


class SweepTrial(tune.Trainable):
    """A trainable whose single step is a whole trial."""

    def setup(self, config: Mapping[str, str]) -> None:
        """Load what all trials need, without a collector that looks at it again and again."""
        gc.disable()
        import torch  # noqa: F401

        import adray.train  # noqa: F401

        gc.enable()

    def step(self) -> Json:
        """Run the trial. Its files are in the store before Ray hears of it."""
        return {**asdict(_run(self.config)), "done": True}

    def reset_config(self, new_config: dict[str, str]) -> bool:
        """Take the next trial in the same process. Nothing of the last one is kept."""
        self.config = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: the store holds the checkpoint."""

    def load_checkpoint(self, checkpoint: Json | None) -> None:
        """Load nothing: see `save_checkpoint`."""


def _watched_trial(config: Mapping[str, str]) -> None:
    """Run a trial that reports after each epoch, so that a scheduler can stop it.

    It is a function, since Tune drops reports from inside of a `Trainable`.
    """

    def report(step: int, row: dict[str, float]) -> None:
        tune.report({key: row[key] for key in ("objective", "percent")})

    outcome = _run(config, report)
    score = -1.0 if outcome.image_auroc is None else outcome.image_auroc
    tune.report({**asdict(outcome), "objective": score, "percent": 100.0})


def _run(config: Mapping[str, str], report: Report | None = None) -> Outcome:
    """Run what Tune was given, on the part of the GPU that it has."""
    import torch

    from adray.train import clear_memory

    assignment = _assignment_of(config)
    # A process keeps its GPUs: one with others gets its own, see `PlacedTrial.bundle`.
    os.environ["CUDA_VISIBLE_DEVICES"] = assignment.visible_gpus
    device = "cuda" if assignment.gpu and torch.cuda.is_available() else "cpu"
    if device == "cuda":
        # Who takes more than its share runs out of memory and is retried with more; its neighbours
        # do not notice.
        torch.cuda.set_per_process_memory_fraction(min(assignment.gpu, 1.0))
    if not store_is_there(
        assignment.settings.output_dir
    ):  # else it would be made anew, below the mount
        return Outcome("failed", "io", "the store is not there")

    outcome = run_assignment(assignment, device, report)
    clear_memory()
    _settle()
    return outcome


@cache
def _settle() -> None:
    """Keep the collector from what outlived a process's first trial: a look at it took 0.2 s."""
    gc.freeze()


# What travels


class _NotWritten:
    """Leaves the source out of what Tune writes down of a run, which nobody reads.

    A source knows the whole sweep, and may hold what cannot be written down.
    """

    def __getstate__(self) -> Json:
        """Give what is written down, all but the source."""
        return {name: value for name, value in vars(self).items() if name != "_source"}


class _Feed(_NotWritten, Searcher):
    """Asks a source for the next trial whenever Tune could start one."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def suggest(self, trial_id: str) -> dict[str, str] | None:
        """Give a trial as Tune's configuration. None while there is no room for any."""
        placed = self._source.next_trial()
        return None if placed is None else {"trial": _packed(placed)}

    def on_trial_complete(
        self, trial_id: str, result: Json | None = None, error: bool = False
    ) -> None:
        """Learn nothing: the source hears of it by the callback."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the store knows what is done."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: see `save`."""


def _packed(trial: PlacedTrial) -> str:
    """Write a trial as text."""
    return json.dumps(
        {
            "assignment": to_plain(trial.assignment),
            "bundle": trial.bundle,
            "labels": trial.labels,
        }
    )


def _unpacked(config: Mapping[str, str]) -> Json:
    """Read what `_packed` wrote. JSON."""
    return json.loads(config["trial"])


def _assignment_of(config: Mapping[str, str]) -> Assignment:
    """Read the assignment that Tune was given."""
    return assignment_from(_unpacked(config)["assignment"])


def _resources_of(config: Mapping[str, str]) -> tune.PlacementGroupFactory:
    """Say what Ray must find for a trial, and on a node with which labels.

    It reads all from the trial: Ray unpickles it several times for each one, with all that it
    refers to.
    """
    given = _unpacked(config)
    return tune.PlacementGroupFactory([given["bundle"]], bundle_label_selector=given["labels"])


def _trial_name(trial: Any) -> str:
    """Name a trial by the beginning of its id."""
    return str(_unpacked(trial.config)["assignment"]["id8"])


# In the driver


class _Callback(_NotWritten, tune.Callback):
    """Passes Tune's events on to the source, in our words."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Pass on that time has passed."""
        self._source.tick()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a process took up a trial."""
        self._source.started(_assignment_of(trial.config))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a trial returned, with a result or a failure of its own."""
        assignment = _assignment_of(trial.config)
        self._source.ended(assignment, outcome_from(trial.last_result, assignment))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a trial's process crashed."""
        self._source.ended(_assignment_of(trial.config), _crash(trial))


class _Stopper(_NotWritten, tune.Stopper):
    """Ends all trials once the source says so."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __call__(self, trial_id: str, result: Json) -> bool:
        """Stop no trial by its own result."""
        return False

    def stop_all(self) -> bool:
        """Tell whether all trials are to end now."""
        return self._source.stops


def _crash(trial: Any) -> Outcome:
    """Read what Ray says of a crashed trial, shortened to a sentence."""
    error = trial.get_pickled_error() or trial.get_error()
    text = " ".join(str(error).split()) if error is not None else ""
    if "OutOfMemory" in type(error).__name__ or "running low on memory" in text:
        reason = "killed because the host ran out of memory; raise memory_gb or lower batch_size"
        return Outcome("crashed", "explained", reason)
    if "node has died" in text:
        return Outcome("crashed", "node_lost")
    if "ActorDied" in type(error).__name__ or not text:
        return Outcome("crashed", "silent")
    return Outcome("crashed", "explained", text[-500:])
