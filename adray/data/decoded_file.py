"""The Arrow file of decoded images: how it is written, sealed with a checksum, and mapped.

One record batch with the columns image, mask (null where there is none, left out if all are),
outside, path, and where a geometry may hide a part of an image height and width. A sidecar holds
the file's CRC-32 and size.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from adray.cache_folder import CacheFolder, NotWholeError, SharedWork
from adray.data.base import Sample
from adray.data.geometry import Geometry
from adray.files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2
"""Raised by hand when decoded pixels or the layout of the file change."""


@dataclass(frozen=True)
class Decoded:
    """Decoded images of one category, read-only."""

    images: np.ndarray
    """(N, 3, H, W) uint8, a view of the map."""
    masks: np.ndarray | None
    """(N, H, W) uint8 with 1 on defects, zero where there is no mask; None where no image has
    one."""
    outside: np.ndarray
    """(N,) float32, part of each file's pixels that lay outside of the rule's range."""
    key: str
    """Hash of all that decides the pixels."""
    file: IO[bytes] | None = None
    """The cache file with its shared lock, open as long as this object exists; None if decoded in
    memory."""
    work: SharedWork | None = None
    """What decoding cost, and who did it; None where nothing was shared."""
    sizes: np.ndarray | None = None
    """(N, 2) int32, height and width of the images themselves; None where nobody needs them."""

    @property
    def nbytes(self) -> int:
        """Count the bytes of all pixels."""
        return self.images.nbytes + (0 if self.masks is None else self.masks.nbytes)


def read_decoded(folder: CacheFolder, key: str) -> Decoded:
    """Map a cache file and check its sum.

    Raises:
        FileNotFoundError: where there is none.
        NotWholeError: for a file that differs from what was written.
    """
    file = folder.open(key)
    try:
        content = _map_whole(file, folder.side(key))
        return _views(content, key, file)
    except BaseException:
        file.close()
        raise


def write_decoded(path: Path, sidecar: Path, batch: pa.RecordBatch) -> None:
    """Write the Arrow file and its sum."""
    import pyarrow as pa  # a plan that decodes nothing does not pay for it

    # The file gets its name last, once it is synced and its sum is there.
    with atomic_path(path) as temporary:
        with pa.ipc.new_file(str(temporary), batch.schema) as writer:
            writer.write_batch(batch)

        with (
            temporary.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            seal = _seal(content)
        with atomic_path(sidecar) as sums:
            sums.write_text(seal)


def record_batch(
    decoded: Decoded, samples: Sequence[Sample], geometry: Geometry, seconds: float
) -> pa.RecordBatch:
    """Put one record batch around the arrays, without a copy of them.

    Args:
        decoded: the arrays.
        samples: the images' samples, all of one category.
        geometry: the images' geometry.
        seconds: what decoding took.
    """
    import pyarrow as pa

    columns = {"image": _fixed_size(decoded.images, None)}
    if decoded.masks is not None:
        # Arrow keeps a bit for each value that is there, the lowest first.
        has_mask = np.array([bool(sample.mask_paths) for sample in samples])
        valid = pa.py_buffer(np.packbits(has_mask, bitorder="little"))
        columns["mask"] = _fixed_size(decoded.masks, valid)
    columns["outside"] = pa.array(decoded.outside)
    columns["path"] = pa.array([os.fsencode(sample.path) for sample in samples], pa.binary())
    if geometry.hides and decoded.sizes is not None:
        columns["height"] = pa.array(decoded.sizes[:, 0])
        columns["width"] = pa.array(decoded.sizes[:, 1])

    about = geometry.stored() | {
        "format": FORMAT,
        "dataset": samples[0].dataset,
        "category": samples[0].category,
        "side": geometry.frame[0],
        "seconds": f"{seconds:.3f}",
    }
    metadata = {name: str(value) for name, value in about.items()}
    return pa.RecordBatch.from_arrays(
        list(columns.values()), names=list(columns), metadata=metadata
    )


def _fixed_size(rows: np.ndarray, valid: pa.Buffer | None) -> pa.Array:
    """See an array's rows as values of a column, of which those in the bits of `valid` count."""
    import pyarrow as pa

    kind = pa.binary(rows[0].size)
    data = pa.py_buffer(rows.reshape(-1))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [valid, data])


def _map_whole(file: IO[bytes], sidecar: Path) -> mmap.mmap:
    """Map a file of which nothing is missing or changed.

    Raises:
        NotWholeError: for another size or checksum than the sidecar says.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        expected = sidecar.read_text()
    except (OSError, UnicodeDecodeError):
        expected = ""
    # The size first: an empty file cannot be mapped, and a torn one need not be summed.
    if size == 0 or expected.split()[-1:] != [str(size)]:
        raise NotWholeError(f"{size} bytes, recorded are {expected or 'none'}")

    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if _seal(content) != expected:
        raise NotWholeError("its checksum is wrong")
    return content


def _seal(content: mmap.mmap) -> str:
    """Write the CRC-32 and the size of a file."""
    return f"{zlib.crc32(content):08x} {len(content)}"


def _views(content: mmap.mmap, key: str, file: IO[bytes]) -> Decoded:
    """See the columns as arrays without a copy."""
    import pyarrow as pa

    batch = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(content))).get_batch(0)
    metadata = batch.schema.metadata
    height = int(metadata[b"side"])  # the width follows from the length of a row
    # Files of older versions do not say what they cost.
    seconds = float(metadata[b"seconds"]) if b"seconds" in metadata else None

    images = _column(batch, "image").reshape(batch.num_rows, 3, height, -1)  # (N, 3, H, W)
    masks = None
    if "mask" in batch.schema.names:
        masks = _column(batch, "mask").reshape(batch.num_rows, height, -1)  # (N, H, W)
    outside = batch.column("outside").to_numpy()
    sizes = None
    if "height" in batch.schema.names:
        both = [batch.column(name).to_numpy() for name in ("height", "width")]
        sizes = np.stack(both, axis=1)
    work = SharedWork("decoding", key, seconds, seconds, built=False)
    return Decoded(images, masks, outside, key, file, work, sizes)


def _column(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """See all bytes of a column as one flat array."""
    column = batch.column(name)
    return np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * column.type.byte_width)
