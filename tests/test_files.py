from __future__ import annotations

import hashlib
import json

import pytest

from adray.files import atomic_path, canonical_hash, file_sha256, read_json, write_json


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_succeeds_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "b" / "a.txt"
    for text in ("one", "two"):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_json_comes_back_and_torn_or_missing_files_read_as_none(tmp_path):
    write_json(tmp_path / "a.json", {"이름": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"이름": [1, 2.5, None]}
    (tmp_path / "a.json").write_text('{"a": ')
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "none.json") is None
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "nan.json", {"a": float("nan")})
    assert not (tmp_path / "nan.json").exists()


def test_the_canonical_hash_does_not_depend_on_the_order_of_keys():
    value = {"b": 1, "a": {"d": 2, "c": [1, 2]}}
    assert canonical_hash(value) == canonical_hash(json.loads(json.dumps(value, sort_keys=True)))
    assert canonical_hash(value) != canonical_hash({**value, "b": 2})


def test_the_hash_of_a_file_is_that_of_its_bytes_and_follows_a_change(tmp_path):
    path = tmp_path / "a.bin"
    for data in (b"one", b"three"):
        path.write_bytes(data)
        assert file_sha256(path) == hashlib.sha256(data).hexdigest()


def test_the_hash_of_a_folder_follows_contents_and_names_but_not_hidden_files(tmp_path):
    hashes = {file_sha256(tmp_path)}
    for name in ("a", "b/c", "b/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("same")
        hashes.add(file_sha256(tmp_path))
    (tmp_path / "b" / "c").write_text("other")
    hashes.add(file_sha256(tmp_path))
    assert len(hashes) == 5
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").write_text("x")
    assert file_sha256(tmp_path) in hashes


def test_json_reads_back_names_that_are_not_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"path": "teil_\udce4.png"})
    assert read_json(tmp_path / "a.json") == {"path": "teil_\udce4.png"}
    assert len(canonical_hash(["teil_\udce4.png"])) == 64
