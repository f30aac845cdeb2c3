"""Ids that are only the end of a file's name: without its prefix, or the number that ends it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from earshot.competition.names import find_side, normalise_name, parse_number, strip_suffix

LONG = 8  # characters of an id's end that may stand for all of it


def index_tails(audio: Iterable[str]) -> dict[str, list[str]]:
    """The files by each end of their stem behind a separator, and by the number that ends it."""
    tails: dict[str, list[str]] = {}
    for path in audio:
        stem = strip_suffix(path.rpartition("/")[2])
        ends = {normalise_name(stem[mark.end() :]) for mark in re.finditer(r"[_\-. ]", stem)}
        digits = re.search(r"\d{1,30}$", stem, re.ASCII)
        if digits and digits[0] != stem:  # a name that is all number is found as one
            ends.add(str(int(digits[0])))
        for end in ends - {""}:
            tails.setdefault(end, []).append(path)
    return tails


def match_tails(tails: dict[str, list[str]], ids: Iterable[str], own: str) -> dict[str, str]:
    """The file of each id by the ends of both: an id that is the end of just one file's stem, or the number
    that ends it; else a long end of the id that is one.

    Args:
        own: the side that the ids are of, "train" or "subm": files of the other side are not meant.
    Returns:
        {} unless nearly all ids have a file, each its own.
    """
    wanted = {id for id in map(str.strip, ids) if id}
    path_of_id = {id: path for id in wanted if (path := _match_one(tails, id, own))}
    enough = len(path_of_id) >= 0.9 * len(wanted) and len(set(path_of_id.values())) == len(path_of_id) > 1
    return path_of_id if enough else {}


def _match_one(tails: dict[str, list[str]], id: str, own: str) -> str | None:
    if parse_number(id) is not None:
        ends = [str(parse_number(id))]
    else:
        stem = strip_suffix(id.replace("\\", "/").rpartition("/")[2])
        longer = [stem[mark.end() :] for mark in re.finditer(r"[_\-. ]", stem)]
        ends = [
            normalise_name(stem),
            *(normalise_name(end) for end in longer if len(end) >= LONG and re.search(r"\d", end)),
        ]
    for end in ends:
        paths = [p for p in tails.get(end, ()) if find_side(p.rpartition("/")[0]) in (own, None)]
        if paths:
            return paths[0] if len(paths) == 1 else None
    return None
