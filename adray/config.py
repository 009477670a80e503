"""What can be configured, as frozen dataclasses, and how plain values become them.

Defaults live in the dataclasses, never in YAML: a file holds differences. Unknown keys, wrong types
and values out of range are refused where they enter, with the path of the key, what is allowed and
the nearest match.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from adray.conditions import PLAIN_LABEL, ConditionConfig
from adray.errors import InputError
from adray.fields import check_fields, check_range, limits_of, option
from adray.language.sentence import Sentence, Term, nearest_of, sentence_of
from adray.settings import Settings
from adray.thresholds import FALSE_ALARMS, MOST_TRIED, check_rate
from adray.tiling import Tiling

T = TypeVar("T")
TILE_DEFAULTS = {
    "tile": None,
    "overlap": 0.25,
    "scale": 1.0,
    "tile_top": 0.0,
    "tile_model": "shared",
}
"""Of the fields of `TrainConfig` that say how images are cut into tiles."""
CROSS = "cross"
"""Calibration by training normals, each scored by a model that was fitted without it."""
_SCALARS = {bool: "true or false", int: "a whole number", float: "a finite number"}
"""What a plain value must be, by its type."""
_MOST_NAME_BYTES = 150
ASPECTS = (0.1, 10.0)
"""Least and greatest width over height of a model's input."""
_PATCH = 14
"""Side in pixels of the patches of a DINOv2, of which the longer side of a rectangle has whole ones."""


