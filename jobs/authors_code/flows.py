"""FastFlow, CFLOW-AD, CS-Flow and U-Flow beside their authors' code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.all_in_one_block import AllInOneBlock
from adray.models import cflow, csflow, fastflow, uflow
from authors_code.common import (
    HEIGHT,
    Row,
    gradient_rows,
    load,
    parameters_of,
    random_maps,
    row,
    unsettle,
)

Matched = list[tuple[Tensor, Tensor]]
"""Parameters of theirs, each with ours."""


@torch.no_grad()
def copy_coupling(theirs: nn.Module, ours: AllInOneBlock) -> Matched:
    """Copy the numbers of FrEIA's coupling block into ours, and pair its parameters."""
    ours.subnet.load_state_dict(theirs.subnet.state_dict())
    ours.global_scale.copy_(theirs.global_scale.flatten())
    ours.global_offset.copy_(theirs.global_offset.flatten())
    matrix = theirs.w_perm.flatten(1)
    if ours.permute_soft:
        ours.rotation.copy_(matrix)
    else:
        ours.permutation.copy_(matrix.argmax(1))

    matched = list(zip(theirs.subnet.parameters(), ours.subnet.parameters(), strict=True))
    matched.append((theirs.global_scale, ours.global_scale))
    matched.append((theirs.global_offset, ours.global_offset))
    return matched


def compare_fastflow(checkout: Path) -> list[Row]:
    """Compare loss, gradient, map and score on the same features of a ResNet-18."""
    code = load(checkout, "fastflow", "FrEIA")
    untrained = timm.create_model
    with mock.patch.object(code.timm, "create_model") as create:
        create.side_effect = lambda name, **options: untrained(
            name, **{**options, "pretrained": False}
        )
        theirs = code.FastFlow("resnet18", 8, HEIGHT, conv3x3_only=True)
    config = fastflow.FastflowConfig("resnet18", weights="random", kernel_sizes=(3,))
    ours = fastflow.FastflowModel(config, HEIGHT)
    unsettle(theirs.nf_flows, 0.02)
    unsettle(theirs.norms, 0.1)

    matched: Matched = []
    for flow, mine in zip(theirs.nf_flows, ours.flows, strict=True):
        for block, step in zip(flow.module_list, mine.steps, strict=True):
            matched += copy_coupling(block, step)
    for norm, mine in zip(theirs.norms, ours.norms, strict=True):
        mine.load_state_dict(norm.state_dict())
        matched += zip(norm.parameters(), mine.parameters(), strict=True)

    image = torch.randn(3, 3, HEIGHT, HEIGHT)
    theirs.eval()
    features = tuple(theirs.feature_extractor(image))
    given = theirs(image)
    loss = fastflow.fastflow_loss(ours.latents(features))
    prediction = ours(image, features)
    given["loss"].backward()
    loss.backward()
    return [
        row("loss", given["loss"], loss),
        *gradient_rows(matched),
        row("map", given["anomaly_map"], prediction.anomaly_map),
        row("score", given["anomaly_map"].flatten(1).amax(1), prediction.pred_score),
    ]


def compare_cflow(checkout: Path) -> list[Row]:
    """Compare the position code, likelihood, loss, gradient and map of fibers of one layer."""
    model = load(checkout, "model", "FrEIA")
    utils = load(checkout, "utils")
    settings = SimpleNamespace(coupling_blocks=8, condition_vec=128, clamp_alpha=1.9)
    channels = 64
    theirs = model.freia_cflow_head(settings, channels)
    ours = cflow.FiberFlow(channels, (6, 5), cflow.CflowConfig(weights="random"))
    unsettle(theirs, 0.02)
    matched: Matched = []
    for block, step in zip(theirs.module_list, ours.steps, strict=True):
        matched += copy_coupling(block, step)

    code = model.positionalencoding2d(128, 6, 5)  # (P, h, w)
    rows = [row("position code", code.flatten(1).T, ours.code)]
    fibers = torch.randn(30, channels)
    position = torch.arange(30)
    z, log_det = theirs(fibers, [code.flatten(1).T])
    likelihood = utils.get_logp(channels, z, log_det) / channels
    loss = -nn.LogSigmoid()(likelihood).mean()
    mine = ours.log_likelihood(fibers, position)
    my_loss = cflow.cflow_loss(mine)
    loss.backward()
    my_loss.backward()
    rows += [row("log-likelihood", likelihood, mine), row("loss", loss, my_loss)]
    rows += gradient_rows(matched)

    # As their training script does after each epoch: the largest density of the test set is 1.
    density = (likelihood - likelihood.max()).exp().view(1, 1, 6, 5)
    size = (HEIGHT, HEIGHT)
    score_mask = F.interpolate(density, size, mode="bilinear", align_corners=True)
    ours.largest.copy_(mine.max())
    grid = fibers.T.reshape(1, channels, 6, 5)
    anomaly_map = cflow.unlikelihood_map([cflow.relative_density(ours, grid)], size)
    rows.append(row("map, but a constant", score_mask.max() - score_mask,
                    anomaly_map - anomaly_map.min()))  # fmt: skip
    return rows


