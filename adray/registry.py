"""Looks configurations up in the table of `adray.model_specs`. Importing this loads no torch."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from adray.config import TrainConfig, build, check_file_name
from adray.errors import InputError
from adray.fields import limits_of
from adray.language.sentence import Sentence, nearest_of, sentence_of
from adray.method import Method
from adray.model_specs import FAMILIES, MODEL_SPECS, ModelSpec
from adray.settings import get_globals

if TYPE_CHECKING:
    from adray.trainer import BaseTrainer

_MODELS = "adray.models."
_METHODS = "adray.methods."


@dataclass(frozen=True)
class Resolved:
    """A configuration with every hyperparameter decided."""

    spec: ModelSpec
    """The row it came from."""
    config: Any
    """The model's config dataclass."""
    train_config: TrainConfig
    """Epochs, sizes and so on."""

    @property
    def weight_files(self) -> tuple[str, ...]:
        """List the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return tuple(getattr(self.config, "weight_files", ()))

    @property
    def min_normals(self) -> int:
        """Give the training normals that the method, or what is asked of it, needs."""
        asked = getattr(self.config, "min_normals", 1)
        return max(asked, ModelRegistry.method(self.spec.name).min_normals)

    @property
    def auxiliary(self) -> str:
        """Name the images beside the products that it trains with, or their folder.

        Empty for none.
        """
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
            InputError: for a name that is taken by something else, a bad name, or an unknown
                family.
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
                Sentence.of(
                    "model family of",
                    family=repr(spec.family),
                    name=repr(spec.name),
                    nearest=nearest_of(spec.family, FAMILIES),
                )
            )
        if "." not in spec.trainer:
            raise InputError(
                Sentence.of("model trainer name", trainer=repr(spec.trainer), name=repr(spec.name))
            )
        for taken in (spec.name, *spec.aliases):
            if cls.is_registered(taken) and cls.get(taken) != spec:
                raise InputError(
                    Sentence.of(
                        "model name taken", taken=repr(taken), trainer=cls.get(taken).trainer
                    )
                )
        cls._specs[spec.name] = spec

    @classmethod
    def register_all_models(cls) -> None:
        """Fill the table and import the plugins of the settings.

        Done by every look-up, so nobody needs to.
        """
        for spec in MODEL_SPECS:
            cls._specs.setdefault(spec.name, spec)
        for plugin in get_globals().plugins:
            if plugin not in cls._plugins:
                cls._load_plugin(plugin)

    @classmethod
    def _load_plugin(cls, plugin: str) -> None:
        """Import a module that registers configurations. All of them count, or none.

        Raises:
            InputError: for a module that cannot be imported, and for a name that is taken.
        """
        before = dict(cls._specs)
        # It asks the registry itself while it is imported.
        cls._plugins.add(plugin)
        try:
            _import(plugin, "settings.plugins")
        except InputError:
            cls._plugins.discard(plugin)
            cls._specs.clear()
            cls._specs.update(before)
            raise

    @classmethod
    def get(cls, name: str) -> ModelSpec:
        """Find the row of a name or alias.

        Raises:
            InputError: for an unknown name, with the nearest.
        """
        cls.register_all_models()
        if name in cls._specs:
            return cls._specs[name]
        for spec in cls._specs.values():
            if name in spec.aliases:
                return spec
        raise InputError(
            Sentence.of("model unknown", name=repr(name), nearest=nearest_of(name, cls._names()))
        )

    @classmethod
    def is_registered(cls, name: str) -> bool:
        """Tell whether `name` is a configuration or an alias."""
        cls.register_all_models()
        return name in cls._names()

    @classmethod
    def list_models(cls, tier: str | None = None) -> list[str]:
        """List the names of all configurations, or of one tier, in the order of the table."""
        cls.register_all_models()
        return [spec.name for spec in cls._specs.values() if tier in (None, spec.tier)]

    @classmethod
    def list_by_category(cls, family: str | None = None) -> dict[str, list[str]] | list[str]:
        """List the core configurations of a family, or of every family as a mapping."""
        cls.register_all_models()
        families: dict[str, list[str]] = {name: [] for name in FAMILIES}
        for spec in cls._specs.values():
            if spec.tier == "core":
                families[spec.family].append(spec.name)

        if family is None:
            return families
        if family not in families:
            raise InputError(
                Sentence.of(
                    "model family", family=repr(family), nearest=nearest_of(family, FAMILIES)
                )
            )
        return families[family]

    @classmethod
    def select(cls, patterns: Iterable[str]) -> list[str]:
        """List the names that match any of `patterns`, in the order of the table.

        ``all`` matches every one.

        Raises:
            InputError: for a pattern that matches nothing, with the nearest name.
        """
        names = cls.list_models()
        chosen: set[str] = set()
        for pattern in patterns:
            matched = names if pattern == "all" else fnmatch.filter(names, pattern)
            chosen |= set(matched or [cls.get(pattern).name])  # an alias, or nothing that is known
        return [name for name in names if name in chosen]

    @classmethod
    def matches(cls, pattern: str, name: str) -> bool:
        """Tell whether ``all``, an alias or a pattern means the configuration `name`."""
        named = ("all", name, *cls.get(name).aliases)
        return pattern in named or fnmatch.fnmatchcase(name, pattern)

    @classmethod
    def get_train_config(cls, name: str, budget: str = "paper") -> TrainConfig:
        """Give how a configuration is trained within a budget, ``paper`` or ``quick``."""
        return cls.resolve(name, budget=budget).train_config

    @classmethod
    def get_model_config(cls, name: str) -> Any:
        """Give the hyperparameters of a configuration, an instance of its config dataclass."""
        return cls.resolve(name).config

    @classmethod
    def trainer_class(cls, name: str) -> type[BaseTrainer]:
        """Give the trainer class of a configuration. Load its module."""
        module, _, attribute = cls.get(name).trainer.rpartition(".")
        trainer = getattr(_import(module, f"trainer of {name!r}"), attribute, None)
        if trainer is None:
            raise InputError(
                Sentence.of(
                    "model trainer missing", name=repr(name), module=module, attribute=attribute
                )
            )
        return trainer

    @classmethod
    def method(cls, name: str) -> Method:
        """Give what is known of a configuration before its network is loaded.

        Most methods of this package say it in a file without torch. Of others the trainer is loaded.
        """
        module, _, attribute = cls.get(name).trainer.rpartition(".")
        known = _methods_of(module)
        if attribute in known:
            return known[attribute]
        trainer = cls.trainer_class(name)
        values = {field.name: getattr(trainer, field.name) for field in fields(Method)}
        return Method(**values)

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
            train: `TrainConfig` fields that win; `num_epochs` alone also takes the row's
                `max_steps` away.
            model: hyperparameters that win.
            budget: ``paper`` or ``quick``.
            weights: ``random`` leaves backbones untrained, where the configuration has one.

        Raises:
            InputError: for unknown names and values out of range.
        """
        spec = cls.get(name)
        method = cls.method(spec.name)

        asked = dict(train or {})
        lengths = dict(spec.paper if budget == "paper" else spec.quick)
        if "num_epochs" in asked:
            lengths.pop("max_steps", None)
        train_config = build(TrainConfig, {**spec.train, **lengths, **asked}, f"{spec.name}.train")
        if method.single_pass:
            train_config = replace(train_config, num_epochs=1, max_steps=None)

        values = {**spec.model, **(model or {})}
        if weights == "random" and "weights" in limits_of(method.config_class):
            values.setdefault("weights", "random")
        config: Any = build(method.config_class, values, f"{spec.name}.model")
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
        """Make a fresh trainer. See `resolve` for the arguments."""
        resolved = cls.resolve(name, train=train, model=model, budget=budget, weights=weights)
        return cls.trainer_class(name)(resolved.config, resolved.train_config, device, seed)

    @classmethod
    def _names(cls) -> list[str]:
        return [name for spec in cls._specs.values() for name in (spec.name, *spec.aliases)]


@functools.cache
def _methods_of(module: str) -> Mapping[str, Method]:
    """Give what the file beside a model's says of its trainers, nothing where there is none."""
    place = module.replace(_MODELS, _METHODS, 1)
    if place == module or importlib.util.find_spec(place) is None:
        return {}
    return importlib.import_module(place).METHODS


def _import(module: str, where: str) -> Any:
    """Import a module.

    Raises:
        InputError: for one that is missing, and for one that fails or ends the program.
    """
    try:
        return importlib.import_module(module)
    except SystemExit as error:
        raise InputError(
            Sentence.of("model module exits", where=where, module=module, code=str(error))
        ) from error
    except InputError as error:
        raise InputError(
            Sentence.of("model module wrong", where=where, module=module, error=sentence_of(error))
        ) from error
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            raise InputError(
                Sentence.of("model module needs", where=where, module=module, name=repr(error.name))
            ) from error
        raise InputError(
            Sentence.of("model module missing", where=where, name=repr(error.name))
        ) from error
    except Exception as error:  # whatever a module of the user's own does
        cause = " ".join(str(error).split())
        raise InputError(
            Sentence.of(
                "model module fails",
                where=where,
                module=module,
                kind=type(error).__name__,
                cause=cause,
            )
        ) from error
