"""Frozen backbones against torchvision's networks, and the files they refuse."""

from __future__ import annotations

import pickle

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from adray.components.backbone import set_backbone_dir
from adray.components.feature_extractor import (
    TimmFeatureExtractor,
    dryrun_find_featuremap_dims,
    read_state_dict,
)
from adray.errors import InputError

LAYERS = ("layer1", "layer2", "layer3")


@pytest.fixture
def weights(tmp_path):
    """A torchvision ResNet-18 with statistics that differ from a fresh one's, stored where weights are looked for."""
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None)
    net.train()(torch.randn(4, 3, 64, 64) * 2 + 1)
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    set_backbone_dir(tmp_path)
    return net.eval()


def torchvision_maps(net, image):
    x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
    maps = []
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = layer(x)
        maps.append(x)
    return maps


@torch.no_grad()
def test_the_maps_are_torchvisions(weights):
    image = torch.randn(2, 3, 64, 64)
    maps = torchvision_maps(weights, image)
    for layers, expected in ((LAYERS, maps[:3]), (("layer2", "layer4"), maps[1::2])):
        for ours, theirs in zip(
            TimmFeatureExtractor("resnet18", layers)(image), expected, strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_it_stays_as_it_is_under_a_parent_that_trains(weights):
    parent = torch.nn.Sequential(TimmFeatureExtractor("resnet18", LAYERS))
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    parent.train()
    maps = parent(torch.randn(4, 3, 32, 32) + 5)
    assert not parent[0].training
    assert not any(m.training for m in parent[0].modules())
    assert all(torch.equal(before[key], value) for key, value in parent.state_dict().items())
    assert not any(p.requires_grad for p in parent.parameters())
    assert not any(m.requires_grad for m in maps)


def test_sizes_and_channels_are_found_without_an_image(weights):
    assert dryrun_find_featuremap_dims(TimmFeatureExtractor("resnet18", LAYERS), 64) == {
        "layer1": (64, (16, 16)),
        "layer2": (128, (8, 8)),
        "layer3": (256, (4, 4)),
    }


def test_the_identity_names_the_file_and_its_hash(weights):
    identity = TimmFeatureExtractor("resnet18", LAYERS).identity
    assert identity["file"] == "resnet18.pth"
    assert len(identity["sha256"]) == 64
    assert TimmFeatureExtractor("resnet18", LAYERS, "random").identity["file"] is None


def test_safetensors_and_nested_files_read_as_plain_ones_do(weights, tmp_path):
    state = weights.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "x.safetensors")
    torch.save({"state_dict": state}, tmp_path / "nested.pth")
    for name in ("x.safetensors", "nested.pth"):
        read = read_state_dict(tmp_path / name)
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], state[key]) for key in state)


class Bomb:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('exploded').touch()",))


def test_nothing_in_a_weight_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18.pth").write_bytes(pickle.dumps({"conv1.weight": Bomb()}))
    set_backbone_dir(tmp_path)
    with pytest.raises(InputError):
        TimmFeatureExtractor("resnet18", LAYERS)
    torch.save({"conv1.weight": Bomb()}, tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match="more than tensors"):
        TimmFeatureExtractor("resnet18", LAYERS)
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_file_is_named(weights, tmp_path):
    path = tmp_path / "resnet18.pth"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"resnet18.pth is truncated or damaged"):
        TimmFeatureExtractor("resnet18", LAYERS)


def test_the_weights_of_another_network_are_refused(tmp_path):
    set_backbone_dir(tmp_path)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match="of another network"):
        TimmFeatureExtractor("resnet18", LAYERS)
    torch.save({"features.0.weight": torch.ones(1)}, tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"of another network: it lacks conv1\.weight"):
        TimmFeatureExtractor("resnet18", LAYERS)


@pytest.mark.parametrize("layers", [(), ("layer5",), ("layer2", "layer1"), ("layer1", "layer1")])
def test_layers_are_given_once_and_in_order(layers):
    with pytest.raises(InputError, match="each once and in this order"):
        TimmFeatureExtractor("resnet18", layers, "random")


def test_an_unknown_backbone_or_kind_of_weights_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'resnet50'"):
        TimmFeatureExtractor("resnet_50", LAYERS, "random")
    with pytest.raises(InputError, match="did you mean 'random'"):
        TimmFeatureExtractor("resnet18", LAYERS, "randon")
