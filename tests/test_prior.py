"""Heads start from the class prior of the fold's training clips, and a head on many rare classes ends where
logistic regression does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import made_cache
import numpy as np
import pytest
import torch
from conftest import script
from sklearn.dummy import DummyClassifier
from test_dataset import made_rows
from test_fitter import BUSY, CPU, NEVER, StopsAt, outcome
from torch import nn

import models
from earshot.core.config import TrainingFlags
from earshot.training.checkpoint import FoldFolder
from earshot.training.loss import Criterion, compute_prior_logits
from earshot.training.trainer import Fold, Trainer

# of heads whose defaults are too large to build in a test
SMALL = {
    "ast": {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate": 32},
    "attentive": {"dim": 48},
    "audio_cnn": {"channels": [16, 16], "blocks": [1, 1]},
    "causal_lm": {"channels": 16, "blocks": 2},
    "convnext1d": {"stem": 16, "channels": [16], "blocks": 1},
    "convnext_ggcn": {"depths": [1, 1], "dims": [8, 16], "attention": 16, "graph": 16, "hidden": [7]},
    "crnn": {"channels": [16, 16], "hidden": 8},
    "ensemble": {"members": [{"name": "linear"}, {"name": "mlp", "hidden": [7, 7]}]},
    "functionals": {"hidden": 16},
    "genre_cnn": {"pool": "gap", "channels": [16, 16], "hidden": [7]},
    "hifigan": {"channels": [7, 7, 7], "strides": [2, 2], "groups": [1, 1], "kernels": [7, 9, 5, 3]},
    "inception_transformer": {"widths": [4, 8], "reduce": 8, "d_model": 7, "layers": 1, "heads": 1},
    "mlp": {"hidden": [7, 7]},  # as wide as the output
    "timm": {"backbone": "test_resnet", "weights": None},
}
SHAPES = {
    "vector": (24, 1, 1),
    "sequence": (24, 1, 20),
    "grid": (24, 4, 20),
    "spectrogram": (1, 32, 40),
    "waveform": (1, 1, 4000),
}


def skewed(multilabel: bool = False, weights: bool = False):
    """(rows, which): 3 classes with 30, 10 and 0 of 40 training clips, the rest of them in other clips."""
    rows = made_rows()
    labels = np.repeat([0, 1, 2], [30, 10, 5])
    rows.labels, rows.targets = labels, np.eye(3, dtype=np.float32)[labels]
    rows.multilabel = multilabel
    if weights:
        rows.weights = np.where(labels == 1, 3.0, 1.0).astype(np.float32)
    return rows, np.unique(rows.clip, return_index=True)[1][:40]


def prior(multilabel: bool = False, weights: bool = False, **settings) -> np.ndarray:
    rows, which = skewed(multilabel, weights)
    criterion = Criterion.from_rows(rows, which, TrainingFlags(**settings))
    logits = torch.from_numpy(compute_prior_logits(rows, which, criterion)).double()
    return (logits.sigmoid() if multilabel else logits.softmax(0)).numpy()


def test_the_prior_is_the_shares_of_the_training_rows():
    np.testing.assert_allclose(prior(), np.array([30.5, 10.5, 0.5]) / 41.5, rtol=1e-5)
    np.testing.assert_allclose(prior(True), np.array([30.5, 10.5, 0.5]) / 41, rtol=1e-5)
    # scikit-learn's prior, but for the half clip
    rows, which = skewed()
    shares = DummyClassifier().fit(which, rows.labels[:40]).class_prior_
    np.testing.assert_allclose(prior()[:2], shares, atol=0.02)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_prior_is_of_the_weighted_loss(multilabel):
    """Of all constants it has the lowest loss."""
    balanced = {"class_weights": "balanced"}
    for settings in ({}, balanced, {"label_smoothing": 0.2}, balanced | {"label_smoothing": 0.2}):
        for weights in (False, True):
            rows, which = skewed(multilabel, weights)
            criterion = Criterion.from_rows(rows, which, TrainingFlags(**settings))
            targets = criterion.smooth_targets(torch.from_numpy(rows.targets[:40]))
            clips = torch.from_numpy(rows.weights[:40]) if weights else None
            logits = torch.zeros(3, requires_grad=True)
            for _ in range(200 if multilabel else 100):
                loss = criterion(logits.expand(40, 3), targets, clips=clips)
                (slope,) = torch.autograd.grad(loss, logits)
                logits = (logits - 4 * slope).clamp(-5, 5).detach().requires_grad_()
            squash = torch.sigmoid if multilabel else lambda values: values.softmax(0)
            found = squash(logits.detach()).numpy()
            np.testing.assert_allclose(
                prior(multilabel, weights, **settings)[:2], found[:2], atol=0.04, err_msg=str(settings)
            )


def test_a_rare_class_does_not_start_as_a_common_one():
    """Balanced and smoothed at once: it is the true positives that are weighted, not what smoothing adds."""
    rows = made_rows()
    rows.clip, rows.multilabel = np.arange(2000), True
    rows.targets = (np.arange(2000)[:, None] < [2, 40, 1000]).astype(np.float32)
    criterion = Criterion.from_rows(
        rows, rows.clip, TrainingFlags(class_weights="balanced", label_smoothing=0.1)
    )
    start = torch.from_numpy(compute_prior_logits(rows, rows.clip, criterion))
    targets = criterion.smooth_targets(torch.from_numpy(rows.targets))
    loss = [float(criterion((start + by).expand(2000, 3), targets)) for by in (-0.3, 0, 0.3)]
    assert loss[1] < min(loss[0], loss[2]) and abs(float(start[0])) < 0.3


def test_sgd_on_several_labels_takes_longer_steps(tmp_path):
    """Its gradients are those of the loss times twice the classes, however many passes a batch takes."""
    made = trainer(tmp_path / "a", TrainingFlags(optimizer="sgd", epochs=1))
    made.rows.multilabel = True
    gradients = []
    for scale, micro in ((1.0, 8), (6.0, 8), (6.0, 3)):
        made.criterion, made.micro = replace(made.criterion, multilabel=True, scale=scale), micro
        batch = made.rows.load_training_batch(made.train_rows[:8])
        made._compute_gradients({"x": batch.x, "mask": batch.mask, "weights": None}, batch.targets, 0)
        gradients.append(torch.cat([p.grad.flatten() for p in made.parameters]))
    torch.testing.assert_close(6 * gradients[0], gradients[1])
    torch.testing.assert_close(gradients[1], gradients[2], rtol=1e-4, atol=1e-6)
    rows, which = skewed(multilabel=True)
    scales = [
        Criterion.from_rows(rows, which, TrainingFlags(optimizer=kind)).scale for kind in ("sgd", "adamw")
    ]
    assert scales == [6, 1]


def test_balanced_classes_start_at_zero():
    rows = made_rows()
    logits = compute_prior_logits(rows, np.arange(0), Criterion(False, 0.0, None))
    assert (logits == 0).all(), "without any row"
    first = np.unique(rows.clip, return_index=True)[1]
    assert (compute_prior_logits(rows, first, Criterion(False, 0.1, None)) == 0).all()
    np.testing.assert_allclose(prior(class_weights="balanced")[:2], 0.5, atol=0.02)


@pytest.mark.parametrize("name", models.list_heads())
def test_every_head_starts_from_the_prior(name):
    torch.manual_seed(0)
    head = models.build(name, SHAPES[models.get_kinds(name)[0]], 7, **SMALL.get(name, {})).eval()
    if head.is_sklearn:
        pytest.skip("fitted by scikit-learn, without a start")
    x = torch.randn(3, *head.config["input_shape"])
    before, kept = head(x), {key: value.clone() for key, value in head.state_dict().items()}
    logits = torch.linspace(-5, 0, 7)
    head.set_prior(logits, x, torch.ones(3, x.shape[3], dtype=torch.bool))
    changed = [key for key, value in head.state_dict().items() if not torch.equal(value, kept[key])]
    assert len(changed) == len(SMALL[name]["members"] if name == "ensemble" else [name]), changed
    for key in changed:
        assert key.endswith("bias") and torch.equal(head.state_dict()[key], kept[key] + logits)
    torch.testing.assert_close(head(x) - before, logits.expand(3, 7), rtol=1e-3, atol=1e-3)


def test_a_head_without_an_output_bias_stays_as_it_is():
    class Bare(models.Head):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 3), nn.Linear(3, 3, bias=False)

        def forward(self, x, mask=None):
            return self.outer(self.inner(x.flatten(1)).tanh())

    head = Bare()
    kept = {key: value.clone() for key, value in head.state_dict().items()}
    head.set_prior(torch.tensor([-1.0, -2, -3]), torch.randn(2, 4, 1, 1))
    assert all(torch.equal(value, kept[key]) for key, value in head.state_dict().items())


def trainer(folder: Path, settings: TrainingFlags, valid_class: int = 2) -> Trainer:
    """Of skewed rows; all clips of a class are validated."""
    rows, _ = skewed()
    valid = rows.labels == valid_class
    build = lambda: models.build("linear", rows.shape, 3)  # noqa: E731
    return Trainer(build, rows, Fold(1, 5, ~valid, valid), settings, 3, FoldFolder(folder), CPU)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_only_training_clips_count_and_only_a_fresh_head_starts(tmp_path, ema):
    settings = replace(BUSY, optimizer="sgd", ema=ema)
    whole = trainer(tmp_path / "a", settings)
    bias = whole.predictor.fc.bias.softmax(0)
    rows = whole.rows.find_rows(whole.fold.train)
    counts = np.bincount(whole.rows.labels[whole.rows.clip[rows]], minlength=3) + 0.5
    np.testing.assert_allclose(bias.detach(), (counts * 0.9 / counts.sum() + 0.1 / 3), rtol=1e-4)
    assert bias[2] < 0.05, "the validated class is in no training clip"
    assert whole.fit(lambda line: None, NEVER, 0)
    assert not trainer(tmp_path / "b", settings).fit(lambda line: None, StopsAt(9), 0)
    half = trainer(tmp_path / "b", settings)
    assert half.progress.step or half.progress.epoch
    started = compute_prior_logits(half.rows, half.labelled, half.criterion)
    assert not np.allclose(half.head.fc.bias.detach(), started), "it went on from its checkpoint"
    assert half.fit(lambda line: None, NEVER, 0)
    (last, best, *_), (other, other_best, *_) = outcome(tmp_path / "a"), outcome(tmp_path / "b")
    assert all(torch.equal(last[key], other[key]) for key in last)
    assert all(torch.equal(best[key], other_best[key]) for key in best)


def rare(folder: Path, signal: float) -> Path:
    """A cache of 400 clips with one or two of 80 classes."""
    made_cache.make(
        folder, {"pooled": (96, 1, 1)}, 400, classes=80, signal=signal, multilabel=True, folds=4, seed=3
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("signal", [0.2, 0.5, 1.0])
def test_many_rare_classes_end_where_logistic_regression_does(tmp_path, signal):
    cache, losses = rare(tmp_path / "data" / "rare" / "made", signal), {}
    for recipe in ("linear", "logistic"):
        script("train.py", "--features", cache, "--recipe", recipe, "--name", recipe, "--device", "cpu",
               "--no-report", cwd=tmp_path)  # fmt: skip
        scores = json.loads((tmp_path / "runs" / recipe / "scores.json").read_text())
        losses[recipe] = scores["last"]["log_loss"]
    assert losses["linear"] <= 1.1 * losses["logistic"], losses
    shutil.rmtree(tmp_path / "runs")
