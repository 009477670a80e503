"""Dinomaly, RAD and SuperSimpleNet beside their authors' code."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.stable_adamw import StableAdamW
from adray.models import dinomaly, rad, supersimplenet
from authors_code.common import (
    HEIGHT,
    Row,
    gradient_rows,
    load,
    pair,
    parameters_of,
    random_maps,
    row,
    unsettle,
)


def compare_dinomaly(checkout: Path) -> list[Row]:
    """Compare the decoder, loss and gradient with hard mining, map, schedule and optimiser."""
    blocks = load(checkout, "models.vision_transformer")
    utils = load(checkout, "utils")
    network = load(checkout, "models.uad")
    width = 384
    theirs = nn.ModuleList([blocks.bMlp(width, 4 * width, width, drop=0.0)])
    norm = partial(nn.LayerNorm, eps=1e-8)
    for _ in range(8):
        theirs.append(
            blocks.Block(
                dim=width,
                num_heads=6,
                mlp_ratio=4.0,
                qkv_bias=True,
                norm_layer=norm,
                attn_drop=0.0,
                attn=blocks.LinearAttention2,
            )
        )
    ours = dinomaly.Decoder(width, 6, 8, 0.0)
    unsettle(theirs, 0.02)
    tokens = torch.randn(2, 21, width)
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]

    def restore() -> list[Tensor]:
        # As in the authors' network: bottleneck, decoder, the last block first, groups.
        x = theirs[0](tokens)
        restored = []
        for block in theirs[1:]:
            x = block(x, attn_mask=None)
            restored.append(x)
        fuse = network.ViTill.fuse_feature
        return [fuse(None, [restored[::-1][i] for i in group]) for group in groups]

    pairs = pair(theirs, restore, ours, lambda: ours(tokens))
    restored = restore()
    mine = ours(tokens)
    rows = [row(f"decoder's group {i}", restored[i], mine[i]) for i in range(2)]

    targets = random_maps(2, (16, width), (16, width))
    as_maps = [_as_map(one) for one in targets]
    for step, easy in ((0, 0.0), (500, 0.45), (2000, 0.9)):
        theirs.zero_grad()
        ours.zero_grad()
        loss = utils.global_cosine_hm_percent(
            as_maps, [_as_map(one[:, 5:]) for one in restore()], p=easy, factor=0.1
        )
        given = tuple(one[:, 5:] for one in ours(tokens))
        my_loss = dinomaly.dinomaly_loss(targets, given, easy, 0.1)
        loss.backward()
        my_loss.backward()
        rows += [row(f"loss at step {step}", loss, my_loss)]
        rows += gradient_rows(parameters_of(pairs), 1e-3)

    anomaly_map, _ = utils.cal_anomaly_maps(as_maps, [_as_map(o[:, 5:]) for o in restored], 56)
    mine = dinomaly.distance_map(targets, tuple(one[:, 5:] for one in restored), (56, 56))
    rows.append(row("map", anomaly_map, mine))
    return [*rows, *_optimisers(checkout)]


def _as_map(tokens: Tensor) -> Tensor:
    """Lay (B, 16, D) tokens out as a map, (B, D, 4, 4)."""
    return tokens.permute(0, 2, 1).reshape(len(tokens), -1, 4, 4).contiguous()


def _optimisers(checkout: Path) -> list[Row]:
    """Compare thirty steps of StableAdamW, one with a gradient ten times as large."""
    code = load(checkout, "optimizers.StableAdamW")
    start = torch.randn(50)
    first = nn.Parameter(start.clone())
    second = nn.Parameter(start.clone())
    theirs = code.StableAdamW(
        [{"params": [first]}],
        lr=2e-3,
        betas=(0.9, 0.999),
        weight_decay=1e-4,
        amsgrad=True,
        eps=1e-8,
    )
    ours = StableAdamW(
        [second], lr=2e-3, betas=(0.9, 0.999), weight_decay=1e-4, amsgrad=True, eps=1e-8
    )
    for i in range(30):
        gradient = torch.randn(50) * (10 if i == 15 else 1)
        for parameter, optimizer in ((first, theirs), (second, ours)):
            parameter.grad = gradient.clone()
            optimizer.step()
    return [row("30 steps of the optimiser", first, second, 1e-5)]


def compare_supersimplenet(checkout: Path) -> list[Row]:
    """Compare features, map, score, loss and gradient, the noise being given."""
    import torchvision

    code = load(checkout, "model.supersimplenet")
    losses = load(checkout, "common.loss")
    untrained = torchvision.models.resnet18
    with mock.patch.object(torchvision.models, "resnet18", return_value=untrained(weights=None)):
        theirs = code.SuperSimpleNet(
            (HEIGHT, HEIGHT), {"backbone": "resnet18", "stop_grad": True, "noise": False}
        )
    config = supersimplenet.SupersimplenetConfig("resnet18", weights="random")
    ours = supersimplenet.SupersimplenetModel(config)
    unsettle(theirs.feature_adaptor)
    unsettle(theirs.discriminator)
    head = theirs.discriminator
    segment = ours.segmentation_head
    classify = ours.classification_head
    image = torch.randn(3, 3, HEIGHT, HEIGHT)
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        features = tuple(theirs.feature_extractor.feature_extractor(image).values())
    pairs = [
        (theirs.feature_adaptor.projection, ours.adaptor),
        (head.seg[0], segment.convolution),
        (head.seg[1], segment.norm),
        (head.seg[3], segment.projection),
        (head.dec_head[0], classify.convolution),
        (head.dec_head[1], classify.norm),
        (head.fc_score, classify.linear),
    ]
    for first, second in pairs:
        second.load_state_dict(first.state_dict())
    anomaly_map, score = theirs(image)
    prediction = ours(image, features)
    assert prediction.anomaly_map is not None
    inside = slice(13, -13)  # torchvision mirrors the border of the smoothed map as ours does
    rows = [
        row("map", anomaly_map[..., inside, inside], prediction.anomaly_map[..., inside, inside])
    ]
    rows.append(row("score", score, prediction.pred_score))

    theirs.train()
    ours.train()
    given, score, _, _ = theirs(image)
    mask = (torch.rand_like(given) > 0.6).float()
    label = torch.tensor([0.0, 1.0, 1.0])
    normal = torch.clip(given[mask == 0] + 0.5, min=0).mean()
    anomalous = torch.clip(-given[mask > 0] + 0.5, min=0).mean()
    loss = normal + anomalous + losses.focal_loss(torch.sigmoid(given), mask)
    loss = loss + losses.focal_loss(torch.sigmoid(score), label)
    segmented, classified = ours.convolve(features)
    segmentation = segment(segmented)
    mine = classify(classified, segmentation.detach())
    terms = supersimplenet.supersimplenet_losses(segmentation, mine, mask, label, 0.5)
    loss.backward()
    terms["loss"].backward()
    rows.append(row("loss", loss, terms["loss"]))
    return rows + gradient_rows(parameters_of(pairs))


@torch.no_grad()
def compare_rad(checkout: Path) -> list[Row]:
    """Compare maps with retrieval of some images, within a radius and everywhere."""
    code = load(checkout, "rad_mvtec_visa_3dadam")
    width = 384
    side = 8
    layers = ("blocks.0", "blocks.1")
    images = torch.zeros(3, 3, 14 * side, 14 * side)
    bank = [_random_tokens(6, side, width) for _ in layers]
    test = [_random_tokens(3, side, width) for _ in layers]

    rows = []
    for radius, everywhere in ((0, False), (2, False), (side, True)):
        config = rad.RadConfig("dinov2_vits14", layers, "random", 4, radius)
        ours = rad.RadModel(config).eval()
        # Float16 in our bank alone would be a difference of its own.
        patches = [F.normalize(one, dim=2).half().float() for one, _ in bank]
        class_tokens = [token for _, token in bank]
        ours.remember(torch.stack(patches), F.normalize(class_tokens[-1], dim=1))
        features = [F.normalize(one, dim=2) for one, _ in test]
        found = ours(images, (*features, F.normalize(test[-1][1], dim=1))).anomaly_map
        assert found is not None

        theirs = mock.Mock()
        theirs.get_intermediate_layers.return_value = test
        masks = (torch.arange(64.0).view(1, 1, 8, 8) > 31).float().expand(3, -1, -1, -1)
        loader = [(images, masks, torch.tensor([0, 1, 1]), ["a", "b", "c"])]
        with mock.patch.object(code, "compute_pro") as measure:
            code.eval_patch_knn_multilayer_cluster(
                theirs, [0, 1], class_tokens, patches, loader, "cpu", k_image=4,
                resize_mask=14 * side, use_positional_bank=not everywhere, pos_radius=radius,
            )  # fmt: skip
        what = "map, everywhere" if everywhere else f"map, radius {radius}"
        inside = slice(2, -2)  # what lies beyond the border is smoothed as zeros there
        _, maps = measure.call_args.args
        rows.append(row(what, maps[:, inside, inside], found[:, 0, inside, inside]))
    return rows


def _random_tokens(count: int, side: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw patches (N, P, D) that have a part in common, and class tokens (N, D)."""
    common = torch.randn(1, side**2, width)
    return common + torch.randn(count, side**2, width), torch.randn(count, width)
