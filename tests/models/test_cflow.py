"""CFLOW-AD's mathematics against slow loops, autograd, scipy and FrEIA."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock as FreiaBlock
from PIL import Image
from scipy.stats import norm
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.cflow import (
    CflowConfig,
    CflowModel,
    CflowTrainer,
    FiberFlow,
    cflow_loss,
    linear_subnet,
    position_code,
    rate_factor,
    relative_density,
    to_fibers,
    turn_slightly,
    unlikelihood_map,
)
from adray.types import Batch

LAYERS = ("layer2", "layer3")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def away_from_start(flow):
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow.double()


@pytest.fixture
def flow():
    """Four steps over 6 channels on a 3x4 map, away from their initial values, in double precision."""
    config = CflowConfig(flow_steps=4, condition_channels=8, permute_soft=False)
    return away_from_start(FiberFlow(6, (3, 4), config))


@pytest.fixture
def turning_flow():
    """The same with rotations."""
    config = CflowConfig(flow_steps=4, condition_channels=8, permute_soft=True)
    return away_from_start(FiberFlow(6, (3, 4), config))


def latent(flow, fiber, position):
    return flow(fiber, [flow.code[position]])


@pytest.fixture
def fibers():
    """Seven fibers and where they lie."""
    return torch.randn(7, 6, dtype=torch.float64), torch.randint(12, (7,))


def new_trainer(**changes):
    config = CflowConfig("resnet18", LAYERS, "random", flow_steps=2, **changes)
    return CflowTrainer(config, TrainConfig(img_size=32, batch_size=4))


def batch_of(trainer, image):
    label = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, label, None, label, trainer.model.features(image))


def loss_of_one_step(trainer, batch):
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(10)
    trainer.on_train_start()
    return float(trainer.train_step(batch)["loss"])


def freia_twin(flow, channels, condition_channels):
    """FrEIA's sequence with the weights of `flow`."""
    twin = SequenceINN(channels)
    for _ in flow.steps:
        twin.append(
            FreiaBlock, cond=0, cond_shape=(condition_channels,), subnet_constructor=linear_subnet,
            affine_clamping=1.9, global_affine_type="SOFTPLUS", permute_soft=False,
        )  # fmt: skip
    copy_weights(flow, twin.double(), channels)
    return twin


def copy_weights(flow, twin, channels):
    with torch.no_grad():
        for ours, theirs in zip(flow.steps, twin.module_list, strict=True):
            theirs.subnet.load_state_dict(ours.subnet.state_dict())
            theirs.global_scale.copy_(ours.global_scale.view(1, -1))
            theirs.global_offset.copy_(ours.global_offset.view(1, -1))
            if ours.permute_soft:
                theirs.w_perm.copy_(ours.rotation)
            else:
                theirs.w_perm.copy_(torch.eye(channels)[ours.permutation])


def test_the_position_code_is_that_of_a_loop_over_rows_columns_and_frequencies():
    height, width, length = 3, 5, 12
    expected = np.zeros((height, width, length))
    for row in range(height):
        for column in range(width):
            for k in range(length // 4):
                frequency = 10_000 ** (-2 * k / (length / 2))
                expected[row, column, 2 * k : 2 * k + 2] = (
                    math.sin(column * frequency),
                    math.cos(column * frequency),
                )
                start = length // 2 + 2 * k
                expected[row, column, start : start + 2] = (
                    math.sin(row * frequency),
                    math.cos(row * frequency),
                )
    np.testing.assert_allclose(
        position_code(height, width, length), expected.reshape(-1, length), atol=1e-6
    )


def test_the_log_determinant_is_that_of_autograds_jacobian(flow, fibers):
    fiber, position = fibers
    log_det = latent(flow, fiber, position)[1]
    for i in range(len(fiber)):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, i=i: latent(flow, x[None], position[i : i + 1])[0][0], fiber[i]
        )
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian).logabsdet)


