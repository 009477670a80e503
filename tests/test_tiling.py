"""Images in tiles: laid together without seams, trained and predicted alike, bounded in memory."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import write_mvtec
from PIL import Image
from wide_pictures import HEIGHT, WIDTH, scores_of, use_pictures, write_wide_pictures

from adray.__main__ import main
from adray.config import TrainConfig
from adray.data.geometry import Geometry, own_cells, pack_cells
from adray.data.loaders import get_dataloaders
from adray.data.roi import fill_polygon
from adray.errors import InputError
from adray.export import export_trial
from adray.predict import load_predictor
from adray.predictor import own_map
from adray.registry import ModelRegistry
from adray.settings import DataOptions, set_globals
from adray.tiling import MapJoiner, TileGrid, Tiling, axis_weights, image_score
from adray.train import train

SHAPES = [(64, 64), (65, 64), (64, 65), (100, 301), (333, 71), (20, 200), (7, 9)]
TILES = {"img_size": 32, "holdout": 0.4, "tile": 32}


# Where tiles lie, and how their maps are laid together


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_of_one_value_give_that_value_everywhere(shape, overlap):
    grid = TileGrid(64, overlap, *shape)
    joiner = MapJoiner(grid)
    for number in range(len(grid)):
        joiner.add(number, np.full((16, 16), 0.7, np.float32))
    joined = joiner.joined()
    assert joined.shape == shape
    np.testing.assert_allclose(joined, 0.7, rtol=1e-6)


@pytest.mark.parametrize("shape", [(160, 160), (161, 200), (500, 130)])
def test_what_a_network_sees_at_a_tiles_edge_shows_at_no_seam(shape):
    """Each tile's map is wrong near its edges; the whole is wrong near the image's alone."""
    grid = TileGrid(64, 0.25, *shape)
    edge = np.zeros((64, 64), np.float32)
    edge[4:-4, 4:-4] = 1
    joiner = MapJoiner(grid)
    for number in range(len(grid)):
        joiner.add(number, 1 + 4 * (1 - edge))
    joined = joiner.joined()
    np.testing.assert_allclose(joined[4:-4, 4:-4], 1, atol=1e-4)
    np.testing.assert_allclose(joined[0], 5, rtol=1e-6)


def test_overlapping_tiles_of_a_picture_give_it_back():
    picture = np.random.default_rng(0).random((150, 210)).astype(np.float32)
    grid = TileGrid(64, 0.3, *picture.shape)
    joiner = MapJoiner(grid)
    for number in range(len(grid)):
        top, left = grid.corner(number)
        joiner.add(number, picture[top : top + 64, left : left + 64])
    np.testing.assert_allclose(joiner.joined(), picture, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.6])
@pytest.mark.parametrize("length", range(64, 400, 37))
def test_no_pixel_is_left_to_the_edges_of_tiles_alone(length, overlap):
    grid = TileGrid(64, overlap, length, 64)
    weights = axis_weights(grid.rows, 64)
    total = np.zeros(length)
    for start, weight in zip(grid.rows, weights, strict=True):
        total[start : start + 64] += weight
    assert total.min() > 0.4
    assert all(b - a <= 64 for a, b in itertools.pairwise(grid.rows))


def test_the_score_of_an_image_is_the_highest_or_the_mean_of_the_highest():
    scores = np.arange(20, dtype=np.float32)
    assert image_score(scores, 0.0) == 19
    assert image_score(scores, 0.1) == 18.5
    assert image_score(scores, 1.0) == 9.5
    assert image_score(scores[:1], 0.5) == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 2)])
def test_an_image_thinner_than_a_pixel_of_the_input_still_counts(shape):
    geometry = Geometry(16, tiling=Tiling(256, 0.25, 1.0))
    for number in range(len(geometry.grid(*shape))):
        assert geometry.tile_inside(*shape, number).any()


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_show_the_scaled_image_and_all_of_its_pixels_count_once_or_more(shape, scale):
    geometry = Geometry(16, tiling=Tiling(32, 0.25, scale))
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = Image.fromarray(pixels)
    scaled = geometry.scaled_image(image)
    grid = geometry.grid(*shape)
    assert scaled.size == (max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale)))

    seen = np.zeros((max(grid.height, 32), max(grid.width, 32)), int)
    for number in range(len(grid)):
        top, left = grid.corner(number)
        inside = geometry.tile_inside(*shape, number)
        seen[top : top + 32, left : left + 32] += np.kron(inside, np.ones((2, 2), int))
        part = np.asarray(scaled)[top : top + 32, left : left + 32]
        if part.shape[:2] == (32, 32):
            expected = Image.fromarray(part).resize((16, 16), Image.Resampling.BILINEAR)
            tile = geometry.cut(scaled, grid, number)
            assert np.array_equal(np.asarray(tile), np.asarray(expected))
    assert (seen[: grid.height - 1, : grid.width - 1] >= 1).all()
    assert not seen[grid.height + 1 :].any()


# Trials


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_wide_pictures(tmp_path_factory.mktemp("tiling"), defects=6)


@pytest.fixture(autouse=True)
def settings(root, tmp_path, own_settings, own_registry, one_thread):
    use_pictures(root, tmp_path)


def run(model="toy-ok", **options):
    more = {"weights": "random"} if model != "toy-ok" else {}
    result = train("mvtec", "bottle", model, train={**TILES, **options}, **more)
    return Path(result["folder"]), result


@pytest.mark.parametrize(
    "options", [{}, {"scale": 1.5, "tile_top": 0.2}, {"tile": 64, "overlap": 0.5}, {"tile": 128}]
)
def test_new_images_score_and_peak_as_in_the_trial(options, tmp_path):
    folder, result = run(**options)
    rows = scores_of(folder)
    assert len(rows) == 6 + 4 + 6  # images, not tiles
    assert result["counts"]["train"] == 10
    predictor = load_predictor(folder, "cpu")
    outcomes = list(predictor.predict(rows.path))
    np.testing.assert_allclose([o.pred_score for o in outcomes], rows.pred_score, rtol=1e-5)
    if "scale" not in options:
        peaks = [outcome.anomaly_map.max() for outcome in outcomes]
        np.testing.assert_allclose(peaks, rows.peak, rtol=1e-5)
    assert own_map(outcomes[0]).shape == (HEIGHT, WIDTH)

    export_trial(folder, tmp_path / "export", "safetensors")
    again = load_predictor(tmp_path / "export", "cpu").predict(rows.path)
    np.testing.assert_allclose([o.pred_score for o in again], rows.pred_score, rtol=1e-5)


def test_a_defect_at_any_edge_is_found_where_it_is(root, tmp_path):
    folder, _ = run(overlap=0.5)
    predictor = load_predictor(folder, "cpu")
    plain = np.array(Image.open(next(root.rglob("test/good/*.png"))))
    size = 6
    for top, left in itertools.product((0, 22, HEIGHT - size), (0, 40, WIDTH - size)):
        pixels = plain.copy()
        pixels[top : top + size, left : left + size] = 255
        (outcome,) = predictor.predict([pixels])
        row, column = np.unravel_index(own_map(outcome).argmax(), (HEIGHT, WIDTH))
        assert top <= row < top + size
        assert left <= column < left + size


def test_figures_are_of_whole_images_and_pixels_of_the_masks(root):
    _, result = run()
    metrics = result["metrics"]
    assert metrics["image_auroc"] == 1
    assert metrics["pixel_auroc"] > 0.95
    assert metrics["pixel_aupro"] is not None
    pictures = [row["file"] for row in result["pictures"]]
    assert len(pictures) == 10


def test_what_lies_outside_of_a_region_is_in_no_tile(root, tmp_path):
    set_globals(data={"mvtec": DataOptions(roi=(0, 0, 0.4, 1))})
    folder, _ = run()
    rows = scores_of(folder)
    predictor = load_predictor(folder, "cpu")
    outside = ~own_cells(pack_cells(fill_polygon([(0, 0), (0.4, 0), (0.4, 1), (0, 1)])), 50, 91)
    rng = np.random.default_rng(0)
    for row in rows.iloc[:3].itertuples():
        pixels = np.array(Image.open(row.path))
        pixels[outside] = rng.integers(0, 256, (outside.sum(), 3))
        (outcome,) = predictor.predict([pixels])
        assert outcome.pred_score == pytest.approx(row.pred_score, rel=1e-5)
        whole = own_map(outcome)
        assert (whole[outside] == whole.min()).all()


@pytest.mark.parametrize("model", ["padim", "patchcore-resnet18", "dfm-resnet18", "stfpm"])
def test_methods_with_and_without_maps_train_and_predict_on_tiles(model):
    folder, _ = run(model, num_epochs=1, crop_size=None)
    rows = scores_of(folder).iloc[:4]
    outcomes = load_predictor(folder, "cpu").predict(rows.path)
    found = [outcome.pred_score for outcome in outcomes]
    np.testing.assert_allclose(found, rows.pred_score, rtol=1e-3)


def test_without_test_defects_they_are_drawn_on_tiles(root, tmp_path):
    write_mvtec(tmp_path / "d" / "mvtec", categories=("bottle",), train=20, good=2, defects=0)
    set_globals(dataset_dir=tmp_path / "d")
    folder, result = run(tile=48)
    assert result["evaluation"] == "synthetic"
    assert any("single tiles" in note for note in result["notes"])
    assert (scores_of(folder).split == "holdout").sum() == 8


def test_tiles_are_part_of_the_identity_and_plain_trials_keep_theirs():
    def identity(**options):
        result = train("mvtec", "bottle", "toy-ok", train={"img_size": 32, **options})
        record = json.loads((Path(result["folder"]) / "trial.json").read_text())
        return record["identity"]["train"]

    assert not {"tile", "overlap", "scale", "tile_top"} & identity().keys()
    found = identity(tile=40)
    assert (found["tile"], found["overlap"], found["scale"]) == (40, 0.25, 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 64, "fit": "pad"}, "fit pad says nothing beside tile 64"),
        ({"tile": None, "overlap": 0.5}, "overlap 0.5 says nothing without tiles"),
        ({"tile": 8}, "tile is 8"),
        ({"tile": 64, "overlap": 0.9}, "overlap is 0.9"),
        ({"tile": 64, "scale": 0.0}, "scale is 0"),
    ],
)
def test_what_tiles_cannot_be_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        TrainConfig(**options)


def test_a_bundle_judges_images_by_their_tiles_as_its_trial(tmp_path):
    pytest.importorskip("onnxscript")
    from adray.bundle import write_bundle
    from adray.bundle_check import Wanted
    from adray.runtime import load

    folder, _ = run("padim", tile=64, scale=1.5, tile_top=0.2)
    about = write_bundle(folder, tmp_path / "a.adray", Wanted(false_alarms=0.3))
    assert about["check"]["other_verdicts"] == 0
    rows = scores_of(folder)
    bundle = load(tmp_path / "a.adray")
    outcomes = load_predictor(folder, "cpu").predict(rows.path)
    for row, outcome in zip(rows.itertuples(), outcomes, strict=True):
        result = bundle.predict(row.path)
        assert result.pred_score == pytest.approx(row.pred_score, rel=1e-5)
        expected = own_map(outcome)
        np.testing.assert_allclose(result.anomaly_map, expected, atol=1e-5 * expected.max())


def test_what_does_not_go_with_tiles_is_one_sentence(root, tmp_path, capsys):
    folder, _ = run()
    predictor = load_predictor(folder, "cpu")
    with pytest.raises(InputError, match="was trained on tiles"):
        list(predictor.predict_tiled(["a.png"], 32))
    with pytest.raises(InputError, match="cross deals whole images into folds"):
        run("padim", calibration="cross")
    padim, _ = run("padim")
    from adray.update import update_trial

    with pytest.raises(InputError, match="was trained on tiles, into which an update"):
        update_trial(padim, [], [], "cpu", None)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = scores_of(folder).path.iloc[0]
    first, second = predictor.predict([bad, good])
    assert "cannot be decoded" in first.reason
    assert second.pred_score is not None


def test_the_plan_says_how_small_the_smallest_defect_becomes(root, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(
        f"""
