from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from adray.results.trial_files import SCORES_FILE, ScoreRow, read_scores, write_scores

ROW = ScoreRow("parts", "disc", "test", "/x/0.png", 1, "dent", 0.5)


def stored(folder) -> pd.DataFrame:
    return pd.read_parquet(folder / SCORES_FILE)


def test_data_without_groups_have_the_columns_of_before(tmp_path):
    write_scores(tmp_path, [ROW])
    assert list(stored(tmp_path)) == [
        "dataset", "category", "split", "path", "label", "defect_type", "pred_score",
    ]  # fmt: skip


def test_group_part_and_the_list_s_columns_are_kept(tmp_path):
    first = replace(ROW, group="lot 1", part="p", columns=(("light", "left"), ("path", "own")))
    write_scores(tmp_path, [first, ROW])
    table = stored(tmp_path)
    assert table.loc[0, ["group", "part", "light", "list_path", "path"]].tolist() == [
        "lot 1", "p", "left", "own", "/x/0.png",
    ]  # fmt: skip
    assert pd.isna(table.loc[1, "light"])


@pytest.mark.parametrize("name", ["/x/teil_\udce4.png", "/x/불량.png"])
def test_names_of_any_bytes_can_be_written(tmp_path, name):
    write_scores(tmp_path, [replace(ROW, path=name, group=name)])
    table = read_scores(tmp_path)
    assert table["path"][0] == name.replace("\udce4", "\\xe4")
