"""Extraction of features into a cache: shard by shard, joined at the end."""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from earshot import extractors
from earshot.core import checksums, disk_space, latest, worker_pool
from earshot.core.deadline import LONG, Deadline, defer_signals, format_clock
from earshot.core.device import Device, is_out_of_memory
from earshot.core.disk_space import format_bytes
from earshot.core.files import clear_temporary, empty_folder, write_bytes
from earshot.features import augmented_copies, cache, decode_ahead, exported, for_run, merge_shards
from earshot.features.augmented_copies import Copy
from earshot.features.decode_ahead import Decoded
from earshot.features.plan import Plan, check_unchanged, estimate_bytes
from earshot.features.reasons import NOTES
from earshot.features.shards import Form, Shard, concatenate, list_shards

LINE_SECONDS = 20.0  # between two progress lines where there is no terminal
NOBODY = np.zeros(0, np.int32)
Watch = Callable[[Shard, dict[str, np.ndarray], float], None]  # a finished shard, its arrays, the span
CHUNK = 8  # shards that a worker gets at once, at most
# a pool of a worker for each device, from the arguments that `Worker` takes behind the device
OpenPool = Callable[[Sequence[Device], tuple], contextlib.AbstractContextManager[worker_pool.WorkerPool]]


def build_extractor(plan: Plan, device: Device) -> Any:
    """The plan's extractor on a device, weights loaded."""
    module = extractors.load_module(plan.extractor)
    found = module.Extractor(plan.settings, plan.window, device.name, plan.weights, device.precision)
    if plan.saved_run:
        exported.replace_network(found, plan.saved_run)
    return found


class Task(NamedTuple):
    """Shards to make, in order."""

    shards: list[Shard]
    unreadable: np.ndarray
    """Indices of the training clips that have no features, where the shards are of copies."""

    @property
    def name(self) -> str:
        """Its first and last shard, for messages."""
        first, last = self.shards[0].path.stem, self.shards[-1].path.stem
        return f"shard {first}" if first == last else f"shards {first} to {last}"


class Made(NamedTuple):
    """A worker's message: it has made a shard, or found it finished."""

    name: str
    clips: int
    seconds: float
    size: int
    """Bytes."""
    files: tuple[tuple[str, bytes], ...] = ()
    """Name and content of its files, where they are still to be written."""


