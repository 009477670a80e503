"""Which data sets there are and how they are read.

There is one row per layout, found by the folder's shape, not its name.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adray.data.base import DatasetReader, Reading, Sample, list_folders
from adray.data.btad import detect_btad, list_btad_samples
from adray.data.custom import detect_custom, list_custom_categories, list_custom_samples
from adray.data.folder import detect_folder, list_folder_categories, list_folder_samples
from adray.data.mvtec import detect_mvtec, list_mvtec_categories, list_mvtec_samples
from adray.data.splits import check_fraction
from adray.data.visa import detect_visa, list_visa_categories, list_visa_samples
from adray.errors import InputError, nearest
from adray.settings import FolderLayout, Settings, set_globals

DATASETS: dict[str, DatasetReader] = {
    "custom": DatasetReader(
        list_custom_categories, list_custom_samples, detect_custom, "data_rgb/normal (custom)"
    ),
    "mvtec": DatasetReader(
        list_mvtec_categories, list_mvtec_samples, detect_mvtec, "<category>/train/good (MVTec AD)"
    ),
    "btad": DatasetReader(
        list_mvtec_categories, list_btad_samples, detect_btad, "<category>/train/ok (BTAD)"
    ),
    "visa": DatasetReader(
        list_visa_categories, list_visa_samples, detect_visa, "<category>/Data/Images (VisA)"
    ),
    "folder": DatasetReader(
        list_folder_categories,
        list_folder_samples,
        detect_folder,
        "normal and abnormal (plain folder)",
    ),
}
"""The layouts, in the order in which a folder is held against them."""


@dataclass(frozen=True)
class ResolvedDataset:
    """A data set found on this machine."""

    name: str
    """As the user calls it."""
    root: Path
    """Its folder, absolute."""
    reader: DatasetReader
    """Its row in `DATASETS`."""
    layout: str
    """The name of that row."""
    folder: FolderLayout | None = None
    """Its directories, where the settings describe it as a plain folder."""

    def list_categories(self) -> list[str]:
        """List its categories in natural order.

        Raises:
            InputError: where it has none.
        """
        names = self.reader.list_categories(self.root, Reading(name=self.name, folder=self.folder))
        if not names:
            raise InputError(
                f"dataset {self.name!r}: {self.root} holds no images; copy the data set there"
            )
        return names


def set_dataset_dir(dataset_dir: str | os.PathLike[str]) -> Settings:
    """Set the folder that holds the data sets, as ``set_globals(dataset_dir=...)`` does."""
    return set_globals(dataset_dir=dataset_dir)


def resolve_dataset(dataset_type: str, settings: Settings) -> ResolvedDataset:
    """Find a data set: among `settings.folders`, in `dataset_dir`, in ``dataset_dir/custom``.

    Raises:
        InputError: for a name that is a path, a data set that is not there or a folder of no known
            layout.
    """
    _check_name(dataset_type)
    home = _home(settings)
    if dataset_type in settings.folders:
        return _described_folder(dataset_type, settings.folders[dataset_type], home)

    places = [home / dataset_type, home / "custom" / dataset_type]
    for root in places:
        layout = detect_layout(root)
        if layout is not None:
            return ResolvedDataset(dataset_type, root, DATASETS[layout], layout)

    present = next(filter(Path.is_dir, places), None)
    raise InputError(_not_found(dataset_type, present, home, settings))


def _home(settings: Settings) -> Path:
    """Give the folder that holds the data sets, absolute."""
    return Path(settings.dataset_dir).expanduser().absolute()


def _described_folder(name: str, folder: FolderLayout, home: Path) -> ResolvedDataset:
    """Find a data set that the settings describe as a plain folder.

    Raises:
        InputError: where it is not there.
    """
    root = home / Path(folder.path).expanduser()
    if not root.is_dir():
        raise InputError(
            f"folders.{name}.path: {root} does not exist; correct the path or create it"
        )
    return ResolvedDataset(name, root, DATASETS["folder"], "folder", folder)


def detect_layout(root: Path) -> str | None:
    """Give the name of the first layout in `DATASETS` that fits the folder, or None."""
    if not root.is_dir():
        return None
    for name, reader in DATASETS.items():
        if reader.detect(root):
            return name
    return None


def list_datasets(settings: Settings) -> list[str]:
    """List the data sets on this machine."""
    home = _home(settings)
    names = list(settings.folders)
    for folder in list_folders(home) + list_folders(home / "custom"):
        if folder.name not in names and detect_layout(folder) is not None:
            names.append(folder.name)
    return names


def list_categories(dataset_type: str, settings: Settings) -> list[str]:
    """List the categories of a data set, in natural order.

    Raises:
        InputError: for a data set that is not there or has no categories.
    """
    return resolve_dataset(dataset_type, settings).list_categories()


def list_samples(
    dataset_type: str | Sequence[str],
    category: str | Sequence[str],
    settings: Settings,
    *,
    seed: int = 42,
    split_mode: str = "1cls",
    train_defects: float = 0.0,
) -> list[Sample]:
    """List the samples of all the data sets and categories given, merged into one list.

    Args:
        dataset_type: name of a data set, or several.
        category: name of a category, several, or ``"all"``. With several data sets each gives those
            that it has.
        settings: where the data sets lie.
        seed: chooses the split of data that come without one.
        split_mode: which of VisA's splits.
        train_defects: fraction in [0, 0.9] of the defects that train, for data without a split.

    Raises:
        InputError: for an unknown data set or category, an empty training folder, or a malformed
            file.
    """
    check_fraction("train_defects", train_defects)
    datasets = [resolve_dataset(name, settings) for name in _names("dataset", dataset_type)]
    wanted = _names("category", category)
    present = {dataset.name: dataset.list_categories() for dataset in datasets}
    if "all" not in wanted:
        _check_categories(wanted, present)

    samples: list[Sample] = []
    for dataset in datasets:
        reading = Reading(
            name=dataset.name,
            seed=seed,
            split_mode=split_mode,
            train_defects=train_defects,
            folder=dataset.folder,
            options=settings.options_of(dataset.name),
            cache_dir=Path(settings.cache_dir),
        )
        names = present[dataset.name]
        if "all" not in wanted:
            names = [name for name in wanted if name in names]
        for name in names:
            samples += dataset.reader.list_samples(dataset.root, name, reading)
    return samples


def _names(kind: str, value: str | Sequence[str]) -> list[str]:
    """Give the names once each, in order.

    Raises:
        InputError: for an empty list or a name that is not a string.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        names = list(value)
    else:
        names = [value]
    if not names:
        raise InputError(f"{kind}: the list is empty; name at least one {kind}")

    # YAML reads an unquoted 01 as the number 1.
    for name in names:
        if not isinstance(name, str):
            raise InputError(
                f'{kind}: {name!r} is not a string; put it in quotes, such as "{_padded(name)}"'
            )
    return list(dict.fromkeys(names))


