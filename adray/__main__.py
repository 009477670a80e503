"""The command line: `python -m adray` and the console script `adray` list the commands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from adray.errors import InputError

COMMANDS: dict[str, tuple[str, str]] = {
    "sweep": (
        "adray.cli.sweep",
        "run a grid of models, data sets and categories; run again to continue",
    ),
    "check": (
        "adray.cli.check",
        "what a sweep lacks: weights, data, disk, memory; starts nothing",
    ),
    "train": ("adray.cli.train", "train one model on one data set, without Ray"),
    "predict": (
        "adray.cli.predict",
        "score new images with a trained trial: verdicts and anomaly maps",
    ),
    "ensemble": (
        "adray.ensembles.command",
        "the best team of models for each category, and what it really gains",
    ),
    "measure": (
        "adray.cli.measure",
        "speed and memory of finished trials, each alone on its device",
    ),
    "export": (
        "adray.cli.export",
        "a trained trial as files that stand alone: safetensors, JSON and ONNX",
    ),
    "models": ("adray.cli.models", "list the configurations by family"),
    "status": ("adray.cli.status", "what a store holds: done, failed with reasons, the best"),
    "report": (
        "adray.cli.report",
        "which model for which product, how sure, at what cost: one page to open",
    ),
    "diff": (
        "adray.results.diff",
        "which cells changed between two stores by more than noise, after an upgrade",
    ),
    "rerun": ("adray.cli.rerun", "run one trial of a store again in this process"),
    "synthetic": ("adray.cli.synthetic", "write a small generated data set in the MVTec layout"),
}
"""Name to the place of its main function (`main` of the module unless said otherwise) and one
line of help."""


def run_command(
    command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None
) -> int:
    """Run a command's main function. Bad input becomes one sentence on stderr and exit code 2."""
    try:
        return command(argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a command, or list them all."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(
            "usage: python -m adray COMMAND ...\n\nadray finds the best visual anomaly detector for your parts.\n"
        )
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:10} {text}")
        print("\n`python -m adray COMMAND --help` explains a command.")
        return 0
    return run_command(_dispatch, arguments)


def _dispatch(arguments: Sequence[str] | None) -> int:
    from adray.errors import nearest

    assert arguments is not None
    name, rest = arguments[0], list(arguments[1:])
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}; {nearest(name, COMMANDS)}")
    module, _, function = COMMANDS[name][0].partition(":")
    command: Callable[[Sequence[str]], int] = getattr(
        importlib.import_module(module), function or "main"
    )
    return command(rest)


if __name__ == "__main__":
    sys.exit(main())