@dataclass(frozen=True)
class TrainConfig:
    """How a configuration is trained, whatever its model."""

    num_epochs: int = option(1, low=1)
    """Passes over the training images."""
    max_steps: int | None = option(None, low=1)
    """Optimiser steps; where given, it decides instead of `num_epochs`."""
    batch_size: int = option(32, low=1)
    """Images per training step."""
    eval_batch_size: int | None = option(None, low=1)
    """Images per evaluation step, `batch_size` where None; it does not change scores."""
    img_size: int = option(256, low=8, high=4096)
    """Side in pixels that images are resized to, the shorter one where `aspect` is not 1."""
    aspect: float = option(1.0, low=ASPECTS[0], high=ASPECTS[1], later=True)
    """Width of the model's input over its height; `img_size` is the shorter side. The longer one is
    rounded to a multiple of 14 pixels. 1 is a square, which every method takes."""
    crop_size: int | None = option(None, low=8, high=4096)
    """Side of the centre crop after resizing, or None."""
    fit: Literal["squeeze", "pad", "crop"] = option("squeeze", later=True)
    """How an image of another shape becomes the input: ``squeeze`` changes its aspect ratio, ``pad``
    keeps it, with room that does not count, ``crop`` keeps it and takes the middle."""
    tile: int | None = option(None, low=32, high=4096, unit="pixels")
    """Side of the overlapping tiles that images are cut into for training and prediction, each of
    which becomes an input; None takes images whole."""
    overlap: float = option(0.25, low=0, high=0.75)
    """Part of a tile that its neighbour shares at least."""
    scale: float = option(1.0, low=0.01, high=8)
    """Sides of an image before it is cut into tiles, as parts of its own."""
    tile_top: float = option(0.0, low=0, high=1)
    """Part of an image's tiles, those with the highest scores, whose mean is its score; 0 takes the
    highest alone."""
    tile_model: Literal["shared", "position"] = option("shared", later=True)
    """``shared`` has one model for all tiles. ``position`` has one for each place of a tile, for
    methods that look at places, products that lie alike, and images of one size."""
    normalize: Literal["imagenet", "none", "minus1_1", "clip"] = option(
        "imagenet", synonyms={True: "imagenet", False: "none"}
    )
    """``imagenet``, ``clip``, ``none`` for [0, 1] or ``minus1_1`` for [-1, 1]; true, false mean
    imagenet, none."""
    holdout: int | float = option(0.1, low=0)
    """Training normals kept for validation and calibration: a part up to 0.9, or from 1 on a number
    of images per category; 0 trains on all."""
    calibration: Literal["holdout", "cross"] = "holdout"
    """Whose scores calibrate verdicts: ``holdout`` for normals kept from training. ``cross`` for all
    training normals, each scored by a model that was fitted without it; nothing is held out."""
    patience: int | None = option(None, low=1)
    """Epochs without a better validation score after which training stops; None never stops
    early."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """``float32``, or automatic mixed precision in ``bfloat16`` or ``float16``."""
    split_mode: Literal["1cls", "2cls_highshot", "2cls_fewshot"] = "1cls"
    """Which published split a data set that has several uses."""
    train_defects: float = option(0.0, low=0, high=0.9)
    """Part of the labelled defects that goes to training, for supervised configurations."""

    def __post_init__(self) -> None:
        """Check ranges, and that the crop lies inside of the image."""
        check_fields(self)
        check_holdout(self.holdout)
        if self.crop_size is not None and self.crop_size > self.img_size:
            raise InputError(
                Sentence.of("config crop_size", crop_size=self.crop_size, img_size=self.img_size)
            )
        self._check_tiles()
        check_aspect(self.aspect, self.crop_size, self.tile)

    def _check_tiles(self) -> None:
        """Refuse what says nothing beside tiles, or without them.

        Raises:
            InputError: with the value.
        """
        if self.tile is not None and self.fit != "squeeze":
            raise InputError(Sentence.of("config fit and tile", fit=self.fit, tile=self.tile))
        plain = TILE_DEFAULTS
        for name in ("overlap", "scale", "tile_top", "tile_model"):
            value = getattr(self, name)
            if self.tile is None and value != plain[name]:
                raise InputError(Sentence.of("config without tiles", name=name, value=value))

    @property
    def tiling(self) -> Tiling | None:
        """Give how images are cut into tiles, None where they are taken whole."""
        return None if self.tile is None else Tiling(self.tile, self.overlap, self.scale)

    @property
    def input_size(self) -> int:
        """Side in pixels of what the model sees: of an image, or of a tile, which is not cropped.

        The shorter one of a rectangle.
        """
        return self.crop_size or self.img_size

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width in pixels of what the model sees."""
        return input_shape(self.input_size, self.aspect)

    @property
    def kept_apart(self) -> int | float:
        """Give the part or number of training normals that do not train, 0 for none."""
        return 0.0 if self.calibration == CROSS else self.holdout


def input_shape(shorter: int, aspect: float) -> tuple[int, int]:
    """Give height and width in pixels of a rectangle.

    Args:
        shorter: its shorter side.
        aspect: width over height. The longer side is the nearest multiple of a patch of 14 pixels,
            but never below the shorter one.
    """
    if aspect == 1:
        return shorter, shorter
    patches = math.floor(shorter * max(aspect, 1 / aspect) / _PATCH + 0.5)
    longer = max(shorter, patches * _PATCH)
    return (shorter, longer) if aspect > 1 else (longer, shorter)


def check_aspect(aspect: float, crop_size: int | None, tile: int | None) -> None:
    """Refuse a rectangle that is too long, and what makes squares beside one.

    Raises:
        InputError: with the value and the remedy.
    """
    check_range("aspect", aspect, *ASPECTS)
    if aspect == 1:
        return
    if crop_size is not None:
        raise InputError(
            Sentence.of("config aspect crop", aspect=f"{aspect:g}", crop_size=crop_size)
        )
    if tile is not None:
        raise InputError(Sentence.of("config aspect tile", aspect=f"{aspect:g}", tile=tile))


