"""Untrusted files: pickles that call, build, refer, claim, bomb; each has to be refused and
nothing of it run.

As a program: `python tests/hostile.py FOLDER` writes them all and reads them under a limit of memory and an
audit of what runs.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from joblib.numpy_pickle import NumpyArrayWrapper

ROOT = Path(__file__).resolve().parents[1]
BOMB = 1 << 26  # bytes that a compressed file would become


class Call:
    """Pickles into a call."""

    def __init__(self, function: Any, *arguments: Any):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


class Built:
    """Pickles into a call whose result is then changed by a state."""

    def __init__(self, function: Any, arguments: tuple, state: Any):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def wrapper(**changes: Any) -> bytes:
    """A dict with an array's announcement as joblib writes it, changed, and a few numbers after it."""
    made = NumpyArrayWrapper(np.ndarray, (2, 2), "C", np.dtype("f4"), allow_mmap=True)
    made.__dict__.update(changes)
    return pickle.dumps({"x": made}, 4) + bytes(64)


def raw(body: bytes) -> bytes:
    """Opcodes as a dict's value."""
    return b"\x80\x04}X\x01\x00\x00\x00x" + body + b"s."


def text(word: str) -> bytes:
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def pickles(victim: Path) -> dict[str, bytes]:
    """Name -> content; whatever runs makes the folder `victim`."""
    harm, mkdir = Call(os.mkdir, str(victim)), b"cos\nmkdir\n"
    asked = text(str(victim))
    objects, nested = io.BytesIO(), io.BytesIO()
    joblib.dump({"ids": np.array([harm], dtype=object)}, objects)
    joblib.dump({"ids": np.array(["a"]), "meta": {"deep": [harm]}}, nested)
    good = io.BytesIO()
    joblib.dump({"mel": np.arange(4096, dtype=np.float16)}, good)
    good = good.getvalue()
    bomb = pickle.dumps({"x": b"\0" * 4096}) + bytes(BOMB)
    laughs = b"]\x94" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e\x94" for i in range(60))
    found = {
        "reduce": pickle.dumps({"x": harm}),
        "reduce, protocol 0": pickle.dumps({"x": harm}, 0),
        "nested reduce": nested.getvalue(),
        "object array": objects.getvalue(),
        "not even a dict": pickle.dumps(harm),
        "eval": raw(b"cbuiltins\neval\n(" + text("1+1") + b"tR"),
        "exec by stack": raw(text("builtins") + text("exec") + b"\x93(" + text("1") + b"tR"),
        "getattr": raw(b"cbuiltins\ngetattr\n(cos\nmkdir\n" + text("__call__") + b"tR"),
        "partial": pickle.dumps({"x": Call(__import__("functools").partial, os.mkdir, str(victim))}),
        "an allowed class called": pickle.dumps({"x": Call(np.ndarray, (1 << 40,))}),
        "wrapper class poisoned": raw(
            b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n(N}(X\x04\x00\x00\x00readX\x01\x00\x00\x00xutb"
        ),
        "inst": raw(b"(" + asked + b"ios\nmkdir\n"),
        "obj": raw(b"(" + mkdir + asked + b"o"),
        "newobj": raw(mkdir + b"(" + asked + b"t\x81"),
        "newobj_ex": raw(mkdir + b"(" + asked + b"t}\x92"),
        "ext1": raw(b"\x82\x01"),
        "ext4": raw(b"\x84\x01\x00\x00\x00"),
        "persid": raw(b"Pvictim\n"),
        "binpersid": raw(asked + b"Q"),
        "build on a dict": raw(b"}}b"),
        "build with slots": pickle.dumps(
            {"x": Built(np.dtype, ("f4",), (3, "<", None, None, None, -1, -1, 0, {"a": 1}))}
        ),
        "dtype of objects": wrapper(dtype=np.dtype("O")),
        "dtype of fields": wrapper(dtype=np.dtype([("a", "f4"), ("b", "O")])),
        "dtype of sub-arrays": wrapper(dtype=np.dtype((np.float32, (1 << 20,)))),
        "dtype from a crafted state": pickle.dumps(
            {"x": Built(np.dtype, ("V8",), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 63))}
        ),
        "dtype of a gigabyte": wrapper(dtype=np.dtype("S1000000000")),
        "dates": wrapper(dtype=np.dtype("M8[s]")),
        "shape beyond the file": wrapper(shape=(1 << 40,)),
        "shape that overflows": wrapper(shape=(1 << 32, 1 << 32)),
        "shape below nothing": wrapper(shape=(-1, -1)),
        "shape of a list": wrapper(shape=[2, 2]),
        "shape of truths": wrapper(shape=(True, 2)),
        "shape of nothing, absurdly": wrapper(shape=(0, 1 << 60, 1 << 60)),
        "shape of many axes": wrapper(shape=(1,) * 64),
        "order unknown": wrapper(order="X"),
        "subclass": wrapper(subclass=np.memmap),
        "matrix": wrapper(subclass=np.matrix),
        "alignment of gigabytes": wrapper(numpy_array_alignment_bytes=1 << 31),
        "alignment below nothing": wrapper(numpy_array_alignment_bytes=-1),
        "further attributes": wrapper(read="x"),
        "old joblib, a path": raw(
            b"cjoblib.numpy_pickle_compat\nNDArrayWrapper\n)\x81}("
            + text("filename")
            + text("/etc/passwd")
            + text("subclass")
            + b"cnumpy\nndarray\nub"
        ),
        "old joblib, compressed": raw(
            b"cjoblib.numpy_pickle_compat\nZNDArrayWrapper\n)\x81}(" + text("filename") + text("x.z") + b"ub"
        ),
        "numpy's reconstruct": pickle.dumps({"x": np.arange(3)}),
        "numpy's scalar": pickle.dumps({"x": np.float64(1)}),
        "set": pickle.dumps({"x": {1, 2}}),
        "bytes": pickle.dumps({"x": b"abc"}),
        "bytearray": pickle.dumps({"x": bytearray(b"abc")}, 5),
        "buffer from outside": raw(b"\x97"),
        "bytes that are not there": raw(b"\x8e" + (1 << 60).to_bytes(8, "little")),
        "text that is not there": raw(b"\x8d" + (1 << 60).to_bytes(8, "little")),
        "frame beyond the file": b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
        "a number of megabytes": raw(b"\x8b" + (1 << 21).to_bytes(4, "little") + b"\x01" * (1 << 21)),
        "a number in digits": raw(b"I" + b"9" * (1 << 21) + b"\n"),
        "billion laughs": raw(laughs),
        "deep lists": raw(b"]" * 300_000 + b"a" * 299_999),
        "deep marks": b"\x80\x04" + b"(" * 1_000_000,
        "many objects": b"\x80\x04" + b"}" * 3_000_000,
        "a cycle": b"\x80\x04}\x94X\x01\x00\x00\x00xh\x00s.",
        "keys twice": b"\x80\x04}(" + text("x") + b"N" + text("x") + b"Nu.",
        "keys that are numbers": b"\x80\x04}K\x01Ns.",
        "memo that is not there": raw(b"h\x09"),
        "pop of nothing": b"\x80\x04000.",
        "no end": good[:-1],
        "cut off": good[:500],
        "something after the end": good + b"cos\nmkdir\n",
        "nothing": b"",
        "csv": b"fname,label\n",
        "a list": pickle.dumps([1, 2]),
        "zlib bomb": zlib.compress(bomb),
        "gzip bomb": gzip.compress(bomb, 1),
        "bz2 bomb": bz2.compress(bomb, 1),
        "lzma bomb": lzma.compress(bomb, lzma.FORMAT_ALONE, preset=0),
        "xz bomb": lzma.compress(bomb, preset=0),
    }
    return found


