"""ResNets against timm's: the same names, random weights and maps."""

from __future__ import annotations

import pytest
import timm
import torch

from adray.components.architectures import RESNETS
from adray.components.resnet import RESNET_PLANS, STAGES, ResNet

LAYERS = ("layer1", "layer2", "layer3")


def build_both(name, layers):
    """Build a network here and there, each from the same random numbers."""
    torch.manual_seed(3)
    ours = ResNet(RESNET_PLANS[name], layers)
    after = torch.rand(3)
    torch.manual_seed(3)
    places = tuple(STAGES.index(layer) + 1 for layer in layers)
    theirs = timm.create_model(name, features_only=True, out_indices=places)
    assert torch.equal(after, torch.rand(3))
    return ours, theirs


def test_the_names_that_a_plan_knows_are_those_that_can_be_built():
    assert tuple(RESNET_PLANS) == RESNETS


@pytest.mark.parametrize("name", RESNET_PLANS)
def test_random_weights_and_their_names_are_timms(name):
    ours, theirs = build_both(name, LAYERS)
    wanted = theirs.state_dict()
    found = ours.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2"])
@pytest.mark.parametrize("layers", [LAYERS, ("layer2", "layer4")])
def test_maps_and_gradients_in_training_are_timms(name, layers):
    ours, theirs = build_both(name, layers)
    # Residual branches that start at zero would hide what is in them.
    for net in (ours, theirs):
        for part in net.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(part.weight)
    image = torch.randn(2, 3, 64, 64)
    for found, wanted in zip(ours(image), theirs(image), strict=True):
        assert torch.equal(found, wanted)

    sum(found.square().mean() for found in ours(image)).backward()
    sum(wanted.square().mean() for wanted in theirs(image)).backward()
    assert torch.equal(ours.conv1.weight.grad, theirs.conv1.weight.grad)
