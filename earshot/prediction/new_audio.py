"""New audio for a saved run: the run's own extraction, in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from earshot import extractors
from earshot.audio.load import AudioSettings
from earshot.competition.file_index import Files
from earshot.core.config import with_defaults
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.core.file_names import audio_suffixes, text_of
from earshot.core.files import digest, digest_of
from earshot.features.decode_ahead import bites, decode
from earshot.features.reasons import NOTES
from earshot.training.run import Run

if TYPE_CHECKING:
    from earshot.extractors.base import ClipFeatures


def listed(paths: list[str]) -> tuple[list[str], list[Path], list[str]]:
    """Ids and files of loose audio: files as they are named, folders searched to their depth.

    Returns:
        ids (the file's name, or its path below the folder where names repeat) and paths, sorted within a
        folder, and lines on the files of a folder that are not used.
    Raises:
        UserError: nothing there.
    """
    ids, files, notes = [], [], []
    for given in map(Path, paths):
        if given.is_dir():
            found = Files(given)
            inside = sorted(found.audio, key=lambda path: path.split("/"))
            names = [path.rpartition("/")[2] for path in inside]
            ids += names if len(set(names)) == len(names) else inside
            files += [Path(found.to_absolute(path)) for path in inside]
            notes += found.describe_unused_files()
        elif given.is_file():
            ids.append(text_of(str(given)))
            files.append(given)
        else:
            raise UserError(f"no audio file or folder {given}")
    if not files:
        seen = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(f"no audio in {', '.join(paths)}{seen}: looked for {' '.join(audio_suffixes())}")
    return ids, files, notes


def extractor_of(run: Run, weights: str | None, device: Device) -> tuple[Any, AudioSettings]:
    """The extractor that made a run's features, weights compared by content.

    Raises:
        UserError: the weights are missing or are others.
    """
    from earshot.extractors.base import Window

    made = run.config["record"]["features"]
    module = extractors.module(made["extractor"])
    where = f"{run.folder}/config.yaml"
    settings = with_defaults(module.Settings(), made["settings"], where)
    weights = weights or run.config.get("weights") or module.DEFAULT_WEIGHTS
    files = module.weights_files(settings, weights)
    if not files:
        module.fetch(settings, weights)
        files = module.weights_files(settings, weights)
    found = digest_of([digest(file) for file in files])[:16] if files else None
    if found != made["weights"]:
        raise UserError(
            f"the weights {weights} are not those that {run.folder} was trained with ({found} here, "
            f"{made['weights']} there): say where those are with --weights"
        )
    window = Window(**made["window"])
    extractor = module.Extractor(settings, window, device.name, weights, device.precision)
    return extractor, with_defaults(AudioSettings(), made["audio"], where)


class NewClips(NamedTuple):
    """New clips as a cache would hold them, and the problems found."""

    split: dict[str, Any]
    """With the run's view alone."""
    span: float
    """The seconds that the view's time axis stands for."""
    bad: dict[str, str]
    """Id -> reason of the files that cannot be used."""
    noted: dict[str, list[str]]
    """Kind of note (`reasons.NOTES`) -> ids of the files that are used with it."""


def features(
    run: Run,
    ids: list[str],
    files: list[Path],
    weights: str | None,
    device: Device,
    batch_size: int = 16,
    listed: frozenset[Path] = frozenset(),
) -> NewClips:
    """The features of new clips for a run.

    Args:
        listed: the files that were there when the work began; one that is missing now is a temporary error.
    Raises:
        TemporaryError: the disk or the network failed; a file is gone since it was listed.
    """
    from tqdm import tqdm

    extractor, audio = extractor_of(run, weights, device)
    clip, found, number = [], [], 0
    bad: dict[str, str] = {}
    noted: dict[str, list[str]] = {note: [] for note in NOTES}
    with tqdm(total=len(files), desc="features", disable=None, leave=False) as bar:
        for bite in bites(decode(str(path), extractor.rate, audio, path in listed) for path in files):
            numbered = list(enumerate(bite, number))
            bad |= {ids[i]: item for i, item in numbered if isinstance(item, str)}
            good = [(i, item) for i, item in numbered if not isinstance(item, str)]
            for note in NOTES:
                noted[note] += [ids[i] for i, item in good if getattr(item, note)]
            made = extractor.extract(
                [item.wave for _, item in good], [item.offset for _, item in good], batch_size
            )
            clip += [i for (i, _), one in zip(good, made, strict=True) for _ in one.start]
            found += made
            number += len(bite)
            bar.update(len(bite))
    return NewClips(split(run, ids, clip, found, extractor), extractor.span, bad, noted)


def split(
    run: Run, ids: list[str], clip: list[int], found: list[ClipFeatures], extractor: Any
) -> dict[str, Any]:
    """New clips as a cache would hold them, with the run's view alone; `clip` is each window's clip, in the
    windows' order."""
    view = run.config["record"]["view"]
    labels = np.zeros((len(ids), len(run.classes)), np.int8) if run.multilabel else np.array([""] * len(ids))
    return {
        "ids": np.array(ids),
        "labels": labels,
        "folds": np.full(len(ids), -1),
        "groups": np.array([""] * len(ids)),
        "clip": np.array(clip, dtype=np.int32),
        "start": np.concatenate([np.zeros(0, np.float32), *(one.start for one in found)]),
        "length": np.concatenate([np.zeros(0, np.float32), *(one.length for one in found)]),
        view: np.concatenate([extractor.none(view), *(one.views[view] for one in found)]),
    }
