"""The shards of a cache: their clips, and their files of features."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.features import augmented_copies, cache, schema

if TYPE_CHECKING:
    from earshot.features.plan import Plan

SHARD = 32  # clips; more would cost more after a kill, fewer would mean more files


class StoredView(NamedTuple):
    """Where a view lies in a shard's file; its shape is (rows, D, F, T), its offset in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


class Form(NamedTuple):
    """What all shards of a cache have in common."""

    views: tuple[tuple[str, tuple[int, ...], str], ...]
    """Name, (D, F, T) and kind of number of each view."""
    span: float
    """Seconds that their time axis stands for."""

    @classmethod
    def from_views(cls, views: dict[str, Any], span: float) -> Form:
        """The form of arrays, or of stored views."""
        forms = [(name, tuple(view.shape[1:]), view.dtype.name) for name, view in views.items()]
        return cls(tuple(sorted(forms)), span)


@dataclass
class Shard:
    """The clips [first, last) of one split, or of the augmented copies, and the file with their features.

    It is done when the JSON file beside it is there, which holds its checksum. Its file is unpickled once, by
    `read`: the small arrays stay in memory, the views are read from where they lie in the file.
    """

    split: str
    first: int
    last: int
    path: Path
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    views: dict[str, StoredView] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def seal(self) -> Path:
        """The JSON file with the shard's checksum."""
        return self.path.with_suffix(".json")

    @property
    def clips(self) -> int:
        """How many clips, or copies, it is of."""
        return self.last - self.first

    @property
    def has_copies(self) -> bool:
        """Is it one of the augmented copies?"""
        return self.split == augmented_copies.NAME

    @property
    def form(self) -> Form:
        """That of a shard that was read."""
        return Form.from_views(self.views, self.meta["span"])

    def write(self, fingerprint: str, span: float, precision: str, arrays: dict[str, np.ndarray]) -> None:
        """Write the features, and then the checksum that makes the shard done.

        Args:
            fingerprint: of the plan. precision: device and precision that they were computed in.
        """
        cache.dump(self.path, {**arrays, "meta": {"fingerprint": fingerprint, "span": span}})
        checksums.write(self.seal, {"fingerprint": fingerprint, "precision": precision}, self.path.name)

    def read(self) -> Shard:
        """Unpickle its file, unless that was done before; UserError where it is no such file."""
        if not self.meta:
            self._keep(cache.load(self.path))
        return self

    def _keep(self, content: dict[str, Any]) -> None:
        for name, array in schema.list_views(content).items():
            self.views[name] = StoredView(array.shape, array.dtype, getattr(array, "offset", 0))
        for name, array in content.items():
            if isinstance(array, np.ndarray) and name not in self.views:
                self.columns[name] = np.array(array)  # a copy: the file is closed
        self.meta = content["meta"]

    def read_view(self, name: str) -> np.ndarray:
        """(rows, D, F, T), memory-mapped."""
        view = self.views[name]
        if not view.shape[0]:
            return np.zeros(view.shape, view.dtype)
        return np.memmap(self.path, view.dtype, "r", view.offset, view.shape)

    def find_fault(self, fingerprint: str, train_clips: int) -> str | None:
        """Why a shard that is there cannot be used: damaged, of another cache, or arrays that do not fit.

        Where there is no reason, the shard is read.
        """
        other = f"{self.path} belongs to another cache (fingerprint {{}} there, {fingerprint} here)"
        try:
            there = checksums.read(self.seal, self.path.name).get("fingerprint")
            if there != fingerprint:
                return other.format(there)
            content = cache.load(self.path)
        except UserError as error:
            return str(error)
        fault = schema.validate_shard(content, self.first, self.last, train_clips, self.has_copies)
        if fault:
            return f"{self.path} {fault}"
        there = content["meta"].get("fingerprint")
        if there != fingerprint:
            return other.format(there)
        self._keep(content)
        return None

    def set_aside(self, reason: str) -> None:
        """Rename its file and print why; the shard will be made again."""
        aside = self.path.with_name(self.path.name + ".damaged")
        if self.path.exists():
            os.replace(self.path, aside)
        self.seal.unlink()
        self.columns, self.views, self.meta = {}, {}, {}
        print(f"{reason}: set aside as {aside.name}, it is made again", flush=True)


def list_shards(plan: Plan) -> list[Shard]:
    """The shards of a plan, in order."""
    counts = {split: int((plan.competition.clips.split == split).sum()) for split in schema.SPLITS}
    # last: the training shards say which clips can be used
    counts[augmented_copies.NAME] = counts["train"] * plan.augment.augment
    shards = []
    for split, count in counts.items():
        for first in range(0, count, SHARD):
            path = plan.folder / "shards" / f"{split}-{first // SHARD:05d}.pkl"
            shards.append(Shard(split, first, min(first + SHARD, count), path))
    return shards


def concatenate(shards: list[Shard], name: str) -> np.ndarray:
    """(rows,) or (clips,): a small array of all shards together, those left out that an earlier version made
    without it."""
    arrays = [shard.read().columns[name] for shard in shards if name in shard.read().columns]
    return np.concatenate(arrays or [np.zeros(0, np.int32)])
