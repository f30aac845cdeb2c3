"""ONNX files that are broken or built to harm; each has to be refused in one line, within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SAMPLES = 1000


def build(nodes: list[Any], tensors: Sequence[Any] = (), inputs: Any = None, outputs: Any = None) -> Any:
    """A model from x (batch, 1000) to y (batch, anything)."""
    from onnx import TensorProto, helper

    inputs = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SAMPLES])]
    outputs = outputs or [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    """A node; names are separated by spaces, - is an absent one."""
    from onnx import helper

    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)


def loop(step: Any, count: int | None = None) -> list[Any]:
    """A loop over a state `a`, without an end where no count is given: nodes and tensors."""
    from onnx import TensorProto, helper, numpy_helper

    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "next")]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("more", "on")]
    index = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(
        [node("Identity", "more", "on"), step], "body", [index, flags[0], state[0]], [flags[1], state[1]]
    )
    tensors = [numpy_helper.from_array(np.array(True), "yes")]
    if count is not None:
        tensors.append(numpy_helper.from_array(np.array(count), "count"))
    return [[node("Loop", f"{'-' if count is None else 'count'} yes x", body=body)], tensors]


def models() -> dict[str, tuple[Any, str]]:
    """Name -> (model, what the error says)."""
    from onnx import TensorProto, helper, numpy_helper

    def outside(location: str) -> Any:
        tensor = numpy_helper.from_array(np.zeros(SAMPLES, np.float32), "w")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        return tensor

    def nested(tensor: Any) -> list[Any]:
        inner = helper.make_graph(
            [node("Add", "x w")], "inner", [], [helper.make_tensor_value_info("y", 1, None)], [tensor]
        )
        return [node("If", "yes", "y", then_branch=inner, else_branch=inner)]

    def huge(**fields: Any) -> Any:
        return TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20], **fields)

    yes = numpy_helper.from_array(np.array(True), "yes")
    size = numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "size")
    wide = numpy_helper.from_array(np.array([1, 1 << 16]), "wide")
    summed = [node("ReduceSum", "w", "s", keepdims=0), node("Add", "x s")]
    sparse = build(summed)
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "")
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 20, 1 << 20]))
    metal = build([helper.make_node("Shell", ["x"], ["y"], domain="evil.ops")])
    metal.opset_import.add(domain="evil.ops", version=1)
    context = build([helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")])
    context.opset_import.add(domain="com.microsoft", version=1)
    wave, number = (
        helper.make_tensor_value_info("x", kind, shape)
        for kind, shape in ((TensorProto.FLOAT, [1, 1 << 40]), (TensorProto.INT64, [1, SAMPLES]))
    )
    second = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, SAMPLES])
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, SAMPLES])
    random = node("RandomNormalLike", "x", "n")
    own, memory, file = "another file", "takes more than [0-9]+ MB", "is not an ONNX file, or is damaged"
    return {
        "weights by an absolute path": (build([node("Add", "x w")], [outside("/etc/passwd")]), own),
        "weights by a path that climbs": (build([node("Add", "x w")], [outside("../../secret")]), own),
        "weights beside it": (build([node("Add", "x w")], [outside("weights.bin")]), own),
        "weights outside, in a branch": (build(nested(outside("/etc/passwd")), [yes]), own),
        "weights outside, in an attribute": (
            build([node("Constant", "", "w", value=outside("/dev/zero")), node("Add", "x w")]),
            own,
        ),
        "a huge tensor that holds nothing": (build(summed, [huge()]), "cannot load and run it"),
        "a huge tensor that holds a little": (
            build(summed, [huge(raw_data=b"1234")]),
            "cannot load and run it",
        ),
        "a huge sparse tensor": (sparse, "cannot load and run it"),
        "a huge constant": (build([node("ConstantOfShape", "size")], [size]), memory),
        "an output of gigabytes": (build([node("Tile", "x wide")], [wide]), f"too large|{memory}"),
        "a loop without end": (build(*loop(node("Identity", "a", "next"))), "takes longer than"),
        "a loop of a trillion steps": (
            build(*loop(node("Identity", "a", "next"), 1 << 40)),
            "takes longer than",
        ),
        "a loop that doubles": (build(*loop(node("Concat", "a a", "next", axis=1))), memory),
        "an operator of another library": (metal, "'Shell' of the domain 'evil.ops'"),
        "a compiled network": (context, "'EPContext' of the domain"),
        "an unknown operator": (build([node("Shell", "x")]), "Shell"),
        "no input of samples": (build([node("Identity", "x")], [], [image]), "its input is x"),
        "an input of whole numbers": (build([node("Cast", "x", to=1)], [], [number]), r"tensor\(int64\)"),
        "an input of terabytes": (build([node("Identity", "x")], [], [wave]), "too large"),
        "two inputs": (
            build([node("Add", "x z")], [], [helper.make_tensor_value_info("x", 1, [1, SAMPLES]), second]),
            "2 inputs",
        ),
        "numbers by chance": (build([random, node("Add", "x n")]), "is not deterministic"),
        "not a number": (build([node("Sqrt", "x")]), "NaN or infinite"),
        "no graph": (type(sparse)(ir_version=8), file),
    }


def build_late(harm: str) -> Any:
    """A model that does harm only where the audio is loud: takes terabytes of "memory", or loops for ever."""
    from onnx import TensorProto, helper, numpy_helper

    loud = [node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m half", "loud")]
    tensors = [numpy_helper.from_array(np.array(0.9, np.float32), "half")]
    if harm == "memory":
        tensors += [
            numpy_helper.from_array(np.array([size]), name) for size, name in ((1, "few"), (1 << 42, "many"))
        ]
        chosen = [node("Where", "loud many few", "size"), node("ConstantOfShape", "size", "big")]
        return build([*loud, *chosen, node("ReduceSum", "big", "s"), node("Add", "x s")], tensors)
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "next")]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("more", "on")]
    index = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    steps = [node("Identity", "more", "on"), node("Identity", "a", "next")]
    body = helper.make_graph(steps, "body", [index, flags[0], state[0]], [flags[1], state[1]])
    return build([*loud, node("Loop", "- loud x", body=body)], tensors)


def damaged() -> dict[str, bytes]:
    """Name -> content of files that are no model at all."""
    whole = models()["a huge constant"][0].SerializeToString()
    inner = b""
    for _ in range(5000):  # graphs within attributes within nodes
        for tag in (0x0A, 0x32, 0x2A):
            inner = bytes([tag]) + encode(len(inner)) + inner
    return {
        "nothing": b"",
        "cut off": whole[: len(whole) // 2],
        "text": b"import os; os.mkdir('harm')",
        "zeros": bytes(1 << 20),
        "one field of a gigabyte": b"\x3a\xff\xff\xff\xff\x03" + bytes(64),
        "deep": b"\x08\x08\x3a" + encode(len(inner)) + inner,
        "of ONNX Runtime's own format": b"\x10\x00\x00\x00ORTM" + bytes(64),
    }


def list_names() -> list[str]:
    """The names of all files."""
    return [*models(), *damaged()]


def build_file(name: str) -> tuple[bytes, str]:
    """The content of a file, and a pattern of the error that it has to end as."""
    if name in damaged():
        return damaged()[name], "is not an ONNX file, or is damaged"
    model, says = models()[name]
    return model.SerializeToString(), says


def encode(number: int) -> bytes:
    """A varint of protobuf."""
    out = b""
    while True:
        number, low = number >> 7, number & 127
        out += bytes([low | (128 if number else 0)])
        if not number:
            return out
