"""How fast a server is beside a bare onnxruntime loop, and whether its memory grows.

    python jobs/load_serve.py part_a.adray images/ [--seconds 10] [--clients 4] [--workers 2] [--rounds 3]
    python jobs/load_serve.py part_a.adray images/ --requests 50000

The loop decodes the same files with Pillow and runs the graph in as many threads as the server has
workers. Loop and server take turns, since a busy machine is not the same from minute to minute. The
clients run on this machine, too, and take their part of it. With --requests the server gets so many,
and its memory is read from /metrics on the way.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from adray.runtime import load
from adray.runtime.picture import decode_picture

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MOST_FILES = 50


class Bare:
    """A loop around onnxruntime and Pillow."""

    def __init__(self, bundle: str, files: list[bytes], workers: int, with_map: bool) -> None:
        import onnxruntime

        model = load(bundle, 1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        graph = model.archive.read("model.onnx")
        self.session = onnxruntime.InferenceSession(graph, options)
        names = [output.name for output in self.session.get_outputs()]
        self.wanted = [name for name in names if with_map or name != "anomaly_map"]
        self.dtype = model.dtype
        self.files = files
        self.workers = workers

    def rate(self, seconds: float) -> float:
        """Give images a second."""
        end = time.monotonic() + seconds

        def work(worker: int) -> int:
            count = 0
            while time.monotonic() < end:
                data = self.files[(worker + count * self.workers) % len(self.files)]
                self.session.run(self.wanted, {"image": decode_picture(data, self.dtype)})
                count += 1
            return count

        start = time.monotonic()
        with ThreadPoolExecutor(self.workers) as pool:
            total = sum(pool.map(work, range(self.workers)))
        return total / (time.monotonic() - start)


@contextmanager
def running_server(bundle: str, workers: int, more: list[str]):
    """Start a server, and give its port."""
    command = [sys.executable, "-m", "adray", "serve", bundle, "--port", "0"]
    command += ["--workers", str(workers), "--threads", "1", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        port = int(re.search(r":(\d+)/", line)[1])
        for _ in range(600):
            try:
                ask(port, "GET", "/health")
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def ask(port: int, method: str, path: str) -> bytes:
    """Ask once."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path)
    return connection.getresponse().read()


def megabytes(port: int) -> float:
    """Read the server's memory from its metrics."""
    text = ask(port, "GET", "/metrics").decode()
    return float(re.search(r"^process_resident_memory_bytes (\S+)", text, re.M)[1]) / 2**20


def load_for(
    port: int, files: list[bytes], clients: int, path: str, go_on: Callable[[int], bool]
) -> tuple[list[float], dict[int, int]]:
    """Ask from several connections.

    Returns:
        Seconds of each answer, and the number of answers by status.
    """
    lock = threading.Lock()
    times: list[float] = []
    statuses: dict[int, int] = {}
    started = [0]

    def work(client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                number = started[0]
                if not go_on(number):
                    break
                started[0] += 1
            data = files[number % len(files)]
            start = time.perf_counter()
            connection.request("POST", path, data, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            answer.read()
            taken = time.perf_counter() - start
            with lock:
                times.append(taken)
                statuses[answer.status] = statuses.get(answer.status, 0) + 1
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    return times, statuses


def read_files(place: Path) -> list[bytes]:
    """Read some images."""
    paths = [place] if place.is_file() else sorted(place.rglob("*"))
    images = [path for path in paths if path.suffix.lower() in ENDINGS]
    return [path.read_bytes() for path in images[:MOST_FILES]]


def compare(options: argparse.Namespace, files: list[bytes]) -> None:
    """Take turns between loop and server, and print what each did."""
    path = "/predict" if options.regions else "/predict?regions=false"
    bare = Bare(options.bundle, files, options.workers, options.regions)
    shares = []
    with running_server(options.bundle, options.workers, options.serve) as port:
        for _ in range(options.rounds):
            loop = bare.rate(options.seconds)
            end = time.monotonic() + options.seconds
            start = time.monotonic()
            times, statuses = load_for(
                port, files, options.clients, path, lambda _, end=end: time.monotonic() < end
            )
            rate = len(times) / (time.monotonic() - start)
            shares.append(rate / loop)
            centiles = statistics.quantiles(times, n=100)
            print(
                f"loop {loop:.1f}/s, server {rate:.1f}/s, share {rate / loop:.2f}, "
                f"p50 {1000 * centiles[49]:.1f} ms, p99 {1000 * centiles[98]:.1f} ms, {statuses}"
            )
    print(f"share: median {statistics.median(shares):.2f} of {len(shares)} rounds")


def grow(options: argparse.Namespace, files: list[bytes]) -> None:
    """Send many requests, and print the server's memory on the way."""
    with running_server(options.bundle, options.workers, options.serve) as port:
        step = max(1, options.requests // 10)
        sizes = []
        for done in range(0, options.requests, step):
            times, statuses = load_for(
                port, files, options.clients, "/predict", lambda number: number < step
            )
            sizes.append(megabytes(port))
            rate = f"p50 {1000 * statistics.median(times):.2f} ms"
            print(f"{done + step:7} requests, {sizes[-1]:.1f} MB, {rate}, {statuses}", flush=True)
        print(json.dumps({"first": sizes[0], "last": sizes[-1], "growth": sizes[-1] - sizes[1]}))


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument(
        "--regions", action="store_true", help="with maps and regions on both sides"
    )
    parser.add_argument(
        "--serve", nargs=argparse.REMAINDER, default=[], help="more options of serve"
    )
    options = parser.parse_args()

    files = read_files(options.images)
    if options.requests:
        grow(options, files)
    else:
        compare(options, files)


if __name__ == "__main__":
    main()
