"""The doctor's flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from earshot.core.settings import Bounds


@dataclass(frozen=True)
class DataFlags:
    """what to look at"""

    data: str | None = None
    """a cache, data/<competition>/<cache>, or data/<competition>: then the cache whose clips compare best"""
    runs: tuple[str, ...] = ()
    """run folders (or names in --runs-folder) whose out-of-fold predictions judge the labels"""
    threshold: Annotated[float | None, Bounds(-1, 1)] = None
    """whitened cosine from which two clips are near-duplicates (default: far above the usual in this data)"""
    out: str | None = None
    """folder of the report (default: reports/<competition>-<cache>)"""
    runs_folder: str = "runs"
    """where runs are looked for by name"""
