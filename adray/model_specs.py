"""All configurations in one table, one row each. Importing this loads no torch.

To add a model: its file in `adray/models` plus its rows in `MODEL_SPECS`. A model outside the
package calls `adray.registry.ModelRegistry.register` in a module that `settings.plugins` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FAMILIES = ("memory", "flow", "distillation", "reconstruction", "adaptation", "foundation")
TIERS = ("core", "extra")
CORE_VERSION = 3
"""Raised by hand when shared code changes scores, so that stored results count as stale."""


@dataclass(frozen=True)
class ModelSpec:
    """One named configuration."""

    name: str
    """As users write it."""
    title: str
    """Method, backbone, year, for tables."""
    family: str
    """Kind of method, one of `FAMILIES`."""
    trainer: str
    """Dotted name of the trainer class."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that differ from the defaults of the trainer's config dataclass."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """`TrainConfig` fields that differ from its defaults, for both budgets."""
    paper: Mapping[str, Any] = field(default_factory=dict)
    """Training length as published."""
    quick: Mapping[str, Any] = field(default_factory=dict)
    """Training length of the specification."""
    tier: str = "core"
    """``core`` or ``extra``."""
    aliases: tuple[str, ...] = ()
    """Other names."""
    version: int = 1
    """Raised by hand when scores change, so that stored results count as stale."""
    gpu: float = 0.25
    """Share of a GPU that a trial takes unless the sweep says otherwise."""
    memory_gb: float = 3.0
    """Host memory that a trial takes unless the sweep says otherwise."""
    checkpoint_mb: float = 0.0
    """Size of a checkpoint with the optimiser's state; 0 for a small or unknown one."""
    exceptions: Mapping[str, str] = field(default_factory=dict)
    """Checks of `adray.testing` that it cannot pass by its nature, each with the reason."""


_PADIM = "adray.models.padim.PadimTrainer"
_DFKDE = "adray.models.dfkde.DfkdeTrainer"
_PATCHCORE = "adray.models.patchcore.PatchcoreTrainer"
_MHPATCHCORE = "adray.models.mhpatchcore.MhpatchcoreTrainer"
_CFA = "adray.models.cfa.CfaTrainer"
_CFLOW = "adray.models.cflow.CflowTrainer"
_FASTFLOW = "adray.models.fastflow.FastflowTrainer"
_PATCHFLOW = "adray.models.patchflow.PatchflowTrainer"
_UFLOW = "adray.models.uflow.UflowTrainer"
_VAE = "adray.models.vae.VaeTrainer"
_DFM = "adray.models.dfm.DfmTrainer"
_REVERSE_DISTILLATION = "adray.models.reverse_distillation.ReverseDistillationTrainer"
_SUBSPACEAD = "adray.models.subspacead.SubspaceadTrainer"
_ANOMALYDINO = "adray.models.anomalydino.AnomalydinoTrainer"
_SUPERAD = "adray.models.superad.SuperadTrainer"
_RAD = "adray.models.rad.RadTrainer"
_MUSC = "adray.models.musc.MuscTrainer"
_WORDHISTOGRAM = "adray.models.wordhistogram.WordhistogramTrainer"
_EFFICIENTAD = "adray.models.efficientad.EfficientadTrainer"


_SOFTPATCH = {"soft_weights": "lof", "num_neighbors": 1}
"""The authors' scores are squared distances that the bank alone weighs."""
_PHOTOGRAPHS = {
    "no_backbone_runs_from_the_second_epoch_on": "the autoencoder's target is the teacher's map of the augmented image",
    "duplicating_the_batch_leaves_the_loss_unchanged": "photographs, augmentation and dropout are drawn anew",
}
_SYNTHETIC_DEFECTS = {
    "duplicating_the_batch_leaves_the_loss_unchanged": "synthetic defects are drawn anew",
}
_DAMAGE = {
    "duplicating_the_batch_leaves_the_loss_unchanged": "the damage to be mended is drawn anew",
}
_LATENT_NOISE = {
    "duplicating_the_batch_leaves_the_loss_unchanged": "the latent map is drawn anew",
}
_DROPOUT = {
    "duplicating_the_batch_leaves_the_loss_unchanged": "the bottleneck's dropout is drawn anew",
}


