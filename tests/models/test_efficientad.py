"""EfficientAD: its networks' shapes, its loss and statistics against numpy, both teacher layouts, anomalib's maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_datasets import write_mvtec
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from adray.config import TrainConfig
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.models.efficientad import (
    CHANNELS,
    EfficientadConfig,
    EfficientadModel,
    EfficientadTrainer,
    Teacher,
    build_autoencoder,
    build_pdn,
    channel_statistics,
    decoder_sides,
    hard_feature_loss,
    map_quantiles,
    pdn_side,
    random_adjust,
    random_gray,
    scale_maps,
)
from adray.types import Batch

SIZE = 48
SIZES = ("small", "medium")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    return EfficientadModel(EfficientadConfig(weights="random"), SIZE).eval()


@pytest.fixture
def site(tmp_path, own_settings):
    """Two data sets, one of them the photographs, and a folder for weights."""
    write_mvtec(tmp_path / "datasets" / "mvtec", ("bottle",), train=6, good=2, defects=2, size=SIZE)
    write_mvtec(
        tmp_path / "datasets" / "imagenette2", ("tench",), train=4, good=2, defects=2, size=80
    )
    return tmp_path


def new_trainer(config=None, **train):
    train = {"img_size": SIZE, "batch_size": 2, "normalize": "none", **train}
    return EfficientadTrainer(config or EfficientadConfig(weights="random"), TrainConfig(**train))


def loaders(holdout=0.4):
    return get_dataloaders(
        "mvtec", "bottle", img_size=SIZE, batch_size=2, normalize="none", holdout=holdout, seed=1
    )


def anomalib_names(state):
    """A reference state dict under the names of anomalib's file."""
    number = {
        layer: f"conv{i}"
        for i, layer in enumerate(dict.fromkeys(key.split(".")[0] for key in state), 1)
    }
    return {
        f"{number[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in state.items()
    }


# Networks


@pytest.mark.parametrize(("model_size", "millions"), [("small", 2.69), ("medium", 8.03)])
def test_a_teacher_has_the_published_number_of_weights(model_size, millions):
    weights = sum(p.numel() for p in Teacher(model_size, "random").parameters())
    assert weights / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(("model_size", "millions"), [("small", 4.27), ("medium", 11.6)])
def test_a_student_has_the_published_number_of_weights(model_size, millions):
    config = EfficientadConfig(model_size=model_size, weights="random")
    student = EfficientadModel(config, 256).student
    assert sum(p.numel() for p in student.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("model_size", SIZES)
@pytest.mark.parametrize("side", [33, 64, 100, 255, 256, 257, 390])
def test_the_networks_agree_on_the_size_of_their_maps(model_size, side):
    with torch.device("meta"):
        image = torch.empty(1, 3, side, side)
        shape = build_pdn(model_size, CHANNELS)(image).shape
        assert shape == (1, CHANNELS, pdn_side(side), pdn_side(side))
        assert build_autoencoder(side, 0.2)(image).shape == shape


def test_an_image_of_256_px_gives_maps_of_56_and_the_references_decoder():
    assert pdn_side(256) == 56
    assert decoder_sides(256) == [3, 8, 15, 32, 63, 127]
    with torch.device("meta"):
        encoder = build_autoencoder(256, 0.2)[:11]
        assert encoder(torch.empty(1, 3, 256, 256)).shape == (1, 64, 1, 1)


@pytest.mark.parametrize("model_size", SIZES)
def test_a_position_of_the_teachers_map_sees_33_px_and_the_next_one_4_px_further(model_size):
    net = build_pdn(model_size, 2)
    seen = []
    for position in (0, 1):
        image = torch.rand(1, 3, 48, 48, requires_grad=True)
        net(image)[0, :, position, position].sum().backward()
        rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
        seen.append((int(rows[0]), int(rows[-1])))
    assert seen == [(0, 32), (4, 36)]


# The teacher's file


@pytest.mark.parametrize("model_size", SIZES)
def test_both_published_layouts_give_the_same_teacher(model_size, site):
    folder = site / "backbones" / "efficientad"
    folder.mkdir(parents=True)
    state = build_pdn(model_size, CHANNELS).state_dict()
    torch.save(state, folder / f"teacher_{model_size}.pth")
    reference = Teacher(model_size, "pretrained")
    assert reference.weight_file.name == f"teacher_{model_size}.pth"
    torch.save(anomalib_names(state), folder / f"pretrained_teacher_{model_size}.pth")
    anomalib = Teacher(model_size, "pretrained")
    assert anomalib.weight_file.name == f"pretrained_teacher_{model_size}.pth"
    for name, tensor in state.items():
        assert torch.equal(reference.net.state_dict()[name], tensor)
        assert torch.equal(anomalib.net.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (build_pdn("medium", 4).state_dict(), "is of another network: the shape of 0.weight is"),
        (nn.Linear(2, 2).state_dict(), "is of another network: the shape of 0.weight is missing"),
        (
            {**build_pdn("small", CHANNELS).state_dict(), "10.weight": torch.ones(1)},
            "10.weight is .* expected no such tensor",
        ),
        (build_pdn("small", CHANNELS), "holds more than tensors"),
    ],
)
def test_a_file_that_is_no_small_teacher_is_refused_before_anything_starts(
    content, complaint, tmp_path
):
    torch.save(content, tmp_path / "teacher.pth")
    with pytest.raises(InputError, match=complaint):
        EfficientadTrainer.check_weight_file(
            EfficientadConfig(), "efficientad_teacher_small", tmp_path / "teacher.pth"
        )


