"""Caches on disk: pickles of plain arrays, written atomically, memory-mapped, and read without trusting them."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot.errors import UserError
from earshot.files import digest, read_json, replacing
from earshot.fingerprint import fingerprint, plain

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "test", "subm")
MANIFEST = "manifest.json"
VERSION = 1


def dump(path: Path | str, content: dict[str, Any]) -> None:
    """Write a dict of numpy arrays, strings, numbers and dicts of these as an uncompressed joblib pickle, atomically.

    Equal content gives equal bytes. Raises TypeError for object arrays: they could not be read back safely.
    """
    import joblib
    import numpy as np

    for key, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            raise TypeError(f"{key} is an array of Python objects")
    # Pickle writes a repeated string object once and refers back to it: fresh copies make the bytes depend on values only.
    content = {str(k): v if isinstance(v, np.ndarray) else plain(v) for k, v in content.items()}
    with replacing(path) as file:
        joblib.dump(content, file)


def load(path: Path | str, mmap: bool = True) -> dict[str, Any]:
    """Read what `dump` wrote: a dict of arrays (memory-mapped read-only unless `mmap` is False), strings and numbers.

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


class Cache:
    """A finished cache folder: its manifest, its labels and its splits.

    Raises:
        UserError: no cache there, one that is not finished, or one that another version made.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise UserError(f"{folder} is no cache (it has no {MANIFEST}): make one with get_features.py")
        self.manifest = read_json(self.folder / MANIFEST)
        if not isinstance(self.manifest, dict) or "record" not in self.manifest:
            raise UserError(f"{folder} is no cache (its {MANIFEST} is another program's): make one with get_features.py")
        made = self.manifest.get("version")
        if made != VERSION:
            raise UserError(f"{folder} was made by cache version {made}, this is {VERSION}: extract anew with --fresh")
        if not self.manifest.get("complete"):
            raise UserError(f"{folder} is not finished: run get_features.py again, it continues where it stopped")
        self._sound: set[str] = set()
        self.classes = [str(label) for label in self._load("unique_labels")["unique_labels"]]
        self.record: dict = self.manifest["record"]
        self.fingerprint: str = self.manifest["fingerprint"]
        if fingerprint(self.record) != self.fingerprint:
            raise UserError(f"{folder}/{MANIFEST} was changed by hand: extract anew with --fresh")

    def _load(self, name: str) -> dict[str, Any]:
        return load(self.folder / f"{name}.pkl")

    def has(self, split: str) -> bool:
        """Does the cache hold clips of this split?"""
        return split in self.manifest["splits"]

    def split(self, name: str) -> dict[str, Any]:
        """One split's arrays: ids, labels, folds, groups per clip; clip, start, length and the views per row.

        Raises:
            UserError: the file is damaged, or belongs to another cache.
        """
        return self._sound_rows(name, "ids", "labels", "folds", "groups")

    def augmented(self) -> dict[str, Any] | None:
        """The augmented copies of the training clips, None where the cache has none.

        Per row `clip` and `partner` (indices of the training split's clips; -1: not mixed), `copy`, `share` (the clip's own
        part of a mix's label, 1 where it is not mixed), start, length and the views.

        Raises:
            UserError: the file is damaged, or belongs to another cache.
        """
        if "augmented" not in self.manifest:
            return None
        return self._sound_rows("augmented", "copy", "partner", "share")

    def _sound_rows(self, name: str, *further: str) -> dict[str, Any]:
        path = self.folder / f"{name}.pkl"
        if name not in self._sound:  # gigabytes need not be read twice in one process
            if not path.is_file() or digest(path) != self.manifest["sha256"][path.name]:
                raise UserError(f"{path} is missing or damaged (its checksum differs): extract anew with --fresh")
            self._sound.add(name)
        content = self._load(name)
        found = (content.get("meta") or {}).get("fingerprint")
        if found != self.fingerprint:
            raise UserError(f"{self.folder}/{name}.pkl was made from something else (fingerprint {found} there, "
                            f"{self.fingerprint} in {MANIFEST}): extract anew with --fresh")
        missing = [key for key in (*further, "clip", "start", "length", *self.shapes) if key not in content]
        if missing:
            raise UserError(f"{self.folder}/{name}.pkl lacks {missing[0]}: extract anew with --fresh")
        return content

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """(D, F, T) per view."""
        return {view: tuple(shape) for view, shape in self.manifest["shapes"].items()}

    @property
    def multilabel(self) -> bool:
        """May a clip have several labels? Then a split's labels are (clips, classes) of 0 and 1."""
        return self.record.get("task") == "multilabel"

    def prior(self) -> np.ndarray:
        """(classes,) share of each class among the training clips: the answer for clips that cannot be heard.

        Shares of clips; they need not sum to 1 where a clip may have several labels.
        """
        import numpy as np

        labels = self._load("train")["labels"]
        if self.multilabel:
            return labels.mean(0, dtype=np.float64)
        counts = np.array([(labels == label).sum() for label in self.classes], dtype=np.float64)
        return counts / counts.sum()


def find(data: Path | str) -> list[Path]:
    """The cache folders below `data`: <data>/<competition>/<cache>/, sorted; not a data set's own manifest.json."""
    found = []
    for manifest in sorted(Path(data).glob(f"*/*/{MANIFEST}")):
        try:
            ours = "record" in read_json(manifest)
        except (UserError, TypeError):
            ours = False
        if ours:
            found.append(manifest.parent)
    return found


def remove_shards(folder: Path) -> None:
    """Remove the shards of a finished cache."""
    shutil.rmtree(folder / "shards", ignore_errors=True)
