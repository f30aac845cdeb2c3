"""Clips with several labels: folds, scores, submissions, and the whole line."""

from __future__ import annotations

import csv
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import read_csv, script, tone
from layout_files import csv as write

import get_features
import predict
import train
from earshot.competition import labels
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.prediction import submission, submit
from earshot.training import folds, metrics, run_cache, text_report
from earshot.training.run import Run

KINDS = ["tone0", "tone1", "tone2"]


# --- folds


def drawn(clips: int, shares: tuple, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((clips, len(shares))) < shares).astype(np.int8)


def test_folds_of_many_labels_are_far_evener_than_drawn_ones() -> None:
    truth = drawn(1500, tuple(np.geomspace(0.3, 0.01, 40)), 2)

    def uneven(found: np.ndarray) -> float:
        return np.abs(np.stack([truth[found == fold].sum(0) for fold in range(5)]) - truth.sum(0) / 5).sum()

    found = folds.assign_folds(truth, np.full(1500, -1), np.array([""] * 1500), 5, 0)[0]
    assert uneven(found) < 0.3 * uneven(np.random.default_rng(0).permutation(1500) % 5)


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_share_out_every_label(grouped: bool) -> None:
    truth = drawn(400, (0.5, 0.2, 0.05, 0.03), 1)
    groups = np.array([f"g{i // 3}" if grouped else "" for i in range(400)])
    none = np.full(400, -1)
    found, about = folds.assign_folds(truth, none, groups, 5, seed=3)
    assert "5 stratified folds" in about and ("134 groups" in about) == grouped
    sizes = np.bincount(found, minlength=5)
    counts = np.stack([truth[found == fold].sum(0) for fold in range(5)])
    slack = 3 if grouped else 1
    assert sizes.min() >= 80 - 2 * slack and sizes.max() <= 80 + 2 * slack
    assert (np.abs(counts - truth.sum(0) / 5) <= slack).all(), counts
    empty = truth.sum(1) == 0
    assert np.ptp([empty[found == fold].sum() for fold in range(5)]) <= 2 * slack
    folds.check_groups(found, groups)
    same, other = (folds.assign_folds(truth, none, groups, 5, seed)[0] for seed in (3, 4))
    assert (same == found).all() and (other != found).any()


def test_folds_of_the_data_and_refusals() -> None:
    truth, alone = drawn(12, (0.6, 0.4), 0), np.array([""] * 12)
    own = np.arange(12) % 3 + 1
    assert (folds.assign_folds(truth, own, alone, None, 0)[0] == own).all()
    with pytest.raises(UserError, match="commonest label has 3 clips"):
        folds.assign_folds(
            np.eye(4, dtype=np.int8)[[0, 0, 0, 1, 1, 2, 2, 3, 3]], np.full(9, -1), alone[:9], 5, 0
        )
    whole = folds.assign_folds(
        np.ones((12, 2), dtype=np.int8), np.full(12, -1), np.array([f"g{i % 4}" for i in range(12)]), 4, 0
    )[0]
    assert sorted(np.bincount(whole)) == [3, 3, 3, 3]  # as many groups as folds: none is left empty


# --- scores


def test_scores_by_hand() -> None:
    truth = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    p = np.array([[0.9, 0.4, 0.2], [0.6, 0.8, 0.1], [0.7, 0.2, 0.3], [0.1, 0.3, 0.2]], dtype=np.float32)
    found = metrics.compute_scores(p, truth)
    # yes, at 0.5: class 0 in clips 0, 1 (wrong), 2; class 1 in clip 1 of 0 and 1; class 2 occurs nowhere
    assert found["f1_macro"] == pytest.approx((4 / 5 + 2 / 3) / 2) and found["f1_micro"] == pytest.approx(
        6 / 8
    )
    assert found["accuracy"] == 0.5  # clips 2 and 3
    assert found["balanced_accuracy"] == pytest.approx(((1 + 1 / 2) / 2 + (1 / 2 + 1) / 2) / 2)
    assert found["map_macro"] == 1 and found["lwlrap"] == 1
    picked = np.where(truth == 1, p, 1 - p)
    assert found["log_loss"] == pytest.approx(-np.log(picked).mean(), rel=1e-5)


