"""Cross-validation: every fold trained, the out-of-fold predictions pooled and scored, the hold-out scored
once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from earshot.core import checksums
from earshot.core.config import TrainingFlags
from earshot.core.deadline import Deadline, patiently
from earshot.core.device import Device, autocast, laid_out
from earshot.core.errors import UserError
from earshot.core.worker_pool import Team
from earshot.training import estimators, parts
from earshot.training.dataset import Rows
from earshot.training.eta import Paced
from earshot.training.folds import trained_on
from earshot.training.parts import Part
from earshot.training.predict import predict
from earshot.training.run import Run
from earshot.training.run_scores import KINDS
from earshot.training.trainer import Fitter, Fold

# of a run with a teacher: (folds + 1, clips without labels, classes), the last the mean over the folds
ANSWERS = "pseudo.npy"


def chosen_folds(numbers: np.ndarray, wanted: tuple[int, ...]) -> list[int]:
    """The folds to train, in order; UserError for one that does not exist."""
    every = sorted(int(n) for n in np.unique(numbers) if n >= 0)
    for number in wanted:
        if number not in every:
            raise UserError(f"there is no fold {number}: the folds are {', '.join(map(str, every))}")
    return [number for number in every if not wanted or number in wanted]


class Folds:
    """Trains folds, and models on all clips, on one device, in this process or, called with a part, in one of
    its own."""

    def __init__(
        self,
        device: Device,
        run: Run,
        rows: Rows | Callable[[Device], Rows],
        numbers: np.ndarray,
        settings: TrainingFlags,
        build: Callable[[], Any],
        rebuild: Callable[[dict], Any],
        save_every: float,
    ):
        self.device, self.run, self.numbers, self.settings = device, run, numbers, settings
        self.build, self.rebuild, self.save_every = build, rebuild, save_every
        self.rows = rows(device) if callable(rows) else rows
        self.every = every_fold(numbers)

    def __call__(self, task: tuple[Part, int], say: Callable[[str | None], None], deadline: Any) -> bool:
        """Train a part and predict with it; False if it is to be continued.

        Args:
            task: the part, and how many follow on this device, for the ETA.
            say: takes the lines for the log, and None after every checkpoint.
        """
        part, left = task
        if not self.run.part(part).finished():
            if not self.fit(part, left, say, deadline, lambda: say(None)) or deadline.passed():
                return False
        self.predict(part)
        return True

    def fit(
        self, part: Part, left: int, log: Callable[[str], None], deadline: Any, saved: Callable[[], None]
    ) -> bool:
        """Train a part to its end; False if the time ran out, at a safe point before it."""
        numbers, rows, classes = self.numbers, self.rows, self.run.classes
        if part.fold is None:
            everyone = np.ones(len(numbers), dtype=bool)
            fold = Fold(parts.EVERYTHING, 1, 1, everyone, ~everyone, part)
        else:
            number = part.fold
            fold = Fold(
                number,
                self.every.index(number) + 1,
                len(self.every),
                trained_on(numbers, rows.groups, number),
                numbers == number,
                part,
            )
        unseen = np.flatnonzero(rows.targets[fold.valid].any(0) & ~rows.targets[fold.train].any(0))
        if len(unseen):
            log(f"{part.name}: no clip outside it has the label {', '.join(classes[c] for c in unseen)}")
        if estimators.is_closed(self.build):
            estimators.fit(self.build, rows, fold, self.settings, self.run.part(part), self.device, log)
            saved()
            return True
        settings = replace(self.settings, seed=part.seed)
        rows = _taught(self.run, rows, self.every, part)
        fitter = Fitter(self.build, rows, fold, settings, len(classes), self.run.part(part), self.device)
        if fitter.progress.epoch or fitter.progress.step:
            log(
                f"{fold.title}  continues after epoch {fitter.progress.epoch}"
                f"{f', step {fitter.progress.step}' if fitter.progress.step else ''}"
            )
        return fitter.fit(log, Paced(deadline, fitter, left, log), left, saved, self.save_every)

    def predict(self, part: Part) -> bool:
        """A finished fold's predictions; False if they are there, or no clip was left to ask."""
        valid = self.numbers == part.fold
        return part.fold is not None and _fold_predictions(
            self.run, self.rows, part, valid, self.rebuild, self.device
        )


