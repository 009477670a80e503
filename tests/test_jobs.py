"""The scripts of `jobs/` that start sweeps elsewhere, with stand-ins for the programs of the site.

A stand-in writes down how it was called, and answers what the test says.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

JOBS = Path(__file__).parents[1] / "jobs"
STAND_IN = """#!/bin/bash
{{ printf '%s' {name}; for word in "$@"; do printf ' [%s]' "$word"; done; printf '\\n'; }} >> {calls}
{answer}
"""


def names_from_adray(script: Path) -> list[tuple[str, str]]:
    """The modules of the package that a script imports from, each with a name."""
    found = []
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("adray"):
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("script", sorted(JOBS.glob("*.py")), ids=lambda script: script.name)
def test_all_that_a_script_imports_of_the_package_is_there(script):
    for module, name in names_from_adray(script):
        is_there = hasattr(importlib.import_module(module), name)
        assert is_there or importlib.util.find_spec(f"{module}.{name}"), f"{module}.{name}"


class Site:
    """Programs that only write down how they are called, before all others in PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.file = folder / "calls"
        self.token = folder / "token"
        self.token.write_text("secret")
        self.token.chmod(0o600)

    def stand_in(self, *names: str, answer: str = "") -> None:
        for name in names:
            program = self.programs / name
            program.write_text(STAND_IN.format(name=name, calls=self.file, answer=answer))
            program.chmod(0o755)

    def run(self, script: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "ADRAY_TOKEN": str(self.token),
            **variables,
        }
        return subprocess.run(
            [JOBS / script, *words],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )

    def calls(self, name: str = "") -> list[str]:
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        return [line for line in lines if line.startswith(name)]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


SCRIPTS = ("container/build.sh", "container/run.sh", "systemd/install.sh")


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_explains_itself_and_refuses_to_guess(script, site):
    explained = site.run(script, "-h")
    assert explained.returncode == 0
    assert "usage: " in explained.stdout
    assert site.run(script).returncode == 2
    assert site.calls() == []


def test_slurm_runs_one_ray_on_each_node_and_the_sweep_with_it(site):
    site.stand_in("scontrol", answer="echo node7; echo node8")
    site.stand_in("srun", answer='[[ "$*" == *hostname* ]] && echo 10.0.0.7 10.1.0.7')
    ran = site.run(
        "cluster/sweep.slurm",
        "s.yaml",
        "--no-retry",
        SLURM_SUBMIT_DIR=str(JOBS.parent),
        SLURM_JOB_NODELIST="node[7-8]",
        SLURM_JOB_NUM_NODES="2",
    )
    assert ran.stderr == ""
    assert site.calls() == [
        "scontrol [show] [hostnames] [node[7-8]]",
        "srun [--nodes=1] [--ntasks=1] [--nodelist=node7] [hostname] [--ip-address]",
        f"srun [{JOBS}/cluster/on_node.sh] [10.0.0.7] [2] [s.yaml] [--no-retry]",
    ]


LOOPBACK = "127.0.1.1 ::1 fe80::1"


@pytest.mark.parametrize(
    ("by_name", "of_interfaces", "taken"),
    [
        ("127.0.1.1 10.0.0.7 10.1.0.7", "172.17.0.1", "10.0.0.7"),
        (LOOPBACK, "10.0.0.7 172.17.0.1 fd00::7", "10.0.0.7"),
        ("", "127.0.0.1 10.0.0.7", "10.0.0.7"),
        (LOOPBACK, "", None),
    ],
)
@pytest.mark.parametrize("queue", ["slurm", "pbs"])
def test_the_heads_address_is_one_that_other_nodes_reach_or_the_job_is_refused(
    queue, by_name, of_interfaces, taken, site
):
    addresses = f"""
        case "$*" in
            *--ip-address*) [ -n "{by_name}" ] && echo "{by_name}" ;;
            *--all-ip-addresses*) echo "{of_interfaces}" ;;
        esac
    """
    site.stand_in("scontrol", answer="echo node7; echo node8")
    site.stand_in("srun", "hostname", answer=addresses)
    each = " ".join(by_name.split()) or "none"
    site.stand_in("getent", answer=f'for one in {each}; do echo "$one STREAM node7"; done')
    site.stand_in("pbsdsh")
    (site.folder / "nodes").write_text("node7\nnode8\n")
    (site.folder / "jobs").symlink_to(JOBS)
    variables = {
        "SLURM_SUBMIT_DIR": str(JOBS.parent),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "PBS_NODEFILE": str(site.folder / "nodes"),
        "PBS_O_WORKDIR": str(site.folder),
    }
    ran = site.run(f"cluster/sweep.{queue}", "s.yaml", **variables)
    last = site.calls({"slurm": "srun", "pbs": "pbsdsh"}[queue])[-1:]
    if taken is None:
        assert ran.returncode == 2
        assert ran.stderr.startswith("error: node7 knows only loopback addresses")
        assert not any("on_node" in line for line in last)
    else:
        assert ran.returncode == 0, ran.stderr
        assert f"on_node.sh] [{taken}] [2] [s.yaml]" in last[0]


