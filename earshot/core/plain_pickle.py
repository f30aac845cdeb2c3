"""Caches read without trusting them: numpy's plain arrays, text and numbers, and nothing else."""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from earshot.core.errors import UserError, unless_temporary
from earshot.core.pickle_interpreter import Global, Interpreter, Refused

NDARRAY, DTYPE = Global("numpy", "ndarray"), Global("numpy", "dtype")
WRAPPER = Global("joblib.numpy_pickle", "NumpyArrayWrapper")
KINDS = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[US][1-9]\d{0,8}")
NATIVE = ("|", "=", "<" if sys.byteorder == "little" else ">")
ALIGNMENT = 16  # joblib's: a byte with the length of the padding, the padding, the array
IMPOSSIBLE = 2**47  # bytes that an array would span if its axes of length 0 had length 1


def load(path: Path | str, mmap: bool = True) -> dict[str, Any]:
    """Read what `cache.dump` wrote: a dict of arrays (memory-mapped read-only unless `mmap` is False),
    strings and numbers.

    Neither pickle nor joblib is asked: the few opcodes that such a file needs are interpreted here, and
    arrays that do not lie whole within the file are refused before memory is taken, so that a stranger's
    cache can at worst be refused.

    Raises:
        UserError: missing file, or one that is no cache of ours.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise Refused("it is no file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = _Arrays(file, size, mmap).load()
            if file.tell() != size:
                raise Refused("something follows its end")
        if type(content) is not dict:
            raise Refused(f"it holds a {type(content).__name__}")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run get_features.py again") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        unless_temporary(path, error)
        reason = str(error) if isinstance(error, (Refused, OSError)) else "it is damaged"
        raise UserError(
            f"{path} is no cache that Earshot can read ({reason}): delete it and run get_features.py again"
        ) from None
    return content


class _Kind:
    """A dtype in the making: its name, then the dtype itself."""

    def __init__(self, name: str):
        self.name, self.dtype = name, None


class _Wrapper:
    """joblib's announcement that an array follows."""


class _Arrays(Interpreter):
    leaves = (np.ndarray, np.memmap)

    def __init__(self, file: Any, size: int, mmap: bool):
        super().__init__(file, size)
        self.mmap = mmap

    def call(self, function: Global, arguments: tuple) -> Any:
        if function != DTYPE:
            return super().call(function, arguments)
        if len(arguments) != 3 or type(arguments[0]) is not str or not KINDS.fullmatch(arguments[0]):
            raise Refused("it holds an array of Python objects, or of an unknown kind")
        return _Kind(arguments[0])

    def make(self, kind: Global, arguments: tuple) -> Any:
        return super().make(kind, arguments) if kind != WRAPPER or arguments else _Wrapper()

    def build(self, target: Any, state: Any) -> Any:
        if type(target) is _Wrapper and type(state) is dict:
            return self._array(**state)
        if type(target) is not _Kind or target.dtype is not None or type(state) is not tuple:
            return super().build(target, state)
        if len(state) != 8 or state[0] != 3 or state[1] not in NATIVE or state[2:5] != (None, None, None):
            raise Refused("it holds an array of an unknown kind, or of another machine's byte order")
        target.dtype = np.dtype(target.name)  # made from its name: numpy trusts a dtype's state
        return target

    def _array(
        self,
        subclass: Any,
        shape: Any,
        order: Any,
        dtype: Any,
        allow_mmap: Any,
        numpy_array_alignment_bytes: Any,
    ) -> np.ndarray:
        if subclass != NDARRAY or type(dtype) is not _Kind or dtype.dtype is None or order not in ("C", "F"):
            raise Refused("it holds an array of an unknown kind")
        if type(shape) is not tuple or len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
            raise Refused("it holds an array of an impossible shape")
        dtype = dtype.dtype
        if (
            numpy_array_alignment_bytes != ALIGNMENT
            or math.prod(max(n, 1) for n in shape) * max(dtype.itemsize, 1) > IMPOSSIBLE
        ):
            raise Refused("it holds an array of an impossible shape")
        padding, count = self._number("<B"), math.prod(shape)
        if padding > ALIGNMENT or self.file.tell() + padding + count * dtype.itemsize > self.size:
            raise Refused("it is shorter than its arrays: cut off?")
        start = self.file.tell() + padding
        if not count:
            array = np.zeros(shape, dtype, order)
        elif self.mmap:
            array = np.memmap(self.file, dtype, "r", start, shape, order)
        else:
            self.file.seek(start)
            array = np.frombuffer(bytearray(self.file.read(count * dtype.itemsize)), dtype).reshape(
                shape, order=order
            )
        self.file.seek(start + count * dtype.itemsize)  # mapping moves it
        return array
