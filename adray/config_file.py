"""YAML files and `--set` pairs, read strictly: no key twice, no alias bomb, no code."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from adray.config import SweepConfig, build
from adray.errors import InputError
from adray.language.sentence import Sentence, sentence_of

_MAX_NODES = 200_000


def load_sweep(path: str | Path, changes: Sequence[str] = ()) -> SweepConfig:
    """Read and check a sweep's file, with `--set` pairs applied.

    Args:
        path: of the YAML file.
        changes: ``key.path=value`` pairs that win over the file.

    Raises:
        InputError: with the file's name, for whatever cannot be meant.
    """
    values = _merged(load_yaml(path), parse_changes(changes))
    try:
        return build(SweepConfig, values, "")
    except InputError as error:
        raise InputError(
            Sentence.of("config file wrong", path=str(path), error=sentence_of(error))
        ) from error


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay a nested mapping over another. What is no mapping in both is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(old, value)
        else:
            merged[key] = value
    return merged


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn ``key.path=value`` pairs into a nested mapping. For values see `read_value`.

    Raises:
        InputError: for a pair without ``=``, and for a key below one that has a value already, or
            above one.
    """
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, value = _key_and_value(pair)
        place = changes
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InputError(Sentence.of("config set parent", pair=repr(pair), parent=parent))
        if isinstance(place.get(last), dict):
            below = ", ".join(f"{key}.{name}" for name in place[last])
            raise InputError(Sentence.of("config set below", pair=repr(pair), below=below))
        place[last] = value
    return changes


def describe_changes(pairs: Sequence[str]) -> list[str]:
    """Say how ``key.path=value`` pairs are understood, one line each: texts stand in quotes.

    Raises:
        InputError: for a pair without ``=``.
    """
    lines = []
    for pair in pairs:
        key, value = _key_and_value(pair)
        lines.append(f"set {key} = {json.dumps(value, ensure_ascii=False)}")
    return lines


def _key_and_value(pair: str) -> tuple[str, Any]:
    """Read a ``key.path=value`` pair.

    Raises:
        InputError: where there is no key, or no ``=``.
    """
    key, separator, text = pair.partition("=")
    if not separator or not key:
        raise InputError(Sentence.of("config set pair", pair=repr(pair)))
    return key, read_value(text, f"--set {pair!r}")


def read_value(text: str, source: str) -> Any:
    """Read a value of the command line: as it stands, unless it is plainly something else.

    That is a decimal number, true, false, null or nothing, a text in quotes, and a list or mapping
    in brackets. ``a #1``, ``010``, ``1:30`` and ``2026-01-02`` are texts, in lists too.

    Args:
        text: behind the ``=``.
        source: names the value in errors.

    Raises:
        InputError: for brackets around what is no list or mapping.
    """
    plain = text.strip()
    if plain[:1] + plain[-1:] in ("[]", "{}"):
        return _read_brackets(plain, source)
    is_scalar = any(pattern.fullmatch(plain) for pattern in (*_SCALARS.values(), *_QUOTED))
    return _construct(_ValueLoader(plain), source) if is_scalar else text


def _read_brackets(text: str, source: str) -> Any:
    """Read a list or mapping, where the brackets are its own.

    Raises:
        InputError: where it cannot be read.
    """
    try:
        node = yaml.compose(text, _ValueLoader)
    except yaml.YAMLError as error:
        raise InputError(
            Sentence.of("config set brackets", source=source, error=_one_line(error))
        ) from error
    # What follows an end in the middle would be a comment.
    assert node is not None, "there are brackets"
    is_whole = node.end_mark.index == len(text)
    return _construct(_ValueLoader(text), source) if is_whole else text


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: for a missing or unreadable file, one that is no mapping, duplicate keys, or an
            alias bomb.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(Sentence.of("config file missing", path=str(path))) from error
    except IsADirectoryError as error:
        raise InputError(
            Sentence.of("config file folder", path=str(path), quoted=shlex.quote(str(path)))
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            Sentence.of("config file no text", path=str(path), error=sentence_of(error))
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Read the mapping in a YAML text.

    Args:
        text: the YAML.
        source: names the text in errors.

    Raises:
        InputError: see `load_yaml`.
    """
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise InputError(
            Sentence.of("config file yaml", source=source, error=_one_line(error))
        ) from error
    value = _construct(loader, source)
    if not isinstance(value, dict):
        raise InputError(Sentence.of("config file no mapping", source=source))
    return value


def _construct(loader: _Loader, source: str) -> Any:
    """Read the value of a YAML text, and let go of its loader.

    Args:
        loader: of the text.
        source: names the text in errors.

    Raises:
        InputError: see `load_yaml`.
    """
    try:
        node = loader.get_single_node()
        if node is not None and _expanded_size(node) > _MAX_NODES:
            raise InputError(
                Sentence.of("config file aliases", source=source, max_nodes=_MAX_NODES)
            )
        return loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        raise InputError(
            Sentence.of("config file yaml", source=source, error=_one_line(error))
        ) from error
    except RecursionError as error:
        raise InputError(Sentence.of("config file deep", source=source)) from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            Sentence.of("config file value", source=source, error=sentence_of(error))
        ) from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which plain YAML silently lets win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise InputError(Sentence.of("config line key", line=key_node.start_mark.line + 1))
            if key in seen:
                raise InputError(
                    Sentence.of(
                        "config line twice", line=key_node.start_mark.line + 1, field=repr(key)
                    )
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _ValueLoader(_Loader):
    """A loader that takes for a number only what looks like one to everybody, as YAML 1.2 does."""

    yaml_implicit_resolvers: ClassVar = {}  # type: ignore[misc]  # PyYAML means the class


_SCALARS = {
    "null": re.compile(r"~|null|"),
    "bool": re.compile(r"true|false|True|False"),
    "int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "float": re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
}
"""Kinds of YAML's scalars to what is taken for one; the first that matches counts."""
_QUOTED = (re.compile(r"'([^']|'')*'"), re.compile(r'"([^"\\]|\\.)*"'))
for _kind, _pattern in _SCALARS.items():
    _ValueLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern.pattern})\\Z"), None
    )


def _expanded_size(node: yaml.Node) -> int:
    """Count the values after aliases are written out, without writing them out.

    A cycle counts as too many.
    """
    sizes: dict[int, int] = {}

    def size(item: yaml.Node) -> int:
        if id(item) not in sizes:
            sizes[id(item)] = _MAX_NODES + 1
            children: list[yaml.Node] = []
            if isinstance(item, yaml.SequenceNode):
                children = item.value
            elif isinstance(item, yaml.MappingNode):
                for key, value in item.value:
                    children += [key, value]
            sizes[id(item)] = 1 + sum(size(child) for child in children)
        return sizes[id(item)]

    return size(node)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
