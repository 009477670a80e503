"""Load a checkout, give both networks the same weights, and measure how far results lie apart."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

Pairs = list[tuple[nn.Module, nn.Module]]
"""Layers of the authors' network, each with ours of the same place."""
HEIGHT = 64
"""Side of most images in pixels."""
KINDS = ("map", "score", "loss", "gradient", "inside")
"""Kinds of quantities. The last are those of layers, banks, optimisers and likelihoods."""

_BASES = ("LightningModule", "DynamicBufferMixin")
"""Classes of packages that may not be here, of which networks are made: modules of torch to them."""


class MissingCodeError(Exception):
    """A checkout, or this machine, lacks what a comparison needs."""


@dataclass(frozen=True)
class Row:
    """One quantity of both programs."""

    what: str
    """Its name."""
    theirs: float
    """The largest value of the authors' code, or 1 of a gradient."""
    ours: float
    """The same of adray's."""
    difference: float
    """Largest difference as a part of the authors' largest value."""
    tolerance: float
    """What may come of rounding."""

    @property
    def kind(self) -> str:
        """Read off the name which of `KINDS` it is."""
        for kind in KINDS:
            if kind in self.what:
                return kind
        return KINDS[-1]

    @property
    def holds(self) -> bool:
        """Tell whether both are equal but for rounding."""
        return self.difference <= self.tolerance


def row(what: str, theirs: Any, ours: Any, tolerance: float = 1e-4) -> Row:
    """Compare two tensors or numbers of one shape."""
    a = torch.as_tensor(theirs).detach().double()
    b = torch.as_tensor(ours).detach().double()
    if a.shape != b.shape:
        raise MissingCodeError(
            f"{what}: theirs has the shape {tuple(a.shape)}, ours {tuple(b.shape)}"
        )
    largest = max(float(a.abs().max()), 1e-12)
    difference = float((a - b).abs().max()) / largest
    return Row(what, float(a.abs().max()), float(b.abs().max()), difference, tolerance)


def gradient_rows(pairs: Sequence[tuple[Tensor, Tensor]], tolerance: float = 1e-4) -> list[Row]:
    """Compare the gradients that both losses left in pairs of parameters of the same number."""
    theirs = []
    ours = []
    for a, b in pairs:
        if a.grad is not None and b.grad is not None:
            theirs.append(a.grad.flatten().double())
            ours.append(b.grad.flatten().double())
    first = torch.cat(theirs)
    second = torch.cat(ours)
    cosine = float(torch.dot(first, second) / (first.norm() * second.norm()))
    ratio = float(second.norm() / first.norm())
    return [
        Row("gradient, cosine", 1.0, cosine, abs(1 - cosine), tolerance),
        Row("gradient, norm", float(first.norm()), float(second.norm()), abs(1 - ratio), tolerance),
    ]


