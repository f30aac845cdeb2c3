"""Spellings of labels: which are the same, and how to show a difference that cannot be seen."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

# Nothing to see: soft hyphens, zero-width blanks and joiners, marks of direction, byte order marks, and what
# chooses between a sign as text and as a picture.
ZERO_WIDTH = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]"
)
# Cyrillic and Greek letters, dashes and apostrophes that look like ASCII.
LOOKALIKES = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u0405\u0408"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u0501\u051b\u051d"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bd\u03bf"
    "\u2010\u2011\u2012\u2013\u2014\u2212\u2018\u2019",
    "ABEKMHOPCTXISJ" + "aeopcyxisjdqw" + "ABEZHIKMNOPTYXvo" + "------''",
)


@cache
def to_key(text: str) -> str:
    """The normal form of a label: composed Unicode, no zero-width characters, single blanks without outer
    ones, 1 for 1.0 (whole numbers that pandas turned into floats)."""
    plain = " ".join(_compose(text).split())
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", plain, flags=re.ASCII)


def to_keys(texts: Iterable[str]) -> list[str]:
    """The key of each text."""
    return [to_key(text) for text in texts]


def spell_like(texts: Iterable[str], known: Iterable[str]) -> list[str]:
    """The texts, spelled as in `known` where that has them."""
    spelled = {to_key(text): text for text in reversed(list(known))}
    return [spelled.get(to_key(text), text) for text in texts]


def settle(texts: Iterable[str], settled: dict[str, str]) -> None:
    """Add a spelling for each key that has none: one that hides nothing, composed, the commonest, the first,
    in this order."""
    settled.setdefault("", "")

    def odd(text: str) -> tuple[bool, bool]:
        hidden = ZERO_WIDTH.search(text) is not None or text != text.strip()
        return hidden, not unicodedata.is_normalized("NFC", text)

    for text in sorted(
        (text for text, _ in Counter(texts).most_common()), key=odd
    ):  # equals keep their order
        settled.setdefault(to_key(text), text)


def find_invisible(text: str) -> list[str]:
    """The code points of zero width in a text, but for those that join the letters of some scripts and the
    parts of emoji."""
    letters = ZERO_WIDTH.findall(re.sub("(?<=[^\x00-\x7f])[\u200c\u200d\ufe00-\ufe0f]", "", text))
    return sorted({f"U+{ord(letter):04X}" for letter in letters})


@cache
def to_loose_key(text: str) -> str:
    """What labels share that may be meant as one and are not taken for one: without case, look-alike letters,
    leading zeros, kinds of blanks; True as 1, False as 0."""
    plain = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", _replace_lookalikes(to_key(text)).casefold())
    return re.sub(r"^0+(?=\d+$)", "", {"true": "1", "false": "0"}.get(plain, plain), flags=re.ASCII)


def group_alike(texts: Iterable[str], by: Callable[[str], str]) -> list[list[str]]:
    """Groups of several texts with the same `by(text)`."""
    groups: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        groups.setdefault(by(text), []).append(text)
    return [group for group in groups.values() if len(group) > 1]


def find_near(text: str, known: Iterable[str]) -> str | None:
    """The entry of `known` that the text may be a misspelling of; None without one."""
    known = list(known)
    same = [other for other in known if to_loose_key(other) == to_loose_key(text)]
    return next(iter(same or difflib.get_close_matches(text, known, 1)), None)


def quote_apart(*texts: str) -> list[str]:
    """The texts in quotes; texts that look equal are followed by the code points of the part that differs."""
    if len({_replace_lookalikes(" ".join(text.split())) for text in texts}) == len(texts):
        return [repr(text) for text in texts]
    head = len(os.path.commonprefix(texts))
    rest = [text[head:] for text in texts]
    tail = len(os.path.commonprefix([text[::-1] for text in rest]))
    parts = [text[: len(text) - tail] for text in rest]
    points = [" ".join(f"U+{ord(letter):04X}" for letter in part[:8]) for part in parts]
    return [f"{text!r} ({shown})" if shown else repr(text) for text, shown in zip(texts, points, strict=True)]


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", ZERO_WIDTH.sub("", text))


def _replace_lookalikes(text: str) -> str:
    return unicodedata.normalize("NFKC", _compose(text)).translate(LOOKALIKES)
