"""WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation (J. Jeong et al., CVPR 2023).

Paper: https://arxiv.org/abs/2303.14814
Reference: none by the authors; anomalib (Apache-2.0, facts only), compared with numerically in the
tests. The network is CLIP's ViT-B-16-plus-240 of open_clip, trained on LAION-400M; it is an
optional dependency, `pip install 'adray[clip]'`.

CLIP gives images and sentences vectors that lie close where they mean the same. Sentences about a
flawless and about a damaged product, in many wordings, make one vector each; an image is as
anomalous as it lies closer to the second. Small windows of the image, encoded one by one, say
where. With `k_shot` normal images beside, patches and windows are also as anomalous as they are
unlike all that those images show. Nothing is trained.

Cost: each image runs through the transformer once as a whole and once per window, 365 windows of 5
or 10 tokens, about 0.7 TFLOP: some 12 s on one CPU core.

A trial that merges categories has one text vector per side, the mean over all categories'
sentences, and `k_shot` references of each: at prediction nothing says which product an image shows.

Differs from the paper: images are resized bilinearly, as for all models, not bicubically; the
references are drawn by the seed. The list of templates that is handed on holds one sentence twice
("a jpeg corrupted photo of the"); here the second one has the other article. One re-implementation
has a further template ("a cropped photo of a") and normalises each sentence's vector before the
mean, which neither the others nor this one do.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from adray.components.class_names import CLASS_NAMES, class_name
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.feature_extractor import check_names_and_shapes, read_state_dict
from adray.components.frozen_network import FrozenNetwork, chosen_weight_file
from adray.methods.winclip import BACKBONE, GRID, METHODS, WinclipConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

logger = logging.getLogger(__name__)

ARCHITECTURE = "ViT-B-16-plus-240"
"""Name of the network among the configurations that come with open_clip."""
_IMAGES_AT_ONCE = 8
"""Images in memory together: the windows of one fill hundreds of MB several layers over."""
_CHUNK_BYTES = 256 * 2**20
"""Similarities to the references that are in memory together."""
_SMALLEST = 1e-12
"""Lower bound of scores in a harmonic mean, which needs them above 0."""

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = (
    "a cropped photo of the {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of a {}.",
    "a dark photo of the {}.",
    "a jpeg corrupted photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for visual inspection.",
    "a photo of a {} for anomaly detection.",
    "a photo of the {} for anomaly detection.",
)


# CLIP and its sentences


def build_clip() -> Any:
    """Build an untrained CLIP, image and text tower, from the configuration of open_clip."""
    import open_clip  # optional, and slow to import

    return open_clip.CLIP(**open_clip.get_model_config(ARCHITECTURE))


def load_clip(path: Path | None) -> Any:
    """Build CLIP with the weights of a file, or untrained where it is None, in eval mode.

    Raises:
        InputError: for a damaged file, and for another network's.
    """
    clip = build_clip()
    if path is not None:
        clip.load_state_dict(read_clip_file(path, clip.state_dict()))
    return clip.eval()


def load_image_tower(path: Path) -> Any:
    """Build the image tower alone with the weights of a file, in float32.

    Raises:
        InputError: for a damaged file, and for another network's.
    """
    with torch.device("meta"):
        clip = build_clip()
    state = read_clip_file(path, clip.state_dict())
    state = {name: value.float() for name, value in state.items()}
    # Assigned rather than copied: to initialise 200 million numbers that are thrown away takes
    # seconds.
    clip.load_state_dict(state, assign=True)
    return clip.visual


def read_clip_file(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the tensors of a file under the names of `wanted`, of which only names and shapes count.

    Raises:
        InputError: for a damaged file, and for another network's.
    """
    # Training on several devices puts "module." before each name.
    state = {name.removeprefix("module."): value for name, value in read_state_dict(path).items()}
    check_names_and_shapes(state, dict(wanted), path)
    return {name: state[name] for name in wanted}


def prompts(states: Sequence[str], name: str) -> list[str]:
    """Put every state of the product `name` into every template (section 4.1)."""
    pairs = itertools.product(states, TEMPLATES)
    return [template.format(state.format(name)) for state, template in pairs]


