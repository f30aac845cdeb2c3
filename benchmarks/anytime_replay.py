"""The bake-off played back from records of its candidates, by a clock that is only counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from earshot.search.candidate_training import OVERRUN, PATIENCE, RESERVE
from earshot.search.schedule import ANYHOW, Entry, FoldResult, Schedule

TIMING_SECONDS = 3.0  # that timing a candidate takes in a replay
Finished = list[tuple[float, str]]  # seconds since the start, candidate
Compare = Callable[[str, str, Sequence[int]], tuple[float, float]]


@dataclass(frozen=True)
class Record:
    """A candidate as it was recorded: `entry` before anything ran, the seconds a fold as timed on a few
    steps, and the results of its folds."""

    entry: Entry
    timed: float
    results: dict[int, FoldResult]
    folder: Path = Path()

    @property
    def name(self) -> str:
        """The candidate's name."""
        return self.entry.name


def replay_schedule(
    records: Sequence[Record], folds: Sequence[int], budget: float, chance: float = math.inf
) -> Finished:
    """The candidates that the schedule finishes within a budget of seconds, and when."""
    finished, clock, left = [], 0.0, budget * (1 - RESERVE)
    entries = {record.name: record.entry for record in records}
    by_name = {record.name: record for record in records}
    begun: dict[tuple[str, int], float] = {}  # seconds spent on unfinished folds
    while (
        step := Schedule(list(entries.values()), folds, left - clock, budget, chance=chance).choose()
    ) is not None:
        entry, record = entries[step.name], by_name[step.name]
        if step.kind == "time":
            clock += TIMING_SECONDS
            told = abs(record.timed - entry.guess) > 1e-9  # else timing said nothing
            entries[step.name] = replace(
                entry, guess=record.timed, timed=told, tried=not told, computed=entry.guess
            )
            continue
        first = not entry.results and entry.after is None and not step.anyhow
        limit = clock + max(PATIENCE, OVERRUN * step.seconds) if first else math.inf
        results, least = dict(entry.results), entry.least
        for fold in step.folds:
            seconds = record.results[fold].seconds - begun.get((step.name, fold), 0.0)
            stop = math.inf if step.anyhow else min(limit, left)
            if clock + seconds > stop:
                begun[step.name, fold] = begun.get((step.name, fold), 0.0) + max(0.0, stop - clock)
                clock, least = max(clock, stop), record.results[fold].seconds
                break
            clock += seconds
            results[fold] = record.results[fold]
        entries[step.name] = replace(entry, results=results, least=least)
        if set(results) >= set(folds):
            finished.append((clock, step.name))
    return finished


def replay_halving(
    records: Sequence[Record], folds: Sequence[int], budget: float, compare: Compare
) -> Finished:
    """The same for the order before: successive halving over folds in the ladder's order.

    Args:
        compare: how much better the second candidate is than the first on some folds, and the standard error.
    """
    finished: Finished = []
    by_name = {record.name: record for record in records}
    done: dict[str, list[int]] = {name: [] for name in by_name}
    status = dict.fromkeys(by_name, "open")
    clock, end = 0.0, budget * (1 - RESERVE)

    def estimate(name: str, upto: int | None = None) -> float:
        record, missing = by_name[name], len(set(folds[:upto]) - set(done[name]))
        first = by_name[record.entry.after or name]
        ran = done[name] or done[first.name]
        known = fmean(first.results[fold].seconds for fold in ran) * 1.05 if ran else first.timed
        return missing * known

    def train(name: str, upto: int | None = None, anyhow: bool = False) -> None:
        nonlocal clock
        for fold in folds[:upto]:
            if fold in done[name]:
                continue
            if clock + by_name[name].results[fold].seconds > end and not anyhow:
                clock, status[name] = end, "no time"
                return
            clock += by_name[name].results[fold].seconds
            done[name].append(fold)
        if len(done[name]) == len(folds):
            status[name] = "finished"
            finished.append((clock, name))

    def list_open(names: Sequence[str]) -> list[str]:
        return [name for name in names if status[name] == "open"]

    def fits_all(names: Sequence[str]) -> bool:
        return sum(estimate(name) for name in list_open(names)) <= end - clock

    def rank(names: list[str]) -> list[str]:
        shared = folds[: min((len(done[name]) for name in names), default=0)]
        if not shared:
            return names
        return sorted(names, key=lambda name: fmean(by_name[name].results[fold].error for fold in shared))

    first = [record.name for record in records if record.entry.after is None]
    quick = sorted(first, key=estimate)
    if quick and estimate(quick[0]) <= ANYHOW:
        train(quick[0], anyhow=True)
    for name in list_open(first):
        if estimate(name) <= min(0.02 * budget, end - clock):
            train(name)
    for upto in dict.fromkeys((1, math.ceil(len(folds) / 2))):
        if fits_all(first):
            break
        for name in list_open(first):
            anchor = next((n for n in list_open(first) if estimate(n) <= end - clock), None)
            both = estimate(name, upto) + (estimate(anchor) if anchor and anchor != name else 0.0)
            if anchor is None or estimate(name) > end - clock or both > end - clock:
                status[name] = "no time"
            else:
                train(name, upto)
        order = rank([name for name in list_open(first) if len(done[name]) >= upto])
        for name in reversed(order[1:]):
            if fits_all(first):
                break
            rise, error = compare(name, order[0], folds[:upto])
            if rise > max(0.02, 2 * error):
                status[name] = "dropped"
    for name in list_open(first) if fits_all(first) else rank(list_open(first)):
        if estimate(name) <= end - clock:
            train(name)
        else:
            status[name] = "no time"
    for record in records:
        if (
            record.entry.after
            and status[record.entry.after] == "finished"
            and estimate(record.name) <= end - clock
        ):
            train(record.name)
    return finished


def choose_oracle(records: Sequence[Record], seconds: float, score: Callable[[frozenset], float]) -> float:
    """About the best score that so many seconds allow: candidates added one by one, each the one that the
    blend gains most by."""
    costs = {record.name: sum(result.seconds for result in record.results.values()) for record in records}
    chosen, best = frozenset[str](), -math.inf
    while True:
        rest = seconds - sum(costs[name] for name in chosen)
        options = [chosen | {name} for name, cost in costs.items() if name not in chosen and cost <= rest]
        found = max(options, key=score, default=None)
        if found is None or score(found) <= best:
            return best
        chosen, best = found, score(found)


def score_at(finished: Finished, seconds: float, score: Callable[[frozenset], float]) -> float:
    """The score of what is finished by then; -inf where nothing is."""
    names = frozenset(name for when, name in finished if when <= seconds)
    return score(names) if names else -math.inf
