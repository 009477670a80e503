"""Paths on the command line: `~` and variables are filled in or refused, names stay what they are."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

from adray.__main__ import COMMANDS, OF_BUNDLES, main
from adray.cli.command_parser import PATH_OR_NAME, READ, WRITTEN, CommandParser

NO_PATHS = {
    "accept",
    "address",
    "categories",
    "category",
    "corruption",
    "dataset",
    "device",
    "host",
    "id",
    "models",
    "mqtt",
    "name",
    "names",
    "only",
    "plugins",
    "set",
    "size",
    "threshold",
    "webhook",
}
"""What takes a text that names no file."""


class Caught(BaseException):
    """Ends a command once its parser is known."""


@pytest.mark.parametrize("file", [*COMMANDS, *OF_BUNDLES.values()])
def test_every_text_that_a_command_takes_is_known_as_a_path_or_as_none(file, monkeypatch):
    def caught(self, arguments=None, namespace=None):
        raise Caught(self)

    monkeypatch.setattr(CommandParser, "parse_args", caught)
    with pytest.raises(Caught) as ended:
        importlib.import_module(f"adray.cli.{file}").main([])
    texts = {
        action.dest
        for action in ended.value.args[0]._actions
        if action.nargs != 0 and action.type is None and action.choices is None
    }
    paths = WRITTEN | READ | PATH_OR_NAME
    assert texts <= paths | NO_PATHS
    assert not paths & NO_PATHS


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["report", ".", "--out", "$NOPE/r.html"], "--out"),
        (["report", "$NOPE"], "STORE"),
        (["report", ".", "--out", "~nobody_of_this_name/r.html"], "--out"),
        (["synthetic", "$NOPE/x"], "OUT"),
        (["synthetic", "${NOPE:-x}/x"], "OUT"),
        (["data", ".", "--write", "$NOPE.yaml"], "--write"),
        (["data", ".", "--page", "$NOPE/page.html"], "--page"),
        (["start", ".", "--store", "$NOPE/s"], "--store"),
        (["sweep", "$NOPE/s.yaml"], "FILE"),
        (["watch", ".", "--bundle", "x", "--out", "$NOPE"], "--out"),
        (["train", "a", "b", "padim", "--output-dir", "$EMPTY/x"], "--output-dir"),
    ],
)
def test_a_path_that_cannot_be_filled_in_is_refused_and_nothing_is_made(
    arguments, named, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMPTY", "")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {named}: ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["$PLACE/x", "~/x"])
def test_a_path_is_filled_in(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", str(tmp_path / "there"))
    monkeypatch.setenv("HOME", str(tmp_path / "there"))
    small = ["--train", "1", "--good", "1", "--defects", "1", "--size", "32"]
    assert main(["synthetic", place, *small]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["there"]
    assert any((tmp_path / "there" / "x").iterdir())


def parsed(dest: str, *given: str) -> list[str]:
    """What a command is given of some arguments."""
    parser = CommandParser(prog="x", description="x")
    parser.add_argument(dest, nargs="+")
    return getattr(parser.parse_args(given), dest)


@pytest.mark.parametrize("dest", ["images", "model", "trials"])
def test_what_may_be_a_name_or_a_pattern_is_filled_in_or_stays(dest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", "/there")
    Path("$PLACE").mkdir()
    names = ["part$x/padim", "shots/*$5.png", "[~a]*.png", "screw/padim", "$PLACE"]
    assert parsed(dest, *names) == names
    assert parsed(dest, "$PLACE/*.png", "~/x") == ["/there/*.png", os.path.expanduser("~/x")]  # noqa: PTH111


@pytest.mark.parametrize("dest", ["only", "set", "models", "category", "names"])
def test_patterns_and_values_stay_what_they_are(dest, monkeypatch):
    monkeypatch.setenv("PLACE", "/there")
    given = ["$PLACE/*", "~/x", "$NOPE", "`x`"]
    assert parsed(dest, *given) == given


def test_what_is_there_by_its_very_name_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("line$3").mkdir()
    assert parsed("store", "line$3", str(tmp_path / "line$3")) == [
        "line$3",
        str(tmp_path / "line$3"),
    ]
