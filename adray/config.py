"""YAML to frozen dataclasses, with errors that help.

Defaults live in the dataclasses, never in YAML: a file holds differences. Unknown keys, wrong types and values out of
range are refused where they enter, with the path of the key, what is allowed and the nearest match.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from adray.errors import InputError, nearest
from adray.settings import Settings

T = TypeVar("T")
NORMALIZATIONS = ("imagenet", "none", "minus1_1", "clip")
PRECISIONS = ("float32", "bfloat16", "float16")
_MAX_NODES = 200_000


@dataclass(frozen=True)
class TrainConfig:
    """How a configuration is trained, whatever its model."""

    num_epochs: int = 1
    """Passes over the training images."""
    max_steps: int | None = None
    """Optimiser steps; where given, it decides instead of `num_epochs`."""
    batch_size: int = 32
    """Images per training step."""
    eval_batch_size: int | None = None
    """Images per evaluation step, `batch_size` where None; it does not change scores."""
    img_size: int = 256
    """Side in pixels that images are resized to."""
    crop_size: int | None = None
    """Side of the centre crop after resizing, or None."""
    normalize: str = "imagenet"
    """``imagenet``, ``clip``, ``none`` for [0, 1] or ``minus1_1`` for [-1, 1]; true, false mean imagenet, none."""
    holdout: float = 0.1
    """Part of the training normals kept for validation and calibration; 0 trains on all."""
    patience: int | None = None
    """Epochs without a better validation score after which training stops; None never stops early."""
    precision: str = "float32"
    """``float32``, or automatic mixed precision in ``bfloat16`` or ``float16``."""
    split_mode: Literal["1cls", "2cls_highshot", "2cls_fewshot"] = "1cls"
    """Which published split a data set that has several uses."""
    train_defects: float = 0.0
    """Part of the labelled defects that goes to training, for supervised configurations."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if isinstance(self.normalize, bool):
            object.__setattr__(self, "normalize", "imagenet" if self.normalize else "none")
        for name in ("num_epochs", "max_steps", "batch_size", "eval_batch_size", "patience"):
            check_range(name, getattr(self, name), 1)
        for name in ("img_size", "crop_size"):
            check_range(name, getattr(self, name), 8, 4096)
        check_range("holdout", self.holdout, 0, 0.9)
        check_range("train_defects", self.train_defects, 0, 0.9)
        check_choice("normalize", self.normalize, NORMALIZATIONS)
        check_choice("precision", self.precision, PRECISIONS)
        if self.crop_size is not None and self.crop_size > self.img_size:
            raise InputError(f"crop_size {self.crop_size} is larger than img_size {self.img_size}; lower it")

    @property
    def input_size(self) -> int:
        """Side in pixels of what the model sees."""
        return self.crop_size or self.img_size


@dataclass(frozen=True)
class ExcludeRule:
    """Cells of the grid that are left out: those that match all three."""

    models: tuple[str, ...] = ("*",)
    """Names or patterns of configurations."""
    datasets: tuple[str, ...] = ("*",)
    """Names or patterns of data sets."""
    categories: tuple[str, ...] = ("*",)
    """Names or patterns of categories."""


@dataclass(frozen=True)
class GridConfig:
    """What is multiplied out."""

    datasets: Mapping[str, Any]
    """Name of a data set to ``each``, ``all``, a list of categories, or a list of lists that are merged."""
    models: tuple[str, ...] = ("all",)
    """Names or patterns of configurations, or ``all``."""
    seeds: tuple[int, ...] = (42,)
    """Seeds of the trials."""
    exclude: tuple[ExcludeRule, ...] = ()
    """Cells to leave out."""

    def __post_init__(self) -> None:
        """Check that there is something to run."""
        for name in ("models", "datasets", "seeds"):
            if not getattr(self, name):
                raise InputError(f"grid.{name} is empty; name at least one, or remove the key")
        if len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"grid.seeds {list(self.seeds)} names a seed twice; name each once")
        for seed in self.seeds:
            check_range("grid.seeds", seed, 0, 2**32 - 1)


