"""CS-Flow's mathematics against autograd, scipy, slow loops and torchvision; the whole flow against anomalib's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from scipy.stats import norm
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.csflow import (
    CHANNELS,
    CrossConvolutions,
    CrossScaleCoupling,
    CsflowConfig,
    CsflowModel,
    CsflowTrainer,
    EfficientNetB5,
    csflow_loss,
)
from adray.settings import Settings, use_settings
from adray.types import Batch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def away_from_start(module):
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double()


@pytest.fixture
def coupling():
    """A step over 5 channels, an odd number, away from its initial values, in double precision."""
    return away_from_start(CrossScaleCoupling(5, hidden=4, kernel_size=3, clamp=3.0))


@pytest.fixture
def maps():
    """Feature maps of two samples at three scales."""
    return [torch.randn(2, 5, side, side, dtype=torch.float64) for side in (4, 2, 1)]


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    return EfficientNetB5("random")


def new_model():
    return CsflowModel(CsflowConfig("random", kernel_sizes=(3, 5), hidden_channels=8))


def features_of(count, side=4):
    return tuple(torch.randn(count, CHANNELS, side // 2**i, side // 2**i) for i in range(3))


def joined(maps):
    return torch.cat([m.flatten(1) for m in maps], dim=1)


def split_like(flat, maps):
    parts = flat.split([m[0].numel() for m in maps], dim=1)
    return [part.view(len(flat), *m.shape[1:]) for part, m in zip(parts, maps, strict=True)]


def test_the_log_determinant_of_each_sample_is_that_of_autograds_jacobian(coupling, maps):
    _, log_det = coupling(maps)
    for i in range(2):
        sample = joined(maps)[i]
        jacobian = torch.autograd.functional.jacobian(
            lambda x: joined(coupling(split_like(x[None], maps))[0])[0], sample
        )
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian).logabsdet)


def test_the_way_back_gives_the_maps_and_the_determinants_inverse(coupling, maps):
    z, log_det = coupling(maps)
    restored, log_det_back = coupling(z, rev=True)
    for ours, original in zip(restored, maps, strict=True):
        torch.testing.assert_close(ours, original)
    torch.testing.assert_close(log_det_back, -log_det)


def test_a_fresh_step_is_a_permutation_of_the_channels_of_each_scale(maps):
    coupling = CrossScaleCoupling(5, hidden=4, kernel_size=3, clamp=3.0).double()
    moved, log_det = coupling(maps)
    for before, after, order in zip(maps, moved, coupling.permutation, strict=True):
        torch.testing.assert_close(after, before[:, order])
        assert sorted(order.tolist()) == list(range(5))
    assert log_det.tolist() == [0, 0]


def test_the_log_scale_is_the_softly_clamped_arcus_tangent(coupling):
    values = np.linspace(-50, 50, 11)
    expected = [3 * 0.636 * math.atan(v / 3) for v in values]
    np.testing.assert_allclose(coupling._soft_clamp(torch.from_numpy(values)).numpy(), expected)
    assert max(np.abs(expected)) < 3


def test_permutations_are_stored(coupling):
    other = CrossScaleCoupling(5, hidden=4, kernel_size=3, clamp=3.0).double()
    other.load_state_dict(coupling.state_dict())
    assert torch.equal(other.permutation, coupling.permutation)


def test_each_scale_hears_of_itself_and_its_neighbours_only():
    net = away_from_start(CrossConvolutions(2, 3, hidden=4, kernel_size=3))
    maps = [
        torch.randn(1, 2, side, side, dtype=torch.float64, requires_grad=True) for side in (8, 4, 2)
    ]
    for i, out in enumerate(net(maps)):
        gradients = torch.autograd.grad(out.sum(), maps, retain_graph=True, allow_unused=True)
        heard = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        assert heard == [abs(i - j) <= 1 for j in range(3)]


@pytest.mark.parametrize(("kernel_sizes", "millions"), [((3, 3, 3, 5), 275), ((3,), 47.6)])
def test_the_flow_has_the_references_number_of_weights(kernel_sizes, millions):
    with torch.device("meta"):
        steps = [CrossScaleCoupling(CHANNELS, 1024, size, 3.0) for size in kernel_sizes]
    count = sum(parameter.numel() for step in steps for parameter in step.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.5)


def test_the_loss_is_scipys_negative_log_likelihood_per_number_up_to_its_constant():
    latents = [torch.randn(5, 3, side, side, dtype=torch.float64) for side in (4, 2, 1)]
    log_det = torch.randn(5, dtype=torch.float64)
    per_image = norm.logpdf(joined(latents).numpy()).sum(1) + log_det.numpy()
    expected = -per_image.mean() / 63 - 0.5 * np.log(2 * np.pi)
    assert float(csflow_loss(latents, log_det)) == pytest.approx(float(expected), rel=1e-5)


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    model, features = away_from_start(new_model()).float(), features_of(2)
    once = csflow_loss(*model.latents(features))
    thrice = csflow_loss(*model.latents(tuple(f.repeat(3, 1, 1, 1) for f in features)))
    torch.testing.assert_close(once, thrice, rtol=1e-5, atol=0)


def test_the_score_is_the_mean_of_half_of_z_squared_and_the_map_is_that_of_the_finest_scale():
    model, features = new_model().eval(), features_of(2)
    with torch.no_grad():
        latents, _ = model.latents(features)
        prediction = model(torch.zeros(2, 3, 128, 128), features)
    expected = [np.mean(z**2 / 2) for z in joined(latents).numpy()]
    np.testing.assert_allclose(prediction.pred_score.numpy(), expected, rtol=1e-5)
    finest = torch.from_numpy((latents[0].numpy() ** 2).mean(1))[:, None]
    enlarged = F.interpolate(finest, (128, 128), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prediction.anomaly_map, enlarged)


def test_features_equal_torchvisions_node_at_three_sizes(extractor):
    net = torchvision.models.efficientnet_b5(weights=None)
    net.load_state_dict({**net.state_dict(), **extractor.state_dict()})
    node = torchvision.models.feature_extraction.create_feature_extractor(
        net.eval(), ["features.6.8"]
    )
    image = torch.randn(2, 3, 128, 128)
    for i, ours in enumerate(extractor(image)):
        with torch.no_grad():
            expected = node(F.interpolate(image, 128 // 2**i, mode="nearest"))["features.6.8"]
        assert ours.shape == (2, CHANNELS, 4 // 2**i, 4 // 2**i)
        torch.testing.assert_close(ours, expected)


def test_the_extractor_stays_in_eval_mode_and_needs_no_gradient(extractor):
    extractor.train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


def test_untrained_features_tell_images_apart(extractor):
    finest = extractor(torch.randn(4, 3, 128, 128))[0]
    assert float(finest.std(0).mean()) > 1e-5


@pytest.fixture
def weight_file(tmp_path):
    use_settings(Settings(backbone_dir=str(tmp_path)))
    return tmp_path / "efficientnet_b5.pth"


def test_a_published_file_with_its_classifier_is_read(weight_file, extractor):
    torch.save(
        {**extractor.state_dict(), "classifier.1.weight": torch.zeros(1000, 2048)}, weight_file
    )
    CsflowTrainer.check_weight_file(CsflowConfig(), "efficientnet_b5", weight_file)
    read = EfficientNetB5("pretrained")
    assert read.identity["file"] == "efficientnet_b5.pth"
    assert all(
        torch.equal(tensor, extractor.state_dict()[name])
        for name, tensor in read.state_dict().items()
    )


def test_a_file_of_another_network_is_refused_by_plan_and_trainer(weight_file):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), weight_file)
    with pytest.raises(InputError, match=r"is of another network: it lacks features\.0\.0\.weight"):
        CsflowTrainer.check_weight_file(CsflowConfig(), "efficientnet_b5", weight_file)
    with pytest.raises(InputError, match=r"is of another network: it lacks features\.0\.0\.weight"):
        EfficientNetB5("pretrained")


def test_a_truncated_file_is_refused(weight_file):
    weight_file.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="truncated or damaged"):
        CsflowTrainer.check_weight_file(CsflowConfig(), "efficientnet_b5", weight_file)


@pytest.mark.parametrize("size", [64, 224, 448])
def test_sizes_whose_scales_do_not_halve_exactly_are_refused(size):
    with pytest.raises(InputError, match="must be a multiple of 128"):
        CsflowTrainer.check_inputs(CsflowConfig(), TrainConfig(img_size=size))


@pytest.mark.parametrize("kernel_sizes", [(), (2,), (3, 0)])
def test_kernel_sizes_that_cannot_keep_the_size_are_refused(kernel_sizes):
    with pytest.raises(InputError, match="must be odd numbers"):
        CsflowConfig(kernel_sizes=kernel_sizes)


def test_an_unknown_word_for_the_weights_is_refused():
    with pytest.raises(InputError, match="weights 'imagenet' is not known"):
        EfficientNetB5("imagenet")


def test_training_lowers_the_loss():
    config = CsflowConfig("random", kernel_sizes=(3,), hidden_channels=8, lr=1e-3)
    trainer = CsflowTrainer(config, TrainConfig(img_size=128))
    trainer.optimizer, _ = trainer.configure_optimizer(10)
    label = torch.zeros(4, dtype=torch.int64)
    batch = Batch(torch.zeros(4, 3, 128, 128), label, None, label, features_of(4))
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(10)]
    assert losses[-1] < losses[0]


ANOMALIBS_NAMES = {
    "enter": ("conv_scale0_0", "conv_scale1_0", "conv_scale2_0"),
    "leave": ("conv_scale0_1", "conv_scale1_1", "conv_scale2_1"),
    "from_coarser": ("up_conv10", "up_conv21"),
    "from_finer": ("down_conv01", "down_conv12"),
}


def copy_convolutions(ours, theirs):
    for part, names in ANOMALIBS_NAMES.items():
        for convolution, name in zip(getattr(ours, part), names, strict=True):
            getattr(theirs, name).load_state_dict(convolution.state_dict())
    with torch.no_grad():
        for i in range(3):
            getattr(theirs, f"gamma{i}").copy_(ours.gamma[i : i + 1])


@pytest.mark.slow
def test_latents_score_and_loss_equal_anomalibs_with_the_same_weights():
    pytest.importorskip("anomalib")
    from anomalib.models.image.csflow.loss import CsFlowLoss
    from anomalib.models.image.csflow.torch_model import CrossScaleFlow, CsFlowModel

    model = CsflowModel(CsflowConfig("random", hidden_channels=8))
    with torch.no_grad():
        for step in model.steps:
            for net in (step.from_first, step.from_second):
                net.gamma.uniform_(0.5, 1.5)
    flow = CrossScaleFlow(
        (3, 256, 256), n_coupling_blocks=4, clamp=3.0, cross_conv_hidden_channels=8
    )
    modules = list(flow.graph.module_list)
    for step, permute, glow in zip(model.steps, modules[::2], modules[1::2], strict=True):
        permute.perm = list(step.permutation)
        copy_convolutions(step.from_first, glow.cross_convolution1)
        copy_convolutions(step.from_second, glow.cross_convolution2)
    features = features_of(2, side=8)
    with torch.no_grad():
        latents, log_det = model.latents(features)
        expected, summed = flow(list(features))
        for ours, theirs in zip(latents, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        score = model(torch.zeros(2, 3, 256, 256), features).pred_score
        torch.testing.assert_close(
            score, CsFlowModel._compute_anomaly_scores(expected), rtol=1e-4, atol=1e-4
        )
        # theirs gives each sample the batch's sum
        torch.testing.assert_close(log_det.sum().expand(2), summed, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(
            csflow_loss(latents, log_det), CsFlowLoss.forward(expected, log_det)
        )
