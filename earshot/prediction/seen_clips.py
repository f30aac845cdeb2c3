"""Warns if audio is in a model's training data: its prediction is then optimistic."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from earshot.core.errors import UserError
from earshot.core.files import hash_file
from earshot.prediction.members import Member
from earshot.training import training_clips
from earshot.training.predict import list_predictors
from earshot.training.run import Run


@dataclass(frozen=True)
class SeenClip:
    """A file that is a training clip.

    Args:
        id: the clip's; of several with this content, the first.
        by_name: compared by file name, because the run was made before contents were recorded.
        fold, probabilities: the fold whose models were trained without it, and what they predict (classes,);
            None where that is unknown, or there is no such model.
    """

    id: str
    by_name: bool
    fold: int | None
    probabilities: np.ndarray | None

    def __str__(self) -> str:
        if self.by_name:
            return (
                f"a training clip has this name ({self.id}): the prediction is optimistic if it is the same "
                "audio, which this older run has no record of"
            )
        return f"this audio is in the training data ({self.id}): the prediction is optimistic"


class SeenClips:
    """The training clips of a run, or of a blend's runs; `warning` is a line about unreadable records."""

    def __init__(self, whole: Member):
        self.warning: str | None = None
        self._rows = _index_oof(whole)
        self._ids: dict[str, list[str]] = {}  # by digest
        known: set[str] = set()
        unknown: set[str] = set()  # clips whose content is not recorded
        for run in whole.list_runs():
            clips = self._read(run)
            if clips is None:
                unknown.update(_index_oof(Member(run.folder, run, (), None, "best", "")))
                continue
            left_out = {part.fold for part in list_predictors(run)}
            for clip in clips:
                known.add(clip.id)
                same = self._ids.setdefault(clip.sha256, [])
                # the model of a single fold was not trained on that fold's clips
                if left_out != {clip.fold} and clip.id not in same:
                    same.append(clip.id)
        ids = sorted(unknown - known)
        several = Counter(PurePosixPath(id).name for id in ids)
        self._names = {name: id for id in ids if several[name := PurePosixPath(id).name] == 1}

    def _read(self, run: Run) -> list[training_clips.TrainingClip] | None:
        try:
            return training_clips.read_clips(run.folder)
        except UserError as error:
            self.warning = f"warning: {error}; until then training clips are recognised by name"
            return None

    def find(self, path: Path | str, name: str | None = None) -> SeenClip | None:
        """The training clip with a file's content, None for new audio.

        Args:
            name: the file's original name, where `path` is a copy.
        """
        try:
            ids = self._ids.get(hash_file(path), []) if self._ids else []
        except OSError:  # its decoder reports why
            return None
        if ids:
            # the same content in several folds: each model was trained on it
            row = self._rows.get(ids[0]) if len(ids) == 1 else None
            return SeenClip(ids[0], False, *(row or (None, None)))
        named = PurePosixPath(Path(path).name if name is None else name)
        id = self._names.get(named.name) or self._names.get(named.stem)
        return SeenClip(id, True, *self._rows.get(id, (None, None))) if id is not None else None

    def list_warnings(self, files: dict[str, Path]) -> list[str]:
        """The warnings about several files (by id): unreadable records, and files that are training clips."""
        found = {id: seen for id, path in files.items() if (seen := self.find(path)) is not None}
        lines = [self.warning] if self.warning else []
        for by_name, about in (
            (False, "are in the training data: their predictions are optimistic"),
            (
                True,
                "have a training clip's name: their predictions are optimistic if they are that clip, "
                "which this older run has no record of",
            ),
        ):
            mine = [id for id, seen in found.items() if seen.by_name is by_name]
            named = ", ".join(mine[:3]) + (", ..." if len(mine) > 3 else "")
            lines += [f"warning: {len(mine)} of {len(files)} files ({named}) {about}"] if mine else []
        return lines


def _index_oof(whole: Member) -> dict[str, tuple[int, np.ndarray]]:
    """Fold and out-of-fold probabilities (classes,) by id; empty where there are none."""
    if whole.run is None and whole.folder is None:
        return {}  # a mean that is not saved
    try:
        oof = whole.read_oof()
    except UserError:
        return {}
    return {
        str(id): (int(fold), row) for id, fold, row in zip(oof.ids, oof.folds, oof.probabilities, strict=True)
    }
