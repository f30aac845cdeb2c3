"""How long hidden recordings will take: the stages of a real prediction, measured on a few of them."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from earshot.audio.load import BadAudio, cut_segment
from earshot.competition import segments
from earshot.competition.audio_header import read_seconds_and_rate
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.features import precision
from earshot.features.decode_ahead import HELD, Decoded, decode_files, split_bites
from earshot.features.shards import SHARD
from earshot.features.source_files import INDEX, Sources
from earshot.prediction import new_audio
from earshot.prediction.streamed_heads import HeadsThread, StreamedHeads
from earshot.training import resume
from earshot.training.dataset import WindowDataset
from earshot.training.run import Run

if TYPE_CHECKING:
    from earshot.extractors.base import Window

SUFFIXES = (".ogg", ".flac", ".wav", ".mp3")  # that recordings of noise are written as
RATE = 44100  # of them, where that of the training files is not known
NOISES = 4  # different ones
FILES, SECONDS = 600, 60.0  # hidden recordings, unless they are known
MEASURED = 20.0  # seconds of measuring for each set of features, about
FEWEST, MOST = 4, 64  # recordings that are measured
PARTS = 4  # pieces of the measured recordings between which the stages overlap


class Workload(NamedTuple):
    """Hidden recordings."""

    recordings: int
    seconds: float
    """Of each hidden one."""
    measured: float
    """Seconds of each that is measured, on average."""
    paths: list[Path]
    """To measure on, one after the other, again from the first where there are too few."""
    stretch: float | None
    """Seconds of each row, where rows are stretches of recordings."""
    about: str
    """What the measured ones are, in words."""
    stored: bool = False
    """Are their features stored, as --hidden does, in the precision of a cache?"""

    def count_rows(self, seconds: float) -> int:
        """Rows of a recording."""
        return max(1, int(seconds / self.stretch + 0.5)) if self.stretch else 1

    def take(self, count: int) -> list[Path]:
        """So many recordings to measure on."""
        return list(itertools.islice(itertools.cycle(self.paths), count))


@dataclass
class GroupTimes:
    """Seconds for runs that share their features; of a recording unless it says otherwise."""

    name: str
    """Of the extractor."""
    load: float
    """Once: the extractor, the heads, and a first recording."""
    decode: float
    features: float
    gain: float
    """What overlapping saves, for each recording beyond the first piece."""
    piece: int
    """Recordings that are decoded before the first features."""
    heads: dict[tuple[Path, str], float] = field(default_factory=dict)
    """By run folder and kind of checkpoint."""
    of: dict[tuple[Path, str], Run] = field(default_factory=dict)
    shifted: bool = False
    """Has each stretch three windows?"""

    def count_seconds(self, recordings: int, kept: set[tuple[Path, str]] | None = None) -> float:
        """For so many recordings, start-up left out; `kept`: of the heads of these runs (default: all)."""
        heads = sum(value for key, value in self.heads.items() if kept is None or key in kept)
        if kept is not None and not kept & self.heads.keys():
            return 0.0
        stages = (self.decode, self.features, heads)
        gain = min(self.gain, sum(stages) - max(stages))
        return recordings * sum(stages) - gain * max(0, recordings - self.piece)


def find_file_kind(run: Run) -> tuple[str, int]:
    """The suffix and the sampling rate that most of a run's training files have, as far as known here."""
    place = Path(run.config["features_folder"])
    cache = place if place.is_dir() else resume.find_cache(run)
    index = cache.parent / INDEX if cache else None
    known = Sources(index).known if index is not None and index.is_file() else {}
    suffixes = Counter(suffix for path in known if (suffix := Path(path).suffix.lower()) in SUFFIXES)
    if not suffixes:
        ids = run.folder / "oof_last.csv"
        text = ids.read_text(encoding="utf-8") if ids.is_file() else ""
        names = (line.partition(",")[0] for line in text.splitlines())
        suffixes = Counter(suffix for name in names if (suffix := Path(name).suffix.lower()) in SUFFIXES)
    rates = Counter(entry["rate"] for entry in known.values() if entry.get("rate"))
    suffix = suffixes.most_common(1)[0][0] if suffixes else SUFFIXES[0]
    return suffix, int(rates.most_common(1)[0][0]) if rates else RATE


