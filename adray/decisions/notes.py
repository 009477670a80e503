"""What a reader of a decision must know before it is believed, the gravest first."""

from __future__ import annotations

from collections.abc import Sequence

from adray.decisions.decision import TEAM, Decision, Option
from adray.language.sentence import Sentence, Term
from adray.results.store import TrialRecord
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
        *_on_promise(chosen),
        *_on_test(chosen),
    ]
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
    if any((record.result or {}).get("weights") == "random" for record in records):
        notes.append(Sentence.of("decide note untrained"))
    if records and records[0].is_drawn:
        notes.append(Sentence.of("decide note drawn"))
    accepted = _accepted(records)
    if accepted:
        kinds = tuple(Sentence.of("decide kind", kind=Term(kind)) for kind in accepted)
        notes.append(Sentence.of("decide note accepted", kinds=kinds))
    if any(record.leaky for record in records):
        notes.append(Sentence.of("decide note leaky"))
    return notes


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


def _on_promise(chosen: Option) -> list[Sentence]:
    """Say where nothing, little, or less than was seen is promised."""
    promise = chosen.promise
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

    Their number is beta-binomial (m, k, n + 1 - k) distributed where they are of the production of
    the n calibration normals, k of which are at or above the threshold.
    """
    verdicts = chosen.verdicts
    promise = chosen.promise
    if verdicts is None or not verdicts.alarms or promise.promised is None:
        return False
    if verdicts.alarms <= promise.promised * verdicts.normals:
        return False
    from scipy.stats import betabinom

    at_or_above = promise.normals + 1 - promise.rank
    law = betabinom(verdicts.normals, at_or_above, promise.rank)
    return bool(law.sf(verdicts.alarms - 1) < 1 - CONFIDENCE)


def _on_test(chosen: Option) -> list[Sentence]:
    """Say where the test images are too few to say much."""
    notes = []
    if chosen.interval is not None and chosen.interval[0] <= _CHANCE:
        notes.append(Sentence.of("decide note chance"))
    verdicts = chosen.verdicts
    has_normals = verdicts is not None and verdicts.alarms is not None and verdicts.normals
    if verdicts is not None and has_normals and verdicts.normals < _FEW_NORMALS:
        share = percent(1 / verdicts.normals)
        notes.append(Sentence.of("decide note few normals", number=verdicts.normals, share=share))
    return notes
