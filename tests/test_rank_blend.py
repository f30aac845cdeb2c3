"""predict.py --blend rank: the mean of ranks, where it can be used and where it is refused."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import make_competition, read_csv, refused, script

import get_features
import predict
import train
from earshot.core.errors import UserError
from earshot.prediction import members, rank_blend
from earshot.prediction.blend_weights import RANK, FittedBlend, rank_clips
from earshot.training.metrics import compute_scores

NAMES = ["tone0", "tone1", "tone2"]
CPU = ["--device", "cpu"]


def test_ranks() -> None:
    found = rank_clips(np.array([[0.1, 0.5], [0.3, 0.5], [np.nan, np.nan], [0.2, 0.9], [0.9, 0.1]]))
    known = [[0.125, 0.5], [0.625, 0.5], [np.nan, np.nan], [0.375, 0.875], [0.875, 0.125]]
    assert np.allclose(found, known, equal_nan=True)
    assert rank_clips(np.full((3, 2), np.nan)).shape == (3, 2)


def test_members_of_other_scales_count_alike() -> None:
    """The scale of a member's probabilities changes nothing, and its order within a class all."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (200, 4))
    good, other = (
        np.clip(0.5 + 0.2 * (truth - 0.5) + 0.2 * rng.standard_normal((200, 4)), 0, 1) for _ in "ab"
    )
    blend = FittedBlend(RANK, np.array([0.5, 0.5]), multilabel=True)
    found = blend.apply(np.stack([good, other]))
    assert np.array_equal(found, blend.apply(np.stack([good**8, other / 50])))
    assert found.min() > 0 and found.max() < 1 and blend.alone is None
    alone = max(compute_scores(one, truth)["roc_auc_macro"] for one in (good, other))
    assert compute_scores(found, truth)["roc_auc_macro"] > alone


def test_a_clip_of_one_member_keeps_that_members_rank() -> None:
    one, two = np.array([[0.1], [0.2], [0.3]]), np.array([[0.3], [np.nan], [0.1]])
    found = FittedBlend(RANK, np.array([0.5, 0.5])).apply(np.stack([one, two]))
    assert np.allclose(found[:, 0], [(1 / 6 + 0.75) / 2, 0.5, (5 / 6 + 0.25) / 2])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one of them trained for the log loss; the sample submission has a column per class."""
    folder, before = tmp_path_factory.mktemp("ranks"), os.getcwd()
    data = make_competition(folder / "tones", train=12, subm=4)
    ids = sorted(path.name for path in (data / "audio_test").iterdir())
    with open(data / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fname", *NAMES], *([id, 0, 0, 0] for id in [*ids, "gone.wav"])])
    os.chdir(folder)
    try:
        get_features.main(["--competition", "tones", "--extractor", "logmel", "--n-mels", "16", *CPU])
        for name, more in (("a", []), ("b", ["--seed", "3"]), ("loss", ["--metric", "log_loss"])):
            flags = ["--recipe", "linear", "--epochs", "3", "--folds", "2", *CPU, "--no-report"]
            train.main([*flags, "--name", name, *more])
    finally:
        os.chdir(before)
    return folder


def test_a_submission_of_ranks(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(made)
    predict.main(["--runs", "a", "b", "--blend", "rank", "--out", str(tmp_path / "rank.csv"), *CPU])
    text = capsys.readouterr().out
    assert "the columns are mean ranks from 0 to 1, not probabilities" in text
    assert "out-of-fold score of the ranks: not known" in text  # the folds of a and b differ
    inside = members.open_members(("a", "b"), "runs")
    each = []
    for name in "ab":
        predict.main(["--runs", name, "--out", str(tmp_path / f"{name}.csv"), *CPU])
        rows = read_csv(tmp_path / f"{name}.csv")
        each.append(np.array([[float(row[n]) for n in NAMES] for row in rows if row["fname"] != "gone.wav"]))
    rows = read_csv(tmp_path / "rank.csv")
    found = {row["fname"]: [float(row[name]) for name in NAMES] for row in rows}
    assert found.pop("gone.wav") == [0.5] * 3, "in the middle, where nothing is known"
    wanted = np.mean([rank_clips(one) for one in each], 0)
    assert np.allclose(list(found.values()), wanted, atol=1e-7)
    assert rank_blend.is_rank(rank_blend.build(inside).fitted)


def test_its_out_of_fold_score(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    line = rank_blend.describe_gain(members.open_members(("a", "a"), "runs"))
    scores = re.findall(r"(?:ranks|probabilities) (\d\.\d{4})", line)
    assert "out-of-fold roc_auc_macro, 36 clips" in line and len(scores) == 2 and scores[0] == scores[1]


def test_where_ranks_are_refused(made: Path) -> None:
    for line, words in (
        ("--runs a loss", "the metric of runs/loss is log_loss, and ranks are not probabilities"),
        ("--runs a b --name c", "leave out --name"),
        ("--runs a b --audio tones/audio_test", "predicts nothing else"),
        ("--runs a b tones/audio_test/t000.wav", "predicts nothing else"),
    ):
        done = script("predict.py", *line.split(), "--blend", "rank", cwd=made, ok=None)
        assert words in refused(done)


def test_a_submission_of_labels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_competition(tmp_path / "tones", train=6, subm=2)
    monkeypatch.chdir(tmp_path)
    get_features.main(["--competition", "tones", "--extractor", "logmel", "--n-mels", "16", *CPU])
    for name in ("a", "b"):
        flags = ["--recipe", "linear", "--epochs", "1", "--folds", "2", *CPU, "--no-report"]
        train.main([*flags, "--name", name, "--lr", "0.01" if name == "a" else "0.02"])
    Path("submissions/submission.csv").unlink()
    with pytest.raises(UserError, match="the submission holds labels"):
        predict.main(["--runs", "a", "b", "--blend", "rank", *CPU])
    assert not Path("submissions/submission.csv").exists()
