"""The bake-off's training: candidates fold by fold as the schedule says, and the status of each.

Decisions that depend on time or scores are kept in auto.json, so that the same command continues with them.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

import models
from earshot.core import checksums, config, worker_pool
from earshot.core.deadline import SIGNALS, Deadline, format_clock
from earshot.core.device import Device, use_threads
from earshot.core.errors import UserError
from earshot.core.files import append_text, hash_value, hold_lock, read_json
from earshot.prediction import saved_blend
from earshot.search import timing
from earshot.search.candidates import Candidate
from earshot.search.fold_results import estimate_unfinished, read_fold_results, summarise_finished
from earshot.search.schedule import Entry, FoldResult, Schedule, Step
from earshot.training import cross_validation, experiment, metrics, precision
from earshot.training.run import Run

if TYPE_CHECKING:
    from earshot.cluster.connect import Cluster
    from earshot.search.flags import AutoFlags

# share of the time reserved for the blend, and its least seconds; predicting comes on top
RESERVE, LEAST = 0.06, 5.0
GRACE = 0.5  # share of the reserve that a candidate which has begun may use to finish
# a candidate's first folds are stopped, and its time estimated anew, after so many times what was predicted
OVERRUN, PATIENCE = 3.0, 20.0
OPEN, FINISHED, DROPPED, NO_TIME, LEFT_OUT = "open", "finished", "dropped", "no time", "left out"
FRESH = {"status": OPEN, "guess": None, "computed": 0.0, "timed": False, "tried": False, "least": 0.0}
FRESH |= {"row": 0.0, "sklearn": False, "note": "", "devices": None}


class CandidateTrainer:
    """Trains candidates and keeps their status.

    `cluster`, where there is one, has the workers that train the folds.

    Args:
        folder: the bake-off's, locked by this process.
        state: the content of auto.json. `of` has an entry a candidate: its status, its finished folds, a
            guess of the seconds a fold and whether that was timed, or timing was tried in vain, the least
            seconds of a fold that has begun, the seconds of a `row` in a training step, a note, and how many
            `devices` or processes train its folds side by side, None until that is known.
            `decisions` has the steps taken.
        began: start of the command on the monotonic clock.
    """

    cluster: Cluster | None = None

    def __init__(
        self,
        candidates: list[Candidate],
        flags: AutoFlags,
        machine: config.TrainMachineFlags,
        folder: Path,
        state: dict[str, Any],
        began: float,
    ):
        self.flags, self.folder, self.state = flags, folder, state
        self.machine = replace(machine, fresh=False)
        self.candidates = {c.name: c for c in candidates}
        self.budget, self.before, self.began = 3600 * state["hours"], state["spent"], began
        self.reserve = max(LEAST, RESERVE * self.budget)
        state.setdefault("decisions", [])
        for name in self.candidates:
            # an earlier version's has no guess: it is made anew
            state["of"][name] = {**FRESH, "folds": [], "walls": {}, **state["of"].get(name, {})}
        self.results: dict[str, dict[int, FoldResult]] = {}
        self.current: tuple[str, experiment.Job, Run] | None = None
        self.chance = math.inf
        self.rest: list[tuple[str, float]] = []  # candidates without time that are worth it, and the seconds

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
        predicting = sum(self.estimate_inference_seconds(name) for name in self.list_with_status(FINISHED))
        return self.budget - self.before - (time.monotonic() - self.began) - self.reserve - predicting

    def estimate_inference_seconds(self, name: str) -> float:
        """Seconds that a candidate's predictions for the submission and the hold-out take."""
        splits = self.candidates[name].cache.manifest["splits"]
        rows = sum(splits[part]["rows"] for part in ("test", "subm") if part in splits)
        passes = len(self.state["folds"]) * rows * self.get_settings(name).tta
        return passes * self.state["of"][name]["row"] / precision.BACKWARD

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

    def build_schedule(self) -> Schedule:
        """What the schedule decides from: candidates that are open or finished, and the time left."""
        entries = [
            self._build_entry(name)
            for name in self.candidates
            if self.state["of"][name]["status"] in (OPEN, FINISHED)
        ]
        left = self.compute_seconds_left()
        return Schedule(entries, self.state["folds"], left, self.budget, self.chance)

    def _build_entry(self, name: str) -> Entry:
        entry, candidate = self.state["of"][name], self.candidates[name]
        return Entry(
            name,
            candidate.recipe.name,
            f"{candidate.cache.folder}/{candidate.view}",
            "sklearn" if entry["sklearn"] else "network",
            math.inf if entry["guess"] is None else entry["guess"],
            entry["timed"],
            self.read_results(name),
            entry["least"],
            self.estimate_inference_seconds(name),
            candidate.after,
            entry["computed"],
            entry["tried"],
            self._count_devices(name),
        )

    def _count_devices(self, name: str) -> int:
        """How many devices or processes train a candidate's folds: known once it was prepared; a further seed
        is trained as its first."""
        first = self.candidates[name].after or name
        known = self.state["of"][name]["devices"] or self.state["of"].get(first, {}).get("devices")
        return known or len(self.chosen_devices)

    @cached_property
    def chosen_devices(self) -> list[Device]:
        """The devices of --device, each of which has run a kernel."""
        return worker_pool.choose(self.machine.device)

    def read_results(self, name: str) -> dict[int, FoldResult]:
        """A candidate's finished folds, from its run."""
        wanted = self.state["of"][name]["folds"]
        if name not in self.results or sorted(self.results[name]) != sorted(wanted):
            self.results[name] = read_fold_results(
                self.folder / name, self.candidates[name].cache, wanted, self.flags.metric
            )
        walls = self.state["of"][name]["walls"]
        return {
            fold: replace(result, seconds=max(result.seconds, walls.get(str(fold), 0.0)))
            for fold, result in self.results[name].items()
        }

    # --- one candidate

    def prepare(self, name: str) -> tuple[experiment.Job, Run]:
        """A candidate's job and run; the latest is kept in memory."""
        if self.current is None or self.current[0] != name:
            candidate, self.current = self.candidates[name], None  # frees the features of the previous one
            head = experiment.describe_head(candidate.recipe, candidate.cache, view=candidate.view)
            recipe, settings = candidate.recipe.name, self.get_settings(name)
            job = experiment.Job(candidate.cache, recipe, head, settings, self.machine, 0, None, self.cluster)
            pairs = sorted((str(id), int(fold)) for id, fold in zip(job.rows.ids, job.numbers, strict=True))
            if self.state.setdefault("clips", hash_value(pairs)[:12]) != hash_value(pairs)[:12]:
                raise UserError(
                    f"{candidate.cache.folder} has other training clips or folds than the other caches: "
                    "extract them from the same data, or choose caches with --features"
                )
            folds = self.state["folds"] = job.choose_folds()
            prior = np.tile(candidate.cache.prior(), (len(job.rows.truth), 1))
            self.chance = float(metrics.compute_losses(prior, job.rows.truth).mean())
            with hold_lock(self.folder / name, "the run"):
                run = job.begin(self.folder / name, False, quiet=True, model_count=len(folds))
            entry, count = self.state["of"][name], len(job.devices)
            shared = job.device.name == "cpu" and count > 1 and self.cluster is None
            if shared and not entry["devices"] and entry["guess"]:
                # guessed for all threads; each process has a share
                entry |= {key: count * entry[key] for key in ("guess", "computed")}
            entry["devices"] = count
            self.current = (name, job, run)
        return self.current[1:]

    def guess(self, name: str, gpu: bool) -> None:
        """Compute once what a fold takes, without training; a candidate too large for this machine is left
        out."""
        entry, candidate, settings = self.state["of"][name], self.candidates[name], self.get_settings(name)
        if entry["guess"] is not None:
            return
        head = experiment.describe_head(candidate.recipe, candidate.cache, view=candidate.view)
        seconds, row, parameters, work = timing.guess_fold_seconds(head, candidate.cache, settings, gpu)
        entry["sklearn"] = row > 0
        if not gpu and parameters > timing.CPU_PARAMETERS:
            self.set_status(name, LEFT_OUT, f"{parameters:,} parameters need a GPU")
        elif not gpu and work * len(self.state["folds"]) / timing.CPU_LIMIT > self.compute_seconds_left() > 0:
            self.set_status(
                name, NO_TIME, f"{work:.1e} operations per fold are too many for a CPU in this time"
            )
        else:
            entry |= {"guess": seconds, "computed": seconds, "row": row}

    def time(self, name: str) -> None:
        """Time a candidate on a few steps, or a part of the rows."""
        job, _ = self.prepare(name)
        # with as many threads as each of its processes has
        with use_threads(job.threads or worker_pool.count_threads(len(job.devices))):
            found = timing.measure_fold_seconds(
                job.head_spec.build, job.rows, job.settings, job.device, len(self.state["folds"])
            )
        # the submission is predicted with all threads
        self.note_time(name, found, self.state["of"][name]["devices"] if job.device.name == "cpu" else 1)

    def note_time(self, name: str, found: tuple[float, float] | None, shares: int = 1) -> None:
        """Keep what `timing.measure_fold_seconds` found, with the threads divided into so many shares."""
        entry = self.state["of"][name]
        if found is None:  # the guess stays one: a fold will show
            entry["tried"] = True
            self.report(f"{name}: a part of the rows would say little about its time: a fold will show")
        else:
            entry |= {"guess": found[0], "row": found[1] / shares, "timed": True}
            self.report(f"{name}: about {format_clock(found[0])} a fold")
        self.save()

    def attempt(self, name: str, what: Any, *args: Any) -> Any:
        """Call a function with a candidate; if it fails, return None: the candidate is out, the others
        continue."""
        try:
            return what(name, *args)
        except (UserError, models.HeadError) as error:
            self.current = None
            self.set_status(name, "failed", " ".join(str(error).split()))
            return None

    def train(self, name: str, step: dict[str, Any]) -> None:
        """Take a decided step: train its folds, as far as the time allows."""
        entry, wanted = self.state["of"][name], step["folds"]
        began = time.monotonic()
        job, run = self.prepare(name)
        left = self.compute_seconds_left() + (GRACE * self.reserve if entry["folds"] else 0.0)
        first = not entry["folds"] and self.candidates[name].after is None
        limit = max(PATIENCE, OVERRUN * step["seconds"]) if first else math.inf
        deadline = Deadline(None if step["anyhow"] else max(0.0, min(left, limit)) / 3600)
        with hold_lock(run.folder, "the run"):
            done = cross_validation.train_folds(job, run, wanted, deadline)
            summarise_finished(run, job.rows, job.numbers)
        if SIGNALS.waiting is not None:
            self.save()
            deadline.leave()
        wall, new = time.monotonic() - began, set(run.list_finished_folds()) - set(entry["folds"])
        each = wall / max(1, math.ceil(len(new) / entry["devices"]))
        walls = {str(fold): each for fold in new} if done else {}
        self.note_step(step, job, run, walls, wall if not done and limit < left else 0.0)

    def note_step(self, step: dict, job: experiment.Job, run: Run, walls: dict, overrun: float) -> None:
        """Keep the scores and times of a step that has ended.

        Args:
            walls: fold -> seconds with everything beside its training.
            overrun: seconds after which a fold was stopped, far longer than predicted; 0: none was.
        """
        name, finished = step["name"], run.list_finished_folds()
        entry = self.state["of"][name]
        entry["walls"] |= walls
        begun, entry["folds"] = bool(entry["folds"]), finished
        results = self.read_results(name)
        if results and not begun and entry["sklearn"] and not entry["timed"]:
            # a row was computed along with the fold, so that it was guessed too long likewise
            entry["row"] *= min(1.0, fmean(r.seconds for r in self.results[name].values()) / entry["guess"])
        if results and not entry["row"]:
            rows = len(job.rows) * job.settings.epochs * (1 - 1 / len(self.state["folds"]))
            entry["row"] = fmean(result.seconds for result in self.results[name].values()) / rows
        if overrun and not finished:
            entry["least"] = estimate_unfinished(run, job.settings.epochs, max(overrun, entry["least"]))
        step["done"] = True
        if results:
            self._report_scores(name, results)
        if len(finished) == len(self.state["folds"]):
            self.set_status(name, FINISHED)
        self.save()

    def _report_scores(self, name: str, results: dict[int, FoldResult]) -> None:
        last_scores = read_json(self.folder / name / "scores.json")["last"]
        seconds = sum(result.seconds for result in self.results[name].values())
        self.report(
            f"{name}: {len(results)}/{len(self.state['folds'])} folds, out-of-fold {self.flags.metric} "
            f"{last_scores[self.flags.metric]:.4f}  log_loss {last_scores['log_loss']:.4f}  "
            f"{format_clock(seconds)}, {format_clock(max(0.0, self.compute_seconds_left()))} left"
        )

    # --- all of them

    def run(self) -> None:
        """Train what the time allows."""
        gpu = self.chosen_devices[0].name.startswith("cuda")
        first = [name for name, candidate in self.candidates.items() if candidate.after is None]
        for name in self.list_with_status(OPEN, first):
            if not self.current:
                self.attempt(name, self.prepare)
            if self.list_with_status(OPEN, [name]) and self.state["folds"]:
                self.attempt(name, self.guess, gpu)
        self.save()
        if self.state["folds"]:
            self.take_steps()
        self.close()

    def take_steps(self) -> None:
        """Take the steps that were decided before an interruption, then decide on more while they fit."""
        while True:
            decided = next((one for one in self.state["decisions"] if not one["done"]), None)
            if decided is None:
                step = self.build_schedule().choose()
                if step is None:
                    return
                if step.kind == "time":
                    self.attempt(step.name, self.time)
                    continue
                decided = self.log_decision(step)
            if decided["name"] in self.list_with_status(OPEN):
                self.attempt(decided["name"], self.train, decided)
            decided["done"] = True

    def log_decision(self, step: Step) -> dict[str, Any]:
        """Keep a decision before it is carried out, so that an interruption does not change it."""
        of = (
            f"fold {', '.join(map(str, step.folds))}"
            if len(step.folds) < len(self.state["folds"])
            else "all folds"
        )
        self.report(f"next: {step.name}, {of}: {step.why}; about {format_clock(step.seconds)}")
        kept = {"name": step.name, "folds": list(step.folds), "seconds": round(step.seconds, 3)}
        kept |= {"why": step.why, "anyhow": step.anyhow, "done": False}
        self.state["decisions"].append(kept)
        self.save()
        return kept

    def close(self) -> None:
        """Say of every candidate that is left why it was not trained to its end."""
        schedule = self.build_schedule()
        left = format_clock(max(0.0, schedule.left))
        self.rest = [(entry.name, schedule.estimate_cost(entry)) for entry in schedule.list_worthwhile()]
        for name in self.list_with_status(OPEN):
            entry, after = schedule.by_name[name], self.candidates[name].after
            before = self.state["of"][after] if after else None
            if before is not None and before["status"] != FINISHED:
                # with more hours the first seed is open again, and this one with it
                status = NO_TIME if before["status"] in (NO_TIME, DROPPED) else LEFT_OUT
                self.state["of"][name] |= {"status": status, "note": f"as {after}"}
                continue
            guessed = "" if schedule.is_known(entry) else "about "
            needs = f"needs {guessed}{format_clock(schedule.estimate_cost(entry))}"
            needs += f"{', which is only guessed' if guessed else ''}, {left} left"
            if not entry.results:
                self.set_status(name, NO_TIME, needs)
            elif schedule.is_behind(entry):
                self.set_status(name, DROPPED, self._explain_drop(schedule, entry))
            else:
                done = f"stopped after {len(entry.results)} of {len(self.state['folds'])} folds"
                self.set_status(name, NO_TIME, f"{done}: the rest {needs}")
        self.save()

    def _explain_drop(self, schedule: Schedule, entry: Entry) -> str:
        folds = f"after fold {', '.join(map(str, entry.results))}"
        depends = "so the choice depends on these folds' labels"
        if schedule.best is None:
            return f"{folds}: no better than the class prior, {depends}"
        below = fmean(r.error - schedule.best.results[fold].error for fold, r in entry.results.items())
        side = "above" if self.flags.metric in metrics.MINIMISED else "below"
        return f"{folds}: {self.flags.metric} {below:.3f} {side} {schedule.best.name}, {depends}"
