"""Threads, precision and layout on a CPU: tried once, stored, used again; the scores that every epoch reckons
itself."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from test_dataset import made_rows
from test_fitter import BUSY, CPU, NEVER, StopsAt, Tiny, outcome
from torch import nn

from earshot.core.config import TrainingFlags
from earshot.training import augment, metrics
from earshot.training import precision as training_precision
from earshot.training.checkpoint import FoldFolder
from earshot.training.run import Run, build_metadata
from earshot.training.trainer import Fold, Trainer

LAST = replace(CPU, precision="bf16", channels_last=True)


class Conv(Tiny):
    """Tiny with a convolution before it, so that there is a layout."""

    def __init__(self, dropout: float = 0.0):
        super().__init__(dropout)
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x, mask=None):
        return super().forward(self.norm(self.conv(x)).float(), mask)


def fitter(folder, settings, device, build=Conv) -> Trainer:
    valid = np.arange(45) % 5 == 1
    return Trainer(
        lambda: build(dropout=0.3),
        made_rows(),
        Fold(1, 5, ~valid, valid),
        settings,
        3,
        FoldFolder(folder),
        device,
    )


def test_operations_of_a_head():
    head = Tiny().train()
    assert (
        training_precision.count_flops(head, made_rows(), np.arange(9)) == 2 * (12 * 16 + 16 * 3)
        and head.training
    )
    assert training_precision.count_flops(head, made_rows(), np.arange(0)) == 0


def test_operations_of_attention_count():
    """torch's own layer goes another way in evaluation, which counts nothing."""
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
    layer.forward = lambda x, mask=None: nn.TransformerEncoderLayer.forward(
        layer, x.flatten(1, 2).transpose(1, 2)
    )
    assert training_precision.count_flops(layer, made_rows(), np.arange(2)) >= 5 * 2 * 12 * (
        3 * 12 + 12 + 2 * 24
    )
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_tiny_head_is_trained_on_one_thread(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for limit, want in ((1e8, 1), (0.0, 2)):
            monkeypatch.setattr(training_precision, "TINY", limit)
            made = fitter(tmp_path / str(want), TrainingFlags(epochs=1), CPU)
            seen: list[int] = []

            def watched(*args, seen=seen, step=made.step):
                seen.append(torch.get_num_threads())
                return step(*args)

            made.step = watched
            made.fit(str, NEVER, 0)
            assert set(seen) == {want} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "times, want",
    [
        ([0.4, 0.2, 0.1], LAST),
        ([0.4, 0.1, 0.3], replace(CPU, precision="bf16")),
        ([0.4, 0.39, 0.34], CPU),
        ([0.005, 0.001, 0.001], CPU),
        ([0.4] + [float("inf")] * 2, CPU),
    ],
)
def test_what_is_clearly_faster_is_taken(monkeypatch, times, want):
    monkeypatch.setattr(training_precision, "SMALL", 0)
    monkeypatch.setattr(
        training_precision,
        "measure_steps",
        lambda head, candidates, which, step: [t * len(which) / 32 for t in times],
    )
    found = training_precision.choose_precision(Conv(), made_rows(), TrainingFlags(), CPU)
    assert replace(found, about=CPU.about) == want and (
        found == CPU or "times as fast as fp32" in found.about
    )


def test_nothing_is_tried_where_it_was_said_or_cannot_matter(monkeypatch):
    monkeypatch.setattr(training_precision, "measure_steps", lambda *args: pytest.fail("tried"))
    assert training_precision.choose_precision(Conv(), made_rows(), TrainingFlags(), CPU) is CPU, (
        "a small head"
    )
    monkeypatch.setattr(training_precision, "SMALL", 0)
    for precision in ("fp32", "bf16"):
        device = replace(CPU, precision=precision)
        assert (
            training_precision.choose_precision(
                Conv(), made_rows(), TrainingFlags(precision=precision), device
            )
            is device
        )
    gpu = replace(CPU, name="cuda:0")
    assert training_precision.choose_precision(Conv(), made_rows(), TrainingFlags(), gpu) is gpu


