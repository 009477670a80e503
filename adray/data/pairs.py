"""Images with their masks beside them: KolektorSDD, KolektorSDD2 and others.

The mask of ``X`` is called ``X_GT``, ``X_label`` or ``X_mask``, and an image is anomalous if it marks
anything. With folders ``train`` and ``test`` (KolektorSDD2) the split is theirs; without (KolektorSDD)
the normal images are split 80/20 by seed, and those of one folder stay together.

Tabernik et al., J. Intell. Manuf. 2020 (KolektorSDD); Bozic et al., Comput. Ind. 2021 (KolektorSDD2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    list_folders,
    list_folders_below,
    list_images,
    regroup,
    relative_key,
    require_training_normals,
)
from adray.data.file_facts import FileFacts, mask_facts
from adray.data.inspect_files import inspect_masks
from adray.data.mvtec import SPLIT_FOLDERS
from adray.data.names import is_normal_name, same_name
from adray.data.splits import split_normals
from adray.errors import InputError
from adray.language.sentence import Sentence

PAIR_ENDINGS = ("_gt", "_label", "_mask")
"""What stands behind the stem of an image in that of its mask, in lower case."""


def detect_pairs(root: Path) -> bool:
    """Tell whether `root` or a folder in it has images with masks beside them, and no others."""
    folders = list_folders(root)
    if any(is_normal_name(folder.name) for folder in folders):
        return False
    return any(_pairs_in(folder) for folder in (root, *folders))


def list_pair_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """Give the one category, which bears the data set's name."""
    return [reading.name_for(root)]


def list_pair_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples, anomalous where the mask marks anything.

    Raises:
        InputError: for an image without a mask, a mask that cannot be read, or no normal training
            images.
    """
    pairs: dict[Path, Path | None] = {}
    for folder in list_folders_below(root):
        pairs |= _images_in(folder)
    _check_masks(pairs)
    facts = mask_facts_of(filter(None, pairs.values()), reading)

    samples = []
    for image, mask in pairs.items():
        assert mask is not None, "images without a mask are refused above"
        anomalous = marks_defect(mask, facts[mask])
        places = image.relative_to(root).parent.parts
        split = SPLIT_FOLDERS.get(same_name(places[0]), "") if places else ""
        sample = Sample(
            path=image,
            mask_paths=(mask,) if anomalous else (),
            label=int(anomalous),
            defect_type="defect" if anomalous else "good",
            dataset=reading.name_for(root),
            category=category,
            split=split,
            relative_path=relative_key(root, image),
            group="/".join(places[1:] if split else places),
        )
        samples.append(sample)

    samples = regroup(samples, reading)
    if not any(sample.split for sample in samples):
        samples = split_normals(samples, seed=reading.seed, train_defects=reading.train_defects)
    return require_training_normals(samples, root)


def mask_facts_of(masks: Iterable[Path], reading: Reading) -> Mapping[Path, FileFacts]:
    """Give the facts of masks, from the memo in the cache where there is one."""
    threshold = reading.options.mask_threshold
    if reading.cache_dir is not None:
        return inspect_masks(masks, reading.cache_dir, threshold)
    return {mask: mask_facts(mask.read_bytes(), threshold) for mask in masks}


def marks_defect(mask: Path, facts: FileFacts) -> bool:
    """Tell whether a mask marks anything.

    Raises:
        InputError: where it cannot be read.
    """
    if facts.problem:
        raise InputError(facts.complaint(mask))
    return not facts.empty


def _images_in(folder: Path) -> dict[Path, Path | None]:
    """List the images of a folder, each with its mask or None."""
    files = list_images(folder)
    by_stem = {same_name(path.stem): path for path in files}
    return {path: _mask_of(path, by_stem) for path in files if not _is_mask_of(path, by_stem)}


def _pairs_in(folder: Path) -> bool:
    """Tell whether some image in a folder has its mask beside it."""
    return any(_images_in(folder).values())


def _mask_of(image: Path, by_stem: Mapping[str, Path]) -> Path | None:
    """Find the mask of an image among the files of its folder."""
    stem = same_name(image.stem)
    return next((by_stem[stem + end] for end in PAIR_ENDINGS if stem + end in by_stem), None)


def _is_mask_of(path: Path, by_stem: Mapping[str, Path]) -> bool:
    """Tell whether a file is the mask of another in its folder."""
    stem = same_name(path.stem)
    return any(stem.endswith(end) and stem.removesuffix(end) in by_stem for end in PAIR_ENDINGS)


def _check_masks(pairs: Mapping[Path, Path | None]) -> None:
    """Refuse images without a mask: whether they are anomalous is not known.

    Raises:
        InputError: names the first.
    """
    bare = [image for image, mask in pairs.items() if mask is None]
    if bare:
        said = Sentence.of(
            "reader no_mask_beside", first=str(bare[0]), bare=len(bare), images=len(pairs)
        )
        raise InputError(said)
