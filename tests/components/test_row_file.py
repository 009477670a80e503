"""Files of rows: what is written comes back, and no damage is taken for it."""

from __future__ import annotations

import pytest
import torch

from adray.cache_folder import CacheFolder, NotWholeError
from adray.components.row_file import RowFile, RowWriter, make_room


@pytest.fixture
def folder(tmp_path):
    return CacheFolder(tmp_path, ".rows", ".json", 10**6)


def written(folder, *batches):
    with RowWriter(folder, "group-key", sum(map(len, batches))) as writer:
        for batch in batches:
            writer.append(batch)
        writer.finish(note="as told")
    return RowFile(folder, "group-key")


def rows(file, *wanted):
    return file.read(torch.tensor(wanted).numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_come_back_by_position_with_their_type_and_their_layout(folder, dtype, layout):
    values = (torch.randn(7, 3, 4, 5) * 9).to(dtype).contiguous(memory_format=layout)
    file = written(
        folder,
        values[:4].contiguous(memory_format=layout),
        values[4:].contiguous(memory_format=layout),
    )
    found = rows(file, 6, 0, 5, 5)
    assert torch.equal(found, values[[6, 0, 5, 5]])
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=layout)
    assert file.about["note"] == "as told"


def test_every_single_flipped_bit_is_found(folder):
    file = written(folder, torch.randn(3, 8))
    path = folder.file("group-key")
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)  # the same file that is open
        with pytest.raises(NotWholeError):
            rows(RowFile(folder, "group-key"), 0, 1, 2)
    path.write_bytes(whole)
    assert rows(file, 0, 1, 2).shape == (3, 8)


def test_a_file_cut_short_or_zeroed_at_any_place_is_not_whole(folder):
    values = torch.randn(3, 8)
    file = written(folder, values)
    path = folder.file("group-key")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(NotWholeError):
            RowFile(folder, "group-key")
        path.write_bytes(whole[:size] + bytes(len(whole) - size))
        with pytest.raises(NotWholeError):
            rows(RowFile(folder, "group-key"), 0, 1, 2)
    path.write_bytes(whole[:40])
    with pytest.raises(NotWholeError, match="cut off"):
        rows(file, 2)  # opened before
    assert torch.equal(rows(file, 0), values[:1])


def test_a_damaged_description_is_not_whole(folder):
    written(folder, torch.randn(3, 8))
    side = folder.side("group-key")
    text = side.read_text()
    for damaged in ("", text[:-1], text.replace("[8]", "[4]"), "\0" * len(text)):
        side.write_text(damaged)
        with pytest.raises(NotWholeError):
            RowFile(folder, "group-key")


def test_a_writer_that_is_stopped_leaves_nothing(folder, tmp_path):
    with RowWriter(folder, "group-key", 5) as writer:
        writer.append(torch.randn(2, 8))
    assert list(tmp_path.iterdir()) == []


def test_files_above_the_limit_are_refused_and_others_make_room_for_those_below(folder):
    written(folder, torch.randn(3, 8))
    with (
        RowWriter(folder, "other-key", 10**6) as writer,
        pytest.raises(OSError, match="shared_feature_gb"),
    ):
        make_room([writer], [torch.randn(2, 8)])
    assert folder.file("group-key").is_file()
    with RowWriter(folder, "other-key", 31_249) as writer:
        make_room([writer], [torch.randn(2, 8)])
    assert not folder.file("group-key").is_file()
