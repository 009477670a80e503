"""FastFlow's mathematics against autograd, scipy and FrEIA."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock as FreiaBlock
from scipy.stats import norm
from torch.nn import functional as F

from adray.components.flow2d import build_flow2d, conv_subnet
from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.fastflow import (
    FastflowConfig,
    FastflowModel,
    FastflowTrainer,
    fastflow_loss,
    likelihood_map,
)
from adray.types import Batch

LAYERS = ("layer1", "layer2")
DEIT = "deit_tiny_distilled_patch16_224"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def flow():
    """Four steps away from their initial values, in double precision."""
    flow = build_flow2d(8, steps=4, kernel_sizes=(3, 1), hidden_ratio=1.0, clamp=2.0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow.double()


@pytest.fixture
def model():
    config = FastflowConfig("resnet18", LAYERS, "random", flow_steps=2)
    return FastflowModel(config, input_size=32).eval()


def test_the_log_determinant_is_that_of_autograds_jacobian(flow):
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: flow(v.view_as(x))[0].flatten(), x.flatten()
    )
    torch.testing.assert_close(flow(x)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


def test_the_steps_undone_in_reverse_give_the_feature_map_back(flow):
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64)
    z, log_det = flow(x)
    restored, log_det_back = flow(z, rev=True)
    torch.testing.assert_close(restored, x)
    torch.testing.assert_close(log_det_back, -log_det)


def test_a_flow_equals_freias_sequence_with_the_same_weights(flow):
    sequence = SequenceINN(8, 4, 4)
    for i in range(4):
        sequence.append(
            FreiaBlock,
            subnet_constructor=conv_subnet(3 if i % 2 == 0 else 1, 1.0),
            affine_clamping=2.0,
        )
    sequence = sequence.double()
    with torch.no_grad():
        for ours, theirs in zip(flow.steps, sequence.module_list, strict=True):
            theirs.subnet.load_state_dict(ours.subnet.state_dict())
            theirs.global_scale.copy_(ours.global_scale.view(1, -1, 1, 1))
            theirs.global_offset.copy_(ours.global_offset.view(1, -1, 1, 1))
            theirs.w_perm.copy_(torch.eye(8)[ours.permutation].view(8, 8, 1, 1))
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    z, log_det = flow(x)
    expected, expected_log_det = sequence(x)
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-5, atol=1e-5)


def test_the_loss_is_scipys_negative_log_likelihood_up_to_its_constant():
    z, log_det = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    per_image = norm.logpdf(z.numpy()).reshape(5, -1).sum(1) + log_det.numpy()
    constant = 0.5 * np.log(2 * np.pi) * 3 * 4 * 4
    assert float(fastflow_loss([(z, log_det)])) == pytest.approx(
        float(-per_image.mean() - constant), rel=1e-5
    )


def test_the_map_is_the_mean_of_the_enlarged_negative_densities():
    latents = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    expected = np.zeros((2, 8, 8))
    for z in latents:
        density = np.exp(-0.5 * (z.numpy() ** 2).mean(1))  # (B, h, w)
        enlarged = F.interpolate(
            torch.from_numpy(density)[:, None], (8, 8), mode="bilinear", align_corners=False
        )
        expected -= enlarged[:, 0].numpy() / 2
    np.testing.assert_allclose(likelihood_map(latents, (8, 8))[:, 0].numpy(), expected, rtol=1e-5)


def test_an_unlikely_position_scores_higher():
    z = torch.zeros(1, 3, 4, 4)
    z[:, :, 1, 2] = 4.0
    flat = likelihood_map([z], (4, 4)).flatten()
    assert int(flat.argmax()) == 1 * 4 + 2


def test_kernel_sizes_are_taken_in_turn():
    alternating = build_flow2d(4, steps=3, kernel_sizes=(3, 1), hidden_ratio=1.0, clamp=2.0)
    only_three = build_flow2d(4, steps=3, kernel_sizes=(3,), hidden_ratio=1.0, clamp=2.0)
    assert [step.subnet[0].kernel_size[0] for step in alternating.steps] == [3, 1, 3]
    assert [step.subnet[0].kernel_size[0] for step in only_three.steps] == [3, 3, 3]


@pytest.mark.parametrize(("kernel_sizes", "millions"), [((3, 1), 2.6), ((3,), 4.7)])
def test_the_flows_for_a_resnet18_have_the_references_number_of_weights(kernel_sizes, millions):
    flows = [build_flow2d(channels, 8, kernel_sizes, 1.0, 2.0) for channels in (64, 128, 256)]
    assert sum(p.numel() for flow in flows for p in flow.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.05
    )


def test_given_features_keep_the_backbone_from_running(model):
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features, direct = model.features(image), model(image)
        model.extractor.net = None
        torch.testing.assert_close(model(image, features).anomaly_map, direct.anomaly_map)


def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(model):
    image = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
        torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-6)


def test_duplicating_the_batch_leaves_the_loss_unchanged(model):
    features = model.features(torch.randn(2, 3, 32, 32))
    once = fastflow_loss(model.latents(features))
    thrice = fastflow_loss(model.latents(tuple(f.repeat(3, 1, 1, 1) for f in features)))
    torch.testing.assert_close(once, thrice, rtol=1e-5, atol=0)


def test_training_moves_norms_and_flows_and_lowers_the_loss():
    config = FastflowConfig("resnet18", LAYERS, "random", flow_steps=2)
    trainer = FastflowTrainer(config, TrainConfig(img_size=32))
    trainer.optimizer, _ = trainer.configure_optimizer(10)
    image, label = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    batch = Batch(image, label, None, label, trainer.model.features(image))
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert all(
        not torch.equal(p, before[name])
        for name, p in trainer.model.named_parameters()
        if name in before
    )


@pytest.mark.parametrize("kernel_sizes", [(), (2,), (3, 0)])
def test_kernel_sizes_that_cannot_keep_the_size_are_refused(kernel_sizes):
    with pytest.raises(InputError, match="must be odd numbers"):
        FastflowConfig(kernel_sizes=kernel_sizes)


def test_a_transformers_patches_get_one_flow_and_no_norm_of_ours():
    config = FastflowConfig(DEIT, ("blocks.1",), "random", flow_steps=2)
    model = FastflowModel(config, input_size=64).eval()
    (feature,) = model.features(torch.randn(2, 3, 64, 64))
    assert feature.shape == (2, 192, 4, 4)
    assert not list(model.norms.parameters())
    z, log_det = model.flows[0](feature)
    ((latent, latent_log_det),) = model.latents((feature,))
    assert torch.equal(latent, z)
    assert torch.equal(latent_log_det, log_det)


def test_the_flow_for_a_transformer_has_the_references_number_of_weights():
    flow = build_flow2d(768, 20, (3, 1), hidden_ratio=0.16, clamp=2.0)
    assert sum(p.numel() for p in flow.parameters()) / 1e6 == pytest.approx(7.1, abs=0.05)


def test_sizes_and_blocks_that_a_transformer_does_not_have_are_refused_before_anything_starts():
    cait = FastflowConfig("cait_m48_448", ("blocks.40",))
    assert FastflowTrainer.check_inputs(cait, TrainConfig(img_size=448)) == []
    with pytest.raises(InputError, match="set img_size to 448"):
        FastflowTrainer.check_inputs(cait, TrainConfig(img_size=256))
    with pytest.raises(InputError, match=r"must be some of blocks\.0 to blocks\.11"):
        FastflowTrainer.check_inputs(FastflowConfig(DEIT), TrainConfig(img_size=256))
    assert FastflowTrainer.check_inputs(FastflowConfig("resnet18"), TrainConfig(img_size=100)) == []


def test_weight_files_are_checked_for_either_kind_of_backbone(tmp_path):
    for name, layers in ((DEIT, ("blocks.1",)), ("resnet18", LAYERS)):
        path = tmp_path / f"{name}.pth"
        torch.save(timm.create_model(name).state_dict(), path)
        FastflowTrainer.check_weight_file(FastflowConfig(name, layers), name, path)
    with pytest.raises(InputError, match="of another network"):
        FastflowTrainer.check_weight_file(
            FastflowConfig(DEIT, ("blocks.1",)), DEIT, tmp_path / "resnet18.pth"
        )


@pytest.mark.slow
def test_maps_of_a_deit_equal_anomalibs_with_the_same_weights():
    torch_model = pytest.importorskip("anomalib.models.image.fastflow.torch_model")
    backbone = "deit_base_distilled_patch16_384"
    theirs = torch_model.FastflowModel(
        (384, 384), backbone, pre_trained=False, flow_steps=4, hidden_ratio=0.16
    ).eval()
    config = FastflowConfig(backbone, ("blocks.7",), "random", flow_steps=4, hidden_ratio=0.16)
    ours = FastflowModel(config, input_size=384).eval()
    missing = theirs.feature_extractor.load_state_dict(
        ours.extractor.net.state_dict(), strict=False
    )
    assert not missing.unexpected_keys
    with torch.no_grad():
        for parameter in ours.flows.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for step, block in zip(
            ours.flows[0].steps, theirs.fast_flow_blocks[0].module_list, strict=True
        ):
            block.subnet.load_state_dict(step.subnet.state_dict())
            block.global_scale.copy_(step.global_scale.view(1, -1, 1, 1))
            block.global_offset.copy_(step.global_offset.view(1, -1, 1, 1))
            block.w_perm.copy_(torch.eye(768)[step.permutation].view(768, 768, 1, 1))
        image = torch.randn(2, 3, 384, 384)
        torch.testing.assert_close(
            ours(image).anomaly_map, theirs(image).anomaly_map, rtol=1e-4, atol=1e-4
        )