def _dinomaly(
    size: str, crop_size: int, gpu: float, memory_gb: float, recenter: bool = False
) -> ModelSpec:
    """Make the row of ``dinomaly-<size>-<crop_size>``, also with Dinomaly2's context recentring.

    The images are resized to the eighth more that the paper crops.
    """
    model: dict[str, Any] = {"backbone": f"dinov2_vit_{size}_14"}
    if recenter:
        model["recenter"] = True
    if size == "large":
        model["layers"] = [f"blocks.{i}" for i in range(4, 19, 2)]
    return ModelSpec(
        f"dinomaly-{size}-{crop_size}" + ("-recentered" if recenter else ""),
        f"Dinomaly, DINOv2 ViT-{size[0].upper()}/14, {crop_size} px"
        + (", recentered (2025)" if recenter else " (2025)"),
        "foundation",
        "adray.models.dinomaly.DinomalyTrainer",
        model=model,
        train={"img_size": crop_size * 8 // 7, "crop_size": crop_size, "batch_size": 16},
        paper={"max_steps": 5000},
        quick={"num_epochs": 15},
        tier="extra" if recenter else "core",
        aliases=("dinomaly",) if (size, crop_size, recenter) == ("base", 392, False) else (),
        gpu=gpu,
        memory_gb=memory_gb,
        checkpoint_mb={"small": 250.0, "base": 980.0, "large": 1750.0}[size],
        version=2,
        exceptions=_DROPOUT,
    )


_DRAWN_VIEWS = {
    "no_backbone_runs_from_the_second_epoch_on": "views of the images are drawn anew",
    "shared_features_give_the_scores_of_the_backbone_itself": "drawn views go through the backbone in each trial",
}


def _inpformer(few: bool) -> ModelSpec:
    """Make a row of INP-Former, for many images or with the views that a few need.

    The images are resized to the eighth more that the paper crops. Views of four images make a
    batch of sixteen, of which 200 epochs of 22 views each have 1,100. The authors train one model of
    all categories.
    """
    return ModelSpec(
        "inpformer-base-392" + ("-fewshot" if few else ""),
        "INP-Former, DINOv2 ViT-B/14, 392 px" + (", drawn views (2025)" if few else " (2025)"),
        "foundation",
        "adray.models.inpformer.InpformerTrainer",
        model={"few_shot_views": True} if few else {},
        train={"img_size": 448, "crop_size": 392, "batch_size": 16},
        paper={"max_steps": 1100} if few else {"num_epochs": 200},
        quick={"max_steps": 300} if few else {"num_epochs": 15},
        tier="extra",
        aliases=() if few else ("inpformer", "inp-former"),
        gpu=0.5,
        memory_gb=10.0,
        checkpoint_mb=1100.0,
        exceptions=_DRAWN_VIEWS if few else {},
    )


def _generalad(size: str, img_size: int, gpu: float, memory_gb: float) -> ModelSpec:
    """Make a row of GeneralAD on the last block of a DINOv2 without registers."""
    letter = _DINOV2_LETTERS[size]
    model: dict[str, Any] = {"backbone": f"dinov2_vit{letter.lower()}14"}
    if size != "large":
        model["layer"] = "blocks.11"
    return ModelSpec(
        f"generalad-{size}-{img_size}",
        f"GeneralAD, DINOv2 ViT-{letter}/14, {img_size} px (2024)",
        "foundation",
        "adray.models.generalad.GeneraladTrainer",
        model=model,
        train={"img_size": img_size, "batch_size": 16},
        paper={"num_epochs": 160},
        quick={"num_epochs": 20},
        tier="extra",
        aliases=("generalad",) if size == "large" else (),
        gpu=gpu,
        memory_gb=memory_gb,
        checkpoint_mb={"small": 35.0, "large": 120.0}[size],
        exceptions={
            "duplicating_the_batch_leaves_the_loss_unchanged": "noise on patches is drawn anew",
        },
    )


def _l2bt(size: str, img_size: int, gpu: float, memory_gb: float) -> ModelSpec:
    """Make a row of L2BT, on the published DINOv2 with registers or on a small one without."""
    letter = _DINOV2_LETTERS[size]
    registers = "_reg4" if size == "base" else ""
    return ModelSpec(
        f"l2bt-{size}-{img_size}",
        f"L2BT, DINOv2 ViT-{letter}/14, {img_size} px (2025)",
        "foundation",
        "adray.models.l2bt.L2btTrainer",
        model={"backbone": f"dinov2_vit{letter.lower()}14{registers}"},
        train={"img_size": img_size, "batch_size": 4},
        paper={"num_epochs": 50},
        quick={"num_epochs": 20},
        tier="extra",
        aliases=("l2bt",) if size == "base" else (),
        gpu=gpu,
        memory_gb=memory_gb,
        checkpoint_mb={"small": 11.0, "base": 43.0}[size],
    )


_TURNED_VIEWS = {
    "shared_features_give_the_scores_of_the_backbone_itself": "turned views go through the backbone in each trial",
}
_DINOV2_LETTERS = {"small": "S", "base": "B", "large": "L", "giant": "g"}


_ANOMALYDINO_BANKS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("", {"coreset_ratio": 0.1}),
    "-fewshot": (", turned views", {"rotations": 8}),
    "-batched": (", a batch without labels", {"batched": True}),
}
"""What a name ends with, to words for it and what the bank is made of."""


