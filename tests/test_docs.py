"""The documents: tables as the code would make them, links that lead somewhere, commands and programs that run.

A block of code in a document may stand under one of these comments, else it runs in the default suite:
`<!-- slow -->`, `<!-- gpu -->`, `<!-- cluster -->` (tried by tests/sweep/test_cluster.py), `<!-- not run: reason -->`.
The blocks of a chapter run in their order, in one folder that has the data and weights that `site` makes. A YAML or
Python block whose first line is `# name.yaml` or `# name.py` is written to that file.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fake_datasets import write_custom, write_folder, write_mvtec
from tiny import WEIGHTS

from adray.model_specs import MODEL_SPECS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CHAPTERS = (
    "01-getting-started",
    "02-architecture",
    "03-models",
    "04-datasets",
    "05-training",
    "06-inference",
    "07-contributing",
    "08-measurements",
    "09-to-the-line",
)
FENCE = re.compile(
    r"(?:<!-- (?P<mark>slow|gpu|cluster|not run: [^>]+?) -->\n+)?```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.M | re.S,
)
COMMENT = re.compile(r"(^|\s+)#.*")
HANGUL = re.compile("[가-힣]")
GIVEN_UP = (
    "트라이얼",  # 실험
    "스윕",  # 비교 실험
    "결과 저장소",  # 결과 폴더
    "작업자 프로세스",  # 워커 프로세스
    "실행 계획",  # 계획
    "GPU 몫",  # GPU 할당 비율
    "예산",  # 학습 길이
    "쌍둥이",  # 가상 결함을 그려 넣은 이미지
    "승자",  # 선택된 설정
    "기준선",  # 비교 기준
    "네임스페이스",  # 네트워크를 끊은 상태
)
"""Words that no Korean chapter uses any more, each beside what it says instead."""

spec = importlib.util.spec_from_file_location("make_tables", DOCS / "make_tables.py")
assert spec is not None
assert spec.loader is not None
make_tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_tables)


@dataclass(frozen=True)
class Block:
    mark: str
    language: str
    code: str

    @property
    def file(self) -> str:
        """The file that the block is, named in its first line; empty for none."""
        name = re.match(r"# ([\w./-]+\.(?:yaml|py))\n", self.code)
        return name[1] if name else ""


def chapter(name: str, language: str = "en") -> str:
    return (DOCS / language / f"{name}.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    return [Block(m["mark"] or "", m["language"], m["code"]) for m in FENCE.finditer(text)]


def test_every_table_and_example_is_as_the_code_would_make_it_now():
    stale = [path.name for path in make_tables.stale()]
    assert not stale, f"run python docs/make_tables.py for {stale}"


def test_each_configuration_has_its_authors_training_beside_its_budgets():
    headings, *rows = make_tables.rows_of("budgets", "")
    cells = {row[0].strip("`"): row for row in rows}
    assert list(cells) == [spec.name for spec in MODEL_SPECS]
    assert {len(row) for row in rows} == {len(headings)}
    assert "100000 + 50000 steps" in cells["dsr"]
    assert "150000 steps" in cells["dsr"]
    assert cells["cfa"][headings.index("epoch kept")].startswith("best on the test set")


def test_what_is_on_record_of_a_training_names_the_repository_and_commit_it_was_read_at():
    headings, *rows = make_tables.rows_of("budgets", "")
    length, source = headings.index("authors: length"), headings.index("read in")
    read_at = re.compile(r"[\w.-]+/[\w.-]+ [0-9a-f]{7}(, .+)?")
    for row in rows:
        if row[length] in ("no reference", "no code published", "not recorded"):
            assert not any(row[length + 1 : source + 1]), row[0]
        else:
            assert read_at.fullmatch(row[source]), row[0]


def test_every_method_that_can_be_compared_with_its_authors_code_has_its_line_in_chapter_8():
    code = ast.parse((DOCS.parent / "jobs" / "compare_authors.py").read_text(encoding="utf-8"))
    (table,) = (
        node.value
        for node in code.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "METHODS"
    )
    origins = {
        ast.literal_eval(method): ast.literal_eval(entry.elts[0])
        for method, entry in zip(table.keys, table.values, strict=True)
    }
    line = re.compile(r"^\| `([\w-]+)` \| (\S+/\S+) [0-9a-f]{7} \|", re.M)
    for language in make_tables.LANGUAGES:
        assert dict(line.findall(chapter("08-measurements", language))) == origins


def test_a_changed_cell_makes_a_document_stale():
    text = "<!-- table: thresholds -->\n<!-- end of table -->\n"
    made = make_tables.filled(text, "en")
    assert "percentile_95" in made
    assert make_tables.filled(made.replace("95th", "96th"), "en") == made


def test_every_own_figure_stands_in_the_chapter_on_models():
    with (DOCS / "measured.csv").open(encoding="utf-8", newline="") as file:
        runs = [
            (row["configuration"], row["category"], row["metric"], row["value"])
            for row in csv.DictReader(file)
        ]
    shown = re.findall(
        r"^\| `([^`]+)` \| \w+ (\w+) \| `(\w+)` \| ([\d.]+) \|", chapter("03-models"), re.M
    )
    assert shown
    assert sorted(shown) == sorted(runs)


def test_nothing_is_left_to_be_written_by_hand():
    """Each section on a model has its words, and each sentence of the tables its Korean."""
    assert not make_tables.missing()


def test_a_model_without_a_section_gets_one_at_the_end_of_its_family():
    text = chapter("03-models")
    without = re.sub(r"^### PatchCore\n.*?(?=^##)", "", text, flags=re.M | re.S)
    assert len(without) < len(text)
    made = make_tables.filled(make_tables.with_sections(without, "en"), "en")
    headings = re.findall(r"^##+ (.*)$", made, re.M)
    assert headings[headings.index("Flow") - 1] == "PatchCore"
    assert "| `coreset_ratio` |" in made[made.index("### PatchCore") : made.index("## Flow")]
    assert len(make_tables.UNWRITTEN.findall(made)) == 2


@pytest.mark.parametrize("name", CHAPTERS)
def test_both_languages_have_the_same_sections_tables_and_code(name):
    english, korean = chapter(name), chapter(name, "ko")
    for pattern in (r"^(#+) ", r"<!-- table: ([^>]*) -->"):
        assert re.findall(pattern, english, re.M) == re.findall(pattern, korean, re.M)
    plain = [
        [(b.mark, b.language, COMMENT.sub("", b.code)) for b in blocks(text)]
        for text in (english, korean)
    ]
    for one, other in zip(*plain, strict=True):
        if one[1] not in ("text", "mermaid"):
            assert one == other


def test_korean_tables_leave_no_family_tier_or_training_length_in_english():
    table = make_tables.markdown(make_tables.rows_of("configurations", ""), "ko")
    rows = [line.split("|")[1:-1] for line in table.splitlines()[2:]]
    assert rows
    for _, _, family, tier, _, paper, quick, *_ in rows:
        for cell in (family, tier, paper, quick):
            assert HANGUL.search(cell)
            assert not re.search("[A-Za-z]", cell)


def test_a_number_keeps_its_value_where_its_unit_is_translated():
    words = {"ep.": "에폭", "1 pass": "1회 통과"}
    cells = ("50 ep.", "1 pass", "45 MB", "ep.", "PaDiM (2020)", "2 3 ep.")
    found = [make_tables.translated(cell, words) for cell in cells]
    assert found == ["50 에폭", "1회 통과", "45 MB", "에폭", "PaDiM (2020)", "2 3 ep."]


@pytest.mark.parametrize("name", CHAPTERS)
def test_korean_chapters_say_one_thing_by_one_word(name):
    """Words that were given up for plainer ones do not come back."""
    text = chapter(name, "ko")
    assert not [word for word in GIVEN_UP if word in text]


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_every_link_inside_the_project_leads_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """The names that headings get where Markdown is shown."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("language", make_tables.LANGUAGES)
def test_every_key_option_command_and_column_stands_in_some_chapter(language):
    from adray.__main__ import COMMANDS
    from adray.config import SweepConfig

    tables = set(
        re.findall(
            r"<!-- table: ([^>]*) -->", "".join(chapter(name, language) for name in CHAPTERS)
        )
    )
    needed = {
        "commands",
        "columns",
        "metrics",
        "thresholds",
        "hooks",
        "retry-levels",
        "configurations",
        "weights",
        "auxiliary",
    }
    needed |= {f"options {name}" for name in COMMANDS if name not in ("models",)}
    needed |= {f"keys {name}" for name in dataclasses_below(SweepConfig)} | {
        "keys config.TrainConfig"
    }
    modules = {path.stem for path in (ROOT / "adray" / "models").glob("[!_]*.py")}
    needed |= {f"hyperparameters {name}" for name in modules} | {
        f"published {name}" for name in modules
    }
    assert not needed - tables