def test_scores_against_sklearn_and_the_definition() -> None:
    from sklearn import metrics as sk

    truth, p = drawn(60, (0.5, 0.3, 0.2, 0.1), 5), np.random.default_rng(6).random((60, 4))
    found, said = metrics.compute_scores(p, truth), (p >= 0.5).astype(int)
    for how in ("macro", "micro", "weighted"):
        assert found[f"f1_{how}"] == pytest.approx(sk.f1_score(truth, said, average=how))
    assert found["map_macro"] == pytest.approx(sk.average_precision_score(truth, p, average="macro"))
    assert found["roc_auc_macro"] == pytest.approx(sk.roc_auc_score(truth, p, average="macro"))
    assert metrics.compute_scores(p.round(1), truth)["roc_auc_macro"] == pytest.approx(
        sk.roc_auc_score(truth, p.round(1))
    )  # ties
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, said))
    each = [
        (
            sk.balanced_accuracy_score(truth[:, c], said[:, c]),
            sk.log_loss(truth[:, c], p[:, c], labels=[0, 1]),
        )
        for c in range(4)
    ]
    assert (found["balanced_accuracy"], found["log_loss"]) == pytest.approx(np.mean(each, 0))
    # lwlrap: for each label of each clip, how many of those ranked no lower are labels of the clip, too
    precisions = []
    for row, scores in zip(truth, p, strict=True):
        for c in np.flatnonzero(row):
            above = scores >= scores[c]
            precisions.append(row[above].sum() / above.sum())
    assert found["lwlrap"] == pytest.approx(np.mean(precisions))
    some = truth.any(1)
    p = p.round(1)  # ties
    want = sk.label_ranking_average_precision_score(truth[some], p[some], sample_weight=truth[some].sum(1))
    assert metrics.compute_scores(p, truth)["lwlrap"] == pytest.approx(want)


def test_scores_of_clips_without_labels_are_numbers() -> None:
    for truth in (np.zeros((3, 2), dtype=int), np.ones((3, 2), dtype=int)):
        found = metrics.compute_scores(np.full((3, 2), 0.1), truth)
        assert all(np.isfinite(value) for value in found.values()) and found["f1_macro"] == 0
    assert (
        metrics.compute_scores(np.array([[1.0, 0.0]], dtype=np.float32), np.array([[0, 1]]))["log_loss"] < 40
    )


def test_report_and_metric_names() -> None:
    text = text_report.format_report(
        np.array([[0.9, 0.6], [0.2, 0.8]]), np.array([[1, 0], [0, 0]]), ["owl", "jay"]
    )
    assert "precision" in text and "confusion" not in text
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert [lines["owl"], lines["jay"]] == [["1.0000", "1", "0", "0"], ["-", "0", "0", "2"]]
    for name in (*metrics.RANKING, "roc_auc_macro", "log_loss"):
        metrics.check_metric(name, True)
    with pytest.raises(UserError, match="--metric map_at_3 is for clips with one label each"):
        metrics.check_metric("map_at_3", True)
    with pytest.raises(UserError, match="--metric lwlrap is for clips with several labels"):
        metrics.check_metric("lwlrap", False)


# --- submissions

IDS, CLASSES = np.array(["a", "b", "c"]), ["bark", "light rain", "wind"]
P = np.array([[0.7, 0.6, 0.1], [0.1, 0.2, 0.3], [0.4, 0.3, 0.9]])


def submitted(folder: Path, sample: str | None, separator: str | None, p: np.ndarray = P) -> list[str]:
    path = None
    if sample is not None:
        path = folder / "sample_submission.csv"
        path.write_text(sample)
    submission.write(folder / "s.csv", IDS, p, CLASSES, ("fname", "labels"), path, True, separator)
    return (folder / "s.csv").read_text().splitlines()


@pytest.mark.parametrize(
    "answer, want",
    [
        ("bark;wind", "bark;light rain"),
        ("['bark']", "['bark', 'light rain']"),
        ("bark", "bark,light rain"),
        ("?", "bark,light rain"),
    ],
)
def test_the_sample_says_what_stands_between_labels(tmp_path: Path, answer: str, want: str) -> None:
    for separator in (None, ","):
        submitted(tmp_path, f"fname,labels\na,{answer}\nb,{answer}\nc,{answer}\n", separator)
        assert pd.read_csv(tmp_path / "s.csv").labels[0] == want


