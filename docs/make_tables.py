"""Fill the tables of the documents and make the examples of search spaces from the code.

    python docs/make_tables.py            write what is stale
    python docs/make_tables.py --check    only look

A model file without a section in chapter 3 gets one, with its tables, and comments where its words are to be written.
A document holds `<!-- table: NAME ARGUMENT -->` and, further down, `<!-- end of table -->`; what stands between is made
here. Both languages take their rows from the same function, so figures and names cannot drift apart; text that the
program itself prints (help, the meaning of a key) stays as the program says it.
"""

from __future__ import annotations

import argparse
import ast
import csv
import dataclasses
import fnmatch
import functools
import importlib
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from adray.cli.command_parser import korean_help
from adray.fields import Limits, limits_of, meanings_of
from adray.language.catalogue import load_catalogue

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "adray"
EXAMPLES = DOCS.parent / "configs" / "search"
LANGUAGES = ("en", "ko")
BLOCK = re.compile(
    r"(<!-- table: (?P<name>[\w-]+) ?(?P<argument>[^>]*?) -->\n).*?(<!-- end of table -->)", re.S
)

QUANTITY = re.compile(r"(?P<number>\d+) (?P<unit>\S+)")
"""A number with its unit, of which only the unit is translated."""

Row = Sequence[str]


@functools.cache
def translations(language: str) -> dict[str, str]:
    """English to the language's words, from `docs/<language>/words.yaml`; empty for English.

    The meanings of metrics and thresholds are those that the program says too.
    """
    path = DOCS / language / "words.yaml"
    if not path.is_file():
        return {}
    words = yaml.safe_load(path.read_text(encoding="utf-8"))
    return words | load_catalogue(language).meanings()


def translated(cell: str, words: Mapping[str, str]) -> str:
    """Give a cell in the words of a language, and as it is where they lack it.

    Args:
        cell: a heading, a text, or a number with its unit, such as ``50 ep.``.
        words: English to the language's words, empty for English.
    """
    if cell in words or not words:
        return words.get(cell, cell)
    quantity = QUANTITY.fullmatch(cell)
    if quantity is None:
        return korean_help(cell) or cell
    return f"{quantity['number']} {words.get(quantity['unit'], quantity['unit'])}"


def markdown(rows: Sequence[Row], language: str) -> str:
    """Rows, the first of them headings, as a Markdown table; texts and units in the language."""
    words = translations(language)
    cells = [
        [translated(cell, words).replace("|", "\\|").replace("\n", " ") for cell in row]
        for row in rows
    ]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


# What the registry knows


def _code(value: Any) -> str:
    return f"`{value}`"


def _value(value: Any) -> str:
    """A default as YAML would have it."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _length(train: Any) -> str:
    return f"{train.max_steps} steps" if train.max_steps else f"{train.num_epochs} ep."


def configurations(_: str) -> list[Row]:
    """Every configuration with what it takes."""
    from adray.model_specs import MODEL_SPECS
    from adray.registry import ModelRegistry

    rows: list[Row] = [
        (
            "configuration",
            "method",
            "family",
            "tier",
            "input px",
            "budget paper",
            "budget quick",
            "GPU share",
            "host GB",
        )
    ]
    for spec in MODEL_SPECS:
        paper, quick = (
            ModelRegistry.resolve(spec.name, budget=b).train_config for b in ("paper", "quick")
        )
        one_pass = ModelRegistry.trainer_class(spec.name).single_pass
        lengths = ("1 pass",) * 2 if one_pass else (_length(paper), _length(quick))
        needs = (f"{spec.gpu:.3g}", f"{spec.memory_gb:g}")
        rows.append(
            (
                _code(spec.name),
                spec.title,
                spec.family,
                spec.tier,
                str(paper.input_size),
                *lengths,
                *needs,
            )
        )
    return rows


def _specs_of(module: str) -> list[Any]:
    from adray.model_specs import MODEL_SPECS

    found = [spec for spec in MODEL_SPECS if spec.trainer.startswith(f"adray.models.{module}.")]
    if not found:
        raise SystemExit(f"no configuration has its trainer in adray.models.{module}")
    return found


def hyperparameters(module: str) -> list[Row]:
    """The hyperparameters of the models in one file: the first configuration's values, and where others differ."""
    from adray.registry import ModelRegistry

    specs = _specs_of(module)
    configs = {spec.name: ModelRegistry.resolve(spec.name).config for spec in specs}
    first = configs[specs[0].name]
    meaning = meanings_of(type(first))
    limits = limits_of(type(first))
    rows: list[Row] = [
        ("hyperparameter", "default", "unit", "in other configurations", "allowed", "meaning")
    ]
    for field in dataclasses.fields(first):
        rows.append(
            (
                _code(field.name),
                _value(getattr(first, field.name)),
                limits[field.name].unit,
                _other_values(field.name, first, configs),
                _allowed(limits[field.name]),
                meaning.get(field.name, ""),
            )
        )
    return rows


