"""Joining shards into the finished cache, one shard at a time, so that no view is held whole."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot import extractors
from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.core.file_names import to_text
from earshot.core.files import hash_file, write_bytes
from earshot.core.version import __version__
from earshot.features import augmented_copies, cache, clip_weights, reasons, schema
from earshot.features.reasons import NOTES
from earshot.features.shards import Shard, concatenate

if TYPE_CHECKING:
    import pandas as pd

    from earshot.competition.load import Competition
    from earshot.features.plan import Plan


def merge(plan: Plan, shards: list[Shard]) -> None:
    """Shards into train.pkl, test.pkl, subm.pkl, augmented.pkl; unique_labels.pkl, bad_audio.csv and the
    manifest beside them.

    Args:
        shards: all of the plan, in order, verified.
    Raises:
        UserError: not one training clip is usable.
    """
    competition, folder = plan.competition, plan.folder
    bad_audio = [list(row) for row in competition.missing]
    meta = {"fingerprint": plan.fingerprint, "record": plan.record, "versions": _list_versions(plan)}
    declared = extractors.load_module(plan.extractor).Extractor.choose_views(plan.settings)
    made = shards[0].read().views  # weights may lack some of the views
    kinds = {view: kind for view, kind in declared.items() if view in made}
    meta["kinds"] = kinds
    splits: dict[str, dict[str, int]] = {}
    augmented: dict[str, dict[str, int]] = {}
    noted: dict[str, list[str]] = {note: [] for note in NOTES}
    for split in schema.SPLITS:
        rows = competition.clips[competition.clips.split == split]
        if not len(rows):
            continue
        of_split = [shard.read() for shard in shards if shard.split == split]
        ids, paths = rows.id.tolist(), rows.path.tolist()
        bad, why = concatenate(of_split, "bad"), concatenate(of_split, "reason")
        # rows without a file are in the competition's own list
        bad_audio += [
            [split, str(ids[i]), str(reason)] for i, reason in zip(bad, why, strict=True) if paths[i]
        ]
        for note in NOTES:
            noted[note] += [str(ids[i]) for i in concatenate(of_split, note)]
        # Training clips without features are left out; clips to predict keep their place, without rows.
        kept = np.arange(len(rows))
        if split == "train":
            kept = np.setdiff1d(kept, bad)
            if not len(kept):
                commonest = reasons.format_commonest(map(str, why))
                raise UserError(f"none of the {len(rows)} training clips can be used: {commonest}")
            # identifies a clip whatever its name
            digests = _pack_digests([plan.digests[i] for i in kept])
            cache.dump(folder / "digests.pkl", {"digests": digests, "meta": meta})
        arrays = _build_clip_arrays(competition, rows.iloc[kept], split)
        arrays["clip"] = np.searchsorted(kept, concatenate(of_split, "clip")).astype(np.int32)
        arrays["start"], arrays["length"] = concatenate(of_split, "start"), concatenate(of_split, "length")
        _write(folder / f"{split}.pkl", arrays, of_split, meta)
        splits[split] = {"clips": len(kept), "rows": len(arrays["clip"])}
        if split == "train" and plan.augment.augment:
            augmented = _merge_copies(plan, shards, kept, meta)
    labels = np.array(competition.classes, dtype=np.str_)
    cache.dump(folder / "unique_labels.pkl", {"unique_labels": labels, "meta": meta})
    _write_bad_audio(folder / "bad_audio.csv", bad_audio)
    names = [f"{name}.pkl" for name in [*splits, *augmented]] + ["unique_labels.pkl", "bad_audio.csv"]
    for name in ("sample_submission", "solution"):
        source = getattr(competition, name)
        if source:  # beside the cache, so that training needs nothing but the cache
            write_bytes(folder / f"{name}.csv", Path(source).read_bytes())
            names.append(f"{name}.csv")
    manifest = {**build_head(plan), "complete": True, "splits": splits, **augmented}
    manifest["shapes"] = {name: list(view.shape[1:]) for name, view in of_split[0].views.items()}
    manifest["kinds"] = kinds
    manifest["span"] = of_split[0].form.span
    manifest["bad"] = len(bad_audio)
    if "train" in splits:  # apart from the other checksums, whose names version 0.1 checks
        manifest["digests"] = hash_file(folder / "digests.pkl")
    for note, clips in noted.items():
        if clips:
            manifest[note] = {"clips": len(clips), "first": clips[0]}
    manifest["columns"] = [competition.id_column, competition.label_column]
    if competition.multilabel:
        manifest["separator"] = competition.separator
    manifest["bytes"] = {name: (folder / name).stat().st_size for name in names}
    checksums.write(folder / cache.MANIFEST, manifest, *names)
    cache.remove_shards(folder)


def _build_clip_arrays(competition: Competition, rows: pd.DataFrame, split: str) -> dict[str, np.ndarray]:
    """The arrays of a split that have an item for each clip."""
    arrays = {
        "ids": np.array(rows.id.tolist(), dtype=np.str_),
        "labels": _build_labels(competition, rows.label),
        "folds": np.array(rows.fold.tolist(), dtype=np.int32),
        "groups": np.array(_list_groups(competition, rows), dtype=np.str_),
    }
    weights = clip_weights.get_weights(rows) if split == "train" else None
    return arrays if weights is None else arrays | {"weights": weights}


def _list_groups(competition: Competition, rows: pd.DataFrame) -> list[str]:
    """The group of each clip; of a stretch to submit its recording, which its neighbours share."""
    root = f"{competition.root}{os.sep}"
    return [
        group if split != "subm" or np.isnan(start) else to_text(path.removeprefix(root))
        for group, split, start, path in zip(rows.group, rows.split, rows.start, rows.path, strict=True)
    ]


def _write(path: Path, arrays: dict[str, np.ndarray], shards: list[Shard], meta: dict[str, Any]) -> None:
    """The given arrays and the shards' views as one file."""
    for shard in shards:
        if shard.form != shards[0].form:
            raise UserError(
                f"{shard.path} has other views than the shards before it: start over with --fresh"
            )

    def stream(view: str) -> cache.StreamedArray:
        stored = shards[0].views[view]
        shape = (len(arrays["clip"]), *stored.shape[1:])
        return cache.StreamedArray(shape, stored.dtype, lambda: (shard.read_view(view) for shard in shards))

    cache.dump(path, {**arrays, **{view: stream(view) for view in shards[0].views}, "meta": meta})


