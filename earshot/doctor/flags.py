"""The doctor's flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from earshot.core.config import ClusterFlags
from earshot.core.settings import Bounds


@dataclass(frozen=True)
class DataFlags(ClusterFlags):
    """what to check"""

    data: str | None = None
    """a cache, data/<competition>/<cache>, or data/<competition>: then the cache whose clips compare best"""
    runs: tuple[str, ...] = ()
    """runs (folders, or names in --runs-folder) whose out-of-fold predictions check the labels"""
    threshold: Annotated[float | None, Bounds(-1, 1)] = None
    """least whitened cosine of near-duplicates (default: an outlier among this data's nearest neighbours)"""
    device: str = "auto"
    """with --cluster: check the nodes as CPUs (cpu), or those with GPUs alone (cuda)"""
    out: str | None = None
    """folder for the report (default: reports/<competition>-<cache>)"""
    runs_folder: str = "runs"
    """folder of the runs that are given by name"""
