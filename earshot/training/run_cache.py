"""The cache that a run was trained on, and whether runs can be blended."""

from __future__ import annotations

from pathlib import Path

from earshot.core.errors import UserError
from earshot.core.fingerprint import list_differences
from earshot.core.spelling import to_keys
from earshot.features.cache import Cache
from earshot.training import resume
from earshot.training.run import Run


def open_run_cache(run: Run, features: str | None) -> Cache:
    """The cache that a run was trained on, where it lies now.

    Raises:
        UserError: it was moved, or made again from other data.
    """
    folder = Path(features or run.config["features_folder"])
    if not features and not folder.is_dir():  # an attached run, or one whose cache is attached
        folder = resume.find_cache(run) or folder
    if not folder.is_dir():
        raise UserError(
            f"{run.folder} was trained on {folder}, which is not there: say where it is with --features "
            "FOLDER"
        )
    cache = Cache(folder)
    if to_keys(cache.classes) != to_keys(run.classes):
        raise UserError(
            f"{folder} has other labels than {run.folder} was trained on "
            f"({_describe_labels(run.classes, cache.classes)}): say where its own cache is with --features "
            "FOLDER"
        )
    if cache.multilabel != run.multilabel:
        raise UserError(
            f"{folder} is {_describe_task(cache)}, {run.folder} was trained {_describe_task(run)}: say where "
            "its own cache is with --features FOLDER"
        )
    # Its clips may have been swapped (hidden test clips); how they are turned into features may not.
    here = {k: cache.record[k] for k in run.config["record"]["features"]}
    found = list_differences(run.config["record"]["features"], here)
    if found:
        raise UserError(
            f"{folder} differs from the cache that {run.folder} was trained on: {'; '.join(found[:3])}"
        )
    return cache


def check_same_classes(runs: list[Run]) -> list[str]:
    """The classes that all runs share, in their order; UserError where two runs differ in them or in the
    task."""
    first = runs[0]
    for run in runs[1:]:
        if run.multilabel != first.multilabel:
            raise UserError(
                f"can't blend {first.folder} ({_describe_task(first)}) with {run.folder} "
                f"({_describe_task(run)}): choose runs of one task"
            )
        if to_keys(run.classes) != to_keys(first.classes):
            raise UserError(
                f"can't blend {first.folder} with {run.folder}: {_compare_classes(first, run)}: choose runs "
                "of one competition"
            )
    return first.classes


def _compare_classes(one: Run, other: Run) -> str:
    """The difference between the classes of two runs, in words."""
    if sorted(to_keys(one.classes)) == sorted(to_keys(other.classes)):
        return "the same classes in another order"
    parts = []
    for run, theirs in ((one, other), (other, one)):
        known = set(to_keys(theirs.classes))
        only = [name for name, key in zip(run.classes, to_keys(run.classes), strict=True) if key not in known]
        named = (
            f", of which only it has {', '.join(only[:3])}{' ...' if len(only) > 3 else ''}" if only else ""
        )
        parts.append(f"{run.folder} has {len(run.classes)} classes{named}")
    return "; ".join(parts)


def check_same_clips(runs: list[Run], caches: list[Cache]) -> None:
    """UserError if two caches hold other clips to submit: other ids, or other files under the same ids."""
    for run, cache in zip(runs, caches, strict=True):
        two = [c.record["clips"].get("subm", "no clips") for c in (caches[0], cache)]
        if two[0] != two[1]:
            raise UserError(
                f"{runs[0].folder} and {run.folder} predict different clips ({two[0]} in {caches[0].folder}, "
                f"{two[1]} in {cache.folder}): extract both from the same data"
            )


def _describe_labels(there: list[str], here: list[str]) -> str:
    return f"{list_differences({'label': there}, {'label': here})[0]}; {len(there)} there, {len(here)} here"


def _describe_task(of: Cache | Run) -> str:
    return "multi-label" if of.multilabel else "single-label"
