from __future__ import annotations

import os
import random
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from fake_datasets import save, write_folder, write_mvtec, write_visa
from PIL import Image

from adray.data import accounting
from adray.data.accounting import Accounts, account, account_dataset
from adray.data.base import Sample
from adray.data.examine import examine
from adray.data.inspect_files import inspect_samples
from adray.data.readers import list_samples
from adray.errors import InputError
from adray.settings import FolderLayout, Settings, get_globals


def reasons(accounts: Accounts) -> dict[str, str]:
    """Path from the root to the reason of what is left out."""
    return {
        item.path.relative_to(accounts.root).as_posix(): item.reason for item in accounts.left_out
    }


def files_below(root: Path) -> set[str]:
    """All that is no folder, by the walk of the standard library, which follows no links."""
    found = set()
    for folder, _, names in os.walk(root):
        found.update(str(Path(folder) / name) for name in names)
    return found


def told(accounts: Accounts) -> list[str]:
    """Every path of all four lists, as often as it is in them."""
    paths = [str(sample.path) for sample in accounts.samples]
    paths += map(str, accounts.masks)
    paths += map(str, accounts.metadata)
    return paths + [str(item.path) for item in accounts.left_out]


@pytest.mark.parametrize("write", [write_mvtec, write_visa])
def test_of_a_published_data_set_nothing_is_left_out(tmp_path, write):
    root = write(tmp_path / "datasets" / "parts")
    accounts = account_dataset("parts", get_globals())
    assert accounts.left_out == ()
    assert sorted(told(accounts)) == sorted(files_below(root))
    assert len(accounts.masks) == 8


def test_each_file_that_is_no_image_has_its_reason(tmp_path):
    root = write_mvtec(tmp_path / "datasets" / "parts", categories=("disc",))
    good = root / "disc" / "train" / "good"
    (good / "Thumbs.db").write_bytes(b"x")
    (good / "._000.png").write_bytes(b"x")
    (good / ".hidden").write_bytes(b"x")
    (good / "notes.zip").write_bytes(b"x")
    (good / "photo.heic").write_bytes(b"x")
    (good / "gone.dat").symlink_to("nowhere")
    (root / "license.txt").write_text("free")
    (root / "empty.bin").touch()
    save(good / "scratches" / "000.png", 1)
    save(good / "@eaDir" / "000.png", 2)
    save(root / "disc" / "ground_truth" / "scratch" / "999_mask.png", 3)
    save(root / "disc" / "ground_truth" / "good" / "000_mask.png", 4)
    save(root / "disc" / "ground_truth" / "scratch" / "000.png", 5)

    accounts = account(root, list_samples("parts", "disc", get_globals()))
    assert {path.name for path in accounts.metadata} == {"license.txt"}
    assert reasons(accounts) == {
        "disc/train/good/Thumbs.db": accounting.LITTER,
        "disc/train/good/._000.png": accounting.LITTER,
        "disc/train/good/@eaDir/000.png": accounting.LITTER,
        "disc/train/good/.hidden": accounting.HIDDEN,
        "disc/train/good/notes.zip": f"{accounting.NO_IMAGE} (.zip)",
        "disc/train/good/photo.heic": f"{accounting.UNKNOWN_IMAGE} (.heic)",
        "disc/train/good/gone.dat": accounting.DANGLING,
        "disc/train/good/scratches/000.png": accounting.UNREAD_FOLDER,
        "disc/ground_truth/scratch/999_mask.png": accounting.BARE_MASK,
        "disc/ground_truth/good/000_mask.png": accounting.NORMAL_MASK,
        "disc/ground_truth/scratch/000.png": accounting.SECOND_MASK,
        "empty.bin": accounting.EMPTY,
    }


def test_empty_masks_of_normal_images_are_told_from_those_that_fit_no_image(tmp_path):
    root = tmp_path / "datasets" / "parts"
    for number in range(6):
        for split in ("train", "test"):
            mask = root / split / f"{split}{number}_GT.png"
            is_bad = split == "test" and number < 3
            save(root / split / f"{split}{number}.png", number, defect=is_bad, mask_path=mask)

    accounts = account_dataset("parts", get_globals())
    assert len(accounts.masks) == 3
    assert set(reasons(accounts).values()) == {accounting.NORMAL_MASK}
    assert len(accounts.left_out) == 9


def test_a_mask_names_its_image(tmp_path):
    root = write_mvtec(tmp_path / "datasets" / "parts", categories=("disc",))
    accounts = account_dataset("parts", get_globals())
    mask = root / "disc" / "ground_truth" / "hole" / "001_mask.png"
    assert accounts.masks[mask] == root / "disc" / "test" / "hole" / "001.png"


def test_links_are_walked_once_and_never_out_of_what_is_read(tmp_path):
    outside = tmp_path / "outside"
    save(outside / "000.png", 1)
    root = write_folder(tmp_path / "datasets" / "parts")
    (root / "ok" / "again").symlink_to("..", target_is_directory=True)
    (root / "away").symlink_to(outside, target_is_directory=True)
    (root / "copy").symlink_to("ng", target_is_directory=True)
    (root / "self").symlink_to("self")

    assert reasons(account(root, [])) | {} == {
        **reasons_of_unread_images(root),
        "ok/again": accounting.LINK_BACK,
        "away": accounting.LINK_AWAY,
        "copy": accounting.LINK_BACK,
        "self": accounting.DANGLING,
    }


def reasons_of_unread_images(root: Path) -> dict[str, str]:
    """What is said of a plain folder of which nothing is read."""
    found = {}
    for path in root.rglob("*.png"):
        is_mask = "masks" in path.parts
        name = path.relative_to(root).as_posix()
        found[name] = accounting.BARE_MASK if is_mask else accounting.UNREAD_FOLDER
    return found


