"""Speed and memory of trials, measured in processes of their own from what the trials left behind."""

from __future__ import annotations

import csv
import io
import logging
import multiprocessing
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_datasets import write_mvtec

from adray.cli.measure import announce, main
from adray.data.decode import decode_file
from adray.errors import InputError
from adray.files import read_json, write_json
from adray.measure import Request, choose_trials, measure_apart, measure_trial, take_turn
from adray.results.measurements import FIELDS, MEASURE_FILE, add_measurement, read_measurements
from adray.results.store import TrialRecord, read_trial
from adray.results.trial_files import find_checkpoint
from adray.settings import get_globals, set_globals
from adray.train import train

FAST = ["--device", "cpu", "--threads", "1", "--repeats", "20", "--seconds", "0.5"]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return tmp_path_factory.mktemp("measure")


@pytest.fixture
def store(built, tmp_path, own_settings, own_registry):
    """A store with two finished trials, of which the second kept no checkpoint; a copy for each test."""
    set_globals(
        dataset_dir=built / "datasets",
        output_dir=built / "store",
        cache_dir=built / "cache",
        plugins=("toy_plugin",),
    )
    if not (built / "store").exists():
        write_mvtec(
            built / "datasets" / "mvtec",
            categories=("bottle",),
            train=10,
            good=3,
            defects=3,
            size=48,
        )
        for name, model in (("padim", {"num_features": 20}), ("toy-ok", {})):
            sizes = {"img_size": 64, "holdout": 0.2, "eval_batch_size": 4}
            folder = Path(
                train("mvtec", "bottle", name, train=sizes, model=model, weights="random")["folder"]
            )
            entries = list(folder.iterdir())
            own = folder / read_json(folder / "trial.json")["id"][:8]
            own.mkdir()
            for entry in entries:
                entry.rename(own / entry.name)
        next((built / "store").glob("mvtec/bottle/toy-ok/*/model_*.pth")).unlink()
    shutil.copytree(built / "store", tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def padim(store):
    """The folder of the trial with a checkpoint; measuring in this process changes its number of threads."""
    threads = torch.get_num_threads()
    yield next(store.glob("mvtec/bottle/padim/*"))
    torch.set_num_threads(threads)


def request_for(folder, **changes):
    return replace(Request(folder, "cpu", 1, 20, 0.5, get_globals()), **changes)


def test_a_store_becomes_a_table_and_a_trial_without_checkpoint_a_line_with_its_reason(
    store, padim, capsys
):
    assert main([str(store), *FAST]) == 0
    out = capsys.readouterr().out
    assert "toy-ok" in out
    assert "the trial kept no checkpoint; set keep: all" in out
    (found,) = read_measurements(padim)
    assert set(found) == set(FIELDS)
    assert 0 < found["latency_p5_ms"] <= found["latency_ms"] <= found["latency_p95_ms"]
    assert 0 < found["file_p5_ms"] <= found["file_ms"] <= found["file_p95_ms"]
    assert (
        0
        < found["images_per_second_p5"]
        <= found["images_per_second"]
        <= found["images_per_second_p95"]
    )
    assert found["best_images_per_second"] >= found["images_per_second"]
    assert found["batch_size"] == 4
    assert 5 <= found["latency_repeats"] <= 20
    assert (found["kind"], found["threads"], found["gpu_peak_mb"]) == ("cpu", 1, None)
    assert f"{found['latency_ms']:.2f}" in out


def test_memory_is_that_of_the_model_and_not_of_this_process(padim):
    ballast = bytearray(600 * 2**20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    found = measure_apart(request_for(padim))
    result = read_json(padim / "result.json")
    assert found["parameters"] == result["parameters"]
    assert found["host_peak_mb"] >= found["host_base_mb"] + 4 * result["parameters"] / 2**20
    assert found["host_peak_mb"] < found["host_base_mb"] + 500
    assert found["model_mb"] >= 4 * result["parameters"] / 2**20
    assert found["checkpoint_mb"] == pytest.approx(
        find_checkpoint(padim).stat().st_size / 2**20, abs=1e-3
    )
    del ballast


@pytest.mark.gpu
def test_on_a_gpu_its_own_memory_is_reported(padim):
    found = measure_apart(request_for(padim, device="cuda"))
    assert found["kind"] == "cuda"
    assert 0 < found["latency_p5_ms"] <= found["latency_ms"] <= found["latency_p95_ms"]
    assert (
        found["model_mb"]
        <= found["gpu_peak_mb"]
        <= found["gpu_peak_batch_mb"]
        <= found["gpu_reserved_mb"]
    )
    assert found["gpu_other_mb"] > 0


def test_a_newer_measurement_replaces_that_of_the_same_device_and_threads(tmp_path):
    one = {"kind": "cpu", "device": "a", "threads": 1, "latency_ms": 5.0}
    for row in (one, {**one, "threads": 2}, {**one, "latency_ms": 4.0}):
        add_measurement(tmp_path, row)
    assert [(row["threads"], row["latency_ms"]) for row in read_measurements(tmp_path)] == [
        (2, 5.0),
        (1, 4.0),
    ]


@pytest.mark.parametrize(
    "content", ["", '{"measurements": [{"kind"', "[1, 2]", '{"measurements": 3}', '{"a": 1}']
)
def test_a_torn_file_counts_as_absent_and_is_replaced(tmp_path, content):
    (tmp_path / MEASURE_FILE).write_text(content)
    assert read_measurements(tmp_path) == []
    add_measurement(tmp_path, {"kind": "cpu", "device": "a", "threads": 1})
    assert len(read_measurements(tmp_path)) == 1


def test_measuring_again_leaves_one_measurement_and_the_trial_as_it_was(padim, capsys):
    before = {path.name: path.read_bytes() for path in padim.iterdir()}
    for _ in range(2):
        assert main([str(padim), "--format", "csv", *FAST]) == 0
    (found,) = read_measurements(padim)
    row = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))[-1]
    assert set(row) == set(FIELDS) - {"versions"} | {
        "dataset",
        "category",
        "configuration",
        "id8",
        "reason",
    }
    assert float(row["latency_ms"]) == found["latency_ms"]
    after = {path.name: path.read_bytes() for path in padim.iterdir() if path.name != MEASURE_FILE}
    assert after == before
    assert read_trial(padim).status == "done"


