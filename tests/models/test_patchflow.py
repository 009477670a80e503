"""PatchFlow's mathematics against autograd's Jacobian, scipy and FrEIA, and against collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock as FreiaBlock
from scipy import ndimage
from scipy.stats import norm
from torch.nn import functional as F

from adray.errors import InputError
from adray.methods.patchflow import PatchflowConfig
from adray.models.patchflow import (
    PatchflowModel,
    coupling_subnet,
    orthogonal_projection,
    patchflow_loss,
)
from adray.registry import ModelRegistry
from adray.types import Batch

SMALL = {
    "backbone": "resnet18",
    "layers": ("layer1", "layer2"),
    "weights": "random",
    "num_scales": 2,
    "channels": 8,
    "hidden": 8,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def moved_model(**changes) -> PatchflowModel:
    """A model whose flow is away from its initial values."""
    model = PatchflowModel(PatchflowConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("flow_steps", [1, 3])
def test_the_log_determinant_is_that_of_autograds_jacobian(flow_steps):
    flow = moved_model(flow_steps=flow_steps).flow.double()
    x = torch.randn(1, 8, 2, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: flow(v.view_as(x))[0].flatten(), x.flatten()
    )
    torch.testing.assert_close(flow(x)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


def test_the_flow_equals_freias_sequence_with_the_same_weights():
    ours = moved_model().flow.double()
    theirs = SequenceINN(8, 4, 4)
    theirs.append(FreiaBlock, subnet_constructor=coupling_subnet(8), affine_clamping=2.0)
    theirs = theirs.double().eval()
    step, block = ours.steps[0], theirs.module_list[0]
    with torch.no_grad():
        block.subnet.load_state_dict(step.subnet.state_dict())
        block.global_scale.copy_(step.global_scale.view(1, -1, 1, 1))
        block.global_offset.copy_(step.global_offset.view(1, -1, 1, 1))
        block.w_perm.copy_(torch.eye(8)[step.permutation].view(8, 8, 1, 1))
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    for found, expected in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_loss_is_scipys_negative_log_likelihood_of_a_number_up_to_its_constant():
    z, log_det = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    per_image = norm.logpdf(z.numpy()).reshape(5, -1).sum(1) + log_det.numpy()
    expected = -per_image.mean() / 48 - 0.5 * np.log(2 * np.pi)
    assert float(patchflow_loss(z, log_det)) == pytest.approx(expected, rel=1e-5)


def test_the_projection_is_orthogonal_and_keeps_distances_on_average():
    projection = orthogonal_projection(600, 64).double()
    torch.testing.assert_close(projection @ projection.T, torch.eye(64).double(), rtol=0, atol=1e-6)
    points = torch.randn(200, 600, dtype=torch.float64)
    kept = torch.pdist(points @ projection.T).square() * 600 / 64
    ratio = kept / torch.pdist(points).square()
    assert float(ratio.mean()) == pytest.approx(1, abs=0.1)
    assert float((ratio - 1).abs().max()) < 1


@torch.no_grad()
def test_features_are_the_projection_of_joined_maps_of_all_sizes_written_out():
    model = moved_model()
    images = torch.randn(4, 3, 64, 64)
    model.measure(images.split(3))
    parts = []
    for side in (64, 32):
        scaled = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        for feature in model.extractor(scaled):
            # A box with zeros beyond the border.
            size = (1, 1, 3, 3)
            pooled = ndimage.uniform_filter(feature.double().numpy(), size, mode="constant")
            grown = F.interpolate(torch.from_numpy(pooled), (16, 16), mode="bilinear")
            parts.append(grown.numpy())

    joined = np.concatenate(parts, axis=1)
    mean = joined.mean((0, 2, 3), keepdims=True)
    variance = joined.var((0, 2, 3), keepdims=True)
    projection = model.projection.double().numpy()
    expected = np.einsum("ce,behw->bchw", projection, (joined - mean) / np.sqrt(variance + 1e-5))
    (found,) = model.features(images)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_map_is_the_energy_of_each_place_and_the_score_its_highest():
    model = moved_model()
    features = (torch.randn(2, 8, 4, 4),)
    prediction = model(torch.zeros(2, 3, 16, 16), features)
    z, _ = model.flow(features[0])
    energy = torch.from_numpy(-norm.logpdf(z.numpy()).mean(1) - 0.5 * np.log(2 * np.pi))
    grown = F.interpolate(energy[:, None].float(), (16, 16), mode="bilinear")
    torch.testing.assert_close(prediction.anomaly_map, grown, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prediction.pred_score, prediction.anomaly_map.amax((1, 2, 3)))


def test_training_leaves_the_adapted_features_as_large_as_they_were_and_lowers_the_loss():
    """An adaptor that is trained by the likelihood would shrink them without end."""
    trainer = ModelRegistry.get_trainer(
        "patchflow-resnet18", train={"img_size": 64, "holdout": 0.0}, model=SMALL
    )
    model = trainer.model
    image = torch.rand(6, 3, 64, 64)
    (before,) = model.features(image)
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(60)
    batch = Batch(image, torch.zeros(6).long(), None, torch.arange(6), features=(before,))
    model.train()
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(60)]
    (after,) = model.features(image)
    torch.testing.assert_close(after, before)
    assert losses[-1] < 0.9 * losses[0]


@torch.no_grad()
def test_a_place_unlike_the_others_scores_higher():
    model = PatchflowModel(PatchflowConfig(**SMALL)).eval()
    features = torch.zeros(1, 8, 4, 4)
    features[:, :, 1, 2] = 6.0
    flat = model(torch.zeros(1, 3, 4, 4), (features,)).anomaly_map.flatten()
    assert int(flat.argmax()) == 1 * 4 + 2


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"kernel_size": 2}, {}, "kernel_size is 2, but must be odd"),
        ({"channels": 4000}, {}, "have only 384; lower it, or add layers"),
        ({"backbone": "resnet19"}, {}, "resnet18"),
        ({"layers": ("blocks.1",)}, {}, "layer 'blocks.1' is not known"),
        ({"num_scales": 4}, {"img_size": 32}, "input size 32 is too small for num_scales 4"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(changes, train, message):
    with pytest.raises(InputError, match=message):
        ModelRegistry.get_trainer(
            "patchflow-resnet18", train={"img_size": 64, **train}, model={**SMALL, **changes}
        )
