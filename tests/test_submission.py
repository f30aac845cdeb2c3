"""The guard: what a leaderboard would refuse is refused here first, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from earshot.core.errors import UserError
from earshot.prediction import submission

CLASSES = ["bark", "rain", "wind"]
IDS = np.array(["a", "b", "c"])
P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])


def sample_file(folder: Path, text: str) -> Path:
    path = folder / "sample_submission.csv"
    path.write_text(text)
    return path


def written(folder: Path, text: str | None, p: np.ndarray = P, classes: list[str] = CLASSES) -> str:
    sample = sample_file(folder, text) if text is not None else None
    submission.write(folder / "submission.csv", IDS, p, classes, ("fname", "label"), sample)
    return (folder / "submission.csv").read_text()


def test_rows_in_the_samples_order(tmp_path: Path) -> None:
    assert (
        written(tmp_path, "fname,label\nc,bark\na,bark\nb,bark\n") == "fname,label\nc,wind\na,bark\nb,rain\n"
    )


def test_without_a_sample(tmp_path: Path) -> None:
    assert written(tmp_path, None) == "fname,label\na,bark\nb,rain\nc,wind\n"


def test_probability_per_class_in_the_samples_columns(tmp_path: Path) -> None:
    assert written(tmp_path, "wind,fname,rain,bark\n0,b,0,0\n0,a,0,0\n0,c,0,0\n") == (
        "wind,fname,rain,bark\n0.3,b,0.6,0.1\n0.1,a,0.2,0.7\n0.4,c,0.3,0.3\n"
    )


def test_three_likeliest_where_the_sample_has_three(tmp_path: Path) -> None:
    assert written(
        tmp_path, "fname,label\na,bark rain wind\nb,bark rain wind\nc,bark rain wind\n"
    ).splitlines()[1:] == ["a,bark rain wind", "b,rain wind bark", "c,wind bark rain"]


def test_probability_of_the_second_of_two_classes(tmp_path: Path) -> None:
    assert (
        written(tmp_path, "fname,target\na,0.5\nb,0.5\nc,0.5\n", P[:, :2], ["0", "1"]).splitlines()[1]
        == "a,0.2"
    )


def test_ids_keep_their_zeros(tmp_path: Path) -> None:
    sample = sample_file(tmp_path, "id,label\n0012,1\n7,1\n")
    submission.write(
        tmp_path / "s.csv", np.array(["7", "0012"]), P[:2, :2], ["1", "2"], ("id", "label"), sample
    )
    assert (tmp_path / "s.csv").read_text() == "id,label\n0012,2\n7,1\n"


@pytest.mark.parametrize(
    "text, p, message",
    [
        (
            "fname,label\na,x\nb,x\nc,x\nd,x\n",
            P,
            "1 ids of the sample submission have no prediction (first: d)",
        ),
        ("fname,bark,snow\na,0,0\nb,0,0\nc,0,0\n", P, "snow is not a class"),
        ("fname,label\na,x\nb,x\nc,x\n", np.where(P == 0.6, np.nan, P), "prediction for b is not a number"),
    ],
)
def test_what_cannot_be_built(tmp_path: Path, text: str, p: np.ndarray, message: str) -> None:
    with pytest.raises(UserError) as error:
        written(tmp_path, text, p)
    assert message in str(error.value) and not (tmp_path / "submission.csv").exists()


GOOD = {"fname": ["a", "b", "c"], "label": ["bark", "rain", "wind"]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fname": ["a", "b", "b"]}, "id b occurs twice"),
        ({"fname": ["a", "b", "x"]}, "the first that differs: c"),
        ({"fname": ["b", "a", "c"]}, "not in the expected order"),
        ({"label": ["bark", "", "wind"]}, "empty or NaN at id b"),
        ({"label": ["bark", "nan", "wind"]}, "empty or NaN at id b"),
        ({"label": ["bark", "Rain", "wind"]}, "Rain in column label is not a class"),
        ({"label": ["0.5", "1.5", "0"]}, "1.5 in column label is not a probability"),
        ({"label": ["0.5", "-0.1", "0"]}, "-0.1 in column label is not a probability"),
        ({"more": ["1", "2", "3"]}, "its columns are"),
    ],
)
def test_the_guard(change: dict, message: str) -> None:
    submission.check_table(pd.DataFrame(GOOD), "fname", list("abc"), ["fname", "label"], CLASSES)
    with pytest.raises(UserError) as error:
        submission.check_table(pd.DataFrame(GOOD | change), "fname", list("abc"), ["fname", "label"], CLASSES)
    assert "submission refused" in str(error.value) and message in str(error.value)
