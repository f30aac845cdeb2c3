"""The shards of a cache: which clips each holds, and reading them back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.core.errors import UserError
from earshot.features import augmented_copies, cache, manifest
from earshot.features.plan import Plan

if TYPE_CHECKING:
    from earshot.features.plan import Plan

SHARD = 32  # clips: what a kill can cost, against the number of files


@dataclass
class Part:
    """A stretch of one split: the clips [first, last) of that split, or those of the augmented copies.

    Its shard is done when the JSON file beside it is there, which holds its checksum.
    """

    split: str
    first: int
    last: int
    path: Path

    @property
    def seal(self) -> Path:
        """The file that vouches for the shard."""
        return self.path.with_suffix(".json")


def parts(plan: Plan) -> list[Part]:
    """The shards of a plan, in order."""
    found = []
    counts = {split: int((plan.competition.clips.split == split).sum()) for split in manifest.SPLITS}
    # last: the training shards say which clips can be heard
    counts[augmented_copies.NAME] = counts["train"] * plan.augment.augment
    for split, count in counts.items():
        for first in range(0, count, SHARD):
            name = f"{split}-{first // SHARD:05d}.pkl"
            found.append(Part(split, first, min(first + SHARD, count), plan.folder / "shards" / name))
    return found


class Shards:
    """The shards of a split, or of the augmented copies, in order; `span` is the seconds that their time axis
    stands for.

    Raises:
        UserError: a shard of another cache.
    """

    def __init__(self, plan: Plan, split: str, parts: list[Part]):
        self.plan, self.split, self.parts = plan, split, parts
        self.views: list[str] = []
        self.kinds: dict | None = None
        self._columns: dict[str, list[np.ndarray]] = {}
        for part in parts:
            shard = self._load(part)
            self.span = shard["meta"]["span"]
            self.views = [key for key, value in shard.items() if getattr(value, "ndim", 0) == 4]
            kinds = {view: (shard[view].shape[1:], shard[view].dtype) for view in self.views}
            if self.kinds not in (None, kinds):
                raise UserError(
                    f"{part.path} has other views than the shards before it ({kinds}, {self.kinds}): start "
                    "over with --fresh"
                )
            self.kinds = kinds
            for key, value in shard.items():
                if isinstance(value, np.ndarray) and key not in self.views:
                    self._columns.setdefault(key, []).append(np.array(value))  # a copy: the file is closed
        self._first = {view: shard[view][:0] for view in self.views}

    def _load(self, part: Part) -> dict[str, Any]:
        shard = cache.load(part.path)
        if shard["meta"]["fingerprint"] != self.plan.fingerprint:
            raise UserError(f"{part.path} belongs to another cache: start over with --fresh")
        return shard

    def column(self, name: str) -> np.ndarray:
        """(rows,) or (clips,): a small array of all shards together, those left out that an earlier version
        made without it."""
        return np.concatenate(self._columns.get(name, [np.zeros(0, np.int32)]))

    def write(self, path: Path, content: dict[str, Any], meta: dict[str, Any]) -> dict[str, list[int]]:
        """The given arrays and the shards' views as one file; (D, F, T) of each view."""
        rows = len(content["clip"])
        joined = {
            view: cache.Joined((rows, *empty.shape[1:]), empty.dtype, lambda view=view: self._pieces(view))
            for view, empty in self._first.items()
        }
        cache.dump(path, {**content, **joined, "meta": meta})
        return {view: list(array.shape[1:]) for view, array in joined.items()}

    def _pieces(self, view: str) -> Iterator[np.ndarray]:
        for part in self.parts:
            yield self._load(part)[view]
