"""STFPM, reverse distillation, EfficientAD and UniNet beside their authors' code."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.config import TrainConfig
from adray.models import efficientad, reverse_distillation, stfpm, uninet
from adray.types import Batch
from authors_code.common import (
    HEIGHT,
    Gives,
    Row,
    gradient_rows,
    load,
    pair,
    parameters_of,
    random_maps,
    row,
    unsettle,
)

RESNET18 = ((64, 16, 16), (128, 8, 8), (256, 4, 4))
"""Shapes of the maps that a ResNet-18 gives of an image of `HEIGHT`."""


def batch_of(image: Tensor, features: tuple[Tensor, ...] | None) -> Batch:
    """Make a batch of normal images."""
    label = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, label, None, label, features)


def compare_stfpm(checkout: Path) -> list[Row]:
    """Compare the map, and loss and change of the student in a step of the authors' training."""
    code = load(checkout, "main")
    image = torch.randn(2, 3, HEIGHT, HEIGHT)
    maps = random_maps(2, *RESNET18)
    others = random_maps(2, *RESNET18)
    loader = _Loader([(None, image)])
    product = code.test(Gives(maps), Gives(others), loader)
    # Theirs are multiplied at 64 x 64 and without the halves.
    mine = stfpm.distance_map(maps, others, (64, 64))[:, 0] * 8
    rows = [row("map, multiplied at its size", product, mine)]

    trainer = stfpm.StfpmTrainer(
        stfpm.StfpmConfig(weights="random"), TrainConfig(img_size=HEIGHT, batch_size=2)
    )
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(1)
    student = code.ResNet18_MS3()
    net = trainer.model.student
    student.train()
    net.train()
    pairs = pair(student.model[:7], lambda: student.model[:7](image), net, lambda: net(image))
    # Pairing has moved the statistics, which training does not read.
    before = [parameter.detach().clone() for parameter, _ in parameters_of(pairs)]
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        options = SimpleNamespace(epochs=1, model_save_path=folder, category="any")
        code.train_val(Gives(maps), student, loader, loader, options)
    ours = trainer.train_step(batch_of(image, maps))["loss"]
    theirs = float(printed.getvalue().split("loss: ")[1].split()[0])
    rows.append(row("loss", theirs, ours, 1e-5))
    for (first, second), start in zip(parameters_of(pairs), before, strict=True):
        first.grad = first.detach() - start
        second.grad = second.detach() - start
    return rows + gradient_rows(parameters_of(pairs))


class _Loader(list):
    """Batches, with the length of what they come from."""

    @property
    def dataset(self) -> Tensor:
        """Give the images."""
        return self[0][1]


def compare_reverse_distillation(checkout: Path) -> list[Row]:
    """Compare restored maps, loss, gradient, map and score on random maps of a ResNet-18."""
    resnet = load(checkout, "resnet")
    decoder = load(checkout, "de_resnet").de_resnet18(pretrained=False)
    scripts = load(checkout, "test")
    bottleneck = resnet.BN_layer(resnet.BasicBlock, 2)
    config = reverse_distillation.ReverseDistillationConfig("resnet18", "random")
    ours = reverse_distillation.ReverseDistillationModel(config)
    maps = random_maps(2, *RESNET18)
    unsettle(bottleneck)
    unsettle(decoder)

    theirs = nn.ModuleList([bottleneck, decoder]).eval()
    ours.eval()
    learnt = nn.ModuleList([ours.bottleneck, ours.decoder])
    pairs = pair(
        theirs, lambda: decoder(bottleneck(list(maps))), learnt, lambda: ours.restore(maps)
    )
    restored = decoder(bottleneck(list(maps)))
    mine = ours.restore(maps)
    rows = [row(f"decoder's output {i}", restored[i], mine[i]) for i in range(3)]

    loss = load(checkout, "main").loss_fucntion(list(maps), restored)
    my_loss = reverse_distillation.global_cosine_loss(maps, mine)
    loss.backward()
    my_loss.backward()
    rows += [row("loss", loss, my_loss), *gradient_rows(parameters_of(pairs))]

    with torch.no_grad():
        one = [feature[:1] for feature in maps]
        given, _ = scripts.cal_anomaly_map(one, decoder(bottleneck(one)), 256, amap_mode="a")
        prediction = ours(torch.zeros(1, 3, 256, 256), tuple(one))
    inside = slice(17, -17)  # the smoothing treats the border otherwise
    smoothed = torch.from_numpy(gaussian_filter(given, 4))[inside, inside]
    assert prediction.anomaly_map is not None
    rows.append(row("map without border", smoothed, prediction.anomaly_map[0, 0, inside, inside]))
    return rows


