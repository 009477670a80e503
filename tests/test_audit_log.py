"""The log of the line is held against the bundle's promise as fresh images are."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from adray.__main__ import main
from adray.audit import audit
from adray.files import file_sha256
from adray.thresholds import make_promise, percent

pytest.importorskip("onnx")
from runtime.tiny_bundle import NORMALS, write_tiny


@pytest.fixture
def promise():
    return make_promise(np.array(NORMALS), 0.1)


@pytest.fixture
def bundle(tmp_path, promise):
    path = tmp_path / "part.adray"
    write_tiny(path, promise=asdict(promise))
    return path


def write_log(path, scores, model, **more):
    with path.open("w", encoding="utf-8") as file:
        for number, score in enumerate(scores):
            row = {"time": f"2026-01-01T00:00:{number:05.1f}", "image": f"{number}.png"}
            row |= {"verdict": "normal", "pred_score": score, "model": model, **more}
            file.write(json.dumps(row) + "\n")


def test_scores_of_the_log_are_judged_as_fresh_images_are(bundle, promise, tmp_path, capsys):
    model = file_sha256(bundle)
    good = np.random.default_rng(0).permutation(NORMALS)[:60].tolist()
    write_log(tmp_path / "results-1.jsonl", good, model)
    found = audit(np.array(good), np.array(NORMALS), promise)
    code = main(["audit", str(bundle), str(tmp_path / "results-1.jsonl")])
    assert code == int(found.is_broken or found.has_drifted) == 0
    said = capsys.readouterr().out
    assert f"{found.alarms} of 60 rang; up to {percent(promise.promised)} was promised" in said


def test_rows_of_others_and_without_a_score_and_known_defects_do_not_count(
    bundle, tmp_path, capsys
):
    model = file_sha256(bundle)
    (tmp_path / "log").mkdir()
    write_log(tmp_path / "log" / "results-1.jsonl", list(NORMALS[:50]), model)
    write_log(tmp_path / "log" / "results-2.jsonl", [500.0] * 50, "0" * 64)
    write_log(tmp_path / "log" / "results-3.jsonl", [None] * 7, model, verdict="unreadable")
    with (tmp_path / "log" / "results-1.jsonl").open("a", encoding="utf-8") as file:
        row = {"time": "2026-01-02", "image": "불량.png", "verdict": "anomalous"}
        file.write(json.dumps(row | {"pred_score": 900.0, "model": model}) + "\n{torn")
    (tmp_path / "defects.txt").write_text("불량.png\n", encoding="utf-8")
    main(["audit", str(bundle), str(tmp_path / "log"), "--defects", str(tmp_path / "defects.txt")])
    said = capsys.readouterr().out
    assert "50 rows of the log are of another bundle" in said
    assert "7 images of the log were unreadable" in said
    assert "1 images are known to be defective" in said
    assert "0 of 50 rang" in said


def test_a_broken_promise_ends_with_code_1(bundle, tmp_path, capsys):
    write_log(tmp_path / "a.jsonl", [500.0] * 40, file_sha256(bundle))
    assert main(["audit", str(bundle), str(tmp_path / "a.jsonl")]) == 1
    assert "broken: 40 of 40 rang" in capsys.readouterr().out


def test_what_is_no_log_and_promises_nothing_is_refused(bundle, tmp_path, capsys):
    assert main(["audit", str(bundle), str(tmp_path / "none.jsonl")]) == 2
    assert "is no log" in capsys.readouterr().err
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\n{}\n[1]\n")
    assert main(["audit", str(bundle), str(tmp_path / "a.jsonl")]) == 2
    assert "0 fresh normals say nothing" in capsys.readouterr().err
    for promise, said in ((None, "promises nothing"), ({"rate": 1}, "no proper promise")):
        write_tiny(tmp_path / "other.adray", promise=promise, calibration={"scores": []})
        assert main(["audit", str(tmp_path / "other.adray"), str(tmp_path / "a.jsonl")]) == 2
        assert said in capsys.readouterr().err
