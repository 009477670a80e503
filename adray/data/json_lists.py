"""Lists in JSON, one file per category: Real-IAD, Real-IAD D3 and Real-IAD Variety.

``realiad_jsons/<category>.json`` has the lists ``train`` and ``test`` of images, each with
``image_path``, ``mask_path`` and ``anomaly_class``. `DataOptions.variant` chooses among several
folders of lists by what stands behind ``jsons_``, such as ``sv`` or ``fuiad_0.1``, and among several
folders of images by their name. In a list of FUIAD the defects in training are there on purpose and
nobody has told them apart: they count as normal.

Wang et al., CVPR 2024 (Real-IAD). The images of one object lie in a folder such as ``S0001``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    find_file,
    is_folder,
    list_files,
    list_folders,
    regroup,
    relative_key,
    require_training_normals,
)
from adray.data.labels import SPLIT_LABELS
from adray.data.names import is_normal_name, natural_key, same_name
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of

# realiad_jsons_sv is the variant sv, realiad_jsons and splits are the usual one.
_LIST_FOLDER = re.compile(r"(?:\w*jsons?|splits)(?:_(?P<variant>.+))?|(?P<other>sup.*)")
_OBJECT_FOLDER = re.compile(r"S\d+")
_UNLABELLED = "fuiad"
"""How variants begin whose training images nobody has labelled."""


@dataclass(frozen=True)
class _Entry:
    """One image of a list."""

    split: str
    """``train``, ``test`` or ``validation``."""
    image: str
    """Path of the image, from the folder of images."""
    mask: str
    """Path of the mask; empty for none."""
    kind: str
    """Kind of the defect; empty for a normal image."""
    where: Sentence
    """Names the list and the place in it."""


def detect_json(root: Path) -> bool:
    """Tell whether `root` has a folder of lists in JSON.

    Lists for supervised training alone, as MANTA has beside its folders, make none.
    """
    return any(not folder.name.startswith("sup") for folder in _list_folders(root))


def list_json_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the categories that have a list.

    Raises:
        InputError: for a variant that is not there.
    """
    names = [path.stem for path in _lists_in(_find_lists(root, reading))]
    return sorted(names, key=natural_key)


