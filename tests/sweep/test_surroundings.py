"""What surrounds Ray: its folder, its token, the address of a cluster, the GPUs that are shown."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from adray.errors import InputError
from adray.sweep import session, surroundings
from adray.sweep.head_answer import check_head
from adray.sweep.surroundings import (
    check_address,
    check_encoding,
    check_loopback,
    check_token_file,
    check_visible_gpus,
    choose_ray_folder,
    find_ray_folder,
    keep_proxies_out,
    raise_limits,
    take_temporary_folder,
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


def test_where_no_temporary_folder_can_be_written_shared_memory_is_taken_or_a_sentence_said(
    tmp_path, monkeypatch, capsys
):
    nowhere = FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    def no_folder() -> str:
        raise nowhere

    monkeypatch.setattr("tempfile.gettempdir", no_folder)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", "/proc")
    monkeypatch.setattr(surroundings, "_SHARED_MEMORY", str(tmp_path))
    take_temporary_folder()
    assert tempfile.tempdir == os.environ["TMPDIR"] == str(tmp_path)
    assert "No usable temporary directory" in capsys.readouterr().err

    monkeypatch.setattr(surroundings, "_SHARED_MEMORY", "/nowhere")
    with pytest.raises(InputError, match=r"No usable temporary directory.*TMPDIR"):
        take_temporary_folder()


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


@pytest.mark.parametrize("name", ["\ud55c\uae00", "a'b", 'a"b', "a\\b", "x\udcff", "a\nb"])
def test_a_folder_with_letters_that_stop_rays_processes_is_left_alone(
    name, temporary, tmp_path, monkeypatch
):
    monkeypatch.setattr(surroundings, "_SOCKET_BYTES", 4096)
    temporary(tmp_path / name)
    folder, why = find_ray_folder()
    assert not str(folder).startswith(str(tmp_path))
    assert "letters that Ray's processes do not read" in why


def test_a_folder_with_spaces_and_signs_is_taken(temporary, tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings, "_SOCKET_BYTES", 4096)
    home = temporary(tmp_path / "a b %d {x} $y ~")
    assert choose_ray_folder() == home / "ray"


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


def test_what_ray_cannot_take_for_a_token_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, content in (
        ("empty", ""),
        ("blank", " \n"),
        ("two", "a b"),
        ("hangul", "\ud1a0\ud070"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        (tmp_path / name).chmod(0o600)
    names = ["empty", "blank", "two", "hangul", "", "~no-such-user-here/token", "n" * 300]
    for name in names:
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", name if "/" in name else f"{tmp_path}/{name}")
        session.check_token(insecure=False)
        with pytest.raises(InputError, match=r"RAY_AUTH_TOKEN_PATH .* cannot be read"):
            check_token_file()
        use_token_of_our_own()
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ, name
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64

    monkeypatch.setenv("RAY_AUTH_TOKEN", " ")
    use_token_of_our_own()
    assert len(os.environ.pop("RAY_AUTH_TOKEN")) == 64


def test_the_home_of_a_token_file_is_filled_in_since_ray_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text("x" * 64 + "\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "~/token")
    check_token_file()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")


@pytest.mark.parametrize(
    "address",
    ["", "head", "head:", "head:port", "a b:6379", ":6379", "h:99999", "head:\u00b2", "head:+9"],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="HOST:PORT"):
        check_address(address)


def test_tunes_files_lie_where_rays_do_when_the_temporary_folder_is_full(
    temporary, tmp_path, monkeypatch
):
    full = temporary(tmp_path / "t") / "ray"
    unfit = surroundings._unfit
    monkeypatch.setattr(surroundings, "_unfit", lambda f: "full" if f == full else unfit(f))
    monkeypatch.setattr(surroundings, "_SOCKET_BYTES", 1000)
    sweep = SimpleNamespace(options=SimpleNamespace(address=None))
    with session.scratch_folder(sweep) as scratch:
        assert scratch.is_dir()
        assert scratch.parent == full.with_name(f"ray-{os.getuid()}")
    assert not scratch.exists()


def answering(server: socket.socket, answer: bytes) -> None:
    """Answer the next client, and leave it waiting."""

    def answer_once() -> None:
        connection, _ = server.accept()
        connection.recv(100)
        connection.sendall(answer)
        held.append(connection)

    threading.Thread(target=answer_once, daemon=True).start()


held: list[socket.socket] = []


@pytest.mark.parametrize(
    ("answer", "is_ray"),
    [
        (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), True),  # a frame of settings, as HTTP/2 begins
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
        (b"", False),
    ],
)
def test_an_address_where_something_else_listens_is_refused_in_time(answer, is_ray, monkeypatch):
    monkeypatch.setattr(surroundings, "_ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        answering(server, answer)
        if is_ray:
            check_address(address)
        else:
            with pytest.raises(InputError, match=f"{address}: no Ray answers there"):
                check_address(address)
    while held:
        held.pop().close()


@pytest.mark.parametrize("host", ["head..lan", "a" * 70, "h\udcff"])
def test_a_host_that_can_have_no_address_is_refused(host):
    with pytest.raises(InputError, match="no Ray answers there"):
        check_address(f"{host}:6379")


def test_a_server_that_answers_byte_by_byte_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(surroundings, "_ANSWER_SECONDS", 0.5)

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        held.append(connection)
        with contextlib.suppress(OSError):
            for _ in range(20):
                time.sleep(0.2)
                connection.sendall(b"\0")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        began = time.monotonic()
        with pytest.raises(InputError, match="timed out"):
            check_address(f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - began < 1.5
    held.pop().close()


def test_a_name_that_is_looked_up_for_ever_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(surroundings, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3) or [])
    with pytest.raises(InputError, match="head:6379: no Ray answers"):
        check_address("head:6379")


@pytest.mark.parametrize(
    ("address", "ended", "said"),
    [
        ("h:6379", 0, ""),
        ("h:6379", -signal.SIGALRM, "h:6379: no Ray answers there .timed out"),
        ("h:6379", 1, "h:6379: no Ray answers there .something else"),
        ("h:6379", 4, "h:6379: the cluster does not take the token.*RAY_AUTH_TOKEN_PATH"),
        ("auto", 3, "--address auto finds no running cluster"),
        ("auto", -signal.SIGALRM, "auto finds no.*RAY_ADDRESS"),
    ],
)
def test_what_the_head_of_a_cluster_answers_decides(address, ended, said, monkeypatch):
    ran = SimpleNamespace(returncode=ended, stderr=b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ran)
    if not said:
        check_head(address)
        return
    with pytest.raises(InputError, match=said):
        check_head(address)


def test_a_process_without_any_token_is_told_of_the_variable(monkeypatch):
    said = b"Check failed: has_token Ray couldn't find an authentication token. Create a"
    ran = SimpleNamespace(returncode=-signal.SIGABRT, stderr=said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ran)
    with pytest.raises(InputError, match="RAY_AUTH_TOKEN_PATH"):
        check_head("h:6379")


@pytest.mark.slow
def test_a_server_of_another_kind_that_speaks_as_ray_does_is_refused_in_time():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        answering(server, bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        with pytest.raises(InputError, match="no Ray answers there"):
            check_head(address)
    while held:
        held.pop().close()


def test_an_address_where_nothing_listens_is_refused_at_once():
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


def test_a_python_without_docstrings_is_refused_and_one_without_assertions_is_not():
    code = "from adray.sweep.surroundings import check_interpreter; check_interpreter()"
    ended = {}
    for option in ("-O", "-OO"):
        ran = subprocess.run([sys.executable, option, "-c", code], capture_output=True, text=True)
        ended[option] = ran.stderr
    assert ended["-O"] == ""
    assert "PYTHONOPTIMIZE" in ended["-OO"]


def test_a_locale_of_one_alphabet_is_refused_with_the_remedy(monkeypatch):
    check_encoding()
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "iso8859-1")
    with pytest.raises(InputError, match=r"iso8859-1.*PYTHONUTF8=1"):
        check_encoding()


def test_a_loopback_device_that_is_down_is_refused_and_one_that_is_up_passes():
    check_loopback()
    code = "from adray.sweep.surroundings import check_loopback; check_loopback()"
    down = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", code], capture_output=True, text=True
    )
    if "unshare" in down.stderr:
        pytest.skip("no namespace is allowed here")
    assert "InputError" in down.stderr
    assert "ip link set lo up" in down.stderr


@pytest.mark.parametrize(
    ("soft", "hard", "becomes"),
    [
        (2048, 4096, 4096),
        (2048, 2**20, 65536),
        (2048, resource.RLIM_INFINITY, 65536),
        (10**6, 2**20, 10**6),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ],
)
def test_limits_are_raised_and_never_lowered(soft, hard, becomes, monkeypatch):
    limits = (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)
    now = dict.fromkeys(limits, (soft, hard))
    now[resource.RLIMIT_FSIZE] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", now.get)
    monkeypatch.setattr(resource, "setrlimit", now.__setitem__)
    raise_limits()
    assert now[resource.RLIMIT_NOFILE] == (becomes, hard)


@pytest.mark.parametrize(
    ("limit", "most", "name"),
    [
        (resource.RLIMIT_NOFILE, 256, "ulimit -n"),
        (resource.RLIMIT_NPROC, 100, "ulimit -u"),
        (resource.RLIMIT_FSIZE, 100, "ulimit -f"),
    ],
)
def test_too_few_files_or_threads_are_refused_with_the_remedy(limit, most, name, monkeypatch):
    plenty = (2**40, 2**40)
    unit = 1024 if limit == resource.RLIMIT_FSIZE else 1
    small = (64 * unit, most * unit)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(resource, "getrlimit", lambda asked: small if asked == limit else plenty)
    with pytest.raises(InputError, match=rf"`{name}` allows {most}.*limits.conf"):
        raise_limits()


def test_a_proxy_is_kept_out_of_local_traffic_and_what_was_excepted_stays(monkeypatch, capsys):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    keep_proxies_out("10.0.0.1")
    assert not any(name.lower() == "no_proxy" for name in os.environ)

    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "intranet")
    monkeypatch.setenv("NO_PROXY", "")
    keep_proxies_out("10.0.0.1")
    for name in ("no_proxy", "NO_PROXY"):
        past = os.environ[name].split(",")
        assert {"localhost", "127.0.0.1", "10.0.0.1", socket.gethostname()} <= set(past)
    assert os.environ["no_proxy"].startswith("intranet,")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_last_error_of_the_own_session_explains_why_ray_did_not_start(tmp_path):
    for pid, cause in ((os.getpid(), "ours"), (1, "of another sweep")):
        logs = tmp_path / f"session_2026-01-01_00-00-00_000000_{pid}" / "logs"
        logs.mkdir(parents=True)
        lines = [
            "[2026-01-01 00:00:00,000 E 12 34] (raylet) first",
            f"[2026-01-01 00:00:01,000 C 12 34] (raylet) {cause}",
            "*** StackTrace Information ***",
        ]
        (logs / "raylet.out").write_text("\n".join(lines))
    assert session._last_words(tmp_path).endswith("raylet.out: (raylet) ours")
    assert session._last_words(tmp_path / "none") == ""
