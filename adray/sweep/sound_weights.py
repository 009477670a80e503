"""Weight files that a method could use, remembered from one plan to the next.

To open one takes torch, which takes seconds to load. Each line of a file in the cache folder is the
hash of a weight file, of what it was opened for, and of the program. Only what was found to be sound
is remembered. Writers may race and the file may be torn or deleted, which costs time and nothing
else.
"""

from __future__ import annotations

import logging
from importlib import metadata
from pathlib import Path

from adray import __version__
from adray.config import to_plain
from adray.files import canonical_hash, file_sha256
from adray.registry import Resolved
from adray.settings import Settings

logger = logging.getLogger(__name__)

_FILE = "sound-weights.txt"


def weights_key(resolved: Resolved, name: str, path: Path) -> str:
    """Hash a weight file with what it is for: another file, config or program has another key."""
    about = {
        "file": file_sha256(path),
        "name": name,
        "trainer": resolved.spec.trainer,
        "config": to_plain(resolved.config),
        "adray": __version__,
        "torch": metadata.version("torch"),
    }
    return canonical_hash(about)


def is_sound(key: str, settings: Settings) -> bool:
    """Tell whether a weight file was found to be sound before."""
    try:
        return key in _place(settings).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return False


def remember_sound(key: str, settings: Settings) -> None:
    """Remember that a weight file is sound, where the cache folder can be written."""
    place = _place(settings)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # The first line end closes a line that a killed writer left torn.
        with place.open("a", encoding="ascii") as file:
            file.write(f"\n{key}\n")
    except OSError as error:
        logger.info("%s: weight files are looked into again next time (%s)", place, error)


def _place(settings: Settings) -> Path:
    """Name the file."""
    return Path(settings.cache_dir).expanduser() / _FILE
