"""Features of the clips to submit alone, made like a saved run's: for a code competition's notebook with its
time limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from earshot import extractors
from earshot.core.errors import UserError
from earshot.core.files import hash_file, hash_value
from earshot.core.settings import replace_defaults

if TYPE_CHECKING:
    from earshot.competition.load import Competition
    from earshot.features.plan import Plan
    from earshot.features.shards import Form, Shard

TIME_UP = "time limit reached"


class SavedRun(Protocol):
    """The parts of a run that are needed here; the class itself is in a package above."""

    folder: Path
    config: dict[str, Any]


def get_features(run: SavedRun) -> dict[str, Any]:
    """A run's features as a recipe's `features` section, with a name for the new cache."""
    made = run.config["record"]["features"]
    window = {key: value for key, value in made["window"].items() if key != "rate"}
    return {
        "extractor": made["extractor"],
        **made["settings"],
        **made["audio"],
        **window,
        "cache": f"{Path(run.config['features_folder']).name}_subm",
    }


def find_weights(run: SavedRun) -> str | None:
    """The name by which a run's weights are found here: they may have been moved since the training, and are
    known by their content. If they are nowhere: their name then."""
    name, files = _locate_weights(run, ())
    return name if files else run.config.get("weights")


def find_weights_files(run: SavedRun, names: Sequence[str] = ()) -> list[Path]:
    """The files of a run's weights, by content: in one of these places, else wherever they are here; [] where
    they are nowhere, or the run needs none."""
    return _locate_weights(run, names)[1]


def _locate_weights(run: SavedRun, names: Sequence[str]) -> tuple[str | None, list[Path]]:
    """The name and the files with the content of a run's weights; (None, []) where there are none."""
    hashed = run.config["record"]["features"]["weights"]
    if not hashed:
        return None, []
    module, settings = _load_extractor(run)
    made_by = module.Extractor
    for name in dict.fromkeys(
        [*names, run.config.get("weights"), made_by.default_weights, *made_by.list_attached()]
    ):
        files = _find_files(made_by, settings, name)
        if files and hash_value([hash_file(file) for file in files])[:16] == hashed:
            return name, files
    return None, []


def _load_extractor(run: SavedRun) -> tuple[Any, Any]:
    made = run.config["record"]["features"]
    module = extractors.load_module(made["extractor"])
    return module, replace_defaults(module.Settings(), made["settings"], f"{run.folder}/config.yaml")


def _find_files(made_by: Any, settings: Any, name: str | None) -> list[Path]:
    try:
        return made_by.find_weights(settings, name)
    except UserError:
        return []


def keep_test_clips(clips: Competition) -> Competition:
    """The competition without its labelled clips; the list of classes stays."""
    to_submit = clips.clips["split"] == "subm"
    clips.clips = clips.clips[to_submit].reset_index(drop=True)
    clips.missing = [entry for entry in clips.missing if entry[0] == "subm"]
    return clips


def write_empty_shards(plan: Plan, todo: list[Shard], form: Form) -> int:
    """Write shards without features for the clips that were not reached in time; the number of these clips.

    Args:
        todo: the shards that are still missing. form: of the shards that are there.
    """
    nothing = {view: np.zeros((0, *shape), dtype=kind) for view, shape, kind in form.views}
    for shard in todo:
        arrays = {
            "clip": np.zeros(0, np.int32),
            "bad": np.arange(shard.first, shard.last, dtype=np.int32),
            "reason": np.array([TIME_UP] * shard.clips),
            "start": np.zeros(0, np.float32),
            "length": np.zeros(0, np.float32),
        }
        shard.write(plan.fingerprint, form.span, "none", arrays | nothing)
    return sum(shard.clips for shard in todo)
