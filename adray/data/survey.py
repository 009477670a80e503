"""All that can be said of a folder of images before anything is trained, found out once.

The console's text, the YAML to paste and the page are written from one `DataSurvey`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

from adray.data.accounting import Accounts, LeftOut, account
from adray.data.base import Reading, Sample
from adray.data.defect_channels import check_defects_config
from adray.data.drop import check_dropped, without_dropped
from adray.data.examine import compare_pictures, find_all, looks_for_masks
from adray.data.findings import Finding, Report, check_accepted
from adray.data.inspect_files import Inspected, inspect_samples, problems_of
from adray.data.pixel_checks import pixel_problems
from adray.data.pixel_rule import rule_by_facts, rule_said
from adray.data.readers import ResolvedDataset
from adray.data.recognise import Recognised
from adray.data.roi import roi_of
from adray.data.survey_counts import (
    Count,
    Facts,
    FormatCount,
    MaskCounts,
    Pair,
    SizeCount,
    count_formats,
    count_images,
    count_masks,
    count_sizes,
    identical_pairs,
)
from adray.data.survey_pictures import (
    Levels,
    Look,
    evenly_spaced,
    gather_levels,
    look_at_all,
    near_pairs,
    odd_normals,
    sample_size,
)
from adray.errors import InputError
from adray.language.sentence import Sentence, sentence_of
from adray.settings import DataOptions, FolderLayout, Settings
from adray.types import BY_TYPE, PixelRule, Roi

_NORMALS_SHOWN = 6
_DEFECTS_SHOWN = 4
"""Pictures per type of defect on the page."""
_EXAMPLES = 3
"""Files that are named of those that were left out for one reason."""


@dataclass(frozen=True)
class Picture:
    """A picture to show."""

    kind: str
    """``normal``, ``odd``, or the type of its defect."""
    sample: Sample
    """The picture, with its masks."""
    rule: PixelRule
    """How its numbers become grey levels."""
    width: int
    """Of the file in pixels."""
    height: int
    """Of the file in pixels."""
    roi: Roi | None = None
    """The part of it that counts; None for all of it."""


@dataclass(frozen=True)
class CategorySurvey:
    """What is known of one category."""

    dataset: str
    """Name of the data set."""
    category: str
    """Name of the category."""
    counts: tuple[Count, ...]
    """Images by split and kind."""
    formats: tuple[FormatCount, ...]
    """Files by format, mode and bits."""
    sizes: tuple[SizeCount, ...]
    """Files by size."""
    rule: Sentence | None
    """How numbers in the files become grey levels, None for plain eight-bit files."""
    masks: MaskCounts | None
    """What the masks mark, None without any defect."""
    looked_at: int
    """Pictures that were decoded."""
    levels: tuple[Levels, ...]
    """Their grey levels."""
    near: tuple[Pair, ...]
    """Those of the test that nearly repeat one of the training."""
    identical: tuple[Pair, ...]
    """Pictures of the test whose bytes are those of one that trains."""
    pictures: tuple[Picture, ...]
    """Those that a page shows."""
    roi: Roi | None = None
    """The part of its images that counts; None for all of it."""

    @property
    def images(self) -> int:
        """Count the images."""
        return sum(count.images for count in self.counts)

    @property
    def name(self) -> str:
        """Name the category with its data set."""
        return f"{self.dataset}/{self.category}"


@dataclass(frozen=True)
class LeftOutFiles:
    """Files that are not read, all for one reason."""

    reason: str
    """Why they are not."""
    files: int
    """Number of files."""
    examples: tuple[Path, ...]
    """The first of them."""


@dataclass(frozen=True)
class DataSurvey:
    """What is known of a folder."""

    root: Path
    """The folder."""
    dataset_dir: Path
    """The folder that a sweep would call its `dataset_dir`."""
    layouts: tuple[tuple[str, str], ...]
    """Data sets in it, each with the shape that was recognised."""
    why: str
    """What told, as `Recognised` has it."""
    folders: tuple[tuple[str, FolderLayout], ...]
    """Data sets that the sweep's file must describe."""
    options: DataOptions
    """What the user says of the data."""
    categories: tuple[CategorySurvey, ...]
    """The categories of all data sets."""
    masks: int
    """Files that are masks of images."""
    metadata: int
    """Files that describe the data."""
    left_out: tuple[LeftOutFiles, ...]
    """Files that are not read, the commonest reason first."""
    findings: tuple[Finding, ...]
    """What would change a result, or lose a little."""

    @property
    def images(self) -> int:
        """Count the images of all categories."""
        return sum(category.images for category in self.categories)

    @property
    def stops(self) -> bool:
        """Tell whether a sweep of these data would not start."""
        return any(finding.stops for finding in self.findings)


