"""Try an untrusted ONNX file in a process of its own, under limits of memory and time.

    python -P -m earshot.extractors.onnx_probe FILE SAMPLES MEMORY SECONDS

prints one line of JSON: the network's input and outputs, or why the file is refused. SAMPLES is the window's
length, 0 where it is not known yet: then only a network of one length is tried. MEMORY is in bytes, beyond
what Python and the libraries take; SECONDS are those of the processor.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from earshot.core.errors import Refused

# ONNX Runtime has operators of its own in the last two
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
MOST_NAMES = 200  # inputs or outputs, and characters of a name
LARGEST_OUTPUT = 1 << 24  # numbers of a window
SAME = 1e-5  # relative: two passes over the same audio


def limit_resources(memory: int, seconds: int) -> None:
    """Limit this process: bytes of memory beyond those in use, seconds of the processor, no written files."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # outside Linux the caller's clock is left
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for limit, most, more in (
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_FSIZE, 0, 0),
            (resource.RLIMIT_CPU, seconds, 1),  # a signal that says why, then SIGKILL
            (resource.RLIMIT_AS, used + memory, 0),
        ):
            hard = resource.getrlimit(limit)[1]
            top = most + more if hard == resource.RLIM_INFINITY else min(most + more, hard)
            resource.setrlimit(limit, (min(most, top), top))


def check_model(model: Any) -> None:
    """Raise Refused for weights in other files, and for operators that ONNX Runtime does not have itself.

    Args:
        model: onnx.ModelProto, its external data not loaded.
    """
    known = DOMAINS | {function.domain for function in model.functions}
    parts = [model.graph, *model.functions]
    for training in model.training_info:
        parts += [training.initialization, training.algorithm]
    while parts:
        part = parts.pop()
        tensors = list(getattr(part, "initializer", ()))
        sparse = list(getattr(part, "sparse_initializer", ()))
        for node in part.node:
            if node.domain not in known or node.op_type == "EPContext":  # which loads a compiled network
                raise Refused(
                    f"it has the operator {node.op_type[:40]!r} of the domain {node.domain[:40]!r}, which is "
                    "not part of ONNX Runtime"
                )
        attributes = [attribute for node in part.node for attribute in node.attribute]
        for attribute in (*attributes, *getattr(part, "attribute_proto", ())):  # a function's defaults
            parts += [attribute.g] if attribute.HasField("g") else []
            parts += attribute.graphs
            tensors += [attribute.t, *attribute.tensors]
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        tensors += [each for pair in sparse for each in (pair.values, pair.indices)]
        if any(tensor.data_location == tensor.EXTERNAL or tensor.external_data for tensor in tensors):
            raise Refused(
                "its weights are in another file (external data): save it as one file "
                "(torch.onnx.export(..., external_data=False))"
            )


def build_options() -> Any:
    """onnxruntime.SessionOptions: one thread, nothing logged, read as ONNX whatever the first bytes are."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def check_input(session: Any) -> tuple[str, str, list[int | None]]:
    """Name, type and shape of the only input, None for an axis of any length.

    Raises:
        Refused: it is not (batch, samples) or (batch, 1, samples).
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise Refused(f"it has {len(inputs)} inputs, not one of samples: {describe(inputs)}")
    found = inputs[0]
    shape = [size if isinstance(size, int) and size > 0 else None for size in found.shape or ()]
    right = len(shape) == 2 or len(shape) == 3 and shape[1] in (None, 1)
    if not right or found.type not in FLOATS or len(found.name) > MOST_NAMES:
        raise Refused(
            f"its input is {describe(inputs)} of {found.type}, not (batch, samples) or (batch, 1, samples) "
            "of floating-point numbers"
        )
    return found.name, found.type, shape


def escape(text: str) -> str:
    """A text of the file's maker, without what moves the cursor, colours or hides."""
    return ascii(text)[1:-1]


def shorten(name: str) -> str:
    """A name of the file's maker as messages show it."""
    return escape(name)[:40]


def describe(values: Any) -> str:
    """Names and declared shapes in a few words."""
    shown = [
        f"{shorten(value.name)} [{', '.join(shorten(str(size)) for size in value.shape or ())}]"
        for value in values[:4]
    ]
    return ", ".join(shown) + (", ..." if len(values) > 4 else "")


