"""A survey as text for the console, as JSON, and as a sweep's file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adray.data.findings import Finding
from adray.data.geometry import roi_cells
from adray.data.pixel_checks import usual_aspect
from adray.data.survey import CategorySurvey, DataSurvey
from adray.data.survey_counts import SHOWN_SIZE, MaskCounts, Pair, SizeCount
from adray.data.survey_pictures import Levels
from adray.language.catalogue import Catalogue
from adray.settings import DEFAULT_OPTIONS
from adray.types import Roi

_BARS = " ▁▂▃▄▅▆▇█"
_MOST_LISTED = 5
"""Lines of one kind that the console shows of a category."""
_MODELS = ("padim", "patchcore-resnet18", "stfpm")
"""Quick models that need one backbone, ResNet-18."""


def shown(text: object) -> str:
    """Give a text as it can be printed anywhere.

    Bytes of a name that are not UTF-8 become replacement characters, as do control characters,
    which would otherwise move a terminal's cursor.
    """
    plain = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in plain)


def as_text(survey: DataSurvey, say: Catalogue) -> str:
    """Write a survey for the console."""
    lines = []
    for category in survey.categories:
        lines += ["", *category_lines(category, survey.root, say)]
    lines += ["", *file_lines(survey, say)]
    lines += ["", *_finding_lines(survey.findings, say)]
    lines += ["", say("yaml"), "", as_yaml(survey, say).rstrip()]
    return "\n".join(lines)


def heading(survey_root: Path, layouts: Sequence[tuple[str, str]], why: str, say: Catalogue) -> str:
    """Say which layout a folder has and what told, before its files are looked at."""
    shape = say.word(layouts[0][1])
    names = ", ".join(name for name, _ in layouts)
    return shown(say(f"why {why}", root=survey_root, shape=shape, names=names))


def as_json(survey: DataSurvey) -> str:
    """Write a survey as JSON, names of files as they can be printed."""
    plain = asdict(survey)
    for category, written in zip(survey.categories, plain["categories"], strict=True):
        written["rule"] = str(category.rule or "")

    findings = []
    for finding in survey.findings:
        values = {"kind": finding.kind, "sentence": finding.sentence, "stops": finding.stops}
        findings.append(values)
    return json.dumps(_plain(plain | {"findings": findings}), indent=2, ensure_ascii=False)


def as_yaml(survey: DataSurvey, say: Catalogue) -> str:
    """Write the file of a sweep of some quick models on the data of a survey."""
    return yaml_text(sweep_values(survey, _MODELS), say("yaml comment"))


def survey_yaml(survey: DataSurvey, say: Catalogue, dropped: Mapping[str, Sequence[str]]) -> str:
    """Write the file of a sweep of some quick models that leaves images out.

    Args:
        survey: of the data.
        say: sentences of the reader's language.
        dropped: names of the images, by data set.
    """
    values = sweep_values(survey, _MODELS)
    data = values["settings"].setdefault("data", {})
    for name, images in dropped.items():
        data[name] = {**data.get(name, {}), "drop": list(images)}
    return yaml_text(values, say("yaml comment"))


def sweep_values(survey: DataSurvey, models: Sequence[str]) -> dict[str, Any]:
    """Give the values of a sweep's file: some models, quickly, on the data of a survey."""
    settings: dict[str, Any] = {"dataset_dir": str(survey.dataset_dir)}
    if survey.folders:
        settings["folders"] = {name: _changes(layout) for name, layout in survey.folders}
    names = [name for name, _ in survey.layouts]
    options = _changes(survey.options, DEFAULT_OPTIONS)
    if options:
        settings["data"] = dict.fromkeys(names, options)
    # A plain folder is one part, which then has one name.
    plain = dict(survey.folders)
    datasets = {name: "all" if name in plain else "each" for name in names}
    return {
        "name": sweep_name(survey.root.name),
        "settings": settings,
        "grid": {"models": list(models), "datasets": datasets},
        "budget": "quick",
    }


def yaml_text(values: Mapping[str, Any], comment: str) -> str:
    """Write values as YAML under a comment."""
    body = yaml.safe_dump(
        dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None
    )
    return f"# {comment}\n{body}"


