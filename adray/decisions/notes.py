"""What a reader of a decision must know before it is believed, the gravest first."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from adray.decisions.decision import TEAM, Decision, Option
from adray.language.sentence import Sentence, Term
from adray.results.store import TrialRecord
from adray.results.trial_files import RECALIBRATION
from adray.runtime.alarm_chance import alarm_chance
from adray.thresholds import CONFIDENCE, FEW_HOLDOUT, percent

_FEW_NORMALS = 20
"""With fewer normal test images one of them is more than 5 % of false alarms."""
_CHANCE = 0.5
"""AUROC of a model that tells nothing."""


def notes_on(
    decision: Decision, records: Sequence[TrialRecord], record: TrialRecord | None
) -> tuple[Sentence, ...]:
    """Say what casts doubt on a decision.

    Args:
        decision: without notes.
        records: the trials that were compared.
        record: the chosen trial, None for a team and where nothing is chosen.
    """
    chosen = decision.chosen
    if chosen is None:
        return ()
    notes = [
        *_on_trials(records),
        *_on_choice(decision, chosen),
        *_on_promise(chosen, record),
        *_on_test(chosen),
    ]

    # What can be mended by running more comes last.
    if record is not None and len(chosen.seeds) == 1:
        notes.append(Sentence.of("decide note one seed"))
    if not chosen.has_checkpoint:
        notes.append(Sentence.of("decide note no checkpoint"))
    if chosen.cost.doubts:
        notes.append(Sentence.of("decide note doubts", number=chosen.cost.doubts))
    return tuple(notes)


def _on_trials(records: Sequence[TrialRecord]) -> list[Sentence]:
    """Say what is wrong with all figures of a part."""
    notes = []
    if any(map(_is_untrained, records)):
        notes.append(Sentence.of("decide note untrained"))
    if records and records[0].is_drawn:
        notes.append(Sentence.of("decide note drawn"))
    accepted = _accepted(records)
    if accepted:
        notes.append(Sentence.of("decide note accepted", kinds=tuple(map(_kind, accepted))))
    if any(map(attrgetter("leaky"), records)):
        notes.append(Sentence.of("decide note leaky"))
    return notes


def _is_untrained(record: TrialRecord) -> bool:
    """Tell whether a trial's backbone was not trained."""
    return (record.result or {}).get("weights") == "random"


def _kind(kind: str) -> Sentence:
    """Say what kind of finding was accepted."""
    return Sentence.of("decide kind", kind=Term(kind))


def _accepted(records: Sequence[TrialRecord]) -> list[str]:
    """List the kinds of findings in the data that a user accepted."""
    kinds = set()
    for record in records:
        options = (record.assignment.get("settings") or {}).get("data") or {}
        for dataset in record.identity["datasets"]:
            kinds |= set((options.get(dataset) or {}).get("accept") or ())
    return sorted(kinds)


def _on_choice(decision: Decision, chosen: Option) -> list[Sentence]:
    """Say what the choice itself does to its figures."""
    if decision.state == TEAM:
        return [Sentence.of("decide note team")]
    number = len(decision.options)
    return [Sentence.of("decide note chosen", number=number)] if number > 1 else []


def _on_promise(chosen: Option, record: TrialRecord | None) -> list[Sentence]:
    """Say where nothing, little, something else, or less than was seen is promised."""
    promise = chosen.promise
    if record is not None and any(record.folder.glob(f"{RECALIBRATION}*.json")):
        return [Sentence.of("decide note recalibrated")]
    if not promise.normals:
        return [Sentence.of("decide note no calibration")]

    notes = []
    if promise.normals < FEW_HOLDOUT:
        notes.append(Sentence.of("decide note few calibration", number=promise.normals))
    if _rings_too_often(chosen):
        assert chosen.verdicts is not None, "there are false alarms"
        notes.append(
            Sentence.of(
                "decide note more alarms",
                alarms=chosen.verdicts.alarms or 0,
                normals=chosen.verdicts.normals,
                promised=percent(promise.promised or 1.0),
            )
        )
    return notes


def _rings_too_often(chosen: Option) -> bool:
    """Tell whether chance explains badly that so many normal test images are reported.

    By chance they are as many as `alarm_chance` says where they are of the production of the
    calibration normals. Of several trials that these chose among, the chance of any is at most the
    sum.
    """
    verdicts = chosen.verdicts
    promise = chosen.promise
    if verdicts is None or not verdicts.alarms or promise.promised is None:
        return False
    # Most often they are fewer.
    if verdicts.alarms <= promise.promised * verdicts.normals:
        return False

    above = promise.normals + 1 - promise.rank
    chance = alarm_chance(verdicts.alarms, verdicts.normals, above, promise.rank)
    return promise.tried * chance < 1 - CONFIDENCE


def _on_test(chosen: Option) -> list[Sentence]:
    """Say where the test images are too few to say much."""
    notes = []
    if chosen.interval is not None and chosen.interval[0] <= _CHANCE:
        notes.append(Sentence.of("decide note chance"))

    # The calibration normals themselves are no test of false alarms.
    verdicts = chosen.verdicts
    has_normals = verdicts is not None and verdicts.alarms is not None and verdicts.normals
    if verdicts is not None and has_normals and verdicts.normals < _FEW_NORMALS:
        share = percent(1 / verdicts.normals)
        notes.append(Sentence.of("decide note few normals", number=verdicts.normals, share=share))
    return notes
