"""A decision in the words of its reader: a few lines for a console, or all that is known of it.

What the console of a sweep, `status` and the report page say of a part are the lines of `summary`,
with which the long text begins too.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from adray.config import to_plain
from adray.decisions.decision import (
    DECIDED,
    NOT_JUDGED,
    NOTHING_FITS,
    ONLY,
    UNDECIDED,
    Decision,
    Excess,
    Option,
    Verdicts,
)
from adray.language.catalogue import LANGUAGES, Catalogue, load_catalogue
from adray.language.sentence import Sentence
from adray.thresholds import CONFIDENCE, normals_to_be_sure, percent

_MOST_NAMES = 4
"""Names that a sentence lists before it counts the rest."""
_MOST_FACTOR = 20.0
"""More times as many test images are none that anybody takes."""
_LEAST_FACTOR = 1.1
"""Fewer times as many are not worth a figure."""
_LEAST_SHARE = 0.005
"""A smaller share of wins is not listed."""

_GRAVE = ("untrained", "drawn", "accepted", "leaky", "no calibration", "chance", "no checkpoint")
"""Ends of the keys of notes without which a short answer would mislead."""


@dataclass(frozen=True)
class Row:
    """One thing that is known of a decision."""

    label: str
    """Name of it."""
    text: str
    """What is known."""


def summary(decision: Decision, say: Catalogue) -> list[str]:
    """Say in at most four lines what to deploy, what it finds, its gravest doubt, and how to go on."""
    lines = [_head(decision, say)]
    chosen = decision.chosen
    if chosen is not None:
        rows = [*_worst(decision, chosen, say), *_counts(chosen, say), *_promised(chosen, say)]
        lines.append("  " + "; ".join(map(attrgetter("text"), rows)))
    grave = list(filter(_is_grave, decision.notes))
    for note in grave[:1]:
        lines.append(f"  ! {note.text(say)}")
    for command in _commands(decision)[:1]:
        lines.append("  " + say("decide next", command=command))
    return lines


def _is_grave(note: Sentence) -> bool:
    """Tell whether a short answer would mislead without a note."""
    return note.key.removeprefix("decide note ") in _GRAVE


def page_summaries(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """Give the summaries in all languages, and the notes, as the report page shows them. JSON."""
    found = []
    for decision in decisions:
        single = decision.single
        of_page: dict[str, Any] = {
            "part": decision.part,
            "options": {option.name: option.is_tied for option in decision.options},
            "state": decision.state,
            "trial": "" if single is None else str(single.place),
        }
        for language in LANGUAGES:
            say = load_catalogue(language)
            notes = _note_texts(decision, say)
            of_page[language] = {"lines": summary(decision, say), "notes": notes}
        found.append(of_page)
    return found


def decision_text(decision: Decision, say: Catalogue) -> str:
    """Say all that is known of a decision, a line each."""
    lines = summary(decision, say)[:1]
    for row in _rows(decision, say):
        lines.append(f"  {row.label}: {row.text}")
    for note in _note_texts(decision, say):
        lines.append(f"  ! {note}")
    for command in _commands(decision):
        lines.append("  " + say("decide next", command=command))
    return "\n".join(lines)


def decision_markdown(decision: Decision, say: Catalogue) -> str:
    """Say the same as a section of Markdown."""
    lines = [f"## {decision.part}", "", _head(decision, say), ""]
    for row in _rows(decision, say):
        lines.append(f"- **{row.label}**: {row.text}")
    for note in _note_texts(decision, say):
        lines.append(f"- {note}")
    return "\n".join([*lines, "", "```bash", *_commands(decision), "```"])


def decision_json(decision: Decision, say: Catalogue) -> dict[str, Any]:
    """Give a decision as plain values, its sentences in words."""
    plain = to_plain(decision)
    plain["part"] = decision.part
    plain["notes"] = _note_texts(decision, say)
    for name in ("left_out", "uncounted"):
        for one, values in zip(getattr(decision, name), plain[name], strict=True):
            values["reason"] = one.reason.text(say)
    plain["summary"] = summary(decision, say)
    plain["commands"] = _commands(decision)
    return plain


def _note_texts(decision: Decision, say: Catalogue) -> list[str]:
    """Give the notes in words."""
    return [note.text(say) for note in decision.notes]


# The first line


def _head(decision: Decision, say: Catalogue) -> str:
    """Say what to deploy."""
    part = decision.part
    chosen = decision.chosen
    if chosen is None or decision.state == NOT_JUDGED:
        return say("decide not judged", part=part, reason=_why_not_judged(decision, say))

    if decision.state == UNDECIDED:
        return _undecided(decision, chosen, say)
    if decision.state == DECIDED:
        others = _names(decision.fitting[1:], say)
        return say("decide decided", part=part, name=chosen.name, others=others)
    if decision.state == ONLY:
        number = len(decision.options)
        key = "decide only" if number == 1 else "decide only fitting"
        return say(key, part=part, name=chosen.name, number=number)
    if decision.state == NOTHING_FITS:
        excesses = _excesses(chosen, say)
        return say("decide nothing fits", part=part, name=chosen.name, excesses=excesses)
    assert decision.team is not None, "the state is team"
    return say("decide team", part=part, name=chosen.name, **_gain(decision))


def _undecided(decision: Decision, chosen: Option, say: Catalogue) -> str:
    """Say who cannot be told apart, what would do it, and which of them is cheaper."""
    names = _names(decision.tied, say)
    parts = [say("decide undecided", part=decision.part, names=names, name=chosen.name)]
    parts += _settling(decision, say)
    if decision.cheaper is not None:
        parts.append(_cheaper(decision.cheaper, chosen, say))
    return " ".join(parts)


def _settling(decision: Decision, say: Catalogue) -> list[str]:
    """Say how many further test images would tell the best from the next, as far as it is known."""
    images = decision.images
    factor = decision.images_factor
    if images is None or factor is None or factor > _MOST_FACTOR:
        return []
    if not images.normal or not images.anomalous:
        return []

    more = max(factor, _LEAST_FACTOR) - 1
    counts = {
        "good": math.ceil(more * images.normal),
        "defective": math.ceil(more * images.anomalous),
    }
    return [say("decide settle", **counts)]


def _cheaper(cheaper: Option, chosen: Option, say: Catalogue) -> str:
    """Say how much cheaper an option is."""
    ms = f"{cheaper.cost.ms:.3g}"
    return say("decide cheaper", name=cheaper.name, ms=ms, other=f"{chosen.cost.ms:.3g}")


def _why_not_judged(decision: Decision, say: Catalogue) -> str:
    """Say why nothing can be compared."""
    if decision.left_out:
        return decision.left_out[0].reason.text(say)
    if decision.uncounted and not decision.failed:
        return decision.uncounted[0].reason.text(say)
    return say("decide nothing finished", failed=decision.failed)


def _excesses(option: Option, say: Catalogue) -> str:
    """Say which limits an option does not keep, and what to relax."""
    return "; ".join(_excess(excess, option, say) for excess in option.excesses)


def _excess(excess: Excess, option: Option, say: Catalogue) -> str:
    """Say which limit an option does not keep, and what to relax."""
    if excess.found is None:
        return say(f"decide unknown {excess.limit}")
    is_rate = excess.limit == "false_alarms"
    found = percent(excess.found) if is_rate else f"{excess.found:.3g}"
    allowed = percent(excess.allowed) if is_rate else f"{excess.allowed:g}"
    normals = option.promise.normals
    return say(f"decide excess {excess.limit}", found=found, allowed=allowed, normals=normals)


def _listed(names: Sequence[str], say: Catalogue) -> str:
    """Join names with commas, and count those beyond the limit."""
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return say("decide names", names=shown, number=more) if more > 0 else shown


def _names(options: Sequence[Option], say: Catalogue) -> str:
    """Join the names of options."""
    return _listed(list(map(attrgetter("name"), options)), say)


def _gain(decision: Decision) -> dict[str, str]:
    """Give gain and error of a team as texts."""
    assert decision.team is not None, "there is a team"
    return {"gain": f"{decision.team.gain:+.4f}", "error": f"{decision.team.error:.4f}"}


# What is known


def _rows(decision: Decision, say: Catalogue) -> list[Row]:
    """List all that is known of a decision beside its first line."""
    chosen = decision.chosen
    if chosen is None:
        return _tried(decision, say)
    return [
        *_deployed(chosen, say),
        *_worst(decision, chosen, say),
        *_value(decision, chosen, say),
        *_counts(chosen, say),
        *_types(chosen, say),
        *_promised(chosen, say),
        *_more_normals(decision, chosen, say),
        *_cost(chosen, say),
        *_sure(decision, say),
        *_runner_up(decision, say),
        *_team(decision, say),
        *_tried(decision, say),
        *_images(decision, say),
        *_enough(decision, say),
    ]


def _deployed(chosen: Option, say: Catalogue) -> list[Row]:
    """Say which trial is meant."""
    if chosen.is_team:
        return [Row(say("decide label deploy"), str(chosen.place))]
    seeds = ", ".join(map(str, chosen.seeds))
    key = "decide deployed" if len(chosen.seeds) > 1 else "decide deployed one"
    text = say(key, place=chosen.place, seed=chosen.seed, seeds=seeds)
    return [Row(say("decide label deploy"), text)]


def _worst(decision: Decision, chosen: Option, say: Catalogue) -> list[Row]:
    """Say under what the model is worst, where that decides."""
    worst = chosen.worst
    if worst is None:
        return []
    is_cost = decision.wishes.objective == "cost"
    value = f"{-1000 * worst.value:.3g}" if is_cost else f"{worst.value:.3f}"
    key = "decide worst cost" if is_cost else "decide worst"
    text = say(key, value=value, condition=worst.condition, number=worst.conditions)
    return [Row(say("decide label worst"), text)]


def _value(decision: Decision, chosen: Option, say: Catalogue) -> list[Row]:
    """Give the figure by which candidates are compared, and the image AUROC."""
    rows = []
    is_cost = decision.wishes.objective == "cost" and not decision.wishes.robust
    if is_cost and chosen.value is not None:
        cost = f"{-1000 * chosen.value:.3g}"
        rows.append(Row(say("decide label errors"), say("decide errors", cost=cost)))
    if chosen.image_auroc is None:
        return rows

    # The figure is of the deployed trial, its mean over seeds stands behind.
    text = f"{chosen.image_auroc:.3f}"
    if chosen.interval is not None:
        text += " " + say("decide interval", **_ends(*chosen.interval))
    is_mean = (
        decision.wishes.objective == "image_auroc"
        and not decision.wishes.robust
        and len(chosen.seeds) > 1
    )
    if is_mean and chosen.value is not None:
        ends = _ends(chosen.lowest, chosen.highest)
        mean = f"{chosen.value:.3f}"
        text += "; " + say("decide seeds", number=len(chosen.seeds), mean=mean, **ends)
    return [*rows, Row("image AUROC", text)]


def _ends(low: float | None, high: float | None) -> dict[str, str]:
    """Give the ends of a range as texts."""
    return {"low": f"{low:.3f}", "high": f"{high:.3f}"}


def _counts(chosen: Option, say: Catalogue) -> list[Row]:
    """Say what is missed and what rings falsely."""
    verdicts = chosen.verdicts
    if verdicts is None:
        return [Row(say("decide label counts"), say("decide no threshold"))]
    return [Row(say("decide label counts"), _counts_text(verdicts, say))]


def _counts_text(verdicts: Verdicts, say: Catalogue) -> str:
    """Count misses and false alarms."""
    counts = {"missed": verdicts.missed, "defects": verdicts.defects}
    if verdicts.alarms is None:
        return say("decide counts drawn", **counts)
    return say("decide counts", **counts, alarms=verdicts.alarms, normals=verdicts.normals)


def _types(chosen: Option, say: Catalogue) -> list[Row]:
    """Count the misses by type, where there are several."""
    if chosen.verdicts is None or len(chosen.verdicts.by_type) < 2:
        return []

    parts = []
    for one in chosen.verdicts.by_type:
        parts.append(say("decide type", name=one.name, missed=one.missed, images=one.images))
    return [Row(say("decide label types"), ", ".join(parts))]


def _promised(chosen: Option, say: Catalogue) -> list[Row]:
    """Say what is promised of new normals."""
    promise = chosen.promise
    if promise.promised is None or promise.bound is None:
        return []

    text = say(
        "decide promised",
        promised=percent(promise.promised),
        bound=percent(promise.bound),
        confidence=percent(CONFIDENCE),
        normals=promise.normals,
    )
    if promise.tried > 1:
        text += " " + say("decide promised whichever", tried=promise.tried)
    return [Row(say("decide label promised"), text)]


def _more_normals(decision: Decision, chosen: Option, say: Catalogue) -> list[Row]:
    """Say how many further good images would settle the promise."""
    promise = chosen.promise
    rate = promise.rate
    sure = max(0, normals_to_be_sure(rate, promise.tried) - promise.normals)
    if not sure:
        return []

    # A promise on average takes fewer than one with confidence.
    key = "decide more to be sure"
    if decision.normals_missing:
        key = "decide more normals"
    text = say(key, missing=decision.normals_missing, rate=percent(rate), sure=sure)
    return [Row(say("decide label more"), text)]


def _cost(chosen: Option, say: Catalogue) -> list[Row]:
    """Say what it costs to run, as it was measured."""
    label = say("decide label cost")
    cost = chosen.cost
    if not cost.source:
        return [Row(label, say("decide not measured", command=_measure(chosen)))]

    ms = "n/a" if cost.ms is None else f"{cost.ms:.3g}"
    mb = "n/a" if cost.mb is None else f"{cost.mb:.3g}"
    text = say("decide cost", ms=ms, mb=mb, device=cost.source)
    if chosen.cost_of:
        text += " " + say("decide cost of", part=chosen.cost_of)
    return [Row(label, text)]


def _sure(decision: Decision, say: Catalogue) -> list[Row]:
    """Say how often each wins where the test images are drawn again."""
    parts = []
    for option in sorted(decision.options, key=lambda option: -(option.wins or 0.0)):
        if (option.wins or 0.0) >= _LEAST_SHARE:
            parts.append(f"{option.name} {option.wins:.0%}")
    if len(decision.options) < 2 or not parts:
        return []
    rows = [Row(say("decide label sure"), say("decide wins", shares=_listed(parts, say)))]

    # A difference that is hardly there would take more images than anybody has.
    factor = decision.images_factor
    if decision.state == UNDECIDED and factor is not None:
        key = "decide too near" if factor > _MOST_FACTOR else "decide factor"
        rows.append(
            Row(say("decide label apart"), say(key, factor=f"{max(factor, _LEAST_FACTOR):.1f}"))
        )
    return rows


def _runner_up(decision: Decision, say: Catalogue) -> list[Row]:
    """Name the cheaper one of those that cannot be told apart."""
    if decision.cheaper is None or decision.chosen is None:
        return []
    text = f"{_cheaper(decision.cheaper, decision.chosen, say)} {decision.cheaper.place}"
    return [Row(say("decide label cheaper"), text)]


def _team(decision: Decision, say: Catalogue) -> list[Row]:
    """Say what the team of the store is worth."""
    team = decision.team
    if team is None:
        return []

    key = "decide team beyond" if team.is_beyond_error else "decide team within"
    text = say(key, name=team.name, **_gain(decision))
    if team.problem:
        text += " " + say(f"decide team {team.problem}")
    return [Row(say("decide label team"), text)]


def _tried(decision: Decision, say: Catalogue) -> list[Row]:
    """Count what was tried, and name what is not compared."""
    text = say(
        "decide tried",
        models=decision.models,
        trials=decision.trials,
        failed=decision.failed,
    )
    rows = [Row(say("decide label tried"), text)]
    for option in decision.options:
        if not option.fits and option is not decision.chosen:
            text = f"{option.name}: {_excesses(option, say)}"
            rows.append(Row(say("decide label beyond"), text))
    for one in decision.left_out:
        rows.append(Row(say("decide label left out"), f"{one.name}: {one.reason.text(say)}"))
    for one in decision.uncounted:
        rows.append(Row(say("decide label uncounted"), f"{one.name}: {one.reason.text(say)}"))
    return rows


def _enough(decision: Decision, say: Catalogue) -> list[Row]:
    """Say how many training images are enough, as far as a curve over their number tells."""
    found = decision.saturation
    if found is None:
        return []
    text = say(
        "decide enough",
        needed=_images_text(found.needed, say),
        ceiling=f"{found.ceiling:.3f}",
        gain=f"{found.gain:.3f}",
    )
    if found.ceiling_low is not None:
        low = _images_text(found.needed_low, say)
        high = _images_text(found.needed_high, say)
        ends = _ends(found.ceiling_low, found.ceiling_high)
        text += " " + say("decide enough interval", needed_low=low, needed_high=high, **ends)
    return [Row(say("decide label enough"), text)]


def _images_text(number: float | None, say: Catalogue) -> str:
    """Write a number of images, which may be more than can be said."""
    return say("decide enough beyond") if number is None else str(math.ceil(number))


def _images(decision: Decision, say: Catalogue) -> list[Row]:
    """Count the images behind the decision."""
    images = decision.images
    if images is None:
        return []

    text = say(
        "decide images",
        train=images.train,
        held_out=images.held_out,
        normal=images.normal,
        anomalous=images.anomalous,
    )
    return [Row(say("decide label images"), text)]


# How to go on


def _commands(decision: Decision) -> list[str]:
    """Give the commands that come next, first the one that does most."""
    chosen = decision.chosen
    if chosen is None or not chosen.has_checkpoint:
        return []

    # What was asked for, and of how many it was chosen, is no part of the trial: each command has to
    # be given it.
    place = shlex.quote(str(chosen.place))
    asked = decision.wishes.false_alarms
    given = "" if asked is None else f" --false-alarms {asked:g}"
    if chosen.promise.tried > 1:
        given += f" --tried {chosen.promise.tried}"
    commands = [
        f"python -m adray predict {place} NEW_IMAGES --out found{given}",
        f"python -m adray audit {place} FRESH_GOOD_IMAGES{given}",
    ]
    if not chosen.is_team:
        commands.append(f"python -m adray export {place} --out line")
        if not chosen.cost.source:
            commands.append(_measure(chosen))
    return commands


def _measure(option: Option) -> str:
    """Give the command that measures an option."""
    return f"python -m adray measure {shlex.quote(str(option.place))}"
