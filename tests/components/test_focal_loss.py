"""The focal loss against a loop over pixels and torch's cross-entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from adray.components.focal_loss import focal_loss


def random_case():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 2, 5, 4, generator=generator)
    return logits, (torch.rand(2, 1, 5, 4, generator=generator) > 0.7).float()


@pytest.mark.parametrize("gamma", [1.0, 2.0, 4.0])
def test_it_equals_a_loop_over_pixels(gamma):
    logits, mask = random_case()
    costs = []
    for b, y, x in np.ndindex(2, 5, 4):
        normal, anomalous = (math.exp(float(v)) for v in logits[b, :, y, x])
        p = (anomalous if mask[b, 0, y, x] else normal) / (normal + anomalous)
        costs.append(-((1 - p) ** gamma) * math.log(p))
    assert float(focal_loss(logits, mask, gamma)) == pytest.approx(np.mean(costs), rel=1e-5)


@pytest.mark.parametrize("gamma", [2.0, 4.0])
def test_it_is_torchvisions_of_the_difference_of_both_logits(gamma):
    logits, mask = random_case()
    theirs = sigmoid_focal_loss(
        logits[:, 1:] - logits[:, :1], mask, alpha=-1, gamma=gamma, reduction="mean"
    )
    torch.testing.assert_close(focal_loss(logits, mask, gamma), theirs, rtol=1e-5, atol=0)


def test_without_focus_it_is_the_cross_entropy():
    logits, mask = random_case()
    torch.testing.assert_close(
        focal_loss(logits, mask, 0.0), F.cross_entropy(logits, mask[:, 0].long())
    )


def test_a_confidently_wrong_background_pixel_costs_as_much_as_a_wrong_foreground_pixel():
    says_anomalous = torch.tensor([-4.0, 4.0]).view(1, 2, 1, 1)
    background = focal_loss(says_anomalous, torch.zeros(1, 1, 1, 1))
    foreground = focal_loss(-says_anomalous, torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(background, foreground)
    assert background > 7.9


def test_right_pixels_hardly_cost_and_extreme_logits_stay_finite():
    logits = torch.tensor([40.0, -40.0]).view(1, 2, 1, 1).requires_grad_()
    right, wrong = (
        focal_loss(logits, torch.zeros(1, 1, 1, 1)),
        focal_loss(logits, torch.ones(1, 1, 1, 1)),
    )
    assert right.item() == 0.0
    assert wrong.item() == pytest.approx(80.0)
    (right + wrong).backward()
    assert torch.isfinite(logits.grad).all()
