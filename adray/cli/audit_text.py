"""What an audit found, in the reader's language."""

from __future__ import annotations

from adray.audit import Audit
from adray.language.catalogue import Catalogue
from adray.thresholds import CONFIDENCE, percent


def audit_lines(found: Audit, say: Catalogue) -> list[str]:
    """Say what an audit found of the verdicts."""
    lines = [_sentence(found, say, "audit")]
    if found.has_drifted:
        lines.append(say("audit drift", chance=f"{min(found.difference, found.trend):.2g}"))
    return lines


def map_line(found: Audit | None, say: Catalogue) -> str:
    """Say what an audit found of the regions of maps."""
    return say("audit maps none") if found is None else _sentence(found, say, "audit maps")


def _sentence(found: Audit, say: Catalogue, subject: str) -> str:
    """Say how a promise did, in the sentence of a subject: ``audit`` or ``audit maps``."""
    figures = {
        "alarms": found.alarms,
        "images": found.images,
        "promised": percent(found.promise.promised or 1.0),
        "low": percent(found.low),
        "high": percent(found.high),
        "bound": percent(found.promise.bound or 1.0),
        "normals": found.promise.normals,
        "confidence": percent(CONFIDENCE),
    }
    if found.is_broken:
        return say(f"{subject} broken", **figures)
    if found.is_above:
        return say(f"{subject} above", **figures)
    return say(f"{subject} holds", **figures)
