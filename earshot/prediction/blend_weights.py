"""Weights for the members of a blend, and factors or thresholds per class, cross-fitted for an unbiased
score.

Every choice for a clip's out-of-fold prediction was made on the other folds: the method, the weights, the
factors or thresholds, and whether they are used at all. A small bias remains, as in all stacking without a
second round of training: the members that predicted the other folds were trained on this fold's labels. With
five members, permuted labels, 400 clips and 10 classes, macro-F1 rose by 0.006.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from earshot.core.errors import UserError
from earshot.prediction import blend_reasons, significance
from earshot.prediction import thresholds as cut
from earshot.training.metrics import compute_gain, compute_losses, get_likelihood
from earshot.training.oof import Oof

# The first is the default: a weak member spoils a mean, but hardly these weights.
METHODS = ("simplex", "mean", "greedy")
ROUNDS, FEW = 20, 3  # greedy selection: members added at most; the best ones that it may start from
SMALLEST = 0.01  # smaller weights become 0: not worth running the member
PARTS = 3  # of the clips, where a single fold is left to choose on


@dataclass(frozen=True)
class FittedBlend:
    """A blend as it is applied to new clips.

    Args:
        method: one of METHODS.
        weights: (members,) >= 0, their sum is 1.
        scale: (classes,) single label: the prediction is argmax(p * scale); None: argmax(p).
        thresholds: (classes,) multi-label: a class is predicted where p >= threshold; None: 0.5.
    """

    method: str
    weights: np.ndarray
    scale: np.ndarray | None = None
    thresholds: np.ndarray | None = None

    def apply(self, members: np.ndarray) -> np.ndarray:
        """The blend's probabilities, shifted so that its prediction is the likeliest class, or all from 0.5
        on.

        Args:
            members: (members, clips, classes); NaN where a member has no prediction for a clip.
        Returns:
            (clips, classes) by the members that have a prediction; NaN where none has.
        """
        found = average_members(members, self.weights)
        if self.scale is not None:
            return cut.scale_classes(found, self.scale)
        return found if self.thresholds is None else cut.recenter(found, self.thresholds)

    @property
    def alone(self) -> int | None:
        """The index of the member that is the whole blend, unchanged; None where there is more to it."""
        used = np.flatnonzero(self.weights > 0)
        plain = self.scale is None and self.thresholds is None
        return int(used[0]) if len(used) == 1 and plain else None


@dataclass(frozen=True)
class BlendResult:
    """What `fit_blend` chose.

    Args:
        fitted: on all folds, for the submission.
        oof: (clips, classes) nested out-of-fold predictions, NaN where the fold is -1.
        score: the metric of `oof`, pooled. spread: its standard deviation over folds.
        table: rows of name, score, log_loss, spread: each member, each method, the offsets, the chosen.
        reasons: sentences that say why that one was chosen.
    """

    fitted: FittedBlend
    oof: np.ndarray
    score: float
    spread: float
    table: list[dict[str, Any]]
    reasons: list[str] = field(default_factory=list)


def average_members(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean (clips, classes) of members (members, clips, classes), for each clip over the members
    that are not NaN."""
    used = np.flatnonzero(weights > 0)
    chosen = members[used].astype(np.float64)
    known = np.isfinite(chosen).all(2)
    share = weights[used][:, None] * known
    total = np.einsum("mn,mnc->nc", share, np.where(known[:, :, None], chosen, 0))
    with np.errstate(invalid="ignore"):
        return total / share.sum(0)[:, None]  # 0 / 0 where no member has a prediction


