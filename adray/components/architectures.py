"""Names of the frozen networks, and what images and taps they take. Importing this loads no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of

RESNETS = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
"""ResNets that `adray.components.resnet` builds."""
EFFICIENTNET_LITE0 = "efficientnet_lite0"
"""What `adray.components.efficientnet_lite` builds."""
CONVOLUTIONAL = (*RESNETS, EFFICIENTNET_LITE0)
"""Networks that `adray.components.feature_extractor.TimmFeatureExtractor` taps."""
_STAGE_WIDTHS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "wide_resnet50_2": (256, 512, 1024, 2048),
    EFFICIENTNET_LITE0: (24, 40, 112, 320),
}
"""Numbers per place after each of the four stages of `CONVOLUTIONAL`."""
_FIRST_STRIDE = 4
"""Pixels between two places after the first stage, and half of those after the next."""
VITS = {
    "cait_m48_448": (448, 48),
    "cait_s24_224": (224, 24),
    "cait_xxs24_224": (224, 24),
    "deit_base_distilled_patch16_384": (384, 12),
    "deit_tiny_distilled_patch16_224": (224, 12),
}
"""Side in pixels that each was trained at, and its number of blocks."""
VIT_PATCH = 16
"""Side in pixels of a patch, for all of `VITS`."""


@dataclass(frozen=True)
class Dinov2:
    """One of the published sizes."""

    timm_name: str
    """Name of the architecture without registers."""
    width: int
    """Numbers per token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Heads of the attention."""
    registers: int | None = None
    """Register tokens that its weight file must have; None takes a file with or without them."""


DINOV2S = {
    "dinov2_vit_small_14": Dinov2("vit_small_patch14_dinov2", 384, 12, 6),
    "dinov2_vit_base_14": Dinov2("vit_base_patch14_dinov2", 768, 12, 12),
    "dinov2_vit_large_14": Dinov2("vit_large_patch14_dinov2", 1024, 24, 16),
    "dinov2_vits14": Dinov2("vit_small_patch14_dinov2", 384, 12, 6, 0),
    "dinov2_vitb14": Dinov2("vit_base_patch14_dinov2", 768, 12, 12, 0),
    "dinov2_vitl14": Dinov2("vit_large_patch14_dinov2", 1024, 24, 16, 0),
    "dinov2_vitg14": Dinov2("vit_giant_patch14_dinov2", 1536, 40, 24, 0),
    "dinov2_vits14_reg4": Dinov2("vit_small_patch14_dinov2", 384, 12, 6, 4),
    "dinov2_vitb14_reg4": Dinov2("vit_base_patch14_dinov2", 768, 12, 12, 4),
    "dinov2_vitl14_reg4": Dinov2("vit_large_patch14_dinov2", 1024, 24, 16, 4),
    "dinov2_vitg14_reg4": Dinov2("vit_giant_patch14_dinov2", 1536, 40, 24, 4),
}
"""By the name that configurations use. Those with Meta's own names take no other file than theirs:
with registers where the name ends in ``reg4``, without them elsewhere."""
DINOV2_PATCH = 14
"""Side in pixels of a patch, for all of `DINOV2S`."""


def count_places(backbone: str, layers: Sequence[str], shape: tuple[int, int]) -> tuple[int, int]:
    """Count the places of the first of some stages, and the numbers of all of them at each.

    Args:
        backbone: one of `CONVOLUTIONAL`.
        layers: some of ``layer1`` to ``layer4``.
        shape: height and width of the images in pixels.
    """
    stages = [int(layer.removeprefix("layer")) - 1 for layer in layers]
    stride = _FIRST_STRIDE * 2 ** stages[0]
    places = math.prod(-(-side // stride) for side in shape)
    width = sum(_STAGE_WIDTHS[backbone][stage] for stage in stages)
    return places, width


def count_patches(shape: tuple[int, int]) -> int:
    """Count the patches of one of `DINOV2S` in an image of a height and a width in pixels."""
    return math.prod(side // DINOV2_PATCH for side in shape)


def check_decoded(backbone: str) -> None:
    """Refuse a backbone that no decoder mirrors.

    Raises:
        InputError: with the nearest name.
    """
    if backbone not in RESNETS:
        raise InputError(
            Sentence.of(
                "backbone no decoder",
                backbone=repr(backbone),
                nearest=nearest_of(backbone, RESNETS),
            )
        )


def check_vit(backbone: str, layers: Sequence[str], size: int, shrink: int = 1) -> None:
    """Check before a sweep starts that a transformer can be tapped there and takes such images.

    CaiT is bound to the size it was trained at, while DeiT's position embedding is resampled.

    Args:
        backbone: one of `VITS`.
        layers: blocks to tap.
        size: side of the images in pixels, as `img_size` and `crop_size` make it.
        shrink: the transformer sees the images at this part of their side.

    Raises:
        InputError: for an unknown backbone or block, and for a size that it does not take.
    """
    block_indices(backbone, layers)
    trained_at, _ = VITS[backbone]
    published = trained_at * shrink

    if backbone.startswith("cait") and size != published:
        raise InputError(
            Sentence.of("backbone size bound", size=size, backbone=backbone, published=published)
        )
    if size % (VIT_PATCH * shrink):
        raise InputError(
            Sentence.of(
                "backbone size multiple",
                size=size,
                backbone=backbone,
                vit_patch=VIT_PATCH * shrink,
                published=published,
            )
        )


def block_indices(backbone: str, layers: Sequence[str]) -> list[int]:
    """Give the blocks that `layers` name, counted from 0.

    Raises:
        InputError: for an unknown backbone, and for layers that are not some of its blocks in
            order.
    """
    if backbone not in VITS:
        raise InputError(
            Sentence.of(
                "backbone no transformer",
                backbone=repr(backbone),
                nearest=nearest_of(backbone, VITS),
            )
        )
    _, depth = VITS[backbone]
    return parse_blocks(backbone, layers, depth)


def parse_blocks(backbone: str, layers: Sequence[str], depth: int) -> list[int]:
    """Give the blocks, counted from 0, that `layers` name of a transformer with `depth` of them.

    Raises:
        InputError: for layers that are not some of its blocks in order.
    """
    blocks = []
    for layer in layers:
        match = re.fullmatch(r"blocks\.([0-9]{1,3})", layer)
        # What is no block counts as one behind the last, which is refused below.
        blocks.append(int(match[1]) if match else depth)

    ascending = blocks == sorted(set(blocks))
    if not blocks or not ascending or blocks[-1] >= depth:
        raise InputError(
            Sentence.of(
                "backbone blocks", layers=str(list(layers)), backbone=backbone, depth=depth - 1
            )
        )
    return blocks


def check_dinov2(backbone: str, layers: Sequence[str], size: int) -> None:
    """Check before a sweep starts that a transformer can be tapped there and takes such images.

    Raises:
        InputError: for an unknown backbone or block, and for a `size` in pixels that is not one of
            whole patches.
    """
    dinov2_blocks(backbone, layers)
    if size % DINOV2_PATCH:
        raise InputError(
            Sentence.of(
                "backbone size dinov2", size=size, backbone=backbone, dinov2_patch=DINOV2_PATCH
            )
        )


def dinov2_blocks(backbone: str, layers: Sequence[str]) -> list[int]:
    """Give the blocks that `layers` name, counted from 0.

    Raises:
        InputError: for an unknown backbone, and for layers that are not some of its blocks in
            order.
    """
    if backbone not in DINOV2S:
        raise InputError(
            Sentence.of(
                "backbone no dinov2", backbone=repr(backbone), nearest=nearest_of(backbone, DINOV2S)
            )
        )
    return parse_blocks(backbone, layers, DINOV2S[backbone].depth)
