"""The two ends of Ray Tune: the trainable in a worker, and the callback in the driver."""

from __future__ import annotations

import gc
import json
from functools import cache
from typing import TYPE_CHECKING, Any

from ray import tune

from adray.sweep.trial import KILLED, LOST_NODE, outcome, run_trial, store_is_there

if TYPE_CHECKING:
    from adray.sweep.waves import Work
    from adray.trainer import Report


def given(config: dict[str, Any]) -> dict[str, Any]:
    """What Tune was given for a trial: its message, and what it may use of its node.

    It travels as JSON text, because Tune copies the whole grid, to the last value, once for each trial of it.
    """
    return json.loads(config["trial"])


class SweepTrial(tune.Trainable):
    """A trainable whose single step is a whole trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """Load what nearly all trials need, without a collector that would look at it again and again."""
        gc.disable()
        import timm  # noqa: F401

        import adray.train  # noqa: F401

        gc.enable()

    def step(self) -> dict[str, Any]:
        """Run the trial; its files are in the store before Ray hears of it."""
        return {**_run(given(self.config)), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process; nothing of the last one is kept."""
        self.config = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the store holds the checkpoint."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing: see `save_checkpoint`."""


def bundle_of(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What Ray must find for a trial, and on a node with which labels.

    It lies here, and reads all from the trial: Ray unpickles it several times for each one, with all that it refers to.
    """
    trial = given(config)
    return tune.PlacementGroupFactory([trial["bundle"]], bundle_label_selector=trial["labels"])


def watched_trial(config: dict[str, Any]) -> None:
    """A trainable that reports after each epoch, so that a scheduler can stop it; see `SweepTrial` for the others."""

    def report(step: int, row: dict[str, float]) -> None:
        tune.report({key: row[key] for key in ("objective", "percent")})

    ended = _run(given(config), report)
    score = ended["image_auroc"]
    tune.report({**ended, "objective": -1.0 if score is None else score, "percent": 100.0})


def _run(trial: dict[str, Any], report: Report | None = None) -> dict[str, Any]:
    import torch

    from adray.train import clear_memory

    device = "cuda" if trial["gpu"] and torch.cuda.is_available() else "cpu"
    if device == "cuda":
        # Who takes more than its share runs out of memory and climbs a rung; its neighbours do not notice.
        torch.cuda.set_per_process_memory_fraction(min(trial["gpu"], 1.0))
    message = trial["message"]
    if not store_is_there(
        message["settings"]["output_dir"]
    ):  # else it would be made anew, below the mount
        return outcome(None, {"kind": "io", "reason": "the store is not there"})
    ended = run_trial(message, trial["threads"], device, report)
    clear_memory()
    _settle()
    return ended


@cache
def _settle() -> None:
    """After a process's first trial, keep the collector from what outlived it: a look at that took 0.2 s each time."""
    gc.freeze()


class Progress(tune.Callback):
    """Tells the driver of each trial that ends, and writes down those whose process is gone."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called several times a second."""
        self.work.overdue.end()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A process takes up a trial."""
        self.work.overdue.began(given(trial.config)["message"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial returned, with a result or a failure of its own."""
        self.work.done(given(trial.config)["message"], trial.last_result or {})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died."""
        self.work.died(given(trial.config)["message"], _why(trial))


class FailFast(tune.Stopper):
    """Ends all trials once the driver says so."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by its own result."""
        return False

    def stop_all(self) -> bool:
        """Whether a failure ended the sweep."""
        return self.work.stopped


def _why(trial: Any) -> str:
    """What Ray says of a dead trial, shortened to a sentence."""
    error = trial.get_pickled_error() or trial.get_error()
    text = " ".join(str(error).split()) if error is not None else ""
    if "OutOfMemory" in type(error).__name__ or "running low on memory" in text:
        return "killed because the host ran out of memory; raise memory_gb or lower batch_size"
    if "node has died" in text:
        return LOST_NODE
    return KILLED if "ActorDied" in type(error).__name__ else text[-500:] or KILLED
