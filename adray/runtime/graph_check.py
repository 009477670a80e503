"""Whether an ONNX graph stays within itself: no file beside it, no operators but ONNX's own.

The graph is looked at before onnxruntime loads it. Only the few fields that matter are read, from
the bytes of its protocol buffer, so that no further package is needed. The field numbers are those
of onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import numpy as np

from adray.runtime.errors import BundleError

_OWN_DOMAINS = (b"", b"ai.onnx")
_MOST_DEPTH = 20
"""Graphs inside of graphs, as loops have them."""
_MOST_NODES = 200_000

# Fields by message.
_MODEL_GRAPH = 7
_MODEL_OPSETS = 8
_MODEL_TRAINING = 20
_MODEL_FUNCTIONS = 25
_OPSET_DOMAIN = 1
_GRAPH_NODE = 1
_GRAPH_INITIALIZER = 5
_GRAPH_SPARSE = 15
_NODE_TYPE = 4
_NODE_ATTRIBUTE = 5
_NODE_DOMAIN = 7
_ATTRIBUTE_TENSORS = (5, 10)
_ATTRIBUTE_GRAPHS = (6, 11)
_ATTRIBUTE_SPARSE = (22, 23)
_ATTRIBUTE_FLOATS = (2, 7)
_TENSOR_TYPE = 2
_TENSOR_NUMBERS = (4, 9, 10)
"""Where a tensor keeps numbers: float32, bytes of any type, float64."""
_TENSOR_EXTERNAL = (13, 14)
_VARINT = 0
_FIXED_64 = 1
_BYTES = 2
_FIXED_32 = 5
_FIXED_SIZES = {_FIXED_64: 8, _FIXED_32: 4}

_FLOATS = {1: "<f4", 10: "<f2", 11: "<f8"}
"""Numbers of a tensor's types of which some are no numbers."""

Field = tuple[int, memoryview | int]
"""Number and value; bytes for messages and texts, a number for the others."""


def check_graph(name: str, data: bytes) -> None:
    """Refuse a graph that needs more than its own bytes and ONNX's own operators.

    Args:
        name: of the graph, for errors.
        data: a serialised ModelProto.

    Raises:
        BundleError: with what is in it, and for bytes that are no graph.
    """
    checker = _Checker(name)
    try:
        checker.check_model(memoryview(data))
    except (IndexError, TypeError) as error:
        raise BundleError(f"{name} is no ONNX graph; copy the bundle again") from error


class _Checker:
    """Walks through one graph."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes = 0

    def check_model(self, model: memoryview) -> None:
        """Check a ModelProto."""
        has_graph = False
        for number, value in _fields(model):
            if number in (_MODEL_FUNCTIONS, _MODEL_TRAINING):
                self._refuse("functions or a training of its own")
            if number == _MODEL_OPSETS:
                self._check_domain(_text(value, _OPSET_DOMAIN), "operators")
            if number == _MODEL_GRAPH:
                has_graph = True
                self._check_graph(_message(value), 0)
        if not has_graph:
            raise BundleError(f"{self._name} is no ONNX graph; copy the bundle again")

    def _check_graph(self, graph: memoryview, depth: int) -> None:
        """Check a GraphProto."""
        if depth > _MOST_DEPTH:
            self._refuse(f"more than {_MOST_DEPTH} graphs inside of each other")
        for number, value in _fields(graph):
            if number == _GRAPH_NODE:
                self._check_node(_message(value), depth)
            elif number == _GRAPH_INITIALIZER:
                self._check_tensor(_message(value))
            elif number == _GRAPH_SPARSE:
                self._refuse("sparse tensors")

    def _check_node(self, node: memoryview, depth: int) -> None:
        """Check a NodeProto."""
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            self._refuse(f"more than {_MOST_NODES} operators")

        # Branches and loops hold graphs of their own.
        self._check_domain(_text(node, _NODE_DOMAIN), f"the operator {_shown(node)}")
        for number, value in _fields(node):
            if number == _NODE_ATTRIBUTE:
                self._check_attribute(_message(value), depth)

    def _check_attribute(self, attribute: memoryview, depth: int) -> None:
        """Check an AttributeProto."""
        for number, value in _fields(attribute):
            if number in _ATTRIBUTE_GRAPHS:
                self._check_graph(_message(value), depth + 1)
            elif number in _ATTRIBUTE_TENSORS:
                self._check_tensor(_message(value))
            elif number in _ATTRIBUTE_SPARSE:
                self._refuse("sparse tensors")
            elif number in _ATTRIBUTE_FLOATS:
                self._check_numbers(_message(value), "<f4")

    def _check_tensor(self, tensor: memoryview) -> None:
        """Check a TensorProto, whose numbers may lie in another file, or be none."""
        kind: memoryview | int = 0
        for number, value in _fields(tensor):
            is_list = not isinstance(value, int)
            if number in _TENSOR_EXTERNAL and (is_list or value):
                self._refuse("numbers in another file")
            if number == _TENSOR_TYPE:
                kind = value
        for number, value in _fields(tensor):
            if number in _TENSOR_NUMBERS and kind in _FLOATS:
                self._check_numbers(_message(value), _FLOATS[int(kind)])

    def _check_numbers(self, data: memoryview, kind: str) -> None:
        """Refuse what is no number, since no score would ever reach such a threshold."""
        size = np.dtype(kind).itemsize
        if len(data) % size == 0 and np.isnan(np.frombuffer(data, kind)).any():
            self._refuse("a constant that is no number")

    def _check_domain(self, domain: bytes, what: str) -> None:
        """Refuse operators that are not ONNX's own."""
        if domain not in _OWN_DOMAINS:
            self._refuse(f"{what} of {domain.decode('utf-8', 'replace')!r}")

    def _refuse(self, what: str) -> NoReturn:
        """Refuse the graph.

        Raises:
            BundleError: always.
        """
        raise BundleError(
            f"{self._name} has {what}, but the graph of a bundle holds all of itself and only "
            "ONNX's own operators; make it by `adray bundle`"
        )


def _fields(message: memoryview) -> Iterator[Field]:
    """Give the fields of a message in their order.

    Raises:
        IndexError: for bytes that are no message.
    """
    place = 0
    while place < len(message):
        # A key is the number of the field and, in its last three bits, how its value is written.
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            number, place = _varint(message, place)
            yield key >> 3, number
            continue

        if kind == _BYTES:
            size, place = _varint(message, place)
        elif kind in _FIXED_SIZES:
            size = _FIXED_SIZES[kind]
        else:
            raise IndexError(f"wire type {kind}")
        if place + size > len(message):
            raise IndexError("a field ends behind its message")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Read a number of variable length, and say where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        # Seven bits a byte, the least first; the eighth says whether one more follows.
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise IndexError("a number of more than ten bytes")


def _message(value: memoryview | int) -> memoryview:
    """Take a field for a message.

    Raises:
        TypeError: for a number.
    """
    if isinstance(value, int):
        raise TypeError("a number in place of a message")
    return value


def _text(value: memoryview | int, number: int) -> bytes:
    """Give the last text of that field in a message, empty where there is none."""
    found = b""
    for field, content in _fields(_message(value)):
        if field == number:
            found = bytes(_message(content))
    return found


def _shown(node: memoryview) -> str:
    """Name the operator of a node."""
    return repr(_text(node, _NODE_TYPE).decode("utf-8", "replace"))
