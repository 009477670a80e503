"""Odd images, dead features and narrow numbers: every configuration is right, or says one sentence."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from chat_folder import write_chat_folder
from fake_datasets import save, write_mvtec, write_visa
from PIL import Image
from tiny import IMG_SIZE, tiny_subject

from adray.cli.predict import main
from adray.components.backbone import BACKBONE_WEIGHT_FILES
from adray.errors import InputError
from adray.model_specs import MODEL_SPECS
from adray.registry import ModelRegistry
from adray.settings import set_globals
from adray.train import train

FAST = ("padim", "dfkde", "stfpm", "vae", "ganomaly")
"""Configurations that run by default; all others run with `-m slow`."""
NAMES = [
    spec.name if spec.name in FAST else pytest.param(spec.name, marks=pytest.mark.slow)
    for spec in MODEL_SPECS
]


@dataclass(frozen=True)
class Odd:
    """What is odd about a trial."""

    train: int = 9
    """Normal training images, in batches of 4, so that the last one has a single image."""
    paint: Callable[[np.ndarray], np.ndarray] | None = None
    """What becomes of the pixels of every image, (H, W, 3) uint8."""
    factor: float = 1.0
    """Of all weights of frozen networks."""
    precision: str = "float32"
    """Of the training."""
    refused: str = ""
    """What the sentence says of the configurations that cannot do it; empty where all can."""


CASES = {
    "nine images": Odd(),
    "one image": Odd(train=1, refused="needs at least|at least 2|at least two|two different"),
    "constant images": Odd(
        paint=lambda pixels: np.full_like(pixels, 128), refused="different|the same|constant"
    ),
    "images of 1 x 1 pixel": Odd(
        paint=lambda pixels: pixels[:1, :1], refused="different|the same|constant"
    ),
    "all features zero": Odd(factor=0.0, refused="different|the same|constant"),
    "half precision": Odd(precision="float16", refused="float32"),
    "overflow in half precision": Odd(
        precision="float16", factor=1e4, refused="NaN|infinite|loss is"
    ),
}


def write_images(root: Path, odd: Odd, supervised: bool) -> None:
    """The data set that `tiny_subject` names, with its pictures changed."""
    if supervised:
        write_visa(root / "visa", ("candle",), train=odd.train, good=2, defects=6, size=IMG_SIZE)
    else:
        write_mvtec(root / "mvtec", ("bottle",), train=odd.train, good=2, defects=3, size=IMG_SIZE)
    if odd.paint is None:
        return
    for path in [*root.rglob("*.png"), *root.rglob("*.JPG")]:
        pixels = np.asarray(Image.open(path))
        if {"ground_truth", "Masks"} & set(path.parts):
            painted = np.full(odd.paint(pixels[..., None]).shape[:2], pixels.max())
            pixels = pixels if painted.size == pixels.size else painted
        else:
            pixels = odd.paint(pixels)
        Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_a_trial_is_right_or_says_one_sentence(name, case, tmp_path):
    odd = CASES[case]
    write_images(tmp_path / "datasets", odd, ModelRegistry.trainer_class(name).supervised)
    # What EfficientAD trains with beside the product.
    write_mvtec(
        tmp_path / "datasets" / "imagenette2", ("tench",), train=4, good=1, defects=1, size=80
    )
    write_chat_folder(tmp_path / "backbones" / BACKBONE_WEIGHT_FILES["vlm/"].paths[0])

    said = ""
    try:
        run(name, odd, tmp_path / "model.pth")
    except (InputError, FloatingPointError) as error:
        said = str(error)
    if said:
        assert odd.refused, said
        assert "\n" not in said
        assert any(words in said for words in odd.refused.split("|")), said


def run(name: str, odd: Odd, path: Path) -> None:
    """Train for an epoch, save and score: all numbers are finite, or an error says why not."""
    weights = "pretrained" if name == "vlm-ad" else "random"
    subject = replace(tiny_subject(name), weights=weights)
    trainer = subject.trainer(num_epochs=1, batch_size=4, holdout=0.0, precision=odd.precision)
    with torch.no_grad():
        for module in trainer.model.modules():
            if hasattr(module, "weight_file"):
                for parameter in module.parameters():
                    parameter.mul_(odd.factor)

    loaders = subject.loaders(trainer)
    trainer.fit(loaders, weight_path=path)
    stored = torch.load(path, weights_only=True)["model"]
    assert all(torch.isfinite(v).all() for v in stored.values() if v.is_floating_point())
    scores = trainer.predict(loaders.test)
    scores.check()
    assert scores.pred_score.dtype == np.float32


ODD_NAMES = ["a:b", "new\nline", 'q"u', "-dash", "=1+1", "per%cent", "back\\slash", "[b]*?", "#x"]


def test_no_name_of_image_defect_category_or_data_set_is_lost_on_the_way(tmp_path, own_settings):
    root = tmp_path / "datasets" / "data:set"
    for number, name in enumerate(ODD_NAMES):
        save(root / "-c:d" / "train" / "good" / f"{name}.png", number, 32)
        save(root / "-c:d" / "test" / "good" / f"{name}.png", 20 + number, 32)
        mask = root / "-c:d" / "ground_truth" / 'be:nt "x"' / f"{name}_mask.png"
        save(
            root / "-c:d" / "test" / 'be:nt "x"' / f"{name}.png",
            40 + number,
            32,
            defect=True,
            mask_path=mask,
        )
    set_globals(
        dataset_dir=tmp_path / "datasets", output_dir=tmp_path / "out", cache_dir=tmp_path / "cache"
    )

    options = {"img_size": 32, "holdout": 0.3}
    result = train("data:set", "-c:d", "padim", train=options, weights="random")
    scores = pd.read_parquet(Path(result["folder"]) / "scores.parquet")
    test = scores[scores["split"] == "test"]
    files = {str(path) for path in (root / "-c:d" / "test").rglob("*.png")}
    assert set(test["path"]) == files
    assert set(test["defect_type"]) == {"good", 'be:nt "x"'}

    images = str(root / "-c:d" / "test")
    assert main([result["folder"], images, "--out", str(tmp_path / "judged")]) == 0
    table = tmp_path / "judged" / "predictions.csv"
    with table.open(encoding="utf-8-sig", newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == files
    assert len(list((tmp_path / "judged").rglob("*.png"))) >= len(files)