# Loss


def hard_features_by_hand(squared, quantile):
    """The loss of one image as the reference writes it, with a loop."""
    threshold = np.quantile(squared.ravel(), quantile)
    hard = [value for value in squared.ravel() if value >= threshold]
    return sum(hard) / len(hard)


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.97, 0.999, 1.0])
def test_the_hard_feature_loss_is_the_mean_at_or_above_the_quantile(quantile):
    teacher, student = torch.randn(3, 8, 7, 5), torch.randn(3, 8, 7, 5)
    squared = ((teacher - student) ** 2).double().numpy()
    expected = np.mean([hard_features_by_hand(image, quantile) for image in squared])
    assert float(hard_feature_loss(teacher, student, quantile)) == pytest.approx(expected, rel=1e-5)


def test_duplicating_the_batch_leaves_the_hard_feature_loss_unchanged():
    teacher, student = torch.randn(2, 8, 7, 5), torch.randn(2, 8, 7, 5)
    once = hard_feature_loss(teacher, student, 0.99)
    thrice = hard_feature_loss(teacher.repeat(3, 1, 1, 1), student.repeat(3, 1, 1, 1), 0.99)
    torch.testing.assert_close(thrice, once)


def test_only_hard_features_have_a_gradient():
    student = torch.randn(1, 10, 10, 10, requires_grad=True)
    hard_feature_loss(torch.zeros(1, 10, 10, 10), student, 0.99).backward()
    assert int(student.grad.count_nonzero()) == 1000 - np.ceil(0.99 * 999)