def torch_files(folder: Path, victim: Path) -> dict[str, Path]:
    """Files of weights that are none: name -> path."""
    import torch

    plain = {"a": torch.arange(6.0).reshape(2, 3)}

    def changed(
        name: str,
        swap=lambda member, data: data,
        method: int = zipfile.ZIP_STORED,
        further: dict[str, bytes] | None = None,
    ) -> Path:
        torch.save(plain, folder / "plain.pt")
        with (
            zipfile.ZipFile(folder / "plain.pt") as old,
            zipfile.ZipFile(folder / f"{name}.pt", "w", method) as new,
        ):
            for member in old.namelist():
                new.writestr(member, swap(member, old.read(member)))
            for member, data in (further or {}).items():
                new.writestr(member, data)
        return folder / f"{name}.pt"

    def saved(name: str, value: Any, **more: Any) -> Path:
        torch.save(value, folder / f"{name}.pt", **more)
        return folder / f"{name}.pt"

    def pickled(body: bytes):
        return lambda member, data: body if member.endswith("data.pkl") else data

    def rewritten(old: bytes, new: bytes):
        return lambda member, data: data.replace(old, new) if member.endswith("data.pkl") else data

    found = {
        "reduce": saved("reduce", {"a": Call(os.mkdir, str(victim))}),
        "a whole module": saved("module", torch.nn.Linear(2, 2)),
        "before zip": saved("legacy", plain, _use_new_zipfile_serialization=False),
        "compressed members": changed("deflated", method=zipfile.ZIP_DEFLATED),
        "two pickles": changed("two", further={"other/data.pkl": b"."}),
        "no numbers": changed("short", lambda m, d: d[:4] if "/data/" in m else d),
        "another machine": changed("big", lambda m, d: b"big" if m.endswith("byteorder") else d),
        "stride 0": changed("stride", rewritten(b"K\x02K\x03\x86", b"M\xff\xffM\xff\xff\x86")),
        "eval": changed("eval", pickled(raw(b"cbuiltins\neval\n(" + text("1") + b"tR"))),
        "storage of objects": changed("objects", rewritten(b"FloatStorage", b"EvilStorages")),
        "a path as storage": changed("path", rewritten(b"X\x01\x00\x00\x000", b"X\x02\x00\x00\x00..")),
    }
    found |= {
        "numbers shared a thousand times": shared(folder / "shared.pt"),
        "members within one another": nested(folder / "nested.pt"),
    }
    cut = folder / "cut.pt"
    cut.write_bytes((folder / "plain.pt").read_bytes()[:300])
    text_file = folder / "text.pt"
    text_file.write_text("version https://git-lfs.github.com/spec/v1\n")
    return {**found, "cut off": cut, "a pointer of git-lfs": text_file}


