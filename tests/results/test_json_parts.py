"""Files whose parts are parsed once give what `json.loads` gives."""

from __future__ import annotations

import json

import numpy as np
import pytest

from adray.files import write_json
from adray.results.json_parts import PartReader


def drawn_value(rng: np.random.Generator, depth: int = 0) -> object:
    """Draw a JSON value, of few kinds so that parts come again."""
    leaves = [None, True, 1, 0.5, "", 'a "b": {\n  "c', "한글", [], {}, [1, "x"], ['\n    "y']]
    if depth == 3 or rng.random() < 0.4:
        return leaves[int(rng.integers(len(leaves)))]
    names = ["a", "b", 'quote": "', "back\\", "\n  ", ""]
    chosen = rng.choice(names, int(rng.integers(0, 5)), replace=False).tolist()
    return {name: drawn_value(rng, depth + 1) for name in chosen}


def test_what_is_written_is_read_as_by_json_whatever_was_read_before(tmp_path):
    rng = np.random.default_rng(0)
    reader = PartReader()
    for number in range(400):
        value = drawn_value(rng)
        write_json(tmp_path / "value.json", value)
        text = (tmp_path / "value.json").read_bytes()
        assert reader.parse(text) == value, number
        assert repr(reader.parse(text)) == repr(value), number
        for other in (json.dumps(value), json.dumps(value, indent=4), json.dumps(value, indent=1)):
            assert reader.parse(other.encode()) == value


def test_a_text_that_is_none_is_refused_wherever_it_is_cut_or_changed():
    value = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": {"f": None}}, "g": "h"}
    whole = json.dumps(value, indent=2).encode()
    reader = PartReader()
    assert reader.parse(whole) == value
    for place in range(len(whole)):
        for changed in (
            whole[:place],
            whole[:place] + whole[place + 1 :],
            whole[:place] + b',"{' + whole[place:],
        ):
            try:
                expected = json.loads(changed)
            except ValueError:
                with pytest.raises(json.JSONDecodeError):
                    reader.parse(changed)
            else:
                assert reader.parse(changed) == expected


def test_a_part_that_comes_again_is_one_value():
    reader = PartReader()
    texts = [json.dumps({"seed": seed, "train": {"size": [32, 32]}}, indent=2) for seed in (1, 2)]
    first, second = (reader.parse(text.encode()) for text in texts)
    assert (first["seed"], second["seed"]) == (1, 2)
    assert first["train"] is second["train"]