@pytest.mark.parametrize("head", ["127.0.0.1", "localhost"])
def test_a_list_of_hosts_that_begins_with_loopback_is_refused(head, site):
    (site.folder / "hosts").write_text(f"{head}\n10.0.0.2\n")
    site.stand_in("ray", "ssh")
    ran = site.run("cluster/hosts.sh", "hosts", "s.yaml")
    assert ran.returncode == 2
    assert f"error: {head} knows only loopback addresses" in ran.stderr
    assert site.calls() == []


def test_pbs_runs_the_same_on_each_node_with_folder_programs_and_token(site):
    nodes = site.folder / "nodes"
    nodes.write_text("node7\nnode8\nnode7\n")
    (site.folder / "jobs").symlink_to(JOBS)
    site.stand_in("getent", answer="echo 10.0.0.7 STREAM node7")
    site.stand_in("pbsdsh", answer='shift; exec "$@"')
    site.stand_in("ray")
    ran = site.run(
        "cluster/sweep.pbs",
        PBS_NODEFILE=str(nodes),
        PBS_O_WORKDIR=str(site.folder),
        ADRAY_SWEEP="s.yaml --no-retry",
    )
    assert ran.returncode == 0, ran.stderr
    assert site.calls("ray") == [
        "ray [symmetric-run] [--address] [10.0.0.7:6379] [--min-nodes] [2] [--] [python] [-m] [adray.sweep]"
        " [s.yaml] [--no-retry] [--address] [10.0.0.7:6379]"
    ]
    (pbsdsh,) = site.calls("pbsdsh")
    for words in (
        f"[--chdir={site.folder}]",
        f"[PATH={site.programs}:",
        f"[ADRAY_TOKEN={site.token}]",
    ):
        assert words in pbsdsh


def test_a_node_of_a_queue_refuses_to_start_without_the_token(site):
    site.token.unlink()
    site.stand_in("ray")
    ran = site.run("cluster/on_node.sh", "10.0.0.7", "2", "s.yaml")
    assert ran.returncode == 2
    assert "is missing" in ran.stderr
    assert site.calls() == []


@pytest.mark.parametrize(("code", "end"), [(0, "\n"), (1, "\n"), (0, "\r\n")])
def test_hosts_by_ssh_get_the_token_a_ray_and_an_end_whatever_came_of_the_sweep(code, end, site):
    hosts = ["10.0.0.1   # this one", "", "10.0.0.2", "10.0.0.3", ""]
    (site.folder / "hosts").write_text(end.join(hosts), newline="")
    site.stand_in("ray")
    site.stand_in("python", answer=f'[[ "$*" == *adray.sweep.cards* ]] || exit {code}')
    site.stand_in("ssh", answer=f'[[ "$*" == *umask* ]] && cat > {site.folder}/received; exit 0')
    ran = site.run("cluster/hosts.sh", "hosts", "s.yaml", "--no-retry")
    assert ran.returncode == code, ran.stderr

    rays = [line.split("]")[0] for line in site.calls("ray")]
    assert rays == ["ray [start", "ray [stop"]
    assert "[--node-ip-address=10.0.0.1]" in site.calls("ray")[0]
    assert site.calls("python")[-1] == (
        "python [-m] [adray.sweep] [s.yaml] [--address] [10.0.0.1:6379] [--no-retry]"
    )
    assert (site.folder / "received").read_text() == "secret"
    for host in ("10.0.0.2", "10.0.0.3"):
        own = [line for line in site.calls("ssh") if f"[{host}]" in line]
        assert ["umask" in own[0], "start_worker.sh 10.0.0.1" in own[1], "stop.sh" in own[2]] == [
            True
        ] * 3
        assert f"--chdir={site.folder}" in own[1]
    assert not any("secret" in line for line in site.calls())


def test_a_list_of_hosts_that_names_none_is_refused(site):
    (site.folder / "hosts").write_text("# nobody\n")
    site.stand_in("ray", "ssh")
    ran = site.run("cluster/hosts.sh", "hosts", "s.yaml")
    assert ran.returncode == 2
    assert "names no host" in ran.stderr
    assert site.calls() == []


