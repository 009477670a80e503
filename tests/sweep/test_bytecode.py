"""Compiled modules in the cache folder, for environments in which Python keeps none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adray.settings import Settings
from adray.sweep import bytecode

PROGRAM = """
import subprocess, sys

from adray.settings import Settings
from adray.sweep import bytecode

bytecode._keeps_bytecode = lambda package: False
bytecode.keep_bytecode(Settings(cache_dir=sys.argv[1]))
subprocess.run([sys.executable, "-c", "import wave, sys; print(wave.__cached__)"], check=True)
"""


@pytest.fixture
def _as_it_was(monkeypatch):
    """What this process does with compiled modules is restored afterwards."""
    monkeypatch.setattr(sys, "pycache_prefix", sys.pycache_prefix)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setitem(os.environ, "PYTHONPYCACHEPREFIX", "")
    monkeypatch.setattr(bytecode, "_keeps_bytecode", lambda package: False)


def test_a_child_keeps_its_compiled_modules_in_the_cache_folder(tmp_path):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kept = ran.stdout.strip()
    assert kept.startswith(str(tmp_path / "bytecode"))
    assert Path(kept).is_file()


@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.parametrize(("mode", "is_used"), [(0o700, True), (0o770, False), (0o777, False)])
def test_a_folder_that_others_can_write_is_not_used(mode, is_used, tmp_path):
    """They could put code there that this user would run."""
    folder = tmp_path / "bytecode"
    folder.mkdir()
    folder.chmod(mode)
    bytecode.keep_bytecode(Settings(cache_dir=str(tmp_path)))
    assert (os.environ["PYTHONPYCACHEPREFIX"] == str(folder)) is is_used


@pytest.mark.usefixtures("_as_it_was")
def test_nor_is_one_whose_place_others_can_take(tmp_path):
    tmp_path.chmod(0o777)
    bytecode.keep_bytecode(Settings(cache_dir=str(tmp_path)))
    assert os.environ["PYTHONPYCACHEPREFIX"] == ""


@pytest.mark.parametrize(
    ("is_compiled", "is_forbidden", "keeps"),
    [(True, True, True), (False, False, True), (False, True, False)],
)
def test_python_is_left_alone_where_it_keeps_compiled_modules(
    is_compiled, is_forbidden, keeps, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", is_forbidden)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "some_package.py").write_text("")
    if is_compiled:
        (tmp_path / "__pycache__").mkdir()
        tag = sys.implementation.cache_tag
        (tmp_path / "__pycache__" / f"some_package.{tag}.pyc").write_bytes(b"")
    assert bytecode._keeps_bytecode("some_package") is keeps
