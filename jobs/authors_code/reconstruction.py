"""DRAEM, DSR and GANomaly beside their authors' code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from adray.components.focal_loss import focal_loss
from adray.models import draem, dsr, ganomaly
from authors_code.common import (
    HEIGHT,
    Row,
    gradient_rows,
    load,
    pair,
    parameters_of,
    row,
    unsettle,
)

_AUTHORS_SSIM = 0.1
"""Mirrored borders move this term by some per cent of itself, see `adray/models/draem.py`."""


def compare_draem(checkout: Path) -> list[Row]:
    """Compare both networks, map, score, the terms of the loss and the gradient of the focal one."""
    code = load(checkout, "model_unet")
    losses = load(checkout, "loss")
    config = draem.DraemConfig(reconstructive_width=16, discriminative_width=8)
    ours = draem.DraemModel(config)
    rebuild = code.ReconstructiveSubNetwork(base_width=16)
    find = code.DiscriminativeSubNetwork(in_channels=6, out_channels=2, base_channels=8)
    theirs = nn.ModuleList([rebuild, find]).eval()
    ours.eval()
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)

    image = torch.rand(2, 3, HEIGHT, HEIGHT)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        again = rebuild(image)
        return again, find(torch.cat((again, image), 1))

    pairs = pair(theirs, run, ours, lambda: ours.compare(image))
    again, logits = run()
    rebuilt, mine, _ = ours.compare(image)
    probability = logits.softmax(1)
    score = F.avg_pool2d(probability[:, 1:], 21, stride=1, padding=10).flatten(1).amax(1)
    prediction = ours(image)
    rows = [row("reconstruction", again, rebuilt), row("logits", logits, mine)]
    rows += [row("map", probability[:, 1:], prediction.anomaly_map)]
    rows += [row("score", score, prediction.pred_score)]

    mask = (torch.rand(2, 1, HEIGHT, HEIGHT) > 0.7).float()
    focal = losses.FocalLoss()(probability, mask)
    terms = draem.draem_losses(rebuilt, mine, image, mask)
    similarity, _ = losses.ssim(again.clamp(0, 1), image)
    my_terms = draem.draem_losses(rebuilt.clamp(0, 1), mine, image, mask)
    (F.mse_loss(again, image) + focal).backward()
    (terms["l2"] + terms["focal"]).backward()
    rows += [row("l2 loss", F.mse_loss(again, image), terms["l2"])]
    rows += [row("focal loss", focal, terms["focal"], 1e-3)]
    rows += gradient_rows(parameters_of(pairs), 1e-3)
    return [
        *rows,
        row("similarity (other border)", 1 - similarity, my_terms["ssim"], _AUTHORS_SSIM),
    ]


def compare_dsr(checkout: Path) -> list[Row]:
    """Compare codes, map, score, restoration and focal loss, and the gradient of the first phase."""
    discrete = load(checkout, "discrete_model")
    nets = load(checkout, "dsr_model")
    losses = load(checkout, "loss")
    ours = dsr.DsrModel(dsr.DsrConfig(weights="random")).eval()
    vq = discrete.DiscreteLatentModel(128, 2, 64, 4096, 128, 0.25, 0.99).eval()
    with torch.no_grad():
        for name, values in ours.autoencoder.state_dict().items():
            vq.state_dict()[name].copy_(values)
    restrict_lo = nets.SubspaceRestrictionModule(128)
    restrict_hi = nets.SubspaceRestrictionModule(128)
    decoder = nets.ImageReconstructionNetwork(256, 128, 2, 64)
    detector = nets.AnomalyDetectionModule(128)
    sharpener = nets.UpsamplingModule(128)

    image = torch.rand(2, 3, HEIGHT, HEIGHT)
    codes = ours.autoencoder.encode(image)
    with torch.no_grad():
        _, _, general, lo, hi = vq(image)
    rows = [row("coarse codes", lo, codes.lo), row("fine codes", hi, codes.hi)]
    rows += [row("general image", general, ours.autoencoder.decode(codes.lo, codes.hi))]

    pairs = []
    wide = torch.randn(2, 8, HEIGHT, HEIGHT)
    for theirs, mine, args in (
        (restrict_lo.unet, ours.restrict_lo, (lo,)),
        (restrict_hi.unet, ours.restrict_hi, (hi,)),
    ):
        pairs += pair(theirs, lambda t=theirs, a=args: t(*a), mine, lambda m=mine, a=args: m(*a))
    joined = torch.cat((vq.upsample_t(lo), hi), 1)
    pairs += pair(decoder, lambda: decoder(joined), ours.decoder, lambda: ours.decoder(joined))
    pairs += pair(
        detector,
        lambda: detector(wide[:, :3], wide[:, 3:6]),
        ours.detector,
        lambda: ours.detector(wide[:, :6]),
    )
    pair(
        sharpener,
        lambda: sharpener(wide[:, :3], wide[:, 3:6], wide[:, 6:]),
        ours.sharpener,
        lambda: ours.sharpener(wide),
    )

    features_hi, embedded_hi, _ = restrict_hi(hi, vq._vq_vae_bot)
    features_lo, embedded_lo, _ = restrict_lo(lo, vq._vq_vae_top)
    again = decoder(torch.cat((vq.upsample_t(embedded_lo), embedded_hi), 1))
    logits = detector(again.detach(), general.detach())
    coarse = logits.softmax(1)
    restoration = F.mse_loss(features_lo, lo) + F.mse_loss(features_hi, hi)
    restoration = restoration + 10 * F.mse_loss(image, again)
    mask = (torch.rand(2, 1, HEIGHT, HEIGHT) > 0.7).float()
    focal = losses.FocalLoss()(coarse, mask)

    restored = ours.restore(codes.lo, codes.hi)
    mine = ours.detect(restored.image, general)
    my_restoration = dsr.restoration_loss(image, codes, restored)
    my_focal = focal_loss(mine, mask)
    (restoration + focal).backward()
    (my_restoration + my_focal).backward()
    rows += [row("restored image", again, restored.image), row("logits", logits, mine)]
    rows += [row("restoration loss", restoration, my_restoration)]
    rows += [row("focal loss", focal, my_focal, 1e-3), *gradient_rows(parameters_of(pairs), 1e-3)]

    fine = sharpener(again, general, coarse).softmax(1)[:, 1:]
    score = F.avg_pool2d(coarse[:, 1:], 21, stride=1, padding=10).flatten(1).amax(1)
    prediction = ours(dsr.as_published(image))  # turned once more, so that it is `image` inside
    rows += [row("map", fine, prediction.anomaly_map), row("score", score, prediction.pred_score)]
    return rows


def compare_ganomaly(checkout: Path) -> list[Row]:
    """Compare score, losses and gradients of both networks, and one step of both optimisers."""
    code = load(checkout, "lib.networks")
    losses = load(checkout, "lib.loss")
    options = SimpleNamespace(isize=32, nz=20, nc=3, ngf=16, ndf=16, ngpu=1, extralayers=0)
    generator = code.NetG(options)
    discriminator = code.NetD(options)
    ours = ganomaly.GanomalyModel(ganomaly.GanomalyConfig(base_channels=16, latent_channels=20), 32)
    unsettle(generator)
    unsettle(discriminator)
    image = torch.rand(4, 3, 32, 32) * 2 - 1
    theirs = nn.ModuleList([generator, discriminator]).eval()
    ours.eval()
    pairs = pair(generator, lambda: generator(image), ours.generator, lambda: ours.generator(image))
    pairs_d = pair(
        discriminator,
        lambda: discriminator(image),
        ours.discriminator,
        lambda: ours.discriminator(image),
    )
    with torch.no_grad():
        _, first, second = generator(image)
    score = (first - second).pow(2).mean(1).flatten()
    rows = [row("score", score, ours(image).pred_score)]

    theirs.train()
    ours.train()
    fake, first, second = generator(image)
    adversarial = losses.l2_loss(discriminator(image)[1], discriminator(fake)[1])
    contextual = nn.L1Loss()(fake, image)
    encoder = losses.l2_loss(second, first)
    generated = ours.generator(image)
    seen = (ours.discriminator(image)[1], ours.discriminator(generated[0])[1])
    mine = ganomaly.generator_losses(image, generated, seen)
    (adversarial + 50 * contextual + encoder).backward()
    (mine["adversarial"] + 50 * mine["contextual"] + mine["encoder"]).backward()
    rows += [row("adversarial loss", adversarial, mine["adversarial"])]
    rows += [row("contextual loss", contextual, mine["contextual"])]
    rows += [row("encoder loss", encoder, mine["encoder"])]
    rows += gradient_rows(parameters_of(pairs))

    discriminator.zero_grad()
    ours.discriminator.zero_grad()
    real, _ = discriminator(image)
    drawn, _ = discriminator(fake.detach())
    cross_entropy = nn.BCELoss()
    loss = 0.5 * (
        cross_entropy(real, torch.ones_like(real)) + cross_entropy(drawn, torch.zeros_like(drawn))
    )
    my_loss = ganomaly.discriminator_loss(
        ours.discriminator(image)[0], ours.discriminator(generated[0].detach())[0]
    )
    loss.backward()
    my_loss.backward()
    return [
        *rows,
        row("discriminator's loss", loss, my_loss),
        *gradient_rows(parameters_of(pairs_d)),
    ]
