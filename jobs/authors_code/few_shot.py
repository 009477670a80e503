"""SubspaceAD and AnomalyDINO beside their authors' code, on one small transformer of random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as pillow
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from adray.components.dinov2_extractor import Dinov2Extractor, timm_names
from adray.data.normalization import normalize_images
from adray.models import anomalydino, subspacead
from authors_code.common import Row, load, row, unsettle

SIDE = 518
"""That of the published position embedding, which needs no resampling there."""
SMALLER = 336
"""Another one, which is fewer patches."""
PATCH = 14
SIZES = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 3, "patch_size": PATCH}
"""Of the first three blocks of a ViT-S."""
THREE = ("blocks.0", "blocks.1", "blocks.2")
INSIDE = slice(17, -17)
"""Pixels that the smoothing reaches from inside only; at the border it is another one."""


@torch.no_grad()
def give_weights(theirs: nn.Module, ours: Dinov2Extractor) -> None:
    """Copy the weights of a transformer, and let ours give its tokens unrounded."""
    _, state = timm_names(theirs.state_dict(), Path("the transformer"))
    ours.net.load_state_dict({name: state[name] for name in ours.net.state_dict()})
    ours.dtype = torch.float32


def smooth_images(count: int, side: int) -> np.ndarray:
    """Draw coloured clouds, (N, H, W, 3) uint8: patches of which look like their neighbours."""
    clouds = F.interpolate(torch.rand(count, 3, 9, 9), (side, side), mode="bicubic")
    pixels = (clouds + 0.1 * torch.rand(count, 3, side, side)).clamp(0, 1) * 255
    return pixels.byte().permute(0, 2, 3, 1).numpy()


def as_batch(pixels: np.ndarray) -> Tensor:
    """Normalise images as ours are, (B, 3, H, W)."""
    return normalize_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))


# ---- SubspaceAD ----


@torch.no_grad()
def compare_subspacead(checkout: Path) -> list[Row]:
    """Compare tokens, subspace, residuals, map and score of images, and a turned view.

    The transformer has registers, whose positions both programs resample.
    """
    source = checkout / "src"
    extraction = load(source, "subspacead.core.extractor", "cv2")
    pca = load(source, "subspacead.core.pca", "sklearn")
    scoring = load(source, "subspacead.post_process.scoring", "cv2")
    net = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, image_size=SIDE)).eval()
    unsettle(net)
    net.set_attn_implementation("eager")
    theirs = extraction.FeatureExtractor.__new__(extraction.FeatureExtractor)
    theirs.model = net
    theirs.processor = BitImageProcessor(
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3
    )
    config = subspacead.SubspaceadConfig("dinov2_vits14_reg4", THREE[1:], "random")
    ours = subspacead.SubspaceadModel(config).eval()
    give_weights(net, ours.extractor)

    def tokens_of(pixels: np.ndarray) -> np.ndarray:
        # Theirs counts from the embedding, so that the last two states are the last two blocks'.
        shown = [Image.fromarray(one) for one in pixels]
        found, _, _ = theirs.extract_tokens(shown, SMALLER, [-1, -2], "mean")
        return found.reshape(len(pixels), -1, found.shape[-1])

    train = smooth_images(2, SMALLER)
    test = smooth_images(2, SMALLER)
    known = tokens_of(train)
    seen = tokens_of(test)
    (patches,) = ours.features(as_batch(train))
    rows = [row("tokens", known, patches)]

    count, per_image, width = known.shape
    fitted = pca.PCAModel(ev=0.99).fit(lambda: iter(known), width, count * per_image, count)
    ours.subspace.add(patches.flatten(0, 1))
    ours.subspace.fit(0.99)
    components = torch.from_numpy(fitted["components"])
    kept = ours.subspace.components.double()
    rows += [row("number of components", fitted["k"], kept.shape[1], 0.0)]
    rows += [row("the subspace", components @ components.T, kept @ kept.T)]

    residual = scoring.calculate_anomaly_scores(seen.reshape(-1, width), fitted, "reconstruction")
    small = residual.reshape(2, SMALLER // PATCH, SMALLER // PATCH)
    (patches,) = ours.features(as_batch(test))
    rows.append(row("residuals", small.reshape(2, -1), ours.subspace.residual(patches), 1e-3))
    maps = np.stack([scoring.post_process_map(one, SMALLER) for one in small])
    prediction = ours(as_batch(test), (patches,))
    assert prediction.anomaly_map is not None
    rows.append(row("map", maps, prediction.anomaly_map[:, 0], 1e-3))
    for how, name in (("mtop1p", "top"), ("max", "max")):
        scores = [scoring.aggregate_image_score(one, how) for one in maps]
        ours.image_score = name
        rows.append(row(f"score, {name}", scores, ours(as_batch(test)).pred_score, 1e-3))
    # Tokens are float16 in the files that trials share.
    ours.extractor.dtype = torch.float16
    rounded = ours(as_batch(test)).anomaly_map
    assert rounded is not None
    rows.append(row("tokens rounded, inside", maps, rounded[:, 0], 1e-2))
    return [*rows, _turned(train)]


def _turned(pixels: np.ndarray) -> Row:
    """Compare views turned by an angle: the part of the pixels that are others."""
    theirs = [np.array(pillow.rotate(Image.fromarray(one), 123.456)) for one in pixels]
    ours = subspacead.turned(as_batch(pixels), torch.full((len(pixels),), 123.456))
    others = (as_batch(np.stack(theirs)) - ours).abs().amax(1) > 1e-3
    # A pixel that comes from halfway between two is taken from either.
    return Row("turned view, other pixels", 0.0, 0.0, float(others.float().mean()), 0.01)


# ---- AnomalyDINO ----


class _Published(nn.Module):
    """A transformer with the interface of Meta's, which gives the last block's patches normalised."""

    patch_size = 14

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def get_intermediate_layers(self, image: Tensor) -> list[Tensor]:
        """Give the patches of (B, 3, H, W) without the class token, (B, P, D)."""
        return [self.net(image).last_hidden_state[:, 1:]]


def compare_anomalydino(checkout: Path) -> list[Row]:
    """Compare distances, maps and scores of their whole run on images in files, with both masks."""
    detection = load(checkout, "src.detection", "cv2", "faiss", "sklearn", "tifffile")
    backbones = load(checkout, "src.backbones", "cv2", "sklearn")
    net = Dinov2Model(Dinov2Config(**SIZES, image_size=SIDE)).eval()
    unsettle(net)
    # So that foreground and background lie beyond the mask's threshold of 10.
    net.layernorm.weight.data *= 4
    wrapper = backbones.DINOv2Wrapper
    with mock.patch.object(torch.hub, "load", return_value=_Published(net)):
        theirs = wrapper("dinov2_vits14", "cpu", SIDE)

    images = smooth_images(4, SIDE)
    images[2:, 150:350, 150:350] = 255 - images[2:, 150:350, 150:350]
    rows = []
    for mask in ("none", "column"):
        rows += _run_anomalydino(detection, theirs, net, images, mask)
    return rows


def _run_anomalydino(
    detection: object, theirs: object, net: nn.Module, images: np.ndarray, mask: str
) -> list[Row]:
    """Let both learn the first two images and judge the others."""
    names = ["0.png", "1.png"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for place, first in (("train/good", 0), ("test/bad", 2), ("test/good", 0)):
            (root / "thing" / place).mkdir(parents=True)
            for number, name in enumerate(names):
                Image.fromarray(images[first + number]).save(root / "thing" / place / name)
        with mock.patch.object(torch.cuda, "synchronize"):
            scores, _, _ = detection.run_anomaly_detection(
                theirs, "thing", folder, 2, {"thing": ["bad"]}, folder,
                masking=mask != "none", faiss_on_cpu=True, save_tiffs=True,
            )  # fmt: skip
        written = root / "anomaly_maps" / "seed=0" / "thing" / "test" / "bad"
        distances = np.stack([np.load(written / f"{number}.npy") for number in range(2)])
        maps = np.stack([detection.tiff.imread(written / f"{number}.tiff") for number in range(2)])

    config = anomalydino.AnomalydinoConfig(layer=THREE[-1], weights="random", mask=mask)
    ours = anomalydino.AnomalydinoModel(config).eval()
    give_weights(net, ours.extractor)
    ours.norm.load_state_dict(net.layernorm.state_dict())
    with torch.no_grad():
        (patches,) = ours.features(as_batch(images[:2]))
        ours.remember(F.normalize(patches.flatten(0, 1), dim=1))
        (patches,) = ours.features(as_batch(images[2:]))
        mine = ours.distance(patches)
        if mask != "none":
            grid = (SIDE // PATCH, SIDE // PATCH)
            mine = mine * anomalydino.foreground(patches, grid, 10.0, along_raster=True)
        prediction = ours(as_batch(images[2:]), (patches,))
    assert prediction.anomaly_map is not None
    expected = [scores[f"bad/{name}"] for name in names]
    return [
        row(f"distances, mask {mask}", distances.reshape(2, -1), mine),
        row(f"left out, mask {mask}", (distances == 0).mean(), (mine == 0).double().mean()),
        row(f"score, mask {mask}", expected, prediction.pred_score),
        row(f"map without border, mask {mask}", maps[:, INSIDE, INSIDE],
            prediction.anomaly_map[:, 0, INSIDE, INSIDE]),
    ]  # fmt: skip
