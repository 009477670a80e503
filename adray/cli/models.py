"""`python -m adray models [NAME]`: list the configurations, or the hyperparameters of one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import fields

from adray.cli.command_parser import CommandParser
from adray.config import TrainConfig
from adray.fields import Limits, limits_of, meanings_of
from adray.model_specs import FAMILIES
from adray.registry import ModelRegistry

_INDENT = " " * 6
_WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = CommandParser(
        prog="python -m adray models",
        description="List the configurations by family, or what can be set of one.",
    )
    parser.add_argument(
        "name", nargs="?", help="a configuration, to see its hyperparameters and their ranges"
    )
    parser.add_argument("--tier", choices=("core", "extra"), help="only one tier")
    options = parser.parse_args(argv)

    if options.name is None:
        _list(options.tier)
    else:
        _explain(options.name)
    return 0


def _list(tier: str | None) -> None:
    """Print the configurations by family."""
    specs = [ModelRegistry.get(name) for name in ModelRegistry.list_models(tier)]
    for family in FAMILIES:
        rows = [spec for spec in specs if spec.family == family]
        if rows:
            print(f"{family}:")
        for spec in rows:
            aliases = f"  (also {', '.join(spec.aliases)})" if spec.aliases else ""
            print(f"  {spec.name:24} {spec.tier:6} {spec.title}{aliases}")


def _explain(name: str) -> None:
    """Print every hyperparameter of a configuration: its key for --set, value, range and meaning."""
    resolved = ModelRegistry.resolve(name)
    print(f"{resolved.spec.name}: {resolved.spec.title}")
    for section, config in (("model", resolved.config), ("train", resolved.train_config)):
        cls = TrainConfig if section == "train" else type(config)
        limits = limits_of(cls)
        meanings = meanings_of(cls)
        for field in fields(cls):
            allowed = _allowed(limits[field.name])
            print(f"  {section}.{field.name} = {getattr(config, field.name)}{allowed}")
            meaning = meanings.get(field.name, "")
            print(textwrap.fill(meaning, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT))


def _allowed(limits: Limits) -> str:
    """Say what a field may be, empty where its type says all."""
    unit = f" {limits.unit}" if limits.unit else ""
    if limits.low is None and limits.high is None:
        return unit
    if limits.high is None:
        return f"{unit}  (at least {limits.low:g})"
    if limits.low is None:
        return f"{unit}  (at most {limits.high:g})"
    return f"{unit}  ({limits.low:g} to {limits.high:g})"
