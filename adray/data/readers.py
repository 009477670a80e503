"""Which data sets there are and how they are read.

There is one row per layout, found by the folder's shape, not its name. Five shapes serve most: folders
of training and test images with masks beside, a list in JSON, a list of one's own, image and mask
side by side, and classes with a folder of labels.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adray.data.base import DatasetReader, Reading, Sample, list_folders
from adray.data.class_folders import detect_classes, list_class_categories, list_class_samples
from adray.data.custom import detect_custom, list_custom_categories, list_custom_samples
from adray.data.drop import dropped_names, without_dropped
from adray.data.eyecandies import (
    detect_eyecandies,
    list_eyecandies_categories,
    list_eyecandies_metadata,
    list_eyecandies_samples,
)
from adray.data.folder import detect_folder, list_folder_categories, list_folder_samples
from adray.data.json_lists import detect_json, list_json_categories, list_json_samples
from adray.data.kaputt import detect_kaputt, list_kaputt_categories, list_kaputt_samples
from adray.data.m2ad import detect_m2ad, list_m2ad_categories, list_m2ad_samples
from adray.data.mvtec import (
    detect_btad,
    detect_mvtec,
    detect_nested,
    list_mvtec_categories,
    list_mvtec_metadata,
    list_mvtec_samples,
)
from adray.data.own_list import detect_list, list_own_categories, list_own_samples
from adray.data.pairs import detect_pairs, list_pair_categories, list_pair_samples
from adray.data.robustad import (
    detect_robustad,
    list_robustad_categories,
    list_robustad_samples,
)
from adray.data.splits import check_fraction
from adray.data.visa import detect_visa, list_visa_categories, list_visa_samples
from adray.errors import InputError
from adray.language.sentence import Sentence, Term, nearest_of
from adray.settings import DEFAULT_OPTIONS, DataOptions, FolderLayout, Settings, set_globals

ALL = "all"
"""What stands for all categories of a data set, so that none of several can be called so."""

DATASETS: dict[str, DatasetReader] = {
    "custom": DatasetReader(
        list_custom_categories,
        list_custom_samples,
        detect_custom,
        "data_rgb/normal (custom)",
    ),
    "mvtec": DatasetReader(
        list_mvtec_categories,
        list_mvtec_samples,
        detect_mvtec,
        "<category>/train/good (MVTec AD and its followers)",
        list_mvtec_metadata,
        fixed_split=True,
    ),
    "btad": DatasetReader(
        list_mvtec_categories,
        list_mvtec_samples,
        detect_btad,
        "<category>/train/ok (BTAD)",
        list_mvtec_metadata,
        fixed_split=True,
    ),
    "visa": DatasetReader(
        list_visa_categories,
        list_visa_samples,
        detect_visa,
        "<category>/Data/Images (VisA)",
    ),
    "json": DatasetReader(
        list_json_categories,
        list_json_samples,
        detect_json,
        "realiad_jsons/<category>.json or splits/<category>.json (Real-IAD)",
        fixed_split=True,
    ),
    "classes": DatasetReader(
        list_class_categories,
        list_class_samples,
        detect_classes,
        "<category>/Train/Label (DAGM)",
        fixed_split=True,
    ),
    "robustad": DatasetReader(
        list_robustad_categories,
        list_robustad_samples,
        detect_robustad,
        "<category>/*train and <category>/*test0 (RobustAD)",
        fixed_split=True,
    ),
    "m2ad": DatasetReader(
        list_m2ad_categories,
        list_m2ad_samples,
        detect_m2ad,
        "<category>/Good/<object>/V000_L00.png (M2AD)",
    ),
    "eyecandies": DatasetReader(
        list_eyecandies_categories,
        list_eyecandies_samples,
        detect_eyecandies,
        "<category>/train/data/*_image_0.png (Eyecandies)",
        list_eyecandies_metadata,
        fixed_split=True,
    ),
    "kaputt": DatasetReader(
        list_kaputt_categories,
        list_kaputt_samples,
        detect_kaputt,
        "query-train.parquet (Kaputt)",
        fixed_split=True,
    ),
    "pairs": DatasetReader(
        list_pair_categories,
        list_pair_samples,
        detect_pairs,
        "X.png beside X_GT.png or X_label.bmp (KolektorSDD)",
        general=True,
    ),
    "nested": DatasetReader(
        list_mvtec_categories,
        list_mvtec_samples,
        detect_nested,
        "<domain>/<category>/train/good (MANTA)",
        list_mvtec_metadata,
        general=True,
        fixed_split=True,
    ),
    "folder": DatasetReader(
        list_folder_categories,
        list_folder_samples,
        detect_folder,
        "normal and abnormal (plain folder)",
        general=True,
    ),
    "list": DatasetReader(
        list_own_categories,
        list_own_samples,
        detect_list,
        "a table with image_path and label (list)",
        general=True,
    ),
}
"""The layouts. A folder that several fit is refused until `settings.data` names one."""


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
    options: DataOptions = DEFAULT_OPTIONS
    """What the settings say of it."""

    def list_categories(self) -> list[str]:
        """List its categories in natural order.

        Raises:
            InputError: where it has none, and where one of several bears the name of all.
        """
        reading = Reading(name=self.name, folder=self.folder, options=self.options)
        names = self.reader.list_categories(self.root, reading)
        if not names:
            said = Sentence.of("dataset empty", name=repr(self.name), root=str(self.root))
            raise InputError(said)
        if ALL in names and len(names) > 1:
            said = Sentence.of("dataset category_all", name=repr(self.name), root=str(self.root))
            raise InputError(said)
        return names

    def all_samples(self) -> list[Sample]:
        """List the samples of all its categories, those that are left out too.

        Raises:
            InputError: for a category that cannot be read.
        """
        reading = Reading(name=self.name, folder=self.folder, options=self.options)
        samples: list[Sample] = []
        for category in self.list_categories():
            samples += self.reader.list_samples(self.root, category, reading)
        return samples

    def dropped(self) -> tuple[str, ...]:
        """Name the normal images that are left out of it.

        Raises:
            InputError: for a list that cannot be read, and a name that is no file.
        """
        return dropped_names(self.root, self.name, self.options.drop)


def set_dataset_dir(dataset_dir: str | os.PathLike[str]) -> Settings:
    """Set the folder that holds the data sets, as ``set_globals(dataset_dir=...)`` does."""
    return set_globals(dataset_dir=dataset_dir)


def resolve_dataset(dataset_type: str, settings: Settings) -> ResolvedDataset:
    """Find a data set: among `settings.folders`, in `dataset_dir`, in ``dataset_dir/custom``.

    Raises:
        InputError: for a name that is a path, a data set that is not there, a folder of no known
            layout or of several.
    """
    _check_name(dataset_type)
    home = _home(settings)
    options = settings.options_of(dataset_type)
    if dataset_type in settings.folders:
        return _described_folder(dataset_type, settings.folders[dataset_type], home, options)

    places = [home / dataset_type, home / "custom" / dataset_type]
    for root in places:
        layout = _layout_of(dataset_type, root, options)
        if layout is not None:
            return ResolvedDataset(dataset_type, root, DATASETS[layout], layout, options=options)

    # A list may lie beside the folders of data sets and name images in any of them.
    if options.list:
        return ResolvedDataset(dataset_type, home, DATASETS["list"], "list", options=options)

    present = next(filter(Path.is_dir, places), None)
    raise InputError(_not_found(dataset_type, present, home, settings))


def _home(settings: Settings) -> Path:
    """Give the folder that holds the data sets, absolute."""
    return Path(settings.dataset_dir).expanduser().absolute()


def _described_folder(
    name: str, folder: FolderLayout, home: Path, options: DataOptions
) -> ResolvedDataset:
    """Find a data set that the settings describe as a plain folder.

    Raises:
        InputError: where it is not there.
    """
    root = home / Path(folder.path).expanduser()
    if not root.is_dir():
        raise InputError(Sentence.of("dataset no_folder", name=name, root=str(root)))
    return ResolvedDataset(name, root, DATASETS["folder"], "folder", folder, options)


def _layout_of(name: str, root: Path, options: DataOptions) -> str | None:
    """Give the layout that the settings name for a data set, else the one that fits, or None.

    Raises:
        InputError: for a layout that does not exist, or several that fit.
    """
    if not root.is_dir():
        return None
    if options.list:
        return "list"
    if not options.layout:
        return detect_layout(root)
    if options.layout not in DATASETS:
        said = Sentence.of(
            "dataset no_layout",
            name=name,
            value=repr(options.layout),
            nearest=nearest_of(options.layout, DATASETS),
        )
        raise InputError(said)
    return options.layout


def detect_layout(root: Path) -> str | None:
    """Give the name of the layout in `DATASETS` that fits the folder, or None.

    Raises:
        InputError: where several fit.
    """
    found = fitting_layouts(root)
    if len(found) > 1:
        said = Sentence.of(
            "dataset several_layouts",
            root=str(root),
            shapes=tuple(map(_named_shape, found)),
            settings=f"{{data: {{{root.name}: {{layout: {found[0]}}}}}}}",
        )
        raise InputError(said)
    return found[0] if found else None


def _named_shape(name: str) -> Sentence:
    """Say what a layout is called and what tells it."""
    return Sentence.of("dataset shape", name=name, shape=Term(DATASETS[name].shape))


def fitting_layouts(root: Path) -> list[str]:
    """List the layouts in `DATASETS` that fit the folder, general ones only where no other does."""
    if not root.is_dir():
        return []
    for general in (False, True):
        found = []
        for name, reader in DATASETS.items():
            if reader.general == general and reader.detect(root):
                found.append(name)
        if found:
            return found
    return []


def list_datasets(settings: Settings) -> list[str]:
    """List the data sets on this machine."""
    home = _home(settings)
    names = list(settings.folders)
    # The folder of custom data sets looks like one itself.
    folders = [folder for folder in list_folders(home) if folder.name != "custom"]
    for folder in folders + list_folders(home / "custom"):
        if folder.name not in names and fitting_layouts(folder):
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
    if ALL not in wanted:
        _check_categories(wanted, present)

    samples: list[Sample] = []
    for dataset in datasets:
        dropped = dataset.dropped()
        reading = Reading(
            name=dataset.name,
            seed=seed,
            split_mode=split_mode,
            train_defects=train_defects,
            folder=dataset.folder,
            options=dataset.options,
            cache_dir=Path(settings.cache_dir),
        )
        names = present[dataset.name]
        if ALL not in wanted:
            names = [name for name in wanted if name in names]
        for name in names:
            listed = dataset.reader.list_samples(dataset.root, name, reading)
            fixed_split = dataset.reader.fixed_split
            samples += without_dropped(listed, dropped, fixed_split=fixed_split)
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
        raise InputError(Sentence.of("dataset names_empty", kind=kind))

    # YAML reads an unquoted 01 as the number 1.
    for name in names:
        if not isinstance(name, str):
            said = Sentence.of(
                "dataset no_text", kind=kind, value=repr(name), example=f'"{_padded(name)}"'
            )
            raise InputError(said)
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
        raise InputError(Sentence.of("dataset path", value=repr(name)))


def _check_categories(wanted: list[str], present: dict[str, list[str]]) -> None:
    """Refuse a category that no data set has, and a data set that has none of the categories.

    Raises:
        InputError: names the nearest.
    """
    known = list(dict.fromkeys(itertools.chain.from_iterable(present.values())))
    for name in wanted:
        if name not in known:
            said = Sentence.of(
                "dataset no_category",
                value=repr(name),
                datasets=", ".join(present),
                nearest=nearest_of(name, known),
            )
            raise InputError(said)

    for dataset, names in present.items():
        if set(names).isdisjoint(wanted):
            said = Sentence.of(
                "dataset none_of_categories",
                name=repr(dataset),
                categories=", ".join(wanted),
                nearest=nearest_of(wanted[0], names),
            )
            raise InputError(said)


def _not_found(name: str, folder: Path | None, home: Path, settings: Settings) -> Sentence:
    """Say why a data set cannot be read.

    Args:
        name: as the user calls it.
        folder: the folder of that name, or None where there is none.
        home: the folder that holds the data sets.
        settings: name the other data sets.
    """
    if folder is None:
        return Sentence.of(
            "dataset missing",
            folder=str(home / name),
            custom=str(home / "custom" / name),
            nearest=nearest_of(name, list_datasets(settings)),
        )

    return Sentence.of(
        "dataset unknown_layout",
        name=repr(name),
        folder=str(folder),
        shapes=tuple(map(_named_shape, DATASETS)),
        present=", ".join(list_datasets(settings)) or Term("none"),
    )
