"""Where a network's parameters lie."""

from __future__ import annotations

import torch
from torch import nn


def move_to(
    device: torch.device, net: nn.Module, on_cpu: torch.memory_format = torch.channels_last
) -> None:
    """Move a network to a device.

    Args:
        device: where to.
        net: the network, in place.
        on_cpu: how maps lie there; with channels last most convolutions are a fifth to a third faster. In float32 on a
            GPU that is not a given.
    """
    net.to(device)
    if device.type == "cpu":
        net.to(memory_format=on_cpu)
