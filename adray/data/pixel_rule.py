"""How a data set's numbers become 8 bits: decided once, by its training normals.

Ordinary pictures have 8 bits and stay as they are. A deep file says seldom which of its values is
white: a camera of 12 bits fills a sixteenth of a 16-bit file. So one range is taken for all images
of a trial, from what the files declare or from what the training normals hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from adray.data.base import Sample, normals_of, split_of
from adray.data.file_facts import FileFacts
from adray.data.inspect_files import inspect_files
from adray.errors import InputError
from adray.language.sentence import Sentence, Term
from adray.settings import DEFAULT_OPTIONS, DataOptions, Settings
from adray.types import BY_TYPE, EIGHT_BITS, PixelRule

_MARGIN = 0.25
"""Room on either side of a measured range, as a part of it. Defects are darker and brighter than
the normals: this much of them is told apart, and two thirds of the grey levels stay for the
normals."""
_DEPTHS = {
    "eight": Term("8-bit"),
    "deep": Term("16-bit or deeper"),
    "float": Term("floating-point"),
}
"""Depth to the words for it."""


def rule_of(samples: Sequence[Sample], settings: Settings) -> PixelRule:
    """Decide how the images of a trial become 8 bits, with what the settings say of its data sets.

    Raises:
        InputError: for merged data sets of which several things are said, and see `decide_rule`.
    """
    names = sorted({sample.dataset for sample in samples})
    said = {name: settings.options_of(name) for name in names}
    for key in ("range", "channels"):
        values = {name: getattr(options, key) for name, options in said.items()}
        if len(set(values.values())) > 1:
            words = ", ".join(f"{name}: {_words(value)}" for name, value in values.items())
            raise InputError(Sentence.of("range of_merged", name=key, values=words))
    options = said[names[0]] if names else DEFAULT_OPTIONS
    return decide_rule(samples, options, settings.cache_dir)


def decide_rule(
    samples: Sequence[Sample], options: DataOptions, cache_dir: str | Path
) -> PixelRule:
    """Decide how the images of a trial become 8 bits.

    Args:
        samples: all of the trial, of which the training normals decide.
        options: what the user has said of the data.
        cache_dir: holds the memo of what files hold.

    Raises:
        InputError: for training normals of several depths, a range that does not suit them, or
            normals that are all of one value.
    """
    if options.range == "dtype":
        return replace(BY_TYPE, channels=options.channels)
    paths = map(attrgetter("path"), _training_normals(samples))
    return rule_by_facts(samples, options, inspect_files(paths, cache_dir))


def rule_by_facts(
    samples: Sequence[Sample], options: DataOptions, images: Mapping[Path, FileFacts]
) -> PixelRule:
    """Decide how the images of a trial become 8 bits, by facts that are known already.

    Args:
        samples: see `decide_rule`.
        options: see `decide_rule`.
        images: facts of at least the training normals.

    Raises:
        InputError: see `decide_rule`.
    """
    channels = options.channels
    if options.range == "dtype":
        return replace(BY_TYPE, channels=channels)

    normals = [sample.path for sample in _training_normals(samples)]
    facts = {path: images[path] for path in normals if not images[path].problem}
    if not facts:
        return replace(EIGHT_BITS, channels=channels)
    depth = _common_depth(facts)
    if depth == "eight":
        if options.range != "auto":
            first = str(next(iter(facts)))
            raise InputError(
                Sentence.of("range not_for_eight_bits", range=_words(options.range), path=first)
            )
        return replace(EIGHT_BITS, channels=channels)

    if not isinstance(options.range, str):
        low, high = options.range
        return PixelRule(depth, float(low), float(high), channels)
    declared = _declared_range(facts)
    if declared is not None:
        return PixelRule(depth, *declared, channels)
    return PixelRule(depth, *_measured_range(facts), channels, measured_on=len(facts))


def rule_said(rule: PixelRule) -> Sentence:
    """Say how numbers become 8 bits, as a plan prints it."""
    said = Sentence.of(f"rule {rule.depth}")
    if rule.low is not None and rule.high is not None:
        said = Sentence.of(f"rule {rule.depth}", low=f"{rule.low:g}", high=f"{rule.high:g}")
    if rule.measured_on:
        said = Sentence.of("rule measured", rule=said, number=rule.measured_on)

    if rule.channels == "rgb":
        return said
    if rule.channels == "gray":
        return Sentence.of("rule gray", rule=said)
    return Sentence.of("rule channels", rule=said, channels=str(list(rule.channels)))


def _training_normals(samples: Sequence[Sample]) -> list[Sample]:
    """Give those that decide the rule."""
    return normals_of(split_of(samples, "train"))


def _common_depth(facts: Mapping[Path, FileFacts]) -> str:
    """Give the depth that all files have.

    Raises:
        InputError: for files of several depths, with an example of each.
    """
    examples: dict[str, Path] = {}
    for path, found in facts.items():
        examples.setdefault(found.depth, path)
    if len(examples) == 1:
        return next(iter(examples))

    named = []
    for depth, path in examples.items():
        named.append(Sentence.of("range example", path=str(path), depth=_DEPTHS[depth]))
    raise InputError(Sentence.of("range mixed_depths", examples=tuple(named)))


def _declared_range(facts: Mapping[Path, FileFacts]) -> tuple[float, float] | None:
    """Give the range that all files declare and keep to, else None.

    A PNG of 12 bits may fill the upper ones of 16: then its values are beyond what it declares.
    """
    declared = {found.declared for found in facts.values()}
    if len(declared) != 1:
        return None
    span = declared.pop()
    if span is None:
        return None
    for found in facts.values():
        assert found.low is not None, "a deep file has a range"
        assert found.high is not None, "a deep file has a range"
        if found.low < span[0] or found.high > span[1]:
            return None
    return span


def _measured_range(facts: Mapping[Path, FileFacts]) -> tuple[float, float]:
    """Give the range that the files hold, with a margin where their type has room for it.

    Raises:
        InputError: where all pixels have one value, or white cannot be told.
    """
    for path, found in facts.items():
        if found.depth == "float" and found.white_is_zero:
            raise InputError(Sentence.of("range white_unknown", path=str(path)))

    low = min(found.low for found in facts.values() if found.low is not None)
    high = max(found.high for found in facts.values() if found.high is not None)
    if low == high:
        first = str(next(iter(facts)))
        raise InputError(Sentence.of("range one_value", value=f"{low:g}", path=first))

    margin = _MARGIN * (high - low)
    least, largest = _limits(facts)
    # Quantities such as counts and heights do not fall below zero.
    if low >= 0:
        least = max(least, 0.0)
    return max(low - margin, least), min(high + margin, largest)


def _limits(facts: Mapping[Path, FileFacts]) -> tuple[float, float]:
    """Give the least and the largest value that the type of the files holds."""
    modes = {found.mode for found in facts.values()}
    if modes == {"uint16"}:
        return 0.0, 65535.0
    if modes == {"int16"}:
        return -32768.0, 32767.0
    return float("-inf"), float("inf")


def _words(value: object) -> str:
    """Write a range as a file of settings does."""
    return str(list(value)) if isinstance(value, tuple) else str(value)


def refused(path: Path, reason: Sentence) -> Sentence:
    """Make the sentence on an image of what `refusal` says."""
    return Sentence.of("pixels refused", path=str(path), reason=reason)


def refusal(facts: FileFacts, rule: PixelRule) -> Sentence | None:
    """Say why an image does not suit a rule. None where it does.

    Args:
        facts: of the image.
        rule: of the trial or the model.

    Returns:
        The end of a sentence that begins with the image.
    """
    if rule.depth not in ("dtype", facts.depth):
        depth = _DEPTHS[facts.depth]
        normal = _DEPTHS[rule.depth]
        return Sentence.of("pixels of_other_depth", depth=depth, mode=facts.mode, normal=normal)
    return _refusal_of_channels(facts, rule) or _refusal_of_numbers(facts, rule)


def _refusal_of_channels(facts: FileFacts, rule: PixelRule) -> Sentence | None:
    """Say why the channels of an image do not suit a rule."""
    if isinstance(rule.channels, tuple):
        present = _channels_to_pick(facts)
        if max(rule.channels) < present:
            return None
        return Sentence.of(
            "pixels too_few_channels",
            present=present,
            channels=str(list(rule.channels)),
            position=max(rule.channels),
        )
    if facts.colors not in (1, 3):
        # Three positions that a file of so many channels has.
        example = str([min(place, facts.channels - 1) for place in range(3)])
        return Sentence.of("pixels no_colors", channels=facts.channels, example=example)
    return None


def _refusal_of_numbers(facts: FileFacts, rule: PixelRule) -> Sentence | None:
    """Say why the numbers of an image do not suit a rule of their depth."""
    if rule.depth == "dtype" and facts.depth == "deep" and facts.bits > 16:
        return Sentence.of("pixels too_deep", bits=facts.bits)

    is_beyond = facts.low is not None and facts.high is not None
    is_beyond = is_beyond and not 0 <= facts.low <= facts.high <= 1  # type: ignore[operator]
    if rule.depth == "dtype" and facts.depth == "float" and is_beyond:
        return Sentence.of("pixels floats_beyond")
    if facts.depth == "float" and facts.white_is_zero and rule.measured_on:
        return Sentence.of("pixels white_is_zero")
    return None


def _channels_to_pick(facts: FileFacts) -> int:
    """Count the channels that positions can name."""
    if facts.mode == "P":
        return 3  # a palette is read as its colors
    if facts.mode in ("L", "RGB"):
        return facts.colors  # a color that is marked as transparent makes no channel
    return facts.channels
