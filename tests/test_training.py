"""What training is made of: folds, scores, optimisers with their schedules."""

from __future__ import annotations

import json
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

import models
from earshot.core.config import TrainingFlags
from earshot.core.errors import UserError
from earshot.training import folds, metrics, optim, text_report

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
    found, about = folds.assign_folds(LABELS, own, ALONE, None, seed=0)
    assert found.tolist() == own.tolist() and found.dtype == np.int64 and about == "the data's own 4 folds"


def test_clips_without_a_fold_of_the_datas_are_never_validated():
    own = np.where(np.arange(60) < 20, -1, np.arange(60) % 2)
    assert (folds.assign_folds(LABELS, own, ALONE, None, seed=0)[0][:20] == -1).all()


@pytest.mark.parametrize("elsewhere", [2, -1])
def test_a_group_in_two_of_the_datas_folds_is_refused_by_name(elsewhere):
    own, groups = np.arange(60) // 4 % 3, GROUPS.copy()
    folds.assign_folds(LABELS, own, groups, None, 0)
    own[22] = elsewhere  # of g5, whose fold is 2 % 3
    own[20], own[21], own[23] = 1, 1, 1
    with pytest.raises(UserError, match=rf"group g5 is in folds 1 and {elsewhere}\b.*--folds"):
        folds.assign_folds(LABELS, own, groups, None, 0)
    assert set(folds.assign_folds(LABELS, own, groups, 3, 0)[0]) == {0, 1, 2}, "--folds K fixes it"


@pytest.mark.parametrize("k, count", [(None, 5), (3, 3)])
def test_made_folds_are_stratified_and_keep_groups(k, count):
    found, about = folds.assign_folds(LABELS, NONE, GROUPS, k, seed=1)
    assert (
        sorted(set(found)) == list(range(count))
        and about == f"{count} stratified folds over 15 groups, seed 1"
    )
    assert all(len(set(found[group == GROUPS])) == 1 for group in set(GROUPS))
    for fold in range(count):
        assert np.abs(np.bincount(LABELS[found == fold], minlength=3) - 20 / count).max() <= 2
    alone, about = folds.assign_folds(LABELS, NONE, ALONE, k, seed=1)
    assert "groups" not in about
    for fold in range(count):
        assert np.abs(np.bincount(LABELS[alone == fold], minlength=3) - 20 / count).max() < 1


def test_folds_depend_on_the_seed_alone():
    one, again, other = (folds.assign_folds(LABELS, NONE, GROUPS, 5, seed)[0].tolist() for seed in (7, 7, 8))
    assert one == again != other


@pytest.mark.parametrize(
    "own, groups, k, match",
    [
        (NONE, np.array(["x", "y"] * 30), 5, "2 groups of clips cannot make 5 folds: give --folds 2"),
        (NONE, GROUPS, 16, "15 groups of clips cannot make 16 folds: give --folds 15"),
        (NONE, GROUPS, 1, "at least 2 folds"),
        (np.full(60, 4), ALONE, None, "single fold of its own: give --folds K"),
    ],
)
def test_folds_that_cannot_be_made(own, groups, k, match):
    with pytest.raises(UserError, match=match):
        folds.assign_folds(LABELS, own, groups, k, 0)


def test_few_sources_make_as_many_folds():
    sources = np.array(["x", "y", "z"] * 20)
    found, about = folds.assign_folds(LABELS, NONE, sources, None, 0)
    assert about == "3 stratified folds over 3 groups, seed 0" and len(set(found)) == 3


