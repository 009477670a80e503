"""A watched folder: each image once, whole, and with a result that no restart loses or repeats."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import ANOMALOUS, NORMAL, picture, write_tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("watchdog")

from adray.runtime.arrivals import ChangedError, network_kind, read_whole
from adray.runtime.errors import BundleError
from adray.runtime.journal import Identity
from adray.runtime.judge import HeldBundle
from adray.runtime.outbox import Mqtt, Webhook
from adray.runtime.watch import Watcher, WatchPlan


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "part.adray"
    write_tiny(path)
    return HeldBundle(path, 1)


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "inbox").mkdir()
    return WatchPlan(tmp_path / "inbox", tmp_path / "judged", settle=0.0, patience=0.0)


def judge_all(plan, held):
    """Judge what lies there, and give the results."""
    Watcher(plan, held).run(once=True)
    return results(plan.out)


def results(out):
    """The rows of both files, which say the same."""
    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines()
    with (out / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    rows = [json.loads(line) for line in lines]
    assert [row["number"] for row in rows] == [int(row["number"]) for row in table]
    assert [row["verdict"] for row in rows] == [row["verdict"] for row in table]
    return rows


@contextmanager
def watching(plan, held):
    """Run a watcher in a thread."""
    watcher = Watcher(plan, held)
    thread = threading.Thread(target=watcher.run)
    thread.start()
    try:
        yield watcher
    finally:
        watcher.stop()
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def image_in(plan, name, level=NORMAL, **more):
    path = plan.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(level, **more))
    return path


# Each image once


def test_images_get_the_verdicts_of_their_pixels_and_others_files_none(plan, held):
    image_in(plan, "a.png")
    image_in(plan, "sub/불량.JPG", ANOMALOUS, kind="JPEG")
    image_in(plan, ".hidden.png")
    image_in(plan, ".part/b.png")
    image_in(plan, "c.png.part")
    (plan.folder / "d.png").mkdir()
    os.mkfifo(plan.folder / "e.png")
    rows = judge_all(plan, held)
    assert {row["image"]: row["verdict"] for row in rows} == {
        "a.png": "normal",
        "sub/불량.JPG": "anomalous",
    }
    for row in rows:
        levels = np.asarray(Image.open(plan.out / row["map"]))
        assert levels.shape == (9, 12)
        assert row["map_low"] == row["map_high"] == pytest.approx(row["pred_score"])


def test_nothing_is_judged_again_after_a_restart_a_touch_or_a_rename(plan, held):
    path = image_in(plan, "a.png")
    judge_all(plan, held)
    path.touch()
    assert len(judge_all(plan, held)) == 1
    path.rename(plan.folder / "b.png")
    assert len(judge_all(plan, held)) == 1
    (plan.folder / "sub").mkdir()
    (plan.folder / "b.png").rename(plan.folder / "sub" / "c.png")
    assert len(judge_all(plan, held)) == 1


def test_a_copy_a_new_content_and_a_file_that_came_again_are_new(plan, held):
    path = image_in(plan, "a.png")
    judge_all(plan, held)
    shutil.copy2(path, plan.folder / "b.png")
    assert [row["image"] for row in judge_all(plan, held)] == ["a.png", "b.png"]
    status = path.stat()
    path.write_bytes(picture(NORMAL + 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    rows = judge_all(plan, held)
    assert [row["pred_score"] for row in rows] == [NORMAL, NORMAL, NORMAL + 1]
    path.unlink()
    judge_all(plan, held)
    image_in(plan, "a.png", NORMAL + 1)
    assert len(judge_all(plan, held)) == 4


def test_a_share_that_was_away_brings_nothing_new(plan, held):
    image_in(plan, "a.png")
    judge_all(plan, held)
    away = plan.folder.with_name("away")
    shutil.copytree(plan.folder, away, copy_function=shutil.copy2)  # with other inodes
    shutil.rmtree(plan.folder)
    plan.folder.mkdir()
    assert len(judge_all(plan, held)) == 1
    shutil.rmtree(plan.folder)
    away.rename(plan.folder)
    assert len(judge_all(plan, held)) == 1


@pytest.mark.parametrize("is_polled", [False, True])
def test_an_image_that_comes_while_the_folder_is_watched_is_judged_soon(plan, held, is_polled):
    seconds = 0.05 if is_polled else 3600.0
    plan = replace(plan, is_polled=is_polled, scan_seconds=seconds, settle=0.02)
    with watching(plan, held) as watcher:
        wait_for(lambda: watcher._found is not None)
        image_in(plan, "a.png")
        image_in(plan, "new/b.png", ANOMALOUS)
        part = plan.folder / "c.part"
        part.write_bytes(picture())
        part.rename(plan.folder / "c.png")
        wait_for(lambda: watcher.judged == 3)
    assert {row["image"] for row in results(plan.out)} == {"a.png", "new/b.png", "c.png"}


def test_a_file_is_judged_once_it_is_whole(plan, held):
    """The writer pauses for longer than a file has to stay the same."""
    data = picture(ANOMALOUS, size=(60, 50))
    plan = replace(plan, settle=0.05, patience=20.0, is_polled=True, scan_seconds=0.02)
    with watching(plan, held) as watcher:
        with (plan.folder / "slow.png").open("wb") as file:
            for start in range(0, len(data), len(data) // 3):
                file.write(data[start : start + len(data) // 3])
                file.flush()
                time.sleep(0.4)
        wait_for(lambda: watcher.judged == 1)
    (row,) = results(plan.out)
    assert row["verdict"] == "anomalous"


def test_a_damaged_file_is_unreadable_in_the_end_and_costs_no_other(plan, held):
    (plan.folder / "bad.png").write_bytes(picture()[:30])
    (plan.folder / "empty.png").write_bytes(b"")
    image_in(plan, "good.png")
    rows = {row["image"]: row for row in judge_all(replace(plan, patience=0.6), held)}
    assert rows["good.png"]["verdict"] == "normal"
    for name in ("bad.png", "empty.png"):
        assert rows[name]["verdict"] == "unreadable"
        assert rows[name]["reason"]
        assert rows[name]["pred_score"] is None


def test_names_that_are_no_utf8_or_end_lines_or_look_like_formulas_keep_a_row_each(plan, held):
    names = [b"\xff\xfe.png", b"a\nb.png", b"=1+1.png", "양품 이미지.png".encode(), b'q",".png']
    for name in names:
        (plan.folder / os.fsdecode(name)).write_bytes(picture())
    rows = judge_all(plan, held)
    assert {os.fsencode(row["image"]) for row in rows} == set(names)
    text = (plan.out / "results.csv").read_bytes().decode("utf-8-sig")
    assert len(text.splitlines()) == len(names) + 1
    with (plan.out / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = {row["image"] for row in csv.DictReader(file)}
    assert {"'=1+1.png", "a\\nb.png", 'q",".png', "양품 이미지.png"} <= cells
    assert len(judge_all(plan, held)) == len(names)


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"123")
    identity = Identity.of(path.stat())
    assert read_whole(path, identity) == b"123"
    path.write_bytes(b"1234")
    with pytest.raises(ChangedError):
        read_whole(path, identity)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ChangedError):
        read_whole(path, identity)


# Results


def test_result_files_are_completed_whatever_a_kill_or_a_person_left_of_them(plan, held):
    for number in range(4):
        image_in(plan, f"{number}.png", NORMAL + number)
    expected = judge_all(plan, held)
    lines = plan.out / "results.jsonl"
    table = plan.out / "results.csv"

    # Torn, as by a kill between the journal and the files.
    with sqlite3.connect(plan.out / "journal.sqlite") as base:
        base.execute("DELETE FROM facts WHERE name LIKE 'in %'")
    whole = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(b"".join(whole[:2]) + whole[2][:40])
    rows = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join(rows[:2]) + rows[2][:9])
    assert judge_all(plan, held) == expected

    # Taken away: the next file begins with what is new.
    lines.rename(plan.out / "archive.jsonl")
    table.unlink()
    image_in(plan, "new.png")
    assert [row["number"] for row in judge_all(plan, held)] == [5]


def test_a_result_file_that_cannot_be_written_is_completed_later(plan, held):
    image_in(plan, "a.png")
    judge_all(plan, held)
    table = plan.out / "results.csv"
    held_open = table.rename(plan.out / "kept.csv")
    table.symlink_to("/dev/full")
    image_in(plan, "b.png")
    Watcher(plan, held).run(once=True)
    table.unlink()
    held_open.rename(table)
    assert [row["image"] for row in judge_all(plan, held)] == ["a.png", "b.png"]


def test_images_wait_for_a_disk_that_fails_and_none_is_lost(plan, held, monkeypatch):
    monkeypatch.setattr("adray.runtime.watch._TROUBLE_SECONDS", 0.02)
    plan.out.mkdir()
    blocked = plan.out / "maps"
    blocked.write_bytes(b"a file where a folder should be")
    for number in range(3):
        image_in(plan, f"{number}.png")
    with watching(plan, held) as watcher:
        wait_for(lambda: watcher._in_trouble)
        assert watcher.judged == 0
        blocked.unlink()
        wait_for(lambda: watcher.judged == 3)
    assert [row["number"] for row in results(plan.out)] == [1, 2, 3]


def test_results_without_their_journal_and_folders_in_each_other_are_refused(plan, held, tmp_path):
    image_in(plan, "a.png")
    judge_all(plan, held)
    (plan.out / "journal.sqlite").unlink()
    with pytest.raises(BundleError, match="not the journal"):
        Watcher(plan, held)
    for other in (
        replace(plan, out=plan.folder / "judged"),
        replace(plan, sort_into=plan.folder),
        replace(plan, folder=tmp_path / "gone"),
        replace(plan, moves=True),
    ):
        with pytest.raises(BundleError):
            Watcher(other, held)
    (plan.out / "journal.sqlite").write_bytes(b"no journal" * 100)
    with pytest.raises(BundleError, match="journal"):
        Watcher(plan, held)


def test_two_watchers_do_not_share_a_folder_of_results(plan, held):
    with watching(plan, held), pytest.raises(BundleError, match="another process writes"):
        Watcher(plan, held)


# Sorted copies


@pytest.mark.parametrize("moves", [False, True])
def test_images_are_sorted_by_their_verdict_and_no_file_is_written_over(plan, held, moves):
    plan = replace(plan, sort_into=plan.folder.with_name("sorted"), moves=moves)
    taken = plan.sort_into / "normal" / "a.png"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"somebody's")
    good = image_in(plan, "a.png")
    bad = image_in(plan, "sub/b.png", ANOMALOUS)
    contents = [good.read_bytes(), bad.read_bytes()]
    judge_all(plan, held)
    assert taken.read_bytes() == b"somebody's"
    assert (taken.parent / "a_1.png").read_bytes() == contents[0]
    assert (plan.sort_into / "anomalous" / "sub" / "b.png").read_bytes() == contents[1]
    assert good.exists() is bad.exists() is not moves

    # Again, and with an image that comes under the same name.
    judge_all(plan, held)
    image_in(plan, "a.png", NORMAL + 1)
    judge_all(plan, held)
    names = sorted(path.name for path in (plan.sort_into / "normal").iterdir())
    assert names == ["a.png", "a_1.png", "a_2.png"]


def test_a_moved_image_that_comes_back_is_new(plan, held):
    plan = replace(plan, sort_into=plan.folder.with_name("sorted"), moves=True)
    image_in(plan, "a.png")
    judge_all(plan, held)
    (plan.sort_into / "normal" / "a.png").rename(plan.folder / "a.png")
    assert len(judge_all(plan, held)) == 2


def test_an_image_that_is_replaced_before_it_is_moved_stays(plan, held):
    plan = replace(plan, sort_into=plan.folder.with_name("sorted"), moves=True)
    path = image_in(plan, "a.png")
    blocked = plan.sort_into
    blocked.write_bytes(b"a file where a folder should be")
    Watcher(plan, held).run(once=True)
    path.write_bytes(picture(ANOMALOUS))
    blocked.unlink()
    rows = judge_all(plan, held)
    assert [row["verdict"] for row in rows] == ["normal", "anomalous"]
    assert (plan.sort_into / "anomalous" / "a.png").read_bytes() == picture(ANOMALOUS)
    assert not (plan.sort_into / "normal").exists()


# Messages


class Receiver(BaseHTTPRequestHandler):
    """Takes results, after some refusals."""

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = server.answers.pop(0) if server.answers else 200
        server.seen.append((status, self.headers["Idempotency-Key"], json.loads(body)))
        server.tokens.add(self.headers["Authorization"])
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@contextmanager
def receiver(answers=()):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.answers = list(answers)
    server.seen = []
    server.tokens = set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/results?line=1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_webhook_gets_each_result_in_order_after_failures_and_restarts(plan, held):
    for number in range(3):
        image_in(plan, f"{number}.png", NORMAL + number)
    with receiver([503, 401, 200, 500]) as (server, url):
        plan = replace(plan, channels={"posted": Webhook(url, "geheim").send})
        deadline = time.monotonic() + 20
        left = Watcher(plan, held).run(once=True)
        while left and time.monotonic() < deadline:
            left = Watcher(plan, held).run(once=True)
        assert not left
        taken = [(name, body["number"]) for status, name, body in server.seen if status == 200]
        assert [number for _, number in taken] == [1, 2, 3]
        assert len({name for name, _ in taken}) == 3
        assert server.tokens == {"Bearer geheim"}


def test_a_result_that_the_webhook_refuses_for_good_holds_up_no_other(plan, held):
    for number in range(2):
        image_in(plan, f"{number}.png")
    with receiver([422]) as (server, url):
        plan = replace(plan, channels={"posted": Webhook(url).send})
        assert not Watcher(plan, held).run(once=True)
        assert [(status, body["number"]) for status, _, body in server.seen] == [(422, 1), (200, 2)]


def test_results_wait_for_a_webhook_that_is_away(plan, held):
    with receiver() as (_, url):
        pass  # its port is closed from here on
    image_in(plan, "a.png")
    plan = replace(plan, channels={"posted": Webhook(url).send})
    assert Watcher(plan, held).run(once=True) == {"posted": 1}
    with receiver() as (server, url):
        plan = replace(plan, channels={"posted": Webhook(url).send})
        assert Watcher(plan, held).run(once=True) == {}
        assert len(server.seen) == 1


@pytest.mark.parametrize("url", ["ftp://x/", "http://", "http://x:99999/", "x", "http://[::1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(BundleError, match="no address"):
        Webhook(url)
    with pytest.raises(BundleError, match="no address"):
        Mqtt(url)


def test_counts_are_written_for_prometheus(plan, held, tmp_path):
    image_in(plan, "a.png", ANOMALOUS)
    plan = replace(plan, metrics=tmp_path / "m.prom")
    judge_all(plan, held)
    text = (tmp_path / "m.prom").read_text()
    assert 'adray_images_total{verdict="anomalous"} 1' in text
    assert "adray_recent_alarms 1" in text
    judge_all(plan, held)
    assert "adray_recent_alarms 1" in (tmp_path / "m.prom").read_text()


def test_a_folder_of_another_machine_is_known_by_the_list_of_mounts(tmp_path):
    mounts = tmp_path / "mounts"
    share = tmp_path / "a share"
    share.mkdir()
    escaped = str(share).replace(" ", "\\040")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\n//server/line {escaped} cifs rw 0 0\n")
    assert network_kind(share, mounts) == "cifs"
    assert network_kind(tmp_path, mounts) == ""
    assert network_kind(share, tmp_path / "gone") == ""


class Broker(threading.Thread):
    """As much of MQTT 3.1.1 as a publisher needs: it takes messages, and says that it has them."""

    def __init__(self, drops=0):
        super().__init__(daemon=True)
        self.place = socket.create_server(("127.0.0.1", 0))
        self.port = self.place.getsockname()[1]
        self.drops = drops
        self.messages = []
        self.logins = []

    def run(self):
        while True:
            try:
                line, _ = self.place.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(line,), daemon=True).start()

    def talk(self, line):
        stream = line.makefile("rb")
        while head := stream.read(1):
            body = stream.read(self.length(stream))
            kind = head[0] >> 4
            if kind == 1:
                self.logins.append(body)
                line.sendall(b"\x20\x02\x00\x00")
            elif kind == 3:
                size = int.from_bytes(body[:2], "big")
                topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
                self.messages.append((topic, json.loads(rest[2:])))
                if self.drops:
                    self.drops -= 1
                    line.shutdown(socket.SHUT_RDWR)
                    return
                line.sendall(b"\x40\x02" + rest[:2])
            elif kind == 12:
                line.sendall(b"\xd0\x00")
            elif kind == 14:
                return

    def length(self, stream):
        value = shift = 0
        while True:
            byte = stream.read(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


def test_each_result_is_published_to_a_broker_until_it_says_that_it_has_it(plan, held):
    pytest.importorskip("paho.mqtt")
    image_in(plan, "a.png")
    image_in(plan, "불량.png", ANOMALOUS)
    broker = Broker(drops=1)
    broker.start()
    url = f"mqtt://127.0.0.1:{broker.port}/line/3"
    plan = replace(plan, channels={"published": Mqtt(url, "user:geheim").send})
    deadline = time.monotonic() + 30
    while Watcher(plan, held).run(once=True):
        assert time.monotonic() < deadline
    broker.place.close()
    assert {topic for topic, _ in broker.messages} == {"line/3"}
    rows = {row["id"]: row for _, row in broker.messages}
    assert sorted(row["number"] for row in rows.values()) == [1, 2]
    assert {row["image"] for row in rows.values()} == {"a.png", "불량.png"}
    assert len(broker.messages) > len(rows)  # what was dropped came again, under its name
    assert b"geheim" in broker.logins[0]
