"""A class of silence or noise, cut from the long recordings of a folder such as _background_noise_."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import pandas as pd

from earshot.competition.audio_header import read_seconds_and_rate
from earshot.competition.file_index import Files
from earshot.competition.layout import Layout, build_table
from earshot.competition.names import strip_suffix
from earshot.core.errors import UserError

LOOKED_AT = 64  # clips whose length is measured


def is_noise(path: str) -> bool:
    """Is a file in a folder such as _background_noise_?"""
    return any(len(part) > 2 and part[0] == part[-1] == "_" for part in path.split("/")[:-1])


def cut_noise_clips(
    files: Files, noise: Sequence[str], like: pd.DataFrame, name: str, layout: Layout
) -> pd.DataFrame:
    """Clips of the class `name`: stretches of the noise recordings, as long as the median clip, one after the
    other.

    Args:
        noise: the recordings, relative to the root.
        like: the other training clips.
    Raises:
        UserError: there are no noise recordings, or none is as long as a clip.
    """
    if not noise:
        raise UserError(
            f"--noise-class {name}: no folder such as _background_noise_ with audio in {files.root}"
        )
    step = max(1, len(like) // LOOKED_AT)
    lengths = [header[0] for path in list(like["path"])[::step] if (header := read_seconds_and_rate(path))]
    seconds = max(round(median(lengths), 3), 0.001) if lengths else 1.0
    rows: list[tuple[str, str, float, float]] = []
    groups: list[str] = []
    twins = len({strip_suffix(path.rpartition("/")[2]) for path in noise}) < len(noise)  # in two folders
    for path in noise:
        whole, _ = read_seconds_and_rate(files.to_absolute(path)) or (0.0, 0)
        for number in range(int(whole / seconds + 1e-6)):
            start = round(number * seconds, 3)
            id = f"{strip_suffix(path if twins else path.rpartition('/')[2])}@{start:.10g}"
            rows.append((id, files.to_absolute(path), start, round(start + seconds, 3)))
            groups.append(path)
    if not rows:
        raise UserError(f"--noise-class {name}: no recording there is as long as a clip ({seconds:g} s)")
    ids, paths, starts, ends = zip(*rows, strict=True)
    layout.notes.append(
        f"class {name}: {len(rows)} clips of {seconds:g} s, cut from {len(set(groups))} noise recordings"
    )
    (label,) = layout.unify_spellings([name]) if layout.renamed is None else (name,)
    layout.spelled.setdefault(name, name)
    return build_table(ids, paths, "train", [label] * len(ids), None, groups, list(starts), list(ends))