def _subspacead(size: str, img_size: int, gpu: float, memory_gb: float, few: bool) -> ModelSpec:
    """Make a row of SubspaceAD, for many images or with the turned views that a few need."""
    letter = _DINOV2_LETTERS[size]
    model: dict[str, Any] = {"backbone": f"dinov2_vit{letter.lower()}14"}
    if size == "giant":
        model["backbone"] += "_reg4"
        model["layers"] = [f"blocks.{i}" for i in range(22, 29)]
    if few:
        model["rotations"] = 30
    return ModelSpec(
        f"subspacead-{size}-{img_size}" + ("-fewshot" if few else ""),
        f"SubspaceAD, DINOv2 ViT-{letter}/14, {img_size} px"
        + (", turned views (2026)" if few else " (2026)"),
        "foundation",
        _SUBSPACEAD,
        model=model,
        train={"img_size": img_size, "batch_size": 8},
        tier="extra",
        gpu=gpu,
        memory_gb=memory_gb,
        checkpoint_mb={"small": 2.0, "base": 8.0, "giant": 29.0}[size],
        exceptions=_TURNED_VIEWS if few else {},
    )


def _anomalydino(size: str, img_size: int, ending: str = "") -> ModelSpec:
    """Make a row of AnomalyDINO, with a coreset of many images, turned views of a few, or a batch."""
    letter = _DINOV2_LETTERS[size]
    backbone = f"dinov2_vit{letter.lower()}14"
    words, kept = _ANOMALYDINO_BANKS[ending]
    return ModelSpec(
        f"anomalydino-{size}-{img_size}{ending}",
        f"AnomalyDINO, DINOv2 ViT-{letter}/14, {img_size} px{words} (2025)",
        "foundation",
        _ANOMALYDINO,
        model={"backbone": backbone, **kept},
        train={"img_size": img_size, "batch_size": 8},
        tier="extra",
        gpu=0.25,
        memory_gb=6.0,
        exceptions=_TURNED_VIEWS if "rotations" in kept else {},
    )


def _rad(size: str, memory_gb: float) -> ModelSpec:
    """Make a row of RAD, with the published resize and crop."""
    letter = _DINOV2_LETTERS[size]
    return ModelSpec(
        f"rad-{size}-448",
        f"RAD, DINOv2 ViT-{letter}/14, 448 px (2026)",
        "foundation",
        _RAD,
        model={"backbone": f"dinov2_vit{letter.lower()}14"},
        train={"img_size": 512, "crop_size": 448, "batch_size": 8},
        tier="extra",
        gpu=0.5,
        memory_gb=memory_gb,
        checkpoint_mb={"small": 660.0, "base": 1320.0}[size],
    )


def _superad(size: str, img_size: int, turns: bool, gpu: float, memory_gb: float) -> ModelSpec:
    """Make a row of SuperAD, with or without the published turned views of the chosen images."""
    letter = _DINOV2_LETTERS[size]
    model: dict[str, Any] = {"backbone": f"dinov2_vit{letter.lower()}14"}
    if size == "large":
        model["layers"] = [f"blocks.{i}" for i in (5, 11, 17, 23)]
    if turns:
        model["rotations"] = 8
    return ModelSpec(
        f"superad-{size}-{img_size}",
        f"SuperAD, DINOv2 ViT-{letter}/14, {img_size} px"
        + (", turned views (2025)" if turns else " (2025)"),
        "foundation",
        _SUPERAD,
        model=model,
        train={"img_size": img_size, "batch_size": 8},
        tier="extra",
        gpu=gpu,
        memory_gb=memory_gb,
        checkpoint_mb={"small": 101.0, "large": 4832.0}[size],
        exceptions=_TURNED_VIEWS if turns else {},
    )