def list_json_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of one category, in the order of its list.

    Raises:
        InputError: for a list of another form, an image or mask that is missing, or no normal
            training images.
    """
    folder = _find_lists(root, reading)
    path = folder / f"{category}.json"
    entries = _read_list(path)
    images = _find_images(root, category, reading, path, entries)
    unlabelled = _variant_of(folder).startswith(_UNLABELLED)

    samples = []
    for entry in entries:
        file = _locate(entry, entry.image, images)
        normal = not entry.kind or (unlabelled and entry.split == "train")
        masks = () if normal or not entry.mask else (_locate(entry, entry.mask, images),)
        part = _part_of(file, images)
        sample = Sample(
            path=file,
            mask_paths=masks,
            label=int(not normal),
            defect_type="good" if normal else entry.kind,
            dataset=reading.name_for(root),
            category=category,
            split=entry.split,
            relative_path=relative_key(root, file),
            group=part,
            part=part,
        )
        samples.append(sample)
    return require_training_normals(regroup(samples, reading), path)


def _list_folders(root: Path) -> list[Path]:
    """List the folders of lists, in `root` and one level down."""
    found = []
    for folder in list_folders(root):
        if not _LIST_FOLDER.fullmatch(folder.name):
            continue
        for place in (folder, *list_folders(folder)):
            if _LIST_FOLDER.fullmatch(place.name) and _lists_in(place):
                found.append(place)
    return found


def _lists_in(folder: Path) -> list[Path]:
    """List the lists in a folder."""
    return [path for path in list_files(folder) if path.suffix.lower() == ".json"]


def _variant_of(folder: Path) -> str:
    """Give the variant that a folder of lists is, empty for the usual one."""
    match = _LIST_FOLDER.fullmatch(folder.name)
    assert match, "only folders of lists have a variant"
    return match["variant"] or match["other"] or ""


def _find_lists(root: Path, reading: Reading) -> Path:
    """Find the folder of lists that the variant names: its words may also name the images.

    Raises:
        InputError: where there is none, or the first words name nothing.
    """
    folders = {_variant_of(folder): folder for folder in _list_folders(root)}
    images = [folder.name for folder in list_folders(root)]
    wanted = [word for word in reading.options.variant.split() if word not in images]
    variant = wanted[0] if wanted else ""
    if len(wanted) > 1 or variant not in folders:
        known = [name or "(empty)" for name in folders]
        said = Sentence.of(
            "json no_variant",
            dataset=reading.name_for(root),
            value=repr(reading.options.variant),
            root=str(root),
            nearest=nearest_of(variant, known),
        )
        raise InputError(said)
    return folders[variant]


def _find_images(
    root: Path, category: str, reading: Reading, path: Path, entries: Sequence[_Entry]
) -> Path:
    """Find the folder from which the paths of a list count, by its first image.

    Raises:
        InputError: where there is none, or there are several and the variant names none.
    """
    if not entries:
        raise InputError(Sentence.of("json empty", path=str(path)))

    # Of each place the name of the folder in `root` that it lies in.
    found: dict[Path, str] = {}
    for folder in (*list_folders(root), root):
        for place in (folder / category, folder):
            if is_folder(place) and find_file(place, entries[0].image):
                found.setdefault(place, folder.name)
                break

    words = reading.options.variant.split()
    fitting = [place for place, name in found.items() if name in words] or list(found)
    if len(fitting) == 1:
        return fitting[0]
    if not found:
        said = Sentence.of(
            "json in_no_folder",
            where=entries[0].where,
            value=repr(entries[0].image),
            root=str(root),
            folder=str(root / "realiad_1024" / category),
        )
        raise InputError(said)
    said = Sentence.of(
        "json several_folders",
        dataset=reading.name_for(root),
        root=str(root),
        names=", ".join(found.values()),
    )
    raise InputError(said)


def _read_list(path: Path) -> list[_Entry]:
    """Read the list of a category.

    Raises:
        InputError: for a file that cannot be read, or of another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        said = Sentence.of("json damaged", path=str(path), error=str(error))
        raise InputError(said) from None
    if not isinstance(content, dict):
        raise InputError(Sentence.of("json no_list", path=str(path)))

    meta = content.get("meta")
    normal = meta.get("normal_class", "OK") if isinstance(meta, dict) else "OK"
    entries = []
    for name, items in content.items():
        split = SPLIT_LABELS.get(same_name(name))
        if split is None or not isinstance(items, list):
            continue
        for number, item in enumerate(items, start=1):
            where = Sentence.of("json image", path=str(path), number=number, name=repr(name))
            entries.append(_read_entry(item, split, normal, where))
    return entries


def _read_entry(item: Any, split: str, normal: Any, where: Sentence) -> _Entry:
    """Read what a list says of one image.

    Raises:
        InputError: where it is no mapping or names no image.
    """
    image = item.get("image_path") if isinstance(item, dict) else None
    if not isinstance(image, str) or not image.strip():
        raise InputError(Sentence.of("json no_image", where=where))

    mask = item.get("mask_path") or ""
    kind = item.get("anomaly_class")
    if kind is None:
        kind = "anomaly" if mask else ""
    if kind == normal or is_normal_name(str(kind)):
        kind = ""
    return _Entry(split, image, str(mask), str(kind), where)


def _locate(entry: _Entry, written: str, images: Path) -> Path:
    """Find a file that a list names.

    Raises:
        InputError: where it is not there.
    """
    found = find_file(images, written)
    if found is None:
        said = Sentence.of(
            "json file_missing", where=entry.where, value=repr(written), folder=str(images)
        )
        raise InputError(said)
    return found


def _part_of(file: Path, images: Path) -> str:
    """Name the object on an image by the folder of its views, empty where there is none."""
    folder = file.parent
    if not _OBJECT_FOLDER.fullmatch(folder.name):
        return ""
    return folder.relative_to(images).as_posix()