def check_holdout(value: int | float) -> None:
    """Refuse what is neither a part of the training normals nor a number of them.

    Raises:
        InputError: for anything but a number in [0, 0.9], or a whole one from 1 on.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    is_part = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 0.9
    if not is_part and not (is_whole and value >= 1):
        raise InputError(Sentence.of("config holdout", value=repr(value)))


@dataclass(frozen=True)
class ExcludeRule:
    """Cells of the grid that are left out: those that match all four."""

    models: tuple[str, ...] = ("*",)
    """Names or patterns of configurations."""
    datasets: tuple[str, ...] = ("*",)
    """Names or patterns of data sets."""
    categories: tuple[str, ...] = ("*",)
    """Names or patterns of categories."""
    conditions: tuple[str, ...] = ("*",)
    """Names or patterns of ``grid.conditions``, or of what the plan calls them, such as
    ``k_shot=1``."""


@dataclass(frozen=True)
class GridConfig:
    """What is multiplied out."""

    datasets: Mapping[str, Any]
    """Name of a data set to ``each``, ``all``, a list of categories, or a list of lists that are
    merged."""
    models: tuple[str, ...] = ("all",)
    """Names or patterns of configurations, or ``all``."""
    seeds: tuple[int, ...] = option((42,), low=0, high=2**32 - 1)
    """Seeds of the trials."""
    conditions: Mapping[str, ConditionConfig] = field(
        default_factory=lambda: {PLAIN_LABEL: ConditionConfig()}
    )
    """Name of a condition of training or of the test to what it changes; ``plain: {}`` changes
    nothing."""
    exclude: tuple[ExcludeRule, ...] = ()
    """Cells to leave out."""

    def __post_init__(self) -> None:
        """Check that there is something to run."""
        for name in ("models", "datasets", "seeds", "conditions"):
            if not getattr(self, name):
                raise InputError(Sentence.of("config grid empty", name=name))
        if len(set(self.seeds)) != len(self.seeds):
            raise InputError(Sentence.of("config seeds twice", seeds=str(list(self.seeds))))
        check_fields(self)


@dataclass(frozen=True)
class ResourceRule:
    """What the trials of some models take; the first rule that matches a trial wins."""

    models: tuple[str, ...] = ("*",)
    """Names or patterns of configurations."""
    gpu: float | None = option(None, low=0, high=64)
    """Share of a GPU up to 1, or a whole number of GPUs; None lets the program choose."""
    cpu: int | None = option(None, low=1, high=1024)
    """CPUs, which is also the number of threads; None lets the program choose."""
    memory_gb: float | None = option(None, low=0.1, high=1e5)
    """Host memory in GB; None lets the program choose."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)
        if self.gpu is not None and self.gpu > 1 and self.gpu != int(self.gpu):
            raise InputError(Sentence.of("config gpu", gpu=str(self.gpu)))


@dataclass(frozen=True)
class SyntheticConfig:
    """Generated images in the MVTec layout, for a first look without any data."""

    train: int = option(24, low=1, high=10_000)
    """Normal training images per category."""
    good: int = option(8, low=1, high=10_000)
    """Normal test images per category."""
    defects: int = option(12, low=1, high=10_000)
    """Defective test images per category."""
    size: int = option(128, low=32, high=2048)
    """Side in pixels."""
    seed: int = 0
    """Seed of the generator."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)


@dataclass(frozen=True)
class SearchConfig:
    """A hyperparameter search of each of the grid's models, over all categories and seeds."""

    space: Any = "auto"
    """File of the search space, the space itself, or ``auto`` for what the model declares."""
    num_samples: int = option(40, low=2, high=100_000)
    """Settings that are tried, the defaults among them; a grid may have fewer."""
    searcher: Literal["random", "grid", "optuna"] = "random"
    """Who proposes settings; ``optuna`` (its TPE) needs `pip install 'adray[search]'`."""
    grid_points: int = option(3, low=1, high=100)
    """Values per range of a grid."""
    scheduler: Literal["none", "asha"] = "none"
    """``asha`` gives up early: after some epochs of trained models, after some categories of
    one-pass models."""
    objective: Literal["synthetic", "held_out_categories", "test"] = "synthetic"
    """Defects drawn on held-out normals; the test images of `categories` only; or the test set,
    which is LEAKY."""
    categories: tuple[str, ...] = ()
    """For ``held_out_categories``: where the search looks; the winner is meant for the grid's
    others."""
    metric: str = "image_auroc"
    """Metric of which the mean over categories and seeds is maximised."""
    seed: int = option(0, low=0, high=2**32 - 1)
    """Seed of the searcher."""

    def __post_init__(self) -> None:
        """Check ranges, and what goes together."""
        check_fields(self)
        if not isinstance(self.space, str | Mapping):
            raise InputError(Sentence.of("config space", space=_show(self.space)))
        if (self.objective == "held_out_categories") != bool(self.categories):
            raise InputError(Sentence.of("config search categories"))
        if self.scheduler == "asha" and self.searcher == "optuna":
            raise InputError(Sentence.of("config asha optuna"))