def parameters_of(pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """List the parameters of paired layers."""
    found = []
    for theirs, ours in pairs:
        mine = dict(ours.named_parameters(recurse=False))
        for name, parameter in theirs.named_parameters(recurse=False):
            found.append((parameter, mine[name]))
    return found


def leaves_in_order(net: nn.Module, run: Callable[[], Any]) -> list[nn.Module]:
    """List the layers that hold numbers in the order in which a run first calls them."""
    called: list[nn.Module] = []
    handles = []
    for module in net.modules():
        if any(True for _ in module.parameters(recurse=False)):

            def note(layer: nn.Module, _args: Any, _output: Any) -> None:
                if layer not in called:
                    called.append(layer)

            handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return called


def pair(
    theirs: nn.Module, run_theirs: Callable[[], Any], ours: nn.Module, run_ours: Callable[[], Any]
) -> Pairs:
    """Pair the layers of two networks by the order of their calls, and copy theirs into ours."""
    first = leaves_in_order(theirs, run_theirs)
    second = leaves_in_order(ours, run_ours)
    if len(first) != len(second):
        raise MissingCodeError(f"theirs has {len(first)} layers with weights, ours {len(second)}")
    pairs = list(zip(first, second, strict=True))
    copy_layers(pairs)
    return pairs


@torch.no_grad()
def copy_layers(pairs: Pairs) -> None:
    """Copy weights, biases and statistics of their layers into ours."""
    for theirs, ours in pairs:
        given = theirs.state_dict()
        for name, values in ours.state_dict().items():
            if given[name].numel() != values.numel():
                raise MissingCodeError(f"{ours} does not fit {theirs}")
            values.copy_(given[name].view_as(values))


@torch.no_grad()
def unsettle(net: nn.Module, spread: float = 0.05) -> None:
    """Move all that a network learns away from where it starts, so that nothing is 0 or 1."""
    for parameter in net.parameters():
        if parameter.requires_grad:  # FrEIA's permutations are parameters too
            parameter.add_(spread * torch.randn_like(parameter))
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


# ---- a checkout ----


def load(checkout: Path, name: str, *needed: str) -> ModuleType:
    """Import a module of a checkout, on a machine without its GPU and its third-party packages.

    Args:
        checkout: folder of the authors' code, or a folder in it that its scripts run from.
        name: dotted name of the module.
        needed: packages that have to be here, since what is compared uses them.

    Raises:
        MissingCodeError: for a module that the checkout does not have, and a package that is needed.
    """
    file = checkout / (name.replace(".", "/") + ".py")
    if not file.is_file():
        raise MissingCodeError(f"{checkout} has no {file.relative_to(checkout)}")
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise MissingCodeError(
                f"{file.name} needs the package {package}, which is not installed"
            )

    _stay_on_the_cpu()
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return _import(name, checkout)


def _import(name: str, checkout: Path) -> ModuleType:
    """Import a module, and put a stand-in for each package that is not here."""
    while True:
        before = set(sys.modules)
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            absent = missing.name or ""
            if (checkout / absent.split(".")[0]).exists() or absent in sys.modules:
                raise MissingCodeError(f"{checkout}: {missing}") from missing
            # What was begun is begun anew: a package may be gone of which a module stayed.
            for half in set(sys.modules) - before:
                if (checkout / half.split(".")[0]).exists():
                    del sys.modules[half]
            stand_in(absent)
        except ImportError as missing:
            raise MissingCodeError(f"{checkout}: {missing}") from missing


def load_alone(checkout: Path, path: str) -> ModuleType:
    """Run one file of a checkout whose package would import far more than what is compared.

    Raises:
        MissingCodeError: for a file that the checkout does not have.
    """
    file = checkout / path
    if not file.is_file():
        raise MissingCodeError(f"{checkout} has no {path}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    while True:
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ModuleNotFoundError as missing:
            stand_in(missing.name or "")
        else:
            return module


def load_package(folder: Path, name: str) -> ModuleType:
    """Import a module of one package of a checkout, without those around the package.

    Args:
        folder: of the package.
        name: of the module in it, which may import its neighbours.

    Raises:
        MissingCodeError: for a module that the package does not have.
    """
    if not (folder / f"{name}.py").is_file():
        raise MissingCodeError(f"{folder} has no {name}.py")
    package = ModuleType(folder.name)
    package.__path__ = [str(folder)]
    sys.modules[folder.name] = package
    return _import(f"{folder.name}.{name}", folder)


def stand_in(name: str) -> None:
    """Put a module in place of one that is not here, of which any name can be imported."""
    module = MagicMock(name=name)
    module.__path__ = []
    module.__all__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for base in _BASES:
        setattr(module, base, nn.Module)
    sys.modules[name] = module


def _stay_on_the_cpu() -> None:
    """Let `cuda()` leave everything where it is."""
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self  # type: ignore[method-assign]
    nn.Module.cuda = lambda self, *_args, **_kwargs: self  # type: ignore[method-assign]


class Gives(nn.Module):
    """A network that gives the same maps whatever it is shown."""

    def __init__(self, maps: Sequence[Tensor]) -> None:
        super().__init__()
        self.maps = list(maps)

    def forward(self, _image: Tensor) -> list[Tensor]:
        """Give copies of the maps."""
        return [one.clone() for one in self.maps]


def random_maps(count: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Draw feature maps (count, C, h, w)."""
    return tuple(torch.randn(count, *shape) for shape in shapes)
