"""CFA: loss against a slow loop, gradient against plain autograd, bank against means and scipy, anomalib's maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_datasets import write_mvtec
from scipy.cluster.vq import vq
from scipy.special import softmax
from torch import nn
from torch.nn import functional as F
from unfolded_weights import redraw

from adray.config import TrainConfig
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.models import cfa
from adray.models.cfa import (
    CfaConfig,
    CfaModel,
    CfaTrainer,
    Descriptor,
    NearestDistances,
    cfa_loss,
    patch_score,
)
from adray.settings import get_globals

SIZE = 32


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def new_model(size=SIZE, **changes):
    return CfaModel(CfaConfig("resnet18", weights="random", **changes), size)


@pytest.fixture
def model():
    """An untrained model with a bank near the descriptors of some images."""
    model = new_model().eval()
    model.remember(
        tuple(f.mean(0, keepdim=True) for f in model.features(torch.randn(4, 3, SIZE, SIZE))),
        seed=0,
    )
    return model


def new_trainer(num_epochs=2, **model):
    config = CfaConfig(backbone="resnet18", weights="random", **model)
    return CfaTrainer(
        config, TrainConfig(num_epochs=num_epochs, img_size=SIZE, batch_size=4), seed=1
    )


@pytest.fixture
def loaders(own_settings):
    """Ten training images in batches of 4, 4 and 2."""
    write_mvtec(
        Path(get_globals().dataset_dir) / "mvtec",
        categories=("bottle",),
        train=10,
        good=2,
        defects=2,
        size=SIZE,
    )
    return get_dataloaders("mvtec", "bottle", img_size=SIZE, batch_size=4, holdout=0.0, seed=1)


def every_distance(patches, bank):
    """All squared distances in the expanded form, as the reference computes them, (Q, M)."""
    return patches.square().sum(1, keepdim=True) + bank.square().sum(1) - 2 * patches @ bank.T


# The loss


def slow_loss(patches, bank, radius, num_nearest, num_negatives, margin):
    """Patch by patch, center by center, in numpy."""
    attraction, repulsion = [], []
    for patch in patches:
        near = sorted(float(((patch - center) ** 2).sum()) for center in bank)
        attraction += [max(0.0, d - radius**2) for d in near[:num_nearest]]
        repulsion += [
            max(0.0, radius**2 - d - margin)
            for d in near[num_nearest : num_nearest + num_negatives]
        ]
    return 1000 * np.mean(attraction), 1000 * np.mean(repulsion)


@pytest.mark.parametrize(("num_nearest", "num_negatives"), [(3, 3), (2, 4), (1, 1)])
def test_the_loss_is_that_of_a_slow_loop(num_nearest, num_negatives):
    bank = torch.randn(20, 3, dtype=torch.float64)
    patches = torch.cat(
        [bank[:5] + 0.1, 3 * torch.randn(10, 3, dtype=torch.float64)]
    )  # near centers, and far
    radius = torch.tensor(1.5, dtype=torch.float64)
    distances = NearestDistances.apply(patches, bank, num_nearest + num_negatives)
    computed = cfa_loss(distances, radius, num_nearest, margin=0.1)
    expected = slow_loss(patches.numpy(), bank.numpy(), 1.5, num_nearest, num_negatives, 0.1)
    assert [float(part) for part in computed] == pytest.approx(expected)
    assert expected[0] > 0
    assert expected[1] > 0


def test_loss_and_gradients_are_those_of_the_whole_matrix_of_distances():
    bank = torch.randn(50, 6, dtype=torch.float64)
    patches = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    radius = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    whole = every_distance(patches, bank).topk(6, largest=False).values
    losses = [
        sum(cfa_loss(d, radius, 3, 0.1)) for d in (NearestDistances.apply(patches, bank, 6), whole)
    ]
    computed, expected = (torch.autograd.grad(loss, (patches, radius)) for loss in losses)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(computed, expected)
    assert float(expected[1].abs()) > 0


def test_the_gradient_of_the_distances_is_the_numerical_one():
    bank = torch.randn(9, 4, dtype=torch.float64)
    patches = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: NearestDistances.apply(p, bank, 3), (patches,))


def test_chunks_do_not_change_the_distances(monkeypatch):
    patches, bank = torch.randn(30, 5), torch.randn(12, 5)
    at_once = NearestDistances.apply(patches, bank, 4)
    monkeypatch.setattr(cfa, "_CHUNK_BYTES", 4 * 12 * 7)
    torch.testing.assert_close(NearestDistances.apply(patches, bank, 4), at_once, rtol=0, atol=0)


def test_a_patch_on_a_center_far_from_the_origin_is_at_distance_zero():
    bank = 1e3 + torch.randn(512, 5)
    distances = NearestDistances.apply(bank.clone(), bank, 3)
    assert torch.equal(distances[:, 0], torch.zeros(512))
    # What the expanded form makes of some of so many; its root is NaN.
    assert float(every_distance(bank, bank).min()) < 0
    assert torch.equal(patch_score(distances), torch.zeros(512))


def test_with_the_radius_before_training_nothing_repels_and_its_gradient_lets_it_grow():
    radius = torch.tensor(1e-5, requires_grad=True)
    attraction, repulsion = cfa_loss(torch.rand(10, 6).sort(1).values, radius, 3, 0.1)
    (attraction + repulsion).backward()
    assert float(repulsion.detach()) == 0
    assert float(radius.grad) < 0


# Descriptor and bank


def test_a_descriptor_is_a_convolution_of_the_joined_maps_and_coordinates():
    channels, sides = (3, 4, 5), (8, 4, 2)
    descriptor = Descriptor(channels, 6, (8, 8))
    maps = [torch.randn(2, c, s, s) for c, s in zip(channels, sides, strict=True)]
    joined = [F.interpolate(m, (8, 8), mode="bilinear", align_corners=False) for m in maps]
    rows = torch.arange(8).view(1, 1, 8, 1).expand(2, 1, 8, 8) / 7 * 2 - 1
    convolution = nn.Conv2d(14, 6, 1)
    with torch.no_grad():
        convolution.weight.copy_(descriptor.linear.weight[:, :, None, None])
        convolution.bias.copy_(descriptor.linear.bias)
        expected = convolution(torch.cat([*joined, rows, rows.transpose(2, 3)], dim=1))
        computed = descriptor(tuple(m.permute(0, 2, 3, 1) for m in maps))
    torch.testing.assert_close(computed.permute(0, 3, 1, 2), expected, rtol=1e-5, atol=1e-6)


def test_the_bank_is_the_mean_over_the_training_images_of_the_untrained_descriptors(loaders):
    trainer = new_trainer()
    with torch.no_grad():
        per_image = [
            trainer.model.patches(trainer.model.features(b.image)) for b in loaders.train
        ]  # (B*P, D) each
    trainer.fit(loaders)
    expected = torch.cat([part.view(-1, 64, 448) for part in per_image]).double().mean(0)
    assert expected.shape == (64, 448)
    torch.testing.assert_close(trainer.model.memory_bank.double(), expected, rtol=1e-5, atol=1e-6)


def test_training_moves_descriptor_and_radius_and_not_the_bank(loaders):
    trainer = new_trainer(num_epochs=8)
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    history = trainer.fit(loaders)
    assert set(before) == {"radius", "descriptor.linear.weight", "descriptor.linear.bias"}
    assert all(
        not torch.equal(p, before[name])
        for name, p in trainer.model.named_parameters()
        if name in before
    )
    assert float(trainer.model.radius.detach()) > 0.01
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_continued_training_keeps_the_bank_of_its_beginning(loaders, tmp_path):
    whole, first, second = (new_trainer(num_epochs=4) for _ in range(3))
    whole.fit(loaders)
    first.progress_seconds = -1.0
    with pytest.raises(KeyboardInterrupt):
        first.fit(loaders, report=stop_after(3), progress_path=tmp_path / "progress.pth")
    second.fit(loaders, progress_path=tmp_path / "progress.pth")
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, msg=name)


def stop_after(epoch):
    def report(_step, row):
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    return report


def test_above_one_gamma_c_makes_each_center_the_mean_of_the_patches_nearest_to_it():
    small = new_model(gamma_c=4, gamma_d=2)
    mean_features = small.features(torch.randn(1, 3, SIZE, SIZE))
    small.remember(mean_features, seed=0)
    with torch.no_grad():
        patches = small.patches(mean_features).double().numpy()
    centers = small.memory_bank.double().numpy()
    assert centers.shape == (64 // 4, 448 // 2)
    nearest, _ = vq(patches, centers)
    for number, center in enumerate(centers):
        np.testing.assert_allclose(center, patches[nearest == number].mean(0), atol=1e-5)


@pytest.mark.parametrize("reduction", [{"gamma_c": 32}, {"gamma_d": 500}])
def test_a_reduction_that_leaves_too_little_is_refused(reduction):
    with pytest.raises(InputError, match=r"leave \d+ centers of \d+ channels at input size 32"):
        new_model(**reduction)


# Scores


def test_a_patchs_score_is_its_nearest_distance_times_scipys_softmin():
    distances = torch.rand(20, 3).sort(1).values * 4
    lengths = np.sqrt(distances.numpy())
    np.testing.assert_allclose(
        patch_score(distances), softmax(-lengths, axis=1)[:, 0] * lengths[:, 0], rtol=1e-5
    )


def test_an_odd_patch_scores_highest_where_it_is(model):
    features = model.features(torch.randn(1, 3, SIZE, SIZE))
    features[0][0, 2, 6] += 5.0
    with torch.no_grad():
        anomaly_map = model(torch.empty(1, 3, SIZE, SIZE), features).anomaly_map[0, 0]
    row, column = divmod(int(anomaly_map.argmax()), SIZE)
    assert (row // 4, column // 4) == (2, 6)


def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(model):
    image = torch.randn(8, 3, SIZE, SIZE)
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).anomaly_map for i in range(8)])
        torch.testing.assert_close(model(image).anomaly_map, one, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_bank_loss_and_maps_are_anomalibs_with_the_same_weights(monkeypatch):
    pytest.importorskip("anomalib")
    import torchvision
    from anomalib.models.image.cfa import loss as their_loss
    from anomalib.models.image.cfa import torch_model
    from torchvision.models.feature_extraction import create_feature_extractor

    def untrained(backbone, return_nodes):
        return create_feature_extractor(
            getattr(torchvision.models, backbone)(weights=None), return_nodes
        ).eval()

    monkeypatch.setattr(torch_model, "get_feature_extractor", untrained)
    theirs = torch_model.CfaModel("resnet18", 1, 1, 3, 3, 1e-5)
    ours = new_model(64).eval()
    theirs.feature_extractor.load_state_dict(redraw(ours.extractor))
    with torch.no_grad():
        ours.descriptor.linear.weight.copy_(theirs.descriptor.layer.conv2d.weight[:, :, 0, 0])
        ours.descriptor.linear.bias.copy_(theirs.descriptor.layer.conv2d.bias)
    image = torch.randn(4, 3, 64, 64)
    theirs.initialize_centroid([type("Images", (), {"image": image[i : i + 2]}) for i in (0, 2)])
    ours.remember(tuple(f.mean(0, keepdim=True) for f in ours.features(image)), seed=0)
    torch.testing.assert_close(ours.memory_bank, theirs.memory_bank.T, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        distances = ours.distances(ours.patches(ours.features(image)), 6)
        expected = their_loss.CfaLoss(3, 3, 1e-5)(theirs.train()(image))
        torch.testing.assert_close(
            sum(cfa_loss(distances, ours.radius, 3, 0.1)), expected, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            ours(image).anomaly_map[:, 0], theirs.eval()(image).anomaly_map, rtol=1e-4, atol=1e-4
        )
