"""Words that readers stumbled over stay out of names, texts and docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

# word as a pattern of its parts -> what to write
BANNED = {
    r"beware": "warning",
    r"unheard": "skipped",
    r"strangers?( s)?": "untrusted",
    r"flatter(s|ed|ing|y)?": "optimistic",
    r"fitted at once": "scikit-learn heads",
    r"mend(s|ed|ing)?": "fix",
}
PATTERN = re.compile(r"\b(" + "|".join(f"(?:{word})" for word in BANNED) + r")\b")
FOLDERS = (".ci", "benchmarks", "cloud", "docs", "earshot", "models", "notebooks", "recipes", "tests")
SUFFIXES = (
    "",
    ".py",
    ".md",
    ".yaml",
    ".yml",
    ".ipynb",
    ".toml",
    ".cff",
    ".txt",
    ".css",
    ".js",
    ".html",
    ".jinja",
)


def list_files() -> list[Path]:
    """Every text of the project but this one, and but what is built."""
    files = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(
        path
        for path in files
        if path.suffix in SUFFIXES
        and path.name not in ("test_words.py", "mypy-baseline.txt")
        and not {"built", "__pycache__"} & set(path.parts)
    )


def split_names(text: str) -> str:
    """The text as lower-case words: `unheard_clips`, `UnheardClips` and "un-heard" fall into their parts."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    return re.sub(r"[^a-z\n]+", " ", text.lower())


def find_banned(text: str) -> list[tuple[int, str]]:
    """(line, word) of each banned word; a phrase may go over the end of a line."""
    words = re.sub(r" *\n *", "\n", split_names(text))
    flat = words.replace("\n", " ")  # of the same length, so that places stay
    return [(words.count("\n", 0, found.start()) + 1, found[0]) for found in PATTERN.finditer(flat)]


@pytest.mark.parametrize(
    "text",
    [
        "beware: full",
        "the clips left unheard",
        "StrangersFiles",
        "a stranger's file",
        "it flatters",
        "mend_it",
    ],
)
def test_the_words_are_found(text: str) -> None:
    assert find_banned(text)
    assert find_banned("x = 1\n" + text)[0][0] == 2


def test_a_phrase_is_found_across_lines() -> None:
    assert find_banned("heads that are\n    # fitted\n    # at once") == [(2, "fitted at once")]


def test_other_words_are_not() -> None:
    assert not find_banned("we recommend to amend the flat, dimension by dimension; commended, tremendous")


def test_no_text_has_them() -> None:
    files = list_files()
    assert len(files) > 300
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in files
        for line, word in [
            *find_banned(path.read_text(encoding="utf-8", errors="replace")),
            *((0, word) for _, word in find_banned(path.stem)),
        ]
    ]
    advice = ", ".join(f"{word}: write {better}" for word, better in BANNED.items())
    assert not found, f"{found}\n({advice})"
