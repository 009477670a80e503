"""Lines of progress: there for long work, and none for short."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest

from adray import progress_lines
from adray.cli.progress import progress_shown
from adray.progress_lines import stage, watched


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def quick(monkeypatch):
    """Work counts as long after a moment."""
    monkeypatch.setattr(progress_lines, "SECONDS", 0.02)
    monkeypatch.setattr("adray.cli.progress.SECONDS", 0.02)


def slow(count):
    for number in range(count):
        time.sleep(0.03)
        yield number


def test_all_items_pass_in_their_order_whoever_listens():
    assert list(watched(range(5), "work")) == [0, 1, 2, 3, 4]
    assert list(watched(iter("ab"), "work", 2)) == ["a", "b"]
    assert list(watched([], "work")) == []


def test_short_work_says_nothing(capsys):
    with progress_shown():
        list(watched(range(1000), "work"))
        with stage("a moment"):
            pass
    assert capsys.readouterr().err == ""


def test_long_work_says_how_far_it_is_and_a_file_gets_few_lines(quick, capsys):
    with progress_shown():
        list(watched(slow(5), "work", 5))
    assert capsys.readouterr().err == "work 1/5\n"


def test_a_stage_that_lasts_has_a_line(quick, capsys):
    with progress_shown(), stage("loading the model"):
        time.sleep(0.2)
    assert capsys.readouterr().err == "loading the model\n"


def test_a_terminal_is_left_as_it_was(quick, monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with progress_shown():
        with stage("loading the model"):
            pass
        list(watched(slow(3), "work", 3))
    text = shown.getvalue()
    assert "loading the model" in text
    assert "work 3/3" in text
    assert text.endswith("\r\x1b[K")
    assert "\n" not in text


def test_an_error_in_the_work_takes_the_line_away_and_passes_on(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with pytest.raises(ValueError, match="broken"), progress_shown(), stage("work"):
        raise ValueError("broken")
    assert shown.getvalue().endswith("\r\x1b[K")
    assert not logging.getLogger("adray.progress_lines").handlers


def test_the_words_are_the_readers(quick, monkeypatch, capsys):
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    with progress_shown():
        list(watched(slow(2), "reading files", 2))
    assert capsys.readouterr().err == "파일 읽기 1/2\n"
