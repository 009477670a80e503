"""PaDiM, PatchCore, MH-PatchCore, CFA, DFKDE, DFM and FRE beside their authors' code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist, mahalanobis
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.k_center_greedy import k_center_passes
from adray.components.moments import Moments
from adray.components.patch_outliers import outlier_factors, usual_coreset
from adray.components.streamed_coreset import StreamedCoreset
from adray.models import cfa, dfkde, dfm, fre, mhpatchcore, padim, patchcore
from authors_code.common import (
    HEIGHT,
    Row,
    gradient_rows,
    load,
    load_alone,
    random_maps,
    row,
)

RESNET18 = ((64, 16, 16), (128, 8, 8), (256, 4, 4))
COMPONENTS = "src/anomalib/models/components"
"""Folder of anomalib's parts that several methods share."""
INSIDE = slice(17, -17)
"""Pixels that the smoothing reaches from inside only; at the border it is another one."""


def compare_padim(checkout: Path) -> list[Row]:
    """Compare joined channels, distances, map and score; the Gaussian is numpy's, as theirs is."""
    code = load(checkout, "main")
    ours = padim.PadimModel(padim.PadimConfig(weights="random", num_features=40), HEIGHT).eval()
    train = random_maps(60, *RESNET18)
    test = random_maps(3, *RESNET18)
    joined = _joined(code, train, ours.channels)
    rows = [row("channels", joined.flatten(2).mT, ours.embed(train))]

    ours.gaussian.update(ours.embed(train))
    ours.gaussian.fit()
    values = joined.flatten(2).double().numpy()  # (N, C, P)
    queries = _joined(code, test, ours.channels).flatten(2).double().numpy()
    distances = np.zeros((3, values.shape[2]))
    for p in range(values.shape[2]):
        covariance = np.cov(values[:, :, p], rowvar=False) + 0.01 * np.identity(40)
        inverse = np.linalg.inv(covariance)
        mean = values[:, :, p].mean(0)
        distances[:, p] = [mahalanobis(one, mean, inverse) for one in queries[:, :, p]]
    rows.append(row("distances", distances, ours.gaussian.distance(ours.embed(test)), 1e-3))

    small = torch.from_numpy(distances).view(3, 1, 16, 16)
    score_map = F.interpolate(small, HEIGHT, mode="bilinear", align_corners=False)[:, 0].numpy()
    smoothed = np.stack([gaussian_filter(one, sigma=4) for one in score_map])
    prediction = ours(torch.zeros(3, 3, HEIGHT, HEIGHT), test)
    assert prediction.anomaly_map is not None
    mine = prediction.anomaly_map[:, 0, INSIDE, INSIDE]
    return [*rows, row("map without border", smoothed[:, INSIDE, INSIDE], mine, 1e-3)]


def _joined(code: object, maps: tuple[Tensor, ...], kept: Tensor) -> Tensor:
    """Join maps as the authors do, and take the channels that are kept: (B, d, h, w)."""
    joined = maps[0]
    for other in maps[1:]:
        joined = code.embedding_concat(joined, other)
    return torch.index_select(joined, 1, kept)


