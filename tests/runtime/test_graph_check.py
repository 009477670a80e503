"""A graph with another file, foreign operators or functions of its own is refused before it is loaded."""

from __future__ import annotations

from contextlib import suppress

import pytest

onnx = pytest.importorskip("onnx")

import numpy as np  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from adray.runtime.errors import BundleError  # noqa: E402
from adray.runtime.graph_check import check_graph  # noqa: E402

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])


def model(nodes, initializers=(), opsets=(("", 18),), functions=()):
    graph = helper.make_graph(nodes, "g", [X], [Y], initializers)
    imports = [helper.make_opsetid(*opset) for opset in opsets]
    return helper.make_model(graph, opset_imports=imports, functions=functions)


def external_tensor():
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key = "location"
    entry.value = "/etc/passwd"
    return tensor


def inside_a_branch(node):
    branch = helper.make_graph([node], "b", [], [Y])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "o", [], [Y])
    truth = helper.make_node(
        "Constant", [], ["t"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True])
    )
    choice = helper.make_node("If", ["t"], ["y"], then_branch=branch, else_branch=other)
    return model([truth, choice])


IDENTITY = helper.make_node("Identity", ["x"], ["y"])
FOREIGN = helper.make_node("Evil", ["x"], ["y"], domain="com.evil")
IN_ATTRIBUTE = helper.make_node("Constant", [], ["y"], value=external_tensor())


def own_function():
    opset = [helper.make_opsetid("", 18)]
    return helper.make_function(
        "mine", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opset
    )


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (model([IDENTITY], [external_tensor()]), "numbers in another file"),
        (model([IN_ATTRIBUTE]), "numbers in another file"),
        (inside_a_branch(IN_ATTRIBUTE), "numbers in another file"),
        (model([IDENTITY], opsets=(("", 18), ("com.evil", 1))), "operators of 'com.evil'"),
        (model([FOREIGN]), "the operator 'Evil' of 'com.evil'"),
        (inside_a_branch(FOREIGN), "the operator 'Evil' of 'com.evil'"),
        (model([IDENTITY], functions=[own_function()]), "functions"),
    ],
)
def test_what_a_graph_must_not_have_is_named(graph, said):
    with pytest.raises(BundleError, match=said):
        check_graph("model.onnx", graph.SerializeToString())


def test_an_ordinary_graph_with_branches_and_weights_passes():
    check_graph("model.onnx", inside_a_branch(IDENTITY).SerializeToString())
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    check_graph("model.onnx", model([IDENTITY], [weights]).SerializeToString())


def test_sparse_tensors_and_too_deep_graphs_are_refused():
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    sparse = model([IDENTITY])
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))
    with pytest.raises(BundleError, match="sparse tensors"):
        check_graph("model.onnx", sparse.SerializeToString())

    node = IDENTITY
    for _ in range(30):
        body = helper.make_graph([node], "b", [], [Y])
        node = helper.make_node("Any", ["x"], ["y"], body=body)
    with pytest.raises(BundleError, match="graphs inside of each other"):
        check_graph("model.onnx", model([node]).SerializeToString())


def test_bytes_that_are_no_graph_give_one_sentence():
    whole = inside_a_branch(IDENTITY).SerializeToString()
    for data in (b"", b"\xff" * 40, b"hello", whole[:-3]):
        with pytest.raises(BundleError, match="is no ONNX graph"):
            check_graph("model.onnx", data)
    for place in range(len(whole)):  # whatever byte is changed, no other error comes
        changed = whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        with suppress(BundleError):
            check_graph("model.onnx", changed)


NAN = float("nan")


@pytest.mark.parametrize(
    "tensor",
    [
        helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, NAN]),
        helper.make_tensor("w", TensorProto.DOUBLE, [2], [1.0, NAN]),
        numpy_helper.from_array(np.array([1.0, NAN], np.float32), "w"),
        numpy_helper.from_array(np.array([1.0, NAN], np.float16), "w"),
    ],
)
def test_a_constant_that_is_no_number_is_refused_wherever_it_stands(tensor):
    """A threshold that is none would let every part pass."""
    for graph in (
        model([IDENTITY], [tensor]),
        inside_a_branch(helper.make_node("Constant", [], ["y"], value=tensor)),
    ):
        with pytest.raises(BundleError, match="a constant that is no number"):
            check_graph("model.onnx", graph.SerializeToString())


def test_an_attribute_that_is_no_number_is_refused_and_infinity_is_not():
    for value in ({"value_float": NAN}, {"value_floats": [1.0, NAN]}):
        graph = model([helper.make_node("Constant", [], ["y"], **value)])
        with pytest.raises(BundleError, match="a constant that is no number"):
            check_graph("model.onnx", graph.SerializeToString())
    mask = helper.make_tensor("w", TensorProto.FLOAT, [1], [float("-inf")])
    check_graph("model.onnx", model([IDENTITY], [mask]).SerializeToString())


def test_numbers_in_another_file_are_found_below_branches_in_branches():
    """However deep the graph that holds them."""
    inner = helper.make_graph([IN_ATTRIBUTE], "inner", [], [Y], [external_tensor()])
    outer = helper.make_graph(
        [helper.make_node("Loop", ["n", "t"], ["y"], body=inner)], "outer", [], [Y]
    )
    with pytest.raises(BundleError, match="numbers in another file"):
        check_graph(
            "model.onnx",
            model([helper.make_node("Scan", ["x"], ["y"], body=outer)]).SerializeToString(),
        )
