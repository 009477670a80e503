"""What a hyperparameter search may change: names and ranges, checked against the configuration.

Each model declares a space at the fields of its config (`option(..., search=...)`) and in its
trainer's `train_search`. A sweep's file may name another one, in a file or in place:

    space:
      model.coreset_ratio: {log_uniform: [0.01, 0.25]}
      model.num_neighbors: {choice: [1, 3, 9]}
      train.num_epochs: {log_int: [10, 100]}

A name is `model.` and a field of the model's config dataclass, or `train.` and one of
`adray.config.TrainConfig`.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adray.config import TrainConfig, convert, to_plain
from adray.config_file import load_yaml
from adray.errors import InputError
from adray.fields import Domain, limits_of
from adray.language.sentence import Sentence, nearest_of, sentence_of
from adray.registry import ModelRegistry, Resolved

Values = dict[str, Any]
"""One value for each dotted name of a space, plain as YAML has them."""
AUTO = "auto"
"""Source of the space that a configuration's model declares."""
KINDS = {
    "uniform": (float,),
    "log_uniform": (float,),
    "int": (int,),
    "log_int": (int,),
    "choice": (),
}
"""Kinds of domains to the types of the fields that they fit; a choice fits all."""
UNSEARCHED = {
    "holdout": "it decides on which images the search judges",
    "calibration": "the search judges on held-out images",
    "split_mode": "it decides on which images the search judges",
    "train_defects": "it decides on which images the search judges",
    "eval_batch_size": "scores do not depend on it",
}
"""Fields of `TrainConfig` that no search may change, with the reason."""
_MOST_CORNERS = 10
"""Names of which all 2 ** n combinations of ends are tried; further ones are tried one by one."""
_SECTIONS = ("model", "train")
_EPOCHS = "train.num_epochs"
_STEPS = "train.max_steps"
_LENGTHS = ("num_epochs", "max_steps", "patience")
"""Fields of `TrainConfig` that mean nothing to a method of one pass."""


@dataclass(frozen=True)
class SearchSpace:
    """The domains of one configuration."""

    domains: Mapping[str, Domain]
    """Dotted name, such as ``model.lr`` or ``train.num_epochs``, to what it may be."""

    def sample(self, rng: np.random.Generator) -> Values:
        """Draw one value per name, independently and in the order of the names."""
        return {name: domain.sample(rng) for name, domain in self.domains.items()}

    def grid(self, points: int) -> list[Values]:
        """List all combinations of at most `points` values per range and of all choices.

        The last name changes fastest.
        """
        axes = [domain.grid(points) for domain in self.domains.values()]
        combinations = itertools.product(*axes)
        return [dict(zip(self.domains, values, strict=True)) for values in combinations]


def load_space(source: str | Mapping[str, Any], configuration: str) -> SearchSpace:
    """Read a space and check it against a configuration.

    Args:
        source: path of a YAML file with the one key ``space``, ``"auto"`` for what the
            configuration's model declares, or the mapping of names to domains itself.
        configuration: name or alias of the configuration that is searched.

    Raises:
        InputError: for a missing file, an unknown name, a kind that does not fit the field, and a
            range beyond what the configuration can take.
    """
    if source == AUTO:
        declared = default_space(configuration)
        plain = {name: domain.plain() for name, domain in declared.items()}
        return _checked(plain, configuration, f"search.space of {configuration}")
    if isinstance(source, str):
        return _checked(_read(Path(source)), configuration, source)
    return _checked(source, configuration, "search.space")


def default_space(configuration: str) -> dict[str, Domain]:
    """Give what the fields of a configuration and its trainer declare to be worth a search.

    What its other fields leave no choice of (`settled`) is not among it.

    Raises:
        InputError: where they declare nothing.
    """
    method = ModelRegistry.method(configuration)
    settled = getattr(ModelRegistry.resolve(configuration).config, "settled", ())
    space = {}
    for name, limits in limits_of(method.config_class).items():
        if limits.search is not None and name not in settled:
            space[f"model.{name}"] = limits.search
    for name, domain in method.train_search.items():
        space[f"train.{name}"] = domain

    if not space:
        raise InputError(
            Sentence.of(
                "space none", configuration=configuration, config_class=method.config_class.__name__
            )
        )
    return space


