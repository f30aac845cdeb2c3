"""Shards into the finished cache: a shard at a time is open, and no view is ever held whole."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot import __version__, extractors
from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.core.files import digest, write_bytes
from earshot.features import augmented_copies, cache, clip_weights, manifest, reasons
from earshot.features.reasons import NOTES
from earshot.features.shards import Shards

if TYPE_CHECKING:
    from earshot.features.plan import Plan
    from earshot.features.shards import Part


def join(plan: Plan, parts: list[Part]) -> None:
    """Shards into train.pkl, test.pkl, subm.pkl, augmented.pkl; unique_labels.pkl, bad_audio.csv and the
    manifest beside them.

    Args:
        parts: all shards of the plan, in order.
    Raises:
        UserError: not one training clip is usable; a shard of another cache.
    """
    clips, folder = plan.competition.clips, plan.folder
    ledger = [list(row) for row in plan.competition.missing]
    kinds = extractors.module(plan.extractor).Extractor.choose_views(plan.settings)
    meta = {"fingerprint": plan.fingerprint, "record": plan.record, "versions": _versions(plan)}
    meta["kinds"] = kinds
    splits, shapes, span, augmented = {}, {}, None, {}
    noted: dict[str, list[str]] = {note: [] for note in NOTES}
    for split in manifest.SPLITS:
        rows = clips[clips.split == split]
        if not len(rows):
            continue
        shards = Shards(plan, split, [part for part in parts if part.split == split])
        ids, paths, bad = rows.id.tolist(), rows.path.tolist(), shards.column("bad")
        ledger += [
            [split, str(ids[i]), str(reason)]
            for i, reason in zip(bad, shards.column("reason"), strict=True)
            if paths[i]
        ]  # rows without a file are in the competition's own list
        for note in NOTES:
            noted[note] += [str(ids[i]) for i in shards.column(note)]
        span = shards.span
        # Training clips that cannot be heard are left out; clips to be answered keep their place,
        # without rows.
        kept = np.setdiff1d(np.arange(len(rows)), bad) if split == "train" else np.arange(len(rows))
        if split == "train" and not len(kept):
            why = reasons.commonest(map(str, shards.column("reason")))
            raise UserError(f"none of the {len(rows)} training clips can be used: {why}")
        rows = rows.iloc[kept]
        content = {
            "ids": np.array(rows.id.tolist(), dtype=np.str_),
            "labels": _labels(plan.competition, rows.label),
            "folds": np.array(rows.fold.tolist(), dtype=np.int32),
            "groups": np.array(rows.group.tolist(), dtype=np.str_),
            "clip": np.searchsorted(kept, shards.column("clip")).astype(np.int32),
            "start": shards.column("start"),
            "length": shards.column("length"),
        }
        weights = clip_weights.of(rows) if split == "train" else None
        if weights is not None:
            content["weights"] = weights
        if split == "train":  # identifies a clip whatever its name
            digests = _digests([plan.digests[i] for i in kept])
            cache.dump(folder / "digests.pkl", {"digests": digests, "meta": meta})
        shapes = shards.write(folder / f"{split}.pkl", content, meta)
        splits[split] = {"clips": len(kept), "rows": len(content["clip"])}
        if split == "train" and plan.augment.augment:
            augmented = _join_copies(plan, parts, kept, meta)
    cache.dump(
        folder / "unique_labels.pkl",
        {"unique_labels": np.array(plan.competition.classes, dtype=np.str_), "meta": meta},
    )
    _write_ledger(folder / "bad_audio.csv", ledger)
    for name in ("sample_submission", "solution"):
        source = getattr(plan.competition, name)
        if source:  # beside the cache, so that training needs nothing but the cache
            write_bytes(folder / f"{name}.csv", Path(source).read_bytes())
    names = [f"{name}.pkl" for name in [*splits, *augmented]] + ["unique_labels.pkl", "bad_audio.csv"]
    names += [f"{name}.csv" for name in ("sample_submission", "solution") if getattr(plan.competition, name)]
    checksums.write(
        folder / cache.MANIFEST,
        {
            **head(plan),
            "complete": True,
            "splits": splits,
            **augmented,
            "shapes": shapes,
            "kinds": kinds,
            "span": span,
            "bad": len(ledger),
            # beside the other checksums, which version 0.1 reads and knows the names of
            **({"digests": digest(folder / "digests.pkl")} if "train" in splits else {}),
            **{note: {"clips": len(found), "first": found[0]} for note, found in noted.items() if found},
            "columns": [plan.competition.id_column, plan.competition.label_column],
            **({"separator": plan.competition.separator} if plan.competition.multilabel else {}),
            "bytes": {name: (folder / name).stat().st_size for name in names},
        },
        *names,
    )
    cache.tidy(folder)


def _digests(found: list[str]) -> np.ndarray:
    """(clips, 32) uint8, zeros where a digest is not known."""
    return np.frombuffer(bytes.fromhex("".join(one or "0" * 64 for one in found)), np.uint8).reshape(-1, 32)


def _labels(competition: Any, column: Any) -> np.ndarray:
    """(clips,) text, "" where there is none; multi-label: (clips, classes) int8, 1 for each label that a clip
    has."""
    if not competition.multilabel:
        return np.array(column.fillna("").tolist(), dtype=np.str_)
    place = {label: index for index, label in enumerate(competition.classes)}
    found = np.zeros((len(column), len(place)), dtype=np.int8)
    for row, labels in zip(found, column, strict=True):
        row[[place[label] for label in labels or ()]] = 1
    return found


def _join_copies(
    plan: Plan, parts: list[Part], kept: np.ndarray, meta: dict[str, Any]
) -> dict[str, dict[str, int]]:
    """The copies' shards into augmented.pkl, clips counted among those that are kept; what the manifest says
    of it."""
    shards = Shards(
        plan, augmented_copies.NAME, [part for part in parts if part.split == augmented_copies.NAME]
    )
    content = {key: shards.column(key) for key in (*augmented_copies.COLUMNS, "start", "length")}
    mixed = content["partner"] >= 0
    content["clip"] = np.searchsorted(kept, content["clip"]).astype(np.int32)
    content["partner"] = np.where(mixed, np.searchsorted(kept, content["partner"]), -1).astype(np.int32)
    shards.write(plan.folder / f"{augmented_copies.NAME}.pkl", content, meta)
    return {augmented_copies.NAME: {"copies": plan.augment.augment, "rows": len(content["clip"])}}


def _write_ledger(path: Path, rows: list[list[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "id", "reason"])
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8"))


def _versions(plan: Plan) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"earshot": __version__}
    further = ["librosa"] if plan.augment.augment else []
    for package in ("torch", "torchvision", "transformers", "numpy", "soundfile", "soxr", *further):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def head(plan: Plan) -> dict[str, Any]:
    """What a manifest says from the start; where the weights lay is a hint for later, no part of the
    fingerprint."""
    return {
        "version": cache.VERSION,
        "record": plan.record,
        "fingerprint": plan.fingerprint,
        "recipe": plan.recipe,
        "weights": plan.weights,
    }
