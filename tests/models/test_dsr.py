"""DSR: codes against slow searches, what gradients reach, the two phases, and its networks against anomalib's."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from adray.components.backbone import set_backbone_dir
from adray.components.focal_loss import focal_loss
from adray.config import TrainConfig
from adray.errors import InputError
from adray.models import dsr
from adray.models.dsr import (
    Codebook,
    Codes,
    DsrConfig,
    DsrModel,
    DsrTrainer,
    QuantizedAutoencoder,
    Restored,
    as_published,
    conv_block,
    disturb,
    exchange,
    paint,
    restoration_loss,
    turn_some,
)
from adray.registry import ModelRegistry
from adray.types import Batch

SIZE = 64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DsrModel(DsrConfig(weights="random", width=4)).eval()


@pytest.fixture
def codebook():
    """A codebook of well separated codes."""
    return Codebook().requires_grad_(False)


@pytest.fixture
def codes(model):
    """Codes of four images."""
    return model.autoencoder.encode(torch.rand(4, 3, SIZE, SIZE))


def new_trainer(**changes):
    config = DsrConfig(weights="random", width=4, **changes)
    trainer = DsrTrainer(config, TrainConfig(img_size=SIZE, normalize="none"))
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(10)
    return trainer


def new_batch(count=2):
    label = torch.zeros(count, dtype=torch.int64)
    return Batch(torch.rand(count, 3, SIZE, SIZE), label, None, label)


def rank_of(codebook, features, chosen):
    """At which place of all codes, sorted by distance to its feature, each chosen code is."""
    distance = cdist(features.double().numpy(), codebook._embedding.weight.double().numpy())
    index = cdist(chosen.double().numpy(), codebook._embedding.weight.double().numpy()).argmin(1)
    return (distance < distance[np.arange(len(index)), index][:, None]).sum(1)


def rows(x):
    return x.permute(0, 2, 3, 1).flatten(0, 2)


# Codes


def test_each_feature_gets_the_nearest_code(codebook, monkeypatch):
    monkeypatch.setattr(dsr, "_ROWS", 5)  # several tables
    features = torch.randn(2, 128, 2, 3)
    codes, all_codes = codebook(features), codebook._embedding.weight.double()
    for feature, code in zip(rows(features).double(), rows(codes), strict=True):
        distances = [float((feature - other).square().sum()) for other in all_codes]
        torch.testing.assert_close(code, all_codes[int(np.argmin(distances))].float())


def test_a_code_is_its_own_nearest(codebook):
    codes = codebook._embedding.weight[:12].view(1, 3, 4, 128).permute(0, 3, 1, 2)
    torch.testing.assert_close(codebook(codes), codes)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_codes_lie_in_memory_as_their_features_do(codebook, memory_format):
    features = torch.randn(2, 128, 4, 4).contiguous(memory_format=memory_format)
    assert codebook(features).is_contiguous(memory_format=memory_format)


def test_the_gradient_passes_the_quantisation_unchanged_and_leaves_the_codes_alone(codebook):
    features = torch.randn(1, 128, 2, 2, requires_grad=True)
    weight = torch.randn(1, 128, 2, 2)
    (codebook(features) * weight).sum().backward()
    torch.testing.assert_close(features.grad, weight)
    assert codebook._embedding.weight.grad is None


def test_a_code_at_a_rank_is_that_of_a_full_sort(codebook):
    features, rank = torch.randn(6, 128), torch.tensor([0, 1, 17, 204, 4000, 4095])
    order = cdist(features.numpy(), codebook._embedding.weight.numpy()).argsort(1)
    expected = codebook._embedding.weight[torch.from_numpy(order[np.arange(6), rank.numpy()])]
    torch.testing.assert_close(codebook.at_rank(features, rank), expected)


# Anomalies


def test_exchanged_codes_are_within_the_ranks_and_the_others_stay(codebook):
    features = torch.randn(3, 128, 8, 8)
    codes, mask = codebook(features), (torch.rand(3, 1, 8, 8) < 0.5).float()
    changed = exchange(codebook, features, codes, mask, DsrConfig(min_strength=0.5, skipped=0.25))
    inside = mask.flatten() > 0
    assert torch.equal(rows(changed)[~inside], rows(codes)[~inside])
    rank = rank_of(codebook, rows(features)[inside], rows(changed)[inside])
    assert rank.min() >= 1024
    image = torch.arange(3).repeat_interleave(64)[inside].numpy()
    for b in range(
        3
    ):  # an image's strength, at least a half, bounds its ranks, which spread over the whole range
        assert rank[image == b].max() >= 0.85 * 2048
    assert rank.max() < 4095


def test_ranks_are_drawn_uniformly(codebook):
    features = torch.randn(1, 128, 40, 40)
    config = DsrConfig(min_strength=1.0, skipped=0.5)
    changed = exchange(codebook, features, codebook(features), torch.ones(1, 1, 40, 40), config)
    rank = rank_of(codebook, rows(features), rows(changed))
    assert rank.min() >= 2048
    assert rank.mean() == pytest.approx(
        (2048 + 4095) / 2, abs=4 * 591 / 40
    )  # of 1600 draws, four standard errors


def test_an_empty_mask_changes_nothing(model, codes):
    disturbed = disturb(model.autoencoder, codes, torch.zeros(4, 1, SIZE, SIZE), DsrConfig())
    torch.testing.assert_close(disturbed.lo, codes.lo)
    torch.testing.assert_close(disturbed.hi, codes.hi)
    assert not disturbed.mask.any()


def test_half_the_images_are_disturbed_in_both_maps_and_a_quarter_in_each():
    class Stub(QuantizedAutoencoder):
        def hi_features(self, detail, lo):  # fine codes that do not depend on the coarse ones
            return detail

    count, autoencoder = 200, Stub("random")
    detail, lo_features = torch.randn(count, 128, 2, 2), torch.randn(count, 128, 1, 1)
    lo, hi = autoencoder.lo_codebook(lo_features), autoencoder.hi_codebook(detail)
    disturbed = disturb(
        autoencoder, Codes(detail, lo_features, lo, hi), torch.ones(count, 1, 8, 8), DsrConfig()
    )
    in_lo, in_hi = ((a != b).flatten(1).any(1) for a, b in ((disturbed.lo, lo), (disturbed.hi, hi)))
    assert (in_lo | in_hi).all()
    assert float((in_lo & in_hi).float().mean()) == pytest.approx(0.5, abs=0.12)
    assert float((in_lo & ~in_hi).float().mean()) == pytest.approx(0.25, abs=0.1)


def test_the_mask_to_learn_covers_every_disturbed_code(model, codes):
    mask = torch.zeros(4, 1, SIZE, SIZE)
    mask[:, :, 9, 21] = 1  # one pixel disturbs the code above it: 8 or 4 pixels wide
    disturbed = disturb(model.autoencoder, codes, mask, DsrConfig())
    for truth in disturbed.mask:
        assert float(truth.sum()) in (64.0, 16.0)
        assert truth[0, 9, 21] == 1


def test_painted_patches_are_one_colour_through_which_part_of_the_image_shows():
    image, mask = torch.rand(5, 3, 8, 8), torch.zeros(5, 1, 8, 8)
    mask[:, :, 2:6] = 1
    painted = paint(image, mask, max_beta=0.5)
    assert torch.equal(painted * (1 - mask), image * (1 - mask))
    inside, under = painted[:, :, 2:6].flatten(1), image[:, :, 2:6].flatten(1)
    for new, old in zip(inside.view(5, 3, -1), under.view(5, 3, -1), strict=True):
        beta = [np.polyfit(o.numpy(), n.numpy(), 1) for n, o in zip(new, old, strict=True)]
        slopes = [b[0] for b in beta]  # painted = (1 - beta) color + beta image
        assert slopes == pytest.approx([slopes[0]] * 3, abs=1e-4)
        assert 0 <= slopes[0] <= 0.5


def test_some_images_are_turned_about_their_centre():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 33), indexing="ij")
    blob = torch.exp(-6 * (x**2 + y**2)).expand(
        40, 3, 33, 33
    )  # the same whichever way it is turned
    torch.testing.assert_close(turn_some(blob, 1.0), blob, rtol=0, atol=0.01)
    image = torch.rand(400, 3, 8, 8)
    changed = (turn_some(image, 0.4) - image).flatten(1).abs().amax(1) > 1e-6
    assert float(changed.float().mean()) == pytest.approx(0.4, abs=0.1)


# The networks


def test_the_blocks_normalise_as_instance_norm_does():
    block, x = conv_block(3, 6), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(block(x), F.instance_norm(block[0](x)).relu(), rtol=1e-4, atol=1e-5)


def test_the_image_score_is_the_largest_mean_of_21_by_21_pixels(model):
    image = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        _, coarse = model.compare(image)
        prediction = model(image)
    padded = np.pad(coarse[:, 0].double().numpy(), ((0, 0), (10, 10), (10, 10)))
    means = [
        [padded[:, i : i + 21, j : j + 21].mean((1, 2)) for j in range(SIZE)] for i in range(SIZE)
    ]
    np.testing.assert_allclose(prediction.pred_score.numpy(), np.max(means, (0, 1)), rtol=1e-5)
    assert prediction.anomaly_map.shape == (2, 1, SIZE, SIZE)
    assert 0 <= float(prediction.anomaly_map.min()) <= float(prediction.anomaly_map.max()) <= 1


def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(model):
    image = torch.rand(8, 3, SIZE, SIZE)
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
        torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-6)


def test_an_untrained_autoencoder_still_tells_images_apart(model):
    codes = model.autoencoder.encode(torch.rand(8, 3, 1, 1).expand(8, 3, SIZE, SIZE))
    assert len({tuple(code.tolist()) for code in codes.lo[:, :, 4, 4]}) > 3


# The loss and the phases


def test_the_restoration_loss_counts_the_image_ten_times():
    def shift(x, by):
        return x + by

    image, lo, hi = torch.rand(2, 3, 8, 8), torch.randn(2, 4, 1, 1), torch.randn(2, 4, 2, 2)
    clean = Codes(hi, lo, lo, hi)
    loss = restoration_loss(
        image, clean, Restored(shift(lo, 1.0), shift(hi, 2.0), shift(image, 3.0))
    )
    assert float(loss) == pytest.approx(1 + 4 + 10 * 9, rel=1e-5)


def test_a_false_alarm_costs_as_much_as_a_miss():
    alarm = torch.tensor([-4.0, 4.0]).view(1, 2, 1, 1)
    false_alarm, miss = (
        focal_loss(alarm, torch.zeros(1, 1, 1, 1)),
        focal_loss(-alarm, torch.ones(1, 1, 1, 1)),
    )
    assert float(false_alarm) == pytest.approx(float(miss))
    assert float(false_alarm) > 7


def test_the_first_phase_reaches_the_restriction_networks_and_neither_codebooks_nor_sharpener():
    trainer = new_trainer()
    image = new_batch().image
    codes = trainer.model.autoencoder.encode(image)
    restored = trainer.model.restore(codes.lo, codes.hi)
    restored.image.square().mean().backward()  # through decoder, quantisation and enlargement
    for network in (trainer.model.restrict_lo, trainer.model.restrict_hi):
        assert all(p.grad is not None for p in network.parameters())
        assert any(p.grad.abs().sum() > 0 for p in network.parameters())
    assert all(p.grad is None for p in trainer.model.autoencoder.parameters())
    trainer.train_step(new_batch())
    assert all(p.grad is None for p in trainer.model.sharpener.parameters())
    assert all(p.grad is None for p in trainer.model.autoencoder.parameters())


def test_the_detector_does_not_pull_at_the_reconstruction(model):
    restored = torch.rand(1, 3, 16, 16, requires_grad=True)
    model.detect(restored, torch.rand(1, 3, 16, 16)).sum().backward()
    assert restored.grad is None


@pytest.mark.parametrize(("step", "moving"), [(0, "early"), (6, "early"), (7, "late"), (9, "late")])
def test_each_phase_moves_its_own_networks_only(step, moving):
    trainer = new_trainer()
    trainer.step = step
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train_step(new_batch())
    for name, parameter in trainer.model.named_parameters():
        if parameter.ndim > 1:  # a bias before a norm has no effect and need not move
            phase = {"autoencoder": "none", "sharpener": "late"}.get(name.split(".")[0], "early")
            assert torch.equal(parameter, before[name]) != (phase == moving), name


def test_learning_rates_fall_within_their_phases():
    trainer = DsrTrainer(
        DsrConfig(weights="random", width=4, lr=1.0), TrainConfig(img_size=SIZE, normalize="none")
    )
    optimizer, scheduler = trainer.configure_optimizer(150)
    rates = []
    for _ in range(150):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    first, second = np.array(rates).T
    assert trainer.first_steps == 100
    np.testing.assert_allclose(first[:100], np.repeat([1.0, 0.1], [80, 20]))
    np.testing.assert_allclose(second[100:], np.repeat([1.0, 0.2, 0.04], [40, 5, 5]))


def test_the_published_length_is_100_000_and_50_000_steps_whatever_the_category():
    resolved = ModelRegistry.resolve("dsr", budget="paper", weights="random")
    # 100 and 50 epochs of 8000 drawn images in batches of 8.
    assert resolved.train_config.max_steps == 100 * 8000 // 8 + 50 * 8000 // 8
    trainer = DsrTrainer(replace(resolved.config, width=4), resolved.train_config)
    for batches in (8, 27):
        trainer._begin(batches)
        assert (trainer.first_steps, trainer.total_steps) == (100_000, 150_000)


def test_logits_pass_one_softmax_before_the_focal_loss():
    logits = torch.randn(2, 2, 4, 4)
    mask = (torch.rand(2, 1, 4, 4) < 0.5).float()
    probability = logits.double().softmax(1).gather(1, mask.long())
    expected = -((1 - probability) ** 2 * probability.log()).mean()
    torch.testing.assert_close(focal_loss(logits, mask).double(), expected)


def test_both_phases_report_the_same_values():
    trainer = new_trainer()
    first = trainer.train_step(new_batch())
    trainer.step = 9
    assert first.keys() == trainer.train_step(new_batch()).keys()


# What is refused


@pytest.mark.parametrize(
    ("size", "allowed"), [(100, "use 96 or 128"), (32, "use 64"), (65, "use 64 or 96")]
)
def test_a_size_that_does_not_suit_names_those_that_do(size, allowed):
    with pytest.raises(
        InputError, match=f"input size {size} .* multiple of 32, at least 64; {allowed}"
    ):
        DsrTrainer(DsrConfig(weights="random"), TrainConfig(img_size=size, normalize="none"))


def test_another_normalization_than_none_is_refused():
    with pytest.raises(InputError, match="normalize 'imagenet' does not suit dsr"):
        DsrTrainer(DsrConfig(weights="random"), TrainConfig(img_size=SIZE))


def test_patience_is_remarked_on():
    assert (
        "patience 3"
        in DsrTrainer.check_inputs(DsrConfig(), TrainConfig(patience=3, normalize="none"))[0]
    )


def test_values_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match=r"skipped 0.5 must be less than min_strength 0.2"):
        DsrConfig(skipped=0.5)
    with pytest.raises(InputError, match="must be two"):
        DsrConfig(rotation_probabilities=(0.1,))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture
def weight_file(tmp_path, monkeypatch, own_settings):
    monkeypatch.chdir(tmp_path)
    set_backbone_dir(tmp_path)
    (tmp_path / "dsr").mkdir()
    return tmp_path / "dsr" / "vq_model_pretrained_128_4096.pckl"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_does_nothing_and_is_named(weight_file, zipped):
    if zipped:
        torch.save({"_encoder_t": Hostile()}, weight_file)
    else:
        weight_file.write_bytes(pickle.dumps(Hostile(), protocol=2))
    for open_it in (lambda: DsrModel(DsrConfig()), lambda: check(weight_file)):
        with pytest.raises(InputError, match=r"weight file .*\.pckl"):
            open_it()
    assert not (weight_file.parents[1] / "executed").exists()


def check(path):
    DsrTrainer.check_weight_file(DsrConfig(), "dsr_vq_model", path)


def test_another_networks_file_is_refused_and_the_right_one_with_more_tensors_taken(weight_file):
    torch.save({"conv1.weight": torch.zeros(3)}, weight_file)
    with pytest.raises(InputError, match="of another network"):
        check(weight_file)
    state = QuantizedAutoencoder("random").state_dict()
    books = ("_vq_vae_top", "_vq_vae_bot")
    extra = {f"{book}._ema_w": torch.zeros(4096, 128) for book in books}  # of its training
    torch.save(state | extra, weight_file)
    check(weight_file)
    loaded = DsrModel(DsrConfig(width=4)).autoencoder
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in state.items())
    assert loaded.identity["file"] == weight_file.name


# Against anomalib


@pytest.mark.slow
@torch.no_grad()
def test_maps_and_scores_equal_anomalibs_with_the_same_weights(weight_file):
    theirs = pytest.importorskip("anomalib.models.image.dsr.torch_model").DsrModel().eval()
    for part in theirs.modules():  # an untrained one maps everything to one code
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    torch.save(theirs.discrete_latent_model.state_dict(), weight_file)
    ours = DsrModel(DsrConfig()).eval()
    pairs = {
        ours.restrict_lo: theirs.subspace_restriction_module_lo,
        ours.restrict_hi: theirs.subspace_restriction_module_hi,
        ours.decoder: theirs.image_reconstruction_network,
        ours.detector: theirs.anomaly_detection_module,
        ours.sharpener: theirs.upsampling_module,
    }
    for mine, other in pairs.items():
        copy_in_order_of_use(mine, other)
    image = torch.rand(2, 3, SIZE, SIZE)
    expected, prediction = theirs(as_published(image)), ours(image)
    torch.testing.assert_close(
        prediction.anomaly_map[:, 0], expected.anomaly_map, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        prediction.pred_score, expected.pred_score.flatten(), rtol=1e-4, atol=1e-4
    )


def copy_in_order_of_use(mine, other):
    """Copy weights between equal networks with other names, by the order in which a pass uses their convolutions."""

    def convolutions(network):
        kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
        return [part for part in network.modules() if isinstance(part, kinds)]

    def used(network, *inputs):
        order = []
        hooks = [
            c.register_forward_hook(lambda m, _args, _out: order.append(m))
            for c in convolutions(network)
        ]
        network(*inputs)
        for hook in hooks:
            hook.remove()
        return order

    first = convolutions(mine)[0]
    x = torch.rand(1, first.in_channels, 16, 16)
    inner = getattr(other, "unet", other)
    for a, b in zip(used(mine, x), used(inner, x), strict=True):
        a.load_state_dict(b.state_dict())