@dataclass(frozen=True)
class VerdictConfig:
    """How scores become verdicts, and what is promised of them."""

    false_alarms: float | tuple[float, ...] = FALSE_ALARMS
    """Part of new normal images that may be called anomalous, such as 0.01; of several the first
    gives the verdicts, and all are reported."""
    per_day: float | None = option(None, low=1e-6, high=1e9)
    """False alarms that a day may have, in place of `false_alarms`; needs `parts_per_day`."""
    parts_per_day: int | None = option(None, low=1, high=1_000_000_000)
    """Parts that a day brings."""
    tried: int = option(1, low=1, high=MOST_TRIED)
    """Number of settings of which this one was chosen by the normals that calibrate it; a search
    writes it for its winner, and the promise then holds whichever was chosen."""

    def __post_init__(self) -> None:
        """Check ranges, and what goes together."""
        check_fields(self)
        if (self.per_day is None) != (self.parts_per_day is None):
            raise InputError(Sentence.of("config per_day alone"))
        if self.per_day is not None and self.parts_per_day is not None:
            self._check_per_day(self.per_day, self.parts_per_day)
        if not self.rates:
            raise InputError(Sentence.of("config false_alarms empty"))
        for rate in self.rates:
            check_rate("false_alarms", rate)

    def _check_per_day(self, per_day: float, parts: int) -> None:
        """Refuse as many false alarms as parts, and a second rate beside them."""
        if per_day >= parts:
            raise InputError(
                Sentence.of("config per_day many", per_day=f"{per_day:g}", parts=parts)
            )
        if self.false_alarms != FALSE_ALARMS:
            raise InputError(
                Sentence.of(
                    "config false_alarms twice",
                    false_alarms=str(self.false_alarms),
                    per_day=f"{per_day:g}",
                )
            )

    @property
    def rates(self) -> tuple[float, ...]:
        """Give the rates that are asked for, first that of the verdicts."""
        if self.per_day is not None and self.parts_per_day is not None:
            return (self.per_day / self.parts_per_day,)
        if isinstance(self.false_alarms, tuple):
            return self.false_alarms
        return (self.false_alarms,)


