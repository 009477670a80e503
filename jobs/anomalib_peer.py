"""The other side of `bench_models.py`, anomalib's models in memory, and of `bench_peer.py`, through its engine.

Nothing is downloaded: backbones stay untrained, and what some models fetch on their own is taken away.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import timm
import torch
import torchvision
from anomalib import models
from anomalib.data import ImageBatch, MVTecAD
from anomalib.engine import Engine
from anomalib.models.image.dsr.lightning_model import Dsr
from anomalib.models.image.efficient_ad.lightning_model import EfficientAd
from anomalib.pre_processing import PreProcessor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Resize

from adray.types import Batch

_TRAINER_ARGUMENTS = ("gradient_clip_val", "gradient_clip_algorithm")


def make_module(
    cls: str, arguments: dict[str, Any], size: int, batch_size: int, folder: Path
) -> Any:
    """An untrained model of anomalib for images of `size` pixels, without its metrics and pictures."""
    _stay_offline()
    if cls == "EfficientAd":
        arguments = {**arguments, "imagenet_dir": str(folder / "parts" / "weave" / "train")}
    if cls == "Ganomaly":
        arguments = {**arguments, "batch_size": batch_size}
    if cls == "Fre":
        arguments = {**arguments, "input_dim": 1024 * (size // 32) ** 2}
    # an identity at this size, from which the model reads the size
    same = PreProcessor(Compose([Resize((size, size), antialias=True)]))
    return getattr(models, cls)(
        **arguments, pre_processor=same, post_processor=False, evaluator=False, visualizer=False
    )


def _stay_offline() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    create = timm.create_model

    def create_untrained(name: str, *args: Any, **kwargs: Any) -> Any:
        return create(name, *args, **{**kwargs, "pretrained": False})

    def without_weights(build: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *_args, **_kwargs: build(weights=None)

    class NoWeights:
        DEFAULT = None

    for module in [timm, timm.models, *_modules_with(create)]:
        module.create_model = create_untrained  # type: ignore[attr-defined]
    torchvision.models.get_model_weights = lambda _name: NoWeights
    for module in _modules_with(torchvision.models.efficientnet_b5, "efficientnet_b5"):
        module.efficientnet_b5 = without_weights(torchvision.models.efficientnet_b5)
    EfficientAd.prepare_pretrained_model = lambda self: None
    Dsr.on_train_start = lambda self: None


def _modules_with(function: Any, name: str = "create_model") -> list[Any]:
    """The modules of anomalib that imported a function by its name."""
    found = [module for key, module in sys.modules.items() if key.startswith("anomalib")]
    return [module for module in found if getattr(module, name, None) is function]


class _EpochClock(lightning.Callback):
    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick = tick

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.tick()


class _InMemory(lightning.LightningDataModule):
    """Batches that lie ready, as some models ask the data module for them again."""

    def __init__(self, batches: list[ImageBatch]) -> None:
        super().__init__()
        self.batches, self.train_batch_size = batches, len(batches[0].image)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


def fit(
    module: Any, batches: list[Batch], epochs: int, device: torch.device, tick: Callable[[], None]
) -> None:
    """Train for `epochs`, calling `tick` at the end of each."""
    asked = {
        key: value for key, value in module.trainer_arguments.items() if key in _TRAINER_ARGUMENTS
    }
    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        max_epochs=epochs,
        barebones=True,
        callbacks=[_EpochClock(tick)],
        **asked,
    )
    trainer.fit(
        module,
        datamodule=_InMemory([ImageBatch(image=b.image, gt_label=b.label.bool()) for b in batches]),
    )
    if hasattr(module, "_is_fitted") and not module._is_fitted:
        module.fit()


@torch.no_grad()
def predict(module: Any, batches: list[Batch], device: torch.device) -> None:
    """Scores and maps of all batches."""
    network = module.model.to(device).eval()
    for batch in batches:
        network(batch.image)


def run_engine(
    cls: str,
    arguments: dict[str, Any],
    root: Path,
    category: str,
    size: int,
    epochs: int | None,
    out: Path,
    lean: bool,
) -> dict[str, float]:
    """Train and test a model on a category of MVTec AD's layout as anomalib's own examples do.

    Args:
        cls: name of the model.
        arguments: of the model.
        root: folder of the data set.
        category: of it.
        size: side of the square that images are resized to.
        epochs: None leaves the model's own.
        out: folder of results.
        lean: draw no pictures of test images.

    Returns:
        The metrics that it reports.
    """
    _stay_offline()
    before = getattr(models, cls).configure_pre_processor((size, size))
    model = getattr(models, cls)(
        **arguments, pre_processor=before, **({"visualizer": False} if lean else {})
    )
    data = MVTecAD(
        root=root, category=category, train_batch_size=32, eval_batch_size=32, num_workers=0
    )
    engine = Engine(
        default_root_dir=out,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_epochs": epochs} if epochs else {}),
    )
    engine.fit(model=model, datamodule=data)
    (metrics,) = engine.test(model=model, datamodule=data, verbose=False)
    return {key: float(value) for key, value in metrics.items()}
