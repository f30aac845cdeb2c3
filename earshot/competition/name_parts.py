"""The parts of file names: they may hold the clip's source, and, where nothing else does, its label."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from earshot.competition import groups
from earshot.competition.names import find_side, strip_suffix
from earshot.core import shell
from earshot.core.csv_table import format_cell
from earshot.core.errors import UserError

NEARLY_ALL = 0.9  # share of the names with as many parts, of one kind
WORDS = "speaker|spkr|spk|patient|subject|subj|actor|participant|person|proband|singer|artist|client|talker"
PERSON = re.compile(rf"({WORDS})[ _-]?\d+", re.IGNORECASE)
SHORT = re.compile(r"(p|id|sub|pat)\d+", re.IGNORECASE)  # a person, where more follows in the name
CODE = re.compile(r"(?=.*\d)[0-9a-f]{5,}|[a-z]{1,2}\d{5,}", re.IGNORECASE)
TIME = r"(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d)?"
DATED = re.compile(
    rf"((?:19|20)\d\d)([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?:[-_T ]?({TIME})(?!\d)|(?!\d))"
)
DATE_BETWEEN_MARKS = re.compile(rf"(?<![^_\-. ])(?:{DATED.pattern})(?![^_\-. ])")
LETTERED = re.compile(r"([^\W\d_]+)\d+")  # a word and a counter
LONG_NUMBER = re.compile(r"\d{4,}")
NO_LABELS = (DATED, CODE, PERSON, SHORT, LONG_NUMBER, re.compile(r"\d+[^\W\d_]\w*"))  # last: as 007s3ms
WORD, TWO_DIGITS = re.compile(r"[^\W\d_]{2,}"), re.compile(r"0\d|[1-9]\d")
SOURCES = (PERSON, SHORT, CODE, LONG_NUMBER, DATED, WORD, TWO_DIGITS)  # the surest first
LABELS = range(2, 51)  # different values, of those that may be labels
MANY = 20  # values: rather takes or people than labels
FEWEST = 3  # sources, where the kind of their part leaves no doubt, or a suggestion is made
LISTED = 3  # suggestions


def match_labels(names: Sequence[str], pattern: str) -> list[str]:
    """A label per clip by `--label-pattern`, matched like `groups.match_groups`; "" where it does not match.

    Raises:
        UserError: no valid pattern, one that matches no clip, or that gives fewer than two labels.
    """
    labels = groups.match_pattern(names, pattern, "--label-pattern")
    different = set(filter(None, labels))
    if len(different) < 2:
        example = names[next(index for index, label in enumerate(labels) if label)]
        raise UserError(
            f"--label-pattern {format_cell(pattern)} gives only the label {format_cell(different.pop())}, "
            f"as in {format_cell(example)}: two or more are needed"
        )
    return labels


def find_sources(names: Sequence[str], labels: Sequence[object]) -> tuple[list[str], str] | None:
    """The source of each clip by a part of its path, and a line that names the part; None unless one is
    clearly the source.

    A part is a person's (a word such as speaker before a number), a code (hexadecimal or a number, of 5
    characters and more, that counts nothing), or a day; many clips share one, as in `groups.explain_unfit`.

    Args:
        names: (clips,) relative paths with `/`.
        labels: (clips,) text, or a tuple of several.
    """
    columns = list(_iterate_columns(names)) if names else []
    sure, unsure = (_read_people, _read_hashes), (_read_codes, _read_days, _read_start_times)
    for read_sources in (*sure, *unsure):
        fewest = FEWEST if read_sources in sure else groups.FEWEST
        for column in columns:
            sources = read_sources(column)
            if sources is None or groups.explain_unfit(sources, labels, fewest):
                continue
            place = column.called
            if not place:
                source = Counter(filter(None, sources)).most_common(1)[0][0]
                name = names[sources.index(source)]
                file = name.rpartition("/")[2]
                place = f"as {format_cell(source)} in {format_cell(file if source in file else name)}"
            return sources, f"groups: {place} ({groups.describe_sources(sources)}): folds keep each together"
    return None


@dataclass(frozen=True)
class _Column:
    """One part of all names: (clips,) values, "" where a name lacks it; its description, "" where an example
    is shown instead; whether it is the whole file name."""

    values: list[str]
    called: str = ""
    alone: bool = False


def _split_name(name: str, dates: bool = False) -> tuple[list[str], list[str]]:
    """The parts of a file name without its suffix, and the separators between them; with `dates`, a date and
    a time are one part."""
    stem = strip_suffix(name.rpartition("/")[2])
    match = DATE_BETWEEN_MARKS.search(stem) if dates else None
    if match:
        time = f"T{match[5]}" if match[5] else ""
        stem = f"{stem[: match.start()]}{match[1]}{match[3]}{match[4]}{time}{stem[match.end() :]}"
    pieces = re.split(r"([_\-. ]+)", stem)
    return pieces[::2], pieces[1::2]


def _iterate_columns(names: Sequence[str]) -> Iterable[_Column]:
    """The parts that may name a source: two levels of folders, then the positions in the file name, each
    alone and with the next. Where the number of parts varies only the first one that differs is sure."""
    paths = [name.split("/") for name in names]
    for up in (2, 3):
        yield _Column([path[-up] if len(path) >= up else "" for path in paths])
    split = [_split_name(name, dates=True) for name in names]
    common, most = Counter(len(parts) for parts, _ in split).most_common(1)[0]
    even = most >= NEARLY_ALL * len(names)
    for place in range(common):
        called = _find_prefix(split, common) if even and place == 0 else ""
        alone = [parts[place] if len(parts) > place else "" for parts, _ in split]
        yield _Column(alone, called, common == 1)
        with_next = [
            f"{parts[place]}{marks[place]}{parts[place + 1]}" if len(parts) > place + 1 else ""
            for parts, marks in split
        ]
        yield _Column(with_next, called, common == 1)
        if not even and len({parts[place] for parts, _ in split if len(parts) > place}) > 1:
            return


def _find_prefix(split: list[tuple[list[str], list[str]]], common: int) -> str:
    """The description of the first part: by the second with its separators, where nearly all names share
    that; else ""."""
    after: Counter[str] = Counter()
    for parts, marks in split:
        if len(parts) == common > 1:
            after[f"{marks[0]}{parts[1]}{''.join(marks[1:2])}"] += 1
    second, times = after.most_common(1)[0] if after else ("", 0)
    return f"the part before {format_cell(second)} of the names" if times >= NEARLY_ALL * len(split) else ""


def _all_fit(values: Sequence[Any], fits: Callable[[Any], object]) -> bool:
    return sum(bool(fits(value)) for value in values) >= NEARLY_ALL * len(values)


def _read_people(column: _Column) -> list[str] | None:
    for pattern in (PERSON,) if column.alone else (PERSON, SHORT):
        if _all_fit(column.values, pattern.fullmatch):
            return [value if pattern.fullmatch(value) else "" for value in column.values]
    return None


def _read_codes(column: _Column) -> list[str] | None:
    plain = _all_fit(column.values, CODE.fullmatch) and not _all_fit(column.values, DATED.fullmatch)
    if not plain or _looks_like_counter(column.values):
        return None
    return [value if re.search(r"\d", value) else "" for value in column.values]


def _read_hashes(column: _Column) -> list[str] | None:
    """Are most values codes with letters, which number nothing?"""
    digits = sum(value[2:].isdecimal() for value in column.values)
    return _read_codes(column) if 2 * digits < len(column.values) else None


def _looks_like_counter(values: Sequence[str]) -> bool:
    """Do the values count from near zero, in any step, with leading zeros or not?"""
    matches = [re.fullmatch(r"[A-Za-z]{0,2}(\d+)", value, re.ASCII) for value in set(values)]
    if not _all_fit(matches, bool):
        return False
    numbers = {int(match[1]): match[1] for match in matches if match}
    zeros = max(map(len, numbers.values())) - len(str(max(numbers)))
    return max(numbers) // (math.gcd(*numbers) or 1) < 4 * len(numbers) + 10 or zeros >= 2


def _read_days(column: _Column) -> list[str] | None:
    matches = [DATED.fullmatch(value) for value in column.values]
    if not _all_fit(matches, bool):
        return None
    return [match[1] + match[3] + match[4] if match else "" for match in matches]


def _read_start_times(column: _Column) -> list[str] | None:
    """A recording by its day and time, where there are too few days."""
    return column.values if _all_fit(column.values, DATED.fullmatch) else None


@dataclass(frozen=True)
class _Part:
    """A part of the names that may be a label or a source: (names,) values, "" where a name has another form,
    and the pattern that finds them."""

    values: list[str]
    pattern: str
    place: int
    last: bool = False

    @property
    def counts(self) -> Counter:
        return Counter(filter(None, self.values))


def suggest_flags(names: Sequence[str]) -> list[str]:
    """Flags for labels (and sources) in the file names, the likeliest first, with what they give.

    Such as `--label-pattern '_([^/_]+)_[^/_]+\\.wav$' --group-pattern '...' (6 labels: ANG, DIS, ... of 6
    clips; 6 groups, as 1001)`. Files below a test folder do not count. [] where the names have different
    forms, or no part of them recurs evenly.
    """
    labelled = [find_side(name.rpartition("/")[0]) != "subm" for name in names]
    if not any(labelled):
        labelled = [True] * len(names)
    parts = _find_parts(names, labelled)
    folders = [name.rpartition("/")[0].rpartition("/")[2] for name in names]
    scored = [(_score_label_part(part, parts, folders), part) for part in parts]
    likely = [(score, part) for score, part in scored if score]
    likely.sort(key=lambda scored_part: (-scored_part[0], scored_part[1].place))
    lines = []
    for _, label in likely[:LISTED]:
        counts = label.counts
        low, high = min(counts.values()), max(counts.values())
        size = low if low == high else f"{low} to {high}"
        listed = ", ".join(map(format_cell, sorted(counts)[:4])) + ", ..." * (len(counts) > 4)
        flags = f"--label-pattern {shell.quote(label.pattern)}"
        gives = f"{len(counts)} labels: {listed} of {size} clips"
        source = _find_source_part([part for part in parts if part.place != label.place], label, folders)
        if source:
            flags += f" --group-pattern {shell.quote(source.pattern)}"
            gives += f"; {len(source.counts)} groups, as {format_cell(next(filter(None, source.values)))}"
        lines.append(f"{flags} ({gives})")
    return lines


def _find_parts(names: Sequence[str], labelled: Sequence[bool]) -> list[_Part]:
    """The parts that differ between names, among names of the form that nearly all labelled ones have."""
    split = [_split_name(name) for name in names]
    sizes = Counter(len(parts) for (parts, _), known in zip(split, labelled, strict=True) if known)
    common, most = sizes.most_common(1)[0] if sizes else (0, 0)
    if most < NEARLY_ALL * sum(labelled):
        return []
    alike = [known and len(parts) == common for (parts, _), known in zip(split, labelled, strict=True)]
    marks: set[str] = set()
    suffixes = set()
    for name, (_, between), like in zip(names, split, alike, strict=True):
        if like:
            marks.update(between)
            suffixes.add(name[len(strip_suffix(name)) :])
    found_parts = []
    for place in range(common):
        values = [parts[place] if like else "" for (parts, _), like in zip(split, alike, strict=True)]
        lettered = _match_first_groups(LETTERED.fullmatch, values)
        counter = ""
        if values.count("") == lettered.count("") and len(set(filter(None, lettered))) > 1:
            values, counter = lettered, r"\d+"
        if len(set(filter(None, values))) < 2:
            continue
        for pattern in _build_patterns(place, common, marks, suffixes, values, counter):
            if _match_first_groups(re.compile(pattern).search, names) == values:
                found_parts.append(_Part(values, pattern, place, place == common - 1))
                break
    return found_parts


def _match_first_groups(match: Callable[[str], re.Match[str] | None], texts: Iterable[str]) -> list[str]:
    """The first group of the pattern in each text, "" where it does not match."""
    return [matched[1] if matched else "" for matched in map(match, texts)]


def _build_patterns(
    place: int, common: int, marks: set[str], suffixes: set[str], values: list[str], counter: str
) -> list[str]:
    """Regular expressions for a part, the shortest first; the last counts all parts."""
    between, inside = "[_. -]+", "[^/_. -]+"
    if len(set("".join(marks))) == 1:
        mark = next(iter(marks))[0]
        between = r"\." if mark == "." else mark
        if any(len(repeated) > 1 for repeated in marks):
            between += "+"
        inside = f"[^/{mark}]+"
    end = f"{re.escape(next(iter(suffixes)))}$" if len(suffixes) == 1 else r"\.[^/.]+$"
    wanted = f"({inside})"
    if counter:
        wanted = f"([^/0-9_. -]+){counter}"
    elif all(value.isdecimal() and value.isascii() for value in values if value):
        wanted = r"(\d+)"

    def repeat(text: str, count: int) -> str:
        return text if count == 1 else f"(?:{text}){{{count}}}" if count else ""

    before, after = repeat(inside + between, place), repeat(between + inside, common - 1 - place)
    start = f"(?:^|/){before}{wanted}"
    whole = f"{start}{after}{end}"
    if place < common - 1 - place:
        return [f"{start}{between}[^/]*$", whole]
    return [f"{between}{wanted}{after}{end}", whole] if place else [whole]


def _score_label_part(part: _Part, parts: Sequence[_Part], folder: Sequence[str]) -> float:
    """How much a part looks like a label, 0 for not at all: its values recur evenly; it is no date, code,
    person or counter, and adds to the folder's name."""
    counts, values = part.counts, list(filter(None, part.values))
    single = sum(count == 1 for count in counts.values())
    if len(counts) not in LABELS or 10 * single > len(counts):
        return 0.0
    if any(_all_fit(values, pattern.fullmatch) for pattern in NO_LABELS):
        return 0.0
    pairs = {(value, below) for value, below in zip(part.values, folder, strict=True) if value}
    if len(pairs) == len(counts) == len({below for _, below in pairs}):
        return 0.0
    if part.last and _is_counter(part, parts, folder):
        return 0.0
    shares = [count / len(values) for count in counts.values()]
    evenness = -sum(share * math.log(share) for share in shares) / math.log(len(counts))  # entropy, 0 to 1
    if len(counts) == 2:
        evenness *= 0.8  # two values are often a channel, a sex, or a yes and no beside the label
    elif len(counts) > MANY:
        evenness *= 0.95
    return round(evenness, 2)


