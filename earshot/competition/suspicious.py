"""Warnings about folders that may not be classes, and duplicate files."""

from __future__ import annotations

import filecmp
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from earshot.competition.name_parts import PERSON, suggest_flags
from earshot.competition.names import list_words, strip_suffix
from earshot.competition.split_words import FILLER_WORDS, SPLIT_WORDS
from earshot.core import spelling
from earshot.core.csv_table import format_cell, format_list
from earshot.core.errors import raise_if_temporary
from earshot.core.shell import quote

MOST = 0.8  # share of the classes; share of the files of one of two copies
PEOPLE = re.compile(rf"{PERSON.pattern}|(user|individual|recording|session|p|s|f|m)[ _-]?\d+", re.IGNORECASE)
SPLITS = {*SPLIT_WORDS, "dev", "development", "holdout", "unlabelled", "unlabeled"}
PIECES = set("set part fold batch chunk disc cd split subset section volume vol".split())
NEARLY_ALL = (
    0.9  # share of the files: with coded names; in both of two folders, so that one contains the other
)
LOOKED_AT = 20  # pairs of files whose content is compared
COPIES = 8  # most files of one name and size that are compared: a name in more folders is a common one
FEWEST = 3  # duplicate files: fewer do not make a copied folder


def warn_class_folders(
    names: Sequence[str], labels: Sequence[object], what: str = "class folders"
) -> list[str]:
    """Warnings, before a training, on classes that look like people or like parts of the data set.

    Args:
        names: (clips,) relative paths with `/`.
        labels: (clips,) the name of each clip's class folder.
        what: their name in the text, where they may not be folders.
    """
    classes = sorted({label.strip() for label in labels if isinstance(label, str) and label.strip()})
    if len(classes) < 2:
        return []
    pieces = _find_split_names(classes)
    if len(pieces) >= MOST * len(classes):
        return [
            f"warning: the {what} look like parts of the data set ({_format_classes(pieces)}), not like "
            f"labels: name the csv that has the labels with --train-csv{_join_flags(suggest_flags(names))}"
        ]
    warnings = []
    if sum(bool(PEOPLE.fullmatch(name)) for name in classes) >= MOST * len(classes):
        flags = suggest_flags(names)
        if flags or _has_coded_names(names):
            warnings.append(
                f"warning: the {what} look like people or recordings ({_format_classes(classes)}), and the "
                "file names hold codes: if the label is in the names, give "
                f"{flags[0] if flags else '--label-pattern REGEX'}"
            )
    odd = [name for name in classes if list_words(name) and set(list_words(name)) <= SPLITS - {"train"}]
    if odd:
        others = [name for name in classes if name not in odd]
        warnings.append(
            f"warning: {_format_classes(odd)} {'is' if len(odd) == 1 else 'are'} read as a class beside "
            f"{_format_classes(others)}: if it is a part of the data set, move it out of the {what}"
        )
    return warnings


def _find_split_names(classes: Sequence[str]) -> list[str]:
    """The classes named like splits or numbered parts: test, set_a, fold1, FSD50K.eval_audio."""
    words_of_each = [set(list_words(name)) for name in classes]
    splits_of_each = [words & SPLITS for words in words_of_each]
    if all(splits_of_each) and len(set.union(*splits_of_each)) > 1:
        return list(classes)
    common = set.intersection(*words_of_each)
    split_names = []
    for name, words in zip(classes, words_of_each, strict=True):
        rest = words - common - FILLER_WORDS
        is_split = words & SPLITS and rest <= SPLITS | PIECES
        numbered = common & (PIECES | SPLITS) or words & PIECES
        if is_split or numbered and all(len(word) == 1 for word in rest - PIECES):
            split_names.append(name)
    # the vehicle among other classes, and no other word for a split
    return [] if split_names == ["train"] else split_names


def _has_coded_names(names: Sequence[str]) -> bool:
    """Do nearly all file names have three parts or more, most of them with digits?"""
    parts = [re.split(r"[_\-. ]+", strip_suffix(name.rpartition("/")[2])) for name in names]
    coded = 0
    for pieces in parts:
        with_digits = [piece for piece in pieces if re.search(r"\d", piece)]
        coded += len(pieces) > 2 and 2 * len(with_digits) > len(pieces)
    return coded >= NEARLY_ALL * len(parts)


def _format_classes(classes: Sequence[str]) -> str:
    return ", ".join(map(format_cell, classes[:3])) + ", ..." * (len(classes) > 3)


