"""Masks that stand for two images, cover most of theirs, or fit none."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from adray.data.accounting import BARE_MASK, MASK_ENDINGS, Accounts, LeftOut
from adray.data.base import Sample, defects_of
from adray.data.findings import Facts, Report, found, path_below, place_of
from adray.data.names import is_mask_name


def find_shared_masks(report: Report, samples: Sequence[Sample]) -> None:
    """Find masks that stand for two images, unless these show the same part under other lights."""
    users: dict[Path, list[Sample]] = defaultdict(list)
    for sample in samples:
        for path in sample.mask_paths:
            users[path].append(sample)

    shared = {path: of for path, of in users.items() if len({s.part or s.path for s in of}) > 1}
    for path, of in list(shared.items())[:1]:
        what = found(
            "shared_mask", number=len(shared), mask=path.name, first=of[0].key, second=of[1].key
        )
        report.stop("shared_mask", place_of(samples), what, "remedy shared_mask")


def find_masks_among_defects(report: Report, place: str, members: Sequence[Sample]) -> None:
    """Find masks that lie beside the image of their defect and are read as images themselves."""
    defects = defects_of(members)
    beside = {sample.path.with_suffix("") for sample in defects}
    masks = []
    for sample in defects:
        bare = sample.path.with_suffix("")
        endings = [ending for ending in MASK_ENDINGS if bare.name.lower().endswith(ending)]
        if any(bare.with_name(bare.name[: -len(ending)] or "_") in beside for ending in endings):
            masks.append(sample)

    if masks:
        what = found("masks_read_as_defects", number=len(masks), first=masks[0].key)
        report.stop("masks_do_not_match", place, what, "remedy masks_read_as_defects")


def find_masks_that_cover_most(
    report: Report, place: str, members: Sequence[Sample], masks: Facts
) -> None:
    """Find masks in which most is set: those of a defect in black on white."""
    shares = []
    for sample in members:
        for path in sample.mask_paths:
            facts = masks[path]
            if sample.label == 1 and facts.problem is None:
                shares.append(facts.covered or 0.0)

    large = [share for share in shares if share > 0.5]
    if not large:
        return
    middle = f"{statistics.median(large):.0%}"
    if len(large) == len(shares):
        what = found("masks_cover_most", masks=len(shares), share=middle)
        report.stop("masks_cover_most", place, what, "remedy masks_cover_most")
    else:
        what = found("masks_cover_much", large=len(large), masks=len(shares), share=middle)
        report.remark("masks_cover_much", place, what)


def find_masks_that_do_not_match(
    report: Report, place: str, left_out: Sequence[LeftOut], accounts: Accounts
) -> None:
    """Find folders of masks none of whose files fits an image."""
    bare: dict[Path, list[Path]] = defaultdict(list)
    for item in left_out:
        if item.reason == BARE_MASK:
            bare[_mask_folder(item.path)].append(item.path)
    if not bare:
        return

    used = {_mask_folder(path) for path in accounts.masks}
    for folder, paths in bare.items():
        if folder not in used:
            what = found(
                "masks_do_not_match",
                number=len(paths),
                folder=path_below(folder, accounts.root),
                mask=paths[0].name,
            )
            report.stop("masks_do_not_match", place, what, "remedy masks_do_not_match")


def _mask_folder(path: Path) -> Path:
    """Give the folder of masks of one kind of defect: that named as masks, or one right in it."""
    inside = None
    for folder in path.parents:
        if is_mask_name(folder.name):
            return inside or folder
        inside = folder
    return path.parent