class Watch(Protocol):
    """Is told how far a survey is."""

    def begin(self, step: str, total: int) -> None:
        """Note that a step of `total` parts begins: ``list``, ``headers`` or ``pictures``."""

    def advance(self) -> None:
        """Note that a part is done."""


def make_survey(
    found: Recognised, settings: Settings, options: DataOptions, watch: Watch
) -> DataSurvey:
    """Find out all that a survey says.

    Args:
        found: the folder and how it is read.
        settings: name the cache, in which facts of files are remembered.
        options: what the user says of the data.
        watch: is told of the progress.

    Raises:
        InputError: for a kind of finding to accept that does not exist.
    """
    check_accepted(found.datasets[0].name, options.accept)
    categories: list[CategorySurvey] = []
    findings: list[Finding] = []
    left_out: list[LeftOut] = []
    masks = 0
    metadata = 0
    for dataset in found.datasets:
        part = _survey_dataset(dataset, settings, options, watch)
        categories += part.categories
        findings += part.findings
        left_out += part.accounts.left_out
        masks += len(part.accounts.masks)
        metadata += len(part.accounts.metadata)

    layouts = tuple((dataset.name, dataset.reader.shape) for dataset in found.datasets)
    described = []
    for dataset in found.datasets:
        if dataset.folder is not None:
            described.append((dataset.name, dataset.folder))
    return DataSurvey(
        root=found.root,
        dataset_dir=found.dataset_dir,
        layouts=layouts,
        why=found.why,
        folders=tuple(described),
        options=options,
        categories=tuple(categories),
        masks=masks,
        metadata=metadata,
        left_out=_by_reason(left_out),
        findings=tuple(findings),
    )


@dataclass(frozen=True)
class _DatasetPart:
    """What a survey takes from one data set."""

    categories: list[CategorySurvey]
    """Its categories."""
    findings: list[Finding]
    """What was found in them."""
    accounts: Accounts
    """What each of its files was taken for."""


def _survey_dataset(
    dataset: ResolvedDataset, settings: Settings, options: DataOptions, watch: Watch
) -> _DatasetPart:
    """Find out what a survey takes from one data set."""
    by_category, findings = _list_samples(dataset, settings, options, watch)
    dropped, problems = _leave_out(dataset, by_category)
    findings += problems
    samples: list[Sample] = []
    metadata: dict[Path, None] = {}
    for category, listed in by_category.items():
        samples += listed
        metadata.update(dict.fromkeys(dataset.reader.metadata(dataset.root, category)))
    accounts = account(dataset.root, samples, metadata, dropped)

    watch.begin("headers", len(samples) + sum(len(sample.mask_paths) for sample in samples))
    said = {dataset.name: options}
    facts = inspect_samples(samples, settings.cache_dir, said, watch.advance)
    for problem in problems_of(samples, facts.images, facts.masks, said):
        findings.append(Finding("damaged_files", problem, stops=True))

    report = Report(dataset.name, options.accept)
    masks_read = looks_for_masks(dataset)
    pictures = compare_pictures(samples, facts.images, settings.cache_dir)
    chosen = _choose_pictures(by_category, facts.images)
    watch.begin("pictures", sum(map(len, chosen.values())))
    categories = []
    for category, listed in by_category.items():
        # A sweep of these data trains on each category by itself.
        find_all(report, listed, accounts, facts, masks_read, pictures)
        rule, problems = _decide_rule(listed, options, facts)
        findings += problems
        roi, problems = _find_roi(dataset, listed, settings, options)
        findings += problems

        looks = look_at_all(chosen[category], rule, watch.advance)
        names = (dataset.name, category)
        found = _survey_category(names, listed, rule, looks, facts)
        shown = tuple(replace(picture, roi=roi) for picture in found.pictures)
        categories.append(replace(found, roi=roi, pictures=shown))
    return _DatasetPart(categories, _own_findings([*findings, *report.findings]), accounts)


def _decide_rule(
    samples: Sequence[Sample], options: DataOptions, facts: Inspected
) -> tuple[PixelRule, list[Finding]]:
    """Decide how the images of a category become 8 bits, and say which of them that does not suit."""
    images = {sample.path: facts.images[sample.path] for sample in samples}
    try:
        check_defects_config(samples)
        rule = rule_by_facts(samples, options, facts.images)
    except InputError as error:
        return BY_TYPE, [Finding("pixel_values", sentence_of(error), stops=True)]
    problems = pixel_problems(images, rule)
    return rule, [Finding("pixel_values", problem, stops=True) for problem in problems]


def _find_roi(
    dataset: ResolvedDataset, samples: Sequence[Sample], settings: Settings, options: DataOptions
) -> tuple[Roi | None, list[Finding]]:
    """Find the part of a category's images that counts, and say what is wrong with how it is said."""
    if options.roi is None or not samples:
        return None, []
    said = replace(settings, dataset_dir=str(dataset.root.parent), data={dataset.name: options})
    try:
        return roi_of(samples, said), []
    except InputError as error:
        return None, [Finding("roi", sentence_of(error), stops=True)]


