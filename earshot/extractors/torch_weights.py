"""Published weights read as plain data: the zip that torch.save writes, without torch.load and without
pickle."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from earshot.core import file_content
from earshot.core.errors import UserError, unless_temporary
from earshot.core.pickle_interpreter import Global, Interpreter, Refused

STORAGES = {
    f"{name}Storage": kind
    for name, kind in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
LARGEST_PICKLE = 1 << 26  # bytes of names and shapes; a network of ten thousand tensors takes two million
MOST_AXES = 16
SHARED = 4  # how often the same numbers may be in tensors: tied weights are there twice


def load(path: Path | str) -> dict[str, Any]:
    """A state dict from a file of torch.save (its zip format) or from safetensors.

    Args:
        path: `*.safetensors`, else read as a zip. Only names, tensors of numbers, and containers of these are
            read; every size is compared with what the file holds before memory is taken.
    Returns:
        name -> tensor on the CPU (or what else of plain data the file's dict has).
    Raises:
        Refused: anything else, in a few words. UserError: a pointer of Git LFS, or a web page.
    """
    path = Path(path)
    try:
        file_content.check(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if not zipfile.is_zipfile(path):
            raise Refused("it is no zip: a file of torch before 1.6, or not of torch at all")
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise Refused(f"it has {len(pickles)} data.pkl")
            folder = pickles[0].removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in archive.namelist() and _member(archive, order, 16) != b"little":
                raise Refused("it is of a machine of another byte order")
            data = _member(archive, pickles[0], LARGEST_PICKLE)
            found = _Tensors(data, archive, folder, path.stat().st_size).load()
    except (Refused, UserError):
        raise
    except Exception as error:  # a damaged zip or pickle can raise nearly anything, OSError included
        unless_temporary(path, error)
        raise Refused(" ".join(str(error).split())[:80] or type(error).__name__) from None
    if type(found) is not dict:
        raise Refused(f"it holds a {type(found).__name__}")
    return found


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member's bytes; torch stores them as they are, so that none is larger than the file."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise Refused("its members are compressed")
    if info.file_size > most:
        raise Refused(f"its member {name[:40]} is larger than it can be")
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise Refused(f"it is damaged ({' '.join(str(error).split())[:60]})") from None


class _Tensors(Interpreter):
    leaves = (torch.Tensor,)

    def __init__(self, data: bytes, archive: zipfile.ZipFile, folder: str, most: int):
        super().__init__(io.BytesIO(data), len(data))
        self.archive, self.folder, self.storages, self.most = archive, folder, {}, most
        self.held, self.made = 0, 0  # bytes of the storages, and of the tensors that are copied out of them

    def call(self, function: Global, arguments: tuple) -> Any:
        if function == Global("collections", "OrderedDict") and not arguments:
            return {}
        if function == Global("torch._utils", "_rebuild_tensor_v2") and len(arguments) in (6, 7):
            return self._build_tensor(*arguments[:4])
        if (
            function == Global("torch._utils", "_rebuild_parameter")
            and arguments
            and type(arguments[0]) is torch.Tensor
        ):
            return arguments[0]
        return super().call(function, arguments)

    def build(self, target: Any, state: Any) -> Any:
        """A state dict carries the versions of its modules as an attribute: not needed."""
        return (
            target
            if type(target) is dict and type(state) is dict and set(state) <= {"_metadata"}
            else super().build(target, state)
        )

    def stored(self, name: Any) -> Any:
        if (
            type(name) is not tuple
            or len(name) != 5
            or name[0] != "storage"
            or type(name[1]) is not Global
            or type(name[2]) is not str
        ):
            raise Refused("it refers to something outside")
        (_, (module, kind), key, _, count) = name
        if module != "torch" or kind not in STORAGES or type(count) is not int or count < 0:
            raise Refused(f"it holds numbers of an unknown kind ({f'{module}.{kind}'[:40]})")
        dtype = STORAGES[kind]
        if key not in self.storages:
            size = count * dtype.itemsize
            # members may lie within one another: zipfile compares them only since 3.11.8
            if self.held + size > self.most:
                raise Refused("its members together are larger than the file")
            data = _member(self.archive, f"{self.folder}data/{key}", size)
            if len(data) != size:
                raise Refused("a tensor has more numbers than the file holds")
            self.held += size
            self.storages[key] = (
                torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)
            )
        if self.storages[key].dtype != dtype:
            raise Refused("it reads the same numbers as two kinds")
        return (self.storages[key],)

    def _build_tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> torch.Tensor:
        if type(storage) is not tuple or len(storage) != 1 or type(storage[0]) is not torch.Tensor:
            raise Refused("a tensor without numbers")
        numbers = storage[0]
        whole = type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= MOST_AXES
        if not whole or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
            raise Refused("a tensor of an impossible shape")
        count = math.prod(size)
        last = (
            offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
            if count
            else 0
        )
        # strides of 0 could make terabytes of one number
        if count > len(numbers) or count and last >= len(numbers):
            raise Refused("a tensor reaches beyond its numbers")
        self.made += count * numbers.itemsize
        if self.made > SHARED * self.held:
            raise Refused(
                "its tensors share their numbers so often that they would take many times the file's size"
            )
        return numbers.as_strided(size, stride, offset).clone() if count else numbers.new_empty(size)
