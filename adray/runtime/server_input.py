"""What a request asks for, and the pictures that it brings, within limits."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

_MOST_LETTERS = 200
"""Of a picture's name."""
_MOST_KEY = 200
"""Letters of a request's name."""
_YES = ("", "1", "true", "yes")
_NO = ("0", "false", "no")
_CHANNELS = (1, 3)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    most_bytes: int = 32 * 2**20
    """Of its body."""
    most_pixels: int = 50_000_000
    """Of each picture, which are counted before it is unpacked."""
    most_images: int = 64
    """Of one request."""
    seconds: float = 30.0
    """From its first byte to its answer."""
    workers: int = 1
    """Images that are judged at once."""
    queue: int = 16
    """Requests that wait besides; one more is answered with 429."""


@dataclass(frozen=True)
class Picture:
    """A picture of a request."""

    name: str
    """As the client calls it, else its number."""
    data: bytes
    """Of the file, or raw numbers."""
    shape: tuple[int, int, int] | None = None
    """Height, width and channels of raw numbers; None for a file."""

    @property
    def sha256(self) -> str:
        """Give the hash of its bytes."""
        return hashlib.sha256(self.data).hexdigest()

    def source(self, dtype: str) -> bytes | np.ndarray:
        """Give what a model takes.

        Args:
            dtype: of raw numbers.

        Raises:
            HTTPException: for raw numbers that do not fill their shape.
        """
        if self.shape is None:
            return self.data
        kind = np.dtype(dtype).newbyteorder("<")
        height, width, channels = self.shape
        wanted = height * width * channels * kind.itemsize
        if len(self.data) != wanted:
            raise HTTPException(
                400,
                f"the body has {len(self.data)} bytes, but {height} x {width} x {channels} "
                f"numbers of {dtype} are {wanted}",
            )
        return np.frombuffer(self.data, kind).reshape(self.shape).astype(dtype, copy=False)


@dataclass(frozen=True)
class Asked:
    """What a client wants to know."""

    with_map: bool
    """The anomaly map, as a PNG in the answer."""
    with_regions: bool
    """Where the map stands out."""
    as_picture: bool
    """The map of the one image alone, as the body of the answer."""
    key: str
    """Name of the request, so that it is not counted twice when it is sent again; may be empty."""


def asked_of(request: Request) -> Asked:
    """Read what a client wants to know.

    Raises:
        HTTPException: for a value that is none.
    """
    key = request.headers.get("idempotency-key", "")
    if len(key) > _MOST_KEY:
        raise HTTPException(400, f"Idempotency-Key has {len(key)} letters, at most {_MOST_KEY}")
    as_picture = request.headers.get("accept", "").startswith("image/png")
    return Asked(
        with_map=as_picture or _switch(request, "map", default=False),
        with_regions=_switch(request, "regions", default=True),
        as_picture=as_picture,
        key=key,
    )


def _switch(request: Request, name: str, default: bool) -> bool:
    """Read a yes or no of the address.

    Raises:
        HTTPException: for neither.
    """
    value = request.query_params.get(name)
    if value is None:
        return default
    if value.lower() in _YES:
        return True
    if value.lower() in _NO:
        return False
    raise HTTPException(400, f"{name} is {value[:40]!r}; allowed: true, false")


async def pictures_of(request: Request, limits: Limits) -> list[Picture]:
    """Read the pictures of a request: a form of files, or one file as the body.

    Raises:
        HTTPException: for a body that is too large, empty, or no form.
    """
    _check_length(request.headers, limits)
    bounded = Request(request.scope, _bounded(request.receive, limits))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _of_form(bounded, limits)
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise HTTPException(
            415,
            f"Content-Type is {kind[:80]!r}; send image/png, image/jpeg, image/bmp, image/tiff, "
            "application/octet-stream or multipart/form-data",
        )

    data = await bounded.body()
    if not data:
        raise HTTPException(400, "the body is empty; send an image file")
    return [Picture(_plain_name(request.query_params.get("name", "1")), data, _shape_of(request))]


async def _of_form(request: Request, limits: Limits) -> list[Picture]:
    """Read the files of a form.

    Raises:
        HTTPException: for what is no form, or has no file or too many.
    """
    pictures = []
    async with request.form(max_files=limits.most_images, max_fields=100) as form:
        for number, (_, value) in enumerate(form.multi_items(), start=1):
            if isinstance(value, UploadFile):
                data = await value.read()
                pictures.append(Picture(_plain_name(value.filename or str(number)), data))
    if not pictures:
        raise HTTPException(400, "the form has no file; send images as files of the form")
    return pictures


def _check_length(headers: Mapping[str, str], limits: Limits) -> None:
    """Refuse a body that says of itself that it is too large, before it is read.

    Raises:
        HTTPException: with the limit.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.most_bytes:
        raise _too_large(limits)


def _bounded(receive: Receive, limits: Limits) -> Receive:
    """Give a body piece by piece, and no more of it than is allowed."""
    taken = 0

    async def receive_some() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limits.most_bytes:
            raise _too_large(limits)
        return message

    return receive_some


def _too_large(limits: Limits) -> HTTPException:
    """Make the refusal of a body that is too large."""
    return HTTPException(
        413, f"the body is larger than {limits.most_bytes} bytes; send fewer or smaller images"
    )


def _shape_of(request: Request) -> tuple[int, int, int] | None:
    """Read the shape of raw numbers, None where the body is a file.

    Raises:
        HTTPException: for a shape that is none.
    """
    text = request.query_params.get("shape")
    if text is None:
        return None
    sides = text.split(",")
    if len(sides) != 3 or not all(side.isdecimal() and len(side) < 7 for side in sides):
        raise HTTPException(400, f"shape is {text[:40]!r}; give height,width,channels")
    height, width, channels = map(int, sides)
    if not height or not width or channels not in _CHANNELS:
        raise HTTPException(400, f"shape is {text!r}; sides start at 1, channels are 1 or 3")
    return height, width, channels


def _plain_name(name: str) -> str:
    """Give a name that a log can hold."""
    printable = "".join(letter if letter.isprintable() else "_" for letter in name)
    return printable[:_MOST_LETTERS] or "1"
