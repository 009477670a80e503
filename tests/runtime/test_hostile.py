"""Whatever is sent or put into the folder gets an answer of its own, and kills take nothing."""

from __future__ import annotations

import csv
import http.client
import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import THRESHOLD, picture, write_tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("starlette")
pytest.importorskip("watchdog")

from line_server import form_of, served
from test_watch import receiver

from adray.runtime.judge import HeldBundle
from adray.runtime.model import VERDICTS
from adray.runtime.server_input import Limits
from adray.runtime.watch import Watcher, WatchPlan

MANY = pytest.param(1000, marks=pytest.mark.slow)
KINDS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")
STATUSES = {200, 400, 403, 404, 405, 406, 411, 413, 415, 422, 431, 501, 503}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "part.adray"
    write_tiny(path)
    return path


@pytest.fixture(scope="module")
def held(path):
    return HeldBundle(path, 1)


def noise_as(kind, chance):
    pixels = np.frombuffer(chance.randbytes(23 * 17 * 3), np.uint8).reshape(23, 17, 3)
    buffer = io.BytesIO()
    more = {"compression": "tiff_lzw"} if kind == "TIFF" and chance.random() < 0.5 else {}
    Image.fromarray(pixels).save(buffer, format=kind, **more)
    return buffer.getvalue()


def mutated(data, chance):
    """The data with some bytes changed, cut off, repeated or put in, more often near its beginning."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = min(len(changed) - 1, int(len(changed) * chance.random() ** 2))
        kind = chance.randrange(5)
        if kind == 0 or len(changed) < 4:
            changed[place] = chance.randrange(256)
        elif kind == 1:
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del changed[max(2, place) :]
        elif kind == 3:
            changed[place:place] = chance.randbytes(chance.randint(1, 9))
        else:
            changed[place : place + 4] = chance.choice(
                (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff")
            )
    return bytes(changed)


def asked_raw(port, request):
    """The status of whatever is sent, None where the connection is closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        try:
            line.sendall(request)
            line.shutdown(socket.SHUT_WR)
            answer = line.recv(200)
        except ConnectionError:
            return None
    found = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    return int(found[1]) if found else None


@pytest.mark.parametrize("number", [50, MANY])
@pytest.mark.timeout(1200)
def test_mutated_files_and_requests_are_answered_each_and_the_server_lives(held, number):
    chance = random.Random(number)
    limits = Limits(most_bytes=10**6, most_pixels=10**6, seconds=5.0, workers=2, queue=99)
    seen = Counter()
    with served(held, limits) as (client, _):
        for i in range(number):
            data = mutated(noise_as(KINDS[i % len(KINDS)], chance), chance)
            if i % 3 == 0:
                status, answer = client.predict(data, "/predict?map=true")
                assert status in (200, 422, 400)
                for row in answer.get("results", ()):
                    assert row["verdict"] in VERDICTS
                    assert (row["pred_score"] is None) == bool(row["reason"])
            elif i % 3 == 1:
                body, headers = form_of({"a.png": picture(), "b.png": data})
                status, answer = client.json("POST", "/predict", mutated(body, chance), headers)
                assert status in (200, 400, 422)
            else:
                body, headers = form_of({"a.png": data})
                head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                text = f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{head}"
                whole = f"{text}Content-Length: {len(body)}\r\n\r\n".encode() + body
                status = asked_raw(client.port, mutated(whole, chance))
                assert status is None or status in STATUSES
            seen[status] += 1
        status, found = client.predict(picture())
        assert status == 200
        assert found["results"][0]["verdict"] == "normal"
    assert len(seen) > 1


@pytest.mark.parametrize("number", [50, MANY])
@pytest.mark.timeout(1200)
def test_mutated_files_in_a_folder_have_a_row_each(held, tmp_path, number):
    chance = random.Random(number)
    (tmp_path / "inbox").mkdir()
    for i in range(number):
        kind = KINDS[i % len(KINDS)]
        data = mutated(noise_as(kind, chance), chance)
        (tmp_path / "inbox" / f"{i}.{kind.lower()}").write_bytes(data)
    plan = WatchPlan(tmp_path / "inbox", tmp_path / "out", settle=0.0, patience=0.0)
    Watcher(plan, held).run(once=True)
    lines = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["image"] for row in rows}) == len(rows) == number
    for row in rows:
        assert (
            (row["verdict"] == "unreadable") == (row["pred_score"] is None) == bool(row["reason"])
        )


