"""What training is made of: folds, scores, augmentation, optimisers with their schedules, batches."""

from __future__ import annotations

from typing import get_args, get_type_hints

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from earshot import augment, dataset, folds, metrics, optim
from earshot.config import TrainingFlags
from earshot.dataset import Rows, pool_windows
from earshot.errors import UserError

CLASSES = ["a", "b", "c"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- folds

NONE = np.full(60, -1)
LABELS = np.arange(60) % 3
GROUPS = np.array([f"g{i // 4}" for i in range(60)])
ALONE = np.full(60, "")


def test_the_datas_own_folds_are_kept():
    own = np.array([1, 2, 3, -1, 5] * 12, dtype=np.int8)
    found, about = folds.assign(LABELS, own, ALONE, None, seed=0)
    assert found.tolist() == own.tolist() and found.dtype == np.int64 and about == "the data's own 4 folds"


def test_clips_without_a_fold_of_the_datas_are_never_validated():
    own = np.where(np.arange(60) < 20, -1, np.arange(60) % 2)
    assert (folds.assign(LABELS, own, ALONE, None, seed=0)[0][:20] == -1).all()


@pytest.mark.parametrize("elsewhere", [2, -1])
def test_a_group_in_two_of_the_datas_folds_is_refused_by_name(elsewhere):
    own, groups = np.arange(60) // 4 % 3, GROUPS.copy()
    folds.assign(LABELS, own, groups, None, 0)
    own[22] = elsewhere  # of g5, whose fold is 2 % 3
    own[20], own[21], own[23] = 1, 1, 1
    with pytest.raises(UserError, match=rf"group g5 lies in folds 1 and {elsewhere}\b.*--folds"):
        folds.assign(LABELS, own, groups, None, 0)
    assert set(folds.assign(LABELS, own, groups, 3, 0)[0]) == {0, 1, 2}, "--folds K mends it"


@pytest.mark.parametrize("k, count", [(None, 5), (3, 3)])
def test_made_folds_are_stratified_and_keep_groups(k, count):
    found, about = folds.assign(LABELS, NONE, GROUPS, k, seed=1)
    assert sorted(set(found)) == list(range(count)) and about == f"{count} stratified folds over 15 groups, seed 1"
    assert all(len(set(found[group == GROUPS])) == 1 for group in set(GROUPS))
    for fold in range(count):
        assert np.abs(np.bincount(LABELS[found == fold], minlength=3) - 20 / count).max() <= 2
    alone, about = folds.assign(LABELS, NONE, ALONE, k, seed=1)
    assert "groups" not in about
    for fold in range(count):
        assert np.abs(np.bincount(LABELS[alone == fold], minlength=3) - 20 / count).max() < 1


def test_folds_depend_on_the_seed_alone():
    one, again, other = (folds.assign(LABELS, NONE, GROUPS, 5, seed)[0].tolist() for seed in (7, 7, 8))
    assert one == again != other


@pytest.mark.parametrize("own, groups, k, match", [
    (NONE, np.array(["x", "y"] * 30), None, "2 groups of clips cannot make 5 folds: give --folds 2"),
    (NONE, GROUPS, 16, "15 groups of clips cannot make 16 folds: give --folds 15"),
    (NONE, GROUPS, 1, "at least 2 folds"),
    (np.full(60, 4), ALONE, None, "single fold of its own: give --folds K"),
])
def test_folds_that_cannot_be_made(own, groups, k, match):
    with pytest.raises(UserError, match=match):
        folds.assign(LABELS, own, groups, k, 0)


# --- metrics


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_scikit_learns(seed):
    truth = rng(seed).integers(0, 6, 80)
    probabilities = rng(seed + 50).dirichlet(np.ones(6), 80) + np.eye(6)[truth] * 0.3
    probabilities /= probabilities.sum(1, keepdims=True)
    guess = probabilities.argmax(1)
    want = {f"f1_{how}": sk.f1_score(truth, guess, average=how) for how in ("macro", "micro", "weighted")}
    want |= {"accuracy": sk.accuracy_score(truth, guess), "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
             "log_loss": sk.log_loss(truth, probabilities, labels=range(6))}
    found = metrics.scores(probabilities, truth)
    assert found == pytest.approx(want, rel=1e-9) and set(get_args(get_type_hints(TrainingFlags)["metric"])) == set(found) - {"log_loss"}
    assert len({round(value, 6) for value in want.values()}) >= 4, "the scores must differ, or a mix-up would pass"


@pytest.mark.filterwarnings("error")
def test_scores_of_odd_folds():
    """A class that is only predicted, one that never occurs, and a certain mistake."""
    found = metrics.scores(np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]], dtype=np.float32), np.array([0, 0, 1]))
    assert found["balanced_accuracy"] == pytest.approx(0.75) and found["f1_macro"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["log_loss"] == pytest.approx(-np.log(1e-15) / 3)


def test_report_has_every_class():
    probabilities = np.eye(3)[[0, 1, 1, 0]]
    text = metrics.report(probabilities, np.array([0, 1, 0, 0]), ["owl", "jay", "unheard"])
    table = sk.classification_report([0, 1, 0, 0], [0, 1, 1, 0], labels=[0, 1, 2], target_names=["owl", "jay", "unheard"],
                                     digits=4, zero_division=0)
    assert text.startswith(table)
    assert [line.split() for line in text.splitlines()[-3:]] == [["owl", "0", "2", "1", "0"], ["jay", "1", "0", "1", "0"],
                                                                 ["unheard", "2", "0", "0", "0"]]


# --- augmentation


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("longest", [1, 4, 99])
def test_masks_are_short_spans_of_the_rows_own_minimum(axis, longest):
    x = torch.from_numpy(rng().normal(size=(300, 2, 9, 11)).astype(np.float32)) + torch.arange(300.0)[:, None, None, None]
    found = augment.mask_spans(x, axis, longest, rng(1))
    widths = []
    for before, after in zip(x, found):
        changed = (after != before).movedim(axis - 1, 0).flatten(1)  # (positions along the axis, the rest)
        where = torch.nonzero(changed.any(1)).flatten()
        widths.append(len(where))
        assert len(where) == 0 or where[-1] - where[0] + 1 == len(where), "one span"
        assert (after[after != before] == before.min()).all()
        assert (changed.sum(1)[where] >= changed.shape[1] - 1).all(), "the whole column (but for the minimum itself)"
    assert (min(widths), max(widths)) == (0, min(longest, x.shape[axis]))


def test_shift_time_is_a_roll_that_takes_the_mask_along():
    x = torch.arange(200 * 10.0).reshape(200, 1, 1, 10).repeat(1, 2, 3, 1)
    mask = torch.arange(10).repeat(200, 1) < torch.arange(200)[:, None] % 9 + 1
    rolled, moved = augment.shift_time(x, mask, 0.3, rng())
    offsets = [int((row[0, 0] == first[0, 0, 0]).nonzero()) for row, first in zip(rolled, x)]
    for i, offset in enumerate(offsets):
        assert torch.equal(rolled[i], x[i].roll(offset, 2)) and torch.equal(moved[i], mask[i].roll(offset, 0))
    assert {(offset + 5) % 10 - 5 for offset in offsets} == set(range(-3, 4))
    assert torch.equal(augment.shift_time(x, None, 0.3, rng())[0], rolled) and augment.shift_time(x, None, 0.3, rng())[1] is None


def test_mix_mixes_rows_and_targets_alike():
    targets = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0, 1])]
    mask = torch.tensor([[True, False, False]] * 3 + [[True, True, False]] * 3)
    x, seen, mixed = augment.mix(targets[:, :, None, None].repeat(1, 1, 1, 3), mask, targets, 0.4, rng(3))
    assert torch.equal(x[:, :, 0, 2], mixed) and not torch.equal(mixed, targets)
    assert torch.allclose(mixed.sum(1), torch.ones(6)) and mixed.min() >= 0
    assert (seen | mask).equal(seen) and seen[3:].equal(mask[3:]) and not seen[:, 2].any()


