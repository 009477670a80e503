"""Trials under corruptions: scored again without training, stored, and gone on with after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_datasets import write_mvtec
from PIL import Image
from scipy import ndimage

from adray.conditions import KINDS, Corruption
from adray.data.corruptions import corrupt
from adray.data.splits import identity_of
from adray.errors import InputError
from adray.predict import load_predictor
from adray.results.corrupted_scores import (
    corrupted_file,
    lacking_corruptions,
    read_corrupted,
    stored_corruptions,
)
from adray.results.store import read_trial
from adray.settings import DataOptions, set_globals
from adray.stress import open_test_images, stress_trial
from adray.train import train

MILD = Corruption("gamma", 1)
STRONG = Corruption("noise", 5)
MOVE = Corruption("shift", 5)


@pytest.fixture
def trial(tmp_path):
    """Train a toy on twenty images of 40 pixels that are seen at 32."""
    write_mvtec(tmp_path / "datasets" / "mvtec", ("bottle",), train=10, good=5, defects=6, size=40)
    set_globals(plugins=("toy_plugin",))
    return toy()


def toy(name="toy-ok", **more):
    train_config = {"img_size": 40, "crop_size": 32, "batch_size": 4, **more}
    return Path(train("mvtec", "bottle", name, seed=1, train=train_config)["folder"])


def plain_of(folder):
    table = pd.read_parquet(folder / "scores.parquet")
    return table[table["split"] == "test"].reset_index(drop=True)


def under(folder, corruption):
    return pd.read_parquet(corrupted_file(folder, corruption))


def test_each_corruption_is_a_file_of_all_test_images_in_the_order_of_the_plain_scores(trial):
    stress_trial(trial, [MILD, STRONG])
    plain = plain_of(trial)
    for corruption in (MILD, STRONG):
        table = under(trial, corruption)
        for column in ("path", "label", "defect_type", "category"):
            assert list(table[column]) == list(plain[column])
        assert not table["is_gone"].any()
    assert stored_corruptions(trial) == [MILD, STRONG]


def test_the_score_is_that_of_the_picture_that_pillow_and_the_model_make_one_by_one(trial):
    """Decoded, resized, corrupted, cropped and normalised again here, image by image."""
    stress_trial(trial, [STRONG, MOVE])
    trainer = load_predictor(trial, "cpu").trainer
    for corruption in (STRONG, MOVE):
        table = under(trial, corruption)
        for row in table.itertuples():
            image = np.asarray(Image.open(row.path).convert("RGB").resize((40, 40)))
            name = f"mvtec/bottle/{Path(row.path).relative_to(trial_data(row.path).parent)}"
            moved = corrupt(np.moveaxis(image, 2, 0), None, corruption, name).pixels[:, 4:36, 4:36]
            score = float(trainer.model(torch.from_numpy(moved.copy())[None] / 255).pred_score[0])
            assert row.pred_score == pytest.approx(score, rel=1e-5)


def trial_data(path):
    """Give the folder of the category, from which images are named."""
    return next(parent for parent in Path(path).parents if parent.name == "bottle")


def test_the_images_as_they_are_get_the_scores_of_the_trial(trial, monkeypatch):
    """Only the change itself is taken away: all else is the way of every corruption."""
    from adray.data.corruptions import CorruptedImage

    def nothing(pixels, mask, corruption, name):
        return CorruptedImage(pixels, mask)

    monkeypatch.setattr("adray.stress.corrupt", nothing)
    stress_trial(trial, [STRONG])
    assert list(under(trial, STRONG)["pred_score"]) == list(plain_of(trial)["pred_score"])


def oblong_trial(tmp_path, roi=None, **train_config):
    """Train a toy on images that are no squares, of two sizes."""
    home = tmp_path / "datasets" / "mvtec"
    write_mvtec(home, ("bottle",), train=10, good=5, defects=6, size=40)
    for number, path in enumerate(sorted((home / "bottle").rglob("*.png"))):
        size = (60, 33) if number % 2 else (44, 40)
        with Image.open(path) as image:
            image.resize(size).save(path)
    for mask in (home / "bottle" / "ground_truth").rglob("*.png"):
        image = (
            home / "bottle" / "test" / mask.parent.name / f"{mask.stem.removesuffix('_mask')}.png"
        )
        with Image.open(mask) as drawn, Image.open(image) as of_image:
            drawn.convert("L").resize(of_image.size).save(mask)
    data = {"mvtec": DataOptions(roi=roi)} if roi else {}
    set_globals(plugins=("toy_plugin",), data=data)
    return toy(**train_config)


GEOMETRIES = [
    ({"fit": "pad", "crop_size": None}, None),
    ({"fit": "crop"}, None),
    ({"fit": "pad"}, [0.2, 0.1, 0.7, 0.9]),
    ({"fit": "squeeze", "crop_size": None}, [0.2, 0.1, 0.7, 0.9]),
]


@pytest.mark.parametrize(("train_config", "roi"), GEOMETRIES)
def test_images_with_room_around_them_or_a_region_get_the_scores_of_the_trial(
    tmp_path, monkeypatch, train_config, roi
):
    from adray.data.corruptions import CorruptedImage

    def nothing(pixels, mask, corruption, name):
        return CorruptedImage(pixels, mask)

    folder = oblong_trial(tmp_path, roi, **train_config)
    monkeypatch.setattr("adray.stress.corrupt", nothing)
    stress_trial(folder, [STRONG, MOVE])
    wanted = plain_of(folder)["pred_score"].to_numpy()
    # A pixel at the edge of a region is rounded once more.
    allowed = 0.0 if roi is None else 1.5 / 255
    for corruption in (STRONG, MOVE):
        found = under(folder, corruption)["pred_score"].to_numpy()
        assert np.abs(found - wanted).max() <= allowed


@pytest.mark.parametrize(("train_config", "roi"), GEOMETRIES)
def test_what_does_not_count_is_never_changed_and_never_reaches_what_counts(
    tmp_path, train_config, roi
):
    folder = oblong_trial(tmp_path, roi, **train_config)
    trainer = load_predictor(folder, "cpu").trainer
    images = open_test_images(read_trial(folder), trainer)
    unseen = np.array([124, 116, 104])
    for number in range(len(images.samples)):
        for kind in ("noise", "brightness", "shift", "defocus"):
            seen = images.read(number, Corruption(kind, 5))
            if seen.inside is None:
                continue
            far = ~ndimage.binary_dilation(seen.inside, iterations=2)
            assert (seen.pixels[:, far] == unseen[:, None]).all()
            if seen.mask is not None:
                assert not seen.mask[~seen.inside].any()


def test_large_images_are_corrupted_whole_and_then_cut_into_tiles(tmp_path, monkeypatch):
    from adray.data.corruptions import CorruptedImage

    tiles = {"fit": "squeeze", "crop_size": None, "img_size": 32, "tile": 32}
    folder = oblong_trial(tmp_path, **tiles)
    stress_trial(folder, [STRONG, MOVE])
    trainer = load_predictor(folder, "cpu").trainer
    images = open_test_images(read_trial(folder), trainer)
    for number, score in enumerate(under(folder, MOVE)["pred_score"]):
        pixels = np.asarray(Image.open(images.samples[number].path).convert("RGB"))
        name = identity_of(images.samples[number])
        moved = corrupt(np.moveaxis(pixels, 2, 0), None, MOVE, name).pixels
        (outcome,) = load_predictor(folder, "cpu").predict([np.moveaxis(moved, 0, 2)])
        assert score == pytest.approx(outcome.pred_score, rel=1e-5)

    def nothing(pixels, mask, corruption, name):
        return CorruptedImage(pixels, mask)

    monkeypatch.setattr("adray.stress.corrupt", nothing)
    corrupted_file(folder, STRONG).unlink()
    stress_trial(folder, [STRONG])
    wanted = plain_of(folder)["pred_score"].to_numpy()
    assert under(folder, STRONG)["pred_score"].to_numpy() == pytest.approx(wanted, rel=1e-5)


def test_scores_depend_on_neither_order_nor_batch_nor_threads(trial):
    stress_trial(trial, [STRONG, MOVE])
    first = [under(trial, one) for one in (STRONG, MOVE)]
    for one in (STRONG, MOVE):
        corrupted_file(trial, one).unlink()
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        stress_trial(trial, [MOVE, MILD, STRONG])
    finally:
        torch.set_num_threads(threads)
    for before, one in zip(first, (STRONG, MOVE), strict=True):
        pd.testing.assert_frame_equal(before, under(trial, one))


def test_a_run_that_was_stopped_goes_on_where_it_was(trial):
    said = []

    def stop(corruption, number, total):
        said.append((corruption, number, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stress_trial(trial, [MILD, STRONG], done=stop)
    before = corrupted_file(trial, MILD).stat().st_mtime_ns
    stress_trial(trial, [MILD, STRONG], done=lambda *known: said.append(known))
    assert said == [(MILD, 1, 2), (STRONG, 2, 2)]
    assert corrupted_file(trial, MILD).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other trial", "other version", "nan"])
def test_a_file_that_does_not_count_is_made_again(trial, damage):
    import pyarrow as pa
    from pyarrow import parquet

    stress_trial(trial, [MILD])
    record = read_trial(trial)
    file = corrupted_file(trial, MILD)
    wanted = under(trial, MILD)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("가나다")
    elif damage == "nan":
        table = parquet.read_table(file)
        scores = pa.array([float("nan")] * len(table))
        place = table.column_names.index("pred_score")
        parquet.write_table(table.set_column(place, "pred_score", scores), file)
    else:
        table = parquet.read_table(file)
        version, trial_id = table.schema.metadata[b"adray_stress"].decode().split()
        about = f"{version} {'0' * 64}" if damage == "other trial" else f"0 {trial_id}"
        parquet.write_table(table.replace_schema_metadata({b"adray_stress": about}), file)

    assert read_corrupted(record, MILD) is None
    assert lacking_corruptions(record, [MILD]) == (MILD,)
    stress_trial(trial, [MILD])
    pd.testing.assert_frame_equal(under(trial, MILD), wanted)


def test_a_defect_that_left_the_picture_is_marked_and_no_normal_image_ever_is(tmp_path):
    home = tmp_path / "datasets" / "mvtec"
    write_mvtec(home, ("bottle",), train=10, good=5, defects=8, size=40)
    # Every defect becomes one pixel at the very edge.
    for mask in (home / "bottle" / "ground_truth").rglob("*.png"):
        pixels = np.zeros((40, 40), np.uint8)
        pixels[0, 20] = 255
        Image.fromarray(pixels).save(mask)
    set_globals(plugins=("toy_plugin",))
    folder = toy(crop_size=None)
    stress_trial(folder, [MOVE])
    table = under(folder, MOVE)
    assert 0 < table["is_gone"].sum() < 8
    assert not table[table["label"] == 0]["is_gone"].any()


def test_a_defect_that_the_crop_cuts_off_anyway_has_not_left(trial):
    record = read_trial(trial)
    trainer = load_predictor(trial, "cpu").trainer
    images = open_test_images(record, trainer)
    for number, sample in enumerate(images.samples):
        mask = np.zeros((40, 40), np.uint8)
        if sample.mask_paths:
            mask = np.asarray(Image.open(sample.mask_paths[0]).resize((40, 40)))
        assert images.is_seen(number) == bool(mask[4:36, 4:36].any())


def test_changed_images_are_refused_before_a_file_is_written(trial):
    image = Path(plain_of(trial)["path"][0])
    Image.new("RGB", (40, 40), "red").save(image)
    with pytest.raises(InputError, match="changed since"):
        stress_trial(trial, [MILD])
    assert not (trial / "stress").exists()


def test_what_is_no_tested_trial_is_refused_with_its_name(trial, tmp_path):
    with pytest.raises(InputError, match="no finished trial"):
        stress_trial(tmp_path, [MILD])
    whole = json.loads((trial / "trial.json").read_text())
    whole["identity"]["evaluation"] = "synthetic"
    (trial / "trial.json").write_text(json.dumps(whole))
    with pytest.raises(InputError, match="drawn on held-out normals"):
        stress_trial(trial, [MILD])


def test_scores_of_a_trial_that_was_trained_again_in_its_folder_do_not_count(trial):
    stress_trial(trial, [MILD])
    assert lacking_corruptions(read_trial(trial), [MILD]) == ()
    again = toy(holdout=2)
    assert again == trial
    assert lacking_corruptions(read_trial(trial), [MILD]) == (MILD,)


def test_every_kind_runs_on_a_trained_model(trial):
    wanted = [Corruption(kind, 2) for kind in KINDS]
    stress_trial(trial, wanted)
    assert stored_corruptions(trial) == wanted