def test_a_column_per_class_gets_the_probabilities(tmp_path: Path) -> None:
    sample = "fname,wind,bark,light rain\nc,0,0,0\na,0,0,0\nb,0,0,0\n"
    for separator in (None, ";"):
        assert submitted(tmp_path, sample, separator) == [
            "fname,wind,bark,light rain",
            "c,0.9,0.4,0.3",
            "a,0.1,0.7,0.6",
            "b,0.3,0.1,0.2",
        ]
    assert submitted(tmp_path, None, None)[:2] == ["fname,bark,light rain,wind", "a,0.7,0.6,0.1"]
    with pytest.raises(UserError, match="snow is not a class"):
        submitted(tmp_path, "fname,bark,snow\na,0,0\nb,0,0\nc,0,0\n", None)
    with pytest.raises(UserError, match="1.4 in column wind is not a probability"):
        submitted(tmp_path, sample, None, P + 0.5)


@pytest.mark.parametrize(
    "separator, first",
    [
        (None, '"bark,light rain"'),
        (";", "bark;light rain"),
        (", ", '"bark, light rain"'),
        ("[]", "\"['bark', 'light rain']\""),
    ],
)
def test_a_label_column_gets_what_is_likelier_than_not(
    tmp_path: Path, separator: str | None, first: str
) -> None:
    found = submitted(tmp_path, "fname,labels\na,\nb,\nc,\n", separator)
    assert found[:2] == ["fname,labels", f"a,{first}"]
    read = pd.read_csv(tmp_path / "s.csv").labels.tolist()
    # b has none above a half: its likeliest
    assert [labels.split_cell(cell, separator or ",") for cell in read] == [
        ["bark", "light rain"],
        ["wind"],
        ["wind"],
    ]


def test_the_guard_knows_the_separator() -> None:
    made = pd.DataFrame({"fname": ["a", "b"], "labels": ["bark;light rain", "wind"]})
    submission.check_table(made, "fname", ["a", "b"], ["fname", "labels"], CLASSES, ";")
    with pytest.raises(UserError, match="refused"):
        submission.check_table(
            made.replace("wind", "wind;snow"), "fname", ["a", "b"], ["fname", "labels"], CLASSES, ";"
        )


# --- the whole line

SMALL = (
    "--recipe",
    "sample",
    "--head.channels",
    "[16, 32]",
    "--head.blocks",
    "[1, 1]",
    "--folds",
    "2",
    "--epochs",
    "14",
    "--batch-size",
    "8",
    "--lr",
    "1e-2",
    "--label-smoothing",
    "0",
    "--mixup",
    "0",
    "--time-mask",
    "0",
    "--frequency-mask",
    "0",
    "--metric",
    "map_macro",
    "--name",
    "r",
)