def compare_patchcore(checkout: Path) -> list[Row]:
    """Compare patches, distances, the map of distances, picks of the coreset, and the score."""
    source = checkout / "src" if (checkout / "src").is_dir() else checkout
    code = load(source, "patchcore.patchcore")
    common = load(source, "patchcore.common")
    config = patchcore.PatchcoreConfig("resnet18", weights="random", num_neighbors=1)
    ours = patchcore.PatchcoreModel(config, HEIGHT).eval()
    maps = random_maps(3, (128, 8, 8), (256, 4, 4))

    # The network's own dimensions are joined without a reduction: 1152 numbers a patch, averaged.
    theirs = code.PatchCore(torch.device("cpu"))
    theirs.patch_maker = code.PatchMaker(3, stride=1)
    theirs.layers_to_extract_from = ["a", "b"]
    theirs.forward_modules = nn.ModuleDict()
    theirs.forward_modules["feature_aggregator"] = _Aggregator(maps)
    theirs.forward_modules["preprocessing"] = _MeanOfPatches()
    theirs.forward_modules["preadapt_aggregator"] = nn.Identity()
    patches = torch.from_numpy(np.stack(theirs._embed(torch.zeros(1)))).view(3, 64, -1)
    mine = ours.embed(maps)
    rows = [row("patches", patches, mine)]

    bank = ours.embed(random_maps(4, (128, 8, 8), (256, 4, 4))).flatten(0, 1)
    ours.remember(bank)
    squares = torch.from_numpy(cdist(mine.flatten(0, 1), bank).min(1) ** 2)  # as faiss gives them
    distance, _ = ours.search(mine)
    rows.append(row("squared distances", squares.view(3, -1), distance.square(), 1e-3))
    segmentor = common.RescaleSegmentor(torch.device("cpu"), HEIGHT)
    masks = np.stack(segmentor.convert_to_segmentation(distance.view(3, 8, 8)))
    prediction = ours(torch.zeros(3, 3, HEIGHT, HEIGHT), maps)
    assert prediction.anomaly_map is not None
    rows.append(row("map without border", masks[:, INSIDE, INSIDE],
                    prediction.anomaly_map[:, 0, INSIDE, INSIDE], 1e-3))  # fmt: skip
    rows.append(row("score, unweighted", squares.view(3, -1).amax(1).sqrt(), prediction.pred_score))

    sampler = load(source, "patchcore.sampler").GreedyCoresetSampler(
        0.15, torch.device("cpu"), dimension_to_project_features_to=bank.shape[1]
    )
    picks = torch.as_tensor(sampler._compute_greedy_coreset_indices(bank))
    # Ours draws its start point, so that it is given theirs.
    passes = k_center_passes(bank, len(picks), earlier=[picks[:1]])
    return [*rows, row("picks of the coreset", picks, torch.cat(passes)[: len(picks)], 0)]