def _is_counter(part: _Part, parts: Sequence[_Part], folder: Sequence[str]) -> bool:
    """Is the last part a number that comes once below each of the other parts: a counter?"""
    others = [other.values for other in parts if other is not part]
    contexts = list(zip(*others, folder, strict=True))  # a clip's name and folder without the part
    seen = {(context, value) for context, value in zip(contexts, part.values, strict=True) if value}
    clips, different = part.counts.total(), len({context for context, _ in seen})
    return len(seen) == clips >= 3 * different and all(value.isdecimal() for value in part.counts)


def _find_source_part(parts: list[_Part], label: _Part, folder: Sequence[str]) -> _Part | None:
    """The part, or the folder, that may be the clips' source: people, codes, days, words, numbers with
    leading zeros, in this order."""
    below = [name if known else "" for name, known in zip(folder, label.values, strict=True)]
    labels = list(filter(None, label.values))
    for pattern in SOURCES:
        for part in (_Part(below, r"([^/]+)/[^/]+$", -1), *parts):
            values = [value for value, known in zip(part.values, label.values, strict=True) if known]
            if not _all_fit(values, pattern.fullmatch) or pattern is CODE and _looks_like_counter(values):
                continue
            if not groups.explain_unfit(values, labels, FEWEST):
                return part
    return None
