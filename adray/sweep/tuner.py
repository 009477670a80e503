"""Ray Tune, which nothing else here imports: trials go in, a `Listener` hears what happens.

Ray's own account is not trusted: a run that was interrupted, a trainable that returns nothing and a
trial killed for memory all look finished there. Who listens reads off the store what is done.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from adray.config import to_plain
from adray.sweep.assignment import (
    Assignment,
    Outcome,
    PlacedTrial,
    Processes,
    assignment_from,
    outcome_from,
)
from adray.sweep.worker import Report, run_assignment, store_is_there
from adray.types import Json


class Listener(Protocol):
    """Hears in the driver of trials while they run."""

    @property
    def stops(self) -> bool:
        """Tell whether all trials are to end now."""

    def tick(self) -> None:
        """Take note that time has passed. Called several times a second."""

    def started(self, assignment: Assignment) -> None:
        """Take note that a process took up a trial."""

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        """Take note that a trial ended in any way but with the whole run."""


def run_trials(
    trials: Sequence[PlacedTrial], processes: Processes, listener: Listener, scratch: Path
) -> Exception | None:
    """Run some trials to their end.

    Args:
        trials: in the order in which they should start.
        processes: how they run.
        listener: hears of each that starts and ends.
        scratch: a folder for Tune's own files, which nobody reads; on a cluster one that every node
            reaches.

    Returns:
        What Ray raised in place of an end; the memory monitor's kill of one trial arrives as a
        RuntimeError.
    """
    tuner = tune.Tuner(
        tune.with_resources(
            _watched_trial if processes == "watched" else SweepTrial, _resources_of
        ),
        # One grid over whole trials. They travel as text, since Tune copies the grid once for each
        # of its values.
        param_space={"trial": tune.grid_search([_packed(trial) for trial in trials])},
        tune_config=tune.TuneConfig(
            scheduler=_asha() if processes == "watched" else None,
            reuse_actors=processes == "reused",
            trial_dirname_creator=_trial_name,
            trial_name_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            callbacks=[_Callback(listener)],
            failure_config=tune.FailureConfig(max_failures=0),
            stop=_Stopper(listener),
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


class _Callback(tune.Callback):
    """Passes Tune's events on to a listener, in our words."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Pass on that time has passed."""
        self._listener.tick()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a process took up a trial."""
        self._listener.started(_assignment_of(trial.config))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a trial returned, with a result or a failure of its own."""
        assignment = _assignment_of(trial.config)
        self._listener.ended(assignment, outcome_from(trial.last_result, assignment))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a trial's process crashed."""
        self._listener.ended(_assignment_of(trial.config), _crash(trial))


class _Stopper(tune.Stopper):
    """Ends all trials once the listener says so."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def __call__(self, trial_id: str, result: Json) -> bool:
        """Stop no trial by its own result."""
        return False

    def stop_all(self) -> bool:
        """Tell whether all trials are to end now."""
        return self._listener.stops


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
