"""The hold-out's score and the submission, after training or by predict.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.core.files import check_output, write_bytes
from earshot.features.cache import Cache
from earshot.prediction import ledger, stretches, submission
from earshot.training import dataset, metrics, predict, run_scores
from earshot.training.predict import describe_predictors
from earshot.training.run import Run


def score_and_submit(
    run: Run,
    cache: Cache,
    out: Path,
    device: Device,
    gigabytes: float | None = None,
) -> None:
    """Score the hold-out and write the submission, if the data set has clips for them."""
    view, training = run.config["record"]["view"], run.config["record"]["training"]
    prior = np.array(run.config["prior"])
    if cache.has_split("test"):
        rows = dataset.load_rows(cache, "test", view, device, gigabytes)
        found = run_scores.score_holdout(
            run,
            rows,
            lambda: predict.fill_with_prior(predict.predict_run(run, rows, device), prior)[0],
            bool(training.get("refit")),
            training["metric"],
        )
        of = (
            f"mean of {describe_predictors(run)}"
            if not found.get("refit")
            else f"trained on {describe_predictors(run)}"
        )
        run.log(
            f"hold-out, {found['clips']} clips, {of}: {metrics.format_summary(found, training['metric'])}"
        )
    if not cache.has_split("subm"):
        run.log("nothing to submit: the data set has no clips without labels")
        return
    rows = dataset.load_rows(cache, "subm", view, device, gigabytes)
    if training.get("refit"):
        run.log(
            f"the submission is predicted by models trained on {describe_predictors(run)}, at the last "
            "epoch; the scores above are those of the folds"
        )
    elif training["epochs"] > 1:
        run.log(
            f"the submission is predicted by each fold's best checkpoint (--metric {training['metric']}); by "
            f"those of the last epoch: predict.py --runs {run.folder.name} --blend auto"
        )
    split = cache.split("subm")
    probabilities, lines = stretches.smooth_run(run, split, predict.predict_run(run, rows, device))
    for text in lines:
        run.log(text)
    name = run.folder.name
    for text in write_submission(cache, rows.ids, probabilities, prior, run.classes, out, name, runs=[run]):
        run.log(text)


def dry_run(cache: Cache, out: Path, metric: str) -> None:
    """Check before training what would be refused after it: the metric, and a submission of class priors."""
    metrics.check_metric(metric, cache.multilabel)
    check_output(out)
    if cache.has_split("subm"):
        ids, sample = cache.split("subm")["ids"], submission.find_sample(cache)
        priors = np.repeat(cache.prior()[None], len(ids), 0)
        submission.render(
            ids, priors, cache.classes, tuple(cache.manifest["columns"]), sample, **_get_task(cache)
        )


def _get_task(cache: Cache) -> dict[str, Any]:
    return {"multilabel": cache.multilabel, "separator": cache.manifest.get("separator")}


def write_submission(
    cache: Cache,
    ids: np.ndarray,
    probabilities: np.ndarray,
    prior: np.ndarray,
    classes: list[str],
    out: Path,
    name: str = "",
    *,
    runs: Sequence[Run] = (),
    how: str = "",
    oof: tuple[str, float] | None = None,
    message: str = "",
) -> list[str]:
    """Write a validated submission and enter it in the ledger.

    Args:
        ids: (clips,). probabilities: (clips, classes), NaN rows are filled with the prior.
        prior: (classes,) shares of the classes in training.
        name: the run's or the blend's; the submission is kept as <name>.csv, too. Empty: it is not.
        runs, how, oof, message: for the ledger: what it was made from, how it was blended, metric and
            unbiased out-of-fold score (of a single run it is known), the user's note.
    Returns:
        the lines to print.
    Raises:
        UserError: the validation refuses it.
    """
    filled, skipped = predict.fill_with_prior(probabilities, prior)
    columns, sample = tuple(cache.manifest["columns"]), submission.find_sample(cache)
    table = submission.write(out, ids, filled, classes, columns, sample, **_get_task(cache))
    same = submission.warn_same_answer(table, columns[0])
    lines = [same] if same else []
    if skipped.any():
        lines.append(
            f"{int(skipped.sum())} of {len(skipped)} clips skipped, filled with class priors: "
            f"reasons in {cache.folder / 'bad_audio.csv'}"
        )
    entered = ledger.add_submission(
        out, str(cache.record.get("competition", "")), len(table), runs, how, oof, message
    )
    against = f"against {sample.name}" if sample else "(no sample submission)"
    lines.append(
        f"{out}: {len(table)} rows, {len(table.columns)} columns, validated {against}{_keep_copy(out, name)}"
    )
    solution = cache.folder / "solution.csv"
    if solution.exists():
        found = submission.score(table, solution)
        lines.append(
            f"scored with {solution.name}: f1_macro {found['f1_macro']:.4f}  accuracy {found['accuracy']:.4f}"
        )
    return [*lines, entered]


def _keep_copy(out: Path, name: str) -> str:
    """Keep a submission as <name>.csv beside it, because the next run overwrites it; the rest of its line.

    A file of this name that is not in the ledger may be the user's own and stays as it is.
    """
    copy = out.with_name(f"{name}.csv")
    if not name or copy.name in (out.name, ledger.NAME):
        return ""
    data = out.read_bytes()
    try:
        if (
            copy.exists()
            and copy.read_bytes() != data
            and not ledger.has_content(out.with_name(ledger.NAME), copy)
        ):
            return f" (not kept as {copy}: another file has this name)"
    except UserError:  # a damaged ledger, of which its own line speaks
        return ""
    write_bytes(copy, data)
    return f", kept as {copy}"
