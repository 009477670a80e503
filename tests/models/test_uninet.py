"""UniNet: losses, feature selection and scoring against slow loops, its parts against anomalib's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from unfolded_weights import redraw

from adray.components.backbone import set_backbone_dir
from adray.components.feature_extractor import build_resnet
from adray.config import TrainConfig
from adray.errors import InputError
from adray.models import uninet
from adray.models.uninet import (
    FeatureSelection,
    UninetBottleneck,
    UninetConfig,
    UninetModel,
    UninetTrainer,
    bounded,
    cosine_distances,
    decisive_part,
    distance_map,
    highest_mean,
    log_partition,
    pair_losses,
    uninet_losses,
)
from adray.settings import get_globals
from adray.types import Batch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    """Small, and with a target teacher that has left the source behind."""
    model = UninetModel(UninetConfig("resnet18", "random", sigma=1.0)).eval()
    for parameter in model.target.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def maps():
    """Six maps of teachers and six of the student, positive as after a ReLU, a batch of 3."""
    shapes = 2 * ((3, 4, 6, 6), (3, 5, 3, 3), (3, 6, 2, 2))
    return tuple(torch.rand(s) for s in shapes), tuple(torch.rand(s) for s in shapes)


def new_trainer(img_size=64, **changes):
    changes = {"backbone": "resnet18", "weights": "random", **changes}
    trainer = UninetTrainer(UninetConfig(**changes), TrainConfig(img_size=img_size))
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(10)
    trainer.model.train()
    return trainer


def batch_of(trainer, image):
    label = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, label, None, label, trainer.model.features(image))


def units(batch, channels, positions, dtype=torch.float32):
    return F.normalize(torch.randn(batch, channels, positions, dtype=dtype), dim=1)


def slow_losses(teacher, student, temperature, margin):
    """Cosine, contrastive and margin loss, position by position with the whole matrix, in torch's float64."""
    cosines, contrasts, margins = [], [], []
    for t, s in zip(teacher.double().flatten(2), student.double().flatten(2), strict=True):
        t, s = t / t.norm(dim=0), s / s.norm(dim=0)
        similarity = torch.exp(s.T @ t / temperature)  # student's positions by teacher's
        for i in range(len(similarity)):
            own = similarity[i, i] / sum(similarity[i, j] for j in range(len(similarity)))
            cosines.append(1 - sum(s[c, i] * t[c, i] for c in range(len(s))))
            contrasts.append(-torch.log(own))
            margins.append(torch.clamp(margin - own, min=0))
    return [torch.stack(values).mean() for values in (cosines, contrasts, margins)]


@pytest.mark.parametrize("temperature", [2.0, 0.1])
@pytest.mark.parametrize("margin", [1.0, 0.12])
def test_the_losses_and_their_gradients_are_those_of_the_whole_matrix(
    temperature, margin, monkeypatch
):
    monkeypatch.setattr(uninet, "_SIMILARITIES", 2 * 9 * 4)  # four of nine rows at a time
    teacher, student = (torch.randn(2, 5, 3, 3, requires_grad=True) for _ in range(2))
    ours = pair_losses(teacher, student, temperature, margin)
    slow = torch.stack(slow_losses(teacher, student, temperature, margin))
    np.testing.assert_allclose(ours.detach().numpy(), slow.detach().numpy(), rtol=1e-5)
    weights = torch.tensor([0.7, 0.3, 1.0])
    expected = torch.autograd.grad(slow @ weights.double(), (teacher, student))
    for gradient, other in zip(
        torch.autograd.grad(ours @ weights, (teacher, student)), expected, strict=True
    ):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_the_log_partition_has_the_right_gradient_whatever_the_number_of_rows_at_a_time(
    monkeypatch,
):
    inputs = (
        units(2, 3, 7, torch.float64).requires_grad_(),
        units(2, 3, 7, torch.float64).requires_grad_(),
    )
    whole = log_partition(*inputs, 0.5)
    for similarities in (1, 2 * 7 * 2, 2**24):
        monkeypatch.setattr(uninet, "_SIMILARITIES", similarities)
        torch.testing.assert_close(log_partition(*inputs, 0.5), whole)
        assert torch.autograd.gradcheck(lambda s, t: log_partition(s, t, 0.5), inputs)


