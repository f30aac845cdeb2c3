"""Several seeds, models on all labelled clips, averages of the last epochs: what is trained, what predicts,
exact on restarting."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, read_csv
from test_checkpoints import contents
from test_fitter import BUSY, CPU, NEVER, StopsAt, fitter, outcome
from test_restart import kill_when

import predict
import train
from earshot.core import deadline
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.training import dataset, progress
from earshot.training.predict import predict_run
from earshot.training.run import Run, format_slots, list_fold_slots, list_slots

MLP = ("--recipe", "mlp", "--epochs", "4", "--batch-size", "16", "--features", "data/syn/one")


class Cut(Exception):
    """The time is up."""


def made_up(monkeypatch, folder: Path, name: str = "one", **how: object) -> Path:
    """A cache of made-up features, and the test goes on in its folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import synthetic

    monkeypatch.chdir(folder)
    shapes = how.pop("shapes", {"pooled": (24, 1, 1)})
    return synthetic.make_cache(
        Path("data/syn") / name, shapes, **{"clips": 60, "classes": 3, "folds": 3, "subm": 12, **how}
    )


def stopped_every(monkeypatch, asked: int, *args: str) -> int:
    """Train with a deadline that passes when it is asked for the nth time, again and again until it is done;
    how often it stopped."""

    def leave(self) -> None:
        raise Cut

    monkeypatch.setattr(deadline.Deadline, "leave", leave)
    for count in range(100):
        stops = StopsAt(asked)
        monkeypatch.setattr(deadline.Deadline, "is_over", lambda self, stops=stops: stops.is_over())
        try:
            train.main(list(args))
        except Cut:
            continue
        return count
    raise AssertionError("it never ends")


def names(run: Path) -> set[str]:
    return {path.name for path in run.iterdir() if path.is_dir() and path.name != "tensorboard"}


THREE = (*MLP, "--seed", "4", "--seeds", "2", "--refit", "--name", "three")


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    """A cache, and a run of three folds, two seeds and models on all clips."""
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch:
        made_up(patch, folder)
        train.main(list(THREE))
    return folder


