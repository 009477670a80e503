"""INP-Former's mathematics against loops in numpy, autograd and torchvision; its network's plumbing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as vision

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.inpformer import (
    VIEW_COUNT,
    DecoderBlock,
    InpformerConfig,
    InpformerModel,
    InpformerTrainer,
    PrototypeExtractor,
    Restorer,
    coherence_loss,
    focused,
    soft_mining_loss,
    view_matrices,
    viewed,
)
from adray.types import Batch

SMALL = "dinov2_vits14_reg4"
FOUR = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model():
    """Four blocks that differ: their layer scales are away from the initial 1e-5."""
    torch.manual_seed(0)
    model = InpformerModel(InpformerConfig(SMALL, FOUR, "random")).eval()
    for block in model.extractor.net.blocks:
        nn.init.constant_(block.ls1.gamma, 0.5)
        nn.init.constant_(block.ls2.gamma, 0.5)
    return model


def new_trainer(**changes):
    config = InpformerConfig(SMALL, FOUR[:2], "random", **changes)
    return InpformerTrainer(config, TrainConfig(img_size=28, batch_size=16))


def batch_of(count, size=28):
    label = torch.zeros(count, dtype=torch.int64)
    return Batch(torch.randn(count, 3, size, size), label, None, torch.arange(count))


@torch.no_grad()
def shaken(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return {name: values.double().numpy() for name, values in module.state_dict().items()}


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state, name, x):
    centred = x - x.mean(1, keepdims=True)
    scaled = centred / np.sqrt(x.var(1, keepdims=True) + 1e-8)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def mlp(state, x):
    hidden = linear(state, "mlp.0", x)
    return linear(state, "mlp.2", hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


@torch.no_grad()
def test_prototypes_are_softmax_means_of_the_patches_in_numpy():
    extractor = PrototypeExtractor(8, 2, count=3)
    state = shaken(extractor)
    patches = np.random.default_rng(0).normal(size=(5, 8))

    query = linear(state, "query", norm(state, "norm1", state["queries"]))
    key, value = np.split(linear(state, "key_value", norm(state, "norm1", patches)), 2, axis=1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = np.exp(query[:, head] @ key[:, head].T / 2)  # the root of 4
        heads.append(weights / weights.sum(1, keepdims=True) @ value[:, head])
    expected = state["queries"] + linear(state, "proj", np.concatenate(heads, 1))
    expected = expected + mlp(state, norm(state, "norm2", expected))

    found = extractor(torch.from_numpy(patches).float()[None])[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_decoder_block_mixes_prototypes_by_rectified_cosines_in_numpy():
    block = DecoderBlock(8, 2)
    state = shaken(block)
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(5, 8))
    prototypes = rng.normal(size=(3, 8))

    query = linear(state, "attn.query", norm(state, "norm1", patches))
    joined = linear(state, "attn.key_value", norm(state, "norm1", prototypes))
    key, value = np.split(joined, 2, axis=1)
    heads = []
    for number, head in enumerate((slice(0, 4), slice(4, 8))):
        scale = state["attn.scale"][number, 0, 0]
        weights = np.maximum(scale * unit(query[:, head]) @ unit(key[:, head]).T, 0)
        heads.append(weights @ value[:, head])
    attended = linear(state, "attn.proj", np.concatenate(heads, 1))
    expected = attended + mlp(state, norm(state, "norm2", attended))

    found = block(
        torch.from_numpy(patches).float()[None], torch.from_numpy(prototypes).float()[None]
    )
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_anything_in_the_prototypes_all_patches_come_back_alike():
    """A sum around the attention would let each patch through."""
    block = DecoderBlock(8, 2)
    shaken(block)
    nn.init.zeros_(block.attn.key_value.weight)
    nn.init.zeros_(block.attn.key_value.bias)
    found = block(torch.randn(1, 5, 8), torch.randn(1, 3, 8))
    torch.testing.assert_close(found, found[:, :1].expand_as(found))


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16)])
def test_it_learns_as_many_numbers_as_the_authors_network(width, heads):
    with torch.device("meta"):
        restorer = Restorer(width, heads, depth=8, prototypes=6)
    mlp_count = 2 * 4 * width * width + 4 * width + width
    attention = 4 * width * width + 4 * width
    norms = 2 * 2 * width
    block = mlp_count + attention + norms
    expected = mlp_count + (block + 6 * width) + 8 * (block + heads)
    assert sum(p.numel() for p in restorer.parameters()) == expected


def test_the_first_group_comes_from_the_decoders_last_blocks():
    restorer = Restorer(12, 2, depth=4, prototypes=3)
    outputs = []
    for block in restorer.blocks:
        block.register_forward_hook(lambda _module, _args, out: outputs.append(out))
    (first, second), prototypes = restorer(torch.randn(2, 5, 12))
    torch.testing.assert_close(first, (outputs[3] + outputs[2]) / 2)
    torch.testing.assert_close(second, (outputs[1] + outputs[0]) / 2)
    assert prototypes.shape == (2, 3, 12)


def test_the_coherence_loss_is_the_mean_distance_to_the_nearest_prototype():
    patches = torch.randn(2, 7, 4)
    prototypes = torch.randn(2, 3, 4)
    expected = []
    for image, own in zip(patches.numpy(), prototypes.numpy(), strict=True):
        for patch in image:
            expected.append(min(1 - cosine(patch, one) for one in own))
    assert float(coherence_loss(patches, prototypes)) == pytest.approx(np.mean(expected), rel=1e-5)


def groups(batch=2, patches=20, width=6):
    targets = tuple(torch.randn(batch, patches, width) for _ in range(2))
    restored = tuple(torch.randn(batch, patches, width, requires_grad=True) for _ in range(2))
    return targets, restored


def test_the_mining_loss_takes_the_cosine_of_whole_flattened_features():
    targets, restored = groups()
    expected = []
    for target, given in zip(targets, restored, strict=True):
        for t, r in zip(target.numpy(), given.detach().numpy(), strict=True):
            expected.append(1 - cosine(t.ravel(), r.ravel()))
    for exponent in (0.0, 3.0):
        loss = soft_mining_loss(targets, restored, exponent)
        assert float(loss.detach()) == pytest.approx(np.mean(expected), rel=1e-5)


def gradients(targets, restored, exponent):
    return torch.autograd.grad(soft_mining_loss(targets, restored, exponent), restored)


def test_the_gradient_of_a_position_grows_with_the_power_of_its_distance_over_the_mean():
    targets, restored = groups()
    plain = gradients(targets, restored, 0.0)
    mined = gradients(targets, restored, 3.0)
    for target, given, before, after in zip(targets, restored, plain, mined, strict=True):
        flat = zip(target.flatten(0, 1).numpy(), given.detach().flatten(0, 1).numpy(), strict=True)
        distance = np.array([1 - cosine(t, r) for t, r in flat])
        factor = (distance / distance.mean()) ** 3
        ratio = (after / before).flatten(0, 1).numpy()  # (B * P, D)
        np.testing.assert_allclose(ratio, np.repeat(factor[:, None], 6, 1), rtol=1e-3)


def test_a_perfect_restoration_has_a_finite_gradient():
    target = torch.randn(2, 5, 4)
    restored = target.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(soft_mining_loss((target,), (restored,), 3.0), restored)
    assert torch.isfinite(gradient).all()


def test_what_needs_no_gradient_is_left_alone():
    target = torch.randn(1, 5, 4)
    assert focused(target, target, 3.0) is target


# Views


def test_there_are_as_many_views_as_the_authors_make():
    assert len(view_matrices()) + 1 == VIEW_COUNT == 22
    assert len({tuple(one.flatten().tolist()) for one in view_matrices()}) == 21


def test_mirrored_grey_and_quarter_turned_views_exchange_or_mix_pixels():
    image = torch.randn(1, 3, 9, 9)
    shown = viewed(image.expand(22, -1, -1, -1), torch.arange(22))
    torch.testing.assert_close(shown[0], image[0])
    torch.testing.assert_close(shown[17], image[0].flip(2), atol=1e-5, rtol=1e-5)
    quarters = [torch.rot90(image[0], number, (1, 2)) for number in (1, 2, 3)]
    for one in shown[18:21]:
        assert sum(torch.allclose(one, quarter, atol=1e-4) for quarter in quarters) == 1
    torch.testing.assert_close(
        shown[21], vision.rgb_to_grayscale(image[0], 3), atol=2e-3, rtol=1e-2
    )


def test_turned_and_shifted_views_equal_torchvisions_inside():
    smooth = F.interpolate(torch.randn(1, 3, 6, 6), (60, 60), mode="bicubic")
    middle = (slice(None), slice(20, 40), slice(20, 40))
    shown = viewed(smooth.expand(17, -1, -1, -1), torch.arange(17))
    bilinear = vision.InterpolationMode.BILINEAR
    for number, part in enumerate((-4, -3, -2, -1, 1, 2, 3, 4), start=1):
        turned = vision.rotate(smooth[0], 180 / 16 * part, bilinear)
        torch.testing.assert_close(shown[number][middle], turned[middle], atol=1e-3, rtol=1e-3)

    # Two tenths of half a side are six of sixty pixels.
    torch.testing.assert_close(shown[9][:, 20:40, 20:40], smooth[0, :, 26:46, 26:46])
    torch.testing.assert_close(shown[16][:, 20:40, 20:40], smooth[0, :, 17:37, 17:37])


@pytest.mark.parametrize(("images", "views"), [(1, 16), (4, 4), (5, 3), (16, 1), (20, 1)])
def test_a_step_takes_as_many_views_of_each_image_as_fill_a_batch(images, views):
    trainer = new_trainer(few_shot_views=True)
    batch = batch_of(images)
    shown = trainer.augment(batch)
    assert len(shown.image) == len(shown.features[0]) == images * views
    assert shown.index.tolist() == np.repeat(np.arange(images), views).tolist()


def test_views_are_drawn_without_repetition_and_anew_each_time():
    trainer = new_trainer(few_shot_views=True)
    batch = batch_of(1)
    first = trainer.augment(batch).image
    second = trainer.augment(batch).image
    assert len(torch.unique(first.flatten(1), dim=0)) == 16
    assert not torch.equal(first, second)
    assert torch.equal(new_trainer().augment(batch).image, batch.image)


def test_the_features_of_views_are_those_of_the_views():
    trainer = new_trainer(few_shot_views=True)
    shown = trainer.augment(batch_of(2))
    torch.testing.assert_close(shown.features, trainer.model.features(shown.image))


# The network and its training


@torch.no_grad()
def test_features_are_means_of_both_halves_of_the_blocks_without_registers(model):
    image = torch.randn(2, 3, 28, 42)
    tokens = [one[:, 5:].float() for one in model.extractor(image)]
    first, second = model.features(image)
    torch.testing.assert_close(first, (tokens[0] + tokens[1]) / 2)
    torch.testing.assert_close(second, (tokens[2] + tokens[3]) / 2)
    assert first.shape == (2, 6, 384)


@torch.no_grad()
def test_prototypes_are_drawn_from_the_mean_of_all_blocks(model):
    image = torch.randn(1, 3, 28, 28)
    tokens = [one[:, 5:].float() for one in model.extractor(image)]
    _, _, patches = model.restore(model.features(image))
    torch.testing.assert_close(patches, torch.stack(tokens).mean(0))


def test_training_moves_all_that_is_learnt_and_lowers_the_loss():
    trainer = new_trainer(warmup_steps=0)
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(20)
    before = {name: value.clone() for name, value in trainer.model.restorer.named_parameters()}
    batch = batch_of(2)
    batch = Batch(batch.image, batch.label, None, batch.index, trainer.model.features(batch.image))
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    for name, value in trainer.model.restorer.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_the_loss_is_mining_plus_weighted_coherence():
    trainer = new_trainer(coherence_weight=0.7)
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(20)
    batch = batch_of(2)
    batch = Batch(batch.image, batch.label, None, batch.index, trainer.model.features(batch.image))
    found = trainer.train_step(batch)
    expected = float(found["mining"]) + 0.7 * float(found["coherence"])
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-6)


def test_the_optimiser_is_the_authors():
    optimizer, schedule = new_trainer().configure_optimizer(300)
    (group,) = optimizer.param_groups
    expected = {
        "betas": (0.9, 0.999),
        "eps": 1e-10,
        "weight_decay": 1e-4,
        "amsgrad": True,
        "initial_lr": 1e-3,
    }
    assert {name: group[name] for name in expected} == expected
    for _ in range(300):
        optimizer.step()
        schedule.step()
    assert group["lr"] == pytest.approx(1e-4)


def test_gradients_are_clipped_together():
    trainer = new_trainer(clip_norm=1e-3)
    trainer.optimizer, _ = trainer.configure_optimizer(10)
    batch = batch_of(2)
    batch = Batch(batch.image, batch.label, None, batch.index, trainer.model.features(batch.image))
    trainer.train_step(batch)
    norms = [float(p.grad.norm()) for p in trainer.model.restorer.parameters()]
    assert math.hypot(*norms) == pytest.approx(1e-3, rel=1e-2)


def test_an_odd_number_of_blocks_is_refused():
    with pytest.raises(InputError, match="even number of blocks"):
        InpformerConfig(SMALL, FOUR[:3], "random")
