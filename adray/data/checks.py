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
from adray.settings import Settings

logger = logging.getLogger(__name__)

_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class CheckedData:
    """What is known of a trial's images."""

    problems: tuple[str, ...]
    """Sentences on what cannot be used or would silently change the result; none where all is
    well."""
    remarks: tuple[str, ...]
    """Sentences on what only loses a little, or is not plain."""
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
    remarks = [finding.sentence for finding in findings if not finding.stops]
    problems = list(map(str, problems_of(samples, facts.images, facts.masks, settings.data)))
    problems += [finding.sentence for finding in findings if finding.stops]
    if problems:
        return CheckedData(tuple(problems), tuple(remarks), "")

    # Numbers are looked at only in files that can be read.
    try:
        rule = rule_of(samples, settings)
        roi = roi_of(samples, settings)
    except InputError as error:
        return CheckedData((str(error),), tuple(remarks), "")
    problems = list(map(str, pixel_problems(facts.images, rule)))
    if problems:
        return CheckedData(tuple(problems), tuple(remarks), "")
    remarks += [f"{place}: {remark}" for remark in pixel_remarks(facts, rule)]
    if roi is not None:
        share = 100 * float(roi_cells(roi).mean())
        remarks.append(f"{place}: the roi covers {share:.0f} % of an image; nothing counts outside")
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
        logger.warning(remark)

    problems = checked.problems
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        end = f"; and {more} more" if more > 0 else ""
        raise InputError("; ".join(problems[:_PROBLEMS_SHOWN]) + end)
    return checked.fingerprint
