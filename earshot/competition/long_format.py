"""Sample submissions with a row per clip and class: finds both in the ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain, combinations, product, starmap
from random import Random
from typing import NamedTuple

from earshot.competition.class_names import NUMBER, TOKEN, ClassNames, ClassPosition, normalise_number
from earshot.core import spelling
from earshot.core.csv_table import format_cell, format_list
from earshot.core.errors import UserError

PROBE = 400  # rows by which the format is found
TRIED = 3  # of these, rows on which every cut is tried
TRIED_ON_ALL = 100  # cuts that are tried on all of these
DEEP = 10  # tokens that may be constant on each side of the class and of the clip
CONSTANT = 0.9  # share of the probed rows that have a constant text
FEW = 0.05  # share of the rows that may be odd where the others are clear

Known = Callable[[Sequence[str]], set[str]]


class LongFormat(NamedTuple):
    """The clip's id and the class of each row of a sample submission."""

    clips: list[str]
    classes: list[str]


class IdTemplate(NamedTuple):
    """The constant texts of an id: before the clip, before and after the class, and at the end."""

    first: str
    before: str
    behind: str
    last: str

    def extract_clip(self, id: str, start: int, end: int) -> str:
        """The clip's id where the class is id[start:end]; "" where a constant text is missing."""
        left, right = id[:start], id[end:]
        left_end = len(left) - len(self.before)
        right_end = len(right) - len(self.last)
        if left_end < len(self.first) or right_end < len(self.behind):
            return ""  # two constant texts would overlap
        if not left.startswith(self.first) or not left.endswith(self.before):
            return ""
        if not right.startswith(self.behind) or not right.endswith(self.last):
            return ""
        return left[len(self.first) : left_end] + right[len(self.behind) : right_end]


def detect_long_format(
    row_ids: Sequence[str], classes: Sequence[str], known: Known, *, strict: bool = True
) -> LongFormat | None:
    """The clip and the class in each id of a sample submission; None if the ids name no such pairs.

    The class comes before, after or within the clip's id, with constant words and signs between; or the id is
    a whole number, clip * K + class, with K a power of ten. A clip that is not known is taken as its row
    names it, where most are.

    Args:
        row_ids: the sample's ids. classes: the labels; whole numbers are compared by value.
        known: which of some candidates are ids of clips.
        strict: refuse a class that is none of `classes`; else it is given as the row spells it.
    Raises:
        UserError: the rows are clear, but one names no known class, or is written in another way.
    """
    probe = _sample_rows(row_ids)
    if len(row_ids) < 2 or len(classes) < 2 or 2 * len(known(probe)) > len(set(probe)):
        return None  # one row per clip
    return _detect_template([id.strip() for id in row_ids], ClassNames(classes), known, strict)


def looks_like_long_format(row_ids: Sequence[str], classes: Sequence[str]) -> bool:
    """Do the ids look like a row for each clip and class, every clip with the same classes? (The clips need
    not be known.)"""
    if len(row_ids) < 2 or len(classes) < 2:
        return False
    template = _detect_template([id.strip() for id in row_ids], ClassNames(classes), set, False)
    return template is not None and len(row_ids) == len(set(template.clips)) * len(set(template.classes))


def _sample_rows(rows: Sequence[str]) -> list[str]:
    """A random sample of the rows, in order: at a regular distance all might be of one class."""
    chosen = range(len(rows)) if len(rows) <= PROBE else sorted(Random(0).sample(range(len(rows)), PROBE))
    return [rows[i].strip() for i in chosen]


def _detect_template(ids: list[str], names: ClassNames, known: Known, strict: bool) -> LongFormat | None:
    if names.whole and all(map(NUMBER.fullmatch, ids)):
        rows = _split_numeric_ids(ids, names, known)
    else:
        form = _find_template(_sample_rows(ids), names, known)
        rows = _split_by_template(ids, names, known, *form) if form else None
    if rows is None or not _is_consistent(rows):
        return None
    matched = [row for row in rows if row]
    clear = matched[0]
    for id, row in zip(ids, rows, strict=True):
        if row is None:
            raise UserError(
                f"the sample submission's id {format_cell(id)} names no clip and class like the others "
                f"({format_cell(ids[rows.index(clear)])}: clip {format_cell(clear[0])}, class "
                f"{format_cell(clear[1])}): "
                "correct it, or take the row out"
            )
    if strict and names.unknown:
        name, id = next(iter(names.unknown.items()))
        near = None if names.whole else spelling.find_near(name, names.classes)
        hint = f": did you mean {spelling.quote_apart(near)[0]}?" if near else ""
        raise UserError(
            f"the sample submission's id {format_cell(id)} is for the class {format_cell(name)}, which "
            f"the training data does not have ({format_list(names.classes, 5)})"
            + (hint or ": spell the classes alike in both files, or take the rows out")
        )
    return LongFormat([clip for clip, _ in matched], [name for _, name in matched])


