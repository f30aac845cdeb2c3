"""Audio into cached features: shard by shard, each written whole, joined at the end."""

from __future__ import annotations

import csv
import io
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np

from earshot import __version__, cache, copies, extractors, sealed, space
from earshot.audio import BadAudio, read
from earshot.cli import Deadline, clock
from earshot.device import Device, out_of_memory
from earshot.errors import UserError
from earshot.files import clear_temporary, empty, write_bytes
from earshot.plan import Plan

SHARD = 32  # clips: what a kill can cost, against the number of files
SAY_SECONDS = 20.0  # between two lines where there is no terminal
JOIN_IN_MEMORY = 1 << 30  # bytes of one view above which the joined array is built on disk


@dataclass
class Part:
    """A stretch of one split: the clips [first, last) of that split, or those of the augmented copies.

    Its shard is done when the JSON file beside it is there, which holds its checksum.
    """

    split: str
    first: int
    last: int
    path: Path

    @property
    def seal(self) -> Path:
        """The file that vouches for the shard."""
        return self.path.with_suffix(".json")


def parts(plan: Plan) -> list[Part]:
    """The shards of a plan, in order."""
    found = []
    counts = {split: int((plan.competition.clips.split == split).sum()) for split in cache.SPLITS}
    counts[copies.NAME] = counts["train"] * plan.augment.augment  # last: the training shards say which clips can be heard
    for split, count in counts.items():
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

    todo = parts(plan) if fresh else missing_parts(plan)
    everything = sum(part.last - part.first for part in parts(plan))
    missing = sum(part.last - part.first for part in todo)
    if missing < everything:
        print(f"continuing: {everything - missing} of {everything} clips are done", flush=True)
    # Before anything is written: settings that the extractor refuses must not claim the cache's name.
    extractor = build(plan, device) if todo else None
    if fresh:
        empty(plan.folder, first=cache.MANIFEST)  # what a kill leaves then belongs to nobody
    clear_temporary(plan.folder)
    sealed.write(plan.folder / cache.MANIFEST, {**_head(plan), "complete": False})
    (plan.folder / "shards").mkdir(exist_ok=True)
    if todo:
        print(space.check(plan.folder, *space.of_cache(plan, extractor, everything, missing)), flush=True)
    bar = tqdm(total=everything, initial=everything - missing, unit="clip", desc="features", dynamic_ncols=True,
               disable=None, mininterval=0.2)  # on a terminal; a log gets lines
    began = said = time.perf_counter()
    pool = ThreadPoolExecutor(workers)
    try:
        for part, prepared in _prepared(plan, todo, extractor, pool):
            content, batch_size = _features(plan, part, prepared, extractor, batch_size)
            cache.dump(part.path, content)
            sealed.write(part.seal, {"fingerprint": plan.fingerprint}, part.path.name)
            bar.update(part.last - part.first)
            missing -= part.last - part.first
            now = time.perf_counter()
            if bar.disable and missing and now - said >= SAY_SECONDS:
                said, made = now, sum(p.last - p.first for p in todo) - missing
                print(f"features  {everything - missing}/{everything} clips  {made / (now - began):.1f} clips/s  "
                      f"eta {clock(missing * (now - began) / made)}", flush=True)
            if deadline.passed() and part is not todo[-1]:
                bar.close()
                deadline.leave()
    finally:
        bar.close()
        pool.shutdown(wait=False, cancel_futures=True)  # who stops does not want to wait for clips decoded ahead
    join(plan)


def missing_parts(plan: Plan) -> list[Part]:
    """The shards that are still to be made; one that is damaged, or of another cache, is named and set aside."""
    todo = []
    for part in parts(plan):
        reason = None
        if part.seal.exists():
            try:
                found = sealed.read(part.seal, part.path.name).get("fingerprint")
                if found != plan.fingerprint:
                    reason = f"{part.path} belongs to another cache (fingerprint {found} there, {plan.fingerprint} here)"
            except sealed.Damaged as error:
                reason = str(error)
        elif part.path.exists():
            part.path.unlink()  # a kill came before its checksum was written
        if reason:
            aside = part.path.with_name(part.path.name + ".damaged")
            if part.path.exists():
                os.replace(part.path, aside)
            part.seal.unlink()
            print(f"{reason}: set aside as {aside.name}, made again", flush=True)
        if not part.seal.exists():
            todo.append(part)
    return todo