def as_overrides(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Turn dotted values into a sweep's `overrides`: ``{"model": {...}, "train": {...}}``.

    Args:
        values: dotted name to value, as `SearchSpace.sample` gives them.

    Returns:
        Without empty sections.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def values_of(space: SearchSpace, resolved: Resolved) -> Values:
    """Read what a configuration has at the names of a space, as plain values.

    Epochs are None where steps decide instead, and the space does not name these.
    """
    plain = {"model": to_plain(resolved.config), "train": to_plain(resolved.train_config)}
    values = {}
    for name in space.domains:
        section, _, key = name.partition(".")
        values[name] = plain[section][key]
    if _STEPS not in values and _EPOCHS in values and resolved.train_config.max_steps is not None:
        values[_EPOCHS] = None
    return values


def with_values(base: Resolved, values: Mapping[str, Any]) -> Resolved:
    """Give a configuration with other values at the names of a space, and all else as it is.

    Args:
        base: the configuration.
        values: as `SearchSpace.sample` and `values_of` give them.
    """
    given = dict(values)
    # Steps would win over epochs; where epochs are None, steps stay.
    if _STEPS not in given and given.get(_EPOCHS, 0) is None:
        del given[_EPOCHS]
    elif _STEPS not in given and _EPOCHS in given:
        given[_STEPS] = None

    changes = as_overrides(given)
    train = to_plain(base.train_config) | changes.get("train", {})
    model = to_plain(base.config) | changes.get("model", {})
    return ModelRegistry.resolve(base.spec.name, train=train, model=model)


# A space that a user gives


def _read(path: Path) -> Any:
    """Read a space from a file that has it under the one key ``space``."""
    content = load_yaml(path)
    for key in content:
        if key != "space":
            raise InputError(Sentence.of("space unknown key", path=str(path), field=repr(key)))
    if "space" not in content:
        raise InputError(Sentence.of("space key missing", path=str(path)))
    return content["space"]


def _checked(source: Any, configuration: str, where: str) -> SearchSpace:
    """Read a space from plain values, and build the configuration at its ends."""
    if not isinstance(source, Mapping) or not source:
        raise InputError(Sentence.of("space mapping", where=where))
    domains = {}
    for name, given in source.items():
        hint = _hint(name, configuration, where)
        domains[name] = _domain(given, hint, f"{where}: {name}")

    space = SearchSpace(domains)
    for values in _probes(space):
        _try(values, configuration, where)
    return space


def _hint(name: Any, configuration: str, where: str) -> Any:
    """Find the type of the field that a dotted name means.

    Raises:
        InputError: for a name that means none, and for a field that no search may change.
    """
    method = ModelRegistry.method(configuration)
    classes = dict(zip(_SECTIONS, (method.config_class, TrainConfig), strict=True))
    allowed: list[str] = []
    for section, cls in classes.items():
        allowed += [f"{section}.{field.name}" for field in dataclasses.fields(cls)]
    if name not in allowed:
        raise InputError(
            Sentence.of(
                "space unknown name",
                where=where,
                name=repr(name),
                configuration=configuration,
                nearest=nearest_of(name, allowed),
            )
        )

    section, _, key = name.partition(".")
    if section == "train" and key in UNSEARCHED:
        raise InputError(
            Sentence.of("space unsearched", where=where, name=name, unsearched=UNSEARCHED[key])
        )
    if section == "train" and key in _LENGTHS and method.single_pass:
        raise InputError(
            Sentence.of("space one pass", where=where, name=name, configuration=configuration)
        )
    return typing.get_type_hints(classes[section])[key]


def _domain(given: Any, hint: Any, where: str) -> Domain:
    """Read the domain of one name, and check it against the type of its field."""
    if not isinstance(given, Mapping) or len(given) != 1:
        kinds = ", ".join(KINDS)
        raise InputError(Sentence.of("space one kind", where=where, kinds=kinds))
    kind, values = next(iter(given.items()))
    if kind not in KINDS:
        raise InputError(
            Sentence.of(
                "space unknown kind", where=where, kind=repr(kind), nearest=nearest_of(kind, KINDS)
            )
        )
    if not isinstance(values, list | tuple):
        raise InputError(Sentence.of("space list", where=where, kind=kind, values=repr(values)))
    if kind == "choice":
        return Domain(kind, choices=_choices(values, hint, f"{where}.{kind}"))

    # A field that may be left out has the type of its value beside None.
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = set(typing.get_args(hint)) if is_union else {hint}
    if not options & set(KINDS[kind]):
        fitting = [name for name, fits in KINDS.items() if not fits or options & set(fits)]
        raise InputError(
            Sentence.of("space number kind", where=where, kind=kind, fitting=" or ".join(fitting))
        )
    return Domain(kind, *_range(values, KINDS[kind][0], f"{where}.{kind}"))


def _choices(values: list[Any] | tuple[Any, ...], hint: Any, where: str) -> tuple[Any, ...]:
    """Read the values of a choice."""
    converted: list[Any] = []
    for i, value in enumerate(values):
        plain = to_plain(convert(value, hint, f"{where}[{i}]"))
        if plain in converted:
            raise InputError(Sentence.of("space twice", where=where))
        converted.append(plain)
    if not converted:
        raise InputError(Sentence.of("space empty", where=where))
    return tuple(converted)


def _range(values: list[Any] | tuple[Any, ...], number: type, where: str) -> tuple[float, float]:
    """Read both ends of a range."""
    if len(values) != 2:
        raise InputError(Sentence.of("space two numbers", where=where, number=len(values)))
    low = convert(values[0], number, f"{where}[0]")
    high = convert(values[1], number, f"{where}[1]")

    if low >= high:
        raise InputError(Sentence.of("space rising", where=where, low=low, high=high))
    if ".log_" in where and low <= 0:
        raise InputError(Sentence.of("space logarithm", where=where, low=low))
    return low, high


def _probes(space: SearchSpace) -> Iterator[Values]:
    """Give the samples that are tried before a search.

    These are every end and choice with the others at their first, and then all corners.
    """
    ends = {name: domain.ends for name, domain in space.domains.items()}
    first = {name: values[0] for name, values in ends.items()}
    for name, values in ends.items():
        for value in values:
            yield first | {name: value}

    names = list(ends)[:_MOST_CORNERS]
    both = [(ends[name][0], ends[name][-1]) for name in names]
    for corner in itertools.product(*both):
        yield first | dict(zip(names, corner, strict=True))


def _try(values: Mapping[str, Any], configuration: str, where: str) -> None:
    """Build the configuration with some values, so that its own checks speak.

    Raises:
        InputError: with what they said.
    """
    changes = as_overrides(values)
    method = ModelRegistry.method(configuration)
    try:
        resolved = ModelRegistry.resolve(
            configuration, model=changes.get("model"), train=changes.get("train")
        )
        method.check_inputs(resolved.config, resolved.train_config)
    except InputError as error:
        raise InputError(
            Sentence.of(
                "space beyond", where=where, configuration=configuration, error=sentence_of(error)
            )
        ) from error