def _other_values(field: str, first: Any, configs: dict[str, Any]) -> str:
    """What other configurations have at a field, where it is not what the first has."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, config in configs.items():
        value = getattr(config, field, None)
        if value != getattr(first, field):
            groups[_value(value)].append(_code(name))
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in groups.items())


def _allowed(limits: Limits) -> str:
    """The range of a field, empty where anything of its type is allowed."""
    if limits.low is None and limits.high is None:
        return ""
    if limits.high is None:
        return f"≥ {_number(limits.low)}"
    if limits.low is None:
        return f"≤ {_number(limits.high)}"
    return f"{_number(limits.low)} ... {_number(limits.high)}"


def _number(value: float) -> str:
    """A limit as a reader would write it: whole numbers in full."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def training_lengths(module: str) -> list[Row]:
    """How the configurations of one model file are trained unless told otherwise."""
    names = {_code(spec.name) for spec in _specs_of(module)}
    headings, *rows = rows_of("configurations", "")
    return [headings, *(row for row in rows if row[0] in names)]


def budgets(_: str) -> list[Row]:
    """What the authors of each configuration trained with, beside what both budgets do here."""
    from adray.registry import ModelRegistry

    headings = (
        "configuration",
        "authors: length",
        "batch",
        "px",
        "optimiser",
        "schedule",
        "augmentation",
        "epoch kept",
        "read in",
        "budget paper",
        "budget quick",
        "batch and px here",
    )
    rows: list[Row] = [headings]
    facts = _authors()
    for row in rows_of("configurations", "")[1:]:
        name = row[0].strip("`")
        matching = [pattern for pattern in facts if fnmatch.fnmatch(name, pattern)]
        theirs = facts[matching[0]] if matching else _NOT_RECORDED
        train = ModelRegistry.resolve(name).train_config
        crop = f" cropped to {train.crop_size}" if train.crop_size else ""
        here = f"{train.batch_size}, {train.img_size}{crop}"
        rows.append((row[0], *theirs, row[5], row[6], here))
    return rows


_NOT_RECORDED = ["not recorded", *[""] * 7]
"""Of a configuration that ``authors.csv`` does not name."""


def _authors() -> dict[str, list[str]]:
    """Pattern of configurations to what is on record of their authors' training, in order."""
    with (DOCS / "authors.csv").open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return {pattern: facts for pattern, *facts in rows}


