"""A bundle is opened only where its members are exactly those of its manifest, and plain files."""

from __future__ import annotations

import copy
import hashlib
import json
import stat
import struct
import zipfile
from contextlib import suppress

import pytest

from adray.runtime.archive import FORMAT, open_archive
from adray.runtime.errors import BundleError

CONTENT = b"some bytes of a graph"


def facts(data):
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write(path, members, manifest=None, **more):
    """A zip of members, each its bytes or a pair of its ZipInfo and bytes."""
    files = {}
    for name, data in members.items():
        files[name] = facts(data if isinstance(data, bytes) else data[1])
    text = manifest if manifest is not None else {"format": FORMAT, "files": files} | more
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        if text != "none":
            file.writestr("manifest.json", text if isinstance(text, str) else json.dumps(text))
        for name, data in members.items():
            file.writestr(*((name, data) if isinstance(data, bytes) else data))
    return path


def refused(path):
    """The one sentence by which a file is refused."""
    with pytest.raises(BundleError) as said:
        open_archive(path)
    text = str(said.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_a_whole_bundle_is_opened_and_gives_its_members(tmp_path):
    path = write(tmp_path / "a.adray", {"model.onnx": CONTENT, "golden/0.png": b"png"})
    archive = open_archive(path)
    assert archive.read("model.onnx") == CONTENT
    assert archive.manifest["format"] == FORMAT
    with pytest.raises(BundleError, match="is not in the bundle"):
        archive.read("manifest.json")


def test_a_member_is_unpacked_as_it_was_or_refused_where_there_is_no_room(tmp_path):
    archive = open_archive(write(tmp_path / "a.adray", {"model.onnx": CONTENT}))
    assert archive.unpack("model.onnx", tmp_path).read_bytes() == CONTENT
    with pytest.raises(BundleError, match=r"takes 1 MB in .*set TMPDIR to a folder with room"):
        archive.unpack("model.onnx", tmp_path / "missing")

    write(tmp_path / "a.adray", {"model.onnx": CONTENT[::-1]})
    with pytest.raises(BundleError, match="was changed"):
        archive.unpack("model.onnx", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../up.png", "a/../../up", "C:/x", "a\\b", ".hidden", "a//b", "dir/", "a b"],
)
def test_a_path_that_could_lead_elsewhere_is_refused(tmp_path, name):
    assert "leads out" in refused(write(tmp_path / "a.adray", {name: CONTENT}))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(tmp_path, kind):
    info = zipfile.ZipInfo("model.onnx")
    info.external_attr = (kind | 0o777) << 16
    assert "is a link" in refused(
        write(tmp_path / "a.adray", {"model.onnx": (info, b"/etc/passwd")})
    )


def test_two_members_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "a.adray", {"model.onnx": CONTENT})
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("model.onnx", CONTENT)
    assert "two members" in refused(path)


