"""The main job on real recordings (ESC-10, five official folds) with real weights; skipped where they are not
at hand."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import read_csv, refused, script


def accuracy(path: Path) -> tuple[int, float, float]:
    """Rows, accuracy and macro-F1 of an oof csv."""
    from sklearn.metrics import f1_score

    table = pd.read_csv(path, dtype={"label": str})
    classes = list(table.columns[3:])
    predicted = np.array(classes)[table[classes].to_numpy().argmax(1)]
    return (
        len(table),
        float((predicted == table.label).mean()),
        float(f1_score(table.label, predicted, average="macro")),
    )


def test_embeddings_and_a_linear_head(esc10: Path, efficientat_weights: Path, tmp_path: Path) -> None:
    """The acceptance of the kit: 400 clips, pooled out-of-fold accuracy of the final epoch at least 0.98."""
    args = ("--competition", esc10, "--extractor", "efficientat", "--weights", efficientat_weights)
    said = script("get_features.py", *args, cwd=tmp_path).stdout
    assert "train: 400 clips" in said and "pooled (384, 1, 1)" in said
    said = script(
        "train.py",
        "--recipe",
        "linear",
        "--features",
        "data/esc10/efficientat",
        "--name",
        "probe",
        cwd=tmp_path,
    ).stdout
    assert "nothing to submit" in said and "the data's own 5 folds" in said
    rows, share, f1 = accuracy(tmp_path / "runs" / "probe" / "oof_last.csv")
    assert rows == 400 and share >= 0.98 and f1 >= 0.98
    fold = {row["id"]: row["fold"] for row in read_csv(tmp_path / "runs" / "probe" / "oof.csv")}
    official = {row["filename"]: row["fold"] for row in read_csv(esc10 / "meta" / "esc10.csv")}
    assert fold == official

    # A loose file on the terminal, by the saved run and the weights it remembers.
    clip = next(row for row in read_csv(esc10 / "meta" / "esc10.csv") if row["category"] == "rooster")
    shown = script("predict.py", "--runs", "probe", esc10 / "audio" / clip["filename"], cwd=tmp_path).stdout
    assert shown.split(": ", 1)[1].startswith("rooster")


def kaggle_layout(esc10: Path, folder: Path) -> dict[str, str]:
    """ESC-10 as a competition: folds 1-4 as train, fold 5 to submit in a shuffled sample file; the
    solution."""
    rows = read_csv(esc10 / "meta" / "esc10.csv")
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
    train, test = ([row for row in rows if (row["fold"] == "5") == held] for held in (False, True))
    for part, chosen in (("train", train), ("test", test)):
        for row in chosen:
            os.symlink(esc10 / "audio" / row["filename"], folder / part / row["filename"])
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["fname", "label"], *([row["filename"], row["category"]] for row in train)]
        )
    order = np.random.default_rng(1).permutation(len(test))
    with open(folder / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fname", "label"], *([test[i]["filename"], "dog"] for i in order)])
    return {row["filename"]: row["category"] for row in test}


@pytest.mark.slow
def test_as_a_kaggle_competition(esc10: Path, efficientat_weights: Path, tmp_path: Path) -> None:
    from sklearn.metrics import f1_score

    truth = kaggle_layout(esc10, tmp_path / "contest")
    script(
        "get_features.py",
        "--competition",
        "contest",
        "--extractor",
        "efficientat",
        "--weights",
        efficientat_weights,
        cwd=tmp_path,
    )
    said = script("train.py", "--recipe", "linear", cwd=tmp_path).stdout
    assert "80 rows, 2 columns, validated against sample_submission.csv" in said
    made = read_csv(tmp_path / "submissions" / "submission.csv")
    assert [row["fname"] for row in made] == [
        row["fname"] for row in read_csv(tmp_path / "contest" / "sample_submission.csv")
    ]
    assert (
        f1_score([truth[row["fname"]] for row in made], [row["label"] for row in made], average="macro")
        >= 0.95
    )


@pytest.fixture
def tiny_ast(tmp_path: Path) -> Path:
    """A randomly initialised AST with the real front end, saved as the real one is."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    config = ASTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    ASTModel(config).save_pretrained(tmp_path / "tiny")
    ASTFeatureExtractor().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.slow
def test_tiny_ast_through_the_whole_line(esc10: Path, tiny_ast: Path, tmp_path: Path) -> None:
    """The default recipe on a competition, with a model folder in place of the published weights."""
    folder = tmp_path / "contest"
    kaggle_layout(esc10, folder)
    train = (folder / "train.csv").read_text().splitlines()
    # 40 clips are enough to see it run
    (folder / "train.csv").write_text("\n".join([train[0], *train[1::8]]) + "\n")
    sample = (folder / "sample_submission.csv").read_text().splitlines()
    (folder / "sample_submission.csv").write_text("\n".join(sample[:11]) + "\n")
    said = script("get_features.py", "--competition", "contest", "--weights", tiny_ast, cwd=tmp_path).stdout
    assert "recipe itmo2025_tokens" in said and "pooled (32, 1, 1), frames (32, 1, 101)" in said
    said = script("train.py", "--epochs", "3", "--folds", "2", cwd=tmp_path).stdout
    assert "recipe: itmo2025_tokens" in said and "10 rows" in said
    message = refused(
        script("predict.py", "--audio", "contest/test", "--weights", tmp_path / "gone", cwd=tmp_path, ok=None)
    )
    assert "gone" in message


def test_ast_without_weights_names_the_ways_out(tones: Path, tmp_path: Path) -> None:
    message = refused(
        script(
            "get_features.py",
            "--competition",
            tones,
            "--weights",
            "nobody/no-such-model",
            cwd=tmp_path,
            ok=None,
        )
    )
    for way in ("online", "--weights", "--extractor"):
        assert way in message, message
