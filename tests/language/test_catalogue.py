"""The sentences that people read, in both languages."""

from __future__ import annotations

import ast
import re
import string
from pathlib import Path

import pytest
import yaml

from adray.config import TrainConfig, build
from adray.errors import InputError
from adray.language.catalogue import LANGUAGES, language_of, load_catalogue
from adray.language.plain_file import read_plain
from adray.language.sentence import error_text
from adray.metrics import METRICS
from adray.thresholds import PROMISE_MEANING, THRESHOLDS

SENTENCE = re.compile(r"[A-Za-z]{2,} [a-z]{2,}")
"""Two words beside each other."""
PACKAGE = Path(__file__).parents[2] / "adray"
SAYERS = ("say", "self._say", "self._tell", "spoken")
"""Functions that the code calls with the key of a sentence."""


@pytest.mark.parametrize("file", LANGUAGES.values())
def test_the_files_of_sentences_are_read_as_pyyaml_reads_them(file):
    text = (PACKAGE / "language" / f"{file}.yaml").read_text(encoding="utf-8")
    assert read_plain(text) == yaml.safe_load(text)


def test_what_is_no_sentence_is_refused():
    with pytest.raises(ValueError, match="no key and text: 'only a key'"):
        read_plain("only a key\n")


def places(text: str) -> set[str]:
    """The names in braces of a sentence."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def sentences(language: str) -> dict[str, str]:
    """All but words and meanings, of which a language has those that differ from English."""
    texts = load_catalogue(language).texts
    return {k: text for k, text in texts.items() if not k.startswith(("word ", "meaning "))}


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


def test_no_korean_sentence_was_left_in_english():
    english = load_catalogue("en").texts
    same = set()
    for key, text in load_catalogue("ko").texts.items():
        words = re.sub(r"\{[^}]*\}", "", text)
        if re.search(r"[a-z]{3,}", words) and not re.search("[가-힣]", words):
            same.add(key)
    # The name of the other language, and names of keys in a sweep's file.
    assert same == {"report language", "page img_size", "condition share"}
    assert english["report language"] == "한국어"


def own_letters(node):
    """The letters that an expression has itself, not those of the calls in it."""
    if isinstance(node, ast.BinOp):
        return own_letters(node.left) + " " + own_letters(node.right)
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return " ".join(str(one.value) for one in parts if isinstance(one, ast.Constant))


def printed_texts():
    """What each print, and each line above a sweep's table, has of letters of its own."""
    for path in PACKAGE.rglob("*.py"):
        if "runtime" in path.parts:  # has no catalogue, see adray/runtime
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            if ast.unparse(node.func) in ("print", "self.say", "self.progress.say"):
                for argument in node.args:
                    yield path.name, own_letters(argument)


def test_no_command_prints_a_sentence_that_only_english_has():
    texts = list(printed_texts())
    assert len(texts) > 20
    commands = re.compile(r"python -m adray .*")
    plain = [(name, commands.sub("", text)) for name, text in texts]
    assert [(name, text) for name, text in plain if SENTENCE.search(text)] == []


def test_every_name_of_long_work_has_its_korean():
    korean = load_catalogue("ko").texts
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("stage", "watched"):
                texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
                names |= {text for text in texts if isinstance(text, str)}
    assert names
    assert {name for name in names if f"word {name}" not in korean} == set()


def test_metrics_and_thresholds_have_their_korean():
    korean = load_catalogue("ko").meanings()
    meanings = {metric.meaning for metric in METRICS.values()}
    meanings |= {rule.meaning for rule in THRESHOLDS.values()} | {PROMISE_MEANING}
    assert korean.keys() == meanings


def test_no_refusal_speaks_only_english():
    """A refusal is made of a `Sentence`, whose Korean stands beside it."""
    english = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            refuses = isinstance(node, ast.Call) and ast.unparse(node.func) == "InputError"
            if refuses and isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp):
                english.append((path.name, node.lineno))
    assert english == []


@pytest.mark.parametrize(
    ("values", "english", "korean"),
    [
        (
            {"img_size": 64, "crop_size": 128},
            "train.crop_size 128 is larger than img_size 64; lower it",
            "train: crop_size 128이(가) img_size 64보다 큽니다. 줄이십시오",
        ),
        (
            {"img_sise": 64},
            "unknown key 'train.img_sise'; did you mean 'img_size'?",
            "알 수 없는 키 'train.img_sise'. 혹시 'img_size'입니까?",
        ),
        (
            {"num_epochs": "1e1"},
            "train.num_epochs must be a whole number, but is '1e1' (str); write 1.0e-3 rather than 1e-3",
            "train.num_epochs은(는) 정수여야 하는데 '1e1' (str)입니다. 1e-3이 아니라 1.0e-3으로 적으십시오",
        ),
    ],
)
def test_a_refusal_says_value_and_place_in_both_languages(values, english, korean):
    with pytest.raises(InputError) as caught:
        build(TrainConfig, values, "train")
    assert error_text(caught.value, "en") == english
    assert error_text(caught.value, "ko") == korean


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
