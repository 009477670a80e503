"""Every configuration becomes a bundle that judges as its trial, or says why there is none.

`pytest -m slow tests/test_bundle_matrix.py`, before each release; with ADRAY_WRITE_MATRIX=1 it writes
`docs/bundle_matrix.csv`, of which chapter 9 has the table (`python docs/make_tables.py`). Each row is
written when it is known, so that what was cut off goes on with `-k` or the names of what is missing.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_subject, write_site

from adray import bundle
from adray.bundle import write_bundle
from adray.bundle_check import Wanted
from adray.errors import InputError
from adray.export_formats import PRECISIONS
from adray.model_specs import MODEL_SPECS
from adray.settings import use_settings
from adray.train import train

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NAMES = [spec.name for spec in MODEL_SPECS]
COLUMNS = (
    "configuration",
    "images",
    "other verdicts",
    "largest error",
    "openvino",
    "float16",
    "int8",
    "reason",
)
LEAST = 40
"""Configurations that become a bundle at least."""
TABLE = Path(__file__).parents[1] / "docs" / "bundle_matrix.csv"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Pictures of another size than the models', so that each is resized."""
    root = tmp_path_factory.mktemp("bundles")
    settings = write_site(root)
    for path in (root / "datasets").rglob("*.*"):
        if path.suffix.lower() in (".png", ".jpg"):
            with Image.open(path) as image:
                image.resize((97, 118), Image.Resampling.NEAREST).save(path)
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_becomes_a_bundle_or_says_why_not(
    name, site, own_settings, one_thread, tmp_path, monkeypatch
):
    use_settings(site)
    tiny = tiny_subject(name)
    sizes = {"batch_size": 4, **tiny.train, "holdout": 0.3}
    made = train(tiny.dataset, tiny.category, name, train=sizes, model=tiny.model)
    export_once(monkeypatch)
    try:
        about = write_bundle(made["folder"], tmp_path / "a.adray", Wanted())
    except InputError as error:
        row = (name, "", "", "", "", "", "", str(error))
    else:
        check = about["check"]
        row = (
            name,
            check["images"],
            check["other_verdicts"],
            f"{check['largest_error']:.1e}",
            by_openvino(check["backends"]),
            *[in_precision(made["folder"], tmp_path, lower) for lower in PRECISIONS[1:]],
            "",
        )
    assert row[-1] == "" or "no exact graph" in row[-1]
    assert (row[-1] == "") == (tmp_path / "a.adray").exists()
    if os.environ.get("ADRAY_WRITE_MATRIX"):
        write_row(row)


def export_once(monkeypatch):
    """Make the network's graph once for all precisions, which takes most of the time."""
    known = {}
    write = bundle._write_network

    def written(trainer, images, path):
        if "graph" not in known:
            known["graph"] = write(trainer, images, path)
        return known["graph"]

    monkeypatch.setattr("adray.bundle._write_network", written)


REFUSALS = {
    "another verdict": "other verdicts",
    "scores differ": "other scores",
    "AUROC is": "another AUROC",
    "are no numbers": "no numbers",
    "has no form in": "no graph",
    "cannot run the graph": "cannot run",
    "could not run the graph": "cannot run",
}
"""What a refusal says to how the table says it."""


def shortly(reason):
    """What a refusal says, as the table says it."""
    return next(short for said, short in REFUSALS.items() if said in reason)


def by_openvino(backends):
    """What came of OpenVINO, empty where it is not installed."""
    found = backends.get("openvino")
    if found is None:
        return ""
    return shortly(found["reason"]) if "reason" in found else "same verdicts"


def in_precision(trial, folder, precision):
    """What came of a lower precision."""
    try:
        write_bundle(trial, folder / f"{precision}.adray", Wanted(precision=precision))
    except InputError as error:
        return shortly(str(error))
    return "kept"


def test_the_table_has_rows_of_known_configurations_and_most_become_a_bundle():
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    names = [row["configuration"] for row in rows]
    assert names == [name for name in NAMES if name in names]
    judged = [row for row in rows if not row["reason"]]
    assert len(judged) >= LEAST
    assert all(row["other verdicts"] == "0" for row in judged)


def write_row(row):
    """Write the row of a configuration into the table, in the order of the registry."""
    rows = {}
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            rows = {known[0]: known for known in csv.reader(file)}
    rows[row[0]] = row
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows[known] for known in NAMES if known in rows)
