"""Frozen DINOv2 transformers from local files of any of the three published layouts.

DINOv2: Learning Robust Visual Features without Supervision (M. Oquab et al., 2023),
https://arxiv.org/abs/2304.07193
Vision Transformers Need Registers (T. Darcet et al., ICLR 2024), https://arxiv.org/abs/2309.16588

The position embedding is resampled to the size of the images as timm does it, bicubically with
antialiasing: so does Meta's code for the weights with registers, while for those without it leaves
out the antialiasing.

Methods that share their tokens ask for them in float16, which halves the files. Then each image goes
through the network by itself. The last bit of a float32 token depends on how many images were
computed together, and rounding makes a thousandth of that bit wherever a value lies halfway between
two of float16.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adray.components.architectures import DINOV2S, dinov2_blocks
from adray.components.backbone import BACKBONE_WEIGHT_FILES
from adray.components.device import move_to
from adray.components.feature_extractor import check_names_and_shapes, read_state_dict
from adray.components.frozen_network import FrozenNetwork, chosen_weight_file
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.types import Json

_RANDOM_REGISTERS = 4
"""Register tokens of a network without a file."""
_HUGGING_FACE = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|register_tokens)$", r"\1"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.query\.", ".attn.q."),
    (r"\.attention\.attention\.key\.", ".attn.k."),
    (r"\.attention\.attention\.value\.", ".attn.v."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
)
"""Patterns of Hugging Face's names, also those from transformers 5 on, and Meta's for them."""
_GATED = ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))
"""Meta's names in the gated MLPs of the giant, and timm's for them."""
_NORM_EPS = 1e-6
"""Added to the variance in the last layer norm."""


@dataclass(frozen=True)
class _Loaded:
    """A network with the weights of a file."""

    layout: str
    """Name of the file's layout."""
    net: nn.Module
    """Its first blocks."""
    last_norm: tuple[Tensor, Tensor] | None
    """Weight and bias (D,) of the layer norm after its last block; None where the file has none."""


