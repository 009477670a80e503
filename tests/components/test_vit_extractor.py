"""Frozen transformers: what they give against timm's own forward pass, what they take and what they refuse."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from adray.components.architectures import VITS, check_vit
from adray.components.vit_extractor import VitExtractor, check_vit_file
from adray.errors import InputError
from adray.settings import set_globals

CAIT, DEIT = "cait_xxs24_224", "deit_tiny_distilled_patch16_224"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def backbones(tmp_path):
    set_globals(backbone_dir=str(tmp_path))
    return tmp_path


def whole(name, **changes):
    """Three blocks of timm's network with its head, all away from their initial values."""
    net = timm.create_model(name, pretrained=False, depth=3, **changes).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def write_timms(net, name, folder):
    tag = "fb_dist_in1k" if name.startswith("cait") else "fb_in1k"
    path = folder / f"{name}.{tag}" / "model.safetensors"
    path.parent.mkdir()
    save_file(net.state_dict(), path)
    return path


def write_facebooks(net, name, folder):
    path = folder / f"{name}.pth"
    prefix = "module." if name.startswith("cait") else ""
    torch.save({"model": {prefix + key: value for key, value in net.state_dict().items()}}, path)
    return path


@pytest.mark.parametrize("write", [write_timms, write_facebooks])
@pytest.mark.parametrize("name", [CAIT, DEIT])
def test_the_maps_are_those_of_timms_whole_network_from_either_layout(name, write, backbones):
    net = whole(name)
    write(net, name, backbones)
    extractor = VitExtractor(name, ("blocks.0", "blocks.1"))
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = net.forward_intermediates(image, [0, 1], norm=True, intermediates_only=True)
    maps = extractor(image)
    assert [tuple(m.shape) for m in maps] == [(2, extractor.channels, 14, 14)] * 2
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_maps_are_the_normalised_patches_without_class_and_distillation_token(backbones):
    net = whole(DEIT)
    write_facebooks(net, DEIT, backbones)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        patches = net.patch_embed(image)
        tokens = torch.cat((net.cls_token, net.dist_token, patches), dim=1) + net.pos_embed
        tokens = net.norm(net.blocks[1](net.blocks[0](tokens)))[:, 2:]
    (ours,) = VitExtractor(DEIT, ("blocks.1",))(image)
    torch.testing.assert_close(ours[0, :, 3, 5], tokens[0, 3 * 14 + 5])
    torch.testing.assert_close(ours.flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize("name", [CAIT, DEIT])
def test_blocks_after_the_last_tap_are_not_built(name):
    extractor = VitExtractor(name, ("blocks.1",), "random")
    assert len(extractor.net.blocks) == 2
    assert not any(key.startswith(("head", "blocks_token_only")) for key in extractor.state_dict())


def test_it_stays_in_eval_mode_and_needs_no_gradient():
    parent = nn.ModuleList([VitExtractor(DEIT, ("blocks.0",), "random")]).train()
    assert not any(module.training for module in parent[0].modules())
    assert not any(p.requires_grad for p in parent.parameters())
    assert not parent[0](torch.randn(1, 3, 32, 32, requires_grad=True))[0].requires_grad


@pytest.mark.parametrize(("name", "side"), [(CAIT, 224), (DEIT, 48)])
def test_an_image_is_described_the_same_whatever_batch_it_came_in(name, side):
    extractor = VitExtractor(name, ("blocks.0",), "random")
    image = torch.randn(9, 3, side, side)
    singles = torch.cat([extractor(image[i : i + 1])[0] for i in range(9)])
    torch.testing.assert_close(extractor(image)[0], singles, rtol=1e-5, atol=1e-5)


def test_a_half_precision_file_is_used_in_float32(backbones):
    write_facebooks(whole(DEIT).half(), DEIT, backbones)
    assert {p.dtype for p in VitExtractor(DEIT, ("blocks.2",)).parameters()} == {torch.float32}


def test_it_says_which_file_it_was_made_of(backbones):
    path = write_timms(whole(CAIT), CAIT, backbones)
    extractor = VitExtractor(CAIT, ("blocks.0",))
    assert extractor.weight_file == path
    assert extractor.identity["backbone"] == CAIT
    assert len(extractor.identity["sha256"]) == 64
    assert VitExtractor(CAIT, ("blocks.0",), "random").identity["file"] is None


@pytest.mark.parametrize("name", VITS)
def test_sizes_and_depths_are_timms(name):
    size, depth = VITS[name]
    assert timm.get_pretrained_cfg(name).input_size == (3, size, size)
    with torch.device("meta"):
        assert len(timm.create_model(name, pretrained=False).blocks) == depth


def test_cait_is_bound_to_the_size_it_was_trained_at():
    check_vit("cait_m48_448", ("blocks.40",), 448)
    with pytest.raises(
        InputError, match=r"input size 256 does not suit cait_m48_448, .* set img_size to 448"
    ):
        check_vit("cait_m48_448", ("blocks.40",), 256)
    check_vit("cait_s24_224", ("blocks.20",), 448, shrink=2)
    with pytest.raises(InputError, match="set img_size to 448"):
        check_vit("cait_s24_224", ("blocks.20",), 224, shrink=2)


def test_deit_takes_whole_patches():
    check_vit(DEIT, ("blocks.7",), 64)
    with pytest.raises(InputError, match=r"input size 100 .* a multiple of 16; use 224"):
        check_vit(DEIT, ("blocks.7",), 100)
    with pytest.raises(InputError, match=r"input size 48 .* a multiple of 32; use 448"):
        check_vit(DEIT, ("blocks.7",), 48, shrink=2)


@pytest.mark.parametrize(
    "layers", [(), ("layer1",), ("blocks.12",), ("blocks.-1",), ("blocks.1", "blocks.0")]
)
def test_layers_are_blocks_once_and_in_order(layers):
    with pytest.raises(InputError, match=r"must be some of blocks\.0 to blocks\.11"):
        VitExtractor(DEIT, layers, "random")


def test_an_unknown_backbone_or_kind_of_weights_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=f"did you mean '{CAIT}'"):
        check_vit("cait_xxs24", ("blocks.0",), 224)
    with pytest.raises(InputError, match="did you mean 'random'"):
        VitExtractor(DEIT, ("blocks.0",), "randon")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise AssertionError('the file ran code')",))


