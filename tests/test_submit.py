"""What is sent to the server of MVTec AD 2, read back with other programs than wrote it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from fake_datasets import save, write_mvtec
from PIL import Image

from adray import submit
from adray.__main__ import main
from adray.data.geometry import Geometry
from adray.errors import InputError
from adray.files import canonical_hash, write_json
from adray.predict import Outcome
from adray.predictor import map_of_image
from adray.results.store import read_store
from adray.settings import get_globals
from adray.train import train

COUNTS = {"can": 3, "rice": 2}
WIDTH, HEIGHT = 48, 32


class ToyPredictor:
    """Maps whose pixels are grey levels of the image, shrunk to 8 pixels, far from 0."""

    def __init__(self, factor=1e6):
        self.accepted = ()
        self.factor = factor

    def predict(self, paths):
        for path in paths:
            with Image.open(path) as image:
                grey = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX))
            yield Outcome(str(path), 1.0, (self.factor + grey).astype(np.float32))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A store with a finished trial of each category, and the private images."""
    monkeypatch.setattr(submit, "PRIVATE_IMAGES", COUNTS)
    monkeypatch.setattr(submit, "load_predictor", lambda folder, device, **_: ToyPredictor())
    root = Path(get_globals().dataset_dir) / "mvtec"
    store = tmp_path / "store"
    for place, (category, count) in enumerate(COUNTS.items()):
        write_mvtec(root, (category,), train=4, size=32)
        for folder, ending in submit.PRIVATE_SETS.items():
            for number in range(count):
                path = root / category / folder / f"{number:03d}_{ending}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng([place, number])
                Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
        make_trial(store, category)
    return store


def make_trial(store, category, configuration="padim", elsewhere=False):
    identity = {
        "configuration": configuration,
        "datasets": ["mvtec"],
        "categories": [category],
        "seed": 42,
    }
    key = canonical_hash(identity)
    folder = store / "mvtec" / category / configuration / key[:8]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "trial.json", {"id": key, "identity": identity})
    write_json(folder / "result.json", {"metrics": {}})
    (folder / "model_x.pth").write_bytes(b"weights")
    root = Path("/gone") if elsewhere else Path(get_globals().dataset_dir) / "mvtec"
    rows = {
        "dataset": "mvtec",
        "category": category,
        "split": "holdout",
        "path": [str(root / category / "train" / "good" / f"{i:03d}.png") for i in range(2)],
        "label": 0,
        "pred_score": 0.1,
    }
    pd.DataFrame(rows).to_parquet(folder / "scores.parquet")
    return key[:8]


def ids(store):
    return [record.id8 for record in read_store(store)]


