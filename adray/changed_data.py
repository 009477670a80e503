"""What the folders of data sets give now, for trials that were run earlier."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adray.config import build
from adray.data.facts_memo import MEMO_NAME
from adray.data.pixel_checks import data_fingerprint
from adray.data.pixel_rule import rule_of
from adray.data.readers import list_samples
from adray.errors import InputError
from adray.results.current import Images, data_of
from adray.results.store import TrialRecord
from adray.settings import Settings


def present_fingerprints(records: Iterable[TrialRecord]) -> dict[Images, str]:
    """Take the fingerprints of the images that trials would be given now.

    A machine that never read a data set would have to read every image first, so only those are
    looked at whose facts this machine remembers.

    Returns:
        By what decides a trial's images, where the folder is in reach.
    """
    # Of several folders that a data set had in turn, the one of the newest trial counts.
    newest: dict[Images, TrialRecord] = {}
    for record in sorted(records, key=lambda record: record.finished):
        newest[Images.of(record)] = record

    found = {}
    known: dict[tuple[Images, str, str], str | None] = {}
    for images, record in newest.items():
        # Seeds that were given the same images then are given the same now: one look serves all.
        place = str(record.assignment.get("settings"))
        same = (images._replace(seed=None), data_of(record), place)
        if same not in known:
            known[same] = _fingerprint_if_remembered(images, record)
        present = known[same]
        if present is not None:
            found[images] = present
    return found


def _fingerprint_if_remembered(images: Images, record: TrialRecord) -> str | None:
    """Hash the images that a trial would be given now, where this machine read such before."""
    settings = settings_of(record)
    if settings is None or not _remembers(settings):
        return None
    return _fingerprint_of(images, settings)


def present_fingerprint(record: TrialRecord) -> str | None:
    """Take the fingerprint of the images that a trial would be given now.

    Returns:
        None where the folder is out of reach, or the trial does not say where it lies.
    """
    settings = settings_of(record)
    return None if settings is None else _fingerprint_of(Images.of(record), settings)


def settings_of(record: TrialRecord) -> Settings | None:
    """Read the settings of the sweep that ran a trial, None where they are not known here."""
    plain = record.assignment.get("settings")
    if not plain:
        return None
    try:
        return build(Settings, plain, "settings")
    except InputError:
        return None


def _remembers(settings: Settings) -> bool:
    """Tell whether facts on files of earlier runs are there."""
    return (Path(settings.cache_dir) / MEMO_NAME).is_file()


def _fingerprint_of(images: Images, settings: Settings) -> str | None:
    """Hash the images as a trial would be given them, None where they cannot be listed."""
    assert images.seed is not None, "a trial has a seed"
    try:
        samples = list_samples(
            images.datasets,
            images.categories,
            settings,
            seed=images.seed,
            split_mode=images.split_mode,
            train_defects=images.train_defects,
        )
        return data_fingerprint(samples, rule_of(samples, settings), settings)
    except (InputError, OSError):
        return None
