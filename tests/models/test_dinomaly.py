"""Dinomaly's mathematics against slow loops, autograd and scipy; its network against anomalib's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fake_datasets import write_mvtec
from scipy.ndimage import gaussian_filter
from scipy.special import erf
from torch import nn
from torch.nn import functional as F

from adray.components.top_mean import top_mean
from adray.config import TrainConfig, stored_values
from adray.errors import InputError
from adray.models.dinomaly import (
    Decoder,
    DecoderBlock,
    DinomalyConfig,
    DinomalyModel,
    DinomalyTrainer,
    dinomaly_loss,
    distance_map,
    group_means,
    linear_attention,
    loosened,
    lr_factor,
    recentered,
)
from adray.registry import ModelRegistry
from adray.settings import set_globals
from adray.train import train
from adray.types import Batch

SMALL = "dinov2_vit_small_14"
FOUR = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    """Four blocks that differ: their layer scales are away from the initial 1e-5; positions count for less."""
    model = DinomalyModel(DinomalyConfig(SMALL, FOUR, "random")).eval()
    awaken(model.encoder.net)
    return model


def awaken(net):
    for block in net.blocks:
        nn.init.constant_(block.ls1.gamma, 0.5)
        nn.init.constant_(block.ls2.gamma, 0.5)


def new_trainer(img_size=28, layers=FOUR, **changes):
    trainer = DinomalyTrainer(
        DinomalyConfig(SMALL, layers, "random", **changes), TrainConfig(img_size=img_size)
    )
    awaken(trainer.model.encoder.net)
    return trainer


def batch_of(trainer, image):
    label = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, label, None, label, trainer.model.features(image))


def groups(batch=2, patches=20, width=6, requires_grad=False):
    """Two groups of targets and of what came back."""
    targets = tuple(torch.randn(batch, patches, width) for _ in range(2))
    return targets, tuple(
        torch.randn(batch, patches, width, requires_grad=requires_grad) for _ in range(2)
    )


def cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def test_linear_attention_is_the_weighted_mean_that_loops_over_all_pairs_give():
    query, key, value = (torch.randn(2, 3, 7, 4) for _ in range(3))
    q, k, v = (t.double().numpy() for t in (query, key, value))

    def phi(x):
        return np.where(x > 0, x + 1, np.exp(x))

    expected = np.zeros_like(v)
    for b, h, t in np.ndindex(2, 3, 7):
        weights = np.array([phi(q[b, h, t]) @ phi(k[b, h, s]) for s in range(7)])
        expected[b, h, t] = weights @ v[b, h] / weights.sum()
    np.testing.assert_allclose(
        linear_attention(query, key, value).numpy(), expected, rtol=1e-5, atol=1e-6
    )


def test_linear_attention_stays_finite_where_all_weights_vanish():
    low = torch.full((1, 1, 5, 4), -200.0, requires_grad=True)
    out = linear_attention(low, low, torch.randn(1, 1, 5, 4))
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(low.grad).all()


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16)])
def test_bottleneck_and_decoder_learn_as_many_numbers_as_the_authors(width, heads):
    with torch.device("meta"):
        decoder = Decoder(width, heads, depth=8, dropout=0.2)
    mlp = 2 * 4 * width * width + 4 * width + width
    attention = 4 * width * width + 4 * width
    norms = 2 * 2 * width
    assert sum(p.numel() for p in decoder.parameters()) == mlp + 8 * (mlp + attention + norms)


def test_the_smallest_decoder_has_the_count_of_the_authors_repository():
    with torch.device("meta"):
        decoder = Decoder(384, 6, depth=8, dropout=0.2)
    assert sum(p.numel() for p in decoder.parameters()) == 15_377_280


def test_every_linear_layer_has_a_bias_that_learns_from_the_first_step():
    decoder = Decoder(12, 2, depth=4, dropout=0.2)
    first, second = decoder(torch.randn(2, 5, 12))
    (first.square().sum() + second.square().sum()).backward()
    layers = [part for part in decoder.modules() if isinstance(part, nn.Linear)]
    assert len(layers) == 2 + 4 * 4
    assert all(float(layer.bias.grad.norm()) > 0 for layer in layers)


@torch.no_grad()
def test_a_decoder_block_is_the_papers_equations_with_biases():
    block = DecoderBlock(8, 2)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    state = {name: values.numpy() for name, values in block.state_dict().items()}
    tokens = np.random.default_rng(0).normal(size=(5, 8))

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt(x.var(1, keepdims=True) + 1e-8)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def phi(x):
        return np.where(x > 0, x + 1, np.exp(x))

    query, key, value = np.split(linear("attn.qkv", norm("norm1", tokens)), 3, axis=1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = phi(query[:, head]) @ phi(key[:, head]).T
        heads.append(weights / weights.sum(1, keepdims=True) @ value[:, head])
    expected = tokens + linear("attn.proj", np.concatenate(heads, 1))
    hidden = linear("mlp.0", norm("norm2", expected))
    expected = expected + linear("mlp.2", hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))))
    found = block(torch.from_numpy(tokens).float()[None])[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_without_biases_is_refused_by_name(tmp_path):
    trainer = new_trainer()
    path = tmp_path / "model.pth"
    trainer.save_model(path)
    stored = torch.load(path, weights_only=True)
    del stored["version"]
    torch.save(stored, path)
    with pytest.raises(InputError, match=r"version 1 of DinomalyTrainer.*train it again"):
        new_trainer().load_model(path)


def test_weights_start_within_three_deviations_and_biases_at_zero():
    decoder = Decoder(48, 6, depth=8, dropout=0.2)
    weight = torch.cat(
        [
            p.detach().flatten()
            for name, p in decoder.named_parameters()
            if "norm" not in name and p.ndim == 2
        ]
    )
    assert float(weight.abs().max()) <= 0.03
    assert float(weight.std()) == pytest.approx(0.01, rel=0.02)
    assert all(not p.any() for name, p in decoder.named_parameters() if name.endswith("bias"))


def test_the_first_group_comes_from_the_decoders_last_blocks():
    decoder = Decoder(12, 2, depth=4, dropout=0.2).eval()
    tokens, outputs = torch.randn(2, 5, 12), []
    for block in decoder.blocks:
        block.register_forward_hook(lambda _module, _args, out: outputs.append(out))
    first, second = decoder(tokens)
    torch.testing.assert_close(first, (outputs[3] + outputs[2]) / 2)
    torch.testing.assert_close(second, (outputs[1] + outputs[0]) / 2)


def test_the_bottleneck_drops_numbers_in_training_only():
    decoder, tokens = Decoder(12, 2, depth=2, dropout=0.5), torch.randn(1, 3, 12)
    assert not torch.equal(decoder(tokens)[0], decoder(tokens)[0])
    decoder.eval()
    assert torch.equal(decoder(tokens)[0], decoder(tokens)[0])


@torch.no_grad()
def test_the_bottleneck_gets_the_mean_of_all_tapped_layers(model):
    seen, image = [], torch.randn(2, 3, 42, 28)
    model.decoder.bottleneck.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model(image)
    torch.testing.assert_close(seen[0], torch.stack(model.encoder(image)).mean(0))
    assert seen[0].shape == (2, 1 + 4 + 3 * 2, 384)


@torch.no_grad()
def test_class_token_and_registers_do_not_count(model):
    first, second = model.features(torch.randn(1, 3, 28, 28))
    for count, kept in ((5, True), (6, False)):
        changed = torch.cat((first[:, :count] + 1, first[:, count:]), 1)
        targets, _ = model.targets_and_restored((changed, second))
        assert torch.equal(targets[0], first[:, 5:]) == kept


def test_the_loss_takes_the_cosine_of_whole_flattened_features():
    targets, restored = groups()
    expected = np.mean(
        [
            1 - cosine(t[b].double().numpy().ravel(), r[b].double().numpy().ravel())
            for t, r in zip(targets, restored, strict=True)
            for b in range(2)
        ]
    )
    assert float(dinomaly_loss(targets, restored, 0.0, 0.1)) == pytest.approx(expected, rel=1e-6)
    assert float(dinomaly_loss(targets, restored, 0.9, 0.1)) == pytest.approx(expected, rel=1e-6)


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    targets, restored = groups()
    thrice = (tuple(t.repeat(3, 1, 1) for t in targets), tuple(r.repeat(3, 1, 1) for r in restored))
    torch.testing.assert_close(
        dinomaly_loss(*thrice, 0.0, 0.1), dinomaly_loss(targets, restored, 0.0, 0.1)
    )


def gradients(targets, restored, easy_part, factor=0.1):
    return torch.autograd.grad(dinomaly_loss(targets, restored, easy_part, factor), restored)


def test_with_nothing_easy_the_gradient_is_the_plain_one():
    targets, restored = groups(requires_grad=True)
    plain = torch.stack(
        [
            1 - F.cosine_similarity(t.flatten(1), r.flatten(1))
            for t, r in zip(targets, restored, strict=True)
        ]
    ).mean()
    for ours, autograds in zip(
        gradients(targets, restored, 0.0), torch.autograd.grad(plain, restored), strict=True
    ):
        torch.testing.assert_close(ours, autograds)


def test_with_nine_tenths_easy_one_tenth_of_all_positions_keeps_its_gradient_and_the_others_a_tenth_of_it():
    targets, restored = groups(batch=4, patches=50, requires_grad=True)
    plain, loose = gradients(targets, restored, 0.0), gradients(targets, restored, 0.9)
    for target, given, full, reduced in zip(targets, restored, plain, loose, strict=True):
        ratio = (reduced / full).mean(2)  # (B, P)
        hard = ratio > 0.5
        assert abs(int(hard.sum()) - 20) <= 1
        torch.testing.assert_close(ratio, torch.where(hard, 1.0, 0.1))
        distance = 1 - F.cosine_similarity(target, given.detach(), dim=2)
        assert float(distance[hard].min()) > float(distance[~hard].max())


def test_loosening_leaves_the_values_and_what_needs_no_gradient_alone():
    target, given = torch.randn(1, 5, 4), torch.randn(1, 5, 4, requires_grad=True)
    assert torch.equal(loosened(target, given, 0.9, 0.1), given)
    loosened(target, given, 0.9, 0.0)
    given.sum().backward()  # past the hook
    assert torch.equal(given.grad, torch.ones(1, 5, 4))
    assert loosened(target, target, 0.9, 0.1) is target


@pytest.mark.parametrize(("step", "easy_part"), [(0, 0.0), (500, 0.45), (1000, 0.9), (4000, 0.9)])
def test_the_easy_part_grows_to_its_end_over_a_thousand_steps(step, easy_part):
    trainer = new_trainer(img_size=140, dropout=0.0, clip_norm=1e6)
    trainer.optimizer, _ = trainer.configure_optimizer(10)
    trainer.step = step
    batch = batch_of(trainer, torch.randn(2, 3, 140, 140))
    learnt = list(trainer.model.decoder.parameters())
    loss = dinomaly_loss(*trainer.model.targets_and_restored(batch.features), easy_part, 0.1)
    expected = torch.autograd.grad(loss, learnt)
    trainer.train_step(batch)
    for parameter, gradient in zip(learnt, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_gradients_are_clipped_together():
    trainer = new_trainer(clip_norm=1e-3)
    trainer.optimizer, _ = trainer.configure_optimizer(10)
    trainer.train_step(batch_of(trainer, torch.randn(2, 3, 28, 28)))
    norms = [float(p.grad.norm()) for p in trainer.model.decoder.parameters()]
    assert math.hypot(*norms) == pytest.approx(1e-3, rel=1e-2)


def test_the_learning_rate_of_every_step_is_the_closed_formulas():
    trainer, total = new_trainer(layers=FOUR[:2]), 300
    optimizer, schedule = trainer.configure_optimizer(total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    warm = 2e-3 * np.arange(1, 101) / 100
    cosine_part = 2e-4 + 0.5 * (2e-3 - 2e-4) * (1 + np.cos(np.pi * np.arange(200) / 200))
    np.testing.assert_allclose(rates, np.concatenate((warm, cosine_part)), rtol=1e-9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)


def test_the_optimiser_is_the_papers():
    optimizer, _ = new_trainer(layers=FOUR[:2]).configure_optimizer(10)
    (group,) = optimizer.param_groups
    expected = {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-4,
        "amsgrad": True,
        "initial_lr": 2e-3,
    }
    assert {name: group[name] for name in expected} == expected


def test_a_short_training_warms_up_for_half_of_its_steps():
    rates = [lr_factor(step, 20, 100, 0.1) for step in range(20)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert lr_factor(0, 1, 100, 0.1) == 1.0


def test_the_map_is_the_mean_of_the_groups_distances_enlarged_corner_to_corner():
    targets, restored = groups(batch=1, patches=6)
    size, expected = (28, 42), np.zeros((28, 42))
    for target, given in zip(targets, restored, strict=True):
        small = np.array(
            [1 - cosine(*pair) for pair in zip(target[0].numpy(), given[0].numpy(), strict=True)]
        )
        small = small.reshape(2, 3)
        for i, j in np.ndindex(size):
            y, x = i / 27, 2 * j / 41
            left = min(int(x), 1)
            column = small[:, left] * (1 - (x - left)) + small[:, left + 1] * (x - left)
            expected[i, j] += (column[0] * (1 - y) + column[1] * y) / 2
    found = distance_map(targets, restored, size)
    assert found.shape == (1, 1, 28, 42)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_score_is_the_mean_of_the_largest_hundredth_of_scipys_smoothed_map(model):
    prediction = model(torch.randn(2, 3, 56, 56))
    small = (
        F.interpolate(prediction.anomaly_map, (256, 256), mode="bilinear")[:, 0].double().numpy()
    )
    for score, raw in zip(prediction.pred_score, small, strict=True):
        smooth = gaussian_filter(raw, sigma=4.0, mode="mirror", truncate=0.5)  # 5 x 5
        assert float(score) == pytest.approx(np.sort(smooth.ravel())[-655:].mean(), rel=1e-5)


def test_the_mean_of_the_largest_takes_at_least_one():
    assert top_mean(torch.tensor([[[[1.0, 5.0], [2.0, 3.0]]]])).tolist() == [5.0]


def test_a_restored_patch_that_is_wrong_scores_higher_there():
    targets, _ = groups(batch=1, patches=16)
    spoilt = targets[0].clone()
    spoilt[0, 6] = -spoilt[0, 6]
    found = distance_map(targets, (spoilt, targets[1]), (56, 56))[0, 0]
    assert divmod(int(found.flatten().argmax()), 56) == (round(1 * 55 / 3), round(2 * 55 / 3))


def test_group_means_are_of_either_half():
    layers = tuple(torch.full((1, 2, 3), float(i)) for i in range(6))
    first, second = group_means(layers)
    assert (float(first.mean()), float(second.mean())) == (1.0, 4.0)


@torch.no_grad()
def test_recentred_patches_are_less_their_own_layers_class_token(model):
    layers = model.encoder(torch.randn(2, 3, 28, 42))
    for tokens, moved in zip(layers, recentered(layers, 5), strict=True):
        for image, found in zip(tokens.numpy(), moved.numpy(), strict=True):
            np.testing.assert_allclose(found, image[5:] - image[0], rtol=1e-6)


def test_what_all_tokens_of_a_layer_share_changes_nothing_that_is_recentred():
    trainer = new_trainer(recenter=True, dropout=0.0)
    model = trainer.model
    layers = model.encoder(torch.randn(2, 3, 28, 28))
    shifted = tuple(tokens + torch.randn(384) for tokens in layers)

    def loss(tokens):
        return dinomaly_loss(
            *model.targets_and_restored(group_means(recentered(tokens, 5))), 0.0, 0.1
        )

    torch.testing.assert_close(loss(shifted), loss(layers), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_recentred_features_are_the_group_means_less_the_mean_class_tokens():
    model = new_trainer(recenter=True).model
    image = torch.randn(2, 3, 28, 28)
    plain = group_means(model.encoder(image))
    for found, tokens in zip(model.features(image), plain, strict=True):
        torch.testing.assert_close(found, tokens[:, 5:] - tokens[:, :1], rtol=1e-4, atol=1e-5)
    assert model(image).anomaly_map.shape == (2, 1, 28, 28)


def test_recentring_is_named_in_an_id_only_where_it_is_asked_for():
    plain = ModelRegistry.resolve("dinomaly-base-392")
    moved = ModelRegistry.resolve("dinomaly-base-392-recentered")
    assert "recenter" not in stored_values(plain.config)
    assert stored_values(moved.config)["recenter"] is True
    assert not plain.config.recenter
    assert stored_values(plain.config)["dropout"] == 0.2


@torch.no_grad()
def test_given_features_keep_the_encoder_from_running(model):
    image = torch.randn(2, 3, 28, 28)
    features, direct = model.features(image), model(image)
    model.encoder.net.blocks = None
    torch.testing.assert_close(model(image, features).anomaly_map, direct.anomaly_map)


@torch.no_grad()
def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(model):
    image = torch.randn(8, 3, 28, 28)
    one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
    torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_attention_maps_and_scores_are_float32_under_mixed_precision(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(torch.ones(1, 3, 28, 28))
        half = torch.randn(1, 2, 4, 3, dtype=torch.bfloat16)
        assert linear_attention(half, half, half).dtype == torch.float32
    assert (low.pred_score.dtype, low.anomaly_map.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(
        low.pred_score, model(torch.ones(1, 3, 28, 28)).pred_score, rtol=0.05, atol=0.01
    )


def test_training_moves_bottleneck_and_decoder_only_and_lowers_the_loss():
    trainer = new_trainer(dropout=0.0, warmup_steps=0)
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(20)
    trainer.model.train()
    batch = batch_of(trainer, torch.randn(4, 3, 28, 28))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("encoder."), name


def test_an_odd_number_of_layers_and_sizes_of_broken_patches_are_refused():
    with pytest.raises(InputError, match="must be an even number of blocks"):
        DinomalyConfig(SMALL, FOUR[:3])
    with pytest.raises(InputError, match=r"input size 256 .* must be a multiple of 14"):
        DinomalyTrainer.check_inputs(DinomalyConfig(SMALL, FOUR), TrainConfig(img_size=256))
    with pytest.raises(InputError, match="did you mean 'dinov2_vitb14'"):
        DinomalyConfig("dinov2_vitb_14")
    with pytest.raises(InputError, match=r"easy_part is 1, but must be between 0 and 0\.999"):
        DinomalyConfig(SMALL, FOUR, easy_part=1)


def test_the_plan_looks_into_the_weight_file(tmp_path):
    config, path = DinomalyConfig(SMALL, FOUR[:2]), tmp_path / "model.pth"
    torch.save(timm.create_model("vit_small_patch14_dinov2", depth=2).state_dict(), path)
    DinomalyTrainer.check_weight_file(config, SMALL, path)
    with pytest.raises(InputError, match=r"lacks blocks\.2\."):
        DinomalyTrainer.check_weight_file(DinomalyConfig(SMALL, FOUR), SMALL, path)


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_the_nine_rows_take_the_papers_blocks_sizes_and_steps(size):
    for side in (224, 392, 448):
        resolved = ModelRegistry.resolve(f"dinomaly-{size}-{side}", budget="paper")
        first, step = (4, 2) if size == "large" else (2, 1)
        assert resolved.config.layers == tuple(f"blocks.{first + step * i}" for i in range(8))
        assert resolved.config.backbone == f"dinov2_vit_{size}_14"
        config = resolved.train_config
        assert (config.img_size, config.input_size) == ({224: 256, 392: 448, 448: 512}[side], side)
        assert (config.batch_size, config.max_steps) == (16, 5000)
        assert (
            ModelRegistry.resolve(f"dinomaly-{size}-{side}", budget="quick").train_config.num_epochs
            == 15
        )
    assert ModelRegistry.get("dinomaly").name == "dinomaly-base-392"


@pytest.mark.parametrize(
    ("registers", "words"), [("reg4_", "4 registers"), ("", "without registers; the paper's has")]
)
def test_the_result_says_of_which_file_layout_and_registers_the_encoder_is(
    tmp_path, registers, words
):
    path = tmp_path / "backbones" / SMALL / "dinov2_vits14_pretrain.pth"
    path.parent.mkdir(parents=True)
    net = timm.create_model(f"vit_small_patch14_{registers}dinov2", depth=2)
    torch.save(net.state_dict(), path)
    write_mvtec(tmp_path / "datasets" / "mvtec", categories=("bottle",), train=8, size=56)
    set_globals(
        dataset_dir=str(tmp_path / "datasets"),
        backbone_dir=str(path.parents[1]),
        output_dir=str(tmp_path / "outputs"),
    )
    result = train(
        "mvtec", "bottle", "dinomaly-small-224", 1, img_size=64, model={"layers": list(FOUR[:2])}
    )
    assert f"encoder {path.name}: {SMALL} in timm's layout, {words}" in result["notes"][0]
    stored = torch.load(next(Path(result["folder"]).glob("model_*.pth")), weights_only=True)
    identity = stored["backbones"]["encoder"]
    assert (identity["layout"], identity["registers"]) == ("timm", 4 if registers else 0)
    assert new_trainer().notes() == []


@pytest.mark.slow
@pytest.mark.parametrize("side", [224, 392, 448])
@pytest.mark.parametrize(
    ("size", "trained", "frozen"), [("small", 15.4, 18), ("base", 61.4, 73), ("large", 109.1, 242)]
)
def test_the_real_networks_train_a_step_at_the_real_number_of_tokens(size, side, trained, frozen):
    trainer = ModelRegistry.get_trainer(f"dinomaly-{size}-{side}", weights="random")
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(5000)
    batch = batch_of(trainer, torch.randn(1, 3, side, side))
    width, tokens = {"small": 384, "base": 768, "large": 1024}[size], 5 + (side // 14) ** 2
    assert [tuple(f.shape) for f in batch.features] == [(1, tokens, width)] * 2
    trainer.model.train()
    assert torch.isfinite(trainer.train_step(batch)["loss"])
    prediction = trainer.predict_batch(batch)
    assert prediction.anomaly_map.shape == (1, 1, side, side)
    assert torch.isfinite(prediction.pred_score).all()
    counts = [
        sum(p.numel() for p in part.parameters()) / 1e6
        for part in (trainer.model.decoder, trainer.model.encoder)
    ]
    assert counts == [pytest.approx(trained, abs=0.05), pytest.approx(frozen, rel=0.05)]


class AnomalibsEncoder(nn.Module):
    """Ours, in the shape in which anomalib's network asks for tokens."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.patch_size, self.num_register_tokens = encoder, 14, 4

    def forward(self, image):
        return dict(zip(self.encoder.layers, self.encoder(image), strict=True))


