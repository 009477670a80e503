"""Frozen vision transformers, tapped after some of their blocks.

CaiT: Going deeper with Image Transformers (H. Touvron et al., ICCV 2021),
https://arxiv.org/abs/2103.17239
DeiT: Training data-efficient image transformers (H. Touvron et al., ICML 2021),
https://arxiv.org/abs/2012.12877
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adray.components.architectures import block_indices
from adray.components.feature_extractor import check_names_and_shapes, read_state_dict
from adray.components.frozen_network import FrozenNetwork, chosen_weight_file

_IMAGES_AT_ONCE = 8
"""Images in memory together: attention needs heads * patches^2 numbers of each, several times."""


class VitExtractor(FrozenNetwork):
    """A CaiT or distilled DeiT of timm that gives its patches after some blocks and never changes.

    Later blocks are not even built. It stays in eval mode whatever its parent does, needs no
    gradient, and is named rather than stored in checkpoints.

    Args:
        backbone: one of `VITS`.
        layers: blocks to tap, ``blocks.0`` the first, in order.
        weights: ``"pretrained"`` reads the file of `get_backbone_path`, ``"random"`` leaves the
            initialisation.

    Raises:
        InputError: for unknown names, and for a missing, broken or foreign weight file.
    """

    net: Any  # timm's classes share no interface

    def __init__(self, backbone: str, layers: Sequence[str], weights: str = "pretrained") -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = tuple(layers)
        self.blocks = block_indices(backbone, layers)

        self.weight_file = chosen_weight_file(backbone, weights)
        if self.weight_file:
            self.net = load_vit(backbone, self.layers, self.weight_file)
        else:
            self.net = build_vit(backbone, self.layers)
        self.requires_grad_(False)
        self.eval()

    @property
    def channels(self) -> int:
        """Give C of the maps, the width of a token."""
        return self.net.embed_dim

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the patches after the tapped blocks, through the network's own last layer norm.

        Args:
            image: (B, 3, H, W) normalised, of a size that `check_vit` accepts.

        Returns:
            One (B, C, H / 16, W / 16) map per layer, in the order of `layers`, without class and
            distillation token.
        """
        parts = [self._maps(part) for part in image.split(_IMAGES_AT_ONCE)]
        return tuple(torch.cat(maps) for maps in zip(*parts, strict=True))

    def _maps(self, image: Tensor) -> list[Tensor]:
        return self.net.forward_intermediates(
            image, self.blocks, norm=True, intermediates_only=True
        )


def build_vit(backbone: str, layers: Sequence[str]) -> nn.Module:
    """Build an untrained transformer up to the last of `layers`.

    Its parameters have the names of the published files.
    """
    import timm  # several seconds; a plan that only reads configurations does not pay them

    last = block_indices(backbone, layers)[-1]
    sizes: dict[str, Any] = {}
    if not backbone.startswith("cait"):
        # timm's CaiT takes no other size than its own, timm's DeiT only if asked.
        sizes["dynamic_img_size"] = True
    net: Any = timm.create_model(backbone, pretrained=False, num_classes=0, depth=last + 1, **sizes)

    # What follows the blocks goes too, such as CaiT's class attention.
    net.prune_intermediate_layers([last])
    return net


def load_vit(backbone: str, layers: Sequence[str], path: Path) -> nn.Module:
    """Build the transformer up to the last of `layers` with the weights of a file, in float32.

    Raises:
        InputError: for a broken file, and for another network's.
    """
    state, net = _checked(backbone, layers, path)
    wanted = {name: state[name].float() for name in net.state_dict()}
    # Assigned rather than copied: to initialise hundreds of millions of numbers that are thrown
    # away takes seconds.
    net.load_state_dict(wanted, assign=True)
    return net


def check_vit_file(backbone: str, layers: Sequence[str], path: Path) -> None:
    """Check before a sweep starts that `VitExtractor` would take a weight file.

    Raises:
        InputError: for a broken file, and for another network's.
    """
    _checked(backbone, layers, path)


def _checked(
    backbone: str, layers: Sequence[str], path: Path
) -> tuple[dict[str, Tensor], nn.Module]:
    """Read the tensors of a file and check them against their network, which has none itself."""
    # The authors' CaiT files were saved from a network wrapped for several devices, timm's not.
    state = {name.removeprefix("module."): value for name, value in read_state_dict(path).items()}
    with torch.device("meta"):
        net = build_vit(backbone, layers)
    check_names_and_shapes(state, net.state_dict(), path)
    return state, net
