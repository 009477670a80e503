"""Leases of GPUs: two sweeps never have the same one, and who is gone has none."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from failing_calls import fail
from fake_datasets import write_mvtec
from toy_sweep import toy_settings

from adray.sweep import leases, session
from adray.sweep.cards import Card
from adray.sweep.leases import in_use, leased
from adray.sweep.nodes import with_what_is_free
from adray.sweep.sweep import RunOptions

CARDS = [Card(str(i), f"GPU-{i}{i}", 24) for i in range(4)]
HOLD = """
import sys
from adray.sweep.cards import Card
from adray.sweep.leases import leased
cards = [Card(str(i), sys.argv[2].format(i), 24) for i in range(4)]
with leased(cards, int(sys.argv[1]), "night") as taken:
    print(",".join(card.name for card in taken), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADRAY_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "leases"


@contextlib.contextmanager
def another(most: int, identity: str = "GPU-{0}{0}"):
    """Another process that holds GPUs as long as the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(most), identity],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def names(cards) -> list[str]:
    return [card.name for card in cards]


def test_a_second_sweep_gets_what_the_first_left_and_sees_nothing_else(monkeypatch):
    with another(2) as (process, taken):
        assert taken == "0,1"
        (said,) = in_use()
        assert said.startswith("GPU 0, 1: sweep night of ")
        assert f"(process {process.pid}, since " in said
        with leased(CARDS, 4, "s") as own:
            assert names(own) == ["2", "3"]
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        with leased(CARDS, 1, "s") as own:
            assert names(own) == ["2"]


def test_the_lease_of_a_killed_process_ends_with_it(capsys):
    with another(4) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert in_use() == []
        with leased(CARDS, 4, "s") as own:
            assert names(own) == ["0", "1", "2", "3"]
    assert capsys.readouterr().err == ""


def test_who_finds_no_gpu_says_who_has_them_and_waits(capsys, monkeypatch):
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.05)
    with another(4) as (process, _):
        naps = []

        def nap(seconds: float) -> None:
            naps.append(seconds)
            if naps.count(0.05) == 2 and process.poll() is None:
                process.kill()
                process.wait()

        monkeypatch.setattr(time, "sleep", nap)
        with leased(CARDS, 2, "s") as own:
            assert names(own) == ["0", "1"]
    assert "no GPU is free: GPU 0, 1, 2, 3: sweep night of" in capsys.readouterr().err
    assert naps.count(0.05) == 2


def test_all_users_can_write_leases_and_none_can_remove_anothers(folder):
    with leased(CARDS, 1, "s"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
        (file,) = folder.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o666


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_users_see_each_others_leases_and_take_over_each_others_files(monkeypatch):
    nobody = HOLD.replace("cards =", "import os; os.setgid(65534); os.setuid(65534)\ncards =")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="adray-leases-") as place:
        Path(place).chmod(0o1777)
        monkeypatch.setenv("ADRAY_LEASES", f"{place}/leases")
        with leased(CARDS, 1, "s"):
            ran = subprocess.run(
                [sys.executable, "-c", nobody, "4", "GPU-{0}{0}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            assert ran.stdout == "1,2,3\n", ran.stderr
        owners = {file.stat().st_uid for file in Path(place, "leases").iterdir()}
        assert owners == {0, 65534}
        with leased(CARDS, 4, "s") as own:
            assert names(own) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "1", "\x00", "\u00e9", "[" * 5000, '{"gpu": "0"}', '{"other": 1}'],
)
def test_a_lease_that_is_torn_is_of_nobody_that_can_be_named(content, folder):
    folder.mkdir()
    file = folder / "GPU-00.json"
    file.write_text(content, encoding="latin-1")
    with file.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert in_use() == []
        with leased(CARDS, 4, "s") as own:
            assert names(own) == ["1", "2", "3"]


def test_a_lease_with_a_number_for_a_name_is_shown(folder):
    folder.mkdir()
    lease = {"gpu": 0, "sweep": "night", "user": 7, "process": "9", "since": None}
    with (folder / "GPU-00.json").open("w+") as held:
        json.dump(lease, held)
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert in_use()[0].startswith("GPU 0: sweep night of 7")


def test_a_part_of_a_gpu_whose_name_has_slashes_is_leased(capsys):
    with leased([Card("MIG-8a/1/0", "MIG-8a/1/0", 24)], 1, "s"):
        assert in_use()[0].startswith("GPU MIG-8a/1/0: sweep s of")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("code", ["ENOSYS", "EIO"])
def test_without_locks_the_sweep_runs_and_says_what_may_happen(code, capsys, monkeypatch):
    fail(monkeypatch, "flock", code)
    with leased(CARDS, 2, "s") as own:
        assert names(own) == ["0", "1"]
    said = capsys.readouterr().err
    assert "GPUs are not leased" in said
    assert os.strerror(getattr(errno, code)) in said
    assert "ADRAY_LEASES" in said


def test_nodes_of_a_cluster_have_what_nobody_uses(monkeypatch):
    pytest.importorskip("ray")
    free = {"aa": {"GPU": 1.5, "CPU": 3.0}}
    monkeypatch.setattr("ray._private.state.available_resources_per_node", lambda: free)
    nodes = [
        {"NodeID": "aa", "Resources": {"GPU": 4.0}},
        {"NodeID": "bb", "Resources": {"GPU": 4.0}},
    ]
    assert [node["Resources"] for node in with_what_is_free(nodes)] == [free["aa"], {}]


@pytest.mark.parametrize(
    ("looks", "taken", "then"),
    [
        ([{"a": (2, 4), "b": (1, 2)}], (3, 6), None),
        ([{"a": (1, 2), "b": (1, 0)}], (1, 2), "1 of 3 GPUs and 2 of 6 CPUs are free; this sweep"),
        ([{"a": (0, 4)}, {"b": (1, 0)}, {"b": (1, 2)}], (1, 2), "CPUs are free; waiting for more"),
    ],
)
def test_a_sweep_takes_the_gpus_of_a_cluster_that_are_free_and_waits_for_the_first(
    looks, taken, then, monkeypatch, capsys
):
    """A node's free GPUs and CPUs at each look; node c is not like the driver's."""

    def nodes(has):
        return [
            {"Alive": True, "NodeID": name, "Resources": {"GPU": gpus, "CPU": cpus}}
            for name, (gpus, cpus) in has.items()
        ]

    left = [{"c": (8, 8), **look} for look in looks]
    monkeypatch.setattr(
        session, "living_nodes", lambda: nodes({"a": (2, 4), "b": (1, 2), "c": (8, 8)})
    )
    monkeypatch.setattr(session, "with_what_is_free", lambda _: nodes(left.pop(0)))
    monkeypatch.setattr(session, "take_gpus", lambda node: node)
    monkeypatch.setattr(session, "check_nodes", lambda *_: {"c": ["c has another torch"]})
    monkeypatch.setattr(session, "ids_of", set)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    sweep = SimpleNamespace(
        plan=None, settings=None, folder=None, options=RunOptions(skip_missing=True)
    )
    site = session._take_what_is_free(sweep)
    assert (site.gpus, site.cpus) == taken
    assert left == []
    said = capsys.readouterr().out
    assert then in said if then else said == ""


def sweep_file(site: Path, name: str, **resources: object) -> Path:
    write_mvtec(
        site / "datasets" / "mvtec", categories=("bottle",), train=6, good=3, defects=4, size=48
    )
    config = {
        "name": name,
        "settings": toy_settings(site) | {"output_dir": str(site / name)},
        "grid": {"models": ["toy-ok"], "datasets": {"mvtec": ["bottle"]}, "seeds": [0, 1, 2]},
        "overrides": {"toy-*": {"model": {"marks": str(site / f"marks-{name}"), "pause": 1.0}}},
        "resources": [{"cpu": 1, "gpu": 1.0, "memory_gb": 0.2, **resources}],
        "save_maps": 0,
    }
    (site / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return site / f"{name}.yaml"


@pytest.mark.slow
@pytest.mark.ray
def test_two_sweeps_on_one_box_use_different_gpus(tmp_path):
    # GPUs that only seem to be there have their number as identity.
    with another(1, "{0}"):
        command = [sys.executable, "-m", "adray.sweep", str(sweep_file(tmp_path, "a"))]
        ran = subprocess.run(
            [*command, "--num-gpus", "2", "--num-cpus", "2"], capture_output=True, text=True
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "GPU 0: sweep night of" in ran.stdout
    lines = (tmp_path / "marks-a").read_text().splitlines()
    assert {line.split()[1] for line in lines} == {"1"}
    assert len(lines) == 3


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_takes_what_is_free_of_a_cluster_in_use(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2})
    hold = (
        "import ray, sys, time; ray.init(address=sys.argv[1])\n"
        "hold = ray.remote(num_gpus=1, num_cpus=2)(lambda: time.sleep(600)).remote()\n"
        "time.sleep(5); print('held', flush=True); time.sleep(600)"
    )
    user = subprocess.Popen(
        [sys.executable, "-c", hold, cluster.address], stdout=subprocess.PIPE, text=True
    )
    try:
        assert user.stdout is not None
        while "held" not in user.stdout.readline():
            pass
        command = [sys.executable, "-m", "adray.sweep", str(sweep_file(tmp_path, "b"))]
        ran = subprocess.run(
            [*command, "--address", cluster.address], capture_output=True, text=True
        )
    finally:
        user.kill()
        cluster.shutdown()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 of 2 GPUs and 2 of 4 CPUs are free; this sweep takes these" in ran.stdout
    assert len(list((tmp_path / "b").rglob("result.json"))) == 3
