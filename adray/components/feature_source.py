"""Where the features of a batch come from: memory, a file that trials share, or the backbone.

A model with a frozen stage has a method `features(image)`, which gives a tuple of tensors, (B, ...)
each. Whoever wants the features of a batch asks a `FeatureSource`, and need not know how they came
to be:

- *memory* (`feature_cache`): a training of several epochs keeps what it has seen, so that no
  backbone runs from the second epoch on;
- *a shared file* (`shared_features`): trials on one machine whose models read the maps of the same
  frozen network, each perhaps other layers of it, share one pass over the images. Such a model has
  the network as `extractor`, and where it keeps less than the maps, a method `condense(maps)` that
  makes its features of them;
- *the backbone*: everything else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adray.cache_folder import SharedWork
from adray.components.device import autocast
from adray.components.feature_cache import FeatureCache
from adray.components.feature_folder import feature_folder
from adray.components.shared_features import SharedFeatures, Stage
from adray.config import TrainConfig
from adray.settings import get_globals
from adray.types import Batch, Sharing


class FeatureSource:
    """Gives the features of one model's frozen stage.

    A fresh one always runs the backbone; `share` and `keep` let it look elsewhere first.

    Args:
        model: the network, whose frozen stage is `model.features` if it has one.
        train_config: says how images are normalised and in which precision the network runs.
        device: where it runs.
        seed: from which its weights were drawn where they are random.
    """

    def __init__(
        self, model: nn.Module, train_config: TrainConfig, device: torch.device, seed: int
    ) -> None:
        self._model: Any = model  # which of the three methods it has, no type says
        self.train_config = train_config
        self.device = device
        self.seed = seed
        self.shared: SharedFeatures | None = None
        """The files that are read, or None."""
        self._train: Any = None
        self._cache: FeatureCache | None = None

    # Before a training

    def share(self, loaders: Any, sharing: Sharing | None) -> None:
        """Open the files that hold the maps of these images, and build those that others want too.

        Args:
            loaders: of the training, validation and test images.
            sharing: what other trials want of the same network; None reads what is there and writes
                nothing.
        """
        self._train = loaders.train
        folder = feature_folder(get_globals())
        has_names = hasattr(loaders.train, "content_keys")
        # A trial by itself only reads, so nobody looks where nothing was ever written.
        is_empty = sharing is None and not folder.path.is_dir()
        if not has_names or not folder.limit or is_empty:
            return

        config = self.train_config
        stage = Stage(
            self._model.extractor,
            config.normalize,
            config.precision,
            self.seed,
            self.device,
            config.eval_batch_size or config.batch_size,
        )
        self.shared = SharedFeatures(stage, folder, sharing)
        for loader in (loaders.train, loaders.valid, loaders.test):
            if loader is not None:
                self.shared.open(loader)

    def keep(self, train: Any) -> None:
        """Keep the features of all training images from their first pass on, within the budget.

        Args:
            train: the training loader.
        """
        if not hasattr(self._model, "features"):
            return
        settings = get_globals()
        # What lies in a shared file needs no second one.
        in_files = self.shared is not None and self.shared.covers(train)
        folder = None if in_files else settings.cache_dir
        budget = settings.feature_gb * 1e9
        self._cache = FeatureCache(len(train.samples), self.device, budget, folder)
        self._train = train

    def keeps(self, train: Any) -> bool:
        """Tell whether the features of a training loader's images are kept already."""
        return self._cache is not None and self._train is train

    def drop(self) -> None:
        """Give up what is kept in memory, after the training."""
        self._cache = None

    # While batches come

    def for_training(self, batch: Batch) -> tuple[Tensor, ...] | None:
        """Give the features of a batch of training images.

        A model without a frozen stage has none. The frozen stage runs without gradient, in the
        precision of the caller.
        """
        if not hasattr(self._model, "features"):
            return None
        features = self._cache.get(batch.index) if self._cache is not None else None
        if features is not None:
            return features

        features = self.for_prediction(self._train, batch)
        if features is None:
            with torch.no_grad():
                features = self._model.features(batch.image)
        if self._cache is not None:
            self._cache.put(batch.index, features)
        return features

    def kept(self, index: Tensor) -> tuple[Tensor, ...]:
        """Give the features of training images at `index` (B,), all of which were seen before.

        Raises:
            RuntimeError: where a file that held them was damaged meanwhile.
        """
        features = None if self._cache is None else self._cache.get(index)
        if features is None:
            features = self._read(self._train, index)
        if features is None:
            raise RuntimeError("the features of the training images are lost; run the trial again")
        return features

    @torch.no_grad()
    def for_prediction(self, loader: Any, batch: Batch) -> tuple[Tensor, ...] | None:
        """Read the features of a batch of `loader` from shared files.

        None leaves them to the model, which then runs its backbone in the precision of the
        training.
        """
        return self._read(loader, batch.index)

    def _read(self, loader: Any, index: Tensor) -> tuple[Tensor, ...] | None:
        """Read the features of the images at `index` (B,) from shared files, None without them."""
        maps = self.shared.get(loader, index) if self.shared is not None else None
        if maps is None or not hasattr(self._model, "condense"):
            return maps
        with autocast(self.device, self.train_config.precision):
            return self._model.condense(maps)

    @property
    def work(self) -> list[SharedWork]:
        """List the work that trials share: what this one used of it, and what it made."""
        return [] if self.shared is None else self.shared.work
