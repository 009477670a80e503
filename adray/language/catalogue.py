"""The sentences of one language, and which language a person reads.

The files beside this one hold the same keys, and the same places in braces under each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from adray.language.plain_file import read_plain

LANGUAGES = {"en": "english", "ko": "korean"}
"""The short name of a language to its file."""
LANGUAGE_VARIABLE = "ADRAY_LANG"
"""Environment variable that chooses the language of this program alone."""
_MEANING = "meaning "


@dataclass(frozen=True)
class Catalogue:
    """What the program says in one language."""

    language: str
    """A key of `LANGUAGES`."""
    texts: Mapping[str, str]
    """Key to sentence, with places in braces."""

    def __call__(self, key: str, **values: object) -> str:
        """Give the sentence of a key, with `values` in its places."""
        return self.texts[key].format(**values)

    def meaning(self, text: str) -> str:
        """Give the language's words for what a metric or a threshold means in English."""
        return self.texts.get(f"{_MEANING}{text}", text)

    def meanings(self) -> dict[str, str]:
        """Give all that `meaning` knows, English to the language's words."""
        keys = [key for key in self.texts if key.startswith(_MEANING)]
        return {key.removeprefix(_MEANING): self.texts[key] for key in keys}

    def word(self, text: str) -> str:
        """Give the language's word for an English one that the program uses as a value.

        A word that is not in the catalogue stays as it is, and so does a detail in brackets behind
        one that is.
        """
        found = self.texts.get(f"word {text}")
        if found is not None:
            return found
        plain, bracket, detail = text.partition(" (")
        return f"{self.word(plain)}{bracket}{detail}" if bracket else text


@lru_cache(maxsize=len(LANGUAGES))
def load_catalogue(language: str) -> Catalogue:
    """Read the sentences of a language, one of `LANGUAGES`."""
    file = resources.files("adray.language").joinpath(f"{LANGUAGES[language]}.yaml")
    return Catalogue(language, read_plain(file.read_text(encoding="utf-8")))


def language_of(environment: Mapping[str, str]) -> str:
    """Tell which language a process speaks by its environment: English, where it does not say.

    ``ADRAY_LANG`` wins over all. Behind it, as the C library has it, ``LC_ALL`` wins over
    ``LC_MESSAGES`` and that over ``LANG``.
    """
    for name in (LANGUAGE_VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG"):
        value = environment.get(name, "")
        if value:
            return "ko" if value.lower().startswith("ko") else "en"
    return "en"


def spoken(key: str, **values: object) -> str:
    """Give a sentence in the language of this process, with `values` in its places."""
    return load_catalogue(language_of(os.environ))(key, **values)
