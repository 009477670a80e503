"""Score each training normal by a model that was fitted without it: all of them calibrate verdicts.

The images are dealt into folds (`adray.data.folds`). Each fold is scored by the method fitted on the
others, and the model that is kept is fitted on all. Only methods of one pass over frozen features
can: the features are computed once, and each fit takes them from memory.

Where the mathematics allows it, one fit serves all folds (`BaseTrainer.leave_out`). From PaDiM's
covariances a fold's images are taken away exactly. Of PatchCore's bank what was chosen of the
others' patches stays, and the farthest of these fill it up to its size. Without that its thresholds
are far too high: on *screw* at 64 px no new normal rang where 20 % was asked.

The scores are pooled and used as those of held-out normals are. That is approximate: the model that
is kept has seen more images than those that calibrate it, and a new normal scores mostly lower by it
than by them. Nothing is proven of the pooled scores; the related jackknife+ and CV+ keep twice the
rate in the worst case and about the rate in practice (R. Barber et al., "Predictive inference with
the jackknife+", 2021; V. Vovk, "Cross-conformal predictors", 2015). Chapter 8 has what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adray.scores import Scores
from adray.types import Batch, PixelRule, Roi


class KeptImages:
    """Some of the training images, by their features alone.

    Their pixels read zero, since nobody looks at them.

    Args:
        train: loader of all training images, all of them normal.
        source: keeps their features.
        positions: (n,) of those that are meant, in the order in which they come.
        shape: height and width of the images in pixels.
    """

    def __init__(
        self, train: Any, source: Any, positions: NDArray[np.int64], shape: tuple[int, int]
    ) -> None:
        self.samples = [train.samples[i] for i in positions]
        self.has_mask = np.ones(len(positions), bool)
        self.batch_size = train.batch_size
        self._source = source
        self._train = train
        self._positions = torch.from_numpy(positions).to(source.device)
        # One number in memory, whatever the size.
        self._blank = torch.zeros(1, 1, 1, 1, device=source.device).expand(1, 3, *shape)

    def __len__(self) -> int:
        """Count the batches."""
        return -(-len(self.samples) // self.batch_size)

    def part(self, places: NDArray[np.int64]) -> KeptImages:
        """Give those at (n,) places among these, in that order."""
        positions = self._positions.cpu().numpy()[places]
        height, width = self._blank.shape[2:]
        return KeptImages(self._train, self._source, positions, (height, width))

    def set_epoch(self, epoch: int) -> None:
        """Leave the order as it is, since there is one pass."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, each with its features."""
        for places in self._positions.split(self.batch_size):
            yield Batch(
                image=self._blank.expand(len(places), -1, -1, -1),
                label=torch.zeros_like(places),
                mask=None,
                index=places,
                features=self._source.kept(places),
                inside=self._train.inside(places),
            )


@dataclass(frozen=True)
class _Loaders:
    """The loaders of one fit on some of the images."""

    train: KeptImages
    """These images."""
    pixels: PixelRule
    """How the numbers in image files became 8 bits."""
    roi: Roi | None
    """The part of images that counts; None for all of it."""
    valid: None = None
    """There are none, as all that is left out is scored afterwards."""
    test: None = None
    """The test set is not looked at."""


class Refit:
    """Fits a method again and again, on some training images each time.

    The features of all of them are computed once, when it is made.

    Args:
        trainer: of a method that `crosses`.
        loaders: whose training images are all normal.
    """

    def __init__(self, trainer: Any, loaders: Any) -> None:
        self.trainer = trainer
        self.loaders = loaders
        self.source = trainer.keep_features(loaders)
        """Keeps the features."""

    def images(self, positions: NDArray[np.int64]) -> KeptImages:
        """Give some of the training images, in the order of their (n,) positions."""
        shape = self.trainer.train_config.input_shape
        return KeptImages(self.loaders.train, self.source, positions, shape)

    def fit(self, positions: NDArray[np.int64]) -> None:
        """Fit the method anew on the training images at (n,) positions."""
        self.trainer.fit(_Loaders(self.images(positions), self.loaders.pixels, self.loaders.roi))

    def scores_by_fold(self, positions: NDArray[np.int64], fold: NDArray[np.int64]) -> Scores:
        """Score training images, each by the method fitted on the other folds.

        Args:
            positions: (n,) of the images.
            fold: (n,) of each of them, from 0; two or more.

        Returns:
            In the order of `positions`, with maps where the method gives some.
        """
        # Folds of a size in a row, which some methods take out together.
        numbers = np.argsort(np.bincount(fold), kind="stable")
        members = [np.flatnonzero(fold == number) for number in numbers]
        parts = []
        for images in self._left_out(positions, members):
            parts.append(self.trainer.predict(images))

        # Each image goes back to its place.
        back = np.argsort(np.concatenate(members))
        return Scores(
            pred_score=np.concatenate([part.pred_score for part in parts])[back],
            label=np.zeros(len(positions), np.int64),
            anomaly_map=_joined([part.anomaly_map for part in parts], back),
            mask=None,
            has_mask=np.ones(len(positions), bool),
            inside=_joined([part.inside for part in parts], back),
        )

    def _left_out(
        self, positions: NDArray[np.int64], members: Sequence[NDArray[np.int64]]
    ) -> Iterator[KeptImages]:
        """Fit the method without one fold after the other, and yield the images of each.

        Args:
            positions: (n,) of all images.
            members: where in `positions` those of each fold are.
        """
        images = self.images(positions)
        steps = self.trainer.leave_out(images, members) or self._fit_without(positions, members)
        for _, places in zip(steps, members, strict=True):
            yield images.part(places)

    def _fit_without(
        self, positions: NDArray[np.int64], members: Sequence[NDArray[np.int64]]
    ) -> Iterator[None]:
        """Fit the method anew without one fold after the other, see `_left_out`."""
        for places in members:
            self.fit(np.delete(positions, places))
            yield


def _joined(parts: Sequence[NDArray | None], order: NDArray[np.int64]) -> NDArray | None:
    """Join what each part has, in another order. None where none has it."""
    present = [part for part in parts if part is not None]
    return np.concatenate(present)[order] if present else None


def cross_scores(trainer: Any, loaders: Any, fold: NDArray[np.int64]) -> Scores:
    """Score the training images, each by a model that was fitted without its fold.

    Args:
        trainer: of a method that `crosses`. Features stay for its next `fit` on these loaders, which
            makes the model that is kept.
        loaders: whose training images are all normal.
        fold: (N,) of each training image, from 0; two or more.

    Returns:
        In the order of the training images, with maps where the method gives some.

    Raises:
        InputError: where a fit finds too little in the other folds, or a score is not finite.
    """
    refit = Refit(trainer, loaders)
    # As in the training, whose order decides where a coreset starts.
    order = loaders.train.order()
    shuffled = refit.scores_by_fold(order, fold[order])
    trainer.source = refit.source

    scores = shuffled.subset(np.argsort(order))
    scores.check()
    return scores