def naive_contrastive(student, teacher, temperature):
    similarity = torch.exp(student.mT @ teacher / temperature)
    share = similarity / (similarity.sum(2, keepdim=True) + 1e-8)
    return -torch.log(share.diagonal(dim1=1, dim2=2) + 1e-8).mean()


def chunked_contrastive(student, teacher, temperature):
    return (
        log_partition(student, teacher, temperature) - (student * teacher).sum(1) / temperature
    ).mean()


def kept_for_backward(loss, *inputs):
    """Bytes that autograd keeps for `loss(*inputs)`, each storage once."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}), t)[
            1
        ],
        lambda t: t,
    ):
        value = loss(*inputs)
    return sum(kept.values()), value


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that an operation made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def test_the_similarities_of_all_pairs_are_never_kept_and_never_in_memory_together(monkeypatch):
    """At the size of layer1 (8 images, 256 channels, 4096 positions), forward and backward on a CPU, the process grows
    by 0.31 GiB, by 3.48 GiB with the whole matrix, and by 1.51 GiB with torch's log_softmax of it."""
    monkeypatch.setattr(uninet, "_SIMILARITIES", 2**16)
    student, teacher = (units(2, 4, 1024).requires_grad_() for _ in range(2))
    matrix = 2 * 1024 * 1024
    naive, expected = kept_for_backward(naive_contrastive, student, teacher, 2.0)
    chunked, _ = kept_for_backward(chunked_contrastive, student, teacher, 2.0)
    assert naive >= 4 * matrix
    assert chunked < 4 * matrix / 20
    with LargestTensor() as memory:
        value = chunked_contrastive(student, teacher, 2.0)
        value.backward()
    assert memory.largest <= 2**16
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_margin_loss_is_what_the_own_positions_probability_lacks():
    """Orthogonal unit vectors: every similarity is 0 but the own, so that the probability can be written down."""
    corners = torch.eye(4).reshape(1, 4, 2, 2)
    own = np.exp(1 / 0.5) / (np.exp(1 / 0.5) + 3)
    for margin, lacking in ((1.0, 1 - own), (0.9, 0.9 - own), (0.5, 0.0)):
        assert float(pair_losses(corners, corners, 0.5, margin)[2]) == pytest.approx(
            max(0.0, lacking), abs=1e-6
        )


