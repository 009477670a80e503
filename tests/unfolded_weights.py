"""Weights for a frozen ResNet and for its twin in another library, which keeps its batch norms apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adray.components.feature_extractor import TimmFeatureExtractor, build_resnet, fold_batch_norms


def redraw(extractor: TimmFeatureExtractor) -> dict[str, Tensor]:
    """Give an extractor new random weights and statistics, and say by torchvision's names what they were unfolded."""
    net = build_resnet(extractor.backbone, extractor.layers).eval()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    state = {name: values.clone() for name, values in net.state_dict().items()}
    with torch.no_grad():
        fold_batch_norms(net)
        extractor.net.load_state_dict(net.state_dict())
    return state
