"""Weights for the members of a blend, and factors or thresholds per class, cross-fitted for an unbiased
score.

Every choice for a clip's out-of-fold prediction was made on the other folds: the method, the weights, the
factors or thresholds, and whether they are used at all. A small bias remains, as in all stacking without a
second round of training: the members that predicted the other folds were trained on this fold's labels. With
five members, permuted labels, 400 clips and 10 classes, a test holds it below 0.025 macro-F1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from earshot.core.errors import UserError
from earshot.prediction import blend_reasons, significance
from earshot.prediction import thresholds as cut
from earshot.training.metrics import compute_losses, get_likelihood
from earshot.training.oof import Oof

METHODS = ("pool", "mean")
RANK = "rank"  # the mean of ranks: never fitted, never kept
ALONE = "best run"  # one member
AUTO = (ALONE, "pool")
SHRINKAGE = 1.0  # see `fit_pool`
FLOOR = 1e-4  # of a pooled probability: one confident error must not decide everything
SMALLEST = 0.01  # smaller weights become 0: not worth running the member
PARTS = 3  # of the clips, where a single fold is left to choose on


@dataclass(frozen=True)
class FittedBlend:
    """A blend as it is applied to new clips.

    Args:
        method: one of METHODS, ALONE or RANK; of a blend that an earlier release saved, maybe another.
        weights: (members,) >= 0, their sum is 1.
        power: of the logarithmic pool, see `pool_members`; None: the weighted mean.
        scale: (classes,) single label: the prediction is argmax(p * scale); None: argmax(p).
        thresholds: (classes,) multi-label: a class is predicted where p >= threshold; None: 0.5.
        multilabel: does the pool take odds in place of probabilities?
    """

    method: str
    weights: np.ndarray
    power: float | None = None
    scale: np.ndarray | None = None
    thresholds: np.ndarray | None = None
    multilabel: bool = False

    def apply(self, members: np.ndarray) -> np.ndarray:
        """The blend's probabilities, shifted so that its prediction is the likeliest class, or all from 0.5
        on.

        Args:
            members: (members, clips, classes); NaN where a member has no prediction for a clip.
        Returns:
            (clips, classes) by the members that have a prediction; NaN where none has. Of RANK, mean ranks in
            0 ... 1, which are no probabilities.
        """
        if self.method == RANK:
            return average_members(np.stack([rank_clips(member) for member in members]), self.weights)
        found = (
            average_members(members, self.weights)
            if self.power is None
            else pool_members(members, self.weights, self.power, self.multilabel)
        )
        if self.scale is not None:
            return cut.scale_classes(found, self.scale)
        return found if self.thresholds is None else cut.recenter(found, self.thresholds)

    @property
    def alone(self) -> int | None:
        """The index of the member that is the whole blend, unchanged; None where there is more to it."""
        used = np.flatnonzero(self.weights > 0)
        plain = self.power is None and self.scale is None and self.thresholds is None
        return int(used[0]) if len(used) == 1 and plain else None


@dataclass(frozen=True)
class BlendResult:
    """What `fit_blend` chose.

    Args:
        fitted: on all folds, for the submission.
        oof: (clips, classes) nested out-of-fold predictions, NaN where the fold is -1.
        score: the metric of `oof`, pooled. spread: its standard deviation over folds.
        table: rows of name, score, log_loss, spread: each member, their mean, each method, the offsets, the
            chosen.
        reasons: sentences that say why that one was chosen.
        gains: by metric the weights' gain over the best run alone, both cross-fitted, and its standard error;
            empty where nothing was compared.
    """

    fitted: FittedBlend
    oof: np.ndarray
    score: float
    spread: float
    table: list[dict[str, Any]]
    reasons: list[str] = field(default_factory=list)
    gains: dict[str, tuple[float, float]] = field(default_factory=dict)


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


def rank_clips(probabilities: np.ndarray) -> np.ndarray:
    """(clips, classes) the rank of each clip within its class, in 0 ... 1: (position - 0.5) / clips, the mean
    of equal ones; NaN as in `probabilities`."""
    from scipy.stats import rankdata

    known = np.isfinite(probabilities).all(1)
    found = np.full(probabilities.shape, np.nan)
    found[known] = (rankdata(probabilities[known], axis=0) - 0.5) / max(1, int(known.sum()))
    return found


def pool_members(members: np.ndarray, weights: np.ndarray, power: float, multilabel: bool) -> np.ndarray:
    """The logarithmic pool (clips, classes) of members (members, clips, classes): the weighted geometric mean
    of their probabilities (multi-label: of their odds) to a power, normalised; NaN as in `average_members`.
    """
    return _normalise(power * average_members(_take_logarithms(members, multilabel), weights), multilabel)


def _take_logarithms(members: np.ndarray, multilabel: bool) -> np.ndarray:
    p = np.clip(members.astype(np.float64), FLOOR, 1 - FLOOR)
    return np.log(p / (1 - p)) if multilabel else np.log(p)


def _normalise(logits: np.ndarray, multilabel: bool) -> np.ndarray:
    from scipy.special import expit, softmax

    return expit(logits) if multilabel else softmax(logits, axis=-1)


def fit_pool(
    members: np.ndarray, truth: np.ndarray, shrinkage: float = SHRINKAGE
) -> tuple[np.ndarray, float]:
    """The weights >= 0 of sum 1, and the power, of the logarithmic pool with the lowest log loss, shrunk
    towards equal weights and a power of 1.

    Weights times power are the coefficients of a logistic regression on the members' logarithms. Each has a
    normal prior around 1 / members, such that the power has a standard deviation of (2 * shrinkage) ** -0.5
    however many members there are. So few clips move the weights little, and members that predict alike share
    theirs. The power makes up for the members' own and the mean's lack of confidence.
    """
    from scipy.optimize import minimize

    count, multilabel = len(members), truth.ndim == 2
    logits = _take_logarithms(members, multilabel)
    yes = truth if multilabel else np.eye(members.shape[2])[truth]

    def compute_loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        p, away = _normalise(np.tensordot(coefficients, logits, 1), multilabel), coefficients - 1 / count
        loss = -np.log(np.maximum(get_likelihood(p, truth), 1e-15)).sum()
        slope = np.tensordot(logits, p - yes, ((1, 2), (0, 1)))
        return loss + shrinkage * count * (away**2).sum(), slope + 2 * shrinkage * count * away

    equal = np.full(count, 1 / count)
    found = minimize(compute_loss, equal, jac=True, method="L-BFGS-B", bounds=[(0, None)] * count).x
    power = max(float(found.sum()), 1e-3)  # 0 where nobody knows anything
    weights = np.where(found < min(SMALLEST, 0.5 / count) * power, 0, found)
    return (weights / weights.sum() if weights.any() else equal), power


def fit_weights(method: str, members: np.ndarray, truth: np.ndarray) -> FittedBlend:
    """A blend by one of METHODS, or of ALONE, fitted on these clips; without factors or thresholds."""
    count = len(members)
    if method == "pool":
        return FittedBlend(method, *fit_pool(members, truth), multilabel=truth.ndim == 2)
    if method == "mean":
        return FittedBlend(method, np.full(count, 1 / count))
    losses = [compute_losses(member, truth).mean() for member in members]
    return FittedBlend(method, np.eye(count)[int(np.argmin(losses))])


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

    def estimate_gain(
        self, metric: str, old: np.ndarray, new: np.ndarray, rows: np.ndarray
    ) -> tuple[float, float]:
        blocks = np.unique(self.blocks[rows], return_inverse=True)[1]
        if not blocks.any():  # one source alone tells nothing about noise
            blocks = significance.draw_blocks(len(rows))
        return significance.estimate_gain(metric, old[rows], new[rows], self.truth[rows], blocks)


@dataclass(frozen=True)
class _Candidate:
    """A method's cross-fitted predictions (clips, classes), NaN for other clips.

    Args:
        name: of the method, or of the best run, and of its factors or thresholds.
        plain, final: before and after the factors or thresholds of `kind`; None: it has none.
        moved: with each kind of factors or thresholds, by name.
    """

    method: str
    name: str
    plain: np.ndarray
    final: np.ndarray
    kind: str | None
    moved: dict[str, np.ndarray]

    def list_gains(self, old: _Candidate, rows: np.ndarray, task: _Task) -> dict[str, tuple[float, float]]:
        """The gain over another candidate and its standard error: in log loss, before factors or thresholds,
        which do not mean probabilities; in the metric, after them."""
        gains = {"log_loss": task.estimate_gain("log_loss", old.plain, self.plain, rows)}
        return {task.metric: task.estimate_gain(task.metric, old.final, self.final, rows)} | gains


def _cross_fit(
    method: str, members: np.ndarray, folds: np.ndarray, rows: np.ndarray, task: _Task
) -> _Candidate:
    """Predict some clips (`rows`, their indices), each fold by what is fitted to the others."""
    truth = task.truth
    splits = [(rows[folds[rows] != f], rows[folds[rows] == f]) for f in np.unique(folds[rows])]
    # The best run is the one that would be used: nothing about it is fitted.
    fits = [rows if method == ALONE else fit for fit, _ in splits]
    fitted = [fit_weights(method, members[:, fit], truth[fit]) for fit in fits]
    blends = [one.apply(members) for one in fitted]
    plain = np.full(members.shape[1:], np.nan)
    for blend, (_, held) in zip(blends, splits, strict=True):
        plain[held] = blend[held]
    base = method if method != ALONE else task.names[int(fitted[0].weights.argmax())]
    name, final, used, moved = base, plain, None, {}
    usable = task.offsets and cut.is_threshold_metric(task.metric, task.multilabel)
    for kind in cut.KINDS if usable else ():
        trial, label = plain.copy(), f"{base} + {cut.NAMES[task.multilabel, kind]}"
        for blend, (fit, held) in zip(blends, splits, strict=True):
            found = cut.fit(blend[fit], truth[fit], task.metric, kind)
            trial[held] = cut.apply(blend[held], found, task.multilabel)
        moved[label] = trial
        gain, error = task.estimate_gain(task.metric, final, trial, rows)
        if significance.exceeds_noise(gain, error):
            name, final, used = label, trial, kind
    return _Candidate(method, name, plain, final, used, moved)


def _fit_candidate(found: _Candidate, members: np.ndarray, rows: np.ndarray, task: _Task) -> FittedBlend:
    """Fit a candidate's weights, and its factors or thresholds, to all of some clips."""
    fitted = fit_weights(found.method, members[:, rows], task.truth[rows])
    if found.kind is None:
        return fitted
    factors = cut.fit(fitted.apply(members[:, rows]), task.truth[rows], task.metric, found.kind)
    return replace(fitted, **{"thresholds" if task.multilabel else "scale": factors})