def mixed(folder: Path, train: int = 72, subm: int = 6, columns: bool = False) -> Path:
    """Clips of one tone, two at once, or (with `columns`) none: train.csv by lists or by 0/1 columns, a
    column per class."""
    which = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)] + [()] * columns
    for part in ("audio_train", "audio_test"):
        (folder / part).mkdir(parents=True)

    def make(path: Path, index: int) -> tuple:
        kinds = which[index % len(which)]
        wave = 0.05 * np.random.default_rng(index).standard_normal(16000)
        soundfile.write(path, wave + sum(0.5 * tone(kind, index) for kind in kinds), 16000)
        return kinds

    sets = [make(folder / "audio_train" / f"{i:03d}.wav", i) for i in range(train)]
    cells = [[int(k in s) for k in range(3)] if columns else [",".join(f"tone{k}" for k in s)] for s in sets]
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["fname", *(KINDS if columns else ["labels"])],
                *([f"{i:03d}.wav", *cell] for i, cell in enumerate(cells)),
            ]
        )
    with open(folder / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerow(["fname", *reversed(KINDS)])
        for i in reversed(range(subm)):
            make(folder / "audio_test" / f"t{i}.wav", 1000 * len(which) + i)
            csv.writer(file).writerow([f"t{i}.wav", 0, 0, 0])
    return folder


def test_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Lists of labels: features, training far above chance, a submission, new audio; nothing of it passes for
    single-label."""
    data = mixed(tmp_path / "mix")
    said = script("get_features.py", "--competition", data, "--extractor", "logmel", cwd=tmp_path).stdout
    assert "task: multi-label" in said and "several labels between ," in said
    folder = tmp_path / "data" / "mix" / "logmel"
    kept = joblib.load(folder / "train.pkl")
    assert kept["labels"].dtype == np.int8 and kept["labels"].shape == (72, 3)
    assert kept["labels"][:4].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert not joblib.load(folder / "subm.pkl")["labels"].any()

    said = script("train.py", *SMALL, cwd=tmp_path).stdout
    assert "3 classes, multi-label" in said and "lwlrap" in said
    run = tmp_path / "runs" / "r"
    oof = read_csv(run / "oof_last.csv")
    truth = np.array([[name in row["label"].split("|") for name in KINDS] for row in oof])
    assert [row["id"] for row in oof] == kept["ids"].tolist() and (truth == kept["labels"]).all()
    p = np.array([[float(row[name]) for name in KINDS] for row in oof])
    assert not np.allclose(p.sum(1), 1, atol=0.1)
    found = metrics.compute_scores(p, truth.astype(int))
    # chance: 0.67, by saying yes to all, and 0.5
    assert found["f1_macro"] > 0.8 and found["map_macro"] > 0.85, found
    assert "average precision" in (run / "report_last.txt").read_text()

    made = read_csv(tmp_path / "submissions" / "submission.csv")
    assert list(made[0]) == ["fname", *reversed(KINDS)]
    assert [row["fname"] for row in made] == [f"t{i}.wav" for i in range(5, -1, -1)]
    script("predict.py", "--runs", "r", "--audio", data / "audio_test", "--out", "new.csv", cwd=tmp_path)
    new = {row["fname"]: row for row in read_csv(tmp_path / "new.csv")}
    assert all(abs(float(row[k]) - float(new[row["fname"]][k])) < 1e-5 for row in made for k in KINDS)
    monkeypatch.chdir(tmp_path)
    predict.main(["--runs", "r", str(data / "audio_test" / "t3.wav")])
    shown = capsys.readouterr().out
    assert set(shown.split("t3.wav: ")[1].split()[::2][:2]) == {"tone0", "tone1"}

    # The same files with one label a clip are another cache, and another run.
    again = ["--competition", str(data), "--extractor", "logmel"]
    with pytest.raises(UserError, match="classes: 3 there, 6 here"):
        get_features.main([*again, "--task", "single"])
    write(data / "train.csv", " ".join(["fname,label", *(f"{i:03d}.wav,tone{i % 3}" for i in range(24))]))
    get_features.main([*again, "--cache", "one"])
    one, several = Cache(folder.parent / "one"), Run.open(run)
    assert (
        not one.multilabel
        and one.classes == several.classes
        and Cache(folder).prior().tolist() == [0.5, 0.5, 0.5]
    )
    with pytest.raises(UserError, match="is single-label, .* was trained multi-label: say where"):
        run_cache.open_run_cache(several, str(one.folder))
    with pytest.raises(UserError, match="can.t blend .*multi-label.*single-label"):
        run_cache.check_same_classes([several, Run.begin(tmp_path / "other", {"classes": KINDS}, {})])
    with pytest.raises(UserError, match="--metric lwlrap is for clips with several labels"):
        submit.dry_run(one, tmp_path / "s.csv", "lwlrap")


def test_stopped_and_continued_by_columns_with_a_hold_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """0/1 columns, clips without any label, long clips, a hold-out: a run that is stopped and continued is
    the same run."""
    data = mixed(tmp_path / "mix", train=42, subm=2, columns=True)
    monkeypatch.chdir(tmp_path)
    get_features.main(
        ["--competition", str(data), "--extractor", "logmel", "--seconds", "0.5", "--holdout", "0.3"]
    )
    args = ["--recipe", "linear", "--epochs", "2", "--folds", "2", "--mixup", "0.4", "--name", "r"]
    train.main([*args, "--runs-folder", "calm"])
    said = capsys.readouterr().out
    assert "hold-out, " in said and "map_macro" in said
    with pytest.raises(SystemExit):
        train.main([*args, "--max-hours", "0.0000001"])
    train.main(args)
    assert "continues after epoch" in capsys.readouterr().out
    for name in (
        "oof.csv",
        "oof_last.csv",
        "fold_0/best/model.safetensors",
        "fold_1/last/model.safetensors",
        "test.json",
    ):
        assert (tmp_path / "calm" / "r" / name).read_bytes() == (tmp_path / "runs" / "r" / name).read_bytes()
    said = {row["label"] for row in read_csv(tmp_path / "runs" / "r" / "oof.csv")}
    marks = [zip(KINDS, bits, strict=True) for bits in np.ndindex(2, 2, 2)]
    possible = {"|".join(kind for kind, there in mark if there) for mark in marks}
    assert {"", "tone0|tone1"} <= said <= possible
