"""Per configuration, what makes it run in a second: data for the contract, not code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from chat_folder import write_chat_folder
from fake_datasets import write_mvtec, write_visa
from safetensors.torch import save_file
from torch import Tensor

from adray.components.backbone import BACKBONE_WEIGHT_FILES
from adray.models.csflow import EfficientNetB5
from adray.models.dsr import QuantizedAutoencoder
from adray.models.efficientad import CHANNELS, build_pdn
from adray.models.winclip import build_clip
from adray.registry import ModelRegistry
from adray.settings import Settings
from adray.testing import Subject

IMG_SIZE = 64
# CLIP takes half a minute for the sentences alone: under its name this process finds a narrow one of two blocks.
open_clip.add_model_config(Path(__file__).with_name("clip"))

TINY: dict[str, dict[str, dict[str, Any]]] = {
    "padim": {"model": {"num_features": 20}},
    "padim-wide-resnet50": {"model": {"num_features": 20}},
    "patchcore": {"train": {"crop_size": 56}, "model": {"coreset_ratio": 0.2}},
    "patchcore-resnet18": {"model": {"coreset_ratio": 0.2}},
    "cflow-resnet18": {"train": {"num_epochs": 3}, "model": {"flow_steps": 2, "lr": 1e-3}},
    "cflow-wide-resnet50": {"train": {"num_epochs": 2}, "model": {"flow_steps": 1, "lr": 1e-3}},
    "fastflow-resnet50": {"train": {"num_epochs": 3}, "model": {"flow_steps": 2}},
    "fastflow-cait": {
        "train": {"img_size": 224, "num_epochs": 3},
        "model": {"backbone": "cait_xxs24_224", "layers": ["blocks.0"], "flow_steps": 2},
    },
    "fastflow-deit": {
        "train": {"num_epochs": 3},
        "model": {
            "backbone": "deit_tiny_distilled_patch16_224",
            "layers": ["blocks.0"],
            "flow_steps": 2,
        },
    },
    "fastflow-wide-resnet50": {"train": {"num_epochs": 3}, "model": {"flow_steps": 2}},
    **{
        f"patchflow-{name}": {
            "train": {"num_epochs": 8},
            "model": {
                "backbone": "resnet18",
                "layers": ["layer1", "layer2"],
                "num_scales": 2,
                "channels": 32,
                "hidden": 32,
            },
        }
        for name in ("wide-resnet50", "resnet18")
    },
    "fastflow-resnet18": {"train": {"num_epochs": 3}, "model": {"flow_steps": 2}},
    "csflow": {
        "train": {"img_size": 128, "num_epochs": 5},
        "model": {"hidden_channels": 16, "lr": 1e-3},
    },
    "uflow-wide-resnet50": {
        "train": {"num_epochs": 3},
        "model": {"backbones": ["resnet18"], "flow_steps": 2},
    },
    "uflow-mcait": {
        "train": {"num_epochs": 3},
        "model": {
            "backbones": ["deit_tiny_distilled_patch16_224", "deit_tiny_distilled_patch16_224"],
            "layers": ["blocks.1", "blocks.0"],
            "flow_steps": 2,
        },
    },
    "stfpm": {"train": {"num_epochs": 3}},
    "reverse-distillation": {"train": {"num_epochs": 2}},
    "reverse-distillation-resnet18": {"train": {"num_epochs": 3}},
    "efficientad-small": {"train": {"num_epochs": 2, "batch_size": 2, "img_size": 48}},
    "efficientad-medium": {"train": {"num_epochs": 1, "batch_size": 2, "img_size": 48}},
    "ganomaly": {
        "train": {"num_epochs": 60},
        "model": {"base_channels": 8, "latent_channels": 16, "lr": 5e-4},
    },
    "cfa": {"train": {"crop_size": 56, "num_epochs": 2}, "model": {"gamma_d": 8}},
    "cfa-resnet18": {"train": {"num_epochs": 3}},
    "autoencoder": {
        "train": {"num_epochs": 15},
        "model": {"base_channels": 8, "latent_channels": 8},
    },
    "unet-autoencoder": {
        "train": {"num_epochs": 15},
        "model": {"base_channels": 8, "latent_channels": 8},
    },
    "vae": {"train": {"num_epochs": 15}, "model": {"base_channels": 8, "latent_channels": 8}},
    "unet-vae": {"train": {"num_epochs": 15}, "model": {"base_channels": 8, "latent_channels": 8}},
    "draem": {
        "train": {"num_epochs": 8, "batch_size": 2},
        "model": {
            "reconstructive_width": 4,
            "discriminative_width": 8,
            "lr": 1e-2,
            "anomaly_probability": 0.9,
            "rotation_probability": 0.0,
            "perlin_threshold": 0.0,
        },
    },
    "dsr": {
        "train": {"num_epochs": 12},
        "model": {
            "width": 8,
            "lr": 1e-2,
            "first_phase": 0.5,
            "anomaly_probability": 0.9,
            "rotation_probabilities": [0.0, 0.0],
            "perlin_threshold": 0.2,
        },
    },
    "dfkde": {},
    "dfkde-efficientnet-lite0": {},
    "padim-efficientnet-lite0": {},
    "patchcore-efficientnet-lite0": {},
    "softpatch-resnet18": {"model": {"coreset_ratio": 0.2}},
    "softpatch-wide-resnet50": {"train": {"crop_size": 56}, "model": {"coreset_ratio": 0.2}},
    "mhpatchcore-wide-resnet50": {"train": {"crop_size": 56}, "model": {"bank_size": 50}},
    "mhpatchcore-resnet18": {"model": {"bank_size": 50}},
    "dfm-efficientnet-lite0": {},
    "fre": {"train": {"num_epochs": 10}, "model": {"latent_dim": 8}},
    "dfm": {},
    "dfm-wide-resnet50": {},
    "dfm-resnet18": {},
    "winclip": {"train": {"img_size": 240}, "model": {"k_shot": 2}},
    "vlm-ad": {"model": {"k_shot": 1, "max_new_tokens": 4}},
    **{
        f"dinomaly-{size}-{side}": {
            "train": {"crop_size": 56, "num_epochs": 5},
            "model": {
                "backbone": "dinov2_vit_small_14",
                "layers": ["blocks.0", "blocks.1"],
                "warmup_steps": 2,
            },
        }
        for size in ("small", "base", "large")
        for side in (224, 392, 448)
    },
    "dinomaly-base-392-recentered": {
        "train": {"crop_size": 56, "num_epochs": 5},
        "model": {
            "backbone": "dinov2_vit_small_14",
            "layers": ["blocks.0", "blocks.1"],
            "warmup_steps": 2,
        },
    },
    **{
        f"inpformer-{name}": {
            "train": {"crop_size": 56, "num_epochs": 5},
            "model": {
                "backbone": "dinov2_vits14",
                "layers": ["blocks.0", "blocks.1"],
                "warmup_steps": 2,
            },
        }
        for name in ("base-392", "base-392-fewshot")
    },
    **{
        f"subspacead-{name}": {
            "train": {"img_size": 56},
            "model": {
                "backbone": "dinov2_vits14",
                "layers": ["blocks.0", "blocks.1"],
                **({"rotations": 2} if name.endswith("fewshot") else {}),
            },
        }
        for name in ("small-448", "small-448-fewshot", "base-448", "giant-672-fewshot")
    },
    **{
        f"anomalydino-{name}": {
            "train": {"img_size": 56},
            "model": {
                "backbone": "dinov2_vits14",
                "layer": "blocks.1",
                **changes,
            },
        }
        for name, changes in {
            "small-448": {"coreset_ratio": 0.5},
            "small-448-fewshot": {"rotations": 2},
            "small-672-fewshot": {"rotations": 2},
            "small-672-batched": {"batched_part": 0.05},
            "base-448": {"coreset_ratio": 0.5},
        }.items()
    },
    **{
        f"generalad-{name}": {
            "train": {"img_size": 56, "num_epochs": 10},
            "model": {
                "backbone": "dinov2_vits14",
                "layer": "blocks.1",
                "hidden": 64,
                "top_patches": 1,
                "lr": 3e-3,
            },
        }
        for name in ("small-448", "large-518")
    },
    **{
        f"l2bt-{name}": {
            "train": {"img_size": 56, "num_epochs": 5},
            "model": {
                "backbone": "dinov2_vits14",
                "layers": ["blocks.0", "blocks.1"],
                "lr": 1e-3,
            },
        }
        for name in ("small-448", "base-1036")
    },
    **{
        f"rad-{name}-448": {
            "train": {"img_size": 64, "crop_size": 56},
            "model": {"backbone": "dinov2_vits14", "layers": ["blocks.0", "blocks.1"]},
        }
        for name in ("small", "base")
    },
    **{
        f"superad-{name}": {
            "train": {"img_size": 56},
            "model": {
                "backbone": "dinov2_vits14",
                "layers": ["blocks.0", "blocks.1"],
                **({"rotations": 2} if name == "large-672" else {}),
            },
        }
        for name in ("small-448", "large-672")
    },
    **{
        f"musc-{name}": {
            "train": {"img_size": 56},
            "model": {"backbone": "dinov2_vits14", "layers": ["blocks.0", "blocks.1"]},
        }
        for name in ("small-448", "large-518")
    },
    **{
        f"wordhistogram-{name}-448": {
            "train": {"img_size": 56},
            "model": {"backbone": "dinov2_vits14", "layer": "blocks.1", "num_words": 8},
        }
        for name in ("small", "base")
    },
    "supersimplenet": {
        "train": {"num_epochs": 5},
        "model": {"backbone": "resnet18", "hidden_channels": 64, "noise_std": 0.5, "head_lr": 2e-3},
    },
    "supersimplenet-supervised": {
        "train": {"num_epochs": 5, "split_mode": "2cls_highshot"},
        "model": {"backbone": "resnet18", "hidden_channels": 64, "noise_std": 0.5, "head_lr": 2e-3},
    },
    "glass": {
        "train": {"num_epochs": 10, "batch_size": 8},
        "model": {
            "backbone": "resnet18",
            "width": 96,
            "hidden": 64,
            "hypothesis": "manifold",
            "ascent_steps": 5,
            "noise_std": 0.1,
            "adaptor_lr": 1e-3,
            "discriminator_lr": 5e-3,
        },
    },
    "uninet": {"train": {"num_epochs": 3}, "model": {"backbone": "resnet18"}},
}
"""Overrides by configuration; `img_size` is `IMG_SIZE` for all that do not say otherwise."""


def tiny_subject(name: str) -> Subject:
    """A configuration made small, on the data that `write_site` makes for it."""
    tiny = TINY[name]
    train = {"img_size": IMG_SIZE, **tiny.get("train", {})}
    is_supervised = ModelRegistry.trainer_class(name).supervised
    data = ("visa", "candle") if is_supervised else ("mvtec", "bottle")
    return Subject(name, train, tiny.get("model", {}), *data)


def untrained_resnet(name: str) -> Callable[[], dict[str, Tensor]]:
    """Random tensors under the names of a published ResNet file."""
    return lambda: timm.create_model(name, pretrained=False).state_dict()


def untrained_pdn(model_size: str) -> Callable[[], dict[str, Tensor]]:
    """Random tensors under the names of the reference's EfficientAD teacher."""
    return lambda: build_pdn(model_size, CHANNELS).state_dict()


