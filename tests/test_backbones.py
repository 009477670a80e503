"""Which weight files are there: found, hashed, opened, and told where they belong."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import timm
import torch

from adray.backbones import find_backbones, users_of
from adray.cli.backbones import main
from adray.components.backbone import BACKBONE_WEIGHT_FILES
from adray.errors import InputError


@pytest.fixture
def resnet(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), path)
    return path


def run(tmp_path, capsys, *names):
    code = main([*names, "--backbone-dir", str(tmp_path)])
    return code, capsys.readouterr().out


def test_a_file_that_is_there_is_measured_hashed_and_opened(resnet, tmp_path, capsys):
    code, said = run(tmp_path, capsys, "resnet18")
    content = resnet.read_bytes()
    assert code == 0
    assert str(resnet) in said
    assert f"{len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}" in said
    assert "not the published file, which is allowed" in said
    assert "licence: BSD-3-Clause" in said
    assert "holds the network that its name says" in said
    assert "its features of a test picture are not those of the published weights" in said
    assert "1 of 1 weight files are there, 0 of them cannot be used" in said
    assert "padim" in said.splitlines()[0]


def test_the_published_file_is_known_by_its_hash(resnet, tmp_path, monkeypatch):
    row = BACKBONE_WEIGHT_FILES["resnet18"]
    (other,) = find_backbones(tmp_path, ["resnet18"])
    assert other.is_published is False
    monkeypatch.setitem(
        BACKBONE_WEIGHT_FILES, "resnet18", type(row)(row.paths, 45, row.source, other.sha256)
    )
    (same,) = find_backbones(tmp_path, ["resnet18"])
    assert same.is_published is True


def test_a_missing_file_is_told_its_place_size_hash_and_licence(tmp_path, capsys):
    code, said = run(tmp_path, capsys, "dinov2_vits14")
    assert code == 0
    assert f"to {tmp_path}/dinov2_vit_small_14/dinov2_vits14_pretrain.pth" in said
    assert "88 MB, sha256 b938bf1bc15cd2ec..." in said
    assert "licence: Apache-2.0" in said


@pytest.mark.parametrize("kind", ["truncated", "another network", "registers"])
def test_a_file_that_cannot_be_used_ends_with_1(kind, resnet, tmp_path, capsys):
    names = ["resnet18", "dinov2_vits14"]
    if kind == "truncated":
        resnet.write_bytes(resnet.read_bytes()[:1000])
        message = "truncated or damaged"
    elif kind == "another network":
        torch.save(timm.create_model("resnet50", pretrained=False).state_dict(), resnet)
        message = "of another network"
    else:
        path = tmp_path / "dinov2_vit_small_14/dinov2_vits14_pretrain.pth"
        path.parent.mkdir()
        net = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, depth=1)
        torch.save(net.state_dict(), path)
        message = "has 4 register tokens, expected 0"
    code, said = run(tmp_path, capsys, *names)
    assert code == 1
    assert message in said
    assert "1 of them cannot be used" in said


def test_the_published_features_are_those_of_torchvisions_network_with_the_published_weights(
    shared,
):
    torchvision = pytest.importorskip("torchvision")
    path = shared / "backbones" / "resnet18.pth"
    network = torchvision.models.resnet18()
    network.load_state_dict(torch.load(path, weights_only=True))
    until_layer3 = torch.nn.Sequential(*list(network.children())[:7]).eval()
    axis = torch.arange(64) / 63 * 4 - 2
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    with torch.no_grad():
        maps = until_layer3(torch.stack([down, right, down * right / 2])[None])
    golden = BACKBONE_WEIGHT_FILES["resnet18"].golden
    assert maps[0].mean((1, 2))[: len(golden)].tolist() == pytest.approx(golden, abs=1e-4)


def test_the_published_weights_are_known_in_a_file_of_another_form_and_changed_ones_are_not(
    tmp_path, capsys
):
    (packaged,) = find_backbones(tmp_path, ["efficientnet_lite0"])
    state = torch.load(packaged.path, weights_only=True)
    copied = tmp_path / BACKBONE_WEIGHT_FILES["efficientnet_lite0"].paths[0]
    torch.save(dict(reversed(state.items())), copied)
    code, said = run(tmp_path, capsys, "efficientnet_lite0")
    assert (code, "not the published file" in said) == (0, True)
    assert "its features of a test picture are those of the published weights" in said

    for name, values in state.items():
        if name.endswith("weight") and values.ndim == 4:
            state[name] = values * 1.01
    torch.save(state, copied)
    code, said = run(tmp_path, capsys, "efficientnet_lite0")
    assert code == 0
    assert "its features of a test picture are not those of the published weights" in said


def test_patterns_choose_and_an_unknown_one_is_answered_with_the_nearest(tmp_path):
    names = [backbone.name for backbone in find_backbones(tmp_path, ["dinov2_vitg14*", "resnet18"])]
    assert names == ["resnet18", "dinov2_vitg14", "dinov2_vitg14_reg4"]
    assert [b.name for b in find_backbones(tmp_path)] == list(BACKBONE_WEIGHT_FILES)
    with pytest.raises(InputError, match=r"no backbone is called 'resnet81'; did you mean"):
        find_backbones(tmp_path, ["resnet81"])


def test_every_file_that_a_configuration_needs_has_its_users():
    assert "subspacead-giant-672-fewshot" in users_of("dinov2_vitg14_reg4")
    assert users_of("dinov2_vitl14_reg4") == []


def test_nothing_loads_torch_where_nothing_is_there(tmp_path):
    code = (
        "import sys; from adray.cli.backbones import main; "
        f"main(['dinov2*', '--backbone-dir', {str(tmp_path)!r}]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
