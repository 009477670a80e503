"""The server gives the bundle's verdicts, refuses what costs too much, and loses no result."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import ANOMALOUS, NORMAL, THRESHOLD, picture, write_tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("starlette")

from line_server import PAGES, form_of, served

from adray.runtime.errors import BundleError
from adray.runtime.http_server import Tls, bound_socket, check_tls
from adray.runtime.judge import HeldBundle
from adray.runtime.result_log import ResultLog, read_rows
from adray.runtime.server import Access
from adray.runtime.server_input import Limits


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "part.adray"
    write_tiny(path)
    return path


@pytest.fixture(scope="module")
def held(path):
    return HeldBundle(path, 1)


@pytest.fixture(scope="module")
def client(held):
    with served(held) as (client, _):
        yield client


class Slow:
    """A model that takes its time, as long as it is told to."""

    threshold = THRESHOLD
    promised = None
    tried = 1
    calibration = ()
    dtype = "uint8"

    def __init__(self, held):
        self.judge = held.model.judge
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)

    def predict(self, *arguments):
        self.begun.release()
        assert self.go.wait(30)
        return self.judge.predict(*arguments)

    def sentence(self, language):
        return ""


class SlowHeld:
    """Holds a slow model."""

    failures = 0
    last_failure = ""

    def __init__(self, held):
        self.model = type(held.model)(Slow(held), "slow", "0" * 64)

    def look(self, must_load=False):
        return ""


# Verdicts


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.parametrize("level", [NORMAL, ANOMALOUS])
def test_an_image_of_each_format_gets_the_verdict_of_its_pixels(client, kind, level):
    status, found = client.predict(picture(level, kind=kind), "/predict?name=a")
    (row,) = found["results"]
    assert status == 200
    assert row["image"] == "a"
    assert row["pred_score"] == pytest.approx(level, abs=1)
    assert row["verdict"] == ("anomalous" if level >= THRESHOLD else "normal")
    assert row["threshold"] == found["model"]["threshold"] == THRESHOLD
    assert found["model"]["promised_false_alarms"] == 0.1


def test_raw_numbers_get_the_verdict_of_the_same_picture(client):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    scores = []
    for body, query in ((pixels.tobytes(), "?shape=7,5,3"), (buffer.getvalue(), "")):
        _, found = client.predict(body, f"/predict{query}")
        scores.append(found["results"][0]["pred_score"])
    assert scores[0] == scores[1] == pytest.approx(pixels.mean(), rel=1e-6)
    status, found = client.predict(b"123", "/predict?shape=7,5,3")
    assert status == 400
    assert "are 105" in found["error"]


def test_the_files_of_a_form_are_judged_in_their_order_and_a_bad_one_costs_no_other(client):
    files = {"좋음.png": picture(NORMAL), "broken.png": b"\x89PNG\r\n", "b.png": picture(ANOMALOUS)}
    body, headers = form_of(files)
    status, found = client.json("POST", "/predict", body, headers)
    assert status == 200
    assert [row["image"] for row in found["results"]] == list(files)
    verdicts = [row["verdict"] for row in found["results"]]
    assert verdicts == ["normal", "unreadable", "anomalous"]
    assert "damaged" in found["results"][1]["reason"]


def test_map_and_regions_are_those_of_the_picture(client):
    pixels = np.full((8, 6, 3), 30, np.uint8)
    pixels[2:4, 1:5] = 250
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    _, found = client.predict(buffer.getvalue(), "/predict?map=true")
    (row,) = found["results"]
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["map"]["png"]))))
    low, high = row["map"]["low"], row["map"]["high"]
    assert np.allclose(low + levels / 65535 * (high - low), pixels[..., 0], atol=0.01)
    (region,) = row["regions"]
    assert [region[name] for name in ("x0", "y0", "x1", "y1", "area")] == [1, 2, 5, 4, 8]
    assert region["peak"] == 250

    status, headers, data = client.ask(
        "POST", "/predict?regions=false", buffer.getvalue(), {"Accept": "image/png"}
    )
    assert status == 200
    assert headers["X-Adray-Verdict"] == row["verdict"]
    assert float(headers["X-Adray-Score"]) == row["pred_score"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), levels)


# What is refused


def png_of(width, height):
    """A small file that claims any size."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


@pytest.mark.parametrize("side", [8_000, 60_000])
def test_a_bomb_is_refused_by_its_header(client, side):
    status, found = client.predict(png_of(side, side))
    assert status == 422
    assert found["results"][0]["verdict"] == "unreadable"
    assert "pixels" in found["results"][0]["reason"]


