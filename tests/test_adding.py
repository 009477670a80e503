"""The lists of chapter 7: in a copy of the project, each thing is added by the edits of its list, and by no others.

One copy takes all five additions in turn. After each, the files that differ are those that its list names; after the
last, the tests that look after such things pass there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHAPTER = "07-contributing.md"
ITEM = re.compile(r"^\d+\. .*\n(?:   .*\n)*", re.M)
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.\w+)`")
pytestmark = pytest.mark.timeout(1800)  # the machine may be busy


def sections(language: str) -> list[str]:
    text = (ROOT / "docs" / language / CHAPTER).read_text(encoding="utf-8")
    return re.split(r"^## ", text, flags=re.M)[1:]


def listed(title: str, language: str = "en") -> set[str]:
    """The files in the list of a section, which is found by its English title."""
    (place,) = [i for i, text in enumerate(sections("en")) if text.startswith(f"{title}\n")]
    items = ITEM.findall(sections(language)[place])
    return set(PATH.findall("".join(items)))


def example(title: str) -> str:
    """The first program in a section of the chapter, without the line that names its file."""
    (text,) = [text for text in sections("en") if text.startswith(f"{title}\n")]
    code = re.search(r"^```python\n(?:# [\w./]+\.py\n)?(.*?)^```$", text, re.M | re.S)
    assert code is not None
    return code[1]


def between(text: str, first: str, last: str) -> str:
    """The part of a text from `first` to the line before `last`."""
    start = text.index(first)
    return text[start : text.index(last, start)]


@dataclass
class Project:
    """A copy of the project, which knows what was changed in it."""

    folder: Path
    before: dict[str, bytes] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not re.search(r"__pycache__|\.\w+_cache/|^nested/", name):
                found[name] = path.read_bytes()
        return found

    def changed(self) -> set[str]:
        """The files that are new or differ since this was asked last."""
        before, self.before = self.before, self.files()
        return {name for name, content in self.before.items() if before.get(name) != content}

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        assert not (self.folder / name).exists()
        (self.folder / name).write_text(text, encoding="utf-8")

    def append(self, name: str, text: str) -> None:
        (self.folder / name).write_text(self.read(name) + text, encoding="utf-8")

    def insert(self, name: str, text: str, above: str) -> None:
        """Put a text above what stands once in a file."""
        parts = self.read(name).split(above)
        assert len(parts) == 2, (name, above)
        (self.folder / name).write_text(text.join((parts[0], above + parts[1])), encoding="utf-8")

    def translate(self, words: dict[str, str]) -> None:
        for english, korean in words.items():
            line = f"{json.dumps(english)}: {json.dumps(korean, ensure_ascii=False)}\n"
            self.append("docs/ko/words.yaml", line)

    def translate_meaning(self, english: str, korean: str) -> None:
        """Add the Korean of what a metric or a threshold means."""
        self.append("adray/language/korean.yaml", f"meaning {english}: {korean}\n")

    def translate_help(self, words: dict[str, str]) -> None:
        name = "adray/language/korean_help.json"
        whole = json.loads(self.read(name)) | words
        (self.folder / name).write_text(
            json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )

    def run(self, *command: str | Path) -> str:
        """Run a command at the top of the copy; it must succeed."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTEST")
        }
        environment |= {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.folder),
            "PYTEST_ADDOPTS": f"-p no:cacheprovider --basetemp={self.folder / 'nested'}",
        }
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def pytest(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "pytest", "-n", "0", *arguments)

    def tidy(self) -> None:
        """Fold the code, and drop imports that nothing needs, as a developer does before a commit."""
        self.run("ruff", "check", "--fix", "adray", "tests")
        self.run("ruff", "format", "adray", "tests")

    def make_tables(self) -> str:
        return self.run(sys.executable, "docs/make_tables.py")


