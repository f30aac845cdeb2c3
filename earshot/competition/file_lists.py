"""Official lists of clips beside the audio: validation_list.txt, testing_list.txt, fold1_evaluate.txt."""

from __future__ import annotations

import re
from collections.abc import Sequence

from earshot.competition.file_index import Files
from earshot.core.errors import UserError, raise_if_temporary

FOLD = re.compile(r"fold_?(\d{1,3})_(evaluate|test|valid(?:ation)?)", re.I)
HELD_OUT = re.compile(r"(test|valid)[a-z]*_?(list|files|filtered|split|set|clips|filenames)?", re.I)
BYTES = 100_000_000


def find_listed_files(files: Files, text: str) -> set[str]:
    """The audio files that a text file lists, one at the start of each line, relative to the root; empty
    unless nearly all lines name one."""
    path = files.root / text
    try:
        if path.stat().st_size > BYTES:
            return set()
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return set()
    except OSError as error:
        raise_if_temporary(path, error)
        raise UserError(f"can't read {path}: {error.strerror or error}") from None
    first = [re.split(r"[\t,;]", line)[0].strip() for line in lines]
    candidates = [files.find_candidates(name) for name in first if name]
    hits = [
        paths[0] for paths in candidates if len(paths) == 1
    ]  # a bare name may be in several class folders
    return set(hits) if candidates and len(hits) >= 0.9 * len(candidates) else set()


def read_folds(files: Files) -> dict[str, int]:
    """The fold of each file by lists that are called fold<N>_evaluate, fold<N>_test or fold<N>_validation;
    {} unless there are two of one kind that share no file."""
    kinds: dict[str, dict[int, str]] = {}
    for text in files.texts:
        match = FOLD.fullmatch(_get_stem(text))
        if match:
            kinds.setdefault(match[2].lower(), {})[int(match[1])] = text
    for list_name in sorted(kinds):  # evaluate before test: with labels, of the same clips
        lists = {number: find_listed_files(files, text) for number, text in sorted(kinds[list_name].items())}
        every = [path for paths in lists.values() for path in paths]
        if len(lists) > 1 and every and len(set(every)) == len(every):
            return {path: number for number, paths in lists.items() for path in paths}
    return {}


def find_held_out(files: Files) -> tuple[set[str], list[str]]:
    """The files that official validation and test lists name, and the lists."""
    held_out: set[str] = set()
    used = []
    for text in files.texts:
        if HELD_OUT.fullmatch(_get_stem(text)):
            paths = find_listed_files(files, text)
            held_out |= paths
            used += [text] if paths else []
    return held_out, used


def _get_stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def format_names(lists: Sequence[str]) -> str:
    """The lists' names for a message."""
    return ", ".join(path.rpartition("/")[2] for path in lists)
