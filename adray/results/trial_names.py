"""Trials by the names that a person gives them: a part and a model, such as ``screw/padim``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of
from adray.results.store import TrialRecord, done_of
from adray.results.trial_files import folder_to_deploy


def part_name(dataset: str, category: str) -> str:
    """Name a part as a person does: a data set that is one category has the name of the set."""
    return dataset if category in ("all", dataset) else f"{dataset}/{category}"


def named_trial(records: Sequence[TrialRecord], name: str) -> TrialRecord:
    """Find the trial that a name means: of several seeds the one to deploy.

    Args:
        records: trials that answer for their cells, see `adray.results.current.StoreView.shown`.
        name: ``part/configuration``. The part is ``dataset/category``, or one of both where that is
            enough.

    Raises:
        InputError: for a name that no finished trial has, and one that models of several parts have.
    """
    by_model: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in done_of(records):
        by_model[_whole_name(record)].append(record)

    part, _, configuration = name.rpartition("/")
    meant = []
    for whole, trials in by_model.items():
        is_model = trials[0].identity["configuration"] == configuration
        if is_model and part in _parts_of(trials[0]):
            meant.append(whole)
    if not meant:
        raise InputError(
            Sentence.of(
                "store unknown model", name=repr(name), nearest=nearest_of(name, sorted(by_model))
            )
        )
    if len(meant) > 1:
        raise InputError(
            Sentence.of("store several models", name=repr(name), meant=" or ".join(sorted(meant)))
        )
    return _to_deploy(by_model[meant[0]])


def _to_deploy(trials: Sequence[TrialRecord]) -> TrialRecord:
    """Choose among the seeds of one model, by image AUROC."""
    ranked = sorted(trials, key=_image_auroc)
    by_folder = {trial.folder: trial for trial in ranked}
    return by_folder[folder_to_deploy(list(by_folder))]


def _image_auroc(record: TrialRecord) -> float:
    """Read the image AUROC of a trial, -1 where it has none."""
    value = (record.result or {}).get("metrics", {}).get("image_auroc")
    return -1.0 if value is None else float(value)


def _parts_of(record: TrialRecord) -> tuple[str, str, str]:
    """Give the names that a part goes by."""
    return f"{record.dataset}/{record.category}", record.dataset, record.category


def _whole_name(record: TrialRecord) -> str:
    """Give the name of a trial's model that no other part has."""
    return f"{_parts_of(record)[0]}/{record.identity['configuration']}"