def copied(folder: Path) -> Project:
    """The tracked files of the project as they are now, in another folder."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    copy = Project(folder)
    copy.changed()
    return copy


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """One copy, which all additions change in turn."""
    return copied(tmp_path_factory.mktemp("adding") / "project")


TITLES = ("A model", "A data set", "A metric", "A threshold", "A command")


@pytest.mark.parametrize("title", TITLES)
def test_both_languages_list_the_same_files(title):
    assert listed(title)
    assert listed(title) == listed(title, "ko")


def add_model(project: Project) -> None:
    text = example("A model")
    model, _, row = text.partition("ModelRegistry.register(\n")
    row = row.rpartition(")")[0].replace("nearest_mean.", "adray.models.nearest_mean.")
    project.write("adray/models/nearest_mean.py", model)
    project.insert(
        "adray/model_specs.py", f"{row.rstrip()},\n", above='    ModelSpec(\n        "uninet"'
    )
    project.insert("tests/tiny.py", '    "nearest-mean": {},\n', above='    "uninet": {')
    project.write("tests/models/test_nearest_mean.py", TEST_OF_MODEL)
    project.translate(
        {
            "Exponent of the difference of each pixel.": "픽셀마다 차이에 적용하는 지수.",
            "Part of the map's values, the highest, that the score averages.": "점수에 쓰는 상위 값의 비율.",
        }
    )
    project.tidy()


def test_a_model_takes_the_edits_of_its_list(project):
    add_model(project)
    recorded = json.loads(project.read("tests/golden_scores.json"))
    printed = project.run("jobs/add_model.sh", "nearest-mean")
    assert printed.count("to write: docs/") == 4
    for language in ("en", "ko"):
        name = f"docs/{language}/03-models.md"
        words = re.sub(r"<!-- to write: [^>]* -->", "Written.", project.read(name))
        (project.folder / name).write_text(words, encoding="utf-8")

    assert project.changed() == listed("A model")
    now = json.loads(project.read("tests/golden_scores.json"))
    assert set(now) - set(recorded) == {"nearest-mean"}
    assert recorded.items() <= now.items()


def add_data_set(project: Project) -> None:
    text = example("A data set")
    layout, _, row = text.partition('DATASETS["flat"] = ')
    project.write("adray/data/flat_layout.py", layout)
    project.insert(
        "adray/data/readers.py",
        "from adray.data.flat_layout import detect_flat, list_flat_categories, list_flat_samples\n",
        above="from adray.data.folder import",
    )
    project.insert(
        "adray/data/readers.py", f'    "flat": {row.rstrip()},\n', above='    "folder": '
    )
    project.append("tests/fake_datasets.py", WRITER_OF_LAYOUT)
    project.write("tests/data/test_flat_layout.py", TEST_OF_LAYOUT)
    for language, heading in (("en", "Flat"), ("ko", "평평한 폴더")):
        shape = "```text\ndatasets/parts/bottle/train_0_17.png\n```\n"
        project.append(f"docs/{language}/04-datasets.md", f"\n## {heading}\n\n{shape}")
    project.tidy()


def test_a_data_set_takes_the_edits_of_its_list(project):
    add_data_set(project)
    assert project.changed() == listed("A data set")


def add_metric(project: Project) -> None:
    text = example("A metric")
    function = between(text, "def recall_at_1_percent", "METRICS[")
    row = between(text, "Metric(\n", "\nrng =").rstrip()
    project.insert("adray/metrics.py", function, above="@dataclass(frozen=True)\nclass Metric:")
    line = f'    "recall_at_1_percent": {row},\n'
    project.insert("adray/metrics.py", line, above='    "pixel_auroc": ')
    project.append("tests/test_metrics.py", TEST_OF_METRIC)
    project.translate_meaning("recall at 1 % false alarms", "과검 1 %에서의 검출률")
    project.tidy()


def test_a_metric_takes_the_edits_of_its_list(project):
    add_metric(project)
    assert "to write" not in project.make_tables()
    assert project.changed() == listed("A metric")


def add_threshold(project: Project) -> None:
    text = example("A threshold")
    function = between(text, "def highest_normal", "THRESHOLDS[")
    row = between(text, "Rule(\n", "\nheld_out =").rstrip()
    project.insert("adray/thresholds.py", function, above="def _best_f1(")
    line = f'    "highest_normal": {row},\n'
    project.insert("adray/thresholds.py", line, above='    "percentile_95": ')
    project.append("tests/test_thresholds.py", TEST_OF_THRESHOLD)
    project.translate_meaning("highest score of held-out normals", "검증용 정상 이미지의 최고 점수")
    project.tidy()


def test_a_threshold_takes_the_edits_of_its_list(project):
    add_threshold(project)
    assert "to write" not in project.make_tables()
    assert project.changed() == listed("A threshold")


def add_command(project: Project) -> None:
    project.write("adray/cli/size.py", example("A command"))
    line = '    "size": "how much room a store takes",\n'
    project.insert("adray/__main__.py", line, above='    "synthetic": ')
    project.append("tests/test_commands.py", TEST_OF_COMMAND)
    for language in ("en", "ko"):
        table = "\n`python -m adray size outputs`:\n\n<!-- table: options size -->\n<!-- end of table -->\n"
        project.append(f"docs/{language}/05-training.md", table)
    project.translate_help(
        {
            "how much room a store takes": "결과 폴더가 차지하는 용량",
            "Say how much room a store takes on the disk.": "결과 폴더의 디스크 용량을 알려 줍니다.",
        }
    )
    project.tidy()


def test_a_command_takes_the_edits_of_its_list(project):
    add_command(project)
    assert "to write" not in project.make_tables()
    assert project.changed() == listed("A command")

    assert "how much room a store takes" in project.run(sys.executable, "-m", "adray")
    assert "STORE" in project.run(sys.executable, "-m", "adray", "size", "--help")


def test_what_looks_after_such_things_passes_with_all_five_added(project):
    project.run("ruff", "check", ".")
    project.run("ruff", "format", "--check", ".")
    fits = "tests/test_search_space.py::test_the_space_of_its_model_fits_every_configuration"
    resolves = "tests/test_registry.py::test_every_row_resolves_and_its_configs_survive_json"
    project.pytest(
        "-m",
        "not ray and not slow and not gpu",
        "tests/test_architecture.py",
        "tests/test_commands.py",
        "tests/test_docs.py",  # tables and examples as `make_tables.py --check` sees them
        "tests/test_metrics.py::test_recall_at_1_percent_equals_scikit_learn",
        "tests/test_metrics.py::test_every_metric_of_the_table_is_computed",
        "tests/test_models_contract.py::test_every_configuration_has_its_tiny_overrides",
        "tests/test_scores.py",
        "tests/test_search_space.py::test_every_model_file_has_a_space_and_every_space_a_model",
        "tests/test_thresholds.py",
        "tests/data/test_flat_layout.py",
        "tests/data/test_readers.py",
        "tests/models/test_nearest_mean.py",
        "tests/results/test_leaderboard.py",
        "tests/results/test_text_and_figures.py",
        f"{fits}[nearest-mean]",
        f"{resolves}[paper-nearest-mean]",
    )


@pytest.mark.slow
def test_the_types_of_all_five_are_right_too(tmp_path):
    project = copied(tmp_path / "project")
    for add in (add_model, add_data_set, add_metric, add_threshold, add_command):
        add(project)
    project.run("mypy")


@pytest.mark.slow
def test_a_raised_version_is_that_of_the_wheel(tmp_path):
    project = copied(tmp_path / "project")
    text = re.sub(r'(__version__ = )".*"', r'\1"99.1.2"', project.read("adray/__init__.py"))
    (project.folder / "adray/__init__.py").write_text(text, encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel")
    project.run(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ".")
    assert [path.name for path in tmp_path.glob("*.whl")] == ["adray-99.1.2-py3-none-any.whl"]


TEST_OF_MODEL = """\
from __future__ import annotations

