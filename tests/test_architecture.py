"""The rules of the house, read from the syntax tree of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "adray"
FILES = sorted(PACKAGE.rglob("*.py"))

LOW = {
    "language",
    "errors",
    "types",
    "files",
    "cache_folder",
    "file_system",
    "settings",
    "fields",
    "conditions",
    "config",
    "config_file",
    "source_code",
    "progress_lines",
    "curves",
    "pixel_curves",
    "spro",
    "aupimo",
    "metrics",
    "thresholds",
    "scores",
    "regions",
    "tiling",
}
ALLOWED = {
    "errors": set(),
    "types": set(),
    "files": {"errors", "language"},
    "file_system": {"files"},
    "cache_folder": {"files"},
    "language": set(),
    "runtime": set(),
    "promises": {"language", "thresholds"},
    "prediction_table": {"files", "types", "runtime"},
    "found_images": {"errors", "language", "data", "prediction_table", "runtime"},
    "settings": {"errors", "language"},
    "fields": {"errors", "language"},
    "conditions": {"errors", "language", "fields", "types"},
    "config": {"errors", "language", "settings", "fields", "thresholds", "conditions", "tiling"},
    "config_file": {"errors", "language", "config"},
    "machine": set(),
    "source_code": {"files"},
    "progress_lines": set(),
    "curves": set(),
    "pixel_curves": {"curves"},
    "metrics": {"errors", "language", "curves", "pixel_curves"},
    "spro": {"curves", "pixel_curves", "metrics"},
    "aupimo": {"curves", "metrics"},
    "thresholds": {"errors", "language", "curves", "metrics"},
    "scores": {"types", "metrics"},
    "regions": {"errors", "language"},
    "tiling": {"errors", "language"},
    "components": LOW,
    "checkpoints": LOW | {"components"},
    "data": LOW | {"types", "runtime"},
    "results": LOW | {"machine"},
    "trainer": LOW | {"components", "checkpoints", "method", "results"},
    "method": {"config", "fields"},
    "methods": LOW | {"components", "method"},
    "models": LOW | {"components", "methods", "trainer"},
    "model_specs": {"config"},
    "registry": LOW | {"method", "methods", "model_specs"},
    "search_space": LOW | {"registry"},
    "needs": LOW | {"data", "model_specs", "registry"},
    "cross": LOW,
    "job": LOW | {"components", "data", "results", "model_specs", "registry"},
    "settle": LOW | {"data", "registry", "job"},
    "trial": LOW
    | {
        "cross",
        "language",
        "machine",
        "components",
        "data",
        "results",
        "registry",
        "needs",
        "job",
        "settle",
    },
    "train": LOW
    | {"machine", "components", "data", "language", "results", "registry"}
    | {"job", "settle", "trial", "trainer"},
    "ensembles": LOW | {"results"},
    "predictor": LOW | {"components", "data", "ensembles", "trainer"},
    "predict": LOW
    | {
        "components",
        "checkpoints",
        "results",
        "ensembles",
        "registry",
        "trainer",
        "needs",
        "predictor",
    },
    "prediction_files": LOW | {"data", "results", "prediction_table", "predictor"},
    "prediction_page": LOW
    | {"language", "results", "types", "prediction_table", "prediction_files"},
    "decisions": LOW | {"results", "ensembles", "runtime"},
    "decide": LOW | {"results", "decisions"},
    "served_trial": LOW | {"runtime", "promises", "predictor", "results"},
    "bundle_predictions": {"errors", "language", "prediction_table", "types", "runtime"},
    "bundle_geometry": {"data"},
    "bundle_graph": {"bundle_geometry", "config", "data", "thresholds", "types"},
    "bundle_team_graph": {
        "bundle_geometry",
        "bundle_graph",
        "config",
        "data",
        "ensembles",
        "types",
    },
    "bundle_tiles": {"bundle_geometry", "bundle_graph", "config", "data", "tiling", "types"},
    "bundle_check": LOW | {"results", "runtime", "export_formats", "predictor", "ensembles"},
    "bundle_precision": LOW | {"bundle_check", "data", "results", "trainer", "training_images"},
    "bundle": LOW
    | {
        "components",
        "language",
        "runtime",
        "promises",
        "results",
        "predict",
        "predictor",
        "export",
        "export_formats",
        "bundle_check",
        "bundle_precision",
        "bundle_graph",
        "bundle_team_graph",
        "bundle_tiles",
        "ensembles",
    },
    "measure": LOW | {"machine", "types", "data", "results", "predict"},
    "changed_data": LOW | {"data", "results"},
    "submit": LOW | {"data", "results", "predict", "predictor", "changed_data"},
    "backbones": LOW | {"components", "model_specs", "registry"},
    "update": LOW
    | {
        "changed_data",
        "data",
        "job",
        "machine",
        "predictor",
        "registry",
        "results",
        "trainer",
        "trial",
        "types",
    },
    "prediction_log": {"data", "errors", "language"},
    "training_images": LOW | {"data", "results", "changed_data"},
    "audit": LOW
    | {
        "data",
        "results",
        "ensembles",
        "predict",
        "predictor",
        "runtime",
        "training_images",
        "prediction_log",
    },
    "outliers": LOW | {"components", "cross", "data", "registry"},
    "outliers_page": LOW | {"data", "outliers", "prediction_table"},
    "stress": LOW | {"data", "results", "predict", "predictor", "trainer", "changed_data"},
    "audit_log": LOW | {"runtime"},
    "clean": LOW | {"components", "data", "results", "ensembles", "changed_data"},
    "export_formats": set(),
    "export": LOW
    | {
        "export_formats",
        "checkpoints",
        "machine",
        "types",
        "data",
        "results",
        "registry",
        "needs",
        "predict",
        "trainer",
    },
    "testing": LOW | {"types", "data", "registry", "trainer"},
    "sweep": LOW
    | {
        "language",
        "machine",
        "components",
        "data",
        "results",
        "registry",
        "job",
        "settle",
        "trial",
        "train",
        "search_space",
        "decide",
        "decisions",
        "stress",
    },
    "__main__": {"errors", "cli", "language"},
}
"""Room to the rooms it may import at run time; itself always."""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    """Dotted names that a file imports, without those only for type checking."""
    names = []
    pending = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
        pending += list(ast.iter_child_nodes(node))
    return names


def test_every_room_has_its_row_and_nobody_imports_the_command_line():
    rooms = {room_of(path) for path in FILES}
    assert rooms - set(ALLOWED) == {"__init__", "cli"}
    for path in FILES:
        if room_of(path) not in ("cli", "__main__"):
            assert not any(name.startswith("adray.cli") for name in imports_of(path)), path


@pytest.mark.parametrize(
    "path", [f for f in FILES if room_of(f) in ALLOWED], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_point_down(path):
    room = room_of(path)
    rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("adray.")}
    assert rooms <= ALLOWED[room] | {room, "__main__"}


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions and for types count too."""
    graph = {module_of(path): everything_imported(path) for path in FILES}
    for name in graph:
        seen: set[str] = set()
        pending = list(graph[name] & set(graph))
        while pending:
            other = pending.pop()
            assert other != name, f"{name} imports itself in a circle, by way of {sorted(seen)}"
            if other not in seen:
                seen.add(other)
                pending += graph[other] & set(graph)


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def everything_imported(path: Path) -> set[str]:
    """Modules that a file names anywhere, but for those of its lines that run as a program."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found - {module_of(path)}


def test_only_the_command_line_knows_argparse():
    for path in FILES:
        if "argparse" in imports_of(path):
            assert room_of(path) == "cli", path


def test_models_never_import_each_other_data_settings_or_the_registry():
    for path in (PACKAGE / "models").glob("*.py"):
        for name in imports_of(path):
            assert not name.startswith(
                ("adray.models", "adray.data", "adray.settings", "adray.registry")
            ), path


def test_only_the_sweep_imports_ray():
    for path in FILES:
        if any(name.split(".")[0] == "ray" for name in imports_of(path)):
            assert room_of(path) == "sweep", path


def test_ray_is_imported_by_nobody_before_its_environment_is_set():
    """Ray reads it when it is imported: without it the program would report usage and hide GPUs."""
    modules = "adray.sweep.driver, adray.sweep.search, adray.cli.sweep, adray.cli.check"
    code = f"import sys, {modules}; assert 'ray' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_readers_and_the_plan_of_data_do_not_import_torch():
    for name in (
        "base",
        "mvtec",
        "visa",
        "names",
        "masks",
        "labels",
        "tables",
        "own_list",
        "json_lists",
        "pairs",
        "class_folders",
        "m2ad",
        "robustad",
        "kaputt",
        "eyecandies",
        "published",
        "custom",
        "folder",
        "readers",
        "splits",
        "pixel_meaning",
        "file_facts",
        "inspect_files",
        "near_duplicates",
        "corruptions",
        "contact_sheet",
        "recognise",
        "side_by_side",
        "survey",
        "survey_counts",
        "survey_page",
        "survey_pictures",
        "survey_text",
        "synthetic",
        "synthetic_images",
        "synthetic_defects",
    ):
        assert not any(
            n.split(".")[0] == "torch" for n in imports_of(PACKAGE / "data" / f"{name}.py")
        ), name


def test_there_is_exactly_one_global_statement():
    found = [
        str(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Global)
    ]
    assert [Path(f).name for f in found] == ["settings.py"]


def test_inheritance_is_one_level_deep():
    bases: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [
                    ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases
                ]
    deep = {
        name: parent
        for name, parents in bases.items()
        for parent in parents
        if any(grand in bases for grand in bases.get(parent, []))
    }
    assert not deep


def test_package_init_files_import_nothing():
    """That of the runtime names what a program on the line takes from it, which loads no torch."""
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent.name != "runtime":
            assert imports_of(path) == [], path


FURTHER = {
    "backends": {"onnxruntime", "openvino"},
    "run_onnx": {"onnxruntime"},
    "server": {"starlette"},
    "server_input": {"starlette"},
    "http_server": {"starlette", "uvicorn"},
    "folder_events": {"watchdog"},
    "outbox": {"paho"},
}
"""File of the runtime to what it needs besides, of the extras."""


def test_the_runtime_needs_numpy_pillow_and_a_backend_and_few_files_what_an_extra_has():
    allowed = {"numpy", "PIL", *sys.stdlib_module_names}
    for path in (PACKAGE / "runtime").glob("*.py"):
        for name in everything_imported(path):
            known = allowed | FURTHER.get(path.stem, set())
            assert name.split(".")[0] in known or name.startswith("adray.runtime"), (path, name)


def test_judging_a_bundle_needs_no_file_that_needs_an_extra():
    for start in ("adray.runtime.model", "adray.runtime.doctor", "adray.cli.predict_bundle"):
        pending = [start]
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            path = ROOT / f"{name.replace('.', '/')}.py"
            if name in seen or not path.exists():
                continue
            seen.add(name)
            pending += [found for found in everything_imported(path) if found.startswith("adray.")]
        assert seen
        extras = set(FURTHER) - {"backends", "run_onnx"}
        assert not {f"adray.runtime.{name}" for name in extras} & seen


@pytest.mark.parametrize(
    "module",
    ["adray.cli.predict_bundle", "adray.cli.doctor", "adray.cli.serve", "adray.cli.watch"],
)
def test_the_commands_of_the_line_load_nothing_else_either(module):
    """What they load is looked for in a process, since they go by way of other files."""
    code = (
        f"import sys, {module}; found = {{name.split('.')[0] for name in sys.modules}}; "
        "here = {'adray', 'numpy', 'PIL', *sys.stdlib_module_names}; "
        "site = {name for name in found - here if not name.startswith('_')}; "
        "assert not site & {'torch', 'ray', 'yaml', 'einops', 'scipy', 'pandas', 'pyarrow'}, site"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "module", ["adray.registry", "adray.config", "adray.data.readers", "adray.__main__"]
)
def test_importing_it_does_not_load_torch_or_ray(module):
    code = f"import sys, {module}; assert not {{'torch', 'ray', 'timm'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_listing_models_does_not_load_torch():
    code = (
        "import sys; from adray.registry import ModelRegistry; "
        "ModelRegistry.list_models(); ModelRegistry.list_by_category(); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_nothing_downloads():
    forbidden = (
        "urllib.request",
        "requests",
        "httpx",
        "huggingface_hub",
        "torch.hub",
        "urlretrieve",
        "http.client",
    )
    for path in FILES:
        names = imports_of(path)
        if path != PACKAGE / "runtime" / "outbox.py":  # sends results where --webhook says
            assert not any(name.startswith(forbidden) for name in names), path
        text = path.read_text(encoding="utf-8")
        assert "pretrained=True" not in text, path
        assert "load_state_dict_from_url" not in text, path
