"""Seeds, models on all clips and clips without labels beside what else there is: blends, scikit-learn
heads, drawn windows, tuning."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_csv
from test_dataset import CLASSES
from test_fitter import CPU, NEVER
from test_seeds import MLP, made_up, names, predict_alone
from test_windows import One

import predict
import train
from earshot.core import checksums
from earshot.core.config import TrainingFlags
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.training import dataset, oof
from earshot.training.checkpoint import FoldFolder
from earshot.training.dataset import WindowDataset
from earshot.training.predict import predict_run
from earshot.training.progress import Fold
from earshot.training.run import Run, list_refit_slots
from earshot.training.trainer import Trainer

ALL = ("--seeds", "2", "--refit")


@pytest.fixture
def work(monkeypatch, tmp_path: Path) -> Path:
    made_up(monkeypatch, tmp_path)
    return Path("runs")


def test_a_blend_of_runs_of_several_seeds(work, capsys):
    """Their out-of-fold predictions are the mean of the seeds' final epochs; it predicts by the models on all
    clips."""
    train.main([*MLP, *ALL, "--name", "several"])
    train.main([*MLP, "--seed", "7", "--name", "one"])
    run = Run.open(work / "several")
    found = oof.load_oof(run)
    for n in (1, 2, 3):
        each = [
            np.load(work / "several" / name / "valid_last.npy") for name in (f"fold_{n}", f"fold_{n}_seed1")
        ]
        np.testing.assert_array_equal(found.probabilities[found.folds == n], np.mean(each, 0))
    capsys.readouterr()
    predict.main(["--runs", "several", "one", "--blend", "mean", "--name", "both", "--device", "cpu"])
    said = capsys.readouterr().out
    rows = dataset.load_rows(Cache("data/syn/one"), "subm", "pooled", CPU)
    refit = np.mean([predict_alone(run, f"refit_{seed}", rows) for seed in (0, 1)], 0)
    folds = np.mean([predict_alone(Run.open(work / "one"), f"fold_{n}", rows) for n in (1, 2, 3)], 0)
    np.testing.assert_allclose(predict_run(run, rows, CPU, kind="last"), refit, atol=1e-6)
    assert (
        "several: all labelled clips x 2 seeds" in said
        and checksums.read(work / "both" / "blend.json")["kind"] == "last"
    )
    wanted = (refit + folds) / 2
    assert [r["category"] for r in read_csv(Path("submissions/submission.csv"))] == [
        f"class{c}" for c in wanted.argmax(1)
    ]

    np.save(work / "several" / "fold_2_seed1" / "valid_last.npy", np.zeros((20, 3), np.float32))
    checksums.write(work / "several" / "fold_2_seed1" / "valid_last.json", {}, "valid_last.npy")
    with pytest.raises(UserError, match="oof_last.csv differs from the predictions of fold 2"):
        oof.load_oof(run)
    shutil.rmtree(work / "several" / "fold_3_seed1")
    with pytest.raises(UserError, match="fold 3 is not finished"):
        predict.main(["--runs", "several", "one", "--blend", "pool"])


@pytest.mark.parametrize("name", ["logistic", "knn"])
def test_a_sklearn_head(work, name, capsys):
    """One seed, all clips, no scores where there is nobody to ask, the log loss as metric; it answers the
    others' labels, takes none."""
    train.main(["--recipe", name, "--features", "data/syn/one", *ALL, "--metric", "log_loss", "--name", "r"])
    run = Run.open(work / "r")
    assert f"seeds: only one, since {name} is a scikit-learn head" in capsys.readouterr().out
    assert names(work / "r") == {"fold_1", "fold_2", "fold_3", "refit_0"}
    rows = read_csv(work / "r" / "metrics.csv")
    assert len(rows) == 4 and [r["valid_loss"] != "" for r in rows] == [r["fold"] != "refit" for r in rows]
    best = [
        run.get_slot_folder(part).load_head("best", "cpu").state_dict()
        for part in list_refit_slots({"refit": True})
    ]
    fold = run.get_fold_folder(1).load_head("best", "cpu").state_dict()
    pairs = zip(best[0].values(), fold.values(), strict=True)
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)
    subm = dataset.load_rows(Cache("data/syn/one"), "subm", "pooled", CPU)
    wanted = predict_alone(run, "refit_0", subm)
    np.testing.assert_allclose(predict_run(run, subm, CPU), wanted, atol=1e-6)
    with pytest.raises(UserError, match=f"--pseudo: {name} is a scikit-learn head"):
        train.main(["--recipe", name, "--features", "data/syn/one", "--pseudo", "r", "--name", "p"])
    train.main([*MLP, "--pseudo", "r", "--name", "p"])
    answers = checksums.read_array(work / "p" / "pseudo.npy")
    np.testing.assert_allclose(answers[0], predict_alone(run, "fold_1", subm), atol=1e-6)