@dataclass(frozen=True)
class ResourceRule:
    """What the trials of some models take; the first rule that matches a trial wins."""

    models: tuple[str, ...] = ("*",)
    """Names or patterns of configurations."""
    gpu: float | None = None
    """Share of a GPU up to 1, or a whole number of GPUs; None lets the program choose."""
    cpu: int | None = None
    """CPUs, which is also the number of threads; None lets the program choose."""
    memory_gb: float | None = None
    """Host memory in GB; None lets the program choose."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("gpu", self.gpu, 0, 64)
        check_range("cpu", self.cpu, 1, 1024)
        check_range("memory_gb", self.memory_gb, 0.1, 1e5)
        if self.gpu is not None and self.gpu > 1 and self.gpu != int(self.gpu):
            raise InputError(f"gpu {self.gpu} is not possible: a share is at most 1, more GPUs are a whole number")


@dataclass(frozen=True)
class SyntheticConfig:
    """Generated images in the MVTec layout, for a first look without any data."""

    train: int = 24
    """Normal training images per category."""
    good: int = 8
    """Normal test images per category."""
    defects: int = 12
    """Defective test images per category."""
    size: int = 128
    """Side in pixels."""
    seed: int = 0
    """Seed of the generator."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("train", "good", "defects"):
            check_range(name, getattr(self, name), 1, 10_000)
        check_range("size", self.size, 32, 2048)


