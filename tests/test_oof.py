"""Out-of-fold predictions of classes with odd names: written, read back, and through the whole line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import read_csv, tone

import get_features
import predict
import train
from earshot.core.errors import UserError
from earshot.prediction import members
from earshot.report import results
from earshot.report.make import HTML
from earshot.training.oof import Oof
from earshot.training.run import Run

ODD = ["a", "a|b", "b", " b", "a, b", 'say "hi"', "id", "two\nlines", "wren\r", "сова|鳥", '["a"]', "|", "c"]


@pytest.mark.parametrize("multilabel", [False, True])
def test_written_and_read_back(tmp_path: Path, multilabel: bool) -> None:
    count, random = len(ODD), np.random.default_rng(0)
    labels = np.arange(60) % count
    if multilabel:
        labels = (random.random((60, count)) < 0.3).astype(np.int8)
        labels[:3] = 0
        labels[1, [0, 2]] = labels[2, 1] = 1  # a and b; a|b
    ids = np.array([f"{i},\r\n{i}" for i in range(60)])
    oof = Oof(ids, np.arange(60) % 3, labels, random.random((60, count)).round(8), ODD)
    oof.write(tmp_path / "oof.csv")
    for classes in (ODD, None):
        found = Oof.read(tmp_path / "oof.csv", classes, multilabel)
        assert found.classes == ODD and found.ids.tolist() == ids.tolist() and found.multilabel == multilabel
        for name in ("folds", "labels", "probabilities"):
            np.testing.assert_array_equal(getattr(found, name), getattr(oof, name), name)


def test_a_cell_of_many_bars_is_refused_soon(tmp_path: Path) -> None:
    names = ["a", "a|a", "a|a|a", "b"]
    cells = "a" + "|a" * 60_000
    (tmp_path / "oof.csv").write_text(f"id,fold,label,{','.join(names)}\nx,0,{cells},0,0,0,0\n")
    with pytest.raises(UserError, match="is damaged, or not from train.py or predict.py"):
        Oof.read(tmp_path / "oof.csv", names, True)


def test_odd_names_from_train_to_report_blend_ledger_and_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "a|b", "b", 'say "hi", owl']
    data, random = tmp_path / "odd", np.random.default_rng(0)
    truth = random.random((36, len(names))) < 0.4
    truth[:8] = np.tile(np.eye(len(names), dtype=bool), (2, 1))
    for folder, count in (("audio_train", 36), ("audio_test", 4)):
        (data / folder).mkdir(parents=True)
        for i in range(count):
            wave = sum(tone(c, 100 * c + i, 8000) for c in np.flatnonzero(truth[i])) + 0.001 * tone(
                0, i, 8000
            )
            soundfile.write(data / folder / f"{folder[6:]}{i:02d}.wav", 0.2 * wave, 8000)
    with open(data / "train.csv", "w", newline="") as file:
        rows = [[f"train{i:02d}.wav", *map(int, row)] for i, row in enumerate(truth)]
        csv.writer(file).writerows([["fname", *names], *rows])
    with open(data / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fname", *names], *([f"test{i:02d}.wav", *[0] * 4] for i in range(4))])
    monkeypatch.chdir(tmp_path)
    get_features.main(
        ["--competition", str(data), "--extractor", "logmel", "--n-mels", "16", "--device", "cpu"]
    )
    for name, recipe in (("lin", "linear"), ("mlp", "mlp")):
        settings = ["--recipe", recipe, "--epochs", "2", "--folds", "2", "--device", "cpu"]
        train.main([*settings, "--name", name])
    classes = Run.open(Path("runs/lin")).classes
    assert classes == names
    predict.main(["--runs", "lin", "mlp", "--blend", "auto", "--name", "both", "--device", "cpu"])
    for name in ("lin", "mlp", "both"):
        by_id = dict(zip([f"train{i:02d}.wav" for i in range(36)], truth.astype(int).tolist(), strict=True))
        member = members.open_member(Path("runs") / name)
        for oof in (member.read_oof(), results.load_results(Path("runs") / name)):
            assert oof.labels.tolist() == [by_id[id] for id in oof.ids] and oof.classes == names
        assert (Path("runs") / name / HTML).exists()
    assert list(read_csv(Path("submissions/submission.csv"))[0]) == ["fname", *names]
    assert [row["runs"] for row in read_csv(Path("submissions/ledger.csv"))][-1] in ("lin mlp", "lin", "mlp")
