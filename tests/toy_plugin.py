"""Configurations that need no backbone and misbehave on request, registered as a user's plug-in would be."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from adray.model_specs import FAMILIES, ModelSpec
from adray.registry import ModelRegistry
from adray.trainer import BaseTrainer
from adray.types import Prediction


@dataclass(frozen=True)
class ToyConfig:
    behavior: str = "ok"
    gain: float = 1.0
    pause: float = 0.0
    marks: str = ""


@dataclass(frozen=True)
class ToyAuxiliaryConfig(ToyConfig):
    auxiliary: str = "textures"


class ToyModel(nn.Module):
    """Distance to the mean training image."""

    def __init__(self, size: int, gain: float, behavior: str = "ok") -> None:
        super().__init__()
        self.gain = gain
        self.behavior = behavior
        self.register_buffer("mean", torch.zeros(3, size, size))

    def forward(self, image, features=None):
        mean = image.mean(0) if self.behavior == "batch" else self.mean
        anomaly_map = self.gain * (image - mean).abs().mean(1, keepdim=True)
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class ToyTrainer(BaseTrainer):
    config_class = ToyConfig
    single_pass = True

    def build_model(self):
        return ToyModel(self.train_config.input_size, self.config.gain, self.config.behavior)

    def on_fit_start(self):
        self.images = []
        if self.config.marks:  # leaves a line per start, so that tests count what was computed
            with Path(self.config.marks).open("a") as file:
                file.write(
                    f"{self.config.behavior} {os.environ.get('CUDA_VISIBLE_DEVICES', '')} {time.time()}\n"
                )
        time.sleep(self.config.pause)
        misbehave(self.config.behavior)

    def train_step(self, batch):
        self.images.append(batch.image)
        return {}

    def on_train_end(self):
        self.model.mean.copy_(torch.cat(self.images).mean(0))

    def predict(self, loader, keep_maps=True):
        if self.config.behavior == "narrow" and loader.batch_size > 2:
            raise MemoryError("toy wants at most two images at a time")
        return None if self.config.behavior == "none" else super().predict(loader, keep_maps)

    def save_model(self, path):
        if self.config.behavior == "no_space":
            raise OSError(28, "No space left on device", str(path))
        super().save_model(path)


class ToyAuxiliaryTrainer(ToyTrainer):
    config_class = ToyAuxiliaryConfig


class ToyNoiseTrainer(ToyTrainer):
    config_class = ToyAuxiliaryConfig
    without_auxiliary = "it draws noise"


class ToySupervisedTrainer(ToyTrainer):
    supervised = True

    def train_step(self, batch):
        self.images.append(batch.image[batch.label == 0])
        return {}


SIGNALS = {"segfault": signal.SIGSEGV, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def misbehave(behavior: str) -> None:
    if behavior == "raise":
        raise ValueError("toy went wrong")
    if behavior == "exit":
        os._exit(3)
    if behavior in SIGNALS:
        os.kill(os.getpid(), SIGNALS[behavior])
    if behavior == "hang":
        time.sleep(3600)
    if behavior.startswith("device") and os.environ.get("CUDA_VISIBLE_DEVICES") == "1":
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    if behavior == "memory":
        raise MemoryError("toy wanted too much")
    if behavior == "hog":
        hog = []
        while True:
            hog.append(b"x" * 50_000_000)
            time.sleep(0.02)


DEVICES = ("device-a", "device-b", "device-c", "device-d")
for behavior in (
    "ok",
    "raise",
    "exit",
    "segfault",
    "kill",
    "hang",
    "stop",
    "memory",
    "hog",
    "no_space",
    "none",
    "narrow",
    "batch",
    *DEVICES,
):
    ModelRegistry.register(
        ModelSpec(
            f"toy-{behavior.replace('_', '-')}",
            "toy",
            FAMILIES[0],
            "toy_plugin.ToyTrainer",
            model={"behavior": behavior},
            train={"img_size": 32, "normalize": "none"},
            tier="extra",
            memory_gb=1.0,
        )
    )
for kind in ("Auxiliary", "Noise", "Supervised"):
    ModelRegistry.register(
        f"{kind.lower()}-toy",
        f"toy_plugin.Toy{kind}Trainer",
        {},
        {"img_size": 32, "normalize": "none"},
    )
ModelRegistry.register(
    "toy-positional", "toy_plugin.ToyTrainer", {"gain": 2.0}, {"img_size": 32, "normalize": "none"}
)