EVERYTHING = TrainingFlags(time_shift=0.4, gain=6, masks=2, time_mask=4, frequency_mask=3)


def test_the_same_generator_gives_the_same_batch():
    x, mask = torch.from_numpy(rng().normal(size=(8, 2, 7, 9)).astype(np.float32)), torch.ones(8, 9, dtype=torch.bool)
    one, again, other = (augment.apply(x, mask, EVERYTHING, rng(seed))[0] for seed in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert augment.apply(x, mask, TrainingFlags(), rng()) == (x, mask), "nothing by default"
    gained = augment.apply(x, mask, TrainingFlags(gain=6), rng())[0] - x
    assert torch.allclose(gained, gained[:, :1, :1, :1].expand_as(x), atol=1e-5) and gained.flatten(1)[:, 0].unique().numel() == 8
    assert gained.abs().max() <= 6.001 and gained.min() < 0 < gained.max()


def test_rows_are_augmented_on_their_own():
    x = torch.from_numpy(rng().normal(size=(8, 2, 7, 9)).astype(np.float32))
    other = x.clone()
    other[:4] = 100
    assert torch.equal(augment.apply(x, None, EVERYTHING, rng(5))[0][4:], augment.apply(other, None, EVERYTHING, rng(5))[0][4:])
    same = augment.apply(x[:1].repeat(8, 1, 1, 1), None, EVERYTHING, rng(5))[0]
    assert len({row.numpy().tobytes() for row in same}) == 8, "equal rows are treated differently"


# --- optimisers and schedules


def tuned(settings: TrainingFlags, steps: int):
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    found = optim.optimizer(head, settings)
    return head, found, optim.schedule(found, settings, steps)


def advance(head, optimizer, schedule, first: int, last: int) -> list[float]:
    rates = []
    for step in range(first, last):
        x = torch.from_numpy(rng(step).normal(size=(6, 4)).astype(np.float32))
        optimizer.zero_grad()
        (head(x) - x[:, :2] ** 2).square().mean().backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("form", ["onecycle", "cosine", "step", "constant"])
def test_a_packed_optimiser_goes_on_bit_for_bit(kind, form):
    from safetensors.torch import load, save

    settings = TrainingFlags(optimizer=kind, schedule=form, epochs=4, lr=0.05, weight_decay=0.1, step_epochs=1)
    head, optimizer, schedule = tuned(settings, 5)
    whole = advance(head, optimizer, schedule, 0, 20)
    half = tuned(settings, 5)
    rates = advance(*half, 0, 7)
    tensors, rest = optim.pack(half[1])
    rest, state = json.loads(json.dumps(rest)), json.loads(json.dumps(half[2].state_dict()))
    weights, tensors = load(save(half[0].state_dict())), load(save(tensors))
    fresh = tuned(settings, 5)
    fresh[0].load_state_dict(weights)
    optim.unpack(fresh[1], tensors, rest)
    fresh[2].load_state_dict(state)
    rates += advance(*fresh, 7, 20)
    assert rates == whole
    for name, value in head.state_dict().items():
        assert torch.equal(fresh[0].state_dict()[name], value), name


def rates_of(**options) -> np.ndarray:
    settings = TrainingFlags(lr=0.2, epochs=10, **options)
    return np.array(advance(*tuned(settings, 10), 0, 100))


def test_schedules_are_what_they_say():
    for warmup in (0.1, 0.3):
        rates = rates_of(schedule="onecycle", warmup=warmup)
        assert rates.max() == pytest.approx(0.2) and abs(rates.argmax() - warmup * 100) <= 1
        rates = rates_of(schedule="cosine", warmup=warmup)
        top = round(warmup * 100)
        np.testing.assert_allclose(rates[:top], 0.2 * np.arange(1, top + 1) / top)
        assert rates.max() == 0.2 and (np.diff(rates[top:]) < 0).all() and 0 < rates[-1] < 0.001
        assert rates[(top + 100) // 2] == pytest.approx(0.1, abs=0.005), "half way down"
    rates = rates_of(schedule="step", step_epochs=4, step_gamma=0.5).reshape(10, 10)
    np.testing.assert_allclose(rates, np.repeat([0.2] * 4 + [0.1] * 4 + [0.05] * 2, 10).reshape(10, 10))
    assert (rates_of(schedule="constant") == 0.2).all()


def test_optimisers_are_what_they_say():
    kinds = {kind: tuned(TrainingFlags(optimizer=kind, lr=0.3, weight_decay=0.2), 1)[1] for kind in ("adamw", "adam", "sgd")}
    assert [type(o) for o in kinds.values()] == [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD]
    assert kinds["sgd"].param_groups[0]["nesterov"] and all(o.param_groups[0]["weight_decay"] == 0.2 for o in kinds.values())
    head = nn.Linear(2, 2)
    head.bias.requires_grad_(False)
    assert sum(p.numel() for p in optim.optimizer(head, TrainingFlags()).param_groups[0]["params"]) == 4, "frozen ones stay"


# --- batches


def made_rows(clips: int = 45, full: bool = False, folder: Path | None = None) -> Rows:
    """Clips of three classes that can be told apart a little; every third has two windows; some windows are padded."""
    random, labels = rng(), np.arange(clips) % 3
    clip = np.sort(np.concatenate([np.arange(clips), np.arange(0, clips, 3)]))
    mel = random.normal(size=(len(clip), 2, 6, 5)) + np.eye(6)[labels[clip]][:, None, :, None]
    length = np.where(full, 1.0, random.choice([0.05, 0.4, 0.55, 1.0], len(clip))).astype(np.float32)
    mel = mel.astype(np.float16)
    if folder:
        np.save(folder / "mel.npy", mel)
        mel = np.load(folder / "mel.npy", mmap_mode="r")
    split = {"ids": np.array([f"c{i}" for i in range(clips)]), "labels": np.array(CLASSES)[labels], "mel": mel, "clip": clip,
             "folds": np.full(clips, -1), "groups": np.full(clips, ""), "length": length}
    return Rows(split, "mel", CLASSES, 1.0, "cpu")


def test_pool_windows_is_the_mean_per_clip():
    logits = torch.tensor([[1.0, 2], [3, 6], [5, 5], [7, 1]])
    found = pool_windows(logits, torch.tensor([2, 2, 0, 3]), 5)
    assert torch.equal(found[[2, 0, 3]], torch.tensor([[2.0, 4], [5, 5], [7, 1]])) and found[[1, 4]].isnan().all()


def test_batches_equal_the_source_resident_or_mapped(tmp_path, monkeypatch):
    resident = made_rows()
    monkeypatch.setattr(dataset, "RESIDENT", 0)
    mapped = made_rows(folder=tmp_path)
    assert resident.resident is not None and mapped.resident is None and isinstance(mapped.features, np.memmap)
    assert len(mapped) == 60 and mapped.shape == (2, 6, 5)
    which = np.array([59, 3, 3, 0, 17])
    (x, mask), (y, other) = resident.batch(which), mapped.batch(which)
    assert x.dtype == torch.float32 and torch.equal(x, y) and torch.equal(mask, other)
    np.testing.assert_array_equal(x.numpy(), resident.features[which].astype(np.float32))
    parts = list(mapped.batches(np.arange(7), 3))
    assert [len(part) for part, _ in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part for part, _ in parts]), mapped.batch(np.arange(7))[0])


def test_masks_come_from_the_lengths():
    found = made_rows()
    length = {1e-4: 1, 0.4: 2, 0.55: 3, 1.0: 5}  # of five frames; even a sliver is a frame
    split = {"ids": np.array(list("wxyz")), "labels": np.array(list("abc?")), "folds": NONE[:4], "groups": ALONE[:4],
             "clip": np.arange(4), "length": np.array(list(length), dtype=np.float32), "mel": np.zeros((4, 1, 2, 5), np.float16)}
    rows = Rows(split, "mel", CLASSES, 1.0, "cpu")
    assert rows.batch(np.arange(4))[1].sum(1).tolist() == list(length.values()) and rows.labels.tolist() == [0, 1, 2, -1]
    assert rows.batch(np.array([3]))[1].all(), "a full row has its mask too, because another row of the split needs one"
    assert found.masked and not made_rows(full=True).masked and made_rows(full=True).batch(np.arange(3))[1] is None
    picked = np.zeros(45, dtype=bool)
    picked[[0, 4]] = True
    assert found.clip[found.of_clips(picked)].tolist() == [0, 0, 4]