def category_lines(category: CategorySurvey, root: Path, say: Catalogue) -> list[str]:
    """Say what is known of one category, a line each."""
    lines = [say("category", name=shown(category.name), images=category.images)]
    lines += _count_lines(category, say)
    lines += _format_lines(category, say)
    lines += _level_lines(category, say)
    if category.masks is not None:
        lines += mask_lines(category.masks, say)
    lines += _pair_lines("identical", category.identical, root, say)
    lines += _pair_lines("near", category.near, root, say)
    return [lines[0], *(f"  {line}" for line in lines[1:])]


def mask_lines(masks: MaskCounts, say: Catalogue) -> list[str]:
    """Say what masks mark, and which defects are lost at which input size."""
    if not masks.with_mask:
        return [say("masks none", defects=masks.defects)]

    lines = [say("masks", defects=masks.defects, with_mask=masks.with_mask)]
    rules = ", ".join(f"{say.word(rule)} ({number})" for rule, number in masks.rules)
    lines.append(say("mask rules", rules=rules))
    if masks.empty:
        lines.append(say("masks empty", number=masks.empty))
    if not masks.regions:
        return lines

    lines.append(
        say(
            "regions",
            size=SHOWN_SIZE,
            number=masks.regions,
            smallest=_area(masks.smallest),
            median=_area(masks.median),
            largest=_area(masks.largest),
        )
    )
    sizes = []
    for row in masks.at_sizes:
        lost = say("below", number=row.below) if row.below else ""
        sizes.append(f"{row.img_size}: {_area(row.smallest)}{lost}")
    lines.append(say("smallest defect", sizes=", ".join(sizes)))
    return lines


