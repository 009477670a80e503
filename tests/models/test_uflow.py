"""U-Flow's mathematics against autograd, scipy, FrEIA and slow loops, its network against anomalib's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from FrEIA.modules import IRevNetUpsampling
from scipy import ndimage
from scipy.stats import binom, chi2, norm
from torch import nn
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.uflow import (
    UflowConfig,
    UflowModel,
    UflowTrainer,
    UShapedFlow,
    component_tree,
    log_nfa,
    log_nfa_of_regions,
    log_number_of_regions,
    log_probability_of_regions,
    log_tail,
    uflow_loss,
    unlikelihood_map,
)
from adray.types import Batch

LAYERS = ("layer1", "layer2", "layer3")
DEIT = "deit_tiny_distilled_patch16_224"
SHAPES = ((4, 4, 4), (8, 2, 2), (8, 1, 1))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomised(flow, spread):
    """Away from the initial values."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return flow


@pytest.fixture
def flow():
    """Three scales, steps away from their initial values, in double precision."""
    return randomised(UShapedFlow([4, 8, 8], UflowConfig(flow_steps=2)), 0.3).double()


def new_model(layers=LAYERS, input_size=32, flow_steps=1):
    config = UflowConfig(("resnet18",), layers, "random", flow_steps=flow_steps)
    return UflowModel(config, input_size).eval()


@pytest.fixture
def model():
    return new_model(flow_steps=2)


def maps_of(x):
    """Flat numbers (B, n) as the maps of `SHAPES`."""
    parts = x.split([int(np.prod(shape)) for shape in SHAPES], dim=1)
    return [part.view(-1, *shape) for part, shape in zip(parts, SHAPES, strict=True)]


def test_the_log_determinant_is_that_of_autograds_jacobian(flow):
    x = torch.randn(1, 104, dtype=torch.float64)

    def flat(x):
        return torch.cat([z.flatten() for z in flow(maps_of(x[None]))[0]])

    jacobian = torch.autograd.functional.jacobian(flat, x[0])
    assert jacobian.shape == (104, 104)
    torch.testing.assert_close(flow(maps_of(x))[1][0], torch.linalg.slogdet(jacobian).logabsdet)


def test_the_way_back_gives_the_maps_and_the_determinants_inverse(flow):
    maps = maps_of(torch.randn(3, 104, dtype=torch.float64))
    latents, log_det = flow(maps)
    restored, log_det_back = flow(latents, rev=True)
    for ours, expected in zip(restored, maps, strict=True):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(log_det_back, -log_det)


def test_enlarging_is_the_inverse_of_its_inverse_and_freias(flow):
    x = torch.randn(2, 12, 3, 5)
    (freias,), _ = IRevNetUpsampling([(12, 3, 5)])((x,))
    torch.testing.assert_close(F.pixel_shuffle(x, 2), freias)
    torch.testing.assert_close(F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), x)
    torch.testing.assert_close(F.pixel_shuffle(F.pixel_unshuffle(freias, 2), 2), freias)


def test_two_caits_give_the_latent_shapes_of_the_paper():
    config = UflowConfig(flow_steps=1, kernel_sizes=(1,), hidden_ratio=0.1)
    flow = UShapedFlow([768, 384], config)
    latents, _ = flow([torch.zeros(1, 768, 28, 28), torch.zeros(1, 384, 14, 14)])
    assert [tuple(z.shape[1:]) for z in latents] == [(816, 28, 28), (192, 14, 14)]


def test_the_loss_is_scipys_negative_log_likelihood_up_to_its_constant():
    latents = [
        torch.randn(5, 3, 4, 4, dtype=torch.float64),
        torch.randn(5, 6, 2, 2, dtype=torch.float64),
    ]
    log_det = torch.randn(5, dtype=torch.float64)
    per_image = log_det.numpy() + sum(norm.logpdf(z.numpy()).reshape(5, -1).sum(1) for z in latents)
    constant = 0.5 * np.log(2 * np.pi) * (3 * 16 + 6 * 4)
    assert float(uflow_loss(latents, log_det)) == pytest.approx(
        float(-per_image.mean() - constant), rel=1e-5
    )


def test_duplicating_the_batch_leaves_the_loss_unchanged(model):
    features = model.features(torch.randn(2, 3, 32, 32))
    once = uflow_loss(*model.latents(features))
    thrice = uflow_loss(*model.latents(tuple(f.repeat(3, 1, 1, 1) for f in features)))
    torch.testing.assert_close(once, thrice, rtol=1e-5, atol=0)


