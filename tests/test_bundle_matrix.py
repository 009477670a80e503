"""Every configuration becomes a bundle that judges as its trial, or says why there is none.

`pytest -m slow tests/test_bundle_matrix.py`, before each release; with ADRAY_WRITE_MATRIX=1 it writes
`docs/bundle_matrix.csv`, of which chapter 9 has the table (`python docs/make_tables.py`).
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_subject, write_site

from adray.bundle import write_bundle
from adray.bundle_check import Wanted
from adray.errors import InputError
from adray.model_specs import MODEL_SPECS
from adray.settings import use_settings
from adray.train import train

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

NAMES = [spec.name for spec in MODEL_SPECS]
COLUMNS = ("configuration", "images", "other verdicts", "largest error", "reason")
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


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_becomes_a_bundle_or_says_why_not(
    name, site, own_settings, one_thread, tmp_path
):
    use_settings(site)
    tiny = tiny_subject(name)
    sizes = {"batch_size": 4, **tiny.train, "holdout": 0.3}
    made = train(tiny.dataset, tiny.category, name, train=sizes, model=tiny.model)
    try:
        about = write_bundle(made["folder"], tmp_path / "a.adray", Wanted())
    except InputError as error:
        row = (name, "", "", "", str(error))
    else:
        check = about["check"]
        row = (name, check["images"], check["other_verdicts"], f"{check['largest_error']:.1e}", "")
    assert row[-1] == "" or "no exact graph" in row[-1]
    assert (row[-1] == "") == (tmp_path / "a.adray").exists()
    if os.environ.get("ADRAY_WRITE_MATRIX"):
        write_row(row)


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
