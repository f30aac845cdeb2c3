"""Sample ids that name stretches of recordings: <recording>_<second at which it ends>, as BirdCLEF's do."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from earshot.competition.file_index import side

if TYPE_CHECKING:
    from earshot.competition.file_index import Files

NAMED = re.compile(r"(.+)_(\d{1,6})", re.ASCII)


class Stretches(NamedTuple):
    """The ids that name stretches, recording by recording, each with its file and its first and last second;
    how long they are."""

    ids: list[str]
    paths: list[str]
    starts: list[float]
    ends: list[float]
    seconds: int


def find(ids: list[str], files: Files) -> Stretches | None:
    """What the ids of a sample submission mean, none of which is a file's; None if they name no stretches
    either.

    A stretch is as long as most are apart, and begins so much before its end, never before the recording. An
    id of which the recording is not there gets the path "". Files of a training folder are never taken: they
    are labelled clips.
    """
    named = [NAMED.fullmatch(id.strip()) for id in ids]
    if not all(named):
        return None
    stems = dict.fromkeys(match[1] for match in named)
    found = [
        path if side(files.relative(path).rpartition("/")[0]) != "train" else ""
        for path in files.resolve(list(stems), "subm")
    ]
    where = dict(zip(stems, found, strict=True))
    of_recording: dict[str, list[tuple[int, str]]] = {stem: [] for stem in stems}
    for id, match in zip(ids, named, strict=True):
        of_recording[match[1]].append((int(match[2]), id))
    every = [sorted(rows) for rows in of_recording.values()]
    if not any(found) or any(rows[0][0] == 0 for rows in every):  # nothing ends before it begins
        return None
    steps = Counter(
        after[0] - before[0] for rows in every for before, after in pairwise(rows) if after[0] > before[0]
    )
    seconds = (
        min(steps, key=lambda step: (-steps[step], step)) if steps else min(rows[0][0] for rows in every)
    )
    rows = [
        (id, where[stem], max(0, end - seconds), end)
        for stem, rows in zip(of_recording, every, strict=True)
        for end, id in rows
    ]
    return Stretches(
        [row[0] for row in rows],
        [row[1] for row in rows],
        [float(row[2]) for row in rows],
        [float(row[3]) for row in rows],
        seconds,
    )