@pytest.mark.parametrize(
    ("body", "query", "headers", "status"),
    [
        (b"", "", {}, 400),
        (b"x", "?map=perhaps", {}, 400),
        (b"x", "?shape=0,1,3", {}, 400),
        (b"x", "?shape=1,1,2", {}, 400),
        (b"x", "?shape=9999999,1,3", {}, 400),
        (b"x", "", {"Content-Type": "text/html"}, 415),
        (b"x", "", {"Content-Type": "multipart/form-data"}, 400),
        (b"x", "", {"Content-Type": "multipart/form-data; boundary=b"}, 400),
        (b"--b--\r\n", "", {"Content-Type": "multipart/form-data; boundary=b"}, 400),
        (b"x", "", {"Idempotency-Key": "k" * 201}, 400),
        (b"x", "", {"Accept": "image/png"}, 422),
    ],
)
def test_a_request_that_cannot_be_meant_gets_one_sentence(client, body, query, headers, status):
    found, answer = client.json("POST", f"/predict{query}", body, headers)
    assert found == status
    assert answer["error"]
    assert "\n" not in answer["error"]


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(held):
    with served(held, Limits(most_bytes=1000, workers=1)) as (client, _):
        assert client.predict(b"x" * 1001)[0] == 413
        chunks = iter([b"x" * 600, b"x" * 600])
        assert client.json("POST", "/predict", chunks)[0] == 413
        assert client.predict(picture())[0] == 200


def test_too_many_files_in_a_form_are_refused(held):
    body, headers = form_of({f"{i}.png": picture() for i in range(3)})
    with served(held, Limits(most_images=2, workers=1)) as (client, _):
        status, found = client.json("POST", "/predict", body, headers)
        assert status == 400
        assert "2" in found["error"]


def test_one_request_more_than_fits_gets_429_and_room_comes_back(held):
    slow = SlowHeld(held)
    judge = slow.model.judge
    with (
        served(slow, Limits(workers=1, queue=1, seconds=30)) as (client, server),
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [pool.submit(client.predict, picture()) for _ in range(2)]
        assert judge.begun.acquire(timeout=30)
        while server._in_flight < 2:
            time.sleep(0.01)
        status, headers, _ = client.ask("POST", "/predict", picture())
        assert status == 429
        assert headers["Retry-After"] == "1"
        judge.go.set()
        assert [answer.result()[0] for answer in waiting] == [200, 200]
        assert client.predict(picture())[0] == 200
        assert server._in_flight == 0


def test_what_takes_too_long_gets_503_and_keeps_its_room_until_its_thread_ends(held):
    slow = SlowHeld(held)
    judge = slow.model.judge
    with served(slow, Limits(workers=1, queue=0, seconds=0.3)) as (client, server):
        assert client.predict(picture())[0] == 503
        assert client.predict(picture())[0] == 429
        judge.go.set()
        while server._in_flight:
            time.sleep(0.01)
        assert client.predict(picture())[0] == 200


def test_a_client_that_never_ends_its_body_costs_one_place_for_the_time_limit(held):
    with served(held, Limits(workers=1, queue=0, seconds=0.4)) as (client, server):
        line = socket.create_connection(("127.0.0.1", client.port))
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nx")
        assert b"503" in line.recv(100)
        line.close()
        while server._in_flight:
            time.sleep(0.01)
        assert client.predict(picture())[0] == 200


def test_a_token_is_asked_for_and_pages_of_other_sites_are_refused(held):
    with served(held, access=Access(False, "geheim")) as (client, _):
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "geheim"}):
            assert client.json("POST", "/predict", picture(), headers)[0] == 401
        assert client.ask("GET", "/metrics")[0] == 401
        assert client.predict(picture(), Authorization="Bearer geheim")[0] == 200
        status, health = client.json("GET", "/health")
        assert status == 200
        assert "model" not in health


def test_a_browser_that_another_site_drives_is_refused(client):
    for headers in (
        {"Origin": "http://evil.example"},
        {"Host": "evil.example"},
        {"Origin": "null"},
    ):
        assert client.json("POST", "/predict", picture(), headers)[0] == 403
    own = f"127.0.0.1:{client.port}"
    assert client.predict(picture(), Origin=f"http://{own}", Host=own)[0] == 200