def bars(counts: Sequence[int]) -> str:
    """Draw a histogram in one line of block characters, any pixels at all by the lowest."""
    top = max(counts, default=0)
    drawn = []
    for count in counts:
        # Rounded up, so that what is rare is seen.
        height = -(-count * (len(_BARS) - 1) // top) if top else 0
        drawn.append(_BARS[height])
    return "".join(drawn)


def relative(root: Path, path: Path) -> str:
    """Write a path as seen from the surveyed folder, as it can be printed."""
    return shown(path.relative_to(root) if path.is_relative_to(root) else path)


def mean_level(levels: Levels) -> int:
    """Give the mean grey level, 0 to 255, to which a histogram's steps add up."""
    step = 256 / len(levels.counts)
    total = sum(levels.counts)
    weighted = sum((i + 0.5) * step * count for i, count in enumerate(levels.counts))
    return round(weighted / total) if total else 0


def finding_line(finding: Finding, say: Catalogue) -> str:
    """Write one finding, with its kind in the reader's language."""
    key = "stops" if finding.stops else "remark"
    kind = say.word(finding.kind)
    return shown(say(key, kind=kind, sentence=finding.said.text(say)))


def _count_lines(category: CategorySurvey, say: Catalogue) -> list[str]:
    """Say how many images there are by split and kind, a line per split."""
    by_split: dict[str, list[str]] = {}
    for count in category.counts:
        masked = say("masked", number=count.with_mask) if count.with_mask else ""
        text = f"{shown(count.kind)} {count.images}{masked}"
        by_split.setdefault(count.split, []).append(text)
    lines = []
    for split, kinds in by_split.items():
        lines.append(say("counts", split=say.word(split), kinds=", ".join(kinds)))
    return lines


def _format_lines(category: CategorySurvey, say: Catalogue) -> list[str]:
    """Say which formats, modes, bit depths and sizes the files have."""
    formats = [f"{f.format} {f.name} ({f.images})" for f in category.formats[:_MOST_LISTED]]
    sizes = [f"{s.width}x{s.height} ({s.images})" for s in category.sizes[:_MOST_LISTED]]
    further = len(category.sizes) - len(sizes)
    if further:
        sizes.append(say("further sizes", number=further))
    lines = [say("formats", formats=", ".join(formats)), say("sizes", sizes=", ".join(sizes))]
    aspect = usual_aspect(_every_size(category.sizes))
    if aspect is not None:
        lines.append(say("survey aspect", aspect=f"{aspect:g}"))
    if category.rule:
        lines.append(say("pixel rule", rule=category.rule.text(say)))
    if category.roi is not None:
        lines.append(_roi_line(category.roi, say))
    return lines


def _every_size(counts: Sequence[SizeCount]) -> list[tuple[int, int]]:
    """Give width and height of each image."""
    sizes = []
    for count in counts:
        sizes += [(count.width, count.height)] * count.images
    return sizes


def _roi_line(roi: Roi, say: Catalogue) -> str:
    """Say how much of an image counts, and between which places."""
    cells = roi_cells(roi)
    rows = np.flatnonzero(cells.any(1))
    columns = np.flatnonzero(cells.any(0))
    side = len(cells)
    return say(
        "survey roi",
        share=f"{cells.mean():.0%}",
        left=f"{columns[0] / side:.3f}",
        top=f"{rows[0] / side:.3f}",
        right=f"{(columns[-1] + 1) / side:.3f}",
        bottom=f"{(rows[-1] + 1) / side:.3f}",
    )


def _level_lines(category: CategorySurvey, say: Catalogue) -> list[str]:
    """Draw the grey levels of each mode."""
    lines = [say("levels", looked_at=category.looked_at, images=category.images)]
    for levels in category.levels:
        mean = mean_level(levels)
        lines.append(f"  {levels.mode}  0 |{bars(levels.counts)}| 255  {say('mean', level=mean)}")
    return lines


def _pair_lines(key: str, pairs: Sequence[Pair], root: Path, say: Catalogue) -> list[str]:
    """Say which pictures of the test are known from the training."""
    if not pairs:
        return []
    lines = [say(key, number=len(pairs))]
    for pair in pairs[:_MOST_LISTED]:
        distance = f"  ({pair.distance:.2f})" if pair.distance else ""
        lines.append(f"  {relative(root, pair.test)} = {relative(root, pair.train)}{distance}")
    if len(pairs) > _MOST_LISTED:
        lines.append(f"  {say('further', number=len(pairs) - _MOST_LISTED)}")
    return lines


def file_lines(survey: DataSurvey, say: Catalogue) -> list[str]:
    """Say what all files were taken for, and which are left out."""
    number = sum(group.files for group in survey.left_out)
    lines = [
        say(
            "files",
            images=survey.images,
            masks=survey.masks,
            metadata=survey.metadata,
            left_out=number,
        )
    ]
    for group in survey.left_out:
        examples = ", ".join(relative(survey.root, path) for path in group.examples)
        reason = shown(say.word(group.reason))
        lines.append("  " + say("left out", files=group.files, reason=reason, examples=examples))
    return lines


def _finding_lines(findings: Sequence[Finding], say: Catalogue) -> list[str]:
    """Say what would stop a sweep, and what is only remarked on."""
    if not findings:
        return [say("nothing found")]
    ordered = sorted(findings, key=lambda finding: not finding.stops)
    lines = [finding_line(finding, say) for finding in ordered]
    return lines if ordered[0].stops else [say("nothing stops"), *lines]


def _changes(values: Any, defaults: Any = None) -> dict[str, Any]:
    """Give the fields of a dataclass that are not empty and differ from the defaults."""
    changed = {}
    for field in fields(values):
        value = getattr(values, field.name)
        if value in (None, "", ()) or (defaults and value == getattr(defaults, field.name)):
            continue
        changed[field.name] = list(value) if isinstance(value, tuple) else value
    return changed


def sweep_name(name: str) -> str:
    """Make the name of a sweep from that of a folder, of letters that file systems take."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in shown(name))
    return plain.strip("_")[:40] or "my_parts"


def _area(pixels: float) -> str:
    """Write an area in pixels, small ones with a digit behind the point."""
    return f"{pixels:,.0f}" if pixels >= 10 else f"{pixels:.2g}"


def _plain(value: Any) -> Any:
    """Turn paths into names that can be printed, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    return shown(value) if isinstance(value, str | Path) else value
