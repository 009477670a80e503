"""Frozen DINOv2 transformers from local files of any of the three published layouts.

DINOv2: Learning Robust Visual Features without Supervision (M. Oquab et al., 2023), https://arxiv.org/abs/2304.07193
Vision Transformers Need Registers (T. Darcet et al., ICLR 2024), https://arxiv.org/abs/2309.16588

The position embedding is resampled to the size of the images as timm does it, bicubically with antialiasing: so does
Meta's code for the weights with registers, while for those without it leaves out the antialiasing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adray.components.feature_extractor import check_names_and_shapes, read_state_dict
from adray.components.frozen_network import FrozenNetwork, chosen_weight_file
from adray.components.vit_extractor import parse_blocks
from adray.errors import InputError, nearest


@dataclass(frozen=True)
class Dinov2:
    """One of the published sizes.

    Attributes:
        timm_name: of the architecture without registers.
        width: numbers per token.
        depth: blocks.
        heads: of the attention.
    """

    timm_name: str
    width: int
    depth: int
    heads: int


DINOV2S = {
    "dinov2_vit_small_14": Dinov2("vit_small_patch14_dinov2", 384, 12, 6),
    "dinov2_vit_base_14": Dinov2("vit_base_patch14_dinov2", 768, 12, 12),
    "dinov2_vit_large_14": Dinov2("vit_large_patch14_dinov2", 1024, 24, 16),
}
PATCH = 14
"""Side in pixels of a patch, for all of `DINOV2S`."""
_RANDOM_REGISTERS = 4

_HUGGING_FACE = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|register_tokens)$", r"\1"),
    (r"^encoder\.layer\.", "blocks."),
    (
        r"\.attention\.(attention\.(query|key|value)|[qkv]_proj)\.",
        lambda m: f".attn.{(m[2] or m[1])[0]}.",
    ),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
"""Patterns of Hugging Face's names, those of transformers before and after its version 5, and Meta's words for them."""


class Dinov2Extractor(FrozenNetwork):
    """A DINOv2 transformer of timm that gives its tokens after some blocks and never changes.

    Later blocks are not even built. It stays in eval mode whatever its parent does, needs no gradient, and is named
    rather than stored in checkpoints, with the layout of its file and its number of registers.

    Args:
        backbone: one of `DINOV2S`.
        layers: blocks to tap, ``blocks.0`` the first, in order.
        weights: ``"pretrained"`` reads the file of `get_backbone_path`, ``"random"`` leaves the initialisation.

    Raises:
        InputError: for unknown names, and for a missing, broken or foreign weight file.
    """

    net: Any  # timm's classes share no interface

    def __init__(self, backbone: str, layers: Sequence[str], weights: str = "pretrained") -> None:
        super().__init__()
        self.backbone, self.layers, self.weights = backbone, tuple(layers), weights
        self.blocks = dinov2_blocks(backbone, layers)
        depth, self.weight_file = self.blocks[-1] + 1, chosen_weight_file(backbone, weights)
        if self.weight_file:
            self.layout, self.net = load_dinov2(backbone, depth, self.weight_file)
        else:
            self.layout, self.net = "none", build_dinov2(backbone, depth, _RANDOM_REGISTERS)
        self.requires_grad_(False)
        self.eval()

    @property
    def registers(self) -> int:
        """Number of register tokens, 0 or 4 in the published files."""
        return self.net.num_reg_tokens

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: class token and registers."""
        return 1 + self.registers

    @property
    def identity(self) -> dict[str, Any]:
        """See `FrozenNetwork.identity`; also the file's layout and the number of registers."""
        return {**super().identity, "layout": self.layout, "registers": self.registers}

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The tokens after the tapped blocks, without the network's last layer norm.

        Args:
            image: (B, 3, H, W) normalised, of a size that `check_dinov2` accepts.

        Returns:
            One (B, T, D) per layer, in the order of `layers`: class token, registers, then H/14 * W/14 patches by row.
        """
        tapped = self.net.forward_intermediates(
            image, self.blocks, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        return tuple(torch.cat([prefix, patches], 1) for patches, prefix in tapped)


def check_dinov2(backbone: str, layers: Sequence[str], size: int) -> None:
    """Say before a sweep starts whether a transformer can be tapped there and takes images of `size` pixels.

    Raises:
        InputError: for an unknown backbone or block, and for a size that is not one of whole patches.
    """
    dinov2_blocks(backbone, layers)
    if size % PATCH:
        raise InputError(
            f"input size {size} does not suit {backbone}: img_size (or crop_size) must be a multiple of {PATCH}, such "
            "as 224, 392 or 448"
        )


def dinov2_blocks(backbone: str, layers: Sequence[str]) -> list[int]:
    """The blocks that `layers` name, counted from 0.

    Raises:
        InputError: for an unknown backbone, and for layers that are not some of its blocks in order.
    """
    if backbone not in DINOV2S:
        raise InputError(
            f"backbone {backbone!r} is not a DINOv2 known here; {nearest(backbone, DINOV2S)}"
        )
    return parse_blocks(backbone, layers, DINOV2S[backbone].depth)


def build_dinov2(backbone: str, depth: int, registers: int) -> nn.Module:
    """The first `depth` blocks of an untrained transformer, without what follows them."""
    import timm  # several seconds; a plan that only reads configurations does not pay them

    name = DINOV2S[backbone].timm_name
    # With registers the position embedding has no place for the class token, which holds its own.
    net: Any = timm.create_model(
        name,
        depth=depth,
        reg_tokens=registers,
        no_embed_class=registers > 0,
        num_classes=0,
        dynamic_img_size=True,
    )
    net.norm = nn.Identity()
    return net


def load_dinov2(backbone: str, depth: int, path: Path) -> tuple[str, nn.Module]:
    """The name of a file's layout, and the first `depth` blocks with its weights, in float32.

    Raises:
        InputError: for a broken file, and for another network's.
    """
    layout, state, net = _checked(backbone, depth, path)
    # Assigned rather than copied: to initialise hundreds of millions of numbers that are thrown away takes seconds.
    net.load_state_dict({name: state[name].float() for name in net.state_dict()}, assign=True)
    return layout, net


def check_dinov2_file(backbone: str, layers: Sequence[str], path: Path) -> None:
    """Say before a sweep starts what `Dinov2Extractor` would say of a weight file.

    Raises:
        InputError: for a broken file, and for another network's.
    """
    _checked(backbone, dinov2_blocks(backbone, layers)[-1] + 1, path)


def _checked(backbone: str, depth: int, path: Path) -> tuple[str, dict[str, Tensor], nn.Module]:
    """Layout and tensors of a file, found to be those of the network beside them, which has none yet."""
    layout, state = timm_names(read_state_dict(path), path)
    width, wanted = state["cls_token"].shape[-1], DINOV2S[backbone].width
    if width != wanted:
        other = next(
            (name for name, size in DINOV2S.items() if size.width == width), "no published size"
        )
        raise InputError(
            f"weight file {path} holds a DINOv2 with {width} numbers per token ({other}), expected {wanted} "
            f"({backbone}); copy the file that the README's table of weights names"
        )
    with torch.device("meta"):
        net = build_dinov2(
            backbone, depth, state["reg_token"].shape[1] if "reg_token" in state else 0
        )
    check_names_and_shapes(state, net.state_dict(), path)
    return layout, state, net


def timm_names(state: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """Tell the layouts apart by their keys and bring tensors under timm's names.

    Args:
        state: what the file holds.
        path: of the file, for the message.

    Returns:
        ``"Hugging Face"``, ``"Meta"`` or ``"timm"``, and the tensors. Without registers and mask token Meta's names
        and timm's are the same.

    Raises:
        InputError: for names that none of the three has.
    """
    found = ", ".join(sorted(state)[:3])
    if any(name.startswith("embeddings.") for name in state):
        layout, state = (
            "Hugging Face",
            join_attention({_meta_name(name): tensor for name, tensor in state.items()}),
        )
    else:
        layout = "Meta" if {"mask_token", "register_tokens"} & set(state) else "timm"
    if not _has_tokens(state) or "blocks.0.attn.qkv.weight" not in state:
        raise InputError(
            f"weight file {path} is of no DINOv2: it holds {found} and so on, expected the names of Meta or timm "
            "(blocks.0.attn.qkv.weight) or of Hugging Face (encoder.layer.0.attention.attention.query.weight); "
            "copy the file that the README's table of weights names"
        )
    return layout, fold_class_position(dict(state))


def _has_tokens(state: Mapping[str, Tensor]) -> bool:
    """Whether there are a class token and positions, perhaps registers, each (1, tokens, D) with one D for all."""
    names = {"cls_token", "pos_embed"} | ({"register_tokens", "reg_token"} & set(state))
    shapes = [tuple(state[name].shape) if name in state else () for name in names]
    return (
        all(len(shape) == 3 and shape[0] == 1 for shape in shapes)
        and len({shape[2] for shape in shapes}) == 1
    )


def _meta_name(name: str) -> str:
    for pattern, replacement in _HUGGING_FACE:
        name = re.sub(pattern, replacement, name)
    return name


def join_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Lay the three linear layers ``attn.q``, ``attn.k`` and ``attn.v`` of each block on top of each other."""
    joined = {
        name: tensor for name, tensor in state.items() if not re.search(r"\.attn\.[qkv]\.", name)
    }
    for name in state:
        parts = [state.get(name.replace(".attn.q.", f".attn.{letter}.")) for letter in "qkv"]
        whole = [part for part in parts if part is not None and part.shape == state[name].shape]
        if (
            ".attn.q." in name and len(whole) == 3
        ):  # what is torn stays out, and is then found missing
            joined[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(whole)
    return joined


def fold_class_position(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where there are registers, rename them, and add the class token's position to it as timm does."""
    if "register_tokens" not in state:
        return state
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    return state
