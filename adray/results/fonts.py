"""A font for letters that the usual one lacks, such as Hangul in the names of folders and images.

The pictures of a trial carry names as pixels, so that they need a font of the machine that draws
them. Where it has none, such letters are left out and the log says how to get one.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path

from adray.language.catalogue import spoken

logger = logging.getLogger(__name__)

_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
)
"""Where Linux keeps fonts, those of all users first."""
_NAMES = (
    "NotoSansCJK-Regular*",
    "NotoSansKR*",
    "NanumGothic*",
    "malgun*",
    "UnDotum*",
    "DroidSansFallback*",
)
"""Files of fonts with Hangul, the best first."""
_WIDE = re.compile(r"[^\u0000-\u024f]+")
"""Letters beyond Latin, which the usual font lacks."""


def font_for(text: str) -> Path | None:
    """Find the font file that a text needs, None where the usual one does or there is none."""
    return _wide_font() if _WIDE.search(text) else None


def drawable(text: str) -> str:
    """Give a text without the letters that no font here has, each run of them an ellipsis."""
    if not _WIDE.search(text) or _wide_font() is not None:
        return text
    _remark_once()
    return _WIDE.sub("...", text)


@lru_cache(maxsize=1)
def _wide_font() -> Path | None:
    """Find a font with Hangul on this machine, None where there is none."""
    for name in _NAMES:
        for folder in _FOLDERS:
            found = sorted(Path(folder).expanduser().rglob(name))
            if found:
                return found[0]
    return None


@lru_cache(maxsize=1)
def _remark_once() -> None:
    """Say that letters are left out, once in a process."""
    logger.warning(spoken("font missing"))
