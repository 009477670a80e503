"""Ask the head of a Ray cluster whether it takes this user, in a process of its own.

Ray's client waits for most of a minute for a server that is none of Ray's, and ends its process
where it finds no token.

    python -m adray.sweep.head_answer HOST:PORT      exit code 0 where the head answers
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

from adray.errors import InputError
from adray.language.sentence import Sentence

_ANSWER_SECONDS = 8
"""Of waiting for the head, once Ray's client is loaded."""
_OTHER_SERVER = 1
_NO_CLUSTER = 3
_OTHER_TOKEN = 4
"""Exit codes."""
_NO_TOKEN = b"couldn't find an authentication token"
"""What Ray says as it ends its process."""


def check_head(address: str) -> None:
    """Refuse a cluster whose head does not answer in time, or does not take this user's token.

    Args:
        address: ``HOST:PORT`` or ``auto``.

    Raises:
        InputError: names the address.
    """
    command = [sys.executable, "-m", "adray.sweep.head_answer", address]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    ended = ran.returncode
    if ended == 0:
        return
    if ended == _OTHER_TOKEN or _NO_TOKEN in ran.stderr:
        raise InputError(Sentence.of("ray token refused", address=address))
    if ended == _NO_CLUSTER or address == "auto":
        raise InputError(Sentence.of("ray no cluster"))

    slow = ended == -signal.SIGALRM
    error = "timed out" if slow else "something else listens on that port"
    port = address.rpartition(":")[2]
    raise InputError(Sentence.of("ray no answer", address=address, error=error, port=port))


def main(address: str) -> int:
    """Ask the head, and give the exit code."""
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError, RpcError

    try:
        address = canonicalize_bootstrap_address_or_die(address)
    except ConnectionError:
        return _NO_CLUSTER

    # A signal ends this process also where Ray's client waits outside of Python. An end of Ray's own
    # making leaves no core file behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(_ANSWER_SECONDS)
    try:
        GcsClient(address=address)
    except AuthenticationError:
        return _OTHER_TOKEN
    except RpcError:
        return _OTHER_SERVER
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
