"""All that is looked at in a trial's images before it starts, once, by the plan and by `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adray.data.accounting import Accounts
from adray.data.base import Sample
from adray.data.findings import examine
from adray.data.inspect_files import inspect_samples, problems_of
from adray.data.pixel_checks import data_fingerprint, pixel_problems, pixel_remarks
from adray.data.pixel_rule import rule_of
from adray.errors import InputError
from adray.settings import Settings


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
    problems = problems_of(samples, facts.images, facts.masks, settings.data)
    problems += [finding.sentence for finding in findings if finding.stops]
    if problems:
        return CheckedData(tuple(problems), tuple(remarks), "")

    # Numbers are looked at only in files that can be read.
    try:
        rule = rule_of(samples, settings)
    except InputError as error:
        return CheckedData((str(error),), tuple(remarks), "")
    problems = pixel_problems(facts.images, rule)
    if problems:
        return CheckedData(tuple(problems), tuple(remarks), "")
    remarks += [f"{place}: {remark}" for remark in pixel_remarks(facts, rule)]
    return CheckedData((), tuple(remarks), data_fingerprint(samples, rule, settings))
