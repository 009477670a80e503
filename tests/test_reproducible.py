"""The same trial gives the same scores: to the last bit on one machine, within 1e-5 with other threads and batches."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_folder import write_chat_folder
from fake_datasets import write_mvtec, write_visa
from tiny import IMG_SIZE, TINY, tiny_subject

from adray.components.backbone import BACKBONE_WEIGHT_FILES
from adray.model_specs import MODEL_SPECS
from adray.settings import Settings, use_settings
from adray.testing import close

NAMES = [spec.name for spec in MODEL_SPECS]
PARTS = 8
"""Of the matrix over all configurations, each some minutes of a core."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Small data sets, and of weights only a chat model: all other backbones are drawn by the seed."""
    root = tmp_path_factory.mktemp("reproducible")
    counts = {"train": 10, "good": 4, "size": IMG_SIZE}
    write_mvtec(root / "datasets" / "mvtec", ("bottle",), defects=6, **counts)
    write_visa(root / "datasets" / "visa", ("candle",), defects=12, **counts)
    write_mvtec(root / "datasets" / "imagenette2", ("tench",), train=6, good=2, defects=2, size=80)
    write_chat_folder(root / "backbones" / BACKBONE_WEIGHT_FILES["vlm/"].paths[0])
    return Settings(
        dataset_dir=str(root / "datasets"),
        backbone_dir=str(root / "backbones"),
        cache_dir=str(root / "cache"),
    )


@pytest.fixture(autouse=True)
def settings(site, own_settings, one_thread):
    use_settings(site)


def fitted(name):
    """A configuration made small and trained anew, with its scores of the test images."""
    weights = "pretrained" if name == "vlm-ad" else "random"
    subject = replace(tiny_subject(name), weights=weights)
    trainer = subject.trainer()
    loaders = subject.loaders(trainer)
    trainer.fit(loaders)
    return subject, trainer, loaders, trainer.predict(loaders.test)


def in_another_process(site, names, folder):
    """Scores of configurations that a fresh process trains one after the other, in this order."""
    places = {name: getattr(site, name) for name in ("dataset_dir", "backbone_dir", "cache_dir")}
    command = [sys.executable, __file__, str(folder), json.dumps(places), *names]
    subprocess.run(command, check=True, cwd=Path(__file__).parent)
    return {name: np.load(folder / f"{name}.npy") for name in names}


@pytest.mark.parametrize(
    "names",
    [
        ["padim", "vae"],
        *(
            pytest.param(NAMES[part::PARTS], marks=[pytest.mark.slow, pytest.mark.timeout(3600)])
            for part in range(PARTS)
        ),
    ],
    ids=["two", *(f"part{part}" for part in range(PARTS))],
)
def test_scores_are_equal_bit_for_bit_twice_in_a_process_and_in_two_first_and_after_others(
    names, site, tmp_path
):
    elsewhere = in_another_process(site, names, tmp_path)
    different = []
    for name in reversed(names):
        first = fitted(name)[-1].pred_score
        again = fitted(name)[-1].pred_score
        if not (np.array_equal(first, again) and np.array_equal(first, elsewhere[name])):
            different.append(name)
    assert different == []


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("padim", "vae") else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
def test_a_trained_model_scores_the_same_within_1e_5_with_other_threads_and_batches(name):
    subject, trainer, _, scores = fitted(name)
    for threads, batch_size in ((2, 4), (1, 1), (2, 7)):
        torch.set_num_threads(threads)
        others = trainer.predict(subject.loaders(trainer, eval_batch_size=batch_size).test)
        assert close(others.pred_score, scores.pred_score), (threads, batch_size)
        if scores.anomaly_map is not None:
            assert close(others.anomaly_map, scores.anomaly_map), (threads, batch_size)


@pytest.mark.parametrize("name", ["padim", "vae"])
def test_what_the_process_did_before_with_its_random_numbers_and_flags_has_no_say(name):
    expected = fitted(name)[-1].pred_score
    torch.manual_seed(99)
    torch.rand(7)
    np.random.seed(3)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    np.testing.assert_array_equal(fitted(name)[-1].pred_score, expected)
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32


def test_every_configuration_is_among_them():
    assert set(NAMES) == set(TINY)


if __name__ == "__main__":
    folder, settings, *chosen = sys.argv[1:]
    use_settings(Settings(**json.loads(settings)))
    torch.set_num_threads(1)
    for chosen_name in chosen:
        np.save(Path(folder) / f"{chosen_name}.npy", fitted(chosen_name)[-1].pred_score)
