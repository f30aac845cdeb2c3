"""Ids that are only the end of a file's name, such as the number at its end."""

from __future__ import annotations

import re
from collections.abc import Iterable

from earshot.competition.names import find_side, normalise_name, parse_number, strip_suffix

LONG = 8  # fewest characters of an id's end that may match a file
NEARLY_ALL = 0.9  # share of the ids that need a file: fewer may match by chance


def index_tails(audio: Iterable[str]) -> dict[str, list[str]]:
    """The files by each end of their stem after a separator, and by the number at its end."""
    tails: dict[str, list[str]] = {}
    for path in audio:
        stem = strip_suffix(path.rpartition("/")[2])
        ends = {normalise_name(stem[mark.end() :]) for mark in re.finditer(r"[_\-. ]", stem)}
        digits = re.search(r"\d{1,30}$", stem, re.ASCII)
        if digits and digits[0] != stem:  # a name that is only a number is matched as a number
            ends.add(str(int(digits[0])))
        for end in ends - {""}:
            tails.setdefault(end, []).append(path)
    return tails


def match_tails(tails: dict[str, list[str]], ids: Iterable[str], own: str) -> dict[str, str]:
    """The file of each id by the ends of both: an id that is the end of just one file's stem, or the number
    at its end; else an id with a long end that is one.

    Args:
        own: the side of the ids, "train" or "subm": files of the other side are left out.
    Returns:
        {} unless nearly all ids have a file, each its own.
    """
    wanted = {id.strip() for id in ids} - {""}
    matches = {id: _match_one(tails, id, own) for id in wanted}
    path_of_id = {id: path for id, path in matches.items() if path is not None}
    if len(path_of_id) < 2 or len(path_of_id) < NEARLY_ALL * len(wanted):
        return {}
    return path_of_id if len(set(path_of_id.values())) == len(path_of_id) else {}


def _match_one(tails: dict[str, list[str]], id: str, own: str) -> str | None:
    number = parse_number(id)
    if number is not None:
        ends = [str(number)]
    else:
        stem = strip_suffix(id.replace("\\", "/").rpartition("/")[2])
        shorter = [stem[mark.end() :] for mark in re.finditer(r"[_\-. ]", stem)]
        # a short end, or one without a digit, is a common word
        distinctive = [end for end in shorter if len(end) >= LONG and re.search(r"\d", end)]
        ends = [normalise_name(end) for end in (stem, *distinctive)]
    for end in ends:
        paths = [path for path in tails.get(end, ()) if find_side(path.rpartition("/")[0]) in (own, None)]
        if paths:
            return paths[0] if len(paths) == 1 else None
    return None
