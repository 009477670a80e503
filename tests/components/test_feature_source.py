"""Features come from memory, a shared file or the backbone, and any tapped network can be shared."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from adray.components.feature_source import FeatureSource
from adray.config import TrainConfig
from adray.settings import get_globals, use_settings
from adray.types import EIGHT_BITS, Batch, Sharing

COUNT = 6


class Transformer:
    """A frozen network that is no ResNet: block n adds n to the tokens; the images it saw are counted."""

    backbone = "transformer"
    weights_key = "of its file"
    seen = 0

    def __init__(self, *layers, other_taps=True):
        self.layers, self.other_taps = layers, other_taps

    def tapping(self, layers, seed):
        return Transformer(*layers) if self.other_taps else self

    def __call__(self, image):
        Transformer.seen += len(image)
        tokens = image.flatten(1)  # (B, 3 * H * W)
        return tuple(tokens + int(layer.rpartition(".")[2]) for layer in self.layers)


class Method(nn.Module):
    """A model that reads some blocks of the transformer."""

    def __init__(self, *layers, other_taps=True):
        super().__init__()
        self.extractor = Transformer(*layers, other_taps=other_taps)

    def features(self, image):
        return self.extractor(image)


class Images:
    """A loader of images in memory, all of one part."""

    device = torch.device("cpu")
    content_keys = ("a hash of the pixels",)
    part_sizes = (COUNT,)

    def __init__(self):
        self.image = torch.randn(COUNT, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.samples = list(range(COUNT))
        self.places = np.stack([np.zeros(COUNT, int), np.arange(COUNT)], axis=1)

    def part_batches(self, number, batch_size):
        yield from self.image.split(batch_size)

    def batch(self, *index):
        index = torch.tensor(index)
        return Batch(self.image[index], torch.zeros_like(index), None, index)


@pytest.fixture
def loaders(tmp_path, monkeypatch):
    use_settings(replace(get_globals(), cache_dir=str(tmp_path)))
    monkeypatch.setattr(Transformer, "seen", 0)
    monkeypatch.setattr("adray.components.shared_features._DISK_BYTES_PER_SECOND", 0)
    return SimpleNamespace(train=Images(), valid=None, test=Images(), pixels=EIGHT_BITS, roi=None)


def source_of(model):
    return FeatureSource(model, TrainConfig(img_size=8), torch.device("cpu"), 1)


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_model_without_a_frozen_stage_has_no_features(loaders):
    source = source_of(nn.Identity())
    source.keep(loaders.train)
    assert source.for_training(loaders.train.batch(0)) is None
    assert source.for_prediction(loaders.test, loaders.test.batch(0)) is None
    assert source.work == []


def test_a_fresh_source_runs_the_backbone_each_time(loaders):
    source, batch = source_of(Method("blocks.2")), loaders.train.batch(0, 3)
    for _ in range(2):
        assert same(source.for_training(batch), (batch.image.flatten(1) + 2,))
    assert Transformer.seen == 4
    assert source.for_prediction(loaders.test, batch) is None


def test_what_is_kept_comes_from_memory_until_it_is_dropped(loaders):
    source, batch = source_of(Method("blocks.2")), loaders.train.batch(0, 3)
    source.keep(loaders.train)
    first, second = source.for_training(batch), source.for_training(batch)
    assert same(first, second)
    assert Transformer.seen == 2
    source.drop()
    source.for_training(batch)
    assert Transformer.seen == 4


def test_methods_on_one_transformer_share_one_pass_whichever_blocks_they_read(loaders):
    sharing = Sharing(("blocks.2", "blocks.5"))
    for layers in (("blocks.2",), ("blocks.5",), ("blocks.2", "blocks.5")):
        model = Method(*layers)
        source = source_of(model)
        source.share(loaders, sharing)
        batch = loaders.test.batch(4, 1)
        found = source.for_prediction(loaders.test, batch)
        assert same(found, source_of(model).for_training(batch))
        assert same(source.for_training(batch), found)
    assert Transformer.seen == COUNT + 3 * len(batch.index)


def test_a_network_that_cannot_tap_other_blocks_writes_its_own_again_where_one_is_lost(
    loaders, tmp_path
):
    sharing = Sharing(("blocks.2", "blocks.5", "blocks.7"))
    model = Method("blocks.2", "blocks.5", other_taps=False)
    source_of(model).share(loaders, sharing)
    (lost,) = (tmp_path / "features").glob("*-blocks.5.rows")
    lost.unlink()

    source = source_of(model)
    source.share(loaders, sharing)
    batch = loaders.train.batch(0)
    found = source.for_prediction(loaders.train, batch)
    assert same(found, model.features(batch.image))
    assert lost.is_file()
