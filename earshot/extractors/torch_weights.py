"""Published weights read as plain data: the zip that torch.save writes, without torch's own reader, which
crafted files could make write beyond its memory before torch 2.10, even with `weights_only`."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from earshot.core import file_content
from earshot.core.errors import Refused, UserError, raise_if_temporary
from earshot.core.plain_pickle import PlainReader

STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
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
        file_content.check_content(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if not zipfile.is_zipfile(path):
            raise Refused("it is no zip: a file of torch before 1.6, or not of torch at all")
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise Refused(f"it has {len(pickles)} data.pkl")
            folder = pickles[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in members and _read_member(archive, f"{folder}byteorder") != b"little":
                raise Refused("it is of a machine of another byte order")
            content = _TensorReader(archive, folder, path.stat().st_size).load()
    except (Refused, UserError):
        raise
    except Exception as error:  # a damaged zip or pickle can raise nearly anything, OSError included
        raise_if_temporary(path, error)
        raise Refused(" ".join(str(error).split())[:80] or type(error).__name__) from None
    if type(content) is not dict:
        raise Refused(f"it holds a {type(content).__name__}")
    return content


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's bytes; torch stores them as they are, so that none is larger than the file."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise Refused("its members are compressed")
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise Refused(f"it is damaged ({' '.join(str(error).split())[:60]})") from None


class _TensorReader(PlainReader):
    leaves = (torch.Tensor,)
    max_bytes = 1 << 22  # a network of ten thousand tensors takes half of it

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int):
        names = {
            "collections.OrderedDict": _make_dict,
            "torch._utils._rebuild_tensor_v2": self._rebuild_tensor,
            "torch._utils._rebuild_parameter": _unwrap_parameter,
        }
        super().__init__(io.BytesIO(_read_member(archive, f"{folder}data.pkl")), names | STORAGES)
        self.archive, self.folder, self.size = archive, folder, size
        self.storages: dict[str, torch.Tensor] = {}
        self.held, self.copied = 0, 0  # bytes of the storages, and of the tensors that are copied out of them

    def build(self, target: Any, state: Any) -> Any:
        """A state dict carries the versions of its modules as an attribute: not needed."""
        if type(target) is dict and type(state) is dict and set(state) <= {"_metadata"}:
            return target
        return super().build(target, state)

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """The numbers of a storage, as a vector."""
        _, dtype, key, _, count = pid
        if pid[0] != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise Refused("it refers to something outside")
        if key not in self.storages:
            self.held += count * dtype.itemsize
            # members may lie within one another: zipfile compares them only since 3.11.8
            if self.held > self.size:
                raise Refused("its members together are larger than the file")
            data = bytearray(_read_member(self.archive, f"{self.folder}data/{key}"))
            if len(data) != count * dtype.itemsize:
                raise Refused("a tensor has more numbers than the file holds")
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if self.storages[key].dtype != dtype:
            raise Refused("it reads the same numbers as two kinds")
        return self.storages[key]

    def _rebuild_tensor(
        self, numbers: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any
    ) -> torch.Tensor:
        whole = type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= MOST_AXES
        if not whole or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
            raise Refused("a tensor of an impossible shape")
        count = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        # strides of 0 could make terabytes of one number
        if count > len(numbers) or count and last >= len(numbers):
            raise Refused("a tensor reaches beyond its numbers")
        self.copied += count * numbers.itemsize
        if self.copied > SHARED * self.held:
            raise Refused(
                "its tensors share their numbers so often that they would take many times the file's size"
            )
        return numbers.as_strided(size, stride, offset).clone()


def _make_dict() -> dict:
    return {}


def _unwrap_parameter(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    return tensor
