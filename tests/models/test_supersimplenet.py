"""SuperSimpleNet: losses and masks against slow loops, who learns from whom, and the network against anomalib's."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fake_datasets import write_visa
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss
from unfolded_weights import redraw

from adray.config import TrainConfig
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.models.supersimplenet import (
    ClassificationHead,
    RectifyAndProject,
    SegmentationHead,
    SupersimplenetConfig,
    SupersimplenetModel,
    SupersimplenetSupervisedTrainer,
    SupersimplenetTrainer,
    add_defects,
    binary_focal_loss,
    double_and_disturb,
    draw_defects,
    enlarge_and_pool,
    flip_some,
    head_size,
    shrink_masks,
    supersimplenet_losses,
    truncated_l1,
)
from adray.registry import ModelRegistry
from adray.settings import get_globals
from adray.types import Batch

SMALL = {"backbone": "resnet18", "weights": "random", "hidden_channels": 16}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def new_model():
    return SupersimplenetModel(SupersimplenetConfig(**SMALL)).eval()


def new_trainer(trainer_class, total_steps=100, **changes):
    trainer = trainer_class(SupersimplenetConfig(**{**SMALL, **changes}), TrainConfig(img_size=64))
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(total_steps)
    trainer.model.train()
    return trainer


def batch_for(trainer, defects=(1, 3), count=4):
    """Random images; those of `defects` have a bright square with its mask."""
    image, mask = torch.randn(count, 3, 64, 64), torch.zeros(count, 1, 64, 64, dtype=torch.uint8)
    for i in defects:
        mask[i, :, 8:32, 16:40] = 1
    image = image + 3 * mask
    return Batch(
        image, mask.amax((1, 2, 3)).long(), mask, torch.arange(count), trainer.model.features(image)
    )


# The loss


def slow_truncated_l1(logits, mask, margin):
    normal, anomalous = [], []
    for s, m in zip(logits.flatten().tolist(), mask.flatten().tolist(), strict=True):
        if m:
            anomalous.append(max(0.0, margin - s))
        else:
            normal.append(max(0.0, margin + s))
    return sum(sum(part) / len(part) for part in (normal, anomalous) if part)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_truncated_loss_is_the_mean_over_each_set_and_an_empty_set_costs_nothing(share):
    logits, mask = torch.randn(3, 1, 5, 5), (torch.rand(3, 1, 5, 5) < share).float()
    loss = truncated_l1(logits.requires_grad_(), mask, 0.5)
    assert loss.item() == pytest.approx(slow_truncated_l1(logits.detach(), mask, 0.5), rel=1e-5)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_logits_beyond_the_margin_cost_nothing():
    mask = (torch.rand(2, 1, 4, 4) < 0.5).float()
    assert float(truncated_l1(torch.where(mask > 0, 0.6, -0.6), mask, 0.5)) == 0


def test_the_focal_loss_is_torchvisions_without_alpha():
    logits, target = 4 * torch.randn(3, 1, 6, 6), (torch.rand(3, 1, 6, 6) < 0.4).float()
    expected = sigmoid_focal_loss(logits, target, alpha=-1, gamma=4.0, reduction="mean")
    torch.testing.assert_close(binary_focal_loss(logits, target), expected, rtol=1e-5, atol=0)


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    segmentation, score = torch.randn(3, 1, 6, 6), torch.randn(3)
    mask, label = (torch.rand(3, 1, 6, 6) < 0.4).float(), torch.tensor([0.0, 1.0, 1.0])
    once = supersimplenet_losses(segmentation, score, mask, label, 0.5)
    twice = supersimplenet_losses(
        segmentation.repeat(2, 1, 1, 1),
        score.repeat(2),
        mask.repeat(2, 1, 1, 1),
        label.repeat(2),
        0.5,
    )
    assert set(once) == {"loss", "l1", "focal_map", "focal_score"}
    assert float(once["loss"]) == pytest.approx(
        sum(float(once[name]) for name in ("l1", "focal_map", "focal_score"))
    )
    for name, value in once.items():
        torch.testing.assert_close(twice[name], value, rtol=1e-5, atol=0)


# Synthetic defects and masks


def test_noise_lies_under_the_new_part_of_the_mask_and_never_on_real_defects():
    real = torch.zeros(40, 1, 32, 32)
    real[:20, :, 4:20, 8:28] = 1
    drawn = draw_defects(real, real.amax((1, 2, 3)), 8, SupersimplenetConfig(**SMALL))
    before = torch.cat([real, real])
    changed = torch.zeros_like(before, dtype=torch.bool).index_copy(
        0, drawn.chosen, (drawn.noise != 0).any(1, keepdim=True)
    )
    assert torch.equal(changed, drawn.mask != before)
    assert not changed[before > 0].any()
    assert set(drawn.mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn.label, drawn.mask.amax((1, 2, 3)))
    patches = drawn.noise[drawn.noise != 0]
    assert float(patches.std()) == pytest.approx(0.015, rel=0.02)
    assert float(patches.mean()) == pytest.approx(0.0, abs=2e-4)


def test_half_of_the_features_stay_as_they_are_and_a_higher_threshold_disturbs_less():
    def disturb(threshold):
        config = SupersimplenetConfig(**SMALL, perlin_threshold=threshold)
        drawn = draw_defects(torch.zeros(300, 1, 32, 32), torch.zeros(300), 1, config)
        return float(drawn.mask.mean()), float(drawn.label.mean())

    (low_cover, low_share), (high_cover, _) = disturb(0.2), disturb(0.6)
    assert low_share == pytest.approx(0.5, abs=0.08)  # 600 draws, four standard deviations
    assert 0.08 < low_cover < 0.2
    assert 0 < high_cover < low_cover / 4


def test_an_image_with_a_defect_too_small_for_the_mask_stays_anomalous():
    config = SupersimplenetConfig(**SMALL, anomaly_probability=0.0)
    drawn = draw_defects(torch.zeros(2, 1, 16, 16), torch.tensor([0.0, 1.0]), 4, config)
    assert (len(drawn.noise), len(drawn.chosen)) == (0, 0)
    assert not drawn.mask.any()
    assert drawn.label.tolist() == [0, 1, 0, 1]


def test_the_same_seed_draws_the_same_defects_and_another_one_others():
    def draw(seed):
        torch.manual_seed(seed)
        config = SupersimplenetConfig(**SMALL, anomaly_probability=1.0)
        return draw_defects(torch.zeros(4, 1, 16, 16), torch.zeros(4), 4, config).noise

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("chosen", [[], [2], [0, 3, 5]])
def test_a_disturbed_batch_is_convolved_as_if_the_noise_had_been_added_before(size, chosen):
    features, kernel = torch.randn(3, 4, 8, 8), torch.randn(6, 4, size, size)
    noise, chosen = torch.randn(len(chosen), 4, 8, 8), torch.tensor(chosen, dtype=torch.int64)
    convolve = partial(F.conv2d, weight=kernel, padding=size // 2)
    expected = convolve(torch.cat([features, features]).index_add(0, chosen, noise))
    torch.testing.assert_close(
        double_and_disturb(convolve(features), noise, chosen, kernel), expected
    )


def test_masks_shrink_to_ones_where_the_middle_of_a_cell_is_mostly_defect():
    mask = (torch.rand(3, 1, 32, 32) < 0.5).to(torch.uint8)
    middle = (
        mask.view(3, 1, 8, 4, 8, 4)[:, :, :, 1:3, :, 1:3].float().mean((3, 5))
    )  # by a quarter, bilinearly
    assert torch.equal(shrink_masks(mask, (8, 8)), (middle >= 0.5).float())


def test_flips_keep_image_and_mask_together_and_use_all_four_orientations():
    image = torch.randn(1, 3, 8, 8).repeat(200, 1, 1, 1)
    mask = (image[:, :1] > 0).to(torch.uint8)
    label = torch.ones(200, dtype=torch.int64)
    flipped = flip_some(Batch(image, label, mask, label), 0.5, flip_normals=False)
    assert torch.equal(flipped.mask, (flipped.image[:, :1] > 0).to(torch.uint8))
    ways = [image[0].flip(axes) if axes else image[0] for axes in ((), (1,), (2,), (1, 2))]
    shares = [np.mean([torch.equal(one, way) for one in flipped.image]) for way in ways]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0.13  # a quarter of 200 draws, less four standard deviations
    still = flip_some(Batch(image, label, mask, label), 0.0, flip_normals=True)
    assert torch.equal(still.image, image)


def test_normal_images_are_mirrored_only_where_the_configuration_says_so():
    image = torch.randn(200, 3, 8, 8)
    mask = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    label = torch.arange(200) % 2
    batch = Batch(image, label, mask, label)
    moved = [
        (flip_some(batch, 0.5, flip_normals=normals).image != image).any(3).any(2).any(1)
        for normals in (False, True)
    ]
    assert not moved[0][label == 0].any()
    assert moved[0][label == 1].float().mean() > 0.5
    assert moved[1][label == 0].float().mean() > 0.5


# The network


def adapt(model, features):
    """The adapted features in full size, as the paper makes them: enlarged, joined, pooled, adapted."""
    enlarged = torch.cat(
        [
            F.interpolate(m, head_size(features), mode="bilinear", align_corners=True)
            for m in features
        ],
        1,
    )
    return model.adaptor(F.avg_pool2d(enlarged, 3, stride=1, padding=1))


@pytest.mark.parametrize(("side", "target"), [(8, 16), (4, 16), (1, 4), (5, 10)])
def test_a_line_is_enlarged_corner_to_corner_and_averaged_over_three_neighbours(side, target):
    line = np.random.default_rng(0).normal(size=side)
    enlarged = np.interp(np.linspace(0, side - 1, target), np.arange(side), line)
    expected = np.convolve(enlarged, np.full(3, 1 / 3), mode="same")
    matrix = enlarge_and_pool(side, target, torch.zeros(1))
    np.testing.assert_allclose(matrix.numpy() @ line, expected, atol=1e-6)


def test_convolving_small_maps_and_enlarging_last_equals_enlarging_pooling_adapting_and_convolving():
    model = new_model().double()
    nn.init.normal_(model.adaptor.bias)  # meets the convolution's border
    features = torch.randn(2, 128, 4, 6).double(), torch.randn(2, 256, 2, 3).double()
    adapted = adapt(model, features)
    assert adapted.shape == (2, 384, 8, 12)
    segmented, classified = model.convolve(features)
    torch.testing.assert_close(segmented, model.segmentation_head.convolution(adapted))
    blank = torch.zeros_like(adapted[:, :1])
    torch.testing.assert_close(
        classified, model.classification_head.convolution(torch.cat([adapted, blank], 1))
    )


def classify(head, features, segmentation):
    """The classification head as the paper has it: one convolution of everything, joined."""
    joined = F.relu(head.norm(head.convolution(torch.cat([features, segmentation], 1))))
    pooled = [
        joined.amax((2, 3)),
        joined.mean((2, 3)),
        segmentation.amax((2, 3)),
        segmentation.mean((2, 3)),
    ]
    return head.linear(torch.cat(pooled, 1))[:, 0]


def segment(head, features):
    """The segmentation head as the paper has it."""
    return nn.Sequential(head.convolution, head.norm, nn.LeakyReLU(0.2), head.projection)(features)


def test_the_classification_head_sees_features_and_segmentation_joined():
    head, features, segmentation = (
        ClassificationHead(6).eval(),
        torch.randn(2, 6, 5, 5),
        torch.randn(2, 1, 5, 5),
    )
    convolved = F.conv2d(
        features, head.convolution.weight[:, :-1], head.convolution.bias, padding=2
    )
    torch.testing.assert_close(
        head(convolved, segmentation), classify(head, features, segmentation)
    )


def test_the_joint_backward_pass_of_rectifier_and_projection_is_that_of_both():
    hidden = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(RectifyAndProject.apply, (hidden, weight))
    torch.testing.assert_close(
        RectifyAndProject.apply(hidden, weight), F.conv2d(F.leaky_relu(hidden, 0.2), weight)
    )


def test_the_segmentation_head_is_its_layers_in_order_in_training_and_afterwards():
    head, features = SegmentationHead(6, 4), torch.randn(2, 6, 5, 5)
    for training in (True, False):
        head.train(training)
        torch.testing.assert_close(head(head.convolution(features)), segment(head, features))


def test_a_training_step_has_the_gradients_of_the_network_written_out():
    def step(convolved_and_truth):
        torch.manual_seed(1)
        trainer = new_trainer(SupersimplenetSupervisedTrainer)
        model = trainer.model.double()
        batch = batch_for(new_trainer(SupersimplenetTrainer))
        features = tuple(feature.double() for feature in batch.features)
        real = shrink_masks(batch.mask, head_size(features)).double()
        torch.manual_seed(2)
        segmentation, score, mask, label = convolved_and_truth(
            model, features, real, batch.label.double(), trainer.config
        )
        supersimplenet_losses(segmentation, score, mask, label, 0.5)["loss"].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    def short(model, features, real, label, config):
        seen = add_defects(model, features, real, label, config)
        segmentation = model.segmentation_head(seen.segmented)
        score = model.classification_head(seen.classified, segmentation)
        return segmentation, score, seen.mask, seen.label

    def written_out(model, features, real, label, config):
        drawn = draw_defects(real, label, 384, config)
        adapted = adapt(model, features)
        disturbed = torch.cat([adapted, adapted]).index_add(0, drawn.chosen, drawn.noise)
        segmentation = segment(model.segmentation_head, disturbed)
        score = classify(model.classification_head, disturbed, segmentation)
        return segmentation, score, drawn.mask, drawn.label

    expected = step(written_out)
    for name, gradient in step(short).items():
        assert (
            float((gradient - expected[name]).norm()) <= 1e-5 * float(expected[name].norm()) + 1e-9
        ), name


def test_what_is_cached_is_small():
    features = new_model().features(torch.randn(1, 3, 64, 64))
    assert sum(f.numel() for f in features) * 6 <= 384 * math.prod(head_size(features))


def test_the_map_is_the_enlarged_and_smoothed_segmentation_in_logits():
    model, image = new_model(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        segmentation = model.segmentation_head(model.convolve(model.features(image))[0])
        prediction = model(image)
    enlarged = F.interpolate(segmentation, (64, 64), mode="bilinear")[:, 0].numpy()
    expected = np.stack([gaussian_filter(m, 4.0, truncate=3.0, mode="mirror") for m in enlarged])
    np.testing.assert_allclose(prediction.anomaly_map[:, 0].numpy(), expected, rtol=1e-3, atol=1e-5)


def test_scores_that_a_sigmoid_makes_equal_stay_apart():
    model, image = new_model(), torch.randn(4, 3, 64, 64)
    nn.init.constant_(model.classification_head.linear.bias, 60.0)
    with torch.no_grad():
        score = model(image).pred_score
    assert len(score.sigmoid().unique()) == 1
    assert len(score.unique()) == 4


def test_scores_of_a_batch_of_eight_are_those_of_eight_batches():
    model, image = new_model(), torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
        torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-5)


# Training


@pytest.mark.parametrize("trainer_class", [SupersimplenetTrainer, SupersimplenetSupervisedTrainer])
def test_the_classification_head_teaches_the_other_in_supervised_training_only(trainer_class):
    def gradients(bias):
        """Of both heads, where the classification head is wrong by more or less."""
        torch.manual_seed(0)
        trainer = new_trainer(trainer_class, clip_norm=1e6, flip_probability=0.0)
        nn.init.constant_(trainer.model.classification_head.linear.bias, bias)
        trainer.train_step(batch_for(trainer))
        heads = trainer.model.segmentation_head, trainer.model.classification_head
        return [torch.cat([p.grad.flatten() for p in head.parameters()]) for head in heads]

    (segmentation, classification), (other_segmentation, other_classification) = (
        gradients(0.0),
        gradients(5.0),
    )
    assert not torch.allclose(classification, other_classification)
    assert torch.equal(segmentation, other_segmentation) == (not trainer_class.supervised)


def test_gradients_are_clipped_to_one_in_supervised_training_only():
    def norm(trainer_class):
        trainer = new_trainer(trainer_class, margin=100.0)  # makes gradients large
        nn.init.constant_(trainer.model.classification_head.linear.bias, 50.0)
        trainer.train_step(batch_for(trainer))
        return float(
            torch.stack(
                [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
            ).norm()
        )

    assert norm(SupersimplenetTrainer) > 2
    assert norm(SupersimplenetSupervisedTrainer) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("trainer_class", [SupersimplenetTrainer, SupersimplenetSupervisedTrainer])
def test_training_moves_every_learnt_weight_and_lowers_the_loss(trainer_class):
    trainer = new_trainer(trainer_class, noise_std=0.5, head_lr=1e-2)
    before = {
        name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad
    }
    batch = batch_for(trainer)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(12)]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    moved = dict(trainer.model.named_parameters())
    assert all(not torch.equal(moved[name], value) for name, value in before.items())
    assert not any(name.startswith("extractor") for name in before)


@pytest.mark.parametrize("trainer_class", [SupersimplenetTrainer, SupersimplenetSupervisedTrainer])
def test_a_single_image_trains_and_a_batch_without_anomalies_has_a_finite_loss(trainer_class):
    trainer = new_trainer(trainer_class, anomaly_probability=0.0)
    assert torch.isfinite(trainer.train_step(batch_for(trainer, defects=(), count=1))["loss"])


def test_supervised_training_finds_the_defects_it_was_shown():
    trainer = new_trainer(SupersimplenetSupervisedTrainer, head_lr=1e-2, anomaly_probability=0.0)
    batch = batch_for(trainer)
    for _ in range(20):
        trainer.train_step(batch)
    prediction = trainer.predict_batch(batch)
    assert (
        prediction.pred_score[batch.label == 1].min()
        > prediction.pred_score[batch.label == 0].max()
    )
    assert prediction.anomaly_map[1, 0, 20, 28] > prediction.anomaly_map[1, 0, 50, 55]


def test_the_learning_rates_fall_to_two_fifths_at_80_and_90_per_cent_of_the_steps():
    trainer = new_trainer(SupersimplenetTrainer, total_steps=50)
    rates = []
    for _ in range(50):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimize(trainer.model.adaptor.weight.sum())
    adaptor, heads = np.array(rates).T
    np.testing.assert_allclose(adaptor, [1e-4] * 40 + [4e-5] * 5 + [1.6e-5] * 5)
    np.testing.assert_allclose(heads, 2 * adaptor)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [1e-2, 1e-5]


def test_a_supervised_fit_sees_mirrored_defects_and_keeps_no_features():
    write_visa(Path(get_globals().dataset_dir) / "visa", ("candle",))
    loaders = get_dataloaders(
        "visa",
        "candle",
        img_size=64,
        batch_size=4,
        split_mode="2cls_highshot",
        supervised=True,
        holdout=0.0,
    )
    config = SupersimplenetConfig(**SMALL)
    trainer = SupersimplenetSupervisedTrainer(config, TrainConfig(img_size=64, num_epochs=2))
    seen = []
    trainer.model.extractor.register_forward_hook(lambda _module, args, _out: seen.append(args[0]))
    trainer.fit(loaders)
    images = torch.cat(seen)
    assert len(images) == 2 * 12  # six normal images and as many defects, in each of two epochs
    originals = torch.cat([batch.image for batch in loaders.train])
    known = [any(torch.equal(image, original) for original in originals) for image in images]
    assert (
        0.5 <= np.mean(known) < 0.9
    )  # normal images, and a quarter of the defects, are not mirrored


def test_the_rows_differ_in_supervision_and_threshold_alone():
    plain, supervised = (
        ModelRegistry.resolve(f"supersimplenet{end}", weights="random")
        for end in ("", "-supervised")
    )
    assert (plain.config.perlin_threshold, supervised.config.perlin_threshold) == (0.2, 0.6)
    assert plain.train_config == supervised.train_config
    assert not ModelRegistry.trainer_class("supersimplenet").supervised
    assert ModelRegistry.trainer_class("supersimplenet-supervised").supervised


def test_timms_file_of_the_same_weights_is_taken_too():
    path = Path(get_globals().backbone_dir) / "wide_resnet50_2.tv_in1k" / "model.safetensors"
    path.parent.mkdir(parents=True)
    published = timm.create_model("wide_resnet50_2", pretrained=False).eval()
    save_file(published.state_dict(), path)
    config = SupersimplenetConfig(hidden_channels=8)
    SupersimplenetTrainer.check_weight_file(config, "wide_resnet50_2", path)
    model = SupersimplenetTrainer(config, TrainConfig(img_size=64)).model
    assert model.extractor.weight_file == path
    image = torch.randn(1, 3, 64, 64)
    theirs = published.forward_intermediates(image, indices=(2, 3), intermediates_only=True)
    for ours, expected in zip(model.extractor(image), theirs, strict=True):
        torch.testing.assert_close(ours, expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"perlin_threshold": 2.0}, "perlin_threshold is 2"),
        ({"anomaly_probability": -0.1}, "anomaly_probability is -0.1"),
        ({"clip_norm": 0.0}, "clip_norm is 0"),
        ({"head_lr": -1.0}, "head_lr is -1"),
    ],
)
def test_values_out_of_range_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        SupersimplenetConfig(**wrong)


def layers(*networks):
    """Everything with weights, in order."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    return [m for network in networks for m in network.modules() if isinstance(m, kinds)]


