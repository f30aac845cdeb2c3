"""Does a run describe itself well enough to predict? Whoever made it: what is missing is said before anything
is built or read."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

from earshot.core.config import TrainingFlags

KINDS = {"record": dict, "prior": list, "columns": list, "precision": dict, "features_folder": str}
OF_RECORD = {"classes": list, "view": str, "head": dict, "training": dict, "features": dict}


def fault(config: dict[str, Any]) -> str | None:
    """What a run's settings lack; None where predicting needs nothing more.

    Args:
        config: the content of config.yaml, its checksum verified.
    """
    for found, kinds in ((config, KINDS), (config.get("record"), OF_RECORD)):
        for key, kind in kinds.items():
            if not isinstance(found.get(key), kind):
                return f"has no {key}, or one of another kind"
    classes, prior, features = config["record"]["classes"], config["prior"], config["record"]["features"]
    if (
        len(classes) < 2
        or len(set(map(str, classes))) < len(classes)
        or not all(isinstance(name, str) for name in classes)
    ):
        return "has no two labels, or one of them twice"
    if len(prior) != len(classes) or not all(type(p) in (int, float) and 0 <= p <= 1 for p in prior):
        return f"has a prior that is not {len(classes)} shares"
    if len(config["columns"]) != 2 or not all(isinstance(name, str) for name in config["columns"]):
        return "does not name the submission's two columns"
    if not all(isinstance(value, str) for value in config["precision"].values()):
        return "names a precision that is no text"
    pools = get_args(get_type_hints(TrainingFlags)["pool"])
    if config["record"]["training"].get("pool", pools[0]) not in pools:
        return f"pools windows by none of {', '.join(pools)}"
    if not isinstance(features.get("extractor"), str):
        return "does not name the extractor"
    return None
