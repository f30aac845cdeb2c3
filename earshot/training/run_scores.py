"""A run's scores: out-of-fold predictions pooled, and the labelled hold-out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from earshot.core import checksums, latest
from earshot.core.errors import UserError
from earshot.core.files import write_text
from earshot.training import metrics, text_report
from earshot.training.dataset import WindowDataset
from earshot.training.oof import Oof
from earshot.training.progress import is_diverged, suggest_fix
from earshot.training.run import ModelSlot, Run, format_slots, list_fold_slots

KINDS = {
    "last": "last epoch: unbiased",
    "best": "best epoch, chosen on the validation fold: optimistic",
}


def summarise_run(run: Run, rows: WindowDataset, numbers: np.ndarray) -> dict[str, dict]:
    """Pool the finished folds' out-of-fold predictions, write oof.csv and oof_last.csv and the reports, print
    the scores. Every clip counts alike, whatever its weight in training.

    Returns:
        "best" and "last" -> the pooled scores, with the spread of the metric over folds.
    """
    training = run.config["record"]["training"]
    metric = training["metric"]
    finished = [
        fold
        for fold in run.list_finished_folds()
        if all(_has_predictions(run, slot) for slot in list_fold_slots(training, fold))
    ]
    pooled = np.isin(numbers, finished)
    results, lines = {}, []
    for kind, about in KINDS.items():
        probabilities = np.zeros((len(numbers), len(run.classes)), dtype=np.float32)
        for fold in finished:
            rows_of_fold = numbers == fold
            slots = list_fold_slots(training, fold)
            each = [_load_predictions(run, slot, kind, int(rows_of_fold.sum())) for slot in slots]
            probabilities[rows_of_fold] = np.mean(each, 0)
        oof = Oof(rows.ids, numbers, rows.truth, probabilities, run.classes).take(pooled)
        oof.write(run.folder / ("oof.csv" if kind == "best" else "oof_last.csv"))
        write_text(
            run.folder / f"report_{kind}.txt",
            f"{run.folder.name}, out-of-fold, {kind} ({about})\n\n"
            + text_report.format_report(oof.probabilities, oof.labels, run.classes),
        )
        scores = oof.score(metric)
        undefined = [name for name in metrics.list_undefined_metrics(oof.labels) if name in scores]
        if undefined:
            scores["undefined"] = undefined
        by_fold = list(oof.score_folds(metric).values())
        mean, spread = float(np.mean(by_fold)), float(np.std(by_fold))
        results[kind] = {**scores, "fold_mean": mean, "fold_std": spread, "folds": finished}
        shown = "undefined" if metric in undefined else f"{mean:.4f} ± {spread:.4f}"
        for names, note in zip(
            metrics.group_shown_scores(scores, metric),
            (about, f"at threshold {metrics.THRESHOLD}"),
            strict=False,
        ):
            by_fold_text = f"  {metric} by fold {shown}" if metric in names and len(finished) > 1 else ""
            lines.append(f"  {kind}  {metrics.format_scores(scores, names)}{by_fold_text}  ({note})")
    run.write_json("scores", results)
    folds_text = f"{len(finished)} fold{'' if len(finished) == 1 else 's'}"
    seeds_text = f", mean of {training['seeds']} seeds" if training.get("seeds", 1) > 1 else ""
    run.log(f"out-of-fold scores, {int(pooled.sum())} clips in {folds_text}{seeds_text}:")
    for line in [*lines, *_warn_diverged(run, finished)]:
        run.log(line)
    if not run.quiet:  # a bake-off's candidates lie in its own folder
        latest.finish(run.folder.parent, run.folder.name)
    return results


def _warn_diverged(run: Run, finished: list[int]) -> list[str]:
    """A warning that names the models whose training ended diverged."""
    training = run.config["record"]["training"]
    diverged = [
        slot
        for fold in finished
        for slot in list_fold_slots(training, fold)
        if any(map(is_diverged, run.get_slot_folder(slot).read_history()[-1:]))
    ]
    if not diverged:
        return []
    fix = suggest_fix(training["lr"], training.get("clip_grad"))
    return [f"warning: training diverged in {format_slots(diverged)}, so these scores are of no use: {fix}"]


def _has_predictions(run: Run, slot: ModelSlot) -> bool:
    return all(run.get_slot_folder(slot).load_predictions(kind) is not None for kind in KINDS)


def _load_predictions(run: Run, slot: ModelSlot, kind: str, clips: int) -> np.ndarray:
    """A fold's saved predictions; UserError where they are of another number of clips or labels."""
    found = run.get_slot_folder(slot).load_predictions(kind)
    if found.shape != (clips, len(run.classes)):
        raise UserError(
            f"{run.get_slot_folder(slot).folder}/valid_{kind}.npy holds predictions of "
            f"{' x '.join(map(str, found.shape))}, and the fold has {clips} clips x {len(run.classes)} "
            "labels: it belongs to another run, delete it to make it again"
        )
    return found


def score_holdout(
    run: Run,
    rows: WindowDataset,
    predict_all: Callable[[], np.ndarray],
    refit: bool = False,
    metric: str = "",
) -> dict:
    """Score the labelled hold-out once: test.json and test_report.txt; a run that has these folds' score
    keeps it.

    Args:
        refit: is it predicted by the models on all clips?
        metric: the run's metric, which is scored and shown too.
    """
    path, finished, truth = run.folder / "test.json", run.list_finished_folds(), rows.truth
    # a multi-label clip may have no label
    known = np.ones(len(truth), dtype=bool) if rows.multilabel else truth >= 0
    if path.exists():
        try:
            kept = checksums.read(path)
        except checksums.CorruptFile as error:
            run.log(f"warning: {error}: the hold-out is scored again")
            kept = {}
        if (
            kept.get("folds") == finished
            and kept.get("refit", False) == refit
            and _is_score(kept, int(known.sum()))
            and (not metric or metric in kept)
        ):
            return kept
    probabilities = predict_all()
    found = {
        **metrics.compute_scores(probabilities[known], truth[known], metric),
        "clips": int(known.sum()),
        "folds": finished,
    }
    unknown = [name for name in metrics.list_undefined_metrics(truth[known]) if name in found]
    found |= ({"undefined": unknown} if unknown else {}) | ({"refit": True} if refit else {})
    of = "models on all labelled clips" if refit else "mean of folds"
    write_text(
        run.folder / "test_report.txt",
        f"{run.folder.name}, hold-out, {of}\n\n"
        + text_report.format_report(probabilities[known], truth[known], run.classes),
    )
    checksums.write(path, found)
    return found


def _is_score(kept: dict, clips: int) -> bool:
    """Are these scores of so many clips? A valid checksum does not prove that this program wrote them."""
    numbers = {name: value for name, value in kept.items() if name not in ("folds", "undefined", "refit")}
    shown = {"f1_macro", "accuracy", "log_loss", "clips"} <= set(numbers) and isinstance(
        kept.get("undefined", []), list
    )
    return (
        shown and all(type(value) in (int, float) for value in numbers.values()) and numbers["clips"] == clips
    )