@dataclass(frozen=True)
class SweepConfig:
    """One sweep: what runs, on what data, with which budget and resources."""

    name: str
    """Name of the sweep, a plain file name."""
    grid: GridConfig
    """Models, data sets and seeds that are multiplied out into trials."""
    settings: Settings = field(default_factory=Settings)
    """Paths and limits, fields of `adray.settings.Settings`."""
    generate: Mapping[str, SyntheticConfig] = field(default_factory=dict)
    """Data sets that are generated into `dataset_dir` before anything else, by name."""
    budget: Literal["paper", "quick"] = "paper"
    """``paper`` trains as published, ``quick`` for the specification's shorter epochs."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """``random`` runs untrained backbones, which shows that everything works and finds few
    defects."""
    overrides: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Name or pattern of configurations to ``{train: {...}, model: {...}}``; later ones win."""
    resources: tuple[ResourceRule, ...] = ()
    """GPU share, CPUs and memory of some models; what no rule names, the program chooses."""
    keep: Literal["all", "whole", "best", "none"] = "all"
    """Which checkpoints stay: all, all with their backbones in them (``whole``), that of
    the model to deploy of each category (``best``), or none."""
    save_maps: int = option(8, low=0, high=10_000)
    """Anomaly map pictures per trial and class; 0 draws none."""
    trial_hours: float = option(24.0, low=1e-4, high=24 * 365)
    """A trial that takes longer is stopped; one with a progress checkpoint continues from it
    next time."""
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    """What is asked of verdicts."""
    search: SearchConfig | None = None
    """Hyperparameter search in place of the grid's defaults."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_file_name("name", self.name)
        for name in self.generate:
            check_file_name("generate", name)
        check_fields(self)
        if self.search is not None and set(self.grid.conditions) != {PLAIN_LABEL}:
            raise InputError(
                Sentence.of("config search conditions", conditions=str(list(self.grid.conditions)))
            )
        corrupted = [name for name, one in self.grid.conditions.items() if one.is_of_test]
        if corrupted and self.keep == "none":
            raise InputError(Sentence.of("config corrupted keep", corrupted=str(corrupted)))


def check_file_name(name: str, value: str) -> None:
    """Refuse what would not be one plain folder of the store.

    Raises:
        InputError: with the name and the value.
    """
    forbidden = any(character in value for character in "/\\\0\n\r")
    if not value or value.startswith(".") or forbidden:
        raise InputError(Sentence.of("config name letters", name=name, value=repr(value)))
    if len(value.encode()) > _MOST_NAME_BYTES:
        raise InputError(
            Sentence.of(
                "config name long",
                name=name,
                value=repr(value[:20]),
                most=_MOST_NAME_BYTES,
            )
        )


def build(cls: type[T], values: Any, where: str) -> T:
    """Make a frozen dataclass from a mapping, strictly.

    Args:
        cls: the dataclass.
        values: mapping of its fields; nested mappings become nested dataclasses, lists become
            tuples.
        where: path of the mapping in messages, for instance ``"grid"``.

    Raises:
        InputError: for an unknown key, a missing one, a wrong type, or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise InputError(
            Sentence.of(
                "config file mapping", where=where or Term("the file"), values=_show(values)
            )
        )
    _check_keys(cls, values, where)

    hints = _hints_of(cls)  # type: ignore[arg-type]  # mypy doubts that a class can be hashed
    limits = limits_of(cls)
    built = {}
    for key, value in values.items():
        if isinstance(value, bool):
            value = limits[key].synonyms.get(value, value)
        built[key] = convert(value, hints[key], join(where, key))

    try:
        return cls(**built)
    except InputError as error:
        message = str(error)
        first_word = message.partition(" ")[0]
        if not where or (first_word not in limits and message.startswith(where)):
            raise  # a nested one has said where it stands

        key = "config key" if first_word in limits else "config place"
        raise InputError(Sentence.of(key, where=where, said=sentence_of(error))) from error


@functools.cache
def _hints_of(cls: Any) -> Mapping[str, Any]:
    """Give the types of a dataclass's fields. Kept, since they are read from text each time."""
    return typing.get_type_hints(cls)