def fit_greedy(members: np.ndarray, truth: np.ndarray, metric: str, offsets: bool = False) -> np.ndarray:
    """Weights by greedy selection with replacement from the best few members (Caruana et al. 2004); ties are
    broken by log loss.

    Args:
        offsets: thresholds will follow, so a multi-label blend is scored at its best single threshold.
    """
    score = (
        cut.best_single_threshold
        if offsets and truth.ndim == 2 and cut.is_threshold_metric(metric, True)
        else lambda p, t, m: compute_gain(m, p, t)
    )

    def rank(probabilities: np.ndarray) -> tuple[float, float]:
        return round(score(probabilities, truth, metric), 9), -float(
            compute_losses(probabilities, truth).mean()
        )

    alone = [rank(member) for member in members]
    order = sorted(range(len(members)), key=lambda m: alone[m], reverse=True)
    starts = [order[:few] for few in range(1, min(FEW, len(order)) + 1)]
    best, bag = max(((rank(members[start].mean(0)), start) for start in starts), key=lambda pair: pair[0])
    bag, total = list(bag), members[bag].sum(0)
    while len(bag) < ROUNDS:
        found = [rank((total + member) / (len(bag) + 1)) for member in members]
        pick = max(range(len(members)), key=found.__getitem__)
        if found[pick] <= best:
            break
        best, total = found[pick], total + members[pick]
        bag.append(pick)
    return np.bincount(bag, minlength=len(members)) / len(bag)


