"""Weights for the members of a blend, and what is said of its probabilities; all of it cross-fitted, so that
the score is honest.

Every choice (method, weights, factors or thresholds, and whether they are used at all) that touches a clip's
out-of-fold prediction was made on the other folds. What remains is that the members which predicted those had
learnt this fold's labels, as in all stacking without a second round of training: five members of permuted
labels, 400 clips and 10 classes rose by 0.006 of macro-F1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from earshot.core.errors import UserError
from earshot.prediction import significance
from earshot.prediction import thresholds as cut
from earshot.training.metrics import compute_gain, compute_losses, get_likelihood
from earshot.training.oof import Oof

# the first is fallen back on: a weak member spoils a mean, and hardly these weights
METHODS = ("simplex", "mean", "greedy")
ROUNDS, FEW = 20, 3  # greedy selection: members added at most; the best ones that it may start from
SMALLEST = 0.01  # a weight below is none: its member would be run for nothing
PARTS = 3  # of the clips, where a single fold is left to choose on


@dataclass(frozen=True)
class FittedBlend:
    """A blend as it is applied to new clips.

    Args:
        method: one of METHODS.
        weights: (members,) >= 0, their sum is 1.
        scale: (classes,) single label: the answer is argmax(p * scale); None: of p.
        thresholds: (classes,) multi-label: what has p >= threshold is said; None: 0.5.
    """

    method: str
    weights: np.ndarray
    scale: np.ndarray | None = None
    thresholds: np.ndarray | None = None

    def apply(self, members: np.ndarray) -> np.ndarray:
        """The blend's probabilities, moved so that the likeliest class, or those of 0.5 and more, are its
        answer.

        Args:
            members: (members, clips, classes).
        Returns:
            (clips, classes); a clip that some members could not hear is answered by the others, NaN where by
            none.
        """
        found = average_members(members, self.weights)
        if self.scale is not None:
            return cut.scale_classes(found, self.scale)
        return found if self.thresholds is None else cut.recenter(found, self.thresholds)


@dataclass(frozen=True)
class BlendResult:
    """What `fit_blend` chose.

    Args:
        fitted: on all folds, for the submission.
        oof: (clips, classes) nested out-of-fold predictions, NaN where the fold is -1.
        score: the metric of `oof`, pooled. spread: its standard deviation over folds.
        table: rows of name, score, log_loss, spread: each member, each method, the offsets, the chosen.
    """

    fitted: FittedBlend
    oof: np.ndarray
    score: float
    spread: float
    table: list[dict[str, Any]]


def average_members(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean (clips, classes) of members (members, clips, classes), for each clip over those that
    are numbers."""
    used = np.flatnonzero(weights > 0)
    chosen = members[used].astype(np.float64)
    heard = np.isfinite(chosen).all(2)
    share = weights[used][:, None] * heard
    total = np.einsum("mn,mnc->nc", share, np.where(heard[:, :, None], chosen, 0))
    with np.errstate(invalid="ignore"):
        return total / share.sum(0)[:, None]  # 0 / 0 where nobody heard it


