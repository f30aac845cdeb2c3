"""Weights, factors and thresholds of blends: what they gain where there is something to gain, and nothing
where there is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from earshot.core.errors import UserError
from earshot.prediction import blend_weights, significance, thresholds
from earshot.prediction.blend_weights import ALONE, AUTO, METHODS, FittedBlend, fit_blend
from earshot.training import metrics
from earshot.training import metrics as earshot_metrics

CLIPS, CLASSES, SEEDS = 400, 10, 4


def probabilities(logits: np.ndarray, multilabel: bool = False) -> np.ndarray:
    if multilabel:
        return 1 / (1 + np.exp(-logits))
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def drawn(
    seed: int,
    strengths: tuple,
    multilabel: bool = False,
    clips: int = CLIPS,
    prior: np.ndarray | None = None,
    noise: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Members whose logits are strength x truth + noise of their own; truth; folds."""
    rng = np.random.default_rng(seed)
    prior = np.full(CLASSES, 0.15 if multilabel else 1 / CLASSES) if prior is None else prior
    truth = (
        (rng.random((clips, len(prior))) < prior).astype(np.int8)
        if multilabel
        else rng.choice(len(prior), clips, p=prior)
    )
    signal = truth if multilabel else np.eye(len(prior))[truth]
    logits = np.stack(
        [s * signal + noise * rng.standard_normal(signal.shape) - (2 if multilabel else 0) for s in strengths]
    )
    return probabilities(logits, multilabel), truth, rng.integers(0, 5, clips)