class Dinov2Extractor(FrozenNetwork):
    """A DINOv2 transformer of timm that gives its tokens after some blocks and never changes.

    Later blocks are not even built. It stays in eval mode whatever its parent does, needs no
    gradient, and is named rather than stored in checkpoints, with the layout of its file and its
    number of registers.

    Args:
        backbone: one of `DINOV2S`.
        layers: blocks to tap, ``blocks.0`` the first, in order.
        weights: ``"pretrained"`` reads the file of `get_backbone_path`, ``"random"`` leaves the
            initialisation.
        dtype: of the tokens that it gives. With ``torch.float16`` they are the same whatever images
            come together, and can be shared.

    Raises:
        InputError: for unknown names, and for a missing, broken or foreign weight file.
    """

    net: Any  # timm's classes share no interface

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str],
        weights: str = "pretrained",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = tuple(layers)
        self.blocks = dinov2_blocks(backbone, layers)
        self.weights = weights
        self.dtype = dtype
        depth = self.blocks[-1] + 1

        self.weight_file = chosen_weight_file(backbone, weights)
        if self.weight_file:
            loaded = load_dinov2(backbone, depth, self.weight_file)
        else:
            registers = DINOV2S[backbone].registers
            count = _RANDOM_REGISTERS if registers is None else registers
            loaded = _Loaded("none", build_dinov2(backbone, depth, count), None)
        self.layout = loaded.layout
        self.net = loaded.net
        self._last_norm = loaded.last_norm
        self.requires_grad_(False)
        self.eval()

    @property
    def registers(self) -> int:
        """Count the register tokens, 0 or 4 in the published files."""
        return self.net.num_reg_tokens

    @property
    def num_prefix(self) -> int:
        """Count the tokens before the patches: class token and registers."""
        return 1 + self.registers

    @property
    def identity(self) -> Json:
        """Add the file's layout and the number of registers to `FrozenNetwork.identity`."""
        return {**super().identity, "layout": self.layout, "registers": self.registers}

    @property
    def weights_key(self) -> str:
        """Give a hash of the weights and of the tokens' type, the same whichever blocks are tapped.

        Random weights differ where the last tapped block does.
        """
        return f"{self.identity['sha256'] or self._random_weights_key()}-{self.dtype}"

    def _random_weights_key(self) -> str:
        digest = hashlib.sha256()
        for name, values in self.net.state_dict().items():
            digest.update(name.encode() + values.cpu().numpy().tobytes())
        return digest.hexdigest()

    def tapping(self, layers: Sequence[str], seed: int) -> Dinov2Extractor:
        """Give the same network with other taps.

        Args:
            layers: blocks to tap.
            seed: from which random weights were drawn.

        Returns:
            This network itself where the taps are its own, and where random weights would not come
            out the same: with another last block.
        """
        last_block = dinov2_blocks(self.backbone, layers)[-1]
        is_drawn_otherwise = self.weight_file is None and last_block != self.blocks[-1]
        if tuple(layers) == self.layers or is_drawn_otherwise:
            return self

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            other = Dinov2Extractor(self.backbone, layers, self.weights, self.dtype)
        if self.weight_file is None:
            other.load_state_dict(self.state_dict())
        move_to(next(self.parameters()).device, other)
        return other

    def notes(self) -> list[str]:
        """Say which file the weights came from, nothing of random ones."""
        if self.weight_file is None:
            return []
        return [f"transformer {self.weight_file.name} with {self.registers} registers"]

    def last_norm(self) -> nn.LayerNorm:
        """Make the layer norm that follows the network's last block, untrained for random weights.

        Methods which tap that block mostly want its tokens normalised.

        Raises:
            InputError: for a weight file that has none.
        """
        norm = nn.LayerNorm(DINOV2S[self.backbone].width, eps=_NORM_EPS).requires_grad_(False)
        if self.weight_file is None:
            return norm
        if self._last_norm is None:
            raise InputError(Sentence.of("weights no norm", weight_file=str(self.weight_file)))
        weight, bias = self._last_norm
        norm.load_state_dict({"weight": weight, "bias": bias})
        return norm

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the tokens after the tapped blocks, without the network's last layer norm.

        Args:
            image: (B, 3, H, W) normalised, of a size that `check_dinov2` accepts.

        Returns:
            One (B, T, D) per layer, in the order of `layers`: class token, registers, then
            H/14 * W/14 patches by row.
        """
        if self.dtype == torch.float32:
            return self._tokens(image)

        parts = [self._tokens(one.contiguous()) for one in image.split(1)]
        return tuple(torch.cat(tokens).to(self.dtype) for tokens in zip(*parts, strict=True))

    def _tokens(self, image: Tensor) -> tuple[Tensor, ...]:
        tapped = self.net.forward_intermediates(
            image, self.blocks, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        return tuple(torch.cat([prefix, patches], 1) for patches, prefix in tapped)


def normed_patches(tokens: Tensor, norm: nn.LayerNorm, prefix: int) -> Tensor:
    """Normalise the patches of a block's tokens.

    Args:
        tokens: (B, T, D) of any type.
        norm: the network's last layer norm.
        prefix: class token and registers, which come first and are left out.

    Returns:
        (B, P, D) float32.
    """
    patches = tokens[:, prefix:].float()
    with torch.autocast(patches.device.type, enabled=False):
        return norm(patches)


def build_dinov2(backbone: str, depth: int, registers: int) -> nn.Module:
    """Build the first `depth` blocks of an untrained transformer, without what follows them."""
    import timm  # several seconds; a plan that only reads configurations does not pay them

    net: Any = timm.create_model(
        DINOV2S[backbone].timm_name,
        depth=depth,
        reg_tokens=registers,
        # With registers the class token holds its own position, and the embedding has none for it.
        no_embed_class=registers > 0,
        num_classes=0,
        dynamic_img_size=True,
    )
    net.norm = nn.Identity()
    return net


def load_dinov2(backbone: str, depth: int, path: Path) -> _Loaded:
    """Build the first `depth` blocks with the weights of a file, in float32.

    Raises:
        InputError: for a broken file, and for another network's.
    """
    layout, state, net = _checked(backbone, depth, path)
    wanted = {name: state[name].float() for name in net.state_dict()}
    # Assigned rather than copied: to initialise hundreds of millions of numbers that are thrown
    # away takes seconds.
    net.load_state_dict(wanted, assign=True)

    last_norm = None
    width = DINOV2S[backbone].width
    if _shape(state, "norm.weight") == _shape(state, "norm.bias") == (width,):
        last_norm = (state["norm.weight"].float(), state["norm.bias"].float())
    return _Loaded(layout, net, last_norm)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Give the shape of a tensor, that of a single number where there is none."""
    return tuple(state[name].shape) if name in state else ()


def check_dinov2_file(backbone: str, layers: Sequence[str], path: Path) -> None:
    """Check before a sweep starts that `Dinov2Extractor` would take a weight file.

    Raises:
        InputError: for a broken file, and for another network's.
    """
    depth = dinov2_blocks(backbone, layers)[-1] + 1
    _checked(backbone, depth, path)


