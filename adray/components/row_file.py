"""Rows of numbers in a file, all of one shape: written in order, read by position, each with a sum of its own.

The sum of a row is that of its bytes as 64-bit words, modulo 2^64. It costs a thirtieth of reading the row, and finds
every single flipped bit and all that is cut off or zeroed; words that changed places it does not find. It is looked at
each time that a row is read, so a file may be torn at any time without harm.

Rows are read, not mapped: processes share the system's page cache all the same, and a file that is cut short in mid-run
is a short read then, where touching a map would end the process.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from adray.cache_folder import CacheFolder, NotWholeError, group_of
from adray.files import atomic_path

_WORD = 8
_SALT = 0x1E3779B97F4A7C15
"""Added to each sum, so that a file of zeros, as a power cut may leave it, is not whole."""


class RowWriter:
    """Writes a file of rows into a cache folder; the file gets its name at the end of the `with` block, if it is whole.

    Nothing is synced to the disk: what a power cut tears, the sums find.

    Args:
        folder: where the file goes; the caller holds the lock of the key's group.
        key: of the file.
        count: number of rows.

    Raises:
        OSError: where the disk does not take it, or the folder's limit does not.
    """

    def __init__(self, folder: CacheFolder, key: str, count: int) -> None:
        self.folder, self.key, self.count = folder, key, count
        self.about: dict[str, Any] = {}
        self._sums: list[Tensor] = []
        self._temporary = folder.temporary(key)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> RowWriter:
        return self

    def append(self, rows: Tensor) -> None:
        """Write the next rows, (n, ...), all calls with the same shape, layout and type."""
        to, _ = memory_layout(rows)
        stored = rows.permute(to).contiguous().cpu()
        if self._file is None:
            self._begin(stored, to)
        assert self._file is not None, "it has begun"
        data = stored.flatten(1).view(torch.uint8)  # (n, bytes of a row)
        self._sums.append(_sums(data))
        self._file.write(data.numpy().data)

    def _begin(self, stored: Tensor, axes: list[int]) -> None:
        row_bytes = stored[0].numel() * stored.element_size()
        if row_bytes % _WORD:
            raise OSError(
                f"rows of {row_bytes} bytes are not shared; they must be a multiple of {_WORD}"
            )
        self._file = self._temporary.open("wb")
        # reserves the blocks: a full disk is an error here, before the work is done
        os.posix_fallocate(self._file.fileno(), 0, self.count * (row_bytes + _WORD))
        shape = list(stored.shape[1:])
        dtype = str(stored.dtype).removeprefix("torch.")
        self.about = {"count": self.count, "shape": shape, "dtype": dtype, "axes": axes}

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
        with atomic_path(self.folder.side(self.key)) as sidecar:
            text = json.dumps({**self.about, **about})
            sidecar.write_text(f"{zlib.crc32(text.encode()):08x} {text}")
        self._temporary.replace(self.folder.file(self.key))

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def make_room(writers: Sequence[RowWriter], first: Sequence[Tensor]) -> None:
    """Make room for files of one group in one folder, before any of them begins.

    Args:
        writers: of the files.
        first: the first rows of each, (n, ...).

    Raises:
        OSError: where the folder's limit does not take them.
    """
    needed = sum(
        byte_size(rows) // len(rows) * writer.count
        for rows, writer in zip(first, writers, strict=True)
    )
    folder = writers[0].folder
    if needed > folder.limit:
        raise OSError(f"{needed / 1e9:.3g} GB exceed shared_feature_gb {folder.limit / 1e9:g}")
    folder.make_room(needed, group_of(writers[0].key))


def byte_size(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


class RowFile:
    """A file of rows, open for reading.

    Attributes:
        about: what `RowWriter.finish` was told.
        count: number of rows.
        nbytes: size of all rows.

    Raises:
        FileNotFoundError: where there is none.
        NotWholeError: for one that is damaged, as far as can be seen without reading it all.
    """

    def __init__(self, folder: CacheFolder, key: str) -> None:
        self.about = _read_about(folder.side(key))
        self.key, self.count = key, int(self.about["count"])
        self._shape, self._axes = list(self.about["shape"]), list(self.about["axes"])
        self._dtype: torch.dtype = getattr(torch, self.about["dtype"])
        self._stride = int(np.prod(self._shape)) * self._dtype.itemsize
        self.nbytes = self.count * self._stride
        self._file = folder.open(key)
        size = os.fstat(self._file.fileno()).st_size
        if size != self.count * (self._stride + _WORD):
            self._file.close()
            raise NotWholeError(f"{folder.file(key)} has {size} bytes")
        self._sums = torch.from_numpy(np.fromfile(self._file, np.int64, offset=self.nbytes))

    def read(self, rows: np.ndarray) -> Tensor:
        """The rows at the positions (n,), (n, ...) on the host, in the layout in memory that they were written in.

        Raises:
            NotWholeError: where one of them is damaged.
        """
        data = torch.empty(len(rows), self._stride, dtype=torch.uint8)
        for place, row in zip(data.numpy(), rows.tolist(), strict=True):
            if os.preadv(self._file.fileno(), [place], row * self._stride) != self._stride:
                raise NotWholeError(f"row {row} of {self._file.name} is cut off")
        if not torch.equal(_sums(data), self._sums[rows]):
            raise NotWholeError(f"a row of {self._file.name} has a wrong sum")
        back = np.argsort(self._axes).tolist()
        return data.view(self._dtype).view(len(rows), *self._shape).permute(back)


def memory_layout(tensor: Tensor) -> tuple[list[int], list[int]]:
    """The order of axes in which a tensor lies in memory, and the order that undoes it.

    Given back otherwise than they came, channels_last maps cost a student a tenth of its step.
    """
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return [0, 2, 3, 1], [0, 3, 1, 2]
    plain = list(range(tensor.ndim))
    return plain, plain


def _sums(data: Tensor) -> Tensor:
    """Sums of (n, bytes) as 64-bit words modulo 2^64, (n,)."""
    return data.view(torch.int64).sum(1) + _SALT


def _read_about(path: Path) -> dict[str, Any]:
    """What `RowWriter.finish` wrote, behind its CRC-32."""
    content = path.read_bytes()
    seal, _, text = content.partition(b" ")
    if seal != f"{zlib.crc32(text):08x}".encode():
        raise NotWholeError(f"{path} is damaged")
    return dict(json.loads(text))
