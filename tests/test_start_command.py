"""`adray start`: what it makes of a folder, what it asks, and that it touches nothing of the user's."""

from __future__ import annotations

import io
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_datasets import save

from adray.__main__ import main
from adray.components.feature_extractor import build_resnet
from adray.config_file import load_sweep


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADRAY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def fill(folder, count, seed=0):
    for i in range(count):
        save(folder / f"{i} {seed}.png", seed + i, 32, defect=seed > 0)


class Terminal(io.StringIO):
    """Standard input or output of somebody who sits there."""

    def isatty(self):
        return True


def start(folder, *options):
    return main(["start", str(folder), "--minutes", "0", *options])


def answer(monkeypatch, *lines):
    """Sit before the terminal and type these lines."""
    typed = Terminal("".join(f"{line}\n" for line in lines))
    shown = Terminal()
    monkeypatch.setattr(sys, "stdin", typed)
    monkeypatch.setattr(sys, "stdout", shown)
    return shown


@pytest.mark.parametrize(
    ("good", "bad"),
    [("ok", "ng"), ("OK", "NG"), ("양품", "불량"), ("정상", "찍힘 결함"), ("normal", "defect")],
)
def test_a_folder_of_two_becomes_a_sweep_that_can_be_read(site, good, bad, capsys):
    fill(site / "my part" / good, 10)
    fill(site / "my part" / bad, 3, seed=50)
    assert start("my part") == 0
    config = load_sweep("my_part.yaml")
    layout = config.settings.folders["my part"]
    assert (layout.normal, layout.abnormal) == ((good,), (bad,))
    assert config.grid.datasets == {"my part": "all"}
    printed = capsys.readouterr().out
    assert "10 good images, of which 8 train and 2 test" in printed
    assert f"3 defective ({bad} 3)" in printed


def test_normals_alone_are_enough(site, capsys):
    fill(site / "parts", 10)
    assert start("parts") == 0
    assert "defects drawn on good ones" in capsys.readouterr().out
    assert load_sweep("parts.yaml").settings.folders["parts"].normal == (".",)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ({}, "holds no images"),
        ({"parts": 0}, "holds no images"),
        ({"parts/ng": 3}, "defective images alone (ng)"),
        ({"parts/불량": 3, "parts/scratch": 2}, "defective images alone"),
        ({"parts/a": 5, "parts/b": 4}, "none of a, b stands out"),
    ],
)
def test_what_cannot_be_learnt_from_is_one_sentence(site, folders, said, capsys):
    (site / "parts").mkdir()
    for name, count in folders.items():
        fill(site / name, count)
    assert start("parts") == 2
    assert said in capsys.readouterr().err
    assert not list(site.glob("*.yaml"))


def test_defects_among_images_without_folders_are_not_trained_on(site, capsys):
    fill(site / "parts", 6)
    save(site / "parts" / "NG_3.png", 9, 32, defect=True)
    assert start("parts") == 2
    assert "1 of 7 files are called as defects are, such as NG_3.png" in capsys.readouterr().err


def test_a_folder_that_sounds_like_defects_is_taken_only_where_somebody_says_so(site, monkeypatch):
    fill(site / "불량", 8)
    assert start("불량") == 2
    answer(monkeypatch, "y", "0")
    assert start("불량") == 0


@pytest.mark.parametrize("name", ["nowhere", "file.txt"])
def test_a_path_that_is_no_folder_is_refused(site, name, capsys):
    (site / "file.txt").write_text("no folder")
    assert start(name) == 2
    assert name in capsys.readouterr().err


def test_where_no_name_tells_it_is_asked_and_the_fullest_is_the_default(site, monkeypatch):
    fill(site / "parts" / "first", 4, seed=20)
    fill(site / "parts" / "second", 9)
    shown = answer(monkeypatch, "", "0")
    assert start("parts") == 0
    assert "[second]" in shown.getvalue()
    assert load_sweep("parts.yaml").settings.folders["parts"].normal == ("second",)


def test_the_same_picture_in_training_and_test_is_used_only_after_a_yes(site, monkeypatch, capsys):
    fill(site / "parts" / "ok", 10)
    (site / "parts" / "ng").mkdir()
    shutil.copy(site / "parts" / "ok" / "0 0.png", site / "parts" / "ng" / "same.png")
    assert start("parts") == 2
    assert "mend what stands above" in capsys.readouterr().err
    answer(monkeypatch, "y", "0")
    assert start("parts") == 0
    assert load_sweep("parts.yaml").settings.data["parts"].accept


def test_no_file_of_the_user_is_overwritten_and_its_own_is_taken_up_again(site, capsys):
    fill(site / "parts" / "ok", 10)
    Path("parts.yaml").write_text("name: mine\n")
    assert start("parts") == 0
    assert Path("parts.yaml").read_text() == "name: mine\n"
    written = Path("parts_2.yaml").read_bytes()
    assert start("parts") == 0
    assert Path("parts_2.yaml").read_bytes() == written
    assert "parts_2.yaml is there from an earlier run" in capsys.readouterr().out
    assert len(list(site.glob("*.yaml"))) == 2


def test_weights_that_are_here_are_preferred_to_the_small_ones(site):
    fill(site / "parts" / "ok", 10)
    (site / "backbones").mkdir()
    state = build_resnet("resnet18", ["layer4"]).state_dict()
    torch.save(state, site / "backbones" / "resnet18.pth")
    assert start("parts") == 0
    models = load_sweep("parts.yaml").grid.models
    assert "patchcore-resnet18" in models
    assert not any("efficientnet" in name for name in models)


def test_less_time_takes_fewer_models_and_never_none(site):
    fill(site / "long" / "ok", 30)
    (site / "backbones").mkdir()
    torch.save(build_resnet("resnet18", ["layer4"]).state_dict(), site / "backbones/resnet18.pth")
    assert main(["start", "long", "--minutes", "0"]) == 0
    shutil.copytree("long", "short")
    typed = ["start", "short", "--minutes", "0.01"]
    many = load_sweep("long.yaml").grid.models
    # Nothing runs: the process ends as it asks Ray, since its file says so.
    process = subprocess.Popen(
        [sys.executable, "-m", "adray", *typed], stdout=subprocess.PIPE, text=True
    )
    while "written" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    few = load_sweep("short.yaml").grid.models
    assert 1 <= len(few) < len(many)


def test_a_sweep_of_a_folder_names_the_command(site, capsys):
    (site / "my parts").mkdir()
    for command in ("sweep", "check"):
        assert main([command, "my parts"]) == 2
        assert "python -m adray start 'my parts'" in capsys.readouterr().err


def _interrupted_until_it_ends(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C as a person does, again where nothing came of it, and return what was said.

    One that falls between Python's look for signals and its read of the terminal waits for
    the next key.
    """
    for _ in range(30):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=2)[1]
        except subprocess.TimeoutExpired:
            pass
    process.kill()
    raise AssertionError(f"thirty Ctrl-C did not end it: {process.communicate()[1]}")


def test_ctrl_c_on_a_question_ends_it_with_one_sentence(site):
    fill(site / "parts" / "ok", 10)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "adray", "start", "parts", "--store", "my results"],
        stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A test run in the background of a shell ignores it, and so would the command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    seen = b""
    deadline = time.monotonic() + 60
    while b"[30]" not in seen and time.monotonic() < deadline:
        if select.select([ours], [], [], 1)[0]:
            seen += os.read(ours, 1000)
    errors = _interrupted_until_it_ends(process)
    assert process.returncode == 130
    assert "To go on: python -m adray start parts --store 'my results'" in errors
    assert "Traceback" not in errors