def test_without_drawn_numbers_duplicating_the_batch_leaves_the_training_loss_unchanged(
    monkeypatch,
):
    image, losses = torch.rand(2, 3, SIZE, SIZE), []
    monkeypatch.setattr("adray.models.efficientad.random_adjust", lambda image: image.flip(3))
    for copies in (1, 2):
        torch.manual_seed(0)
        trainer = new_trainer(EfficientadConfig(weights="random", dropout=0.0))
        trainer.draw_photographs = lambda count: image.flip(2).repeat(count // 2, 1, 1, 1)
        losses.append(one_step(trainer, image.repeat(copies, 1, 1, 1)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def one_step(trainer, image):
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(10)
    trainer.model.train()
    label = torch.zeros(len(image), dtype=torch.int64)
    values = trainer.train_step(Batch(image, label, None, label, trainer.model.features(image)))
    return {name: float(value) for name, value in values.items()}


# Statistics of the teacher, quantiles of the maps


def test_channel_statistics_are_numpys_over_all_images_even_far_from_zero():
    maps = [1000.0 + torch.randn(b, 5, 6, 6) * torch.arange(1, 6).view(5, 1, 1) for b in (2, 1, 3)]
    mean, std = channel_statistics(iter(maps))
    pixels = torch.cat(maps).double().numpy()
    np.testing.assert_allclose(mean[:, 0, 0].numpy(), pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std[:, 0, 0].numpy(), pixels.std((0, 2, 3)), rtol=1e-5)


def test_a_constant_channel_has_a_standard_deviation_above_zero():
    assert float(channel_statistics([torch.ones(1, 1, 4, 4)])[1]) > 0


def test_quantiles_are_numpys_over_all_pixels_of_all_images():
    maps = [torch.rand(b, 2, 9, 9) ** 2 for b in (2, 1)]
    found = map_quantiles(iter(maps), (0.9, 0.995)).numpy()
    pixels = torch.cat(maps).double().numpy()
    for i in (0, 1):
        np.testing.assert_allclose(found[i], np.quantile(pixels[:, i], [0.9, 0.995]), rtol=1e-6)


def test_a_scaled_map_is_zero_at_the_lower_and_a_tenth_at_the_upper_quantile():
    maps, quantiles = torch.rand(2, 2, 4, 4), torch.tensor([[0.2, 0.7], [0.1, 0.5]])
    found, expected = scale_maps(maps, quantiles).numpy(), np.empty((2, 2, 4, 4))
    for b, m, i, j in np.ndindex(2, 2, 4, 4):
        lower, upper = quantiles[m].tolist()
        expected[b, m, i, j] = 0.1 * (float(maps[b, m, i, j]) - lower) / (upper - lower)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_equal_quantiles_leave_the_map_finite():
    assert torch.isfinite(scale_maps(torch.rand(1, 2, 4, 4), torch.full((2, 2), 0.3))).all()


def test_before_calibration_the_map_is_the_mean_of_the_two_distances(model):
    image = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        distances = torch.cat(model.distances(image), dim=1).mean(1, keepdim=True)
        found = model(image)
    padded = nn.functional.pad(distances, (4, 4, 4, 4))
    expected = nn.functional.interpolate(padded, (SIZE, SIZE), mode="bilinear")
    torch.testing.assert_close(found.anomaly_map, expected)
    torch.testing.assert_close(found.pred_score, expected.amax((1, 2, 3)))


# Augmentation


def test_the_adjustment_is_one_of_three_within_a_fifth():
    image, kinds = 0.2 + 0.5 * torch.rand(1, 3, 16, 16), set()
    gray = transforms.rgb_to_grayscale(image, 3)
    for _ in range(60):
        change = random_adjust(image) - image
        for kind, other in (
            ("brightness", 0 * image),
            ("contrast", gray.mean() + 0 * image),
            ("saturation", gray),
        ):
            factor = float((change / (image - other)).median())
            if torch.allclose(change, factor * (image - other), atol=1e-5):
                assert abs(factor) <= 0.2 + 1e-5
                kinds.add(kind)
                break
        else:
            pytest.fail("neither brightness nor contrast nor saturation")
    assert kinds == {"brightness", "contrast", "saturation"}


def test_three_in_ten_photographs_are_grey_and_the_others_untouched():
    image = torch.rand(1, 3, 2, 2).repeat(4000, 1, 1, 1)
    found = random_gray(image)
    grey = (found == found[:, :1]).all(1).all(1).all(1)
    assert float(grey.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(found[~grey], image[~grey])


# Training


def test_a_run_scales_the_teacher_and_calibrates_on_held_out_normals_only(site):
    trainer, data = new_trainer(), loaders()
    trainer.fit(data)
    train = torch.cat([batch.image for batch in data.train])
    held_out = torch.cat([batch.image for batch in data.valid])
    with torch.no_grad():
        targets = trainer.model.targets(trainer.model.features(train)).double().numpy()
        maps = [m.double().numpy() for m in trainer.model.distances(held_out)]
    np.testing.assert_allclose(targets.mean((0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(targets.std((0, 2, 3)), 1, atol=1e-4)
    for found, pixels in zip(trainer.model.quantiles.numpy(), maps, strict=True):
        np.testing.assert_allclose(found, np.quantile(pixels, [0.9, 0.995]), rtol=1e-4)


def test_without_held_out_normals_the_training_images_calibrate_and_the_plan_says_so(site):
    trainer, data = new_trainer(holdout=0.0), loaders(holdout=0.0)
    assert (
        "quantiles come from the training images"
        in trainer.check_inputs(trainer.config, trainer.train_config)[0]
    )
    trainer.fit(data)
    with torch.no_grad():
        maps = trainer.model.distances(torch.cat([batch.image for batch in data.train]))
    lower = [float(np.quantile(m.double().numpy(), 0.9)) for m in maps]
    np.testing.assert_allclose(trainer.model.quantiles[:, 0].numpy(), lower, rtol=1e-4)


def test_student_and_autoencoder_learn_and_the_teacher_does_not(site):
    trainer = new_trainer(num_epochs=4)
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    history = trainer.fit(loaders())
    assert history[-1]["loss"] < history[0]["loss"]
    for name, tensor in trainer.model.named_parameters():
        assert torch.equal(tensor, before[name]) == name.startswith("teacher.")


def test_the_learning_rate_falls_to_a_tenth_in_the_last_twentieth_of_the_steps():
    trainer = new_trainer()
    optimizer, scheduler = trainer.configure_optimizer(40)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates, [1e-4] * 38 + [1e-5] * 2)


def test_missing_photographs_are_named_with_the_place(site):
    config = EfficientadConfig(weights="random", auxiliary="no_such_folder")
    with pytest.raises(InputError, match="auxiliary images 'no_such_folder' are missing"):
        new_trainer(config).fit(loaders())


def test_given_features_keep_the_teacher_from_running(model):
    image = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        features, direct = model.features(image), model(image)
        model.teacher.net = None
        torch.testing.assert_close(model(image, features).anomaly_map, direct.anomaly_map)


# Refusals


@pytest.mark.parametrize(
    ("train", "complaint"),
    [
        ({"img_size": 32}, "input size 32 is smaller .* at least 33; use 256"),
        ({"img_size": 64, "crop_size": 16}, "input size 16"),
        ({"normalize": "imagenet"}, "normalize 'imagenet' does not suit"),
    ],
)
def test_sizes_and_normalizations_that_the_networks_cannot_take_are_refused(train, complaint):
    with pytest.raises(InputError, match=complaint):
        new_trainer(**train)


@pytest.mark.parametrize("quantiles", [(0.9,), (0.995, 0.9), (0.5, 1.5)])
def test_quantiles_that_do_not_rise_are_refused(quantiles):
    with pytest.raises(InputError, match="two rising numbers"):
        EfficientadConfig(quantiles=quantiles)


# Against anomalib, with the same weights


@pytest.mark.slow
@pytest.mark.parametrize("model_size", SIZES)
@pytest.mark.parametrize("side", [256, 320])
def test_the_maps_equal_anomalibs_with_the_same_weights(model_size, side):
    torch_model = pytest.importorskip("anomalib.models.image.efficient_ad.torch_model")
    config = EfficientadConfig(model_size=model_size, weights="random")
    ours = EfficientadModel(config, side).eval()
    theirs = torch_model.EfficientAdModel(
        model_size=torch_model.EfficientAdModelSize(model_size)
    ).eval()
    if side != 256:  # there its encoder keeps a kernel of 8
        theirs.ae.encoder.enconv6 = nn.Conv2d(64, 64, side // 32)
    ours.teacher_mean.uniform_(-0.1, 0.1)
    ours.teacher_std.uniform_(0.05, 0.2)
    ours.quantiles.copy_(torch.tensor([[0.4, 0.9], [0.3, 0.8]]))
    copy_to_anomalib(ours, theirs)
    image = torch.rand(1, 3, side, side)
    with torch.no_grad():
        expected, found = theirs(image), ours(image)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.pred_score, expected.pred_score.flatten(), rtol=1e-4, atol=1e-4
    )


def copy_to_anomalib(ours, theirs):
    """Put weights, statistics and quantiles of `ours` into anomalib's model."""
    student = ours.student
    heads = (student.teacher_head.state_dict(), student.autoencoder_head.state_dict())
    last = {f"999.{kind}": torch.cat([head[kind] for head in heads]) for kind in ("weight", "bias")}
    theirs.teacher.load_state_dict(anomalib_names(ours.teacher.net.state_dict()))
    theirs.student.load_state_dict(anomalib_names({**student.trunk.state_dict(), **last}))
    wanted = dict(theirs.ae.state_dict())
    theirs.ae.load_state_dict(
        dict(zip(wanted, ours.autoencoder.state_dict().values(), strict=True))
    )
    theirs.mean_std["mean"].data = ours.teacher_mean[None]
    theirs.mean_std["std"].data = ours.teacher_std[None]
    for i, kind in enumerate(("st", "ae")):
        for j, end in enumerate(("qa", "qb")):
            theirs.quantiles[f"{end}_{kind}"].data = ours.quantiles[i, j]
