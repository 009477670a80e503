"""Dinomaly, INP-Former, GLASS, RAD, SuperAD, MuSc and SuperSimpleNet beside their authors' code."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.restored_tokens import SmoothedScore, distance_map
from adray.components.stable_adamw import StableAdamW
from adray.config import TrainConfig
from adray.models import dinomaly, glass, inpformer, musc, rad, superad, supersimplenet
from authors_code.common import (
    HEIGHT,
    Row,
    copy_layers,
    gradient_rows,
    load,
    pair,
    parameters_of,
    random_maps,
    row,
    stand_in,
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
    mine = distance_map(targets, tuple(one[:, 5:] for one in restored), (56, 56))
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


def compare_inpformer(checkout: Path) -> list[Row]:
    """Compare decoder, prototypes, both losses and their gradient, map, score and views."""
    blocks = load(checkout, "models.vision_transformer")
    network = load(checkout, "models.uad")
    utils = load(checkout, "utils")
    width = 384
    heads = 6
    norm = partial(nn.LayerNorm, eps=1e-8)

    def of_kind(kind: Any) -> nn.Module:
        return kind(dim=width, num_heads=heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm)

    extractor = of_kind(blocks.Aggregation_Block)
    bottleneck = blocks.Mlp(width, 4 * width, width, drop=0.0)
    decoder = nn.ModuleList(of_kind(blocks.Prototype_Block) for _ in range(8))
    queries = nn.Parameter(torch.randn(6, width))
    ours = inpformer.Restorer(width, heads, 8, 6)
    for part in (extractor, bottleneck, decoder):
        unsettle(part, 0.02)
    # Their parameters are in the order of ours, but for the queries, which come first.
    learnt = [queries]
    for part in (extractor, bottleneck, decoder):
        learnt += list(part.parameters())
    pairs = list(zip(learnt, ours.parameters(), strict=True))
    for given, mine in pairs:
        mine.data.copy_(given.data)

    targets = random_maps(2, (16, width), (16, width))
    patches = (targets[0] + targets[1]) / 2

    def restore() -> tuple[list[Tensor], Tensor]:
        # As in the authors' network, from the mean of the taps on.
        prototypes = extractor(queries.unsqueeze(0).repeat((2, 1, 1)), patches)
        x = bottleneck(patches)
        restored = []
        for block in decoder:
            x = block(x, prototypes)
            restored.append(x)
        fuse = network.INP_Former.fuse_feature
        groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
        return [fuse(None, [restored[::-1][i] for i in group]) for group in groups], prototypes

    restored, prototypes = restore()
    mine, my_prototypes = ours(patches)
    rows = [row("prototypes", prototypes, my_prototypes)]
    rows += [row(f"decoder's group {i}", restored[i], mine[i]) for i in range(2)]

    as_maps = [_as_map(one) for one in targets]
    distance_to = partial(network.INP_Former.gather_loss, nn.Module())
    loss = utils.global_cosine_hm_adaptive(as_maps, [_as_map(one) for one in restored], y=3)
    loss = loss + 0.2 * distance_to(patches, prototypes)
    my_loss = inpformer.soft_mining_loss(targets, mine, 3.0)
    my_loss = my_loss + 0.2 * inpformer.coherence_loss(patches, my_prototypes)
    loss.backward()
    my_loss.backward()
    rows.append(row("loss", loss, my_loss))
    rows += gradient_rows(pairs)

    anomaly_map, _ = utils.cal_anomaly_maps(as_maps, [_as_map(one) for one in restored], 56)
    my_map = distance_map(targets, mine, (56, 56))
    rows.append(row("map", anomaly_map, my_map))
    return [*rows, _scores(utils, anomaly_map, my_map), *_views(checkout)]


def _scores(utils: ModuleType, anomaly_map: Tensor, my_map: Tensor) -> Row:
    """Compare scores of a map whose border is too low to count, where both smooth otherwise."""
    calm = F.pad(anomaly_map[..., 8:-8, 8:-8], (8, 8, 8, 8), value=0.0)
    mine = F.pad(my_map[..., 8:-8, 8:-8], (8, 8, 8, 8), value=0.0)
    small = F.interpolate(calm, size=256, mode="bilinear", align_corners=False)
    smooth = utils.get_gaussian_kernel(kernel_size=5, sigma=4)(small).flatten(1)
    largest = torch.sort(smooth, dim=1, descending=True)[0][:, : int(smooth.shape[1] * 0.01)]
    return row("score", largest.mean(dim=1), SmoothedScore()(mine))


def _views(checkout: Path) -> list[Row]:
    """Compare the turned and shifted views, which need no package that is not here."""
    code = load(checkout, "aug_funcs")
    image = torch.randn(1, 3, 40, 40)
    theirs = [image]
    for part in (-4, -3, -2, -1, 1, 2, 3, 4):
        theirs.append(code.rot_img(image, torch.pi / 16 * part))
    for shift in (0.2, 0.1):
        for right in (shift, -shift):
            for down in (shift, -shift):
                theirs.append(code.translation_img(image, right, down))
    count = len(theirs)
    mine = inpformer.viewed(image.expand(count, -1, -1, -1), torch.arange(count))
    return [row("views", torch.cat(theirs), mine, 1e-4)]


def compare_glass(checkout: Path) -> list[Row]:
    """Compare patches, map, score, loss and gradient of a step, the defects being given."""
    import torchvision

    stand_in("torch.utils.tensorboard")  # it is here, but asks for another package
    code = load(checkout, "glass")
    size = 72
    theirs = code.GLASS("cpu")
    theirs.load(
        torchvision.models.resnet18(weights=None),
        ["layer2", "layer3"],
        "cpu",
        (3, size, size),
        384,
        384,
        dsc_hidden=128,
    )
    config = glass.GlassConfig("resnet18", weights="random", width=384, hidden=128)
    trainer = glass.GlassTrainer(config, TrainConfig(img_size=size))
    ours = trainer.model
    theirs.forward_modules.eval()
    unsettle(theirs.pre_projection)
    unsettle(theirs.discriminator)
    body = theirs.discriminator.body.block1
    pairs = [
        (theirs.pre_projection.layers[0], ours.adaptor),
        (body[0], ours.discriminator.linear),
        (body[1], ours.discriminator.norm),
        (theirs.discriminator.tail[0], ours.discriminator.projection),
    ]
    copy_layers(pairs)

    image = torch.randn(3, 3, size, size)
    features = _maps_of(theirs, image)
    patches, _ = theirs._embed(image)
    rows = [row("patches", patches, ours.embed(features).flatten(0, 1))]
    rows += _glass_predictions(theirs, ours, image)

    painted = image + (torch.rand(3, 1, size, size) > 0.7) * torch.randn(3, 3, size, size)
    mask = (torch.rand(3, *ours.grid) > 0.6).float()
    noise = 0.015 * torch.randn(len(patches), 384)
    center = torch.randn(len(patches) // 3, 384)
    trainer.center = center
    for is_sphere in (False, True):
        theirs.svd = int(is_sphere)
        trainer.is_sphere = is_sphere
        loss = _glass_step(theirs, {"image": image, "aug": painted, "mask_s": mask}, center, noise)
        ours.train()
        ours.zero_grad()
        normal = ours.adapt(features).flatten(0, 1)
        local = ours.adapt(_maps_of(theirs, painted)).flatten(0, 1)
        mine = trainer.losses(normal, local, mask.flatten(), noise)["loss"]
        mine.backward()
        rows.append(row(f"loss, {'hypersphere' if is_sphere else 'manifold'}", loss, mine))
        rows += gradient_rows(parameters_of(pairs))
    return rows


def _maps_of(theirs: Any, image: Tensor) -> tuple[Tensor, ...]:
    """Give the backbone's maps of an image in the authors' network."""
    maps = theirs.forward_modules["feature_aggregator"](image)
    return maps["layer2"], maps["layer3"]


def _glass_predictions(theirs: Any, ours: glass.GlassModel, image: Tensor) -> list[Row]:
    """Compare map and score, the map where its border does not reach, the score as a probability."""
    ours.eval()
    scores, maps = theirs._predict(image)
    prediction = ours(image, _maps_of(theirs, image))
    assert prediction.anomaly_map is not None
    inside = slice(16, -16)
    given = torch.stack([torch.from_numpy(one) for one in maps])[:, inside, inside]
    return [
        row("map", given, prediction.anomaly_map[:, 0, inside, inside]),
        row("score", torch.tensor(scores), prediction.pred_score.sigmoid()),
    ]


def _glass_step(theirs: Any, batch: dict[str, Tensor], center: Tensor, noise: Tensor) -> Tensor:
    """Run the authors' step on a batch without letting it change a weight, and give its loss."""
    theirs.c = center
    theirs.logger = mock.MagicMock()
    stays = mock.patch.multiple(theirs.dsc_opt, step=mock.DEFAULT)
    also_stays = mock.patch.multiple(theirs.proj_opt, step=mock.DEFAULT)
    with stays, also_stays, mock.patch.object(torch, "normal", return_value=noise):
        theirs._train_discriminator([batch], 0, mock.MagicMock(), "")
    told = {call.args[0]: call.args[1] for call in theirs.logger.logger.add_scalar.mock_calls}
    return told["loss"]


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


