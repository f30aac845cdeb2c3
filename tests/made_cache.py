"""A small finished cache of made-up features with clips to submit and a hold-out, told apart as well as a
test asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from earshot.core import checksums
from earshot.core.files import hash_file, hash_value
from earshot.core.fingerprint import compute_fingerprint
from earshot.features import cache


def make(
    folder: Path,
    views: dict[str, tuple[int, int, int]],
    clips: int = 60,
    classes: int = 3,
    signal: float = 1.0,
    shuffled: bool = False,
    multilabel: bool = False,
    test: int = 0,
    seed: int = 0,
    folds: int = 3,
    train: dict[str, np.ndarray] | None = None,
    others: dict[str, dict[str, np.ndarray]] | None = None,
    metric: str | None = None,
) -> Path:
    """Write <data>/<competition>/<cache>.

    Args:
        signal: how far the classes' centres lie apart, in deviations. shuffled: the labels are dealt out
            anew.
        multilabel: a clip has one or two labels. test: clips of a hold-out.
        train: arrays of the training split in place of the usual ones, or beside them. others: of other
            splits, by name.
        metric: the contest's own.
    """
    folder.mkdir(parents=True)
    names, random = [f"class{c}" for c in range(classes)], np.random.default_rng(seed)
    centres = {view: random.normal(size=(classes, *shape)) for view, shape in views.items()}
    draw = np.random.default_rng(1)  # labels and ids are the same in all caches
    files, splits = [], {}

    def split(name: str, count: int) -> dict:
        first = draw.integers(0, classes, count) if name == "subm" else np.arange(count) % classes
        yes = np.eye(classes, dtype=np.int8)[first]
        if multilabel:
            yes |= np.eye(classes, dtype=np.int8)[draw.integers(0, classes, count)]
        ids = np.array([f"{name}{i:04d}.wav" for i in range(count)])
        given = draw.permutation(yes) if shuffled else yes
        labels = (
            (given if multilabel else np.array(names)[given.argmax(1)])
            if name != "subm"
            else (np.zeros_like(yes) if multilabel else np.array([""] * count))
        )
        made = {
            "ids": ids,
            "labels": labels,
            "folds": (np.arange(count) // classes % folds).astype(np.int32)
            if name == "train"
            else np.full(count, -1, np.int32),
            "groups": np.full(count, ""),
            "clip": np.arange(count, dtype=np.int32),
            "start": np.zeros(count, np.float32),
            "length": np.full(count, 5, np.float32),
        }
        for view, shape in views.items():
            centre = np.tensordot(yes.astype(float), centres[view], 1)
            made[view] = (signal * centre + random.normal(size=(count, *shape))).astype(np.float16)
        return made

    content = {
        "train": {**split("train", clips), **(train or {})},
        "subm": split("subm", clips // 4),
        **({"test": split("test", test)} if test else {}),
    }
    for name, arrays in (others or {}).items():
        content[name] |= arrays
    record = {
        "competition": folder.parent.name,
        "classes": classes,
        "extractor": "synthetic",
        "settings": {"seed": seed},
        "audio": {},
        "window": {"seconds": 5.0},
        "weights": None,
        "labels": hash_value(names)[:16],
        "sample_submission": None,
        "clips": {name: f"{len(one['ids'])} clips" for name, one in content.items()},
        **({"task": "multilabel"} if multilabel else {}),
        **({"metric": metric} if metric else {}),
    }
    for name, one in content.items():
        cache.dump(
            folder / f"{name}.pkl",
            {**one, "meta": {"fingerprint": compute_fingerprint(record), "record": record}},
        )
        files.append(folder / f"{name}.pkl")
        splits[name] = {"clips": len(one["ids"]), "rows": len(one["ids"])}
    cache.dump(folder / "unique_labels.pkl", {"unique_labels": np.array(names)})
    (folder / "bad_audio.csv").write_text("id,split,reason\n")
    files += [folder / "unique_labels.pkl", folder / "bad_audio.csv"]
    checksums.write(
        folder / cache.MANIFEST,
        {
            "version": cache.VERSION,
            "record": record,
            "fingerprint": compute_fingerprint(record),
            "recipe": None,
            "weights": None,
            "complete": True,
            "splits": splits,
            "shapes": {view: list(shape) for view, shape in views.items()},
            "span": 5.0,
            "bad": 0,
            "columns": ["filename", "category"],
            "bytes": {p.name: p.stat().st_size for p in files},
            "sha256": {p.name: hash_file(p) for p in files},
            **({"separator": ","} if multilabel else {}),
        },
    )
    return folder