def untrained_vit(name: str) -> Callable[[], dict[str, Tensor]]:
    """Random tensors under the names of a transformer's file; the second block and later ones do without."""
    return lambda: timm.create_model(name, pretrained=False, depth=2).state_dict()


def untrained_efficientnet() -> dict[str, Tensor]:
    """Random tensors under the names of torchvision's EfficientNet-B5 file; not every draw sees anything in images."""
    torch.manual_seed(1)
    return EfficientNetB5("random").state_dict()


def untrained_dsr() -> dict[str, Tensor]:
    """Random tensors under the names of the published quantised autoencoder."""
    return QuantizedAutoencoder("random").state_dict()


def untrained_clip() -> dict[str, Tensor]:
    """Random tensors under the names of open_clip's file, two blocks of them."""
    return build_clip().state_dict()


WEIGHTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "resnet18": untrained_resnet("resnet18"),
    "resnet50": untrained_resnet("resnet50"),
    "wide_resnet50_2": untrained_resnet("wide_resnet50_2"),
    "dsr_vq_model": untrained_dsr,
    "efficientnet_b5": untrained_efficientnet,
    "cait_xxs24_224": untrained_vit("cait_xxs24_224"),
    "deit_tiny_distilled_patch16_224": untrained_vit("deit_tiny_distilled_patch16_224"),
    "clip_vit_b_16_plus_240": untrained_clip,
    "dinov2_vit_small_14": untrained_vit("vit_small_patch14_reg4_dinov2"),
    "dinov2_vits14": untrained_vit("vit_small_patch14_dinov2"),
    "efficientad_teacher_small": untrained_pdn("small"),
    "efficientad_teacher_medium": untrained_pdn("medium"),
}
"""What the contract writes, untrained, under the real names of weight files."""