def fooled(seed: int, strengths: tuple, multilabel: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Out-of-fold predictions of real models (class centroids of random features) that were trained on labels
    without meaning."""
    _, truth, folds = drawn(seed, strengths, multilabel)
    rng = np.random.default_rng(seed + 100)
    yes = truth if multilabel else np.eye(CLASSES)[truth]
    members = []
    for size in (5, 20, 60, 60, 120):
        x, out = rng.standard_normal((CLIPS, size)), np.zeros((CLIPS, CLASSES))
        for fold in range(5):
            train, valid = folds != fold, folds == fold
            share = yes[train] / np.maximum(yes[train].sum(0), 1)
            out[valid] = probabilities(
                x[valid] @ (x[train].T @ share) * 2 - (2 if multilabel else 0), multilabel
            )
        members.append(out)
    return np.stack(members), truth, folds


def above_chance(predictions: list[np.ndarray], truths: list[np.ndarray]) -> tuple[float, float]:
    """Macro-F1 above that of the same answers given to clips at random, the mean over draws; and the same in
    standard errors."""
    rng, above, variance = np.random.default_rng(0), 0.0, 0.0
    for p, truth in zip(predictions, truths, strict=True):
        chance = [
            earshot_metrics.compute_gain("f1_macro", p, truth[rng.permutation(len(truth))]) for _ in range(40)
        ]
        above, variance = (
            above + earshot_metrics.compute_gain("f1_macro", p, truth) - float(np.mean(chance)),
            variance + float(np.var(chance)),
        )
    return above / len(truths), above / np.sqrt(variance)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize(
    "methods, hasty, make",
    [
        (("mean",), True, drawn),
        (("pool",), True, drawn),
        (AUTO, False, drawn),
        (AUTO, True, fooled),
    ],
)
def test_labels_without_meaning_score_at_chance(
    methods: tuple, hasty: bool, make, multilabel: bool, monkeypatch
) -> None:
    """Through every method, with factors and thresholds; also (`hasty`) if whatever looks better at all were
    taken."""
    if hasty:
        monkeypatch.setattr(significance, "exceeds_noise", lambda gain, error: gain > 0)
    predictions, truths = [], []
    for seed in range(SEEDS):
        members, truth, folds = make(seed, (0,) * 5, multilabel)
        predictions.append(fit_blend(members, truth, folds, "f1_macro", ["m"] * len(members), methods).oof)
        truths.append(truth)
    rises, errors = above_chance(predictions, truths)
    # Below chance is honest: a threshold moves the way the other folds lean, and so against this one.
    assert errors < 3 and abs(rises) < 0.025, (rises, errors)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("method", (ALONE, *METHODS))
def test_the_same_fit_scored_on_its_own_clips_would_be_seen(method: str, multilabel: bool) -> None:
    """Else the test above could not fail."""
    predictions, truths = [], []
    for seed in range(SEEDS):
        members, truth, _ = drawn(seed, (0,) * 5, multilabel)
        p = blend_weights.fit_weights(method, members, truth).apply(members)
        predictions.append(thresholds.apply(p, thresholds.fit(p, truth, "f1_macro", "each"), multilabel))
        truths.append(truth)
    assert above_chance(predictions, truths)[1] > 4.5


def row(found: blend_weights.BlendResult, name: str) -> dict:
    return next(row for row in found.table if row["name"] == name)


def test_members_that_know_different_classes_are_better_together() -> None:
    _, truth, folds = drawn(0, (0,))
    rng, signal = np.random.default_rng(5), np.eye(CLASSES)[truth]
    knows = np.stack([np.arange(CLASSES) % 3 != k for k in range(3)])
    members = probabilities(np.stack([4 * signal * k + rng.standard_normal(signal.shape) for k in knows]))
    found = fit_blend(members, truth, folds, "f1_macro", ["a", "b", "c"])
    assert found.score > max(row(found, name)["score"] for name in "abc") + 0.1
    assert found.score == metrics.compute_scores(found.oof, truth)["f1_macro"] and found.spread > 0
    assert found.fitted.weights.sum() == pytest.approx(1) and (found.fitted.weights > 0.1).all()


@pytest.mark.parametrize("multilabel", [False, True])
def test_many_copies_of_a_bad_member_do_no_harm(multilabel: bool) -> None:
    for seed in range(2):
        members, truth, folds = drawn(seed, (4, 0, 0), multilabel)
        members = members[[0, *[1] * 8, 2]]
        found = fit_blend(members, truth, folds, "f1_macro", ["good", *(f"bad{i}" for i in range(9))])
        assert found.score >= row(found, "good")["score"] - 0.0025
        assert found.score > row(found, "mean")["score"] + 0.05 and found.fitted.weights[0] > 0.75


def test_of_members_of_equal_worth_none_is_forgotten() -> None:
    """Their weights are nearly equal."""
    for seed in range(3):
        members, truth, folds = drawn(seed, (2.5,) * 4)
        found = fit_blend(members, truth, folds, "f1_macro", list("abcd"))
        assert found.fitted.method == "pool" and found.fitted.weights.min() > 0.05, seed
        assert found.score > row(found, "mean")["score"] - 0.02
    same = fit_blend(members[[0, 0, 0]], truth, folds, "f1_macro", list("abc"), offsets=False)
    assert np.allclose(same.fitted.weights, 1 / 3) or same.fitted.alone is not None


def test_weights_move_away_from_equal_ones_by_evidence() -> None:
    """The fewer clips, the closer to equal; copies of a member share its weight."""
    members, truth, _ = drawn(11, (3.0, 2.0, 2.0), clips=1600)
    better = [blend_weights.fit_pool(members[:, :n], truth[:n])[0][0] for n in (10, 100, 1600)]
    assert 1 / 3 < better[0] < better[1] < better[2]
    copies, _ = blend_weights.fit_pool(members[[0, 1, 1, 1]], truth)
    assert np.allclose(copies[1:], copies[1], atol=1e-3)
    weights, power = blend_weights.fit_pool(members[:, :50], truth[:50], 1e6)
    assert np.allclose(weights, 1 / 3, atol=1e-3) and power == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_pool_is_a_geometric_mean_to_a_power(multilabel: bool) -> None:
    members, truth, _ = drawn(5, (1.0, 0.5), multilabel)
    found = blend_weights.pool_members(members, np.array([0.75, 0.25]), 2.0, multilabel)
    yes, no = (np.prod(p ** np.array([1.5, 0.5])[:, None, None], 0) for p in (members, 1 - members))
    np.testing.assert_allclose(found, yes / (yes + no) if multilabel else yes / yes.sum(1, keepdims=True))
    unsure = np.full_like(members, 0.5 if multilabel else 1 / CLASSES)
    weights, power = blend_weights.fit_pool(unsure, truth)
    assert np.allclose(weights, 0.5) and power == pytest.approx(1)  # without evidence nothing moves


def test_a_pool_is_used_unless_it_is_clearly_worse_than_the_best_run() -> None:
    """As cross-fitted, by more than a standard error in either score."""
    used = []
    for seed in range(6):
        members, truth, folds = drawn(seed, (3.0, 2.2))
        if seed % 2:  # sure of itself, and right but for one fold
            members[1] = probabilities(12.0 * np.eye(CLASSES)[(truth + (folds == 0)) % CLASSES])
        found = fit_blend(members, truth, folds, "accuracy", ["a", "b"], offsets=False)
        pool, best = row(found, "pool"), min((row(found, name) for name in "ab"), key=lambda r: r["log_loss"])
        gains = {"accuracy": pool["score"] - best["score"], "log_loss": best["log_loss"] - pool["log_loss"]}
        for metric, gain in gains.items():
            assert found.gains[metric][0] == pytest.approx(gain) and found.gains[metric][1] > 0
        used.append(found.fitted.method == "pool")
        assert used[-1] == all(gain >= -error for gain, error in found.gains.values()), found.gains
        assert used[-1] != (" is used alone, since " in found.reasons[0]), found.reasons
        assert used[-1] or found.fitted.weights.max() == 1
    assert any(used) and not all(used)


def test_factors_where_rare_classes_are_said_too_rarely() -> None:
    prior = np.array([0.6, 0.2, 0.1, 0.06, 0.04])
    members, truth, folds = drawn(1, (2.0, 2.0), clips=1500, prior=prior)
    # leans to the common ones more than it should
    members = probabilities(np.log(members) + np.log(prior) * 1.5)
    found = fit_blend(members, truth, folds, "f1_macro", ["a", "b"])
    assert found.fitted.scale is not None and found.score > row(found, found.fitted.method)["score"] + 0.03
    assert np.corrcoef(np.log(found.fitted.scale), np.log(prior))[0, 1] < -0.9
    p = found.fitted.apply(members)
    assert np.allclose(p.sum(1), 1) and np.allclose(np.nansum(found.oof, 1), 1)
    plain = replace(found.fitted, scale=None).apply(members)
    assert ((plain * found.fitted.scale).argmax(1) == p.argmax(1)).all()


def test_thresholds_of_several_labels() -> None:
    prior = np.array([0.3, 0.1, 0.05, 0.05])
    members, truth, folds = drawn(2, (3.0, 3.0), True, clips=1200, prior=prior)
    members = probabilities(np.log(members / (1 - members)) + np.array([1.0, -1, -2, -3]), True)
    found = fit_blend(members, truth, folds, "f1_macro", ["a", "b"])
    cuts = found.fitted.thresholds
    assert (
        cuts is not None
        and (np.diff(cuts) < 0).all()
        and found.score > row(found, found.fitted.method)["score"] + 0.2
    )
    assert found.table[-1]["name"].endswith("class thresholds")
    plain, p = replace(found.fitted, thresholds=None).apply(members), found.fitted.apply(members)
    assert ((plain >= cuts) == (p >= 0.5)).all() and p.min() >= 0 and p.max() <= 1
    assert all(
        (np.argsort(plain[:, c], kind="stable") == np.argsort(p[:, c], kind="stable")).all() for c in range(4)
    )
    at = FittedBlend("mean", np.ones(1), thresholds=cuts).apply(np.stack([[cuts, np.zeros(4), np.ones(4)]]))
    assert np.allclose(at, [[0.5] * 4, [0] * 4, [1] * 4])
    # A ranking has no thresholds, and a class that nobody has keeps the common one.
    assert fit_blend(members, truth, folds, "map_macro", ["a", "b"]).fitted.thresholds is None
    none = np.column_stack([truth[:, :3], np.zeros(len(truth), dtype=np.int8)])
    assert np.isfinite(fit_blend(members, none, folds, "f1_macro", ["a", "b"]).fitted.apply(members)).all()


def test_clips_that_nobody_heard_and_clips_of_no_fold() -> None:
    members, truth, folds = drawn(3, (3, 3))
    two = FittedBlend("greedy", np.array([0.75, 0.25, 0.0]))
    p = np.concatenate([members, np.full_like(members[:1], np.nan)])  # a member without weight is not asked
    p[0, 3], p[:, 5] = np.nan, np.nan
    found = two.apply(p)
    assert np.isnan(found[5]).all() and np.allclose(found[3], members[1, 3])
    assert np.allclose(
        np.delete(found, [3, 5], 0), np.delete(0.75 * members[0] + 0.25 * members[1], [3, 5], 0)
    )
    folds[:20], members[0, :20] = -1, np.nan
    found = fit_blend(members, truth, folds, "f1_macro", ["a", "b"])
    assert (
        np.isnan(found.oof[:20]).all()
        and found.score == metrics.compute_scores(found.oof[20:], truth[20:])["f1_macro"]
    )
    members[1, 33, 2] = np.nan
    with pytest.raises(UserError, match="^b has NaN among its out-of-fold predictions"):
        fit_blend(members, truth, folds, "f1_macro", ["a", "b"])
    with pytest.raises(UserError, match="5 clips with out-of-fold predictions are too few"):
        fit_blend(members[:, :5], truth[:5], np.arange(5), "f1_macro", ["a", "b"])


def test_one_fold_or_two_one_member_and_the_same_twice() -> None:
    members, truth, folds = drawn(4, (3, 1))
    for kept in (folds % 2, folds * 0 + 3, np.where(folds == 0, 0, -1)):
        found = fit_blend(members, truth, kept, "f1_macro", ["a", "b"])
        assert np.isfinite(found.oof[kept >= 0]).all() and found.score >= row(found, "a")["score"] - 0.03
        again = fit_blend(members, truth, kept, "f1_macro", ["a", "b"])
        assert (found.oof[kept >= 0] == again.oof[kept >= 0]).all() and (
            found.fitted.weights == again.fitted.weights
        ).all()
    alone = fit_blend(members[:1], truth, folds, "log_loss", ["a"])
    assert alone.fitted.weights.tolist() == [1] and alone.fitted.alone == 0
    assert [r["name"] for r in alone.table] == ["a", "chosen: a"], "a blend of one run is the run itself"


def test_nothing_that_a_clip_is_scored_by_was_chosen_on_its_fold() -> None:
    """Other labels in one fold change no prediction of that fold."""
    for multilabel in (False, True):
        members, truth, folds = drawn(6, (1.5, 1, 0.5), multilabel)
        before = fit_blend(members, truth, folds, "f1_macro", list("abc"))
        other = truth.copy()
        other[folds == 2] = np.roll(truth, 7, 0)[folds == 2]
        after = fit_blend(members, other, folds, "f1_macro", list("abc"))
        assert (before.oof[folds == 2] == after.oof[folds == 2]).all() and (
            before.oof[folds == 1] != after.oof[folds == 1]
        ).any()


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_pool_has_the_lowest_log_loss(multilabel: bool) -> None:
    members, truth, _ = drawn(7, (3, 2), multilabel)

    def loss(weights: np.ndarray, power: float) -> float:
        p = blend_weights.pool_members(members, weights, power, multilabel)
        return float(earshot_metrics.compute_losses(p, truth).mean())

    best = loss(*blend_weights.fit_pool(members, truth, 0))
    for share in np.linspace(0, 1, 21):
        for power in np.linspace(0.2, 3, 29):
            assert loss(np.array([share, 1 - share]), power) > best - 1e-4
    if not multilabel:
        wrong = np.eye(CLASSES)[(truth + 1) % CLASSES]  # certain, and always wrong
        assert blend_weights.fit_pool(np.stack([wrong, members[0]]), truth)[0].tolist() == [0, 1]


@pytest.mark.parametrize("multilabel", [False, True])
def test_quick_scores_are_those_of_the_metrics(multilabel: bool) -> None:
    members, truth, _ = drawn(8, (1.0,), multilabel)
    p = members[0].round(2)  # ties
    if multilabel:
        truth[:, 4] = 0  # nobody has it
    said = metrics.compute_scores(p, truth) | metrics.compute_scores(p, truth, "roc_auc_micro")
    names = [name for name in (*metrics.NAMES, *(metrics.RANKING if multilabel else ()), "log_loss")]
    for name in names:
        sign = -1 if name == "log_loss" else 1
        assert earshot_metrics.compute_gain(name, p, truth) == pytest.approx(sign * said[name], abs=1e-9), (
            name
        )
    blocks = significance.draw_blocks(len(truth))
    for name in ("f1_macro", "balanced_accuracy"):  # leaving blocks out by their counts is scoring the rest
        q = np.roll(p, 1, 0)
        left = [
            earshot_metrics.compute_gain(name, q[blocks != b], truth[blocks != b])
            - earshot_metrics.compute_gain(name, p[blocks != b], truth[blocks != b])
            for b in range(20)
        ]
        rises, error = significance.estimate_gain(name, p, q, truth, blocks)
        assert error == pytest.approx(np.sqrt(19 / 20 * ((left - np.mean(left)) ** 2).sum()))
        assert rises == pytest.approx(
            earshot_metrics.compute_gain(name, q, truth) - earshot_metrics.compute_gain(name, p, truth)
        )


def test_the_noise_is_that_of_fresh_clips() -> None:
    """The jackknife's error of a difference, against the spread of the difference over many draws."""

    def one(seed: int) -> tuple[float, float]:
        members, truth, _ = drawn(seed, (2.0, 2.2))
        return significance.estimate_gain("f1_macro", *members, truth, significance.draw_blocks(CLIPS))

    rises, errors = np.array([one(seed) for seed in range(60)]).T
    assert 0.75 < errors.mean() / rises.std() < 1.35
    groups = np.array([f"g{i // 4}" for i in range(CLIPS)])
    blocks = significance.draw_blocks(CLIPS, groups)
    assert all(len(set(blocks[groups == name])) == 1 for name in set(groups)) and len(set(blocks)) == 20


@pytest.mark.parametrize("metric", ["f1_macro", "f1_micro", "balanced_accuracy"])
def test_factors_and_thresholds_are_the_best_of_their_steps(metric: str) -> None:
    members, truth, _ = drawn(9, (2.0,), prior=np.array([0.5, 0.3, 0.2]))
    p, scale = members[0], thresholds.fit(members[0], truth, metric, "each")
    top = earshot_metrics.compute_gain(metric, thresholds.apply(p, scale, False), truth)
    assert top >= earshot_metrics.compute_gain(
        metric, thresholds.apply(p, thresholds.fit(p, truth, metric, "common"), False), truth
    )
    for c in range(3):
        for step in thresholds.STEPS:
            moved = scale.copy()
            moved[c] *= np.exp(step)
            assert earshot_metrics.compute_gain(metric, p * moved, truth) <= top + 1e-9
    members, truth, _ = drawn(9, (2.0,), True)
    p, levels = members[0], 1 / (1 + np.exp(-thresholds.LOGITS))
    tried = [
        earshot_metrics.compute_gain(metric, thresholds.apply(p, np.full(CLASSES, t), True), truth)
        for t in levels
    ]
    found = thresholds.fit(p, truth, metric, "common")
    assert earshot_metrics.compute_gain(metric, thresholds.apply(p, found, True), truth) == pytest.approx(
        max(tried)
    )
    if metric != "f1_micro":
        each = thresholds.fit(p, truth, metric, "each")
        best = [
            max(
                earshot_metrics.compute_gain(
                    metric, thresholds.apply(p[:, [c]], np.array([t]), True), truth[:, [c]]
                )
                for t in levels
            )
            for c in range(CLASSES)
        ]
        assert earshot_metrics.compute_gain(metric, thresholds.apply(p, each, True), truth) == pytest.approx(
            np.mean(best)
        )
