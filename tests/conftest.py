"""Fixtures of all tests."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # two processes of pytest share the cores; before torch is imported
if sys.dont_write_bytecode:
    # Else each of some hundred processes compiles torch and Ray anew.
    sys.pycache_prefix = f"{tempfile.gettempdir()}/adray-test-bytecode-{os.getuid()}"
    sys.dont_write_bytecode = False
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.path.insert(0, str(Path(__file__).parent))
# Ray's workers and subprocesses find the plug-ins of the tests the same way.
os.environ["PYTHONPATH"] = os.pathsep.join(
    p for p in (str(Path(__file__).parent), os.environ.get("PYTHONPATH")) if p
)

# Sweeps of fake GPUs must not wait for those of another run of the tests.
os.environ["ADRAY_LEASES"] = tempfile.mkdtemp(prefix="adray-test-leases-")

from adray.registry import ModelRegistry
from adray.settings import Settings, use_settings

atexit.register(shutil.rmtree, os.environ["ADRAY_LEASES"], ignore_errors=True)

SHARED = Path(__file__).parents[1] / ".." / "shared"


def pytest_collection_modifyitems(items):
    """Ask all of one configuration before the next, so that one fitted model is in memory at a time."""
    first = {}
    for place, item in enumerate(items):
        first.setdefault(contract_of(item) or item.nodeid, place)
    items.sort(key=lambda item: first[contract_of(item) or item.nodeid])


def contract_of(item) -> str:
    """Name the configuration whose contract a test is part of, empty for other tests."""
    if item.path.name != "test_models_contract.py" or not hasattr(item, "callspec"):
        return ""
    return item.callspec.params["name"]


def pytest_xdist_make_scheduler(config, log):
    """Tests of a file run in one process, for its fixtures; those that start Ray all run in the same, not to race."""
    return RayInOneProcess(config, log)


class RayInOneProcess(LoadFileScheduling):
    """Which tests go to a process together; marks for groups of xdist 3.8 have no effect with pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if file.startswith("tests/sweep/") or file == "tests/test_docs.py" else file


@pytest.fixture
def one_thread():
    """One CPU thread: several sum in another order, and training makes other scores of that."""
    import torch  # here, since tests of plans and of files do without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_settings(tmp_path):
    """Each test starts from settings of its own, with all folders under its temporary one."""
    use_settings(
        Settings(
            dataset_dir=str(tmp_path / "datasets"),
            backbone_dir=str(tmp_path / "backbones"),
            output_dir=str(tmp_path / "outputs"),
            cache_dir=str(tmp_path / "cache"),
        )
    )
    yield
    use_settings(Settings())


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers, or a plug-in that it imports, is gone after it."""
    monkeypatch.setattr(ModelRegistry, "_specs", dict(ModelRegistry._specs))
    monkeypatch.setattr(ModelRegistry, "_plugins", set())
    yield
    sys.modules.pop("toy_plugin", None)


@pytest.fixture
def shared():
    """The folder of real images and weights, where there is one."""
    if not (SHARED / "datasets").is_dir():
        pytest.skip("no shared folder with real images here")
    return SHARED.resolve()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; needs the package playwright and a Chromium on the path, else skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to open an internet socket fails the test."""
    original = socket.socket

    class Blocked(original):
        def __init__(self, family=socket.AF_INET, *args, **kwargs):
            if family != socket.AF_UNIX:
                raise AssertionError("a socket was opened")
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", Blocked)