def _musc(size: str, img_size: int, memory_gb: float) -> ModelSpec:
    """Make a row of MuSc, which taps four blocks at equal distances."""
    letter = _DINOV2_LETTERS[size]
    model: dict[str, Any] = {"backbone": f"dinov2_vit{letter.lower()}14"}
    if size == "large":
        model["layers"] = [f"blocks.{i}" for i in (5, 11, 17, 23)]
    return ModelSpec(
        f"musc-{size}-{img_size}",
        f"MuSc, DINOv2 ViT-{letter}/14, {img_size} px (2024)",
        "foundation",
        _MUSC,
        model=model,
        train={"img_size": img_size, "batch_size": 8},
        tier="extra",
        gpu=0.5,
        memory_gb=memory_gb,
        checkpoint_mb={"small": 660.0, "large": 2340.0}[size],
    )


def _wordhistogram(size: str) -> ModelSpec:
    """Make a row of the word histogram."""
    letter = _DINOV2_LETTERS[size]
    return ModelSpec(
        f"wordhistogram-{size}-448",
        f"Word histogram, DINOv2 ViT-{letter}/14, 448 px (2026)",
        "foundation",
        _WORDHISTOGRAM,
        model={"backbone": f"dinov2_vit{letter.lower()}14"},
        train={"img_size": 448, "batch_size": 8},
        tier="extra",
        gpu=0.25,
        memory_gb=5.0,
    )


def _starter(
    method: str, title: str, family: str, trainer: str, checkpoint_mb: float = 0.0
) -> ModelSpec:
    """Make the row of a method on EfficientNet-Lite0, whose trained weights come with the program."""
    return ModelSpec(
        f"{method}-efficientnet-lite0",
        f"{title}, EfficientNet-Lite0",
        family,
        trainer,
        model={"backbone": "efficientnet_lite0"},
        train={"normalize": "minus1_1"},
        tier="extra",
        checkpoint_mb=checkpoint_mb,
        exceptions={"missing_weights_are_named": "its weights are installed with the program"},
    )


