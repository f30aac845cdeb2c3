"""Does a run describe itself well enough to predict? Whoever made it: what is missing is said before anything
is built or read."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_args, get_type_hints

from earshot.core.config import TrainingFlags
from earshot.core.errors import UserError, unless_temporary
from earshot.core.schema import Bounds, Share, TwoNames, find_fault, is_valid

if TYPE_CHECKING:
    import torch

HEADER = 100 << 20  # bytes: safetensors' own limit


class RunFeatures(TypedDict):
    """Of the record of the cache that a run was trained on."""

    extractor: str


class RunRecord(TypedDict):
    """What a run's fingerprint is taken of."""

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
    """What a run's settings lack; None where predicting needs nothing more.

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


def build(
    described: dict[str, Any], weights: Path, rebuild: Callable[[dict], torch.nn.Module], where: Path
) -> torch.nn.Module:
    """The head that a checkpoint describes, its size compared with that of the weights before memory is taken
    for it.

    Args:
        described: the head's config.
        weights: the safetensors that will be loaded into it.
        rebuild: makes a head out of its config (`models.rebuild`).
        where: the description's file, for the message.
    Raises:
        UserError: nothing here can be built of it, or the weights are those of something else.
    """
    import torch

    there = shapes(weights)
    try:
        with torch.device("meta"):
            here = {name: list(tensor.shape) for name, tensor in rebuild(described).state_dict().items()}
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
        MemoryError,
        OverflowError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where} describes no head that can be built here: {reason}") from None
    if here != there:
        odd = next(name for name in (*here, *there) if here.get(name) != there.get(name))
        raise UserError(
            f"{weights} does not fit the head that {where} describes: {odd} is {there.get(odd, 'missing')} "
            f"there, {here.get(odd, 'missing')} in the head: it is another run's"
        )
    return rebuild(described)


def shapes(path: Path) -> dict[str, list[int]]:
    """The tensors' shapes by name, out of a safetensors header.

    Raises:
        UserError: no such header.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(HEADER, path.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        return {
            name: [int(n) for n in about["shape"]] for name, about in header.items() if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        unless_temporary(path, error)
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())[:100]}): train this fold again from its start"
        ) from None