def _join_flags(flags: Sequence[str]) -> str:
    return f"; if the labels are in the file names, give {flags[0]}" if flags else ""


def warn_unknown_test_classes(train: set[str], test: set[str], left_out: bool = False) -> list[str]:
    """A warning about classes of the hold-out that training lacks, each with a similar one.

    Args:
        left_out: their clips are left out.
    """
    alien = sorted(set(test) - set(train))
    if not alien or not train:
        return []
    spare = sorted(set(train) - set(test)) or sorted(train)
    near = [(name, spelling.find_near(name, spare)) for name in alien]
    named = [format_cell(name) + (f" ({format_cell(other)}?)" if other else "") for name, other in near]
    meant = next((other for _, other in near if other), spare[0])
    return [
        f"warning: the hold-out has {len(alien)} class{'es' * (len(alien) > 1)} that training lacks: "
        f"{format_list(named, 5)}; training has {format_list(sorted(train), 5)}: the model cannot learn "
        f"{'it' if len(alien) == 1 else 'them'}{', and the clips are left out' * left_out}; if two mean the "
        f"same, give get_features.py --label-map {quote(f'{alien[0]}={meant}')}"
    ]


def find_duplicate_files(
    names: Sequence[str], sizes: Sequence[int], root: str | os.PathLike | None = None
) -> tuple[list[int], str]:
    """The duplicate files below another folder, with the same parent folder, name and size.

    Args:
        names: relative paths with `/`.
        sizes: bytes.
        root: their folder, to compare the contents of some pairs. Without it, files that all have one size
            count only where one folder contains the whole other tree.
    Returns:
        the indices to leave out (of the deeper copy), ascending, [] without any; a line about them, ""
        without any.
    """
    places: dict[str, dict[tuple[str, str, int], int]] = {}
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        folder, _, file = name.rpartition("/")
        top, _, parent = folder.rpartition("/")
        if folder:
            places.setdefault(top, {})[parent, file, size] = index
    order = sorted(places, key=lambda top: (top.count("/") + bool(top), top))
    left: set[int] = set()
    pairs: dict[tuple[str, str], None] = {}
    by_key: dict[tuple[str, str, int], list[str]] = {}
    for top in order:
        met = Counter(other for key in places[top] for other in by_key.get(key, ()))
        for other, shared in met.most_common():
            if shared < max(FEWEST, MOST * min(len(places[top]), len(places[other]))):
                continue
            both = [key for key in places[top] if key in places[other]]
            one, two = [places[other][key] for key in both], [places[top][key] for key in both]
            if _are_copies(
                [(names[a], names[b]) for a, b in zip(one, two, strict=True)],
                [key[2] for key in both],
                (other, top, shared >= NEARLY_ALL * max(len(places[top]), len(places[other]))),
                root,
            ):
                left.update(two)
                pairs[_find_differing_folders(other, top)] = None
                break
        for key in places[top]:
            tops = by_key.setdefault(key, [])
            if len(tops) < COPIES:
                tops.append(top)
    if not left:
        return [], ""
    where = "; ".join(f"{two}/ and {one if one == '.' else f'{one}/'}" for one, two in pairs)
    return sorted(left), f"{len(left)} audio files are duplicates ({where}): one copy is used"


def _are_copies(pairs: list[tuple[str, str]], sizes: list[int], tops: tuple[str, str, bool], root) -> bool:
    """Are the pairs copies? By their contents where they can be read, else by their sizes."""
    path, two, whole = tops
    if {w for w in list_words(path) if w in SPLITS} != {w for w in list_words(two) if w in SPLITS}:
        return False  # files of a split may have the names of another split's
    if root is not None:
        step = max(1, len(pairs) // LOOKED_AT)
        try:
            return all(filecmp.cmp(Path(root, a), Path(root, b), shallow=False) for a, b in pairs[::step])
        except OSError as error:
            raise_if_temporary(root, error)
            return False
    path, two = _find_differing_folders(path, two)
    nested = path == "." or two.startswith(f"{path}/")
    return 2 * len(set(sizes)) > len(sizes) or nested and whole


def _find_differing_folders(one: str, two: str) -> tuple[str, str]:
    """Two folders without their common last folders."""
    first, second = one.split("/") if one else [], two.split("/") if two else []
    while first and second and first[-1] == second[-1] and len(second) > 1:
        first.pop()
        second.pop()
    return "/".join(first) or ".", "/".join(second) or "."
