"""`train.py --tune N`: Optuna searches settings for one recipe; the best ones are then trained as usual.

Trials are kept in <run>/tuning.db (SQLite), unfinished ones in <run>/trial_<hash>/, so that the same command
continues after a stop. On a cluster as many trials as workers are drawn and trained at once. Optuna learns
their scores in order once all have ended, so that a search that is stopped draws the same.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import models
from earshot.core.config import TrainingFlags
from earshot.core.errors import UserError
from earshot.core.files import append_text, empty_folder, read_json
from earshot.core.fingerprint import compute_fingerprint
from earshot.search.model_queue import FAILED, ModelQueue, ModelTask, open_queue
from earshot.training import cross_validation, estimators, metrics
from earshot.training.experiment import HeadSpec, Job
from earshot.training.run import Run

if TYPE_CHECKING:
    from optuna import Study, Trial

    from earshot.core.deadline import Deadline

DATABASE, STUDY = "tuning.db", "tuning"
STARTUP = 5  # trials drawn at random before the sampler learns, and before the pruner compares
TIE = 1e-3  # of the log loss, beside the metric: few clips give many equal scores
# Options of heads, where a head has them: lowest and highest, and whether on a logarithmic scale.
OPTIONS = {
    "dropout": (0.0, 0.6, False),
    "c": (1e-3, 30.0, True),
    "gamma": (0.1, 10.0, True),
    "temperature": (0.02, 0.5, True),
}


def open_study(folder: Path) -> Study:
    """The study in a run's folder; UserError where Optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("--tune needs Optuna: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=0)
    return optuna.create_study(
        study_name=STUDY,
        direction="maximize",
        load_if_exists=True,
        pruner=pruner,
        storage=f"sqlite:///{folder / DATABASE}",
    )


