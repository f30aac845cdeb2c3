"""Clips that count less than others, and clips that are only trained on: from the table to the trained
weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import made_cache
import numpy as np
import pytest
import torch
from conftest import make_competition, read_csv, script
from safetensors.torch import load_file
from test_restart import kill_when
from torch import nn

import models
import predict
import train
from earshot.competition.load import load
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.features import cache, extract, plan
from earshot.training import clip_weights as row_weights
from earshot.training import folds
from earshot.training.loss import Criterion, accumulate_gradients, balance_classes

CPU = Device("cpu", "fp32", "CPU")
N, SHAPE = 60, {"pooled": (8, 1, 1)}
OWN = np.array([-2 if i >= 40 else i // 3 % 3 for i in range(N)], dtype=np.int32)
GROUPS = np.array(["g" if i in (0, 41) else "" for i in range(N)])  # fold 0's first clip, one of the -2
WEIGHTS = np.where(OWN == -2, 0.3, 1).astype(np.float32)


# --- folds


@pytest.mark.parametrize("own, k", [(OWN, None), (np.where(OWN == -2, -2, -1), None), (OWN, 4)])
def test_clips_that_are_only_trained_on_are_in_no_fold(own, k):
    found, about = folds.assign_folds(np.arange(N) % 3, own, GROUPS, k, 0)
    assert (found[40:] == -2).all() and set(found[:40]) == set(range(k or (3 if own is OWN else 5)))
    assert about.endswith(
        "; 20 clips are only trained on, 1 of them not in the fold that validates their group"
    )
    for fold in range(3):
        learnt = folds.select_training_clips(found, GROUPS, fold)
        want = found != fold
        want[41] = found[0] != fold
        assert (learnt == want).all()


def test_the_other_clips_folds_are_as_without_them():
    labels, none = np.arange(N) % 3, np.where(OWN == -2, -2, -1)
    found = folds.assign_folds(labels, none, GROUPS, None, 0)[0][:40]
    assert (found == folds.assign_folds(labels[:40], none[:40], GROUPS[:40], None, 0)[0]).all()
    own = OWN.copy()
    own[30:40] = -1  # trained on in every fold, as ever
    assert (folds.assign_folds(labels, own, GROUPS, None, 0)[0] == own).all()
    with pytest.raises(UserError, match="all 60 training clips are for training only"):
        folds.assign_folds(labels, np.full(N, -2), GROUPS, None, 0)
    alone, about = folds.assign_folds(labels, OWN, np.full(N, ""), None, 0)
    assert about.endswith("20 clips are only trained on") and folds.select_training_clips(alone, GROUPS, 1)[0]


# --- rows and losses


def test_a_copys_weight_is_that_of_its_clips_by_their_shares():
    found = row_weights.weigh_rows(
        np.array([1, 0.5, 0.2]), np.array([0, 1, 1, 2, 0, 1, 4]), 4, np.array([2, -1]), np.array([0.75, 1])
    )
    assert found == pytest.approx([1, 0.5, 0.5, 0.2, 0.75 + 0.05, 0.5, 1]) and found.dtype == np.float32


class Own(models.Head):
    """A head with a loss of its own: of mixed rows, of plain ones, and of something without labels."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x, mask=None):
        return self.fc(x.flatten(1))

    def loss(self, batch, criterion):
        logits = self(batch["x"])
        return criterion(logits) + criterion(self(batch["plain"]), plain=True) + logits.square().mean()


class Usual(models.Head):
    """A head without one."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x, mask=None):
        return self.fc(x.flatten(1))


def batch(multilabel: bool) -> tuple[dict, torch.Tensor]:
    """Ten rows, mixed and plain, and the mixed rows' targets."""
    draw = torch.Generator().manual_seed(1)
    x, plain = (torch.randn(10, 6, 1, 1, generator=draw) for _ in range(2))
    targets, others = (torch.rand(10, 3, generator=draw) for _ in range(2))
    if not multilabel:
        targets, others = (one / one.sum(1, keepdim=True) for one in (targets, others))
    weights, more = (torch.rand(10, generator=draw) + 0.1 for _ in range(2))
    some = {"x": x, "mask": None, "weights": weights, "plain": plain, "plain_targets": others}
    return {**some, "plain_mask": None, "plain_weights": more}, targets


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("focal", [False, True])
@pytest.mark.parametrize("balanced", [None, torch.tensor([0.5, 1.0, 3.0])])
def test_the_loss_is_the_weighted_mean_whatever_the_memory(multilabel, focal, balanced):
    some, targets = batch(multilabel)
    criterion = Criterion(multilabel, 0.1, balanced, focal)
    for kind in (Usual, Own):
        torch.manual_seed(0)
        head, scaler, found = kind(), torch.amp.GradScaler("cpu", enabled=False), []
        plain = torch.autocast("cpu", enabled=False)
        for most in (10, 4, 1):
            head.zero_grad()
            loss = accumulate_gradients(head, criterion, some, targets, most, plain, scaler)
            found.append((loss, *(p.grad.clone() for p in head.parameters())))
        for other in found[1:]:
            for one, same in zip(found[0], other, strict=True):
                torch.testing.assert_close(same, one, atol=1e-6, rtol=1e-5)
        if kind is Usual:
            logits = head(some["x"])
            each = torch.stack([criterion(logits[i : i + 1], targets[i : i + 1]) for i in range(10)])
            by = criterion.weigh_rows(targets) * some["weights"]
            torch.testing.assert_close(found[0][0], ((each * by).sum() / by.sum()).detach())
            twice = criterion(logits, targets, None, 2 * some["weights"])
            torch.testing.assert_close(twice.detach(), found[0][0], msg="the learning rate means the same")