def test_the_loss_sums_its_weighted_parts_over_six_pairs(maps):
    config = UninetConfig(temperature=0.5, cosine_weight=0.6, margin=0.8)
    losses = uninet_losses(*maps, config)
    expected = np.sum(
        [[float(v) for v in slow_losses(t, s, 0.5, 0.8)] for t, s in zip(*maps, strict=True)], 0
    )
    for name, value in zip(("cosine", "contrastive", "margin"), expected, strict=True):
        assert float(losses[name]) == pytest.approx(value, rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(expected @ [0.6, 0.4, 1.0], rel=1e-5)


def test_losses_of_dead_maps_are_finite():
    dead = torch.zeros(2, 3, 2, 2, requires_grad=True)
    pair_losses(torch.rand(2, 3, 2, 2), dead, 2.0, 1.0).sum().backward()
    assert torch.isfinite(dead.grad).all()


def test_feature_selection_weights_each_channel_by_the_teachers_softmax_and_mean(maps):
    selection = FeatureSelection((4, 5, 6))
    for theta in selection.theta:
        theta.data = torch.randn_like(theta)
    for n, (t, s, out) in enumerate(zip(*maps, selection(*maps), strict=True)):
        theta = selection.theta[n % 3].detach().double().numpy()  # both teachers share it
        teacher, student = t.double().numpy(), s.double().numpy()
        for b in range(t.shape[0]):
            for c in range(t.shape[1]):
                strength = np.exp(teacher[b, c] - teacher[b, c].max())
                bound = min(1.0, 1 / (1 + np.exp(-theta[c, 0, 0])) + 0.5)
                factor = strength / strength.sum() * (bound + teacher[b, c].mean())
                np.testing.assert_allclose(
                    out[b, c].detach().numpy(), student[b, c] * factor, rtol=1e-5
                )


def test_theta_starts_at_one_and_learns(maps):
    selection = FeatureSelection((4, 5, 6))
    assert all(torch.equal(bounded(theta), torch.ones_like(theta)) for theta in selection.theta)
    uninet_losses(maps[0], selection(*maps), UninetConfig())["loss"].backward()
    assert all(theta.grad.abs().max() > 0 for theta in selection.theta)


@torch.no_grad()
def test_the_comparison_is_crossed(model):
    """Either teacher is compared with what the student restores from the other one's maps."""
    image = torch.randn(2, 3, 64, 64)
    source, target = model.features(image), tuple(model.target(image))
    assert not torch.allclose(source[0], target[0], atol=1e-3)
    teachers, students = model.compare(image, source)
    for ours, expected in zip(teachers, (*source, *target), strict=True):
        torch.testing.assert_close(ours, expected)
    restored = (*model.decoder(model.bottleneck(target)), *model.decoder(model.bottleneck(source)))
    for ours, expected in zip(students, restored, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert [m.shape for m in students] == [m.shape for m in teachers]


@torch.no_grad()
def test_features_are_selected_in_training_only(model):
    image = torch.randn(2, 3, 64, 64)
    before = model(image).pred_score
    for theta in model.selection.theta:
        theta.fill_(-3.0)
    torch.testing.assert_close(model(image).pred_score, before)


def slow_score(distances, blurred, alpha, beta):
    """The reference's weighted decision for one image, with the number of pixels it would round down."""
    peaks = np.array([d.max() for d in distances])
    probability = np.exp(peaks) / np.exp(peaks).sum()
    part = max(alpha * peaks[probability > probability.mean()].mean(), beta)
    highest = np.sort(blurred.ravel())[::-1]
    count = part * blurred.size
    return part, highest[: int(count)].mean(), highest[: int(count) + 1].mean()


@torch.no_grad()
def test_the_score_is_the_mean_of_as_many_smoothed_values_as_the_image_itself_decides(model):
    image = torch.randn(3, 3, 64, 64)
    distances = cosine_distances(*model.compare(image, model.features(image)))
    prediction = model(image)
    part = decisive_part(distances, model.alpha, model.beta)
    for b in range(3):
        blurred = gaussian_filter(
            prediction.anomaly_map[b, 0].numpy(), sigma=1.0, mode="mirror", truncate=4.0
        )
        expected, floor, ceil = slow_score(
            [d[b].numpy() for d in distances], blurred, model.alpha, model.beta
        )
        assert float(part[b]) == pytest.approx(expected, rel=1e-5)
        assert ceil - 1e-5 <= float(prediction.pred_score[b]) <= floor + 1e-5
    torch.testing.assert_close(prediction.anomaly_map, distance_map(distances, (64, 64)))


def test_a_whole_number_of_values_is_averaged_plainly_and_a_fraction_counts_as_one():
    values = torch.rand(4, 100)
    ordered = np.sort(values.numpy(), 1)[:, ::-1]
    mean = highest_mean(values, torch.tensor([0.05, 0.001, 0.025, 1.0]), 1.0)
    expected = [
        ordered[0, :5].mean(),
        ordered[1, 0],
        (ordered[2, :2].sum() + ordered[2, 2] / 2) / 2.5,
        values[3].mean(),
    ]
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-5)


def test_equal_maps_all_decide_and_tiny_distances_leave_the_lower_bound():
    same = [torch.full((2, side, side), 0.3) for side in (4, 2, 1)] * 2
    np.testing.assert_allclose(decisive_part(same, 0.01, 3e-5).numpy(), 0.003, rtol=1e-6)
    np.testing.assert_allclose(
        decisive_part([1e-4 * d for d in same], 0.01, 3e-5).numpy(), 3e-5, rtol=1e-6
    )


@torch.no_grad()
def test_the_map_is_the_enlarged_distances_with_corners_on_corners(maps):
    distances = cosine_distances(*maps)
    total = distance_map(distances, (12, 12))
    corner = sum(d[:, 0, 0] for d in distances)
    torch.testing.assert_close(total[:, 0, 0, 0], corner)
    t, s = (side[0][1, :, 2, 3].numpy() for side in maps)
    assert float(distances[0][1, 2, 3]) == pytest.approx(
        1 - t @ s / np.sqrt((t @ t) * (s @ s)), rel=1e-4
    )


@torch.no_grad()
def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(model):
    image = torch.randn(8, 3, 64, 64)
    one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
    torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-6)