FOLDERS: dict[str, Callable[[Path], None]] = {
    "vlm/": functools.partial(write_chat_folder, attention="eager")
}
"""What writes a whole model's folder, untrained, at its real place. A make-believe device cannot follow
attention that torch computes in one piece."""


def write_site(root: Path) -> Settings:
    """Small data sets and random weights under the real file names, and the settings that name them."""
    write_mvtec(
        root / "datasets" / "mvtec",
        categories=("bottle",),
        train=10,
        good=4,
        defects=6,
        size=IMG_SIZE,
    )
    write_visa(
        root / "datasets" / "visa",
        categories=("candle",),
        train=10,
        good=4,
        defects=12,
        size=IMG_SIZE,
    )
    write_mvtec(
        root / "datasets" / "imagenette2",
        categories=("tench",),
        train=6,
        good=2,
        defects=2,
        size=80,
    )
    for name, untrained in WEIGHTS.items():
        torch.manual_seed(
            0
        )  # for each anew: another file must not change the recorded scores of these
        path = root / "backbones" / BACKBONE_WEIGHT_FILES[name].paths[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        (save_file if path.suffix == ".safetensors" else torch.save)(untrained(), path)
    for name, write in FOLDERS.items():
        torch.manual_seed(0)
        write(root / "backbones" / BACKBONE_WEIGHT_FILES[name].paths[0])
    return Settings(
        dataset_dir=str(root / "datasets"),
        backbone_dir=str(root / "backbones"),
        output_dir=str(root / "outputs"),
        cache_dir=str(root / "cache"),
    )