@pytest.fixture
def both_networks(monkeypatch):
    """Our network and anomalib's with the same weights, in which a normal product has been learnt a little."""
    theirs_module = pytest.importorskip("anomalib.models.image.dinomaly.torch_model")
    ours = DinomalyModel(DinomalyConfig(SMALL, weights="random", dropout=0.0)).eval()
    awaken(ours.encoder.net)
    monkeypatch.setattr(
        theirs_module, "TimmFeatureExtractor", lambda **_: AnomalibsEncoder(ours.encoder)
    )
    theirs = theirs_module.DinomalyModel(
        "vit_small_patch14_reg4_dinov2", bottleneck_dropout=0.0
    ).eval()
    renamed = {}
    for name, tensor in ours.decoder.state_dict().items():
        for our_word, their_word in {
            "bottleneck.1": "bottleneck.0.fc1",
            "bottleneck.4": "bottleneck.0.fc2",
            "blocks": "decoder",
            "mlp.0": "mlp.fc1",
            "mlp.2": "mlp.fc2",
        }.items():
            name = name.replace(our_word, their_word)
        # The port has no biases there; the authors have, and they start at zero.
        if ".fc" not in name or name.endswith("weight"):
            renamed[name] = 3 * tensor
    ours.decoder.load_state_dict(
        {name: 3 * tensor for name, tensor in ours.decoder.state_dict().items()}
    )
    outcome = theirs.load_state_dict(renamed, strict=False)
    assert not outcome.unexpected_keys
    assert all(name.startswith(("encoder.", "gaussian_blur.")) for name in outcome.missing_keys)
    return ours, theirs


