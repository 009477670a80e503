"""RobustAD: one training folder and one test folder per change of the scene.

``PCB/pcb_data_dir_train`` and ``PCB/pcb_data_dir_test0`` to ``test5``, each with a ``metadata.jsonl``
whose rows name ``file_name``, ``label`` and, but for PiledBags, ``mask``. ``test0`` is as the training,
the others differ from it. Without that file the folders ``good`` and others say what is in them. The
number of the test is the group of its images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    find_child,
    find_file,
    is_file,
    list_folders,
    list_images,
    regroup,
    relative_key,
    require_training_normals,
)
from adray.data.labels import read_label
from adray.data.mask_files import NO_MASKS, read_mask_folder
from adray.data.names import MASK_WORDS, is_mask_name, is_normal_name, same_name
from adray.errors import InputError
from adray.language.sentence import Sentence

_FOLDER = re.compile(r"(?:.*_)?(?P<split>train|test)(?P<number>\d*)")
METADATA = "metadata.jsonl"


def detect_robustad(root: Path) -> bool:
    """Tell whether some folder in `root` has a training folder and numbered test folders."""
    return any(_is_category(folder) for folder in list_folders(root))


def list_robustad_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the folders in `root` that are categories."""
    return [folder.name for folder in list_folders(root) if _is_category(folder)]


def list_robustad_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of one category, the training images first.

    Raises:
        InputError: for a file of metadata of another form, an image or mask that is missing, or no
            normal training images.
    """
    home = root / category
    samples: list[Sample] = []
    for folder in list_folders(home):
        match = _FOLDER.fullmatch(same_name(folder.name))
        if match is None:
            continue
        domain = f"test{match['number']}" if match["split"] == "test" else ""
        blank = Sample(
            Path(), (), 0, "good", reading.name_for(root), category, match["split"], group=domain
        )
        described = is_file(folder / METADATA)
        found = (
            _read_metadata(root, folder, blank) if described else _read_folders(root, folder, blank)
        )
        samples += found

    samples.sort(key=lambda sample: sample.split != "train")
    return require_training_normals(regroup(samples, reading), home)


def _is_category(home: Path) -> bool:
    """Tell whether a folder has a training folder and a numbered test folder."""
    found = set()
    for folder in list_folders(home):
        match = _FOLDER.fullmatch(same_name(folder.name))
        if match is not None:
            found.add((match["split"], bool(match["number"])))
    return {("train", False), ("test", True)} <= found


def _read_metadata(root: Path, folder: Path, blank: Sample) -> Iterator[Sample]:
    """Give the samples that the file of metadata names."""
    path = folder / METADATA
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        said = Sentence.of("lines unreadable", path=str(path), error=str(error))
        raise InputError(said) from None

    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = Sentence.of("lines place", path=str(path), number=number)
            yield _read_line(line, where, root, folder, blank)


def _read_line(line: str, where: Sentence, root: Path, folder: Path, blank: Sample) -> Sample:
    """Make the sample of a line of metadata.

    Raises:
        InputError: for a line of another form, or an image or mask that is missing.
    """
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        said = Sentence.of("lines no_json", where=where, error=str(error))
        raise InputError(said) from None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise InputError(Sentence.of("lines no_image", where=where))

    path = find_file(folder, row["file_name"])
    if path is None:
        raise _missing("image", where, row["file_name"], folder)
    label = read_label(str(row.get("label", "")), where)
    masks = _find_mask(row.get("mask"), root, folder) if label.value else ()
    if label.value and row.get("mask") and not masks:
        raise _missing("mask", where, row["mask"], folder)
    return replace(
        blank,
        path=path,
        mask_paths=masks,
        label=label.value,
        defect_type=label.defect_type,
        relative_path=relative_key(root, path),
    )


def _missing(kind: str, where: Sentence, written: object, folder: Path) -> InputError:
    """Make the error of a line whose image or mask is not there."""
    said = Sentence.of(
        f"lines {kind}_missing", where=where, value=repr(written), folder=str(folder)
    )
    return InputError(said)


def _find_mask(written: Any, root: Path, folder: Path) -> tuple[Path, ...]:
    """Find the mask that a line names, which counts from one of several folders."""
    if not isinstance(written, str):
        return ()
    for place in (folder, folder / "masks", folder.parent, root):
        found = find_file(place, written)
        if found is not None:
            return (found,)
    return ()


def _read_folders(root: Path, folder: Path, blank: Sample) -> Iterator[Sample]:
    """Give the samples of a folder that says by its folders what is in them."""
    place = find_child(folder, MASK_WORDS)
    masks = NO_MASKS if place is None else read_mask_folder(place)
    for kind in list_folders(folder):
        if is_mask_name(kind.name):
            continue
        normal = is_normal_name(kind.name)
        for path in list_images(kind):
            yield replace(
                blank,
                path=path,
                mask_paths=() if normal else masks.find(kind.name, path.stem),
                label=int(not normal),
                defect_type="good" if normal else kind.name,
                relative_path=relative_key(root, path),
            )
