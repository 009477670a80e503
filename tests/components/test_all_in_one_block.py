"""The flow step against FrEIA and against autograd's Jacobian, and in FrEIA's sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from FrEIA.modules import AllInOneBlock as FreiaBlock
from scipy.stats import ks_2samp, special_ortho_group
from torch import nn

from adray.components.all_in_one_block import AllInOneBlock, CouplingSteps, random_rotation


def conv_subnet(channels_in, channels_out):
    return nn.Sequential(
        nn.Conv2d(channels_in, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, channels_out, 3, padding=1)
    )


def linear_subnet(channels_in, channels_out):
    return nn.Sequential(nn.Linear(channels_in, 8), nn.ReLU(), nn.Linear(8, channels_out))


def new_block(channels, subnet, condition_channels=0, **options):
    dims_c = [(condition_channels,)] if condition_channels else []
    return AllInOneBlock([(channels,)], dims_c, subnet_constructor=subnet, **options)


def randomised(block):
    """All parameters away from their initial values, so that each of them is seen in the output."""
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return block


def freia_twin(block, freia):
    """FrEIA's block with the weights and the permutation or rotation of ours."""
    rank = freia.global_scale.dim()
    if block.permute_soft:
        matrix = block.rotation
    else:
        matrix = torch.eye(len(block.permutation))[block.permutation]
    with torch.no_grad():
        freia.subnet.load_state_dict(block.subnet.state_dict())
        freia.global_scale.copy_(block.global_scale.view(1, -1, *[1] * (rank - 2)))
        freia.global_offset.copy_(block.global_offset.view(1, -1, *[1] * (rank - 2)))
        freia.w_perm.copy_(matrix.view_as(freia.w_perm))
        freia.w_perm_inv.copy_(matrix.T.reshape(freia.w_perm.shape))
    return freia


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("channels", [6, 7])
def test_maps_equal_freias_with_the_same_weights(channels):
    block = randomised(new_block(channels, conv_subnet, affine_clamping=1.9))
    freia = freia_twin(
        block, FreiaBlock([(channels, 5, 4)], subnet_constructor=conv_subnet, affine_clamping=1.9)
    )
    x = torch.randn(3, channels, 5, 4)
    (y,), log_det = block([x])
    (expected,), expected_log_det = freia((x,))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-5, atol=1e-5)


def test_conditioned_rows_equal_freias_with_the_same_weights():
    block = randomised(new_block(6, linear_subnet, condition_channels=4))
    freia = freia_twin(block, FreiaBlock([(6,)], dims_c=[(4,)], subnet_constructor=linear_subnet))
    x, condition = torch.randn(9, 6), torch.randn(9, 4)
    (y,), log_det = block([x], [condition])
    (expected,), expected_log_det = freia((x,), [condition])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("condition_channels", [0, 4])
def test_rows_turned_by_a_rotation_equal_freias_soft_permutation(condition_channels):
    block = randomised(new_block(6, linear_subnet, condition_channels, permute_soft=True))
    dims_c = [(condition_channels,)] if condition_channels else []
    freia = freia_twin(
        block,
        FreiaBlock([(6,)], dims_c=dims_c, subnet_constructor=linear_subnet, permute_soft=True),
    )
    x = torch.randn(9, 6)
    condition = [torch.randn(9, condition_channels)] if condition_channels else []
    (y,), log_det = block([x], condition)
    (expected,), expected_log_det = freia((x,), condition)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-5, atol=1e-5)


def test_turned_maps_come_back_and_change_volumes_as_autograds_jacobian_says():
    block = randomised(new_block(4, conv_subnet, permute_soft=True)).double()
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64)
    (z,), log_det = block([x])
    torch.testing.assert_close(block([z], rev=True)[0][0], x, rtol=1e-4, atol=1e-5)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: block([v.view_as(x)])[0][0].flatten(), x.flatten()
    )
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_det[0], expected, rtol=1e-5, atol=1e-5)


def test_random_rotations_keep_lengths_and_hands_and_prefer_no_direction():
    rotations = torch.stack([random_rotation(3) for _ in range(2000)])
    products = rotations @ rotations.mT
    torch.testing.assert_close(products, torch.eye(3).expand(2000, 3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(2000), rtol=0, atol=1e-5)
    scipys = special_ortho_group.rvs(3, size=2000, random_state=0)
    for row, column in np.ndindex(3, 3):
        entries = rotations[:, row, column].numpy()
        assert ks_2samp(entries, scipys[:, row, column]).pvalue > 1e-4


def test_a_rotation_is_stored():
    first, other = (new_block(8, linear_subnet, permute_soft=True) for _ in range(2))
    assert not torch.equal(first.rotation, other.rotation)
    other.load_state_dict(first.state_dict())
    x = torch.randn(2, 8)
    assert torch.equal(other([x])[0][0], first([x])[0][0])


def test_a_fresh_step_scales_like_freias():
    freia = FreiaBlock([(4, 2, 2)], subnet_constructor=conv_subnet)
    fresh = new_block(4, conv_subnet).global_scale.detach().numpy()
    np.testing.assert_allclose(fresh, freia.global_scale.detach().flatten().numpy(), rtol=1e-6)


def test_the_log_determinant_is_that_of_autograds_jacobian():
    block = randomised(new_block(8, conv_subnet)).double()
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: block([v.view_as(x)])[0][0].flatten(), x.flatten()
    )
    torch.testing.assert_close(block([x])[1][0], torch.linalg.slogdet(jacobian).logabsdet)


def test_the_way_back_gives_the_input_and_the_determinants_inverse():
    block = randomised(new_block(7, linear_subnet, condition_channels=2)).double()
    x, condition = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    z, log_det = block([x], [condition])
    (restored,), log_det_back = block(z, [condition], rev=True)
    torch.testing.assert_close(restored, x)
    torch.testing.assert_close(log_det_back, -log_det)


def test_the_permutation_follows_the_seed_and_is_stored():
    torch.manual_seed(3)
    first = new_block(32, linear_subnet)
    torch.manual_seed(3)
    assert torch.equal(new_block(32, linear_subnet).permutation, first.permutation)
    other = new_block(32, linear_subnet)
    assert not torch.equal(other.permutation, first.permutation)
    other.load_state_dict(first.state_dict())
    x = torch.randn(2, 32)
    assert torch.equal(other([x])[0][0], first([x])[0][0])


def test_a_sequence_is_its_steps_after_each_other_and_undoes_them_in_reverse():
    steps = CouplingSteps(6)
    for _ in range(3):
        steps.append(AllInOneBlock, cond=0, cond_shape=(2,), subnet_constructor=linear_subnet)
    randomised(steps).double()
    x, condition = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    expected, expected_log_det = x, 0
    for step in steps:
        (expected,), log_det = step([expected], [condition])
        expected_log_det = expected_log_det + log_det
    z, log_det = steps(x, [condition])
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(log_det, expected_log_det)
    torch.testing.assert_close(steps(z, [condition], rev=True)[0], x)


def test_weights_of_a_sequence_have_the_names_that_checkpoints_know():
    steps = CouplingSteps(4)
    steps.append(AllInOneBlock, subnet_constructor=linear_subnet)
    names = ("global_scale", "global_offset", "permutation")
    subnet = ("subnet.0.weight", "subnet.0.bias", "subnet.2.weight", "subnet.2.bias")
    assert list(steps.state_dict()) == [f"steps.0.{name}" for name in (*names, *subnet)]
