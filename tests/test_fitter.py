"""One fold's training: exact on resuming, the same with less memory, its loss as torch has it, the best epoch
kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from test_dataset import made_rows
from torch import nn

import models
from earshot.core.config import TrainingFlags
from earshot.core.device import Device
from earshot.training.checkpoint import FoldFolder
from earshot.training.loss import Criterion
from earshot.training.predict import predict
from earshot.training.trainer import Fold, Trainer, get_autocast

CPU = Device("cpu", "fp32", "CPU")
NEVER = type("Never", (), {"is_over": lambda self: False})()


class Tiny(models.Head):
    """A head with dropout, and with a buffer of training statistics that must survive resuming."""

    def __init__(
        self, dropout: float = 0.0, most: int | None = None, error: type[RuntimeError] = RuntimeError
    ):
        super().__init__()
        self.config, self.most, self.error = {"name": "tiny", "num_classes": 3}, most, error
        self.inner, self.drop, self.outer = nn.Linear(12, 16), nn.Dropout(dropout), nn.Linear(16, 3)
        self.register_buffer("mean", torch.zeros(12))
        self.seen: list[int] = []
        self.adapted = 0

    def adapt(self, batches) -> None:
        self.adapted += 1
        self.mean = torch.cat([x.mean(3).flatten(1) for x, _ in batches]).mean(0)

    def forward(self, x, mask=None):
        if self.training:
            if self.most and len(x) > self.most:
                raise self.error("CUDA out of memory. Tried to allocate 20 MiB")
            self.seen.append(len(x))
        real = torch.ones(len(x), x.shape[3]) if mask is None else mask.float()
        pooled = (x * real[:, None, None]).sum(3).flatten(1) / real.sum(1, keepdim=True)
        return self.outer(self.drop(torch.tanh(self.inner(pooled - self.mean))))


class StopsAt:
    """A deadline that has passed when it is asked for the nth time."""

    def __init__(self, n: int):
        self.left = n

    def is_over(self) -> bool:
        self.left -= 1
        return self.left <= 0


def fitter(folder: Path, settings: TrainingFlags, **head) -> Trainer:
    rows = made_rows()
    valid = np.arange(45) % 5 == 1
    return Trainer(
        lambda: Tiny(**head), rows, Fold(1, 5, ~valid, valid), settings, 3, FoldFolder(folder), CPU
    )


def outcome(folder: Path) -> tuple[dict, dict, list, dict]:
    """Last weights, best weights, history without its times, and what else the state says."""
    from safetensors.torch import load_file

    last, optimizer, state = FoldFolder(folder).load_last("cpu")
    assert state["finished"] and optimizer is None
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in state["progress"].pop("history")]
    return last, load_file(folder / "best" / "model.safetensors"), history, state


BUSY = TrainingFlags(
    epochs=5,
    batch_size=8,
    lr=0.05,
    mixup=0.4,
    mixup_probability=0.6,
    time_mask=2,
    frequency_mask=2,
    time_shift=0.4,
    gain=1.0,
    label_smoothing=0.1,
    clip_grad=1.0,
    seed=5,
)


@pytest.mark.parametrize(
    "optimizer, schedule",
    [
        ("adamw", "onecycle"),
        ("adamw", "cosine"),
        ("sgd", "onecycle"),
        ("adam", "step"),
    ],
)
def test_a_stopped_fold_ends_as_if_never_stopped(tmp_path, optimizer, schedule):
    settings = replace(BUSY, optimizer=optimizer, schedule=schedule, step_epochs=2)
    lines: list[str] = []
    assert fitter(tmp_path / "whole", settings, dropout=0.5).fit(lines.append, NEVER, 3)
    whole = outcome(tmp_path / "whole")
    assert [line.split("  ")[:2] for line in lines] == [["fold 1/5", "epoch 5/5"]]
    asked = fitter(tmp_path / "steps", settings).steps + 1  # after every step, and after the epoch
    for stop in (1, asked - 1, asked, asked + 2, 3 * asked, 4 * asked + 1):
        assert not fitter(tmp_path / str(stop), settings, dropout=0.5).fit(lines.append, StopsAt(stop), 3)
        torch.manual_seed(stop)  # what else the process did must not matter
        again = fitter(tmp_path / str(stop), settings, dropout=0.5)
        assert (again.progress.epoch, again.progress.step) == divmod(stop, asked)
        assert again.head.adapted == 0, "what is resumed is not adapted anew"
        assert again.fit(lines.append, NEVER, 3)
        found = outcome(tmp_path / str(stop))
        assert found[2:] == whole[2:]
        for one, other in zip(found[:2], whole[:2], strict=True):
            assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert whole[0]["mean"].abs().sum() > 0 and not torch.equal(
        whole[0]["inner.weight"], whole[1]["inner.weight"]
    )


def test_another_seed_or_fold_is_another_outcome(tmp_path):
    weights = []
    for number, seed in ((1, 0), (1, 1), (2, 0)):
        made = fitter(tmp_path / f"{number}{seed}", TrainingFlags(epochs=1, seed=seed))
        made.fold.number = number
        made.fit(str, NEVER, 0)
        weights.append(made.head.state_dict()["outer.weight"].clone())
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("error", [RuntimeError, torch.cuda.OutOfMemoryError])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_less_memory_gives_the_same_weights(tmp_path, capsys, error, weights):
    settings = TrainingFlags(
        epochs=3, batch_size=11, lr=0.02, mixup=0.4, label_smoothing=0.1, class_weights=weights
    )
    whole, small = fitter(tmp_path / "a", settings), fitter(tmp_path / "b", settings, most=4, error=error)
    for made in (whole, small):  # classes of unequal frequency, so that weights weigh
        made.rows.labels = np.where(np.arange(45) % 7 < 4, 0, made.rows.labels)
        made.rows.targets = np.eye(3, dtype=np.float32)[made.rows.labels]
        made.criterion = Criterion.from_rows(made.rows, made.train_rows, made.settings)
        made.fit(str, NEVER, 0)
    assert max(small.head.seen) == small.micro == 3 and max(whole.head.seen) == 10
    assert sum(small.head.seen) == sum(whole.head.seen)
    said = capsys.readouterr().out
    assert (
        said.count("out of memory:") == 2
        and "3 rows per pass" in said
        and "effective batch size stays" in said
    )
    for name, value in whole.head.state_dict().items():
        torch.testing.assert_close(small.head.state_dict()[name], value, atol=1e-6, rtol=1e-6)


def test_an_error_that_is_no_lack_of_memory_is_raised(tmp_path):
    made = fitter(tmp_path, TrainingFlags())
    made.head.forward = lambda x, mask: (_ for _ in ()).throw(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        made.fit(str, NEVER, 0)
    with pytest.raises(RuntimeError, match="out of memory"):
        made.head.forward = lambda x, mask: (_ for _ in ()).throw(RuntimeError("CUDA out of memory"))
        made.fit(str, NEVER, 0)
    assert made.micro == 1, "tried down to a single row"


def test_loss_is_torchs_cross_entropy(tmp_path):
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(40, 3)).astype(np.float32))
    labels = torch.from_numpy(random.integers(0, 3, 40))
    for smoothing in (0.0, 0.2):
        made = fitter(tmp_path / str(smoothing), TrainingFlags(label_smoothing=smoothing))
        want = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        torch.testing.assert_close(
            made.criterion(logits, made.criterion.smooth_targets(torch.eye(3)[labels])), want
        )
    made = fitter(tmp_path / "weighted", TrainingFlags(class_weights="balanced"))
    made.rows.labels = np.array([0] * 30 + [1] * 10 + [2] * 5)
    made.rows.targets = np.eye(3, dtype=np.float32)[made.rows.labels]
    made.criterion = Criterion.from_rows(made.rows, made.train_rows, made.settings)
    # by rows: a long clip counts as often as it is seen
    learnt = made.rows.labels[made.rows.clip[made.train_rows]]
    weights = compute_class_weight("balanced", classes=np.arange(3), y=learnt)
    np.testing.assert_allclose(made.criterion.weights.numpy(), weights, rtol=1e-6)
    want = nn.functional.cross_entropy(logits, labels, weight=torch.tensor(weights, dtype=torch.float32))
    torch.testing.assert_close(made.criterion(logits, torch.eye(3)[labels]), want)
    assert (want - nn.functional.cross_entropy(logits, labels)).abs() > 1e-3
    # a class that this fold does not train on
    made.rows.targets = np.eye(3, dtype=np.float32)[[0] * 30 + [1] * 15]
    weights = Criterion.from_rows(made.rows, made.train_rows, made.settings).weights
    assert weights.isfinite().all() and weights[2] == 0 and (weights[:2] > 0).all(), (
        "smoothing's share of it must not count"
    )


@pytest.mark.parametrize(
    "script, best",
    [
        ([(0.8, 0.5), (0.8, 0.4), (0.8, 0.45), (0.7, 0.1)], 2),  # the metric ties: the loss decides
        ([(0.8, 0.5), (0.9, 0.9), (0.8, 0.1)], 2),  # the metric first
        ([(0.8, 0.5), (0.8, 0.5), (0.8, 0.5)], 1),  # all equal: the first
    ],
)
@pytest.mark.parametrize("stop", [None, 1, 2])
def test_the_best_epoch_is_kept(tmp_path, monkeypatch, script, best, stop):
    def end_epoch(self, number, batches, began):
        f1, loss = script[number - 1]
        with torch.no_grad():
            self.head.outer.bias.fill_(number)
        return {
            "fold": 1,
            "epoch": number,
            "lr": 0.1,
            "train_loss": 1.0,
            "valid_loss": loss,
            "f1_macro": f1,
            "seconds": 5.0,
        }

    monkeypatch.setattr(Trainer, "_shuffle_epoch", lambda self, number: [])
    monkeypatch.setattr(Trainer, "_end_epoch", end_epoch)
    settings, lines = TrainingFlags(epochs=len(script)), []
    if stop:
        assert not fitter(tmp_path, settings).fit(lines.append, StopsAt(stop), 0)
    assert fitter(tmp_path, settings).fit(lines.append, NEVER, 0)
    last, kept, history, state = outcome(tmp_path)
    assert (kept["outer.bias"] == best).all() and (last["outer.bias"] == len(script)).all()
    assert state["progress"]["best_epoch"] == best and [row["epoch"] for row in history] == list(
        range(1, len(script) + 1)
    )
    assert "*" in lines[best - 1] and not any("*" in line for line in lines[best:])
    monkeypatch.setattr(models, "rebuild", lambda config: Tiny())
    head = FoldFolder(tmp_path).load_head("best", "cpu")
    assert (head.outer.bias == best).all()


def test_predictions_are_of_clips_and_of_no_other_fold(tmp_path):
    made = fitter(tmp_path, TrainingFlags())
    found = made.predict_validation()
    assert found.shape == (45, 3) and np.isnan(found[~made.fold.valid]).all()
    np.testing.assert_allclose(found[made.fold.valid].sum(1), 1, atol=1e-6)
    x, mask = made.rows.load_batch(np.flatnonzero(made.rows.clip == 6))  # a clip of the fold with two windows
    assert len(x) == 2 and made.fold.valid[6]
    with torch.no_grad():
        np.testing.assert_allclose(found[6], made.head(x, mask).mean(0).softmax(0), atol=1e-6)
    single = predict(made.head, made.rows, made.valid_rows, 1, get_autocast(CPU))
    np.testing.assert_allclose(single, found, atol=1e-6)
