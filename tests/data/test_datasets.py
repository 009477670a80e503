"""The specification's data set classes."""

from __future__ import annotations

import pytest
import torch
from fake_datasets import write_btad, write_custom, write_mvtec, write_visa
from torch.utils.data import DataLoader

from adray.data.datasets import BaseDataset, BTADDataset, CustomDataset, MVTecDataset, VisADataset
from adray.data.loaders import get_dataloaders
from adray.errors import InputError

LAYOUTS = {
    "mvtec": (MVTecDataset, write_mvtec, "bottle"),
    "visa": (VisADataset, write_visa, "candle"),
    "btad": (BTADDataset, write_btad, "01"),
    "own": (CustomDataset, write_custom, "pattern1"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_plain_dataloader_gives_what_our_loader_gives(tmp_path, name):
    kind, write, category = LAYOUTS[name]
    home = tmp_path / "datasets" / name
    write(home)
    for split in ("train", "test"):
        dataset = kind(home, category, split, img_size=32)
        ours = getattr(
            get_dataloaders(name, category, img_size=32, holdout=0, batch_size=99), split
        )
        plain, batch = next(iter(DataLoader(dataset, batch_size=99))), next(iter(ours))
        order = [[str(s.path) for s in ours.samples].index(path) for path in plain["path"]]
        rows = torch.argsort(batch.index)[order]
        assert len(dataset) == len(ours.samples)
        assert torch.equal(plain["image"], batch.image[rows])
        assert torch.equal(plain["label"], batch.label[rows])
        assert batch.mask is None or torch.equal(plain["mask"], batch.mask[rows])
        assert plain["mask"].shape == (len(dataset), 1, 32, 32)


def test_several_categories_or_all_make_one_data_set(tmp_path):
    write_mvtec(tmp_path / "mvtec", ("a", "b", "c"))
    assert len(BaseDataset(tmp_path / "mvtec", "all")) == 18
    two = BaseDataset(tmp_path / "mvtec", ["a", "c"])
    assert {sample.category for sample in two.samples} == {"a", "c"}


def test_a_defect_without_a_mask_is_marked_as_such(tmp_path):
    write_mvtec(tmp_path / "mvtec", ("a",), masks=False)
    items = [MVTecDataset(tmp_path / "mvtec", "a", "test", img_size=32)[i] for i in range(7)]
    assert [item["has_mask"] for item in items] == [item["label"] == 0 for item in items]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mvtec", "bottel"), "did you mean 'bottle'"),
        (("mvtec", "bottle", "trian"), "did you mean 'train'"),
        (("nothing", "bottle"), "known layout"),
        (("btad", "01"), "has the layout btad, not mvtec"),
    ],
)
def test_wrong_names_are_refused(tmp_path, arguments, words):
    write_mvtec(tmp_path / "mvtec")
    write_btad(tmp_path / "btad")
    with pytest.raises(InputError, match=words):
        MVTecDataset(tmp_path / arguments[0], *arguments[1:])
