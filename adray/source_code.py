"""Which code a model of the user's own is made of: a hash of its module and of those beside it.

Two plug-ins may bear one name, and one may change between training and use. Their hash tells them
apart. Code of this package has version numbers instead.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from adray.files import canonical_hash, file_sha256

_PACKAGE = "adray"
_SITE_FOLDERS = ("site-packages", "dist-packages")
"""Folders in which modules of all projects lie side by side."""


def class_name(cls: type) -> str:
    """Give the dotted name of a class, with its module."""
    return f"{cls.__module__}.{cls.__qualname__}"


def source_hash(module: str) -> str:
    """Hash the source of an imported module, and of the modules beside it that it imports.

    Returns:
        A sha256, empty for a module of this package and for one without a source file.
    """
    file = _file_of(module)
    if _root_name(module) == _PACKAGE or file is None:
        return ""
    root = _import_root(module, file)
    names = {path.relative_to(root).as_posix(): file_sha256(path) for path in _sources(file, root)}
    return canonical_hash(names)


def _file_of(module: str) -> Path | None:
    """Find the source file of an imported module."""
    name = getattr(sys.modules.get(module), "__file__", None)
    if name is None:
        return None
    path = Path(name).absolute()
    return path if path.is_file() else None


def _root_name(module: str) -> str:
    """Give the first part of a dotted name."""
    return module.partition(".")[0]


def _import_root(module: str, file: Path) -> Path:
    """Find the folder from which the dotted names of a module and its neighbours count."""
    depth = module.count(".") + (file.name == "__init__.py")
    return file.parents[depth]


def _sources(file: Path, root: Path) -> list[Path]:
    """List a source file and all below `root` that it imports, directly or through others."""
    own = file.relative_to(root).parts[0].removesuffix(".py")
    is_shared = any(part in _SITE_FOLDERS for part in root.parts)

    found: list[Path] = []
    pending = [file, *_initial_files(file, root)]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found.append(path)
        for imported in _imported(path, root):
            name = imported.relative_to(root).parts[0].removesuffix(".py")
            # Other projects have releases of their own.
            if name == own or not (is_shared or name == _PACKAGE):
                pending.append(imported)
    return found


def _initial_files(file: Path, root: Path) -> list[Path]:
    """List the files that run because they belong to the packages that a file is in."""
    candidates = [folder / "__init__.py" for folder in file.parents if root in folder.parents]
    return [path for path in candidates if path.is_file()]


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """Give the files below `root` that a source file imports, also inside of functions."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_along(root, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            # Each dot but the first means one folder further up.
            start = path.parents[node.level - 1] if node.level else root
            parts = node.module.split(".") if node.module else []
            if start == root or root in start.parents:
                for alias in node.names:
                    yield from _files_along(start, [*parts, alias.name])


def _files_along(start: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Give the files of a dotted name and of the packages that it passes through."""
    place = start
    for part in parts:
        place = place / part
        for file in (place.with_name(f"{part}.py"), place / "__init__.py"):
            if file.is_file():
                yield file
