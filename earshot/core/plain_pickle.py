"""Untrusted pickles, read with Python's own unpickler restricted to the opcodes and names of plain data:
numpy arrays, text and numbers."""

from __future__ import annotations

import math
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from earshot.core.errors import Refused, UserError, raise_if_temporary

# No class is looked up or made by these, and none gives more bytes than it takes from the file.
OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT LONG1 SHORT_BINUNICODE "
    "BINUNICODE BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID"
).split()
MAX_WEIGHT = 1 << 26  # of the value: a character weighs 1, everything else
NODE_WEIGHT = 64
MAX_DEPTH = 32

KINDS = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[US][1-9]\d{0,8}")
NATIVE = ("|", "=", "<" if sys.byteorder == "little" else ">")
NDARRAY = object()
ALIGNMENT = 16  # joblib's: a byte with the length of the padding, the padding, the array
IMPOSSIBLE = 2**47  # bytes that an array would span if its axes of length 0 had length 1
PythonUnpickler: Any = pickle._Unpickler  # the one in C reads ahead, and has no table of opcodes


class PlainReader(PythonUnpickler):
    """Reads a pickle of text, numbers, lists, tuples, dicts and `leaves`; Refused, or nearly any Exception,
    for everything else.

    Args:
        names: what stands for a name such as `numpy.dtype`; nothing else is found, nothing is imported.
    """

    leaves: tuple[type, ...] = ()
    max_bytes = 1 << 20  # of the pickle beside its arrays: each can make an object of eighty bytes

    def __init__(self, file: BinaryIO, names: dict[str, Any]):
        super().__init__(_LimitedFile(file, self.max_bytes))
        self.file, self.names, self.weight = file, names, 0

    def load(self) -> Any:
        value = super().load()
        self._check_plain(value, 0)
        return value

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.names:
            raise Refused(f"it asks for {f'{module}.{name}'!r}"[:100])
        return self.names[f"{module}.{name}"]

    def build(self, target: Any, state: Any) -> Any:
        """The object that the opcode BUILD leaves on the stack."""
        raise Refused("it changes an object")

    def load_build(self) -> None:
        state = self.stack.pop()
        self.stack[-1] = self.build(self.stack[-1], state)

    def load_setitem(self) -> None:
        self._set_items([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise Refused("it changes an object")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise Refused("it has a key that is no text")
            if key in target:
                raise Refused(f"it has the key {key[:40]!r} twice")
            target[key] = value

    def _check_plain(self, value: Any, depth: int) -> None:
        self.weight += NODE_WEIGHT + (len(value) if type(value) is str else 0)
        # a list that is referred to again and again takes little of the file
        if depth > MAX_DEPTH or self.weight > MAX_WEIGHT:
            raise Refused("it is nested too deeply, or unfolds into too much")
        if type(value) is dict:
            value = [*value, *value.values()]
        if type(value) in (list, tuple):
            for item in value:
                self._check_plain(item, depth + 1)
        elif value is not None and type(value) not in (str, int, float, bool, *self.leaves):
            raise Refused("it holds more than arrays, text and numbers")

    def _refuse_opcode(self) -> None:
        raise Refused("it holds more than arrays, text and numbers")

    dispatch = dict.fromkeys(range(256), _refuse_opcode)
    dispatch |= {code: PythonUnpickler.dispatch[code] for name in OPCODES for code in getattr(pickle, name)}
    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


class _LimitedFile:
    """A file that returns exactly the bytes requested or raises, up to a limit in total."""

    def __init__(self, file: BinaryIO, left: int):
        self.file, self.left = file, left

    def read(self, count: int) -> bytes:
        self.left -= count
        if self.left < 0:
            raise Refused("it is too large beside its arrays, or ends too early")
        data = self.file.read(count)
        if len(data) < count:
            raise Refused("it ends too early: cut off?")
        return data

    def readline(self) -> bytes:
        return self.file.readline(200)


def load(path: Path | str, mmap: bool = True) -> dict[str, Any]:
    """Read what `cache.dump` wrote: a dict of arrays (memory-mapped read-only unless `mmap` is False),
    strings and numbers.

    Arrays that do not lie whole within the file are refused before memory is taken, so that an untrusted
    cache can at worst be refused.

    Raises:
        UserError: the file is missing or not a cache of Earshot's.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise Refused("it is no file")
        with open(path, "rb") as file:
            content = _ArrayReader(file, mmap).load()
            if file.read(1):
                raise Refused("something follows its end")
        if type(content) is not dict:
            raise Refused(f"it holds a {type(content).__name__}")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run get_features.py again") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise_if_temporary(path, error)
        reason = str(error) if isinstance(error, (Refused, OSError)) else "it is damaged"
        raise UserError(
            f"{path} is not a cache that Earshot can read ({reason}): delete it and run get_features.py again"
        ) from None
    return content


class _ArrayWrapper:
    """joblib's announcement that an array follows."""


class _ArrayReader(PlainReader):
    leaves = (np.ndarray, np.memmap)

    def __init__(self, file: BinaryIO, mmap: bool):
        names = {"numpy.ndarray": NDARRAY, "numpy.dtype": _make_dtype}
        super().__init__(file, names | {"joblib.numpy_pickle.NumpyArrayWrapper": _ArrayWrapper})
        self.size, self.mmap = os.fstat(file.fileno()).st_size, mmap

    def build(self, target: Any, state: Any) -> Any:
        if type(target) is _ArrayWrapper and type(state) is dict:
            return self._read_array(**state)
        if not isinstance(target, np.dtype) or type(state) is not tuple:
            return super().build(target, state)
        if len(state) != 8 or state[1] not in NATIVE:
            raise Refused("it holds an array of an unknown kind, or of another machine's byte order")
        return target  # made from its name: numpy trusts a dtype's state

    def _read_array(
        self,
        subclass: Any,
        shape: Any,
        order: Any,
        dtype: Any,
        allow_mmap: Any,
        numpy_array_alignment_bytes: Any,
    ) -> np.ndarray:
        if subclass is not NDARRAY or not isinstance(dtype, np.dtype) or order not in ("C", "F"):
            raise Refused("it holds an array of an unknown kind")
        if type(shape) is not tuple or len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
            raise Refused("it holds an array of an impossible shape")
        span = math.prod(max(n, 1) for n in shape) * dtype.itemsize
        if numpy_array_alignment_bytes != ALIGNMENT or span > IMPOSSIBLE:
            raise Refused("it holds an array of an impossible shape")
        padding = self.file.read(1)[0]
        start, size = self.file.tell() + padding, math.prod(shape) * dtype.itemsize
        if padding > ALIGNMENT or start + size > self.size:
            raise Refused("it is shorter than its arrays: cut off?")
        if not size:
            array = np.zeros(shape, dtype, order)
        elif self.mmap:
            array = np.memmap(self.file, dtype, "r", start, shape, order)
        else:
            self.file.seek(start)
            array = np.frombuffer(bytearray(self.file.read(size)), dtype).reshape(shape, order=order)
        self.file.seek(start + size)  # mapping moves it
        return array


def _make_dtype(name: Any, align: Any, copy: Any) -> np.dtype:
    if type(name) is not str or not KINDS.fullmatch(name):
        raise Refused("it holds an array of Python objects, or of an unknown kind")
    return np.dtype(name)
