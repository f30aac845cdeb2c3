"""The schema of blend.json, also from untrusted sources."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from earshot.core.schema import Share, Size, find_fault
from earshot.core.settings import Bounds


class Blend(TypedDict):
    """The content of blend.json: a weight for each member; a scale or a threshold for each class, or none."""

    members: Annotated[list[str], Bounds(1)]
    fingerprints: list[str]
    kind: Literal["best", "last"]
    method: str
    weights: list[Share]
    metric: str
    classes: Size
    power: NotRequired[Annotated[float, Bounds(1e-12, 1e12)]]
    scale: NotRequired[list[Annotated[float, Bounds(1e-12, 1e12)]] | None]
    thresholds: NotRequired[list[Annotated[float, Bounds(1e-12, 1 - 1e-12)]] | None]


def validate_blend(blend: dict[str, Any]) -> str | None:
    """What is wrong with a blend; None where it can be applied."""
    fault = find_fault(Blend, blend)
    if fault:
        return fault
    for key in ("fingerprints", "weights"):
        if len(blend[key]) != len(blend["members"]):
            return f"has {len(blend[key])} {key} for {len(blend['members'])} members"
    for key in ("scale", "thresholds"):
        if blend.get(key) is not None and len(blend[key]) != blend["classes"]:
            return f"has {len(blend[key])} {key} for {blend['classes']} classes"
    return None if sum(blend["weights"]) > 0 else "has no weight above 0"