@pytest.mark.slow
@torch.no_grad()
def test_maps_and_scores_are_anomalibs_with_the_same_weights(both_networks):
    ours, theirs = both_networks
    image = torch.randn(3, 3, 112, 84)
    mine, anomalibs = ours(image), theirs(image)
    torch.testing.assert_close(mine.anomaly_map, anomalibs.anomaly_map, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.pred_score, anomalibs.pred_score, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 400, 1000, 3000])
def test_loss_and_gradients_are_anomalibs_with_the_same_weights(both_networks, step):
    ours, theirs = both_networks
    image = torch.randn(2, 3, 56, 56)
    easy_part = 0.9 * min(1.0, step / 1000)
    loss = dinomaly_loss(*ours.targets_and_restored(ours.features(image)), easy_part, 0.1)
    loss.backward()
    theirs.train()
    anomalibs = theirs(image, global_step=step)
    anomalibs.backward()
    torch.testing.assert_close(loss, anomalibs, rtol=1e-4, atol=1e-6)
    pairs = zip(ours.decoder.blocks, theirs.decoder, strict=True)
    for mine, block in pairs:
        torch.testing.assert_close(
            mine.attn.qkv.weight.grad, block.attn.qkv.weight.grad, rtol=1e-3, atol=1e-7
        )
        torch.testing.assert_close(
            mine.mlp[2].weight.grad, block.mlp.fc2.weight.grad, rtol=1e-3, atol=1e-7
        )
    bottleneck = theirs.bottleneck[0].fc1.weight.grad
    torch.testing.assert_close(
        ours.decoder.bottleneck[1].weight.grad, bottleneck, rtol=1e-3, atol=1e-7
    )


@pytest.mark.slow
def test_the_optimiser_takes_anomalibs_steps():
    optimizer = pytest.importorskip("anomalib.models.image.dinomaly.components.optimizer")
    from adray.components.stable_adamw import StableAdamW

    ends = []
    for cls in (StableAdamW, optimizer.StableAdamW):
        torch.manual_seed(1)
        parameter = nn.Parameter(torch.randn(8, 5))
        adam = cls([parameter], lr=2e-3, weight_decay=1e-4, amsgrad=True)
        for step in range(15):
            parameter.grad = 1.8**step * torch.randn(8, 5)
            adam.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends)
