"""Frozen convolutional backbones, tapped at several stages, and how weight files are read."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adray.components.architectures import EFFICIENTNET_LITE0, RESNETS
from adray.components.device import move_to
from adray.components.efficientnet_lite import EfficientNetLite
from adray.components.frozen_network import FrozenNetwork, chosen_weight_file
from adray.components.resnet import RESNET_PLANS, STAGES, ResNet
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of, sentence_of

_FOLDED = (
    ("conv1", "bn1"),
    ("conv2", "bn2"),
    ("conv3", "bn3"),
    ("0", "1"),
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
)
"""A convolution and its batch norm: of a ResNet in a block, in the stem, and where a block's input
is resampled, then of EfficientNet-Lite."""
_WRAPPERS = ("state_dict", "model")
"""Keys under which a file may hold its tensors; the second is Facebook's."""


class TimmFeatureExtractor(FrozenNetwork):
    """A convolutional network that gives the maps of some of its stages and never changes.

    It stays in eval mode whatever its parent does, needs no gradient, and is named rather than
    stored in checkpoints. Its batch norms are folded into the convolutions, which gives the same
    maps to the rounding of float32.

    Args:
        backbone: one of `CONVOLUTIONAL`.
        layers: stages to tap, of ``layer1`` to ``layer4`` with strides 4, 8, 16 and 32.
        weights: ``"pretrained"`` reads the file of `get_backbone_path`, ``"random"`` leaves the
            initialisation.

    Raises:
        InputError: for unknown names, and for a missing, broken or foreign weight file.
    """

    def __init__(self, backbone: str, layers: Sequence[str], weights: str = "pretrained") -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = tuple(layers)
        self.weights = weights
        self.weight_file = chosen_weight_file(backbone, weights)
        self.net = load_network(backbone, self.layers, self.weight_file)
        self.requires_grad_(False)
        self.eval()
        fold_batch_norms(self.net)

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the maps of the tapped stages.

        Args:
            image: (B, 3, H, W) normalised.

        Returns:
            One (B, C, h, w) map per layer, in the order of `layers`.
        """
        return tuple(self.net(image))

    @property
    def weights_key(self) -> str:
        """Give a hash of the weights, the same whichever stages are tapped."""
        return self.identity["sha256"] or self._random_weights_key()

    def _random_weights_key(self) -> str:
        """Hash the first weights, which all taps have.

        What comes after them was drawn from the same random numbers.
        """
        first = tuple(f"net.{name}" for name in self.net.first_weights)
        digest = hashlib.sha256()
        for name, values in self.state_dict().items():
            if name.startswith(first):
                digest.update(name.encode() + values.cpu().numpy().tobytes())
        return digest.hexdigest()

    def tapping(self, layers: Sequence[str], seed: int) -> TimmFeatureExtractor:
        """Give the same network with other taps.

        Args:
            layers: stages to tap.
            seed: from which random weights were drawn.

        Returns:
            This network itself where the taps are its own, and where random weights do not come out
            the same.
        """
        if tuple(layers) == self.layers:
            return self
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            other = TimmFeatureExtractor(self.backbone, layers, self.weights)
        move_to(next(self.parameters()).device, other)

        # Random weights of other taps may be drawn in another order.
        mine = self.state_dict()
        theirs = other.state_dict()
        common = mine.keys() & theirs.keys()
        same = all(torch.equal(mine[name], theirs[name]) for name in common)
        return other if same else self


def load_network(
    backbone: str, layers: Sequence[str], weight_file: Path | None
) -> ResNet | EfficientNetLite:
    """Build a network that returns the maps of `layers`, filled from a file or untrained."""
    net = build_network(backbone, layers)
    if weight_file is not None:
        load_backbone(net, weight_file)
    return net


def build_network(backbone: str, layers: Sequence[str]) -> ResNet | EfficientNetLite:
    """Build an untrained network, one of `CONVOLUTIONAL`, that returns the maps of `layers`."""
    if backbone == EFFICIENTNET_LITE0:
        check_layers(layers)
        return EfficientNetLite(layers)
    return build_resnet(backbone, layers)


def build_resnet(backbone: str, layers: Sequence[str]) -> ResNet:
    """Build an untrained (wide) ResNet that returns the maps of `layers`.

    Its parameters have torchvision's names.
    """
    if backbone not in RESNETS:
        raise InputError(
            Sentence.of(
                "backbone no resnet", backbone=repr(backbone), nearest=nearest_of(backbone, RESNETS)
            )
        )
    check_layers(layers)
    return ResNet(RESNET_PLANS[backbone], layers)


def check_layers(layers: Sequence[str]) -> None:
    """Refuse stages that are not there, that come twice, or in another order.

    Raises:
        InputError: with the layers and those that there are.
    """
    unknown = [layer for layer in layers if layer not in STAGES]
    if unknown or not layers or list(layers) != sorted(set(layers)):
        raise InputError(
            Sentence.of("backbone stages", layers=repr(list(layers)), stages=", ".join(STAGES))
        )


def fold_batch_norms(net: nn.Module) -> None:
    """Fold the batch norms of a network in eval mode into the convolutions before them, in place.

    On a CPU that takes a tenth to a sixth off a forward pass.
    """
    for module in net.modules():
        for convolution, norm in _FOLDED:
            has_both = isinstance(getattr(module, convolution, None), nn.Conv2d)
            if has_both and isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, folded)
                setattr(module, norm, nn.Identity())


def dryrun_find_featuremap_dims(
    extractor: TimmFeatureExtractor, img_size: int | tuple[int, int]
) -> dict[str, tuple[int, tuple[int, int]]]:
    """Find the channels and the size of each tapped map for an image of some size.

    Args:
        extractor: which taps the maps.
        img_size: height and width of the image in pixels, or the side of a square.

    Returns:
        ``{layer: (channels, (h, w))}``.
    """
    device = next(extractor.parameters()).device
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    maps = extractor(torch.zeros(1, 3, height, width, device=device))
    dims = {}
    for layer, feature in zip(extractor.layers, maps, strict=True):
        _, channels, height, width = feature.shape
        dims[layer] = (channels, (height, width))
    return dims


# Weight files


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.pth`, `.bin` or `.safetensors` file without running anything in it.

    Raises:
        InputError: for a truncated file, one that holds more than tensors, or no tensors by name.
    """
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(Sentence.of("weights code", path=str(path))) from error
    except OSError as error:
        raise InputError(
            Sentence.of("weights unreadable", path=str(path), error=sentence_of(error))
        ) from error
    except Exception as error:
        # Zip, safetensors and old-format readers each raise their own kinds.
        raise InputError(Sentence.of("weights damaged", path=str(path))) from error

    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not _is_tensors_by_name(state):
        raise InputError(Sentence.of("weights no tensors", path=str(path)))
    return state


