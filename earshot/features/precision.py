"""The precision of an extractor's network: timed once on a CPU, then kept with the shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from earshot import extractors
from earshot.core import checksums
from earshot.core.errors import UserError

if TYPE_CHECKING:
    from earshot.core.device import Device
    from earshot.features.plan import Plan

SHAPE = (1214, 768, 3072)  # tokens, inputs and outputs of AST's largest product
ROUNDS = 5  # in turn, so that whatever else the machine does hits both alike; the best counts
BETTER = 1.3  # how many times faster half precision has to be


def choose_precision(
    plan: Plan, found: Sequence[Device], asked: str, time_bf16: Callable[[], bool] | None = None
) -> list[Device]:
    """The devices with the precision that this cache's shards have, or will have.

    Args:
        found: what the machine has, all of one kind, with the precision that suits it or was asked for.
        asked: "auto", or the precision that the user wants.
        time_bf16: `is_bf16_faster` on the machine that computes, by default here.
    Raises:
        UserError: the cache has shards from this kind of device in another precision.
    """
    kind = found[0].name.partition(":")[0]
    made = read_precision(plan, kind)
    if made and asked not in ("auto", made):
        raise UserError(
            f"{plan.folder} was begun in {made}, --precision is {asked}: leave it out, or start over with "
            "--fresh"
        )
    if made:
        chosen = made
    elif asked == "auto" and kind == "cpu":
        chosen = choose_cpu_precision(plan.extractor, time_bf16)
    else:
        return list(found)
    about = "" if chosen == found[0].precision else f", {chosen}"
    return [replace(one, precision=chosen, about=one.about + about) for one in found]


def choose_cpu_precision(extractor: str, time_bf16: Callable[[], bool] | None = None) -> str:
    """The precision of an extractor's network on a CPU, for features that are stored: bf16 where it is
    supported and faster."""
    half = extractors.load_module(extractor).Extractor.half_on_cpu
    return "bf16" if half and (time_bf16 or is_bf16_faster)() else "fp32"


def read_precision(plan: Plan, kind: str) -> str | None:
    """The precision of the cache's first shard that was made on this kind of device, None where there is
    none."""
    for path in sorted((plan.folder / "shards").glob("*.json")):
        try:
            seal = checksums.read(path)
        except checksums.CorruptFile:
            continue  # it will be made again
        if seal.get("fingerprint") == plan.fingerprint and str(seal.get("precision")).startswith(f"{kind} "):
            return seal["precision"].partition(" ")[2]
    return None


def is_bf16_faster() -> bool:
    """Does this CPU multiply clearly faster in bf16 than in fp32? CPUs that emulate bf16 are slower."""
    import torch

    tokens, inputs, outputs = SHAPE
    seconds = {}
    with torch.inference_mode():
        pairs = {
            kind: (torch.ones(tokens, inputs, dtype=kind), torch.ones(outputs, inputs, dtype=kind))
            for kind in (torch.float32, torch.bfloat16)
        }
        for _ in range(ROUNDS):
            for kind, (x, weight) in pairs.items():
                began = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                seconds[kind] = min(seconds.get(kind, float("inf")), time.perf_counter() - began)
    return seconds[torch.float32] > BETTER * seconds[torch.bfloat16]