def _taught(run: Run, rows: Rows, every: list[int], part: Part) -> Rows:
    """The rows that a part learns from; where the run has a teacher, with that teacher's answers that have
    not seen the part's fold."""
    about = run.config["record"].get("pseudo")
    if not about:
        return rows
    answers = checksums.read_array(run.folder / ANSWERS)
    if answers is None:
        raise UserError(f"{run.folder / ANSWERS} is missing or damaged: run the same command again")
    return rows.taught(answers[len(every) if part.fold is None else every.index(part.fold)], about["weight"])


def every_fold(numbers: np.ndarray) -> list[int]:
    """The folds that there are, in order; clips of none (-1, -2) aside."""
    return sorted(int(n) for n in np.unique(numbers) if n >= 0)


def train(
    run: Run,
    rows: Rows,
    numbers: np.ndarray,
    wanted: list[int],
    settings: TrainingFlags,
    build: Callable[[], Any],
    rebuild: Callable[[dict], Any],
    device: Device,
    deadline: Deadline,
    save_every: float = 10.0,
    several: Sequence[Device] = (),
    load: Callable[[Device], Rows] | None = None,
) -> bool:
    """Train what is not finished of the wanted folds with every seed, and of the models on all clips; False
    if the time ran out.

    Args:
        rows: the training split.
        numbers: (clips,) each clip's fold.
        build: makes a fresh head. rebuild: makes one out of its description.
        save_every: minutes between checkpoints inside an epoch.
        several: devices to train folds on side by side, a process for each; `load`, which makes a device's
            `rows`, `build` and `rebuild` are then pickled. The results are those of one such device with as
            many threads.
    """
    every, asked = (parts.of_run(asdict(settings), some) for some in (every_fold(numbers), wanted))
    todo = run.missing(asked)
    if len(todo) < len(asked):
        run.log(f"finished already: {parts.listed([part for part in asked if part not in todo])}")
    if len(several) > 1 and load:
        return _side_by_side(
            run, load, numbers, every, asked, settings, build, rebuild, several, deadline, save_every
        )
    folds = Folds(device, run, rows, numbers, settings, build, rebuild, save_every)
    for index, part in enumerate(todo):
        if index and deadline.passed():
            return False
        with patiently():
            done = folds.fit(part, len(todo) - index - 1, run.log, deadline, lambda: run.write_metrics(every))
        if not done:
            return False
    run.write_metrics(every)  # again: a kill may have come before the last time
    made = False
    for part in asked:
        if made and deadline.passed():
            return False
        made = folds.predict(part)
    return True


def _side_by_side(
    run: Run,
    load: Callable[[Device], Rows],
    numbers: np.ndarray,
    every: list[Part],
    asked: list[Part],
    settings: TrainingFlags,
    build: Callable,
    rebuild: Callable,
    several: Sequence[Device],
    deadline: Deadline,
    save_every: float,
) -> bool:
    """The same with a process for each device; the log and metrics.csv are written by this one alone."""
    todo = run.missing(asked)
    todo += [
        part
        for part in asked
        if part not in todo
        and part.fold is not None
        and any(run.part(part).predictions(kind) is None for kind in KINDS)
    ]
    several = several[: len(todo)]

    def heard(line: str | None) -> None:
        if line is not None:
            run.log(line)
            return
        try:
            run.write_metrics(every)
        except UserError:
            # another fold's checkpoint is just being replaced; there is a next time, and the
            # last is below
            pass

    done = True
    if todo:
        arguments = (run, load, numbers, settings, build, rebuild, save_every)
        with patiently(), Team(several, Folds, arguments, run.folder) as team:
            team.ready()
            tasks = [(part, (len(todo) - index - 1) // len(several)) for index, part in enumerate(todo)]
            done = team.run(tasks, heard, deadline)
    run.write_metrics(every)
    return done


def _fold_predictions(
    run: Run, rows: Rows, part: Part, valid: np.ndarray, rebuild: Callable, device: Device
) -> bool:
    """fold_<n>/valid_best.npy and valid_last.npy: (clips of the fold, classes), once the fold is finished;
    False if both are there."""
    made = False
    for kind in KINDS:
        if run.part(part).predictions(kind) is not None:
            continue
        head = laid_out(run.part(part).load_head(kind, rebuild, device.name), device)
        found = predict(
            head, rows, rows.of_clips(valid), run.at_once, autocast(device), run.shifts, run.pool
        )[valid]
        run.part(part).save_predictions(kind, found)
        made = True
    return made
