"""`python -m adray models`: list the configurations by family."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from adray.model_specs import FAMILIES
from adray.registry import ModelRegistry


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m adray models", description="List the configurations by family."
    )
    parser.add_argument("--tier", choices=("core", "extra"), help="only one tier")
    options = parser.parse_args(argv)

    specs = [ModelRegistry.get(name) for name in ModelRegistry.list_models(options.tier)]
    for family in FAMILIES:
        rows = [spec for spec in specs if spec.family == family]
        if rows:
            print(f"{family}:")
        for spec in rows:
            aliases = f"  (also {', '.join(spec.aliases)})" if spec.aliases else ""
            print(f"  {spec.name:24} {spec.tier:6} {spec.title}{aliases}")
    return 0
