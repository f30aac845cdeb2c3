"""Features of new audio, extracted as for a saved run, in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


class ExtractedFiles:
    """The features of new files, made file by file while the next ones are decoded.

    Args:
        extractor, audio: from `build_extractor`. views: those to keep.
    """

    def __init__(
        self, ids: list[str], files: list[Path], extractor: Any, audio: AudioSettings, views: set[str]
    ):
        self.ids, self.files, self.extractor, self._audio, self._views = ids, files, extractor, audio, views
        self.clip: list[int] = []  # of each window
        self.made: list[ClipFeatures] = []
        self.bad: dict[str, str] = {}
        self.noted: dict[str, list[str]] = {note: [] for note in NOTES}

    def extract(
        self, batch_size: int, listed: frozenset[Path], heads: HeadsThread | None = None, most: int = SHARD
    ) -> None:
        """Extract all of them.

        Args:
            listed: the files that existed at the start; one that is missing later is a temporary error.
            heads: predict the windows meanwhile. most: files at a time.
        Raises:
            TemporaryError: the disk or the network failed; a file is missing since it was listed.
        """
        from tqdm import tqdm

        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode")
        decoded = decode_files(self.files, self.extractor.rate, self._audio, listed, pool)
        done = 0
        try:
            with tqdm(total=len(self.files), desc="features", disable=None, leave=False) as bar:
                for bite in split_bites(decoded, most):
                    extracted = self._extract_bite(bite, done, batch_size)
                    if heads is not None and extracted:
                        heads.add(*join_views(extracted))
                    done += len(bite)
                    bar.update(len(bite))
                    del bite  # before the next ones are decoded
            if heads is not None:
                heads.wait()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if heads is not None:
                heads.close()

    def _extract_bite(self, bite: list[Decoded | str], done: int, batch_size: int) -> list[ClipFeatures]:
        """The features of decoded files; `done` of them came before."""
        good = []
        for index, decoded in enumerate(bite, done):
            if isinstance(decoded, str):
                self.bad[self.ids[index]] = decoded
                continue
            good.append((index, decoded))
            for note in NOTES:
                if getattr(decoded, note):
                    self.noted[note].append(self.ids[index])
        waves, offsets = [decoded.wave for _, decoded in good], [decoded.offset for _, decoded in good]
        extracted = self.extractor.extract(waves, offsets, batch_size)
        for (index, _), windows in zip(good, extracted, strict=True):
            self.clip += [index] * len(windows.start)
            windows.views = {name: view for name, view in windows.views.items() if name in self._views}
        self.made += extracted
        return extracted

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
