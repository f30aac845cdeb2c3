"""Checkpoints that were harmed are noticed, named, set aside and trained again to the same bytes; what is no
number is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from test_dataset import made_rows
from test_fitter import CPU, NEVER, StopsAt, Tiny

from earshot.core import checksums
from earshot.core.config import TrainingFlags
from earshot.core.errors import UserError
from earshot.training import cross_validation, run_scores
from earshot.training.run import Run
from earshot.training.trainer import Fold, Trainer

SETTINGS = TrainingFlags(epochs=4, batch_size=8, lr=0.02, mixup=0.4, seed=3, ema=0.5)
NUMBERS = np.arange(45) % 2
RECORD = {"classes": ["a", "b", "c"], "training": {"metric": "f1_macro", "tta": 1}}
NAMES = ("fold_*/best/*", "fold_*/last/*", "fold_*/valid_*", "oof*.csv")


def train(folder: Path, deadline=NEVER, save_every: float = 10.0) -> Run:
    """A run of two folds, or as much of it as the deadline allows."""
    rows, run = made_rows(), Run.begin(folder, RECORD, {})
    job = SimpleNamespace(
        rows=rows,
        numbers=NUMBERS,
        settings=SETTINGS,
        head_spec=SimpleNamespace(build=lambda: Tiny(dropout=0.5)),
        device=CPU,
        devices=[CPU],
        threads=None,
        machine=SimpleNamespace(save_every=save_every),
        cluster=None,
        check_disk_space=lambda *counts: "",
    )
    with mock.patch("models.rebuild", lambda config: Tiny()):
        done = cross_validation.train_folds(job, run, [0, 1], deadline)
    if done:
        run_scores.summarise_run(run, rows, NUMBERS)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that has to come out the same; of a state all but what epochs took."""
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes() for pattern in NAMES for p in folder.glob(pattern)
    }
    for name in [name for name in found if name.endswith("state.json")]:
        state = checksums.read(folder / name)
        state["progress"]["history"] = [
            {k: v for k, v in row.items() if k != "seconds"} for row in state["progress"]["history"]
        ]
        found[name] = repr(state).encode()
    return found


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calm") / "run"
    train(folder)
    return folder


