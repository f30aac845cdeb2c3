"""Ways to compare file names: without suffix, as numbers, as words, by their side (train or test)."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from earshot.core.file_names import is_audio


def strip_suffix(name: str) -> str:
    """The name without its audio suffix; unknown suffixes stay, as in "blues.00001"."""
    return name[: name.rindex(".")] if is_audio(name) else name


def normalise_name(text: str) -> str:
    """The key by which names are compared when nothing matches exactly."""
    # macOS writes file names decomposed (NFD), a csv usually holds them composed
    return unicodedata.normalize("NFC", text).casefold()


def parse_number(name: str) -> int | None:
    """The whole number in a name or an id, with or without leading zeros, a final .0, and an audio suffix;
    None if it is not a number."""
    match = re.fullmatch(r"(\d{1,30})(\.0+)?", strip_suffix(name.strip()), re.ASCII)
    return int(match[1]) if match else None


def list_words(name: str) -> list[str]:
    """The runs of letters in a name, lower-case."""
    return re.findall("[a-z]+", name.lower())


@cache
def find_side(folder: str) -> str | None:
    """The side of a folder's path: "train", "subm" (test, subm, eval), or None if neither or both. Where it
    has words of both, the deepest folder with words of just one decides."""
    for part in (folder, *reversed(folder.split("/"))):
        name_words = list_words(part)
        train = any(w.startswith("train") for w in name_words)
        subm = any(w.startswith(("test", "subm", "eval")) for w in name_words)
        if train != subm:
            return "train" if train else "subm"
        if not train:
            return None
    return None
