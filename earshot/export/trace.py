"""torch modules as ONNX or OpenVINO files."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from earshot.core.errors import UserError

OPSET = 18
SMALLEST = 256  # numbers: smaller constants stay in fp32, so that axes and shapes are exact


def write_graph(
    module: nn.Module,
    args: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    folder: Path,
    name: str,
    runtime: str,
    fp16: bool,
) -> None:
    """Write a module in evaluation mode as the files of `graphs.list_files`; the first axis of all inputs and
    outputs is of any length.

    Args:
        args: two rows of each input. fp16: store the weights in half the bytes; the sums stay in fp32.
    Raises:
        UserError: the module has operations that ONNX lacks.
    """
    path = folder / f"{name}.onnx"
    axes = {each: {0: "rows"} for each in (*inputs, *outputs)}
    try:
        with torch.no_grad(), _use_exportable_operations(), _silence():
            torch.onnx.export(
                module.eval(),
                args,
                str(path),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        if runtime == "openvino":
            import openvino

            with _silence():
                model = openvino.convert_model(path)
                openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=fp16)
            path.unlink()
        elif fp16:
            halve_weights(path)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the exporters' errors have no base of their own
        raise UserError(f"it cannot be exported ({_describe(error)}): predict with torch") from None


def halve_weights(path: Path) -> None:
    """Store an ONNX file's weights in fp16, with casts to fp32 that the runtime computes once."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALLEST:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        casts.append(helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_half"))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split()).split(". ")[0]
    return f"{type(error).__name__}: {text[:160]}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing on stdout and stderr: the exporter prints its whole graph before it raises."""
    sys.stdout.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        for number, _ in kept:
            os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            for number, old in kept:
                os.dup2(old, number)
                os.close(old)


@contextlib.contextmanager
def _use_exportable_operations() -> Iterator[None]:
    """The same functions by operations that ONNX has: adaptive pooling to any size and a real Fourier
    transform as products with matrices, attention unfused."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    replaced: list[tuple[Any, str, Callable]] = [
        (F, "adaptive_avg_pool2d", _pool_2d),
        (F, "adaptive_avg_pool1d", _pool_1d),
        (torch.fft, "rfft", _rfft),
        (Tensor, "argsort", _argsort),
    ]
    kept = [(where, name, getattr(where, name)) for where, name, _ in replaced]
    try:
        for where, name, function in replaced:
            setattr(where, name, function)
        yield
    finally:
        for where, name, function in kept:
            setattr(where, name, function)
        torch.backends.mha.set_fastpath_enabled(fused)


@functools.lru_cache(maxsize=64)
def _build_pooling(length: int, cells: int) -> Tensor:
    """(length, cells) the share of each place in each cell, as adaptive average pooling draws them."""
    matrix = torch.zeros(length, cells)
    for cell in range(cells):
        first, last = cell * length // cells, -(-(cell + 1) * length // cells)
        matrix[first:last, cell] = 1 / (last - first)
    return matrix


def _pool_axis(x: Tensor, axis: int, cells: int | None) -> Tensor:
    length = int(x.shape[axis])
    if cells in (None, length):
        return x
    if cells == 1:
        return x.mean(axis, keepdim=True)
    pooling = _build_pooling(length, int(cells))
    return (x.transpose(axis, -1) @ pooling).transpose(axis, -1)


def _pool_1d(x: Tensor, size: Any) -> Tensor:
    return _pool_axis(x, -1, size[0] if isinstance(size, (tuple, list)) else size)


def _pool_2d(x: Tensor, size: Any) -> Tensor:
    rows, columns = size if isinstance(size, (tuple, list)) else (size, size)
    return _pool_axis(_pool_axis(x, -1, columns), -2, rows)


def _argsort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    # ONNX puts the lower index first where values are equal, which is stable.
    return x.topk(int(x.shape[dim]), dim, largest=descending, sorted=True).indices


class _Spectrum:
    """A complex spectrum of which only the magnitude is taken."""

    def __init__(self, real: Tensor, imaginary: Tensor):
        self.real, self.imag = real, imaginary

    def abs(self) -> Tensor:
        return (self.real.square() + self.imag.square()).sqrt()


def _rfft(x: Tensor, n: int | None = None) -> _Spectrum:
    length = int(x.shape[-1])
    n = n or length
    at = torch.arange(min(n, length), dtype=torch.float64)[:, None] * torch.arange(n // 2 + 1)
    phase = 2 * torch.pi * (at % n) / n
    x = x[..., : min(n, length)]
    return _Spectrum(x @ phase.cos().float(), x @ -phase.sin().float())
