"""Validation of config.yaml, before anything is built from an untrusted run."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict, get_args, get_type_hints

from earshot.core.config import TrainingFlags
from earshot.core.schema import Share, TwoNames, find_fault, is_valid
from earshot.core.settings import Bounds


class RunFeatures(TypedDict):
    """The record of the cache that a run was trained on, as far as predicting needs it."""

    extractor: str


class RunRecord(TypedDict):
    """The settings and data that a run's fingerprint is computed from."""

    classes: Annotated[list[str], Bounds(2)]
    view: str
    head: dict
    training: dict
    features: RunFeatures


class RunConfig(TypedDict):
    """The content of config.yaml, as far as predicting needs it."""

    record: RunRecord
    prior: list[Share]
    columns: TwoNames
    precision: dict[str, str]
    features_folder: str


def validate_run(config: dict[str, Any]) -> str | None:
    """What a run's settings lack for predicting; None where nothing is missing.

    Args:
        config: the content of config.yaml, its checksum verified.
    """
    fault = find_fault(RunConfig, config)
    if fault:
        return fault
    record = config["record"]
    if len(set(record["classes"])) < len(record["classes"]):
        return "has one of its labels twice"
    if len(config["prior"]) != len(record["classes"]):
        return f"has a prior that is not {len(record['classes'])} shares"
    pools = get_type_hints(TrainingFlags)["pool"]
    if "pool" in record["training"] and not is_valid(pools, record["training"]["pool"]):
        return f"pools windows by none of {', '.join(get_args(pools))}"
    return None
