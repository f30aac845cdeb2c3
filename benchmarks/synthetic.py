"""A finished cache of made-up features, for what does not depend on what was heard: speed and memory of training."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from common import ROOT

sys.path.insert(0, str(ROOT))

from earshot import cache, sealed
from earshot.files import digest, digest_of
from earshot.fingerprint import fingerprint


def make_cache(folder: Path, shapes: dict[str, tuple[int, int, int]], clips: int = 400, classes: int = 10, folds: int = 5) -> Path:
    """Write a cache of clips of a window each, whose classes can be told apart a little, with folds of its own.

    Args:
        folder: <data>/<competition>/<cache>.
        shapes: view -> (D, F, T).
    """
    folder.mkdir(parents=True)
    names, random = [f"class{c}" for c in range(classes)], np.random.default_rng(0)
    label = np.arange(clips) % classes
    ids = np.array([f"{i:06d}.wav" for i in range(clips)])
    rows = {"ids": ids, "labels": np.array(names)[label], "folds": (np.arange(clips) // classes % folds + 1).astype(np.int32),
            "groups": np.full(clips, ""), "clip": np.arange(clips, dtype=np.int32), "start": np.zeros(clips, np.float32),
            "length": np.full(clips, 5, np.float32)}
    for view, shape in shapes.items():
        centres = random.normal(size=(classes, *shape)).astype(np.float16)
        values = np.empty((clips, *shape), np.float16)
        for first in range(0, clips, 1000):
            part = label[first:first + 1000]
            values[first:first + 1000] = 0.2 * centres[part] + random.standard_normal((len(part), *shape), dtype=np.float32)
        rows[view] = values
    record = {"competition": folder.parent.name, "classes": classes, "extractor": "synthetic", "settings": {}, "audio": {},
              "window": {"seconds": 5.0}, "weights": None, "labels": digest_of(names)[:16], "sample_submission": None,
              "clips": {"train": f"{clips} clips"}}
    cache.dump(folder / "train.pkl", {**rows, "meta": {"fingerprint": fingerprint(record), "record": record}})
    cache.dump(folder / "unique_labels.pkl", {"unique_labels": np.array(names)})
    (folder / "bad_audio.csv").write_text("id,split,reason\n")
    files = [folder / name for name in ("train.pkl", "unique_labels.pkl", "bad_audio.csv")]
    sealed.write(folder / cache.MANIFEST, {
        "version": cache.VERSION, "record": record, "fingerprint": fingerprint(record), "recipe": None, "weights": None,
        "complete": True, "splits": {"train": {"clips": clips, "rows": clips}}, "shapes": {view: list(shape) for view, shape in shapes.items()},
        "span": 5.0, "bad": 0, "columns": ["filename", "category"], "bytes": {p.name: p.stat().st_size for p in files},
        "sha256": {p.name: digest(p) for p in files}})
    return folder
