"""Malformed input of every kind: one clear sentence, exit code 2, no traceback, nothing half-written.

Each row of `CASES` is a name, what it does to a good site, and what the sentence must say.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from fake_datasets import write_btad, write_custom, write_mvtec
from PIL import Image

from adray.__main__ import main


class Site:
    """A good data set, weight file and sweep file that a case spoils."""

    def __init__(self, root: Path, resnet18: Path) -> None:
        self.root = root
        self.data = root / "datasets" / "mvtec"
        write_mvtec(self.data, categories=("bottle", "wood"), train=4, good=2, defects=3, size=48)
        self.weights = root / "backbones" / "resnet18.pth"
        self.weights.parent.mkdir()
        self.weights.symlink_to(resnet18)
        self.file = root / "sweep.yaml"
        self.output = root / "outputs"
        self.config = {
            "name": "s",
            "settings": {
                "dataset_dir": str(root / "datasets"),
                "backbone_dir": str(root / "backbones"),
                "output_dir": str(self.output),
                "cache_dir": str(root / "cache"),
            },
            "grid": {"models": ["padim"], "datasets": {"mvtec": ["bottle"]}},
        }
        self.options: list[str] = []

    def write(self) -> None:
        if not self.file.exists():
            self.file.write_text(yaml.safe_dump(self.config, allow_unicode=True))

    def text(self, text: str | bytes) -> None:
        self.file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def first(self, pattern: str) -> Path:
        return sorted(self.data.glob(f"bottle/{pattern}"))[0]

    def replace_weights(self) -> Path:
        self.weights.unlink()
        return self.weights


Spoil = Callable[[Site], None]


def top(**values) -> Spoil:
    return lambda site: site.config.update(values)


def without(key: str) -> Spoil:
    return lambda site: site.config.pop(key)


def grid(**values) -> Spoil:
    return lambda site: site.config["grid"].update(values)


def setting(**values) -> Spoil:
    return lambda site: site.config["settings"].update(values)


def text(content: str | bytes) -> Spoil:
    return lambda site: site.text(content)


def options(*values: str) -> Spoil:
    return lambda site: site.options.extend(values)


def override(name: str, /, **values) -> Spoil:
    return top(overrides={name: values})


def rule(**values) -> Spoil:
    return top(resources=[values])


def bomb(site: Site) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    site.text("\n".join(lines))


def truncate(pattern: str) -> Spoil:
    def spoil(site: Site) -> None:
        path = site.first(pattern)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def overwrite(pattern: str, data: bytes) -> Spoil:
    return lambda site: site.first(pattern).write_bytes(data) and None


def other_mask(size: int) -> Spoil:
    def spoil(site: Site) -> None:
        Image.new("L", (size, size), 255).save(site.first("ground_truth/*/*"))

    return spoil


def empty_mask(site: Site) -> None:
    Image.new("L", (48, 48), 0).save(site.first("ground_truth/*/*"))


def empty_training_folder(site: Site) -> None:
    for path in site.data.glob("bottle/train/good/*"):
        path.unlink()


def no_defects_folder(site: Site) -> None:
    site.config["settings"]["folders"] = {
        "mine": {"path": "mvtec/bottle", "normal": ["train/nope"], "abnormal": ["test"]}
    }
    site.config["grid"]["datasets"] = {"mine": "all"}


def custom_bad_name(site: Site) -> None:
    root = site.root / "datasets" / "custom" / "mine"
    write_custom(root)
    good = next((root / "data_rgb" / "normal").glob("*.png"))
    good.rename(good.with_name("pattern1_60_100.png"))
    site.config["grid"]["datasets"] = {"mine": "each"}


def weights_truncated(site: Site) -> None:
    data = site.weights.read_bytes()
    site.replace_weights().write_bytes(data[: len(data) // 2])


def weights_of_another_network(site: Site) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, site.replace_weights())


def weights_of_another_width(site: Site) -> None:
    state = torch.load(site.weights, weights_only=True)
    state["conv1.weight"] = state["conv1.weight"][:32]
    torch.save(state, site.replace_weights())


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/adray-hostile-pickle-ran"),))


def weights_hostile(site: Site) -> None:
    site.replace_weights().write_bytes(pickle.dumps(Hostile()))


def weights_hostile_zip(site: Site) -> None:
    torch.save({"x": Hostile()}, site.replace_weights())


def weights_no_tensors(site: Site) -> None:
    torch.save({"x": 1}, site.replace_weights())


def weights_are_a_folder(site: Site) -> None:
    site.replace_weights().mkdir()


def output_is_a_file(site: Site) -> None:
    site.output.write_text("")


def btad_with_a_number(site: Site) -> None:
    write_btad(site.root / "datasets" / "btad")
    site.text(
        yaml.safe_dump({**site.config, "grid": {"models": ["padim"], "datasets": {"btad": [1]}}})
    )


CASES: list[tuple[str, Spoil, str]] = [
    # the file itself
    (
        "no such file",
        lambda s: s.options.append("--only") or s.__setattr__("file", s.root / "no.yaml"),
        "no.yaml does not exist",
    ),
    ("empty file", text(""), "is no mapping of keys to values"),
    ("a list", text("- a\n- b\n"), "is no mapping of keys to values"),
    ("a bare word", text("hello"), "is no mapping of keys to values"),
    ("broken YAML", text("name: [a, b"), "is not valid YAML"),
    ("two documents", text("name: a\n---\nname: b\n"), "is not valid YAML"),
    ("a tab for indentation", text("name: a\ngrid:\n\tmodels: all\n"), "is not valid YAML"),
    ("not UTF-8", text(b"name: \xff\xfe\n"), "cannot be read as UTF-8 text"),
    ("NUL bytes", text(b"name: a\x00b\n"), "is not valid YAML"),
    (
        "a Python object",
        text("name: !!python/object/apply:os.system [echo]\n"),
        "is not valid YAML",
    ),
    ("an alias bomb", bomb, "expands to more than"),
    ("a key twice", text("name: a\nname: b\n"), "key 'name' is given twice"),
    (
        "a key twice inside",
        text("name: a\ngrid: {models: all, models: all}\n"),
        "key 'models' is given twice",
    ),
    ("a list as key", text("name: a\n? [a, b]\n: c\n"), "cannot be a key"),
    ("a cycle", text("name: &a [*a]\n"), "expands to more than"),
    # keys and types
    ("an unknown key", top(grids={}), "unknown key 'grids'; did you mean 'grid'?"),
    (
        "an unknown key inside",
        grid(modells=["padim"]),
        "unknown key 'grid.modells'; did you mean 'models'?",
    ),
    ("no name", without("name"), "key 'name' is missing"),
    ("no grid", without("grid"), "key 'grid' is missing"),
    ("grid is a list", top(grid=[1]), "grid must be a mapping"),
    ("the name is a path", top(name="../x"), "cannot be a folder name"),
    ("the name is a number", top(name=3), "name must be text"),
    ("an empty name", top(name=""), "cannot be a folder name"),
    ("a name too long", top(name="x" * 300), "too long for a folder name"),
    ("an unknown budget", top(budget="papr"), "budget is 'papr' (str); did you mean 'paper'?"),
    ("unknown weights", top(weights="imagenet"), "weights is 'imagenet'"),
    ("search", top(search={"num_sample": 3}), "unknown key 'search.num_sample'"),
    ("search objective", top(search={"objective": "held_out_categories"}), "go together"),
    ("trial_hours zero", top(trial_hours=0), "trial_hours is 0"),
    ("trial_hours infinite", top(trial_hours=float("inf")), "trial_hours must be a finite number"),
    (
        "an unknown setting",
        setting(dataset_dirs="x"),
        "unknown key 'settings.dataset_dirs'; did you mean 'dataset_dir'?",
    ),
    (
        "a plugin that is not there",
        setting(plugins=["no_such_module"]),
        "module 'no_such_module' cannot be imported",
    ),
    # the grid
    ("an unknown model", grid(models=["padimm"]), "unknown model 'padimm'; did you mean 'padim'?"),
    ("a pattern that matches nothing", grid(models=["zzz-*"]), "unknown model 'zzz-*'"),
    ("no models", grid(models=[]), "grid.models is empty"),
    ("no data sets", grid(datasets={}), "grid.datasets is empty"),
    ("no seeds", grid(seeds=[]), "grid.seeds is empty"),
    ("a negative seed", grid(seeds=[-1]), "grid.seeds is -1"),
    ("a seed twice", grid(seeds=[1, 1]), "names a seed twice"),
    ("a seed that is text", grid(seeds=["one"]), "grid.seeds[0] must be a whole number"),
    ("data sets as a list", grid(datasets=["mvtec"]), "grid.datasets must be a mapping"),
    ("no categories", grid(datasets={"mvtec": []}), "grid.datasets.mvtec is empty"),
    ("an empty merge", grid(datasets={"mvtec": [[]]}), "holds an empty list"),
    (
        "a bare category",
        grid(datasets={"mvtec": "bottle"}),
        "write each, all, a list of categories",
    ),
    ("an unquoted 01", btad_with_a_number, 'put it in quotes, for instance "01"'),
    (
        "a category that YAML reads as false",
        text("name: a\ngrid: {datasets: {mvtec: [no]}}\n"),
        "category False is not text",
    ),
    ("a misspelt category", grid(datasets={"mvtec": ["bottel"]}), "did you mean 'bottle'?"),
    ("an unknown data set", grid(datasets={"mvtecc": "each"}), "mvtecc"),
    (
        "a data set outside",
        grid(datasets={"../mvtec": "each"}),
        "'../mvtec' is not the name of a folder",
    ),
    ("everything excluded", grid(exclude=[{"models": ["*"]}]), "the grid leaves no trial"),
    (
        "an exclusion that matches nothing",
        grid(exclude=[{"models": ["padimm"]}]),
        "grid.exclude: unknown model 'padimm'",
    ),
    (
        "only what is not there",
        options("--only", "mvtec/cable/*"),
        "--only mvtec/cable/* matches no trial",
    ),
    # hyperparameters and resources
    (
        "an override of nothing",
        override("stfmp", train={}),
        "overrides.stfmp: unknown model 'stfmp'; did you mean 'stfpm'?",
    ),
    (
        "an override of no part",
        override("padim", trian={}),
        "unknown key 'overrides.padim.trian'; did you mean 'train'?",
    ),
    (
        "an unknown hyperparameter",
        override("padim", model={"num_feature": 3}),
        "did you mean 'num_features'?",
    ),
    (
        "an unknown training key",
        override("padim", train={"epochs": 3}),
        "unknown key 'padim.train.epochs'; did you mean",
    ),
    (
        "epochs zero",
        override("padim", train={"num_epochs": 0}),
        "num_epochs is 0, but must be at least 1",
    ),
    (
        "batch size as text",
        override("padim", train={"batch_size": "32"}),
        "padim.train.batch_size must be a whole number",
    ),
    (
        "batch size as truth",
        override("padim", train={"batch_size": True}),
        "padim.train.batch_size must be a whole number",
    ),
    (
        "an image size of one",
        override("padim", train={"img_size": 1}),
        "img_size is 1, but must be between 8 and 4096",
    ),
    (
        "a crop larger than the image",
        override("padim", train={"crop_size": 512}),
        "crop_size 512 is larger than img_size 256",
    ),
    (
        "a hold-out of one",
        override("padim", train={"holdout": 1.0}),
        "holdout is 1.0, but must be a fraction in [0, 0.9]",
    ),
    (
        "an unknown normalisation",
        override("padim", train={"normalize": "imagnet"}),
        "did you mean 'imagenet'?",
    ),
    ("a negative share", rule(gpu=-0.5), "gpu is -0.5, but must be between 0 and 64"),
    ("one and a half GPUs", rule(gpu=1.5), "gpu 1.5 is not possible"),
    ("no CPU", rule(cpu=0), "cpu is 0, but must be"),
    ("a rule for nothing", rule(models=["pdim"]), "resources: unknown model 'pdim'"),
    ("--set without a value", options("--set", "name"), "--set 'name' is not KEY=VALUE"),
    ("--set of an unknown key", options("--set", "grid.model=x"), "unknown key 'grid.model'"),
    # data
    (
        "a truncated image",
        truncate("train/good/*.png"),
        "000.png: the image is damaged or cut short",
    ),
    ("an image of no bytes", overwrite("train/good/*.png", b""), "bottle/train/good"),
    ("text for an image", overwrite("test/good/*.png", b"hello" * 100), "bottle/test/good"),
    ("a mask of another size", other_mask(20), "ground_truth"),
    ("an empty mask", empty_mask, "ground_truth"),
    ("a truncated mask", truncate("ground_truth/*/*.png"), "ground_truth"),
    ("no training images", empty_training_folder, "train/good"),
    ("a folder that is not there", no_defects_folder, "train/nope"),
    ("a custom file without its fields", custom_bad_name, "pattern1_60_100.png"),
    # weights
    (
        "missing weights",
        lambda s: s.weights.unlink(),
        "missing weights of 'resnet18': copy https://",
    ),
    ("weights truncated", weights_truncated, "resnet18.pth is truncated or damaged"),
    (
        "weights of another network",
        weights_of_another_network,
        "resnet18.pth is of another network: it lacks",
    ),
    (
        "weights of another width",
        weights_of_another_width,
        "resnet18.pth is of another network: conv1.weight has shape",
    ),
    ("a hostile pickle", weights_hostile, "resnet18.pth"),
    ("a hostile archive", weights_hostile_zip, "resnet18.pth holds more than tensors"),
    ("weights without tensors", weights_no_tensors, "resnet18.pth holds no tensors by name"),
    ("weights that are a folder", weights_are_a_folder, "missing weights of 'resnet18'"),
    # output
    ("the output is a file", output_is_a_file, "outputs cannot be written"),
    ("the output is read-only", setting(output_dir="/proc/adray"), "/proc/adray cannot be written"),
]


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    import timm

    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("spoil", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_one_sentence_exit_code_2_and_nothing_written(spoil, sentence, tmp_path, resnet18, capsys):
    site = Site(tmp_path, resnet18)
    spoil(site)
    site.write() if site.file.name == "sweep.yaml" else None
    assert (
        main(["sweep", str(site.file), *(o for o in site.options if site.options != ["--only"])])
        == 2
    )
    printed = capsys.readouterr()
    assert sentence in printed.err
    # Above it may stand a line of progress where looking took three seconds.
    assert f"\n{printed.err}".count("\nerror: ") == 1
    assert "Traceback" not in printed.err
    assert not site.output.is_dir() or not list(site.output.rglob("*"))
    assert not Path("/tmp/adray-hostile-pickle-ran").exists()


def test_there_are_at_least_sixty_cases():
    assert len(CASES) >= 60


def test_all_missing_files_are_listed_together(tmp_path, resnet18, capsys):
    site = Site(tmp_path, resnet18)
    site.weights.unlink()
    site.config["grid"] = {
        "models": ["padim", "patchcore"],
        "datasets": {"mvtec": "each", "visa": "each"},
    }
    truncate("train/good/*.png")(site)
    site.write()
    assert main(["sweep", str(site.file)]) == 2
    errors = capsys.readouterr().err
    for part in ("'resnet18'", "'wide_resnet50_2'", "visa", "cut short"):
        assert part in errors, part


def test_skip_missing_goes_on_without_the_missing_cells_and_says_why(tmp_path, resnet18, capsys):
    site = Site(tmp_path, resnet18)
    site.weights.unlink()
    site.config["grid"] = {"models": ["padim"], "datasets": {"mvtec": ["bottle"]}}
    site.write()
    assert main(["sweep", str(site.file), "--skip-missing"]) == 1
    printed = capsys.readouterr()
    assert "skipped: mvtec/bottle/padim seed 42: missing weights of 'resnet18'" in printed.out
