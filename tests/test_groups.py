"""Which clips come from one source: by a column, by a pattern, and where the data's folds part them."""

from __future__ import annotations

import pandas as pd
import pytest

from earshot.competition import groups
from earshot.core.errors import UserError


def column(header: str, values: list, labels: list | None = None, **others: list) -> tuple:
    """What is found in a table of this column, an id and a label."""
    labels = labels or ["a" if index % 2 else "b" for index in range(len(values))]
    frame = pd.DataFrame({"fname": [f"{i}.wav" for i in range(len(values))], header: values, **others})
    return groups.find_source_column(frame, pd.Series(labels, dtype=object), ["fname", "label"])


PEOPLE = [f"s{index // 4}" for index in range(40)]  # of 4 clips each, with both labels


@pytest.mark.parametrize(
    "header",
    ["speaker", "Speaker ID", "client_id", "patientNo", "fsID", "src_file", "Recordist", "ytid", "site"],
)
def test_a_source_is_known_by_its_header(header: str) -> None:
    found, notes = column(header, PEOPLE)
    assert found == header and notes == [
        f"groups: column {header} (10 sources of 4 clips): folds keep each together"
    ]


@pytest.mark.parametrize("header", ["speaker_age", "species", "sitemap", "gender", "rating", "path"])
def test_other_headers_are_none(header: str) -> None:
    assert column(header, PEOPLE) == (None, [])


def test_what_is_not_plainly_a_source_is_not_used() -> None:
    """Unique, constant, few values, mostly empty, one that has half, one value a label; some with a line."""
    assert column("speaker", [f"s{i}" for i in range(40)]) == (None, [])
    assert column("speaker", ["s"] * 40) == (None, [])
    for values, labels, words in (
        (["x", "y", "z", "z"] * 10, None, "3 values"),
        (["", "unknown", "N/A", *PEOPLE[:18:2], ""], None, "4 of 13 cells are empty"),
        ([*["s0"] * 30, *PEOPLE[4:20]], None, "30 of 46"),
        (PEOPLE, [f"of {one}" for one in PEOPLE], "one value each"),
        ([f"s{max(i, 3)}" for i in range(40)], None, "37 values for 40 clips"),
    ):
        found, notes = column("author", values, labels)
        assert found is None and len(notes) == 1 and words in notes[0], notes
        assert notes[0].startswith("column author is not used as groups: ")


def test_the_order_of_columns() -> None:
    """`group` wins as it stands; then a person before a recording, a place, a day; a label is no group."""
    days = [f"2020-01-{index // 2 % 28 + 1:02d}" for index in range(40)]
    rest = {"date": days, "session": [f"r{index // 2}" for index in range(40)]}
    assert column("speaker", PEOPLE, **rest)[0] == "speaker"
    found, notes = column("speaker", ["x", "y"] * 20, **rest)
    assert found == "session" and "not used" in notes[0]
    assert column("group", ["one"] * 40, speaker=PEOPLE) == ("group", [])
    frame = pd.DataFrame({"fname": list("abcd"), "group": list("xxyy")})
    assert groups.find_source_column(frame, frame["group"], ["fname", "group"]) == (None, [])


def test_odd_tables() -> None:
    """No rows, labels of several, cells that are no text, columns of one name."""
    frame = pd.DataFrame({"fname": [], "speaker": []})
    assert groups.find_source_column(frame, pd.Series([], dtype=object), ["fname"]) == (None, [])
    several = [("a", "b") if index % 2 else () for index in range(40)]
    assert column("speaker", PEOPLE, several)[0] == "speaker"
    assert column("location", [i // 6 for i in range(40)])[0] is None, "a place on the body has few values"
    assert column("speaker", [i // 4 for i in range(36)] + [None, float("nan")] * 2)[0] == "speaker"
    twins = pd.DataFrame([["0.wav", "x", "y"]] * 9, columns=["fname", "speaker", "speaker"])
    assert groups.find_source_column(twins, pd.Series(["a"] * 9), ["fname"]) == (None, [])


NAMES = ["p1/a_7_x.wav", "p2/a_7_y.wav", "p1/b_8_x.wav", "odd.wav"]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        (r"^p\d", ["p1", "p2", "p1", ""]),
        (r"_(\d)_", ["7", "7", "8", ""]),
        (r"(?:^|/)(\w)_(\d)_", ["a_7", "a_7", "b_8", ""]),
        (r"(p1)|_(7)_", ["p1", "7", "p1", ""]),
    ],
)
def test_a_pattern(pattern: str, expected: list[str]) -> None:
    assert groups.match_groups(NAMES, pattern) == expected


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("(a", r"--group-pattern \(a is not a regular expression: .*at character 1"),
        ("a{99999999999}", "not a regular expression"),
        ("zzz", r"matches no clip.*p1/a_7_x.wav, odd.wav"),
        ("", "matches no clip"),
        ("a" * 501, "501 characters"),
    ],
)
def test_a_pattern_that_is_none(pattern: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        groups.match_groups(NAMES, pattern)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no clip"):
        groups.match_groups([], ".")


def test_what_a_pattern_gives_is_said() -> None:
    assert groups.describe_pattern_groups(["x", "x", "y", ""]) == [
        "groups: --group-pattern (2 sources of 1 to 2 clips; 1 clips without one)"
    ]
    assert "one group, x" in groups.describe_pattern_groups(["x", "x", ""])[0]
    assert "group of its own" in groups.describe_pattern_groups(["x", "y", ""])[0]


def test_folds_that_part_sources() -> None:
    """They are counted; clips without a fold or a source do not count."""
    assert groups.warn_straddling_folds([0, 0, 1, 1, -1], ["x", "x", "y", "", "x"]) == []
    (line,) = groups.warn_straddling_folds([0, 1, 1, 2], ["x", "x", "y", "y"])
    assert line.startswith("warning: the data's own folds split 2 of 2 sources (first: x, in 0, 1)")
    assert "in test, train" in groups.warn_straddling_folds(["train", "test"], ["x", "x"])[0]
