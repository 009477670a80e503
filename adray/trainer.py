"""The loop around every model: epochs, evaluation, early stop.

A model's trainer gives `build_model`, `train_step` and, where it learns by gradient,
`configure_optimizer`. Mode switching, timing, history, schedule and early stop live here, around
the hooks, so nobody has to call `super()`. Where features come from is
`adray.components.feature_source`, what is saved is `adray.checkpoints`. The trainer does not know
Ray.
"""

from __future__ import annotations

import logging
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adray.cache_folder import SharedWork
from adray.checkpoints import load_checkpoint, load_progress, save_checkpoint, save_progress
from adray.components.device import autocast, move_to
from adray.components.feature_extractor import check_backbone_file
from adray.components.feature_source import FeatureSource
from adray.components.inside import highest_inside, with_lowest_outside
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import Domain
from adray.language.sentence import Sentence
from adray.method import Method
from adray.metrics import image_metrics
from adray.progress_lines import watched
from adray.scores import ScoreGatherer, Scores
from adray.thresholds import FALSE_ALARMS, Threshold, compute_thresholds, confusions
from adray.types import BY_TYPE, Batch, Json, PixelRule, Prediction, Roi, Sharing

logger = logging.getLogger(__name__)

_FINITE_CHECK_STEPS = 50
"""Steps between two looks at the losses; at each look the device is waited for."""

Report = Callable[[int, dict[str, float]], None]


class BatchLoader(Protocol):
    """What the trainer needs of a loader; `adray.data.loader.Loader` is one."""

    samples: list[Any]
    has_mask: np.ndarray

    def __len__(self) -> int:
        """Count the batches."""

    def __iter__(self) -> Any:
        """Yield `Batch`."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""


class ImageBatches(Protocol):
    """Images that are added to a trained model, or taken from it."""

    samples: Sequence[Any]

    def __len__(self) -> int:
        """Count the batches."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches with their features; an index is a position in `samples`."""


class DividedImages(ImageBatches, Protocol):
    """Images of which some can be had by themselves."""

    def part(self, places: NDArray[np.int64]) -> ImageBatches:
        """Give the images at (n,) places, in their order."""


class LoaderSet(Protocol):
    """The three loaders of a trial."""

    @property
    def train(self) -> Any:
        """Give the training images, shuffled by epoch."""

    @property
    def valid(self) -> Any:
        """Give the held-out normal training images, or None."""

    @property
    def test(self) -> Any:
        """Give the test images, in a fixed order."""

    @property
    def pixels(self) -> PixelRule:
        """Give how the numbers in image files became 8 bits."""

    @property
    def roi(self) -> Roi | None:
        """Give the part of images that counts, None for all of it."""

    def auxiliary(self, name: str, img_size: int, crop_size: int | None = None) -> Any:
        """Give images that are no product, (B, 3, S, S) uint8 for an array (B,) of positions."""


class EarlyStopper:
    """Says when to stop by a value that should fall (`min`) or rise (`max`).

    Args:
        mode: ``"min"`` or ``"max"``.
        patience: stop after this many values in a row without an improvement; None never stops for
            this.
        target: stop once the value reaches this; None never stops for this.
        min_delta: smaller changes are no improvement.

    Raises:
        InputError: for another mode or a patience below 1.
    """

    def __init__(
        self,
        mode: str = "min",
        patience: int | None = None,
        target: float | None = None,
        min_delta: float = 0.0,
    ) -> None:
        if mode not in ("min", "max"):
            raise InputError(Sentence.of("trainer stopper mode", mode=repr(mode)))
        if patience is not None and patience < 1:
            raise InputError(Sentence.of("trainer stopper patience", patience=patience))
        self.sign = 1.0 if mode == "min" else -1.0
        self.patience = patience
        self.target = target
        self.min_delta = min_delta
        self.best = math.inf
        self.waited = 0

    def __call__(self, value: float) -> bool:
        """Take the next value and tell whether to stop, where NaN is no improvement."""
        signed = self.sign * value  # what should rise is turned into what should fall
        if signed < self.best - self.min_delta:
            self.best = signed
            self.waited = 0
        else:
            self.waited += 1

        if self.target is not None and signed <= self.sign * self.target:
            return True
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, float]:
        """Give what a progress checkpoint keeps."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from `state_dict()`."""
        self.best = state["best"]
        self.waited = int(state["waited"])