name: tiles
settings: {{dataset_dir: {root}/datasets, output_dir: {tmp_path}/o, plugins: [toy_plugin]}}
grid: {{models: [toy-ok], datasets: {{mvtec: each}}}}
overrides: {{"*": {{train: {{img_size: 32, tile: 64, scale: 0.5}}}}}}
"""
    )
    assert main(["sweep", str(tmp_path / "s.yaml"), "--dry-run"]) == 0
    areas = [(np.asarray(Image.open(path)) > 0).sum() for path in root.rglob("*_mask.png")]
    # Half of the sides by the scale, and half again from 64 to 32 pixels.
    grid = (round(HEIGHT * 0.5) / 2) * (round(WIDTH * 0.5) / 2) / (HEIGHT * WIDTH)
    words = f"({min(areas):,} pixels of its image) has {min(areas) * grid:.3g} pixels of the model"
    assert words in capsys.readouterr().out


# A model for each place of a tile


def test_a_model_for_each_place_scores_images_as_its_trial_and_refuses_other_grids(tmp_path):
    from adray.bundle import write_bundle
    from adray.bundle_check import Wanted

    folder, _ = run("padim", tile_model="position")
    rows = scores_of(folder).iloc[:4]
    predictor = load_predictor(folder, "cpu")
    found = [outcome.pred_score for outcome in predictor.predict(rows.path)]
    np.testing.assert_allclose(found, rows.pred_score, rtol=1e-3)

    larger = np.zeros((3 * HEIGHT, WIDTH, 3), np.uint8)
    (outcome,) = predictor.predict([larger])
    assert outcome.pred_score is None
    assert "and the model knows 2 x 4 places (tile_model: position)" in outcome.reason
    with pytest.raises(InputError, match="this one has a model for each place"):
        write_bundle(folder, tmp_path / "a.adray", Wanted(false_alarms=0.3))
    with pytest.raises(InputError, match="a model for each place of a tile"):
        export_trial(folder, tmp_path / "export")


def test_distances_are_numpys_of_the_training_tiles_at_the_same_place():
    trainer, loaders = fitted("position")
    model = trainer.model
    batch = next(iter(loaders.test.tiles))
    tile, place = int(batch.tile[3]), 5
    seen = []
    for one in loaders.train:
        embedding = model.embed(model.features(one.image))
        seen.append(embedding[one.tile == tile, place])
    vectors = np.concatenate([part.double().numpy() for part in seen])
    assert len(vectors) == 10

    query = model.embed(model.features(batch.image))[3, place].double().numpy()
    centered = query - vectors.mean(0)
    covariance = np.cov(vectors, rowvar=False) + 0.01 * np.identity(len(query))
    expected = np.sqrt(centered @ np.linalg.inv(covariance) @ centered)
    embedding = model.embed(model.features(batch.image))
    found = model.distance(embedding, batch.tile)[3, place]
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_halves_that_change_places_are_anomalous_to_a_model_for_each_place_alone(root):
    """The left of each picture is dark and the right bright."""
    write_mvtec(root / "datasets" / "mvtec", ("halves",), 12, 4, 2, masks=False)
    for path in (root / "datasets" / "mvtec" / "halves").rglob("*.png"):
        if "ground_truth" not in str(path):
            pixels = np.random.default_rng(len(str(path)) + int(path.stem)).integers(
                0, 40, (64, 128, 3)
            )
            pixels[:, 64:] += 180
            if "test" in str(path) and "good" not in str(path):
                pixels = pixels[:, ::-1]
            Image.fromarray(pixels.astype(np.uint8)).save(path)

    ratios = {}
    for kind in ("shared", "position"):
        trainer, loaders = fitted(kind, category="halves", tiling=Tiling(64, 0.0, 1.0))
        scores = trainer.predict(loaders.test)
        swapped = scores.pred_score[scores.label == 1].min()
        ratios[kind] = swapped / scores.pred_score[scores.label == 0].max()
    assert ratios["position"] > 2
    assert ratios["shared"] < 1.5


def fitted(tile_model, category="bottle", tiling=None):
    """A PaDiM on tiles, and its loaders."""
    tiling = tiling or Tiling(32, 0.25, 1.0)
    how = {"tile": tiling.tile, "overlap": tiling.overlap, "tile_model": tile_model}
    trainer = ModelRegistry.get_trainer(
        "padim",
        train={"img_size": 32, "batch_size": 8, "holdout": 0.4, **how},
        model={"weights": "random", "num_features": 20},
    )
    loaders = get_dataloaders(
        "mvtec", category, img_size=32, batch_size=8, holdout=0.4, tiling=tiling
    )
    trainer.fit(loaders)
    return trainer, loaders


def test_only_methods_of_places_have_a_model_for_each_and_tiles_are_needed():
    with pytest.raises(InputError, match="tile_model position does not suit patchcore-resnet18"):
        run("patchcore-resnet18", tile_model="position")
    with pytest.raises(InputError, match="tile_model position says nothing without tiles"):
        TrainConfig(tile_model="position")