@torch.no_grad()
def text_embeddings(clip: Any, names: Sequence[str], device: torch.device) -> Tensor:
    """Embed the sentences about normal and about anomalous products (section 4.1).

    Args:
        clip: see `load_clip`.
        names: the products in words, of which the mean is taken.
        device: where to compute.

    Returns:
        (2, E): the mean over all sentences of the normal and of the anomalous side, as unit
        vectors.
    """
    import open_clip

    tokenizer = open_clip.SimpleTokenizer()
    clip = clip.to(device)
    sides = []
    for states in (NORMAL_STATES, ANOMALOUS_STATES):
        means = []
        for name in names:
            tokens = tokenizer(prompts(states, name), clip.context_length).to(device)
            means.append(clip.encode_text(tokens).float().mean(0))  # (E,)
        sides.append(torch.stack(means).mean(0))
    return F.normalize(torch.stack(sides), dim=1)


# Windows


def window_patches(grid: int, scale: int) -> Tensor:
    """Give the patches of all windows of `scale` x `scale` patches in a `grid` x `grid` image.

    Returns:
        (W, scale^2), patches and windows counted by row.
    """
    patches = torch.arange(grid * grid).view(grid, grid)
    windows = patches.unfold(0, scale, 1).unfold(1, scale, 1)
    return rearrange(windows, "row column y x -> (row column) (y x)")


def harmonic_map(scores: Tensor, covers: Tensor) -> Tensor:
    """Give each patch the harmonic mean of the windows that cover it (section 4.2).

    Args:
        scores: (B, W) of the windows, at least 0.
        covers: (W, P) 1 where a window covers a patch, else 0.

    Returns:
        (B, P).
    """
    return covers.sum(0) / (scores.clamp_min(_SMALLEST).reciprocal() @ covers)