def _choose(
    members: np.ndarray, folds: np.ndarray, rows: np.ndarray, task: _Task
) -> tuple[_Candidate, FittedBlend, list[_Candidate]]:
    """Choose on some clips (`rows`, their indices), by cross-fitting among them, and fit to all of them.

    Returns:
        the chosen one, fitted, and all candidates.
    """
    methods = task.methods if len(members) > 1 else task.methods[:1]
    tried = [_cross_fit(method, members, folds, rows, task) for method in methods]
    best = tried[0]
    for found in tried[1:]:
        gains = found.list_gains(best, rows, task).values()
        if all(gain >= -error - 1e-9 for gain, error in gains):
            best = found
    return best, _fit_candidate(best, members, rows, task), tried


def _name_choice(found: _Candidate, fitted: FittedBlend, names: list[str]) -> str:
    return found.name if fitted.alone is None else names[fitted.alone]


def fit_blend(
    members: np.ndarray,
    truth: np.ndarray,
    folds: np.ndarray,
    metric: str,
    names: list[str],
    methods: tuple[str, ...] = AUTO,
    offsets: bool = True,
    groups: np.ndarray | None = None,
) -> BlendResult:
    """Fit a blend to members' out-of-fold predictions; its own out-of-fold predictions are unbiased.

    The weights are fitted to the log loss. Factors or thresholds come after them, where they raise the metric
    by more than noise. By default the rivals are the logarithmic pool and the best run alone, that of lowest
    log loss, through the same steps. The best run is used where the cross-fitted pool is worse than it by
    more than a standard error, in the log loss or in the metric, whatever the other one says. Smaller
    differences decide nothing: to demand of the pool that neither is worse at all rejected pools that were
    better on folds left out.

    Args:
        members: (members, clips, classes) out-of-fold probabilities.
        truth: (clips,) class indices, or (clips, classes) of 0 and 1.
        folds: (clips,) the fold that each clip was predicted in; -1: in none, such clips are left out.
        metric: a name of `earshot.training.metrics`.
        names: of the members, for the table.
        methods: one of METHODS, or AUTO.
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
    parts = significance.draw_blocks(len(kept), number=PARTS)
    outer = numbers if len(np.unique(numbers)) > 1 else parts
    oof, every, by_fold = np.full(inside.shape[1:], np.nan), np.arange(len(kept)), []
    for fold in np.unique(outer):
        rest, held = every[outer != fold], outer == fold
        # Of two folds only one is left: it is cut into parts.
        within = outer if len(np.unique(outer[rest])) > 1 else parts
        found, fitted, _ = _choose(inside, within, rest, task)
        oof[held] = fitted.apply(inside[:, held])
        by_fold.append(_name_choice(found, fitted, names))
    choice, fitted, tried = _choose(inside, outer, every, task)
    name = _name_choice(choice, fitted, names)
    rows = list(zip(names, inside, strict=True))
    if len(members) > 1:
        rows += [("pool", one.plain) for one in tried if one.method == "pool"]
        rows += [("mean", inside.mean(0))]
    rows += choice.moved.items()
    table = []
    for label, probabilities in [*rows, (f"chosen: {name}", oof)]:
        out_of_fold = Oof(kept, numbers, task.truth, probabilities, [])
        scores, of_folds = out_of_fold.score(metric), out_of_fold.score_folds(metric)
        spread = float(np.std(list(of_folds.values())))
        table.append(
            {"name": label, "score": scores[metric], "log_loss": scores["log_loss"], "spread": spread}
        )
    whole = np.full(members.shape[1:], np.nan)
    whole[kept] = oof
    reasons, gains = [], {}
    if len(tried) > 1:
        gains = tried[1].list_gains(tried[0], every, task)
        reasons.append(blend_reasons.explain_gains(tried[1].name, name, gains, choice is tried[1]))
    if rival := blend_reasons.explain_better_row(name, dict(rows), task.truth, metric, task.blocks):
        reasons.append(rival)
    if blend_reasons.differs_from_own_row(name, table):
        reasons.append(
            f"the chosen row is unbiased: each fold is predicted by what the other folds choose ({name} in "
            f"{by_fold.count(name)} of {len(by_fold)})"
        )
    return BlendResult(fitted, whole, table[-1]["score"], table[-1]["spread"], table, reasons, gains)