def contents(path):
    """The files of an archive."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            found[member.name] = archive.extractfile(member).read()
    return found


def test_the_published_numbers_are_those_of_the_paper():
    assert sum(submit.PRIVATE_IMAGES.values()) == 2045
    assert len(submit.PRIVATE_IMAGES) == 8


def test_both_trees_hold_a_file_for_every_private_image(site, capsys):
    assert main(["submit", str(site), *ids(site), "--to", "AD2"]) == 0
    assert "10 images of 2 categories" in capsys.readouterr().out
    names = set(contents(site / "submission_AD2.tar.gz"))
    expected = set()
    for category, count in COUNTS.items():
        for folder, ending in (("test_private", "regular"), ("test_private_mixed", "mixed")):
            for number in range(count):
                place = f"{category}/{folder}/{number:03d}_{ending}"
                expected |= {f"anomaly_images/{place}.tiff"}
                expected |= {f"anomaly_images_thresholded/{place}.png"}
    assert names == expected


def test_maps_are_float16_of_the_image_s_size_and_keep_the_order_of_the_model_s(site):
    submit.write_submission(submit.plan_submission(site, ids(site)), site / "s.tar.gz", "cpu")
    found = contents(site / "s.tar.gz")
    read = tifffile.imread(io.BytesIO(found["anomaly_images/can/test_private/001_regular.tiff"]))
    assert (read.dtype, read.shape) == (np.float16, (HEIGHT, WIDTH))

    # A million above 0, float16 would be infinite everywhere.
    path = Path(get_globals().dataset_dir) / "mvtec/can/test_private/001_regular.png"
    (outcome,) = ToyPredictor(factor=0).predict([path])
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(outcome.anomaly_map)[None, None], (HEIGHT, WIDTH), mode="bilinear"
    )[0, 0].numpy()
    assert np.corrcoef(read.ravel().astype(float), enlarged.ravel())[0, 1] > 0.999


def test_pixels_above_mean_and_three_deviations_of_the_held_out_normals_are_255(site):
    submit.write_submission(submit.plan_submission(site, ids(site)), site / "s.tar.gz", "cpu")
    found = contents(site / "s.tar.gz")

    root = Path(get_globals().dataset_dir) / "mvtec/can"
    held_out = ToyPredictor().predict([root / f"train/good/00{i}.png" for i in range(2)])
    pixels = np.stack([outcome.anomaly_map for outcome in held_out]).astype(np.float64)
    threshold = pixels.mean() + 3 * pixels.std()
    (outcome,) = ToyPredictor().predict([root / "test_private/000_regular.png"])
    whole = map_of_image(outcome.anomaly_map, None, WIDTH, HEIGHT)

    png = Image.open(
        io.BytesIO(found["anomaly_images_thresholded/can/test_private/000_regular.png"])
    )
    verdicts = np.asarray(png)
    assert (png.mode, verdicts.shape) == ("L", (HEIGHT, WIDTH))
    assert set(np.unique(verdicts)) <= {0, 255}
    clear = np.abs(whole - threshold) > 0.01 * pixels.std()
    assert ((verdicts == 255) == (whole > threshold))[clear].all()


def test_what_a_crop_does_not_see_is_as_normal_as_the_mean():
    inner = np.full((8, 8), 5.0, np.float32)
    whole = map_of_image(inner, Geometry(16, 8).place(20, 40), 40, 20)
    expected = np.zeros((20, 40))
    expected[5:15, 10:30] = 5
    np.testing.assert_allclose(whole, expected, rtol=1e-6)


def test_smaller_maps_keep_the_image_s_shape_and_verdicts_its_size(site):
    parts = submit.plan_submission(site, ids(site))
    submit.write_submission(parts, site / "s.tar.gz", "cpu", map_side=24)
    found = contents(site / "s.tar.gz")
    tiff = tifffile.imread(io.BytesIO(found["anomaly_images/can/test_private/000_regular.tiff"]))
    png = Image.open(
        io.BytesIO(found["anomaly_images_thresholded/can/test_private/000_regular.png"])
    )
    assert tiff.shape == (16, 24)
    assert png.size == (WIDTH, HEIGHT)


def test_everything_that_is_missing_is_named_at_once_and_nothing_is_written(site, capsys):
    root = Path(get_globals().dataset_dir) / "mvtec"
    (root / "can/test_private/001_regular.png").unlink()
    can = [record.id8 for record in read_store(site) if "can" in record.identity["categories"]]
    other = make_trial(site, "can", "stfpm")
    assert main(["submit", str(site), *can, other, "--to", "AD2"]) == 2
    said = capsys.readouterr().err
    assert "no trial of rice" in said
    assert f"several trials of can: {can[0]}, {other}" in said
    assert "has 2 of 3 images, missing 001_regular.png" in said
    assert not list(site.glob("*.gz*"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root, folder: (folder / "model_x.pth").unlink(), "kept no checkpoint"),
        (lambda root, folder: (folder / "result.json").unlink(), "has no result"),
        (lambda root, folder: (folder / "scores.parquet").unlink(), "cannot be read"),
        (
            lambda root, folder: (root / "can/test_private/002_regular.png").write_bytes(b"no"),
            "002_regular.png cannot be read",
        ),
        (
            lambda root, folder: save(root / "can/test_private/a.png", 0, 32),
            "but its images are called 000_regular.png",
        ),
        (
            lambda root, folder: (root / "can/train/good/000.png").unlink(),
            "held-out images of can are not there",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is_scored(spoil, words, site, monkeypatch):
    monkeypatch.setattr(submit, "load_predictor", None)
    names = ids(site)
    (can,) = (r for r in read_store(site) if r.identity["categories"] == ["can"])
    spoil(Path(get_globals().dataset_dir) / "mvtec", can.folder)
    with pytest.raises(InputError, match=words):
        submit.plan_submission(site, names)


def test_another_data_set_s_trial_is_refused_with_the_categories_there_are(site):
    bottle = make_trial(site, "bottle")
    with pytest.raises(
        InputError, match="is of bottle, which MVTec AD 2 does not have; it has can"
    ):
        submit.plan_submission(site, [*ids(site), bottle])


def test_what_is_not_as_it_was_trained_is_refused_or_accepted_and_said(site, monkeypatch, capsys):
    """The loader itself refuses, see test_predict."""

    def load(folder, device, accept_other_weights):
        if not accept_other_weights:
            raise InputError("resnet18 differs; --accept-other-weights goes on")
        predictor = ToyPredictor()
        predictor.accepted = ("resnet18 differs",)
        return predictor

    monkeypatch.setattr(submit, "load_predictor", load)
    command = ["submit", str(site), *ids(site), "--to", "AD2"]
    assert main(command) == 2
    assert not list(site.glob("*.gz*"))

    assert main([*command, "--accept-other-weights"]) == 0
    said = capsys.readouterr().out
    assert "accepted: can: resnet18 differs" in said
    assert "accepted: rice: resnet18 differs" in said


def test_a_data_set_that_moved_is_found_by_its_new_folder(site):
    (rice,) = (r for r in read_store(site) if r.identity["categories"] == ["rice"])
    make_trial(site, "rice", elsewhere=True)
    with pytest.raises(InputError, match="has 0 of"):
        submit.plan_submission(site, ids(site), Path("/gone"))
    root = Path(get_globals().dataset_dir) / "mvtec"
    parts = submit.plan_submission(site, ids(site), root)
    assert all(path.is_file() for path in parts[1].held_out)
    assert parts[1].trial.id8 == rice.id8


@pytest.mark.parametrize(
    ("maps", "words"),
    [(None, "gives no anomaly maps"), (np.full((8, 8), np.nan, np.float32), "NaN or infinite"),
     (np.ones((8, 8), np.float32), "all pixels of the held-out maps of can are 1")],
)  # fmt: skip
def test_maps_that_say_nothing_are_refused_and_leave_no_file(maps, words, site, monkeypatch):
    class Silent(ToyPredictor):
        def predict(self, paths):
            for path in paths:
                yield Outcome(str(path), 1.0, maps)

    monkeypatch.setattr(submit, "load_predictor", lambda folder, device, **_: Silent())
    parts = submit.plan_submission(site, ids(site))
    with pytest.raises(InputError, match=words):
        submit.write_submission(parts, site / "s.tar.gz", "cpu")
    assert not list(site.glob("*.gz")) + list(site.glob(".*.gz"))


def test_an_interrupted_run_leaves_neither_the_file_nor_half_of_it(site, monkeypatch):
    old = site / "s.tar.gz"
    old.write_bytes(b"of last week")

    class Stopped(ToyPredictor):
        def predict(self, paths):
            yield from ToyPredictor.predict(self, paths[:2])
            raise KeyboardInterrupt

    monkeypatch.setattr(submit, "load_predictor", lambda folder, device, **_: Stopped())
    with pytest.raises(KeyboardInterrupt):
        submit.write_submission(submit.plan_submission(site, ids(site)), old, "cpu")
    assert old.read_bytes() == b"of last week"
    assert [path.name for path in site.glob("*.gz")] == ["s.tar.gz"]
    assert not list(site.glob(".*.tmp*"))


def test_a_trained_trial_is_sent_with_the_maps_that_predict_gives(site, monkeypatch, tmp_path):
    from adray.predict import load_predictor

    monkeypatch.setattr(submit, "PRIVATE_IMAGES", {"can": 3})
    monkeypatch.setattr(submit, "load_predictor", load_predictor)
    options = {"img_size": 32, "train": {"holdout": 0.5}, "device": "cpu", "num_epochs": 1}
    folder = train("mvtec", "can", "autoencoder", **options)["folder"]
    out = tmp_path / "s.tar.gz"
    assert main(["submit", str(site), folder, "--to", "AD2", "--out", str(out)]) == 0

    found = contents(out)
    assert len(found) == 12
    root = Path(get_globals().dataset_dir) / "mvtec/can/test_private_mixed/002_mixed.png"
    (outcome,) = load_predictor(folder, "cpu").predict([root])
    whole = map_of_image(outcome.anomaly_map, None, WIDTH, HEIGHT)
    read = tifffile.imread(
        io.BytesIO(found["anomaly_images/can/test_private_mixed/002_mixed.tiff"])
    )
    assert np.corrcoef(read.ravel().astype(float), whole.ravel())[0, 1] > 0.999
