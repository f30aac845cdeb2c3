"""Sample ids of stretches of recordings: <recording>_<end in seconds>, as in BirdCLEF."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from earshot.competition.names import find_side, strip_suffix

if TYPE_CHECKING:
    import pandas as pd

    from earshot.competition.file_index import Files

NAMED = re.compile(r"(.+)_(\d{1,6})", re.ASCII)
SLACK = 0.01  # seconds by which a stretch may exceed a window and still be one
NEARLY = 0.8  # of a window, from which on a stretch is as long as one
DATED = re.compile(r"(.+)_(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])", re.ASCII)


class Segments(NamedTuple):
    """The ids of stretches by recording, each with its file, start and end in seconds; the length of a
    stretch; the recording's name of each."""

    ids: list[str]
    paths: list[str]
    starts: list[float]
    ends: list[float]
    seconds: float
    names: list[str]


def find_segments(ids: Sequence[str], files: Files) -> Segments | None:
    """The stretches that the ids of a sample submission name, none of which is a file; None if they name
    none.

    The length of a stretch is the commonest distance between ends, less at the start of a recording. An id
    whose recording is missing gets the path "". Files of a training folder are never used: they are labelled
    clips.
    """
    named = [match for id in ids if (match := NAMED.fullmatch(id.strip()))]
    if not named or len(named) < len(ids):
        return None
    where = find_recordings(files, [match[1] for match in named])
    of_recording: dict[str, list[tuple[int, str]]] = {stem: [] for stem in where}
    for id, match in zip(ids, named, strict=True):
        of_recording[match[1]].append((int(match[2]), id))
    every = [sorted(rows) for rows in of_recording.values()]
    if not any(where.values()) or any(rows[0][0] == 0 for rows in every):  # nothing ends before it begins
        return None
    seconds = find_step([end for end, _ in rows] for rows in every)
    rows = [
        (id, where[stem], max(0.0, end - seconds), float(end), stem)
        for stem, rows in zip(of_recording, every, strict=True)
        for end, id in rows
    ]
    columns, paths, starts, ends, names = map(list, zip(*rows, strict=True))
    return Segments(columns, paths, starts, ends, seconds, names)


def find_step(ends: Iterable[Sequence[float]]) -> float:
    """The length of stretches with these ends, sorted, of each recording: the commonest distance, else the
    earliest end; 0 without any."""
    every = [list(of_one) for of_one in ends if of_one]
    steps = Counter(
        round(after - before, 3) for of_one in every for before, after in pairwise(of_one) if after > before
    )
    if steps:
        return min(steps, key=lambda seconds: (-steps[seconds], seconds))
    return min((of_one[0] for of_one in every), default=0)


def widen(clips: pd.DataFrame, window: float, hop: float | None) -> pd.DataFrame:
    """Clips whose stretches to submit reach a hop further at both ends, where windows overlap and a stretch
    would have only one: it then has three, its own, one a hop before and one a hop after.

    Args:
        window, hop: seconds; None = no overlap.
    """
    length = clips.end - clips.start
    alone = (clips.split == "subm") & (length <= window + SLACK) & (length >= window * NEARLY)
    if hop is None or hop >= window or not alone.any():
        return clips
    return clips.assign(
        start=clips.start.mask(alone, (clips.start - hop).clip(lower=0)),
        end=clips.end.mask(alone, clips.end + hop),
    )


@functools.lru_cache(maxsize=64)
def list_stretches(
    count: int, seconds: float, window: float, hop: float | None
) -> tuple[tuple[float, float], ...]:
    """Start and end of a recording's first stretches to submit, one after the other, as `widen` cuts them.

    Args:
        count: how many. seconds: of each. window, hop: see `widen`.
    """
    import pandas as pd

    starts = [number * seconds for number in range(count)]
    rows = pd.DataFrame({"split": "subm", "start": starts, "end": [start + seconds for start in starts]})
    rows = widen(rows, window, hop)
    return tuple(zip(rows.start.tolist(), rows.end.tolist(), strict=True))


def find_recordings(files: Files, names: Iterable[str]) -> dict[str, str]:
    """The file of each recording, outside training folders; "" without one.

    A name without a file matches the only file that has a date appended to it.
    """
    distinct = list(dict.fromkeys(names))
    where = dict(zip(distinct, files.resolve_ids(distinct, "subm"), strict=True))
    dated = index_by_date(files)
    for name, path in where.items():
        if path and is_training_file(files.to_relative(path)):
            where[name] = ""
        elif not path:
            alike = dated.get(name.strip(), [])
            where[name] = files.to_absolute(alike[0]) if len(alike) == 1 else ""
    return where


def index_by_date(files: Files) -> dict[str, list[str]]:
    """The files outside training folders whose name ends in a date, by the name before it."""
    dated: dict[str, list[str]] = {}
    for path in files.audio:
        match = DATED.fullmatch(strip_suffix(path.rpartition("/")[2]))
        if match and not is_training_file(path):
            dated.setdefault(match[1], []).append(path)
    return dated


def is_training_file(path: str) -> bool:
    """Is a file, relative to the root, in a training folder?"""
    return find_side(path.rpartition("/")[0]) == "train"


class KnownIds:
    """Finds the ids that name a file to submit, or a stretch of an existing recording.

    Args:
        labelled: the training clips' files, which are left out.
    """

    def __init__(self, files: Files, labelled: set[str]):
        self.files, self.labelled, self.dated = files, labelled, index_by_date(files)

    def __call__(self, ids: Sequence[str]) -> set[str]:
        return {id for id in ids if self._is_file(id) or self._is_stretch(id)}

    def _is_file(self, id: str) -> bool:
        paths = self.files.find_candidates(id) or self.files.find_by_number(id)
        return any(
            not is_training_file(path) and self.files.to_absolute(path) not in self.labelled for path in paths
        )

    def _is_stretch(self, id: str) -> bool:
        match = NAMED.fullmatch(id.strip())
        return (
            match is not None
            and int(match[2]) > 0
            and (self._is_file(match[1]) or len(self.dated.get(match[1], [])) == 1)
        )
