"""Why clips cannot be used, counted for one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from earshot.audio.load import BadAudio, info


def cancelling(count: int, first: str) -> str:
    """The warning about clips whose channels cancel."""
    return (
        f"warning: the channels of {count} clips cancel each other out (first: {first}): the first channel "
        "is used there"
    )


def commonest(reasons: Iterable[str], most: int = 3) -> str:
    """Such as `28 × Git LFS pointer (run git lfs pull), 2 × empty file`: the commonest reasons first."""
    counted = Counter(reasons).most_common()
    more = sum(count for _, count in counted[most:])
    return ", ".join(f"{count} × {reason}" for reason, count in counted[:most]) + (
        f", {more} × others" if more else ""
    )


def of_headers(paths: Iterable[str]) -> list[str]:
    """The reason of each file that cannot be opened."""
    found = []
    for path in paths:
        try:
            info(path)
        except BadAudio as error:
            found.append(str(error))
    return found
