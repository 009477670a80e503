"""The command line: `python -m adray` and the console script `adray` list the commands."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from adray.cli.output import make_output_last
from adray.cli.progress import progress_shown
from adray.errors import InputError
from adray.language.catalogue import LANGUAGE_VARIABLE, LANGUAGES, language_of, load_catalogue
from adray.language.sentence import Sentence, error_text, nearest_of

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
    "outliers": "training normals that do not look like the others, to look at and leave out",
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
_LANGUAGE_OPTIONS = ("--lang", "--language")
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
    try:
        arguments, language = _split_language(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        return _refused(error)

    with _language_chosen(language):
        try:
            return _run(arguments)
        except InputError as error:
            return _refused(error)
        except KeyboardInterrupt:
            say = load_catalogue(language_of(os.environ))
            print(f"\n{say('command interrupted')}", file=sys.stderr)
            return _INTERRUPTED


def _refused(error: InputError) -> int:
    """Say what is wrong with the input, and give the exit code for it."""
    print(f"error: {error_text(error, language_of(os.environ))}", file=sys.stderr)
    return 2


def _split_language(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Take ``--lang LANGUAGE``, which every command has, out of the arguments.

    Raises:
        InputError: for a language that the program does not speak.
    """
    rest: list[str] = []
    language = os.environ.get(LANGUAGE_VARIABLE) or None
    given = iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name not in _LANGUAGE_OPTIONS:
            rest.append(argument)
            continue
        language = value if equals else next(given, "")
    if language is not None and language not in LANGUAGES:
        raise InputError(
            Sentence.of(
                "command language",
                language=repr(language),
                language_variable=LANGUAGE_VARIABLE,
                languages=" or ".join(LANGUAGES),
            )
        )
    return rest, language


@contextmanager
def _language_chosen(language: str | None) -> Iterator[None]:
    """Speak a language for a while, that of the environment for None."""
    before = os.environ.get(LANGUAGE_VARIABLE)
    if language is not None:
        os.environ[LANGUAGE_VARIABLE] = language
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(LANGUAGE_VARIABLE, None)
        else:
            os.environ[LANGUAGE_VARIABLE] = before


def _list_commands() -> None:
    """Print every command with its line of help."""
    # The words of help are read only where somebody asks for them.
    from adray.cli.command_parser import help_text

    begin = {
        "start FOLDER": "looks at your images, runs, and says what to use",
        "decide outputs": "which model to use for each part, and how sure that is",
        "predict PART/MODEL NEW_IMAGES --out found": "",
    }
    print(help_text("usage: python -m adray COMMAND ..."))
    print()
    print(help_text("adray finds the best visual anomaly detector for your parts. To begin:"))
    print()
    for command, text in begin.items():
        print(f"  python -m adray {command:18} {help_text(text)}".rstrip())
    print()
    print(help_text("All commands:"))
    print()
    for name, text in COMMANDS.items():
        print(f"  {name:10} {help_text(text)}")
    print()
    print(help_text("`python -m adray COMMAND --help` explains a command."))
    print(help_text("`--lang ko` or ADRAY_LANG=ko speaks Korean, `--lang en` English."))


def _run(arguments: Sequence[str]) -> int:
    """Run the main function of a command's file, or list all commands.

    Raises:
        InputError: for an unknown command, with the nearest.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _list_commands()
        return 0

    name = arguments[0]
    if name not in COMMANDS:
        raise InputError(
            Sentence.of("command unknown", name=repr(name), nearest=nearest_of(name, COMMANDS))
        )
    file = _file_of(name, arguments[1:])
    command: Callable[[Sequence[str]], int] = importlib.import_module(f"adray.cli.{file}").main
    with progress_shown():
        return command(arguments[1:])


def _file_of(name: str, arguments: Sequence[str]) -> str:
    """Give the file of a command. That of a bundle needs no torch, which the line has not."""
    if any(text.endswith(BUNDLE_ENDING) for text in arguments):
        return OF_BUNDLES.get(name, name)
    return name


if __name__ == "__main__":
    sys.exit(command_line())
