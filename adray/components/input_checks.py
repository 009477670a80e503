"""What several methods refuse of sizes and hyperparameters, and the memory that they need.

Importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adray.components.architectures import DINOV2S, check_dinov2, count_patches
from adray.config import CROSS, TrainConfig
from adray.errors import InputError
from adray.language.sentence import Sentence


def check_reconstruction_inputs(network: str, stride: int, train_config: TrainConfig) -> None:
    """Refuse images that a network of several halvings and a final sigmoid cannot rebuild.

    Args:
        network: its name in messages.
        stride: pixels of the image per position of the latent map, in each direction.
        train_config: size and normalisation.

    Raises:
        InputError: for a size that `stride` does not divide, and for images that are not in [0, 1].
    """
    check_multiple(f"the {network}", stride, train_config.input_size)
    if train_config.normalize != "none":
        raise InputError(
            Sentence.of("method normalize", normalize=repr(train_config.normalize), network=network)
        )


def skip_remarks(skips: int, corruption: float) -> list[str]:
    """Say what becomes of skip connections where nothing has to be repaired.

    Args:
        skips: number of skip connections.
        corruption: how much of a training image is spoilt, 0 for nothing.

    Returns:
        A remark for the plan, or none.
    """
    if skips and not corruption:
        return ["skip connections with corruption 0: the network learns to copy defects too"]
    return []


def check_multiple(network: str, stride: int, size: int) -> None:
    """Refuse a size that leaves a part of a position.

    Args:
        network: its name in messages, with an article where one belongs there.
        stride: pixels of the image per position of the smallest map, in each direction.
        size: side of the images in pixels.

    Raises:
        InputError: with the nearest sizes.
    """
    if size % stride == 0:
        return

    below = size // stride * stride
    near = f"{below} or {below + stride}" if below else str(stride)
    raise InputError(
        Sentence.of("method size", size=size, network=network, stride=stride, near=near)
    )


def check_kernel_sizes(kernel_sizes: Sequence[int], such_as: str) -> None:
    """Refuse sides of convolutions that cannot keep the size of a map, and an empty list.

    Args:
        kernel_sizes: what a config says.
        such_as: what would be right, for the message.

    Raises:
        InputError: with the sides.
    """
    if not kernel_sizes or any(size < 1 or size % 2 == 0 for size in kernel_sizes):
        raise InputError(
            Sentence.of(
                "method kernel_sizes", kernel_sizes=str(list(kernel_sizes)), such_as=such_as
            )
        )


def check_dinov2_inputs(config: Any, train_config: TrainConfig) -> list[str]:
    """Refuse what a transformer cannot take, see `adray.method.Method.check_inputs`.

    Args:
        config: with the `backbone` and the `layers` of a DINOv2.
        train_config: with the size of the images.
    """
    check_dinov2(config.backbone, config.layers, train_config.input_size)
    return []


def check_turned_views(rotations: int, train_config: TrainConfig) -> None:
    """Refuse turned views where fits take features alone.

    Args:
        rotations: views of each training image, itself among them.
        train_config: says what calibrates verdicts.

    Raises:
        InputError: with the two ways out.
    """
    if rotations > 1 and train_config.calibration == CROSS:
        raise InputError(Sentence.of("method cross rotations", rotations=rotations))


def all_patches_bytes(config: Any, train_config: TrainConfig, images: int) -> int:
    """Count the patches of all blocks in float16, see `adray.method.Method.fit_bytes`.

    For methods whose bank keeps every patch of a DINOv2.
    """
    per_block = count_patches(train_config.input_shape) * DINOV2S[config.backbone].width
    return 2 * images * len(config.layers) * per_block