MODEL_SPECS: tuple[ModelSpec, ...] = (
    ModelSpec("padim", "PaDiM, ResNet-18 (2020)", "memory", _PADIM, checkpoint_mb=165.0),
    ModelSpec(
        "padim-wide-resnet50",
        "PaDiM, Wide ResNet-50-2 (2020)",
        "memory",
        _PADIM,
        model={"backbone": "wide_resnet50_2", "num_features": 550},
        train={"batch_size": 16},
        tier="extra",
        gpu=1.0,
        memory_gb=16.0,
        checkpoint_mb=4960.0,
    ),
    _starter("padim", "PaDiM", "memory", _PADIM, checkpoint_mb=165.0),
    ModelSpec(
        "patchcore",
        "PatchCore, Wide ResNet-50-2 (2022)",
        "memory",
        _PATCHCORE,
        train={"crop_size": 224, "batch_size": 16},
        gpu=0.5,
        memory_gb=6.0,
        checkpoint_mb=250.0,
    ),
    ModelSpec(
        "patchcore-resnet18",
        "PatchCore, ResNet-18 (2022)",
        "memory",
        _PATCHCORE,
        model={"backbone": "resnet18"},
        tier="extra",
        memory_gb=4.0,
        checkpoint_mb=60.0,
    ),
    _starter("patchcore", "PatchCore", "memory", _PATCHCORE, checkpoint_mb=20.0),
    ModelSpec(
        "softpatch-wide-resnet50",
        "SoftPatch, Wide ResNet-50-2 (2022)",
        "memory",
        _PATCHCORE,
        model=_SOFTPATCH,
        train={"crop_size": 224, "batch_size": 8},
        tier="extra",
        aliases=("softpatch",),
        gpu=0.5,
        memory_gb=8.0,
        checkpoint_mb=250.0,
    ),
    ModelSpec(
        "softpatch-resnet18",
        "SoftPatch, ResNet-18 (2022)",
        "memory",
        _PATCHCORE,
        model={"backbone": "resnet18", **_SOFTPATCH},
        tier="extra",
        memory_gb=4.0,
        checkpoint_mb=60.0,
    ),
    ModelSpec(
        "mhpatchcore-wide-resnet50",
        "MH-PatchCore, Wide ResNet-50-2 (2026)",
        "memory",
        _MHPATCHCORE,
        train={"crop_size": 224, "batch_size": 16},
        tier="extra",
        aliases=("mhpatchcore",),
        gpu=0.5,
        memory_gb=4.0,
    ),
    ModelSpec(
        "mhpatchcore-resnet18",
        "MH-PatchCore, ResNet-18 (2026)",
        "memory",
        _MHPATCHCORE,
        model={"backbone": "resnet18"},
        tier="extra",
    ),
    ModelSpec("dfkde", "DFKDE, ResNet-18 (2021)", "memory", _DFKDE),
    _starter("dfkde", "DFKDE", "memory", _DFKDE),
    ModelSpec(
        "cflow-resnet18",
        "CFLOW-AD, ResNet-18 (2022)",
        "flow",
        _CFLOW,
        model={"backbone": "resnet18"},
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        memory_gb=4.0,
        checkpoint_mb=115.0,
        version=2,
    ),
    ModelSpec(
        "cflow-wide-resnet50",
        "CFLOW-AD, Wide ResNet-50-2 (2022)",
        "flow",
        _CFLOW,
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        aliases=("cflow",),
        gpu=0.5,
        memory_gb=8.0,
        checkpoint_mb=1160.0,
        version=2,
    ),
    ModelSpec(
        "fastflow-resnet50",
        "FastFlow, ResNet-50 (2021)",
        "flow",
        _FASTFLOW,
        model={"backbone": "resnet50"},
        paper={"num_epochs": 500},
        quick={"num_epochs": 500},
        gpu=0.5,
        memory_gb=8.0,
        checkpoint_mb=520.0,
    ),
    ModelSpec(
        "fastflow-cait",
        "FastFlow, CaiT-M48 (2021)",
        "flow",
        _FASTFLOW,
        model={
            "backbone": "cait_m48_448",
            "layers": ["blocks.40"],
            "flow_steps": 20,
            "hidden_ratio": 0.16,
        },
        train={"img_size": 448},
        paper={"num_epochs": 500},
        quick={"num_epochs": 500},
        gpu=1.0,
        memory_gb=12.0,
        checkpoint_mb=81.0,
    ),
    ModelSpec(
        "fastflow-deit",
        "FastFlow, DeiT-B distilled (2021)",
        "flow",
        _FASTFLOW,
        model={
            "backbone": "deit_base_distilled_patch16_384",
            "layers": ["blocks.7"],
            "flow_steps": 20,
            "hidden_ratio": 0.16,
        },
        train={"img_size": 384},
        paper={"num_epochs": 500},
        quick={"num_epochs": 500},
        gpu=0.5,
        memory_gb=8.0,
        checkpoint_mb=81.0,
    ),
    ModelSpec(
        "fastflow-wide-resnet50",
        "FastFlow, Wide ResNet-50-2 (2021)",
        "flow",
        _FASTFLOW,
        model={"backbone": "wide_resnet50_2"},
        paper={"num_epochs": 500},
        quick={"num_epochs": 500},
        aliases=("fastflow",),
        gpu=0.5,
        memory_gb=8.0,
        checkpoint_mb=520.0,
    ),
    ModelSpec(
        "fastflow-resnet18",
        "FastFlow, ResNet-18 (2021)",
        "flow",
        _FASTFLOW,
        model={"backbone": "resnet18", "kernel_sizes": [3]},
        paper={"num_epochs": 500},
        quick={"num_epochs": 500},
        tier="extra",
        memory_gb=4.0,
        checkpoint_mb=64.0,
    ),
    ModelSpec(
        "patchflow-wide-resnet50",
        "PatchFlow, Wide ResNet-50-2 (2026)",
        "flow",
        _PATCHFLOW,
        train={"batch_size": 16},
        paper={"num_epochs": 100},
        quick={"num_epochs": 30},
        tier="extra",
        aliases=("patchflow",),
        gpu=0.5,
        memory_gb=6.0,
        checkpoint_mb=8.0,
    ),
    ModelSpec(
        "patchflow-resnet18",
        "PatchFlow, ResNet-18 (2026)",
        "flow",
        _PATCHFLOW,
        model={"backbone": "resnet18"},
        train={"batch_size": 16},
        paper={"num_epochs": 100},
        quick={"num_epochs": 30},
        tier="extra",
        memory_gb=4.0,
        checkpoint_mb=5.0,
    ),
    ModelSpec(
        "csflow",
        "CS-Flow, EfficientNet-B5 (2022)",
        "flow",
        "adray.models.csflow.CsflowTrainer",
        train={"img_size": 768, "batch_size": 16},
        paper={"num_epochs": 240},
        quick={"num_epochs": 60},
        gpu=0.5,
        memory_gb=8.0,
        checkpoint_mb=3150.0,
    ),
    ModelSpec(
        "uflow-wide-resnet50",
        "U-Flow, Wide ResNet-50-2 (2024)",
        "flow",
        _UFLOW,
        train={"img_size": 448, "batch_size": 16},
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        aliases=("uflow",),
        gpu=1.0,
        memory_gb=16.0,
        checkpoint_mb=400.0,
    ),
    ModelSpec(
        "uflow-mcait",
        "U-Flow, CaiT-M48 and CaiT-S24 (2024)",
        "flow",
        _UFLOW,
        model={"backbones": ["cait_m48_448", "cait_s24_224"], "layers": ["blocks.40", "blocks.20"]},
        train={"img_size": 448, "batch_size": 16},
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        gpu=1.0,
        memory_gb=12.0,
        checkpoint_mb=400.0,
    ),
    ModelSpec(
        "stfpm",
        "STFPM, ResNet-18 (2021)",
        "distillation",
        "adray.models.stfpm.StfpmTrainer",
        paper={"num_epochs": 100},
        quick={"num_epochs": 50},
        checkpoint_mb=32.0,
    ),
    ModelSpec(
        "fre",
        "FRE, ResNet-50 (2023)",
        "distillation",
        "adray.models.fre.FreTrainer",
        paper={"num_epochs": 220},
        quick={"num_epochs": 50},
        checkpoint_mb=170.0,
    ),
    ModelSpec(
        "reverse-distillation",
        "Reverse Distillation, Wide ResNet-50-2 (2022)",
        "distillation",
        _REVERSE_DISTILLATION,
        train={"batch_size": 16},
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        aliases=("rd4ad",),
        gpu=0.5,
        memory_gb=6.0,
        checkpoint_mb=960.0,
    ),
    ModelSpec(
        "reverse-distillation-resnet18",
        "Reverse Distillation, ResNet-18 (2022)",
        "distillation",
        _REVERSE_DISTILLATION,
        model={"backbone": "resnet18"},
        train={"batch_size": 16},
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        memory_gb=4.0,
        checkpoint_mb=180.0,
    ),
    ModelSpec(
        "efficientad-small",
        "EfficientAD-S (2024)",
        "distillation",
        _EFFICIENTAD,
        train={"batch_size": 1, "eval_batch_size": 8, "normalize": "none"},
        paper={"max_steps": 70_000},
        quick={"num_epochs": 20},
        aliases=("efficientad",),
        gpu=0.5,
        memory_gb=6.0,
        checkpoint_mb=62.0,
        exceptions=_PHOTOGRAPHS,
    ),
    ModelSpec(
        "efficientad-medium",
        "EfficientAD-M (2024)",
        "distillation",
        _EFFICIENTAD,
        model={"model_size": "medium"},
        train={"batch_size": 1, "eval_batch_size": 8, "normalize": "none"},
        paper={"max_steps": 70_000},
        quick={"num_epochs": 20},
        gpu=0.5,
        memory_gb=8.0,
        checkpoint_mb=150.0,
        exceptions=_PHOTOGRAPHS,
    ),
    ModelSpec(
        "autoencoder",
        "Convolutional autoencoder (baseline)",
        "reconstruction",
        "adray.models.autoencoder.AutoencoderTrainer",
        train={"normalize": "none"},
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        aliases=("vanilla-ae",),
        checkpoint_mb=65.0,
    ),
    ModelSpec(
        "unet-autoencoder",
        "Denoising U-Net (2015)",
        "reconstruction",
        "adray.models.unet_autoencoder.UnetAutoencoderTrainer",
        train={"normalize": "none"},
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        tier="extra",
        aliases=("unet-ae",),
        checkpoint_mb=73.0,
        exceptions=_DAMAGE,
    ),
    ModelSpec(
        "vae",
        "Variational autoencoder (2014)",
        "reconstruction",
        _VAE,
        train={"normalize": "none"},
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        tier="extra",
        aliases=("vanilla-vae",),
        checkpoint_mb=65.0,
        exceptions=_LATENT_NOISE,
    ),
    ModelSpec(
        "unet-vae",
        "Denoising variational U-Net (baseline)",
        "reconstruction",
        _VAE,
        model={"skips": 3, "corruption": 1.0},
        train={"normalize": "none"},
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        tier="extra",
        checkpoint_mb=73.0,
        exceptions=_DAMAGE,
    ),
    ModelSpec(
        "ganomaly",
        "GANomaly (2018)",
        "reconstruction",
        "adray.models.ganomaly.GanomalyTrainer",
        train={"normalize": "minus1_1"},
        paper={"num_epochs": 100},
        quick={"num_epochs": 100},
        gpu=0.5,
        memory_gb=8.0,
        checkpoint_mb=2160.0,
        version=2,
    ),
    ModelSpec(
        "draem",
        "DRAEM (2021)",
        "reconstruction",
        "adray.models.draem.DraemTrainer",
        train={"batch_size": 8, "normalize": "none"},
        paper={"num_epochs": 700},
        quick={"num_epochs": 100},
        gpu=0.5,
        memory_gb=4.0,
        checkpoint_mb=1120.0,
        exceptions=_SYNTHETIC_DEFECTS,
    ),
    ModelSpec(
        "dsr",
        "DSR (2022)",
        "reconstruction",
        "adray.models.dsr.DsrTrainer",
        train={"batch_size": 8, "normalize": "none"},
        paper={"max_steps": 150_000},
        quick={"num_epochs": 50},
        gpu=0.5,
        memory_gb=6.0,
        checkpoint_mb=420.0,
        exceptions={
            **_SYNTHETIC_DEFECTS,
            "no_backbone_runs_from_the_second_epoch_on": "codes are of turned, disturbed and painted images",
        },
    ),
    ModelSpec("dfm", "DFM, ResNet-50 (2019)", "adaptation", _DFM),
    ModelSpec(
        "dfm-wide-resnet50",
        "DFM, Wide ResNet-50-2 (2019)",
        "adaptation",
        _DFM,
        model={"backbone": "wide_resnet50_2"},
        tier="extra",
        gpu=0.5,
    ),
    ModelSpec(
        "dfm-resnet18",
        "DFM, ResNet-18 (2019)",
        "adaptation",
        _DFM,
        model={"backbone": "resnet18", "pool": 2},
        tier="extra",
    ),
    _starter("dfm", "DFM", "adaptation", _DFM),
    ModelSpec(
        "cfa",
        "CFA, Wide ResNet-50-2 (2022)",
        "adaptation",
        _CFA,
        train={"crop_size": 224, "batch_size": 4},
        paper={"num_epochs": 30},
        quick={"num_epochs": 30},
        gpu=0.5,
        memory_gb=8.0,
        checkpoint_mb=65.0,
        version=2,
    ),
    ModelSpec(
        "cfa-resnet18",
        "CFA, ResNet-18 (2022)",
        "adaptation",
        _CFA,
        model={"backbone": "resnet18"},
        train={"batch_size": 4},
        paper={"num_epochs": 30},
        quick={"num_epochs": 30},
        tier="extra",
        memory_gb=4.0,
    ),
    _dinomaly("small", 224, gpu=0.25, memory_gb=4.0),
    _dinomaly("small", 392, gpu=0.5, memory_gb=6.0),
    _dinomaly("small", 448, gpu=0.5, memory_gb=6.0),
    _dinomaly("base", 224, gpu=0.5, memory_gb=6.0),
    _dinomaly("base", 392, gpu=0.5, memory_gb=10.0),
    _dinomaly("base", 448, gpu=0.5, memory_gb=12.0),
    _dinomaly("large", 224, gpu=0.5, memory_gb=10.0),
    _dinomaly("large", 392, gpu=1.0, memory_gb=14.0),
    _dinomaly("large", 448, gpu=1.0, memory_gb=14.0),
    _dinomaly("base", 392, gpu=0.5, memory_gb=10.0, recenter=True),
    _inpformer(few=False),
    _inpformer(few=True),
    _subspacead("small", 448, gpu=0.25, memory_gb=4.0, few=False),
    _subspacead("small", 448, gpu=0.25, memory_gb=4.0, few=True),
    _subspacead("base", 448, gpu=0.25, memory_gb=5.0, few=False),
    _subspacead("giant", 672, gpu=1.0, memory_gb=16.0, few=True),
    _anomalydino("small", 448),
    _anomalydino("small", 448, "-fewshot"),
    _anomalydino("small", 672, "-fewshot"),
    _anomalydino("small", 672, "-batched"),
    _anomalydino("base", 448),
    _generalad("small", 448, gpu=0.25, memory_gb=5.0),
    _generalad("large", 518, gpu=0.5, memory_gb=10.0),
    _l2bt("small", 448, gpu=0.25, memory_gb=5.0),
    _l2bt("base", 1036, gpu=0.5, memory_gb=14.0),
    _rad("small", memory_gb=6.0),
    _rad("base", memory_gb=8.0),
    _wordhistogram("small"),
    _wordhistogram("base"),
    _superad("small", 448, turns=False, gpu=0.25, memory_gb=5.0),
    _superad("large", 672, turns=True, gpu=0.5, memory_gb=16.0),
    _musc("small", 448, memory_gb=6.0),
    _musc("large", 518, memory_gb=12.0),
    ModelSpec(
        "supersimplenet",
        "SuperSimpleNet, Wide ResNet-50-2 (2024)",
        "foundation",
        "adray.models.supersimplenet.SupersimplenetTrainer",
        paper={"num_epochs": 300},
        quick={"num_epochs": 100},
        gpu=0.5,
        memory_gb=6.0,
        checkpoint_mb=106.0,
        version=4,
        exceptions=_SYNTHETIC_DEFECTS,
    ),
    ModelSpec(
        "supersimplenet-supervised",
        "SuperSimpleNet with labelled defects, Wide ResNet-50-2 (2024)",
        "foundation",
        "adray.models.supersimplenet.SupersimplenetSupervisedTrainer",
        model={"perlin_threshold": 0.6},
        paper={"num_epochs": 300},
        quick={"num_epochs": 100},
        gpu=0.5,
        memory_gb=6.0,
        checkpoint_mb=106.0,
        version=4,
        exceptions={
            **_SYNTHETIC_DEFECTS,
            "no_backbone_runs_from_the_second_epoch_on": "defects are mirrored",
        },
    ),
    ModelSpec(
        "glass",
        "GLASS, Wide ResNet-50-2 (2024)",
        "foundation",
        "adray.models.glass.GlassTrainer",
        train={"img_size": 288, "batch_size": 8},
        paper={"num_epochs": 640},
        quick={"num_epochs": 40},
        tier="extra",
        gpu=0.5,
        memory_gb=6.0,
        checkpoint_mb=50.0,
        exceptions={
            **_SYNTHETIC_DEFECTS,
            "no_backbone_runs_from_the_second_epoch_on": "painted images go through it",
        },
    ),
    ModelSpec(
        "uninet",
        "UniNet, Wide ResNet-50-2 (2025)",
        "foundation",
        "adray.models.uninet.UninetTrainer",
        train={"batch_size": 8},
        paper={"num_epochs": 100},
        quick={"num_epochs": 20},
        gpu=0.5,
        memory_gb=6.0,
        checkpoint_mb=1380.0,
    ),
    ModelSpec(
        "winclip",
        "WinCLIP, CLIP ViT-B-16-plus (2023)",
        "foundation",
        "adray.models.winclip.WinclipTrainer",
        train={"img_size": 240, "batch_size": 16, "normalize": "clip"},
        tier="extra",
        gpu=0.5,
        memory_gb=6.0,
    ),
    ModelSpec(
        "vlm-ad",
        "VLM-AD, a chat model of your own (2024)",
        "foundation",
        "adray.models.vlm_ad.VlmAdTrainer",
        train={"img_size": 448, "batch_size": 8, "normalize": "none"},
        tier="extra",
        gpu=1.0,
        memory_gb=32.0,
        exceptions={
            "an_obvious_defect_scores_higher": "a chat model's answer is as random as its weights",
        },
    ),
)
