from __future__ import annotations

import shutil
import struct
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from fake_datasets import write_mvtec

from adray import file_system
from adray.__main__ import main
from adray.components.feature_extractor import build_resnet
from adray.config import GridConfig, SweepConfig, build
from adray.files import read_json, write_json
from adray.job import Job
from adray.registry import ModelRegistry
from adray.results import store
from adray.results.store import partial_folder, publish
from adray.settings import Settings, absolute_settings
from adray.sweep import preflight
from adray.sweep.plan import Plan, PlannedTrial, make_plan
from adray.sweep.preflight import check_site, predicted_disk_mb
from adray.sweep.sweep import RunOptions, Sweep
from adray.trial import open_loaders


@pytest.fixture
def values(tmp_path):
    """A sweep of one toy model over two categories, as a mapping."""
    write_mvtec(
        tmp_path / "datasets" / "mvtec",
        categories=("bottle", "wood"),
        train=4,
        good=2,
        defects=2,
        size=32,
    )
    return {
        "name": "s",
        "save_maps": 0,
        "settings": {
            "dataset_dir": str(tmp_path / "datasets"),
            "output_dir": str(tmp_path / "outputs"),
            "cache_dir": str(tmp_path / "cache"),
            "backbone_dir": str(tmp_path / "backbones"),
            "plugins": ["toy_plugin"],
        },
        "grid": {"models": ["toy-ok"], "datasets": {"mvtec": "each"}},
    }


def planned(values):
    config = build(SweepConfig, values, "")
    settings = absolute_settings(config.settings)
    return make_plan(config, settings), config, settings


@pytest.fixture
def check(values, tmp_path, capsys):
    """Run the command on the mapping; exit code, output and errors."""

    def run(*options):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(values))
        code = main(["check", str(tmp_path / "s.yaml"), *options])
        return code, *capsys.readouterr()

    return run


def test_a_sweep_that_lacks_nothing_is_ready_and_leaves_no_trace(check, tmp_path):
    code, out, errors = check()
    assert code == 0
    assert "problem" not in errors  # a busy machine has a line of progress there
    assert "2 trials: 0 done, 0 cannot run" in out
    assert "ready" in out
    assert not (tmp_path / "outputs").exists()


def test_weights_that_are_not_the_published_ones_are_said_before_anything_runs(
    check, values, tmp_path
):
    values["weights"] = "pretrained"
    values["settings"]["backbone_dir"] = str(tmp_path / "own")
    (tmp_path / "own").mkdir()
    torch.save(build_resnet("resnet18", ["layer4"]).state_dict(), tmp_path / "own/resnet18.pth")
    values["grid"]["models"] = ["padim"]
    code, out, _ = check()
    assert code == 0
    assert "weights of 'resnet18' are not the published ones" in out


def test_everything_that_is_missing_is_said_at_once_with_its_place_size_and_source(check, values):
    values["grid"] = {
        "models": ["padim", "patchcore", "winclip"],
        "datasets": {"mvtec": ["bottle"], "visa": "each"},
    }
    code, _, errors = check()
    assert code == 2
    lines = errors.splitlines()
    lines = [line for line in lines if not line.startswith(("looking at", "opening", "reading"))]
    assert all(line.startswith("problem: ") for line in lines)
    weights = (
        "resnet18-f37072fd.pth (45 MB, sha256 f37072fd",
        "wide_resnet50_2-95faca4d.pth",
        "clip_vit_b_16",
    )
    for words in (*weights, "visa"):
        assert sum(words in line for line in lines) == 1, words


def test_only_a_full_look_decodes_pixels(check, tmp_path):
    """A PNG whose checksums hold but whose pixels are rubbish passes the quick look."""
    image = next((tmp_path / "datasets" / "mvtec" / "wood" / "train" / "good").iterdir())
    image.write_bytes(rubbish_png())
    assert check()[0] == 0
    code, _, errors = check("--full")
    assert code == 2
    assert f"{image}: the image is damaged" in errors


def rubbish_png() -> bytes:
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)),
        (b"IDAT", b"no pixels"),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_full_disk_is_known_before_anything_starts(values, monkeypatch):
    values["grid"]["models"] = ["draem"]  # 1.1 GB each, with Adam's two moments
    plan, config, settings = planned(values)
    assert predicted_disk_mb(plan, config) == pytest.approx(2 * 1120.0)
    monkeypatch.setattr(file_system, "free_bytes", lambda _: 150 * 2**20)
    problems, _ = check_site(plan, config, settings)
    assert len(problems) == 1
    assert "needs about 2.2 GB" in problems[0]
    assert "keep: none" in problems[0]
    without = build(SweepConfig, values | {"keep": "none"}, "")
    assert check_site(plan, without, settings)[0] == []


def test_checkpoints_in_the_store_say_how_large_the_next_ones_will_be(values):
    plan, config, settings = planned(values)
    done = plan.trials[0]
    partial = partial_folder(done.folder)
    write_json(partial / "trial.json", {"id": done.id8, "identity": done.identity})
    write_json(partial / "result.json", {})
    (partial / "model_a.pth").write_bytes(b"x" * 3 * 2**20)
    publish(partial, done.folder)
    assert predicted_disk_mb(make_plan(config, settings), config) == pytest.approx(3.0)


def test_a_folder_that_cannot_be_written_is_named_with_its_setting(values, tmp_path):
    (tmp_path / "outputs").write_text("a file")
    problems, _ = check_site(*planned(values))
    assert len(problems) == 1
    assert f"settings.output_dir {tmp_path / 'outputs'} cannot be written" in problems[0]


