"""Do a cache's arrays hold together? Whoever made them: what does not is refused before it can be indexed
with."""

from __future__ import annotations

from typing import Any

import numpy as np

PER_CLIP = {"ids": "U", "labels": "Ui", "folds": "i", "groups": "U"}
WEIGHTS = {"weights": "f"}  # per clip, too, where some count more than others
PER_ROW = {"clip": "i", "start": "f", "length": "f"}
PER_COPY = {"copy": "i", "partner": "i", "share": "f"}


def fault(
    content: dict[str, Any], clips: int, shapes: dict[str, tuple[int, ...]], classes: list[str], copies: bool
) -> str | None:
    """What is wrong with the arrays of a split, or of the augmented copies; None where they hold together.

    Args:
        clips: how many the manifest speaks of; of the copies, how many training clips there are.
        shapes: (D, F, T) per view, as the manifest has them.
        classes: the labels.
        copies: are these the copies?
    """
    per_clip = PER_CLIP | (WEIGHTS if "weights" in content else {})
    kinds = {**PER_ROW, **(PER_COPY if copies else per_clip)}
    for key in (*kinds, *shapes):
        if key not in content:
            return f"lacks {key}"
        if not isinstance(content[key], np.ndarray):
            return f"has no array {key}"
    for key, kind in kinds.items():
        array = content[key]
        if array.dtype.kind not in kind or array.ndim != 1 + (key == "labels" and array.dtype.kind == "i"):
            return f"has {key} of kind {array.dtype}, {array.ndim} axes"
        expected = clips if key in per_clip else len(content["clip"])
        if len(array) != expected:
            return f"has {len(array)} {key} for {expected} {'clips' if key in per_clip else 'rows'}"
    for view, shape in shapes.items():
        array = content[view]
        if array.dtype.kind not in "fi" or tuple(array.shape) != (len(content["clip"]), *shape):
            return f"has {view} of shape {tuple(array.shape)}, expected {(len(content['clip']), *shape)}"
    clip = content["clip"]
    if len(clip) and not 0 <= int(clip.min()) <= int(clip.max()) < clips:
        return f"has rows of clip {int(clip.min())} to {int(clip.max())}, of {clips}"
    if not (np.isfinite(content["start"]).all() and np.isfinite(content["length"]).all()):
        return "has times that are not finite"
    return _copies(content, clips) if copies else _clips(content, classes)


def shard_fault(content: dict[str, Any], first: int, last: int, clips: int, copies: bool) -> str | None:
    """What is wrong with the arrays of a shard; None where they hold together.

    Args:
        first, last: the clips [first, last) of its split that it stands for, or the copies.
        clips: how many training clips there are.
        copies: is it a shard of copies?
    """
    kinds = {**PER_ROW, **(PER_COPY if copies else {"bad": "i", "reason": "U"})}
    for key, kind in kinds.items():
        array = content.get(key)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in kind or array.ndim != 1:
            return f"has no array {key}"
    meta, rows = content.get("meta"), len(content["clip"])
    views = {key: array for key, array in content.items() if getattr(array, "ndim", 0) == 4}
    if (
        not isinstance(meta, dict)
        or type(meta.get("span")) not in (int, float)
        or not 0 < meta["span"] < float("inf")
        or not views
    ):
        return "has no views, or no span"
    if any(array.dtype not in (np.float16, np.int16) for array in views.values()):
        return "has a view that is neither float16 nor int16"
    wrong = [key for key in (*kinds, *views) if key not in ("bad", "reason") and len(content[key]) != rows]
    if wrong or not copies and len(content["bad"]) != len(content["reason"]):
        return f"has another number of {(wrong or ['reason'])[0]} than of the rest"
    for key in ("clip",) if copies else ("clip", "bad"):
        low, high = (0, clips) if copies else (first, last)
        if len(content[key]) and not low <= int(content[key].min()) <= int(content[key].max()) < high:
            return f"speaks of clips that it does not hold ({key})"
    if not all(np.isfinite(content[key]).all() and (content[key] >= 0).all() for key in ("start", "length")):
        return "has times that are none"
    if copies:
        return _copies(content, clips)
    clip = content["clip"]
    if (np.diff(clip) < 0).any() or sorted([*np.unique(clip).tolist(), *content["bad"].tolist()]) != list(
        range(first, last)
    ):
        return "does not have each of its clips once, in order, heard or bad"
    return None


def form(content: dict[str, Any]) -> tuple[tuple[tuple[str, tuple[int, ...], str], ...], float]:
    """Name, (D, F, T) and kind of number of each view of a sound shard, and the seconds that their time axis
    stands for."""
    views = {key: array for key, array in content.items() if getattr(array, "ndim", 0) == 4}
    return tuple(
        sorted((key, tuple(array.shape[1:]), array.dtype.name) for key, array in views.items())
    ), content["meta"]["span"]


def _copies(content: dict[str, Any], clips: int) -> str | None:
    partner, copy, share = content["partner"], content["copy"], content["share"]
    if len(partner) and not (
        -1 <= int(partner.min()) and int(partner.max()) < clips and int(copy.min()) >= 0
    ):
        return "has copies of clips that are not there"
    return None if ((share >= 0) & (share <= 1)).all() else "has shares outside 0 and 1"


def _clips(content: dict[str, Any], classes: list[str]) -> str | None:
    if len(np.unique(content["ids"])) != len(content["ids"]):
        return "has an id twice"
    weights = content.get("weights", np.ones(1))
    if not (np.isfinite(weights) & (weights > 0)).all():
        return "has a weight that is no number above 0"
    labels = content["labels"]
    known = f"{', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''} ({len(classes)})"
    if labels.ndim == 2:
        wrong = labels.shape[1] != len(classes) or not np.isin(labels, (0, 1)).all()
        return (
            f"has {labels.shape[1]} columns of labels, or others than 0 and 1, and unique_labels.pkl has "
            f"{known}"
            if wrong
            else None
        )
    unknown = np.setdiff1d(labels, [*classes, ""])
    return f"has the label {unknown[0]}, and unique_labels.pkl has {known}" if len(unknown) else None
