"""Pseudo-labels: another run's predictions for the clips to submit, used as soft labels.

Each fold uses only the teacher's model from that fold, at its last epoch, so nothing leaks: that model has
not seen the fold's validation labels. The mean over the teacher's folds has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from earshot.core import checksums, earlier_outputs
from earshot.core.config import RunFlags
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.training import dataset, predict, run_cache
from earshot.training.dataset import WindowDataset
from earshot.training.run import CONFIG, ModelSlot, Run, format_slots, list_fold_slots

# of a run with a teacher: (folds + 1, clips without labels, classes), the last the mean over the folds
PSEUDO_LABELS = "pseudo.npy"


def describe_source(
    flags: RunFlags, made: dict[str, Any], cache: Cache, continue_from: str | None
) -> dict[str, Any]:
    """What a run records of its teacher: {} without --pseudo.

    Args:
        made: the record of the run to train.
    Raises:
        UserError: no such run, or one with other clips, folds or labels: its predictions would be of no use,
            or leak labels.
    """
    if not flags.pseudo:
        return {}
    if not cache.has_split("subm"):
        raise UserError(f"--pseudo: {cache.folder} has no clips without labels to learn from")
    run = open_source_run(flags, continue_from)
    for key in ("classes", "task", "clips", "folds"):
        if run.config["record"].get(key) != made.get(key):
            raise UserError(
                f"--pseudo: {run.folder} was trained with other {key} ({run.config['record'].get(key)} "
                f"there, {made.get(key)} here): its models may have seen labels of the validation clips here"
            )
    return {"pseudo": {"run": run.config["fingerprint"], "weight": flags.pseudo_weight}}


def open_source_run(flags: RunFlags, continue_from: str | None) -> Run:
    """The run that --pseudo names: a folder, a name in the runs' folder, or one that an earlier session
    left."""
    places = [Path(flags.pseudo), Path(flags.runs_folder) / flags.pseudo]
    there = [folder for folder in places if (folder / CONFIG).is_file()]
    there = there or [
        folder
        for folder in earlier_outputs.find_folders(continue_from, CONFIG)
        if folder.name == Path(flags.pseudo).name
    ]
    return Run.open(there[0] if there else places[1]).validate()


def write_pseudo_labels(
    run: Run,
    flags: RunFlags,
    cache: Cache,
    numbers: list[int],
    device: Device,
    continue_from: str | None = None,
) -> None:
    """Let the teacher predict the clips to submit, once, and keep the result in this run's folder.

    Args:
        numbers: all folds.
    Raises:
        UserError: the other run is not finished, or its cache holds other clips.
    """
    if not flags.pseudo or checksums.read_array(run.folder / PSEUDO_LABELS) is not None:
        return
    other = open_source_run(flags, continue_from)
    training = other.config["record"]["training"]
    missing = other.list_open_slots(
        [part for number in numbers for part in list_fold_slots(training, number)]
    )
    if missing:
        raise UserError(
            f"--pseudo: {other.folder} is not finished ({format_slots(missing)}): finish it with train.py "
            "first"
        )
    same = {k: cache.record[k] for k in other.config["record"]["features"]} == other.config["record"][
        "features"
    ]
    its = (
        cache
        if same and other.config["record"]["view"] in cache.shapes
        else run_cache.open_run_cache(other, None)
    )
    if its.record["clips"].get("subm") != cache.record["clips"]["subm"]:
        raise UserError(
            f"--pseudo: {its.folder} and {cache.folder} hold different clips to submit: extract both from "
            "the same data"
        )
    rows = dataset.load_rows(its, "subm", other.config["record"]["view"], device)
    ids, by_fold = cache.split("subm")["ids"], []
    for number in numbers:
        slots = list_fold_slots(training, number)
        by_seed = [predict.predict_slot(other, slot, "last", rows, device) for slot in slots]
        by_fold.append(predict.reorder_clips(np.mean(by_seed, 0), rows.ids, ids))
    predictions = np.stack([*by_fold, np.mean(by_fold, 0)]).astype(np.float32)
    checksums.write_array(run.folder / PSEUDO_LABELS, predictions)
    confidence = float(np.nanmean(predictions[-1].max(1)))
    run.log(
        f"pseudo-labels: {other.folder} predicts {len(ids)} clips, each fold uses that fold's model alone; "
        f"mean largest probability {confidence:.2f}; an epoch draws {flags.pseudo_weight:.0%} of them"
    )


def add_pseudo_labels(
    run: Run, rows: WindowDataset, fold_numbers: list[int], slot: ModelSlot
) -> WindowDataset:
    """The training rows of a model, with pseudo-labels of the teacher's model of the same fold if there is a
    teacher."""
    about = run.config["record"].get("pseudo")
    if not about:
        return rows
    path = run.folder / PSEUDO_LABELS
    predictions = checksums.read_array(path)
    if predictions is None:
        raise UserError(f"{path} is missing or damaged: run the same command again")
    mean_of_folds = len(fold_numbers)
    index = mean_of_folds if slot.fold is None else fold_numbers.index(slot.fold)
    return rows.with_pseudo_labels(predictions[index], about["weight"])
