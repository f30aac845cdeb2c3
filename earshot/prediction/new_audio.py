"""Features of new audio, extracted as for a saved run, in memory."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Collection, Container, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from earshot import extractors
from earshot.audio.load import AudioSettings
from earshot.competition.file_index import Files
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.core.file_names import list_audio_suffixes, to_text
from earshot.core.files import hash_file, hash_value
from earshot.core.settings import replace_defaults
from earshot.features import exported, for_run
from earshot.features.decode_ahead import Decoded, decode_files, split_bites
from earshot.features.reasons import NOTES
from earshot.features.shards import SHARD
from earshot.training.run import Run

if TYPE_CHECKING:
    from earshot.extractors.base import ClipFeatures
    from earshot.prediction.streamed_heads import HeadsThread

BATCH = 16  # windows per pass of an extractor


def list_files(paths: list[str]) -> tuple[list[str], list[Path], list[str]]:
    """Ids and files of loose audio: files, and folders with all subfolders.

    Returns:
        ids (the file's name, or its path below the folder where names repeat) and paths, sorted within a
        folder, and lines about unused files.
    Raises:
        UserError: no audio.
    """
    ids, files, notes = [], [], []
    for path in map(Path, paths):
        if path.is_dir():
            folder = Files(path)
            inside = sorted(folder.audio, key=lambda name: name.split("/"))
            names = [name.rpartition("/")[2] for name in inside]
            ids += names if len(set(names)) == len(names) else inside
            files += [Path(folder.to_absolute(name)) for name in inside]
            notes += folder.describe_unused_files()
        elif path.is_file():
            ids.append(to_text(str(path)))
            files.append(path)
        else:
            raise UserError(f"no file or folder {path}")
    if not files:
        seen = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(
            f"no audio in {', '.join(paths)}{seen}: searched for {' '.join(list_audio_suffixes())}"
        )
    return ids, files, notes


def build_extractor(
    run: Run, weights: str | None, device: Device, report: Callable[[str], None] | None = None
) -> tuple[Any, AudioSettings]:
    """The extractor that made a run's features, weights compared by content.

    Args:
        report: called with a line where an export of the run computes the network; None: torch does.
    Raises:
        UserError: the weights are missing or different.
    """
    from earshot.extractors.base import Window

    made = run.config["record"]["features"]
    module = extractors.load_module(made["extractor"])
    where = f"{run.folder}/config.yaml"
    settings = replace_defaults(module.Settings(), made["settings"], where)
    weights = weights or for_run.find_weights(run) or module.Extractor.default_weights
    files = module.Extractor.find_weights(settings, weights)
    if not files:
        module.Extractor.fetch(settings, weights)
        files = module.Extractor.find_weights(settings, weights)
    found = hash_value([hash_file(file) for file in files])[:16] if files else None
    if found != made["weights"]:
        raise UserError(
            f"the weights {weights} differ from those of {run.folder}: hash {found} here, "
            f"{made['weights']} in the run: give the right ones with --weights"
        )
    window = Window(**made["window"])
    extractor = module.Extractor(settings, window, device.name, weights, device.precision)
    if report:
        exported.replace_network(extractor, run, report)
    return extractor, replace_defaults(AudioSettings(), made["audio"], where)


class Bite(NamedTuple):
    """The features of some files that follow each other."""

    first: int
    """Index of the first of them."""
    size: int
    """How many they are."""
    made: list[ClipFeatures]
    which: list[int]
    """The index of the file of each of `made`."""
    bad: dict[int, str]
    """Index -> why the file cannot be read."""
    noted: dict[str, list[int]]
    """Note -> the files that it is about."""


def extract_bites(
    files: Sequence[Path],
    extractor: Any,
    audio: AudioSettings,
    views: Collection[str],
    batch_size: int,
    listed: Container[Path],
    first: int = 0,
    workers: int | None = None,
) -> Generator[Bite]:
    """Extract files in order, while the next ones are decoded.

    A bite ends behind every 32 files, as a cache's shards do. So a worker that begins there has the same
    batches, and with them the same last digits, as one that makes all files.

    Args:
        extractor, audio: from `build_extractor`. views: those to keep.
        listed: the files that existed at the start; one that is missing later is a temporary error.
        first: the index of the first file. workers: decoding threads, by default one per core.
    Raises:
        TemporaryError: the disk or the network failed; a file is missing since it was listed.
    """
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), "decode")
    decoded = decode_files(files, extractor.rate, audio, listed, pool)
    try:
        for _ in range(0, len(files), SHARD):
            for bite in split_bites(itertools.islice(decoded, SHARD)):
                made = _extract_bite(bite, first, extractor, views, batch_size)
                first += len(bite)
                del bite  # before the next ones are decoded
                yield made
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _extract_bite(
    bite: list[Decoded | str], first: int, extractor: Any, views: Collection[str], batch_size: int
) -> Bite:
    """The features of decoded files."""
    good = [(index, one) for index, one in enumerate(bite, first) if not isinstance(one, str)]
    made = extractor.extract([one.wave for _, one in good], [one.offset for _, one in good], batch_size)
    for clip in made:
        clip.views = {name: view for name, view in clip.views.items() if name in views}
    bad = {index: one for index, one in enumerate(bite, first) if isinstance(one, str)}
    noted = {note: [index for index, one in good if getattr(one, note)] for note in NOTES}
    return Bite(first, len(bite), made, [index for index, _ in good], bad, noted)


class ExtractedFiles:
    """The features of new files, made file by file while the next ones are decoded.

    Args:
        extractor: from `build_extractor`, or what a cluster's workers have in its place.
    """

    def __init__(self, ids: list[str], extractor: Any):
        self.ids, self.extractor = ids, extractor
        self.clip: list[int] = []  # of each window
        self.made: list[ClipFeatures] = []
        self.bad: dict[str, str] = {}
        self.noted: dict[str, list[str]] = {note: [] for note in NOTES}

    @contextlib.contextmanager
    def collect(self, heads: HeadsThread | None = None) -> Iterator[Callable[[Bite], None]]:
        """Within the block a function takes the bites, in order, beside a progress bar.

        Args:
            heads: predict the windows meanwhile.
        """
        from tqdm import tqdm

        try:
            with tqdm(total=len(self.ids), desc="features", disable=None, leave=False) as bar:

                def add(bite: Bite) -> None:
                    self._add(bite)
                    if heads is not None and bite.made:
                        heads.add(*join_views(bite.made))
                    bar.update(bite.size)

                yield add
            if heads is not None:
                heads.wait()
        finally:
            if heads is not None:
                heads.close()

    def _add(self, bite: Bite) -> None:
        for index, windows in zip(bite.which, bite.made, strict=True):
            self.clip += [index] * len(windows.start)
        self.made += bite.made
        self.bad |= {self.ids[index]: reason for index, reason in bite.bad.items()}
        for note, noted in bite.noted.items():
            self.noted[note] += [self.ids[index] for index in noted]

    @property
    def windows(self) -> dict[str, np.ndarray]:
        """The clip of each window, and where it starts and how much audio it has in seconds."""
        start = [np.zeros(0, np.float32), *(features.start for features in self.made)]
        length = [np.zeros(0, np.float32), *(features.length for features in self.made)]
        clip = np.array(self.clip, dtype=np.int32)
        return {"clip": clip, "start": np.concatenate(start), "length": np.concatenate(length)}

    def build_split(self, run: Run) -> dict[str, Any]:
        """In the format of a cache, with only the run's view."""
        return build_split(run, self.ids, self.clip, self.made, self.extractor)


def join_views(made: Sequence[ClipFeatures]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The views of clips (at least one) as one array each, and the seconds of real audio of each window."""
    views = {name: np.concatenate([clip.views[name] for clip in made]) for name in made[0].views}
    return views, np.concatenate([clip.length for clip in made])


def build_split(
    run: Run, ids: list[str], clip: list[int], made: list[ClipFeatures], extractor: Any
) -> dict[str, Any]:
    """New clips in the format of a cache, with only the run's view; `clip` is the clip of each window."""
    view = run.config["record"]["view"]
    labels = np.zeros((len(ids), len(run.classes)), np.int8) if run.multilabel else np.array([""] * len(ids))
    return {
        "ids": np.array(ids),
        "labels": labels,
        "folds": np.full(len(ids), -1),
        "groups": np.array([""] * len(ids)),
        "clip": np.array(clip, dtype=np.int32),
        "start": np.concatenate([np.zeros(0, np.float32), *(features.start for features in made)]),
        "length": np.concatenate([np.zeros(0, np.float32), *(features.length for features in made)]),
        view: np.concatenate([extractor.make_empty(view), *(features.views[view] for features in made)]),
    }
