"""What `--help` says: of every command, in the reader's language."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from importlib import resources

import pytest

from adray.__main__ import COMMANDS, OF_BUNDLES, main
from adray.cli.command_parser import CommandParser, help_text, korean_help

FILES = [*COMMANDS, *OF_BUNDLES.values()]
HANGUL = re.compile("[가-힣]")
PLACE = re.compile(r"%\(\w+\)s")


class Caught(BaseException):
    """Ends a command once its parser is known."""


@pytest.fixture
def parser_of(monkeypatch):
    """A function that gives the parser of a command."""

    def caught(self, arguments=None, namespace=None):
        raise Caught(self)

    monkeypatch.setattr(CommandParser, "parse_args", caught)
    monkeypatch.setattr(CommandParser, "parse_intermixed_args", caught)

    def parser(file):
        with pytest.raises(Caught) as caught:
            importlib.import_module(f"adray.cli.{file}").main([])
        return caught.value.args[0]

    return parser


@pytest.mark.parametrize("file", FILES)
def test_all_help_of_a_command_has_its_korean(parser_of, file, monkeypatch):
    monkeypatch.setenv("ADRAY_LANG", "ko")
    parser = parser_of(file)
    texts = [parser.description, parser.epilog or "한국어"]
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            assert action.help, (file, action.dest)
            texts.append(action.help)
    assert [text for text in texts if not HANGUL.search(help_text(text))] == []
    assert parser.format_help().startswith("사용법: ")


def test_the_list_of_commands_has_its_korean(capsys):
    assert main(["--lang", "ko"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if line.split()[:1] and line.split()[0] in COMMANDS]
    assert len(listed) == len(COMMANDS)
    assert all(HANGUL.search(line) for line in listed)


def test_no_korean_stands_for_help_that_is_gone_and_places_are_kept(parser_of):
    spoken = set(COMMANDS.values())
    for file in FILES:
        parser = parser_of(file)
        spoken |= {parser.description, parser.epilog}
        spoken |= {action.help for action in parser._actions}
    used = {re.sub(r"\s*\(default: .*?\)?\)$", "", text or "") for text in spoken} | spoken

    file = resources.files("adray.language").joinpath("korean_help.json")
    korean = json.loads(file.read_text(encoding="utf-8"))
    source = (resources.files("adray") / "__main__.py").read_text(encoding="utf-8")
    source += (resources.files("adray.cli") / "command_parser.py").read_text(encoding="utf-8")
    of_argparse = {"options", "positional arguments", "show this help message and exit"}
    gone = [text for text in korean if text not in used | of_argparse and text not in source]
    assert gone == []
    for english, text in korean.items():
        assert PLACE.findall(english) == PLACE.findall(text)


def test_a_default_is_kept_whatever_it_is():
    assert korean_help("folder of the results (default: /데이터)") == "결과 폴더(기본값: /데이터)"
    assert korean_help("default: 7") == "기본값: 7"
    assert korean_help("nobody wrote this") is None


@pytest.mark.parametrize(
    "typed",
    [
        ["--lang", "ko", "backbones", "resnet18"],
        ["backbones", "resnet18", "--lang", "ko"],
        ["backbones", "resnet18", "--lang=ko"],
    ],
)
def test_the_language_is_an_option_of_every_command(typed, capsys):
    main(["backbones", "resnet18", "--lang", "en"])
    assert not HANGUL.search("".join(capsys.readouterr()))
    main(typed)
    assert HANGUL.search("".join(capsys.readouterr()))


def test_the_variable_of_this_program_wins_over_the_locale_and_is_put_back(monkeypatch, capsys):
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    monkeypatch.setenv("ADRAY_LANG", "en")
    main([])
    assert capsys.readouterr().out.startswith("usage: ")
    main(["--lang", "ko"])
    assert capsys.readouterr().out.startswith("사용법: ")
    main([])
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("typed", [["--lang", "fr"], ["--lang"], ["status", "--lang="]])
def test_another_language_is_refused_with_those_that_are_spoken(typed, capsys):
    assert main(typed) == 2
    assert "en or ko" in capsys.readouterr().err


def test_wrong_arguments_are_refused_in_the_readers_language(monkeypatch, capsys):
    monkeypatch.setenv("ADRAY_LANG", "ko")
    with pytest.raises(SystemExit) as end:
        main(["decide"])
    assert end.value.code == 2
    assert "다음 인자가 필요함: store" in capsys.readouterr().err