def _check_keys(cls: type, values: Mapping[str, Any], where: str) -> None:
    """Refuse a key that is no field, and a field without a default that is not given."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise InputError(
                Sentence.of(
                    "config unknown key",
                    name=repr(join(where, key)),
                    nearest=nearest_of(key, fields),
                )
            )

    for name, given in fields.items():
        has_default = given.default is not dataclasses.MISSING
        has_factory = given.default_factory is not dataclasses.MISSING
        if name not in values and not has_default and not has_factory:
            raise InputError(Sentence.of("config missing key", name=repr(join(where, name))))


def join(where: str, key: object) -> str:
    """Join the path of a mapping and a key of it with a dot."""
    return f"{where}.{key}" if where else str(key)


def convert(value: Any, hint: Any, where: str) -> Any:
    """Check a value against a type hint. Lists become tuples, mappings dataclasses.

    Args:
        value: as YAML or JSON gives it.
        hint: type of a dataclass's field.
        where: path of the value in messages.

    Raises:
        InputError: for a value of another type, and what `build` raises.
    """
    if hint is Any:
        return value

    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        return _convert_literal(value, arguments, where)
    if origin is tuple:
        return _convert_tuple(value, arguments, where)
    if origin is not None and issubclass(origin, Mapping):
        return _convert_mapping(value, arguments, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    """Convert to the type beside None; of two, a list is meant for the tuple."""
    if value is None and type(None) in options:
        return None
    rest = [hint for hint in options if hint is not type(None)]
    if set(rest) == {int, float}:
        number = _convert_scalar(value, float, where)
        # A whole number is meant as one, but for 0, which is the same of any kind.
        return value if isinstance(value, int) and value else number
    for hint in rest:
        if (typing.get_origin(hint) is tuple) == isinstance(value, list | tuple):
            return convert(value, hint, where)
    return convert(value, rest[0], where)


def _convert_literal(value: Any, words: tuple[Any, ...], where: str) -> Any:
    """Take one of some words. 1 is not True here."""
    if not any(value == word and type(value) is type(word) for word in words):
        raise InputError(
            Sentence.of(
                "config word", where=where, value=_show(value), nearest=nearest_of(value, words)
            )
        )
    return value


def _convert_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    """Convert the items of a list. A single text is a list of one."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        raise InputError(Sentence.of("config list", where=where, value=_show(value)))
    return tuple(convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))


def _convert_mapping(value: Any, arguments: tuple[Any, ...], where: str) -> dict[str, Any]:
    """Convert the values of a mapping whose keys are text."""
    if not isinstance(value, Mapping):
        raise InputError(Sentence.of("config mapping", where=where, value=_show(value)))
    for key in value:
        if not isinstance(key, str):
            raise InputError(Sentence.of("config key no text", where=where, field=_show(key)))
    return {key: convert(item, arguments[1], join(where, key)) for key, item in value.items()}


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    """Take a text, a yes or no, or a number. A whole number may stand for a broken one."""
    if hint is str:
        if not isinstance(value, str):
            raise InputError(Sentence.of("config no text", where=where, value=_show(value)))
        return value

    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is bool:
        valid = isinstance(value, bool)
    elif hint is int:
        valid = is_number and isinstance(value, int)
    else:
        valid = is_number and math.isfinite(value)

    if not valid:
        # YAML reads 1e-3 as text.
        key = "config number as text" if _is_float(value) else "config scalar"
        wanted = Term(_SCALARS.get(hint, str(hint)))
        raise InputError(Sentence.of(key, where=where, wanted=wanted, value=_show(value)))
    return float(value) if hint is float else value


def _is_float(value: Any) -> bool:
    """Tell whether a text would be a finite number."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _show(value: Any) -> str:
    """Show a value and its type, shortened."""
    text = repr(value)
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    return f"{shown} ({type(value).__name__})"


def stored_values(config: Any) -> dict[str, Any]:
    """Turn a config into the plain values that ids and checkpoints hold.

    Fields that came later are named only where they are not the default, so that files of before
    stay equal to those of today.
    """
    limits = limits_of(config)
    values = to_plain(config)
    for given in dataclasses.fields(config):
        if limits[given.name].later and getattr(config, given.name) == given.default:
            del values[given.name]
    return values


def to_plain(value: Any) -> Any:
    """Turn a dataclass into plain values that survive JSON: tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value