def published(module: str) -> list[Row]:
    """Published figures of the configurations in one model file: the mean over the categories that a source gives."""
    names = {spec.name for spec in _specs_of(module)}
    groups: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    with (PACKAGE / "results" / "published.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["configuration"] in names:
                groups[row["configuration"], row["dataset"], row["metric"], row["source"]].append(
                    float(row["percent"])
                )
    rows: list[Row] = [("configuration", "data set", "metric", "mean, %", "categories", "source")]
    for (name, dataset, metric, source), values in groups.items():
        mean = f"{sum(values) / len(values):.1f}"
        rows.append((_code(name), dataset, _code(metric), mean, str(len(values)), source))
    return rows


def measured(module: str) -> list[Row]:
    """Own figures of the configurations in one model file, from `docs/measured.csv`."""
    names = {spec.name for spec in _specs_of(module)}
    rows: list[Row] = [("configuration", "data set", "metric", "value", "run")]
    with (DOCS / "measured.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["configuration"] in names:
                where = f"{row['dataset']} {row['category']}"
                rows.append(
                    (
                        _code(row["configuration"]),
                        where,
                        _code(row["metric"]),
                        row["value"],
                        row["run"],
                    )
                )
    return rows


def prediction_matrix(_: str) -> list[Row]:
    """How far scores move by how they are asked for, from `docs/prediction_matrix.csv`."""
    rows: list[Row] = [
        (
            "configuration",
            "copy elsewhere",
            "export",
            "another process",
            "1 at a time",
            "32 at a time",
            "2 threads",
        )
    ]
    with (DOCS / "prediction_matrix.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            rows.append((_code(row[0]), *row[1:]))
    return [rows[0], *rows[2:]]


def bundle_matrix(_: str) -> list[Row]:
    """Which configurations become a bundle, from `docs/bundle_matrix.csv`."""
    rows: list[Row] = [
        (
            "configuration",
            "images judged",
            "other verdicts",
            "largest error",
            "OpenVINO",
            "float16",
            "int8",
            "why not",
        )
    ]
    with (DOCS / "bundle_matrix.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            rows.append((_code(row[0]), *row[1:]))
    return [rows[0], *rows[2:]]


def compared(_: str) -> list[Row]:
    """How far each method lies from its authors' code, from `docs/compared.csv`."""
    headings = ("method", "compared with", "map", "score", "loss", "gradient", "inside")
    rows: list[Row] = [headings]
    with (DOCS / "compared.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            code = f"{row['code']} {row['commit']}".strip()
            rows.append((_code(row["method"]), code, *(row[kind] for kind in headings[2:])))
    return rows


def weights(_: str) -> list[Row]:
    """Every weight file with its place, size, source and hash."""
    from adray.components.backbone import BACKBONE_WEIGHT_FILES

    rows: list[Row] = [("name", "file", "size", "published at", "sha256")]
    for name, file in BACKBONE_WEIGHT_FILES.items():
        size = f"{file.megabytes} MB" if file.megabytes else ""
        rows.append((_code(name), _code(file.paths[0]), size, file.source, file.sha256[:16]))
    return rows


def auxiliary(_: str) -> list[Row]:
    """Images that are no products, and who trains with them."""
    from adray.data.auxiliary import AUXILIARY_SETS
    from adray.model_specs import MODEL_SPECS
    from adray.registry import ModelRegistry

    users: dict[str, list[str]] = defaultdict(list)
    for spec in MODEL_SPECS:
        users[ModelRegistry.resolve(spec.name).auxiliary].append(_code(spec.name))
    rows: list[Row] = [("folder", "used by", "size", "published at")]
    for name, found in AUXILIARY_SETS.items():
        rows.append(
            (
                _code(found.dataset_places[0] + "/"),
                ", ".join(users[name]),
                f"{found.megabytes} MB",
                found.source,
            )
        )
    return rows


# What the source says of itself


def keys(dotted: str) -> list[Row]:
    """The keys of one part of a sweep's file: the fields of a dataclass, `module.Class`."""
    module, _, name = dotted.rpartition(".")
    cls = getattr(importlib.import_module(f"adray.{module}"), name)
    meaning = meanings_of(cls)
    limits = limits_of(cls)
    has_limits = any(_allowed(limit) for limit in limits.values())
    rows: list[Row] = [
        ("key", "default", "allowed", "meaning") if has_limits else ("key", "default", "meaning")
    ]
    for field in dataclasses.fields(cls):
        allowed = (_allowed(limits[field.name]),) if has_limits else ()
        rows.append((_code(field.name), _default(field), *allowed, meaning.get(field.name, "")))
    return rows


def _default(field: dataclasses.Field[Any]) -> str:
    if field.name == "cache_dir":
        return "`~/.cache/adray`"
    if field.default is not dataclasses.MISSING:
        return _code(_value(field.default))
    if field.default_factory is dataclasses.MISSING:
        return "(required)"
    return "(see below)" if field.default_factory() else _code("none")


def commands(_: str) -> list[Row]:
    """Every command and what it is for."""
    from adray.__main__ import COMMANDS

    rows: list[Row] = [("command", "meaning")]
    return rows + [(_code(f"python -m adray {name}"), text) for name, text in COMMANDS.items()]


class _ParserFoundError(Exception):
    """Carries a command's parser out of its main function."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command, caught as it begins to parse."""
    from adray.settings import Settings, use_settings

    use_settings(Settings())  # options show them as their defaults
    main = importlib.import_module(f"adray.cli.{command}").main

    def stop(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _ParserFoundError(self)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            main([])
        except _ParserFoundError as found:
            parser: argparse.ArgumentParser = found.args[0]
            return parser
    raise SystemExit(f"the command {command} parses nothing")


def options(command: str) -> list[Row]:
    """The arguments and options of a command."""
    rows: list[Row] = [("option", "meaning")]
    for action in parser_of(command)._actions:
        if "-h" in action.option_strings:
            continue
        name = ", ".join(action.option_strings) or action.dest
        if action.option_strings and action.nargs != 0:
            name += f" {action.metavar or action.dest.upper()}"
        text = (action.help or "").replace("%%", "%").replace("%(default)s", str(action.default))
        rows.append((_code(name), text.replace(str(Path.home()), "~")))
    return rows


def _first_line(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def metrics(_: str) -> list[Row]:
    """Every metric."""
    from adray.metrics import METRICS

    rows: list[Row] = [("metric", "level", "meaning")]
    return rows + [(_code(name), m.level, m.meaning) for name, m in METRICS.items()]


def thresholds(_: str) -> list[Row]:
    """Every rule for a threshold."""
    from adray.thresholds import PROMISE, PROMISE_MEANING, THRESHOLDS

    rows: list[Row] = [("name", "needs test labels", "meaning")]
    rows.append((_code(PROMISE), "no", PROMISE_MEANING))
    return rows + [
        (_code(name), "yes" if r.oracle else "no", r.meaning) for name, r in THRESHOLDS.items()
    ]


def hooks(_: str) -> list[Row]:
    """What a model's trainer may fill in."""
    from adray.trainer import BaseTrainer

    names = [name for name in vars(BaseTrainer) if name.startswith("on_")]
    names += [
        "build_model",
        "configure_optimizer",
        "train_step",
        "augment",
        "validation_step",
        "notes",
    ]
    rows: list[Row] = [("hook", "called")]
    return rows + [(_code(name), _first_line(getattr(BaseTrainer, name))) for name in names]


def retry_levels(_: str) -> list[Row]:
    """What is tried when a trial runs out of memory."""
    from adray.sweep.resources import RETRY_LEVELS

    rows: list[Row] = [("retry level", "how the trial runs")]
    return rows + [(str(number), level.description) for number, level in enumerate(RETRY_LEVELS)]


def columns(_: str) -> list[Row]:
    """The columns of `leaderboard.csv`."""
    from adray.results.leaderboard import COLUMNS

    rows: list[Row] = [("column", "meaning")]
    return rows + [(_code(name), text) for name, text in COLUMNS.items()]


TABLES: dict[str, Callable[[str], list[Row]]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        configurations, hyperparameters, training_lengths, budgets, published, measured, weights, auxiliary, keys,
        commands, options, metrics, thresholds, hooks, retry_levels, columns, prediction_matrix,
        bundle_matrix,
        compared,
    )
}  # fmt: skip
"""Name in a document to what makes its rows."""


@functools.cache
def rows_of(name: str, argument: str) -> list[Row]:
    """The rows of one table, made once for all languages and chapters."""
    if name not in TABLES:
        raise SystemExit(f"no table is called {name!r}; there are {', '.join([*TABLES, 'house'])}")
    return TABLES[name](argument)


# The picture of the house


ROOMS = (
    "cli",
    "sweep",
    "search_space",
    "train",
    "job",
    "bundle",
    "bundle_predictions",
    "export",
    "measure",
    "prediction_page",
    "prediction_files",
    "predict",
    "predictor",
    "decide",
    "decisions",
    "ensembles",
    "testing",
    "registry",
    "models",
    "trainer",
    "checkpoints",
    "components",
    "data",
    "results",
    "runtime",
)
"""The rooms that are drawn, from the roof down; the files on the ground serve all of them."""

BY_NAME = "    registry -.-> models"
"""The registry knows the models' classes by their dotted names alone."""


def house() -> str:
    """Draw who imports whom, read from the sources, as a Mermaid graph."""
    below: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in below:
            imported = set(_imported(path.read_text(encoding="utf-8")))
            below[room] |= imported & below.keys() - {room}

    lines = []
    for room in ROOMS:
        for other in ROOMS:
            if other in below[room] and not _leads_there(below, room, other):
                lines.append(f"    {room} --> {other}")
    return "```mermaid\ngraph TD\n" + "\n".join([*lines, BY_NAME]) + "\n```\n"


def _leads_there(below: dict[str, set[str]], room: str, other: str) -> bool:
    """Tell whether a longer way leads from a room to another, so that its own arrow says nothing new."""
    seen: set[str] = set()
    pending = list(below[room] - {other})
    while pending:
        place = pending.pop()
        if other in below[place]:
            return True
        if place not in seen:
            seen.add(place)
            pending += below[place]
    return False


def _imported(source: str) -> Iterator[str]:
    """Give the rooms that a source imports when it runs, not those only for type checking."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adray."):
            yield (node.module or "").split(".")[1]
        pending += ast.iter_child_nodes(node)


# The examples of search spaces


def search_example(module: str) -> str:
    """The text of `configs/search/<module>.yaml`: what `space: auto` tries of a model file."""
    from adray.registry import ModelRegistry
    from adray.search_space import default_space

    name = _specs_of(module)[0].name
    config_class = ModelRegistry.trainer_class(name).config_class
    lines = [
        f"# What `search: {{space: auto}}` tries of {name}: an example to copy, made by docs/make_tables.py from the",
        f"# fields of {config_class.__name__}.",
        "space:",
    ]
    for key, domain in default_space(name).items():
        section, _, field = key.partition(".")
        unit = limits_of(config_class)[field].unit if section == "model" else ""
        about = ", ".join(filter(None, (unit, domain.note)))
        if about:
            lines.append(f"  # {about}")
        plain = yaml.safe_dump(domain.plain(), default_flow_style=True, width=10_000).strip()
        lines.append(f"  {key}: {plain}")
    return "\n".join(lines) + "\n"


def search_examples() -> dict[Path, str]:
    """Every example with the text that it should have."""
    modules = [path.stem for path in (PACKAGE / "models").glob("*.py") if path.stem != "__init__"]
    return {EXAMPLES / f"{module}.yaml": search_example(module) for module in sorted(modules)}


# The section of a model in chapter 3


MODELS_CHAPTER = "03-models.md"
UNWRITTEN = re.compile(r"^<!-- to write: [^>]* -->$", re.M)
"""What stands in a new section where only a person knows the words."""
SECTION = """### {title}

<!-- to write: {idea} -->

<!-- table: hyperparameters {module} -->
<!-- end of table -->

<!-- table: training-lengths {module} -->
<!-- end of table -->

{published}

<!-- table: published {module} -->
<!-- end of table -->

<!-- to write: {source} -->

"""
WORDS = {
    "en": {
        "idea": "the idea, the formula of the score, when to take it, when not, its cost",
        "source": "the paper to cite",
        "found": "Published:",
        "none": "No published figures are on record.",
    },
    "ko": {
        "idea": "아이디어, 점수의 식, 쓸 때, 쓰지 않을 때, 비용",
        "source": "인용할 논문",
        "found": "공개된 수치:",
        "none": "등록된 공개 수치가 없습니다.",
    },
}


def with_sections(text: str, language: str) -> str:
    """The chapter on models with a section for each file that has none, last of its family."""
    modules = [path.stem for path in search_examples()]
    present = re.findall(r"<!-- table: hyperparameters (\w+) -->", text)
    for module in modules:
        if module not in present:
            family = _specs_of(module)[0].family
            others = [other for other in present if _specs_of(other)[0].family == family]
            last = text.index(f"<!-- table: hyperparameters {others[-1]} -->")
            following = re.compile(r"^##", re.M).search(text, last)
            place = following.start() if following else len(text)
            text = text[:place] + section(module, language) + text[place:]
    return text


def section(module: str, language: str) -> str:
    """The section of one model file, with its tables to be filled and its words to be written."""
    words = WORDS[language]
    title = re.split(r",| \(", _specs_of(module)[0].title)[0]
    figures = words["found"] if rows_of("published", module)[1:] else words["none"]
    return SECTION.format(
        title=title, module=module, published=figures, idea=words["idea"], source=words["source"]
    )


# The documents


def wanted() -> dict[Path, str]:
    """Every document and example with the text that it should have."""
    found = search_examples()
    for language in LANGUAGES:
        for path in sorted((DOCS / language).glob("*.md")):
            text = path.read_text(encoding="utf-8")
            if path.name == MODELS_CHAPTER:
                text = with_sections(text, language)
            found[path] = filled(text, language)
    return found


def filled(text: str, language: str) -> str:
    """A document with its tables made anew."""

    def make(match: re.Match[str]) -> str:
        name, argument = match["name"], match["argument"].strip()
        if name == "house":
            return f"{match[1]}{house()}{match[4]}"
        return f"{match[1]}{markdown(rows_of(name, argument), language)}{match[4]}"

    return BLOCK.sub(make, text)


def stale() -> dict[Path, str]:
    """The documents and examples that differ from the code, with the text that they should have."""
    found = {}
    for path, text in wanted().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            found[path] = text
    return found


SENTENCES = (
    "keys",
    "options",
    "columns",
    "commands",
    "metrics",
    "thresholds",
    "hooks",
    "retry-levels",
    "hyperparameters",
)
"""Tables whose last column is a sentence, which has its Korean in `docs/ko/words.yaml`."""
MEANINGS = ("metrics", "thresholds")
"""Of these, what the report says too: its Korean stands in `adray/language/korean.yaml`."""
HELP = ("options", "commands")
"""Of these, what `--help` prints too: its Korean stands in `adray/language/korean_help.json`."""


def missing() -> list[str]:
    """What only a person can write, one sentence each: words of a section, and sentences in Korean."""
    found = []
    for language in LANGUAGES:
        path = DOCS / language / MODELS_CHAPTER
        for place in UNWRITTEN.findall(path.read_text(encoding="utf-8")):
            found.append(f"docs/{language}/{MODELS_CHAPTER} still has {place}")

    texts = [path.read_text(encoding="utf-8") for path in sorted((DOCS / "en").glob("*.md"))]
    for match in BLOCK.finditer("\n".join(texts)):
        if match["name"] in SENTENCES:
            for row in rows_of(match["name"], match["argument"].strip())[1:]:
                if row[-1] and row[-1] not in translations("ko") and not korean_help(row[-1]):
                    file = "adray/language/korean_help.json"
                    if match["name"] in MEANINGS:
                        file = "adray/language/korean.yaml"
                    elif match["name"] not in HELP:
                        file = "docs/ko/words.yaml"
                    found.append(f"{file} has no Korean for: {row[-1]}")
    return list(dict.fromkeys(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Make the tables, or say which are stale; say what is still to be written by hand."""
    parser = argparse.ArgumentParser(description="Fill the tables of the documents from the code.")
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit code 1 where a table is stale or words are missing",
    )
    check = parser.parse_args(argv).check
    found = stale()
    for path, text in found.items():
        print(f"{'stale' if check else 'written'}: {path.relative_to(DOCS.parent)}")
        if not check:
            path.write_text(text, encoding="utf-8")

    words = missing()
    for sentence in words:
        print(f"to write: {sentence}")
    return int(check and bool(found or words))


if __name__ == "__main__":
    sys.exit(main())