class BaseTrainer(ABC):
    """Trains, evaluates, saves and loads one configuration.

    Args:
        config: the model's hyperparameters, an instance of `config_class`.
        train_config: epochs, sizes, normalisation, hold-out.
        device: where the model lives.
        seed: of initialisation, augmentation and everything else random in the model.
    """

    method: ClassVar[Method]
    """Where the values below stand for a model of this package: a plan reads them there without
    torch. A plug-in leaves it out and sets those that it needs."""
    config_class: ClassVar[type]
    checkpoint_version: ClassVar[int] = 1
    """Raised by hand when the network changes such that weights of before would be read but score
    otherwise, or not fit; checkpoints of other versions are refused."""
    single_pass: ClassVar[bool] = False
    """True for methods that see the training images once and learn nothing by gradient."""
    supervised: ClassVar[bool] = False
    """True for methods that learn from labelled defects: `loaders.train` then holds them, with
    label and mask, and data without any are refused; for all others they are left out."""
    min_normals: ClassVar[int] = 1
    """Normal training images from which the method works at all, besides those held out."""
    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    """How the model's maps lie on a CPU, see `move_to`."""
    shares_features: ClassVar[bool] = False
    """True where `model.features` takes nothing of an image but the maps of `model.extractor`, a
    frozen network of the config's backbone, layers and weights, through `model.condense` where
    there is one. Trials then share these maps, see `adray.components.feature_source`. Models with a
    long training keep out: it makes other scores of the last bit of a map, which depends on the
    batch that it was computed in."""
    crosses: ClassVar[bool] = False
    """True for methods of one pass whose `train_step` and model take nothing of an image but its
    features and its size. Fits without some of the images then cost no pass of the frozen stage,
    so that all training normals can calibrate verdicts, see `adray.cross`."""
    updates: ClassVar[str] = ""
    """How `update` adds images to a trained model: ``exact`` as a new fit on all of them, which also
    takes images away. ``coreset`` for a memory bank of the old one and the new patches. Empty where
    it cannot."""
    by_tile: ClassVar[bool] = False
    """True for methods that can have a model for each place of a tile (`TrainConfig.tile_model`).
    Their `tile_grid` then says which there are."""
    any_aspect: ClassVar[bool] = False
    """True for methods that are bound to no grid of places. They take images that are no squares
    (`TrainConfig.aspect`), and know their size by `TrainConfig.input_shape`."""
    train_search: ClassVar[Mapping[str, Domain]] = {}
    """What a search tries of `TrainConfig` by default, by the name of the field. What it tries of
    the model stands at the fields of `config_class`."""
    without_auxiliary: ClassVar[str] = ""
    """What is done where the images that `config.auxiliary` names are missing; empty where they are
    needed."""

    def __init_subclass__(cls) -> None:
        """Give a class the values of its own `method`."""
        if "method" not in vars(cls):
            return
        for name, value in vars(cls.method).items():
            setattr(cls, name, value)
        # A function in a class would be given the trainer too.
        setattr(cls, "check_inputs", staticmethod(cls.method.check_inputs))  # noqa: B010
        setattr(cls, "fit_bytes", staticmethod(cls.method.fit_bytes))  # noqa: B010

    def __init__(
        self,
        config: Any,
        train_config: TrainConfig,
        device: str | torch.device = "cpu",
        seed: int = 42,
    ) -> None:
        if not isinstance(config, self.config_class):
            raise InputError(
                Sentence.of(
                    "trainer config",
                    value=type(self).__name__,
                    config_class=self.config_class.__name__,
                    config=type(config).__name__,
                )
            )
        self.config = config
        self.train_config = train_config
        self.device = torch.device(device)
        self.seed = seed
        self.check_inputs(config, train_config)

        # Building the model draws its first weights.
        seed_everything(seed)
        self.model = self.build_model()
        move_to(self.device, self.model, self.memory_format)
        self.source = self._new_source()
        """Gives the frozen stage's features."""

        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: Any = None
        use_scaler = train_config.precision == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=use_scaler)
        self.stopper = EarlyStopper("min", train_config.patience)
        self.history: list[dict[str, float]] = []
        self.epoch = 0
        self.step = 0
        self.num_epochs = 0
        self.total_steps = 0
        self.progress_seconds = 180.0
        """How long a training goes on until it leaves its state again."""
        self.loaders: Any = None
        self.pixels = BY_TYPE
        """How the numbers in image files became 8 bits, as the loaders of the training say."""
        self.roi: Roi | None = None
        """The part of images that counts, as the loaders of the training say; None for all."""
        self.calibration: tuple[float, ...] = ()
        """Scores of held-out normals, by which verdicts are made; empty without any."""
        self.calibration_peaks: tuple[float, ...] = ()
        """Highest value of the map of each of them, by which regions are found; empty without
        maps."""
        self.statistics: dict[str, Tensor] = {}
        """What `update` needs of the training images beyond the model; `.pth` files keep it."""
        self.false_alarms = FALSE_ALARMS
        """Part of new normals that verdicts may report, as it was asked for."""
        self.tried = 1
        """Number of trials of which the calibration normals chose this one."""
        self.sharing: Sharing | None = None
        """What other trials of a sweep want of the frozen stage; None where this one is by
        itself."""

    # Asked before anything starts, by the plan of a sweep too

    @classmethod
    def check_inputs(cls, config: Any, train_config: TrainConfig) -> list[str]:
        """Look for what cannot work together, by default nothing.

        Returns:
            Remarks for the plan, one sentence each.

        Raises:
            InputError: for sizes, normalisations and so on that the model cannot take.
        """
        return []

    @classmethod
    def fit_bytes(cls, config: Any, train_config: TrainConfig, images: int) -> int:
        """Count the host memory in bytes that what it keeps of training images takes while fitting.

        Besides the program and the network. By default nothing.
        """
        return 0

    @classmethod
    def check_weight_file(cls, config: Any, name: str, path: Path) -> None:
        """Open a weight file of `config.weight_files` and look whether the model can use it.

        By default it is that of a ResNet tapped at `config.layers`.

        Raises:
            InputError: for a broken file, and for another network's.
        """
        check_backbone_file(name, config.layers, path)

    # What a model gives

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Build the network on the CPU, where the random generators are seeded already."""

    @abstractmethod
    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step: forward, loss, `self.optimize(loss)`.

        Where the model has a frozen stage, `batch.features` holds what
        `model.features(batch.image)` gives.

        Returns:
            Scalars for the history, detached and still on the device; ``"loss"`` is checked to be
            finite.
        """

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any] | None:
        """Make the optimiser and a schedule for `total_steps`, by default none.

        Returns:
            The optimiser and a schedule that counts steps, or None for no schedule; None where
            nothing is learnt.
        """
        return None

    def augment(self, batch: Batch) -> Batch:
        """Change a training batch before the frozen stage, whose features are then not cached."""
        return batch

    @property
    def augments(self) -> bool:
        """Tell whether `augment` changes anything, so that features are computed in each epoch."""
        return type(self).augment is not BaseTrainer.augment

    def validation_step(self, batch: Batch) -> Prediction:
        """Predict a batch in eval mode without gradient."""
        return self.model(batch.image, batch.features)

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        """Change a trained model as if images had been there, or had not, from the start.

        Args:
            count: images that it was trained on.
            added: normal images, perhaps none.
            removed: images that it was trained on, perhaps none; always none where `updates` is
                ``coreset``.

        Raises:
            InputError: for a model that lacks what an update needs, and for images that it was not
                trained on.
        """
        raise NotImplementedError(f"{type(self).__name__}.updates is empty")

    def leave_out(
        self, images: DividedImages, members: Sequence[NDArray[np.int64]]
    ) -> Iterator[None] | None:
        """Fit the model without a fold of some images, for one fold after the other.

        For methods that can do so in less time than a fit for each fold takes. At the end the model
        is that of no images.

        Args:
            images: normal training images, in the order in which they would train.
            members: places of each fold's images among them, folds of a size in a row.

        Returns:
            What takes the next fold out at each step; None where only fits anew can, by default.
        """
        return None

    @property
    def tile_grid(self) -> tuple[int, int] | None:
        """Give the rows and columns of tiles that the model knows, None where any are right."""
        return None

    @property
    def first_tile(self) -> int:
        """Give the number of a tile that the model knows, for those who try it on any image."""
        return 0

    def notes(self) -> list[str]:
        """Add sentences about the model to `result.json`, by default none."""
        return []

    # Hooks, all empty: what a model does at these times

    def on_fit_start(self) -> None:
        """Act before the first epoch, with `self.loaders` set."""

    def on_fit_end(self, weight_path: Path | None) -> None:
        """Act after the last epoch, before the weights go to `weight_path`."""

    def on_epoch_start(self) -> None:
        """Act before each epoch."""

    def on_epoch_end(self) -> None:
        """Act after each epoch."""

    def on_train_start(self) -> None:
        """Act before the training steps of an epoch, in train mode."""

    def on_train_end(self) -> None:
        """Act after the training steps of an epoch, where one-pass models fit."""

    def on_validation_start(self) -> None:
        """Act before validation, in eval mode."""

    def on_validation_end(self) -> None:
        """Act after validation."""

    # The loop

    def fit(
        self,
        loaders: LoaderSet,
        report: Report | None = None,
        *,
        weight_path: str | Path | None = None,
        progress_path: str | Path | None = None,
    ) -> list[dict[str, float]]:
        """Train on `loaders.train`, watching `loaders.valid` (held-out normals, may be None).

        Args:
            loaders: training, validation and test loader; the test loader is not touched.
            report: called with the step and the epoch's values after each epoch.
            weight_path: where the trained model is saved, if anywhere.
            progress_path: where a long training leaves its state every few minutes, and from which
                it continues.

        Returns:
            The history, one row per epoch.

        Raises:
            FloatingPointError: for a loss that is not finite, with the step, and for a trained
                model that is not, which is not saved.
        """
        weight_path = Path(weight_path) if weight_path else None
        progress_path = Path(progress_path) if progress_path else None
        self.loaders = loaders
        self.pixels = loaders.pixels
        self.roi = loaders.roi
        self._begin(len(loaders.train))
        # After the seeds: a training that continues has random states of its own.
        if progress_path is not None and progress_path.is_file():
            load_progress(progress_path, self)
        self._open_source(loaders)

        self.on_fit_start()
        self._run_epochs(report, progress_path)
        self.model.eval()
        self.source.drop()
        self.on_fit_end(weight_path)
        self.check_model()
        if weight_path is not None:
            self.save_model(weight_path)
        return self.history

    def _begin(self, steps_per_epoch: int) -> None:
        """Count the steps, and start random numbers, optimiser and schedule anew."""
        if steps_per_epoch < 1:
            raise InputError(Sentence.of("trainer no batch"))
        config = self.train_config
        self.total_steps = config.num_epochs * steps_per_epoch
        if self.single_pass:
            self.total_steps = steps_per_epoch
        elif config.max_steps is not None:
            self.total_steps = config.max_steps
        self.num_epochs = math.ceil(self.total_steps / steps_per_epoch)

        self.history = []
        self.epoch = 0
        self.step = 0
        seed_everything(self.seed)
        configured = self.configure_optimizer(self.total_steps)
        self.optimizer, self.scheduler = (None, None) if configured is None else configured

    def _run_epochs(self, report: Report | None, progress_path: Path | None) -> None:
        """Run what is left of the epochs, until the early stop."""
        saved = time.monotonic()
        while self.epoch < self.num_epochs:
            stop = self._run_epoch(report)
            if stop:
                break
            if progress_path and time.monotonic() - saved > self.progress_seconds:
                self._save_progress(progress_path)
                saved = time.monotonic()

    def _save_progress(self, path: Path) -> None:
        """Write the whole state of the training, unless the model is not finite."""
        self.check_model()
        save_progress(path, self)

    def _run_epoch(self, report: Report | None) -> bool:
        """Train and validate once, and tell whether to stop."""
        started = time.monotonic()
        self.on_epoch_start()
        row = self.train_epoch(self.loaders.train)
        if self.loaders.valid is not None and not self.single_pass:
            row |= self.validation_epoch(self.loaders.valid)
        self.epoch += 1
        self.on_epoch_end()

        row |= {"epoch": self.epoch, "step": self.step, "seconds": time.monotonic() - started}
        if self.optimizer is not None:
            row["lr"] = self.optimizer.param_groups[0]["lr"]
        self.history.append(row)
        logger.info("epoch %d/%d  %s", self.epoch, self.num_epochs, _words(row))
        if report is not None:
            report(self.step, row)

        # Without held-out images the loss is watched.
        watched = row.get("valid_score", row.get("loss"))
        return watched is not None and self.stopper(watched)

    def train_epoch(self, loader: BatchLoader) -> dict[str, float]:
        """Pass over `loader` once, or take what is left of the step budget.

        Returns:
            The mean of each value that `train_step` gave.
        """
        self.model.train()
        self.on_train_start()
        loader.set_epoch(self.epoch)
        values: list[dict[str, Tensor]] = []
        # Of several epochs each has a line of its own.
        for batch in watched(loader, "features") if self.single_pass else loader:
            with self.autocast():
                values.append(self.train_step(self.with_features(self.augment(batch))))
            self.step += 1

            if len(values) % _FINITE_CHECK_STEPS == 0:
                self._check_finite(values[-_FINITE_CHECK_STEPS:])
            if self.total_steps and self.step >= self.total_steps:
                break

        # The steps since the last look.
        self._check_finite(values[-(len(values) % _FINITE_CHECK_STEPS) :])
        self.on_train_end()
        return _means(values)

    def _check_finite(self, values: Sequence[Mapping[str, Tensor]]) -> None:
        """Refuse losses of the last steps that are not finite, looking at all of them together."""
        losses = [row["loss"].detach().float() for row in values if "loss" in row]
        if not losses:
            return
        finite = torch.isfinite(torch.stack(losses)).tolist()
        if not all(finite):
            first = finite.index(False)
            step = self.step - len(losses) + first + 1
            raise FloatingPointError(
                f"the loss is {float(losses[first])} at step {step}; lower lr, or use precision float32"
            )

    def check_model(self) -> None:
        """Refuse a model that holds what is no number, before it is saved or scores anything."""
        for name, values in self.model.state_dict().items():
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                raise FloatingPointError(
                    f"the model holds NaN or infinity in {name} after step {self.step}; lower lr, "
                    "use precision float32, and look for training images that are all the same"
                )

    def optimize(self, loss: Tensor, clip_norm: float | None = None) -> None:
        """Take one step backward: gradient, clip, optimiser and schedule.

        Args:
            loss: scalar.
            clip_norm: largest norm of all gradients together, or None.
        """
        assert self.optimizer is not None, "configure_optimizer gave none"
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()

        if clip_norm is not None:
            # The norm is that of the true gradients, not of those scaled for float16.
            self.scaler.unscale_(self.optimizer)
            learnt: list[Tensor] = []
            for group in self.optimizer.param_groups:
                learnt += group["params"]
            nn.utils.clip_grad_norm_(learnt, clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()

    def validation_epoch(self, loader: BatchLoader) -> dict[str, float]:
        """Score `loader` in eval mode.

        Returns:
            ``valid_score``, the mean of `pred_score`, and where both labels occur ``image_auroc``
            and ``image_aupr``.
        """
        self.model.eval()
        self.on_validation_start()
        scores = self.predict(loader, keep_maps=False)
        self.on_validation_end()

        row = {"valid_score": float(scores.pred_score.astype(np.float64).mean())}
        if len(np.unique(scores.label)) == 2:
            metrics = image_metrics(scores.pred_score, scores.label)
            row |= {name: value for name, value in metrics.items() if value is not None}
        return row

    @torch.no_grad()
    def predict(self, loader: BatchLoader, keep_maps: bool = True) -> Scores:
        """Score every image of `loader`, in its order.

        Args:
            loader: in evaluation order.
            keep_maps: also gather anomaly maps and masks.
        """
        # Images in tiles are put together by their loader.
        tiles = getattr(loader, "tiles", loader)
        gatherer = ScoreGatherer(keep_maps)
        if tiles is not loader:
            gatherer = loader.gatherer(keep_maps)  # type: ignore[attr-defined]
        for batch in watched(tiles, "scoring"):
            if batch.features is None:
                features = self.source.for_prediction(tiles, batch)
                batch = replace(batch, features=features)
            prediction = self.predict_batch(batch)
            gatherer.add(batch, prediction)
        return gatherer.scores(loader.has_mask)

    @torch.no_grad()
    def predict_batch(self, batch: Batch) -> Prediction:
        """Score one batch in eval mode and in the precision of the training."""
        self.model.eval()
        with self.autocast():
            prediction = self.validation_step(batch)
        if batch.inside is None:
            return prediction
        return self.only_inside(prediction, batch.inside)

    def only_inside(self, prediction: Prediction, inside: Tensor) -> Prediction:
        """Leave out of a prediction what does not count.

        A model without maps keeps its score. What does not count was painted before it saw it.

        Args:
            prediction: of a batch.
            inside: see `Batch.inside`.
        """
        if prediction.anomaly_map is None:
            return prediction
        anomaly_map = with_lowest_outside(prediction.anomaly_map.float(), inside)
        pred_score = self.score_inside(anomaly_map, inside)
        return replace(prediction, pred_score=pred_score, anomaly_map=anomaly_map)

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        """Score images by what counts of their maps, (B,), by default by its highest value.

        Args:
            anomaly_map: (B, 1, H, W) float32; what does not count has the lowest value.
            inside: see `Batch.inside`.
        """
        return highest_inside(anomaly_map, inside)

    def evaluate(self, loader: BatchLoader) -> dict[str, float | None]:
        """Compute all metrics of the model on `loader`."""
        return self.predict(loader).metrics()

    def autocast(self) -> torch.autocast:
        """Make the context in which the model runs in its precision."""
        return autocast(self.device, self.train_config.precision)

    # The frozen stage

    def _new_source(self) -> FeatureSource:
        return FeatureSource(self.model, self.train_config, self.device, self.seed)

    def _open_source(self, loaders: LoaderSet) -> None:
        """Let a training share its features with other trials and keep them, where that can be."""
        if self.source.keeps(loaders.train):
            return
        self.source = self._new_source()
        # Tiles are many, and cut otherwise by each trial.
        if self.shares_features and self.train_config.tile is None:
            self.source.share(loaders, self.sharing)
        if self.num_epochs > 1 and not self.augments:
            self.source.keep(loaders.train)

    def keep_features(self, loaders: LoaderSet) -> FeatureSource:
        """Compute the features of all training images, for the next training on them too.

        They come in the batches of that training, so that it makes the same model as without them.

        Returns:
            What keeps them.
        """
        self.pixels = loaders.pixels
        self.roi = loaders.roi
        self._open_source(loaders)
        if not self.source.keeps(loaders.train):
            self.source.keep(loaders.train)
        self.model.eval()
        loaders.train.set_epoch(0)
        for batch in loaders.train:
            with self.autocast():
                self.source.for_training(batch)
        return self.source

    def with_features(self, batch: Batch) -> Batch:
        """Add the frozen stage's features to a batch of training images, unless it brings them."""
        if batch.features is not None:
            return batch
        return replace(batch, features=self.source.for_training(batch))

    @property
    def shared_work(self) -> list[SharedWork]:
        """List the work that trials share: what the last training used of it, and what it made."""
        return self.source.work

    # Files, under the specification's names

    def save_model(self, path: str | Path, whole: bool = False) -> None:
        """Write weights and hyperparameters to a `.pth` or `.safetensors` file.

        A `.pth` file also holds the optimiser's state. Frozen backbones are named with their file's
        hash rather than stored, but for untrained ones, and for all in a `whole` file.
        """
        save_checkpoint(path, self, whole)

    def load_model(self, path: str | Path, accept_other_weights: bool = False) -> list[str]:
        """Read what `save_model` wrote into this trainer, which may be fresh.

        Args:
            path: the file.
            accept_other_weights: go on where a backbone, or the code of a plug-in, is another one.

        Returns:
            What is accepted so, one part of a sentence each.

        Raises:
            InputError: for a file that is missing, damaged, holds more than tensors and plain
                values, is of another trainer or configuration, or was trained with other backbones.
        """
        differences = load_checkpoint(path, self, accept_other_weights)
        move_to(self.device, self.model, self.memory_format)
        self.model.eval()
        self.source = self._new_source()  # what is shared belongs to what was trained here
        return differences

    def save_results(
        self, path: str | Path, scores: Scores, holdout_score: np.ndarray | None = None
    ) -> None:
        """Write the thresholds file of the specification's section 9, see `adray.results.text`."""
        from adray.results.text import write_results

        metrics = image_metrics(scores.pred_score, scores.label)
        thresholds = compute_thresholds(scores.pred_score, scores.label, holdout_score)
        counts = confusions(thresholds, scores.pred_score, scores.label)
        write_results(path, metrics, thresholds, counts)

    def save_histogram(
        self, path: str | Path, scores: Scores, threshold: Threshold | None = None
    ) -> None:
        """Draw how the scores of normal and anomalous images are distributed, and the threshold."""
        from adray.results.figures import draw_histogram

        draw_histogram(path, scores.pred_score, scores.label, threshold)

    def save_maps(
        self,
        prefix: str | Path,
        scores: Scores,
        loader: Any,
        count: int = 8,
        threshold: Threshold | None = None,
    ) -> list[Json]:
        """Draw the most telling images to ``<prefix>_normal_0001.png`` and so on.

        Args:
            prefix: beginning of the files' names.
            scores: of `loader`'s images.
            loader: where the images come from.
            count: pictures per class, see `adray.results.figures.telling_images`.
            threshold: of the verdicts in the titles.

        Returns:
            For each picture its ``file`` name, the ``path`` of the image, ``label``, ``pred_score``
            and ``verdict``.
        """
        from adray.results.figures import draw_pictures, map_range

        return draw_pictures(prefix, scores, loader, count, map_range(scores), threshold)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, and choose deterministic full-precision kernels.

    TensorFloat-32 is switched off: with it a score would depend on the batch an image came in
    beyond 1e-5.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _means(values: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Average each value over the steps."""
    return {
        name: float(torch.stack([row[name].float() for row in values]).mean()) for name in values[0]
    }


def _words(row: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {value:.5g}" for key, value in row.items() if key != "epoch")
