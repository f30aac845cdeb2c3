"""From saved runs to probabilities: folds into a run, runs into a blend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from earshot import earlier, parts, probe
from earshot.cache import Cache
from earshot.config import TrainingFlags
from earshot.dataset import Rows, check_further, predict
from earshot.device import Device
from earshot.errors import UserError
from earshot.fingerprint import differences
from earshot.parts import Part
from earshot.progress import some
from earshot.run import Run


def rows_of(cache: Cache, split: str, view: str, device: Device, gigabytes: float | None = None) -> Rows:
    """One split of a cache, ready for a head; `gigabytes` as in `Rows`."""
    return Rows(
        cache.split(split), view, cache.classes, cache.manifest["span"], device.name, gigabytes=gigabytes
    )


def training_rows(
    cache: Cache,
    view: str,
    also: tuple[str, ...],
    settings: TrainingFlags,
    device: Device,
    gigabytes: float | None = None,
    unlabelled: bool = False,
) -> Rows:
    """The training split with its augmented copies and the further views that a head learns from; `gigabytes`
    as in `Rows`.

    Args:
        unlabelled: with the clips to submit, too.
    Raises:
        UserError: a further view is missing, or the settings would move the features away from it.
    """
    check_further(also, cache.shapes, settings)
    more = cache.split("subm") if unlabelled else None
    return Rows(
        cache.split("train"),
        view,
        cache.classes,
        cache.manifest["span"],
        device.name,
        also,
        cache.augmented(),
        gigabytes,
        more,
    )


def predict_run(
    run: Run,
    rows: Rows,
    rebuild: Callable[[dict], Any],
    device: Device,
    batch_size: int | None = None,
    kind: str = "best",
) -> np.ndarray:
    """The mean of a run's folds and seeds, each by its best checkpoint, or its last; of its models on all
    clips where it has some.

    Args:
        rows: of the view that the run was trained on.
        rebuild: makes a head out of its description (`models.rebuild`).
        kind: "best", or "last" for the final epoch's.
    Returns:
        (clips, classes) probabilities, NaN for clips without rows.
    Raises:
        UserError: no fold of the run is finished.
    """
    return mean(
        run,
        rows,
        [predict_part(run, part, kind, rows, rebuild, device, batch_size) for part in parts.predictors(run)],
    )


def mean(run: Run, rows: Rows, found: list[np.ndarray]) -> np.ndarray:
    """The mean of what a run's models predict, each (clips, classes); UserError where a clip that has rows
    gets no number."""
    if not len(rows):
        return np.full((len(rows.ids), len(run.classes)), np.nan, dtype=np.float32)
    blended = np.mean(found, 0)
    heard = np.bincount(rows.clip, minlength=len(rows.ids)) > 0
    lost = rows.ids[heard & ~np.isfinite(blended).all(1)]
    if len(lost):  # or they would be answered like clips that cannot be heard
        raise UserError(
            f"{run.folder}: the prediction is not a number for {some(lost)}: their features are damaged, or "
            "a fold's weights; extract anew (get_features.py --fresh), else train anew (train.py --fresh)"
        )
    return blended


def predict_part(
    run: Run,
    part: Part,
    kind: str,
    rows: Rows,
    rebuild: Callable[[dict], Any],
    device: Device,
    batch_size: int | None = None,
) -> np.ndarray:
    """One model's (clips, classes) probabilities, by its "best" or "last" checkpoint; the rest as in
    `predict_run`."""
    head = load_part(run, part, kind, rebuild, device)
    return predict(
        head,
        rows,
        np.arange(len(rows)),
        batch_size or run.at_once,
        probe.autocast(device),
        run.shifts,
        run.pool,
    )


def load_part(run: Run, part: Part, kind: str, rebuild: Callable[[dict], Any], device: Device) -> Any:
    """One model's head on the device, as `predict_part` takes it."""
    head = probe.laid_out(run.part(part).load_head(kind, rebuild, device.name), device)
    check_head(run, part, head)
    return head


def check_head(run: Run, part: Part, head: Any) -> None:
    """UserError where a fold's head answers another number of labels than its run has."""
    answers = head.config["num_classes"] if hasattr(head, "config") else len(run.classes)
    if answers != len(run.classes):
        raise UserError(
            f"{run.part(part).folder} holds a head of {answers} labels, and {run.folder} has "
            f"{len(run.classes)}: it belongs to another run; delete the fold to train it again"
        )


def fill(probabilities: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips that cannot be heard answered by the class prior; which ones they were, as (clips,) booleans."""
    unheard = np.isnan(probabilities).any(1)
    return np.where(unheard[:, None], prior, probabilities), unheard


def cache_of(run: Run, features: str | None) -> Cache:
    """The cache that a run was trained on, where it lies now.

    Raises:
        UserError: it moved, or was made anew from something else.
    """
    folder = Path(features or run.config["features_folder"])
    if not features and not folder.is_dir():  # an attached run, or one whose cache is attached
        folder = earlier.features_of(run) or folder
    if not folder.is_dir():
        raise UserError(
            f"{run.folder} was trained on {folder}, which is not there: say where it is with --features "
            "FOLDER"
        )
    cache = Cache(folder)
    if cache.classes != run.classes:
        raise UserError(
            f"{folder} has other labels than {run.folder} was trained on "
            f"({_labels(run.classes, cache.classes)}): say where its own cache is with --features FOLDER"
        )
    if cache.multilabel != run.multilabel:
        raise UserError(
            f"{folder} is {_task(cache)}, {run.folder} was trained {_task(run)}: say where its own cache is "
            "with --features FOLDER"
        )
    # Its clips may have been swapped (hidden test clips); how they are turned into features may not.
    here = {k: cache.record[k] for k in run.config["record"]["features"]}
    found = differences(run.config["record"]["features"], here)
    if found:
        raise UserError(f"{folder} is not what {run.folder} was trained on: {'; '.join(found[:3])}")
    return cache


def same_classes(runs: list[Run]) -> list[str]:
    """The labels that all runs share; UserError if two runs have other labels, another order or another
    task."""
    for run in runs[1:]:
        if run.multilabel != runs[0].multilabel:
            raise UserError(
                f"{runs[0].folder} is {_task(runs[0])}, {run.folder} {_task(run)}: they cannot be blended"
            )
        if run.classes != runs[0].classes:
            raise UserError(
                f"{runs[0].folder} there and {run.folder} here have different labels, or another order of "
                f"them ({_labels(runs[0].classes, run.classes)}): they cannot be blended"
            )
    return runs[0].classes


def same_clips(runs: list[Run], caches: list[Cache]) -> None:
    """UserError if two caches hold other clips to submit: other ids, or other files under the same ids."""
    for run, cache in zip(runs, caches, strict=True):
        two = [c.record["clips"].get("subm", "no clips") for c in (caches[0], cache)]
        if two[0] != two[1]:
            raise UserError(
                f"{runs[0].folder} and {run.folder} predict different clips ({two[0]} in {caches[0].folder}, "
                f"{two[1]} in {cache.folder}): extract both from the same data"
            )


def _labels(there: list[str], here: list[str]) -> str:
    return f"{differences({'label': there}, {'label': here})[0]}; {len(there)} there, {len(here)} here"


def _task(of: Cache | Run) -> str:
    return "multi-label" if of.multilabel else "single-label"
