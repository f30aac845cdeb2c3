"""The clips of a cache for the doctor: each with an embedding, a place (fold or split), a label, a length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from earshot.core import kinds
from earshot.core.errors import UserError
from earshot.core.file_names import list_readings
from earshot.core.kinds import Kind
from earshot.features.cache import Cache
from earshot.features.source_files import INDEX, Sources
from earshot.training import folds

KINDS = ("vector", "sequence", "spectrogram", "grid")  # what clips can be compared by, best first
WIDEST = 1024  # channels x bands; wider views are first averaged over the bands
ROWS = 256  # read at a time


@dataclass(frozen=True)
class Clips:
    """Every clip of a cache: training clips first, then the hold-out, then those to submit.

    ids, place, groups, seconds, digests: (clips,). `place` is the fold of a training clip, by the number that
    --fold takes, else "test" or "subm"; "" without folds. `labels` (training clips,) class indices, or
    (training clips, classes) of 0 and 1. `embeddings` (clips, dims), NaN for clips without audio, None where
    no view can be compared. `seconds` of the file, NaN where unknown. `fold_note` says which folds these are,
    `fold_error` why there are none.
    """

    cache: Cache
    view: str | None
    kind: Kind | None
    ids: np.ndarray
    splits: np.ndarray
    place: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    names: list[str]
    embeddings: np.ndarray | None
    seconds: np.ndarray
    covered: np.ndarray
    digests: list[str]
    fold_note: str
    fold_error: str | None

    @property
    def train(self) -> np.ndarray:
        """(clips,) bool: the training clips."""
        return self.splits == "train"

    @property
    def embedded(self) -> np.ndarray:
        """(clips,) bool: the clips that have an embedding."""
        return np.isfinite(self.embeddings).all(1)

    @property
    def targets(self) -> np.ndarray:
        """(training clips, classes) of 0 and 1."""
        if self.labels.ndim == 2:
            return self.labels
        return np.eye(len(self.cache.classes), dtype=np.int64)[self.labels]

    @property
    def folds(self) -> np.ndarray:
        """(training clips,) fold numbers, all -1 where there are none."""
        return np.array([int(place) if place else -1 for place in self.place[self.train]])

    def number_parts(self) -> np.ndarray:
        """(clips,) a number for what is known to belong together: a group or a single clip; the hold-out and
        the submission are one each."""
        keys = []
        for index, (split, group) in enumerate(zip(self.splits, self.groups, strict=True)):
            own = f"g{group}" if group else f"i{index}"
            keys.append(own if split == "train" else split)
        return np.unique(keys, return_inverse=True)[1]


def load_clips(folder: Path, run_folds: dict[str, int] | None = None) -> Clips:
    """Read a cache, with the folds of a run if given, else the data's own, else those train.py would make.

    Args:
        folder: the cache.
        run_folds: id -> fold of a run's out-of-fold predictions.
    Raises:
        UserError: no cache, or a damaged one.
    """
    cache = Cache(folder)
    parts = [(name, cache.split(name)) for name in ("train", "test", "subm") if cache.has_split(name)]
    view = kinds.choose(KINDS, cache.kinds)
    kind = cache.kinds.get(view or "")
    train = parts[0][1]
    labels = train["labels"]
    if not cache.multilabel:
        number_of = {name: number for number, name in enumerate(cache.classes)}
        labels = np.array([number_of[label] for label in labels.tolist()], dtype=np.int64)
    place, fold_note, fold_error = _assign_places(train, labels, run_folds)
    sizes = [len(content["ids"]) for _, content in parts]
    splits = np.repeat([name for name, _ in parts], sizes)
    ids, span = np.concatenate([content["ids"] for _, content in parts]), cache.manifest["span"]
    seconds, digests = _find_files(folder, ids)
    covered = np.concatenate([_compute_coverage(content) for _, content in parts])
    # a clip that does not fill its window is as long as what the window holds of it
    padded = np.where(covered < span - 1e-3, covered, np.nan)
    embeddings = None
    if view is not None and kind is not None:
        embeddings = np.concatenate([embed_clips(content, view, kind, span) for _, content in parts])
    return Clips(
        cache,
        view,
        kind,
        ids,
        splits,
        np.concatenate([place, splits[sizes[0] :]]),
        np.concatenate([content["groups"] for _, content in parts]),
        labels,
        _list_labels(parts, cache),
        embeddings,
        np.where(np.isnan(seconds), padded, seconds),
        covered,
        digests,
        fold_note,
        fold_error,
    )


def _assign_places(
    train: dict, labels: np.ndarray, run_folds: dict[str, int] | None
) -> tuple[np.ndarray, str, str | None]:
    if run_folds is not None:
        places = np.array([str(run_folds.get(str(id), "")) for id in train["ids"]], dtype="U12")
        return places, f"the run's {len(set(places) - {''})} folds", None
    try:
        numbers, fold_note = folds.assign_folds(labels, train["folds"], train["groups"], None, 0)
    except UserError as error:
        return np.full(len(train["ids"]), "", dtype="U12"), "no folds", str(error)
    return np.where(numbers < 0, "", numbers.astype("U12")), fold_note, None


def _list_labels(parts: list, cache: Cache) -> list[str]:
    """A label per clip as text; "" for clips to submit."""
    names = []
    for name, content in parts:
        if name == "subm":
            names += [""] * len(content["ids"])
        elif content["labels"].ndim == 2:
            names += ["|".join(cache.classes[c] for c in np.flatnonzero(row)) for row in content["labels"]]
        else:
            names += content["labels"].tolist()
    return names


def _compute_coverage(content: dict) -> np.ndarray:
    """(clips,) seconds of each clip that its windows cover, NaN without windows."""
    covered = np.full(len(content["ids"]), -np.inf)
    np.maximum.at(covered, content["clip"], (content["start"] + content["length"]).astype(np.float64))
    return np.where(np.isfinite(covered), covered, np.nan)


def _find_files(folder: Path, ids: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Seconds and SHA-256 of the clips' files, from the index that get_features.py keeps beside the caches.

    Paths in the index are matched to ids in the cache by file name; ambiguous names are left out.
    """
    known = Sources(folder.parent / INDEX).known
    by_name: dict[str, list[tuple[str, dict]]] = {}
    for path, entry in known.items():
        for text in list_readings(path):
            file = PurePosixPath(text)
            for name in {file.name, file.stem}:
                by_name.setdefault(name, []).append((text, entry))
    seconds, digests = np.full(len(ids), np.nan), []
    for index, id in enumerate(map(str, ids)):
        matches = by_name.get(PurePosixPath(id).name, [])
        exact = [entry for path, entry in matches if path.endswith("/" + id)]
        entries = exact or [entry for _, entry in matches]
        contents = {entry.get("sha256", "") for entry in entries}
        digests.append(contents.pop() if len(contents) == 1 else "")
        if digests[-1] and "seconds" in entries[0]:
            seconds[index] = entries[0]["seconds"]
    return seconds, digests


