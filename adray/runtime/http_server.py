"""A socket and a loop for the server: uvicorn, with connections that may not stay silent."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from adray.runtime.errors import BundleError

_MOST_CONNECTIONS = 256
_SILENT_SECONDS = 20.0
"""A connection that asks nothing for so long is closed."""


@dataclass(frozen=True)
class Tls:
    """Files of a certificate in PEM, by which connections are encrypted."""

    certificate: str
    """With the chain behind it."""
    key: str
    """Without a password."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections which say nothing, or never end what they say."""

    _looked_at: object = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(_SILENT_SECONDS, self._look)
        self._looked_at = self.cycle

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Close a connection that waits for a request since the last look."""
        is_busy = self.cycle is not None and not self.cycle.response_complete
        if not is_busy and self._looked_at is self.cycle:
            self.transport.close()
            return
        self._looked_at = self.cycle
        self._timer = self.loop.call_later(_SILENT_SECONDS, self._look)


def bound_socket(host: str, port: int) -> socket.socket:
    """Take an address, before anything long starts.

    Raises:
        BundleError: where it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]

        # Named as TCP: asyncio sends small answers of such sockets at once, of others 40 ms later.
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BundleError(
            f"--host {host} --port {port} cannot be served at ({reason}); name another address"
        ) from error
    return made


def check_tls(tls: Tls) -> None:
    """Refuse files that are no certificate and its key.

    Raises:
        BundleError: with the files.
    """
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            tls.certificate, tls.key, password=_no_password
        )
    except (OSError, ValueError) as error:
        raise BundleError(
            f"--tls-cert {tls.certificate} and --tls-key {tls.key} are no certificate and its key "
            f"({error}); give both as PEM, the key without a password"
        ) from error


def _no_password() -> str:
    """Refuse to ask for a password.

    Raises:
        ValueError: always.
    """
    raise ValueError("the key has a password")


def make_server(app: Starlette, tls: Tls | None, seconds: float) -> uvicorn.Server:
    """Make a server, which runs until SIGINT or SIGTERM. What is in flight then is still answered.

    Args:
        app: the application.
        tls: certificate, or None for plain HTTP.
        seconds: that requests in flight have to end.
    """
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=round(seconds) + 1,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )
    return uvicorn.Server(config)
