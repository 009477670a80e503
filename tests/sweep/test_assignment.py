"""What travels between driver and worker, and what a store keeps of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from adray.config import TrainConfig, to_plain
from adray.results.store import TrialRecord, partial_folder
from adray.settings import FolderLayout, Settings
from adray.sweep.assignment import (
    Assignment,
    assignment_from,
    assignment_of_record,
    at_retry_level,
)
from adray.sweep.worker import log_explains
from adray.types import Sharing

IDENTITY = {
    "configuration": "padim",
    "model": {"num_features": 20},
    "train": {},
    "datasets": ["mvtec"],
    "categories": ["bottle"],
    "seed": 3,
}


def an_assignment(output_dir: Path, **changes: object) -> Assignment:
    settings = Settings(
        output_dir=str(output_dir),
        folders={"parts": FolderLayout("parts", abnormal=("scratch",))},
    )
    return Assignment(
        id8="0123abcd",
        cell="mvtec/bottle/padim",
        folder=str(output_dir / "mvtec" / "bottle" / "padim" / "0123abcd"),
        identity=IDENTITY,
        train=TrainConfig(batch_size=8),
        settings=settings,
        limit_seconds=60.0,
        **changes,
    )


def test_an_assignment_survives_the_way_to_a_worker(tmp_path):
    sharing = Sharing(("layer1", "layer2"), 0.1)
    sent = an_assignment(tmp_path, sharing=sharing, search="s", leaky=True, retry_level=2)
    assert assignment_from(json.loads(json.dumps(to_plain(sent)))) == sent


def test_a_stored_trial_runs_again_as_it_ran(tmp_path):
    ran = an_assignment(tmp_path, search="s", threads=4, gpu=0.5, sharing=Sharing(("layer1",)))
    trial = {"identity": IDENTITY, "assignment": ran.stored()}
    record = TrialRecord(Path(ran.folder), trial, None, {"reason": "x", "attempts": 2})
    again = assignment_of_record(record, Path(ran.folder))
    assert again == replace(ran, threads=1, gpu=0.0, sharing=None, attempts=2)


def test_a_store_of_version_0_1_is_read_and_that_is_said_once(tmp_path, caplog):
    ran = an_assignment(tmp_path, retry_level=2, attempts_left=1)
    old = ran.stored()
    old["rung"] = old.pop("retry_level")
    old["lives"] = old.pop("attempts_left")
    record = TrialRecord(Path(ran.folder), {"identity": IDENTITY, "message": old}, None, None)
    assert record.retry_level == 2
    assert assignment_of_record(record, Path(ran.folder)) == ran
    assert sum("adray 0.1" in line.message for line in caplog.records) <= 1


@pytest.mark.parametrize(("kept", "kind"), [(True, "named"), (False, "none")])
def test_what_an_earlier_store_says_of_checkpoints_is_read(tmp_path, kept, kind):
    ran = an_assignment(tmp_path, checkpoint="whole")
    old = ran.stored()
    del old["checkpoint"]
    trial = {"identity": IDENTITY, "assignment": {**old, "keep_checkpoint": kept}}
    record = TrialRecord(Path(ran.folder), trial, None, None)
    assert assignment_of_record(record, Path(ran.folder)).checkpoint == kind


def test_a_log_explains_a_crash_however_many_threads_were_dumped_after_the_reason(tmp_path):
    hung = an_assignment(tmp_path)
    partial = partial_folder(Path(hung.folder))
    threads = ["  File thread.py, line 1 in run"] * 200
    (partial / "log.txt").write_text("\n".join(["Timeout (0:00:04)!", *threads]))
    assert log_explains(hung)
    (partial / "log.txt").write_text("\n".join(threads))
    assert not log_explains(hung)


@pytest.mark.parametrize(("level", "batch_size"), [(0, None), (1, 2), (2, 2), (3, 1)])
def test_a_retry_level_makes_the_evaluation_batch_smaller_and_never_the_training_batch(
    tmp_path, level, batch_size
):
    planned = an_assignment(tmp_path)
    train = at_retry_level(planned, level).train
    assert train == replace(planned.train, eval_batch_size=batch_size)