def _padded(name: object) -> str:
    """Write a number as categories do: YAML reads 01 as 1."""
    is_number = isinstance(name, int) and not isinstance(name, bool)
    return f"{name:02d}" if is_number else str(name)


def _check_name(name: str) -> None:
    """Refuse a data set name that leads elsewhere.

    Raises:
        InputError: for anything but one folder name.
    """
    is_text = isinstance(name, str) and bool(name.strip())
    if not is_text or name in (".", "..") or not {"/", "\\", "\0"}.isdisjoint(name):
        raise InputError(
            f"dataset: {name!r} is not the name of a folder in dataset_dir; "
            "give the bare name and set dataset_dir, or describe the path under settings.folders"
        )


def _check_categories(wanted: list[str], present: dict[str, list[str]]) -> None:
    """Refuse a category that no data set has, and a data set that has none of the categories.

    Raises:
        InputError: names the nearest.
    """
    known = list(dict.fromkeys(itertools.chain.from_iterable(present.values())))
    for name in wanted:
        if name not in known:
            where = ", ".join(present)
            raise InputError(
                f"category: {name!r} is not in {where}; {nearest(name, known)}; "
                "'all' takes every one"
            )

    for dataset, names in present.items():
        if set(names).isdisjoint(wanted):
            raise InputError(
                f"dataset {dataset!r} has none of the categories {', '.join(wanted)}; "
                f"{nearest(wanted[0], names)}"
            )


def _not_found(name: str, folder: Path | None, home: Path, settings: Settings) -> str:
    """Say why a data set cannot be read.

    Args:
        name: as the user calls it.
        folder: the folder of that name, or None where there is none.
        home: the folder that holds the data sets.
        settings: name the other data sets.
    """
    if folder is None:
        hint = nearest(name, list_datasets(settings))
        return (
            f"dataset: {home / name} does not exist (nor {home / 'custom' / name}); {hint}; "
            "or correct dataset_dir"
        )

    if (folder / "train").is_dir():
        return (
            f"dataset {name!r}: {folder} is a single category; "
            f"move it one level down to {folder / name}, or describe it under settings.folders"
        )

    shapes = ", ".join(reader.shape for reader in DATASETS.values())
    present = ", ".join(list_datasets(settings)) or "none"
    return (
        f"dataset {name!r}: {folder} has no known layout; "
        f"it needs {shapes}, or a description under settings.folders; data sets here: {present}"
    )
