"""Decoding of clips ahead of the extractor, as many as the memory holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from earshot.audio.load import AudioSettings, BadAudio, cut_segment, read
from earshot.audio.source import Unreadable
from earshot.competition import segments
from earshot.core.errors import TemporaryError
from earshot.features import augmented_copies
from earshot.features.shards import SHARD, Shard

if TYPE_CHECKING:
    from earshot.features.plan import Plan

HELD = 1 << 26  # samples (256 MB) of clips at work, and again of clips decoded ahead
COPIES = 8  # augmented copies that are made together, of clips that are decoded once for them


class Decoded(NamedTuple):
    """A clip, ready for an extractor."""

    wave: np.ndarray
    """(samples,) float32."""
    offset: float
    """Seconds that were trimmed from its start, or where it begins in its recording."""
    cancelled: bool = False
    """Its channels cancel each other out, so that one of them was taken."""
    partial: bool = False
    """Something of its file could not be decoded."""


Job = tuple[Any, list[Future]]
"""What the results are of, such as their shard, and the results to come."""


def start_jobs(
    plan: Plan, todo: list[Shard], unreadable: np.ndarray, rate: int, pool: ThreadPoolExecutor
) -> Iterator[Job]:
    """Start decoding jobs for each shard, one by one: first of clips, then of augmented copies.

    Args:
        unreadable: indices of training clips; no copies are made of them.
    """
    # Not in the plan's clips: caches of other hops hold the same clips and can be blended.
    clips = segments.widen(plan.competition.clips, plan.window.seconds, plan.window.hop)

    def decode_clip(path: str) -> Decoded | str:
        return decode(path, rate, plan.audio, path not in plan.unreadable)

    untrimmed = replace(plan.audio, trim=None)  # the times of stretches are the file's
    # Path and wave of what clips are stretches of. The next shard may go on with it.
    recording: tuple[str, Future] | None = None
    for shard in todo:
        if shard.has_copies:
            continue
        rows = clips[clips.split == shard.split].iloc[shard.first : shard.last]
        for path, start, end in zip(rows.path, rows.start, rows.end, strict=True):
            if np.isnan(start):  # the whole file
                yield shard, [pool.submit(decode_clip, path)]
                continue
            if recording is None or recording[0] != path:
                # submitted before its stretches, so that even a single thread comes to an end
                listed = path not in plan.unreadable
                recording = path, pool.submit(decode, path, rate, untrimmed, listed)
            yield shard, [pool.submit(_cut_segment, recording[1], rate, start, end)]
    copied = [shard for shard in todo if shard.has_copies]
    if copied:
        copies = augmented_copies.Copies(clips[clips.split == "train"], plan.augment, unreadable)
    for shard in copied:
        for first in range(shard.first, shard.last, COPIES):
            last = min(first + COPIES, shard.last)
            yield shard, copies.submit(first, last, pool, decode_clip, rate)


def decode_files(
    files: Iterable[Path], rate: int, audio: AudioSettings, listed: Container[Path], pool: ThreadPoolExecutor
) -> Iterator[Decoded | str]:
    """Loose files, decoded ahead, in order; the reason as text where that fails.

    Args:
        listed: the files that existed at the start, see `decode`.
    """
    started = ((None, [pool.submit(decode, str(path), rate, audio, path in listed)]) for path in files)
    for _, results in decode_in_order(started):
        yield from results


def decode_in_order(started: Iterator[Job]) -> Iterator[tuple[Any, list]]:
    """The results of each job, in order, while the next ones are decoded: as many as a shard has, fewer if
    clips are long.

    No more of them than `HELD` samples, by the longest so far; but always one, and two until the first is
    known.
    """
    waiting: deque[Job] = deque()
    largest = 0

    def has_room() -> bool:
        count = sum(len(futures) for _, futures in waiting)
        return count < 1 + (not largest) or 0 < largest * (count + 1) <= HELD and count < SHARD

    while True:
        while has_room() and (job := next(started, None)) is not None:
            waiting.append(job)
        if not waiting:
            return
        shard, futures = waiting.popleft()
        results = [future.result() for future in futures]
        largest = max([largest, *map(count_samples, results)])
        yield shard, results


def count_samples(item: Any) -> int:
    """The samples that a decoded clip keeps in memory: of a stretch, all of its recording."""
    return 0 if isinstance(item, str) else (item.wave if item.wave.base is None else item.wave.base).size


def split_bites(prepared: Iterable[Any], most: int = SHARD) -> Iterator[list[Any]]:
    """The items in lists of at most so many; shorter ones where clips are long."""
    bite: list[Any] = []
    for item in prepared:
        bite.append(item)
        if len(bite) == most or sum(map(count_samples, bite)) > HELD:
            yield bite
            bite = []
    if bite:
        yield bite


def decode(path: str, rate: int, settings: Any, listed: bool = False) -> Decoded | str:
    """Decode a clip at `rate`; the reason as text where that fails.

    Args:
        listed: the file was read when the work was planned. If it cannot be opened now, the disk or the
            network has failed.
    Raises:
        TemporaryError: the disk, the network or this process failed.
    """
    if not path:
        return "no such file"
    try:
        clip = read(path, rate, settings)
        return Decoded(clip.wave, clip.trimmed, clip.cancelled, clip.partial)
    except Unreadable as error:
        if listed:
            raise TemporaryError(f"{path}: {error}, and it was there when the files were listed") from None
        return str(error)
    except BadAudio as error:
        return str(error)


def _cut_segment(recording: Future, rate: int, start: float, end: float) -> Decoded | str:
    found = recording.result()
    if isinstance(found, str):
        return found
    try:
        return found._replace(wave=cut_segment(found.wave, rate, start, end), offset=start)
    except BadAudio as error:
        return str(error)
