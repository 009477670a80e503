"""Several nodes: what makes one unfit, and what a node that leaves costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fake_datasets import write_mvtec
from toy_sweep import results, toy_settings, wait_for

from adray.errors import InputError
from adray.settings import Settings
from adray.sweep.nodes import NodeFacts, compare_nodes
from adray.sweep.session import check_token

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
    found = compare_nodes(
        HERE,
        [replace(HERE, name="10.0.0.2", **changes), replace(HERE, name="10.0.0.3")],
        Settings(),
    )
    assert list(found) == ["10.0.0.2"]
    assert words in found["10.0.0.2"][0]
    assert "10.0.0.2" in found["10.0.0.2"][0]


def test_a_node_is_not_blamed_for_weights_that_the_driver_lacks():
    here = replace(HERE, weights={"resnet18": "ab12cd34" * 8, "cait": ""})
    has_it = replace(here, name="10.0.0.3", weights={**here.weights, "cait": "ff00ff00" * 8})
    assert compare_nodes(here, [replace(here, name="10.0.0.2"), has_it], Settings()) == {}


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


@pytest.mark.parametrize(
    "script", sorted(p.name for p in SCRIPTS.iterdir() if p.name != "common.sh")
)
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

    file = _sweep_of(tmp_path, gpu=0.5)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    try:
        node = cluster.add_node(num_cpus=4, num_gpus=2)
        command = [sys.executable, "-m", "adray.sweep", str(file), "--address", cluster.address]
        driver = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
        )
        wait_for(tmp_path, 6)
        cluster.remove_node(node, allow_graceful=False)
        output = driver.communicate(timeout=300)[0]
    finally:
        cluster.shutdown()
    assert driver.returncode == 0, output
    assert len(results(tmp_path)) == 24
    begun = len((tmp_path / "marks").read_text().splitlines())
    assert 24 <= begun <= 24 + 4 + 2


def _sweep_of(folder: Path, **resources: float) -> Path:
    """A sweep of 24 trials that take a second or two each."""
    write_mvtec(
        folder / "datasets" / "mvtec", categories=("bottle",), train=6, good=3, defects=4, size=48
    )
    config = {
        "name": "s",
        "settings": toy_settings(folder),
        "grid": {"models": ["toy-ok"], "datasets": {"mvtec": ["bottle"]}, "seeds": list(range(24))},
        "overrides": {"toy-*": {"model": {"marks": str(folder / "marks"), "pause": 1.0}}},
        "resources": [{"cpu": 1, "memory_gb": 0.2, **resources}],
        "save_maps": 0,
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(config))
    return folder / "s.yaml"


def _prepare_network() -> None:
    """Two network namespaces with a cable between them, 10.0.0.1 and 10.0.0.2."""
    commands = [
        "ip netns add adray1",
        "ip netns add adray2",
        "ip link add cable1 type veth peer name cable2",
    ]
    for n in (1, 2):
        commands += [
            f"ip link set cable{n} netns adray{n}",
            f"ip -n adray{n} addr add 10.0.0.{n}/24 dev cable{n}",
        ]
        commands += [f"ip -n adray{n} link set lo up", f"ip -n adray{n} link set cable{n} up"]
    for command in commands:
        subprocess.run(command.split(), check=True)


class Box:
    """A machine of its own, as far as Ray can see: network, processes, host name, and Ray's temporary folder."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self.token = number, folder / f"token{number}"
        place = folder / f"ray{number}"
        place.mkdir()
        Path("/tmp/ray").mkdir(exist_ok=True)
        inside = f"hostname box{number}; mount --bind {place} /tmp/ray; echo ready; exec sleep 3600"
        command = [
            "ip",
            "netns",
            "exec",
            f"adray{number}",
            "unshare",
            "-pmu",
            "--fork",
            "--mount-proc",
            "bash",
            "-c",
        ]
        self.holder = subprocess.Popen([*command, inside], stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text()
        self.inside = children.split()[0]

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Run a command there; the project is at the same path, as `jobs/cluster` wants it."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "ADRAY_TOKEN": str(self.token), "PATH": path}
        enter = ["nsenter", "-t", self.inside, "-n", "-p", "-m", "-u", "--", *command]
        return subprocess.Popen(
            enter, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command there to its end."""
        process = self.start(*command)
        output = process.communicate(timeout=300)[0]
        return process.returncode, output

    def end(self) -> None:
        """With the first process of the box all others end."""
        subprocess.run(["kill", "-9", self.inside])
        self.holder.wait()


@pytest.fixture
def boxes(tmp_path):
    if os.geteuid() or not shutil.which("ip") or not shutil.which("nsenter"):
        pytest.skip("network namespaces need root, ip and nsenter")
    made: list[Box] = []
    try:
        _prepare_network()
        made += [Box(number, tmp_path) for number in (1, 2)]
        yield made
    finally:
        for box in made:
            box.end()
        for n in (1, 2):
            subprocess.run(["ip", "netns", "del", f"adray{n}"], check=False)


@pytest.mark.slow
@pytest.mark.ray
def test_the_scripts_join_two_boxes_on_a_network_and_a_killed_raylet_costs_only_the_trials_on_it(
    boxes, tmp_path
):
    head, other = boxes
    assert head.run(str(SCRIPTS / "start_head.sh"), "10.0.0.1")[0] == 0
    join = str(SCRIPTS / "start_worker.sh"), "10.0.0.1", "10.0.0.2"
    assert "is missing" in other.run(*join)[1]
    other.token.write_text("0" * 64)
    other.token.chmod(0o644)
    assert "can be read by others" in other.run(*join)[1]
    other.token.chmod(0o600)
    assert "InvalidAuthToken" in other.run(*join)[1]
    other.token.write_text(head.token.read_text())
    assert other.run(*join)[0] == 0
    file = _sweep_of(tmp_path)
    driver = head.start(str(SCRIPTS / "submit.sh"), "10.0.0.1", str(file))
    wait_for(tmp_path, 6)
    listening = [line for box in boxes for line in box.run("ss", "-ltnH")[1].splitlines()]
    ports = [int(line.split()[3].rpartition(":")[2]) for line in listening]
    assert ports
    assert all(6379 <= port <= 6382 or 20000 <= port <= 20999 for port in ports)
    other.run(
        "bash",
        "-c",
        "for p in /proc/[0-9]*; do grep -qs raylet/raylet $p/cmdline && kill -9 ${p#/proc/}; done",
    )
    output = driver.communicate(timeout=300)[0]
    assert driver.returncode == 0, output
    assert len(results(tmp_path)) == 24
    hosts = {
        json.loads((p / "trial.json").read_text())["environment"]["host"] for p in results(tmp_path)
    }
    assert hosts == {"box1", "box2"}
    assert 24 <= len((tmp_path / "marks").read_text().splitlines()) <= 24 + 4
    head.run(str(SCRIPTS / "stop.sh"))
    assert "raylet/raylet" not in head.run("ps", "-eo", "args")[1]


@pytest.mark.slow
@pytest.mark.ray
def test_the_jobs_api_takes_a_sweep_and_its_relative_paths_from_any_folder(boxes, tmp_path):
    pytest.importorskip("aiohttp_cors", reason="the Jobs API needs ray[default]")
    head = boxes[0]
    started = head.run(
        "env",
        "ADRAY_RAY_OPTIONS=--include-dashboard=true",
        str(SCRIPTS / "start_head.sh"),
        "10.0.0.1",
    )
    assert started[0] == 0, started[1]
    file = _sweep_of(tmp_path)
    submit = (
        "env",
        f"--chdir={tmp_path}",
        "ADRAY_JOBS=http://127.0.0.1:8265",
        str(SCRIPTS / "submit.sh"),
        "10.0.0.1",
    )
    code, output = head.run(*submit, file.name)
    assert code == 0, output
    assert len(results(tmp_path)) == 24
    code, output = head.run(*submit, "missing.yaml")
    assert code == 1
    assert "missing.yaml does not exist" in output