# --- metrics


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_scikit_learns(seed):
    truth = rng(seed).integers(0, 6, 80)
    probabilities = rng(seed + 50).dirichlet(np.ones(6), 80) + np.eye(6)[truth] * 0.3
    probabilities /= probabilities.sum(1, keepdims=True)
    guess = probabilities.argmax(1)
    want = {f"f1_{how}": sk.f1_score(truth, guess, average=how) for how in ("macro", "micro", "weighted")}
    want |= {
        "accuracy": sk.accuracy_score(truth, guess),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
        "log_loss": sk.log_loss(truth, probabilities, labels=range(6)),
        "roc_auc_macro": sk.roc_auc_score(truth, probabilities, multi_class="ovr", average="macro"),
        "roc_auc_micro": sk.roc_auc_score(truth, probabilities, multi_class="ovr", average="micro"),
    }
    within = [sk.top_k_accuracy_score(truth, probabilities, k=k) for k in (1, 2, 3)]
    want["map_at_3"] = np.diff(within, prepend=0) @ [1, 1 / 2, 1 / 3]
    found = metrics.compute_scores(probabilities, truth, "roc_auc_micro")
    assert set(found) - set(metrics.compute_scores(probabilities, truth)) == {
        "roc_auc_micro"
    }  # only where chosen
    assert found == pytest.approx(want, rel=1e-9) and set(
        get_args(get_type_hints(TrainingFlags)["metric"])
    ) == (set(found) | set(metrics.RANKING))
    assert len({round(value, 6) for value in want.values()}) >= 4, (
        "the scores must differ, or a mix-up would pass"
    )


@pytest.mark.filterwarnings("error")
def test_scores_of_odd_folds():
    """A class that is only predicted, one that never occurs, and a certain mistake."""
    found = metrics.compute_scores(
        np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]], dtype=np.float32), np.array([0, 0, 1])
    )
    assert found["balanced_accuracy"] == pytest.approx(0.75) and found["f1_macro"] == pytest.approx(
        (2 / 3 + 1 + 0) / 3
    )
    assert found["log_loss"] == pytest.approx(-np.log(1e-15) / 3)


def test_roc_auc_of_two_classes_is_the_usual_one():
    truth, odds = rng(1).integers(0, 2, 90), rng(2).normal(size=90) * 20
    second = (1 / (1 + np.exp(-odds - 15 * truth))).astype(np.float32)
    p = np.stack([1 - second, second], 1)
    assert len(np.unique(p[:, 0])) < len(np.unique(second)) < 90, "ties, and more of them next to 1"
    assert metrics.compute_scores(p, truth)["roc_auc_macro"] == pytest.approx(sk.roc_auc_score(truth, second))


def test_roc_auc_micro_is_of_all_pairs_together():
    truth, p = rng(3).integers(0, 4, 70), rng(4).dirichlet(np.ones(5), 70).round(1)  # ties; a class of none
    found = metrics.compute_scores(p, truth, "roc_auc_micro")
    assert found["roc_auc_micro"] == pytest.approx(sk.roc_auc_score(np.eye(5)[truth].ravel(), p.ravel()))
    present = sk.roc_auc_score(np.eye(5)[truth][:, :4], p[:, :4], average="macro")
    assert found["roc_auc_macro"] == pytest.approx(present), "an absent class does not count there"
    several = rng(5).integers(0, 2, (70, 5))
    assert (
        metrics.compute_gain("roc_auc_micro", p, several)
        == metrics.compute_scores(p, several, "roc_auc_micro")["roc_auc_micro"]
    )
    assert metrics.compute_scores(p, several, "roc_auc_micro")["roc_auc_micro"] == pytest.approx(
        sk.roc_auc_score(several, p, average="micro")
    )
    for none in (np.zeros((3, 2), int), np.ones((3, 2), int)):
        assert metrics.compute_scores(np.full((3, 2), 0.4), none, "roc_auc_micro")["roc_auc_micro"] == 0
        assert "roc_auc_micro" in metrics.list_undefined_metrics(none)
    assert metrics.list_undefined_metrics(np.array([1, 1])) == ["roc_auc_macro"]
    assert (
        metrics.compute_scores(np.array([[0.2, 0.8]]), np.array([1]), "roc_auc_micro")["roc_auc_micro"] == 1
    )


def test_report_has_every_class():
    probabilities = np.eye(3)[[0, 1, 1, 0]]
    text = text_report.format_report(probabilities, np.array([0, 1, 0, 0]), ["owl", "jay", "never"])
    table = sk.classification_report(
        [0, 1, 0, 0],
        [0, 1, 1, 0],
        labels=[0, 1, 2],
        target_names=["owl", "jay", "never"],
        digits=4,
        zero_division=0,
    )
    assert text.startswith(table)
    assert [line.split() for line in text.splitlines()[-3:]] == [
        ["owl", "0", "2", "1", "0"],
        ["jay", "1", "0", "1", "0"],
        ["never", "2", "0", "0", "0"],
    ]


