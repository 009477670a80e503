"""When trials ran, and where."""

from __future__ import annotations

from pathlib import Path

from adray.results.fleet import fleet_of
from adray.results.store import TrialRecord


def ran(finished: str, seconds: float, gpus: str = "0", host: str = "box") -> TrialRecord:
    trial = {"id": "0" * 64, "environment": {"host": host, "visible_gpus": gpus}}
    memory = {"gpu_peak_mb": 9.0 if gpus else None}
    result = {"finished": finished, "timings": {"total_seconds": seconds}, "memory": memory}
    return TrialRecord(Path("x"), trial, result, None)


def test_each_gpu_has_a_lane_and_times_count_from_the_first_start():
    records = [
        ran("2026-11-20T10:01:00+00:00", 60),
        ran("2026-11-20T10:01:30+00:00", 30, "1"),
        ran("2026-11-20T10:02:00+00:00", 60),
        ran("2026-11-20T10:02:00+00:00", 20, "2,3", "other"),
        ran("2026-11-20T10:02:00+00:00", 20, ""),
    ]
    assert fleet_of(records) == [
        {"name": "box CPU", "runs": [[100.0, 20.0]]},
        {"name": "box GPU 0", "runs": [[0.0, 60.0], [60.0, 60.0]]},
        {"name": "box GPU 1", "runs": [[60.0, 30.0]]},
        {"name": "other GPU 2", "runs": [[100.0, 20.0]]},
        {"name": "other GPU 3", "runs": [[100.0, 20.0]]},
    ]


def test_only_the_last_run_is_shown_and_trials_without_a_result_have_no_time():
    failed = TrialRecord(Path("x"), {"id": "1" * 64}, None, {"reason": "x"})
    records = [
        ran("2026-11-19T10:00:00+00:00", 60),
        ran("2026-11-20T10:00:00+00:00", 60),
        ran("2026-11-20T10:59:00+00:00", 60),
    ]
    assert fleet_of([*records, failed]) == [
        {"name": "box GPU 0", "runs": [[0.0, 60.0], [3540.0, 60.0]]}
    ]
    assert fleet_of([failed]) == []
