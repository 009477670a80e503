"""The command line: `python -m adray` and the console script `adray` list the commands."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from adray.cli.output import make_output_last
from adray.cli.progress import progress_shown
from adray.errors import InputError, nearest
from adray.language.catalogue import language_of, load_catalogue
from adray.language.sentence import error_text

COMMANDS: dict[str, str] = {
    "start": "from a folder of images to a decision: the one command to begin with",
    "sweep": "run a grid of models, data sets and categories; run again to continue",
    "check": "what a sweep lacks: weights, data, disk, memory; starts nothing",
    "train": "train one model on one data set, without Ray",
    "decide": "which model to deploy for each part, how sure that is, and how to go on",
    "predict": "score new images with a trained trial: verdicts and anomaly maps",
    "audit": "whether a trial's promise of few false alarms holds on fresh normal images",
    "update": "add normal images to a trained model of one pass, in seconds and without training again",
    "stress": "what other light, blur, noise, dirt and place do to a trial, without training",
    "ensemble": "the best team of models for each category, and what it really gains",
    "measure": "speed and memory of finished trials, each alone on its device",
    "export": "a trained trial as files that stand alone: safetensors, JSON and ONNX",
    "bundle": "a trained trial or team as one file for the line, run by predict without torch",
    "doctor": "whether this machine runs a bundle as the one that made it, and how fast",
    "serve": "verdicts over HTTP, from a bundle without torch or from a trial",
    "watch": "a verdict for each new image of a folder, once and lasting",
    "data": "what a folder of images holds, before anything is trained",
    "submit": "maps and verdicts of MVTec AD 2's private images as its server takes them",
    "models": "list the configurations by family, or what can be set of one",
    "backbones": "which weight files are there, are right, and where the missing ones belong",
    "status": "what a store holds: done, failed with reasons, the best",
    "report": "which model for which product, how sure, at what cost: one page to open",
    "diff": "which cells changed between two stores by more than noise, after an upgrade",
    "clean": "show, and remove, what nothing of a store refers to any more",
    "rerun": "run one trial of a store again in this process",
    "synthetic": "write a small generated data set in the MVTec layout",
}
"""Name, which is also that of its file in `adray/cli`, to one line of help."""
BUNDLE_ENDING = ".adray"
"""Of a file's name, by which a command knows a bundle before it is opened."""
_INTERRUPTED = 130
OF_BUNDLES = {"predict": "predict_bundle", "audit": "audit_log"}
"""Commands that have another file for a bundle."""


def command_line(*first: str) -> int:
    """Run the command that this process was started with, see `main`.

    Args:
        first: arguments that stand before those of the process.
    """
    make_output_last()
    return main([*first, *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, or list them all.

    Returns:
        The exit code: 2 for bad input and 130 for Ctrl-C, which become one sentence on stderr.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _list_commands()
        return 0
    try:
        return _run(arguments[0], arguments[1:])
    except InputError as error:
        print(f"error: {error_text(error, language_of(os.environ))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say = load_catalogue(language_of(os.environ))
        print(f"\n{say('command interrupted')}", file=sys.stderr)
        return _INTERRUPTED


def _list_commands() -> None:
    """Print every command with its line of help."""
    print("usage: python -m adray COMMAND ...\n")
    print("adray finds the best visual anomaly detector for your parts. To begin:\n")
    print("  python -m adray start FOLDER       looks at your images, runs, and says what to use")
    print(
        "  python -m adray decide outputs     which model to use for each part, and how sure that is"
    )
    print("  python -m adray predict PART/MODEL NEW_IMAGES --out found\n")
    print("All commands:\n")
    for name, text in COMMANDS.items():
        print(f"  {name:10} {text}")
    print("\n`python -m adray COMMAND --help` explains a command.")


def _run(name: str, arguments: Sequence[str]) -> int:
    """Run the main function of a command's file.

    Raises:
        InputError: for an unknown command, with the nearest.
    """
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}; {nearest(name, COMMANDS)}")
    file = _file_of(name, arguments)
    command: Callable[[Sequence[str]], int] = importlib.import_module(f"adray.cli.{file}").main
    with progress_shown():
        return command(arguments)


def _file_of(name: str, arguments: Sequence[str]) -> str:
    """Give the file of a command. That of a bundle needs no torch, which the line has not."""
    if any(text.endswith(BUNDLE_ENDING) for text in arguments):
        return OF_BUNDLES.get(name, name)
    return name


if __name__ == "__main__":
    sys.exit(command_line())