def test_the_steps_undone_in_reverse_give_the_fibers_back(flow, fibers):
    fiber, position = fibers
    z, log_det = latent(flow, fiber, position)
    restored, log_det_back = flow(z, [flow.code[position]], rev=True)
    torch.testing.assert_close(restored, fiber)
    torch.testing.assert_close(log_det_back, -log_det)


def test_the_latent_equals_freias_with_the_same_weights(flow, fibers):
    fiber, position = fibers
    expected, expected_log_det = freia_twin(flow, 6, 8)(fiber, [flow.code[position]])
    z, log_det = latent(flow, fiber, position)
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-5, atol=1e-5)


def test_with_rotations_the_latent_equals_freias_soft_permutations(turning_flow, fibers):
    twin = SequenceINN(6)
    for _ in turning_flow.steps:
        twin.append(
            FreiaBlock, cond=0, cond_shape=(8,), subnet_constructor=linear_subnet,
            affine_clamping=1.9, global_affine_type="SOFTPLUS", permute_soft=True,
        )  # fmt: skip
    copy_weights(turning_flow, twin.double(), 6)
    fiber, position = fibers
    expected, log_det = twin(fiber, [turning_flow.code[position]])
    z, ours = latent(turning_flow, fiber, position)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(ours, log_det)


@pytest.mark.parametrize("degrees", [0.0, 5.0, 90.0])
def test_images_turn_by_at_most_the_angle_as_pil_turns_them(degrees):
    square = np.zeros((41, 41), dtype=np.float32)
    square[8:33, 8:33] = np.linspace(1, 2, 25 * 25).reshape(25, 25)
    image = torch.from_numpy(square).expand(12, 3, 41, 41)
    turned = turn_slightly(image, degrees)
    angles = np.arange(-degrees, degrees + 0.05, 0.1)
    pils = [np.asarray(Image.fromarray(square).rotate(angle)) for angle in angles]
    for one in turned:
        apart = [np.mean(one[0].numpy() != other) for other in pils]
        assert min(apart) < 0.03
    if degrees:
        assert not torch.equal(turned[0], turned[1])


def test_training_turns_images_only_where_the_configuration_says_so():
    image = torch.randn(4, 3, 32, 32)
    label = torch.zeros(4, dtype=torch.int64)
    batch = Batch(image, label, None, label)
    still = new_trainer(rotation_degrees=0.0)
    assert not still.augments
    assert torch.equal(still.augment(batch).image, image)
    turning = new_trainer(rotation_degrees=5.0)
    assert turning.augments
    assert not torch.equal(turning.augment(batch).image, image)


def test_a_checkpoint_of_permutations_is_not_read_as_one_of_rotations(tmp_path):
    path = tmp_path / "model.pth"
    new_trainer(permute_soft=False).save_model(path)
    with pytest.raises(InputError, match="CflowTrainer"):
        new_trainer(permute_soft=True).load_model(path)
    stored = torch.load(path, weights_only=True)
    del stored["version"]
    torch.save(stored, path)
    with pytest.raises(InputError, match="version 1 of CflowTrainer"):
        new_trainer(permute_soft=False).load_model(path)


def test_the_log_likelihood_is_scipys_per_dimension(flow, fibers):
    z, log_det = (part.detach().numpy() for part in latent(flow, *fibers))
    expected = (norm.logpdf(z).sum(1) + log_det) / 6
    np.testing.assert_allclose(flow.log_likelihood(*fibers).detach().numpy(), expected, rtol=1e-5)


def test_the_density_integrates_to_one_at_each_position():
    config = CflowConfig(flow_steps=3, condition_channels=4)
    flow = away_from_start(FiberFlow(2, (1, 2), config))
    axis = torch.linspace(-12, 12, 600, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for position in (0, 1):
        with torch.no_grad():
            there = torch.full((len(grid),), position)
            density = torch.exp(2 * flow.log_likelihood(grid, there))
        assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1.0, abs=1e-2)