# Kills


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def asked_once(port, number, answers):
    """Ask for a part by its name, and tell whether its answer came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        headers = {"Idempotency-Key": f"part-{number}"}
        connection.request("POST", "/predict", picture(number % 200), headers)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException):
        time.sleep(0.05)
        return False
    finally:
        connection.close()
    if answer.status == 200:
        answers[f"part-{number}"] = (number % 200, json.loads(text)["results"][0])
    return answer.status == 200


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_server_that_is_killed_at_random_loses_no_result_and_logs_none_twice(path, tmp_path):
    chance = random.Random(0)
    port = free_port()
    command = [sys.executable, "-m", "adray", "serve", str(path), "--port", str(port)]
    command += ["--log", str(tmp_path / "log"), "--workers", "2"]
    stop = threading.Event()
    answers = {}

    def ask(worker):
        number = worker
        while not stop.is_set():
            if asked_once(port, number, answers):
                number += 3

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, worker) for worker in range(3)]
        for _ in range(8):
            before = len(answers)
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while len(answers) < before + 5:
                assert server.poll() is None
                time.sleep(0.01)
            time.sleep(chance.random())
            server.send_signal(signal.SIGKILL)
            server.wait()
        stop.set()
        for asked in asking:
            asked.result()

    rows = []
    for file in (tmp_path / "log").glob("results-*.jsonl"):
        text = file.read_text(encoding="utf-8")
        rows += [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    logged = {row["request"]: row for row in rows}
    assert len(logged) == len(rows)
    assert len(answers) > 40
    for key, (level, row) in answers.items():
        assert logged[f"{key}/1"] == row
        assert row["verdict"] == ("anomalous" if level >= THRESHOLD else "normal")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("moves", [False, True])
def test_a_watcher_that_is_killed_at_random_loses_no_image_and_repeats_none(path, tmp_path, moves):
    chance = random.Random(moves)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    out = tmp_path / "out"
    command = [sys.executable, "-m", "adray", "watch", str(inbox), "--bundle", str(path)]
    command += ["--out", str(out), "--settle", "0.02", "--sort-into", str(tmp_path / "sorted")]
    command += ["--move"] if moves else []
    stop = threading.Event()
    levels = {}

    def deliver():
        while not stop.is_set():
            number = len(levels)
            part = inbox / f"{number}.part"
            part.write_bytes(picture(number % 200))
            levels[f"{number}.png"] = number % 200
            part.rename(inbox / f"{number}.png")
            time.sleep(0.01 + 0.03 * chance.random())

    with receiver() as (server, url), ThreadPoolExecutor(1) as pool:
        command += ["--webhook", url]
        delivering = pool.submit(deliver)
        for _ in range(8):
            seen = len(server.seen)
            watcher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while len(server.seen) < seen + 3:
                assert watcher.poll() is None
                time.sleep(0.01)
            time.sleep(chance.random())
            watcher.send_signal(signal.SIGKILL)
            watcher.wait()
        stop.set()
        delivering.result()
        subprocess.run([*command, "--once"], check=True, stdout=subprocess.DEVNULL)
        posted = {}
        for _, name, body in server.seen:
            assert posted.setdefault(name, body) == body

    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    with (out / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == list(range(1, len(levels) + 1))
    assert [int(row["number"]) for row in table] == list(range(1, len(levels) + 1))
    assert {row["image"] for row in rows} == set(levels)
    assert sorted(body["number"] for body in posted.values()) == list(range(1, len(levels) + 1))
    for row in rows:
        level = levels[row["image"]]
        verdict = "anomalous" if level >= THRESHOLD else "normal"
        assert row["verdict"] == verdict
        assert (out / row["map"]).exists()
        copy = tmp_path / "sorted" / verdict / row["image"]
        assert copy.read_bytes() == picture(level)
        assert (inbox / row["image"]).exists() is not moves
    copies = [path for path in (tmp_path / "sorted").rglob("*") if path.is_file()]
    assert len(copies) == len(levels)
    assert len(list((out / "maps").iterdir())) == len(levels)
