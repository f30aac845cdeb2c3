"""Finds class names in the ids of a sample submission's rows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from earshot.core import spelling

# letters, digits, or one sign: a class begins and ends with one of these
TOKEN = re.compile(r"[^\W\d_]+|\d+|[\W_]")
NUMBER = re.compile(r"\d+", re.ASCII)


class ClassPosition(NamedTuple):
    """The position of the class in an id: how many tokens come before it, or after it."""

    from_end: bool
    tokens: int


class ClassNames:
    """The classes by the spellings that a row may use."""

    def __init__(self, classes: Sequence[str]):
        numbers = {normalise_number(key) for key in spelling.to_keys(classes) if NUMBER.fullmatch(key)}
        self.whole = len(numbers) == len(classes)
        self.classes = list(classes)
        self.unknown: dict[str, str] = {}  # and the id of the first row that names it
        self._named: dict[str, str] = {}
        self._lengths: dict[str, list[int]] = {}  # in tokens, by the first token, the longest first
        self._longest = 0
        for name in classes:
            self._add_name(normalise_number(spelling.to_key(name)) if self.whole else name, name)
        by_loose = spelling.group_alike(classes, spelling.to_loose_key)
        twins = {spelling.to_loose_key(name) for group in by_loose for name in group}
        self._loose = {
            spelling.to_loose_key(name): name for name in classes if spelling.to_loose_key(name) not in twins
        }
        if not self.whole:
            for name in self._loose.values():
                self._add_forms(name)

    def _add_forms(self, name: str) -> None:
        """Add a class in the usual cases, composed or not, with blanks or underscores."""
        composed = spelling.to_key(name)
        for text in (composed, unicodedata.normalize("NFD", composed)):
            for case in (text, text.lower(), text.upper(), text.capitalize(), text.title()):
                self._add_name(case, name)
                self._add_name(case.replace("_", " "), name)
                self._add_name(case.replace(" ", "_"), name)

    def _add_name(self, text: str, name: str) -> None:
        tokens = TOKEN.findall(text)
        if tokens and self._named.setdefault(text, name) == name:
            lengths = self._lengths.setdefault(tokens[0], [])
            lengths[:] = sorted({*lengths, len(tokens)}, reverse=True)
            self._longest = max(self._longest, len(tokens))

    def get_class(self, number: str) -> str | None:
        """The class of a whole number."""
        return self._named.get(normalise_number(number))

    def learn_class(self, text: str, id: str) -> str:
        """The class that a text spells; a text that spells none becomes a new class."""
        name = self._loose.get(spelling.to_loose_key(text))
        if name is None:
            name = text
            self.unknown.setdefault(name, id)
        self._add_name(normalise_number(text) if self.whole and NUMBER.fullmatch(text) else text, name)
        return name

    def find_classes(
        self, tokens: list[str], place: ClassPosition | None = None
    ) -> Iterator[tuple[int, int, str]]:
        """Where classes are found, only those at a position if one is given: first token, last token + 1,
        class; of those that begin at the same token the longest comes first."""
        first, end = 0, len(tokens)
        last = None  # where all classes end at one token
        if place and place.from_end:
            last = len(tokens) - place.tokens
            first, end = max(0, last - self._longest), last
        elif place:
            first, end = place.tokens, min(end, place.tokens + 1)
        for start in range(first, end):
            token = tokens[start]
            if self.whole and token[0].isdigit():
                token = normalise_number(token)
            lengths = self._lengths.get(token, ()) if last is None else (last - start,)
            for length in lengths:
                text = token if length == 1 else "".join(tokens[start : start + length])
                name = self._named.get(text)
                if name is not None and start + length <= len(tokens):
                    yield start, start + length, name


def normalise_number(number: str) -> str:
    return number.lstrip("0") or "0"