def test_the_likelihood_depends_on_the_position(flow, fibers):
    fiber, position = fibers
    here, elsewhere = (flow.log_likelihood(fiber, p) for p in (position, (position + 1) % 12))
    assert not torch.isclose(here, elsewhere).any()


def test_rows_are_the_fibers_of_the_positions_that_index_the_code():
    feature = torch.randn(2, 3, 4, 5)
    rows = to_fibers(feature)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                row = b * 20 + i * 5 + j
                torch.testing.assert_close(rows[row], feature[b, :, i, j])
                assert row % 20 == i * 5 + j


def test_the_loss_is_the_mean_of_minus_the_log_of_the_sigmoid():
    values = torch.randn(50)
    expected = np.mean([math.log(1 + math.exp(-v)) for v in values.tolist()])
    assert float(cflow_loss(values)) == pytest.approx(expected, rel=1e-5)


def test_the_density_is_relative_to_the_largest_in_training_and_at_most_one(flow):
    feature = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        values = torch.stack(
            [flow.log_likelihood(to_fibers(f[None]), torch.arange(12)) for f in feature]
        )  # (2, 12)
        flow.largest.copy_(values.median())
        density = relative_density(flow, feature)
    expected = np.minimum(np.exp(values.numpy() - float(flow.largest)), 1.0)
    np.testing.assert_allclose(density.flatten(1).numpy(), expected, rtol=1e-5)


def test_the_map_lacks_the_sum_of_enlarged_densities_to_the_number_of_layers():
    densities = [torch.rand(2, 1, 4, 4), torch.rand(2, 1, 2, 2)]
    anomaly_map = unlikelihood_map(densities, (7, 7))
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    for i, j in corners:  # corner pixels lie on corner pixels
        expected = 2 - densities[0][:, 0, i, j] - densities[1][:, 0, i, j]
        torch.testing.assert_close(anomaly_map[:, 0, i, j], expected)
    # between four corners of a 2x2 map, the middle is their mean
    middle = 2 - densities[0][:, 0, 1:3, 1:3].mean((1, 2)) - densities[1][:, 0].mean((1, 2))
    torch.testing.assert_close(anomaly_map[:, 0, 3, 3], middle)


def test_the_largest_likelihood_is_that_of_the_epochs_fibers():
    trainer = new_trainer(lr=0.0)
    batch = batch_of(trainer, torch.randn(4, 3, 32, 32))
    loss_of_one_step(trainer, batch)
    for flow, feature in zip(trainer.model.flows, batch.features, strict=True):
        position = torch.arange(len(flow.code)).repeat(4)
        values = flow.log_likelihood(to_fibers(feature), position)
        torch.testing.assert_close(flow.largest, values.max())
    trainer.on_train_start()
    assert all(float(flow.largest) == -math.inf for flow in trainer.model.flows)


@pytest.mark.parametrize("images", [1, 3, 4])
def test_every_fiber_is_in_one_group_and_the_number_of_steps_is_that_of_a_full_batch(images):
    trainer = new_trainer(fiber_batch_size=16)
    sizes = [images * 16, images * 4]  # 4x4 and 2x2 maps; a full batch has 64 and 16 fibers
    steps = list(trainer.shuffled_groups(sizes))
    assert len(steps) == 4
    for layer, size in enumerate(sizes):
        groups = [step[layer] for step in steps if step[layer] is not None]
        assert all(0 < len(group) <= 16 for group in groups)
        assert sorted(torch.cat(groups).tolist()) == list(range(size))


