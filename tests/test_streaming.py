"""Caches larger than the memory granted: read from the disk batch by batch, the same bits, no memory that
grows with the rows."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_competition
from test_dataset import CLASSES, rng
from test_fitter import BUSY, CPU, NEVER, StopsAt, Tiny, outcome

import get_features
import train
from earshot.core import memory
from earshot.training.checkpoint import FoldFolder
from earshot.training.dataset import WindowDataset
from earshot.training.trainer import Fold, Trainer


def rows_on_disk(
    folder: Path, gigabytes: float | None, clips: int = 45, shape: tuple[int, ...] = (2, 6, 5)
) -> WindowDataset:
    """Clips with two copies each, mixed ones among them, and a further view of integers; the views are memory
    maps."""
    folder.mkdir(exist_ok=True)
    random, clip = rng(), np.arange(clips)
    own = {
        "ids": np.array([f"c{i}" for i in range(clips)]),
        "labels": np.array(CLASSES)[clip % 3],
        "clip": clip,
        "folds": np.full(clips, -1),
        "groups": np.full(clips, ""),
        "length": random.choice([0.4, 1.0], clips).astype(np.float32),
    }
    partner = np.where(random.random(2 * clips) < 0.4, random.integers(0, clips, 2 * clips), -1)
    made = {
        "clip": np.repeat(clip, 2),
        "copy": np.tile([0, 1], clips),
        "partner": partner,
        "share": np.where(partner < 0, 1, 0.7).astype(np.float32),
        "length": np.ones(2 * clips, np.float32),
    }
    for name, part in (("own", own), ("made", made)):
        for view, values in (
            ("mel", random.normal(size=(len(part["clip"]), *shape)).astype(np.float16)),
            ("codes", random.integers(0, 99, (len(part["clip"]), 1, 1, 5)).astype(np.int16)),
        ):
            np.save(folder / f"{name}-{view}.npy", values)
            part[view] = np.load(folder / f"{name}-{view}.npy", mmap_mode="r")
    return WindowDataset(own, "mel", CLASSES, 1.0, "cpu", {"codes": "codes"}, made, gigabytes)


def placed(rows: WindowDataset) -> list[str]:
    return [str(found.dtype) if torch.is_tensor(found) else "disk" for found in rows.views.values()]


def test_memory_decides_what_is_kept(tmp_path):
    bytes16 = 135 * 60 * 2
    for gigabytes, want in (
        (1.0, ["torch.float32", "torch.int16"]),
        (None, ["torch.float32", "torch.int16"]),
        (0.0, ["disk", "disk"]),
        (bytes16 / 1e9, ["torch.float16", "disk"]),
        (2000 / 1e9, ["disk", "torch.int16"]),
    ):
        rows = rows_on_disk(tmp_path, gigabytes)
        assert placed(rows) == want and rows.streams == ("disk" in want)


@pytest.mark.parametrize("gigabytes", [0.0, 135 * 60 * 2 / 1e9, 2000 / 1e9])
@pytest.mark.parametrize("changes", [{}, {"optimizer": "sam", "ema": 0.9, "crop_share": 0.6}])
def test_the_same_bits_from_memory_and_from_disk_resumed_or_not(tmp_path, gigabytes, changes):
    class Sums(Tiny):
        def loss(self, batch, criterion):
            codes = batch["codes"].float().mean((1, 2, 3))
            return criterion(self(batch["x"], batch["mask"])) + 1e-3 * (codes * self.outer.bias[0]).mean()

    settings, valid, found = replace(BUSY, epochs=3, **changes), np.arange(45) % 5 == 1, []

    def fitter(name: str, rows) -> Trainer:
        return Trainer(
            lambda: Sums(dropout=0.5),
            rows,
            Fold(1, 5, ~valid, valid),
            settings,
            3,
            FoldFolder(tmp_path / name),
            CPU,
        )

    for name, much, stops in (
        ("kept", 1.0, ()),
        ("streamed", gigabytes, ()),
        ("stopped", gigabytes, (3, 1, 8)),
    ):
        rows = rows_on_disk(tmp_path / "data", much)
        assert rows.streams == (name != "kept")
        for stop in stops:
            assert not fitter(name, rows).fit(str, StopsAt(stop), 0)
        assert fitter(name, rows).fit(str, NEVER, 0)
        found.append(outcome(tmp_path / name))
    for other in found[1:]:
        assert other[2:] == found[0][2:]
        for mine, theirs in zip(other[:2], found[0][:2], strict=True):
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_batch_is_read_while_the_one_before_is_worked_on(tmp_path):
    rows = rows_on_disk(tmp_path, 0.0)
    fetch, seen, batches = rows._fetch, [], [np.array([5, 100]), np.array([7]), np.array([130, 2])]
    rows._fetch = lambda name, which: (seen.append((name, which.tolist())), fetch(name, which))[1]
    coming = rows.prefetch(batches)
    first = next(coming)
    assert first.rows is batches[0] and seen[:2] == [("mel", [5, 100]), ("codes", [5, 100])]
    np.testing.assert_array_equal(
        first.x[1].numpy(), np.load(tmp_path / "made-mel.npy")[55].astype(np.float32)
    )
    assert [batch.rows.tolist() for batch in coming] == [[7], [130, 2]] and len(seen) == 6, "read once"
    rows.load_batch(first.rows)
    assert len(seen) == 7, "later it has to be read again"
    broken = rows.prefetch(batches)
    rows._fetch = lambda name, which: (_ for _ in ()).throw(OSError("the disk is gone"))
    with pytest.raises(OSError, match="the disk is gone"):
        next(broken)


def anonymous() -> int:
    """Kilobytes of this process that are no file's."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells it")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    rows = rows_on_disk(tmp_path, 0.0, 1500, (1, 64, 251))  # 145 MB, 289 as float32
    before, most = anonymous(), 0
    batches = np.array_split(rng().permutation(4500), 140)
    for _ in rows.prefetch(batches):
        most = max(most, anonymous())
    assert most - before < 40_000, f"{most - before} kB more"
    kept = rows_on_disk(tmp_path, 1.0, 1500, (1, 64, 251))
    assert not kept.streams and anonymous() - before > 250_000, "what is measured is what is meant"


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = memory.get_free(torch.device("cpu"))
    assert 1 << 24 < free < 1 << 50
    for name, text in (
        ("memory.max", "1000000\n"),
        ("memory.current", "600000\n"),
        ("memory.stat", "anon 7\ninactive_file 50000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory.get_free(torch.device("cpu")) == 450_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.get_free(torch.device("cpu")) > 1 << 24


def test_the_flag_changes_no_byte_of_a_run(tmp_path, monkeypatch):
    make_competition(tmp_path / "tones", train=8, subm=2)
    monkeypatch.chdir(tmp_path)
    get_features.main(["--competition", "tones", "--extractor", "logmel", "--augment", "1"])
    files = []
    for name, flags in (("kept", []), ("streamed", ["--memory", "0"])):
        train.main(
            [
                "--recipe",
                "linear",
                "--epochs",
                "3",
                "--folds",
                "2",
                "--name",
                name,
                "--out",
                f"{name}.csv",
                *flags,
            ]
        )
        files.append(
            {
                p.relative_to(tmp_path / "runs" / name).as_posix(): p.read_bytes()
                for p in (tmp_path / "runs" / name).rglob("*")
                if p.suffix in (".safetensors", ".npy") or p.name.startswith("oof")
            }
        )
        files[-1]["submission"] = (tmp_path / f"{name}.csv").read_bytes()
    assert files[0] == files[1] and len(files[0]) >= 9
