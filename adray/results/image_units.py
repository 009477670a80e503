"""Which images stay together where some choose and others judge.

Images of one group or part, and copies of one picture, have scores alike: one of them tells what the
others are. So they are on the same side of every split of a test set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

_SHARED = ("group", "part", "picture")
"""Columns of `adray.results.trial_files.ScoreRow` that tell what images have in common."""


def image_units(scores: pd.DataFrame) -> NDArray[np.int64]:
    """Number images so that those that stay together have the same number.

    Two images do that are of one group, of one part, or show the same picture, or that some others
    connect so. A defect drawn on an image stays with it.

    Args:
        scores: rows of `adray.results.trial_files.read_scores`, of one trial or several.

    Returns:
        (N,) whole numbers from 0.
    """
    import pandas as pd
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Groups and parts of different categories may be called the same.
    place = scores["dataset"] + "/" + scores["category"] + "/"
    is_drawn = scores["split"] == "synthetic"
    without_number = scores["path"].str.rpartition("#")[0]
    keys = {"image": scores["path"].where(~is_drawn, without_number)}
    for name in _SHARED:
        keys[name] = (place + scores[name]).where(scores[name] != "")

    # A graph of the images and of what they have in common, N + M nodes.
    nodes = len(scores)
    rows = []
    columns = []
    for values in keys.values():
        codes, names = pd.factorize(values)
        has_one = np.flatnonzero(codes >= 0)
        rows.append(has_one)
        columns.append(codes[has_one] + nodes)
        nodes += len(names)

    ends = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(nodes, nodes))
    unit = connected_components(graph, directed=False)[1]
    return np.asarray(unit[: len(scores)], dtype=np.int64)
