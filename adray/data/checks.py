"""All that is looked at in a trial's images before it starts, once, by the plan and by `train`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adray.data.accounting import Accounts, account_dataset
from adray.data.base import Sample
from adray.data.examine import examine
from adray.data.geometry import roi_cells
from adray.data.inspect_files import inspect_samples, problems_of
from adray.data.pixel_checks import data_fingerprint, pixel_problems, pixel_remarks
from adray.data.pixel_rule import rule_of
from adray.data.roi import roi_of
from adray.errors import InputError
from adray.language.sentence import Sentence, sentence_of
from adray.settings import Settings

logger = logging.getLogger(__name__)

_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class CheckedData:
    """What is known of a trial's images."""

    problems: tuple[Sentence, ...]
    """On what cannot be used or would silently change the result; none where all is well."""
    remarks: tuple[Sentence, ...]
    """On what only loses a little, or is not plain."""
    fingerprint: str
    """Hash of all that decides what a trial sees; empty where there is a problem."""


def check_data(
    place: str, samples: Sequence[Sample], accounts: Mapping[str, Accounts], settings: Settings
) -> CheckedData:
    """Check the images of a trial, and hash them where nothing is wrong.

    Args:
        place: data set and category, for remarks.
        samples: of the trial.
        accounts: of each of its data sets.
        settings: what is said of the data, and where facts of files are remembered.

    Raises:
        InputError: for a kind of finding to accept that does not exist.
    """
    facts = inspect_samples(samples, settings.cache_dir, settings.data)
    findings = examine(samples, accounts, settings, facts)
    remarks = [finding.said for finding in findings if not finding.stops]
    problems = problems_of(samples, facts.images, facts.masks, settings.data)
    problems += [finding.said for finding in findings if finding.stops]
    if problems:
        return CheckedData(tuple(problems), tuple(remarks), "")

    # Numbers are looked at only in files that can be read.
    try:
        rule = rule_of(samples, settings)
        roi = roi_of(samples, settings)
    except InputError as error:
        return CheckedData((sentence_of(error),), tuple(remarks), "")
    problems = pixel_problems(facts.images, rule)
    if problems:
        return CheckedData(tuple(problems), tuple(remarks), "")
    of_place = pixel_remarks(facts, rule)
    if roi is not None:
        share = f"{100 * float(roi_cells(roi).mean()):.0f} %"
        of_place.append(Sentence.of("roi covers", share=share))
    remarks += [Sentence.of("finding remark", place=place, what=remark) for remark in of_place]
    return CheckedData((), tuple(remarks), data_fingerprint(samples, rule, settings))


def checked_fingerprint(
    place: str, samples: Sequence[Sample], split_mode: str, settings: Settings
) -> str:
    """Give the fingerprint of a trial's images, once all of them can be used. Remarks are logged.

    Args:
        place: data set and category, for remarks.
        samples: of the trial.
        split_mode: which of VisA's splits they are of.
        settings: see `check_data`.

    Raises:
        InputError: with the first five images that cannot be used, and with what would silently
            change the result.
    """
    names = dict.fromkeys(sample.dataset for sample in samples)
    accounts = {name: account_dataset(name, settings, split_mode) for name in names}
    checked = check_data(place, samples, accounts, settings)
    for remark in checked.remarks:
        logger.warning(str(remark))

    if checked.problems:
        raise InputError(first_problems(checked.problems, _PROBLEMS_SHOWN))
    return checked.fingerprint


def first_problems(problems: Sequence[Sentence], most: int) -> Sentence:
    """Join the first few problems, and count the others."""
    more = len(problems) - most
    shown = tuple(problems[:most])
    if more > 0:
        return Sentence.of("problems and_more", problems=shown, more=more)
    return Sentence.of("problems all", problems=shown)
