"""What an audit found, in the reader's language."""

from __future__ import annotations

from adray.audit import Audit
from adray.language.catalogue import Catalogue
from adray.thresholds import CONFIDENCE, percent


def audit_lines(found: Audit, say: Catalogue) -> list[str]:
    """Say what an audit found."""
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
        lines = [say("audit broken", **figures)]
    elif found.is_above:
        lines = [say("audit above", **figures)]
    else:
        lines = [say("audit holds", **figures)]
    if found.has_drifted:
        lines.append(say("audit drift", chance=f"{min(found.difference, found.trend):.2g}"))
    return lines
