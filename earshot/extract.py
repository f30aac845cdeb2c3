"""Audio into cached features: shard by shard, each written whole, joined at the end."""

from __future__ import annotations

import csv
import io
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from earshot import __version__, cache, extractors
from earshot.audio import BadAudio, read
from earshot.cli import Deadline
from earshot.device import Device, out_of_memory
from earshot.errors import UserError
from earshot.files import digest, empty, write_bytes, write_json
from earshot.plan import Plan

SHARD = 32  # clips: what a kill can cost, against the number of files
JOIN_IN_MEMORY = 1 << 30  # bytes of one view above which the joined array is built on disk


@dataclass
class Part:
    """A stretch of one split: the clips [first, last) of that split."""

    split: str
    first: int
    last: int
    path: Path


def parts(plan: Plan) -> list[Part]:
    """The shards of a plan, in order."""
    found = []
    for split in cache.SPLITS:
        count = int((plan.competition.clips.split == split).sum())
        for first in range(0, count, SHARD):
            name = f"{split}-{first // SHARD:05d}.pkl"
            found.append(Part(split, first, min(first + SHARD, count), plan.folder / "shards" / name))
    return found


def build(plan: Plan, device: Device) -> Any:
    """The plan's extractor on a device, weights loaded."""
    module = extractors.module(plan.extractor)
    return module.Extractor(plan.settings, plan.window, device.name, plan.weights, device.precision)


def run(plan: Plan, device: Device, batch_size: int, workers: int, deadline: Deadline, fresh: bool = False) -> None:
    """Extract what is missing and join it; a cache that was begun is continued, decoding only missing shards.

    Args:
        fresh: throw away what the folder holds, once the extractor has accepted the settings.

    Raises:
        UserError: not one training clip is usable.
    """
    from tqdm import tqdm

    todo = [part for part in parts(plan) if fresh or not part.path.exists()]
    everything = sum(part.last - part.first for part in parts(plan))
    missing = sum(part.last - part.first for part in todo)
    if missing < everything:
        print(f"continuing: {everything - missing} of {everything} clips are done", flush=True)
    # Before anything is written: settings that the extractor refuses must not claim the cache's name.
    extractor = build(plan, device) if todo else None
    if fresh:
        empty(plan.folder)
    write_json(plan.folder / cache.MANIFEST, {**_head(plan), "complete": False})
    (plan.folder / "shards").mkdir(exist_ok=True)
    bar = tqdm(total=everything, initial=everything - missing, unit="clip", desc="features", dynamic_ncols=True,
               mininterval=0.2 if sys.stderr.isatty() else 20)
    pool = ThreadPoolExecutor(workers)
    try:
        for part, decoded in _decoded(plan, todo, extractor, pool, workers):
            content, batch_size = _features(plan, part, decoded, extractor, batch_size)
            cache.dump(part.path, content)
            bar.update(part.last - part.first)
            if deadline.passed() and part is not todo[-1]:
                bar.close()
                deadline.leave()
    finally:
        bar.close()
        pool.shutdown(wait=False, cancel_futures=True)  # who stops does not want to wait for clips decoded ahead
    join(plan)


def _decoded(plan: Plan, todo: list[Part], extractor: Any, pool: ThreadPoolExecutor, workers: int) -> Iterator[tuple[Part, list]]:
    """Each shard with its decoded clips, decoding ahead while the caller computes."""
    ahead: deque[tuple[Part, list[Future]]] = deque()
    waiting = iter(todo)

    def submit() -> None:
        part = next(waiting, None)
        if part is not None:
            rows = plan.competition.clips[plan.competition.clips.split == part.split].iloc[part.first:part.last]
            ahead.append((part, [pool.submit(decode, path, extractor.rate, plan.audio) for path in rows.path]))

    for _ in range(2):
        submit()
    while ahead:
        part, futures = ahead.popleft()
        decoded = [future.result() for future in futures]
        submit()
        yield part, decoded


def decode(path: str, rate: int, settings: Any) -> tuple[np.ndarray, float] | str:
    """(samples,) float32 at `rate` with the seconds trimmed from its start, or the reason why there is none."""
    if not path:
        return "no such file"
    try:
        wave, _, offset = read(path, rate, settings)
        return wave, offset
    except BadAudio as error:
        return str(error)


def _features(plan: Plan, part: Part, decoded: list, extractor: Any, batch_size: int) -> tuple[dict[str, Any], int]:
    """A shard's content, and the batch size that memory allowed."""
    good = [index for index, item in enumerate(decoded) if not isinstance(item, str)]
    while True:
        try:
            features = extractor.extract([decoded[i][0] for i in good], [decoded[i][1] for i in good], batch_size)
            break
        except RuntimeError as error:
            if not out_of_memory(error) or batch_size == 1:
                raise
            batch_size //= 2
            print(f"out of memory: batch size {batch_size} from here on", flush=True)
    content: dict[str, Any] = {
        "clip": np.repeat(np.array([part.first + i for i in good], dtype=np.int32), [len(f.start) for f in features]),
        "start": _joined([f.start for f in features], (), np.float32),
        "length": _joined([f.length for f in features], (), np.float32),
        "bad": np.array([part.first + i for i, item in enumerate(decoded) if isinstance(item, str)], dtype=np.int32),
        "reason": np.array([item for item in decoded if isinstance(item, str)], dtype=np.str_),
        "meta": {"fingerprint": plan.fingerprint, "span": extractor.span},
    }
    for view, shape in extractor.shapes.items():
        content[view] = _joined([f.views[view] for f in features], shape, np.float16)
    return content, batch_size