def _own_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Give each finding once, without those that a survey lists by itself."""
    once = dict.fromkeys(findings)
    return [finding for finding in once if finding.kind != "left_out"]


def _list_samples(
    dataset: ResolvedDataset, settings: Settings, options: DataOptions, watch: Watch
) -> tuple[dict[str, list[Sample]], list[Finding]]:
    """List the samples of each category, and say of which categories that cannot be done."""
    names = dataset.list_categories()
    reading = Reading(
        name=dataset.name,
        seed=settings.seed,
        folder=dataset.folder,
        options=options,
        cache_dir=Path(settings.cache_dir),
    )
    watch.begin("list", len(names))
    by_category = {}
    findings = []
    for name in names:
        try:
            by_category[name] = dataset.reader.list_samples(dataset.root, name, reading)
        except InputError as error:
            findings.append(Finding("unreadable", sentence_of(error), stops=True))
        watch.advance()
    return by_category, findings


def _leave_out(
    dataset: ResolvedDataset, by_category: dict[str, list[Sample]]
) -> tuple[list[Path], list[Finding]]:
    """Take the images that the user leaves out off the lists of the categories.

    Returns:
        These images, and what is wrong with how they are named.
    """
    try:
        names = dataset.dropped()
        check_dropped(dataset.name, names, list(chain.from_iterable(by_category.values())))
        for category, listed in by_category.items():
            fixed_split = dataset.reader.fixed_split
            by_category[category] = without_dropped(listed, names, fixed_split=fixed_split)
    except InputError as error:
        return [], [Finding("drop", sentence_of(error), stops=True)]
    return [dataset.root / name for name in names], []


def _choose_pictures(
    by_category: dict[str, list[Sample]], images: Facts
) -> dict[str, list[Sample]]:
    """Choose the pictures of each category that are decoded, among those that can be read."""
    pixels = [found.width * found.height for found in images.values()]
    mean = sum(pixels) / max(len(pixels), 1)
    chosen = {}
    for category, samples in by_category.items():
        # Opening a pipe would wait for ever.
        readable = [sample for sample in samples if images[sample.path].problem is None]
        number = sample_size(len(readable), len(by_category), mean)
        chosen[category] = evenly_spaced(readable, number)
    return chosen


def _survey_category(
    names: tuple[str, str],
    samples: list[Sample],
    rule: PixelRule,
    looks: list[Look],
    facts: Inspected,
) -> CategorySurvey:
    """Put together what is known of one category.

    Args:
        names: of the data set and the category.
        samples: all of it.
        rule: how its numbers become grey levels.
        looks: at some of its pictures.
        facts: of its files.
    """
    dataset, category = names
    images, masks = facts
    return CategorySurvey(
        dataset=dataset,
        category=category,
        counts=count_images(samples),
        formats=count_formats(samples, images),
        sizes=count_sizes(samples, images),
        rule=None if rule.is_plain else rule_said(rule),
        masks=count_masks(samples, masks),
        looked_at=len(looks),
        levels=gather_levels(looks, images),
        near=tuple(near_pairs(looks, images)),
        identical=tuple(identical_pairs(samples, images)),
        pictures=tuple(_pictures(samples, rule, odd_normals(looks), images)),
    )


def _pictures(
    samples: Sequence[Sample], rule: PixelRule, odd: Sequence[Sample], images: Facts
) -> list[Picture]:
    """Choose the pictures that a page shows: some normals, some of each defect, the odd ones."""
    by_kind: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if images[sample.path].problem is None:
            kind = sample.defect_type if sample.label else "normal"
            by_kind[kind].append(sample)

    pictures = []
    for kind, listed in by_kind.items():
        number = min(len(listed), _DEFECTS_SHOWN if kind != "normal" else _NORMALS_SHOWN)
        for sample in evenly_spaced(listed, number):
            pictures.append(_picture(kind, sample, rule, images))
    for sample in odd:
        pictures.append(_picture("odd", sample, rule, images))
    return pictures


def _picture(kind: str, sample: Sample, rule: PixelRule, images: Facts) -> Picture:
    """Give a sample as a picture to show."""
    found = images[sample.path]
    return Picture(kind, sample, rule, found.width, found.height)


def _by_reason(left_out: Sequence[LeftOut]) -> tuple[LeftOutFiles, ...]:
    """Put files together that are left out for one reason, the commonest first."""
    by_reason: dict[str, list[Path]] = defaultdict(list)
    for one in left_out:
        by_reason[one.reason].append(one.path)

    groups = []
    for reason, paths in by_reason.items():
        groups.append(LeftOutFiles(reason, len(paths), tuple(paths[:_EXAMPLES])))
    return tuple(sorted(groups, key=lambda group: -group.files))
