"""The SSPCAB block: what it may see, against a slow loop and the published code's reading of the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adray.components.sspcab import SSPCAB


def slow_masked_convolution(block, feature, reach):
    """Sum of four 1x1 kernels, `reach` pixels away along both diagonals, position by position."""
    _, channels, h, w = feature.shape
    out = np.zeros((channels, h, w))
    directions = [(-reach, -reach), (-reach, reach), (reach, -reach), (reach, reach)]
    for conv, (down, right) in zip(block.corners, directions, strict=True):
        weight, bias = conv.weight.detach()[:, :, 0, 0].numpy(), conv.bias.detach().numpy()
        for y in range(h):
            for x in range(w):
                inside = 0 <= y + down < h and 0 <= x + right < w
                seen = feature[0, :, y + down, x + right].numpy() if inside else np.zeros(channels)
                out[:, y, x] += weight @ seen + bias
    return out


@pytest.mark.parametrize("dilation", [1, 2])
def test_it_equals_a_loop_over_positions(dilation):
    torch.manual_seed(0)
    block, feature = SSPCAB(8, dilation=dilation, reduction=2), torch.randn(1, 8, 7, 6)
    predicted = np.maximum(slow_masked_convolution(block, feature, dilation + 1), 0)
    hidden, _, out, _ = block.attention
    squeezed = np.maximum(
        hidden.weight.detach().numpy() @ predicted.mean((1, 2)) + hidden.bias.detach().numpy(), 0
    )
    attention = 1 / (
        1 + np.exp(-(out.weight.detach().numpy() @ squeezed + out.bias.detach().numpy()))
    )
    expected = predicted * attention[:, None, None]
    np.testing.assert_allclose(block(feature)[0].detach().numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (2, 2)])
def test_a_position_sees_the_corners_of_its_field_but_nothing_nearer(kernel_size, dilation):
    torch.manual_seed(0)
    block, side = SSPCAB(4, kernel_size, dilation, reduction=2), 2 * (kernel_size + dilation) + 5
    for linear in (block.attention[0], block.attention[2]):
        torch.nn.init.zeros_(
            linear.weight
        )  # attention looks at every position; here it is constant
    for conv in block.corners:
        torch.nn.init.uniform_(conv.weight, 0.1, 1.0)  # so that no channel is cut off by the ReLU
    feature = torch.rand(1, 4, side, side, requires_grad=True)
    center = side // 2
    block(feature)[0, :, center, center].sum().backward()
    seen = feature.grad[0].abs().sum(0) > 0
    offset = (torch.arange(side) - center).abs()
    expected = (offset > dilation) & (offset <= dilation + kernel_size)
    assert torch.equal(seen, expected[:, None] & expected)


def test_training_lowers_its_own_loss_on_a_smooth_map():
    torch.manual_seed(0)
    block = SSPCAB(16, reduction=4)
    ramp = torch.linspace(0.5, 1.5, 12)
    feature = (ramp[:, None] * ramp).expand(2, 16, 12, 12)
    adam = torch.optim.Adam(block.parameters(), 1e-2)
    errors = []
    for _ in range(100):
        error = (block(feature) - feature)[..., 2:-2, 2:-2].square().mean()
        adam.zero_grad()
        error.backward()
        adam.step()
        errors.append(error.item())
    assert errors[-1] < 0.6 * errors[0]