def compare_csflow(checkout: Path) -> list[Row]:
    """Compare latents, determinant, loss, gradient, score and map on random features."""
    load(checkout, "config").img_size = (256, 256)
    load(checkout, "config").map_size = (8, 8)
    load(checkout, "config").fc_internal = 16
    code = load(checkout, "model")
    utils = load(checkout, "utils")
    theirs = code.get_cs_flow_model()
    ours = csflow.CsflowModel(csflow.CsflowConfig("random", hidden_channels=16))
    unsettle(theirs, 0.02)

    matched: Matched = []
    modules = [m for m in theirs.module_list if not isinstance(m, nn.Identity)]
    permutes = [m for m in modules if hasattr(m, "perm")]
    couplings = [m for m in modules if hasattr(m, "s1")]
    for permute, coupling, step in zip(permutes, couplings, ours.steps, strict=True):
        step.permutation.copy_(torch.stack(permute.perm))
        matched += _copy_cross(coupling.s1, step.from_first)
        matched += _copy_cross(coupling.s2, step.from_second)

    maps = random_maps(2, (304, 8, 8), (304, 4, 4), (304, 2, 2))
    z, jacobian = code.nf_forward(theirs, list(maps))
    loss = utils.get_loss(z, jacobian)
    latents, log_det = ours.latents(maps)
    my_loss = csflow.csflow_loss(latents, log_det)
    loss.backward()
    my_loss.backward()
    score = (utils.concat_maps(z) ** 2 / 2).mean((1, 2))
    # As their evaluation does: the finest scale, averaged over channels, at the image's size.
    finest = (z[0] ** 2).mean(1, keepdim=True)
    anomaly_map = F.interpolate(finest, (256, 256), mode="bilinear", align_corners=False)
    prediction = ours(torch.zeros(2, 3, 256, 256), maps)
    rows = [row(f"latents at scale {i}", z[i], latents[i]) for i in range(3)]
    rows += [row("log-determinant", sum(jacobian), log_det), row("loss", loss, my_loss)]
    rows += [*gradient_rows(matched), row("score", score, prediction.pred_score)]
    return [*rows, row("map", anomaly_map, prediction.anomaly_map)]


@torch.no_grad()
def _copy_cross(theirs: nn.Module, ours: csflow.CrossConvolutions) -> Matched:
    """Copy the convolutions of one sub-network, and pair their parameters."""
    pairs = [
        *zip(
            [theirs.conv_scale0_0, theirs.conv_scale1_0, theirs.conv_scale2_0],
            ours.enter,
            strict=True,
        ),
        *zip(
            [theirs.conv_scale0_1, theirs.conv_scale1_1, theirs.conv_scale2_1],
            ours.leave,
            strict=True,
        ),
        *zip([theirs.up_conv10, theirs.up_conv21], ours.from_coarser, strict=True),
        *zip([theirs.down_conv01, theirs.down_conv12], ours.from_finer, strict=True),
    ]
    for first, second in pairs:
        second.load_state_dict(first.state_dict())
    ours.gamma.copy_(torch.cat([theirs.gamma0, theirs.gamma1, theirs.gamma2]))
    return parameters_of(pairs)


def compare_uflow(checkout: Path) -> list[Row]:
    """Compare latents, loss, gradient, map, score and both a contrario tests on a ResNet-18."""
    code = load(checkout, "src.model", "FrEIA")
    block = load(checkout, "src.nfa_block", "mpmath")
    untrained = timm.create_model
    with mock.patch.object(timm, "create_model") as create:
        create.side_effect = lambda name, **options: untrained(
            name, **{**options, "pretrained": False}
        )
        extractor = load(checkout, "src.feature_extraction").get_feature_extractor(
            "resnet18", HEIGHT
        )
    with mock.patch.object(code, "get_feature_extractor", return_value=extractor):
        theirs = code.UFlow(HEIGHT, 4, "resnet18")
    ours = uflow.UflowModel(uflow.UflowConfig(("resnet18",), weights="random"), HEIGHT)
    unsettle(theirs.flow, 0.02)
    unsettle(extractor.feature_normalizations, 0.1)

    matched: Matched = []
    blocks = [m for m in theirs.flow.module_list if hasattr(m, "w_perm")]
    steps: list[AllInOneBlock] = []
    for stage in ours.flow.stages:
        steps += stage.steps
    for one, step in zip(blocks, steps, strict=True):
        matched += copy_coupling(one, step)
    for norm, mine in zip(extractor.feature_normalizations, ours.pyramid.norms, strict=True):
        mine.load_state_dict(norm.state_dict())
        matched += zip(norm.parameters(), mine.parameters(), strict=True)

    image = torch.randn(2, 3, HEIGHT, HEIGHT)
    features = tuple(extractor.extract_features(image))
    z, log_det = theirs.encode(extractor.normalize_features(list(features)))
    loss = torch.mean(sum(0.5 * torch.sum(one**2, dim=(1, 2, 3)) for one in z) - log_det)
    latents, my_log_det = ours.latents(features)
    my_loss = uflow.uflow_loss(latents, my_log_det)
    loss.backward()
    my_loss.backward()

    size = (HEIGHT, HEIGHT)
    unlikely = 1 - theirs.get_probability(z)
    prediction = ours(image, features)
    rows = [row(f"latents at scale {i}", z[i], latents[i]) for i in range(3)]
    rows += [row("loss", loss, my_loss), *gradient_rows(matched)]
    rows += [row("map", unlikely, prediction.anomaly_map)]
    rows += [row("score", unlikely.flatten(1).amax(1), prediction.pred_score)]

    normal = [torch.randn(2, 24, 16, 16), torch.randn(2, 40, 8, 8)]
    normal[0][0, :, 3:9, 4:10] *= 3
    alarms = -block.compute_log_nfa_anomaly_score(normal, target_size=HEIGHT)
    rows.append(row("test of blocks", alarms, uflow.log_nfa(normal, size)))
    tree = load(checkout, "src.nfa_tree", "mpmath", "networkx", "skimage")
    alarms = -tree.compute_nfa_anomaly_score_tree(normal, HEIGHT)
    mine = uflow.log_nfa_of_regions(normal, size)
    # Above 0 lie regions below the mean, which are documented to differ.
    rows.append(row("test of regions", alarms.clamp(max=0), mine.clamp(max=0)))
    return rows
