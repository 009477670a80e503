"""A server in a thread, and a client of the standard library."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import contextmanager

from adray.runtime.http_server import bound_socket, make_server
from adray.runtime.server import Access, Server
from adray.runtime.server_input import Limits
from adray.runtime.server_page import TEXTS

PAGES = {language: {name: f"{language} {name}" for name in TEXTS} for language in ("en", "ko")}


class Client:
    """Asks one server, a connection a request."""

    def __init__(self, port):
        self.port = port

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def json(self, method, path, body=None, headers=None):
        """Status and value of an answer."""
        status, _, text = self.ask(method, path, body, headers)
        return status, json.loads(text)

    def predict(self, body, path="/predict", **headers):
        """Status and value of an answer to an image."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.json("POST", path, body, named)


@contextmanager
def served(held, limits=None, access=None, log=None, tls=None, reload_seconds=0.05):
    """Run a server, and give a client and the server."""
    server = Server(
        held, limits or Limits(workers=2), access or Access(True), log, PAGES, reload_seconds
    )
    place = bound_socket("127.0.0.1", 0)
    runner = make_server(server.app(), tls, 5)
    thread = threading.Thread(target=runner.run, args=([place],))
    thread.start()
    try:
        while not runner.started:
            time.sleep(0.01)
            assert thread.is_alive()
        yield Client(place.getsockname()[1]), server
    finally:
        runner.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def form_of(files):
    """Body and headers of a form of files: name to bytes."""
    parts = []
    for name, data in files.items():
        head = f'--frontier\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + data + b"\r\n")
    body = b"".join(parts) + b"--frontier--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=frontier"}
