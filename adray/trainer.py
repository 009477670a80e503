"""The loop around every model: epochs, frozen features, evaluation, early stop, checkpoints.

A model's trainer gives `build_model`, `train_step` and, where it learns by gradient, `configure_optimizer`. Mode
switching, timing, history, schedule and early stop live here, around the hooks, so nobody has to call `super()`.
The trainer does not know Ray.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adray.cache_folder import SharedWork
from adray.components.device import move_to
from adray.components.feature_cache import FeatureCache
from adray.components.feature_extractor import check_backbone_file
from adray.components.shared_features import SharedFeatures, Stage, feature_folder
from adray.config import TrainConfig, to_plain
from adray.errors import InputError
from adray.fields import Domain
from adray.files import atomic_path
from adray.metrics import image_metrics, pixel_metrics
from adray.settings import get_globals
from adray.thresholds import Threshold, compute_thresholds, confusions
from adray.types import Batch, Prediction, Sharing

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1
_FINITE_CHECK_STEPS = 50

Report = Callable[[int, dict[str, float]], None]


class BatchLoader(Protocol):
    """What the trainer needs of a loader; `adray.data.loaders.Loader` is one."""

    samples: list[Any]
    has_mask: np.ndarray

    def __len__(self) -> int:
        """Number of batches."""

    def __iter__(self) -> Any:
        """Yield `Batch`."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""


class LoaderSet(Protocol):
    """The three loaders of a trial."""

    @property
    def train(self) -> Any:
        """Training images, shuffled by epoch."""

    @property
    def valid(self) -> Any:
        """Held-out normal training images, or None."""

    @property
    def test(self) -> Any:
        """Test images, in a fixed order."""

    def auxiliary(self, name: str, img_size: int, crop_size: int | None = None) -> Any:
        """Images that are no product; indexed by an (B,) array they give (B, 3, S, S) uint8."""


@dataclass(frozen=True)
class Scores:
    """Predictions of a whole loader, in its order.

    Attributes:
        pred_score: (N,) float32.
        label: (N,) int64.
        anomaly_map: (N, H, W) float32, or None.
        mask: (N, H, W) uint8, or None where the loader has no masks or the model no maps.
        has_mask: (N,) bool, False for defective images without a mask, which pixel metrics leave out.
        explanation: (N,) texts of the model as objects, or None where it writes none.
    """

    pred_score: np.ndarray
    label: np.ndarray
    anomaly_map: np.ndarray | None
    mask: np.ndarray | None
    has_mask: np.ndarray
    explanation: np.ndarray | None = None

    def subset(self, chosen: np.ndarray) -> Scores:
        """The images where `chosen`, (N,) bool, is true."""
        parts = (
            self.pred_score,
            self.label,
            self.anomaly_map,
            self.mask,
            self.has_mask,
            self.explanation,
        )
        return Scores(*(part if part is None else part[chosen] for part in parts))  # type: ignore[arg-type]

    def metrics(self) -> dict[str, float | None]:
        """All metrics of `adray.metrics.METRICS`; what is undefined here, or has no masks, is None."""
        metrics = image_metrics(self.pred_score, self.label)
        if self.anomaly_map is None or self.mask is None:
            return metrics | pixel_metrics(None, None)
        if self.has_mask.all():
            return metrics | pixel_metrics(self.anomaly_map, self.mask)
        return metrics | pixel_metrics(self.anomaly_map[self.has_mask], self.mask[self.has_mask])


class EarlyStopper:
    """Says when to stop by a value that should fall (`min`) or rise (`max`).

    Args:
        mode: ``"min"`` or ``"max"``.
        patience: stop after this many values in a row without an improvement; None never stops for this.
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
            raise InputError(f"EarlyStopper mode {mode!r} is not known; use 'min' or 'max'")
        if patience is not None and patience < 1:
            raise InputError(f"EarlyStopper patience is {patience}, but must be at least 1")
        self.sign = 1.0 if mode == "min" else -1.0
        self.patience, self.target, self.min_delta = patience, target, min_delta
        self.best, self.waited = math.inf, 0

    def __call__(self, value: float) -> bool:
        """Take the next value and say whether to stop; NaN is no improvement."""
        signed = self.sign * value
        if signed < self.best - self.min_delta:
            self.best, self.waited = signed, 0
        else:
            self.waited += 1
        reached = self.target is not None and signed <= self.sign * self.target
        return reached or (self.patience is not None and self.waited >= self.patience)

    def state_dict(self) -> dict[str, float]:
        """What a progress checkpoint keeps."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from `state_dict()`."""
        self.best, self.waited = state["best"], int(state["waited"])