def _is_consistent(rows: list[tuple[str, str] | None]) -> bool:
    """Are nearly all rows clear, each another pair, most of them of clips with several classes?"""
    matched = [row for row in rows if row]
    if len(rows) - len(matched) > FEW * len(rows) or len(set(matched)) < len(matched):
        return False
    counts = Counter(clip for clip, _ in matched)
    shared = sum(n for n in counts.values() if n > 1)
    return 2 * shared >= len(rows)


def _split_numeric_ids(
    ids: list[str], names: ClassNames, known: Known
) -> list[tuple[str, str] | None] | None:
    """The rows as clip * 10**digits + class; of several K the one by which most clips are known."""

    def split_ids(ids: list[str], digits: int) -> list[tuple[str, str]]:
        """The possible ids of the clips: unchanged, and without leading zeros."""
        heads = [id.zfill(digits + 1)[:-digits] for id in ids]
        return [(head, normalise_number(head)) for head in heads]

    def find_known(forms: list[tuple[str, str]]) -> set[str]:
        return known(list(dict.fromkeys(chain.from_iterable(forms))))

    best, chosen, probe = 0, 0, _sample_rows(ids)
    fewest = max(len(normalise_number(spelling.to_key(name))) for name in names.classes)
    most = min(max(map(len, ids)), 18)  # digits that a 64-bit integer always holds
    for digits in range(fewest, most + 1):
        forms = split_ids(probe, digits)
        known_forms = find_known(forms)
        named = sum(names.get_class(id[-digits:]) is not None for id in probe)
        clear = sum(head in known_forms or value in known_forms for head, value in forms)
        if 2 * min(named, clear) >= len(probe) and clear > best:
            best, chosen = clear, digits
    if not chosen:
        return None
    forms = split_ids(ids, chosen)
    known_forms = find_known(forms)
    rows: list[tuple[str, str] | None] = []
    for id, (head, value) in zip(ids, forms, strict=True):
        number = id[-chosen:]
        name = names.get_class(number)
        clip = head if head in known_forms else value
        if name is None and clip in known_forms:
            name = names.learn_class(normalise_number(number), id)
        rows.append(None if name is None else (clip, name))
    return rows


def _find_template(
    probe: list[str], names: ClassNames, known: Known
) -> tuple[IdTemplate, ClassPosition | None] | None:
    """The constant texts by which most of the probed rows name known clips, the shortest of equals; the
    position of the class, where it is the same in all."""
    split = [TOKEN.findall(id) for id in probe]
    groups: dict[tuple[tuple[int, tuple[int, int]], ...], ClassPosition | None] = {}
    for place, spans in _find_places(split, names).items():
        group = tuple(spans.items())
        if 2 * len(group) >= len(probe) and not groups.get(group):
            groups[group] = place if isinstance(place, ClassPosition) else None
    best, chosen = (0, 0), None
    for group in sorted(groups, key=lambda group: (-len(group), group)):
        if len({tuple(split[row][start:end]) for row, (start, end) in group}) == 1:
            continue  # a word of all ids that happens to be a class
        sides = [(probe[row], split[row][:start], split[row][end:]) for row, (start, end) in group]
        cut, clear = _find_best_cut(sides, known)
        rank = clear, -sum(map(len, cut))
        if 2 * clear >= len(probe) and (chosen is None or rank > best):
            best, chosen = rank, (cut, groups[group])
    return chosen


def _find_places(
    split: list[list[str]], names: ClassNames
) -> dict[ClassPosition | tuple[bool, int, str], dict[int, tuple[int, int]]]:
    """The positions of classes in the tokens of each row: by position, the tokens of the first class there
    per row.

    Places are counted in words between signs, too: a word may be of any number of tokens.
    """
    places: dict[ClassPosition | tuple[bool, int, str], dict[int, tuple[int, int]]] = {}
    for row, tokens in enumerate(split):
        signs = list(accumulate((not token[0].isalnum() for token in tokens), initial=0))
        for start, end, _ in names.find_classes(tokens):
            for place in (
                ClassPosition(False, start),
                ClassPosition(True, len(tokens) - end),
                (False, signs[start], "words"),
                (True, signs[-1] - signs[end], "words"),
            ):
                places.setdefault(place, {}).setdefault(row, (start, end))
    return places