def test_windows_are_drawn_of_clips_without_labels_too(tmp_path):
    """One of each clip's, with labels or without; as many steps as that makes."""

    def part(ids: str, clip: list[int], first: float) -> dict:
        return {
            "ids": np.array(list(ids)),
            "labels": np.array(["a", "b", "c"])[: len(ids)],
            "folds": np.full(len(ids), -1),
            "groups": np.full(len(ids), ""),
            "clip": np.array(clip),
            "length": np.ones(len(clip), np.float32),
            "mel": (first + np.arange(len(clip))).astype(np.float16).reshape(-1, 1, 1, 1),
        }

    rows = WindowDataset(
        part("xyz", [0, 0, 1, 2], 0),
        "mel",
        CLASSES,
        1.0,
        "cpu",
        unlabelled=part("uvw", [0, 0, 1, 1, 1, 2], 20),
    )
    rows, valid = (
        rows.with_pseudo_labels(np.full((3, 3), 1 / 3, np.float32), 1.0),
        np.array([False, False, True]),
    )
    for windows, clips, steps in ((1, [0, 1, 3, 4, 5], 3), (None, [0, 0, 1, 3, 3, 4, 4, 4, 5], 5)):
        made = Trainer(
            One,
            rows,
            Fold(1, 2, ~valid, valid),
            TrainingFlags(windows=windows, batch_size=2, epochs=5),
            3,
            FoldFolder(tmp_path / str(windows)),
            CPU,
        )
        seen: list[np.ndarray] = []

        def watched(epoch, number, batch, seen=seen, step=made.step):
            seen.append(batch.rows)
            return step(epoch, number, batch)

        made.step = watched
        assert made.fit(str, NEVER, 0) and made.steps == steps and len(seen) == 5 * steps
        orders = []
        for first in range(0, len(seen), steps):
            orders.append(tuple(sorted(np.concatenate(seen[first : first + steps]))))
            assert sorted(rows.clip_of_row[list(orders[-1])]) == clips
        assert (len(set(orders)) > 1) == (windows == 1)


def test_trials_are_of_one_seed_and_of_the_folds_alone(work, monkeypatch):
    pytest.importorskip("optuna")
    from earshot.search import tune

    tried, trained = [], tune._try

    def one(trial, job, folder, wanted, deadline):
        found = trained(trial, job, folder, wanted, deadline)
        tried.append(names(folder))
        return found

    monkeypatch.setattr(tune, "_try", one)
    train.main([*MLP, *ALL, "--tune", "2", "--fold", "1", "2", "--name", "t"])
    assert tried == [{"fold_1", "fold_2"}] * 2
    assert names(work / "t") == {"fold_1", "fold_2", "fold_1_seed1", "fold_2_seed1", "refit_0", "refit_1"}


def test_the_bake_off_has_seeds_of_its_own(work):
    Path("small.yaml").write_text(
        "head: {name: mlp, hidden: [16]}\ntraining: {epochs: 2, seeds: 3, refit: true}\n"
    )
    train.main(
        [
            "--recipe",
            "auto",
            "--features",
            "data/syn/one",
            "--candidates",
            "small.yaml",
            "logistic",
            "--name",
            "a",
            "--device",
            "cpu",
        ]
    )
    assert names(work / "a" / "small-pooled-one") == {"fold_1", "fold_2", "fold_3"}