def _is_tensors_by_name(state: object) -> bool:
    """Tell whether something is a mapping of names to tensors that is not empty."""
    if not isinstance(state, dict) or not state:
        return False
    return all(isinstance(value, Tensor) for value in state.values())


def load_backbone(net: nn.Module, path: Path) -> None:
    """Fill `net` from a file that holds all that it has, and perhaps more stages and a classifier.

    Raises:
        InputError: where names or shapes are another network's.
    """
    state = read_state_dict(path)
    wanted = net.state_dict()
    check_names_and_shapes(state, wanted, path)
    net.load_state_dict({name: state.get(name, own) for name, own in wanted.items()})


def check_backbone_file(backbone: str, layers: Sequence[str], path: Path) -> None:
    """Say before a sweep starts what `TimmFeatureExtractor` would say of a weight file.

    Raises:
        InputError: for a broken file, and for another network's.
    """
    state = read_state_dict(path)
    with torch.device("meta"):
        wanted = build_network(backbone, layers).state_dict()
    check_names_and_shapes(state, wanted, path)


def check_names_and_shapes(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path
) -> None:
    """Refuse tensors that are another network's.

    Args:
        state: what the file holds, perhaps more than is wanted.
        wanted: the network's own tensors, of which only names and shapes count.
        path: of the file, for the message.

    Raises:
        InputError: where names or shapes are another network's.
    """
    absent = [name for name in wanted if name not in state]
    # Old files lack the counters of batch norm, which nothing here reads.
    missing = [name for name in absent if not name.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            Sentence.of(
                "weights lacking", path=str(path), missing=missing[0], number=len(missing) - 1
            )
        )

    for name, own in wanted.items():
        if name in state and state[name].shape != own.shape:
            raise InputError(
                Sentence.of(
                    "weights shape",
                    path=str(path),
                    name=name,
                    shape=str(tuple(state[name].shape)),
                    expected=str(tuple(own.shape)),
                )
            )
