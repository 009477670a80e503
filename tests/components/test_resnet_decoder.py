"""The turned-around ResNet against the one it mirrors, and against the same layers written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from adray.components.architectures import RESNETS
from adray.components.feature_extractor import TimmFeatureExtractor
from adray.components.resnet import RESNET_PLANS, residual_stage
from adray.components.resnet_decoder import (
    ResNetDecoder,
    resnet_plan,
    upward_stage,
)
from adray.errors import InputError

LAYERS = ("layer1", "layer2", "layer3")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_every_backbone_has_a_plan():
    assert set(RESNET_PLANS) == set(RESNETS)


@pytest.mark.parametrize("backbone", ["resnet18", "wide_resnet50_2"])
@torch.no_grad()
def test_the_outputs_have_the_shapes_of_the_encoders_maps(backbone):
    maps = TimmFeatureExtractor(backbone, LAYERS, "random")(torch.randn(2, 3, 64, 96))
    embedding = torch.randn(2, 512 * resnet_plan(backbone).block.expansion, 2, 3)
    restored = ResNetDecoder(backbone).eval()(embedding)
    assert [m.shape for m in restored] == [m.shape for m in maps]
    assert tuple(m.shape[1] for m in maps) == resnet_plan(backbone).channels


@pytest.mark.parametrize("backbone", ["resnet50", "wide_resnet50_2"])
def test_bottleneck_stages_are_as_wide_and_deep_as_published(backbone):
    decoder = ResNetDecoder(backbone)
    factor = 2 if backbone.startswith("wide") else 1
    assert [len(stage) for stage in (decoder.layer1, decoder.layer2, decoder.layer3)] == [3, 4, 6]
    assert decoder.layer1[0].conv2.weight.shape == (256 * factor, 256 * factor, 2, 2)
    assert decoder.layer1[1].conv2.weight.shape == (256 * factor, 256 * factor, 3, 3)
    assert decoder.layer3[0].downsample[0].weight.shape == (512, 256, 2, 2)


@torch.no_grad()
def test_the_first_block_doubles_by_transposed_convolutions_in_branch_and_shortcut():
    stage = upward_stage(resnet_plan("resnet18"), 8, 4, depth=1).double().eval()
    block, x = stage[0], torch.randn(2, 8, 3, 3, dtype=torch.float64)

    def doubled(
        weight,
    ):  # a 2x2 transposed convolution of stride 2 is a matrix product per pixel of a 2x2 cell
        cells = torch.einsum("bihw,iopq->bohpwq", x, weight)
        return cells.reshape(2, weight.shape[1], 6, 6) / (1 + 1e-5) ** 0.5  # and a fresh batch norm

    branch = (
        F.conv2d(doubled(block.conv1.weight).relu(), block.conv2.weight, padding=1)
        / (1 + 1e-5) ** 0.5
    )
    torch.testing.assert_close(stage(x), (branch + doubled(block.downsample[0].weight)).relu())


def test_going_down_and_up_again_gives_the_shape_back():
    plan = resnet_plan("resnet18")
    x = torch.randn(2, 40, 8, 12)
    down = residual_stage(plan, 40, 64, depth=2)(x)
    assert down.shape == (2, 64, 4, 6)
    assert upward_stage(plan, 64, 40, depth=2)(down).shape == x.shape


def test_convolutions_start_as_he_proposes_by_fan_out():
    weight = ResNetDecoder("resnet18").layer1[1].conv2.weight.detach()
    assert float(weight.var()) == pytest.approx(2 / (256 * 9), rel=0.05)


def test_an_unknown_backbone_names_the_nearest():
    with pytest.raises(InputError, match=r"'resnet19' has no decoder here; .*resnet18"):
        ResNetDecoder("resnet19")