@pytest.mark.parametrize("multilabel", [False, True])
def test_balanced_classes_are_balanced_by_weights(multilabel):
    """A clip of weight 2 is as two clips."""
    several = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
    targets = (several if multilabel else np.eye(3)[[0, 0, 0, 1, 2]]).astype(np.float32)
    rows = SimpleNamespace(targets=targets, clip=np.arange(5), multilabel=multilabel)
    twice, each = np.array([0, 1, 2, 3, 4, 4]), np.arange(5)
    rows.weights = None
    want = balance_classes(rows, twice)[:2]  # of the classes that occur in either
    rows.weights = np.array([1, 1, 1, 1, 2], dtype=np.float32)
    assert balance_classes(rows, each)[:2] == pytest.approx(want)
    rows.weights = rows.weights * np.float32(0.1)
    assert balance_classes(rows, each)[:2] == pytest.approx(want), "however small they are"


@pytest.mark.parametrize("name", ["logistic", "svm"])
@pytest.mark.parametrize("several", [False, True])
def test_a_fitted_head_takes_a_clip_of_weight_two_as_two(name, several):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 5, 1, 1)).astype(np.float32))
    y = np.eye(2)[np.arange(40) % 2]
    if several:
        y[:7, 0] = 1
    every, twice = np.arange(40), np.r_[np.arange(40), np.arange(10)]
    weights, found = np.where(every < 10, 2, 1).astype(np.float32), []
    for rows, by in ((twice, None), (every, weights), (every, None)):
        head = models.build(name, (5, 1, 1), 2)
        head.standardise.fit([x.flatten(1)])  # of all alike
        head.fit_standardisation = partial(lambda which, _: x.flatten(1)[which].numpy(), rows)
        head._scale = lambda *rest: 1.0  # found by folds within, which copies change
        head.solve([], y[rows], rows, several, by)
        found.append(head(x))
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=2e-3)
    assert not torch.allclose(found[0], found[2], atol=1e-2)


# --- from a table to the cache


def planned(root: Path, out: Path, **columns) -> plan.Plan:
    """A plan of log-mel features of a competition, some columns of its clips replaced."""
    from earshot import extractors
    from earshot.audio.load import AudioSettings
    from earshot.core.config import WindowFlags

    competition = load(root, out=out)
    for name, values in columns.items():
        if name == "metric":
            competition.metric = values
        else:
            competition.clips.loc[competition.clips.split == "train", name] = values
    settings = extractors.load_module("logmel").Settings(n_mels=8)
    return plan.make_plan(
        competition, out, "logmel", settings, AudioSettings(), WindowFlags(), None, None, None, 1
    )


def test_a_cache_has_weights_only_where_clips_count_differently(tmp_path):
    root = make_competition(tmp_path / "tones", train=4, subm=2, seconds=0.2)
    (root / "audio_train" / "001.wav").write_bytes(b"none")
    plain = planned(root, tmp_path / "plain")
    weights = np.where(np.arange(12) < 8, 1, 0.3)
    only = np.where(weights < 1, -2, -1)
    made = planned(root, tmp_path / "data", weight=weights, fold=only, metric="lwlrap")
    assert "metric" not in plain.record and made.record["metric"] == "lwlrap"
    records = [one.record["clips"] for one in (plain, made, planned(root, tmp_path / "d", fold=only))]
    assert len({one["train"] for one in records}) == 3 and len({one["subm"] for one in records}) == 1
    for one in (plain, made):
        one.folder.mkdir(parents=True, exist_ok=True)
        extract.run(one, CPU, 4, 1, SimpleNamespace(is_over=lambda: False))
    before, found = cache.Cache(plain.folder), cache.Cache(made.folder)
    assert "weights" not in before.split("train") and "weights" not in found.split("subm")
    train, low = found.split("train"), np.float32(0.3)
    assert train["weights"].dtype == np.float32 and train["weights"].tolist() == [1] * 7 + [low] * 4
    assert train["folds"].tolist() == [-1] * 7 + [-2] * 4
    counts = np.array([train["weights"] @ (train["labels"] == name) for name in found.classes])
    assert found.prior() == pytest.approx(counts / counts.sum())
    assert before.prior() == pytest.approx([4 / 11, 3 / 11, 4 / 11])


