"""Caches read without trusting them: an unpickler that admits numpy's plain arrays, strings and numbers, and nothing else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from earshot.errors import UserError


def load(path: Path | str, mmap: bool = True) -> dict[str, Any]:
    """Read what `cache.dump` wrote: a dict of arrays (memory-mapped read-only unless `mmap` is False), strings and numbers.

    The unpickler allows numpy's array types and nothing else, calls nothing, refuses object arrays before reading
    them and arrays larger than the file, so that a stranger's cache can at worst be refused.

    Raises:
        UserError: missing file, or one that is no cache of ours.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = _unpickler(str(path), file, "r" if mmap else None).load()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run get_features.py again") from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is no cache that Earshot can read ({reason}): delete it and run get_features.py again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a cache: delete it and run get_features.py again")
    return content


def _unpickler(name: str, file: Any, mmap_mode: str | None) -> Any:
    """An unpickler for arrays, strings, numbers and containers; joblib is imported late because --help does not need it."""
    import inspect

    import numpy as np
    from joblib import numpy_pickle

    size = os.fstat(file.fileno()).st_size
    wrapper_class = numpy_pickle.NumpyArrayWrapper
    allowed = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
               ("joblib.numpy_pickle", "NumpyArrayWrapper"): wrapper_class}

    class Refused(pickle.UnpicklingError):
        pass

    class PlainUnpickler(numpy_pickle.NumpyUnpickler):
        dispatch = numpy_pickle.NumpyUnpickler.dispatch.copy()

        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise Refused(f"it asks for {module}.{name}")
            return allowed[module, name]

        def load_reduce(self) -> None:
            if self.stack[-2] is not np.dtype:
                raise Refused("it calls a function")
            pickle._Unpickler.load_reduce(self)

        def load_newobj(self) -> None:
            if self.stack[-2] is not wrapper_class:
                raise Refused("it makes an object")
            pickle._Unpickler.load_newobj(self)

        def load_build(self) -> None:
            target = self.stack[-2]
            if isinstance(target, wrapper_class):
                self._check(target, self.stack[-1])
            elif not isinstance(target, np.dtype):
                raise Refused("it changes an object")
            numpy_pickle.NumpyUnpickler.load_build(self)

        def _check(self, wrapper: Any, state: Any) -> None:
            dtype, shape = state["dtype"], state["shape"]
            if not isinstance(dtype, np.dtype) or dtype.hasobject:
                raise Refused("it holds an array of Python objects")
            if state["subclass"] is not np.ndarray or state["order"] not in ("C", "F") or not isinstance(shape, tuple):
                raise Refused("it holds an array of an unknown kind")
            count = 1
            for length in shape:
                if not isinstance(length, int) or length < 0:
                    raise Refused("it holds an array of an impossible shape")
                count *= length
            if count * dtype.itemsize > size:
                raise Refused("it is shorter than its arrays: cut off?")
            if count == 0:
                state["allow_mmap"] = False  # there is nothing to map

        def refuse(self) -> None:
            raise Refused("it holds more than arrays, strings and numbers")

        dispatch[pickle.REDUCE[0]] = load_reduce
        dispatch[pickle.NEWOBJ[0]] = load_newobj
        dispatch[pickle.BUILD[0]] = load_build
        for code in (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
                     pickle.PERSID, pickle.BINPERSID):
            dispatch[code[0]] = refuse

    options = {"mmap_mode": mmap_mode}
    if "ensure_native_byte_order" in inspect.signature(numpy_pickle.NumpyUnpickler.__init__).parameters:
        options["ensure_native_byte_order"] = False
    return PlainUnpickler(name, file, **options)
