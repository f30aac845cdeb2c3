"""Schemas of a cache's files, which may be untrusted: they are validated before arrays are indexed and before
names in the manifest become paths."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict, get_args

import numpy as np

from earshot.core.kinds import Kind
from earshot.core.schema import Column, Count, Digest, Size, TwoNames, find_array_fault, find_fault
from earshot.core.settings import Bounds
from earshot.features.reasons import NOTES

Split = Literal["train", "test", "subm"]
CacheFile = Literal[
    "train.pkl",
    "test.pkl",
    "subm.pkl",
    "augmented.pkl",
    "unique_labels.pkl",
    "digests.pkl",
    "bad_audio.csv",
    "sample_submission.csv",
    "solution.csv",
]
SPLITS: tuple[str, ...] = get_args(Split)
FILES: tuple[str, ...] = get_args(CacheFile)


class FeaturesRecord(TypedDict):
    """The part of a record that a recipe's features are compared with."""

    extractor: str
    settings: dict
    audio: dict
    window: dict
    augment: NotRequired[dict]


class CacheRecord(FeaturesRecord):
    """The settings and data that the fingerprint is computed from."""

    clips: dict[str, str]
    weights: Any


class SplitCounts(TypedDict):
    """Of one split."""

    clips: Count
    rows: Count


class CopyCounts(TypedDict):
    """Of the augmented copies: copies of each clip, rows in all."""

    copies: Count
    rows: Count


class NotedClips(TypedDict):
    """How many clips have a note (`reasons.NOTES`), and the id of the first."""

    clips: Count
    first: str


class AnyManifest(TypedDict):
    """The manifest of a cache of any version."""

    record: FeaturesRecord


class BegunManifest(TypedDict):
    """The manifest of a cache that is not complete."""

    fingerprint: str
    record: CacheRecord
    recipe: NotRequired[str | None]
    weights: NotRequired[str | None]
    separator: NotRequired[str | None]


class Manifest(BegunManifest):
    """The manifest of a finished cache."""

    splits: Annotated[dict[Split, SplitCounts], Bounds(1)]
    augmented: NotRequired[CopyCounts]
    shapes: Annotated[dict[str, Annotated[list[Size], Bounds(3, 3)]], Bounds(1)]
    kinds: NotRequired[dict[str, Kind]]
    span: Annotated[float, Bounds(sys.float_info.min)]
    bad: Count
    cancelled: NotRequired[NotedClips]
    partial: NotRequired[NotedClips]
    columns: TwoNames
    sha256: dict[CacheFile, Digest]


class ShardMeta(TypedDict):
    """The seconds that the time axis of a shard's views stands for."""

    span: Annotated[float, Bounds(sys.float_info.min)]


class AnyShard(TypedDict):
    """A shard, besides its arrays."""

    meta: ShardMeta


PER_ROW = {"clip": Column("i", "rows"), "start": Column("f", "rows"), "length": Column("f", "rows")}
PER_COPY = {"copy": Column("i", "rows"), "partner": Column("i", "rows"), "share": Column("f", "rows")}
PER_CLIP = {"ids": Column("U", "clips"), "folds": Column("i", "clips"), "groups": Column("U", "clips")}
UNREADABLE = {"bad": Column("i", "unreadable clips"), "reason": Column("U", "unreadable clips")}


def validate_record(manifest: Any) -> str | None:
    """What a manifest of any version lacks for comparison with a recipe; None where nothing is missing."""
    return find_fault(AnyManifest, manifest)


def validate_manifest(manifest: Any) -> str | None:
    """What a manifest of this version lacks, or has of another type; None where it can be used.

    Args:
        manifest: the JSON's value. One that is not complete names no files yet.
    """
    complete = isinstance(manifest, dict) and manifest.get("complete")
    fault = find_fault(Manifest if complete else BegunManifest, manifest)
    if fault or not complete:
        return fault
    splits = manifest["splits"]
    if not {"train", "subm"} & set(splits):
        return "has neither training clips nor clips to submit"
    if not set(splits) <= set(manifest["record"]["clips"]):
        return "has no record of the clips of each split"
    augmented = ["augmented"] if "augmented" in manifest else []
    for name in ("unique_labels", *splits, *augmented):
        if f"{name}.pkl" not in manifest["sha256"]:
            return f"has no sha256 of {name}.pkl"
    return None