def test_candidates_that_fail_or_answer_otherwise_are_out():
    candidates = [
        replace(CPU, precision=precision, channels_last=last)
        for precision, last in training_precision.CANDIDATES
    ]

    def step(head, device, which):
        if device.precision == "bf16" and device.channels_last:
            raise RuntimeError('"conv" not implemented for BFloat16')
        return 1.01 if device.precision == "bf16" else 1.0

    times = training_precision.measure_steps(Conv(), candidates, np.arange(4), step)
    assert [np.isfinite(t) for t in times] == [True, True, False]
    times = training_precision.measure_steps(
        Conv(), candidates, np.arange(4), lambda head, device, which: 1.2 if device.channels_last else 1.0
    )
    assert [np.isfinite(t) for t in times] == [True, True, False]
    real = training_precision.measure_steps(
        Conv(), candidates, np.arange(4), training_precision._make_step(made_rows(), TrainingFlags())
    )
    assert np.isfinite(real).all(), "the losses of all agree"


def test_the_decision_is_stored_and_used_again(tmp_path):
    cache = SimpleNamespace(folder=tmp_path, manifest={"columns": ["a", "b"]}, prior=lambda: np.ones(3) / 3)
    run = Run.begin(tmp_path / "run", {"classes": ["a"]}, build_metadata(cache, "r", LAST))
    for opened in (run, Run.open(tmp_path / "run")):
        assert opened.adapt_device(CPU) == LAST
        gpu = replace(CPU, name="cuda:0", precision="fp16")
        assert opened.adapt_device(gpu) == gpu, "another kind of device has a decision of its own"
    del run.config["channels_last"]  # as an earlier version left it
    assert run.adapt_device(CPU) == replace(LAST, channels_last=False)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_stopped_fold_in_another_layout_ends_as_if_never_stopped(tmp_path, optimizer):
    settings = replace(BUSY, optimizer=optimizer, epochs=3, ema=0.9)
    assert fitter(tmp_path / "whole", settings, LAST).fit(str, NEVER, 3)
    for stop in (2, 5, 1):
        assert not fitter(tmp_path / "cut", settings, LAST).fit(str, StopsAt(stop), 3)
    again = fitter(tmp_path / "cut", settings, LAST)
    assert (
        again.head.conv.weight.is_contiguous(memory_format=torch.channels_last)
        and again.micro == settings.batch_size
    )
    assert again.fit(str, NEVER, 3)
    whole, found = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    assert found[2:] == whole[2:] and all(torch.equal(found[0][name], whole[0][name]) for name in whole[0])
    plain = fitter(tmp_path / "plain", settings, CPU)
    plain.fit(str, NEVER, 3)
    assert not torch.equal(outcome(tmp_path / "plain")[0]["conv.weight"], whole[0]["conv.weight"]), (
        "bf16 was used"
    )


# --- what replaces a library's slower way, against it


def test_average_precision_is_scikit_learns():
    for seed in range(20):
        random = np.random.default_rng(seed)
        truth = random.integers(0, 2, 50)
        truth[0] = 1
        scores = random.random(50).round(1 if seed % 2 else 6)  # with ties, and without
        assert metrics.compute_gain("map_macro", scores[:, None], truth[:, None]) == pytest.approx(
            sk.average_precision_score(truth, scores), rel=1e-12
        )


@pytest.mark.parametrize(
    "key, value",
    [
        ("mixup", 0.2),
        ("time_mask", 3),
        ("frequency_mask", 2),
        ("time_shift", 0.1),
        ("gain", 1.0),
        ("time_stretch", 0.1),
        ("crop_share", 0.9),
        ("frequency_shift", 1.0),
    ],
)
def test_whatever_changes_a_batch_is_asked_for(key, value):
    assert augment.is_enabled(TrainingFlags(**{key: value})) and not augment.is_enabled(TrainingFlags())
    assert not augment.is_enabled(TrainingFlags(time_mask=3, num_masks=0))
