"""Copies of clips, such as folders with the same file names at two sampling rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from earshot.competition import suspicious
from earshot.competition.audio_header import read_seconds_and_rate
from earshot.competition.file_index import Files
from earshot.competition.inner_archives import get_size
from earshot.competition.names import find_side
from earshot.core.errors import UserError

LOOKED_AT = 5  # files of each folder whose headers are compared
LEAST = 3  # files of the same names that make two folders copies of each other


def choose_folder(files: Files, wanted: str | None) -> list[str]:
    """Keep one of the folders that hold the same file names: the one that is named, else the one with the
    highest sampling rate. The files of the others are left out of `files`.

    Args:
        wanted: a folder that --audio-folder names.
    Returns:
        lines about what is left out.
    Raises:
        UserError: the folder that is named has no audio.
    """
    by_folder: dict[str, set[str]] = defaultdict(set)
    for path in files.audio:
        folder, _, name = path.rpartition("/")
        by_folder[folder].add(name)
    if wanted is not None:
        wanted = wanted.strip("/").removeprefix("./")
        inside = [f for f in by_folder if f == wanted or f.startswith(f"{wanted}/")]
        if not inside:
            raise UserError(
                f"--audio-folder {wanted}: no audio in that folder of {files.root}; "
                f"{files.describe_audio_folders()}"
            )
    notes, chosen = [], False
    for twins in _find_twin_folders(by_folder):
        wanted_twins = [f for f in twins if wanted and (f == wanted or f.startswith(f"{wanted}/"))]
        common = sorted(set.intersection(*(by_folder[folder] for folder in twins)))[:LOOKED_AT]
        headers = {
            f: [read_seconds_and_rate(files.to_absolute(f"{f}/{name}")) for name in common] for f in twins
        }
        rates = {
            folder: folder_headers[0][1] if folder_headers[0] else 0
            for folder, folder_headers in headers.items()
        }
        kept = max(wanted_twins or twins, key=lambda folder: (rates[folder], -twins.index(folder)))
        if len(wanted_twins) != 1 and (len(set(rates.values())) == 1 or not _have_equal_durations(headers)):
            continue  # nothing to choose by: an id that matches both is an error
        chosen |= len(wanted_twins) == 1
        left = [folder for folder in twins if folder != kept]
        files.leave_out(f"{folder}/{name}" for folder in left for name in by_folder[folder])
        notes.append(
            f"{', '.join(twins)} have the same file names: using {kept} ({rates[kept]} Hz); "
            "--audio-folder chooses another"
        )
    if wanted is not None and not chosen:
        files.leave_out(
            [
                p
                for p in files.audio
                if not p.startswith(f"{wanted}/") and find_side(p.rpartition("/")[0]) != "subm"
            ]
        )
        notes.append(f"audio folder: {wanted}")
    return notes


class Duplicates(NamedTuple):
    """Files that are copies of others, and lines about them."""

    left_out: list[str]
    notes: list[str]


def find_duplicates(files: Files, audio: Sequence[str]) -> Duplicates:
    """The files of a data set that is included a second time in a folder beside or above itself."""
    sizes = [get_size(Path(files.to_absolute(path))) for path in audio]
    gone, line = suspicious.find_duplicate_files(audio, sizes, files.root)
    return Duplicates([audio[index] for index in gone], [line] if line else [])


def _find_twin_folders(by_folder: dict[str, set[str]]) -> list[list[str]]:
    """Folders of one parent that hold nearly the same names, and neither are class folders nor splits."""
    by_parent: dict[str, list[str]] = defaultdict(list)
    for folder in sorted(by_folder):
        if folder:
            by_parent[folder.rpartition("/")[0]].append(folder)
    twin_groups = []
    for folders in by_parent.values():
        first = by_folder[folders[0]]
        same = [f for f in folders if len(by_folder[f] & first) >= 0.9 * max(len(first), len(by_folder[f]))]
        if len(same) == len(folders) > 1 and len(first) >= LEAST and len({find_side(f) for f in same}) == 1:
            twin_groups.append(same)
    return twin_groups


def _have_equal_durations(headers: dict[str, list[tuple[float, int] | None]]) -> bool:
    """Do files of the same name have the same length in all folders? Class folders may number their clips
    alike, and those differ."""
    for folder_headers in zip(*headers.values(), strict=True):
        seconds = [header[0] for header in folder_headers if header]
        if len(seconds) < len(folder_headers) or max(seconds) - min(seconds) > max(0.01, 0.01 * max(seconds)):
            return False
    return True