@pytest.mark.slow
def test_the_network_equals_anomalibs_with_the_same_weights(monkeypatch):
    pytest.importorskip("anomalib")
    from anomalib.models.image.supersimplenet.loss import SSNLoss
    from anomalib.models.image.supersimplenet.torch_model import SupersimplenetModel as Theirs

    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda *args, **kwargs: create(*args, **{**kwargs, "pretrained": False}),
    )
    theirs = Theirs(backbone="resnet18", adapt_cls_features=True)
    ours = SupersimplenetModel(SupersimplenetConfig(backbone="resnet18", weights="random"))
    image = torch.randn(4, 3, 128, 128)
    ours.train()
    with torch.no_grad():
        for _ in range(3):  # running statistics away from their initial values
            segmented, classified = ours.convolve(ours.features(image))
            ours.classification_head(classified, ours.segmentation_head(segmented))
    nn.init.normal_(ours.segmentation_head.projection.weight, std=2.0)  # the initial map is flat
    # The port leaves out that the authors enlarge with aligned corners.
    extract = theirs.feature_extractor.forward

    def aligned(image):
        with monkeypatch.context() as patch:
            patch.setattr(F, "interpolate", partial(F.interpolate, align_corners=True))
            return extract(image)

    monkeypatch.setattr(theirs.feature_extractor, "forward", aligned)
    net = theirs.feature_extractor.feature_extractor.feature_extractor
    net.load_state_dict(redraw(ours.extractor))
    pairs = (
        (ours.adaptor, theirs.adaptor),
        (ours.segmentation_head, theirs.segdec.seg_head),
        (ours.classification_head, nn.ModuleList([theirs.segdec.cls_conv, theirs.segdec.cls_fc])),
    )
    for mine, other in pairs:
        for a, b in zip(layers(mine), layers(other), strict=True):
            b.load_state_dict(a.state_dict())
    with torch.no_grad():
        expected, prediction = theirs.eval()(image), ours.eval()(image)
    torch.testing.assert_close(
        prediction.pred_score.sigmoid(), expected.pred_score, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        prediction.anomaly_map.sigmoid(), expected.anomaly_map, rtol=1e-4, atol=1e-4
    )
    assert expected.anomaly_map.std() > 0.05

    segmentation, score = torch.randn(3, 1, 6, 6), torch.randn(3)
    mask, label = (torch.rand(3, 1, 6, 6) < 0.4).float(), torch.tensor([0.0, 1.0, 1.0])
    mine = supersimplenet_losses(segmentation, score, mask, label, 0.5)["loss"]
    torch.testing.assert_close(mine, SSNLoss()(segmentation, score, mask, label), rtol=1e-5, atol=0)
