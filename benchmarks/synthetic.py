"""A finished cache of made-up features, for what does not depend on the audio: speed and memory of
training."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from common import ROOT

sys.path.insert(0, str(ROOT))

from earshot.core import checksums
from earshot.core.files import hash_file, hash_value
from earshot.core.fingerprint import compute_fingerprint
from earshot.features import cache


def make_cache(
    folder: Path,
    shapes: dict[str, tuple[int, int, int]],
    clips: int = 400,
    classes: int = 10,
    folds: int = 5,
    subm: int = 0,
    noise: float = 1.0,
    permuted: bool = False,
    multilabel: bool = False,
) -> Path:
    """Write a cache of clips of a window each, whose classes can be told apart a little, with folds of its
    own.

    Args:
        folder: <data>/<competition>/<cache>.
        shapes: view -> (D, F, T).
        subm: clips without labels besides; which class each is of stands in solution.csv.
        noise: standard deviation of the features about 0.2 times their class's centre.
        permuted: the labels are shuffled, and tell nothing.
        multilabel: a clip is of a second class, too.
    """
    names, random = [f"class{c}" for c in range(classes)], np.random.default_rng(0)
    centres = {
        view: random.normal(size=(classes, *shape)).astype(np.float16) for view, shape in shapes.items()
    }
    splits = {"train": _split(clips, classes, folds, centres, noise, multilabel, random)}
    if subm:
        splits["subm"] = _split(subm, classes, folds, centres, noise, multilabel, random)
    rows = splits["train"]
    given = rows.pop("label"), splits["subm"].pop("label") if subm else None
    rows["labels"] = given[0] if multilabel else np.array(names)[given[0]]
    if permuted:
        rows["labels"] = rows["labels"][random.permutation(clips)]
    solution = None
    if subm:
        splits["subm"] |= {
            "ids": np.array([f"s{i:06d}.wav" for i in range(subm)]),
            "folds": np.full(subm, -1, np.int32),
            "labels": np.zeros_like(given[1]) if multilabel else np.full(subm, ""),
        }
        solution = None if multilabel else [names[c] for c in given[1]]
    return write_cache(folder, names, splits, shapes, solution)


def _split(
    clips: int,
    classes: int,
    folds: int,
    centres: dict[str, np.ndarray],
    noise: float,
    multilabel: bool,
    random: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Clips of every class in turn, and `label`, their classes."""
    label = np.arange(clips) % classes
    rows = {
        "ids": np.array([f"{i:06d}.wav" for i in range(clips)]),
        "label": label,
        "folds": (np.arange(clips) // classes % folds + 1).astype(np.int32),
        "groups": np.full(clips, ""),
        "clip": np.arange(clips, dtype=np.int32),
        "start": np.zeros(clips, np.float32),
        "length": np.full(clips, 5, np.float32),
    }
    other = (label + 1 + np.arange(clips) // classes % (classes - 1)) % classes
    if multilabel:
        rows["label"] = np.eye(classes, dtype=np.int8)[label] | np.eye(classes, dtype=np.int8)[other]
    for view, centre in centres.items():
        values = np.empty((clips, *centre.shape[1:]), np.float16)
        for first in range(0, clips, 1000):
            part = slice(first, first + 1000)
            mean = centre[label[part]] + (centre[other[part]] if multilabel else 0)
            values[part] = 0.2 * mean + noise * random.standard_normal(mean.shape, dtype=np.float32)
        rows[view] = values
    return rows


def write_cache(
    folder: Path,
    names: list[str],
    splits: dict[str, dict[str, np.ndarray]],
    shapes: dict[str, tuple[int, int, int]],
    solution: list[str] | None = None,
    span: float = 5.0,
) -> Path:
    """Write splits as a finished cache.

    Args:
        names: the labels, sorted.
        splits: "train" and perhaps "subm" -> ids, labels, folds, groups, clip, start, length and the views.
        solution: the labels of the clips to submit.
        span: seconds that a view's time axis stands for.
    """
    folder.mkdir(parents=True)
    multilabel = splits["train"]["labels"].ndim == 2
    record = {
        "competition": folder.parent.name,
        "classes": len(names),
        "extractor": "synthetic",
        "settings": {},
        "audio": {},
        "window": {"seconds": 5.0},
        "weights": None,
        "labels": hash_value(names)[:16],
        "sample_submission": None,
        "clips": {name: f"{len(rows['ids'])} clips" for name, rows in splits.items()},
    }
    record |= {"task": "multilabel"} if multilabel else {}
    for name, rows in splits.items():
        rows = {key: np.array(values) for key, values in rows.items()}  # none of them mapped
        cache.dump(
            folder / f"{name}.pkl",
            {**rows, "meta": {"fingerprint": compute_fingerprint(record), "record": record}},
        )
    cache.dump(folder / "unique_labels.pkl", {"unique_labels": np.array(names)})
    (folder / "bad_audio.csv").write_text("id,split,reason\n")
    if solution:
        lines = [f"{id},{label}\n" for id, label in zip(splits["subm"]["ids"], solution, strict=True)]
        (folder / "solution.csv").write_text("filename,category\n" + "".join(lines))
    files = [
        folder / name for name in (*(f"{name}.pkl" for name in splits), "unique_labels.pkl", "bad_audio.csv")
    ]
    counts = {name: {"clips": len(rows["ids"]), "rows": len(rows["clip"])} for name, rows in splits.items()}
    checksums.write(
        folder / cache.MANIFEST,
        {
            "version": cache.VERSION,
            "record": record,
            "fingerprint": compute_fingerprint(record),
            "recipe": None,
            "weights": None,
            "complete": True,
            "splits": counts,
            "shapes": {view: list(shape) for view, shape in shapes.items()},
            "span": span,
            "bad": 0,
            "columns": ["filename", "category"],
            "bytes": {p.name: p.stat().st_size for p in files},
            "sha256": {p.name: hash_file(p) for p in files},
        },
    )
    return folder