def tensors(parts: list[tuple[str, int]]) -> bytes:
    """A pickle of a dict of vectors: (storage, numbers) of each."""
    number = lambda n: b"J" + n.to_bytes(4, "little")  # noqa: E731
    body = b"\x80\x02}("
    for index, (key, count) in enumerate(parts):
        body += text(f"k{index}") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
        body += b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(count) + b"tQK\x00"
        body += number(count) + b"\x85K\x01\x85\x89}tR"
    return body + b"u."


def shared(path: Path) -> Path:
    """Four megabytes of numbers that a thousand tensors would copy."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", tensors([("0", BOMB >> 6)] * 1000))
        file.writestr("a/data/0", bytes(4 * (BOMB >> 6)))
    return path


def nested(path: Path) -> Path:
    """A megabyte in three hundred members that hold one another: nothing is compressed, and each is no larger
    than the file."""
    data, members = bytes(1 << 20), []
    for index in reversed(range(300)):
        name = f"a/data/{index:03d}"
        members.insert(0, (name, data, head := _local(name, data)))
        data = head + data
    pickled = tensors([(name[7:], len(content) // 4) for name, content, _ in members])
    content = _local("a/data.pkl", pickled) + pickled
    at, directory = len(content), _central("a/data.pkl", pickled, 0)
    for name, inside, head in members:
        directory += _central(name, inside, at)
        at += len(head)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 301, 301, len(directory), len(content) + len(data), 0)
    path.write_bytes(content + data + directory + end)
    return path


def _local(name: str, data: bytes) -> bytes:
    fill = -(34 + len(name)) % 4  # so that every member is of whole numbers
    sizes = struct.pack(
        "<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 4 + fill
    )
    return sizes + name.encode() + struct.pack("<2H", 0x9999, fill) + bytes(fill)


def _central(name: str, data: bytes, at: int) -> bytes:
    sizes = zlib.crc32(data), len(data), len(data), len(name)
    return (
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, *sizes, 0, 0, 0, 0, 0, at) + name.encode()
    )


def main(folder: Path) -> None:
    """Write and read the whole corpus; a line for each that is not refused, and the counts at the end."""
    import resource

    sys.path.insert(0, str(ROOT))
    from earshot.core.errors import Refused, UserError
    from earshot.extractors import torch_weights
    from earshot.features import cache

    victim, corpus, admitted = folder / "victim", {}, []
    for index, (name, data) in enumerate(pickles(victim).items()):
        corpus[name] = folder / f"{index}.pkl"
        corpus[name].write_bytes(data)
    weights = torch_files(folder, victim)
    alarms: list[str] = []
    reading = False
    forbidden = (
        "os.",
        "subprocess.",
        "socket.",
        "shutil.",
        "exec",
        "compile",
        "import",
        "ctypes.",
        "pickle.find_class",
    )

    def audit(event: str, args: tuple) -> None:
        written = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if reading and (event.startswith(forbidden) or written):
            alarms.append(f"{event} {args}"[:200])

    for path in (*corpus.values(), *weights.values()):  # once before the watch: readers import late
        for read in (cache.load, torch_weights.load):
            try:
                read(path)
            except (UserError, Refused):
                pass
    resource.setrlimit(resource.RLIMIT_AS, (_taken() + (64 << 20),) * 2)
    sys.addaudithook(audit)
    for kind, files in (("cache", corpus), ("weights", weights)):
        for name, path in files.items():
            for read in (
                [lambda p: cache.load(p), lambda p: cache.load(p, mmap=False)]
                if kind == "cache"
                else [torch_weights.load]
            ):
                reading = True
                try:
                    read(path)
                    admitted.append(f"{kind}: {name}")
                except (UserError, Refused) as error:
                    if "\n" in str(error):
                        admitted.append(f"{kind}: {name}: more than one line")
                finally:
                    reading = False
    print(*(f"not refused: {line}" for line in admitted), *(f"ran: {line}" for line in alarms), sep="\n")
    print(f"refused: {len(corpus)} pickles and {len(weights)} files of weights; victim: {victim.exists()}")
    sys.exit(bool(admitted or alarms or victim.exists()))


def _taken() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