def try_model(path: Path, samples: int) -> dict[str, Any]:
    """Input and outputs of a network after passes over noise and over silence.

    Returns:
        input (name, type, shape), and a list of outputs, each with its name and, where a window's length is
        known: shape; batch (does it give the same for a window alone and beside another?); moves (the axes
        whose length follows the input's); finite; silent (finite for silence, too); steady (the same numbers
        each time).
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), build_options(), providers=["CPUExecutionProvider"])
    name, kind, shape = check_input(session)
    found = [output for output in session.get_outputs() if output.type in FLOATS]
    if not found:
        raise Refused("none of its outputs is of floating-point numbers")
    if len(found) > MOST_NAMES or any(len(output.name) > MOST_NAMES for output in found):
        raise Refused("it has too many outputs, or their names are too long")
    outputs: list[dict[str, Any]] = [{"name": output.name} for output in found]
    result = {"input": [name, kind, shape], "outputs": outputs}
    length = shape[-1] or samples
    if not length:
        return result
    if length * (shape[0] or 1) > LARGEST_OUTPUT:
        raise Refused(f"its input {shape} is too large")
    noise = np.random.default_rng(0).standard_normal((2, length)).astype(np.float32) / 10

    def run(waves: np.ndarray) -> list[np.ndarray]:
        fed = waves[:, None] if len(shape) == 3 else waves
        return session.run([each["name"] for each in outputs], {name: fed.astype(FLOATS[kind])})

    rows = shape[0] or 1
    alone = run(np.tile(noise[:1], (rows, 1)))
    again = run(np.tile(noise[:1], (rows, 1)))
    silent = run(np.zeros((rows, length), np.float32))
    mixed = None if rows == 1 and shape[0] else _try(run, np.resize(noise, (max(2, rows), length)))
    second = run(noise[1:]) if mixed and not shape[0] else None
    shorter = None if shape[-1] else _try(run, np.tile(noise[:1, : max(1, length // 2)], (rows, 1)))
    for index, output in enumerate(outputs):
        one, size = alone[index], alone[index].shape
        if math.prod(size) > LARGEST_OUTPUT * rows:
            raise Refused(f"its output {shorten(output['name'])} is too large: {size}")
        output["shape"] = list(size)
        output["batch"] = mixed is not None and _is_independent(
            one, second[index] if second else None, mixed[index], rows
        )
        other = shorter[index].shape if shorter else size
        output["moves"] = [
            axis for axis in range(len(size)) if len(other) == len(size) and other[axis] != size[axis]
        ]
        output["finite"] = bool(np.isfinite(one).all())
        output["silent"] = bool(np.isfinite(silent[index]).all())
        output["steady"] = _is_same(one, again[index])
    return result


def is_out_of_memory(error: Exception) -> bool:
    """Is it that of an allocation, of Python's or of ONNX Runtime's?"""
    text = str(error).lower()
    words = ("bfcarena", "bad_alloc", "out of memory", "allocate memory", "length_error")
    return isinstance(error, MemoryError) or any(word in text for word in words)


def explain(error: Exception) -> str:
    """What ONNX Runtime complains about, without its own source files and the path of the model."""
    text = " ".join(str(error).split()) or type(error).__name__
    for before in ("Status Message: ", " failed:"):
        text = text.rpartition(before)[2]
    text = re.sub(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^/onnxruntime_src/.*?\) (?=[A-Z\w])", "", text)
    return escape(text)[:160]


def _try(run: Callable[[np.ndarray], list[np.ndarray]], waves: np.ndarray) -> list[np.ndarray] | None:
    """The outputs; None where the network cannot take these waves."""
    try:
        return run(waves)
    except Exception:  # ONNX Runtime's errors have no base of their own
        return None


def _is_independent(one: np.ndarray, other: np.ndarray | None, mixed: np.ndarray, rows: int) -> bool:
    """Does a window give the same beside another?

    Args:
        one, other: of each of them alone; a fixed batch of `rows` is full of the first, and other is None.
        mixed: of both in one batch.
    """
    if not one.ndim or len(one) != rows or mixed.shape != (max(2, rows), *one.shape[1:]):
        return False
    wanted = one[:1] if other is None else np.concatenate([one, other])
    return _is_same(mixed[: len(wanted)], wanted)


def _is_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Are two outputs equal but for rounding?"""
    if a.shape != b.shape:
        return False
    largest = max(1.0, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
    return bool(np.allclose(a, b, rtol=0, atol=SAME * largest, equal_nan=True))


def main(path: str, samples: int, memory: int, seconds: int) -> dict[str, Any]:
    """What `try_model` finds, or {"refused": reason}, or {"errno": number} where the file cannot be read."""
    import onnx
    import onnxruntime  # noqa: F401 -- what it takes is not the file's

    limit_resources(memory, seconds)
    try:
        try:
            model = onnx.load_model(path, load_external_data=False)
        except OSError:
            raise
        except Exception:  # protobuf's DecodeError, MemoryError, ...
            raise Refused("it is not an ONNX file, or is damaged") from None
        if not model.HasField("graph") or not model.opset_import:
            raise Refused("it is not an ONNX file, or is damaged")
        check_model(model)
        del model
        return try_model(Path(path), samples)
    except Refused as error:
        return {"refused": str(error)}
    except OSError as error:
        return {"errno": error.errno, "refused": error.strerror}
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        if is_out_of_memory(error):
            return {"refused": f"it takes more than {memory >> 20} MB to load and run on one window"}
        return {"refused": f"ONNX Runtime cannot load and run it ({explain(error)})"}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:5]))))
