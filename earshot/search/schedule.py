"""The bake-off's schedule: which candidate is trained next and on which folds, or that nothing more fits.

It decides from what it is given alone: it reads no clock and no file. So benchmarks/anytime.py replays it.
Candidates are compared by the logarithm of their errors' ratio: 0.7 is half the error, -0.7 twice the error.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist, fmean, median, pvariance
from typing import Literal

QUICK = 0.02  # share of the whole time within which a candidate is trained whole and at once
SHARE = 1 / 3  # of the time left that a candidate may need while there is another one
ANYHOW = 60.0  # seconds that the quickest candidate may take even without time: there has to be a submission
TELLING = 2.0  # predicted seconds of a fold below which overheads say little about how predictions err
SAFETY = 1.05  # seconds of the next folds, relative to those that ran
TRIAL_SECONDS = 15.0  # that timing a candidate on a few steps may take
TRIAL_FOLD = 0.5  # share of the time left that a fold of it may take, since nothing else is left to do
TRIAL_SHARE = 0.1  # of the time left that this may be for a candidate that seems to have no time
TRIAL_REST = 0.25  # the same once nothing else is left to do
# Expected quality on the same features, as the logarithm of the support vector machine's error over the
# recipe's. These are coarse steps: the spread below is as large.
LEVELS = {
    "efficientat_finetune": 0.8,
    "patches": 0.4,
    "from_scratch": 0.4,
    "modulations": 0.4,
    "attentive": 0.2,
    "linear": 0.0,
    "mlp": 0.1,
    "itmo2025_tokens": 0.1,
    "itmo2025": 0.1,
    "knn": -0.8,
    "convnext_ggcn_scratch": -0.6,
}
SPREAD = 0.35  # standard deviation of a recipe's quality around that
NOISE = 0.3  # standard deviation of a fold's comparison
COMPANION = 0.2  # a candidate that is worse by this still helps a blend
SEED_GAIN = 0.15  # as above, of a further seed, which resembles its first
LOSS_WEIGHT = 0.3  # of the log loss in a comparison; the metric has the rest
SOFT = 0.01  # added to errors, so that one clip of few does not decide
MOST = 2.0  # a comparison's largest value
FAR = 0.1  # so much worse, beyond a standard deviation, and a candidate is behind
LEARNT = 0.97  # a log loss above this share of the class prior's: nothing was learnt
# ranks of trials: the last chance, cheap ones, those where nothing else is left to do, and of the hopeless
TRY_NOW, TRY_CHEAP, TRY_LAST, TRY_LATE = 2, 4, 6, 9
WORTHWHILE = 0.02  # expected gain below which further seeds of the best come first


@dataclass(frozen=True)
class FoldResult:
    """A finished fold.

    Args:
        seconds: of its training.
        error: 1 minus the metric; of a loss the loss. log_loss: mean over its clips.
    """

    seconds: float
    error: float
    log_loss: float


@dataclass(frozen=True)
class Entry:
    """What is known about a candidate that may be trained, or has been.

    Args:
        source: the cache and view: candidates on the same features are about as good.
        family: candidates whose predicted times err alike.
        guess: predicted seconds a fold. timed: was that measured on steps or a part of the rows?
        tried: that was not possible.
        devices: folds that are trained side by side.
        computed: of a timed one, what had been predicted before; 0 if unknown.
        least: seconds that an unfinished fold is known to take at least.
        inference: seconds that its predictions for the submission take.
        after: for a further seed, the candidate of the first seed.
    """

    name: str
    recipe: str
    source: str
    family: str
    guess: float
    timed: bool = False
    results: dict[int, FoldResult] = field(default_factory=dict)
    least: float = 0.0
    inference: float = 0.0
    after: str | None = None
    computed: float = 0.0
    tried: bool = False
    devices: int = 1


@dataclass(frozen=True)
class Step:
    """What to do next.

    Args:
        kind: train the folds, or time the candidate on a few steps.
        seconds: expected of it.
        anyhow: to its end, whatever time is left: nothing is finished yet.
    """

    kind: Literal["train", "time"]
    name: str
    folds: tuple[int, ...]
    seconds: float
    why: str
    anyhow: bool = False


@dataclass(frozen=True)
class Schedule:
    """The candidates in the ladder's order, and the time.

    Args:
        folds: numbers of all folds.
        left: seconds left for training, without the reserve. budget: seconds in all.
        chance: log loss of the class prior; infinity where it is unknown.
    """

    entries: Sequence[Entry]
    folds: Sequence[int]
    left: float
    budget: float
    chance: float = math.inf

    # --- seconds

    @cached_property
    def by_name(self) -> dict[str, Entry]:
        """The candidates by name."""
        return {entry.name: entry for entry in self.entries}

    @cached_property
    def corrections(self) -> dict[tuple[str, bool], float]:
        """Measured over predicted seconds by family and kind of prediction: the median of those that ran."""
        ratios: dict[tuple[str, bool], list[float]] = {}
        for entry in self.entries:
            if not entry.results or entry.after is not None:
                continue
            seconds = fmean(result.seconds for result in entry.results.values())
            for timed, predicted in {False: entry.computed, entry.timed: entry.guess}.items():
                if TELLING <= predicted < math.inf:
                    ratios.setdefault((entry.family, timed), []).append(seconds / predicted)
        return {key: median(found) for key, found in ratios.items()}

    def estimate_seconds(self, entry: Entry) -> float:
        """Seconds of a fold: of its own folds, else as its first seed, else the corrected prediction."""
        first = self.by_name.get(entry.after or "")
        if entry.results:
            return SAFETY * fmean(result.seconds for result in entry.results.values())
        if first is not None and first.results:
            seconds = self.estimate_seconds(first)
        else:
            seconds = entry.guess * self.corrections.get((entry.family, entry.timed), 1.0)
        return max(seconds, entry.least)

    def estimate_cost(self, entry: Entry, count: int | None = None) -> float:
        """Seconds of so many folds; by default of all missing ones, with predicting the submission."""
        folds = len(self.list_missing(entry)) if count is None else count
        seconds = math.ceil(folds / entry.devices) * self.estimate_seconds(entry)
        return seconds + (entry.inference if count is None else 0.0)

    def has_time(self, entry: Entry) -> bool:
        """Is there time to finish it, also once its first fold has taken what was predicted?"""
        margin = 1.0 if entry.results or entry.after else SAFETY
        return margin * self.estimate_cost(entry) <= self.left

    def list_missing(self, entry: Entry) -> tuple[int, ...]:
        """Its unfinished folds."""
        return tuple(fold for fold in self.folds if fold not in entry.results)

    def is_finished(self, entry: Entry) -> bool:
        """Are all its folds finished?"""
        return not self.list_missing(entry)

    def is_known(self, entry: Entry) -> bool:
        """Does its time rest on a measurement: of its own, or of its first seed?"""
        first = self.by_name.get(entry.after or "")
        return entry.timed or bool(entry.results) or entry.least > 0 or bool(first and first.results)

    def can_time(self, entry: Entry) -> bool:
        """Is its time a guess that a few steps may correct?"""
        return not self.is_known(entry) and not entry.tried

    # --- expectations

    @cached_property
    def best(self) -> Entry | None:
        """The best of the finished candidates; None where there is none."""

        def compute_errors(entry: Entry) -> tuple[float, float]:
            results = entry.results.values()
            return (round(fmean(r.error for r in results), 9), fmean(r.log_loss for r in results))

        return min(filter(self.is_finished, self.entries), key=compute_errors, default=None)

    def compare_folds(self, entry: Entry) -> list[float]:
        """How much better than the best a candidate is on each of its folds; empty without a best one."""
        if self.best is None:
            return []
        return [_compare(result, self.best.results[fold]) for fold, result in entry.results.items()]

    @cached_property
    def _offsets(self) -> dict[str, float]:
        """By source: how much better than their recipes' levels its candidates are; "" for all sources."""
        found: dict[str, list[float]] = {}
        for entry in self.entries:
            if entry.after is None and (compared := self.compare_folds(entry)):
                for source in ("", entry.source):
                    found.setdefault(source, []).append(fmean(compared) - _get_level(entry))
        return {source: fmean(values) for source, values in found.items()}

    def expect(self, entry: Entry) -> tuple[float, float]:
        """Mean and standard deviation of how much better than the best a candidate will be: its recipe's
        prior and its folds so far, by their precision."""
        first = self.by_name.get(entry.after or "")
        if first is not None and not entry.results:
            return self.expect(first)[0], 0.0
        offset = self._offsets.get(entry.source, self._offsets.get("", 0.0))
        mean, variance = _get_level(entry) + offset, SPREAD**2
        if self.best is not None and entry.source not in self._offsets:
            variance += SPREAD**2
        compared = self.compare_folds(entry)
        if compared:
            count = len(compared)
            noise = (NOISE**2 + (count - 1) * pvariance(compared)) / count / count
            total = 1 / variance + 1 / noise
            mean, variance = (mean / variance + fmean(compared) / noise) / total, 1 / total
        return mean, math.sqrt(variance)

    def expect_gain(self, entry: Entry) -> float:
        """Expected improvement over the best, alone or as its companion in a blend."""
        mean, deviation = self.expect(entry)
        deviation = math.hypot(deviation, COMPANION if entry.after is None else SEED_GAIN)
        z = mean / deviation
        return deviation * (z * NormalDist().cdf(z) + NormalDist().pdf(z))

    def is_behind(self, entry: Entry) -> bool:
        """Has a candidate that has begun learnt nothing, or is it clearly worse than the best?"""
        if not entry.results:
            return False
        if fmean(result.log_loss for result in entry.results.values()) > LEARNT * self.chance:
            return True
        mean, deviation = self.expect(entry)
        return self.best is not None and mean + deviation < -FAR

    # --- the decision

    def is_quick(self, entry: Entry) -> bool:
        """Does it take so little that it is trained whole and at once?"""
        return self.estimate_cost(entry) <= QUICK * self.budget

    def _rank(self, entry: Entry) -> tuple[int, str]:
        """In which order kinds of candidates come, and why."""
        mine = self.estimate_cost(entry)
        if entry.after is None and self.is_quick(entry) and not self.is_behind(entry):
            return 0, "quick"
        if entry.results and not self.is_behind(entry):
            return 1, "begun, and not clearly worse than the best"
        if self.is_behind(entry) or not self.is_worthwhile(entry):
            return 8, "less is expected of it, but there is time"
        if entry.after is not None:
            return 5, "another seed of one of the best"
        if mine <= SHARE * self.left:
            return 3, "highest expected gain per second"
        return 5, f"more than {SHARE:.0%} of the time left, and nothing shorter is left to do"

    def is_worthwhile(self, entry: Entry) -> bool:
        """Might it improve on the best?"""
        return self.best is None or self.expect_gain(entry) >= WORTHWHILE

    def _rank_trial(self, entry: Entry) -> tuple[int, str] | None:
        """The same for one that seems to have no time: where a trial is cheap, none is refused for a time
        that was only guessed."""
        if self.is_known(entry):
            return None
        last = TRY_LAST if self.is_worthwhile(entry) else TRY_LATE
        why = "its time is only guessed"
        if last == TRY_LAST and not entry.tried and TRIAL_SECONDS <= TRIAL_SHARE * self.left:
            # the next candidate may take so much that a trial is no longer cheap
            return TRY_NOW if TRIAL_SECONDS > TRIAL_SHARE / 2 * self.left else TRY_CHEAP, why
        if self.estimate_seconds(entry) <= TRIAL_FOLD * self.left:
            return last, "a fold shows whether its time was guessed too long"
        if not entry.tried and TRIAL_SECONDS <= TRIAL_REST * self.left:
            return last, why
        return None

    def choose(self, taken: Collection[str] = ()) -> Step | None:
        """What comes next; None: nothing more fits into the time.

        Args:
            taken: names of candidates that have a step under way.
        """
        first_seeds = [entry for entry in self.entries if entry.after is None]
        if self.best is None and not taken:
            quickest = min(first_seeds, key=self.estimate_cost, default=None)
            if quickest is not None and self.estimate_cost(quickest) <= ANYHOW:
                if self.estimate_cost(quickest) > TRIAL_SECONDS and self.can_time(quickest):
                    return self._time(quickest, "quickest of all, but that is only guessed")
                return self._train(quickest, "quickest of all", anyhow=True)
        places: list[tuple[tuple[int, float, int], Entry, str]] = []
        for place, entry in enumerate(self.entries):
            first = self.by_name.get(entry.after or "")
            if entry.name in taken or self.is_finished(entry):
                continue
            if entry.after and (first is None or not self.is_finished(first)):
                continue
            mine = self.estimate_cost(entry)
            ranked = self._rank(entry) if self.has_time(entry) else self._rank_trial(entry)
            if ranked is None:
                continue
            rank, why = ranked
            worth = mine if rank == 0 else -self.expect_gain(entry) / max(mine, 1e-3)
            places.append(((rank, worth, place), entry, why))
        if not places:
            return None
        (rank, *_), entry, why = min(places, key=lambda found: found[0])
        # where a fold takes less than timing, it is the trial
        is_short = rank in (TRY_LAST, TRY_LATE) and self.estimate_seconds(entry) <= TRIAL_SECONDS
        if rank and not is_short and self.can_time(entry):
            return self._time(entry, why)
        return self._train(entry, why, whole=rank == 0)

    def _time(self, entry: Entry, why: str) -> Step:
        return Step("time", entry.name, (), TRIAL_SECONDS, why)

    def list_worthwhile(self) -> list[Entry]:
        """Unfinished candidates that might improve on the best, those of most gain per second first."""
        found = [
            entry
            for entry in self.entries
            if not self.is_finished(entry)
            and entry.after is None
            and not self.is_behind(entry)
            and self.is_worthwhile(entry)
        ]
        return sorted(
            found, key=lambda entry: -self.expect_gain(entry) / max(self.estimate_cost(entry), 1e-3)
        )

    def _train(self, entry: Entry, why: str, whole: bool = True, anyhow: bool = False) -> Step:
        folds = self.list_missing(entry)[: None if whole else entry.devices]
        return Step("train", entry.name, folds, self.estimate_cost(entry, len(folds)), why, anyhow)


def _get_level(entry: Entry) -> float:
    return LEVELS.get(entry.recipe, 0.0)


def _compare(mine: FoldResult, other: FoldResult) -> float:
    """How much better one result of a fold is than another."""
    by_metric = math.log((max(0.0, other.error) + SOFT) / (max(0.0, mine.error) + SOFT))
    by_loss = math.log((other.log_loss + SOFT) / (mine.log_loss + SOFT))
    found = (1 - LOSS_WEIGHT) * by_metric + LOSS_WEIGHT * by_loss
    return min(MOST, max(-MOST, found))
