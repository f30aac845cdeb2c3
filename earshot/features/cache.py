"""Caches on disk: pickles of plain arrays, written atomically, read memory-mapped, verified before use."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot.core import checksums, kinds
from earshot.core.errors import UserError
from earshot.core.files import hash_file, hash_value, read_json, replace_file
from earshot.core.fingerprint import compute_fingerprint, to_json
from earshot.core.kinds import Kind
from earshot.core.plain_pickle import load
from earshot.features import schema

if TYPE_CHECKING:
    import numpy as np

MAKE_ANEW = "run get_features.py again, which sets it aside and makes the cache again"
MANIFEST = "manifest.json"
VERSION = 2  # 2: checksums over the manifest, the shards and the csv files


@dataclass(frozen=True)
class StreamedArray:
    """An array that is written piece by piece and never held whole; `pieces` yields its rows in order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Iterable[np.ndarray]]


def dump(path: Path | str, content: dict[str, Any]) -> None:
    """Write a dict of numpy arrays, strings, numbers and dicts of these as an uncompressed joblib pickle,
    atomically.

    Equal content gives equal bytes, and a `StreamedArray` gives the bytes of the whole array.

    Raises:
        TypeError: an array of objects, which could not be read back safely.
    """
    import numpy as np
    from joblib.numpy_pickle import NumpyPickler

    class Pickler(NumpyPickler):
        """joblib's pickler, extended by `StreamedArray`."""

        def save(self, value: Any) -> None:
            if type(value) is not StreamedArray:
                return super().save(value)
            wrapper = self._create_array_wrapper(np.broadcast_to(np.zeros((), value.dtype), value.shape))
            super().save(wrapper)
            self.framer.commit_frame(force=True)  # as joblib does: the array follows its wrapper
            written = 0
            for number, piece in enumerate(value.pieces()):
                if number:
                    self.file_handle.write(piece.tobytes())
                else:
                    wrapper.write_array(piece, self)  # the padding, too
                written += len(piece)
            if written != value.shape[0]:
                raise ValueError(f"{path}: {written} rows of {value.shape[0]}")

    for key, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            raise TypeError(f"{key} is an array of Python objects")
    # Pickle writes a repeated string object once and refers back to it: fresh copies make the bytes
    # depend on values only.
    content = {
        str(k): v if isinstance(v, (np.ndarray, StreamedArray)) else to_json(v) for k, v in content.items()
    }
    with replace_file(path) as file:
        Pickler(file).dump(content)


