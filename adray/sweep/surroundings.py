"""What surrounds Ray on this machine, looked at before it starts.

Ray wants a folder for sockets and logs, a token, a loopback device, open files and threads, and for
a cluster an address that answers. What can be chosen is chosen, and said where it is not the usual.
What cannot is one sentence.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path

from adray.errors import InputError
from adray.language.catalogue import spoken
from adray.language.sentence import Sentence
from adray.sweep.cards import shown_names
from adray.sweep.head_answer import check_head

_SOCKET_BYTES = 107
"""Longest path of a socket."""
_SESSION = "/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.00"
"""What Ray adds to its folder to name a socket, at its longest."""
_ODD_LETTER = re.compile(r"[^ -~]|['\"\\]")
"""Of a path that does not pass through the command lines and settings of Ray's own processes."""
_LEAST_FREE_MB = 100
"""What Ray's logs and a trial's passing files need."""
_ANSWER_SECONDS = 8
"""Of waiting for a cluster in all, so that a whole command ends within ten."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of Ray's head says first: that of HTTP/2, and a frame of settings without any."""
_FRAME_BYTES = 9
_SETTINGS_FRAME = 4
"""Length of the head of a frame, and its kind for settings, with which a server answers first."""
_LIMITS = (
    (resource.RLIMIT_NOFILE, "-n", 1024),
    (resource.RLIMIT_NPROC, "-u", 512),
)
"""Limit of the system, its name for `ulimit`, and what Ray needs at least."""
_FILE_BYTES = 2**30
"""Least size that a file may have: Ray's memory is one, and a checkpoint may be."""
_ENOUGH = 65536
"""What is asked for where the system would give more."""
_SHARED_MEMORY = "/dev/shm"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_LOCAL = ("localhost", "127.0.0.1", "::1")


def choose_ray_folder() -> Path:
    """Choose where Ray puts its sessions, and say so where it is not the usual place.

    Raises:
        InputError: see `find_ray_folder`.
    """
    folder, why_not_the_usual = find_ray_folder()
    if why_not_the_usual:
        print(spoken("ray folder", folder=folder, why=why_not_the_usual), file=sys.stderr)
    return folder


def find_ray_folder() -> tuple[Path, str]:
    """Find where Ray's sessions can lie: the usual place, or the next that can take them.

    Returns:
        The folder, and what is wrong with the usual one, empty where that is taken.

    Raises:
        InputError: where none can, with what is wrong with each.
    """
    usual = Path(tempfile.gettempdir()) / "ray"
    refused: dict[Path, str] = {}
    for folder in _ray_folders(usual):
        problem = _unfit(folder)
        if not problem:
            return folder, refused.get(usual, "")
        refused[folder] = problem

    said = "; ".join(refused.values())
    raise InputError(Sentence.of("ray no folder", said=said, least_free_mb=_LEAST_FREE_MB))


def _ray_folders(usual: Path) -> list[Path]:
    """List where Ray's sessions may lie, the preferred first. Another user may have the first."""
    own = f"ray-{os.getuid()}"
    folders = [usual, usual.with_name(own)]
    for place in ("/tmp", "/var/tmp", _SHARED_MEMORY):
        folders.append(Path(place) / own)
    return list(dict.fromkeys(folders))


def _unfit(folder: Path) -> str:
    """Say why Ray's sessions cannot lie in a folder, empty where they can."""
    if _ODD_LETTER.search(str(folder)):
        return f"the path of {folder} has letters that Ray's processes do not read (TMPDIR)"

    length = len(os.fsencode(str(folder) + _SESSION))
    if length > _SOCKET_BYTES:
        return f"the path of {folder} is too long for sockets by {length - _SOCKET_BYTES} bytes (TMPDIR)"

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"

    free = shutil.disk_usage(folder).free / 2**20
    if free < _LEAST_FREE_MB:
        return f"{folder} has {free:.0f} MB free (TMPDIR)"
    return ""


def use_token_of_our_own() -> None:
    """Give a Ray of our own a token that only its processes know.

    It travels in their environment, so that no home folder is needed. A token of the user's that
    can be read is kept.
    """
    if is_token(os.environ.get("RAY_AUTH_TOKEN", "")):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named and take_token_file(named):
        return

    if named:
        print(spoken("ray token", path=named), file=sys.stderr)
        del os.environ["RAY_AUTH_TOKEN_PATH"]
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def take_token_file(named: str) -> bool:
    """Name a file of a token so that Ray finds it, and tell whether it holds one.

    Ray itself ends the whole process where it does not, and knows no ``~``.
    """
    try:
        path = Path(named).expanduser()
        text = path.read_text(encoding="ascii")
    except (OSError, RuntimeError, ValueError):
        return False
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    return is_token(text)


def is_token(text: str) -> bool:
    """Tell whether a text is one word that can travel in the head of a message."""
    words = text.split()
    return len(words) == 1 and words[0].isascii() and words[0].isprintable()


def check_token_file() -> None:
    """Refuse a file of a cluster's token in which there is none.

    Raises:
        InputError: names the variable and the file.
    """
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not named or os.environ.get("RAY_AUTH_TOKEN"):
        return
    if not take_token_file(named):
        raise InputError(Sentence.of("ray token path", named=named))


