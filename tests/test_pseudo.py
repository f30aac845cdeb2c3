"""Pseudo-labels: nothing of a fold's own labels comes back to it, chance stays chance, exact on restarting,
refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_csv
from test_dataset import CLASSES
from test_seeds import every_file, made_up, stopped_every

import train
from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.training import dataset
from earshot.training.dataset import WindowDataset

LINEAR = ("--recipe", "linear", "--epochs", "12")


def fit(cache: str, name: str, *more: str) -> Path:
    train.main([*LINEAR, "--features", f"data/syn/{cache}", "--name", name, *more])
    return Path("runs") / name


def accuracy(run: Path, kind: str = "oof_last") -> float:
    rows = read_csv(run / f"{kind}.csv")
    classes = [name for name in rows[0] if name.startswith("class")]
    return float(np.mean([max(classes, key=lambda c: float(row[c])) == row["label"] for row in rows]))


def test_a_folds_own_labels_have_no_say_in_its_model(monkeypatch, tmp_path):
    """Two caches that differ in the labels of fold 1 alone: the model of fold 1 is the same, its teacher's
    answers are, too."""
    made_up(monkeypatch, tmp_path, noise=0.5)
    import synthetic

    train_rows, subm = (dict(synthetic.cache.Cache("data/syn/one").split(name)) for name in ("train", "subm"))
    train_rows.pop("meta"), subm.pop("meta")
    first = train_rows["folds"] == 1
    train_rows["labels"] = np.where(first, np.roll(train_rows["labels"], 1), train_rows["labels"])
    synthetic.write_cache(
        Path("data/syn/two"),
        ["class0", "class1", "class2"],
        {"train": train_rows, "subm": subm},
        {"pooled": (24, 1, 1)},
    )
    runs = []
    for cache in ("one", "two"):
        fit(cache, f"{cache}-teacher", "--seeds", "2")
        runs.append(
            fit(
                cache,
                cache,
                "--pseudo",
                f"{cache}-teacher",
                "--pseudo-weight",
                "1",
                "--class-weights",
                "balanced",
                "--refit",
            )
        )
    answers = [checksums.read_array(run / "pseudo.npy") for run in runs]
    assert answers[0].shape == (4, 12, 3) and (answers[0][0] == answers[1][0]).all()
    assert all((answers[0][n] != answers[1][n]).any() for n in (1, 2, 3))
    np.testing.assert_allclose(answers[0][3], answers[0][:3].mean(0), atol=1e-6)
    for name, same in (("fold_1", True), ("fold_2", False), ("refit_0", False)):
        weights = [(run / name / "last" / "model.safetensors").read_bytes() for run in runs]
        assert (weights[0] == weights[1]) is same, name
    assert (runs[0] / "fold_1" / "valid_last.npy").read_bytes() == (
        runs[1] / "fold_1" / "valid_last.npy"
    ).read_bytes()


def test_permuted_labels_stay_at_chance(monkeypatch, tmp_path):
    """Four classes; had every fold learnt from the mean of all folds' models, its own labels would have come
    back to it."""
    made_up(
        monkeypatch,
        tmp_path,
        "permuted",
        clips=120,
        classes=4,
        subm=200,
        noise=0.5,
        permuted=True,
        shapes={"pooled": (64, 1, 1)},
    )
    fit("permuted", "teacher")
    args = ("--pseudo", "teacher", "--pseudo-weight", "1", "--seeds", "2", "--refit", "--epochs", "20")
    run = fit("permuted", "learner", *args)
    chance = 0.25 + 2.5 * np.sqrt(0.25 * 0.75 / 120)  # 0.35
    assert accuracy(Path("runs/teacher")) < chance and accuracy(run) < chance
    shutil.copytree(run, "runs/leak")
    for folder in Path("runs/leak").glob("fold_*"):
        shutil.rmtree(folder)
    answers = checksums.read_array(run / "pseudo.npy")
    checksums.write_array(Path("runs/leak/pseudo.npy"), np.repeat(answers[-1:], len(answers), 0))
    assert accuracy(fit("permuted", "leak", *args)) > chance


def test_stopped_it_ends_the_same_and_damaged_answers_are_made_again(monkeypatch, tmp_path):
    """Several labels a clip, mixed batches."""
    made_up(monkeypatch, tmp_path, multilabel=True)
    fit("one", "teacher")
    args = ("--pseudo", "teacher", "--refit", "--mixup", "0.3", "--batch-size", "16")
    calm = fit("one", "calm", *args)
    patched = pytest.MonkeyPatch()
    stops = stopped_every(patched, 40, *LINEAR, "--features", "data/syn/one", "--name", "stopped", *args)
    patched.undo()
    assert stops >= 3 and every_file(calm) == every_file(Path("runs/stopped"))
    assert (calm / "pseudo.npy").read_bytes() == Path("runs/stopped/pseudo.npy").read_bytes()
    shutil.rmtree("runs/stopped/fold_2")
    Path("runs/stopped/pseudo.npy").write_bytes(b"nothing")
    assert every_file(fit("one", "stopped", *args)) == every_file(calm)
    # once it has answered, what it said is kept; its settings are still compared
    shutil.move("runs/teacher", "runs/elsewhere")
    with pytest.raises(UserError, match="no run named teacher"):
        fit("one", "calm", *args)
    assert every_file(fit("one", "calm", *args[2:], "--pseudo", "runs/elsewhere")) == every_file(calm)


def test_refusals(monkeypatch, tmp_path):
    made_up(monkeypatch, tmp_path)
    made_up(monkeypatch, tmp_path, "bare", subm=0)
    fit("one", "other", "--folds", "2")
    fit("one", "part", "--fold", "1")
    for cache, name, words in (
        ("bare", "part", "data/syn/bare has no clips without labels"),
        ("one", "other", "runs/other was trained with other folds"),
        ("one", "part", "runs/part is not finished .fold 2, 3."),
        ("one", "nobody", "no run named nobody"),
    ):
        with pytest.raises(UserError, match=words):
            fit(cache, "learner", "--pseudo", name)
    with pytest.raises(UserError, match="pseudo-weight"):
        fit("one", "learner", "--pseudo", "part", "--pseudo-weight", "2")
    fit("one", "part")
    fit("one", "learner", "--pseudo", "part")
    with pytest.raises(UserError, match="pseudo.weight: 0.5 there, 0.25 here"):
        fit("one", "learner", "--pseudo", "part", "--pseudo-weight", "0.25")


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_rows_without_labels(monkeypatch, copies, mapped):
    monkeypatch.setattr(dataset, "RESIDENT", 0 if mapped else 1)

    def part(ids: str, clip: list[int], first: float, **more: object) -> dict:
        return {
            "ids": np.array(list(ids)),
            "labels": np.array(["a", "b", "c", "?"])[: len(ids)],
            "folds": np.full(len(ids), -1),
            "groups": np.full(len(ids), ""),
            "clip": np.array(clip),
            "length": np.ones(len(clip), np.float32),
            "mel": (first + np.arange(len(clip))).astype(np.float16).reshape(-1, 1, 1, 1),
            **more,
        }

    made = (
        part(
            "",
            [0, 1, 2],
            10,
            copy=np.zeros(3, int),
            partner=np.array([1, -1, -1]),
            share=np.array([0.5, 1, 1]),
        )
        if copies
        else None
    )
    rows = WindowDataset(
        part("xyz", [0, 1, 2], 0),
        "mel",
        CLASSES,
        1.0,
        "cpu",
        augmented=made,
        unlabelled=part("uvwt", [0, 1, 1, 3], 20),
    )
    assert len(rows) == 3 and rows.labelled == (6 if copies else 3) and not len(rows.sample_unlabelled(0))
    plain = WindowDataset(part("xyz", [0, 1, 2], 0), "mel", CLASSES, 1.0, "cpu", augmented=made)
    soft = np.array([[0.5, 0.25, 0.25], [0, 1, 0], [np.nan] * 3, [np.nan] * 3], dtype=np.float32)
    extended = rows.with_pseudo_labels(soft, 1.0)
    drawn = np.sort(extended.sample_unlabelled(0))  # w has no row, t no prediction
    assert extended.load_batch(drawn)[0].flatten().tolist() == [20, 21, 22] and not len(
        rows.sample_unlabelled(0)
    )
    assert torch.equal(
        extended.load_training_batch(drawn).targets, torch.tensor([[0.5, 0.25, 0.25], [0, 1, 0], [0, 1, 0]])
    )
    assert extended.all_ids[extended.clip_of_row[drawn]].tolist() == ["u", "v", "v"]
    half = rows.with_pseudo_labels(soft, 0.5)
    assert {len(half.sample_unlabelled(seed)) for seed in range(5)} == {2} and len(
        {tuple(half.sample_unlabelled(seed)) for seed in range(9)}
    ) > 1
    few = [extended.sample_unlabelled(seed, 1) for seed in range(9)]  # of v, which has two windows, one
    assert {tuple(sorted(extended.all_ids[extended.clip_of_row[rows]])) for rows in few} == {
        ("u", "v")
    } and len({tuple(sorted(r)) for r in few}) == 2
    everyone = np.arange(3)
    for epoch in (1, 2, 3):  # clips with labels and their copies are what they were
        mine = extended.pick_epoch_rows(everyone, epoch)
        assert np.array_equal(mine, plain.pick_epoch_rows(everyone, epoch)) and torch.equal(
            extended.load_training_batch(mine).targets, plain.load_training_batch(mine).targets
        )
    mixed = np.concatenate([drawn[:1], everyone])
    for batch in extended.prefetch([mixed]):
        assert batch.x.flatten().tolist() == [20, 0, 1, 2]
        assert batch.targets[1:].argmax(1).tolist() == [0, 1, 2]