def test_an_address_that_is_taken_and_files_that_are_no_certificate_are_refused(tmp_path):
    taken = bound_socket("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(BundleError, match="name another address"):
        bound_socket("127.0.0.1", taken.getsockname()[1])
    taken.close()
    (tmp_path / "c.pem").write_text("no certificate")
    with pytest.raises(BundleError, match="no certificate and its key"):
        check_tls(Tls(str(tmp_path / "c.pem"), str(tmp_path / "c.pem")))
    with pytest.raises(BundleError, match="no certificate and its key"):
        check_tls(Tls(str(tmp_path / "gone"), str(tmp_path / "gone")))


def test_small_answers_are_sent_at_once():
    """asyncio does so for sockets that are named as TCP, and 40 ms later for others."""
    place = bound_socket("127.0.0.1", 0)
    assert place.proto == socket.IPPROTO_TCP
    place.close()


def test_a_certificate_encrypts(held, tmp_path):
    tls = Tls(str(tmp_path / "c.pem"), str(tmp_path / "k.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    more = ["-subj", "/CN=localhost", "-keyout", tls.key, "-out", tls.certificate]
    try:
        subprocess.run([*command, *more], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    check_tls(tls)
    trust = ssl.create_default_context(cafile=tls.certificate)
    with served(held, tls=tls) as (client, _):
        plain = socket.create_connection(("127.0.0.1", client.port))
        line = trust.wrap_socket(plain, server_hostname="localhost")
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
        line.close()


# The log


def test_a_request_that_is_sent_again_gets_the_result_that_was_logged_once(held, tmp_path):
    log = ResultLog(tmp_path / "log")
    with served(held, log=log) as (client, _):
        first = client.predict(picture(), Idempotency_Key="part-1")
        assert client.predict(picture(), Idempotency_Key="part-1") == first
        status, found = client.predict(picture(ANOMALOUS), Idempotency_Key="part-1")
        assert status == 409
        assert "another image" in found["error"]

    # Another process knows it, too.
    with served(held, log=ResultLog(tmp_path / "log")) as (client, server):
        assert client.predict(picture(), Idempotency_Key="part-1") == first
        client.predict(picture(ANOMALOUS))
        assert server.tally.recent(held.model.sha256) == (2, 1)
    (file,) = (tmp_path / "log").glob("*.jsonl")
    assert [row["verdict"] for row in read_rows(file)] == ["normal", "anomalous"]


def test_a_request_that_comes_again_while_it_is_judged_waits_for_the_same_result(held, tmp_path):
    slow = SlowHeld(held)
    judge = slow.model.judge
    log = ResultLog(tmp_path / "log")
    with served(slow, log=log) as (client, server), ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.predict, picture(), Idempotency_Key="a") for _ in range(2)]
        assert judge.begun.acquire(timeout=30)
        while server._in_flight < 2:
            time.sleep(0.01)
        assert client.predict(picture(ANOMALOUS), Idempotency_Key="a")[0] == 409
        judge.go.set()
        first, second = (answer.result() for answer in asked)
    assert first == second
    (file,) = (tmp_path / "log").glob("*.jsonl")
    assert len(list(read_rows(file))) == 1


def test_a_connection_that_says_nothing_or_never_ends_its_request_is_closed(held, monkeypatch):
    monkeypatch.setattr("adray.runtime.http_server._SILENT_SECONDS", 0.2)
    with served(held) as (client, _):
        for words in (b"", b"POST /predict HTTP/1.1\r\nHost: loc"):
            line = socket.create_connection(("127.0.0.1", client.port), timeout=20)
            line.sendall(words)
            assert line.recv(100) == b""
            line.close()
        assert client.predict(picture())[0] == 200


def test_a_result_that_cannot_be_logged_is_not_given(held, tmp_path):
    log = ResultLog(tmp_path / "log")
    with served(held, log=log) as (client, _):
        _, found = client.predict(picture())
        day = found["results"][0]["time"][:10]
        file = tmp_path / "log" / f"results-{day}.jsonl"
        file.unlink()
        file.symlink_to("/dev/full")
        status, found = client.predict(picture())
        assert status == 507
        assert "No space left" in found["error"]
        file.unlink()
        assert client.predict(picture())[0] == 200


def test_a_torn_line_is_cut_off_and_whole_ones_stay(tmp_path):
    log = ResultLog(tmp_path)
    log.add({"time": "2026-01-01T", "request": "a", "image": "\udcff"})
    log.close()
    (file,) = tmp_path.glob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"time": "2026-01-01T", "requ')
    again = ResultLog(tmp_path)
    assert again.known("a") == {"time": "2026-01-01T", "request": "a", "image": "\udcff"}
    assert file.read_bytes() == whole
    with pytest.raises(BundleError, match="another process writes its results"):
        ResultLog(tmp_path)
    again.close()


# A model that is replaced


def test_a_model_is_replaced_while_requests_come_and_none_is_lost(tmp_path):
    path = tmp_path / "part.adray"
    write_tiny(path)
    held = HeldBundle(path, 1)
    before = held.model.sha256
    with served(held) as (client, _), ThreadPoolExecutor(3) as pool:
        stop = threading.Event()

        def ask():
            answers = []
            while not stop.is_set():
                answers.append(client.predict(picture(80)))
            return answers

        asking = [pool.submit(ask) for _ in range(3)]
        time.sleep(0.2)
        write_tiny(path, threshold=60.0)
        while held.model.sha256 == before:
            time.sleep(0.01)
        time.sleep(0.2)
        stop.set()
        answers = [answer for asked in asking for answer in asked.result()]
    assert {status for status, _ in answers} == {200}
    seen = set()
    for _, found in answers:
        (row,) = found["results"]
        assert row["model"] == found["model"]["sha256"]
        assert row["verdict"] == ("anomalous" if found["model"]["threshold"] == 60 else "normal")
        seen.add(found["model"]["threshold"])
    assert seen == {60.0, THRESHOLD}


def test_a_file_that_is_no_model_or_judges_otherwise_does_not_take_the_place_of_one(tmp_path):
    path = tmp_path / "part.adray"
    write_tiny(path)
    whole = path.read_bytes()
    held = HeldBundle(path)
    before = held.model
    other = {
        "file": "golden/0.png",
        "pixels_sha256": "0" * 64,
        "pred_score": 7.0,
        "verdict": "normal",
    }
    path.write_bytes(whole[: len(whole) // 2])
    assert held.look() == ""
    assert "the model in use stays" in held.look()
    assert held.look() == ""
    write_tiny(path, golden=[other])
    assert "judges other than where it was made" in held.look(must_load=True)
    path.unlink()
    assert held.look() == ""
    assert held.model is before
    assert held.failures == 2
    write_tiny(path, threshold=60.0)
    held.look()
    assert "loaded anew" in held.look()
    assert held.model.judge.threshold == 60.0
    assert held.last_failure == ""


# Pages


def test_pages_load_nothing_from_elsewhere_and_their_script_is_the_one_that_is_allowed(client):
    for language in ("en", "ko"):
        _, headers, body = client.ask("GET", "/", headers={"Accept-Language": language})
        text = body.decode()
        assert PAGES[language]["drop"] in text
        (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in headers["Content-Security-Policy"]
        assert not re.search(r"(src|href)=.?(https?:)?//", text)
    _, headers, body = client.ask("GET", "/docs")
    assert b"<script" not in body
    assert not re.search(rb"(src|href)=.?(https?:)?//", body)


def test_the_interface_names_every_path_and_every_status_that_was_seen(client):
    _, api = client.json("GET", "/openapi.json")
    assert set(api["paths"]) == {"/predict", "/health", "/metrics"}
    statuses = set(api["paths"]["/predict"]["post"]["responses"])
    assert {
        "200",
        "400",
        "401",
        "403",
        "406",
        "409",
        "413",
        "415",
        "422",
        "429",
        "503",
        "507",
    } == statuses
    references = re.findall(r'"#/([^"]+)"', json.dumps(api))
    assert references
    for reference in references:
        place = api
        for part in reference.split("/"):
            place = place[part]
    row = client.predict(picture(), "/predict?map=true")[1]["results"][0]
    described = api["components"]["schemas"]["Answer"]["properties"]["results"]["items"][
        "properties"
    ]
    assert set(row) <= set(described)


def test_metrics_count_what_was_asked(held):
    with served(held) as (client, _):
        client.predict(picture(ANOMALOUS))
        client.predict(b"no image")
        client.predict(b"")
        text = client.ask("GET", "/metrics")[2].decode()
    for line in (
        'adray_images_total{verdict="anomalous"} 1',
        'adray_images_total{verdict="unreadable"} 1',
        'adray_requests_total{status="200"} 1',
        'adray_requests_total{status="400"} 1',
        'adray_requests_total{status="422"} 1',
        "adray_recent_alarms 1",
        "adray_promised_false_alarms 0.1",
    ):
        assert line in text