# --- optimisers and schedules


class Net(nn.Sequential, models.Head):
    pass


def tuned(settings: TrainingFlags, steps: int):
    torch.manual_seed(0)
    head = Net(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    found = optim.build_optimizer(head, settings)
    return head, found, optim.build_schedule(found, settings, steps)


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

    settings = TrainingFlags(
        optimizer=kind, schedule=form, epochs=4, lr=0.05, weight_decay=0.1, step_epochs=1
    )
    head, optimizer, schedule = tuned(settings, 5)
    whole = advance(head, optimizer, schedule, 0, 20)
    half = tuned(settings, 5)
    rates = advance(*half, 0, 7)
    tensors, rest = optim.pack_state(half[1])
    rest, steps_done = json.loads(json.dumps(rest)), half[2].last_epoch
    weights, tensors = load(save(half[0].state_dict())), load(save(tensors))
    fresh = tuned(settings, 5)
    fresh[0].load_state_dict(weights)
    optim.restore_state(fresh[1], tensors, rest)
    fresh[2].last_epoch = steps_done
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
    kinds = {
        kind: tuned(TrainingFlags(optimizer=kind, lr=0.3, weight_decay=0.2), 1)[1]
        for kind in ("adamw", "adam", "sgd")
    }
    assert [type(o) for o in kinds.values()] == [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD]
    assert kinds["sgd"].param_groups[0]["nesterov"] and all(
        o.param_groups[0]["weight_decay"] == 0.2 for o in kinds.values()
    )
    head = Net(nn.Linear(2, 2))
    head[0].bias.requires_grad_(False)
    assert (
        sum(p.numel() for p in optim.build_optimizer(head, TrainingFlags()).param_groups[0]["params"]) == 4
    ), "frozen ones stay"


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_biases_are_not_decayed_where_clips_have_several_labels(kind):
    settings = TrainingFlags(optimizer=kind, lr=0.1, weight_decay=0.5)
    for decay_biases, kept in ((False, {"0.bias", "1.weight", "1.bias"}), (True, set())):
        head = Net(nn.Linear(4, 8), nn.LayerNorm(8))
        nn.init.ones_(head[1].bias)
        optimizer = optim.build_optimizer(head, settings, decay_biases)
        before = {name: p.clone() for name, p in head.named_parameters()}
        for parameter in head.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert {name for name, p in head.named_parameters() if torch.equal(p, before[name])} == kept


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "step", "constant"])
def test_a_head_scales_the_learning_rate_of_its_parameters(schedule):
    class Scaled(Net):
        def scale_lr(self, parameter):
            return 0.25 if parameter.startswith("0.") else 1.0

    settings = TrainingFlags(lr=0.2, schedule=schedule, epochs=3, warmup=0.25, step_epochs=1)
    head = Scaled(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = optim.build_optimizer(head, settings)
    plan = optim.build_schedule(optimizer, settings, 4)
    highest = []
    for _ in range(12):
        low, high = (group["lr"] for group in optimizer.param_groups)
        assert low == pytest.approx(0.25 * high), "over the whole course"
        highest.append(high)
        optimizer.step()
        plan.step()
    assert max(highest) == pytest.approx(0.2)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    tensors, rest = optim.pack_state(optimizer)
    optim.restore_state(optimizer, tensors, rest)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * optimizer.param_groups[1]["lr"])


def test_map_macro_of_one_label_is_that_of_each_class_against_the_rest():
    truth, p = rng(6).integers(0, 4, 70), rng(7).dirichlet(np.ones(5), 70)
    want = np.mean([sk.average_precision_score(truth == c, p[:, c]) for c in range(4)])  # none of the fifth
    assert metrics.compute_scores(p, truth, "map_macro")["map_macro"] == pytest.approx(want)
    assert metrics.compute_gain("map_macro", p, truth) == pytest.approx(
        want
    ) and "map_macro" in metrics.list_for_task(False)
    assert "map_macro" not in metrics.compute_scores(p, truth)
