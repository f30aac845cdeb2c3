"""Windows of long clips: which an epoch draws, how a prediction pools them; the focal loss; metrics that are
minimised."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import read_csv, tone
from test_dataset import with_copies
from test_fitter import BUSY, CPU, NEVER, StopsAt, fitter, outcome
from torch import nn

import get_features
import models
import train
from earshot.core.config import TrainingFlags
from earshot.core.device import choose, get_autocast
from earshot.core.errors import UserError
from earshot.core.fingerprint import to_record
from earshot.features.cache import Cache
from earshot.training import dataset, metrics, progress, window_pooling
from earshot.training.checkpoint import FoldFolder
from earshot.training.loss import Criterion, balance_classes
from earshot.training.predict import predict
from earshot.training.run import Run
from earshot.training.trainer import Fold, Trainer


class One(models.Head):
    """A linear layer on the one value of a row."""

    def __init__(self):
        super().__init__()
        self.config, self.fc = {"name": "one", "num_classes": 3}, nn.Linear(1, 3)

    def forward(self, x, mask=None):
        return self.fc(x.flatten(1))


# --- pooling


def by_hand(logits: np.ndarray, how: str, multilabel: bool) -> np.ndarray:
    def shares(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x)) if multilabel else np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    if how == "probability":
        return shares(logits).mean(0)
    best = -np.sort(-logits, axis=0)[: {"max": 1, "top3": 3}.get(how)]
    return shares(best.mean(0))


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("how", ["mean", "probability", "max", "top3"])
def test_pools_are_what_they_say(how: str, multilabel: bool) -> None:
    random = np.random.default_rng(5)
    clip = random.permutation(np.repeat([0, 1, 3], [7, 2, 1]))  # clip 2 has no window, 1 fewer than three
    logits = random.normal(size=(10, 4)).round(1)  # ties
    found = window_pooling.pool_logits(torch.from_numpy(logits), torch.from_numpy(clip), 5, how, multilabel)
    assert found[[2, 4]].isnan().all() and found.shape == (5, 4)
    for one in (0, 1, 3):
        np.testing.assert_allclose(found[one], by_hand(logits[clip == one], how, multilabel), rtol=1e-12)


def test_the_mean_of_the_logits_is_the_geometric_mean_of_one_labels_probabilities() -> None:
    logits, clip = (
        torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 0, 0, 1, 1, 0]),
    )
    found = window_pooling.pool_logits(logits, clip, 2)
    product = logits.softmax(1)[clip == 0].log().mean(0).exp()
    torch.testing.assert_close(found[0], product / product.sum())
    assert torch.equal(
        window_pooling.pool_logits(logits[:0], clip[:0], 2, "max").isnan(), torch.ones(2, 3, dtype=torch.bool)
    )


# --- drawing


def test_at_most_so_many_windows_of_a_clip_each_as_likely() -> None:
    clip = np.repeat(np.arange(5), [6, 1, 3, 2, 6])
    rows = np.flatnonzero(clip != 3)
    assert window_pooling.sample_windows(rows, clip, None, 0) is rows
    seen = np.zeros(len(clip))
    for seed in range(600):
        found = window_pooling.sample_windows(rows, clip, 2, seed)
        assert (np.diff(found) > 0).all() and np.bincount(clip[found], minlength=5).tolist() == [
            2,
            1,
            2,
            0,
            2,
        ]
        seen[found] += 1
    assert np.array_equal(
        window_pooling.sample_windows(rows, clip, 2, 7), window_pooling.sample_windows(rows, clip, 2, 7)
    )
    np.testing.assert_allclose(seen[clip == 0] / 600, 1 / 3, atol=0.08)
    np.testing.assert_allclose(seen[clip == 2] / 600, 2 / 3, atol=0.08)
    mixed = np.random.default_rng(0).permutation(rows)
    assert (
        len(window_pooling.sample_windows(mixed, clip, 3, 1)) == 3 + 1 + 3 + 3
        and len(window_pooling.sample_windows(rows[:0], clip, 3, 1)) == 0
    )


def test_an_epoch_trains_on_the_windows_that_it_draws(tmp_path: Path) -> None:
    """One window of every clip an epoch, steps and class weights by them, all windows in the validation."""
    made = fitter(tmp_path, TrainingFlags(windows=1, batch_size=8, epochs=2, class_weights="balanced"))
    clips = int((np.arange(45) % 5 != 1).sum())
    assert len(made.train_rows) > clips and made.steps == -(-clips // 8)
    seen, step = [], made.step
    made.step = lambda epoch, number, batch: (seen.append(batch.rows), step(epoch, number, batch))[1]
    epochs = []
    assert made.fit(str, NEVER, 0) and len(seen) == 2 * made.steps
    for epoch in (1, 2):
        rows = np.concatenate(seen[(epoch - 1) * made.steps : epoch * made.steps])
        assert sorted(made.rows.clip[rows]) == np.flatnonzero(np.arange(45) % 5 != 1).tolist()
        epochs.append(sorted(rows))
    assert epochs[0] != epochs[1]
    np.testing.assert_allclose(made.criterion.weights, balance_classes(made.rows, np.array(epochs[0])))
    assert made.rows_per_epoch == clips


def test_copies_are_drawn_from_as_well(tmp_path: Path) -> None:
    rows = with_copies([-1] * 8, [1.0] * 8)
    rows.clip_of_row = np.array([0, 1, 2, 3] + [0, 0, 1, 1, 2, 2, 3, 3])  # two windows each
    rows.copy = np.zeros(8, dtype=int)
    valid = np.zeros(4, dtype=bool)

    made = Trainer(
        One, rows, Fold(1, 2, ~valid, valid), TrainingFlags(windows=1), 3, FoldFolder(tmp_path), CPU
    )
    for epoch in (1, 2, 3):
        found = made._sample_windows(made.rows.pick_epoch_rows(made.train_rows, epoch), epoch)
        assert sorted(rows.clip_of_row[found]) == [0, 1, 2, 3] and (found >= 4).any()


def test_a_stopped_fold_of_drawn_windows_ends_as_if_never_stopped(tmp_path: Path) -> None:
    settings = replace(BUSY, windows=1, pool="top3", loss="focal", epochs=3)
    assert fitter(tmp_path / "whole", settings, dropout=0.5).fit(str, NEVER, 0)
    whole = outcome(tmp_path / "whole")
    for stop in (2, 3, 1, 6):
        assert not fitter(tmp_path / "cut", settings, dropout=0.5).fit(str, StopsAt(stop), 0)
    assert fitter(tmp_path / "cut", settings, dropout=0.5).fit(str, NEVER, 0)
    found = outcome(tmp_path / "cut")
    assert found[2:] == whole[2:] and all(torch.equal(found[0][name], whole[0][name]) for name in found[0])
    fitter(tmp_path / "all", replace(settings, windows=None), dropout=0.5).fit(str, NEVER, 0)
    assert not torch.equal(outcome(tmp_path / "all")[0]["inner.weight"], whole[0]["inner.weight"])


# --- the focal loss


def test_the_focal_loss_of_several_labels_is_torchvisions() -> None:
    from torchvision.ops import sigmoid_focal_loss

    random = torch.Generator().manual_seed(0)
    logits, targets = (
        3 * torch.randn(7, 4, generator=random),
        (torch.rand(7, 4, generator=random) < 0.4).float(),
    )
    want = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2, reduction="mean")
    found = Criterion(True, 0.0, None, True)
    torch.testing.assert_close(found(logits, targets), want)
    halves = [found(logits[part], targets[part], 7) for part in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(sum(halves), want)
    weighted = Criterion(True, 0.0, torch.tensor([1.0, 2.0, 5.0, 1.0]), True)(logits, targets)
    each = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2) * torch.where(
        targets == 1, torch.tensor([1.0, 2, 5, 1]), 1.0
    )
    torch.testing.assert_close(weighted, each.mean())
    shares = torch.rand(7, 4, generator=random)
    assert Criterion(True, 0.1, None, True)(shares.logit(), shares) < 1e-6, (
        "a share that is met costs nothing"
    )


def test_the_focal_loss_of_one_label() -> None:
    logits, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3
    p = logits.softmax(1)[torch.arange(9), labels]
    found = Criterion(False, 0.0, None, True)(logits, nn.functional.one_hot(labels).float())
    with pytest.raises(UserError, match="the head's forward returns .*, expected .*clips, classes"):
        Criterion(False, 0.0, None)(logits[:, :-1], nn.functional.one_hot(labels).float())
    torch.testing.assert_close(found, (-p.log() * (1 - p) ** 2).mean())
    weights = torch.tensor([1.0, 2.0, 4.0])
    found = Criterion(False, 0.0, weights, True)(logits, nn.functional.one_hot(labels).float())
    torch.testing.assert_close(
        found, (weights[labels] * -p.log() * (1 - p) ** 2).sum() / weights[labels].sum()
    )


# --- metrics that are minimised


def test_the_least_log_loss_is_the_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "fold": 1,
            "epoch": n + 1,
            "lr": 0.1,
            "train_loss": 1.0,
            "valid_loss": loss,
            "f1_macro": f1,
            "seconds": 0.1,
        }
        for n, (loss, f1) in enumerate([(0.5, 0.7), (0.3, 0.6), (0.4, 0.9)])
    ]
    monkeypatch.setattr(Trainer, "_shuffle_epoch", lambda self, number: [])
    monkeypatch.setattr(Trainer, "_end_epoch", lambda self, number, batches, began: rows[number - 1])
    monkeypatch.setattr(progress, "QUICK", 0.0)  # a line per epoch
    lines: list[str] = []
    assert fitter(tmp_path, TrainingFlags(epochs=3, metric="log_loss")).fit(lines.append, NEVER, 0)
    assert [("*" in line, "log_loss 0.3000" in line) for line in lines] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    assert '"log_loss": 0.3' in (tmp_path / "best" / "head.json").read_text()
    assert metrics.to_gain("log_loss", 0.3) == -0.3 and metrics.to_gain("f1_macro", 0.3) == 0.3


# --- the line


def recordings(folder: Path, train: int = 24, subm: int = 4) -> Path:
    """Clips of 2.5 s of noise with a tone of one or two kinds in some second of it, their labels in a
    list."""
    rows = []
    for part, count in (("audio_train", train), ("audio_test", subm)):
        (folder / part).mkdir(parents=True)
        for index in range(count):
            random = np.random.default_rng([index, count])
            wave, kinds = (
                0.05 * random.standard_normal(40000),
                [index % 3] if index % 2 else [index % 3, (index + 1) % 3],
            )
            for second, kind in zip(random.permutation([0.0, 1.5]), kinds, strict=False):
                wave[int(16000 * second) :][:16000] += tone(kind, index)
            soundfile.write(folder / part / f"{part[6]}{index}.wav", wave, 16000)
            rows.append([f"{part[6]}{index}.wav", ";".join(f"tone{kind}" for kind in kinds)])
    sample = [["fname", "tone0", "tone1", "tone2"], *([row[0], 0, 0, 0] for row in rows[train:])]
    for name, content in (
        ("train.csv", [["fname", "labels"], *rows[:train]]),
        ("sample_submission.csv", sample),
    ):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows(content)
    return folder


def test_the_pool_of_a_run_is_that_of_its_epochs_folds_and_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    get_features.main(
        [
            "--competition",
            str(recordings(tmp_path / "long")),
            "--extractor",
            "logmel",
            "--seconds",
            "1",
            "--hop",
            "0.5",
            "--task",
            "multilabel",
        ]
    )
    args = ["--recipe", "linear", "--epochs", "3", "--folds", "2", "--lr", "0.1", "--metric", "roc_auc_macro"]
    args += ["--device", "cpu"]
    train.main([*args, "--fold", "1", "--pool", "max", "--windows", "2", "--loss", "focal", "--name", "r"])
    run, cache = Run.open(tmp_path / "runs" / "r"), Cache(tmp_path / "data" / "long" / "logmel")
    assert (run.pool, run.config["record"]["training"]["windows"]) == ("max", 2)
    oof = read_csv(run.folder / "oof_last.csv")
    p = np.array([[float(row[f"tone{kind}"]) for kind in range(3)] for row in oof])
    truth = np.array([[f"tone{kind}" in row["label"].split("|") for kind in range(3)] for row in oof]).astype(
        int
    )
    last = read_csv(run.folder / "metrics.csv")[-1]
    assert metrics.compute_scores(p, truth)["roc_auc_macro"] == pytest.approx(
        float(last["roc_auc_macro"]), abs=1e-5
    )
    assert metrics.compute_scores(p, truth)["log_loss"] == pytest.approx(float(last["valid_loss"]), abs=1e-5)

    # A clip's answer is that of its likeliest window, class by class.
    device = choose("cpu")
    rows = dataset.load_rows(cache, "subm", "mel", device)
    whose, rows.clip, rows.ids = rows.clip, np.arange(len(rows)), np.arange(len(rows))
    alone = predict(
        run.get_fold_folder(1).load_head("best", "cpu"), rows, np.arange(len(rows)), 64, get_autocast(device)
    )
    submitted = read_csv(tmp_path / "submissions" / "submission.csv")
    made = {row["fname"]: [float(row[f"tone{kind}"]) for kind in range(3)] for row in submitted}
    for index, id in enumerate(cache.split("subm")["ids"]):
        assert (whose == index).sum() == 4
        np.testing.assert_allclose(made[str(id)], alone[whose == index].max(0), atol=1e-6)

    # Settings that came later are recorded where they are changed: a run of before is continued under
    # its name.
    train.main([*args, "--fold", "1", "--name", "plain"])
    plain = Run.open(tmp_path / "runs" / "plain")
    assert plain.pool == "mean" and not {"pool", "windows", "loss"} & set(plain.config["record"]["training"])
    assert to_record(TrainingFlags(pool="top3"))["pool"] == "top3" and "pool" not in to_record(
        TrainingFlags()
    )
