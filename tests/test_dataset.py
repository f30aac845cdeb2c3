"""Cached rows as batches: masks, copies in turn, further views, several labels, predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from earshot.core.config import TrainingFlags
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.training import dataset
from earshot.training.dataset import WindowDataset
from earshot.training.predict import predict
from earshot.training.trainer import get_autocast
from earshot.training.window_pooling import pool_windows

CLASSES = ["a", "b", "c"]
NONE, ALONE = np.full(60, -1), np.full(60, "")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def made_rows(clips: int = 45, full: bool = False, folder: Path | None = None) -> WindowDataset:
    """Clips of three classes that can be told apart a little; every third has two windows; some windows are
    padded."""
    random, labels = rng(), np.arange(clips) % 3
    clip = np.sort(np.concatenate([np.arange(clips), np.arange(0, clips, 3)]))
    mel = random.normal(size=(len(clip), 2, 6, 5)) + np.eye(6)[labels[clip]][:, None, :, None]
    length = np.where(full, 1.0, random.choice([0.05, 0.4, 0.55, 1.0], len(clip))).astype(np.float32)
    mel = mel.astype(np.float16)
    if folder:
        np.save(folder / "mel.npy", mel)
        mel = np.load(folder / "mel.npy", mmap_mode="r")
    split = {
        "ids": np.array([f"c{i}" for i in range(clips)]),
        "labels": np.array(CLASSES)[labels],
        "mel": mel,
        "clip": clip,
        "folds": np.full(clips, -1),
        "groups": np.full(clips, ""),
        "length": length,
    }
    return WindowDataset(split, "mel", CLASSES, 1.0, "cpu")


def test_pool_windows_is_the_mean_per_clip():
    logits = torch.tensor([[1.0, 2], [3, 6], [5, 5], [7, 1]])
    found = pool_windows(logits, torch.tensor([2, 2, 0, 3]), 5)
    assert (
        torch.equal(found[[2, 0, 3]], torch.tensor([[2.0, 4], [5, 5], [7, 1]]))
        and found[[1, 4]].isnan().all()
    )


def test_batches_equal_the_source_resident_or_mapped(tmp_path, monkeypatch):
    resident = made_rows()
    monkeypatch.setattr(dataset, "RESIDENT", 0)
    mapped = made_rows(folder=tmp_path)
    assert isinstance(resident.views["mel"], torch.Tensor) and isinstance(mapped.views["mel"][0], np.memmap)
    assert len(mapped) == 60 and mapped.shape == (2, 6, 5)
    which = np.array([59, 3, 3, 0, 17])
    (x, mask), (y, other) = resident.load_batch(which), mapped.load_batch(which)
    assert x.dtype == torch.float32 and torch.equal(x, y) and torch.equal(mask, other)
    np.testing.assert_array_equal(x.numpy(), mapped.views["mel"][0][which].astype(np.float32))
    parts = list(mapped.iterate_batches(np.arange(7), 3))
    assert [len(part) for part, _ in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part for part, _ in parts]), mapped.load_batch(np.arange(7))[0])


def test_masks_come_from_the_lengths():
    found = made_rows()
    length = {1e-4: 1, 0.4: 2, 0.55: 3, 1.0: 5}  # of five frames; even a sliver is a frame
    split = {
        "ids": np.array(list("wxyz")),
        "labels": np.array(list("abc?")),
        "folds": NONE[:4],
        "groups": ALONE[:4],
        "clip": np.arange(4),
        "length": np.array(list(length), dtype=np.float32),
        "mel": np.zeros((4, 1, 2, 5), np.float16),
    }
    rows = WindowDataset(split, "mel", CLASSES, 1.0, "cpu")
    assert rows.load_batch(np.arange(4))[1].sum(1).tolist() == list(
        length.values()
    ) and rows.labels.tolist() == [
        0,
        1,
        2,
        -1,
    ]
    assert rows.load_batch(np.array([3]))[1].all(), (
        "a full row has its mask too, because another row of the split needs one"
    )
    assert (
        found.masked
        and not made_rows(full=True).masked
        and made_rows(full=True).load_batch(np.arange(3))[1] is None
    )
    picked = np.zeros(45, dtype=bool)
    picked[[0, 4]] = True
    assert found.clip[found.find_rows(picked)].tolist() == [0, 0, 4]


# --- augmented copies


def with_copies(partner: list[int], share: list[float], folder: Path | None = None) -> WindowDataset:
    """Four clips of a window each, and two copies of each: copy c of clip i has the value 10 * (c + 1) +
    i."""
    split = {
        "ids": np.array(list("wxyz")),
        "labels": np.array(["a", "b", "c", "a"]),
        "folds": np.array([1, 1, 2, 2]),
        "groups": ALONE[:4],
        "clip": np.arange(4),
        "length": np.ones(4, np.float32),
        "mel": np.arange(4, dtype=np.float16).reshape(4, 1, 1, 1),
    }
    clip, copy = np.tile(np.arange(4), 2), np.repeat([0, 1], 4)
    made = {
        "clip": clip,
        "copy": copy,
        "partner": np.array(partner),
        "share": np.array(share, np.float32),
        "length": np.ones(8, np.float32),
        "mel": (10.0 * (copy + 1) + clip).astype(np.float16).reshape(8, 1, 1, 1),
    }
    if folder:
        for name, part in (("own", split), ("made", made)):
            np.save(folder / f"{name}.npy", part["mel"])
            part["mel"] = np.load(folder / f"{name}.npy", mmap_mode="r")
    return WindowDataset(split, "mel", CLASSES, 1.0, "cpu", augmented=made)


def values(rows: WindowDataset, which: np.ndarray) -> list[float]:
    return sorted(rows.load_batch(which)[0].flatten().tolist())


@pytest.mark.parametrize("mapped", [False, True])
def test_copies_take_their_turns(tmp_path, monkeypatch, mapped):
    monkeypatch.setattr(dataset, "RESIDENT", 0 if mapped else 1)
    rows = with_copies([-1] * 8, [1.0] * 8, tmp_path if mapped else None)
    assert len(rows) == 4 and len(rows.find_rows(np.ones(4, bool))) == 4, "nobody meets a copy by chance"
    everyone = np.arange(4)
    seen = [values(rows, rows.pick_epoch_rows(everyone, epoch)) for epoch in (1, 2, 3, 4)]
    assert (
        seen[0] == [0, 3, 11, 22]
        and seen[1] == [2, 10, 13, 21]
        and seen[2] == [1, 12, 20, 23]
        and seen[3] == seen[0]
    )
    assert rows.pick_epoch_rows(np.array([1]), 3).tolist() == [1]
    assert torch.equal(
        rows.load_training_batch(np.array([3, 4 + 4 + 1])).targets, torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    )


def test_a_copy_mixed_with_a_clip_outside_is_passed_over():
    partner, share = [1, -1, 3, -1, -1, -1, -1, -1], [0.25, 1, 0.5, 1, 1, 1, 1, 1]
    rows = with_copies(partner, share)
    assert torch.equal(
        rows.load_training_batch(np.array([4, 6, 0])).targets,
        torch.tensor([[0.25, 0.75, 0], [0.5, 0, 0.5], [1, 0, 0]]),
    )
    both, apart = np.array([0, 1]), np.array([0, 2])
    assert values(rows, rows.pick_epoch_rows(both, 2)) == [10, 21]
    assert values(rows, rows.add_copies(both)) == [0, 1, 10, 11, 20, 21] and values(
        rows, rows.add_copies(apart)
    ) == [0, 2, 20, 22]
    for epoch in range(1, 7):
        found = rows.pick_epoch_rows(apart, epoch)
        assert len(found) == 2 and not {4, 6} & set(found.tolist()), (
            "their partners, 1 and 3, are not among the training rows"
        )
    assert values(rows, rows.pick_epoch_rows(apart, 2)) == [2, 20], "the next copy takes the place"


# --- further views and several labels


def test_further_views_come_along_as_integers(monkeypatch):
    split = {
        "ids": np.array(list("xy")),
        "labels": np.array(["a", "b"]),
        "folds": NONE[:2],
        "groups": ALONE[:2],
        "clip": np.arange(2),
        "length": np.ones(2, np.float32),
        "mel": np.zeros((2, 1, 2, 5), np.float16),
        "codes": np.arange(20, dtype=np.int16).reshape(2, 2, 1, 5),
    }
    rows = WindowDataset(split, "mel", CLASSES, 1.0, "cpu", also={"codes": "codes"})
    found = rows.load_training_batch(np.array([1, 0])).extra_views["codes"]
    assert found.dtype == torch.int64 and found[0].flatten().tolist() == list(range(10, 20))
    with pytest.raises(UserError, match="also learns from codes, which the cache lacks .it has mel, other"):
        dataset.check_extra_views(("codes",), {"mel": "spectrogram", "other": "sequence"}, TrainingFlags())
    for changed in (dict(mixup=0.2), dict(time_shift=0.1), dict(crop_share=0.5), dict(time_stretch=0.1)):
        with pytest.raises(UserError, match=f"--{list(changed)[0].replace('_', '-')}: .*codes"):
            dataset.check_extra_views(
                ("codes",), {"mel": "spectrogram", "units": "codes"}, TrainingFlags(**changed)
            )
        dataset.check_extra_views((), {"mel": "spectrogram"}, TrainingFlags(**changed))


def test_several_labels_are_shares_of_their_own():
    matrix = np.array([[1, 1, 0], [0, 0, 0]], dtype=np.int8)
    split = {
        "ids": np.array(list("xy")),
        "labels": matrix,
        "folds": NONE[:2],
        "groups": ALONE[:2],
        "clip": np.arange(2),
        "length": np.ones(2, np.float32),
        "mel": np.zeros((2, 1, 2, 5), np.float16),
    }
    rows = WindowDataset(split, "mel", CLASSES, 1.0, "cpu")
    assert rows.multilabel and rows.truth.tolist() == matrix.tolist() and rows.labels.tolist() == [-1, -1]

    class Head(torch.nn.Module):
        def forward(self, x, mask=None):
            return torch.tensor([[2.0, 0.0, -2.0]]).repeat(len(x), 1)

    found = predict(Head(), rows, np.arange(2), 1, get_autocast(Device("cpu", "fp32", "")))
    np.testing.assert_allclose(found, np.tile(1 / (1 + np.exp([-2.0, 0, 2])), (2, 1)), rtol=1e-6)


def test_shifts_are_rolls_whose_logits_are_averaged():
    rows = made_rows()

    class First(torch.nn.Module):
        def forward(self, x, mask=None):
            real = x if mask is None else x * mask[:, None, None]
            return real[:, 0, :3, 0]

    at = np.arange(len(rows))
    device = get_autocast(Device("cpu", "fp32", ""))
    x, mask = rows.load_batch(at)
    logits = (x * mask[:, None, None])[:, 0, :3]
    want = pool_windows(logits.mean(2), torch.from_numpy(rows.clip).long(), len(rows.ids)).softmax(1)
    np.testing.assert_allclose(predict(First(), rows, at, 7, device, 5), want, atol=1e-5)
    np.testing.assert_allclose(predict(First(), rows, at, 7, device, 99), want, atol=1e-5)
    assert np.abs(predict(First(), rows, at, 7, device) - want.numpy()).max() > 1e-3
