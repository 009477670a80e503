"""All configurations in one table, and the class that finds them. Importing this loads no torch.

To add a model: its file in `adray/models` plus its rows in `MODEL_SPECS`. A model outside the package calls
`ModelRegistry.register` in a module that `settings.plugins` names.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from adray.config import TrainConfig, build, check_file_name
from adray.errors import InputError, nearest
from adray.settings import get_globals

if TYPE_CHECKING:
    from adray.trainer import BaseTrainer

FAMILIES = ("memory", "flow", "distillation", "reconstruction", "adaptation", "foundation")
TIERS = ("core", "extra")


@dataclass(frozen=True)
class ModelSpec:
    """One named configuration.

    Attributes:
        name: as users write it.
        title: method, backbone, year, for tables.
        family: kind of method, one of `FAMILIES`.
        trainer: dotted name of the trainer class.
        model: hyperparameters that differ from the defaults of the trainer's config dataclass.
        train: `TrainConfig` fields that differ from its defaults, for both budgets.
        paper: training length as published.
        quick: training length of the specification.
        tier: ``core`` or ``extra``.
        aliases: other names.
        version: raised by hand when scores change, so that stored results count as stale.
        gpu: share of a GPU that a trial takes unless the sweep says otherwise.
        memory_gb: host memory that a trial takes unless the sweep says otherwise.
        checkpoint_mb: size of a checkpoint with the optimiser's state; 0 for a small or unknown one.
    """

    name: str
    title: str
    family: str
    trainer: str
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    tier: str = "core"
    aliases: tuple[str, ...] = ()
    version: int = 1
    gpu: float = 0.25
    memory_gb: float = 3.0
    checkpoint_mb: float = 0.0


_PADIM = "adray.models.padim.PadimTrainer"
_PATCHCORE = "adray.models.patchcore.PatchcoreTrainer"
_CFA = "adray.models.cfa.CfaTrainer"
_CFLOW = "adray.models.cflow.CflowTrainer"
_FASTFLOW = "adray.models.fastflow.FastflowTrainer"
_UFLOW = "adray.models.uflow.UflowTrainer"
_VAE = "adray.models.vae.VaeTrainer"
_DFM = "adray.models.dfm.DfmTrainer"
_REVERSE_DISTILLATION = "adray.models.reverse_distillation.ReverseDistillationTrainer"
_EFFICIENTAD = "adray.models.efficientad.EfficientadTrainer"


def _dinomaly(size: str, crop_size: int, gpu: float, memory_gb: float) -> ModelSpec:
    """The row of ``dinomaly-<size>-<crop_size>``; the images are resized to the eighth more that the paper crops."""
    model: dict[str, Any] = {"backbone": f"dinov2_vit_{size}_14"}
    if size == "large":
        model["layers"] = [f"blocks.{i}" for i in range(4, 19, 2)]
    return ModelSpec(
        f"dinomaly-{size}-{crop_size}",
        f"Dinomaly, DINOv2 ViT-{size[0].upper()}/14, {crop_size} px (2025)",
        "foundation",
        "adray.models.dinomaly.DinomalyTrainer",
        model=model,
        train={"img_size": crop_size * 8 // 7, "crop_size": crop_size, "batch_size": 16},
        paper={"max_steps": 5000},
        quick={"num_epochs": 15},
        aliases=("dinomaly",) if (size, crop_size) == ("base", 392) else (),
        gpu=gpu,
        memory_gb=memory_gb,
        checkpoint_mb={"small": 250.0, "base": 980.0, "large": 1750.0}[size],
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
    ModelSpec("dfkde", "DFKDE, ResNet-18 (2021)", "memory", "adray.models.dfkde.DfkdeTrainer"),
    ModelSpec(
        "cflow-resnet18",
        "CFLOW-AD, ResNet-18 (2022)",
        "flow",
        _CFLOW,
        model={"backbone": "resnet18"},
        paper={"num_epochs": 200},
        quick={"num_epochs": 50},
        memory_gb=4.0,
        checkpoint_mb=100.0,
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
        checkpoint_mb=940.0,
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
    ),
    ModelSpec(
        "dsr",
        "DSR (2022)",
        "reconstruction",
        "adray.models.dsr.DsrTrainer",
        train={"batch_size": 8, "normalize": "none"},
        paper={"num_epochs": 150},
        quick={"num_epochs": 50},
        gpu=0.5,
        memory_gb=6.0,
        checkpoint_mb=420.0,
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
    ModelSpec(
        "cfa",
        "CFA, Wide ResNet-50-2 (2022)",
        "adaptation",
        _CFA,
        train={"batch_size": 4},
        paper={"num_epochs": 30},
        quick={"num_epochs": 30},
        gpu=0.5,
        memory_gb=8.0,
        checkpoint_mb=65.0,
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
        version=3,
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
        version=3,
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
    ),
)


@dataclass(frozen=True)
class Resolved:
    """A configuration with every hyperparameter decided.

    Attributes:
        spec: the row it came from.
        config: the model's config dataclass.
        train_config: epochs, sizes and so on.
    """

    spec: ModelSpec
    config: Any
    train_config: TrainConfig

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return tuple(getattr(self.config, "weight_files", ()))

    @property
    def auxiliary(self) -> str:
        """Name or folder of the images beside the products that it trains with; empty for none."""
        return getattr(self.config, "auxiliary", "")


class ModelRegistry:
    """Finds configurations by name, alias, pattern or family."""

    _specs: ClassVar[dict[str, ModelSpec]] = {}
    _plugins: ClassVar[set[str]] = set()

    @classmethod
    def register(
        cls,
        name: str | ModelSpec,
        trainer: str = "",
        model: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
        family: str = "reconstruction",
    ) -> None:
        """Add a configuration: a `ModelSpec`, or the specification's four arguments.

        Args:
            name: a `ModelSpec`, or the name of a new configuration of tier ``extra``.
            trainer: dotted name of the trainer class.
            model: the model's hyperparameters.
            train: `TrainConfig` fields.
            family: one of `FAMILIES`.

        Raises:
            InputError: for a name that is taken by something else, a bad name, or an unknown family.
        """
        if isinstance(name, ModelSpec):
            spec = name
        else:
            spec = ModelSpec(
                name, name, family, trainer, dict(model or {}), dict(train or {}), tier="extra"
            )
        check_file_name("configuration name", spec.name)
        if spec.family not in FAMILIES:
            raise InputError(
                f"family {spec.family!r} of {spec.name!r} is not known; {nearest(spec.family, FAMILIES)}"
            )
        if "." not in spec.trainer:
            raise InputError(
                f"trainer {spec.trainer!r} of {spec.name!r} must be a dotted name, module.Class"
            )
        for taken in (spec.name, *spec.aliases):
            if cls.is_registered(taken) and cls.get(taken) != spec:
                raise InputError(
                    f"configuration name {taken!r} is taken by {cls.get(taken).trainer}; choose another"
                )
        cls._specs[spec.name] = spec

    @classmethod
    def register_all_models(cls) -> None:
        """Fill the table and import the plugins of the settings; done by every look-up, so nobody needs to."""
        for spec in MODEL_SPECS:
            cls._specs.setdefault(spec.name, spec)
        for plugin in get_globals().plugins:
            if plugin not in cls._plugins:
                cls._plugins.add(plugin)
                _import(plugin, "settings.plugins")

    @classmethod
    def get(cls, name: str) -> ModelSpec:
        """The row of a name or alias.

        Raises:
            InputError: for an unknown name, with the nearest.
        """
        cls.register_all_models()
        if name in cls._specs:
            return cls._specs[name]
        for spec in cls._specs.values():
            if name in spec.aliases:
                return spec
        raise InputError(f"unknown model {name!r}; {nearest(name, cls._names())}")

    @classmethod
    def is_registered(cls, name: str) -> bool:
        """Whether `name` is a configuration or an alias."""
        cls.register_all_models()
        return name in cls._names()

    @classmethod
    def list_models(cls, tier: str | None = None) -> list[str]:
        """Names of all configurations, or of one tier, in the order of the table."""
        cls.register_all_models()
        return [spec.name for spec in cls._specs.values() if tier in (None, spec.tier)]

    @classmethod
    def list_by_category(cls, family: str | None = None) -> dict[str, list[str]] | list[str]:
        """Names of the core configurations of a family, or of every family as a mapping."""
        cls.register_all_models()
        families = {
            f: [s.name for s in cls._specs.values() if s.family == f and s.tier == "core"]
            for f in FAMILIES
        }
        if family is None:
            return families
        if family not in families:
            raise InputError(f"unknown family {family!r}; {nearest(family, FAMILIES)}")
        return families[family]

    @classmethod
    def select(cls, patterns: Iterable[str]) -> list[str]:
        """Names that match any of `patterns`, in the order of the table; ``all`` matches every one.

        Raises:
            InputError: for a pattern that matches nothing, with the nearest name.
        """
        chosen: set[str] = set()
        for pattern in patterns:
            matched = set(
                cls.list_models()
                if pattern == "all"
                else fnmatch.filter(cls.list_models(), pattern)
            )
            chosen |= matched or {cls.get(pattern).name}
        return [name for name in cls.list_models() if name in chosen]

    @classmethod
    def matches(cls, pattern: str, name: str) -> bool:
        """Whether ``all``, an alias or a pattern means the configuration `name`."""
        return pattern in ("all", *cls.get(name).aliases) or fnmatch.fnmatchcase(name, pattern)

    @classmethod
    def get_train_config(cls, name: str, budget: str = "paper") -> TrainConfig:
        """How a configuration is trained within a budget, ``paper`` or ``quick``."""
        return cls.resolve(name, budget=budget).train_config

    @classmethod
    def get_model_config(cls, name: str) -> Any:
        """The hyperparameters of a configuration, an instance of its config dataclass; loads its module."""
        return cls.resolve(name).config

    @classmethod
    def trainer_class(cls, name: str) -> type[BaseTrainer]:
        """The trainer class of a configuration; loads its module."""
        module, _, attribute = cls.get(name).trainer.rpartition(".")
        trainer = getattr(_import(module, f"trainer of {name!r}"), attribute, None)
        if trainer is None:
            raise InputError(f"trainer of {name!r}: module {module} has no {attribute}")
        return trainer

    @classmethod
    def resolve(
        cls,
        name: str,
        *,
        train: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        budget: str = "paper",
        weights: str = "pretrained",
    ) -> Resolved:
        """Decide every hyperparameter: defaults, then the row, then what the user gave.

        Args:
            name: configuration or alias.
            train: `TrainConfig` fields that win; `num_epochs` alone also takes the row's `max_steps` away.
            model: hyperparameters that win.
            budget: ``paper`` or ``quick``.
            weights: ``random`` leaves backbones untrained, where the configuration has one.

        Raises:
            InputError: for unknown names and values out of range.
        """
        spec, train, model = cls.get(name), dict(train or {}), dict(model or {})
        trainer = cls.trainer_class(spec.name)
        lengths = dict(spec.paper if budget == "paper" else spec.quick)
        if "num_epochs" in train:
            lengths.pop("max_steps", None)
        train_config = build(TrainConfig, {**spec.train, **lengths, **train}, f"{spec.name}.train")
        if trainer.single_pass:
            train_config = replace(train_config, num_epochs=1, max_steps=None)
        if weights == "random" and "weights" in trainer.config_class.__dataclass_fields__:  # type: ignore[attr-defined]
            model.setdefault("weights", "random")
        config: Any = build(trainer.config_class, {**spec.model, **model}, f"{spec.name}.model")
        return Resolved(spec, config, train_config)

    @classmethod
    def get_trainer(
        cls,
        name: str,
        *,
        train: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        budget: str = "paper",
        weights: str = "pretrained",
        device: str = "cpu",
        seed: int = 42,
    ) -> BaseTrainer:
        """A fresh trainer; see `resolve` for the arguments."""
        resolved = cls.resolve(name, train=train, model=model, budget=budget, weights=weights)
        return cls.trainer_class(name)(resolved.config, resolved.train_config, device, seed)

    @classmethod
    def _names(cls) -> list[str]:
        return [name for spec in cls._specs.values() for name in (spec.name, *spec.aliases)]


def _import(module: str, where: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{where}: module {error.name!r} cannot be imported; check its name and the Python path"
        ) from error
