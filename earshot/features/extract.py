"""Audio into cached features: shard by shard, each written whole, joined at the end."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from earshot import extractors
from earshot.core import checksums, disk_space, worker_pool
from earshot.core.deadline import LONG, Deadline, clock, patiently
from earshot.core.device import Device, out_of_memory
from earshot.core.disk_space import human
from earshot.core.errors import UserError
from earshot.core.files import clear_temporary, empty
from earshot.features import augmented_copies, cache, decode_ahead, for_run, merge_shards, schema
from earshot.features.plan import Plan, check_unchanged, of_cache
from earshot.features.reasons import NOTES
from earshot.features.shards import Part, parts

SAY_SECONDS = 20.0  # between two lines where there is no terminal


def build(plan: Plan, device: Device) -> Any:
    """The plan's extractor on a device, weights loaded."""
    module = extractors.module(plan.extractor)
    return module.Extractor(plan.settings, plan.window, device.name, plan.weights, device.precision)


class Worker:
    """Makes shards on one device, in this process or in one of its own; `about` is the form of its shards
    (`schema.form`)."""

    def __init__(self, device: Device, plan: Plan, batch_size: int, workers: int):
        self.plan, self.batch_size = plan, batch_size
        self.extractor = build(plan, device)
        self.precision = f"{device.name.partition(':')[0]} {device.precision}"
        empty_views = {view: self.extractor.make_empty(view) for view in self.extractor.shapes}
        self.about = schema.form({**empty_views, "meta": {"span": self.extractor.span}})
        self.pool = ThreadPoolExecutor(workers)

    def __call__(
        self, todo: list[Part], say: Callable[[tuple[int, float, int]], None], deadline: Any
    ) -> bool:
        """Make shards; False if the time ran out before the last.

        Args:
            say: called after each shard with its clips, the seconds that it took and its bytes.
        """
        began = time.perf_counter()
        jobs = decode_ahead.jobs(self.plan, todo, self.extractor.rate, self.pool)
        ahead = decode_ahead.ahead(jobs)
        for part, found in itertools.groupby(ahead, key=lambda one: one[0]):
            prepared = itertools.chain.from_iterable(results for _, results in found)
            content, self.batch_size = _features(self.plan, part, prepared, self.extractor, self.batch_size)
            cache.dump(part.path, content)
            checksums.write(
                part.seal, {"fingerprint": self.plan.fingerprint, "precision": self.precision}, part.path.name
            )
            now = time.perf_counter()
            say((part.last - part.first, now - began, part.path.stat().st_size))
            began = now
            if deadline.passed() and part is not todo[-1]:
                return False
        return True

    def close(self) -> None:
        """Drop what is being decoded ahead: who stops does not want to wait for it."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def run(
    plan: Plan,
    device: Device | Sequence[Device],
    batch_size: int,
    workers: int,
    deadline: Deadline,
    fresh: bool = False,
    answered: bool = False,
) -> None:
    """Extract what is missing and join it; a cache that was begun is continued, decoding only missing shards.

    Args:
        device: or several, a process for each; the cache is the same.
        workers: decoding threads, of all devices together.
        fresh: throw away what the folder holds, once the extractor has accepted the settings.
        answered: when the time is up, what is left counts as clips that cannot be heard, and the cache is
            finished.

    Raises:
        UserError: not one training clip is usable.
    """
    todo = parts(plan) if fresh else missing_parts(plan)
    everything = sum(part.last - part.first for part in parts(plan))
    missing = sum(part.last - part.first for part in todo)
    if missing < everything:
        print(f"continuing: {everything - missing} of {everything} clips are done", flush=True)
    on = [device] if isinstance(device, Device) else list(device)[: max(1, len(todo))]
    arguments = (plan, batch_size, max(1, workers // len(on)))
    with contextlib.ExitStack() as stack:
        # Before anything is written: settings that the extractor refuses must not claim the cache's name.
        if not todo:
            pass
        elif len(on) > 1:
            stack.enter_context(patiently())
            team = stack.enter_context(worker_pool.Team(on, Worker, arguments, plan.folder))
            form, work = team.ready()[0], team.run
        else:
            worker = stack.enter_context(contextlib.closing(Worker(on[0], *arguments)))
            form = worker.about

            def work(tasks: list[list[Part]], heard: Callable, deadline: Deadline) -> bool:
                return worker(tasks[0], heard, deadline)

        if fresh:
            empty(plan.folder, first=cache.MANIFEST)  # what a kill leaves then belongs to nobody
        clear_temporary(plan.folder)
        checksums.write(plan.folder / cache.MANIFEST, {**merge_shards.head(plan), "complete": False})
        (plan.folder / "shards").mkdir(exist_ok=True)
        if todo and not fresh:  # only now is it known for sure what shards look like
            waiting = {part.path for part in todo}
            for part in parts(plan):
                if part.path not in waiting and _form(part) != form:
                    _set_aside(
                        part, f"{part.path} has other views, or another span, than this extractor gives"
                    )
                    waiting.add(part.path)
            todo = [part for part in parts(plan) if part.path in waiting]
            missing = sum(part.last - part.first for part in todo)
        if todo:
            shapes = {view: shape for view, shape, _ in form[0]}
            print(disk_space.check(plan.folder, *of_cache(plan, shapes, everything, missing)), flush=True)
        bar = stack.enter_context(_Bar(everything, missing, len(on)))
        # last: which clips can be heard is known then
        copied = [part for part in todo if part.split == augmented_copies.NAME]
        stages = [stage for stage in (todo[: len(todo) - len(copied)], copied) if stage]
        for stage in stages:
            tasks = [stage[number :: len(on)] for number in range(min(len(on), len(stage)))]
            if not work(tasks, bar.made, deadline) or stage is not stages[-1] and deadline.passed():
                bar.bar.close()
                if not answered or not deadline.late():
                    deadline.leave()
                count = for_run.give_up(plan, missing_parts(plan), form)
                print(
                    f"beware: the time was up: {count} of {everything} clips are not heard and get the class "
                    "prior's answer",
                    flush=True,
                )
    check_unchanged(plan)
    merge_shards.join(plan, parts(plan))


class _Bar:
    """Says how far an extraction is: a bar on a terminal, lines in a log, and once what is to be expected."""

    def __init__(self, everything: int, missing: int, devices: int):
        from tqdm import tqdm

        self.everything, self.missing, self.devices, self.todo = everything, missing, devices, missing
        self.bar = tqdm(
            total=everything,
            initial=everything - missing,
            unit="clip",
            desc="features",
            dynamic_ncols=True,
            disable=None,
            mininterval=0.2,
        )
        self.began = self.said = time.perf_counter()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *reason: object) -> None:
        self.bar.close()

    def made(self, shard: tuple[int, float, int]) -> None:
        """Count a shard: its clips, the seconds it took, its bytes."""
        clips, seconds, size = shard
        first, now = self.missing == self.todo, time.perf_counter()
        self.bar.update(clips)
        self.missing -= clips
        left = self.missing * seconds / clips / self.devices
        if first and left >= LONG:
            self.bar.write(of_extraction(self.missing, left, size * self.everything // clips))
        if self.bar.disable and self.missing and now - self.said >= SAY_SECONDS:
            self.said, made = now, self.todo - self.missing
            print(
                f"features  {self.everything - self.missing}/{self.everything} clips  "
                f"{made / (now - self.began):.1f} clips/s  eta "
                f"{clock(self.missing * (now - self.began) / made)}",
                flush=True,
            )


def missing_parts(plan: Plan) -> list[Part]:
    """The shards that are still to be made; one that is damaged, or of another cache, is named and set
    aside."""
    todo, clips = [], int((plan.competition.clips.split == "train").sum())
    every, forms = parts(plan), {}
    for part in every:
        reason = None
        if part.seal.exists():
            try:
                found = checksums.read(part.seal, part.path.name).get("fingerprint")
                content = cache.load(part.path)
                wrong = schema.shard_fault(
                    content, part.first, part.last, clips, part.split == augmented_copies.NAME
                )
                if wrong:
                    reason = f"{part.path} {wrong}"
                else:
                    forms[part.path] = schema.form(content)
                if not wrong and found == plan.fingerprint:
                    found = content["meta"].get("fingerprint")
                if found != plan.fingerprint:
                    reason = (
                        f"{part.path} belongs to another cache (fingerprint {found} there, "
                        f"{plan.fingerprint} here)"
                    )
            except UserError as error:
                reason = str(error)
        elif part.path.exists():
            part.path.unlink()  # a kill came before its checksum was written
        if reason:
            _set_aside(part, reason)
        if not part.seal.exists():
            todo.append(part)
    if todo:
        return todo  # the extractor will tell which of the others are its own
    common = Counter(forms.values()).most_common(1)[0][0] if forms else None
    todo = [part for part in every if forms[part.path] != common]
    for part in todo:
        _set_aside(part, f"{part.path} has other views, or another span, than most shards")
    return todo


def _form(part: Part) -> tuple:
    return schema.form(cache.load(part.path))


def _set_aside(part: Part, reason: str) -> None:
    aside = part.path.with_name(part.path.name + ".damaged")
    if part.path.exists():
        os.replace(part.path, aside)
    part.seal.unlink()
    print(f"{reason}: set aside as {aside.name}, made again", flush=True)


def _features(
    plan: Plan, part: Part, prepared: Iterable[Any], extractor: Any, batch_size: int
) -> tuple[dict[str, Any], int]:
    """A shard's content, and the batch size that memory allowed; an item is a wave with its offset, or why
    there is none."""
    features: list[Any] = []
    items: list[Any] = []  # without their waves
    for bite in decode_ahead.bites(prepared):
        waves = [item for item in bite if not isinstance(item, str)]
        while True:
            try:
                features += extractor.extract(
                    [item.wave for item in waves], [item.offset for item in waves], batch_size
                )
                break
            except RuntimeError as error:
                if not out_of_memory(error) or batch_size == 1:
                    raise
                batch_size //= 2
                print(f"out of memory: batch size {batch_size} from here on", flush=True)
        items += [item if isinstance(item, str) else item._replace(wave=None) for item in bite]
        del waves, bite  # before the next ones are decoded
    good = [index for index, item in enumerate(items) if not isinstance(item, str)]
    windows = [len(f.start) for f in features]
    if part.split == augmented_copies.NAME:
        content = augmented_copies.shard_columns(items, windows)
    else:
        content = {
            "clip": np.repeat(np.array([part.first + i for i in good], dtype=np.int32), windows),
            "bad": np.array([part.first + i for i in range(len(items)) if i not in good], dtype=np.int32),
            "reason": np.array([item for item in items if isinstance(item, str)], dtype=np.str_),
        }
        for note in NOTES:
            noted = [part.first + i for i in good if getattr(items[i], note)]
            content[note] = np.array(noted, dtype=np.int32)
    content |= {
        "start": np.concatenate([f.start for f in features] or [np.zeros(0, np.float32)]),
        "length": np.concatenate([f.length for f in features] or [np.zeros(0, np.float32)]),
        "meta": {"fingerprint": plan.fingerprint, "span": extractor.span},
    }
    for view in extractor.shapes:
        content[view] = np.concatenate([f.views[view] for f in features] or [extractor.make_empty(view)])
    return content, batch_size


def of_extraction(clips: int, seconds: float, size: int) -> str:
    """The line after the first shard.

    Args:
        clips: that are left. seconds: that they will take. size: bytes of all features.
    """
    return (
        f"estimate, from the first shard: about {clock(seconds)} for the other {clips} clips; {human(size)} "
        "of features, twice that on the disk until they are joined"
    )