def suggest(
    trial: Trial, base: TrainingFlags, options: dict[str, Any], is_sklearn: bool, has_other_targets: bool
) -> tuple[dict, dict]:
    """A trial's training settings and head options.

    Args:
        options: the head's, with their defaults. is_sklearn: is it a scikit-learn head, without epochs?
            has_other_targets: does it predict further views, which mixing would change?
    """
    chosen = {
        key: trial.suggest_float(f"head.{key}", low, high, log=log)
        for key, (low, high, log) in OPTIONS.items()
        if isinstance(options.get(key), float)
    }
    if is_sklearn:
        return {}, chosen
    training = {
        "lr": trial.suggest_float("lr", base.lr / 8, base.lr * 8, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-4, 0.5, log=True),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.2),
        "batch_size": trial.suggest_categorical("batch_size", sorted({16, 32, 64, 128, base.batch_size})),
        "epochs": trial.suggest_int("epochs", max(1, base.epochs // 2), 2 * base.epochs),
    }
    if not has_other_targets and base.mixup_pairs == "any":
        training["mixup"] = trial.suggest_float("mixup", 0.0, 1.0)
    return training, chosen


def keep_trial_in_process(base: TrainingFlags, head: HeadSpec, options: dict[str, Any]) -> dict[str, Any]:
    """The recipe's own settings as the first trial; only those inside the search space count."""
    keys = ("lr", "weight_decay", "label_smoothing", "batch_size", "epochs", "mixup")
    values: dict[str, Any] = {key: getattr(base, key) for key in keys}
    values["weight_decay"] = min(max(values["weight_decay"], 1e-4), 0.5)
    return values | {
        f"head.{key}": head.options.get(key, options[key])
        for key in OPTIONS
        if isinstance(options.get(key), float)
    }


def tune(trials: int, job: Job, folder: Path, wanted: list[int], deadline: Deadline) -> Job | None:
    """The job with the best settings and head options that so many trials find; None if the time ran out.

    Args:
        job: the recipe's own. folder: the run's, locked by this process. wanted: the folds to tune on.
    Raises:
        UserError: no Optuna; no trial that could be trained.
    """
    if job.machine.fresh:
        empty_folder(folder)
        job.machine = replace(job.machine, fresh=False)
    base, head = job.settings, job.head_spec
    options, is_sklearn = models.get_options(head.name), estimators.is_sklearn_head(head.build)
    has_other_targets = bool(job.head and job.head.also)
    job.head = None
    study = open_study(folder)
    import optuna
    from optuna.trial import TrialState

    def log(text: str) -> None:
        print(text, flush=True)
        append_text(folder / "training_log.txt", text + "\n")

    log(
        f"tuning on fold {', '.join(map(str, wanted))}: {trials} trials; their labels choose the settings, "
        "so scores on these folds will be optimistic"
    )
    for stale in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(stale.number, state=TrialState.FAIL)  # killed: repeat it from its checkpoints
        study.enqueue_trial(stale.params)
    if not study.trials:
        study.enqueue_trial(keep_trial_in_process(base, head, options))

    def count_done() -> int:
        return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def draw(number: int) -> TrialRun:
        # Seeded by the number of trials alone, so that a kill does not change what is sampled.
        study.sampler = optuna.samplers.TPESampler(
            seed=int(np.random.SeedSequence((base.seed, number)).generate_state(1)[0]),
            n_startup_trials=STARTUP,
        )
        trial = study.ask()
        training, chosen = suggest(trial, base, options, is_sklearn, has_other_targets)
        # One seed and no models on all clips: a trial is only for its score.
        trial_job = job.copy_with(replace(base, **training, seeds=1, refit=False), {**head.options, **chosen})
        return TrialRun(trial, trial_job, folder / f"trial_{compute_fingerprint(trial.params)[:8]}")

    together = 1 if job.cluster is None else len(job.devices)
    with contextlib.ExitStack() as stack:
        evaluate: Evaluate = partial(_evaluate_here, wanted, deadline)
        if job.cluster is not None and count_done() < trials:
            evaluate = stack.enter_context(_ClusterTrials(job, folder, wanted, deadline).open()).evaluate
        while (done := count_done()) < trials:
            # as many as to the next multiple, so that a kill does not change what is told between draws
            drawn = [draw(number) for number in range(done, min(trials, done + together - done % together))]
            outcomes = evaluate(drawn)
            if outcomes is None:
                return None
            for number, (trial, _, trial_folder), (value, pruned, error) in zip(
                range(done + 1, trials + 1), drawn, outcomes, strict=False
            ):
                if error:
                    log(f"trial {number}/{trials} failed: {error}")
                state = TrialState.PRUNED if pruned else TrialState.COMPLETE
                study.tell(trial, None if pruned else value, state=state)
                shutil.rmtree(trial_folder, ignore_errors=True)
                words = "  ".join(
                    f"{key} {v:.3g}" if isinstance(v, float) else f"{key} {v}"
                    for key, v in trial.params.items()
                )
                early = " (stopped early)" if pruned else ""
                log(f"trial {number}/{trials}: {base.metric} {value:.4f}{early}  {words}")
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise UserError(
            f"{folder}: no trial could be trained to its end: lower --lr, or tune with more trials"
        )
    best = study.best_trial
    training, chosen = suggest(
        optuna.trial.FixedTrial(best.params), base, options, is_sklearn, has_other_targets
    )
    log(
        f"best of {trials}: {base.metric} {best.value:.4f} (minus {TIE:g} x log loss); optimistic, because "
        "it was chosen on these folds"
    )
    return job.copy_with(replace(base, **training), {**head.options, **chosen})


def mark_run(run: Run, wanted: list[int]) -> None:
    """Note in the scores and in the log that the settings were chosen on the folds that are scored."""
    warning = (
        f"settings chosen by --tune on fold {', '.join(map(str, wanted))}: the scores of these folds are "
        "optimistic, those of the last epoch too"
    )
    run.write_json("scores", {**read_json(run.folder / "scores.json"), "tuned": warning})
    run.log(f"warning: {warning}")


class TrialRun(NamedTuple):
    """A trial, its job, and the folder of its run."""

    trial: Trial
    job: Job
    folder: Path


class Outcome(NamedTuple):
    """A trial's score, whether it ended before its last fold, and why it failed, "" if it did not."""

    value: float
    pruned: bool
    error: str = ""


Evaluate = Callable[[list[TrialRun]], list[Outcome] | None]  # None: out of time


def _fail(error: Exception | str) -> Outcome:
    """Such as a loss that is not a number."""
    return Outcome(float("-inf"), True, " ".join(str(error).split()))


def _evaluate_here(wanted: list[int], deadline: Deadline, drawn: list[TrialRun]) -> list[Outcome] | None:
    outcomes = []
    for one in drawn:
        try:
            value, pruned = _try(*one, wanted, deadline)
        except (UserError, models.HeadError) as error:
            outcomes.append(_fail(error))
            continue
        if value is None:
            return None
        outcomes.append(Outcome(value, pruned))
    return outcomes


def _try(
    trial: Trial, job: Job, folder: Path, wanted: list[int], deadline: Deadline
) -> tuple[float | None, bool]:
    """A trial's score, and whether the pruner stopped it after some folds; None if the time ran out."""
    run = job.begin(folder, False, quiet=True)
    folds = _list_folds(trial, job, run, wanted)
    while True:
        try:
            number = next(folds)
        except StopIteration as end:
            return end.value
        if not cross_validation.train_folds(job, run, [number], deadline):
            return None, False


def _list_folds(
    trial: Trial, job: Job, run: Run, wanted: list[int]
) -> Generator[int, None, tuple[float, bool]]:
    """The folds to train, one after the other, each scored once the next is asked for.

    Returns:
        the pooled out-of-fold score at the last epoch, and whether the pruner stopped the trial after some
        folds.
    """
    value, done = float("-inf"), []
    for step, number in enumerate(wanted):
        yield number
        done.append(number)
        truth = np.concatenate([job.rows.truth[job.numbers == n] for n in done])
        predicted = np.concatenate([run.get_fold_folder(n).load_predictions("last") for n in done])
        value = metrics.compute_gain(job.settings.metric, predicted, truth) + TIE * metrics.compute_gain(
            "log_loss", predicted, truth
        )
        trial.report(value, step)
        if step + 1 < len(wanted) and trial.should_prune():
            return value, True
    return value, False


class _ClusterTrials:
    """Trains trials on a cluster, several at once; the pruner compares with trials told before."""

    queue: ModelQueue

    def __init__(self, job: Job, folder: Path, wanted: list[int], deadline: Deadline):
        self.job, self.folder, self.wanted, self.deadline = job, folder, wanted, deadline
        self.under_way: dict[str, tuple[Job, Run, Generator[int, None, tuple[float, bool]]]] = {}
        self.outcomes: dict[str, Outcome] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[_ClusterTrials]:
        """Within, there are workers."""
        assert self.job.cluster is not None
        caches = [self.job.cache.folder]
        with open_queue(
            self.job.cluster, self.job.devices, self.folder, caches, self._end_task
        ) as self.queue:
            yield self

    def evaluate(self, drawn: list[TrialRun]) -> list[Outcome] | None:
        """The outcomes of trials in their order; None if the time ran out."""
        # equal settings, of a head with few options, have one run
        runs = {one.folder.name: one for one in drawn}
        self.under_way, self.outcomes = {}, {}
        for name, (trial, job, folder) in runs.items():
            try:
                run = job.begin(folder, False, quiet=True)
                self.under_way[name] = (job, run, _list_folds(trial, job, run, self.wanted))
                self._advance(name)
            except (UserError, models.HeadError) as error:
                self.outcomes[name] = _fail(error)
        if not self.queue.work(self.deadline):
            return None
        return [self.outcomes[one.folder.name] for one in drawn]

    def _advance(self, name: str) -> None:
        """Queue the next fold of a trial that is not trained yet, or note how the trial ended."""
        job, run, folds = self.under_way[name]
        try:
            while not self.queue.add(job, run, [next(folds)]):
                pass
        except StopIteration as end:
            self.outcomes[name] = Outcome(*end.value)

    def _end_task(self, task: ModelTask, kind: str, value: Any, seconds: float) -> None:
        try:
            if kind == FAILED:
                raise UserError(value)
            self._advance(task.run)
        except UserError as error:
            self.outcomes[task.run] = _fail(error)
