"""AdamW whose steps are shortened where gradients outgrow their second moment.

Stable and low-precision training for large-scale vision-language models (M. Wortsman et al.,
NeurIPS 2023), https://arxiv.org/abs/2304.13013; with AMSGrad as Dinomaly uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class StableAdamW(Optimizer):
    """AdamW with update clipping, one factor per parameter tensor.

    Differs from the paper, as Dinomaly's reference does: the ratio of gradient and second moment is
    that of the step itself, with both corrections for the first steps and with `eps` added to the
    root.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay of the means of gradients and of their squares.
        eps: added to the root of the second moment.
        weight_decay: part of each parameter that a step takes away, times `lr`.
        amsgrad: divide by the largest second moment so far rather than by the last.
        clip_threshold: root mean square of gradient over root of second moment from which on steps
            are shortened.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        clip_threshold: float = 1.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "clip_threshold": clip_threshold,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: computes the gradients anew and gives the loss, or None where they are there.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: Mapping[str, Any]) -> None:
        """Move one parameter tensor."""
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            if group["amsgrad"]:
                state["max_exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]

        second = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if group["amsgrad"]:
            second = torch.maximum(state["max_exp_avg_sq"], second, out=state["max_exp_avg_sq"])
        root = second.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])

        # The factor stays a tensor on the device: to make a float of it would wait for the device.
        rms = (grad / root).square_().mean().sqrt()
        shortened = root.mul_((rms / group["clip_threshold"]).clamp_(min=1.0))

        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        first = state["exp_avg"].lerp_(grad, 1 - beta1)
        step_size = group["lr"] / (1 - beta1 ** state["step"])
        parameter.addcdiv_(first, shortened, value=-step_size)
