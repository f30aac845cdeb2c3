"""Groups of clips from one source (a speaker, a recording, a site, a day), so that no fold splits them."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence

import pandas as pd

from earshot.competition.labels import as_tuple
from earshot.core.csv_table import format_cell, format_list
from earshot.core.errors import UserError

# Headers of sources, the surest first: clips of one person are more alike than clips of one place or day.
SOURCES = (
    "group",
    "speaker spk spkr talker client patient subject participant person individual actor singer artist"
    " performer musician narrator recordist author user uploader animal",
    "srcfile sourcefile originalfile origfile parentfile fsid freesound recording session video youtube"
    " youtubevideo yt ytb track song album episode",
    "source site station",
    "location place",
    "day date recordingdate night",
    "rater annotator",
)
RANKS = {word: rank for rank, line in enumerate(SOURCES) for word in line.split()}
HEADER = re.compile(
    rf"({'|'.join(sorted(RANKS, key=len, reverse=True))})(id|ids|no|nr|num|number|name|code)?"
)
PLACES = 4  # of SOURCES: places of recording have many values, places on a body a handful
FEWEST, FEWEST_PLACES = 5, 10  # sources: as many as there are folds
FILLED = 0.8  # of the cells
SHARING = 0.25  # share of the clips that have another clip of their source
LARGEST = 0.5  # share of the clips from one source: more, and folds could not be balanced
LONGEST_PATTERN = 500  # characters
UNKNOWN = {"", "unknown", "unk", "none", "nan", "na", "n/a", "null", "nil", "not specified", "-", "?", "--"}


def clean_sources(values: Sequence[object]) -> list[str]:
    """The cells of a column of sources as text, "" where the source is unknown."""
    texts = [
        "" if value is None or value is pd.NA or value is pd.NaT else str(value).strip() for value in values
    ]
    return ["" if text.casefold() in UNKNOWN else text for text in texts]


def explain_unfit(sources: Sequence[str], labels: Sequence[object], fewest: int = FEWEST) -> str:
    """Why the values are not clearly the clips' sources; "" where they are.

    Args:
        sources: (clips,) text, "" unknown.
        labels: (clips,) text, or a tuple of several; whatever else counts as unlabelled.
        fewest: different values that are needed.
    """
    counts = Counter(filter(None, sources))
    filled = counts.total()
    if len(counts) < fewest:
        return f"{len(counts)} value{'s' * (len(counts) != 1)}"
    if filled < FILLED * len(sources):
        return f"{len(sources) - filled} of {len(sources)} cells are empty"
    sharing = sum(n for n in counts.values() if n > 1)
    if sharing < SHARING * filled:
        return f"{len(counts)} values for {filled} clips"
    value, most = counts.most_common(1)[0]
    if most > LARGEST * len(sources):
        return f"{format_cell(value)} is in {most} of {len(sources)} rows"
    labels_of: dict[str, set[str]] = {}
    for source, label in zip(sources, labels, strict=True):
        for label_part in as_tuple(label) if source and isinstance(label, str | tuple) else ():
            labels_of.setdefault(label_part, set()).add(source)
    labels_of.pop("", None)
    if 2 * sum(len(source_labels) > 1 for source_labels in labels_of.values()) <= len(labels_of):
        return "most labels have one value each"
    return ""


def find_source_column(
    frame: pd.DataFrame, labels: pd.Series, used: Sequence[str]
) -> tuple[str | None, list[str]]:
    """The column of a labelled table that is clearly the clips' source, and lines about it.

    A column `group` always is, unchanged. Others are by their header, if many clips share a value and the
    label alone does not decide it; a person comes before a recording, a site, a day.

    Args:
        frame: a row per clip, as text.
        labels: (rows,) in the frame's order: text, or a tuple of several.
        used: the columns that are ids or labels.
    Returns:
        the column, None without one; note lines.
    """
    once = [c for c in frame.columns if isinstance(c, str) and list(frame.columns).count(c) == 1]
    if "group" in once and "group" not in used:
        return "group", []
    ranked = [(rank_header(column), place, column) for place, column in enumerate(once) if column not in used]
    notes: list[str] = []
    for known, _, column in sorted(header for header in ranked if header[0] is not None):
        sources = clean_sources(list(frame[column]))
        reason = explain_unfit(sources, list(labels), FEWEST_PLACES if known == PLACES else FEWEST)
        if not reason:
            return column, [
                *notes,
                f"groups: column {format_cell(column)} ({describe_sources(sources)}): folds keep each "
                "together",
            ]
        named = list(filter(None, sources))
        if 1 < len(set(named)) < len(named):  # else no source has two clips
            notes.append(f"column {format_cell(column)} is not used as groups: {reason}")
    return None, notes[:3]


def rank_header(header: str) -> int | None:
    """The rank of a header among those of sources, 0 the surest; None for another header."""
    match = HEADER.fullmatch(re.sub(r"[\W_]", "", header.casefold()))
    return RANKS[match[1]] if match else None


def describe_sources(sources: Sequence[str]) -> str:
    """The number of sources, and of clips per source, in words."""
    counts = Counter(filter(None, sources)).values()
    low, high = min(counts, default=0), max(counts, default=0)
    each_has = f"{low} to {high} clips" if low < high else f"{low} clip{'s' * (low != 1)}"
    return f"{len(counts)} source{'s' * (len(counts) != 1)} of {each_has}"


def match_groups(names: Sequence[str], pattern: str) -> list[str]:
    """A group per clip by `--group-pattern`: what the regular expression's groups match in its path, joined
    by "_" (without any group the whole match); "" where it does not match.

    Args:
        names: (clips,) relative paths with `/`.
        pattern: Python's syntax, searched anywhere in the path.
    Raises:
        UserError: no valid pattern, or one that matches no clip.
    """
    return match_pattern(names, pattern, "--group-pattern")


def describe_pattern_groups(groups: Sequence[str]) -> list[str]:
    """A line about the groups of a pattern: a warning where every clip is alone, or all are in one group."""
    counts = Counter(filter(None, groups))
    if not counts:
        return []
    if len(counts) == 1:
        return [
            f"warning: --group-pattern gives {counts.total()} clips one group, "
            f"{format_cell(next(iter(counts)))}: "
            "no fold can split them"
        ]
    if len(counts) == counts.total():
        return ["warning: --group-pattern gives every clip a group of its own: nothing is kept together"]
    alone = len(groups) - counts.total()
    return [
        "groups: --group-pattern "
        f"({describe_sources(groups)}{f'; {alone} clips without one' if alone else ''})"
    ]


def match_pattern(names: Sequence[str], pattern: str, flag: str) -> list[str]:
    """The match of a pattern in each name; see `match_groups`. `flag` is named in errors."""
    if len(pattern) > LONGEST_PATTERN:
        raise UserError(
            f"{flag} has {len(pattern)} characters, more than {LONGEST_PATTERN}: give a shorter one"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that a later Python may read otherwise
            expression = re.compile(pattern)
    except re.error as error:
        where = "" if error.pos is None else f" at character {error.pos + 1}"
        raise UserError(
            f"{flag} {format_cell(pattern)} is not a regular expression: {error.msg}{where}"
        ) from None
    except (OverflowError, RecursionError) as error:
        raise UserError(f"{flag} {format_cell(pattern)} is not a regular expression: {error}") from None
    matches = []
    for name in names:
        match = expression.search(name)
        parts = match.groups() or (match[0],) if match else ()
        matches.append("_".join(part for part in parts if part).strip())
    if not any(matches):
        if not names:
            raise UserError(f"{flag} {format_cell(pattern)}: there is no clip to match")
        raise UserError(
            f"{flag} {format_cell(pattern)} matches no clip; their paths are like "
            f"{format_list(map(format_cell, dict.fromkeys((names[0], names[-1]))))}"
        )
    return matches


def warn_straddling_folds(folds: Sequence[Hashable], groups: Sequence[str]) -> list[str]:
    """A warning where the data's own folds (or splits) split sources: the folds are kept.

    Args:
        folds: (clips,) numbers, or names of splits; -1, "" and None where a clip has none.
        groups: (clips,) the sources, "" unknown.
    """
    places: dict[str, dict[Hashable, None]] = {}
    for fold, group in zip(folds, groups, strict=True):
        if group and fold is not None and fold != "" and fold != -1:
            places.setdefault(group, {})[fold] = None
    parted = {group: list(example) for group, example in places.items() if len(example) > 1}
    if not parted:
        return []
    first, example = next(iter(parted.items()))
    where = ", ".join(map(str, sorted(example, key=str)[:4]))
    return [
        f"warning: the data's own folds split {len(parted)} of {len(places)} sources (first: "
        f"{format_cell(first)}, "
        f"in {where}): the folds are kept, and their scores may be optimistic"
    ]