def test_a_cache_that_cannot_be_written_stops_nothing(values, tmp_path):
    plan, config, settings = planned(values)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (tmp_path / "cache").write_text("a file")
    problems, remarks = check_site(plan, config, settings)
    assert problems == []
    assert any("settings.cache_dir" in remark and "decoded anew" in remark for remark in remarks)


def test_too_little_memory_is_remarked_on(values, monkeypatch):
    monkeypatch.setattr(preflight, "available_memory", lambda: 100)
    _, remarks = check_site(*planned(values))
    assert any(remark.startswith("toy-ok takes about") for remark in remarks)


def test_what_a_bank_keeps_while_it_fits_is_said_before_and_too_much_is_refused(
    values, monkeypatch
):
    def keep(config, train_config, images):
        return images * 10**9

    plan, config, settings = planned(values)
    monkeypatch.setattr(ModelRegistry.trainer_class("toy-ok"), "fit_bytes", staticmethod(keep))
    monkeypatch.setattr(preflight, "available_memory", lambda: 10**15)
    images = max(trial.training.images for trial in plan.trials)
    problems, remarks = check_site(plan, config, settings)
    assert images > 0
    assert not problems
    assert any(f"while it fits: {images}.0 GB at most, on " in remark for remark in remarks)

    monkeypatch.setattr(preflight, "available_memory", lambda: 10**9)
    problems, _ = check_site(plan, config, settings)
    assert any("this machine has 1; set a smaller img_size" in problem for problem in problems)


def test_what_a_bank_keeps_of_images_in_tiles_is_counted_by_tile(values, monkeypatch):
    asked = []

    def keep(config, train_config, pieces):
        asked.append(pieces)
        return 0

    values["overrides"] = {"toy-ok": {"train": {"tile": 32, "scale": 2.0}}}
    plan, config, settings = planned(values)
    monkeypatch.setattr(ModelRegistry.trainer_class("toy-ok"), "fit_bytes", staticmethod(keep))
    check_site(plan, config, settings)
    opened = []
    for trial in plan.trials:
        opened.append(len(open_loaders(trial.job, "cpu").train.samples))
    assert asked == opened
    assert min(asked) > 3 * max(trial.training.images for trial in plan.trials)


def test_a_folder_is_tried_out_where_it_will_be_and_nothing_stays_of_it(tmp_path):
    missing = tmp_path / "a" / "b"
    found = preflight._tried(str(missing))
    assert found.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)
    assert list(tmp_path.iterdir()) == []


def test_cells_that_are_one_folder_where_case_is_not_told_apart_start_nothing(values, monkeypatch):
    plan, config, settings = planned(values)
    small, *_ = plan.trials
    large = replace(small, job=replace(small.job, categories=("Bottle",)))
    both = replace(plan, trials=(small, large))
    assert check_site(both, config, settings)[0] == []
    folds = replace(file_system.ORDINARY, kind="cifs", tells_case=False, free_bytes=10**12)
    monkeypatch.setattr(preflight, "probe", lambda _: folds)
    (problem,) = check_site(both, config, settings)[0]
    assert "mvtec/bottle/toy-ok and mvtec/Bottle/toy-ok are one folder on cifs" in problem


def test_what_a_file_system_lacks_is_said_once_for_the_store_and_once_for_the_cache(
    values, monkeypatch
):
    lacking = replace(
        file_system.ORDINARY,
        kind="fuse.s3fs",
        moves_folders=False,
        syncs_folders=False,
        locks=False,
        free_bytes=10**12,
    )
    monkeypatch.setattr(preflight, "probe", lambda _: lacking)
    problems, remarks = check_site(*planned(values))
    assert problems == []
    said = [remark for remark in remarks if "fuse.s3fs" in remark]
    assert [remark.split(":")[0] for remark in said] == [
        "store on fuse.s3fs",
        "store on fuse.s3fs",
        "cache on fuse.s3fs",
    ]
    assert "file by file" in said[0]
    assert "flushes no folder" in said[1]
    assert "no locks" in said[2]


def test_a_planned_trial_that_another_user_has_closed_starts_nothing(values, monkeypatch):
    plan, *_ = planned(values)
    closed = plan.trials[0].folder
    closed.mkdir(parents=True)

    def refuse(path, *arguments, **options):
        if Path(path).parent == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *arguments, **options)  # noqa: PTH123

    monkeypatch.setattr(store, "open", refuse, raising=False)
    again, _, _ = planned(values)
    assert [trial.state for trial in again.trials] == ["impossible", "new"]
    (problem,) = again.problems
    assert str(closed) in problem
    assert "chmod" in problem


def test_a_store_says_what_it_was_opened_with(values):
    plan, config, settings = planned(values)
    Sweep(config, settings, RunOptions(), plan).open_store()
    header = read_json(Path(settings.output_dir) / "store.json")
    assert header["file_system"] == asdict(file_system.file_system_of(Path(settings.output_dir)))
    assert header["adray"]
    assert header["host"]
    assert header["opened"]


def test_a_cache_that_is_too_small_is_remarked_on_with_both_sizes(tmp_path):
    job = Job(ModelRegistry.resolve("padim"), ("mvtec",), ("bottle",), 1)
    trials = [PlannedTrial(replace(job, seed=seed), "new", images=1000) for seed in (1, 2)]
    assert (
        preflight.predicted_cache_mb(trials) == 1000 * 256 * 256 * 4 / 2**20
    )  # once for both seeds
    plan = Plan(tuple(trials), ())
    config = SweepConfig("s", GridConfig({"mvtec": "each"}))
    tight = Settings(output_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), cache_gb=0.1)
    assert any(
        "250 MB" in remark and "95 MB" in remark for remark in check_site(plan, config, tight)[1]
    )
    assert not any(
        "decoded" in remark for remark in check_site(plan, config, replace(tight, cache_gb=1.0))[1]
    )
