"""DINOv2 from every layout: what it gives against timm and transformers, and which files it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from adray.components.architectures import check_dinov2
from adray.components.dinov2_extractor import (
    DINOV2S,
    Dinov2Extractor,
    build_dinov2,
    check_dinov2_file,
    join_attention,
    timm_names,
)
from adray.errors import InputError
from adray.settings import set_globals

SMALL, TWO = "dinov2_vit_small_14", ("blocks.0", "blocks.2")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def folder(tmp_path):
    set_globals(backbone_dir=str(tmp_path))
    (tmp_path / SMALL).mkdir()
    return tmp_path / SMALL


def whole(registers, size="small"):
    """Four blocks of timm's network, all away from their initial values."""
    name = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
    net = timm.create_model(
        name, pretrained=False, depth=4, num_classes=0, dynamic_img_size=True
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def metas_tensors(net):
    """timm's tensors as Meta publishes them: the class token apart from its position, and a mask token."""
    state = {**net.state_dict(), "mask_token": torch.randn(1, net.embed_dim)}
    if "reg_token" in state:
        position = torch.randn(1, 1, net.embed_dim)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat((position, state["pos_embed"]), 1)
    return state


def hugging_faces_tensors(net):
    """The same as transformers names them, query, key and value apart."""
    named = {}
    words = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "pos_embed": "embeddings.position_embeddings",
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "blocks": "encoder.layer",
    }
    for name, tensor in metas_tensors(net).items():
        for theirs, ours in words.items():
            name = name.replace(theirs, ours)
        if name in ("cls_token", "mask_token", "register_tokens"):
            name = f"embeddings.{name}"
        if name.startswith("norm."):
            name = f"layernorm.{name[5:]}"
        if "attn.qkv" in name:
            for word, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                named[name.replace("attn.qkv", f"attention.attention.{word}")] = part.clone()
        else:
            named[name] = tensor
    return named


def write_timm(net, folder):
    save_file(net.state_dict(), folder / "model.safetensors")


def write_meta(net, folder):
    name = "dinov2_vits14_reg4_pretrain.pth" if net.num_reg_tokens else "dinov2_vits14_pretrain.pth"
    torch.save(metas_tensors(net), folder / name)


def write_hugging_face(net, folder):
    torch.save(hugging_faces_tensors(net), folder / "pytorch_model.bin")


def write_hugging_face_safetensors(net, folder):
    save_file(
        {name: tensor.contiguous() for name, tensor in hugging_faces_tensors(net).items()},
        folder / "model.safetensors",
    )