@torch.no_grad()
def compare_superad(checkout: Path) -> list[Row]:
    """Compare which images are chosen by their class tokens.

    Their distances are right on a GPU alone, whose search gives products where that of a CPU gives
    squares.
    """
    sampler = load(checkout, "src.sampler")
    tokens = torch.randn(60, 1024)
    theirs = sampler.GreedyCoresetSampler(0.1, torch.device("cpu"), 1024).run(tokens)
    ours = superad.farthest_images(tokens, 16)
    return [row("positions of chosen images", theirs, ours, 0.0)]


@torch.no_grad()
def compare_musc(checkout: Path) -> list[Row]:
    """Compare averaged patches, and mutual scores of the images of a batch, of which each size."""
    aggregation = load(checkout, "models.modules._LNAMD")
    scoring = load(checkout, "models.modules._MSM")
    side = 8
    width = 384
    layers = ("blocks.0", "blocks.1")
    images = torch.zeros(11, 3, 14 * side, 14 * side)
    tokens = []
    for _ in layers:
        patches, class_token = _random_tokens(len(images), side, width)
        tokens.append(torch.cat([class_token[:, None], patches], dim=1))

    rows = []
    for kernel_size in (1, 3, 5):
        config = musc.MuscConfig("dinov2_vits14", layers, "random", (kernel_size,))
        ours = musc.MuscModel(config).eval()
        features = ours.condense(tuple(tokens))
        ours.memory_bank = torch.stack(features)

        # What ours has rounded to float16: theirs normalises it once more, which changes nothing.
        rounded = []
        for own in features:
            rounded.append(torch.cat([torch.zeros(len(own), 1, width), own.float()], dim=1))
        theirs = aggregation.LNAMD("cpu", width, [1, 2], r=kernel_size)
        described = F.normalize(theirs._embed(rounded), dim=3)  # (N, P, L, D)
        plain = F.normalize(theirs._embed([ours.norm(one) for one in tokens]), dim=3)
        averages = musc.averaged(features[0], (side, side), kernel_size)
        maps = [scoring.MSM(described[:, :, layer], "cpu") for layer in range(len(layers))]
        expected = torch.stack(maps).mean(0).view(-1, 1, side, side)
        enlarged = F.interpolate(
            expected.float(), (14 * side, 14 * side), mode="bilinear", align_corners=True
        )
        found = ours(images, features)
        rows += [
            row(f"patches, side {kernel_size}", plain[:, :, 0], averages, 1e-3),
            row(f"map, side {kernel_size}", enlarged, found.anomaly_map),
            row(f"score, side {kernel_size}", enlarged.flatten(1).amax(1), found.pred_score),
        ]
    return rows


def _random_tokens(count: int, side: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw patches (N, P, D) that have a part in common, and class tokens (N, D)."""
    common = torch.randn(1, side**2, width)
    return common + torch.randn(count, side**2, width), torch.randn(count, width)