def test_an_encrypted_or_oddly_packed_member_is_refused(tmp_path):
    path = write(tmp_path / "a.adray", {"model.onnx": CONTENT})
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 8] |= 1  # the flags in the list of members
    path.write_bytes(data)
    assert "is encrypted" in refused(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("manifest.json", json.dumps({"format": FORMAT, "files": {}}))
    assert "packed in an unknown way" in refused(path)


def test_a_bomb_is_refused_by_the_size_that_it_declares(tmp_path, monkeypatch):
    monkeypatch.setattr("adray.runtime.archive.MOST_BYTES", 100_000)
    path = write(tmp_path / "a.adray", {"model.onnx": bytes(200_000)})
    assert path.stat().st_size < 2000
    assert "are allowed" in refused(path)
    path = write(tmp_path / "b.adray", {f"golden/{i}.png": b"" for i in range(70)})
    assert "70" not in refused(path).replace(str(path), "").replace("71 members", "")


@pytest.mark.parametrize("declared", [10, 300_000])
def test_a_member_that_is_longer_or_shorter_than_it_declares_is_refused(tmp_path, declared):
    path = write(tmp_path / "a.adray", {"model.onnx": bytes(200_000)})
    real = (200_000).to_bytes(4, "little")
    data = path.read_bytes().replace(real, declared.to_bytes(4, "little"))
    path.write_bytes(data)
    refused(path)
    manifest = {"format": FORMAT, "files": {"model.onnx": facts(bytes(declared))}}
    path = write(tmp_path / "b.adray", {"model.onnx": bytes(200_000)}, manifest)
    path.write_bytes(path.read_bytes().replace(real, declared.to_bytes(4, "little")))
    refused(path)


def test_a_changed_member_is_refused_whether_or_not_its_checksum_was_changed_too(tmp_path):
    path = write(tmp_path / "a.adray", {"model.onnx": CONTENT})
    other = CONTENT.replace(b"some", b"evil")
    manifest = {"format": FORMAT, "files": {"model.onnx": facts(CONTENT)}}
    assert "was changed" in refused(write(path, {"model.onnx": other}, manifest))

    info = zipfile.ZipInfo("model.onnx")  # stored, so that its bytes can be found
    write(path, {"model.onnx": (info, CONTENT)})
    path.write_bytes(path.read_bytes().replace(CONTENT, other))
    assert "is damaged" in refused(path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no hash"),
        ({"model.onnx": facts(CONTENT), "more.png": facts(b"")}, "not in the bundle"),
        ({"model.onnx": {"bytes": len(CONTENT)}}, "lacks the size and sha256"),
        ({"model.onnx": facts(CONTENT) | {"sha256": "0" * 63}}, "lacks the size and sha256"),
        ({"model.onnx": facts(CONTENT) | {"bytes": True}}, "lacks the size and sha256"),
        ({"model.onnx": facts(CONTENT) | {"bytes": 7}}, "the manifest says 7"),
        (["model.onnx"], "lacks the size and sha256"),
    ],
)
def test_a_missing_or_wrong_entry_of_the_manifest_is_refused(tmp_path, files, said):
    manifest = {"format": FORMAT, "files": files}
    assert said in refused(write(tmp_path / "a.adray", {"model.onnx": CONTENT}, manifest))


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("{", "is no JSON"),
        ('{"format": NaN}', "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no object"),
        ('{"format": 99, "files": {}}', "has format 99, this program reads 1"),
        ('{"files": {}}', "has format None"),
    ],
)
def test_a_manifest_that_is_none_or_of_another_format_is_refused(tmp_path, manifest, said):
    assert said in refused(write(tmp_path / "a.adray", {}, manifest))


def test_what_is_no_zip_or_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "a.adray"
    assert "cannot be read" in refused(path)
    path.write_bytes(b"hello")
    assert "is no bundle" in refused(path)
    assert "has no manifest.json" in refused(write(path, {"model.onnx": CONTENT}, "none"))
    whole = write(tmp_path / "b.adray", {"model.onnx": CONTENT}).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in refused(path)
    path.write_bytes(b"#!/bin/sh\n" + whole)
    assert "is no bundle" in refused(path)


def test_whichever_byte_is_changed_the_same_members_come_or_the_bundle_is_refused(tmp_path):
    whole = write(tmp_path / "a.adray", {"model.onnx": CONTENT}).read_bytes()
    path = tmp_path / "b.adray"
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        with suppress(BundleError):
            assert open_archive(path).read("model.onnx") == CONTENT


# Zips that other programs read otherwise


def two_names(tmp_path, *names):
    return refused(write(tmp_path / "a.adray", dict.fromkeys(names, CONTENT)))


def test_members_that_are_one_file_on_some_machines_are_refused(tmp_path):
    assert "one file on some machines" in two_names(tmp_path, "model.onnx", "Model.ONNX")
    assert "one file on some machines" in two_names(tmp_path, "golden/0.png", "GOLDEN/0.png")
    assert "is a file and the folder" in two_names(tmp_path, "golden", "golden/0.png")
    assert "is a file and the folder" in two_names(tmp_path, "A/b/c", "a")


@pytest.mark.parametrize("name", ["nul", "golden/CON.png", "com1", "LPT9.txt", "aux.onnx"])
def test_the_name_of_a_device_is_refused(tmp_path, name):
    assert "name of a device" in refused(write(tmp_path / "a.adray", {name: CONTENT}))
    write(tmp_path / "b.adray", {"console.png": CONTENT})
    assert open_archive(tmp_path / "b.adray").read("console.png") == CONTENT