def test_a_step_for_all_layers_moves_each_as_a_step_of_its_own_would():
    torch.manual_seed(0)
    trainer = new_trainer()
    batch = batch_of(trainer, torch.randn(4, 3, 32, 32))
    alone = new_trainer()
    alone.model.load_state_dict(trainer.model.state_dict())
    loss_of_one_step(trainer, batch)
    for i, (flow, feature) in enumerate(zip(alone.model.flows, batch.features, strict=True)):
        adam = torch.optim.Adam(
            flow.parameters(), trainer.config.lr * rate_factor(0, trainer.config.warmup)
        )
        fibers = to_fibers(feature)
        alone.group_loss(i, fibers, torch.arange(len(fibers))).backward()
        adam.step()
    for ours, theirs in zip(
        trainer.model.flows.parameters(), alone.model.flows.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_rate_rises_to_a_cosine_that_ends_at_a_thousandth_after_the_last_step():
    trainer = new_trainer(fiber_batch_size=16)
    batch = batch_of(trainer, torch.randn(4, 3, 32, 32))
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(5)
    rates = [trainer.optimizer.param_groups[0]["lr"]]
    for _ in range(5):
        trainer.train_step(batch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(2e-5)
    assert rates[-1] == pytest.approx(2e-7)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rate_factor(0.5, 0.08) == pytest.approx(0.5005)
    assert rate_factor(0.04, 0.08) == pytest.approx(0.55 * rate_factor(0.04, 0.0))


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    image = torch.randn(2, 3, 32, 32)
    losses = [
        loss_of_one_step(trainer, batch_of(trainer, x))
        for x, trainer in twins(image, image.repeat(3, 1, 1, 1))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def twins(*images):
    for image in images:
        torch.manual_seed(0)
        yield image, new_trainer()


def test_training_lowers_the_loss():
    trainer = new_trainer(lr=1e-3)
    batch = batch_of(trainer, torch.randn(4, 3, 32, 32))
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(20)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_a_score_does_not_depend_on_the_images_beside_it():
    config = CflowConfig("resnet18", LAYERS, "random", flow_steps=2)
    model = CflowModel(config, input_size=32).eval()
    image = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
        torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-6)


def test_a_position_code_of_another_length_than_a_multiple_of_four_is_refused():
    with pytest.raises(InputError, match="must be a multiple of 4"):
        CflowConfig(condition_channels=130)


@pytest.mark.slow
def test_likelihood_and_map_equal_anomalibs_decoder_with_the_same_weights():
    pytest.importorskip("anomalib")
    from anomalib.models.image.cflow.anomaly_map import AnomalyMapGenerator
    from anomalib.models.image.cflow.utils import cflow_head, get_logp, positional_encoding_2d

    feature = torch.randn(3, 64, 5, 6)
    flow = FiberFlow(64, (5, 6), CflowConfig(permute_soft=False))
    twin = cflow_head(128, 8, 1.9, 64)
    copy_weights(flow, twin, 64)
    code = positional_encoding_2d(128, 5, 6).flatten(1).T  # (30, 128)
    with torch.no_grad():
        expected = get_logp(64, *twin(to_fibers(feature), [code.repeat(3, 1)])) / 64
        ours = flow.log_likelihood(to_fibers(feature), torch.arange(30).repeat(3))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        # anomalib's reference is the largest of the batch, and so is its constant
        flow.largest.copy_(expected.max())
        theirs = AnomalyMapGenerator(["layer2"])(
            distribution=[expected], height=[5], width=[6], image_size=(32, 32)
        )
        ours = unlikelihood_map([relative_density(flow, feature)], (32, 32))[:, 0]
    torch.testing.assert_close(ours - ours.min(), theirs - theirs.min(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_loss_equals_anomalibs_formula_on_all_fibers_of_a_batch():
    pytest.importorskip("anomalib")
    from anomalib.models.image.cflow.utils import get_logp

    z, log_det = torch.randn(20, 16), torch.randn(20)
    expected = -F.logsigmoid(get_logp(16, z, log_det) / 16).mean()
    ours = cflow_loss((log_det - 0.5 * z.square().sum(1)) / 16 - 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(ours, expected)