def _prepared(plan: Plan, todo: list[Part], extractor: Any, pool: ThreadPoolExecutor) -> Iterator[tuple[Part, list]]:
    """Each shard with its waves: decoded clips, then augmented copies."""
    clips = plan.competition.clips

    def decoding(path: str) -> tuple[np.ndarray, float] | str:
        return decode(path, extractor.rate, plan.audio)

    def decoded(part: Part) -> list[Future]:
        return [pool.submit(decoding, path) for path in clips[clips.split == part.split].path.iloc[part.first:part.last]]

    yield from _ahead([part for part in todo if part.split != copies.NAME], decoded)
    copied = [part for part in todo if part.split == copies.NAME]
    if copied:
        bad = np.concatenate([cache.load(part.path)["bad"] for part in parts(plan) if part.split == "train"])
        made = copies.Copies(clips[clips.split == "train"], plan.augment, bad)
        yield from _ahead(copied, lambda part: made.submit(part.first, part.last, pool, decoding, extractor.rate))


def _ahead(todo: list[Part], start: Callable[[Part], list[Future]]) -> Iterator[tuple[Part, list]]:
    """Each shard with the results of its futures; the next one is being decoded while the caller works on it."""
    ahead: deque[tuple[Part, list[Future]]] = deque()
    waiting = iter(todo)

    def submit() -> None:
        part = next(waiting, None)
        if part is not None:
            ahead.append((part, start(part)))

    submit()
    while ahead:
        part, futures = ahead.popleft()
        results = [future.result() for future in futures]
        submit()
        yield part, results


def decode(path: str, rate: int, settings: Any) -> tuple[np.ndarray, float] | str:
    """(samples,) float32 at `rate` with the seconds trimmed from its start, or the reason why there is none."""
    if not path:
        return "no such file"
    try:
        wave, _, offset = read(path, rate, settings)
        return wave, offset
    except BadAudio as error:
        return str(error)


def _features(plan: Plan, part: Part, prepared: list, extractor: Any, batch_size: int) -> tuple[dict[str, Any], int]:
    """A shard's content, and the batch size that memory allowed; an item is a wave with its offset, or why there is none."""
    good = [index for index, item in enumerate(prepared) if not isinstance(item, str)]
    while True:
        try:
            features = extractor.extract([prepared[i][0] for i in good], [prepared[i][1] for i in good], batch_size)
            break
        except RuntimeError as error:
            if not out_of_memory(error) or batch_size == 1:
                raise
            batch_size //= 2
            print(f"out of memory: batch size {batch_size} from here on", flush=True)
    windows = [len(f.start) for f in features]
    if part.split == copies.NAME:
        content = copies.shard_columns(prepared, windows)
    else:
        content = {"clip": np.repeat(np.array([part.first + i for i in good], dtype=np.int32), windows),
                   "bad": np.array([part.first + i for i in range(len(prepared)) if i not in good], dtype=np.int32),
                   "reason": np.array([item for item in prepared if isinstance(item, str)], dtype=np.str_)}
    content |= {
        "start": np.concatenate([f.start for f in features] or [np.zeros(0, np.float32)]),
        "length": np.concatenate([f.length for f in features] or [np.zeros(0, np.float32)]),
        "meta": {"fingerprint": plan.fingerprint, "span": extractor.span},
    }
    for view in extractor.shapes:
        content[view] = np.concatenate([f.views[view] for f in features] or [extractor.none(view)])
    return content, batch_size


def join(plan: Plan) -> None:
    """Shards into train.pkl, test.pkl, subm.pkl, augmented.pkl; unique_labels.pkl, bad_audio.csv and the manifest beside them."""
    clips, folder = plan.competition.clips, plan.folder
    ledger = [list(row) for row in plan.competition.missing]
    meta = {"fingerprint": plan.fingerprint, "record": plan.record, "versions": _versions(plan)}
    splits, shapes, span, augmented = {}, {}, None, {}
    for split in cache.SPLITS:
        rows = clips[clips.split == split]
        if not len(rows):
            continue
        shards = _shards(plan, split)
        for shard in shards:
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
            "labels": _labels(plan.competition, rows.label),
            "folds": np.array(rows.fold.tolist(), dtype=np.int32),
            "groups": np.array(rows.group.tolist(), dtype=np.str_),
            "clip": np.searchsorted(kept, np.concatenate([s["clip"] for s in shards])).astype(np.int32),
            "start": np.concatenate([s["start"] for s in shards]),
            "length": np.concatenate([s["length"] for s in shards]),
        }
        shapes = _write(folder, split, content, shards, meta)
        splits[split] = {"clips": len(kept), "rows": len(content["clip"])}
        if split == "train" and plan.augment.augment:
            augmented = _join_copies(plan, kept, meta)
    cache.dump(folder / "unique_labels.pkl", {"unique_labels": np.array(plan.competition.classes, dtype=np.str_), "meta": meta})
    _write_ledger(folder / "bad_audio.csv", ledger)
    for name in ("sample_submission", "solution"):
        source = getattr(plan.competition, name)
        if source:  # beside the cache, so that training needs nothing but the cache
            write_bytes(folder / f"{name}.csv", Path(source).read_bytes())
    names = [f"{name}.pkl" for name in [*splits, *augmented]] + ["unique_labels.pkl", "bad_audio.csv"]
    names += [f"{name}.csv" for name in ("sample_submission", "solution") if getattr(plan.competition, name)]
    sealed.write(folder / cache.MANIFEST, {
        **_head(plan), "complete": True, "splits": splits, **augmented, "shapes": shapes, "span": span, "bad": len(ledger),
        "columns": [plan.competition.id_column, plan.competition.label_column],
        **({"separator": plan.competition.separator} if plan.competition.multilabel else {}),
        "bytes": {name: (folder / name).stat().st_size for name in names}}, *names)
    cache.tidy(folder)


