"""Focal loss of two classes per pixel: pixels that are right already hardly count.

T.-Y. Lin et al., Focal Loss for Dense Object Detection, ICCV 2017,
https://arxiv.org/abs/1708.02002, equation 4. Without class weights: some libraries' alpha = 1
weights the background 0, and false alarms then cost nothing.

torchvision's `sigmoid_focal_loss` of the difference of both logits, with alpha = -1, is the same
function. It rounds otherwise, and a difference in the seventh digit changes what DRAEM and DSR have
learnt after some steps: to take it means to raise the versions of all models that use this loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Average -(1 - p)^gamma log p over all pixels, p being the probability of the true class.

    Args:
        logits: (B, 2, H, W), of normal and anomalous, not yet through a softmax.
        mask: (B, 1, H, W), 1 where anomalous, else 0.
        gamma: 0 gives the cross-entropy, higher counts well classified pixels less.

    Returns:
        Scalar, at least 0. Background and foreground pixels cost alike.
    """
    truth = mask[:, 0].long()
    cross_entropy = F.cross_entropy(logits.float(), truth, reduction="none")  # -log p, (B, H, W)
    wrongness = -torch.expm1(-cross_entropy)  # 1 - p, exact also where p is nearly 1
    return (wrongness.pow(gamma) * cross_entropy).mean()