def _find_best_cut(sides: list[tuple[str, list[str], list[str]]], known: Known) -> tuple[IdTemplate, int]:
    """The cut that makes most rows known clips, and of how many; it cuts away as little as possible.

    Args:
        sides: per row the id, and its tokens before and behind the class.
    """

    def count_known(cuts: Iterable[IdTemplate], rows: list[tuple[str, int, int]]) -> dict[IdTemplate, int]:
        clips_of = {cut: [cut.extract_clip(*row) for row in rows] for cut in cuts}
        clips = dict.fromkeys(chain.from_iterable(clips_of.values()))
        clips.pop("", None)
        known_clips = known(list(clips))
        return {cut: sum(clip in known_clips for clip in clips) for cut, clips in clips_of.items()}

    lefts, rights = [left for _, left, _ in sides], [right for _, _, right in sides]
    constants = [_find_constant_texts(parts, end) for parts in (lefts, rights) for end in (False, True)]
    cuts = sorted(starmap(IdTemplate, product(*constants)), key=lambda cut: sum(map(len, cut)))
    rows = [(id, len("".join(left)), len(id) - len("".join(right))) for id, left, right in sides]
    # there may be thousands of cuts: a few rows show which of them are worth a look at all rows
    few_rows = rows[:: max(1, len(rows) // TRIED)][:TRIED]
    hopeful = [cut for cut, count in count_known(cuts, few_rows).items() if count]
    clear = count_known(hopeful[:TRIED_ON_ALL], rows)
    # the first of equals: the shortest
    return max(clear.items(), key=lambda item: item[1], default=(cuts[0], 0))


def _find_constant_texts(parts: list[list[str]], end: bool) -> list[str]:
    """The texts that nearly all parts begin (or end) with, at their tokens, "" first."""
    constants = [""]
    for length in range(1, DEEP + 1):
        long_enough = [part for part in parts if len(part) >= length]
        texts = Counter("".join(part[-length:] if end else part[:length]) for part in long_enough)
        text, count = texts.most_common(1)[0] if texts else ("", 0)
        if count < CONSTANT * len(parts):
            break
        constants.append(text)
    return constants


def _find_known_pair(pairs: list[tuple[str, str]], clips: set[str]) -> tuple[str, str] | None:
    return next((pair for pair in pairs if pair[0] in clips), None)


def _split_by_template(
    ids: list[str], names: ClassNames, known: Known, cut: IdTemplate, place: ClassPosition | None
) -> list[tuple[str, str] | None] | None:
    """The clip and the class of each row, None for a row of another form; None if most clips are unknown, or
    too many rows are odd."""
    same: dict[str, str] = {}  # one string object per clip, shared by its rows

    def list_pairs(id: str, place: ClassPosition | None = None) -> list[tuple[str, str]]:
        tokens = TOKEN.findall(id)
        ends = [0, *accumulate(map(len, tokens))]
        pairs = []
        for start, end, name in names.find_classes(tokens, place):
            clip = cut.extract_clip(id, ends[start], ends[end])
            if clip:
                pairs.append((same.setdefault(clip, clip), name))
        return pairs

    options = [list_pairs(id, place) for id in ids]
    known_clips = known(list(same))
    rows = [_find_known_pair(pairs, known_clips) for pairs in options]
    open_rows = [number for number, row in enumerate(rows) if row is None]
    if 2 * len(open_rows) > len(ids):
        return None
    # Rows of an unknown class, or of an unknown clip.
    clips = {row[0] for row in rows if row}
    some_rows = sorted(Random(0).sample(open_rows, min(len(open_rows), PROBE)))
    named = {number: _find_unknown_class(ids[number], clips, cut) for number in some_rows}
    often = Counter(named.values())
    for number, text in named.items():
        # "b_dog" of an unknown clip a_b is no class of the clip a: a class has a row for most clips
        common = 2 * often[text] * len(open_rows) >= len(clips) * len(some_rows)
        if text and (common or not options[number]):
            names.learn_class(text, ids[number])
    odd = 0
    for number in open_rows:
        id = ids[number]
        row = _find_known_pair(list_pairs(id), clips)
        if row is None and options[number]:
            row = options[number][0]
        elif row is None:
            text = _find_unknown_class(id, clips, cut)
            if text:
                names.learn_class(text, id)
                row = _find_known_pair(list_pairs(id), clips)
        rows[number] = row
        odd += row is None
        if odd > FEW * len(ids):
            return None
    return rows


def _find_unknown_class(id: str, clips: set[str], cut: IdTemplate) -> str:
    """The text in the class's position beside a known clip, as short as possible; "" without any."""
    ends = [0, *accumulate(map(len, TOKEN.findall(id)))]
    for start, end in sorted(combinations(ends, 2), key=lambda span: span[1] - span[0]):
        if cut.extract_clip(id, start, end) in clips:
            return id[start:end]
    return ""
