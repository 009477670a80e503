"""Synthetic defects: what they change, what they depend on, and the loader and the trial made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from adray.data.loaders import get_dataloaders
from adray.data.synthetic import write_synthetic
from adray.data.synthetic_defects import (
    DEFECTS,
    copies_per_image,
    draw_defective_copies,
    foreground,
)
from adray.data.synthetic_images import CATEGORIES, draw_normal
from adray.errors import InputError
from adray.job import Job, check_job, job_identity
from adray.registry import ModelRegistry
from adray.settings import get_globals
from adray.sweep.assignment import Assignment
from adray.trial import run_job


def normal_image(category="gasket", size=96, seed=0):
    pixels = draw_normal(category, size, np.random.default_rng(seed))
    return np.rint(pixels).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def copies():
    """Fourteen copies of one image per category, so that each kind occurs twice."""
    images = {category: normal_image(category) for category in CATEGORIES}
    return [
        (image, copy)
        for name, image in images.items()
        for copy in draw_defective_copies(image, name, 1, 14)
    ]


def test_a_defective_copy_differs_from_its_image_inside_the_mask_and_nowhere_else(copies):
    for image, copy in copies:
        changed = (copy.image != image).any(axis=0)
        assert copy.image.shape == image.shape
        assert copy.image.dtype == copy.mask.dtype == np.uint8
        assert set(np.unique(copy.mask)) == {0, 1}
        assert not (changed & (copy.mask == 0)).any()
        assert changed[copy.mask == 1].mean() > 0.2
        assert 5e-4 < copy.mask.mean() < 0.15


def test_all_kinds_occur_in_turn(copies):
    counts = pd.Series([copy.kind for _, copy in copies]).value_counts()
    assert set(counts.index) == set(DEFECTS)
    assert counts.min() >= 5


def test_strengths_are_graded_from_hardly_visible_to_obvious(copies):
    changes = [np.abs(t.image.astype(int) - i)[:, t.mask == 1].mean() for i, t in copies]
    assert np.quantile(changes, 0.2) < 15
    assert np.quantile(changes, 0.9) > 30


def test_a_defective_copy_depends_on_its_image_name_seed_and_number_alone():
    image = normal_image()
    copies = draw_defective_copies(image, "a.png", 3, 9)
    np.random.seed(7)  # global generators play no part
    for copy, again in zip(
        copies, draw_defective_copies(image.copy(), "a.png", 3, 2), strict=False
    ):
        assert (copy.image == again.image).all()
        assert (copy.mask == again.mask).all()
    others = [
        draw_defective_copies(image, "b.png", 3, 1)[0],
        draw_defective_copies(image, "a.png", 4, 1)[0],
        *copies[1:],
    ]
    assert all((copies[0].mask != other.mask).any() for other in others)


def test_an_image_without_any_structure_still_gets_a_visible_defect():
    flat = np.full((3, 64, 64), 90, np.uint8)
    for copy in draw_defective_copies(flat, "flat", 0, 7):
        assert np.abs(copy.image.astype(int) - 90)[:, copy.mask == 1].mean() > 2


def test_the_product_is_told_from_an_even_table_and_not_on_a_texture():
    size = 128
    down, right = np.mgrid[:size, :size] - size / 2
    disc = np.hypot(down, right) < 40
    table = np.random.default_rng(0).normal(60, 3, (size, size, 3))
    found = foreground(np.where(disc[:, :, None], 160.0, table))
    assert (found & disc).sum() / (found | disc).sum() > 0.9
    assert foreground(normal_image("weave").transpose(1, 2, 0).astype(float)).all()
    image = np.stack([np.where(disc, 160, 60).astype(np.uint8)] * 3)
    on_product = [
        copy.mask[disc].sum() / copy.mask.sum() for copy in draw_defective_copies(image, "d", 0, 14)
    ]
    assert min(on_product) > 0.25


def test_fewer_held_out_images_get_more_copies_each():
    counts = [copies_per_image(n) for n in (1, 2, 4, 10, 30, 100, 1000)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 10
    assert counts[-1] == 1


@pytest.fixture
def data():
    settings = get_globals()
    write_synthetic(f"{settings.dataset_dir}/toy", train=12, good=2, defects=3, size=64)
    return settings


def test_the_synthetic_test_loader_holds_the_held_out_images_and_their_defective_copies(data):
    options = {"img_size": 48, "batch_size": 4, "normalize": "none", "holdout": 0.25, "seed": 1}
    plain = get_dataloaders("toy", "gasket", **options)
    loaders = get_dataloaders("toy", "gasket", evaluation="synthetic", **options)
    assert loaders.train.samples == plain.train.samples
    assert loaders.valid.samples == plain.valid.samples
    assert loaders.fingerprint == plain.fingerprint
    held = len(loaders.valid.samples)
    assert loaders.test.samples[:held] == loaders.valid.samples
    assert len(loaders.test.samples) == held * (1 + copies_per_image(held))
    assert loaders.test.has_mask.all()
    for batch in loaders.test:
        for mask, label in zip(batch.mask, batch.label, strict=True):
            assert bool(mask.any()) == bool(label)
    (alone,) = draw_defective_copies(loaders.valid.images(0), loaders.valid.samples[0].key, 1, 1)
    assert (loaders.test.images(held) == alone.image).all()


def test_streaming_gives_the_same_defective_copies(data):
    options = {"img_size": 48, "batch_size": 64, "holdout": 0.25, "evaluation": "synthetic"}
    resident = next(iter(get_dataloaders("toy", "grain", **options).test))
    streaming = replace(data, resident_gb=0.0, num_workers=1)
    streamed = next(iter(get_dataloaders("toy", "grain", settings=streaming, **options).test))
    assert (resident.image == streamed.image).all()
    assert (resident.mask == streamed.mask).all()


def synthetic_job(holdout=0.25, name="padim", evaluation="synthetic", **train):
    model = {"num_features": 8} if name == "padim" else {}
    train = {"img_size": 32, "holdout": holdout, "batch_size": 4} | train
    return Job(
        ModelRegistry.resolve(name, train=train, model=model, weights="random"),
        ("toy",),
        ("gasket",),
        0,
        evaluation,
    )


def test_a_synthetic_trial_marks_its_rows_and_never_scores_the_test_set(data, tmp_path):
    result = run_job(synthetic_job(), tmp_path, save_maps=1)
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert result["evaluation"] == "synthetic"
    assert set(scores["split"]) == {"holdout", "synthetic"}
    assert not scores["path"].str.contains("/test/").any()
    copies = scores[scores["split"] == "synthetic"]
    assert set(copies["defect_type"]) == set(DEFECTS)
    assert copies["path"].is_unique
    assert set(copies["path"].str.split("#").str[0]) == set(
        scores[scores["split"] == "holdout"]["path"]
    )
    assert result["counts"]["test_anomalous"] == len(copies)
    assert result["metrics"]["pixel_auroc"] is not None


def test_the_objective_is_reported_by_epoch_and_changes_no_score(data, tmp_path):
    job, reported = synthetic_job(name="stfpm", num_epochs=3), []
    results = []
    for report in (None, lambda step, row: reported.append((step, row))):
        folder = tmp_path / str(len(results))
        folder.mkdir()
        results.append(run_job(job, folder, save_maps=0, report=report))
    assert results[0]["metrics"] == results[1]["metrics"]
    assert len(reported) == 3
    assert reported[-1][1]["objective"] == pytest.approx(results[1]["metrics"]["image_auroc"])


def test_only_a_synthetic_evaluation_enters_the_identity(data):
    plain = job_identity(synthetic_job(evaluation="test"), data, "f")
    synthetic = job_identity(synthetic_job(), data, "f")
    assert "evaluation" not in plain
    assert "defects" not in plain["versions"]
    assert synthetic == plain | {
        "evaluation": "synthetic",
        "versions": plain["versions"] | {"defects": 1},
    }


def test_an_assignment_brings_the_evaluation_to_the_worker(data):
    for job in (synthetic_job(), synthetic_job(evaluation="test")):
        identity = job_identity(job, data, "f")
        train = job.resolved.train_config
        sent = Assignment("0" * 8, "cell", "folder", identity, train, data, 60.0)
        assert sent.job().evaluation == job.evaluation
        assert job_identity(sent.job(), data, "f") == identity


def test_without_held_out_images_the_plan_and_the_trial_say_what_to_do(data, tmp_path):
    with pytest.raises(InputError, match=r"holdout is 0, .*holdout: 0.1"):
        check_job(synthetic_job(holdout=0.0), data)
    with pytest.raises(InputError, match=r"set holdout to 0.1 or more"):
        run_job(synthetic_job(holdout=0.0), tmp_path)
    with pytest.raises(InputError, match="did you mean 'synthetic'"):
        check_job(synthetic_job(evaluation="syntetic"), data)
