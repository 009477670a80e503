"""PSNR, SSIM and, where its files are there, LPIPS in the history of every method that rebuilds images."""

from __future__ import annotations

import pytest
import torch
from fake_datasets import write_mvtec
from tiny import IMG_SIZE, TINY

from adray.components.lpips import Lpips
from adray.data.loaders import get_dataloaders
from adray.registry import ModelRegistry
from adray.settings import set_globals

NAMES = ("autoencoder", "unet-autoencoder", "vae", "unet-vae")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small data set, and untrained weights under LPIPS's file names in ``with_lpips``."""
    root = tmp_path_factory.mktemp("history")
    write_mvtec(root / "mvtec", categories=("bottle",), train=6, good=2, defects=2, size=IMG_SIZE)
    state = Lpips().state_dict()
    (root / "with_lpips" / "lpips").mkdir(parents=True)
    torch.save(
        {k: v for k, v in state.items() if "features" in k},
        root / "with_lpips/lpips/alexnet-owt-7be5be79.pth",
    )
    heads = {f"lin{i}.model.1.weight": state[f"heads.{i}.weight"].abs() for i in range(5)}
    torch.save(heads, root / "with_lpips/lpips/alex.pth")
    return root


def history_of(name, root):
    set_globals(dataset_dir=root)
    train = {"img_size": IMG_SIZE, "batch_size": 3, "num_epochs": 2, "holdout": 0.0}
    trainer = ModelRegistry.get_trainer(name, train=train, model=TINY[name]["model"], seed=1)
    loaders = get_dataloaders(
        "mvtec", "bottle", img_size=IMG_SIZE, batch_size=3, normalize="none", holdout=0.0, seed=1
    )
    trainer.fit(loaders)
    assert not any("lpips" in key for key in trainer.model.state_dict())
    return trainer.history, trainer.predict(loaders.test).pred_score


@pytest.mark.parametrize("name", NAMES)
def test_lpips_joins_psnr_and_ssim_where_its_files_are_and_changes_no_score(
    name, root, own_settings
):
    without, scores = history_of(name, root)
    set_globals(backbone_dir=root / "with_lpips")
    having, same_scores = history_of(name, root)
    assert [set(row) for row in having] == [set(row) | {"lpips"} for row in without]
    assert all({"loss", "psnr", "ssim"} <= set(row) for row in without)
    assert all(-1 <= row["ssim"] < 1 and row["psnr"] > 0 and row["lpips"] > 0 for row in having)
    assert (scores == same_scores).all()
