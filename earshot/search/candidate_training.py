"""The bake-off's training: candidates fold by fold within the time, and the status of each.

Decisions that depend on time or scores are kept in auto.json, so that the same command continues with them.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import models
from earshot.core import checksums, config, worker_pool
from earshot.core.deadline import SIGNALS, Deadline, format_clock
from earshot.core.errors import UserError
from earshot.core.files import append_text, hash_value, hold_lock, read_json
from earshot.prediction import saved_blend, significance
from earshot.search.candidates import (
    CPU_PARAMETERS,
    CPU_SPEED,
    Candidate,
    count_parameters_and_flops,
    estimate_fit_seconds,
)
from earshot.training import cross_validation, experiment, metrics, precision
from earshot.training.checkpoint import FoldFolder
from earshot.training.oof import Oof
from earshot.training.run import CONFIG, Run, list_slot_folders
from earshot.training.run_scores import summarise_run

if TYPE_CHECKING:
    from earshot.search.flags import AutoFlags

# share of the time reserved for the blend, and its least seconds; predicting comes on top
RESERVE, LEAST = 0.06, 5.0
SMALL = 0.02  # share of the time that a candidate may always take, whatever the others do
# a candidate is dropped if it is worse than the best by so many standard errors and points of the metric
CLEAR, FAR = 2.0, 0.02
# seconds that the quickest candidate may take even without time: there has to be a submission
ANYHOW = 60.0
WITH_THE_REST = 1.2  # time of a fold with validation and overhead, relative to its training steps
OPEN, FINISHED, DROPPED, NO_TIME, LEFT_OUT = "open", "finished", "dropped", "no time", "left out"
FRESH = {"status": OPEN, "folds": [], "each": None, "row": 0.0, "note": ""}


class CandidateTrainer:
    """Trains candidates and keeps their status.

    Args:
        folder: the bake-off's, locked by this process.
        state: the content of auto.json; `of` has an entry a candidate: its status, its finished folds, the
            seconds of `each` fold and of a `row` in a training step, and a note.
        began: start of the command on the monotonic clock.
    """

    def __init__(
        self,
        candidates: list[Candidate],
        flags: AutoFlags,
        machine: config.TrainMachineFlags,
        folder: Path,
        state: dict[str, Any],
        began: float,
    ):
        self.flags, self.machine, self.folder, self.state = (
            flags,
            replace(machine, fresh=False),
            folder,
            state,
        )
        self.candidates = {c.name: c for c in candidates}
        self.budget, self.before, self.began = 3600 * state["hours"], state["spent"], began
        for name in self.candidates:
            state["of"].setdefault(name, {**FRESH, "folds": []})
        self.current: tuple[str, experiment.Job, Run] | None = None

    # --- account

    def save(self) -> None:
        """Write auto.json."""
        self.state["spent"] = self.before + time.monotonic() - self.began
        checksums.write(self.folder / saved_blend.AUTO, self.state)

    def report(self, text: str) -> None:
        """Print a line and add it to the bake-off's log."""
        print(text, flush=True)
        append_text(self.folder / "training_log.txt", text + "\n")

    def compute_seconds_left(self) -> float:
        """Seconds left for training; time for the blend and the submission is reserved."""
        reserve = max(LEAST, RESERVE * self.budget) + sum(
            self.estimate_inference_seconds(name) for name in self.list_with_status(FINISHED)
        )
        return self.budget - self.before - (time.monotonic() - self.began) - reserve

    def estimate_inference_seconds(self, name: str) -> float:
        """Seconds that a candidate's predictions for the submission and the hold-out take."""
        splits = self.candidates[name].cache.manifest["splits"]
        rows = sum(splits[part]["rows"] for part in ("test", "subm") if part in splits)
        return (
            len(self.state["folds"])
            * rows
            * self.get_settings(name).tta
            * self.state["of"][name]["row"]
            / precision.BACKWARD
        )

    def estimate_cost(self, name: str, upto: int | None = None) -> float:
        """Seconds that the missing ones of a candidate's first folds take; of all folds, with predicting."""
        entry = self.state["of"][name]
        missing = set(self.state["folds"][:upto]) - set(entry["folds"])
        return len(missing) * entry["each"] + (self.estimate_inference_seconds(name) if upto is None else 0.0)

    def get_settings(self, name: str) -> config.TrainingFlags:
        """A candidate's training settings."""
        return self.candidates[name].get_training_settings(self.flags.folds, self.flags.metric)

    def list_with_status(self, status: str, names: list[str] | None = None) -> list[str]:
        """The candidates of that status, in the ladder's order."""
        return [
            name
            for name in (self.candidates if names is None else names)
            if self.state["of"][name]["status"] == status
        ]

    def set_status(self, name: str, status: str, note: str = "") -> None:
        """Set, log and save the status of a candidate."""
        self.state["of"][name] |= {"status": status, "note": note}
        if status != FINISHED:
            self.report(f"{name}: {status}{f': {note}' if note else ''}")
        self.save()

    def skip_for_time(self, name: str) -> None:
        """Set the status of a candidate for which the time left is too short."""
        left = max(0.0, self.compute_seconds_left())
        self.set_status(
            name, NO_TIME, f"needs {format_clock(self.estimate_cost(name))}, {format_clock(left)} left"
        )

    # --- one candidate

    def prepare(self, name: str) -> tuple[experiment.Job, Run]:
        """A candidate's job and run; the latest is kept in memory."""
        if self.current is None or self.current[0] != name:
            candidate, self.current = self.candidates[name], None  # frees the features of the previous one
            head = experiment.describe_head(candidate.recipe, candidate.cache, view=candidate.view)
            job = experiment.Job(
                candidate.cache,
                candidate.recipe.name,
                head,
                self.get_settings(name),
                self.machine,
                0,
            )
            pairs = sorted((str(id), int(fold)) for id, fold in zip(job.rows.ids, job.numbers, strict=True))
            if self.state.setdefault("clips", hash_value(pairs)[:12]) != hash_value(pairs)[:12]:
                raise UserError(
                    f"{candidate.cache.folder} has other training clips or folds than the other caches: "
                    "extract them from the same data, or choose caches with --features"
                )
            self.state["folds"] = job.choose_folds()
            with hold_lock(self.folder / name, "the run"):
                self.current = (name, job, job.begin(self.folder / name, False, quiet=True))
        return self.current[1:]

    def estimate(self, name: str, gpu: bool) -> None:
        """Estimate once the time of a fold, from the head's size or a timed step; a candidate too large for
        this machine is left out."""
        entry, candidate, settings = self.state["of"][name], self.candidates[name], self.get_settings(name)
        if entry["each"] is not None:
            return
        rows, share = candidate.cache.manifest["splits"]["train"]["rows"], 1 - 1 / len(self.state["folds"])
        head = experiment.describe_head(candidate.recipe, candidate.cache, view=candidate.view)
        fit_seconds = estimate_fit_seconds(head, candidate.cache)
        if fit_seconds is not None:
            entry["each"], entry["row"] = fit_seconds[0], precision.BACKWARD * fit_seconds[1]
            return
        parameters, work = count_parameters_and_flops(head, candidate.cache, settings.epochs)
        if not gpu and parameters > CPU_PARAMETERS:
            self.set_status(name, LEFT_OUT, f"{parameters:,} parameters need a GPU")
            return
        if not gpu and work * len(self.state["folds"]) / CPU_SPEED > self.compute_seconds_left():
            self.set_status(
                name, NO_TIME, f"{work:.1e} operations per fold are too many for a CPU in this time"
            )
            return
        job, _ = self.prepare(name)
        entry["row"] = precision.measure_row_seconds(head.build(), job.rows, settings, job.device)
        entry["each"] = WITH_THE_REST * entry["row"] * rows * share * settings.epochs / len(job.devices)

    def attempt(self, name: str, what: Any, *args: Any) -> Any:
        """Call a function with a candidate; if it fails, return None: the candidate is out, the others
        continue."""
        try:
            return what(name, *args)
        except (UserError, models.HeadError) as error:
            self.current = None
            self.set_status(name, "failed", " ".join(str(error).split()))
            return None

    def train(self, name: str, upto: int | None = None, anyhow: bool = False) -> None:
        """Train a candidate's first folds, all by default, as far as the time allows."""
        wanted, entry = self.state["folds"][:upto], self.state["of"][name]
        if set(wanted) <= set(entry["folds"]):
            if upto is None:
                self.set_status(name, FINISHED)
            return
        job, run = self.prepare(name)
        deadline = Deadline(None if anyhow else max(0.0, self.compute_seconds_left()) / 3600)
        with hold_lock(run.folder, "the run"):
            done = cross_validation.train_folds(job, run, wanted, deadline)
            if any(
                run.get_fold_folder(n).load_predictions("last") is not None for n in run.list_finished_folds()
            ):
                summarise_run(run, job.rows, job.numbers)
        if SIGNALS.waiting is not None:
            self.save()
            deadline.leave()
        entry["folds"] = run.list_finished_folds() if done else [n for n in entry["folds"]]
        if entry["folds"]:
            entry["each"] = 1.05 * sum_training_seconds(run) / len(run.list_finished_folds())
            last_scores = read_json(run.folder / "scores.json")["last"]
            self.report(
                f"{name}: {len(last_scores['folds'])}/{len(self.state['folds'])} folds, out-of-fold "
                f"{self.flags.metric} {last_scores[self.flags.metric]:.4f}  log_loss "
                f"{last_scores['log_loss']:.4f}  {format_clock(sum_training_seconds(run))}, "
                f"{format_clock(max(0.0, self.compute_seconds_left()))} left"
            )
        if done and upto is None:
            self.set_status(name, FINISHED)
        elif not done:
            self.set_status(
                name,
                NO_TIME,
                f"stopped after {len(run.list_finished_folds())} of {len(self.state['folds'])} folds",
            )
        self.save()

    # --- all of them

    def run(self) -> None:
        """Train what the time allows."""
        gpu = worker_pool.choose(self.machine.device)[0].name.startswith("cuda")
        first = [name for name, candidate in self.candidates.items() if candidate.after is None]
        for name in self.list_with_status(OPEN, first):
            if not self.state["folds"]:
                self.attempt(name, self.prepare)
            if self.list_with_status(OPEN, [name]) and self.state["folds"]:
                self.attempt(name, self.estimate, gpu)
        self.save()
        quick = sorted(self.list_with_status(OPEN, first), key=self.estimate_cost)
        while quick and not self.list_with_status(FINISHED) and self.estimate_cost(quick[0]) <= ANYHOW:
            self.attempt(quick.pop(0), self.train, None, True)
        self.run_successive_halving(first)
        for name in self.list_with_status(OPEN):
            before = self.state["of"][self.candidates[name].after]
            if before["status"] != FINISHED:
                status = NO_TIME if before["status"] == NO_TIME else LEFT_OUT
                self.state["of"][name] |= {"status": status, "note": f"as {self.candidates[name].after}"}
                continue
            self.state["of"][name] |= {key: before[key] for key in ("each", "row")}
            self.train_all_folds(name)

    def train_all_folds(self, name: str) -> None:
        """Train all folds of a candidate, if there is time for all."""
        if self.estimate_cost(name) > self.compute_seconds_left():
            self.skip_for_time(name)
        else:
            self.attempt(name, self.train)

    def run_successive_halving(self, names: list[str]) -> None:
        """Successive halving over folds: clearly worse candidates are dropped, and only if time is short."""
        for name in self.list_with_status(OPEN, names):
            if self.estimate_cost(name) <= min(SMALL * self.budget, self.compute_seconds_left()):
                self.attempt(name, self.train)
        count = len(self.state["folds"])
        for upto in dict.fromkeys((1, math.ceil(count / 2))):
            if self.is_time_for_all(names):
                break
            for name in self.list_with_status(OPEN, names):
                # The first of the ladder that fits into the time will be finished whatever the others take.
                anchor = next(
                    (
                        n
                        for n in self.list_with_status(OPEN, names)
                        if self.estimate_cost(n) <= self.compute_seconds_left()
                    ),
                    None,
                )
                if (
                    self.estimate_cost(name) > self.compute_seconds_left()
                    or name != anchor
                    and self.estimate_cost(name, upto) + self.estimate_cost(anchor)
                    > self.compute_seconds_left()
                ):
                    self.skip_for_time(name)
                else:
                    self.attempt(name, self.train, upto)
            self.drop_worse(names, upto)
        order = (
            self.list_with_status(OPEN, names)
            if self.is_time_for_all(names)
            else self.rank(self.list_with_status(OPEN, names))
        )
        for name in order:
            self.train_all_folds(name)
        # candidates that seemed too slow, if the others were quicker than expected
        for name in self.list_with_status(NO_TIME, names):
            if (
                self.state["of"][name]["each"] is not None
                and self.estimate_cost(name) <= self.compute_seconds_left()
            ):
                self.attempt(name, self.train)

    def is_time_for_all(self, names: list[str]) -> bool:
        """Is there time for all open candidates?"""
        return (
            sum(self.estimate_cost(name) for name in self.list_with_status(OPEN, names))
            <= self.compute_seconds_left()
        )

    def read_oof_of_folds(self, name: str, upto: int) -> Oof:
        """A candidate's out-of-fold predictions at the last epoch, in the first folds."""
        cache = self.candidates[name].cache
        found = Oof.read(self.folder / name / "oof_last.csv", cache.classes, cache.multilabel)
        return found.take(np.isin(found.folds, self.state["folds"][:upto]))

    def rank(self, names: list[str]) -> list[str]:
        """The candidates by score on the folds that all of them have, best first."""
        upto = min((len(self.state["of"][name]["folds"]) for name in names), default=0)
        if not upto:
            return names
        oofs = {name: self.read_oof_of_folds(name, upto) for name in names}
        return sorted(
            names,
            reverse=True,
            key=lambda name: (
                metrics.compute_gain(self.flags.metric, oofs[name].probabilities, oofs[name].labels),
                metrics.compute_gain("log_loss", oofs[name].probabilities, oofs[name].labels),
            ),
        )

    def drop_worse(self, names: list[str], upto: int) -> None:
        """Drop candidates clearly worse than the best, the worst first, until there is time for the rest."""
        names = [
            name
            for name in self.list_with_status(OPEN, names)
            if len(self.state["of"][name]["folds"]) >= upto
        ]
        if len(names) < 2:
            return
        order = self.rank(names)
        best = self.read_oof_of_folds(order[0], upto)
        for name in reversed(order[1:]):
            if self.is_time_for_all(names):
                return
            mine = self.read_oof_of_folds(name, upto)
            rises, error = significance.estimate_gain(
                self.flags.metric,
                mine.probabilities,
                best.probabilities,
                best.labels,
                significance.draw_blocks(len(best.ids)),
            )
            if rises > max(FAR, CLEAR * error):
                self.set_status(
                    name,
                    DROPPED,
                    f"after fold {', '.join(map(str, self.state['folds'][:upto]))}: {self.flags.metric} "
                    f"{rises:.3f} below {order[0]}, so the choice depends on these folds' labels",
                )


def sum_training_seconds(run: Run) -> float:
    """Seconds that a run's training took so far."""
    return float(
        sum(
            row["seconds"]
            for folder in list_slot_folders(run.folder)
            for row in FoldFolder(folder).read_history()
        )
    )


def run_exists(folder: Path) -> bool:
    """Is there a run?"""
    return (folder / CONFIG).is_file()