def compare_efficientad(checkout: Path) -> list[Row]:
    """Compare statistics, hard loss, quantiles, map and score of EfficientAD-S."""
    code = load(checkout, "efficientad")
    common = load(checkout, "common")
    config = efficientad.EfficientadConfig(weights="random", auxiliary="none")
    ours = efficientad.EfficientadModel(config, 256).eval()
    teacher = common.get_pdn_small(384).eval()
    student = common.get_pdn_small(768).eval()
    autoencoder = common.get_autoencoder(384).eval()

    image = torch.rand(2, 3, 256, 256)
    normal = ours.normalize(image)
    pair(teacher, lambda: teacher(normal), ours.teacher.net, lambda: ours.teacher(normal))
    pairs = pair(
        autoencoder, lambda: autoencoder(normal), ours.autoencoder, lambda: ours.autoencoder(normal)
    )
    last = student[-1]
    trunk = ours.student.trunk
    pairs += pair(student[:-1], lambda: student[:-1](normal), trunk, lambda: trunk(normal))
    heads = (ours.student.teacher_head, ours.student.autoencoder_head)
    with torch.no_grad():
        for head, weight, bias in zip(
            heads, last.weight.split(384), last.bias.split(384), strict=True
        ):
            head.weight.copy_(weight)
            head.bias.copy_(bias)

    mean, deviation = code.teacher_normalization(teacher, [(normal, None)])
    my_mean, my_deviation = efficientad.channel_statistics([teacher(normal).detach()])
    ours.teacher_mean.copy_(my_mean)
    ours.teacher_std.copy_(my_deviation)
    rows = [row("channel means", mean[0], my_mean), row("deviations", deviation[0], my_deviation)]

    quantiles = code.map_normalization(
        [(normal, None)], teacher, student, autoencoder, mean, deviation
    )
    with torch.no_grad():
        mine = efficientad.map_quantiles([torch.cat(ours.distances(image), 1)], (0.9, 0.995))
    rows.append(row("quantiles", torch.stack(quantiles).view(2, 2), mine))
    ours.quantiles.copy_(mine)
    combined, _, _ = code.predict(
        normal, teacher, student, autoencoder, mean, deviation, *quantiles
    )
    combined = F.interpolate(F.pad(combined, [4] * 4), (256, 256), mode="bilinear")
    prediction = ours(image)
    assert prediction.anomaly_map is not None
    inside = slice(32, -32)  # at the margin zeros are scaled here, and follow the scaling there
    rows.append(
        row(
            "map inside", combined[..., inside, inside], prediction.anomaly_map[..., inside, inside]
        )
    )

    target = ((teacher(normal) - mean) / deviation).detach()
    # The hard loss of one image, as the authors' batches are.
    student_map = student(normal)[:1, :384]
    squared = (target[:1] - student_map) ** 2
    hard = np.quantile(squared.detach().numpy(), 0.999)  # torch takes no more than 16 million
    loss = squared[squared >= hard].mean()
    mine = ours.student.teacher_head(trunk(normal))[:1]
    my_loss = efficientad.hard_feature_loss(target[:1], mine, 0.999)
    rebuilt = (target - autoencoder(normal)).square().mean()
    my_rebuilt = (target - ours.autoencoder(normal)).square().mean()
    (loss + rebuilt).backward()
    (my_loss + my_rebuilt).backward()
    rows += [
        row("hard feature loss", loss, my_loss),
        row("autoencoder's loss", rebuilt, my_rebuilt),
    ]
    return rows + gradient_rows(parameters_of(pairs))


def compare_uninet(checkout: Path) -> list[Row]:
    """Compare feature selection, loss and its gradient, map and the weighted decision."""
    selection = load(checkout, "UniNet_lib.DFS")
    losses = load(checkout, "UniNet_lib.Loss")
    mechanism = load(checkout, "UniNet_lib.mechanism")
    teachers = random_maps(2, *RESNET18, *RESNET18)
    students = [one.requires_grad_() for one in random_maps(2, *RESNET18, *RESNET18)]
    copies = [one.detach().clone().requires_grad_() for one in students]

    given = selection.domain_related_feature_selection(students, teachers)
    ours = uninet.FeatureSelection((64, 128, 256))
    mine = ours(teachers, tuple(copies))
    rows = [row(f"selected features {i}", given[i], mine[i]) for i in range(6)]
    loss = losses.losses(list(teachers), given, 2.0, 1)
    config = uninet.UninetConfig(weights="random")
    my_loss = uninet.uninet_losses(teachers, mine, config)["loss"]
    loss.backward()
    my_loss.backward()
    rows += [row("loss", loss, my_loss)]
    rows += gradient_rows(list(zip(students, copies, strict=True)), 1e-3)

    distances = []
    for teacher, student in zip(teachers, students, strict=True):
        both = 1 - F.cosine_similarity(teacher, student.detach())
        distances.append(list(both.split(1)))
    score, anomaly_map = mechanism.weighted_decision_mechanism(2, distances, 0.01, 3e-5)
    cosines = uninet.cosine_distances(teachers, tuple(copies))
    mine = uninet.distance_map(cosines, (256, 256))
    part = uninet.decisive_part(cosines, 0.01, 3e-5)
    smoothed = GaussianBlur2d(4.0)(mine).flatten(1)
    my_score = uninet.highest_mean(smoothed, part, 0.02)
    # Theirs rounds the number of values down and repeats the border.
    return [
        *rows,
        row("map", anomaly_map, mine[:, 0]),
        row("score", np.concatenate(score), my_score, 5e-3),
    ]