class _Aggregator(nn.Module):
    """Gives maps by the names that the authors' class asks for."""

    def __init__(self, maps: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.maps = dict(zip(("a", "b"), maps, strict=True))

    def forward(self, _images: Tensor) -> dict[str, Tensor]:
        """Give the maps."""
        return self.maps


class _MeanOfPatches(nn.Module):
    """Averages each channel over its 3 x 3 neighbours, in place of pooling to 1024 numbers."""

    def forward(self, features: list[Tensor]) -> Tensor:
        """Join (P, C, 3, 3) of both layers to (P, C + C')."""
        return torch.cat([one.mean((2, 3)) for one in features], 1)


def compare_mhpatchcore(checkout: Path) -> list[Row]:
    """Compare the scale, the bank and the score, with summaries as large as the bank in both.

    A rotation of all vectors is no difference, so that distances are compared, not vectors.
    """
    config = mhpatchcore.MhpatchcoreConfig("resnet18", weights="random", bank_size=100)
    ours = mhpatchcore.MhpatchcoreModel(config, HEIGHT).eval()
    train = [random_maps(8, (128, 8, 8), (256, 4, 4)) for _ in range(5)]
    batches = [ours.embed(maps).flatten(0, 1) for maps in train]
    tests = random_maps(3, (128, 8, 8), (256, 4, 4))

    scaled = _whitened(checkout, [*batches, ours.embed(tests).flatten(0, 1)])
    moments = Moments.of(batches[0])
    for batch in batches[1:]:
        moments = moments.joined(Moments.of(batch))
    ours.scale_by(moments, config.variance, config.shrinkage)
    mine = [ours.whiten(batch) for batch in batches]
    rows = [row("Mahalanobis distances", cdist(scaled[0], scaled[1]), cdist(mine[0], mine[1]))]

    strategy = load(checkout, "mhpc.core.plugins.mem_agg.kcenter.strategy", "sklearn")
    theirs = strategy.StreamingKCenterAggregationStrategy(100, "merge_reduce", 100)
    coreset = StreamedCoreset(100)
    for first, second in zip(scaled[:-1], mine, strict=True):
        theirs.update(first)
        coreset.add(second)
    bank = theirs.get_centroids()
    ours.remember(coreset.coreset())
    rows.append(row("distances of the bank to patches", cdist(bank, scaled[0]),
                    cdist(ours.memory_bank, mine[0])))  # fmt: skip

    squares = cdist(scaled[-1], bank, "sqeuclidean")
    order = squares.argsort(1)
    runtime = load(checkout, "mhpc.core.plugins.scoring.paper_eq7.runtime", "sklearn")
    scores = runtime.compute_paper_eq7_image_scores(
        patch_maker=mock.Mock(unpatch_scores=lambda values, batchsize: values.view(batchsize, -1)),
        anomaly_scorer=mock.Mock(detection_features=bank, nn_method=mock.Mock(run=_nearest_rows)),
        paper_reweight_num_nn=9,
        features=scaled[-1],
        query_distances=np.take_along_axis(squares, order, 1),
        query_nns=order,
        batchsize=3,
    )
    prediction = ours(torch.zeros(3, 3, HEIGHT, HEIGHT), tests)
    return [*rows, row("score", scores, prediction.pred_score)]


def _whitened(checkout: Path, batches: list[Tensor]) -> list[np.ndarray]:
    """Bring batches, all but the last for training, to the scale of the authors' classes."""
    pca = load(checkout, "mhpc.core.plugins.feature_agg.ipca.strategy", "sklearn")
    sums = load(checkout, "mhpc.core.plugins.transform.cholesky.streaming_covariance")
    code = load(checkout, "mhpc.core.plugins.transform.cholesky.math", "sklearn")
    reduction = pca.StreamingIncrementalPCAReductionStrategy(0.99)
    for batch in batches[:-1]:
        reduction.update(batch.double().numpy())
    reduction.finalize()
    reduced = [reduction.transform(batch.double().numpy()) for batch in batches]

    width = reduced[0].shape[1]
    covariance = sums.StreamingCovariance(
        num_features=width, dtype=torch.float64, device=torch.device("cpu")
    )
    for values in reduced[:-1]:
        covariance.update(torch.from_numpy(values))
    settings = code.CovarianceRegularizationSettings(
        True, "FIXED", 0.07, eigen_floor_ratio=1e-8, min_jitter=1e-12, max_jitter=1.0,
        jitter_multiplier=10.0,
    )  # fmt: skip
    count = sum(map(len, reduced[:-1]))
    shrunk = code.regularize_covariance(covariance.covariance(), count, settings, "fit").covariance
    factor = code.compute_stable_cholesky(shrunk, "fit", settings)
    mean = covariance.mean
    return [code.apply_mahalanobis_transform(values, mean, factor, "fit") for values in reduced]


def _nearest_rows(
    n_nearest_neighbours: int, query_features: np.ndarray, index_features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest rows, as the authors' search does: squared distances and places."""
    squares = cdist(query_features, index_features, "sqeuclidean")
    places = squares.argsort(1)[:, :n_nearest_neighbours]
    return np.take_along_axis(squares, places, 1), places


def compare_softpatch(checkout: Path) -> list[Row]:
    """Compare the three weights, the patches that are left out, and the weighted scores."""
    source = checkout / "src"
    sys.path.insert(0, str(source))
    code = load(source, "softpatch", "sklearn")
    images = 30
    patches = torch.randn(images, 64, 128)
    patches[3, 20:30] *= 0.7
    # With 128 numbers a patch their random projection leaves them as they are.
    theirs = code.SoftPatch(torch.device("cpu"))
    sampler = code.sampler.WeightedGreedyCoresetSampler(0.1, torch.device("cpu"))
    theirs.featuresampler = sampler
    theirs.feature_shape = [8, 8]
    theirs.lof_k = 6

    rows = []
    for name in ("lof", "nearest", "gaussian"):
        theirs.weight_method = name
        weights = theirs._compute_patch_weight(patches.flatten(0, 1))  # (N, P)
        mine = outlier_factors(patches, name, 6)
        rows.append(row(f"weights, {name}", weights, mine, 1e-3))
        if name == "lof":
            rows += _softpatch_scores(theirs, patches, weights, mine)
    return rows


def _softpatch_scores(theirs: Any, patches: Tensor, weights: Tensor, mine: Tensor) -> list[Row]:
    """Compare what is left out of the bank, and scores by the same bank."""
    # As in `_fill_memory_bank`, which goes on to faiss.
    flat = weights.reshape(-1)
    threshold = torch.quantile(flat, 1 - 0.15)
    sampling = torch.where(flat > threshold, 0, 1)
    kept, _ = usual_coreset(patches.flatten(0, 1), mine.flatten(), 0.15, 10**6, torch.Generator())
    left = patches.flatten(0, 1)[sampling == 1]
    rows = [row("patches that are kept", left, kept, 0)]

    theirs.featuresampler.set_sampling_weight(sampling)
    chosen = patches.flatten(0, 1)
    picks = torch.as_tensor(theirs.featuresampler._compute_greedy_coreset_indices(chosen))
    # Their order counts the mean distance to ten start points too; here both have the same bank.
    picks = torch.as_tensor(theirs.featuresampler._compute_greedy_coreset_indices(chosen))
    queries = torch.randn(3, 64, 128)
    config = patchcore.PatchcoreConfig(
        "resnet18", weights="random", soft_weights="lof", num_neighbors=1
    )
    ours = patchcore.PatchcoreModel(config, HEIGHT).eval()
    bank_weights = flat.clamp(min=0)[picks].float()
    ours.remember(chosen[picks], bank_weights)
    squares = cdist(queries.flatten(0, 1), chosen[picks]) ** 2  # as faiss gives them
    expected = squares.min(1) * bank_weights.numpy()[squares.argmin(1)]
    distance, neighbor = ours.search(queries)
    prediction = ours.prediction(queries, distance, neighbor, (HEIGHT, HEIGHT))
    maker = sys.modules["softpatch"].PatchMaker(3, stride=1)
    scores = maker.score(maker.unpatch_scores(expected, 3).reshape(3, -1))
    return [*rows, row("score", scores, prediction.pred_score)]


def compare_cfa(checkout: Path) -> list[Row]:
    """Compare the memory bank, patch scores, loss, gradients and map."""
    code = load(checkout, "utils.cfa")
    coordinates = load(checkout, "utils.coordconv")
    train = random_maps(4, *RESNET18)
    loader = [(one, None, None) for one in torch.arange(4.0).split(1)]
    shown = iter([tuple(m[i : i + 1] for m in train) for i in range(4)])
    with mock.patch.object(coordinates.torch.cuda, "is_available", None):
        theirs = code.DSVDD(lambda _x: next(shown), loader, "res18", 1, 1, torch.device("cpu"))
    ours = cfa.CfaModel(cfa.CfaConfig("resnet18", weights="random"), HEIGHT)
    convolution = theirs.Descriptor.layer.conv
    with torch.no_grad():
        ours.descriptor.linear.weight.copy_(convolution.weight.flatten(1))
        ours.descriptor.linear.bias.copy_(convolution.bias)

    def pooled(maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(F.avg_pool2d(one, 3, 1, 1).permute(0, 2, 3, 1) for one in maps)

    ours.remember(tuple(one.mean(0, keepdim=True) for one in pooled(train)), 0)
    rows = [row("memory bank", theirs.C.T, ours.memory_bank)]

    test = random_maps(2, *RESNET18)
    config = cfa.CfaConfig("resnet18", weights="random")
    patches = ours.patches(pooled(test))
    distances = ours.distances(patches, config.num_compared)
    with torch.no_grad():
        radius = distances.median().sqrt()  # both terms of the loss act
        theirs.r.fill_(radius)
        ours.radius.fill_(radius)
    loss, score = theirs.train()(test)
    my_loss = sum(cfa.cfa_loss(distances, ours.radius, config.num_nearest, config.margin))
    mine = cfa.patch_score(ours.distances(patches, 3)).view(2, 1, 16, 16)
    loss.backward()
    my_loss.backward()
    linear = ours.descriptor.linear
    matched = [(convolution.weight, linear.weight), (convolution.bias, linear.bias)]
    rows += [row("patch scores", score, mine), row("loss", loss, my_loss), *gradient_rows(matched)]
    rows.append(row("gradient of the radius", theirs.r.grad.sum(), ours.radius.grad))

    metric = load(checkout, "utils.metric")
    enlarged = metric.upsample(score.detach().mean(1), HEIGHT, "bilinear")
    smoothed = metric.gaussian_smooth(enlarged, 4)[:, INSIDE, INSIDE]
    prediction = ours(torch.zeros(2, 3, HEIGHT, HEIGHT), pooled(test))
    assert prediction.anomaly_map is not None
    mine = prediction.anomaly_map[:, 0, INSIDE, INSIDE]
    return [*rows, row("map without border", smoothed, mine)]


def compare_fre(checkout: Path) -> list[Row]:
    """Compare map, score, loss and gradient of the tied autoencoder, its mean being zero."""
    code = load_alone(checkout, "src/anomalib/models/image/fre/torch_model.py")
    theirs = code.TiedAE(256 * 2 * 2, 20)
    config = fre.FreConfig("resnet18", weights="random", latent_dim=20)
    ours = fre.FreModel(config, HEIGHT)
    net = ours.autoencoder
    with torch.no_grad():
        net.weight.copy_(theirs.weight)
        theirs.encoder_bias.zero_()
        theirs.decoder_bias.zero_()

    vectors = torch.randn(5, 256 * 2 * 2)
    rebuilt = theirs(vectors)
    error = (vectors - rebuilt) ** 2
    mine = net.residual(vectors) ** 2
    loss = nn.MSELoss()(vectors, rebuilt)
    my_loss = mine.mean()
    loss.backward()
    my_loss.backward()
    rows = [row("map of errors", error, mine), row("loss", loss, my_loss)]
    rows.append(row("score", error.sum(1), mine.sum(1)))
    return rows + gradient_rows([(theirs.weight, net.weight)])


def compare_dfkde(checkout: Path) -> list[Row]:
    """Compare the log-density of vectors in eight of their thirty dimensions."""
    code = load_alone(checkout, f"{COMPONENTS}/classification/kde_classifier.py")
    code.PCA = load_alone(checkout, f"{COMPONENTS}/dimensionality_reduction/pca.py").PCA
    code.GaussianKDE = load_alone(checkout, f"{COMPONENTS}/stats/kde.py").GaussianKDE
    mixing = torch.randn(30, 30)
    vectors = torch.randn(60, 30) @ mixing + 7
    queries = torch.randn(20, 30) @ mixing + 7

    theirs = code.KDEClassifier(8)
    theirs.fit(vectors.clone())  # both change what they are given, in place
    density = theirs.compute_kde_scores(queries.clone(), as_log_likelihood=True)
    # Theirs divides all by one length, which multiplies a density by its eighth power.
    density = density - 8 * theirs.max_length.log()

    ours = dfkde.DfkdeModel(dfkde.DfkdeConfig(weights="random", num_components=8))
    ours.fit(vectors)
    score = ours(torch.zeros(20, 3, HEIGHT, HEIGHT), (queries,)).pred_score
    return [row("score, the log-density", -density, score, 1e-3)]


def compare_dfm(checkout: Path) -> list[Row]:
    """Compare errors and likelihood, with as many components as ours keeps."""
    code = load_alone(checkout, f"{COMPONENTS}/dimensionality_reduction/pca.py")
    gaussian = load_alone(checkout, "src/anomalib/models/image/dfm/torch_model.py")
    vectors = torch.randn(40, 60) @ torch.randn(60, 60)  # (N, C * h * w)
    ours = dfm.DfmModel(dfm.DfmConfig("resnet18", weights="random"))
    ours.pca.fit(vectors)
    theirs = code.PCA(n_components=len(ours.pca.components))
    theirs.fit(vectors.clone())  # it centres what it is given, in place

    queries = torch.randn(6, 60) * 8
    centered = queries.clone()
    latent = theirs.transform(centered)
    error = (centered - theirs.inverse_transform(latent)) ** 2
    mine = ours.reconstruction_error(queries.view(6, 15, 2, 2))
    rows = [
        row("map of errors", error.view(6, 15, 2, 2).sum(1, keepdim=True), mine, 1e-3),
        row("score, fre", error.sum(1), mine.flatten(1).sum(1), 1e-3),
    ]

    # Their bank is centred once here, where the published code does it twice.
    density = gaussian.SingleClassGaussian()
    with mock.patch.object(torch, "mean", lambda values, dim, device: values.mean(dim)):
        density.fit(theirs.transform(vectors.clone()).T)  # torch's mean has no device
    likelihood = density.score_samples(latent)
    mine = ours.negative_log_likelihood(queries.view(6, 15, 2, 2))
    # Theirs is twice as large and of a covariance over N, not N - 1; constants are left out.
    scaled = (likelihood - likelihood.mean()) / 2 * (39 / 40)
    rows.append(row("score, nll, but a constant", scaled, mine - mine.mean(), 1e-3))
    return rows
