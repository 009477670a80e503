"""What surrounds Ray: its folder, its token, the address of a cluster, the GPUs that are shown."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from adray.errors import InputError
from adray.sweep import surroundings
from adray.sweep.surroundings import (
    check_address,
    check_visible_gpus,
    choose_ray_folder,
    use_token_of_our_own,
)

SOCKET = "session_2026-11-28_22-04-45_123456_1234567/sockets/plasma_store"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The temporary folder of this process, with a short name."""

    def use(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        return folder

    return use


def test_the_usual_folder_is_taken_without_a_word(temporary, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(surroundings, "_SOCKET_BYTES", 4096)
    home = temporary(tmp_path / "t")
    assert choose_ray_folder() == home / "ray"
    assert capsys.readouterr().err == ""


def test_a_socket_fits_below_the_folder_that_is_chosen(temporary, tmp_path, capsys):
    temporary(tmp_path / ("long" * 30))
    chosen = choose_ray_folder()
    assert len(os.fsencode(chosen / SOCKET)) <= 107
    with socket.socket(socket.AF_UNIX) as probe:
        place = chosen / f"probe-{os.getpid()}"
        probe.bind(str(place))
        place.unlink()
    assert "TMPDIR" in capsys.readouterr().err


def test_a_folder_of_another_user_is_left_alone(temporary, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(surroundings, "_SOCKET_BYTES", 4096)
    home = temporary(tmp_path / "t")
    (home / "ray").write_text("not a folder that can be written")
    assert choose_ray_folder() == home / f"ray-{os.getuid()}"
    assert str(home / "ray") in capsys.readouterr().err


def test_without_any_folder_all_that_is_wrong_is_said(temporary, tmp_path, monkeypatch):
    temporary(tmp_path / "t")
    monkeypatch.setattr(surroundings, "_LEAST_FREE_MB", 10**9)
    monkeypatch.setattr(surroundings, "_SOCKET_BYTES", 4096)
    with pytest.raises(InputError, match=r"MB free.*/tmp.*TMPDIR"):
        choose_ray_folder()


def test_each_sweep_has_a_token_of_its_own_in_no_file(monkeypatch):
    tokens = set()
    for _ in range(2):
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        use_token_of_our_own()
        tokens.add(os.environ["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2
    assert all(len(token) == 64 for token in tokens)


def test_a_token_file_that_can_be_read_is_kept_and_one_that_is_gone_is_not(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "token").write_text("x" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    use_token_of_our_own()
    assert "RAY_AUTH_TOKEN" not in os.environ

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    use_token_of_our_own()
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert len(os.environ.pop("RAY_AUTH_TOKEN")) == 64
    assert str(tmp_path / "gone") in capsys.readouterr().err


@pytest.mark.parametrize(
    "address", ["", "head", "head:", "head:port", "a b:6379", ":6379", "h:99999"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="HOST:PORT"):
        check_address(address)


def test_an_address_where_nothing_listens_is_refused_at_once_and_one_that_answers_passes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9: no Ray answers"):
        check_address("127.0.0.1:9")
    check_address("auto")


def test_no_more_gpus_are_asked_for_than_are_shown(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    check_visible_gpus(8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    check_visible_gpus(2)
    check_visible_gpus(None)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES='1,3' shows 2"):
        check_visible_gpus(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="shows 0"):
        check_visible_gpus(1)