def write_noise(folder: Path, seconds: float, suffix: str, rate: int, count: int = NOISES) -> list[Path]:
    """A few recordings of noise, loud and quiet by turns."""
    import soundfile

    paths, rng = [], np.random.default_rng(0)
    for number in range(count):
        wave = 0.1 * rng.standard_normal(max(1, round(seconds * rate)), dtype=np.float32)
        wave *= 0.55 + 0.45 * np.sin(np.arange(len(wave), dtype=np.float32) * (2 * np.pi / rate))
        paths.append(folder / f"noise_{number:03d}{suffix}")
        with soundfile.SoundFile(paths[-1], "w", rate, 1) as file:
            for first in range(0, len(wave), rate):  # libsndfile's Vorbis crashes on a minute in one piece
                file.write(wave[first : first + rate])
    return paths


def make_noise_workload(
    run: Run, folder: Path, count: int, seconds: float, stretch: float | None
) -> Workload:
    """Recordings of noise, written into a folder in the format of a run's training files."""
    suffix, rate = find_file_kind(run)
    paths = write_noise(folder, seconds, suffix, rate)
    return Workload(count, seconds, seconds, paths, stretch, f"noise, {suffix[1:]} at {rate} Hz")


def describe_recordings(
    paths: list[Path], count: int | None, seconds: float | None, stretch: float | None
) -> Workload:
    """Recordings that are here, to measure on; UserError where none can be opened."""
    headers = [read_seconds_and_rate(str(path)) for path in paths[:: max(1, len(paths) // MOST)]]
    lengths = [header[0] for header in headers if header]
    if not lengths:
        raise UserError(
            f"--dry-run: none of the {len(paths)} recordings can be opened: {paths[0]} is the first"
        )
    spread, mean = paths[:: max(1, len(paths) // MOST)], float(np.mean(lengths))
    return Workload(count or len(paths), seconds or mean, mean, spread, stretch, "recordings that are here")


def cut_recordings(
    decoded: Iterable[Decoded | str], work: Workload, rate: int, window: Window
) -> Iterator[Decoded]:
    """The clips of decoded recordings: each as a whole, or its stretches as the cache of a submission has
    them; those without audio left out."""
    for found in decoded:
        if isinstance(found, str):
            continue
        if work.stretch is None:
            yield found
            continue
        count = work.count_rows(len(found.wave) / rate)
        for start, end in segments.list_stretches(count, work.stretch, window.seconds, window.hop):
            try:
                yield found._replace(wave=cut_segment(found.wave, rate, start, end), offset=start)
            except BadAudio:
                continue


def is_shifted(stretch: float | None, window: Window) -> bool:
    """Has each stretch three windows, its own and those a hop before and after?"""
    if stretch is None:
        return False
    return segments.list_stretches(1, stretch, window.seconds, window.hop)[0][1] > stretch


class _Stages:
    """The stages of a prediction, each timed alone, or all side by side."""

    def __init__(self, asked: list[tuple[Run, str]], work: Workload, weights: str | None, device: Device):
        self.asked, self.work, self.device = asked, work, device
        self._said: set[str] = set()
        run = asked[0][0]
        if work.stored and device.name == "cpu":
            kind = precision.choose_cpu_precision(run.config["record"]["features"]["extractor"])
            at = replace(device, precision=kind)
        else:
            at = device
        self.extractor, self.audio = new_audio.build_extractor(run, weights, at, self._report)
        if work.stretch is not None:  # the times of stretches are the file's
            self.audio = replace(self.audio, trim=None)

    def _report(self, line: str) -> None:
        """Print a line once: heads are loaded several times."""
        if line not in self._said:
            self._said.add(line)
            print(line)

    def load_heads(self) -> list[StreamedHeads]:
        span = self.extractor.span
        return [StreamedHeads(run, kind, span, self.device, self._report) for run, kind in self.asked]

    def decode(self, paths: list[Path], pool: ThreadPoolExecutor) -> Iterator[Decoded]:
        decoded = decode_files(paths, self.extractor.rate, self.audio, frozenset(), pool)
        return cut_recordings(decoded, self.work, self.extractor.rate, self.extractor.window)

    def extract(self, clips: list[Decoded]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        waves, offsets = [clip.wave for clip in clips], [clip.offset for clip in clips]
        views, length = new_audio.join_views(self.extractor.extract(waves, offsets, 16))
        return {name: views[name] for name in {run.config["record"]["view"] for run, _ in self.asked}}, length

    def finish(self, one: StreamedHeads, made: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> None:
        """End a prediction; `made` is all that the heads were given."""

        def load_rows() -> WindowDataset:
            view = np.concatenate([views[one.view] for views, _ in made])
            return one.build_rows(view, np.concatenate([length for _, length in made]))

        one.finish(np.array(["all"]), np.zeros(one.windows, np.int32), load_rows)

    def run_alone(self, count: int, pool: ThreadPoolExecutor) -> tuple[float, float, list[float]]:
        """Seconds of decode, features, and of each run's heads, for so many recordings."""
        heads, paths = self.load_heads(), self.work.take(count)
        decode = features = 0.0
        spent, made = [0.0] * len(heads), []
        for first in range(0, count, 2 * PARTS):  # few at a time: their waves take memory
            at = time.perf_counter()
            clips = list(self.decode(paths[first : first + 2 * PARTS], pool))
            decoded = time.perf_counter()
            decode += decoded - at
            if not clips:
                continue
            made.append(self.extract(clips))
            features += time.perf_counter() - decoded
            for number, one in enumerate(heads):
                at = time.perf_counter()
                # not in this thread, as in a real prediction: threads of torch then wait for each other less
                pool.submit(one.add, made[-1][0][one.view], made[-1][1]).result()
                spent[number] += time.perf_counter() - at
        for number, one in enumerate(heads):
            at = time.perf_counter()
            pool.submit(self.finish, one, made).result()
            spent[number] += time.perf_counter() - at
        return decode, features, spent

    def run_beside(self, count: int, piece: int, pool: ThreadPoolExecutor) -> float:
        """Seconds of all stages together, side by side, for so many recordings."""
        heads, made = self.load_heads(), []
        thread, began = HeadsThread(heads, self.device), time.perf_counter()
        try:
            for bite in split_bites(self.decode(self.work.take(count), pool), piece):
                made.append(self.extract(bite))
                thread.add(*made[-1])
            thread.wait()
        finally:
            thread.close()
        for one in heads:
            pool.submit(self.finish, one, made).result()
        return time.perf_counter() - began


def measure(asked: list[tuple[Run, str]], work: Workload, weights: str | None, device: Device) -> GroupTimes:
    """Time the stages for runs that share their features.

    Raises:
        UserError: none of the recordings can be decoded, or the weights are missing or different.
    """
    began = time.perf_counter()
    stages = _Stages(asked, work, weights, device)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode") as pool:
        first = next(stages.decode(work.take(len(work.paths)), pool), None)
        if first is None:
            raise UserError(
                f"--dry-run: {work.paths[0]} can't be decoded, nor can the others that were tried"
            )
        stages.run_alone(1, pool)
        load = time.perf_counter() - began
        at = time.perf_counter()
        stages.run_alone(2, pool)  # warm now
        once = (time.perf_counter() - at) / 2
        count = int(np.clip(MEASURED / 2 / once, FEWEST, MOST))
        decode, features, heads = stages.run_alone(count, pool)
        few = max(1, count // PARTS)
        beside = stages.run_beside(count, few * work.count_rows(work.measured), pool)
    alone = decode + features + sum(heads)
    held = int(HELD // (work.seconds * stages.extractor.rate))
    piece = max(1, min(SHARD // work.count_rows(work.seconds), held))
    one, each = work.seconds / work.measured, work.seconds / work.measured / count
    keys = [(run.folder.resolve(), kind) for run, kind in asked]
    return GroupTimes(
        asked[0][0].config["record"]["features"]["extractor"],
        load,
        decode * each,
        features * each,
        (alone - beside) / (count - few) * one,  # below 0 where the stages hinder each other
        piece,
        {key: value * each for key, value in zip(keys, heads, strict=True)},
        {key: run for key, (run, _) in zip(keys, asked, strict=True)},
        is_shifted(work.stretch, stages.extractor.window),
    )