@pytest.fixture
def three(calm, monkeypatch, tmp_path: Path) -> Path:
    """The run, in a folder of the test's own."""
    shutil.copytree(calm, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "three"


def test_each_seed_is_the_run_that_it_would_be_alone(three, capsys):
    assert names(three) == {f"fold_{n}{s}" for n in (1, 2, 3) for s in ("", "_seed5")} | {
        "refit_4",
        "refit_5",
    }
    alone = []
    for seed in ("4", "5"):
        train.main([*MLP, "--seed", seed, "--name", seed])
        alone.append(three.parent / seed)
    assert not {"seeds", "refit", "snapshots"} & set(
        yaml.safe_load((alone[0] / "config.yaml").read_text())["record"]["training"]
    )
    for n in (1, 2, 3):
        for run, suffix in zip(alone, ("", "_seed5"), strict=True):
            mine, its = three / f"fold_{n}{suffix}", run / f"fold_{n}"
            for file in (
                "last/model.safetensors",
                "best/model.safetensors",
                "valid_last.npy",
                "valid_best.npy",
            ):
                assert (mine / file).read_bytes() == (its / file).read_bytes()
    for kind in ("oof", "oof_last"):
        tables = [read_csv(run / f"{kind}.csv") for run in (three, *alone)]
        shares = [
            np.array([[float(row[f"class{c}"]) for c in range(3)] for row in table]) for table in tables
        ]
        np.testing.assert_allclose(shares[0], (shares[1] + shares[2]) / 2, atol=2e-8)
        assert not np.allclose(shares[1], shares[2]) and [r["id"] for r in tables[0]] == [
            r["id"] for r in tables[1]
        ]
    rows = read_csv(three / "metrics.csv")
    assert list(rows[0])[:3] == ["fold", "seed", "epoch"] and len(rows) == 4 * 8
    assert [r["valid_loss"] != "" for r in rows] == [r["fold"] != "refit" for r in rows]
    assert "mean of 2 seeds" in (three / "training_log.txt").read_text()


def test_the_submission_is_of_the_models_on_all_clips(three, capsys):
    run, cache = Run.open(three), Cache("data/syn/one")
    rows = dataset.load_rows(cache, "subm", "pooled", CPU)
    wanted = np.mean([predict_alone(run, f"refit_{seed}", rows) for seed in (4, 5)], 0)
    folds = np.mean(
        [
            predict_alone(run, part.folder, rows)
            for n in (1, 2, 3)
            for part in list_fold_slots({"seed": 4, "seeds": 2}, n)
        ],
        0,
    )
    found = predict_run(run, rows, CPU)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.abs(found - folds).max() > 1e-3
    answers = [row["category"] for row in read_csv(Path("submissions/submission.csv"))]
    assert answers == [f"class{c}" for c in wanted.argmax(1)]
    predict.main(["--runs", "three", "--out", "again.csv"])
    assert Path("again.csv").read_bytes() == Path("submissions/submission.csv").read_bytes()
    assert "all labelled clips x 2 seeds" in capsys.readouterr().out
    for seed in (4, 5):  # no epoch was chosen: there was nobody to ask
        same = [
            (three / f"refit_{seed}" / which / "model.safetensors").read_bytes() for which in ("best", "last")
        ]
        assert same[0] == same[1] and not list((three / f"refit_{seed}").glob("valid_*"))
    # A model on all clips has seen all of them: it answers those better than the folds' models do.
    train_rows = dataset.load_rows(cache, "train", "pooled", CPU)
    right = [
        (predict_alone(run, name, train_rows).argmax(1) == train_rows.labels).mean()
        for name in ("refit_4", "fold_1")
    ]
    assert right[0] > right[1]

    shutil.rmtree(three / "refit_5")
    with pytest.raises(UserError, match="not finished .refit seed 5.: continue with train.py"):
        predict.main(["--runs", "three"])


def predict_alone(run: Run, folder: str, rows) -> np.ndarray:
    from earshot.training.checkpoint import FoldFolder
    from earshot.training.predict import predict as answers

    head = FoldFolder(run.folder / folder).load_head("last", "cpu")
    return answers(head, rows, np.arange(len(rows)), 7, torch.no_grad())


def test_stopped_at_any_moment_it_ends_the_same(three, monkeypatch):
    args = (*THREE, "--runs-folder", "stopped", "--out", "stopped.csv")
    assert stopped_every(monkeypatch, 26, *args) >= 4
    calm, found = (every_file(folder) for folder in (three, Path("stopped/three")))
    assert calm == found and len(calm) == 6 * 8 + 2 * 3 + 2
    assert Path("stopped.csv").read_bytes() == Path("submissions/submission.csv").read_bytes()


def every_file(folder: Path) -> dict[str, bytes]:
    return (
        contents(folder)
        | {
            p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.glob("refit_*/*/model.safetensors")
        }
        | {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.glob("refit_*/best/head.json")}
    )


def test_killed_while_a_model_on_all_clips_is_trained(three):
    args = (*THREE, "--runs-folder", "killed", "--out", "killed.csv")
    run = Path("killed/three").absolute()
    kill_when(
        "train.py",
        *args,
        "--save-every",
        "0",
        cwd=Path.cwd(),
        ready=lambda: (run / "refit_4" / "last" / "optimizer.safetensors").exists(),
    )
    assert not (run / "refit_5").exists()
    train.main(list(args))
    assert every_file(three) == every_file(run)
    (run / "refit_4" / "best" / "model.safetensors").write_bytes(b"")  # and damage
    train.main(list(args))
    shutil.rmtree(run / "refit_4" / "best.damaged")
    assert (
        every_file(three) == every_file(run)
        and "refit_4/best.damaged" in (run / "training_log.txt").read_text()
    )


def test_an_earlier_sessions_run_is_taken_whole(three, capsys):
    shutil.rmtree("submissions")
    shutil.move("runs", "earlier")
    train.main([*THREE, "--continue-from", "earlier"])
    said = capsys.readouterr().out
    assert (
        "copied from an earlier session" in said
        and "finished already: fold 1, 2, 3, fold 1 seed 5" in said
        and "  epoch " not in said
    )
    assert every_file(Path("earlier/three")) == every_file(Path("runs/three"))


def test_more_seeds_are_another_run(three, monkeypatch):
    with pytest.raises(UserError, match="training.seeds: 2 there, 3 here"):
        train.main([*MLP, "--seed", "4", "--seeds", "3", "--refit", "--name", "three"])
    for wrong in (["--seeds", "0"], ["--snapshots", "2", "--ema", "0.9"]):
        with pytest.raises(UserError, match=wrong[0]):
            train.main([*MLP, *wrong])


@pytest.mark.parametrize("count", [1, 3, 9])
def test_snapshots_are_the_mean_of_the_last_epochs_weights(tmp_path, count, monkeypatch):
    monkeypatch.setattr(progress, "QUICK", 0.0)  # a line per epoch
    settings = replace(BUSY, snapshots=count)
    made, ends = fitter(tmp_path / "whole", settings, dropout=0.5), []

    def said(line: str) -> None:
        ends.append({name: tensor.clone() for name, tensor in made.head.state_dict().items()})

    assert made.fit(said, NEVER, 0) and len(ends) == 5
    last = outcome(tmp_path / "whole")[0]
    for name, value in last.items():
        wanted = torch.stack([end[name] for end in ends[-count:]]).mean(0)
        torch.testing.assert_close(value, wanted)
    plain = fitter(tmp_path / "plain", replace(settings, snapshots=0), dropout=0.5)
    assert plain.fit(str, NEVER, 0)
    for name, value in plain.head.state_dict().items():  # what is trained does not know of it
        assert torch.equal(value, made.head.state_dict()[name]) and (
            count > 1 or torch.equal(value, last[name])
        )
    asked = made.steps + 1
    for stop in (2, 3 * asked - 1, 3 * asked, 4 * asked + 1):
        folder = tmp_path / str(stop)
        assert not fitter(folder, settings, dropout=0.5).fit(str, StopsAt(stop), 0)
        assert fitter(folder, settings, dropout=0.5).fit(str, NEVER, 0)
        whole, found = outcome(tmp_path / "whole"), outcome(folder)
        assert found[2:] == whole[2:]
        pairs = zip(found[:2], whole[:2], strict=True)
        assert all(torch.equal(one[name], other[name]) for one, other in pairs for name in other)


def test_a_hold_out_score_of_the_folds_is_not_that_of_the_refit(tmp_path):
    from types import SimpleNamespace

    from earshot.training import run_scores

    rows = SimpleNamespace(truth=np.array([0, 1]), multilabel=False)
    run = SimpleNamespace(folder=tmp_path, classes=["a", "b"], list_finished_folds=lambda: [0, 1], log=print)
    good, bad = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.1, 0.9], [0.8, 0.2]])
    assert run_scores.score_holdout(run, rows, lambda: good)["accuracy"] == 1
    assert run_scores.score_holdout(run, rows, lambda: bad, True)["accuracy"] == 0
    assert run_scores.score_holdout(run, rows, lambda: pytest.fail("scored twice"), True)["refit"] is True
    assert "models on all labelled clips" in (tmp_path / "test_report.txt").read_text()


def test_parts_in_order_and_in_words():
    found = list_slots({"seed": 3, "seeds": 2, "refit": True}, [1, 4])
    assert [part.folder for part in found] == [
        "fold_1",
        "fold_4",
        "fold_1_seed4",
        "fold_4_seed4",
        "refit_3",
        "refit_4",
    ]
    assert format_slots(found) == "fold 1, 4, fold 1 seed 4, fold 4 seed 4, refit seed 3, refit seed 4"
    assert [part.folder for part in list_slots({}, [0, 1])] == ["fold_0", "fold_1"] and format_slots([]) == ""
