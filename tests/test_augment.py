"""What is done to a training batch: masks, shifts, stretching, crops, mixing of pictures and of sounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from earshot.core.config import TrainingFlags
from earshot.training import augment


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("longest", [1, 4, 99])
def test_masks_are_short_spans_of_the_rows_own_minimum(axis, longest):
    x = (
        torch.from_numpy(rng().normal(size=(300, 2, 9, 11)).astype(np.float32))
        + torch.arange(300.0)[:, None, None, None]
    )
    found = augment.mask_spans(x, axis, longest, rng(1))
    widths = []
    for before, after in zip(x, found, strict=True):
        changed = (after != before).movedim(axis - 1, 0).flatten(1)  # (positions along the axis, the rest)
        where = torch.nonzero(changed.any(1)).flatten()
        widths.append(len(where))
        assert len(where) == 0 or where[-1] - where[0] + 1 == len(where), "one span"
        assert (after[after != before] == before.min()).all()
        assert (changed.sum(1)[where] >= changed.shape[1] - 1).all(), (
            "the whole column (but for the minimum itself)"
        )
    assert (min(widths), max(widths)) == (0, min(longest, x.shape[axis]))


def test_shift_time_is_a_roll_that_takes_the_mask_along():
    x = torch.arange(200 * 10.0).reshape(200, 1, 1, 10).repeat(1, 2, 3, 1)
    mask = torch.arange(10).repeat(200, 1) < torch.arange(200)[:, None] % 9 + 1
    rolled, moved = augment.shift_time(x, mask, 0.3, rng())
    offsets = [int((row[0, 0] == first[0, 0, 0]).nonzero()) for row, first in zip(rolled, x, strict=True)]
    for i, offset in enumerate(offsets):
        assert torch.equal(rolled[i], x[i].roll(offset, 2)) and torch.equal(moved[i], mask[i].roll(offset, 0))
    assert {(offset + 5) % 10 - 5 for offset in offsets} == set(range(-3, 4))
    assert (
        torch.equal(augment.shift_time(x, None, 0.3, rng())[0], rolled)
        and augment.shift_time(x, None, 0.3, rng())[1] is None
    )


LABELS = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0, 1])]
MIXUP = TrainingFlags(mixup=0.4)
BETWEEN = TrainingFlags(mixup=1.0, mixup_pairs="different")


def test_mixup_mixes_rows_and_targets_alike():
    mask = torch.tensor([[True, False, False]] * 3 + [[True, True, False]] * 3)
    x, seen, mixed, _ = augment.mix_rows(
        LABELS[:, :, None, None].repeat(1, 1, 1, 3), mask, LABELS, MIXUP, rng(3)
    )
    assert torch.equal(x[:, :, 0, 2], mixed) and not torch.equal(mixed, LABELS)
    assert torch.allclose(mixed.sum(1), torch.ones(6)) and mixed.min() >= 0
    assert (seen | mask).equal(seen) and seen[3:].equal(mask[3:]) and not seen[:, 2].any()
    never = augment.mix_rows(
        LABELS[:, :, None, None], None, LABELS, replace(MIXUP, mixup_probability=0.0), rng(3)
    )
    assert torch.equal(never[0][:, :, 0, 0], LABELS) and torch.equal(never[2], LABELS)


def test_between_class_pairs_are_of_different_classes_and_weighed_each():
    many = LABELS.repeat(50, 1)
    x, _, mixed, _ = augment.mix_rows(many[:, :, None, None], None, many, BETWEEN, rng(3))
    torch.testing.assert_close(x[:, :, 0, 0], mixed)
    torch.testing.assert_close(mixed.sum(1), torch.ones(300))
    assert ((mixed > 0).sum(1) == 2).all(), "always another class"
    shares = (mixed * many).sum(1)
    assert (
        shares.unique().numel() > 290
        and abs(float(shares.mean()) - 0.5) < 0.05
        and shares.max() > 0.9
        and shares.min() < 0.1
    )
    some = augment.mix_rows(
        many[:, :, None, None], None, many, replace(BETWEEN, mixup_probability=0.6), rng(3)
    )[2]
    assert 0.5 < float(((some > 0).sum(1) == 2).float().mean()) < 0.7
    alone = torch.eye(4)[[0, 0, 0]]
    x, mask, same, _ = augment.mix_rows(
        alone[:, :, None, None], torch.tensor([[True], [False], [False]]), alone, BETWEEN, rng(3)
    )
    assert torch.equal(same, alone) and mask[:, 0].tolist() == [True, False, False], (
        "no other class: nothing is mixed"
    )


@pytest.mark.parametrize("settings", [MIXUP, BETWEEN])
def test_a_mixed_row_counts_by_the_shares_of_its_clips(settings):
    own = torch.tensor([1.0, 0.3, 2.0, 0.5])
    shares, weights = augment.mix_rows(
        LABELS[:, :, None, None], None, LABELS, settings, rng(3), LABELS @ own
    )[2:]
    torch.testing.assert_close(weights, shares @ own)
    assert not torch.allclose(weights, LABELS @ own)


def test_power_domain_adds_powers():
    decibels = torch.from_numpy(rng(1).uniform(-80, 20, (6, 1, 3, 5)).astype(np.float32))
    settings = replace(BETWEEN, mixup_domain="power")
    x, _, mixed, _ = augment.mix_rows(decibels, None, LABELS, settings, rng(4))
    power = 10 ** (decibels.double() / 10)
    for row in range(6):
        share, other = float(mixed[row] @ LABELS[row]), int((mixed[row] * (1 - LABELS[row])).argmax())
        fits = [share * power[row] + (1 - share) * power[i] for i in range(6) if LABELS[i, other]]
        assert any(torch.allclose(10 * f.log10(), x[row].double(), atol=1e-3) for f in fits)
    kept = augment.mix_rows(decibels, None, LABELS, replace(settings, mixup_probability=0.0), rng(4))[0]
    torch.testing.assert_close(kept, decibels, atol=1e-4, rtol=1e-6)


EVERYTHING = TrainingFlags(
    time_shift=0.4,
    gain=6,
    num_masks=2,
    time_mask=4,
    frequency_mask=3,
    time_stretch=0.3,
    frequency_shift=1.5,
    crop_share=0.8,
    mixup=0.4,
)
ROWS = torch.eye(4)[torch.arange(8) % 4]


def batch(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng(seed).normal(size=(8, 2, 7, 9)).astype(np.float32))


@pytest.mark.parametrize("pairs", ["any", "different"])
def test_the_same_generator_gives_the_same_batch(pairs):
    x, mask, settings = batch(), torch.ones(8, 9, dtype=torch.bool), replace(EVERYTHING, mixup_pairs=pairs)
    one, again, other = (
        augment.augment_batch(x, mask, ROWS, settings, rng(seed), torch.arange(8.0)) for seed in (5, 5, 6)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    assert one[0].shape == (8, 2, 7, 7) and one[1].shape == (8, 7) and one[0].isfinite().all()
    same = augment.augment_batch(x, mask, ROWS, TrainingFlags(), rng())
    assert same[0] is x and same[1] is mask and same[2] is ROWS, "nothing by default"


def test_gain_is_one_number_a_row():
    x = batch()
    gained = augment.augment_batch(x, None, ROWS, TrainingFlags(gain=6), rng())[0] - x
    assert (
        torch.allclose(gained, gained[:, :1, :1, :1].expand_as(x), atol=1e-5)
        and gained.flatten(1)[:, 0].unique().numel() == 8
    )
    assert gained.abs().max() <= 6.001 and gained.min() < 0 < gained.max()


def test_rows_are_augmented_on_their_own():
    alone, x = replace(EVERYTHING, mixup=0.0), batch()
    other = x.clone()
    other[:4] = 100
    found = [augment.augment_batch(value, None, ROWS, alone, rng(5))[0][4:] for value in (x, other)]
    assert torch.equal(*found)
    same = augment.augment_batch(x[:1].repeat(8, 1, 1, 1), None, ROWS, alone, rng(5))[0]
    assert len({row.numpy().tobytes() for row in same}) == 8, "equal rows are treated differently"


def test_masks_cover_a_mix_of_two_sounds_and_lie_under_a_mixup():
    """Where a mask covers everything, a mix of two sounds is flat; a mixup of two covered rows keeps both
    floors."""
    x = torch.arange(8.0)[:, None, None, None] + batch().abs()
    settings = TrainingFlags(mixup=1.0, frequency_mask=99, num_masks=40)
    over = augment.augment_batch(x, None, ROWS, replace(settings, mixup_pairs="different"), rng(1))
    assert (over[0].flatten(1).std(1) == 0).all()
    floors = x.amin((1, 2, 3))
    under, _, shares, _ = augment.augment_batch(x, None, ROWS, replace(settings, mixup_pairs="any"), rng(1))
    assert (under.flatten(1).std(1) < 1e-6).all() and not torch.allclose(under[:, 0, 0, 0], floors)


def test_warp_reads_faster_slower_and_from_anywhere():
    time = torch.arange(100.0)
    x = time.repeat(64, 1, 1, 1)
    mask = (time < 60).repeat(64, 1)
    warped, real = augment.warp_time(x, mask, 0.25, 1.0, rng(2))
    assert warped.shape == x.shape
    paces = warped[:, 0, 0, 1] - warped[:, 0, 0, 0]
    assert 0.8 <= paces.min() < 0.85 and 1.2 < paces.max() <= 1.25 and (warped[:, 0, 0, 0] == 0).all()
    for row, pace in zip(warped[:, 0, 0], paces, strict=True):
        inside = time * pace < 99
        torch.testing.assert_close(row[inside], time[inside] * pace, atol=1e-3, rtol=1e-4)
    slow = paces < 1
    assert (real.sum(1) - 60 / paces)[slow].abs().max() <= 1.01 and (
        real.sum(1) >= 60 / paces - 1.01
    ).all(), "a faster clip wraps"
    cropped, real = augment.warp_time(x, mask, 0.0, 0.3, rng(2))
    assert cropped.shape == (64, 1, 1, 30) and cropped[:, 0, 0, 0].unique().numel() == 64
    steps = cropped.diff(dim=3)
    assert torch.allclose(steps[(steps > 0)], torch.ones(()), atol=1e-3), (
        "a crop is read at its own pace, around the end"
    )
    inside = steps[:, 0, 0].abs() < 2  # a frame between the last and the first is a mean of 99 and 0
    assert torch.equal(real[:, :-1][inside], (cropped[:, 0, 0, :-1] < 60)[inside])


def test_frequency_shift_moves_a_peak():
    x = torch.zeros(200, 1, 20, 2)
    x[:, :, 10] = 1
    moved = augment.shift_frequency(x, 3.0, rng())
    at = (moved[:, 0, :, 0] * torch.arange(20)).sum(1)
    assert (
        torch.allclose(moved.sum((1, 2, 3)), torch.full((200,), 2.0))
        and 7 <= at.min() < 7.3
        and 12.7 < at.max() <= 13
    )
    flat = augment.shift_frequency(torch.arange(5.0)[None, None, :, None], 2.0, rng(1))
    assert 0 <= flat.min() and flat.max() <= 4, "edges are held, not wrapped"