class Worker:
    """Makes shards on one device, in this process or in its own; `about` is the form of the shards."""

    def __init__(self, device: Device, plan: Plan, batch_size: int, workers: int):
        self.plan, self.batch_size = plan, batch_size
        self.extractor = build_extractor(plan, device)
        self.precision = f"{device.name.partition(':')[0]} {device.precision}"
        empty_views = {view: self.extractor.make_empty(view) for view in self.extractor.shapes}
        self.about = Form.from_views(empty_views, self.extractor.span)
        self.pool = ThreadPoolExecutor(workers)
        self.watch: Watch | None = None

    def __call__(self, task: Task, report: Callable[[Made], None], deadline: Any) -> bool:
        """Make those shards of a task that are not finished; False if the time ran out before the last.

        Args:
            report: called after each shard.
        """
        began, todo = time.perf_counter(), []
        for shard in task.shards:
            if shard.seal.exists():  # by another worker, which was lost since
                report(Made(shard.path.stem, shard.clips, 0.0, shard.path.stat().st_size))
            else:
                todo.append(shard)
        jobs = decode_ahead.start_jobs(self.plan, todo, task.unreadable, self.extractor.rate, self.pool)
        decoded = decode_ahead.decode_in_order(jobs)
        for shard, results in itertools.groupby(decoded, key=operator.itemgetter(0)):
            clips = itertools.chain.from_iterable(items for _, items in results)
            arrays = self.extract(shard, clips)
            shard.write(self.plan.fingerprint, self.extractor.span, self.precision, arrays)
            if self.watch:
                self.watch(shard, arrays, self.extractor.span)
            now = time.perf_counter()
            report(Made(shard.path.stem, shard.clips, now - began, shard.path.stat().st_size))
            began = now
            if deadline.is_over() and shard is not todo[-1]:
                return False
        return True

    def extract(self, shard: Shard, clips: Iterable[Decoded | Copy | str]) -> dict[str, np.ndarray]:
        """A shard's arrays from its decoded clips or copies; text in place of a clip is the reason why it
        has none."""
        features: list[Any] = []
        items: list[Any] = []  # the clips without their waves
        for bite in decode_ahead.split_bites(clips):
            features += self._extract_bite([item for item in bite if not isinstance(item, str)])
            items += [item if isinstance(item, str) else item._replace(wave=None) for item in bite]
            del bite  # before the next ones are decoded
        windows = [len(clip.start) for clip in features]
        if shard.has_copies:
            arrays = augmented_copies.build_columns(items, windows)
        else:
            arrays = _build_clip_columns(shard, items, windows)
        arrays["start"] = np.concatenate([clip.start for clip in features] or [np.zeros(0, np.float32)])
        arrays["length"] = np.concatenate([clip.length for clip in features] or [np.zeros(0, np.float32)])
        for view in self.extractor.shapes:
            rows = [clip.views[view] for clip in features]
            arrays[view] = np.concatenate(rows or [self.extractor.make_empty(view)])
        return arrays

    def _extract_bite(self, clips: list[Any]) -> list[Any]:
        while True:
            waves, offsets = [clip.wave for clip in clips], [clip.offset for clip in clips]
            try:
                return self.extractor.extract(waves, offsets, self.batch_size)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
            self.batch_size //= 2
            print(f"out of memory: batch size is now {self.batch_size}", flush=True)

    def close(self) -> None:
        """Cancel the decoding of further clips, so that stopping does not wait for it."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def _build_clip_columns(shard: Shard, items: list[Any], windows: list[int]) -> dict[str, np.ndarray]:
    """The clip of each row, the clips without features with their reasons, the clips with a note."""
    good = [number for number, item in enumerate(items, shard.first) if not isinstance(item, str)]
    bad = [number for number, item in enumerate(items, shard.first) if isinstance(item, str)]
    columns = {
        "clip": np.repeat(np.array(good, dtype=np.int32), windows),
        "bad": np.array(bad, dtype=np.int32),
        "reason": np.array([item for item in items if isinstance(item, str)], dtype=np.str_),
    }
    for note in NOTES:
        noted = [number for number in good if getattr(items[number - shard.first], note)]
        columns[note] = np.array(noted, dtype=np.int32)
    return columns


def run(
    plan: Plan,
    device: Device | Sequence[Device],
    batch_size: int,
    workers: int,
    deadline: Deadline,
    fresh: bool = False,
    finish: bool = False,
    open_pool: OpenPool | None = None,
    watch: Watch | None = None,
) -> None:
    """Extract the missing shards and join all of them; an unfinished cache is continued.

    Args:
        device: one or several, each with its own process; the cache is the same.
        workers: decoding threads, of all devices together.
        fresh: delete the content of the folder, once the extractor has accepted the settings.
        finish: at the time limit, finish the cache: the clips left count as unreadable.
        open_pool: of the workers of a cluster that make the shards; `device` has an item for each.
        watch: called with each shard that is made, where this process makes them, on a CPU.

    Raises:
        UserError: not one training clip is usable.
    """
    shards = list_shards(plan)
    todo = shards if fresh else find_missing_shards(plan, shards)
    total, missing = sum(shard.clips for shard in shards), sum(shard.clips for shard in todo)
    if missing < total:
        print(f"continuing: {total - missing} of {total} clips are done", flush=True)
    devices = [device] if isinstance(device, Device) else list(device)[: max(1, len(todo))]
    threads = workers if open_pool else max(1, workers // len(devices))
    arguments = (plan, batch_size, threads)
    with contextlib.ExitStack() as stack:
        # Before anything is written: settings that the extractor refuses must not take the cache's name.
        if todo:
            form, work = _start_workers(stack, devices, arguments, open_pool, watch)
        if fresh:
            empty_folder(plan.folder, first=cache.MANIFEST)  # after a kill the rest belongs to no cache
        clear_temporary(plan.folder)
        checksums.write(plan.folder / cache.MANIFEST, {**merge_shards.build_head(plan), "complete": False})
        latest.begin(
            plan.folder.parent.parent, f"{plan.folder.parent.name}/{plan.folder.name}", "get_features.py"
        )
        (plan.folder / "shards").mkdir(exist_ok=True)
        if todo and not fresh:  # the form of the shards is known now
            _set_other_forms_aside(shards, form, "this extractor gives")
            todo = [shard for shard in shards if not shard.seal.exists()]
            missing = sum(shard.clips for shard in todo)
        if todo:
            shapes = {view: shape for view, shape, _ in form.views}
            print(
                disk_space.check_space(plan.folder, *estimate_bytes(plan, shapes, total, missing)), flush=True
            )
        bar = stack.enter_context(_Bar(total, missing, len(devices)))

        def make(part: list[Shard], unreadable: np.ndarray = NOBODY) -> bool:
            alone = open_pool is None and len(devices) == 1
            chunks = [part] if alone else worker_pool.split_tasks(part, len(devices), CHUNK)
            done = work([Task(list(chunk), unreadable) for chunk in chunks], keep, deadline)
            os.listdir(plan.folder / "shards")  # a network file system forgets which files were missing
            return done

        def keep(made: Made) -> None:
            for name, content in made.files:
                write_bytes(plan.folder / "shards" / name, content)
            bar.made(made)

        clips = [shard for shard in todo if not shard.has_copies]
        copies = [shard for shard in todo if shard.has_copies]
        in_time = not clips or make(clips)
        if copies:  # last: it is known now which clips can be mixed
            in_time = in_time and not (clips and deadline.is_over())
            in_time = in_time and make(copies, _find_unreadable(shards))
        if not in_time:
            bar.bar.close()
            if not finish or not deadline.is_out_of_time():
                deadline.leave()
            count = for_run.write_empty_shards(
                plan, [shard for shard in shards if not shard.seal.exists()], form
            )
            print(
                f"warning: time limit reached: {count} of {total} clips skipped, filled with class priors",
                flush=True,
            )
    check_unchanged(plan)
    merge_shards.merge(plan, shards)


def _start_workers(
    stack: contextlib.ExitStack,
    devices: list[Device],
    arguments: tuple,
    open_pool: OpenPool | None,
    watch: Watch | None,
) -> tuple[Form, Callable]:
    """The form of the shards to make, and a function that runs tasks on the workers."""
    if open_pool is None and len(devices) == 1:
        worker = stack.enter_context(contextlib.closing(Worker(devices[0], *arguments)))
        worker.watch = watch if devices[0].name == "cpu" else None
        return worker.about, lambda tasks, report, deadline: worker(tasks[0], report, deadline)
    stack.enter_context(defer_signals())
    pool: worker_pool.WorkerPool
    if open_pool is None:
        pool = stack.enter_context(worker_pool.ProcessPool(devices, Worker, arguments, arguments[0].folder))
    else:
        pool = stack.enter_context(open_pool(devices, arguments))
    return pool.wait_until_ready()[0], pool.run


def _find_unreadable(shards: list[Shard]) -> np.ndarray:
    """Indices of the training clips without features, from the finished shards."""
    return concatenate([shard for shard in shards if shard.split == "train"], "bad")


class _Bar:
    """Progress of an extraction: a bar on a terminal, lines in a log, and once an estimate."""

    def __init__(self, everything: int, missing: int, devices: int):
        from tqdm import tqdm

        self.everything, self.missing, self.devices, self.todo = everything, missing, devices, missing
        self.counted: set[str] = set()
        self.bar = tqdm(
            total=everything,
            initial=everything - missing,
            unit="clip",
            desc="features",
            dynamic_ncols=True,
            disable=None,
            mininterval=0.2,
        )
        self.began = self.logged_at = time.perf_counter()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *reason: object) -> None:
        self.bar.close()

    def made(self, shard: Made) -> None:
        """Count a shard, once: a task of a worker that was lost is repeated."""
        if shard.name in self.counted:
            return
        self.counted.add(shard.name)
        clips, seconds, size = shard.clips, shard.seconds, shard.size
        first, now = self.missing == self.todo, time.perf_counter()
        self.bar.update(clips)
        self.missing -= clips
        left = self.missing * seconds / clips / self.devices
        if first and left >= LONG:
            self.bar.write(format_estimate(self.missing, left, size * self.everything // clips))
        if self.bar.disable and self.missing and now - self.logged_at >= LINE_SECONDS:
            self.logged_at, made = now, self.todo - self.missing
            print(
                f"features  {self.everything - self.missing}/{self.everything} clips  "
                f"{made / (now - self.began):.1f} clips/s  eta "
                f"{format_clock(self.missing * (now - self.began) / made)}",
                flush=True,
            )


def find_missing_shards(plan: Plan, shards: list[Shard]) -> list[Shard]:
    """The shards that are still to be made; damaged ones, or those of another cache, are set aside with a
    line."""
    train_clips = int((plan.competition.clips.split == "train").sum())
    for shard in shards:
        if shard.seal.exists():
            fault = shard.find_fault(plan.fingerprint, train_clips)
            if fault:
                shard.set_aside(fault)
        elif shard.path.exists():
            shard.path.unlink()  # a kill came before its checksum was written
    todo = [shard for shard in shards if not shard.seal.exists()]
    if todo or not shards:
        return todo  # the extractor will show which of the others fit
    common = Counter(shard.form for shard in shards).most_common(1)[0][0]
    _set_other_forms_aside(shards, common, "most shards")
    return [shard for shard in shards if not shard.seal.exists()]


def _set_other_forms_aside(shards: list[Shard], form: Form, whose: str) -> None:
    for shard in shards:
        if shard.seal.exists() and shard.form != form:
            shard.set_aside(f"{shard.path} has other views, or another span, than {whose}")


def format_estimate(clips: int, seconds: float, size: int) -> str:
    """The estimate after the first shard.

    Args:
        clips: the clips left. seconds: the time that they will take. size: bytes of all features.
    """
    return (
        f"estimate from the first shard: about {format_clock(seconds)} for the other {clips} clips; "
        f"{format_bytes(size)} of features, twice that on disk until they are joined"
    )
