"""The cache of decoded images: built once, never torn, always replaceable."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from fake_datasets import write_mvtec
from PIL import Image

from adray.data.cache import decoded_folder, open_decoded
from adray.data.decode import decode_pair
from adray.data.geometry import Geometry
from adray.data.readers import list_samples
from adray.errors import InputError
from adray.settings import Settings

GEOMETRY = Geometry(32)


@pytest.fixture
def settings(tmp_path):
    write_mvtec(tmp_path / "datasets" / "mvtec")
    return Settings(dataset_dir=str(tmp_path / "datasets"), cache_dir=str(tmp_path / "cache"))


def samples_of(settings, category="bottle"):
    return list_samples("mvtec", category, settings)


def files(settings, pattern="[!.]*.arrow"):
    return sorted((Path(settings.cache_dir) / "decoded").glob(pattern))


def equal_to_direct_decoding(decoded, samples, geometry=GEOMETRY):
    for i, sample in enumerate(samples):
        pair = decode_pair(sample.path, sample.mask_paths, geometry)
        assert (decoded.images[i] == pair.image).all()
        assert (decoded.masks[i] == (0 if pair.defect is None else pair.defect)).all()
    return True


def builds(caplog):
    return sum(record.message.startswith("decoded ") for record in caplog.records)


@pytest.fixture(autouse=True)
def log_level(caplog):
    caplog.set_level(logging.INFO, "adray.data.cache")


def test_the_cache_gives_what_direct_decoding_gives_without_a_copy(settings, caplog):
    samples = samples_of(settings)
    for geometry in (GEOMETRY, Geometry(32, 24), Geometry(32, None, "bicubic")):
        for _ in range(2):
            decoded = open_decoded(samples, geometry, settings)
            assert equal_to_direct_decoding(decoded, samples, geometry)
            assert not decoded.images.flags.owndata
            assert not decoded.images.flags.writeable
    assert builds(caplog) == 3


def test_the_file_is_plain_arrow_with_null_masks_for_images_without_one(settings):
    samples = samples_of(settings)
    open_decoded(samples, GEOMETRY, settings)
    table = pa.ipc.open_file(str(files(settings)[0])).read_all()
    assert table.schema.metadata[b"category"] == b"bottle"
    assert table["path"].to_pylist() == [os.fsencode(s.path) for s in samples]
    assert [v is not None for v in table["mask"].to_pylist()] == [
        bool(s.mask_paths) for s in samples
    ]
    table.validate(full=True)


def test_a_data_set_without_masks_has_none_in_the_cache(tmp_path, settings):
    write_mvtec(tmp_path / "datasets" / "bare", masks=False)
    assert open_decoded(list_samples("bare", "wood", settings), GEOMETRY, settings).masks is None


def count_builds(settings, barrier, results):
    records = []
    logging.getLogger("adray.data.cache").setLevel(logging.INFO)
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("adray.data.cache").addHandler(handler)
    samples = samples_of(settings)
    barrier.wait()
    decoded = open_decoded(samples, GEOMETRY, settings)
    results.put(
        (sum(message.startswith("decoded ") for message in records), int(decoded.images.sum()))
    )


def test_processes_that_start_together_build_once(settings):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=count_builds, args=(settings, barrier, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(built for built, _ in answers) == [0, 0, 0, 1]
    assert len({total for _, total in answers}) == 1


BUILDER = """
import sys
from adray.data.cache import open_decoded
from adray.data.geometry import Geometry
from adray.data.readers import list_samples
from adray.settings import Settings
settings = Settings(dataset_dir=sys.argv[1], cache_dir=sys.argv[2])
open_decoded(list_samples("large", "bottle", settings), Geometry(512), settings)
"""


@pytest.mark.parametrize(
    "trigger", [".*.tmp.arrow", pytest.param("*.lock", marks=pytest.mark.slow)]
)
def test_a_killed_builder_leaves_nothing_that_is_taken_for_whole(
    tmp_path, settings, caplog, trigger
):
    write_mvtec(tmp_path / "datasets" / "large", ("bottle",), train=50, good=1, defects=1, size=256)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", BUILDER, settings.dataset_dir, settings.cache_dir]
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while not files(settings, trigger) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    samples = list_samples("large", "bottle", settings)
    assert equal_to_direct_decoding(
        open_decoded(samples, Geometry(512), settings), samples, Geometry(512)
    )
    assert files(settings, ".*") == []
    assert len(files(settings)) == 1


def test_what_a_killed_builder_left_is_swept_but_a_living_builders_file_stays(settings):
    open_decoded(samples_of(settings), GEOMETRY, settings)
    folder = files(settings)[0].parent
    (folder / ".dead.123.tmp.arrow").write_bytes(b"half")
    (folder / ".live.123.tmp.arrow").write_bytes(b"half")
    with (folder / "live.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        decoded_folder(settings).make_room()
    assert [path.name for path in files(settings, ".*")] == [".live.123.tmp.arrow"]


@pytest.mark.parametrize("place", [0, 0.02, 0.5, 0.98, -1])
def test_a_flipped_bit_anywhere_is_noticed_and_the_file_built_again(settings, caplog, place):
    samples = samples_of(settings)
    open_decoded(samples, GEOMETRY, settings)
    data = bytearray(files(settings)[0].read_bytes())
    data[int(place * len(data)) if place >= 0 else -1] ^= 4
    files(settings)[0].write_bytes(data)
    assert equal_to_direct_decoding(open_decoded(samples, GEOMETRY, settings), samples)
    assert builds(caplog) == 2
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("damage", ["empty", "truncated", "longer", "no sum", "torn sum"])
def test_a_torn_file_is_built_again(settings, caplog, damage):
    samples = samples_of(settings)
    open_decoded(samples, GEOMETRY, settings)
    path = files(settings)[0]
    data = path.read_bytes()
    if damage == "no sum":
        path.with_suffix(".crc").unlink()
    elif damage == "torn sum":
        path.with_suffix(".crc").write_bytes(b"\xff\x00")
    else:
        path.write_bytes({"empty": b"", "truncated": data[:-100], "longer": data + b"x"}[damage])
    assert equal_to_direct_decoding(open_decoded(samples, GEOMETRY, settings), samples)
    open_decoded(samples, GEOMETRY, settings)
    assert builds(caplog) == 2


def test_a_changed_image_is_a_new_file(settings, caplog):
    samples = samples_of(settings)
    open_decoded(samples, GEOMETRY, settings)
    shutil.copy(samples[1].path, samples[0].path)
    decoded = open_decoded(samples, GEOMETRY, settings)
    assert (decoded.images[0] == decoded.images[1]).all()
    assert builds(caplog) == 2
    masked = [s for s in samples if s.mask_paths]
    shutil.copy(masked[0].mask_paths[0], masked[1].mask_paths[0])
    open_decoded(samples, GEOMETRY, settings)
    assert builds(caplog) == 3


def test_the_file_used_longest_ago_is_evicted_first(settings, tmp_path):
    made = {}
    for category, side in (("bottle", 32), ("wood", 32), ("bottle", 40)):
        before = set(files(settings))
        open_decoded(samples_of(settings, category), Geometry(side), settings)
        made[category, side] = (set(files(settings)) - before).pop()
        time.sleep(0.02)
    open_decoded(
        samples_of(settings), GEOMETRY, settings
    )  # used again, so the wood is the oldest now
    sizes = sum(path.stat().st_size for path in files(settings))
    replace(decoded_folder(settings), limit=sizes - 1).make_room()
    assert set(files(settings)) == {made["bottle", 32], made["bottle", 40]}
    replace(decoded_folder(settings), limit=1).make_room()
    assert files(settings) == []


def test_a_file_in_use_is_never_evicted(settings):
    decoded = open_decoded(samples_of(settings), GEOMETRY, settings)
    nothing = replace(decoded_folder(settings), limit=0)
    nothing.make_room()
    assert len(files(settings)) == 1
    del decoded
    nothing.make_room()
    assert files(settings) == []


def test_the_cache_stays_below_its_limit_over_many_builds(settings):
    size = 13 * 32 * 32 * 4
    small = Settings(
        dataset_dir=settings.dataset_dir, cache_dir=settings.cache_dir, cache_gb=2.5 * size / 1e9
    )
    for side in (28, 29, 30, 31, 32):
        open_decoded(samples_of(small), Geometry(side), small)
        assert sum(path.stat().st_size for path in files(small)) <= 2.5 * size
    assert len(files(small)) == 2


def test_a_limit_smaller_than_the_images_decodes_in_memory(settings, caplog):
    none = Settings(dataset_dir=settings.dataset_dir, cache_dir=settings.cache_dir, cache_gb=0)
    samples = samples_of(none)
    assert equal_to_direct_decoding(open_decoded(samples, GEOMETRY, none), samples)
    assert files(none) == []
    assert "decoded in memory" in caplog.text


def test_deleting_the_cache_in_mid_run_harms_nobody(settings, caplog):
    samples = samples_of(settings)
    decoded = open_decoded(samples, GEOMETRY, settings)
    shutil.rmtree(settings.cache_dir)
    assert equal_to_direct_decoding(decoded, samples)
    assert equal_to_direct_decoding(open_decoded(samples, GEOMETRY, settings), samples)
    assert builds(caplog) == 2


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null/cache", "/sys/kernel/cache"])
def test_a_cache_that_cannot_be_written_decodes_in_memory(settings, caplog, place):
    samples = samples_of(settings)
    elsewhere = Settings(dataset_dir=settings.dataset_dir, cache_dir=place)
    assert equal_to_direct_decoding(open_decoded(samples, GEOMETRY, elsewhere), samples)
    assert "decoded in memory" in caplog.text


@pytest.fixture
def without_write_access():
    """Settings whose cache holds one file and takes no other; root goes on as nobody, whom permissions bind."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)
        write_mvtec(home / "datasets" / "mvtec")
        settings = Settings(dataset_dir=str(home / "datasets"), cache_dir=str(home / "cache"))
        open_decoded(samples_of(settings), GEOMETRY, settings)
        folder, user = home / "cache" / "decoded", os.geteuid()
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        yield settings
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_read_only_cache_still_serves_what_it_holds(without_write_access, caplog):
    settings, samples = without_write_access, samples_of(without_write_access)
    before = files(settings, "*")
    assert equal_to_direct_decoding(open_decoded(samples, GEOMETRY, settings), samples)
    assert "decoded in memory" not in caplog.text
    assert equal_to_direct_decoding(
        open_decoded(samples, Geometry(24), settings), samples, Geometry(24)
    )
    assert "decoded in memory" in caplog.text
    assert files(settings, "*") == before


def test_a_damaged_image_is_an_input_error_and_leaves_no_cache_file(settings):
    samples = samples_of(settings)
    samples[3].path.write_bytes(samples[3].path.read_bytes()[:200])
    with pytest.raises(InputError, match=samples[3].path.name):
        open_decoded(samples, GEOMETRY, settings)
    assert files(settings, "*") == []


def test_a_mask_of_another_size_leaves_no_cache_file(settings):
    samples = samples_of(settings)
    masked = next(s for s in samples if s.mask_paths)
    Image.new("L", (9, 9)).save(masked.mask_paths[0])
    with pytest.raises(InputError, match="9x9"):
        open_decoded(samples, GEOMETRY, settings)
    assert files(settings) == []
    assert files(settings, ".*") == []