def test_files_that_cannot_be_used_are_refused_by_plan_and_trial_alike(backbones):
    path = write_facebooks(whole(DEIT), DEIT, backbones)
    check_vit_file(DEIT, ("blocks.2",), path)
    path.write_bytes(path.read_bytes()[:100_000])
    uses = (
        lambda: check_vit_file(DEIT, ("blocks.2",), path),
        lambda: VitExtractor(DEIT, ("blocks.2",)),
    )
    for use in uses:
        with pytest.raises(InputError, match="truncated or damaged"):
            use()
    torch.save({"model": Bomb()}, path)
    for use in uses:
        with pytest.raises(InputError, match="more than tensors"):
            use()


def test_the_weights_of_another_transformer_are_refused(backbones):
    path = write_facebooks(timm.create_model("deit_tiny_patch16_224", depth=3), DEIT, backbones)
    with pytest.raises(InputError, match="of another network: it lacks dist_token"):
        VitExtractor(DEIT, ("blocks.0",))
    write_facebooks(whole(DEIT, img_size=160), DEIT, backbones)
    with pytest.raises(InputError, match="of another network: pos_embed has shape"):
        check_vit_file(DEIT, ("blocks.0",), path)
    write_facebooks(whole(DEIT), DEIT, backbones)
    with pytest.raises(InputError, match=r"of another network: it lacks blocks\.3"):
        check_vit_file(DEIT, ("blocks.3",), path)