def _checked(backbone: str, depth: int, path: Path) -> tuple[str, dict[str, Tensor], nn.Module]:
    """Read layout and tensors of a file and check them against their network, which has none."""
    layout, state = timm_names(read_state_dict(path), path)
    width = state["cls_token"].shape[-1]
    wanted = DINOV2S[backbone].width
    if width != wanted:
        raise InputError(
            Sentence.of(
                "weights width",
                path=str(path),
                width=width,
                size_of_width=_size_of_width(width),
                wanted=wanted,
                backbone=backbone,
            )
        )

    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    expected = DINOV2S[backbone].registers
    # It would load into a network that leaves them out, and give other tokens without a word.
    if expected is not None and registers != expected:
        raise InputError(
            Sentence.of(
                "weights registers",
                path=str(path),
                registers=registers,
                expected=expected,
                backbone=backbone,
                source=BACKBONE_WEIGHT_FILES[backbone].source,
                with_registers=_with_registers(backbone, registers),
            )
        )
    with torch.device("meta"):
        net = build_dinov2(backbone, depth, registers)
    check_names_and_shapes(state, net.state_dict(), path)
    return layout, state, net


def _with_registers(backbone: str, registers: int) -> str:
    """Name the network of the same size that has so many register tokens."""
    wanted = replace(DINOV2S[backbone], registers=registers)
    for name, size in DINOV2S.items():
        if size == wanted:
            return name
    return "a network with as many"


def _size_of_width(width: int) -> str:
    """Find the published size with `width` numbers per token, or say that there is none."""
    for name, size in DINOV2S.items():
        if size.width == width:
            return name
    return "no published size"


def timm_names(state: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """Tell the layouts apart by their keys and bring tensors under timm's names.

    Args:
        state: what the file holds.
        path: of the file, for the message.

    Returns:
        ``"Hugging Face"``, ``"Meta"`` or ``"timm"``, and the tensors. Without registers and mask
        token Meta's names and timm's are the same.

    Raises:
        InputError: for names that none of the three has.
    """
    found = ", ".join(sorted(state)[:3])
    if any(name.startswith("embeddings.") for name in state):
        layout = "Hugging Face"
        state = join_attention({_meta_name(name): tensor for name, tensor in state.items()})
    elif "mask_token" in state or "register_tokens" in state:
        layout = "Meta"
    else:
        layout = "timm"

    if not _has_tokens(state) or "blocks.0.attn.qkv.weight" not in state:
        raise InputError(Sentence.of("weights no dinov2", path=str(path), found=found))
    return layout, fold_class_position(rename_gated(state))


def _meta_name(name: str) -> str:
    """Give Meta's name for one of Hugging Face's."""
    for pattern, replacement in _HUGGING_FACE:
        name = re.sub(pattern, replacement, name)
    return name


def rename_gated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Meta's tensors of gated MLPs as timm has them. Without any nothing changes."""
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in _GATED:
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    return renamed


def join_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the linear layers ``attn.q``, ``attn.k`` and ``attn.v`` of each block to one."""
    joined = {}
    for name, tensor in state.items():
        if not re.search(r"\.attn\.[qkv]\.", name):
            joined[name] = tensor

    for name in state:
        if ".attn.q." not in name:
            continue
        parts = []
        for letter in "qkv":
            part = state.get(name.replace(".attn.q.", f".attn.{letter}."))
            if part is not None and part.shape == state[name].shape:
                parts.append(part)
        # What is torn stays out, and is then found missing.
        if len(parts) == 3:
            joined[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return joined


def _has_tokens(state: Mapping[str, Tensor]) -> bool:
    """Tell whether there are class token and positions, perhaps registers, all of one width.

    Each is (1, tokens, D).
    """
    names = {"cls_token", "pos_embed"}
    names.update({"register_tokens", "reg_token"} & set(state))

    widths = set()
    for name in names:
        shape = state[name].shape if name in state else ()
        if len(shape) != 3 or shape[0] != 1:
            return False
        widths.add(shape[2])
    return len(widths) == 1


def fold_class_position(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the class token's position to it and rename the registers, as timm has them.

    Without registers nothing changes.
    """
    folded = dict(state)
    if "register_tokens" in state:
        folded["reg_token"] = folded.pop("register_tokens")
        folded["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        folded["pos_embed"] = state["pos_embed"][:, 1:]
    return folded