def test_a_worker_that_does_not_start_ends_what_had_started(site):
    (site.folder / "hosts").write_text("10.0.0.1\n10.0.0.2\n")
    site.stand_in("ray", "python")
    site.stand_in("ssh", answer='[[ "$*" == *start_worker* ]] && exit 255; exit 0')
    ran = site.run("cluster/hosts.sh", "hosts", "s.yaml")
    assert ran.returncode == 255
    assert site.calls("ray")[-1] == "ray [stop] [--grace-period] [10]"
    assert "stop.sh" in site.calls("ssh")[-1]
    assert not [line for line in site.calls("python") if "s.yaml" in line]


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_an_image_is_built_from_wheels_without_a_network(engine, site):
    site.stand_in(engine)
    wheels = site.folder / "wheels"
    wheels.mkdir()
    refused = site.run("container/build.sh", str(wheels), ADRAY_ENGINE=engine)
    assert refused.returncode == 2
    assert "make_wheelhouse.sh" in refused.stderr

    (wheels / "adray-0.1.0-py3-none-any.whl").touch()
    site.run("container/build.sh", str(wheels), "search", "onnx", ADRAY_ENGINE=engine)
    (call,) = site.calls()
    for words in (
        "[--network=none]",
        "[--pull=false]",
        "[EXTRAS=search,onnx]",
        "[BASE=python:3.11-slim]",
    ):
        assert words in call
    assert call.endswith(f"[--file] [{JOBS}/container/Dockerfile] [{wheels}]")


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_a_container_has_shared_memory_the_leases_the_folder_and_no_network(engine, site):
    site.stand_in(engine)
    parts = site.folder / "parts"
    parts.mkdir()
    leases = site.folder / "leases"
    site.run(
        "container/run.sh",
        "parts",
        "sweep",
        "s.yaml",
        ADRAY_ENGINE=engine,
        ADRAY_GPUS="0,1",
        ADRAY_LEASES=str(leases),
    )
    (call,) = site.calls()
    for words in (
        "[--network=none]",
        "[--shm-size=2g]",
        f"[--user] [{os.getuid()}:{os.getgid()}]",
        f"[{leases}:/tmp/adray-leases]",
        f"[{parts}:{parts}] [--workdir] [{parts}]",
    ):
        assert words in call
    assert call.endswith("[adray] [sweep] [s.yaml]")
    assert stat.S_IMODE(leases.stat().st_mode) == 0o1777
    gpus = {
        "docker": '[--gpus] ["device=0,1"]',
        "podman": "[--device] [nvidia.com/gpu=0] [--device] [nvidia.com/gpu=1]",
    }
    assert gpus[engine] in call


def test_a_container_without_gpus_asks_for_none(site):
    site.stand_in("docker")
    site.stand_in("nvidia-smi", answer="exit 9")
    site.run("container/run.sh", ".", "models", ADRAY_LEASES=str(site.folder / "leases"))
    (call,) = site.calls("docker")
    assert "[--gpus]" not in call
    assert "[--device]" not in call


def test_a_unit_is_installed_with_folder_environment_and_user(site):
    site.stand_in("systemctl")
    environment = site.folder / "env"
    (environment / "bin").mkdir(parents=True)
    missing = site.run("systemd/install.sh", "/srv/parts", str(environment), "anna")
    assert missing.returncode == 2
    assert "install_node.sh" in missing.stderr

    shutil.copy("/bin/true", environment / "bin" / "python")
    units = site.folder / "units"
    units.mkdir()
    site.run("systemd/install.sh", "/srv", str(environment), "root", ADRAY_UNITS=str(units))
    assert site.calls() == ["systemctl [daemon-reload]"]
    unit = (units / "adray@.service").read_text()
    assert f"ExecStart={environment}/bin/python -m adray.sweep %i.yaml" in unit
    assert "WorkingDirectory=/srv\n" in unit
    assert "User=root\n" in unit
    assert not [line for line in unit.splitlines() if "@" in line.split("#")[0]]

    if shutil.which("systemd-analyze"):
        verify = ["systemd-analyze", "verify", "--man=no", str(units / "adray@.service")]
        verified = subprocess.run(verify, capture_output=True, text=True)
        assert "adray@" not in verified.stderr


@pytest.mark.slow
def test_the_container_is_built_where_a_builder_is_at_hand(site):
    """Needs the base image and the wheelhouse that ADRAY_TEST_WHEELS names."""
    wheels = os.environ.get("ADRAY_TEST_WHEELS")
    if not wheels or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no builder, or no wheelhouse")
    built = subprocess.run(
        [JOBS / "container" / "build.sh", wheels], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