def embed_clips(content: dict, view: str, kind: Kind, span: float) -> np.ndarray:
    """An embedding per clip: the mean over its windows; for a view in time, mean and standard deviation over
    the frames that are not padding.

    Args:
        content: a split's arrays.
        view: its name. kind: a vector is taken as it is. Others (rows, D, F, T) give a mean and a standard
            deviation per channel and band. A spectrogram's mean level is subtracted, because copies differ in
            loudness.
        span: seconds of a window, padding included.
    Returns:
        (clips, dims) float32, NaN for clips without rows or with values that are not finite.
    """
    array, clip = content[view], content["clip"]
    total, counts = None, np.bincount(clip, minlength=len(content["ids"]))
    for first in range(0, len(clip), ROWS):
        rows = slice(first, first + ROWS)
        piece = np.asarray(array[rows], dtype=np.float32)
        if kind == "vector":
            values = piece.reshape(len(piece), -1)
        else:
            values = _compute_statistics(piece, content["length"][rows] / span, kind)
        if total is None:
            total = np.zeros((len(counts), values.shape[1]), dtype=np.float32)
        np.add.at(total, clip[rows], values)
    if total is None:
        return np.full((len(counts), 1), np.nan, dtype=np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = total / counts[:, None].astype(np.float32)
    return np.where(np.isfinite(total).all(1)[:, None], total, np.float32(np.nan))


def _compute_statistics(piece: np.ndarray, share: np.ndarray, kind: Kind) -> np.ndarray:
    rows, channels, bands, frames = piece.shape
    piece = piece.mean(2) if channels * bands > WIDEST else piece.reshape(rows, channels * bands, frames)
    real = np.clip(np.ceil(share * frames - 1e-6), 1, frames)[:, None]
    mask = (np.arange(frames) < real)[:, None]
    mean = (piece * mask).sum(2) / real
    deviation = np.sqrt((((piece - mean[:, :, None]) * mask) ** 2).sum(2) / real)
    if kind == "spectrogram":
        mean = mean - mean.mean(1, keepdims=True)
    return np.concatenate([mean, deviation], 1)


def find_constant(clips: Clips) -> np.ndarray:
    """Indices of clips whose embedding is constant: silence, or a damaged feature."""
    spread = np.nan_to_num(np.ptp(clips.embeddings, axis=1), nan=math.inf)
    return np.flatnonzero(spread < 1e-6)