def test_a_damaged_checkpoint_is_a_reason_and_the_exit_code_says_so(store, padim, capsys):
    find_checkpoint(padim).write_bytes(b"PK torn")
    assert main([str(store), "--only", "mvtec/bottle/padim", *FAST]) == 1
    assert "is damaged or holds more than tensors" in capsys.readouterr().out
    assert not (padim / MEASURE_FILE).exists()


def test_what_differs_from_the_training_is_a_reason_or_accepted_as_a_warning(padim):
    trial = read_json(padim / "trial.json")
    trial["identity"]["versions"]["core"] += 1
    write_json(padim / "trial.json", trial)

    assert "--accept-other-weights" in measure_apart(request_for(padim))["reason"]
    row = measure_apart(request_for(padim, accept_other_weights=True))
    assert any("accepted: " in warning and "(core)" in warning for warning in row["warnings"])


def test_decoding_counts_from_a_file_and_not_in_the_latency(padim, monkeypatch):
    def slowly(*arguments):
        time.sleep(0.5)
        return decode_file(*arguments)

    monkeypatch.setattr("adray.predictor.decode_file", slowly)
    row = measure_trial(request_for(padim))
    assert row["latency_ms"] < 500 < row["file_ms"]


def test_without_its_test_images_noise_is_measured_and_that_is_said(padim):
    (padim / "scores.parquet").unlink()
    found = measure_trial(request_for(padim))
    assert found["latency_ms"] > 0
    assert found["file_ms"] is None
    assert any("noise was measured" in warning for warning in found["warnings"])


def test_work_of_other_processes_is_recorded_as_a_warning(padim):
    neighbour = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    neighbour.start()
    try:
        found = measure_trial(request_for(padim, repeats=10_000, seconds=1.0))
    finally:
        neighbour.kill()
        neighbour.join()
    assert found["other_cores"] > 0.3
    assert any("other processes kept" in warning for warning in found["warnings"]) == (
        found["other_cores"] > 0.5
    )


def spin():
    until = time.monotonic() + 120
    while time.monotonic() < until:
        pass


def test_measurements_of_one_machine_take_turns(tmp_path):
    order = []

    def second():
        with take_turn(tmp_path):
            order.append("second")

    with take_turn(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        order.append("first")
    waiting.join(60)
    assert order == ["first", "second"]


def test_of_trials_of_one_shape_those_with_other_memory_banks_are_measured(tmp_path):
    def record(name, size, **identity):
        folder = tmp_path / name
        folder.mkdir()
        if size:
            (folder / "model_a.pth").write_bytes(b"x" * size)
        about = {"configuration": "padim", "model": {}, "train": {"img_size": 256}, **identity}
        return TrialRecord(folder, {"id": name, "identity": about}, {"metrics": {}}, None)

    records = [
        record("aaa", 10_000),
        record("bbb", 10_100),
        record("ccc", 20_000),
        record("ddd", 10_000, train={"img_size": 512}),
        record("eee", 0, configuration="stfpm"),
        record("fff", 0, configuration="stfpm"),
    ]
    assert [r.folder.name for r in choose_trials(records)] == ["aaa", "ccc", "ddd", "eee"]
    assert len(choose_trials(records, every=True)) == 6
    assert not choose_trials([replace(records[0], result=None)])


@pytest.mark.parametrize(("load", "is_said"), [(14.0, True), (0.2, False), (None, False)])
def test_a_measurement_says_first_how_long_it_takes_at_most_and_that_the_machine_is_busy(
    monkeypatch, caplog, load, is_said
):
    monkeypatch.setattr("adray.cli.measure.load_average", lambda: load)
    with caplog.at_level(logging.INFO, "adray.cli.measure"):
        announce(6, 10.0)
    first, *rest = [record.getMessage() for record in caplog.records]
    assert first == "6 measurements, 4 minutes at most"
    assert bool(rest) == is_said
    assert all("load 14.0" in line for line in rest)


def test_what_cannot_be_measured_is_named(store, tmp_path):
    with pytest.raises(InputError, match="does not exist; name the output_dir"):
        main([str(tmp_path / "gone")])
    with pytest.raises(InputError, match="no finished trial that matches --only \\*/nothing"):
        main([str(store), "--only", "*/nothing"])
    with pytest.raises(InputError, match="--threads is 0"):
        main([str(store), "--threads", "0"])