LAYOUTS = {
    "timm": write_timm,
    "Meta": write_meta,
    "Hugging Face": write_hugging_face,
}


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_weights_give_the_same_tokens_from_every_layout(layout, registers, folder):
    net = whole(registers)
    LAYOUTS[layout](net, folder)
    taps = {}
    for i in (0, 2):
        net.blocks[i].register_forward_hook(
            lambda _module, _args, out, i=i: taps.__setitem__(i, out)
        )
    image = torch.randn(2, 3, 56, 84)
    with torch.no_grad():
        net.forward_features(image)
    extractor = Dinov2Extractor(SMALL, TWO)
    tokens = extractor(image)
    assert [tuple(t.shape) for t in tokens] == [(2, 1 + registers + 4 * 6, 384)] * 2
    for ours, theirs in zip(tokens, taps.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (extractor.layout, extractor.registers, extractor.num_prefix) == (
        layout,
        registers,
        1 + registers,
    )
    assert extractor.identity["layout"] == layout
    assert extractor.identity["registers"] == registers
    assert len(extractor.identity["sha256"]) == 64


@pytest.mark.parametrize("registers", [0, 4])
def test_a_file_that_transformers_writes_gives_its_hidden_states(registers, folder):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
    }
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        net = transformers.Dinov2WithRegistersModel(config)
    else:
        net = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    net.eval().save_pretrained(folder)
    image = torch.randn(
        1, 3, 518, 518
    )  # where no position is resampled: each library has its own way
    with torch.no_grad():
        states = net(image, output_hidden_states=True).hidden_states
    extractor = Dinov2Extractor(SMALL, TWO)
    assert (extractor.layout, extractor.registers) == ("Hugging Face", registers)
    for ours, theirs in zip(extractor(image), (states[1], states[3]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_names_of_transformers_5_are_read_too(folder):
    net = whole(4)
    renamed = {}
    for name, tensor in hugging_faces_tensors(net).items():
        for word in ("query", "key", "value"):
            name = name.replace(f"attention.attention.{word}", f"attention.{word[0]}_proj")
        renamed[name.replace("attention.output.dense", "attention.o_proj")] = tensor
    torch.save(renamed, folder / "pytorch_model.bin")
    image, theirs = torch.randn(1, 3, 28, 28), Dinov2Extractor(SMALL, TWO)
    write_meta(net, folder)  # found before the other
    torch.testing.assert_close(
        theirs(image), Dinov2Extractor(SMALL, TWO)(image), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("grid", [(4, 4), (4, 6), (6, 4), (37, 50)])
def test_positions_are_resampled_bicubically_with_antialiasing(folder, grid):
    net = whole(4)
    write_meta(net, folder)
    extractor, seen = Dinov2Extractor(SMALL, ("blocks.0",)), []
    extractor.net.blocks[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    image = torch.randn(1, 3, 14 * grid[0], 14 * grid[1])
    extractor(image)
    with torch.no_grad():
        positions = net.pos_embed.view(1, 37, 37, 384).permute(
            0, 3, 1, 2
        )  # (1, 37*37, D) -> (1, D, 37, 37)
        smaller = (
            F.interpolate(positions, grid, mode="bicubic", antialias=True)
            .flatten(2)
            .transpose(1, 2)
        )
        patches = (
            F.conv2d(image, net.patch_embed.proj.weight, net.patch_embed.proj.bias, 14)
            .flatten(2)
            .transpose(1, 2)
        )
        expected = torch.cat((net.cls_token, net.reg_token, patches + smaller), 1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


def test_blocks_after_the_last_tap_are_not_built():
    extractor = Dinov2Extractor(SMALL, ("blocks.1",), "random")
    assert len(extractor.net.blocks) == 2
    assert not any(
        key.startswith(("net.head", "net.norm", "net.fc_norm")) for key in extractor.state_dict()
    )


def test_it_stays_in_eval_mode_and_needs_no_gradient():
    parent = nn.ModuleList([Dinov2Extractor(SMALL, ("blocks.0",), "random")]).train()
    assert not any(module.training for module in parent[0].modules())
    assert not any(p.requires_grad for p in parent.parameters())
    assert not parent[0](torch.randn(1, 3, 28, 28, requires_grad=True))[0].requires_grad


def test_an_image_is_described_the_same_whatever_batch_it_came_in():
    extractor, image = Dinov2Extractor(SMALL, ("blocks.1",), "random"), torch.randn(5, 3, 42, 42)
    singles = torch.cat([extractor(image[i : i + 1])[0] for i in range(5)])
    torch.testing.assert_close(extractor(image)[0], singles, rtol=1e-5, atol=1e-5)


def test_a_half_precision_file_is_used_in_float32(folder):
    write_meta(whole(0).half(), folder)
    assert {p.dtype for p in Dinov2Extractor(SMALL, TWO).parameters()} == {torch.float32}


def test_random_weights_name_no_file():
    identity = Dinov2Extractor(SMALL, ("blocks.0",), "random").identity
    assert identity == {
        "backbone": SMALL,
        "file": None,
        "sha256": None,
        "layout": "none",
        "registers": 4,
    }


@pytest.mark.parametrize("name", DINOV2S)
def test_widths_depths_and_heads_are_timms(name):
    with torch.device("meta"):
        net = timm.create_model(DINOV2S[name].timm_name, pretrained=False)
        registered = timm.create_model(
            DINOV2S[name].timm_name.replace("patch14", "patch14_reg4"), pretrained=False
        )
    heads = net.blocks[0].attn.num_heads
    assert (net.embed_dim, len(net.blocks), heads) == (
        DINOV2S[name].width,
        DINOV2S[name].depth,
        DINOV2S[name].heads,
    )
    assert (net.patch_embed.patch_size, registered.num_reg_tokens, registered.no_embed_class) == (
        (14, 14),
        4,
        True,
    )


def test_sizes_are_whole_patches():
    check_dinov2(SMALL, TWO, 392)
    with pytest.raises(
        InputError,
        match=r"input size 256 does not suit .* a multiple of 14, such as 224, 392 or 448",
    ):
        check_dinov2(SMALL, TWO, 256)


@pytest.mark.parametrize("layers", [(), ("layer1",), ("blocks.12",), ("blocks.1", "blocks.0")])
def test_layers_are_blocks_once_and_in_order(layers):
    with pytest.raises(InputError, match=r"must be some of blocks\.0 to blocks\.11"):
        Dinov2Extractor(SMALL, layers, "random")


def test_an_unknown_backbone_or_kind_of_weights_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=f"did you mean '{SMALL}'"):
        check_dinov2("dinov2_vit_smal_14", TWO, 224)
    with pytest.raises(InputError, match="did you mean 'random'"):
        Dinov2Extractor(SMALL, TWO, "randon")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise AssertionError('the file ran code')",))


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


REFUSED = {
    "another kind of network": (
        lambda: {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)},
        r"of no DINOv2: it holds bn1\.weight, conv1\.weight and so on, expected the names of Meta or timm",
    ),
    "another transformer": (
        lambda: timm.create_model("deit_tiny_patch16_224", depth=4).state_dict(),
        r"192 numbers per token \(no published size\), expected 384 \(dinov2_vit_small_14\)",
    ),
    "another size": (
        lambda: metas_tensors(whole(4, "base")),
        r"768 numbers per token \(dinov2_vit_base_14\), expected 384 \(dinov2_vit_small_14\)",
    ),
    "fewer blocks": (
        lambda: timm.create_model("vit_small_patch14_dinov2", depth=2).state_dict(),
        r"of another network: it lacks blocks\.2\.",
    ),
    "another grid of positions": (
        lambda: timm.create_model("vit_small_patch14_dinov2", depth=3, img_size=224).state_dict(),
        r"of another network: pos_embed has shape \(1, 257, 384\), expected \(1, 1370, 384\)",
    ),
    "a torn attention": (
        lambda: without(
            hugging_faces_tensors(whole(0)), "encoder.layer.1.attention.attention.key.bias"
        ),
        r"of another network: it lacks blocks\.1\.attn\.qkv\.bias",
    ),
    "registers of another width": (
        lambda: {**metas_tensors(whole(4)), "register_tokens": torch.zeros(1, 4, 768)},
        "of no DINOv2",
    ),
    "flat tokens": (
        lambda: {**metas_tensors(whole(4)), "pos_embed": torch.zeros(1370)},
        "of no DINOv2",
    ),
    "no attention at all": (
        lambda: {key: value for key, value in metas_tensors(whole(4)).items() if "attn" not in key},
        "of no DINOv2",
    ),
    "code": (lambda: {"model": Bomb()}, "more than tensors"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_cannot_be_used_are_refused_by_plan_and_trial_alike(kind, folder):
    make, message = REFUSED[kind]
    path = folder / "dinov2_vits14_reg4_pretrain.pth"
    torch.save(make(), path)
    for use in (lambda: check_dinov2_file(SMALL, TWO, path), lambda: Dinov2Extractor(SMALL, TWO)):
        with pytest.raises(InputError, match=message) as caught:
            use()
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("write", LAYOUTS.values())
def test_a_truncated_file_is_refused(write, folder):
    write(whole(4), folder)
    (path,) = folder.iterdir()
    check_dinov2_file(SMALL, TWO, path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(InputError, match="truncated or damaged"):
        check_dinov2_file(SMALL, TWO, path)


def test_query_key_and_value_lie_on_top_of_each_other_in_this_order():
    parts = {
        f"blocks.0.attn.{letter}.bias": torch.full((2,), float(i)) for i, letter in enumerate("qkv")
    }
    joined = join_attention({**parts, "norm.bias": torch.ones(1)})
    assert joined.keys() == {"blocks.0.attn.qkv.bias", "norm.bias"}
    assert joined["blocks.0.attn.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]


def test_every_usual_place_is_looked_at(tmp_path):
    set_globals(backbone_dir=str(tmp_path))
    with pytest.raises(
        InputError,
        match=r"missing weights of 'dinov2_vit_small_14': copy https://dl\.fbaipublicfiles",
    ):
        Dinov2Extractor(SMALL, TWO)
    for place, write in {
        "dinov2-small": write_hugging_face_safetensors,
        "vit_small_patch14_reg4_dinov2.lvd142m": write_timm,
        SMALL: write_timm,
    }.items():  # each before the last one
        (tmp_path / place).mkdir()
        write(whole(4), tmp_path / place)
        found = Dinov2Extractor(SMALL, TWO).weight_file
        assert found == Path(tmp_path) / place / "model.safetensors"


PLAIN, REGISTERED = "dinov2_vits14", "dinov2_vits14_reg4"


@pytest.mark.parametrize(("name", "held"), [(PLAIN, 4), (REGISTERED, 0)])
def test_a_file_with_registers_and_a_network_without_refuse_each_other(name, held, folder):
    write_timm(whole(held), folder)
    path = folder / "model.safetensors"
    other = REGISTERED if held else PLAIN
    message = f"has {held} register tokens, expected {4 - held} .*or set backbone to {other}"
    for use in (lambda: check_dinov2_file(name, TWO, path), lambda: Dinov2Extractor(name, TWO)):
        with pytest.raises(InputError, match=message) as caught:
            use()
        assert str(path) in str(caught.value)
    assert Dinov2Extractor(other, TWO).registers == held


@pytest.mark.parametrize(("name", "registers"), [(PLAIN, 0), (REGISTERED, 4), (SMALL, 4)])
def test_random_networks_have_the_registers_of_their_names(name, registers):
    assert Dinov2Extractor(name, ("blocks.0",), "random").registers == registers


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_norm_is_that_of_the_whole_network(layout, folder):
    net = whole(0)
    LAYOUTS[layout](net, folder)
    extractor, image = Dinov2Extractor(PLAIN, ("blocks.3",)), torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = net.forward_features(image)
        normed = extractor.last_norm()(extractor(image)[0])
    torch.testing.assert_close(normed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_any_block_normed_is_what_timm_gives_with_the_norm(registers, folder):
    net = whole(registers)
    write_meta(net, folder)
    name = REGISTERED if registers else PLAIN
    extractor, image = Dinov2Extractor(name, TWO), torch.randn(2, 3, 56, 56)
    norm = extractor.last_norm()
    with torch.no_grad():
        expected = net.forward_intermediates(
            image, [0, 2], norm=True, output_fmt="NLC", intermediates_only=True
        )
        raw = net.forward_intermediates(
            image, [0, 2], norm=False, output_fmt="NLC", intermediates_only=True
        )
    for tokens, normed, unnormed in zip(extractor(image), expected, raw, strict=True):
        found = norm(tokens)[:, extractor.num_prefix :]
        torch.testing.assert_close(found, normed, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(normed, unnormed, atol=0.1)


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
@pytest.mark.parametrize("registers", [0, 4])
def test_a_whole_file_of_any_size_has_the_names_and_shapes_that_are_wanted(size, registers):
    """On no device: the largest takes 4.5 GB."""
    name = f"dinov2_vit{size[0]}14{'_reg4' if registers else ''}"
    blocks = DINOV2S[name].depth
    with torch.device("meta"):
        theirs = timm.create_model(
            f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2", num_classes=0
        )
        state = metas_tensors(theirs)
        wanted = build_dinov2(name, blocks, registers).state_dict()
    as_meta = {}
    for key, tensor in state.items():
        if size == "giant":
            key = key.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        as_meta[key] = tensor
    assert f"blocks.{blocks - 1}.mlp.{'w12' if size == 'giant' else 'fc1'}.weight" in as_meta
    layout, ours = timm_names(as_meta, Path("file.pth"))
    assert layout == "Meta"
    assert {key: ours[key].shape for key in wanted} == {key: t.shape for key, t in wanted.items()}
    assert set(ours) - set(wanted) <= {"mask_token", "norm.weight", "norm.bias"}


def test_a_file_without_the_last_norm_serves_until_it_is_asked_for(folder):
    save_file(without(whole(0).state_dict(), "norm.weight"), folder / "model.safetensors")
    extractor = Dinov2Extractor(PLAIN, TWO)
    with pytest.raises(InputError, match="has no last layer norm"):
        extractor.last_norm()


def test_shared_tokens_are_rounded_and_the_same_bits_whatever_images_come_together(folder):
    write_timm(whole(0), folder)
    extractor, image = Dinov2Extractor(PLAIN, TWO, dtype=torch.float16), torch.randn(5, 3, 42, 42)
    together = extractor(image.to(memory_format=torch.channels_last))
    alone = [extractor(one) for one in image.split(2)]
    for layer, tokens in enumerate(together):
        assert tokens.dtype == torch.float16
        assert torch.equal(tokens, torch.cat([parts[layer] for parts in alone]))
    exact = Dinov2Extractor(PLAIN, TWO)(image)
    torch.testing.assert_close(together[1].float(), exact[1], rtol=2**-10, atol=1e-6)


def test_the_key_of_the_weights_is_that_of_the_file_whatever_is_tapped_but_not_of_the_type(folder):
    write_timm(whole(0), folder)
    extractor = Dinov2Extractor(PLAIN, TWO, dtype=torch.float16)
    deeper = extractor.tapping(("blocks.0", "blocks.3"), seed=1)
    assert deeper.layers == ("blocks.0", "blocks.3")
    assert deeper.weights_key == extractor.weights_key
    assert Dinov2Extractor(PLAIN, TWO).weights_key != extractor.weights_key
    image = torch.randn(1, 3, 28, 28)
    assert torch.equal(deeper(image)[0], extractor(image)[0])


def test_random_weights_are_shared_among_taps_of_the_same_depth_alone():
    torch.manual_seed(3)
    extractor, image = (
        Dinov2Extractor(PLAIN, TWO, "random", torch.float16),
        torch.randn(1, 3, 28, 28),
    )
    other = extractor.tapping(("blocks.1", "blocks.2"), seed=3)
    assert other.layers == ("blocks.1", "blocks.2")
    assert torch.equal(other(image)[1], extractor(image)[1])
    assert extractor.tapping(("blocks.0", "blocks.3"), seed=3) is extractor


def test_the_giants_file_has_the_names_and_shapes_that_are_wanted():
    with torch.device("meta"):
        net = timm.create_model("vit_giant_patch14_dinov2", pretrained=False, depth=2)
        wanted = build_dinov2("dinov2_vitg14", 2, 0).state_dict()
    as_meta = {}
    for name, tensor in net.state_dict().items():
        as_meta[name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")] = tensor
    assert "blocks.1.mlp.w12.weight" in as_meta
    layout, ours = timm_names({**as_meta, "mask_token": torch.zeros(1)}, Path("giant.pth"))
    assert layout == "Meta"
    assert {name: ours[name].shape for name in wanted} == {n: t.shape for n, t in wanted.items()}


@pytest.mark.slow
def test_a_giant_that_transformers_writes_gives_its_hidden_states(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 1536,
        "num_hidden_layers": 1,
        "num_attention_heads": 24,
        "image_size": 518,
        "patch_size": 14,
        "use_swiglu_ffn": True,
    }
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    set_globals(backbone_dir=str(tmp_path))
    model.save_pretrained(tmp_path / "dinov2-giant")
    image = torch.randn(1, 3, 518, 518)
    with torch.no_grad():
        expected = model(image, output_hidden_states=True).hidden_states[1]
    (tokens,) = Dinov2Extractor("dinov2_vitg14", ("blocks.0",))(image)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
