"""One fold's training with what came later: SAM, averaged weights, losses of a head's own, pretrained
weights, crops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_dataset import made_rows, with_copies
from test_fitter import BUSY, CPU, NEVER, StopsAt, Tiny, fitter, outcome
from torch import nn

import models
from earshot.core.config import TrainingFlags
from earshot.core.errors import UserError
from earshot.training import optim
from earshot.training.checkpoint import FoldFolder
from earshot.training.trainer import Fold, Trainer


def fit(folder, head, settings, rows=None) -> Trainer:
    rows = rows or made_rows()
    valid = np.arange(len(rows.ids)) % 5 == 1
    return Trainer(lambda: head, rows, Fold(1, 5, ~valid, valid), settings, 3, FoldFolder(folder), CPU)


@pytest.mark.parametrize(
    "changes", [dict(optimizer="sam", rho=0.1), dict(ema=0.8), dict(optimizer="sam", ema=0.9, crop_share=0.6)]
)
def test_a_stopped_fold_ends_as_if_never_stopped(tmp_path, changes):
    settings = replace(BUSY, **changes)
    assert fitter(tmp_path / "whole", settings, dropout=0.5).fit(str, NEVER, 3)
    whole = outcome(tmp_path / "whole")
    plain = fitter(tmp_path / "plain", replace(settings, ema=0.0, optimizer="adamw"), dropout=0.5)
    plain.fit(str, NEVER, 3)
    assert not torch.equal(outcome(tmp_path / "plain")[0]["inner.weight"], whole[0]["inner.weight"])
    for stop in (2, 3, 1, 6):  # in the middle of epochs, a few steps at a time
        assert not fitter(tmp_path / "cut", settings, dropout=0.5).fit(str, StopsAt(stop), 3)
    assert fitter(tmp_path / "cut", settings, dropout=0.5).fit(str, NEVER, 3)
    found = outcome(tmp_path / "cut")
    assert found[2:] == whole[2:]
    for one, other in zip(found[:2], whole[:2], strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_sam_takes_the_gradient_up_the_hill():
    """On 0.5 * a * w^2 the gradient at w + rho * sign is a * (w + rho * sign): by hand."""
    head = nn.Linear(1, 1, bias=False)
    head.weight.data.fill_(2.0)
    (0.5 * 3 * head.weight**2).sum().backward()
    before = optim.ascend_sam(head, 0.25)
    assert head.weight.item() == pytest.approx(2.25)
    head.zero_grad()
    (0.5 * 3 * head.weight**2).sum().backward()
    optim.restore_sam(before)
    assert head.weight.item() == 2.0 and head.weight.grad.item() == pytest.approx(3 * 2.25)
    two = nn.Linear(2, 1)
    two.weight.grad, two.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    old = [p.detach().clone() for p in two.parameters()]
    optim.ascend_sam(two, 0.5)
    moved = [p.detach() - o for p, o in zip(two.parameters(), old, strict=True)]
    torch.testing.assert_close(moved, [torch.tensor([[0.3, 0.0]]), torch.tensor([0.4])], atol=1e-6, rtol=0)
    for gradient in (0.0, float("nan"), float("inf")):
        head.weight.grad = torch.tensor([[gradient]])
        assert optim.ascend_sam(head, 0.25) == [] and head.weight.item() == 2.0


def test_sams_second_pass_leaves_statistics_and_drops_the_same_units(tmp_path):
    class Normed(Tiny):
        def __init__(self):
            super().__init__(dropout=0.5)
            self.norm, self.masks = nn.BatchNorm1d(12), []
            self.drop.register_forward_hook(
                lambda m, i, o: self.masks.append((o != 0) | (i[0] == 0)) if m.training else None
            )

        def forward(self, x, mask=None):
            return super().forward(
                self.norm(x.mean(3).flatten(1))[:, :, None, None].reshape(len(x), *x.shape[1:3], 1)
            )

    torch.manual_seed(0)
    head = Normed()
    made = fit(tmp_path, head, TrainingFlags(optimizer="sam", batch_size=8))
    made.step(1, 0, made.rows.load_training_batch(made.train_rows[:8]))
    assert int(head.norm.num_batches_tracked) == 2 and len(head.masks) == 2 and torch.equal(*head.masks)
    x = made.rows.load_batch(made.train_rows[:8])[0].mean(3).flatten(1)
    torch.testing.assert_close(head.norm.running_mean, 0.1 * x.mean(0), atol=1e-5, rtol=1e-4)


def test_the_average_is_what_predicts(tmp_path):
    made = fitter(tmp_path, TrainingFlags(epochs=2, ema=0.9, lr=0.05))
    seen = []
    step = made.step
    made.step = lambda *args: (step(*args), seen.append(made.head.inner.weight.detach().clone()))[0]
    start = made.head.inner.weight.detach().clone()
    made.fit(str, NEVER, 0)
    want = start
    for number, weight in enumerate(seen):
        want = want.lerp(weight, 1 - min(0.9, (1 + number) / (10 + number)))
    saved = FoldFolder(tmp_path).load_last("cpu")[0]["inner.weight"]
    torch.testing.assert_close(saved, want, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(saved, seen[-1], atol=1e-4)
    made.head.inner.weight.data.zero_()
    assert made.predict_validation()[made.has_audio].std() > 1e-3, "the weights in training do not predict"


class Own(Tiny):
    """A head with a loss of its own, which also learns from a further view."""

    also = ("codes",)

    def loss(self, batch, criterion):
        assert batch["codes"].dtype == torch.int64 and batch["codes"].shape[1:] == (1, 1, 5)
        logits = self(batch["x"], batch["mask"])
        return (
            criterion(logits)
            + 0.1 * (logits.mean(1) - batch["codes"].float().mean((1, 2, 3))).square().mean()
        )


def rows_with_codes():
    rows = made_rows()
    rows.also = {"codes": "codes"}
    rows.views["codes"] = torch.arange(len(rows) * 5, dtype=torch.int16).reshape(len(rows), 1, 1, 5) % 7
    return rows


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_a_heads_own_loss_is_trained_whatever_the_memory(tmp_path, weights):
    found = []
    for name, most in (("whole", None), ("small", 4)):
        torch.manual_seed(0)
        made = fit(
            tmp_path / name,
            Own(most=most),
            TrainingFlags(epochs=2, batch_size=11, lr=0.02, class_weights=weights),
            rows_with_codes(),
        )
        made.fit(str, NEVER, 0)
        found.append(made)
    assert found[1].micro == 3 and max(found[0].head.seen) > 4
    for name, value in found[0].head.state_dict().items():
        torch.testing.assert_close(found[1].head.state_dict()[name], value, atol=2e-3, rtol=1e-2)
        assert value.isfinite().all()
    torch.manual_seed(0)
    other = fit(
        tmp_path / "plain", Tiny(), TrainingFlags(epochs=2, batch_size=11, lr=0.02, class_weights=weights)
    )
    other.fit(str, NEVER, 0)
    assert not torch.allclose(other.head.outer.bias, found[0].head.outer.bias), "the second term counts"


def test_pretrained_weights_are_loaded_once(tmp_path):
    class Pretrained(Tiny):
        loads = 0

        def load_pretrained(self, load):
            type(self).loads += 1
            self.inner.bias.data.fill_(7.0)

    made = fit(tmp_path, Pretrained(), TrainingFlags(epochs=2, ema=0.5))
    assert (
        Pretrained.loads == 1 and (made.head.inner.bias == 7).all() and (made.predictor.inner.bias == 7).all()
    )
    assert made.head.adapted == 1 and torch.equal(made.predictor.mean, made.head.mean)
    assert not made.fit(str, StopsAt(1), 0)
    again = fit(tmp_path, Pretrained(), TrainingFlags(epochs=2, ema=0.5))
    assert (
        Pretrained.loads == 1
        and (again.progress.epoch, again.progress.step) == (0, 1)
        and (again.head.inner.bias != 7).all()
    )


def test_a_head_of_whole_windows_refuses_a_crop(tmp_path):
    class Whole(Tiny):
        def forward(self, x, mask=None):
            return self.outer(self.inner(x.flatten(1)[:, :60].view(-1, 5, 12).mean(1)))

    with pytest.raises(UserError, match="--crop-share 0.5: .*one length only") as error:
        fit(tmp_path, Whole(), TrainingFlags(crop_share=0.5))
    assert "\n" not in str(error.value)
    fit(tmp_path / "tiny", Tiny(), TrainingFlags(crop_share=0.5, epochs=1)).fit(str, NEVER, 0)


def test_a_batch_of_one_row_is_refused_in_one_line_where_it_cannot_be_normalised(tmp_path):
    class Normed(models.Head):
        def __init__(self):
            super().__init__()
            self.config = {"name": "normed"}
            self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Linear(4, 3))
            self.net[1](torch.zeros(2, 60))

        def forward(self, x, mask=None):
            return self.net(x)

    made = fit(tmp_path, Normed(), TrainingFlags(batch_size=2))
    made.head.train()
    with pytest.raises(UserError, match="a batch of 1 rows.*--batch-size") as error:
        made.step(1, 0, made.rows.load_training_batch(made.train_rows[:1]))
    assert "\n" not in str(error.value)
    assert np.isfinite(made.step(1, 0, made.rows.load_training_batch(made.train_rows[:2])))


def test_several_labels_are_binary_cross_entropy(tmp_path):
    rows = made_rows()
    rows.multilabel = True
    rows.targets = np.random.default_rng(0).integers(0, 2, (45, 3)).astype(np.float32)
    made = fit(tmp_path, Tiny(), TrainingFlags(label_smoothing=0.2), rows)
    logits, targets = torch.randn(9, 3), torch.from_numpy(rows.targets[:9])
    want = nn.functional.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1)
    torch.testing.assert_close(made.criterion(logits, made.criterion.smooth_targets(targets)), want)
    made = fit(tmp_path, Tiny(), TrainingFlags(class_weights="balanced"), rows)
    learnt = rows.targets[rows.clip[made.train_rows]]
    weights = torch.from_numpy((1 - learnt).sum(0) / learnt.sum(0)).float()
    want = nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    torch.testing.assert_close(made.criterion(logits, targets), want)


def test_smoothing_never_makes_a_rare_class_likely(tmp_path):
    """A weighted yes pulls by its weight; a no is right where smoothing has it, however rare its class."""
    rows = made_rows()
    rows.multilabel, rows.targets = True, np.eye(3, dtype=np.float32)[np.zeros(45, int)]
    made = fit(tmp_path, Tiny(), TrainingFlags(label_smoothing=0.1, class_weights="balanced"), rows)
    assert made.criterion.weights[1] > 30, "a class without a yes"
    logits = torch.full((4, 3), 0.05).logit().requires_grad_()
    made.criterion(logits, made.criterion.smooth_targets(torch.zeros(4, 3))).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(4, 3), atol=1e-7, rtol=0)


def test_an_epoch_of_fewer_windows_than_steps(tmp_path):
    rows = made_rows()
    made = fit(tmp_path, Tiny(), TrainingFlags(batch_size=1, epochs=2), rows)
    rows.pick_epoch_rows = lambda found, epoch: found[:5]  # as where copies were played much faster
    assert made.fit(str, NEVER, 0) and np.isfinite([row["train_loss"] for row in made.progress.history]).all()


def test_copies_are_trained_on_and_never_validated(tmp_path):
    class Sees(models.Head):
        def __init__(self):
            super().__init__()
            self.config, self.fc, self.trained, self.asked = {"name": "sees"}, nn.Linear(1, 3), set(), set()

        def forward(self, x, mask=None):
            (self.trained if self.training else self.asked).update(x.flatten().int().tolist())
            return self.fc(x.flatten(1) / 30)

    head, rows = Sees(), with_copies([-1, -1, 1, -1, -1, -1, -1, -1], [1, 1, 0.5, 1, 1, 1, 1, 1])
    valid = np.array([False, True, False, False])
    made = Trainer(
        lambda: head,
        rows,
        Fold(1, 2, ~valid, valid),
        TrainingFlags(epochs=3, batch_size=2),
        3,
        FoldFolder(tmp_path),
        CPU,
    )
    assert head.asked == {0, 1, 2}, "two training clips show where the prior goes"
    head.asked.clear()
    made.fit(str, NEVER, 0)
    assert head.asked == {1} and head.trained == {0, 10, 20, 2, 22, 3, 13, 23}, (
        "12 is mixed with the clip in validation"
    )
