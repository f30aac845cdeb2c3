"""Reasons why clips cannot be used, and warnings about clips that are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from earshot.audio.load import BadAudio, read_info

# Notes on clips that are used, by their names in `Decoded`, and the warnings about them.
NOTES = {
    "cancelled": "the channels of {clips} clips cancel each other out (first: {first}): using the first "
    "channel",
    "partial": "{clips} clips are damaged or cut off (first: {first}): what could be decoded of them is used",
}


def format_warnings(noted: dict[str, list[str]]) -> list[str]:
    """Warnings about clips with a note.

    Args:
        noted: kind of note -> ids.
    """
    return [format_warning(kind, len(ids), ids[0]) for kind, ids in noted.items() if ids]


def format_warning(kind: str, clips: int, first: str) -> str:
    """The warning about clips with one kind of note."""
    return f"warning: {NOTES[kind].format(clips=clips, first=first)}"


def format_commonest(reasons: Iterable[str], most: int = 3) -> str:
    """Such as `28 × Git LFS pointer (run git lfs pull), 2 × empty file`: the commonest reasons first."""
    counted = Counter(reasons).most_common()
    more = sum(count for _, count in counted[most:])
    return ", ".join(f"{count} × {reason}" for reason, count in counted[:most]) + (
        f", {more} × others" if more else ""
    )


def list_header_errors(paths: Iterable[str]) -> list[str]:
    """The reason of each file that cannot be opened."""
    found = []
    for path in paths:
        try:
            read_info(path)
        except BadAudio as error:
            found.append(str(error))
    return found
