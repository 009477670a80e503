"""GeneralAD beside its authors' code, and L2BT beside anomalib's port of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.models import generalad, l2bt
from authors_code.common import (
    Row,
    copy_layers,
    gradient_rows,
    load,
    load_package,
    random_maps,
    row,
    unsettle,
)

_WIDTH = 384
"""Numbers of a patch."""
_SIDE = 6
"""Patches along a side of the images."""


def compare_generalad(checkout: Path) -> list[Row]:
    """Compare logits, loss and gradient of a step whose noise is given, map and score."""
    code = load(checkout, "src.general_ad")
    count = _SIDE * _SIDE
    theirs = code.PPT_Discriminator(_WIDTH, 64, count, 1, 4, 0.0)
    config = generalad.GeneraladConfig(
        "dinov2_vits14", "blocks.0", "random", heads=4, hidden=64, dropout=0.0
    )
    model = generalad.GeneraladModel(config, 14 * _SIDE)
    ours = model.discriminator
    unsettle(theirs)
    pairs = _same_discriminator(theirs, ours)

    (patches,) = random_maps(3, (count, _WIDTH))
    noise = 0.25 * torch.randn_like(patches)
    part = torch.rand(3, count) > 0.4
    loss = _generalad_loss(code, theirs, patches, noise, part)
    judge = ours
    everywhere = torch.ones_like(part)
    mine = (
        generalad.two_sided_loss(judge(patches), ~everywhere)
        + generalad.two_sided_loss(judge(patches + noise), everywhere)
        + generalad.two_sided_loss(judge(patches + noise * part.unsqueeze(2)), part)
    )
    loss.backward()
    mine.backward()
    rows = [row("inside: logits", theirs(patches), ours(patches)), row("loss", loss, mine)]
    rows += gradient_rows(pairs)

    # Map and score as at the end of the authors' test.
    logits = theirs(patches).detach()
    score = torch.topk(logits, 10, dim=1)[0].mean(dim=1)
    small = logits.reshape(-1, 1, _SIDE, _SIDE)
    size = (14 * _SIDE, 14 * _SIDE)
    enlarged = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    smooth = code.gaussian_filter(enlarged.squeeze(1).numpy(), sigma=16, radius=18, axes=(1, 2))
    prediction = model.eval()(torch.zeros(3, 3, *size), (patches,))
    assert prediction.anomaly_map is not None
    inside = slice(19, -19)
    my_map = prediction.anomaly_map[:, 0, inside, inside]
    rows.append(row("map", torch.from_numpy(smooth)[:, inside, inside], my_map))
    return [*rows, row("score", score, prediction.pred_score)]


def _same_discriminator(theirs: Any, ours: Any) -> list[tuple[Tensor, Tensor]]:
    """Copy the authors' discriminator into ours, and pair their parameters."""
    block = theirs.transformer_encoder[0]
    pairs = [
        (theirs.positional_encodings, ours.position),
        (block.attn.in_proj_weight, ours.block.qkv.weight),
        (block.attn.in_proj_bias, ours.block.qkv.bias),
    ]
    layers = [
        (block.attn.out_proj, ours.block.proj),
        (block.layer_norm_1, ours.block.norm),
        (block.linear[0], ours.block.mlp[0]),
        (block.linear[3], ours.block.mlp[3]),
        (theirs.output_layer, ours.projection),
    ]
    copy_layers(layers)
    for given, mine in pairs:
        mine.data.copy_(given.data)
    for given, mine in layers:
        pairs += list(zip(given.parameters(), mine.parameters(), strict=True))
    return pairs


def _generalad_loss(
    code: Any, discriminator: nn.Module, patches: Tensor, noise: Tensor, part: Tensor
) -> Tensor:
    """Run the authors' training step with this noise on all patches and on a part of them."""
    step = code.General_AD.__new__(code.General_AD)
    nn.Module.__init__(step)
    step.discriminator = discriminator
    step.attn_output = False
    step.log = lambda *_args: None
    step.feature_extractor = lambda images: images
    noisy = patches + noise * part.unsqueeze(2)
    step._add_noise_all = lambda found: (found + noise, torch.ones(found.shape[:2]).flatten())
    step._add_random_noise = lambda _found: (noisy, part)
    # On the class: where Lightning is installed, both are properties that nobody can set.
    hyperparameters = SimpleNamespace(fake_feature_type="random")
    with mock.patch.multiple(code.General_AD, create=True, device="cpu", hparams=hyperparameters):
        return step.training_step((patches,), 0)


def compare_l2bt(checkout: Path) -> list[Row]:
    """Compare both students, loss and gradient, map and score."""
    folder = checkout / "src" / "anomalib" / "models" / "image" / "l2bt"
    code = load_package(folder, "torch_model")
    config = l2bt.L2btConfig("dinov2_vits14", ("blocks.0", "blocks.1"), "random")
    ours = l2bt.L2btModel(config)
    theirs = code.L2BTModel.__new__(code.L2BTModel)
    nn.Module.__init__(theirs)
    theirs.cos_sim = nn.CosineSimilarity(dim=-1, eps=1e-6)
    theirs.forward_net = code.FeatureProjectionMLP(_WIDTH, _WIDTH)
    theirs.backward_net = code.FeatureProjectionMLP(_WIDTH, _WIDTH)
    layers = []
    for student, mine in (
        (theirs.forward_net, ours.forward_student),
        (theirs.backward_net, ours.backward_student),
    ):
        layers += [(student.input, mine[0]), (student.projection, mine[2])]
        layers += [(student.output, mine[4])]
    unsettle(theirs)
    copy_layers(layers)

    patches = _SIDE * _SIDE
    features = random_maps(3, (patches, _WIDTH), (patches, _WIDTH))
    predicted = theirs.predict_student_features(*features)
    loss, _, _ = theirs.compute_losses(*features, *predicted)
    mine = l2bt.l2bt_loss(features, ours.predict(features))
    loss.backward()
    mine.backward()
    rows = [row("loss", loss, mine)]
    pairs = []
    for given, own in layers:
        pairs += list(zip(given.parameters(), own.parameters(), strict=True))
    rows += gradient_rows(pairs)

    size = (14 * _SIDE, 14 * _SIDE)
    generator = code.L2BTAnomalyMapGenerator(14)
    anomaly_map, score = generator(*features, *predicted, size)
    prediction = ours(torch.zeros(3, 3, *size), features)
    rows.append(row("map", anomaly_map, prediction.anomaly_map))
    return [*rows, row("score", score, prediction.pred_score)]