class BaseTrainer(ABC):
    """Trains, evaluates, saves and loads one configuration.

    Args:
        config: the model's hyperparameters, an instance of `config_class`.
        train_config: epochs, sizes, normalisation, hold-out.
        device: where the model lives.
        seed: of initialisation, augmentation and everything else random in the model.
    """

    config_class: ClassVar[type]
    single_pass: ClassVar[bool] = False
    """True for methods that see the training images once and learn nothing by gradient."""
    supervised: ClassVar[bool] = False
    """True for methods that learn from labelled defects: `loaders.train` then holds them, with label and mask, and data
    without any are refused; for all others they are left out."""
    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    """How the model's maps lie on a CPU, see `move_to`."""
    shares_features: ClassVar[bool] = False
    """True where `model.features` takes nothing of an image but the maps of `model.extractor`, a `TimmFeatureExtractor`
    of the config's backbone, layers and weights, through `model.condense` where there is one. Trials then share these
    maps, see `adray.components.shared_features`. Models with a long training keep out: it makes other
    scores of the last bit of a map, which depends on the batch that it was computed in."""
    train_search: ClassVar[Mapping[str, Domain]] = {}
    """What a search tries of `TrainConfig` by default, by the name of the field. What it tries of the model stands at
    the fields of `config_class`."""
    without_auxiliary: ClassVar[str] = ""
    """What is done where the images that `config.auxiliary` names are missing; empty where they are needed."""

    def __init__(
        self,
        config: Any,
        train_config: TrainConfig,
        device: str | torch.device = "cpu",
        seed: int = 42,
    ) -> None:
        if not isinstance(config, self.config_class):
            raise InputError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, not a {type(config).__name__}"
            )
        self.config, self.train_config, self.device, self.seed = (
            config,
            train_config,
            torch.device(device),
            seed,
        )
        self.check_inputs(config, train_config)
        seed_everything(seed)
        self.model = self.build_model()
        move_to(self.device, self.model, self.memory_format)
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: Any = None
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=train_config.precision == "float16"
        )
        self.stopper = EarlyStopper("min", train_config.patience)
        self.history: list[dict[str, float]] = []
        self.epoch = self.step = self.num_epochs = self.total_steps = 0
        self.progress_seconds = 180.0
        self.loaders: Any = None
        self.sharing: Sharing | None = None
        """What other trials of a sweep want of the frozen stage; None where this one is by itself."""
        self._shared: SharedFeatures | None = None
        self._cache: FeatureCache | None = None

    # Asked before anything starts, by the plan of a sweep too

    @classmethod
    def check_inputs(cls, config: Any, train_config: TrainConfig) -> list[str]:
        """Look for what cannot work together; by default everything can.

        Returns:
            Remarks for the plan, one sentence each.

        Raises:
            InputError: for sizes, normalisations and so on that the model cannot take.
        """
        return []

    @classmethod
    def check_weight_file(cls, config: Any, name: str, path: Path) -> None:
        """Open a weight file of `config.weight_files`; by default that of a ResNet tapped at `config.layers`.

        Raises:
            InputError: for a broken file, and for another network's.
        """
        check_backbone_file(name, config.layers, path)

    # What a model gives

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The network, on the CPU; the random generators are seeded already."""

    @abstractmethod
    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step: forward, loss, `self.optimize(loss)`.

        Where the model has a frozen stage, `batch.features` holds what `model.features(batch.image)` gives.

        Returns:
            Scalars for the history, detached and still on the device; ``"loss"`` is checked to be finite.
        """

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any] | None:
        """The optimiser and a schedule that counts steps (or None), for `total_steps`; None where nothing is learnt."""
        return None

    def augment(self, batch: Batch) -> Batch:
        """Change a training batch before the frozen stage sees it; where a model does, no features are cached."""
        return batch

    def validation_step(self, batch: Batch) -> Prediction:
        """Predict a batch in eval mode without gradient."""
        return self.model(batch.image, batch.features)

    def notes(self) -> list[str]:
        """What else `result.json` should say of the model, one sentence each; by default nothing."""
        return []

    # Hooks, all empty

    def on_fit_start(self) -> None:
        """Before the first epoch; `self.loaders` is set."""

    def on_fit_end(self, weight_path: Path | None) -> None:
        """After the last epoch, before the weights go to `weight_path`."""

    def on_epoch_start(self) -> None:
        """Before each epoch."""

    def on_epoch_end(self) -> None:
        """After each epoch."""

    def on_train_start(self) -> None:
        """Before the training steps of an epoch, in train mode."""

    def on_train_end(self) -> None:
        """After the training steps of an epoch; one-pass models fit here."""

    def on_validation_start(self) -> None:
        """Before validation, in eval mode."""

    def on_validation_end(self) -> None:
        """After validation."""

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
            progress_path: where a long training leaves its state every few minutes, and from which it continues.

        Returns:
            The history, one row per epoch.

        Raises:
            FloatingPointError: for a loss that is not finite, with the step.
        """
        self.loaders, self.history, self.epoch, self.step = loaders, [], 0, 0
        self._plan_steps(len(loaders.train))
        seed_everything(self.seed)
        configured = self.configure_optimizer(self.total_steps)
        self.optimizer, self.scheduler = configured or (None, None)
        if progress_path is not None and Path(progress_path).is_file():
            self._load_progress(Path(progress_path))
        self._shared = self._open_shared(loaders)
        self._cache = self._make_cache(len(loaders.train.samples))
        self.on_fit_start()
        self._run_epochs(report, Path(progress_path) if progress_path else None)
        self.model.eval()
        self._cache = None
        weight_path = Path(weight_path) if weight_path else None
        self.on_fit_end(weight_path)
        if weight_path:
            self.save_model(weight_path)
        return self.history

    def _plan_steps(self, steps_per_epoch: int) -> None:
        if steps_per_epoch < 1:
            raise InputError(
                "the training loader has no batch; give more training images or a smaller batch_size"
            )
        wanted = self.train_config.max_steps or self.train_config.num_epochs * steps_per_epoch
        self.total_steps = steps_per_epoch if self.single_pass else wanted
        self.num_epochs = math.ceil(self.total_steps / steps_per_epoch)

    def _run_epochs(self, report: Report | None, progress_path: Path | None) -> None:
        saved = time.monotonic()
        while self.epoch < self.num_epochs:
            stop = self._run_epoch(report)
            if stop:
                break
            if progress_path and time.monotonic() - saved > self.progress_seconds:
                self._save_progress(progress_path)
                saved = time.monotonic()

    def _run_epoch(self, report: Report | None) -> bool:
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
        watched = row.get("valid_score", row.get("loss"))
        return watched is not None and self.stopper(watched)

    def train_epoch(self, loader: BatchLoader) -> dict[str, float]:
        """One pass over `loader`, or what is left of the step budget.

        Returns:
            The mean of each value that `train_step` gave.
        """
        self.model.train()
        self.on_train_start()
        loader.set_epoch(self.epoch)
        values: list[dict[str, Tensor]] = []
        for batch in loader:
            with self._autocast():
                values.append(self.train_step(self._with_features(self.augment(batch))))
            self.step += 1
            if len(values) % _FINITE_CHECK_STEPS == 0:
                self._check_finite(values[-_FINITE_CHECK_STEPS:])
            if self.total_steps and self.step >= self.total_steps:
                break
        self._check_finite(values[-(len(values) % _FINITE_CHECK_STEPS) :])
        self.on_train_end()
        return {
            key: float(torch.stack([row[key].float() for row in values]).mean())
            for key in values[0]
        }

    def optimize(self, loss: Tensor, clip_norm: float | None = None) -> None:
        """Backward, clip, optimiser and schedule for one step.

        Args:
            loss: scalar.
            clip_norm: largest norm of all gradients together, or None.
        """
        assert self.optimizer is not None, "configure_optimizer gave none"
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(
                (p for g in self.optimizer.param_groups for p in g["params"]), clip_norm
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()

    def validation_epoch(self, loader: BatchLoader) -> dict[str, float]:
        """Score `loader` in eval mode.

        Returns:
            ``valid_score``, the mean of `pred_score`, and where both labels occur ``image_auroc`` and ``image_aupr``.
        """
        self.model.eval()
        self.on_validation_start()
        scores = self.predict(loader, keep_maps=False)
        self.on_validation_end()
        row = {"valid_score": float(scores.pred_score.astype(np.float64).mean())}
        if len(np.unique(scores.label)) == 2:
            row |= {
                k: v
                for k, v in image_metrics(scores.pred_score, scores.label).items()
                if v is not None
            }
        return row

    @torch.no_grad()
    def predict(self, loader: BatchLoader, keep_maps: bool = True) -> Scores:
        """Score every image of `loader`, in its order.

        Args:
            loader: in evaluation order.
            keep_maps: also gather anomaly maps and masks.
        """
        scores, labels, maps, masks = [], [], [], []
        texts: list[str] = []
        for batch in loader:
            prediction = self.predict_batch(
                replace(batch, features=self._shared_features(loader, batch))
            )
            scores.append(prediction.pred_score.float().cpu())
            labels.append(batch.label.cpu())
            texts += prediction.explanation or ()
            if keep_maps and prediction.anomaly_map is not None:
                maps.append(prediction.anomaly_map[:, 0].float().cpu())
                if batch.mask is not None:
                    masks.append(batch.mask[:, 0].cpu())
        return Scores(
            _joined(scores),
            _joined(labels),
            _joined(maps) if maps else None,
            _joined(masks) if masks else None,
            np.asarray(loader.has_mask),
            np.array(texts, dtype=object) if texts else None,
        )

    @torch.no_grad()
    def predict_batch(self, batch: Batch) -> Prediction:
        """Score one batch in eval mode and in the precision of the training."""
        self.model.eval()
        with self._autocast():
            return self.validation_step(batch)

    def evaluate(self, loader: BatchLoader) -> dict[str, float | None]:
        """All metrics of the model on `loader`."""
        return self.predict(loader).metrics()

    # Frozen features

    def _open_shared(self, loaders: LoaderSet) -> SharedFeatures | None:
        """The features that trials on this machine share, as far as they are there or to be built."""
        settings = get_globals()
        folder = feature_folder(settings)
        if not type(self).shares_features or not hasattr(loaders.train, "content_keys"):
            return None
        if not folder.limit or (self.sharing is None and not folder.path.is_dir()):
            return None
        config, extractor = self.train_config, cast("Any", self.model).extractor
        batch_size = config.eval_batch_size or config.batch_size
        stage = Stage(
            extractor, config.normalize, config.precision, self.seed, self._autocast, batch_size
        )
        shared = SharedFeatures(stage, folder, self.sharing)
        for loader in (loaders.train, loaders.valid, loaders.test):
            if loader is not None:
                shared.open(loader)
        return shared

    @property
    def shared_work(self) -> list[SharedWork]:
        """Work of the last training that trials share: what it used of it, and what it made."""
        return [] if self._shared is None else self._shared.work

    def _make_cache(self, count: int) -> FeatureCache | None:
        augmented = type(self).augment is not BaseTrainer.augment
        if self.num_epochs < 2 or augmented or not hasattr(self.model, "features"):
            return None
        settings = get_globals()
        shared = self._shared is not None and self._shared.covers(self.loaders.train)
        return FeatureCache(
            count, self.device, settings.feature_gb * 1e9, None if shared else settings.cache_dir
        )

    def _with_features(self, batch: Batch) -> Batch:
        """Add the frozen stage's features, from the cache from the second epoch on."""
        if not hasattr(self.model, "features"):
            return batch
        features = self._cache.get(batch.index) if self._cache else None
        if features is None:
            features = self._shared_features(self.loaders.train, batch) if self._shared else None
            if features is None:
                frozen_stage = cast("Callable[[Tensor], tuple[Tensor, ...]]", self.model.features)
                with torch.no_grad():
                    features = frozen_stage(batch.image)
            if self._cache:
                self._cache.put(batch.index, features)
        return replace(batch, features=features)

    @torch.no_grad()
    def _shared_features(self, loader: Any, batch: Batch) -> tuple[Tensor, ...] | None:
        """The features of a batch of `loader` from the shared files, or None where they must be computed."""
        maps = self._shared.get(loader, batch.index) if self._shared else None
        if maps is None:
            return None
        with self._autocast():
            return (
                cast("Any", self.model).condense(maps) if hasattr(self.model, "condense") else maps
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = getattr(torch, self.train_config.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def _check_finite(self, values: list[dict[str, Tensor]]) -> None:
        """Look at the last steps' losses together, so that the device is not waited for at each."""
        losses = [row["loss"].detach().float() for row in values if "loss" in row]
        if not losses:
            return
        finite = torch.isfinite(torch.stack(losses)).tolist()
        if not all(finite):
            step = self.step - len(losses) + finite.index(False) + 1
            raise FloatingPointError(
                f"the loss is {float(losses[finite.index(False)])} at step {step}; lower lr, or use precision float32"
            )

    # Checkpoints: tensors and plain values only

    def save_model(self, path: str | Path) -> None:
        """Write weights and hyperparameters to a `.pth` file, with the optimiser's state, or to a `.safetensors` one.

        Frozen backbones are named with their file's hash rather than stored; untrained ones are stored.
        """
        frozen = self._frozen_modules()
        skipped = tuple(
            f"{name}." for name, module in frozen.items() if module.weight_file is not None
        )
        state = {k: v for k, v in self.model.state_dict().items() if not k.startswith(skipped)}
        about = {
            "format": CHECKPOINT_FORMAT,
            "trainer": type(self).__name__,
            "config": to_plain(self.config),
            "train_config": to_plain(self.train_config),
            "seed": self.seed,
            "backbones": {name: module.identity for name, module in frozen.items()},
        }
        with atomic_path(path) as temporary:
            if temporary.suffix == ".safetensors":
                save_file(
                    {k: v.contiguous() for k, v in state.items()},
                    temporary,
                    {"adray": json.dumps(about)},
                )
            else:
                optimizer = self.optimizer.state_dict() if self.optimizer else None
                torch.save({**about, "model": state, "optimizer": optimizer}, temporary)

    def load_model(self, path: str | Path) -> None:
        """Read what `save_model` wrote into this trainer, which may be fresh.

        Raises:
            InputError: for a file that is missing, damaged, holds more than tensors and plain values, or is of
                another trainer or configuration.
        """
        stored = read_checkpoint(path)
        if stored["trainer"] != type(self).__name__ or stored["config"] != to_plain(self.config):
            raise InputError(
                f"checkpoint {path} is of {stored['trainer']} with {stored['config']}, "
                f"not of {type(self).__name__} with {to_plain(self.config)}; build the trainer with these values"
            )
        frozen = self._frozen_modules()
        for name, module in frozen.items():
            if stored["backbones"].get(name) != module.identity:
                logger.warning(
                    "backbone %s differs: trained with %s, now %s",
                    name,
                    stored["backbones"].get(name),
                    module.identity,
                )
        kept = tuple(
            f"{name}." for name, module in frozen.items() if module.weight_file is not None
        )
        outcome = self.model.load_state_dict(stored["model"], strict=False)
        missing = [key for key in outcome.missing_keys if not key.startswith(kept)]
        if missing or outcome.unexpected_keys:
            raise InputError(
                f"checkpoint {path} does not fit: missing {missing[:3]}, unexpected {outcome.unexpected_keys[:3]}"
            )
        move_to(self.device, self.model, self.memory_format)
        self.model.eval()
        self._shared = None  # what is shared belongs to what was trained here

    def _frozen_modules(self) -> dict[str, Any]:
        return {
            name: m
            for name, m in self.model.named_modules()
            if hasattr(m, "weight_file") and hasattr(m, "identity")
        }

    def _save_progress(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict() if self.optimizer else None,
                    "scheduler": self.scheduler.state_dict() if self.scheduler else None,
                    "scaler": self.scaler.state_dict(),
                    "stopper": self.stopper.state_dict(),
                    "epoch": self.epoch,
                    "step": self.step,
                    "history": self.history,
                    "random": _random_state(),
                },
                temporary,
            )
        logger.info("progress saved at epoch %d", self.epoch)

    def _load_progress(self, path: Path) -> None:
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            logger.warning("progress checkpoint %s is damaged; starting from the first epoch", path)
            return
        self.model.load_state_dict(stored["model"])
        for part, name in ((self.optimizer, "optimizer"), (self.scheduler, "scheduler")):
            if part is not None:
                part.load_state_dict(stored[name])
        self.scaler.load_state_dict(stored["scaler"])
        self.stopper.load_state_dict(stored["stopper"])
        self.epoch, self.step, self.history = stored["epoch"], stored["step"], stored["history"]
        _set_random_state(stored["random"])
        logger.info("continuing after epoch %d from %s", self.epoch, path)

    # Reports under the specification's names

    def save_results(
        self, path: str | Path, scores: Scores, holdout_score: np.ndarray | None = None
    ) -> None:
        """Write the thresholds file of the specification's section 9; see `adray.results.text`."""
        from adray.results.text import write_results

        metrics = image_metrics(scores.pred_score, scores.label)
        thresholds = compute_thresholds(scores.pred_score, scores.label, holdout_score)
        counts = confusions(thresholds, scores.pred_score, scores.label)
        write_results(path, metrics, thresholds, counts)

    def save_histogram(
        self, path: str | Path, scores: Scores, threshold: Threshold | None = None
    ) -> None:
        """Draw the distributions of the scores of normal and anomalous images, and the threshold."""
        from adray.results.figures import draw_histogram

        draw_histogram(path, scores.pred_score, scores.label, threshold)

    def save_maps(
        self,
        prefix: str | Path,
        scores: Scores,
        loader: Any,
        count: int = 8,
        threshold: Threshold | None = None,
    ) -> list[dict[str, Any]]:
        """Draw the most telling normal and anomalous images to ``<prefix>_normal_0001.png`` and so on.

        Args:
            prefix: beginning of the files' names.
            scores: of `loader`'s images.
            loader: where the images come from.
            count: pictures per class; see `adray.results.figures.telling_images`.
            threshold: of the verdicts in the titles.

        Returns:
            For each picture its ``file`` name, the ``path`` of the image, ``label``, ``pred_score`` and ``verdict``.
        """
        from adray.results.figures import draw_pictures, map_range

        scale = None if scores.anomaly_map is None else map_range(scores.anomaly_map)
        return draw_pictures(prefix, scores, loader, count, scale, threshold)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `BaseTrainer.save_model` wrote; nothing in the file is executed.

    Raises:
        InputError: for a file that is missing, damaged, holds more than tensors and plain values, or another format.
    """
    if not Path(path).is_file():
        raise InputError(f"checkpoint {path} does not exist; check the path")
    try:
        stored = _read_safetensors(path) if Path(path).suffix == ".safetensors" else _read_pth(path)
    except Exception as error:  # each of the readers raises its own kinds
        raise InputError(
            f"checkpoint {path} is damaged or holds more than tensors and plain values"
        ) from error
    if not isinstance(stored, dict) or stored.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"checkpoint {path} is not one that this version of adray wrote")
    return stored


def _read_pth(path: str | Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: str | Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["adray"])
        return {**about, "model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  no mapping


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, and choose deterministic full-precision kernels.

    TensorFloat-32 is switched off: with it a score would depend on the batch an image came in beyond 1e-5.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(kind),
            np.asarray(keys).tolist(),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(internal), gauss_next],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(tuple(state["numpy"]))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def _joined(parts: Iterable[Tensor]) -> np.ndarray:
    return torch.cat(list(parts)).numpy()


def _words(row: dict[str, float]) -> str:
    return "  ".join(f"{key} {value:.5g}" for key, value in row.items() if key != "epoch")
