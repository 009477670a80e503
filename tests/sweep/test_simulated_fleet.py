"""A real run on Ray with GPUs that only seem to be there, beside the simulated run of the same trials."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fake_datasets import write_mvtec
from toy_sweep import toy_settings

from adray.config_file import load_sweep
from adray.results.fleet import fleet_of
from adray.results.store import all_trials
from adray.sweep.costs import CostModel
from adray.sweep.plan import make_plan
from adray.sweep.resources import Site
from adray.sweep.schedule import end_of, in_order, simulate

GPUS, CPUS = 2, 4


def sweep_file(folder: Path) -> Path:
    """Twelve trials of a quarter of a GPU that mostly sleep, of two lengths."""
    write_mvtec(
        folder / "datasets" / "mvtec", categories=("bottle",), train=6, good=3, defects=4, size=48
    )
    config = {
        "name": "s",
        "settings": toy_settings(folder),
        "grid": {
            "models": ["toy-ok", "toy-positional"],
            "datasets": {"mvtec": ["bottle"]},
            "seeds": list(range(6)),
        },
        "overrides": {
            "toy-ok": {"model": {"pause": 30.0}},
            "toy-positional": {"model": {"pause": 15.0}},
        },
        "resources": [{"cpu": 1, "gpu": 0.25, "memory_gb": 0.2}],
        "save_maps": 0,
        "keep": "none",
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(config))
    return folder / "s.yaml"


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_takes_as_long_as_simulated_and_uses_both_gpus_alike(tmp_path):
    """Each trial counts as long as it took, so that what is compared is order, places and pauses."""
    file = sweep_file(tmp_path)
    options = ["--num-gpus", str(GPUS), "--num-cpus", str(CPUS)]
    command = [sys.executable, "-m", "adray.sweep", str(file), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]

    records = list(all_trials(tmp_path / "outputs"))
    took = {record.id8: record.result["timings"]["total_seconds"] for record in records}
    lanes = [lane["runs"] for lane in fleet_of(records)]
    # From the first start on each GPU: how long processes take to start is no part of the plan.
    spans = [max(start + seconds for start, seconds in runs) - runs[0][0] for runs in lanes]

    config = load_sweep(str(file), [])
    wanted = list(make_plan(config, config.settings).trials)
    site = Site(GPUS, CPUS, 10**12)
    ordered = in_order(wanted, CostModel([], "cuda"), config.resources, site)
    known = [
        replace(entry, need=replace(entry.need, seconds=took[entry.trial.id8])) for entry in ordered
    ]
    simulated = simulate(known, site)

    print(spans, end_of(simulated), [len(runs) for runs in lanes])
    assert max(spans) == pytest.approx(end_of(simulated), rel=0.15)
    # Trials that end in the same second may change places.
    assert len(lanes) == GPUS
    assert abs(len(lanes[0]) - len(lanes[1])) <= 2