def test_the_map_is_one_minus_the_mean_of_the_enlarged_densities():
    latents = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    expected = np.ones((2, 8, 8))
    for z in latents:
        density = np.exp(-0.5 * (z.numpy() ** 2).mean(1))  # (B, h, w)
        enlarged = F.interpolate(
            torch.from_numpy(density)[:, None], (8, 8), mode="bilinear", align_corners=False
        )
        expected -= enlarged[:, 0].numpy() / 2
    np.testing.assert_allclose(unlikelihood_map(latents, (8, 8))[:, 0].numpy(), expected, rtol=1e-5)


def test_an_unlikely_position_scores_higher():
    z = torch.zeros(1, 3, 4, 4)
    z[:, :, 1, 2] = 4.0
    assert int(unlikelihood_map([z], (4, 4)).flatten().argmax()) == 1 * 4 + 2


@pytest.mark.parametrize(("side", "quantile"), [(5, 0.9), (7, 0.5), (3, 0.9)])
def test_the_tail_is_scipys_binomial_one_of_the_window(side, quantile):
    z = torch.randn(2, 5, 8, 6)
    z[0, :, 2:6, 1:5] = 9.0
    half, threshold = side // 2, chi2.ppf(quantile, 1)
    large = np.pad(
        z.numpy() ** 2 >= threshold, ((0, 0), (0, 0), (half, half), (half, half)), mode="reflect"
    )
    expected = np.zeros((2, 1, 8, 6))
    for b, i, j in np.ndindex(2, 8, 6):
        count = int(large[b, :, i : i + side, j : j + side].sum())
        at_least = min(count // 5 + 1, side**2)  # P(K > count / 5), for a whole K
        expected[b, 0, i, j] = np.log10(
            binom.pmf(np.arange(at_least, side**2 + 1), side**2, 1 - quantile).sum()
        )
    np.testing.assert_allclose(log_tail(z, side, quantile).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_window_full_of_large_values_has_a_finite_logarithm():
    tail = log_tail(torch.full((1, 4, 8, 8), 9.0), 7, 0.5)
    np.testing.assert_allclose(tail.numpy(), 49 * np.log10(0.5), rtol=1e-5)
    assert torch.isfinite(log_nfa([torch.full((1, 4, 8, 8), 9.0)], (16, 16))).all()


def test_the_a_contrario_test_is_the_authors_of_windows_of_5_and_3_at_the_quantile_0_9():
    # Small numbers of channels, so that many mean counts are whole numbers.
    latents = [torch.randn(2, 2, 16, 16), torch.randn(2, 4, 8, 8), torch.randn(2, 3, 4, 4)]
    latents[0][:, :, 3:7, 3:7] = 3.0
    total = torch.zeros(2, 1, 32, 32)
    for z, half in zip(latents, (2, 1, 1), strict=True):
        squares = F.pad(z**2, [half] * 4, mode="reflect").numpy()
        windows = np.lib.stride_tricks.sliding_window_view(squares, (2 * half + 1,) * 2, (2, 3))
        large = (windows >= chi2.ppf(0.9, 1)).sum((1, 4, 5))  # over channels and the window
        logsf = binom.logsf(large / z.shape[1], (2 * half + 1) ** 2, 0.1) / np.log(10)
        assert np.isfinite(logsf).all()
        tail = torch.from_numpy(logsf)[:, None].float()
        total += F.interpolate(tail, (32, 32), mode="bicubic", align_corners=True)
    expected = total + np.log10(256 + 64 + 16)
    torch.testing.assert_close(log_nfa(latents, (32, 32)), expected, rtol=1e-4, atol=1e-4)


def test_noise_raises_no_alarm_and_a_patch_of_large_values_does():
    latents = [torch.randn(8, 20, 16, 16), torch.randn(8, 20, 8, 8)]
    assert not (log_nfa(latents, (64, 64)) < 0).any()
    latents[0][:, :, 4:12, 4:12] = 3.0
    latents[1][:, :, 2:6, 2:6] = 3.0
    alarm = log_nfa(latents, (64, 64)) < 0
    assert alarm[:, :, 28:36, 28:36].all()
    assert not alarm[:, :, :4].any()  # a window reaches one coarse cell further


def test_the_mask_is_where_fewer_than_one_false_alarm_is_expected(model):
    image = torch.randn(2, 3, 64, 64)
    model = new_model(LAYERS[:2], input_size=64)
    with torch.no_grad():
        latents, _ = model.latents(model.features(image))
        mask = model.anomaly_mask(image)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, log_nfa(latents, (64, 64)) < 0)


def parts_of(level):
    """Every 4-connected part above a level, by labelling the map at each, as sets of positions."""
    parts = set()
    for threshold in np.unique(level):
        labels, count = ndimage.label(level >= threshold)
        for k in range(1, count + 1):
            parts.add(frozenset(np.flatnonzero(labels == k).tolist()))
    return parts


def slow_regions(level, channels):
    """Procedures 1 and 2 of the paper, taken literally on sets until nothing changes."""
    flat = level.ravel().astype(float)
    log_probability = {}
    for part in parts_of(level):
        least = max(min(flat[i] for i in part), 1.0)
        bound = -channels / 2 * (least - 1 - np.log(least)) / np.log(10)
        log_probability[part] = len(part) * bound

    parts = set(log_probability)
    changed = True
    while changed:
        changed = False
        for part in sorted(parts, key=len):
            inside = [p for p in parts if p < part]
            direct = [p for p in inside if not any(p < q for q in inside)]
            if len(direct) != len(inside) or not direct:
                continue  # not all that it contains are leaves
            least = min(log_probability[p] for p in direct)
            if len(direct) == 1 and log_probability[part] >= least:
                parts.remove(part)
            elif log_probability[part] <= least:
                parts -= set(direct)
            else:
                continue
            changed = True
            break

    logs = np.zeros(flat.size)
    for part in parts:
        if not any(other < part for other in parts):
            logs[list(part)] = log_probability[part]
    return logs.reshape(level.shape)


@pytest.mark.parametrize("decimals", [None, 1, 0], ids=["all different", "ties", "plateaus"])
def test_a_component_tree_has_the_parts_that_labelling_at_every_level_finds(decimals):
    level = np.random.default_rng(0).random((7, 5)) * 3
    level = level if decimals is None else level.round(decimals)
    order, parent = component_tree(level)
    flat = level.ravel()
    found = {p: {p} for p in order}
    for p in order[:-1]:
        found[parent[p]] |= found[p]
    names = [p for p in order[:-1] if flat[p] > flat[parent[p]]] + [order[-1]]
    assert len(names) == len(parts_of(level))
    assert {frozenset(found[p]) for p in names} == parts_of(level)


@pytest.mark.parametrize("seed", range(6))
def test_the_regions_that_are_kept_are_those_of_the_papers_procedures(seed):
    rng = np.random.default_rng(seed)
    level = rng.chisquare(4, (6, 7)) / 4
    level[1:3, 2:5] += seed  # an ever larger defect
    np.testing.assert_allclose(
        log_probability_of_regions(level, 4), slow_regions(level, 4), rtol=1e-12
    )


def test_the_number_of_regions_is_the_sum_over_all_sizes_at_all_positions():
    def slow(count):
        return count * sum(0.316915 * 4.062570**n / n for n in range(1, count + 1))

    assert log_number_of_regions([12, 4]) == pytest.approx(np.log10(slow(12) + slow(4)), rel=1e-12)
    assert np.isfinite(log_number_of_regions([112**2]))


def test_a_region_of_large_values_is_found_whole_and_noise_and_small_values_are_not():
    latents = [torch.randn(2, 64, 16, 16), torch.randn(2, 64, 8, 8)]
    assert not (log_nfa_of_regions(latents, (32, 32)) < 0).any()
    assert not (log_nfa_of_regions([z / 4 for z in latents], (32, 32)) < 0).any()

    latents[0][0, :, 4:12, 4:12] *= 3
    found = log_nfa_of_regions(latents, (32, 32)) < 0
    assert found[0, 0, 9:23, 9:23].float().mean() > 0.95
    assert not found[1].any()
    assert int(found[0].sum()) < 20 * 20


def test_the_mask_of_regions_is_where_fewer_than_one_false_alarm_is_expected():
    image = torch.randn(2, 3, 64, 64)
    model = new_model(LAYERS[:2], input_size=64)
    with torch.no_grad():
        latents, _ = model.latents(model.features(image))
        mask = model.region_mask(image)
    assert torch.equal(mask, log_nfa_of_regions(latents, (64, 64)) < 0)


def test_the_second_transformer_sees_the_image_at_half_the_side():
    config = UflowConfig((DEIT, DEIT), ("blocks.0", "blocks.0"), "random", flow_steps=1)
    model = UflowModel(config, input_size=64).eval()
    image = torch.randn(2, 3, 64, 64)
    fine, coarse = model.features(image)
    assert fine.shape[1:] == (192, 4, 4)
    assert coarse.shape[1:] == (192, 2, 2)
    corners = F.interpolate(image, size=(32, 32), mode="bicubic", align_corners=True)
    torch.testing.assert_close(corners[..., 0, 0], image[..., 0, 0])
    torch.testing.assert_close(model.pyramid.coarse(corners)[0], coarse)


def test_given_features_keep_the_backbone_from_running(model):
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features, direct = model.features(image), model(image)
        model.pyramid.extractor.net = None
        torch.testing.assert_close(model(image, features).anomaly_map, direct.anomaly_map)


def test_training_moves_norms_and_flow_and_lowers_the_loss():
    config = UflowConfig(("resnet18",), LAYERS, "random", flow_steps=2)
    trainer = UflowTrainer(config, TrainConfig(img_size=32))
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(10)
    image, label = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    batch = Batch(image, label, None, label, trainer.model.features(image))
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert any(name.startswith("pyramid.norms") for name in before)
    assert all(
        not torch.equal(p, before[name])
        for name, p in trainer.model.named_parameters()
        if name in before
    )


def test_the_learning_rate_falls_linearly_to_two_fifths_over_all_steps():
    trainer = UflowTrainer(
        UflowConfig(("resnet18",), LAYERS, "random", flow_steps=1, lr=0.01),
        TrainConfig(img_size=32),
    )
    optimizer, scheduler = trainer.configure_optimizer(20)
    rates = []
    for _ in range(21):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates, np.linspace(0.01, 0.004, 21), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "img_size", "message"),
    [
        ({}, 250, "input size 250 .* a multiple of 16; use 448"),
        ({"layers": ("layer1", "layer3")}, 256, "must be neighbouring stages"),
        ({"layers": ("blocks.1",)}, 256, "must be neighbouring stages"),
        (
            {"backbones": ("cait_m48_448", "cait_s24_224"), "layers": ("blocks.40", "blocks.20")},
            256,
            "img_size to 448",
        ),
        (
            {"backbones": (DEIT, "cait_s24_224"), "layers": ("blocks.4", "blocks.20")},
            256,
            "img_size to 448",
        ),
        ({"backbones": (DEIT, DEIT), "layers": ("blocks.4", "blocks.2")}, 80, "a multiple of 32"),
        ({"backbones": (DEIT, DEIT)}, 64, "one block of each transformer"),
        (
            {"backbones": (DEIT, DEIT), "layers": ("blocks.4", "layer2")},
            64,
            r"some of blocks\.0 to blocks\.11",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_starts(changes, img_size, message):
    with pytest.raises(InputError, match=message):
        UflowTrainer.check_inputs(UflowConfig(**changes), TrainConfig(img_size=img_size))


@pytest.mark.parametrize(
    "backbones", [(), ("cait_m48_448",), ("resnet18", "resnet18"), (DEIT, DEIT, DEIT)]
)
def test_backbones_are_one_resnet_or_two_transformers(backbones):
    with pytest.raises(InputError, match=r"must be one of .* or two of"):
        UflowConfig(backbones)


def test_each_transformers_file_is_checked_at_its_own_block(tmp_path):
    import timm

    torch.save({"model": timm.create_model(DEIT, depth=2).state_dict()}, tmp_path / "deit.pth")
    config = UflowConfig((DEIT, "cait_s24_224"), ("blocks.1", "blocks.20"))
    UflowTrainer.check_weight_file(config, DEIT, tmp_path / "deit.pth")
    with pytest.raises(InputError, match="of another network"):
        UflowTrainer.check_weight_file(config, "cait_s24_224", tmp_path / "deit.pth")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    UflowTrainer.check_weight_file(UflowConfig(("resnet18",)), "resnet18", tmp_path / "resnet.pth")


@pytest.mark.slow
def test_latents_and_maps_equal_anomalibs_with_the_same_weights(monkeypatch):
    theirs_model = pytest.importorskip("anomalib.models.image.uflow.torch_model")
    ours = new_model(input_size=64, flow_steps=4)
    randomised(ours.flow, 0.03)

    class Features(nn.Module):
        """Our frozen stage under the names that anomalib's flow asks for; theirs would download weights."""

        channels, scale_factors, scales = (64, 128, 256), (4, 8, 16), range(3)

        def forward(self, image):
            return ours.pyramid(ours.features(image))

    monkeypatch.setattr(theirs_model, "get_feature_extractor", lambda *_: Features())
    theirs = theirs_model.UflowModel((64, 64), 4, "resnet18").eval()
    blocks = [m for m in theirs.flow.module_list if hasattr(m, "w_perm")]
    steps = [step for stage in ours.flow.stages for step in stage.steps]
    with torch.no_grad():
        for block, step in zip(blocks, steps, strict=True):
            block.subnet.load_state_dict(step.subnet.state_dict())
            block.global_scale.copy_(step.global_scale.view(1, -1, 1, 1))
            block.global_offset.copy_(step.global_offset.view(1, -1, 1, 1))
            width = len(step.permutation)
            block.w_perm.copy_(torch.eye(width)[step.permutation].view(width, width, 1, 1))
        image = torch.randn(3, 3, 64, 64)
        expected, expected_log_det = theirs.encode(theirs.feature_extractor(image))
        latents, log_det = ours.latents(ours.features(image))
        for z, z_expected in zip(latents, expected, strict=True):
            torch.testing.assert_close(z, z_expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(log_det, expected_log_det, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(
            ours(image).anomaly_map, theirs(image).anomaly_map, rtol=1e-4, atol=1e-4
        )