def dataclasses_below(cls: type) -> Iterator[str]:
    """Dotted names of a dataclass and of those in its fields."""
    import typing

    yield f"{cls.__module__.removeprefix('adray.')}.{cls.__name__}"
    for hint in typing.get_type_hints(cls).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from dataclasses_below(part)  # type: ignore[arg-type]


@pytest.fixture
def site(tmp_path):
    """A folder as the documents suppose it: data, weights (untrained ones under the published names), the project."""
    write_mvtec(
        tmp_path / "datasets" / "mvtec", categories=("bottle", "wood"), train=20, good=6, defects=8
    )
    write_folder(tmp_path / "datasets" / "my_parts", normal=20, defects=8)
    write_custom(tmp_path / "datasets" / "custom" / "line3")
    (tmp_path / "backbones").mkdir()
    torch.save(WEIGHTS["resnet18"](), tmp_path / "backbones" / "resnet18.pth")
    shutil.copytree(tmp_path / "datasets" / "mvtec" / "bottle" / "test", tmp_path / "new_images")
    for name in ("configs", "jobs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(block: Block, folder: Path) -> None:
    """Run a block of a document in a folder, as a user would paste it."""
    if block.file:
        (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.file).write_text(block.code, encoding="utf-8")
        return
    commands = {
        "bash": ["bash", "-euo", "pipefail", "-c", block.code],
        "python": [sys.executable, "-c", block.code],
    }
    if block.language not in commands:
        return
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "XDG_CACHE_HOME": str(folder / ".cache"),
    }
    outcome = subprocess.run(
        commands[block.language],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert outcome.returncode == 0, (
        f"{block.code}\n{outcome.stdout[-3000:]}\n{outcome.stderr[-3000:]}"
    )


@pytest.mark.ray
@pytest.mark.parametrize("name", CHAPTERS)
def test_the_commands_and_programs_of_a_chapter_run(name, site):
    for block in blocks(chapter(name)):
        if not block.mark:
            run(block, site)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("name", CHAPTERS)
def test_the_long_commands_of_a_chapter_run_too(name, site):
    for block in blocks(chapter(name)):
        if block.mark in ("", "slow"):
            run(block, site)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHAPTERS)
def test_the_commands_for_a_gpu_run_on_one(name, site):
    for block in blocks(chapter(name)):
        if block.mark in ("", "gpu"):
            run(block, site)