@pytest.mark.parametrize("name", ["model.onnx.", "golden./0.png", "a...", "name\x00.onnx", "모델"])
def test_a_name_that_some_machines_shorten_is_refused(tmp_path, name):
    """Windows drops dots at the end, and C ends a text at its first zero."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    assert "no plain name" in refused(write(tmp_path / "a.adray", {name: (info, CONTENT)}))


class Pipe:
    """A file that cannot be wound back, so that sizes follow the data."""

    def __init__(self, file):
        self.file = file
        self.write = file.write
        self.flush = file.flush


def test_sizes_behind_the_data_are_refused(tmp_path):
    path = tmp_path / "a.adray"
    manifest = {"format": FORMAT, "files": {"model.onnx": facts(CONTENT)}}
    with path.open("wb") as plain, zipfile.ZipFile(Pipe(plain), "w") as file:
        file.writestr("manifest.json", json.dumps(manifest))
        file.writestr("model.onnx", CONTENT)
    assert "read in several ways" in refused(path)


@pytest.mark.parametrize(
    "extra",
    [
        struct.pack("<HHQ", 0x0001, 8, 2**40),  # sizes of 64 bits beside those of 32
        struct.pack("<HHBI", 0x7075, 10, 1, 0) + b"x.png",  # another name in Unicode
        struct.pack("<HHBI", 0x5455, 5, 1, 0),  # a time
    ],
)
def test_further_fields_of_a_member_are_refused(tmp_path, extra):
    info = zipfile.ZipInfo("model.onnx")
    info.extra = extra
    said = refused(write(tmp_path / "a.adray", {"model.onnx": (info, CONTENT)}))
    assert "read in several ways" in said or "is damaged" in said


def test_a_size_of_64_bits_is_refused_before_anything_is_unpacked(tmp_path):
    path = tmp_path / "a.adray"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("manifest.json", json.dumps({"format": FORMAT, "files": {}}))
        info = zipfile.ZipInfo("model.onnx")
        with file.open(info, "w", force_zip64=True) as member:
            member.write(CONTENT)
        info.file_size = info.compress_size = 2**40  # as the list of members says it
    refused(path)


def test_what_lies_in_front_behind_or_over_the_members_is_refused(tmp_path):
    whole = write(tmp_path / "a.adray", {"model.onnx": CONTENT}).read_bytes()
    path = tmp_path / "b.adray"
    path.write_bytes(whole + whole)
    assert "not at the start" in refused(path)
    path.write_bytes(whole + b"PK\x05\x06" + bytes(18))
    refused(path)
    path.write_bytes(whole + b"#!/bin/sh")
    assert "behind its end" in refused(path)
    with zipfile.ZipFile(path, "w") as file:
        file.comment = b"see the manual"
        file.writestr("manifest.json", "{}")
    assert "has a comment" in refused(path)


def test_members_that_share_their_data_are_refused(tmp_path):
    """A bomb of many small members, all of which are the same bytes of the file."""
    path = tmp_path / "a.adray"
    files = {f"golden/{i}.png": facts(CONTENT) for i in range(2)}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("manifest.json", json.dumps({"format": FORMAT, "files": files}))
        file.writestr("golden/0.png", CONTENT)
        file.filelist.append(copy.copy(file.getinfo("golden/0.png")))
        file.filelist[-1].filename = "golden/1.png"
    assert "lies over another" in refused(path)


def test_a_member_that_unpacks_to_hundreds_of_times_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("adray.runtime.archive._LARGE_BYTES", 100_000)
    path = write(tmp_path / "a.adray", {"model.onnx": bytes(200_000)})
    assert "that unpack to 200000" in refused(path)


def test_a_key_that_is_twice_in_the_manifest_is_refused(tmp_path):
    text = json.dumps({"format": FORMAT, "files": {}})
    twice = text[:-1] + ', "files": {}}'
    assert "'files' is there twice" in refused(write(tmp_path / "a.adray", {}, twice))
