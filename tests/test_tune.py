"""`train.py --tune N`: trials in the run's folder, taken up again after a kill, the winner trained as
usual."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import read_csv, script
from made_cache import make
from test_restart import contents, kill_when

import train
from earshot.core.errors import UserError
from earshot.core.files import read_json

RECIPE = "head: {name: mlp, hidden: [16]}\ntraining: {epochs: 6, batch_size: 16, lr: 3e-3}\n"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE)
    make(Path("data/c/one"), {"pooled": (12, 1, 1)})
    return tmp_path


@pytest.mark.slow
def test_killed_in_a_trial_and_run_again(work: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("optuna")
    args = ["--recipe", "small.yaml", "--tune", "3", "--device", "cpu", "--name", "t"]
    said = script("train.py", *args, "--runs-folder", "calm", "--out", "calm.csv", cwd=work).stdout
    trials = [line for line in said.splitlines() if line.startswith("trial ")]
    assert len(trials) == 3 and "lr 0.003" in trials[0] and "epochs 6" in trials[0], (
        "the recipe's own settings come first"
    )
    assert (
        len({line.split("  ", 1)[1] for line in trials}) == 3
        and "scores on these folds will be optimistic" in said
        and "head.dropout" in said
    )
    assert "the scores of these folds are optimistic" in read_json(Path("calm/t/scores.json"))["tuned"]

    run = work / "runs" / "t"
    kill_when(
        "train.py",
        *args,
        cwd=work,
        ready=lambda: (
            len(list(run.glob("trial_*/fold_1/last"))) > 0
            and "trial 1/3" in (run / "training_log.txt").read_text()
        ),
    )
    script("train.py", *args, cwd=work)
    names = ("oof_last.csv", "fold_*/last/model.safetensors")
    assert contents(work / "calm" / "t", *names) == contents(run, *names)
    assert yaml.safe_load((run / "config.yaml").read_text()) | {"x": 0} == yaml.safe_load(
        Path("calm/t/config.yaml").read_text()
    ) | {"x": 0}
    assert not list(run.glob("trial_*")) and (run / "tuning.db").exists()
    assert Path("calm.csv").read_bytes() == Path("submissions/submission.csv").read_bytes()
    # Again: nothing is tried anew, nothing trained.
    train.main(args)
    assert not re.search(r" epoch +\d", capsys.readouterr().out) and len(read_csv(run / "oof_last.csv")) == 60


def test_sklearn_heads_and_trials_that_fail(work: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("optuna")
    from earshot.search import tune

    train.main(["--recipe", "svm", "--tune", "2", "--device", "cpu", "--name", "s"])
    said = capsys.readouterr().out
    assert (
        "head.c " in said and "head.gamma " in said and "lr" not in said.split("trial 1/2")[1].splitlines()[0]
    )
    monkeypatch.setattr(
        tune, "_try", lambda *args: (_ for _ in ()).throw(UserError("the loss is not a number"))
    )
    with pytest.raises(UserError, match="no trial could be trained to its end"):
        train.main(["--recipe", "small.yaml", "--tune", "2", "--device", "cpu", "--name", "u"])


def test_without_optuna_it_is_one_line(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="--tune needs Optuna: pip install optuna"):
        train.main(["--recipe", "small.yaml", "--tune", "2", "--device", "cpu", "--name", "t"])
    train.main(["--recipe", "small.yaml", "--device", "cpu", "--name", "t"])
