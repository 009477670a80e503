"""The sentences that people read, in both languages."""

from __future__ import annotations

import ast
import string
from pathlib import Path

import pytest

from adray.language.catalogue import LANGUAGES, language_of, load_catalogue

PACKAGE = Path(__file__).parents[2] / "adray"
SAYERS = ("say", "self._say", "self._tell")
"""Functions that the code calls with the key of a sentence."""


def places(text: str) -> set[str]:
    """The names in braces of a sentence."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def sentences(language: str) -> dict[str, str]:
    """All but the words, of which a language has those that differ from English."""
    texts = load_catalogue(language).texts
    return {key: text for key, text in texts.items() if not key.startswith("word ")}


def test_all_languages_have_the_same_sentences_with_the_same_places():
    english = sentences("en")
    for language in LANGUAGES:
        other = sentences(language)
        assert other.keys() == english.keys()
        for key, text in other.items():
            assert places(text) == places(english[key]), (language, key)


def test_every_sentence_that_the_code_asks_for_by_name_is_in_the_catalogue():
    asked = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            says = isinstance(node, ast.Call) and ast.unparse(node.func) in SAYERS
            if says and isinstance(node.args[0], ast.Constant):
                asked.add(node.args[0].value)
    assert asked
    assert asked <= sentences("en").keys()


def test_every_sentence_that_is_made_by_its_key_has_what_its_places_ask_for():
    english = sentences("en")
    makers = {
        "Sentence.of": "{}",
        "found": "found {}",
        "_refused": "table {}",
        "row.refused": "list {}",
    }
    made = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            maker = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if maker not in makers or not isinstance(node.args[0], ast.Constant):
                continue
            key = makers[maker].format(node.args[0].value)
            assert key in english, (path.name, key)
            given = {keyword.arg for keyword in node.keywords}
            if maker in ("Sentence.of", "found") and None not in given:
                assert places(english[key]) <= given, (path.name, key)
            made += 1
    assert made > 100


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "C.UTF-8", "LC_MESSAGES": "ko_KR"}, "ko"),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": ""}, "en"),
    ],
)
def test_the_environment_tells_the_language_as_the_c_library_reads_it(environment, language):
    assert language_of(environment) == language


def test_a_word_without_a_translation_stays_as_it_is():
    say = load_catalogue("ko")
    assert say.word("train") == "학습"
    assert say.word("never heard of") == "never heard of"
