"""GeneralAD's mathematics against torch's own attention and slow loops, and its plumbing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.generalad import (
    AttentionBlock,
    GeneraladConfig,
    GeneraladModel,
    GeneraladTrainer,
    drawn_parts,
    lr_factor,
    shuffled,
    two_sided_loss,
)
from adray.types import Batch

SMALL = {"backbone": "dinov2_vits14", "layer": "blocks.0", "weights": "random", "hidden": 32}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def new_trainer(**changes):
    config = GeneraladConfig(**{**SMALL, **changes})
    return GeneraladTrainer(config, TrainConfig(img_size=56))


@torch.no_grad()
def test_the_block_is_torchs_attention_with_the_norm_after_the_sum_and_none_around_the_mlp():
    block = AttentionBlock(12, 3, 20, 0.1).eval()
    nn.init.normal_(block.qkv.bias)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.copy_(block.qkv.weight)
    theirs.in_proj_bias.copy_(block.qkv.bias)
    theirs.out_proj.load_state_dict(block.proj.state_dict())
    patches = torch.randn(2, 7, 12)
    attended = F.layer_norm(patches + theirs(patches, patches, patches)[0], (12,))
    hidden = F.gelu(F.linear(attended, block.mlp[0].weight, block.mlp[0].bias))
    expected = attended + F.linear(hidden, block.mlp[3].weight, block.mlp[3].bias)
    torch.testing.assert_close(block(patches), expected)


def test_the_loss_adds_up_the_means_of_both_kinds_of_patches_in_a_loop():
    logits = torch.randn(3, 9)
    anomalous = torch.rand(3, 9) > 0.6
    wrong, right = [], []
    pairs = zip(logits.double().flatten().tolist(), anomalous.flatten().tolist(), strict=True)
    for logit, is_anomalous in pairs:
        if is_anomalous:
            wrong.append(math.log1p(math.exp(-logit)))
        else:
            right.append(math.log1p(math.exp(logit)))
    expected = np.mean(wrong) + np.mean(right)
    assert float(two_sided_loss(logits, anomalous)) == pytest.approx(expected, rel=1e-5)


def test_an_image_of_noise_alone_has_a_finite_loss():
    logits = torch.randn(1, 9)
    for kind in (torch.ones, torch.zeros):
        assert torch.isfinite(two_sided_loss(logits, kind(1, 9, dtype=torch.bool)))


def test_parts_have_every_size_from_one_to_all_equally_often():
    sizes = drawn_parts(4000, 5, torch.device("cpu")).sum(1)
    counts = torch.bincount(sizes, minlength=6)
    assert int(counts[0]) == 0
    assert bool((counts[1:] > 700).all())


def test_every_patch_is_as_likely_to_be_drawn_as_any_other():
    drawn = drawn_parts(4000, 5, torch.device("cpu")).float().mean(0)
    torch.testing.assert_close(drawn, torch.full((5,), 0.6), atol=0.04, rtol=0)


def test_shuffling_exchanges_the_chosen_patches_of_each_image_alone():
    patches = torch.randn(2, 30, 4)
    chosen = torch.rand(2, 30) > 0.5
    mixed = shuffled(patches, chosen)
    assert torch.equal(mixed[~chosen], patches[~chosen])
    assert not torch.equal(mixed, patches)
    for before, after in zip(patches, mixed, strict=True):
        assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))


@torch.no_grad()
def test_map_and_score_are_scipys_smoothed_logits_and_the_mean_of_the_ten_worst():
    model = GeneraladModel(GeneraladConfig(**SMALL), 84).eval()
    patches = torch.randn(2, 36, 384)
    logits = model.discriminator(patches)
    enlarged = F.interpolate(logits.view(2, 1, 6, 6), (84, 84), mode="bilinear")[:, 0]
    found = model(torch.zeros(2, 3, 84, 84), (patches,))
    for image in range(2):
        smooth = gaussian_filter(enlarged[image].double().numpy(), 16, mode="mirror", radius=18)
        np.testing.assert_allclose(
            found.anomaly_map[image, 0].numpy(), smooth, rtol=1e-4, atol=1e-5
        )
        worst = np.sort(logits[image].numpy())[-10:]
        assert float(found.pred_score[image]) == pytest.approx(worst.mean(), rel=1e-5)


def test_where_a_patch_lies_counts():
    model = GeneraladModel(GeneraladConfig(**SMALL), 56).eval()
    patches = torch.randn(1, 16, 384)
    with torch.no_grad():
        there = model.discriminator(patches)
        turned = model.discriminator(patches.flip(1)).flip(1)
    assert not torch.allclose(there, turned, atol=1e-3)


def test_the_steps_of_the_learning_rate_go_from_all_to_a_fifth_along_half_a_cosine():
    rates = [lr_factor(step, 10, 0.2) for step in range(11)]
    expected = 0.2 + 0.4 * (1 + np.cos(np.pi * np.arange(11) / 10))
    np.testing.assert_allclose(rates, expected)


@pytest.mark.parametrize("shuffle", [False, True])
def test_training_moves_the_discriminator_alone_and_adds_up_its_losses(shuffle):
    trainer = new_trainer(shuffle=shuffle)
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(10)
    image = torch.randn(2, 3, 56, 56)
    label = torch.zeros(2, dtype=torch.int64)
    batch = Batch(image, label, None, label, trainer.model.features(image))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    found = trainer.train_step(batch)
    parts = [float(value) for name, value in found.items() if name != "loss"]
    assert len(parts) == 3 + shuffle
    assert float(found["loss"]) == pytest.approx(sum(parts), rel=1e-6)
    for name, value in trainer.model.named_parameters():
        is_learnt = name.startswith("discriminator.")
        assert torch.equal(value, before[name]) != is_learnt, name


def test_heads_that_do_not_share_the_width_evenly_are_refused():
    with pytest.raises(InputError, match="heads is 5, but must divide the 384 numbers"):
        GeneraladConfig(**{**SMALL, "heads": 5})
