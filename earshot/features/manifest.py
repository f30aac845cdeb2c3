"""Does a cache's manifest say all that its readers need? Whoever made it: a name in it that leads elsewhere
is never joined to a path."""

from __future__ import annotations

import math
import re
from typing import Any

from earshot.core.kinds import KINDS
from earshot.features.reasons import NOTES

SPLITS = ("train", "test", "subm")
FILES = (
    *(f"{split}.pkl" for split in SPLITS),
    "augmented.pkl",
    "unique_labels.pkl",
    "digests.pkl",
    "bad_audio.csv",
    "sample_submission.csv",
    "solution.csv",
)


def fault(manifest: Any) -> str | None:
    """What a manifest of this version lacks, or has of another kind; None where it can be used.

    Args:
        manifest: the JSON's value. One that is not complete speaks of no files yet.
    """
    if not isinstance(manifest, dict) or not isinstance(manifest.get("fingerprint"), str):
        return "has no fingerprint"
    wrong = settings_fault(manifest)
    if wrong:
        return wrong
    if not isinstance(manifest["record"].get("clips"), dict) or "weights" not in manifest["record"]:
        return "has no record of clips, or of weights"
    if not all(isinstance(manifest.get(key), str | None) for key in ("recipe", "weights", "separator")):
        return "has a recipe, weights or a separator that is no text"
    return _finished(manifest) if manifest.get("complete") else None


def settings_fault(manifest: Any) -> str | None:
    """What a manifest of any version lacks to be compared with a recipe's features; None where it can be."""
    record = manifest.get("record") if isinstance(manifest, dict) else None
    if not isinstance(record, dict) or not isinstance(record.get("extractor"), str):
        return "does not name the extractor"
    wrong = [key for key in ("settings", "audio", "window") if not isinstance(record.get(key), dict)]
    if wrong or not isinstance(record.get("augment", {}), dict):
        return f"has no record of {(wrong or ['copies'])[0]}"
    return None


def _finished(manifest: dict[str, Any]) -> str | None:
    splits, shapes, sums = manifest.get("splits"), manifest.get("shapes"), manifest.get("sha256")
    if not isinstance(splits, dict) or not {"train", "subm"} & set(splits) or not set(splits) <= set(SPLITS):
        return "has no splits, or unknown ones"
    counts = [*splits.values(), *([manifest["augmented"]] if "augmented" in manifest else [])]
    if not all(
        isinstance(count, dict) and all(_whole(value, 0) for value in count.values()) and "rows" in count
        for count in counts
    ):
        return "does not count its rows"
    if not all("clips" in count for count in splits.values()) or not all(
        isinstance(manifest["record"]["clips"].get(split), str) for split in splits
    ):
        return "does not count its clips"
    if (
        not _whole(manifest.get("bad"), 0)
        or "augmented" in manifest
        and "copies" not in manifest["augmented"]
    ):
        return "does not count its copies, or the clips that cannot be heard"
    if (
        not isinstance(shapes, dict)
        or not shapes
        or not all(
            isinstance(shape, list) and len(shape) == 3 and all(_whole(size, 1) for size in shape)
            for shape in shapes.values()
        )
    ):
        return "has no view of a shape (D, F, T)"
    kinds = manifest.get("kinds", {})
    if not isinstance(kinds, dict) or not all(kind in KINDS for kind in kinds.values()):
        return "has a view of an unknown kind"
    for note in NOTES:
        noted = manifest.get(note, {"clips": 0, "first": ""})
        whole = isinstance(noted, dict) and _whole(noted.get("clips"), 0)
        if not whole or not isinstance(noted.get("first"), str):
            return f"has an invalid count of {note} clips"
    span, columns = manifest.get("span"), manifest.get("columns")
    if type(span) not in (int, float) or not math.isfinite(span) or span <= 0:
        return "has a span that is no time"
    if (
        not isinstance(columns, list)
        or len(columns) != 2
        or not all(isinstance(name, str) for name in columns)
    ):
        return "does not name the submission's two columns"
    if not isinstance(sums, dict) or not all(name in FILES for name in sums):
        return "vouches for files that no cache has"
    if not all(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in sums.values()):
        return "has checksums that are none"
    needed = [
        "unique_labels.pkl",
        *(f"{split}.pkl" for split in splits),
        *(["augmented.pkl"] if "augmented" in manifest else []),
    ]
    missing = [name for name in needed if name not in sums]
    return f"does not vouch for {missing[0]}" if missing else None


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least