@pytest.fixture(scope="module")
def halfway(tmp_path_factory) -> Path:
    """Fold 0 done, fold 1 in the middle of its third epoch."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    for count in range(20, 60):
        shutil.rmtree(folder, ignore_errors=True)
        train(folder, StopsAt(count))
        state = folder / "fold_1" / "last" / "state.json"
        if (
            state.exists()
            and checksums.read(state)["progress"]["epoch"] == 2
            and checksums.read(state)["progress"]["step"]
        ):
            return folder
    raise AssertionError("no stop fell into the third epoch of fold 1")


def harm(path: Path, how: str) -> None:
    """Damage a file."""
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    else:
        path.write_bytes(data[: {"empty": 0, "cut": len(data) * 2 // 3}[how]])


@pytest.mark.parametrize("how", ["missing", "flipped", "empty", "cut"])
@pytest.mark.parametrize(
    "name",
    [
        "last/model.safetensors",
        "last/optimizer.safetensors",
        "last/state.json",
        "best/model.safetensors",
        "best/head.json",
    ],
)
@pytest.mark.parametrize("stage", ["halfway", "finished"])
def test_a_damaged_checkpoint_is_set_aside_and_trained_again(
    tmp_path, calm, halfway, stage, name, how, capsys
):
    run, fold = tmp_path / "run", "fold_1"
    shutil.copytree(halfway if stage == "halfway" else calm, run)
    if not (run / fold / name).exists():
        assert stage == "finished" and "optimizer" in name
        return
    harm(run / fold / name, how)
    if stage == "finished":  # a reader refuses it and says how to fix it
        with pytest.raises(UserError, match="run train.py again") as error:
            Run.open(run).get_fold_folder(1).load_head("best" if "best" in name else "last", "cpu")
        assert name.rpartition("/")[2] in str(error.value) and "\n" not in str(error.value)
    train(run)
    said = [line for line in capsys.readouterr().out.splitlines() if "set aside" in line]
    assert len(said) == 1 and name.rpartition("/")[2] in said[0] and "fold_1" in said[0]
    assert (run / fold / f"{name.split('/')[0]}.damaged").is_dir()
    assert contents(run) == contents(calm)


@pytest.mark.parametrize("stage", ["halfway", "finished"])
def test_a_best_checkpoint_that_is_gone_is_trained_again(tmp_path, calm, halfway, stage, capsys):
    run = tmp_path / "run"
    shutil.copytree(halfway if stage == "halfway" else calm, run)
    shutil.rmtree(run / "fold_1" / "best")
    train(run)
    assert "best is missing: this fold is trained from its start" in capsys.readouterr().out
    assert contents(run) == contents(calm)


@pytest.mark.parametrize("how", ["missing", "flipped", "empty", "cut"])
@pytest.mark.parametrize("name", ["valid_best.npy", "valid_last.json"])
def test_damaged_predictions_are_made_again(tmp_path, calm, name, how):
    run = tmp_path / "run"
    shutil.copytree(calm, run)
    harm(run / "fold_0" / name, how)
    train(run)
    assert contents(run) == contents(calm) and not list(run.rglob("*.damaged"))


def test_a_checkpoint_after_every_step_changes_nothing(tmp_path, calm, monkeypatch):
    saves = []
    whole = Trainer._save
    monkeypatch.setattr(
        Trainer,
        "_save",
        lambda self, finished: (
            saves.append((self.progress.epoch, self.progress.step)),
            whole(self, finished),
        ),
    )
    train(tmp_path / "run", save_every=0)
    assert contents(tmp_path / "run") == contents(calm)
    assert {step for _, step in saves} >= {1, 2} and len(saves) >= 2 * 4 * 2


def test_what_a_kill_leaves_is_cleared_away(tmp_path, calm, halfway):
    run = tmp_path / "run"
    shutil.copytree(halfway, run)
    for name in ("last.new", "best.new", "best.old"):
        (run / "fold_1" / name).mkdir()
        (run / "fold_1" / name / "model.safetensors.tmp").write_text("half")
    (run / "oof.csv.tmp").write_text("half")
    with open(run / "training_log.txt", "a") as file:
        file.write("half a li")
    train(run)
    assert contents(run) == contents(calm)
    assert not [p for p in run.rglob("*") if p.suffix in (".tmp", ".new", ".old")]
    assert "half a li\n" in (run / "training_log.txt").read_text()


@pytest.mark.parametrize("stage", ["halfway", "finished"])
def test_checkpoints_of_a_version_without_checksums(tmp_path, calm, halfway, stage, capsys):
    run = tmp_path / "run"
    shutil.copytree(halfway if stage == "halfway" else calm, run)
    path = run / "fold_1" / "last" / "state.json"
    path.write_text('{"progress": {}, "finished": true}')
    train(run)
    assert "older version" in capsys.readouterr().out and contents(run) == contents(calm)


def fitter(folder: Path, build, **settings) -> Trainer:
    valid, run = NUMBERS == 0, Run.begin(folder, RECORD, {})
    return Trainer(
        build,
        made_rows(),
        Fold(0, 2, ~valid, valid),
        TrainingFlags(**{"epochs": 3, "batch_size": 8, **settings}),
        3,
        run.get_fold_folder(0),
        CPU,
    )


def test_a_loss_that_is_no_number_names_the_batch_and_keeps_the_last_good_checkpoint(tmp_path):
    class Breaks(Tiny):
        calls = 0

        def forward(self, x, mask=None):
            if self.training:
                Breaks.calls += 1
            return super().forward(x, mask) * (float("nan") if self.training and Breaks.calls == 6 else 1)

    made = fitter(tmp_path, Breaks)
    said = r"fold 0, epoch 2, batch \d of \d: the loss is not a number; its clips: \w.*--clip-grad"
    with pytest.raises(UserError, match=said) as error:
        made.fit(str, NEVER, 0, save_every=0)
    assert "\n" not in str(error.value) and any(str(id) in str(error.value) for id in made.rows.ids)
    again = fitter(tmp_path, Tiny)
    assert (again.progress.epoch, again.progress.step) == (1, 6 - 1 - made.steps)
    assert all(value.isfinite().all() for value in again.head.state_dict().values())
    assert again.fit(str, NEVER, 0)


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    made = fitter(tmp_path, Tiny)
    step = Trainer.step

    def poisoned(self, epoch, number, batch):
        found = step(self, epoch, number, batch)
        if (epoch, number) == (1, 2):
            with torch.no_grad():
                self.head.outer.bias[0] = float("inf")
        return found

    made.step = poisoned.__get__(made)
    with pytest.raises(UserError, match="epoch 1: weights became NaN or infinite"):
        made.fit(str, NEVER, 0, save_every=0)
    assert fitter(tmp_path, Tiny).progress.step == 2


def test_features_that_are_no_numbers_are_blamed_on_the_cache(tmp_path):
    made = fitter(tmp_path, Tiny)
    row = int(made.train_rows[5])
    made.rows.views[made.rows.view][row, 0, 0, 0] = float("nan")
    name = str(made.rows.ids[made.rows.clip[row]])
    with pytest.raises(UserError, match=f"cached features of {name} are not finite"):
        made.fit(str, NEVER, 0)


def test_a_prediction_that_is_no_number_names_its_clips(tmp_path):
    class Breaks(Tiny):
        def forward(self, x, mask=None):
            found = super().forward(x, mask)
            return found if self.training else found * float("nan")

    with pytest.raises(UserError, match="fold 0, epoch 1: the prediction is not a number for .* and 18 more"):
        fitter(tmp_path, Breaks).fit(str, NEVER, 0)