@pytest.mark.parametrize("wrong", [0, -1, np.nan, np.inf, 1e-60])
def test_a_weight_that_is_none_is_refused_before_anything_is_read(tmp_path, wrong):
    root = make_competition(tmp_path / "tones", train=2, subm=1, seconds=0.1)
    with pytest.raises(UserError, match="clip 003.wav has the weight .* above 0"):
        planned(root, tmp_path / "out", weight=[1, 1, 0.5, wrong, 1, 1])


@pytest.mark.parametrize(
    "weights, words",
    [
        (np.ones(59, np.float32), "59 weights for 60 clips"),
        (np.zeros(60, np.float32), "weight that is not a number above 0"),
        (np.full(60, np.nan), "weight that is not a number above 0"),
        (np.ones(60, int), "weights of kind int64"),
    ],
)
def test_a_caches_weights_are_checked(tmp_path, weights, words):
    folder = made_cache.make(tmp_path / "data" / "c" / "a", SHAPE, train={"weights": weights})
    with pytest.raises(UserError, match=words):
        cache.Cache(folder).split("train")


# --- training

QUICK = ("--no-report", "--device", "cpu")


def run_of(name: str, *args: str, cache: str = "w") -> Path:
    """A run on one of the caches."""
    train.main(["--features", f"data/{cache}/a", "--name", name, *QUICK, *args])
    return Path("runs") / name


def same(one: Path, other: Path, fold: int = 0) -> bool:
    """Did a fold of two runs end with the same weights?"""
    a, b = (load_file(run / f"fold_{fold}" / "last" / "model.safetensors") for run in (one, other))
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of the same clips: w with weights, n without, l with other features of the clip that shares
    fold 0's group."""
    monkeypatch.chdir(tmp_path)
    more = {"folds": OWN, "groups": GROUPS, "weights": WEIGHTS}
    made_cache.make(Path("data/w/a"), SHAPE, signal=0.4, train=more)
    made_cache.make(Path("data/n/a"), SHAPE, signal=0.4, train={"folds": OWN, "groups": GROUPS})
    pooled = np.array(cache.Cache("data/w/a").split("train")["pooled"])
    pooled[41] = 50
    made_cache.make(Path("data/l/a"), SHAPE, signal=0.4, train={**more, "pooled": pooled})
    return tmp_path


def test_weights_and_folds_from_the_cache_to_the_run(work, capsys):
    run = run_of("a", "--recipe", "logistic")
    said = capsys.readouterr().out
    assert "weights: 20 of 60 clips count 0.3 in the loss; scores count all alike" in said
    assert "the data's own 3 folds; 20 clips are only trained on, 1 of them not in the fold" in said
    for name in ("oof.csv", "oof_last.csv"):
        assert {row["id"] for row in read_csv(run / name)} == {f"train{i:04d}.wav" for i in range(40)}
    other = run_of("b", "--recipe", "logistic", cache="n")
    assert "weights:" not in capsys.readouterr().out and not same(run, other)
    leaking = run_of("c", "--recipe", "logistic", cache="l")
    assert same(run, leaking, 0) and not same(run, leaking, 1), "fold 0 is not told of its group elsewhere"
    run_of("d", "--recipe", "knn")
    assert "weights: ignored, because knn cannot weight clips" in capsys.readouterr().out
    assert not same(run_of("e", "--recipe", "svm"), run_of("f", "--recipe", "svm", cache="n"))
    capsys.readouterr()
    run_of("g", "--recipe", "logistic", "--folds", "4")
    assert "folds: 0-3 (4 stratified folds, seed 0; 20 clips are only trained on" in capsys.readouterr().out


BUSY = (
    "--recipe",
    "mlp",
    "--batch-size",
    "7",
    "--mixup",
    "1",
    "--class-weights",
    "balanced",
    "--loss",
    "focal",
)


