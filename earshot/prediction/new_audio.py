"""Features of new audio, extracted as for a saved run, in memory."""

from __future__ import annotations

from collections.abc import Callable
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
from earshot.features.decode_ahead import decode, split_bites
from earshot.features.reasons import NOTES
from earshot.training.run import Run

if TYPE_CHECKING:
    from earshot.extractors.base import ClipFeatures


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


class NewClips(NamedTuple):
    """New clips in the format of a cache, and the problems found."""

    split: dict[str, Any]
    """With only the run's view."""
    span: float
    """The seconds of the view's time axis."""
    bad: dict[str, str]
    """Id -> reason of the files that can't be read."""
    noted: dict[str, list[str]]
    """Kind of note (`reasons.NOTES`) -> ids of the files that have it, which are used."""


def extract_features(
    run: Run,
    ids: list[str],
    files: list[Path],
    weights: str | None,
    device: Device,
    batch_size: int = 16,
    listed: frozenset[Path] = frozenset(),
    report: Callable[[str], None] | None = None,
) -> NewClips:
    """The features of new clips for a run.

    Args:
        report: as in `build_extractor`.
        listed: the files that existed at the start; one that is missing later is a temporary error.
    Raises:
        TemporaryError: the disk or the network failed; a file is missing since it was listed.
    """
    from tqdm import tqdm

    extractor, audio = build_extractor(run, weights, device, report)
    clip, made, done = [], [], 0
    bad: dict[str, str] = {}
    noted: dict[str, list[str]] = {note: [] for note in NOTES}
    with tqdm(total=len(files), desc="features", disable=None, leave=False) as bar:
        for bite in split_bites(decode(str(path), extractor.rate, audio, path in listed) for path in files):
            good = []
            for index, decoded in enumerate(bite, done):
                if isinstance(decoded, str):
                    bad[ids[index]] = decoded
                    continue
                good.append((index, decoded))
                for note in NOTES:
                    if getattr(decoded, note):
                        noted[note].append(ids[index])
            waves = [decoded.wave for _, decoded in good]
            offsets = [decoded.offset for _, decoded in good]
            extracted = extractor.extract(waves, offsets, batch_size)
            for (index, _), windows in zip(good, extracted, strict=True):
                clip += [index] * len(windows.start)
            made += extracted
            done += len(bite)
            bar.update(len(bite))
    return NewClips(build_split(run, ids, clip, made, extractor), extractor.span, bad, noted)


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