def _joined(arrays: list[np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros((0, *shape), dtype)


def join(plan: Plan) -> None:
    """Shards into train.pkl, test.pkl, subm.pkl; unique_labels.pkl, bad_audio.csv and the manifest beside them."""
    clips, folder = plan.competition.clips, plan.folder
    ledger = [list(row) for row in plan.competition.missing]
    meta = {"fingerprint": plan.fingerprint, "record": plan.record, "versions": _versions()}
    splits, shapes, span = {}, {}, None
    for split in cache.SPLITS:
        rows = clips[clips.split == split]
        if not len(rows):
            continue
        shards = [cache.load(part.path) for part in parts(plan) if part.split == split]
        for shard, part in zip(shards, [part for part in parts(plan) if part.split == split]):
            if shard["meta"]["fingerprint"] != plan.fingerprint:
                raise UserError(f"{part.path} belongs to another cache: start over with --fresh")
            ledger += [[split, str(rows.id.iloc[i]), str(reason)] for i, reason in zip(shard["bad"], shard["reason"])
                       if rows.path.iloc[i]]  # rows without a file are in the competition's own list
        span = shards[0]["meta"]["span"]
        bad = np.concatenate([shard["bad"] for shard in shards])
        # Training clips that cannot be heard are left out; clips to be answered keep their place, without rows.
        kept = np.setdiff1d(np.arange(len(rows)), bad) if split == "train" else np.arange(len(rows))
        if split == "train" and not len(kept):
            raise UserError(f"none of the {len(rows)} training clips can be used (first: {ledger[0][1]}: {ledger[0][2]})")
        rows = rows.iloc[kept]
        content = {
            "ids": np.array(rows.id.tolist(), dtype=np.str_),
            "labels": np.array(rows.label.fillna("").tolist(), dtype=np.str_),
            "folds": np.array(rows.fold.tolist(), dtype=np.int32),
            "groups": np.array(rows.group.tolist(), dtype=np.str_),
            "clip": np.searchsorted(kept, np.concatenate([s["clip"] for s in shards])).astype(np.int32),
            "start": np.concatenate([s["start"] for s in shards]),
            "length": np.concatenate([s["length"] for s in shards]),
        }
        scratch = []
        for view in [key for key in shards[0] if shards[0][key] is not None and getattr(shards[0][key], "ndim", 0) == 4]:
            content[view] = _concatenated([s[view] for s in shards], folder / f".{split}-{view}.tmp", scratch)
            shapes[view] = list(content[view].shape[1:])
        cache.dump(folder / f"{split}.pkl", {**content, "meta": meta})
        for path in scratch:
            path.unlink()
        splits[split] = {"clips": len(kept), "rows": len(content["clip"])}
    cache.dump(folder / "unique_labels.pkl", {"unique_labels": np.array(plan.competition.classes, dtype=np.str_), "meta": meta})
    _write_ledger(folder / "bad_audio.csv", ledger)
    for name in ("sample_submission", "solution"):
        source = getattr(plan.competition, name)
        if source:  # beside the cache, so that training needs nothing but the cache
            write_bytes(folder / f"{name}.csv", Path(source).read_bytes())
    names = [f"{split}.pkl" for split in splits] + ["unique_labels.pkl"]
    write_json(folder / cache.MANIFEST, {
        **_head(plan), "complete": True, "splits": splits, "shapes": shapes, "span": span, "bad": len(ledger),
        "columns": [plan.competition.id_column, plan.competition.label_column],
        "bytes": {name: (folder / name).stat().st_size for name in names},
        "sha256": {name: digest(folder / name) for name in names}})
    cache.remove_shards(folder)


def _head(plan: Plan) -> dict[str, Any]:
    """What a manifest says from the start; where the weights lay is a hint for later, no part of the fingerprint."""
    return {"version": cache.VERSION, "record": plan.record, "fingerprint": plan.fingerprint, "recipe": plan.recipe,
            "weights": plan.weights}


def _concatenated(arrays: list[np.ndarray], path: Path, scratch: list[Path]) -> np.ndarray:
    rows = sum(len(array) for array in arrays)
    if rows * int(np.prod(arrays[0].shape[1:])) * arrays[0].itemsize < JOIN_IN_MEMORY:
        return np.concatenate(arrays)
    joined = np.lib.format.open_memmap(path, "w+", arrays[0].dtype, (rows, *arrays[0].shape[1:]))
    scratch.append(path)
    at = 0
    for array in arrays:
        joined[at:at + len(array)] = array
        at += len(array)
    return np.asarray(joined)


def _write_ledger(path: Path, rows: list[list[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "id", "reason"])
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8"))


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"earshot": __version__}
    for package in ("torch", "torchvision", "transformers", "numpy", "soundfile", "soxr"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