def test_images_behind_a_link_are_those_that_the_reader_took(tmp_path):
    store = write_mvtec(tmp_path / "store", categories=("disc",))
    root = tmp_path / "datasets" / "parts"
    root.mkdir(parents=True)
    (root / "disc").symlink_to(store / "disc", target_is_directory=True)
    accounts = account_dataset("parts", get_globals())
    assert len(accounts.samples) == 13
    assert len(accounts.masks) == 4
    assert accounts.left_out == ()


def test_a_category_that_cannot_be_read_hides_no_other(tmp_path):
    root = write_mvtec(tmp_path / "datasets" / "parts")
    for path in (root / "wood" / "train" / "good").iterdir():
        path.unlink()
    accounts = account_dataset("parts", get_globals())
    assert {sample.category for sample in accounts.samples} == {"bottle"}
    assert all(item.path.parts[-4] == "wood" for item in accounts.left_out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every folder")
def test_a_closed_folder_is_named(tmp_path):
    root = write_mvtec(tmp_path / "datasets" / "parts", categories=("disc",))
    closed = root / "disc" / "closed"
    closed.mkdir(mode=0)
    assert reasons(account(root, []))["disc/closed"].startswith(accounting.CLOSED)
    closed.chmod(0o755)


# ---- any tree ----

_KOREAN = "정상_부품"
_NAMES = (
    b"good",
    b"Good",
    b"test",
    b"train",
    b"ok",
    b"ng",
    b"masks",
    b"ground_truth",
    b"@eaDir",
    b".git",
    b"lost+found",
    b"teil_\xe4",
    b"x" * 240,
    "가".encode() * 80,
    unicodedata.normalize("NFC", _KOREAN).encode(),
    unicodedata.normalize("NFD", _KOREAN).encode(),
    b" two  spaces ",
    b"line\nbreak",
    b"<script>",
)
_ENDINGS = (
    b".png",
    b".PNG",
    b".jpg",
    b".bmp",
    b".tif",
    b".gif",
    b".txt",
    b".csv",
    b".zip",
    b"",
    b".",
)


class Tree:
    """A random tree of folders, with the kinds of files that sites have."""

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folders = [root]
        root.mkdir(parents=True)
        for number in range(12):
            self._add_folder(number)
        for number in range(60):
            self._add_file(number)

    def _add_folder(self, number: int) -> None:
        name = self.random.choice(_NAMES)
        if number % 2:
            name = name[:200] + str(number).encode()
        path = self.random.choice(self.folders) / os.fsdecode(name)
        if not os.path.lexists(path) and len(os.fsencode(path)) < 2000:
            path.mkdir()
            self.folders.append(path)

    def _add_file(self, number: int) -> None:
        ending = self.random.choice(_ENDINGS)
        name = self.random.choice(_NAMES)[:200] + str(number % 7).encode() + ending
        path = self.random.choice(self.folders) / os.fsdecode(name)
        if not os.path.lexists(path):
            self.random.choice(self._KINDS)(self, path)

    def _image(self, path: Path) -> None:
        with path.open("wb") as file:
            Image.new("L", (8, 8), self.random.randrange(256)).save(file, "PNG")

    def _text(self, path: Path) -> None:
        path.write_bytes(b"no picture")

    def _empty(self, path: Path) -> None:
        path.touch()

    def _link(self, path: Path) -> None:
        path.symlink_to(self.random.choice(("nowhere", ".", "..", path.name, "/")))

    def _loop(self, path: Path) -> None:
        path.symlink_to(self.random.choice(self.folders))

    def _pipe(self, path: Path) -> None:
        os.mkfifo(path)

    _KINDS = (_image, _image, _image, _text, _empty, _link, _loop, _pipe)


_LAYOUTS = (
    FolderLayout("tree", normal=(".",)),
    FolderLayout("tree", normal=("ok",), abnormal=("ng",)),
    FolderLayout("tree", normal=("good",), abnormal=("test",), mask="masks"),
    None,
)


@pytest.mark.parametrize(
    "seed",
    [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 25))],
)
def test_in_any_tree_each_file_is_in_exactly_one_list_and_nobody_raises(tmp_path, seed):
    root = tmp_path / "datasets" / "tree"
    Tree(root, seed)
    for layout in _LAYOUTS:
        settings = get_globals()
        if layout is not None:
            settings = replace(settings, folders={"tree": layout})
        samples = read(settings)
        accounts = account(root, samples)
        # The same file has two paths where a link leads to its folder, and two categories may share it.
        images = {real(sample.path) for sample in accounts.samples}
        others = [real(path) for path in told(accounts)[len(accounts.samples) :]]
        assert len(others) == len(set(others))
        assert images.isdisjoint(others)
        paths = images | set(others)
        assert set(map(real, files_below(root) - links_to_folders(root))) <= paths
        for sample in samples:
            assert os.path.lexists(sample.path)
        facts = inspect_samples(samples, settings.cache_dir, settings.data)
        for finding in examine(samples, {"tree": accounts}, settings, facts):
            finding.sentence.encode()


def read(settings: Settings) -> list[Sample]:
    """What the reader takes of the tree; nothing where it refuses."""
    try:
        return list_samples("tree", "all", settings)
    except InputError:
        return []


def real(path: str | Path) -> Path:
    """A path whose folders are no links."""
    return Path(os.path.realpath(Path(path).parent)) / Path(path).name


def links_to_folders(root: Path) -> set[str]:
    """Links that lead to folders, which the standard library's walk counts as folders."""
    return {
        str(path) for path in map(Path, files_below(root)) if path.is_symlink() and path.is_dir()
    }
