"""Well-known data sets: a small YAML file each in `known/` says how it is recognised and read."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from earshot.competition.names import find_side
from earshot.competition.reading import Reading
from earshot.core.file_names import is_audio

FOLDER = Path(__file__).with_name("known")


@cache
def _load_layouts() -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.yaml"))]


def _matches_most(pattern: str, paths: Sequence[str]) -> bool:
    """Does a label pattern match most of the labelled audio?"""
    clips = [p for p in paths if is_audio(p) and find_side(p.rpartition("/")[0]) != "subm"]
    return 2 * sum(bool(re.search(pattern, path)) for path in clips) > len(clips)


def match_layout(paths: Sequence[str], headers: Callable[[str], list[list[str]]]) -> Reading:
    """The settings of the known layout that these files have; empty settings where there is none.

    Args:
        paths: all files, relative to the folder.
        headers: returns the headers of the csv files with a name, or of the sample submission for "sample".
    """

    def is_present(pattern: str) -> bool:
        return any(map(re.compile(fnmatch.translate(pattern)).match, paths))

    for known in _load_layouts():
        if (
            all(map(is_present, known["files"]))
            and not any(map(is_present, known.get("absent", ())))
            and all(
                any(set(wanted) <= set(header) for header in headers(name))
                for name, wanted in known.get("columns", {}).items()
            )
        ):
            read: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in known.get("read", {}).items()
            }
            if "label_pattern" in read and not _matches_most(read["label_pattern"], paths):
                continue  # one of several data sets in one folder
            return Reading(layout=known["layout"], **read)
    return Reading()