def _pack_digests(found: list[str]) -> np.ndarray:
    """(clips, 32) uint8, zeros where a digest is not known."""
    return np.frombuffer(bytes.fromhex("".join(one or "0" * 64 for one in found)), np.uint8).reshape(-1, 32)


def _build_labels(competition: Any, column: Any) -> np.ndarray:
    """(clips,) text, "" where there is none; multi-label: (clips, classes) int8, 1 for each label that a clip
    has."""
    if not competition.multilabel:
        return np.array(column.fillna("").tolist(), dtype=np.str_)
    place = {label: index for index, label in enumerate(competition.classes)}
    found = np.zeros((len(column), len(place)), dtype=np.int8)
    for row, labels in zip(found, column, strict=True):
        row[[place[label] for label in labels or ()]] = 1
    return found


def _merge_copies(
    plan: Plan, shards: list[Shard], kept: np.ndarray, meta: dict[str, Any]
) -> dict[str, dict[str, int]]:
    """Join the copies' shards into augmented.pkl, with clips numbered among those kept; the manifest's entry
    for it."""
    copies = [shard.read() for shard in shards if shard.has_copies]
    arrays = {name: concatenate(copies, name) for name in (*augmented_copies.COLUMNS, "start", "length")}
    mixed = arrays["partner"] >= 0
    arrays["clip"] = np.searchsorted(kept, arrays["clip"]).astype(np.int32)
    arrays["partner"] = np.where(mixed, np.searchsorted(kept, arrays["partner"]), -1).astype(np.int32)
    _write(plan.folder / f"{augmented_copies.NAME}.pkl", arrays, copies, meta)
    return {augmented_copies.NAME: {"copies": plan.augment.augment, "rows": len(arrays["clip"])}}


def _write_bad_audio(path: Path, rows: list[list[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "id", "reason"])
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8"))


def _list_versions(plan: Plan) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"earshot": __version__}
    further = ["librosa"] if plan.augment.augment else []
    for package in ("torch", "torchvision", "transformers", "numpy", "soundfile", "soxr", *further):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def build_head(plan: Plan) -> dict[str, Any]:
    """The manifest of a new cache; the path of the weights is a hint for later, and not in the
    fingerprint."""
    return {
        "version": cache.VERSION,
        "record": plan.record,
        "fingerprint": plan.fingerprint,
        "recipe": plan.recipe,
        "weights": plan.weights,
    }
