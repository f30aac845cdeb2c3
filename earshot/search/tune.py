"""`train.py --tune N`: Optuna searches settings for one recipe; the best ones are then trained as usual.

Trials are kept in <run>/tuning.db (SQLite), unfinished ones in <run>/trial_<hash>/, so that the same command
continues after a stop.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import models
from earshot.core.config import TrainingFlags
from earshot.core.errors import UserError
from earshot.core.files import append_text, empty_folder, read_json
from earshot.core.fingerprint import compute_fingerprint
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
    while True:
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if len(done) >= trials:
            break
        # Seeded by the number of trials alone, so that a kill does not change what is sampled.
        study.sampler = optuna.samplers.TPESampler(
            seed=int(np.random.SeedSequence((base.seed, len(done))).generate_state(1)[0]),
            n_startup_trials=STARTUP,
        )
        trial = study.ask()
        training, chosen = suggest(trial, base, options, is_sklearn, has_other_targets)
        # One seed and no models on all clips: a trial is only for its score.
        trial_job = job.copy_with(replace(base, **training, seeds=1, refit=False), {**head.options, **chosen})
        trial_folder = folder / f"trial_{compute_fingerprint(trial.params)[:8]}"
        try:
            value, pruned = _try(trial, trial_job, trial_folder, wanted, deadline)
        except (UserError, models.HeadError) as error:  # such as a NaN loss
            log(f"trial {len(done) + 1}/{trials} failed: {' '.join(str(error).split())}")
            value, pruned = float("-inf"), True
        if value is None:
            return None
        study.tell(
            trial, None if pruned else value, state=TrialState.PRUNED if pruned else TrialState.COMPLETE
        )
        shutil.rmtree(trial_folder, ignore_errors=True)
        words = "  ".join(
            f"{key} {v:.3g}" if isinstance(v, float) else f"{key} {v}" for key, v in trial.params.items()
        )
        log(
            f"trial {len(done) + 1}/{trials}: {base.metric} "
            f"{value:.4f}{' (stopped early)' if pruned else ''}  {words}"
        )
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


def _try(
    trial: Trial, job: Job, folder: Path, wanted: list[int], deadline: Deadline
) -> tuple[float | None, bool]:
    """Pooled out-of-fold score of a trial at the last epoch, and whether the pruner stopped it after some
    folds; None if the time ran out."""
    run = job.begin(folder, False, quiet=True)
    done: list[int] = []
    value = float("-inf")
    for step, number in enumerate(wanted):
        if not cross_validation.train_folds(job, run, [number], deadline):
            return None, False
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
