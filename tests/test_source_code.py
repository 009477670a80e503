"""The hash of a plug-in's source: it follows the module and those beside it, and nothing else."""

from __future__ import annotations

import importlib
import sys

import pytest

from adray.errors import InputError
from adray.source_code import class_name, source_hash


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of modules that Python finds; what a test imports from it is gone after it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(place, files):
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)


MODULE = {"own_model.py": "import own_loss\n", "own_loss.py": "def f():\n    import own_norm\n"}


def test_a_change_of_the_module_or_of_one_that_it_imports_by_way_of_another_changes_the_hash(place):
    write(place, {**MODULE, "own_norm.py": "x = 1\n", "stranger.py": "x = 1\n"})
    importlib.import_module("own_model")
    first = source_hash("own_model")
    write(place, {"stranger.py": "x = 2\n"})
    assert source_hash("own_model") == first
    seen = {first}
    for name in ("own_model.py", "own_loss.py", "own_norm.py"):
        with (place / name).open("a") as file:
            file.write("y = 2\n")
        seen.add(source_hash("own_model"))
    assert len(seen) == 4


def test_relative_imports_and_the_packages_around_a_module_count(place):
    files = {
        "kit/__init__.py": "",
        "kit/nets/__init__.py": "",
        "kit/nets/model.py": "from ..losses import focal\nfrom . import blocks\n",
        "kit/nets/blocks.py": "a = 1\n",
        "kit/losses.py": "focal = 1\n",
        "kit/other.py": "b = 1\n",
    }
    write(place, files)
    importlib.import_module("kit.nets.model")
    first = source_hash("kit.nets.model")
    for name in files:
        write(place, {name: files[name] + "c = 3\n"})
        assert (source_hash("kit.nets.model") == first) == (name == "kit/other.py"), name
        write(place, {name: files[name]})
    assert source_hash("kit.nets.model") == first


def test_other_projects_in_the_folder_of_all_projects_do_not_count(place, monkeypatch):
    site = place / "site-packages"
    write(site, {"mine.py": "import another\n", "another.py": "x = 1\n"})
    monkeypatch.syspath_prepend(str(site))
    importlib.import_module("mine")
    first = source_hash("mine")
    write(site, {"another.py": "x = 2\n"})
    assert source_hash("mine") == first


def test_modules_of_this_package_have_versions_instead():
    assert source_hash("adray.errors") == ""
    assert class_name(InputError) == "adray.errors.InputError"
