"""PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization.

T. Defard et al., ICPR 2020.

Paper: https://arxiv.org/abs/2011.08785
Reference: https://github.com/xiahaifeng1995/PaDiM-Anomaly-Detection-Localization-master
(unofficial, facts only).

A frozen backbone gives features at three depths, which are put on one grid; at each position of it
the training images give a Gaussian. The map is the Mahalanobis distance to it, the score the
maximum of the smoothed map. Instead of all channels a random few are kept, which the paper found
better than PCA.

Memory: 4 * (h * w) * d ** 2 bytes, also in the checkpoint: 164 MB for ResNet-18 at 256 px, 5 GB for
Wide ResNet-50.

Differs from the paper: images are not cropped to 224 px unless `crop_size` says so. Differs from the
reference: the smoothing mirrors the border without the edge pixel, scipy's filter there repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.components.multi_variate_gaussian import MultiVariateGaussian
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.methods.padim import METHODS, PadimConfig
from adray.trainer import BaseTrainer, DividedImages, ImageBatches
from adray.types import Batch, Prediction


class PadimModel(nn.Module):
    """A frozen backbone and a Gaussian per position of its first tapped map.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels.
        by_tile: have a Gaussian for each place of a tile, at each of its positions.

    Raises:
        InputError: for more features than the layers have channels.
    """

    channels: Tensor
    tile_grid: Tensor
    """(2,) rows and columns of tiles, of a model for each place of a tile alone."""

    def __init__(self, config: PadimConfig, input_size: int, by_tile: bool = False) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        shapes = list(dryrun_find_featuremap_dims(self.extractor, input_size).values())
        total = sum(channels for channels, _ in shapes)
        if config.num_features > total:
            raise InputError(
                Sentence.of(
                    "fit num_features",
                    num_features=config.num_features,
                    total=total,
                    layers=str(list(config.layers)),
                )
            )

        _, self.grid = shapes[0]
        kept = torch.randperm(total)[: config.num_features].sort().values
        self.register_buffer("channels", kept)  # (d,)
        self.gaussian = MultiVariateGaussian(config.regularization)
        self.regularization = config.regularization
        self.by_tile = by_tile
        if by_tile:
            self.tiles = nn.ModuleDict()
            self.register_buffer("tile_grid", torch.zeros(2, dtype=torch.int64))
        self.blur = GaussianBlur2d(config.sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.extractor(image)

    def embed(self, features: tuple[Tensor, ...]) -> Tensor:
        """Put the kept channels of all layers on the first one's grid, (B, h * w, d)."""
        parts = []
        first = 0
        for feature in features:
            inside = (self.channels >= first) & (self.channels < first + feature.shape[1])
            chosen = self.channels[inside] - first
            first += feature.shape[1]

            # The channels are taken, and lie, last: so the distance needs no copy of what it
            # multiplies.
            kept = rearrange(feature, "b c h w -> b h w c").index_select(3, chosen)
            if chosen.numel():  # a layer may have none of the kept channels
                kept = rearrange(kept, "b h w d -> b d h w")
                parts.append(F.interpolate(kept, self.grid, mode="nearest"))
        return rearrange(torch.cat(parts, dim=1), "b d h w -> b (h w) d").float()

    def gaussian_of(self, tile: int) -> MultiVariateGaussian:
        """Give the Gaussians of a tile's place, new ones where it has none yet."""
        name = str(tile)
        if name not in self.tiles:
            self.tiles[name] = MultiVariateGaussian(self.regularization).to(self.channels.device)
        found = self.tiles[name]
        assert isinstance(found, MultiVariateGaussian)
        return found

    def distance(self, embedding: Tensor, tile: Tensor | None) -> Tensor:
        """Give the distances of (B, P, d) to the Gaussians, (B, P).

        Args:
            embedding: of whole images or of tiles.
            tile: (B,) number of each tile; not looked at by one model for all.

        Raises:
            InputError: for a tile at a place that no training image had.
        """
        if not self.by_tile:
            return self.gaussian.distance(embedding)
        assert tile is not None, "a model for each place of a tile is given tiles"
        found = embedding.new_zeros(embedding.shape[:2])
        for number in tile.unique().tolist():
            if str(number) not in self.tiles:
                raise InputError(Sentence.of("fit tile place", number=number))
            rows = tile == number
            found[rows] = self.gaussian_of(number).distance(embedding[rows])
        return found

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Make the Gaussians of each stored place, then load as torch does."""
        start = f"{prefix}tiles."
        for key in state_dict:
            if self.by_tile and key.startswith(start):
                self.gaussian_of(int(key.removeprefix(start).partition(".")[0]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self,
        image: Tensor,
        features: tuple[Tensor, ...] | None = None,
        tile: Tensor | None = None,
    ) -> Prediction:
        """Measure the distance to the Gaussians (equation 2).

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.
            tile: see `distance`.

        Returns:
            The smoothed distances (B, 1, H, W), at least 0, and their maximum per image, (B,).
        """
        embedding = self.embed(self.features(image) if features is None else features)

        # A covariance is of no use in half precision.
        with torch.autocast(image.device.type, enabled=False):
            distance = self.distance(embedding, tile)  # (B, h*w)
        height, width = self.grid
        distance = rearrange(distance, "b (h w) -> b 1 h w", h=height, w=width)

        anomaly_map = self.blur.enlarge(distance, (image.shape[2], image.shape[3]))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class PadimTrainer(BaseTrainer):
    """Sees the training images once and keeps only sums."""

    config: PadimConfig
    model: PadimModel
    method = METHODS["PadimTrainer"]

    def build_model(self) -> PadimModel:
        by_tile = self.train_config.tile_model == "position"
        return PadimModel(self.config, self.train_config.input_size, by_tile)

    @property
    def tile_grid(self) -> tuple[int, int] | None:
        if not self.model.by_tile:
            return None
        rows, columns = self.model.tile_grid.tolist()
        return rows, columns

    @property
    def first_tile(self) -> int:
        return int(next(iter(self.model.tiles))) if self.model.by_tile else 0

    def on_fit_start(self) -> None:
        if not self.model.by_tile:
            return
        shapes = self.loaders.test.grid_shapes()
        if len(shapes) > 1:
            raise InputError(Sentence.of("fit tile grid", shapes=str(sorted(shapes))))
        self.model.tile_grid = torch.tensor(next(iter(shapes)), device=self.device)

    def on_train_start(self) -> None:
        self.model.gaussian.reset()
        if self.model.by_tile:
            self.model.tiles.clear()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        embedding = self.model.embed(batch.features)
        if not self.model.by_tile:
            self.model.gaussian.update(embedding)
            return {}

        assert batch.tile is not None, "a model for each place of a tile is given tiles"
        for number in batch.tile.unique().tolist():
            self.model.gaussian_of(number).update(embedding[batch.tile == number])
        return {}

    def validation_step(self, batch: Batch) -> Prediction:
        return self.model(batch.image, batch.features, batch.tile)

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        gaussian = self.model.gaussian
        gaussian.resume(count)
        for batch in added:
            gaussian.update(self._embedded([batch]))
        for batch in removed:
            gaussian.remove(self._embedded([batch]))
        gaussian.fit()

    def leave_out(
        self, images: DividedImages, members: Sequence[NDArray[np.int64]]
    ) -> Iterator[None]:
        gaussian = self.model.gaussian
        gaussian.reset()
        for batch in images:
            gaussian.update(self._embedded([batch]))
        return gaussian.leave_out(self._embedded(images.part(places)) for places in members)

    def _embedded(self, batches: Iterable[Batch]) -> Tensor:
        """Embed the features of some batches, (N, h * w, d)."""
        parts = []
        for batch in batches:
            assert batch.features is not None, "images come with their features"
            parts.append(self.model.embed(batch.features))
        return torch.cat(parts)

    def on_train_end(self) -> None:
        if len(self.loaders.train.samples) < 2:
            raise InputError(Sentence.of("fit padim few"))
        if not self.model.by_tile:
            self.model.gaussian.fit()
            return
        for number in sorted({sample.tile for sample in self.loaders.train.samples}):
            self.model.gaussian_of(number).fit()