@dataclass(frozen=True)
class SearchConfig:
    """A hyperparameter search of each of the grid's models, over all of the grid's categories and seeds."""

    space: Any = "auto"
    """File of the search space, the space itself, or ``auto`` for `configs/search/<model>.yaml`."""
    num_samples: int = 40
    """Settings that are tried, the defaults among them; a grid may have fewer."""
    searcher: Literal["random", "grid", "optuna"] = "random"
    """Who proposes settings; ``optuna`` (its TPE) needs `pip install 'adray[search]'`."""
    grid_points: int = 3
    """Values per range of a grid."""
    scheduler: Literal["none", "asha"] = "none"
    """``asha`` gives up early: after some epochs of trained models, after some categories of one-pass models."""
    objective: Literal["synthetic", "held_out_categories", "test"] = "synthetic"
    """Defects drawn on held-out normals; the test images of `categories` only; or the test set, which is LEAKY."""
    categories: tuple[str, ...] = ()
    """For ``held_out_categories``: where the search looks; the winner is meant for the grid's others."""
    metric: str = "image_auroc"
    """Metric of which the mean over categories and seeds is maximised."""
    seed: int = 0
    """Seed of the searcher."""

    def __post_init__(self) -> None:
        """Check ranges, and what goes together."""
        check_range("num_samples", self.num_samples, 2, 100_000)
        check_range("grid_points", self.grid_points, 1, 100)
        check_range("seed", self.seed, 0, 2**32 - 1)
        if not isinstance(self.space, str | Mapping):
            raise InputError(f"space is {_show(self.space)}, but must be a file's name, auto, or a mapping")
        if (self.objective == "held_out_categories") != bool(self.categories):
            raise InputError(
                "categories and objective: held_out_categories go together; give both, or neither for synthetic defects"
            )
        if self.scheduler == "asha" and self.searcher == "optuna":
            raise InputError("scheduler asha needs all settings at once, optuna proposes a few; choose random or none")


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
    """``random`` runs untrained backbones, which shows that everything works and finds few defects."""
    overrides: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Name or pattern of configurations to ``{train: {...}, model: {...}}``; later ones win."""
    resources: tuple[ResourceRule, ...] = ()
    """GPU share, CPUs and memory of some models; what no rule names, the program chooses."""
    keep: Literal["all", "best", "none"] = "all"
    """Which checkpoints stay: all, the best configuration's per category, or none."""
    save_maps: int = 8
    """Anomaly map pictures per trial and class; 0 draws none."""
    trial_hours: float = 24.0
    """A trial that takes longer is stopped; one with a progress checkpoint continues from it next time."""
    search: SearchConfig | None = None
    """Hyperparameter search in place of the grid's defaults."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_file_name("name", self.name)
        for name in self.generate:
            check_file_name("generate", name)
        check_range("save_maps", self.save_maps, 0, 10_000)
        check_range("trial_hours", self.trial_hours, 1e-4, 24 * 365)


def check_range(name: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Refuse a number outside [low, high]; None passes."""
    if value is not None and not low <= value <= high:
        limit = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise InputError(f"{name} is {value}, but must be {limit}")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a word that is not one of `allowed`."""
    if value not in allowed:
        raise InputError(f"{name} {value!r} is not known; {nearest(value, allowed)}")


def check_file_name(name: str, value: str) -> None:
    """Refuse what would not be one plain folder of the store."""
    if not value or value in (".", "..") or value.startswith(".") or any(c in value for c in "/\\\0\n\r"):
        raise InputError(f"{name} {value!r} cannot be a folder name; use letters, digits, '-', '_' and inner dots")
    if len(value.encode()) > 150:
        raise InputError(f"{name} {value[:20]!r}... is too long for a folder name; use at most 150 bytes")


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: for a missing or unreadable file, one that is no mapping, duplicate keys, or an alias bomb.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"configuration file {path} does not exist; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"configuration file {path} cannot be read as UTF-8 text: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text; `source` names it in errors. See `load_yaml`."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not valid YAML: {_one_line(error)}") from error
    try:
        node = loader.get_single_node()
        if node is not None and _expanded_size(node) > _MAX_NODES:
            raise InputError(f"{source} expands to more than {_MAX_NODES} values through aliases; write it out plainly")
        value = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not valid YAML: {_one_line(error)}") from error
    except RecursionError as error:
        raise InputError(f"{source} is nested too deeply; write it out plainly") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source} holds a value that YAML cannot read: {error}") from error
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        raise InputError(f"{source} is no mapping of keys to values; start with 'name:' and 'grid:'")
    return value


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which plain YAML silently lets win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise InputError(f"line {key_node.start_mark.line + 1}: a list or mapping cannot be a key")
            if key in seen:
                raise InputError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _expanded_size(node: yaml.Node) -> int:
    """Number of values after aliases are written out, without writing them out; a cycle counts as too many."""
    sizes: dict[int, int] = {}

    def size(item: yaml.Node) -> int:
        if id(item) not in sizes:
            sizes[id(item)] = _MAX_NODES + 1
            children: list[yaml.Node] = []
            if isinstance(item, yaml.SequenceNode):
                children = item.value
            elif isinstance(item, yaml.MappingNode):
                children = [part for pair in item.value for part in pair]
            sizes[id(item)] = 1 + sum(size(child) for child in children)
        return sizes[id(item)]

    return size(node)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def build(cls: type[T], values: Any, where: str) -> T:
    """Make a frozen dataclass from a mapping, strictly.

    Args:
        cls: the dataclass.
        values: mapping of its fields; nested mappings become nested dataclasses, lists become tuples.
        where: path of the mapping in messages, for instance ``"grid"``.

    Raises:
        InputError: for an unknown key, a missing one, a wrong type, or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where or 'the file'} must be a mapping of keys to values, but is {_show(values)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise InputError(f"unknown key {join(where, key)!r}; {nearest(key, fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise InputError(f"key {join(where, name)!r} is missing; add it")
    built = {key: convert(value, hints[key], join(where, key)) for key, value in values.items()}
    try:
        return cls(**built)
    except InputError as error:
        message = str(error)
        raise InputError(message if not where or message.startswith(where) else f"{where}: {message}") from error


def join(where: str, key: object) -> str:
    """The dotted path of a key."""
    return f"{where}.{key}" if where else str(key)


def convert(value: Any, hint: Any, where: str) -> Any:
    """Check `value` against a type hint and turn lists into tuples and mappings into dataclasses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where} is {_show(value)}; {nearest(value, arguments)}")
        return value
    if origin is tuple:
        return _convert_tuple(value, arguments, where)
    if origin is not None and issubclass(origin, Mapping):
        return _convert_mapping(value, arguments, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    return convert(value, rest[0], where)


def _convert_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} must be a list, but is {_show(value)}")
    return tuple(convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))


def _convert_mapping(value: Any, arguments: tuple[Any, ...], where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a mapping of keys to values, but is {_show(value)}")
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{where} has the key {_show(key)}; names are text, put it in quotes")
    return {key: convert(item, arguments[1], join(where, key)) for key, item in value.items()}


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is str:
        if where.endswith("normalize") and isinstance(value, bool):
            return value
        if not isinstance(value, str):
            raise InputError(f"{where} must be text, but is {_show(value)}; put it in quotes")
        return value
    if hint is bool:
        valid = isinstance(value, bool)
    elif hint is int:
        valid = isinstance(value, int) and not isinstance(value, bool)
    else:
        valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not valid:
        words = {bool: "true or false", int: "a whole number", float: "a finite number"}
        hint_1e3 = "; write 1.0e-3 rather than 1e-3" if isinstance(value, str) and _is_float(value) else ""
        raise InputError(f"{where} must be {words.get(hint, str(hint))}, but is {_show(value)}{hint_1e3}")
    return float(value) if hint is float else value


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"


def to_plain(value: Any) -> Any:
    """A dataclass as plain values that survive JSON: tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value