class Cache:
    """A finished cache folder: its manifest, its labels and its splits.

    Raises:
        UserError: there is no cache, or it is unfinished, or of another version.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise UserError(f"{folder} is not a cache (it has no {MANIFEST}): make one with get_features.py")
        self.manifest = read_manifest(self.folder / MANIFEST)
        if not isinstance(self.manifest, dict) or "record" not in self.manifest:
            raise UserError(
                f"{folder} is not a cache (its {MANIFEST} is another program's): make one with "
                "get_features.py"
            )
        made = self.manifest.get("version")
        if made != VERSION:
            raise UserError(
                f"{folder} was made by cache version {made}, this is version {VERSION}: extract again with "
                "--fresh"
            )
        if not self.manifest.get("complete"):
            raise UserError(f"{folder} is not finished: run get_features.py again, which continues it")
        try:
            checksums.read(self.folder / MANIFEST)
        except checksums.CorruptFile as error:
            raise UserError(f"{error}: {MAKE_ANEW}") from None
        wrong = schema.validate_manifest(self.manifest)
        if wrong:
            raise UserError(f"{self.folder / MANIFEST} {wrong}: extract again with --fresh")
        self._sound: set[str] = set()
        self.classes = self._load_labels()
        self.record: dict = self.manifest["record"]
        self.fingerprint: str = self.manifest["fingerprint"]
        if compute_fingerprint(self.record) != self.fingerprint:
            raise UserError(f"{folder}/{MANIFEST} was changed by hand: extract again with --fresh")
        found, wanted = hash_value(self.classes)[:16], self.record.get("labels")
        if wanted not in (None, found):
            raise UserError(
                f"{folder}/unique_labels.pkl has other labels, or another order, than the features were made "
                f"with (digest {found} there, {wanted} in {MANIFEST}; {len(self.classes)} labels, first "
                f"{self.classes[:1]}): extract again with --fresh"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sound": set()}  # another machine may have other files

    def __repr__(self) -> str:
        splits = ", ".join(f"{count['clips']} {split}" for split, count in self.manifest["splits"].items())
        views = ", ".join(f"{view} {shape}" for view, shape in self.shapes.items())
        return f"Cache({self.folder}: {splits}; {len(self.classes)} classes; {views})"

    def _load_labels(self) -> list[str]:
        import numpy as np

        found = self._load("unique_labels").get("unique_labels")
        if (
            not isinstance(found, np.ndarray)
            or found.dtype.kind != "U"
            or found.ndim != 1
            or len(set(found.tolist())) < len(found)
        ):
            raise UserError(
                f"{self.folder}/unique_labels.pkl holds no list of labels: extract again with --fresh"
            )
        return found.tolist()

    def _load(self, name: str) -> dict[str, Any]:
        self.check(f"{name}.pkl")
        return load(self.folder / f"{name}.pkl")

    def check(self, name: str) -> None:
        """Raise UserError where one of the cache's files was changed; each is read once a process."""
        if name not in self._sound:  # gigabytes need not be read twice
            path = self.folder / name
            if checksums.find_digests(self.folder, [name])[name] != self.manifest["sha256"].get(name, ""):
                raise UserError(f"{path} is missing or damaged (its checksum differs): {MAKE_ANEW}")
            self._sound.add(name)

    def digests(self) -> np.ndarray | None:
        """(clips, 32) uint8: the SHA-256 of each training clip's file, zeros where it is unknown; None for a
        cache of version 0.1.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "digests.pkl"
        if "digests" not in self.manifest or not path.is_file():
            return None
        if hash_file(path) != self.manifest["digests"]:
            raise UserError(f"{path} is damaged (its checksum differs): {MAKE_ANEW}")
        found, clips = load(path).get("digests"), self.manifest["splits"]["train"]["clips"]
        if found is None or getattr(found, "dtype", None) != "uint8" or found.shape != (clips, 32):
            raise UserError(f"{self.folder}/digests.pkl holds no digests of {clips} files: {MAKE_ANEW}")
        return found

    def has_split(self, split: str) -> bool:
        """Does the cache hold clips of this split?"""
        return split in self.manifest["splits"]

    def split(self, name: str) -> dict[str, Any]:
        """One split's arrays: ids, labels, folds, groups per clip; clip, start, length and the views per row.

        The training split has `weights` besides where some clips count more than others, float32 per clip.
        Its `folds` are the data's own: -1 where a clip has none, -2 where it is to be trained on only.

        Raises:
            UserError: the file is damaged, or belongs to another cache.
        """
        if not self.has_split(name):
            raise UserError(
                f"{self.folder} has no clips of the split {name}: extract again with get_features.py"
                + (", without --for-run" if name == "train" else "")
            )
        return self._sound_rows(name)

    def augmented(self) -> dict[str, Any] | None:
        """The augmented copies of the training clips, None where the cache has none.

        Per row `clip` and `partner` (indices of the training split's clips; -1: not mixed), `copy`, `share`
        (of the clip's own label in a mix, 1 if it is not mixed), start, length and the views.

        Raises:
            UserError: the file is damaged, or belongs to another cache.
        """
        if "augmented" not in self.manifest:
            return None
        return self._sound_rows("augmented")

    def _sound_rows(self, name: str) -> dict[str, Any]:
        content = self._load(name)
        found = (content.get("meta") or {}).get("fingerprint")
        if found != self.fingerprint:
            raise UserError(
                f"{self.folder}/{name}.pkl was made from something else (fingerprint {found} there, "
                f"{self.fingerprint} in {MANIFEST}): extract again with --fresh"
            )
        clips = self.manifest["splits"].get("train" if name == "augmented" else name, {}).get("clips")
        wrong = schema.validate_arrays(content, clips, self.shapes, self.classes, name == "augmented")
        if wrong:
            raise UserError(f"{self.folder}/{name}.pkl {wrong}: extract again with --fresh")
        return content

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """(D, F, T) per view."""
        return {view: tuple(shape) for view, shape in self.manifest["shapes"].items()}

    @property
    def kinds(self) -> dict[str, Kind]:
        """See `get_kinds`."""
        return get_kinds(self.manifest)

    @property
    def multilabel(self) -> bool:
        """May a clip have several labels? Then a split's labels are (clips, classes) of 0 and 1."""
        return self.record.get("task") == "multilabel"

    def prior(self) -> np.ndarray:
        """(classes,) share of each class among the training clips, the prediction for unreadable clips.

        Shares of clips, by their weights; they need not sum to 1 where a clip may have several labels.
        """
        import numpy as np

        train = self.split("train")
        labels = train["labels"]
        weights = np.asarray(train.get("weights", np.ones(len(labels))), dtype=np.float64)
        if self.multilabel:
            return weights @ labels / weights.sum()
        counts = np.array([weights @ (labels == label) for label in self.classes])
        return counts / counts.sum()


def get_kinds(manifest: dict[str, Any]) -> dict[str, Kind]:
    """The kind of each view, in the order of the views; derived where an older cache declares none."""
    declared = manifest.get("kinds", {})
    return {
        view: declared.get(view) or kinds.derive(view, shape) for view, shape in manifest["shapes"].items()
    }


def find_folders(data: Path | str) -> list[Path]:
    """The cache folders below `data`: <data>/<competition>/<cache>/, sorted; not a data set's own
    manifest.json."""
    return [path.parent for path in sorted(Path(data).glob(f"*/*/{MANIFEST}")) if is_cache(path.parent)]


def remove_shards(folder: Path) -> None:
    """Remove the shards of a finished cache and files that were set aside."""
    shutil.rmtree(folder / "shards", ignore_errors=True)
    for path in folder.glob("*.damaged"):
        path.unlink()


def is_cache(folder: Path) -> bool:
    """Does a folder hold a manifest of ours, of whatever version or state?"""
    try:
        found = read_json(folder / MANIFEST)
    except UserError:
        return False
    return isinstance(found, dict) and "record" in found


def is_cache_file(name: str) -> bool:
    """May a file or folder of this name lie in a cache's folder?"""
    return (
        name in (*schema.FILES, MANIFEST, "shards", "Spectrogram")
        or name.startswith(".")
        or name.endswith((".tmp", ".damaged"))
    )


def read_manifest(path: Path) -> Any:
    """A manifest of any version, its checksum not verified; UserError where it is not JSON."""
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"{str(error).partition(': delete it')[0]}: {MAKE_ANEW}") from None
