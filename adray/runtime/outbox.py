"""Results sent to others, until they have them: a webhook over HTTP, and MQTT.

A result is sent in the order of its number and waits in the journal until the other side said that
it has it. After a kill it may be sent again, under the same name, by which the other side tells.
"""

from __future__ import annotations

import http.client
import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from adray.runtime.errors import BundleError
from adray.runtime.journal import DONE, REFUSED, Journal
from adray.runtime.result_log import line_of
from adray.runtime.rows import Row

logger = logging.getLogger(__name__)

_TIMEOUT = 10.0
_LONGEST_PAUSE = 60.0
_REFUSALS = (400, 413, 422)
"""Statuses by which a receiver says that it will never take this result."""
_MOST_SHOWN = 200

Send = Callable[[Row, str], None]
"""Sends a row under a name, see `UndeliveredError` and `RefusedError`."""


class UndeliveredError(Exception):
    """A message that has to be sent again later."""


class RefusedError(Exception):
    """A message that the other side will never take."""


class Outbox(threading.Thread):
    """Sends what waits, again and again.

    Args:
        channel: of the journal.
        journal: that knows what waits.
        send: the way.
        first_pause: seconds after the first failure; each further one doubles them.
    """

    def __init__(
        self, channel: str, journal: Journal, send: Send, first_pause: float = 1.0
    ) -> None:
        super().__init__(name=channel, daemon=True)
        self._channel = channel
        self._journal = journal
        self._send = send
        self._first_pause = first_pause
        self._wake = threading.Event()
        self._stop_asked = threading.Event()

    def wake(self) -> None:
        """Say that something waits."""
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """End, after a last try for so long."""
        self._stop_asked.set()
        self._wake.set()
        self.join(seconds)

    def run(self) -> None:
        """Send until asked to stop."""
        pause = 0.0
        while True:
            is_last = self._stop_asked.is_set()
            said = self._send_all()
            if is_last:
                return
            if not said:
                pause = 0.0
                self._wake.wait()
                self._wake.clear()
                continue
            if not pause:
                logger.warning("%s: results wait, since %s", self._channel, said)
            pause = min(_LONGEST_PAUSE, 2 * pause or self._first_pause)
            self._stop_asked.wait(pause)

    def _send_all(self) -> str:
        """Send what waits, in its order, and say why that ended; empty where nothing waits."""
        while rows := self._journal.pending(self._channel):
            for row in rows:
                name = f"{self._journal.id}-{row['number']}"
                try:
                    self._send(row, name)
                except RefusedError as refusal:
                    logger.warning(
                        "%s: result %d is refused (%s)", self._channel, row["number"], refusal
                    )
                    self._journal.set_delivered(self._channel, row["number"], REFUSED)
                    continue
                except UndeliveredError as error:
                    return str(error)
                self._journal.set_delivered(self._channel, row["number"], DONE)
        return ""


@dataclass(frozen=True)
class Webhook:
    """An address that takes results by POST."""

    url: str
    """It begins with ``http://`` or ``https://``."""
    token: str = ""
    """Sent along; empty for none."""

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        parts = _parts(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BundleError(
                f"--webhook {self.url} is no address; give http://HOST/PATH or https://HOST/PATH"
            )

    def send(self, row: Row, name: str) -> None:
        """Send a row.

        Raises:
            UndeliveredError: where it did not arrive.
            RefusedError: where it will never be taken.
        """
        parts = _parts(self.url)
        headers = {"Content-Type": "application/json", "Idempotency-Key": name}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = self._connection()
        try:
            connection.request("POST", path, line_of(row), headers)
            answer = connection.getresponse()
            answer.read(_MOST_SHOWN)
            status = answer.status
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UndeliveredError(f"{self.url} cannot be reached ({error})") from error
        finally:
            connection.close()

        if status in _REFUSALS:
            raise RefusedError(f"status {status}")
        if not 200 <= status < 300:
            raise UndeliveredError(f"{self.url} answers with status {status}")

    def _connection(self) -> http.client.HTTPConnection:
        """Make a connection, which checks the certificate of https."""
        parts = _parts(self.url)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, parts.port, timeout=_TIMEOUT)
        trust = ssl.create_default_context()
        return http.client.HTTPSConnection(host, parts.port, timeout=_TIMEOUT, context=trust)


class Mqtt:
    """A topic of an MQTT broker, which keeps each message until a subscriber has it (QoS 1).

    Args:
        url: ``mqtt://HOST[:PORT]/TOPIC``, or ``mqtts://`` for an encrypted connection.
        login: ``USER:PASSWORD``; empty for none.

    Raises:
        BundleError: for what is no such address.
    """

    def __init__(self, url: str, login: str = "") -> None:
        parts = _parts(url)
        self._topic = unquote(parts.path[1:])
        is_topic = self._topic and not set(self._topic) & set("+#\0")
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or not is_topic:
            raise BundleError(f"--mqtt {url} is no address; give mqtt://HOST/TOPIC or mqtts://...")
        self._url = url
        self._host = parts.hostname
        self._is_encrypted = parts.scheme == "mqtts"
        self._port = parts.port or (8883 if self._is_encrypted else 1883)
        self._login = login
        self._client: Any = None

    def send(self, row: Row, name: str) -> None:
        """Publish a row, which has its name in it.

        Raises:
            UndeliveredError: where the broker did not say that it has it.
        """
        try:
            if self._client is None:
                self._client = self._connected()
            sent = self._client.publish(self._topic, line_of({**row, "id": name}), qos=1)
            sent.wait_for_publish(_TIMEOUT)
            if not sent.is_published():
                raise TimeoutError("no answer")
        except (OSError, ValueError, RuntimeError) as error:
            self._drop()
            raise UndeliveredError(f"{self._url} cannot be reached ({error})") from error

    def _connected(self) -> Any:
        """Connect to the broker.

        Raises:
            OSError: where that fails.
        """
        from paho.mqtt import client as paho

        client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        if self._login:
            user, _, password = self._login.partition(":")
            client.username_pw_set(user, password)
        if self._is_encrypted:
            client.tls_set()
        client.connect_timeout = _TIMEOUT
        client.connect(self._host, self._port)
        client.loop_start()
        return client

    def _drop(self) -> None:
        """Give up a connection. The next message makes another."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None


def _parts(url: str) -> Any:
    """Split an address.

    Raises:
        BundleError: for one that has no form.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - a port that is no number is refused here
    except ValueError as error:
        raise BundleError(f"{url} is no address ({error})") from error
    return parts
