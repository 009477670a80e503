"""Two runs of one trial are compared by their scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adray.results.agreement import agreement, recorded_threads
from adray.results.store import TrialRecord
from adray.results.trial_files import ScoreRow, write_scores


def run(folder: Path, scores, threads=1, names=None):
    """A run of a trial that left some scores."""
    folder.mkdir()
    names = names or [f"{i}.png" for i in range(len(scores))]
    rows = [
        ScoreRow("d", "c", "test", name, 0, "good", float(score))
        for name, score in zip(names, scores, strict=True)
    ]
    write_scores(folder, rows)
    environment = {"threads": threads, "device": "x86_64 CPU", "visible_gpus": str(threads)}
    return TrialRecord(folder, {"identity": {}, "environment": environment}, {}, None)


SCORES = np.array([1.0, 2.0, -4.0], np.float32)


@pytest.mark.parametrize(
    ("off", "said"),
    [
        (0, "scores: all 3 are equal bit for bit"),
        (
            2e-6,
            "equal within 1e-05 of the largest score, not bit for bit (they differ by up to 5e-07)",
        ),
        (4e-4, "not equal within 1e-05 of the largest score (they differ by up to 0.0001)"),
    ],
)
def test_the_sentence_tells_bit_equal_from_rounding_and_from_more(tmp_path, off, said):
    stored = run(tmp_path / "stored", SCORES.astype(float))
    again = run(tmp_path / "again", SCORES.astype(float) + np.array([0, off, 0]))
    assert said in agreement(stored, again)
    assert ";" not in agreement(stored, again)


def test_where_the_machines_differ_is_named_where_scores_differ(tmp_path):
    stored = run(tmp_path / "stored", SCORES, threads=4)
    again = run(tmp_path / "again", SCORES * 2, threads=1)
    assert agreement(stored, again).endswith("; the stored run had threads 4, now 1")
    assert recorded_threads(stored) == 4


def test_scores_of_other_images_and_missing_ones_are_not_compared(tmp_path):
    stored = run(tmp_path / "stored", SCORES)
    other = run(tmp_path / "other", SCORES, names=["a", "b", "c"])
    assert "scored other images" in agreement(stored, other)
    empty = TrialRecord(tmp_path, {"identity": {}}, {}, None)
    assert "missing or damaged" in agreement(stored, empty)
    assert recorded_threads(empty) == 1