def test_both_teachers_start_alike_and_only_the_target_moves(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    set_backbone_dir(tmp_path)
    trainer = new_trainer(weights="pretrained")
    source, target = trainer.model.source, trainer.model.target
    assert not source.training
    image = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(source(image), target.eval()(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    target.train()
    frozen, before = (
        {k: v.clone() for k, v in net.state_dict().items()} for net in (source, target)
    )
    for _ in range(3):
        trainer.train_step(batch_of(trainer, torch.randn(4, 3, 64, 64)))
    assert all(torch.equal(frozen[key], value) for key, value in source.state_dict().items())
    for key, value in target.state_dict().items():
        moved = (value - before[key]).abs().max()
        assert moved > 0, key
        if "running" not in key and "tracked" not in key:
            assert moved < 3.1e-6, key  # three steps of 1e-6


def test_the_student_learns_a_few_images_by_heart():
    trainer = new_trainer()
    batch = batch_of(trainer, torch.randn(4, 3, 64, 64))
    losses = [float(trainer.train_step(batch)["cosine"]) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("img_size", [32, 64])
def test_a_last_batch_of_one_trains_without_touching_the_targets_statistics(img_size):
    trainer = new_trainer(img_size)
    trainer.train_step(batch_of(trainer, torch.randn(4, 3, img_size, img_size)))
    before = {key: value.clone() for key, value in trainer.model.target.named_buffers()}
    loss = trainer.train_step(batch_of(trainer, torch.randn(1, 3, img_size, img_size)))["loss"]
    assert torch.isfinite(loss)
    assert all(
        torch.equal(before[key], value) for key, value in trainer.model.target.named_buffers()
    )
    trainer.train_step(batch_of(trainer, torch.randn(4, 3, img_size, img_size)))
    assert not any(
        torch.equal(before[key], value) for key, value in trainer.model.target.named_buffers()
    )


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    image = torch.randn(4, 3, 64, 64)

    def loss(copies):
        trainer = new_trainer()
        return float(trainer.train_step(batch_of(trainer, image.repeat(copies, 1, 1, 1)))["loss"])

    assert loss(3) == pytest.approx(loss(1), rel=1e-5)


def test_two_learning_rates_no_schedule_and_every_learning_parameter_once():
    trainer = new_trainer(lr=1e-3, teacher_lr=1e-7)
    student, teacher = trainer.optimizer.param_groups
    assert (student["lr"], teacher["lr"], trainer.scheduler) == (1e-3, 1e-7, None)
    optimized = [p for group in (student, teacher) for p in group["params"]]
    learning = [p for p in trainer.model.parameters() if p.requires_grad]
    assert len(optimized) == len(set(map(id, optimized)))
    assert set(map(id, optimized)) == set(map(id, learning))


def test_a_checkpoint_holds_the_target_teacher_and_only_names_the_source(tmp_path):
    path = Path(get_globals().backbone_dir) / "resnet18.pth"
    path.parent.mkdir(parents=True)
    torch.save(build_resnet("resnet18", ("layer1", "layer2", "layer3")).state_dict(), path)
    trainer = new_trainer(weights="pretrained")
    trainer.train_step(batch_of(trainer, torch.randn(4, 3, 64, 64)))
    trainer.save_model(tmp_path / "model.pth")
    stored = torch.load(tmp_path / "model.pth", weights_only=True)
    assert not any(key.startswith("source.") for key in stored["model"])
    assert stored["backbones"]["source"]["file"] == "resnet18.pth"
    for key, value in trainer.model.target.state_dict().items():
        assert torch.equal(stored["model"][f"target.{key}"], value)


@pytest.mark.parametrize(("size", "allowed"), [(100, "use 96 or 128"), (16, "use 32")])
def test_a_size_that_does_not_divide_names_those_that_do(size, allowed):
    with pytest.raises(InputError, match=f"input size {size} .* multiple of 32; {allowed}"):
        new_trainer(size)


def test_a_backbone_without_decoder_is_refused():
    with pytest.raises(InputError, match="'vgg16' has no decoder here"):
        UninetConfig("vgg16")


@torch.no_grad()
def test_the_wide_bottleneck_is_two_branches_of_half_the_channels():
    bottleneck = UninetBottleneck("wide_resnet50_2")
    kernels = [
        m.weight.shape for m in bottleneck.stage[0].first.modules() if isinstance(m, nn.Conv2d)
    ]
    assert kernels == [(512, 1536, 3, 3), (512, 512, 3, 3)]
    assert [
        m.weight.shape for m in bottleneck.stage[0].second.modules() if isinstance(m, nn.Conv2d)
    ] == kernels


PACKAGE = "anomalib.models.image.uninet"


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [2.0, 0.1])
def test_selection_and_loss_equal_anomalibs(maps, temperature):
    parts = pytest.importorskip(f"{PACKAGE}.components")
    channels = (4, 8, 16)  # theirs double from layer to layer
    shapes = 2 * [(2, c, side, side) for c, side in zip(channels, (8, 4, 2), strict=True)]
    teachers, students = (
        [torch.rand(shape, requires_grad=True) for shape in shapes] for _ in range(2)
    )
    theirs, ours = parts.DomainRelatedFeatureSelection(num_channels=4), FeatureSelection(channels)
    for n, theta in enumerate(ours.theta, start=1):
        theta.data = torch.randn_like(theta)
        getattr(theirs, f"theta{n}").data = theta.data.unsqueeze(0)
    expected = parts.UniNetLoss(temperature=temperature)(theirs(students, teachers), teachers)
    config = UninetConfig(temperature=temperature)
    loss = uninet_losses(tuple(teachers), ours(tuple(teachers), tuple(students)), config)["loss"]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    inputs = [*teachers, *students]
    for a, b in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def anomalibs_model(monkeypatch):
    """Their network untrained, which would otherwise download, and with the reference's width in the bottleneck."""
    import torchvision

    torch_model = pytest.importorskip(f"{PACKAGE}.torch_model")
    parts = pytest.importorskip(f"{PACKAGE}.components")
    untrained = type("Untrained", (), {"DEFAULT": None})
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _name: untrained)
    model = torch_model.UniNetModel("wide_resnet50_2", "wide_resnet50_2", parts.UniNetLoss())
    model.bottleneck = parts.BottleneckLayer(parts.AttentionBottleneck, 3, width_per_group=128)
    return model


def in_anomalibs_words(state):
    """Our bottleneck's tensors under their names; the biases that we do without are zero."""
    names = {
        "from_layer1.0.": "conv1.",
        "from_layer1.1.": "bn1.",
        "from_layer1.3.": "conv2.",
        "from_layer1.4.": "bn2.",
        "from_layer2.0.": "conv3.",
        "from_layer2.1.": "bn3.",
        "stage.": "bn_layer.0.",
        ".first.0.": ".conv3x3.",
        ".first.1.": ".bn2.",
        ".first.3.": ".conv3x3_.",
        ".first.4.": ".bn5.",
        ".second.0.": ".conv7x7.",
        ".second.1.": ".bn4.",
        ".second.3.": ".conv7x7_.",
        ".second.4.": ".bn6.",
        ".mix.0.": ".conv3.",
        ".mix.1.": ".bn3.",
        ".shortcut.": ".downsample.",
    }
    renamed = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        renamed[key] = value
        if "conv7x7" in key:
            renamed[key.replace("weight", "bias")] = torch.zeros(len(value))
    return renamed


@pytest.mark.slow
@torch.no_grad()
def test_maps_equal_anomalibs_with_the_same_weights(monkeypatch):
    """Their score is the maximum, not the mean of the highest values, and is left out."""
    theirs = anomalibs_model(monkeypatch)
    ours = UninetModel(UninetConfig("wide_resnet50_2", "random"))
    for parameter in ours.target.parameters():
        parameter.data += 1e-3 * torch.randn_like(parameter)
    theirs.teachers.source_teacher.load_state_dict(redraw(ours.source))
    theirs.teachers.target_teacher.load_state_dict(ours.target.state_dict())
    theirs.student.load_state_dict(
        {k.replace("downsample", "upsample"): v for k, v in ours.decoder.state_dict().items()}
    )
    outcome = theirs.bottleneck.load_state_dict(
        in_anomalibs_words(ours.bottleneck.state_dict()), strict=False
    )
    unused = ("conv4.", "bn4.")
    assert all(key.startswith(unused) or ".bn7." in key for key in outcome.missing_keys), (
        outcome.missing_keys
    )
    assert not outcome.unexpected_keys
    image = torch.randn(3, 3, 64, 64)
    expected, prediction = theirs.eval()(image), ours.eval()(image)
    torch.testing.assert_close(
        prediction.anomaly_map[:, 0], expected.anomaly_map, rtol=1e-4, atol=1e-4
    )