def validate_arrays(
    content: dict[str, Any],
    clips: int,
    shapes: Mapping[str, tuple[int, ...]],
    classes: list[str],
    copies: bool,
) -> str | None:
    """The fault in the arrays of a split, or of the augmented copies; None where they are valid.

    Args:
        clips: how many the manifest has; of the copies, how many training clips there are.
        shapes: (D, F, T) per view, from the manifest.
        copies: are these the copies?
    """
    columns = {view: Column("fi", "rows", shape) for view, shape in shapes.items()} | PER_ROW
    if copies:
        columns |= PER_COPY
    else:
        has_columns = getattr(content.get("labels"), "ndim", 1) == 2
        labels = Column("i", "clips", (len(classes),)) if has_columns else Column("U", "clips")
        columns |= PER_CLIP | {"labels": labels}
        if "weights" in content:
            columns["weights"] = Column("f", "clips")
    fault = find_array_fault(content, columns, {"clips": clips})
    if fault:
        return fault
    clip = content["clip"]
    if not _is_within(clip, 0, clips):
        return f"has rows of clip {int(clip.min())} to {int(clip.max())}, of {clips}"
    if not (np.isfinite(content["start"]).all() and np.isfinite(content["length"]).all()):
        return "has times that are not finite"
    return _find_copies_fault(content, clips) if copies else _find_clips_fault(content, classes)


def validate_shard(content: dict[str, Any], first: int, last: int, clips: int, copies: bool) -> str | None:
    """The fault in the arrays of a shard; None where they are valid.

    Args:
        first, last: the clips [first, last) of its split that it stands for, or the copies.
        clips: how many training clips there are.
        copies: is it a shard of copies?
    """
    views = list_views(content)
    notes = [note for note in NOTES if note in content]
    columns = {view: Column("fi", "rows", array.shape[1:]) for view, array in views.items()}
    columns |= PER_ROW | (PER_COPY if copies else UNREADABLE) | {note: Column("i", note) for note in notes}
    fault = find_fault(AnyShard, content) or find_array_fault(content, columns, {})
    if fault:
        return fault
    if not views or any(array.dtype not in (np.float16, np.int16) for array in views.values()):
        return "has no views, or one that is neither float16 nor int16"
    if not all(array.flags.c_contiguous for array in views.values()):
        return "has a view in another order of its axes"  # its bytes are read as they lie in the file
    if not all(np.isfinite(content[key]).all() and (content[key] >= 0).all() for key in ("start", "length")):
        return "has invalid times"
    clip = content["clip"]
    if copies:
        fault = None if _is_within(clip, 0, clips) else "has copies of clips that are not there"
        return fault or _find_copies_fault(content, clips)
    if (np.diff(clip) < 0).any() or sorted([*np.unique(clip).tolist(), *content["bad"].tolist()]) != list(
        range(first, last)
    ):
        return "does not have each of its clips once, in order, as rows or as bad"
    if not all(_is_within(content[note], first, last) for note in notes):
        return "has notes on clips of other shards"
    return None


def list_views(content: dict[str, Any]) -> dict[str, np.ndarray]:
    """The views among the arrays of a shard: those of four axes."""
    return {key: array for key, array in content.items() if getattr(array, "ndim", 0) == 4}


def _is_within(indices: np.ndarray, low: int, high: int) -> bool:
    return not len(indices) or low <= int(indices.min()) <= int(indices.max()) < high


def _find_copies_fault(content: dict[str, Any], clips: int) -> str | None:
    if not _is_within(content["partner"], -1, clips) or (content["copy"] < 0).any():
        return "has copies of clips that are not there"
    share = content["share"]
    return None if ((share >= 0) & (share <= 1)).all() else "has shares outside 0 and 1"


def _find_clips_fault(content: dict[str, Any], classes: list[str]) -> str | None:
    if len(np.unique(content["ids"])) != len(content["ids"]):
        return "has an id twice"
    weights = content.get("weights", np.ones(1))
    if not (np.isfinite(weights) & (weights > 0)).all():
        return "has a weight that is not a number above 0"
    labels = content["labels"]
    if labels.ndim == 2:
        return None if np.isin(labels, (0, 1)).all() else "has labels other than 0 and 1"
    unknown = np.setdiff1d(labels, [*classes, ""])
    if not len(unknown):
        return None
    more = " ..." if len(classes) > 5 else ""
    known = f"{', '.join(classes[:5])}{more} ({len(classes)})"
    return f"has the label {unknown[0]}, and unique_labels.pkl has {known}"
