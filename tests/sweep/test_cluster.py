"""Several nodes: what makes one unfit, and what a node that leaves costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fake_datasets import write_mvtec

from adray.errors import InputError
from adray.settings import Settings
from adray.sweep.nodes import NodeFacts, compare_nodes
from adray.sweep.ray_site import check_token

SCRIPTS = Path(__file__).parents[2] / "jobs" / "cluster"
HERE = NodeFacts("driver", {"torch": "2.14", "adray": "0.1"}, {"resnet18": "ab12cd34" * 8})


def test_a_node_that_is_the_same_is_fit():
    assert compare_nodes(HERE, [replace(HERE, name="10.0.0.2")], Settings()) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"weights": {"resnet18": "ff00ff00" * 8}},
            "other weights for resnet18 (sha256 ff00ff00, the driver's ab12cd34)",
        ),
        ({"weights": {"resnet18": ""}}, "no resnet18"),
        ({"versions": {"torch": "2.13", "adray": "0.1"}}, "torch 2.13, the driver 2.14"),
        ({"versions": {"adray": "0.1"}}, "torch missing"),
        ({"has_store": False}, "does not see the store"),
        ({"has_data": False}, "does not see dataset_dir"),
        ({"cache_problem": "Read-only file system"}, "Read-only file system"),
    ],
)
def test_a_node_that_differs_is_named_with_the_difference(changes, words):
    found = compare_nodes(HERE, [replace(HERE, name="10.0.0.2", **changes), replace(HERE, name="10.0.0.3")], Settings())
    assert list(found) == ["10.0.0.2"]
    assert words in found["10.0.0.2"][0]
    assert "10.0.0.2" in found["10.0.0.2"][0]


def test_a_ray_without_token_and_a_token_that_others_can_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(InputError, match="--insecure"):
        check_token(insecure=False)
    check_token(insecure=True)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    token = tmp_path / "token"
    token.write_text("secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        check_token(insecure=False)
    token.chmod(0o600)
    check_token(insecure=False)


@pytest.mark.parametrize("script", sorted(p.name for p in SCRIPTS.iterdir() if p.name != "common.sh"))
def test_each_script_explains_itself_and_refuses_to_guess(script):
    explained = subprocess.run([SCRIPTS / script, "-h"], capture_output=True, text=True)
    assert explained.returncode == 0
    assert "usage: " in explained.stdout
    assert subprocess.run(["bash", "-n", SCRIPTS / script]).returncode == 0
    if script != "stop.sh":
        assert subprocess.run([SCRIPTS / script], capture_output=True).returncode == 2


@pytest.mark.slow
@pytest.mark.ray
def test_a_node_that_leaves_in_mid_sweep_costs_only_the_trials_on_it(tmp_path):
    from ray.cluster_utils import Cluster

    write_mvtec(tmp_path / "datasets" / "mvtec", categories=("bottle",), train=6, good=3, defects=4, size=48)
    config = {
        "name": "s",
        "settings": {
            "dataset_dir": str(tmp_path / "datasets"),
            "output_dir": str(tmp_path / "outputs"),
            "cache_dir": str(tmp_path / "cache"),
            "plugins": ["toy_plugin"],
        },
        "grid": {"models": ["toy-ok"], "datasets": {"mvtec": ["bottle"]}, "seeds": list(range(24))},
        "overrides": {"toy-*": {"model": {"marks": str(tmp_path / "marks"), "pause": 1.0}}},
        "resources": [{"cpu": 1, "gpu": 0.5, "memory_gb": 0.2}],
        "save_maps": 0,
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(config))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    try:
        node = cluster.add_node(num_cpus=4, num_gpus=2)
        command = [sys.executable, "-m", "adray.sweep", str(tmp_path / "s.yaml"), "--address", cluster.address]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "outputs").rglob("result.json"))) < 6 and time.monotonic() < deadline:
            time.sleep(0.2)
        cluster.remove_node(node, allow_graceful=False)
        output = driver.communicate(timeout=300)[0]
    finally:
        cluster.shutdown()
    assert driver.returncode == 0, output
    assert len([p for p in (tmp_path / "outputs").rglob("result.json") if not p.parent.name.startswith(".")]) == 24
    begun = len((tmp_path / "marks").read_text().splitlines())
    assert 24 <= begun <= 24 + 4 + 2