def test_weights_reach_a_network_its_teacher_and_its_blend(work, capsys):
    args = (*BUSY, "--epochs", "2", "--refit")
    teacher = run_of("a", *args)
    assert not same(teacher, run_of("b", *args, cache="n"))
    learner = run_of("c", *args, "--pseudo", "a")
    assert not same(teacher, learner) and len(read_csv(learner / "oof.csv")) == 40
    capsys.readouterr()
    predict.main(["--runs", "a", "c", "--blend", "auto", "--device", "cpu"])
    assert "out-of-fold, last epoch, 40 clips" in capsys.readouterr().out


def test_trials_are_scored_on_validated_clips_alone(work, capsys):
    pytest.importorskip("optuna")
    run = run_of("a", "--recipe", "mlp", "--epochs", "2", "--tune", "1")
    assert "best of 1: f1_macro" in capsys.readouterr().out and len(read_csv(run / "oof.csv")) == 40


@pytest.mark.slow
def test_a_killed_run_and_several_devices_end_alike(work):
    args = (*BUSY, "--epochs", "6", "--save-every", "0")
    whole, killed = run_of("a", *args), Path("runs/b")
    command = ("train.py", "--features", "data/w/a", "--name", "b", *QUICK, *args)
    kill_when(*command, cwd=work, ready=lambda: (killed / "fold_1" / "last").exists())
    script(*command, cwd=work)
    assert (killed / "oof_last.csv").read_bytes() == (whole / "oof_last.csv").read_bytes()
    assert all(same(killed, whole, fold) for fold in range(3))
    script(
        "train.py",
        "--features",
        "data/w/a",
        "--name",
        "c",
        *QUICK[:1],
        *args,
        "--device",
        "cpu,cpu",
        cwd=work,
    )
    assert all(same(Path("runs/c"), whole, fold) for fold in range(3))


# --- the contest's metric


def contest(monkeypatch: pytest.MonkeyPatch, folder: Path, metric: str, multilabel: bool = False) -> None:
    """A cache that knows its contest's metric, in the folder that is worked in."""
    monkeypatch.chdir(folder)
    made_cache.make(Path("data/c/a"), SHAPE, metric=metric, multilabel=multilabel, test=9)


def test_the_contests_metric_is_the_default_and_a_flag_overrules_it(tmp_path, monkeypatch, capsys):
    contest(monkeypatch, tmp_path, "roc_auc_micro")
    line = "metric: roc_auc_micro, the contest's own (--metric overrides)"

    def said(*args: str) -> str:
        train.main([*args, *QUICK])
        return capsys.readouterr().out

    plain = said("--recipe", "logistic", "--name", "a")
    assert plain.splitlines()[1] == line and plain.count(line) == 1
    assert "  roc_auc_micro 0." in plain and "roc_auc_micro by fold" in plain
    assert "roc_auc_micro" in Path("runs/a/fold_0/best/head.json").read_text()
    assert "metric: roc_auc_micro" in Path("runs/a/config.yaml").read_text()
    assert read_csv(Path("submissions/ledger.csv"))[0]["metric"] == "roc_auc_micro"
    for name, args in (("b", ("--metric", "accuracy")), ("c", ("--metric=accuracy",))):
        found = said("--recipe", "logistic", "--name", name, *args)
        assert "contest's" not in found and "accuracy by fold" in found
    Path("own.yaml").write_text("head: {name: logistic}\ntraining: {metric: balanced_accuracy}\n")
    found = said("--recipe", "own.yaml", "--name", "d")
    assert "contest's" not in found and "balanced_accuracy by fold" in found
    found = said("--recipe", "auto", "--candidates", "logistic", "knn", "--name", "e")
    assert line in found and "oof_roc_auc_micro" in Path("runs/leaderboard.csv").read_text().splitlines()[0]
    predict.main(["--runs", "a", "runs/e/knn-pooled-a", "--blend", "auto", "--device", "cpu"])
    assert "roc_auc_micro" in capsys.readouterr().out.splitlines()[2], (
        "a blend aims at what its runs aimed at"
    )


@pytest.mark.parametrize("metric, multilabel", [("lwlrap", False), ("map_at_3", True), ("padded_cmap", True)])
def test_a_contests_metric_that_the_task_lacks_is_a_warning(
    tmp_path, monkeypatch, capsys, metric, multilabel
):
    contest(monkeypatch, tmp_path, metric, multilabel)
    labels = "several labels" if multilabel else "one label each"
    for args in (("--recipe", "logistic"), ("--recipe", "auto", "--candidates", "logistic")):
        train.main([*args, *QUICK])
        said = capsys.readouterr().out
        line = f"warning: the contest's metric {metric} is not available for clips with {labels}: using"
        assert line in said and "f1_macro" in said
    with pytest.raises(UserError, match="--metric (lwlrap|map_at_3) is for clips with"):
        train.main(["--metric", "map_at_3" if multilabel else "lwlrap", *QUICK])
