"""Flags of the bake-off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from earshot.core.config import Metric
from earshot.core.settings import Bounds

HOURS = 1.0  # where --max-hours is not given


@dataclass(frozen=True)
class AutoFlags:
    """--recipe auto: many heads on all caches, the best blend of them"""

    recipe: str = "auto"
    """auto"""
    features: tuple[str, ...] = ()
    """the cache folders to use, each with a --features of its own (default: all finished ones of the
    competition)"""
    candidates: tuple[str, ...] = ()
    """recipes to try (names or YAML files) instead of the built-in ladder"""
    name: str | None = None
    """name of the folder in --runs-folder (default: auto-<hash of the features and settings>)"""
    metric: Metric = "f1_macro"
    """the metric that compares candidates and blends (default: the contest's own where a cache knows it);
    map_at_3 is for one label a clip, map_macro and lwlrap are for several"""
    folds: Annotated[int | None, Bounds(2)] = None
    """make K grouped stratified folds (default: the data's own, else 5)"""
    out: str = "submissions/submission.csv"
    """where the submission goes"""
    data: str = "data"
    """where the caches are looked for: the folder of all competitions, or of one"""
    runs_folder: str = "runs"
    """where the runs and leaderboard.csv go"""