import numpy as np
import torch

from adray.models.nearest_mean import NearestMeanConfig, NearestMeanModel


def test_the_score_is_the_mean_of_the_highest_differences():
    model = NearestMeanModel(NearestMeanConfig(power=1.0, top=0.25), 4)
    image = torch.rand(2, 3, 4, 4)
    found = model(image)
    for i in range(2):
        differences = [float(image[i, :, y, x].mean()) for y in range(4) for x in range(4)]
        assert np.isclose(float(found.pred_score[i]), np.mean(sorted(differences)[-4:]))
"""
WRITER_OF_LAYOUT = '''

def write_flat(root: Path, categories: Sequence[str] = ("bottle",), size: int = 64) -> Path:
    """Images whose names say split and label."""
    for c, category in enumerate(categories):
        for i, name in enumerate(("train_0", "train_0", "test_0", "test_1")):
            save(root / category / f"{name}_{i}.png", 1000 * c + i, size, defect=name == "test_1")
    return root
'''
TEST_OF_LAYOUT = """\
from __future__ import annotations

from fake_datasets import write_flat

from adray.data.readers import list_samples, resolve_dataset
from adray.settings import get_globals


def test_each_file_has_the_split_and_the_label_of_its_name(tmp_path):
    write_flat(tmp_path / "datasets" / "parts")
    assert resolve_dataset("parts", get_globals()).layout == "flat"
    found = list_samples("parts", "bottle", get_globals())
    assert [(sample.split, sample.label) for sample in found] == [
        ("test", 0),
        ("test", 1),
        ("train", 0),
        ("train", 0),
    ]
"""
TEST_OF_METRIC = """

def test_recall_at_1_percent_equals_scikit_learn():
    from sklearn.metrics import roc_curve

    score, label = make_scores()
    false, true, _ = roc_curve(label, score, drop_intermediate=False)
    found = image_metrics(score, label)["recall_at_1_percent"]
    assert found == pytest.approx(true[false <= 0.01].max())
"""
TEST_OF_THRESHOLD = """

def test_the_highest_normal_is_the_largest_held_out_score():
    held_out = np.random.default_rng(1).random(60)
    assert compute_thresholds(*make_scores(), held_out)["highest_normal"].value == held_out.max()
"""
TEST_OF_COMMAND = """

def test_size_adds_up_the_files_of_a_store(tmp_path, capsys):
    (tmp_path / "a").write_bytes(bytes(2_000_000))
    assert main(["size", str(tmp_path)]) == 0
    assert "2.0 MB" in capsys.readouterr().out
    assert main(["size", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
"""