def association(queries: Tensor, references: Tensor) -> Tensor:
    """Tell how unlike all references each query is: the least (1 - cosine) / 2 (equation 4).

    Args:
        queries: (B, Q, D).
        references: (R, D) unit vectors.

    Returns:
        (B, Q) in [0, 1].
    """
    flat = F.normalize(queries.flatten(0, 1), dim=1)  # (B*Q, D)
    rows = max(1, _CHUNK_BYTES // (4 * len(references)))
    nearest = torch.cat([(part @ references.T).amax(1) for part in flat.split(rows)])
    return ((1 - nearest) / 2).clamp(0, 1).view(queries.shape[:2])


# The network


@dataclass(frozen=True)
class Embeddings:
    """Vectors that the image tower gives for a batch."""

    image: Tensor
    """(B, E) of the whole image, in the space that text shares."""
    patches: Tensor
    """(B, P, D) of the patches of the whole image, before the projection to that space."""
    windows: tuple[Tensor, ...]
    """One (B, W, E) per scale, each window on its own."""


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """Join the embeddings of several batches to those of one."""
    windows = []
    for of_scale in zip(*(part.windows for part in parts), strict=True):
        windows.append(torch.cat(of_scale))
    return Embeddings(
        image=torch.cat([part.image for part in parts]),
        patches=torch.cat([part.patches for part in parts]),
        windows=tuple(windows),
    )


class ClipImageTower(FrozenNetwork):
    """CLIP's vision transformer on whole images and on windows of them.

    Args:
        config: gives the weights and the scales.

    Raises:
        InputError: for a missing, damaged or foreign weight file.
    """

    net: Any  # open_clip's VisionTransformer

    def __init__(self, config: WinclipConfig) -> None:
        super().__init__()
        self.backbone = BACKBONE
        self.scales = config.scales
        self.weight_file = chosen_weight_file(BACKBONE, config.weights)
        self.net = load_image_tower(self.weight_file) if self.weight_file else build_clip().visual

        for scale in self.scales:
            # Token 0 is the class token, which each window has; the patches follow.
            patches = window_patches(GRID, scale) + 1
            class_token = torch.zeros(len(patches), 1, dtype=torch.int64)
            tokens = torch.cat([class_token, patches], 1)  # (W, 1 + scale^2)
            self.register_buffer(f"tokens_{scale}", tokens, persistent=False)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, image: Tensor) -> Embeddings:
        """Embed (B, 3, 240, 240), normalised as CLIP does."""
        return joined([self._embed(part) for part in image.split(_IMAGES_AT_ONCE)])

    def _embed(self, image: Tensor) -> Embeddings:
        net = self.net
        patches = rearrange(net.conv1(image), "b d h w -> b (h w) d")
        class_token = net.class_embedding.expand(len(image), 1, -1)  # (B, 1, D)
        tokens = net.ln_pre(torch.cat([class_token, patches], 1) + net.positional_embedding)

        whole = self._encode(tokens)
        windows = []
        for scale in self.scales:
            windows.append(self._windows(tokens, self.get_buffer(f"tokens_{scale}")))
        return Embeddings(
            image=(whole[:, 0] @ net.proj).float(),
            patches=whole[:, 1:].float(),
            windows=tuple(windows),
        )

    def _windows(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Give the class token of each window that runs through on its own, (B, W, E)."""
        windows = tokens[:, chosen].flatten(0, 1)  # (B*W, 1 + scale^2, D)
        embedding = (self._encode(windows)[:, 0] @ self.net.proj).float()  # (B*W, E)
        return embedding.unflatten(0, (len(tokens), len(chosen)))

    def _encode(self, tokens: Tensor) -> Tensor:
        """Run the transformer on (N, L, D) tokens.

        From open_clip 3 on it takes the batch first, whatever its blocks prefer.
        """
        return self.net.ln_post(self.net.transformer(tokens))


class WinclipModel(DynamicBufferMixin):
    """CLIP's image tower, the two text vectors and what the references look like.

    Args:
        config: hyperparameters.
    """

    text: Tensor
    reference_patches: Tensor

    def __init__(self, config: WinclipConfig) -> None:
        super().__init__()
        self.tower = ClipImageTower(config)
        self.temperature = config.temperature
        self.register_buffer("text", torch.empty(0))  # (2, E) unit vectors, normal and anomalous
        self.register_buffer("reference_patches", torch.empty(0))  # (R, D) unit vectors

        for scale in config.scales:
            # (R, E) unit vectors.
            self.register_buffer(f"reference_windows_{scale}", torch.empty(0))
            patches = window_patches(GRID, scale)  # (W, scale^2)
            covers = torch.zeros(len(patches), GRID * GRID).scatter_(1, patches, 1.0)
            self.register_buffer(f"covers_{scale}", covers, persistent=False)

    def remember(self, seen: Sequence[Embeddings]) -> None:
        """Make normal images the references, given their embeddings in batches."""
        known = joined(seen)
        self.reference_patches = F.normalize(known.patches.flatten(0, 1), dim=1)
        for scale, windows in zip(self.tower.scales, known.windows, strict=True):
            unit = F.normalize(windows.flatten(0, 1), dim=1)  # (K*W, E)
            self.register_buffer(f"reference_windows_{scale}", unit)

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Compare images with the sentences, and with the references where there are any.

        Args:
            image: (B, 3, 240, 240), normalised as CLIP does.
            features: None, since the frozen stage is not cached: each image is seen once.

        Returns:
            Map (B, 1, 240, 240) and score (B,), both in [0, 1].
        """
        seen = self.tower(image)
        # Reciprocals of scores overflow in half precision.
        with torch.autocast(image.device.type, enabled=False):
            score = self.text_score(seen.image)
            patches = self.text_map(score, seen.windows)
            if len(self.reference_patches):
                # Section 4.3: the mean of what text and references say.
                visual = self.visual_map(seen)
                patches = (patches + visual) / 2
                score = (score + visual.amax(1)) / 2

        small = patches.view(-1, 1, GRID, GRID)  # (B, P) to (B, 1, g, g)
        size = (image.shape[2], image.shape[3])
        return Prediction(score, F.interpolate(small, size, mode="bilinear", align_corners=False))

    def text_score(self, embedding: Tensor) -> Tensor:
        """Give the probability that embeddings are of the anomalous sentences (equation 1).

        Args:
            embedding: (..., E).

        Returns:
            (...) in [0, 1], the rest to 1 being that of the normal sentences.
        """
        similarity = F.normalize(embedding, dim=-1) @ self.text.T
        return (similarity / self.temperature).softmax(-1)[..., 1]

    def text_map(self, score: Tensor, windows: Sequence[Tensor]) -> Tensor:
        """Take the harmonic mean of the image's own score and its windows' (section 4.2).

        Args:
            score: (B,) of the whole image.
            windows: one (B, W, E) per scale.

        Returns:
            (B, P), one for each patch.
        """
        maps = []
        for scale, of_scale in zip(self.tower.scales, windows, strict=True):
            maps.append(self._spread(scale, self.text_score(of_scale)))  # (B, P)
        own = score[:, None].expand_as(maps[0])
        levels = torch.stack([own, *maps])  # (scales + 1, B, P)
        return len(levels) / levels.clamp_min(_SMALLEST).reciprocal().sum(0)

    def visual_map(self, seen: Embeddings) -> Tensor:
        """Average how unlike the references patches and the windows around them are (equation 5).

        Returns:
            (B, P) in [0, 1].
        """
        maps = [association(seen.patches, self.reference_patches)]
        for scale, windows in zip(self.tower.scales, seen.windows, strict=True):
            unlike = association(windows, self.get_buffer(f"reference_windows_{scale}"))
            maps.append(self._spread(scale, unlike))
        return torch.stack(maps).mean(0)

    def _spread(self, scale: int, scores: Tensor) -> Tensor:
        return harmonic_map(scores, self.get_buffer(f"covers_{scale}"))


def choose_references(samples: Sequence[Any], k_shot: int, seed: int) -> Tensor:
    """Draw `k_shot` normal samples of each category, or all where it has fewer.

    Args:
        samples: have a dataset, a category and a label.
        k_shot: number per category.
        seed: of the draw.

    Returns:
        (K,) positions in `samples`.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for position, sample in enumerate(samples):
        if sample.label == 0:
            groups.setdefault((sample.dataset, sample.category), []).append(position)

    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for group in sorted(groups):
        positions = torch.tensor(groups[group])
        order = torch.randperm(len(positions), generator=generator)
        chosen.append(positions[order[:k_shot]])
    return torch.cat(chosen)


class WinclipTrainer(BaseTrainer):
    """Reads the sentences and picks the references; both stay in the checkpoint as vectors."""

    config: WinclipConfig
    model: WinclipModel
    method = METHODS["WinclipTrainer"]

    @classmethod
    def check_weight_file(cls, config: WinclipConfig, name: str, path: Path) -> None:
        with torch.device("meta"):
            wanted = build_clip().state_dict()
        read_clip_file(path, wanted)

    def build_model(self) -> WinclipModel:
        return WinclipModel(self.config)

    def on_fit_start(self) -> None:
        samples = self.loaders.train.samples
        categories = sorted({sample.category for sample in samples})
        # CLIP is read again, since its text tower is needed here only and else would take memory
        # to the end.
        clip = load_clip(self.model.tower.weight_file)
        self.model.text = text_embeddings(clip, self.product_names(categories), self.device)

        self._chosen = choose_references(samples, self.config.k_shot, self.seed).to(self.device)
        self._seen: list[Embeddings] = []

    def product_names(self, categories: Sequence[str]) -> list[str]:
        """Give the products in words, with a warning where nobody has chosen them."""
        given = self.config.class_names
        names = [class_name(category, given) for category in categories]
        for category, name in zip(categories, names, strict=True):
            if category not in given and category not in CLASS_NAMES:
                logger.warning(
                    "WinCLIP calls %s %r; if that is no plain English name of the product, "
                    "set model.class_names",
                    category,
                    name,
                )
        return names

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        image = batch.image[torch.isin(batch.index, self._chosen)]
        if len(image):
            self._seen.append(self.model.tower(image))
        return {}

    def on_train_end(self) -> None:
        if self._seen:
            self.model.remember(self._seen)
        self._seen = []