def fit_greedy(members: np.ndarray, truth: np.ndarray, metric: str, offsets: bool = False) -> np.ndarray:
    """Weights by greedy selection with replacement from the best few members (Caruana et al. 2004); equals go
    by log loss.

    Args:
        offsets: thresholds will follow, so that a multi-label blend is judged by what it reaches with the
            best one.
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
    """The weights >= 0 of sum 1 with the least log loss (multi-label: binary cross-entropy)."""
    from scipy.optimize import minimize

    count = len(members)
    # A certain error must not decide everything.
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


def _choose_blend(
    members: np.ndarray, folds: np.ndarray, rows: np.ndarray, task: _Task
) -> tuple[FittedBlend, str, dict[str, np.ndarray]]:
    """Choose and fit on some clips, by cross-fitting among them.

    Args:
        rows: the clips' indices.
    Returns:
        the blend and its name; by name the predictions (clips, classes) of all that was compared, NaN for
        other clips.
    """
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
        kind, name, current = None, method, plain
        tried[name] = plain
        for option in (
            cut.KINDS if task.offsets and cut.is_threshold_metric(task.metric, task.multilabel) else ()
        ):
            moved, label = plain.copy(), f"{method} + {cut.NAMES[task.multilabel, option]}"
            for blend, (fit, held) in zip(blends, inner, strict=True):
                moved[held] = cut.apply(
                    blend[held], cut.fit(blend[fit], truth[fit], task.metric, option), task.multilabel
                )
            tried[label] = moved
            if task.is_better(current, moved, rows):
                kind, name, current = option, label, moved
        if best is None or task.is_better(best[-1], current, rows, (best[-2], plain)):
            best = method, kind, name, plain, current
    method, kind, name = best[:3]
    weights = fit_weights(method, members[:, rows], truth[rows], task.metric, task.offsets)
    found = (
        None
        if kind is None
        else cut.fit(average_members(members[:, rows], weights), truth[rows], task.metric, kind)
    )
    return (
        FittedBlend(method, weights, None if task.multilabel else found, found if task.multilabel else None),
        name,
        tried,
    )


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
    """The blend that members' out-of-fold predictions speak for, and its own honest out-of-fold predictions.

    A later method is taken only where it beats the one before beyond noise (`significance.is_better`);
    factors and thresholds likewise.

    Args:
        members: (members, clips, classes) out-of-fold probabilities.
        truth: (clips,) class indices, or (clips, classes) of 0 and 1.
        folds: (clips,) the fold that each clip was predicted in; -1: in none, such clips are left out.
        metric: a name of `earshot.training.metrics`.
        names: of the members, for the table.
        methods: those to choose from, the first being what is fallen back on.
        offsets: may factors or thresholds per class be used?
        groups: (clips,) of what belongs together, "" for a clip on its own, so that noise is not underrated.
    Raises:
        UserError: a prediction that is not a number, too few clips.
    """
    kept = np.flatnonzero(folds >= 0)
    if len(kept) < 2 * PARTS:
        raise UserError(
            f"{len(kept)} clips with out-of-fold predictions are too few to fit a blend to: --blend mean "
            "needs none"
        )
    odd = ~np.isfinite(members[:, kept]).all((1, 2))
    if odd.any():
        raise UserError(
            f"{names[int(odd.argmax())]} has out-of-fold predictions that are not numbers: train it again, "
            "or leave it out"
        )
    numbers, several = folds[kept], None if groups is None else groups[kept]
    task = _Task(truth[kept], metric, methods, offsets, significance.draw_blocks(len(kept), several))
    inside = members[:, kept]
    parts = significance.draw_blocks(len(kept), several, PARTS)
    outer = numbers if len(np.unique(numbers)) > 1 else parts
    oof = np.full(inside.shape[1:], np.nan)
    every = np.arange(len(kept))
    for fold in np.unique(outer):
        rest = every[outer != fold]
        # Of two folds only one is left: it is cut into parts.
        within = outer if len(np.unique(outer[rest])) > 1 else parts
        fitted, _, _ = _choose_blend(inside, within, rest, task)
        oof[outer == fold] = fitted.apply(inside[:, outer == fold])
    fitted, name, tried = _choose_blend(inside, outer, every, task)
    shown = {
        label: found for label, found in tried.items() if label.split(" + ")[0] in (label, fitted.method)
    }
    rows = [*zip(names, inside, strict=True), *shown.items(), (f"chosen: {name}", oof)]
    table = []
    for label, probabilities in rows:
        out_of_fold = Oof(kept, numbers, task.truth, probabilities, [])
        scores, by_fold = out_of_fold.score(metric), out_of_fold.score_folds(metric)
        spread = float(np.std(list(by_fold.values())))
        table.append(
            {"name": label, "score": scores[metric], "log_loss": scores["log_loss"], "spread": spread}
        )
    whole = np.full(members.shape[1:], np.nan)
    whole[kept] = oof
    return BlendResult(fitted, whole, table[-1]["score"], table[-1]["spread"], table)
