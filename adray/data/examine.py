"""All that is odd about the images of a trial or of a whole data set, found out in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adray.data.accounting import Accounts
from adray.data.base import Sample
from adray.data.findings import Facts, Finding, Report
from adray.data.findings_files import find_what_tells_the_label, remark_on_several_pictures
from adray.data.findings_left_out import find_in_left_out
from adray.data.findings_masks import (
    find_masks_among_defects,
    find_masks_that_cover_most,
    find_shared_masks,
)
from adray.data.findings_pictures import (
    find_categories_of_one_name,
    find_defects_among_normals,
    find_folders_of_one_name,
    find_identical_pictures,
    find_normals_among_defects,
    remark_on_counts,
)
from adray.data.inspect_files import MOST_COMPARED_PIXELS, Inspected, inspect_pictures
from adray.data.readers import ResolvedDataset, resolve_dataset
from adray.data.splits import grouped
from adray.settings import Settings

_LAYOUTS_OF_TABLES = ("json", "kaputt", "list")


def examine(
    samples: Sequence[Sample],
    accounts: Mapping[str, Accounts],
    settings: Settings,
    facts: Inspected,
) -> list[Finding]:
    """Find what is odd about the images of a trial, of one data set or several.

    Args:
        samples: of the trial.
        accounts: of each of its data sets.
        settings: what the user accepts, and where facts of files are remembered.
        facts: of the files of the samples.

    Returns:
        What stops, then remarks.

    Raises:
        InputError: for a kind to accept that does not exist.
    """
    findings: list[Finding] = []
    for dataset, members in grouped(samples, lambda sample: sample.dataset).items():
        report = Report(dataset, settings.options_of(dataset).accept)
        masks_read = looks_for_masks(resolve_dataset(dataset, settings))
        pictures = compare_pictures(members, facts.images, settings.cache_dir)
        find_all(report, members, accounts[dataset], facts, masks_read, pictures)
        findings += report.findings
    return sorted(findings, key=lambda finding: not finding.stops)


def looks_for_masks(dataset: ResolvedDataset) -> bool:
    """Tell whether a data set's layout looks for masks by their names.

    A table names those that it means, and a described folder may have none.
    """
    if dataset.layout in _LAYOUTS_OF_TABLES:
        return False
    return dataset.folder is None or dataset.folder.mask is not None


def compare_pictures(
    samples: Sequence[Sample], images: Facts, cache_dir: str | Path
) -> Mapping[Path, str]:
    """Hash what is on images where decoding them all takes a moment, else what is in their files."""
    readable = [sample.path for sample in samples if images[sample.path].digest]
    pixels = sum(images[path].width * images[path].height for path in readable)
    if pixels > MOST_COMPARED_PIXELS:
        return {path: images[path].digest for path in readable}

    # Those that were small enough were hashed when they were looked at first.
    unread = [path for path in readable if not images[path].picture]
    read_now = inspect_pictures(unread, cache_dir)
    return {path: images[path].picture or read_now[path] for path in readable}


def find_all(
    report: Report,
    samples: Sequence[Sample],
    accounts: Accounts,
    facts: Inspected,
    masks_read: bool,
    pictures: Mapping[Path, str],
) -> None:
    """Find what is odd about the images of one data set, and about the files beside them.

    Args:
        report: gathers it.
        samples: what is wanted of the data set, of one category or several.
        accounts: of the whole data set.
        facts: of the files of at least these samples.
        masks_read: see `looks_for_masks`.
        pictures: see `compare_pictures`.
    """
    if not samples:
        return
    find_identical_pictures(report, samples, pictures)
    find_shared_masks(report, samples)
    find_categories_of_one_name(report, samples, accounts.samples)
    for category, members in grouped(samples, lambda sample: sample.category).items():
        place = f"{members[0].dataset}/{category}"
        find_defects_among_normals(report, place, members)
        find_normals_among_defects(report, place, members)
        find_folders_of_one_name(report, place, members, accounts)
        find_masks_among_defects(report, place, members)
        find_masks_that_cover_most(report, place, members, facts.masks)
        find_what_tells_the_label(report, place, members, facts.images)
        remark_on_several_pictures(report, place, members, facts.images)
        remark_on_counts(report, place, members)
    find_in_left_out(report, samples, accounts, masks_read)