def check_surroundings(address: str | None, num_gpus: int | None = None) -> None:
    """Refuse at once what a plan of minutes would only put off.

    Raises:
        InputError: see the functions that it calls.
    """
    if address is not None:
        check_address(address)
        check_token_file()
        check_head(address)
    check_visible_gpus(num_gpus)
    check_interpreter()
    check_encoding()
    check_loopback()
    raise_limits()
    take_temporary_folder()


def check_address(address: str) -> None:
    """Refuse the address of a cluster that does not answer.

    Raises:
        InputError: names the address.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    is_number = port.isascii() and port.isdigit()
    if not host or not is_number or not 0 < int(port) < 65536 or " " in host:
        raise InputError(Sentence.of("ray address", address=repr(address)))

    problem = _greeted_in_time(host.strip("[]"), int(port))
    if problem:
        raise InputError(Sentence.of("ray no answer", address=address, error=problem, port=port))


def _greeted_in_time(host: str, port: int) -> str:
    """Say what is wrong with a server, empty where it speaks as Ray's head does.

    Looking up a name, trying each of its addresses and reading an answer byte by byte have no
    limit of time together, other than that of a thread that does them.
    """
    problems = ["timed out"]

    def greet() -> None:
        try:
            with socket.create_connection((host, port), _ANSWER_SECONDS) as connection:
                _greet(connection)
        except (OSError, UnicodeError) as error:
            problems[0] = str(error)
        else:
            problems[0] = ""

    thread = threading.Thread(target=greet, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return problems[0]


def _greet(connection: socket.socket) -> None:
    """See that a server speaks as Ray's head does, which would be waited for several minutes.

    Raises:
        OSError: where it says nothing in time, or something else.
    """
    # With TLS it says nothing before both sides have shown who they are.
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    connection.sendall(_GREETING)
    with connection.makefile("rb") as answer:
        frame = answer.read(_FRAME_BYTES)
    if len(frame) < _FRAME_BYTES or frame[3] != _SETTINGS_FRAME:
        raise OSError("something else listens on that port")


def check_visible_gpus(wanted: int | None) -> None:
    """Refuse more GPUs than CUDA_VISIBLE_DEVICES shows.

    Raises:
        InputError: names the option and the variable.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None or not wanted:
        return
    count = len(shown_names(shown))
    if wanted > count:
        raise InputError(Sentence.of("ray num_gpus", wanted=wanted, shown=repr(shown), count=count))


def check_interpreter() -> None:
    """Refuse a Python without docstrings, which Ray's own modules read as they load.

    Raises:
        InputError: names the option and the variable.
    """
    if sys.flags.optimize > 1:
        raise InputError(Sentence.of("ray no docstrings"))


def check_encoding() -> None:
    """Refuse a locale in which names of files cannot be written in every alphabet.

    Raises:
        InputError: names the encoding.
    """
    encoding = sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") != "utf8":
        raise InputError(Sentence.of("ray locale", encoding=encoding))


def check_loopback() -> None:
    """Refuse a machine whose processes cannot talk to each other.

    Raises:
        InputError: with what is wrong.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise InputError(Sentence.of("ray loopback", error=str(error.strerror))) from error


def raise_limits() -> None:
    """Allow this process and Ray's as many open files and threads as the system lets them have.

    Raises:
        InputError: where that is too few for Ray.
    """
    for limit, name, least in _LIMITS:
        soft, hard = resource.getrlimit(limit)
        if soft == resource.RLIM_INFINITY:
            continue
        most = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
        if soft < most:
            resource.setrlimit(limit, (most, hard))
        if max(soft, most) < least:
            raise InputError(Sentence.of("ray limit", name=name, most=most, least=least))
    _raise_file_size()


def _raise_file_size() -> None:
    """Allow files as large as the system lets them be, of which Ray makes one for its memory.

    Raises:
        InputError: where that is too small for it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY:
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < _FILE_BYTES:
        # The shell counts in KiB.
        sizes = {"most": hard // 1024, "least": _FILE_BYTES // 1024}
        raise InputError(Sentence.of("ray limit", name="-f", **sizes))


def take_temporary_folder() -> None:
    """Have temporary files lie in shared memory where nothing else can be written.

    So it is in a container whose disk is read-only.

    Raises:
        InputError: where that cannot be written either.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        why = str(error.strerror)
        if not os.access(_SHARED_MEMORY, os.W_OK):
            raise InputError(
                Sentence.of("ray no folder", said=why, least_free_mb=_LEAST_FREE_MB)
            ) from error
        print(spoken("ray folder", folder=_SHARED_MEMORY, why=why), file=sys.stderr)
        tempfile.tempdir = os.environ["TMPDIR"] = _SHARED_MEMORY


def keep_proxies_out(*hosts: str) -> None:
    """Have this sweep's processes talk to each other past any proxy of the environment.

    Args:
        hosts: of a cluster, besides this machine.
    """
    is_named = any(name.lower() in _PROXIES for name in os.environ)
    if not is_named:
        return
    past = [*_LOCAL, socket.gethostname(), *hosts]
    for name in ("no_proxy", "NO_PROXY"):
        given = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*given, *past]))
    print(spoken("ray proxy"), file=sys.stderr)