def _labels(competition: Any, column: Any) -> np.ndarray:
    """(clips,) text, "" where there is none; multi-label: (clips, classes) int8, 1 for each label that a clip has."""
    if not competition.multilabel:
        return np.array(column.fillna("").tolist(), dtype=np.str_)
    place = {label: index for index, label in enumerate(competition.classes)}
    found = np.zeros((len(column), len(place)), dtype=np.int8)
    for row, labels in zip(found, column):
        row[[place[label] for label in labels or ()]] = 1
    return found


def _shards(plan: Plan, split: str) -> list[dict[str, Any]]:
    """The shards of a split, or of the copies, in order; UserError for one of another cache."""
    found = []
    for part in [part for part in parts(plan) if part.split == split]:
        found.append(cache.load(part.path))
        if found[-1]["meta"]["fingerprint"] != plan.fingerprint:
            raise UserError(f"{part.path} belongs to another cache: start over with --fresh")
    return found


def _join_copies(plan: Plan, kept: np.ndarray, meta: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The copies' shards into augmented.pkl, clips counted among those that are kept; what the manifest says of it."""
    shards = _shards(plan, copies.NAME)
    content = {key: np.concatenate([s[key] for s in shards]) for key in (*copies.COLUMNS, "start", "length")}
    mixed = content["partner"] >= 0
    content["clip"] = np.searchsorted(kept, content["clip"]).astype(np.int32)
    content["partner"] = np.where(mixed, np.searchsorted(kept, content["partner"]), -1).astype(np.int32)
    _write(plan.folder, copies.NAME, content, shards, meta)
    return {copies.NAME: {"copies": plan.augment.augment, "rows": len(content["clip"])}}


def _write(folder: Path, name: str, content: dict[str, Any], shards: list[dict[str, Any]], meta: dict) -> dict[str, list[int]]:
    """The given arrays and the shards' views as one file; (D, F, T) of each view."""
    scratch: list[Path] = []
    views = [key for key in shards[0] if shards[0][key] is not None and getattr(shards[0][key], "ndim", 0) == 4]
    joined = {view: _concatenated([s[view] for s in shards], folder / f".{name}-{view}.tmp", scratch) for view in views}
    cache.dump(folder / f"{name}.pkl", {**content, **joined, "meta": meta})
    for path in scratch:
        path.unlink()
    return {view: list(array.shape[1:]) for view, array in joined.items()}


def _head(plan: Plan) -> dict[str, Any]:
    """What a manifest says from the start; where the weights lay is a hint for later, no part of the fingerprint."""
    return {"version": cache.VERSION, "record": plan.record, "fingerprint": plan.fingerprint, "recipe": plan.recipe,
            "weights": plan.weights}


def _concatenated(arrays: list[np.ndarray], path: Path, scratch: list[Path]) -> np.ndarray:
    rows = sum(len(array) for array in arrays)
    if rows * int(np.prod(arrays[0].shape[1:])) * arrays[0].itemsize < JOIN_IN_MEMORY:
        return np.concatenate(arrays)
    # By writing, not through a memory map: a full disk is an error there, and the end of the process here.
    scratch.append(path)
    with open(path, "wb") as file:
        shape = (rows, *arrays[0].shape[1:])
        np.lib.format.write_array_header_1_0(file, {"descr": arrays[0].dtype.str, "fortran_order": False, "shape": shape})
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


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
