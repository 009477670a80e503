"""Where a network's parameters lie, and in which precision it runs."""

from __future__ import annotations

import torch
from torch import nn

from adray.errors import InputError
from adray.language.sentence import Sentence


def choose_device(wanted: str | None) -> str:
    """Give the device that a user named, or ``cuda`` where there is a GPU, else ``cpu``.

    Args:
        wanted: ``cpu``, ``cuda``, ``cuda:1``, ..., or None to choose.

    Raises:
        InputError: for a device that torch does not know, or that is not here.
    """
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"

    try:
        torch.empty(1, device=wanted).cpu()
    # Torch raises other errors for each kind of device that it was built without.
    except Exception:
        count = torch.cuda.device_count()
        here = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
        raise InputError(Sentence.of("device missing", device=wanted, here=here)) from None
    return wanted


def move_to(
    device: torch.device, net: nn.Module, on_cpu: torch.memory_format = torch.channels_last
) -> None:
    """Move a network to a device, in place.

    Args:
        device: where to.
        net: the network.
        on_cpu: how maps lie there. With channels last most convolutions are a fifth to a third
            faster. In float32 on a GPU that is not a given.
    """
    net.to(device)
    if device.type == "cpu":
        net.to(memory_format=on_cpu)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Make the context in which a network runs in a precision, for ``"float32"`` one without effect."""
    dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def makes_graph() -> bool:
    """Tell whether a graph is made of the model, in which no step may depend on values."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()