def fit_simplex(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The weights >= 0 of sum 1 with the lowest log loss (multi-label: binary cross-entropy)."""
    from scipy.optimize import minimize

    count = len(members)
    # One confident error must not decide everything.
    p = np.clip(get_likelihood(members, truth).reshape(count, -1).astype(np.float64), 1e-6, 1)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(weights @ p, 1e-9)
        return -float(np.log(mixed).mean()), -(p @ (1 / mixed)) / p.shape[1]

    found = minimize(
        loss,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 100},
    )
    weights = np.where(found.x < SMALLEST, 0, found.x) if np.isfinite(found.x).all() else np.ones(count)
    return weights / weights.sum()


def fit_weights(
    method: str, members: np.ndarray, truth: np.ndarray, metric: str, offsets: bool = False
) -> np.ndarray:
    """(members,) weights by one of METHODS, fitted on these clips."""
    if method == "mean" or len(members) == 1:
        return np.full(len(members), 1 / len(members))
    return fit_greedy(members, truth, metric, offsets) if method == "greedy" else fit_simplex(members, truth)


@dataclass(frozen=True)
class _Task:
    """What is the same for every fit."""

    truth: np.ndarray
    metric: str
    methods: tuple[str, ...]
    offsets: bool
    names: list[str]  # of the members
    blocks: np.ndarray  # (clips,) for the noise

    @property
    def multilabel(self) -> bool:
        return self.truth.ndim == 2

    def is_better(
        self, old: np.ndarray, new: np.ndarray, rows: np.ndarray, plain: tuple | None = None
    ) -> bool:
        blocks = np.unique(self.blocks[rows], return_inverse=True)[1]
        plain = plain and tuple(p[rows] for p in plain)
        return significance.is_better(self.metric, old[rows], new[rows], self.truth[rows], blocks, plain)

    def compute_log_loss(self, probabilities: np.ndarray, rows: np.ndarray) -> float:
        return float(compute_losses(probabilities[rows], self.truth[rows]).mean())


@dataclass(frozen=True)
class _Choice:
    """A blend that was chosen and fitted, and its name.

    Args:
        best: the method that was better than the others.
        tried: by method the predictions (clips, classes), NaN for other clips.
        moved: the best method's with factors or thresholds, by name.
        rejected: a sentence about the best method, where it has a worse log loss than a member.
    """

    fitted: FittedBlend
    name: str
    best: str
    tried: dict[str, np.ndarray]
    moved: dict[str, np.ndarray]
    rejected: str = ""


def _reject_worse_than_member(
    choice: _Choice,
    plain: np.ndarray,
    current: np.ndarray,
    members: np.ndarray,
    rows: np.ndarray,
    task: _Task,
) -> _Choice:
    """The choice, if its log loss is no worse than its best member's, or its metric is better beyond noise;
    else the better of that member and the weights of lowest log loss.

    Args:
        plain, current: (clips, classes) the choice's predictions before and after factors or thresholds; only
            the log loss of the former means anything.
    """
    if len(task.methods) == 1:
        return choice
    losses = [task.compute_log_loss(member, rows) for member in members]
    best, loss = int(np.argmin(losses)), task.compute_log_loss(plain, rows)
    stays = choice.fitted.alone == best or loss <= losses[best] + 1e-9
    if stays or task.is_better(members[best], current, rows):
        return choice
    method, member = task.methods[0], task.names[best]
    weights = np.eye(len(members))[best]
    default = choice.tried[method]
    why = "" if task.metric == "log_loss" else f", and its {task.metric} is not better by more than noise"
    reason = (
        f"{choice.name} is not used: its log loss {loss:.4f} is worse than {member}'s {losses[best]:.4f}{why}"
    )
    default_loss = task.compute_log_loss(default, rows)
    if default_loss < losses[best] and not task.is_better(default, current, rows):
        if choice.name == method:
            return choice
        weights = fit_weights(method, members[:, rows], task.truth[rows], task.metric, task.offsets)
        reason += f"; the {method} weights have a lower one, {default_loss:.4f}"
    fitted = FittedBlend(method, weights)
    name = method if fitted.alone is None else task.names[fitted.alone]
    return replace(choice, fitted=fitted, name=name, rejected=reason)


def _choose_blend(members: np.ndarray, folds: np.ndarray, rows: np.ndarray, task: _Task) -> _Choice:
    """Choose and fit on some clips (`rows`, their indices), by cross-fitting among them."""
    truth = task.truth
    inner = [(rows[folds[rows] != f], rows[folds[rows] == f]) for f in np.unique(folds[rows])]
    tried: dict[str, np.ndarray] = {}
    best: tuple | None = None
    for method in task.methods:
        if method != task.methods[0] and len(members) == 1:
            continue
        blends = [
            average_members(
                members, fit_weights(method, members[:, fit], truth[fit], task.metric, task.offsets)
            )
            for fit, _ in inner
        ]
        plain = np.full(members.shape[1:], np.nan)
        for blend, (_, held) in zip(blends, inner, strict=True):
            plain[held] = blend[held]
        base = method if len(members) > 1 else task.names[0]
        kind, name, current, options = None, base, plain, {}
        tried[method] = plain
        for option in (
            cut.KINDS if task.offsets and cut.is_threshold_metric(task.metric, task.multilabel) else ()
        ):
            moved, label = plain.copy(), f"{base} + {cut.NAMES[task.multilabel, option]}"
            for blend, (fit, held) in zip(blends, inner, strict=True):
                moved[held] = cut.apply(
                    blend[held], cut.fit(blend[fit], truth[fit], task.metric, option), task.multilabel
                )
            options[label] = moved
            if task.is_better(current, moved, rows):
                kind, name, current = option, label, moved
        if best is None or task.is_better(best[-1], current, rows, (best[-2], plain)):
            best = method, kind, name, options, plain, current
    assert best is not None  # there is at least one method
    method, kind, name, options, plain, current = best
    weights = fit_weights(method, members[:, rows], truth[rows], task.metric, task.offsets)
    found = (
        None
        if kind is None
        else cut.fit(average_members(members[:, rows], weights), truth[rows], task.metric, kind)
    )
    fitted = FittedBlend(
        method, weights, None if task.multilabel else found, found if task.multilabel else None
    )
    if fitted.alone is not None:
        name = task.names[fitted.alone]
    choice = _Choice(fitted, name, method, tried, options)
    return _reject_worse_than_member(choice, plain, current, members, rows, task)


def fit_blend(
    members: np.ndarray,
    truth: np.ndarray,
    folds: np.ndarray,
    metric: str,
    names: list[str],
    methods: tuple[str, ...] = METHODS,
    offsets: bool = True,
    groups: np.ndarray | None = None,
) -> BlendResult:
    """Fit a blend to members' out-of-fold predictions; its own out-of-fold predictions are unbiased.

    A later method replaces an earlier one only where it is better beyond noise (`significance.is_better`);
    factors and thresholds likewise. Of several methods none is used whose log loss is worse than its best
    member's, unless its metric is better beyond noise.

    Args:
        members: (members, clips, classes) out-of-fold probabilities.
        truth: (clips,) class indices, or (clips, classes) of 0 and 1.
        folds: (clips,) the fold that each clip was predicted in; -1: in none, such clips are left out.
        metric: a name of `earshot.training.metrics`.
        names: of the members, for the table.
        methods: those to choose from, the default first.
        offsets: may factors or thresholds per class be used?
        groups: (clips,) of what belongs together, "" for a clip on its own, so that noise is not underrated.
    Raises:
        UserError: a prediction that is not a number, too few clips.
    """
    kept = np.flatnonzero(folds >= 0)
    if len(kept) < 2 * PARTS:
        raise UserError(
            f"{len(kept)} clips with out-of-fold predictions are too few to fit a blend: use --blend mean, "
            "which fits nothing"
        )
    odd = ~np.isfinite(members[:, kept]).all((1, 2))
    if odd.any():
        raise UserError(
            f"{names[int(odd.argmax())]} has NaN among its out-of-fold predictions: train it again, or leave "
            "it out"
        )
    numbers, several = folds[kept], None if groups is None else groups[kept]
    task = _Task(truth[kept], metric, methods, offsets, names, significance.draw_blocks(len(kept), several))
    inside = members[:, kept]
    parts = significance.draw_blocks(len(kept), several, PARTS)
    outer = numbers if len(np.unique(numbers)) > 1 else parts
    oof, plain = (np.full(inside.shape[1:], np.nan) for _ in range(2))
    every, names_by_fold = np.arange(len(kept)), []
    for fold in np.unique(outer):
        rest, held = every[outer != fold], outer == fold
        # Of two folds only one is left: it is cut into parts.
        within = outer if len(np.unique(outer[rest])) > 1 else parts
        one = _choose_blend(inside, within, rest, task)
        oof[held] = one.fitted.apply(inside[:, held])
        plain[held] = average_members(inside[:, held], one.fitted.weights)
        names_by_fold.append(one.name)
    choice = _choose_blend(inside, outer, every, task)
    choice = _reject_worse_than_member(choice, plain, oof, inside, every, task)
    rows = list(zip(names, inside, strict=True))
    for method, probabilities in choice.tried.items():
        rows += [(method, probabilities)] if len(members) > 1 else []
        rows += choice.moved.items() if method == choice.best else []
    table = []
    for label, probabilities in [*rows, (f"chosen: {choice.name}", oof)]:
        out_of_fold = Oof(kept, numbers, task.truth, probabilities, [])
        scores, by_fold = out_of_fold.score(metric), out_of_fold.score_folds(metric)
        spread = float(np.std(list(by_fold.values())))
        table.append(
            {"name": label, "score": scores[metric], "log_loss": scores["log_loss"], "spread": spread}
        )
    whole = np.full(members.shape[1:], np.nan)
    whole[kept] = oof
    reasons = [choice.rejected] if choice.rejected else []
    if choice.fitted.alone is not None and len(members) > 1:
        reasons.append(f"the blend is {choice.name} itself: no other run has a weight")
    if rival := blend_reasons.explain_better_row(choice.name, dict(rows), task.truth, metric, task.blocks):
        reasons.append(rival)
    if blend_reasons.differs_from_own_row(choice.name, table):
        reasons.append(
            f"the chosen row is unbiased: each fold is predicted by what the other folds choose "
            f"({choice.name} in {names_by_fold.count(choice.name)} of {len(names_by_fold)})"
        )
    return BlendResult(choice.fitted, whole, table[-1]["score"], table[-1]["spread"], table, reasons)
