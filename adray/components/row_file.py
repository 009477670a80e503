"""Rows of numbers in a file, all of one shape, written in order and read by position.

Each row has a sum of its own: that of its bytes as 64-bit words, modulo 2^64. It costs a thirtieth
of reading the row, and finds every single flipped bit and all that is cut off or zeroed; words that
changed places it does not find. It is looked at each time that a row is read, so a file may be torn
at any time without harm.

Rows are read, not mapped: processes share the system's page cache all the same, and a file that is
cut short in mid-run is a short read then, where touching a map would end the process.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from adray.cache_folder import CacheFolder, NotWholeError, group_of
from adray.files import atomic_path, move_over
from adray.types import Json

_WORD = 8
"""Bytes of the words that are summed, and of a sum."""
_SALT = 0x1E3779B97F4A7C15
"""Added to each sum, so that a file of zeros, as a power cut may leave it, is not whole."""


class RowWriter:
    """Writes a file of rows into a cache folder.

    The file gets its name at the end of the `with` block, if it is whole. Nothing is synced to the
    disk: what a power cut tears, the sums find.

    Args:
        folder: where the file goes; the caller holds the lock of the key's group.
        key: of the file.
        count: number of rows.

    Raises:
        OSError: where the disk does not take it, or the folder's limit does not.
    """

    def __init__(self, folder: CacheFolder, key: str, count: int) -> None:
        self.folder = folder
        self.key = key
        self.count = count
        self._layout: Json = {}
        self._sums: list[Tensor] = []
        self._temporary = folder.temporary(key)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> RowWriter:
        return self

    def append(self, rows: Tensor) -> None:
        """Write the next rows, (n, ...), all calls with the same shape, layout and type."""
        # Rows are written as they lie in memory, and come back so.
        axes = memory_layout(rows)
        stored = rows.permute(axes).contiguous().cpu()
        if self._file is None:
            self._file = self._temporary.open("wb")
            self._reserve(self._file, byte_size(stored[0]))
            self._layout = {
                "count": self.count,
                "shape": list(stored.shape[1:]),
                "dtype": str(stored.dtype).removeprefix("torch."),
                "axes": axes,
            }

        data = stored.flatten(1).view(torch.uint8)  # (n, bytes of a row)
        self._sums.append(_sums(data))
        self._file.write(data.numpy().data)

    def _reserve(self, file: IO[bytes], row_bytes: int) -> None:
        """Reserve the blocks of all rows and sums."""
        if row_bytes % _WORD:
            raise OSError(
                f"rows of {row_bytes} bytes are not shared; they must be a multiple of {_WORD}"
            )
        # A full disk is an error here, before the work is done.
        os.posix_fallocate(file.fileno(), 0, self.count * (row_bytes + _WORD))

    def finish(self, **about: Any) -> None:
        """Give the file its name, after all rows.

        Args:
            **about: further plain values to be kept beside it.
        """
        assert self._file is not None, "rows were appended"
        sums = torch.cat(self._sums)
        assert len(sums) == self.count, "all rows were appended"
        self._file.write(sums.numpy().tobytes())
        self._file.close()

        # The description goes first, so that a file with its name always has one.
        with atomic_path(self.folder.side(self.key)) as sidecar:
            text = json.dumps({**self._layout, **about})
            sidecar.write_text(f"{zlib.crc32(text.encode()):08x} {text}")
        move_over(self._temporary, self.folder.file(self.key))

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def make_room(writers: Sequence[RowWriter], first: Sequence[Tensor]) -> None:
    """Make room for files of one group in one folder, before any of them is started.

    Args:
        writers: of the files.
        first: the first rows of each, (n, ...).

    Raises:
        OSError: where the folder's limit does not take them.
    """
    needed = 0
    for rows, writer in zip(first, writers, strict=True):
        needed += byte_size(rows) // len(rows) * writer.count

    folder = writers[0].folder
    if needed > folder.limit:
        raise OSError(f"{needed / 1e9:.3g} GB exceed shared_feature_gb {folder.limit / 1e9:g}")
    folder.make_room(needed, group_of(writers[0].key))


def byte_size(tensor: Tensor) -> int:
    """Count the bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


class RowFile:
    """A file of rows, open for reading.

    Args:
        folder: where it lies.
        key: of the file.

    Raises:
        FileNotFoundError: where there is none.
        NotWholeError: for one that is damaged, as far as can be seen without reading it all.
    """

    about: Mapping[str, Any]
    """What `RowWriter.finish` was given to keep, and the layout of the rows."""
    count: int
    """Number of rows."""
    key: str
    """Of the file."""

    def __init__(self, folder: CacheFolder, key: str) -> None:
        self.about = _read_about(folder.side(key))
        self.key = key
        self.count = int(self.about["count"])
        self._shape = list(self.about["shape"])
        self._axes = list(self.about["axes"])
        self._dtype: torch.dtype = getattr(torch, self.about["dtype"])
        self._row_bytes = int(np.prod(self._shape)) * self._dtype.itemsize

        # Most of what can be torn shows by the size, without reading a row.
        self._file = folder.open(key)
        size = os.fstat(self._file.fileno()).st_size
        if size != self.count * (self._row_bytes + _WORD):
            self._file.close()
            raise NotWholeError(f"{folder.file(key)} has {size} bytes")
        sums = np.fromfile(self._file, np.int64, offset=self.count * self._row_bytes)
        self._sums = torch.from_numpy(sums)

    def read(self, rows: np.ndarray) -> Tensor:
        """Read the rows at the positions (n,).

        Returns:
            (n, ...) on the host, in the layout in memory that they were written in.

        Raises:
            NotWholeError: where one of them is damaged.
        """
        data = torch.empty(len(rows), self._row_bytes, dtype=torch.uint8)
        for place, row in zip(data.numpy(), rows.tolist(), strict=True):
            read = os.preadv(self._file.fileno(), [place], row * self._row_bytes)
            if read != self._row_bytes:
                raise NotWholeError(f"row {row} of {self._file.name} is cut off")
        if not torch.equal(_sums(data), self._sums[rows]):
            raise NotWholeError(f"a row of {self._file.name} has a wrong sum")

        stored = data.view(self._dtype).view(len(rows), *self._shape)
        return stored.permute(inverse_order(self._axes))


def memory_layout(tensor: Tensor) -> list[int]:
    """Find the order of axes in which a tensor lies in memory.

    Given back otherwise than they came, channels_last maps cost a student a tenth of its step.
    """
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return [0, 2, 3, 1]
    return list(range(tensor.ndim))


def inverse_order(axes: Sequence[int]) -> list[int]:
    """Give the order of axes that undoes another one."""
    return np.argsort(axes).tolist()


def _sums(data: Tensor) -> Tensor:
    """Sum (n, bytes) as 64-bit words modulo 2^64, (n,)."""
    return data.view(torch.int64).sum(1) + _SALT


def _read_about(path: Path) -> Json:
    """Read the description that `RowWriter.finish` wrote behind its CRC-32."""
    content = path.read_bytes()
    seal, _, text = content.partition(b" ")
    if seal != f"{zlib.crc32(text):08x}".encode():
        raise NotWholeError(f"{path} is damaged")
    return dict(json.loads(text))
