"""Rows of a cache as batches on the device."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from earshot.core import memory
from earshot.core.config import TrainingFlags
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.training import clip_weights, window_pooling
from earshot.training.prefetch import make_loader, read_ahead

RESIDENT = 0.25  # share of the device's free memory that a split may take to be kept there
BLOCK = 1 << 24  # bytes of a cache that are copied at a time
# bytes of an epoch's batches that are picked in one go, which saves a tiny head most of its overhead
AT_ONCE = 1 << 25


class Batch(NamedTuple):
    """Input of a training step, all of it on the device except `rows`, the row numbers.

    `x` (B, D, F, T), `mask` (B, T) or None, `targets` (B, classes), `weights` (B,) or None, and under their
    names the further views that the head learns from.
    """

    rows: np.ndarray
    x: Tensor
    mask: Tensor | None
    targets: Tensor
    weights: Tensor | None
    extra_views: dict[str, Tensor]


class WindowDataset:
    """The rows (windows) of one split and view, its augmented copies where the cache has some, and clips
    without labels.

    `span` is how many seconds the view's time axis stands for. `clip` (rows,) is each row's clip, `ids`
    (clips,) the names, `labels` (clips,) the class index or -1, `targets` (clips, classes) 0/1 with a row of
    zeros where there is no label, `weights` (clips,) what each counts in the loss, None where all count 1.
    Row numbers from `len(self)` on are copies, which only training uses, by `pick_epoch_rows`. Those from
    `labelled` on are of clips without labels: training draws them, by `sample_unlabelled`, once
    `with_pseudo_labels` has given them soft labels.

    Args:
        also: kind -> view, what batches bring besides in training, for heads with targets of their own.
        augmented: `Cache.augmented()` of the training split.
        gigabytes: of memory that the views may take (10^9 bytes); default: a quarter of what is free. Views
            that fit are kept on the device, as float32 if that fits, too; larger ones stay on the disk, and
            `prefetch` reads them batch by batch.
        unlabelled: another split, whose clips come after those of this one.
        masked: make masks although every row here is full.
    """

    def __init__(
        self,
        split: dict[str, Any],
        view: str,
        classes: list[str],
        span: float,
        device: str,
        also: Mapping[Any, str] = MappingProxyType({}),
        augmented: dict[str, Any] | None = None,
        gigabytes: float | None = None,
        unlabelled: dict[str, Any] | None = None,
        masked: bool = False,
    ):
        self.ids, self.clip = split["ids"], np.asarray(split["clip"])
        self.folds, self.groups = np.asarray(split["folds"]), np.asarray(split["groups"])
        self.weights = None if "weights" not in split else np.asarray(split["weights"], dtype=np.float32)
        given = np.asarray(split["labels"])
        self.multilabel = given.ndim == 2
        if self.multilabel:
            self.targets = given.astype(np.float32)
            self.labels = np.full(len(given), -1, dtype=np.int64)
        else:
            index = {label: number for number, label in enumerate(classes)}
            self.labels = np.array([index.get(str(label), -1) for label in given], dtype=np.int64)
            self.targets = (self.labels[:, None] == np.arange(len(classes))).astype(np.float32)
        self.device = torch.device(device)
        self.also = dict(also)
        self.parts = [part for part in (split, augmented, unlabelled) if part is not None]
        self.shape: tuple[int, int, int] = tuple(split[view].shape[1:])
        owners = [
            np.asarray(part["clip"]) + (len(self.ids) if part is unlabelled else 0) for part in self.parts
        ]
        self.clip_of_row, self.labelled = (
            np.concatenate(owners),
            sum(len(part["clip"]) for part in self.parts if part is not unlabelled),
        )
        self.all_ids = self.ids if unlabelled is None else np.concatenate([self.ids, unlabelled["ids"]])
        self.soft = np.zeros((len(self.all_ids) - len(self.ids), len(classes)), dtype=np.float32)
        self.weight, self.pool = 0.0, np.zeros(0, dtype=np.int64)
        self.copy = None if augmented is None else np.asarray(augmented["copy"])
        self.partner = None if augmented is None else np.asarray(augmented["partner"])
        self.share = None if augmented is None else np.asarray(augmented["share"], dtype=np.float32)
        frames = self.shape[2]
        lengths = np.concatenate([np.asarray(part["length"], dtype=np.float64) for part in self.parts])
        self.frames = np.clip(np.ceil(lengths / span * frames - 1e-3), 1, frames).astype(np.int64)
        # Decided for the split, not the batch: a clip's logits must not depend on its batch mates.
        self.masked = masked or bool((self.frames < frames).any())
        self._left = RESIDENT * memory.get_free(self.device) if gigabytes is None else gigabytes * 1e9
        self.views = {
            name: self._place([part[name] for part in self.parts]) for name in (view, *self.also.values())
        }
        self.view = view
        self._columns = {"clip_of_row": self._to_device(self.clip_of_row.astype(np.int64))}
        if self.masked:
            self._columns |= {
                "frames": self._to_device(self.frames),
                "time": torch.arange(frames, device=self.device),
            }
        if self.weights is not None:
            of_rows = clip_weights.weigh_rows(
                self.weights, self.clip_of_row, len(self), self.partner, self.share
            )
            self._columns["weight"] = self._to_device(of_rows)
        if self.partner is not None:
            own, rest = (
                np.zeros(count, dtype=np.int64)
                for count in (len(self), len(self.clip_of_row) - self.labelled)
            )
            self._columns |= {
                "partner": self._to_device(
                    np.concatenate([own - 1, self.partner.astype(np.int64), rest - 1])
                ),
                "share": self._to_device(
                    np.concatenate([own + np.float32(1), self.share, rest + np.float32(1)]).astype(np.float32)
                ),
            }

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def targets(self) -> np.ndarray:
        """(clips, classes) float32, 0/1."""
        return self._targets

    @targets.setter
    def targets(self, found: np.ndarray) -> None:
        self._targets, self._wanted = found, None

    @property
    def truth(self) -> np.ndarray:
        """The true labels for scores: (clips,) class indices; if multi-label, (clips, classes) 0/1."""
        return self.targets.astype(np.int64) if self.multilabel else self.labels

    @property
    def streams(self) -> bool:
        """Is any view read from the disk batch by batch?"""
        return not all(isinstance(found, Tensor) for found in self.views.values())

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _place(self, arrays: list[np.ndarray]) -> Tensor | list[np.ndarray]:
        """A view on the device if it fits into the memory that is left, as float32 if possible; else the
        arrays on the disk."""
        count, shape = sum(map(len, arrays)), arrays[0].shape[1:]
        own = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
        for kind in (torch.float32, own) if own.is_floating_point else (own,):
            size = count * int(np.prod(shape)) * kind.itemsize
            if size <= self._left and self._left > 0:
                self._left -= size
                found, at = torch.empty((count, *shape), dtype=kind, device=self.device), 0
                for array in arrays:
                    step = max(1, BLOCK // max(1, array[:1].nbytes))
                    for first in range(0, len(array), step):
                        block = torch.from_numpy(np.array(array[first : first + step]))
                        found[at : at + len(block)] = block
                        at += len(block)
                return found
        return arrays

    def _fetch(self, name: str, rows: np.ndarray) -> Tensor:
        """Rows of a view from the file, on the CPU."""
        found = self.views[name]
        if len(found) == 1:
            return torch.from_numpy(np.asarray(found[0][rows]))
        values, first = np.empty((len(rows), *found[0].shape[1:]), found[0].dtype), 0
        for array in found:
            here = (rows >= first) & (rows < first + len(array))
            values[here] = array[rows[here] - first]
            first += len(array)
        return torch.from_numpy(values)

    def _take(self, name: str, rows: np.ndarray, index: Tensor) -> Tensor:
        """Rows of a view on the device: from its memory, else from the disk."""
        resident = self.views[name]
        return resident[index] if isinstance(resident, Tensor) else self._fetch(name, rows).to(self.device)

    def _load_ahead(self, batches: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor, dict]]:
        """Row numbers, the same on the device, and the views that were loaded for them, batch by batch; while
        one is worked on, a thread reads the next from the disk."""
        if not batches:
            return
        every = self._to_device(np.concatenate(batches))
        indices = every.split([len(rows) for rows in batches])
        if self.streams:
            on_disk = [name for name, view in self.views.items() if not isinstance(view, Tensor)]
            loaded = read_ahead(batches, make_loader(on_disk, self._fetch, self.device))
            for rows, index, views in zip(batches, indices, loaded, strict=True):
                yield rows, index, views
            return
        own = self.views[self.view]
        pieces_of_view: Sequence[Tensor] = ()
        if len(every) * own[:1].nbytes <= AT_ONCE:
            pieces_of_view = own[every].split([len(rows) for rows in batches])
        for number, (rows, index) in enumerate(zip(batches, indices, strict=True)):
            yield rows, index, {self.view: pieces_of_view[number]} if pieces_of_view else {}

    def _build_input(
        self, rows: np.ndarray, index: Tensor, views: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        x = views[self.view] if self.view in views else self._take(self.view, rows, index)
        if not self.masked:
            return x.float(), None
        return x.float(), self._columns["time"] < self._columns["frames"][index][:, None]

    def _build_training_batch(self, rows: np.ndarray, index: Tensor, views: dict[str, Tensor]) -> Batch:
        x, mask = self._build_input(rows, index, views)
        extra_views = {}
        for kind, name in self.also.items():
            values = views[name] if name in views else self._take(name, rows, index)
            extra_views[kind] = values.float() if values.is_floating_point() else values.long()
        weights = None if self.weights is None else self._columns["weight"][index]
        return Batch(rows, x, mask, self._get_targets(index), weights, extra_views)

    def prefetch(self, batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Training batches of the given row numbers, the next one loaded while one is worked on."""
        for rows, index, views in self._load_ahead(batches):
            yield self._build_training_batch(rows, index, views)

    def load_training_batch(self, rows: np.ndarray) -> Batch:
        """One training batch."""
        return self._build_training_batch(rows, self._to_device(rows), {})

    def iterate_batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`batch` for the given rows in order, so many at a time."""
        for part, index, views in self._load_ahead(split_batches(rows, size)):
            yield self._build_input(part, index, views)

    def load_batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """(B, D, F, T) float32 and its (B, T) mask of real frames, None where every row of the split is
        full."""
        return self._build_input(rows, self._to_device(rows), {})

    def _get_targets(self, index: Tensor) -> Tensor:
        """(B, classes) shares of the classes; a copy that is mixed of two clips has both clips' labels."""
        if self.partner is None:
            if self._wanted is None:
                self._wanted = self._to_device(np.concatenate([self.targets, self.soft])[self.clip_of_row])
            return self._wanted[index]
        if self._wanted is None:
            self._wanted = self._to_device(np.concatenate([self.targets, self.soft]))
        found = self._wanted[self._columns["clip_of_row"][index]]
        partner, share = self._columns["partner"][index], self._columns["share"][index][:, None]
        other = self._wanted[partner.clamp(min=0)]
        both = torch.maximum(found, other) if self.multilabel else share * found + (1 - share) * other
        return torch.where((partner >= 0)[:, None], both, found)

    def _find_usable_copies(self, rows: np.ndarray) -> np.ndarray:
        """(copies,) which copies hold nothing but clips of the given rows."""
        allowed = np.zeros(len(self.ids), dtype=bool)
        allowed[self.clip[rows]] = True
        return allowed[self.clip_of_row[len(self) : self.labelled]] & (
            (self.partner < 0) | allowed[self.partner]
        )

    def add_copies(self, rows: np.ndarray) -> np.ndarray:
        """The given rows and all their usable copies: everything that training will see."""
        return (
            rows
            if self.copy is None
            else np.concatenate([rows, np.flatnonzero(self._find_usable_copies(rows)) + len(self)])
        )

    def pick_epoch_rows(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """The rows of an epoch: each clip itself or one of its copies, which take turns by epoch.

        A copy mixed with a clip outside the given rows is skipped, so no validation clip gets into training.
        Clips start at different copies, so that every epoch has all kinds.

        Args:
            rows: the training rows, none of them copies. epoch: from 1.
        """
        if self.copy is None or not len(self.copy):
            return rows
        count = int(self.copy.max()) + 1
        made, good = self.clip_of_row[len(self) : self.labelled], self._find_usable_copies(rows)
        usable = np.zeros((len(self.ids), count + 1), dtype=bool)
        usable[:, 0] = True
        usable[made[good], self.copy[good] + 1] = True
        # the order in which a clip's copies are tried
        turn = (epoch - 1 + np.arange(len(self.ids)))[:, None] + np.arange(count + 1)
        order = turn % (count + 1)
        first = np.take_along_axis(usable, order, 1).argmax(1)
        chosen = np.take_along_axis(order, first[:, None], 1)[:, 0]
        copies = np.flatnonzero(good & (self.copy + 1 == chosen[made])) + len(self)
        return np.concatenate([rows[chosen[self.clip[rows]] == 0], copies])

    def with_pseudo_labels(self, soft: np.ndarray, share: float) -> WindowDataset:
        """The same rows, of which training also draws a share of those without labels in every epoch.

        Args:
            soft: (clips without labels, classes) probabilities, for their labels; a clip of NaN is left out.
        """
        found = copy.copy(self)
        found.soft, found._wanted, known = np.nan_to_num(soft), None, np.isfinite(soft).all(1)
        found.pool = np.flatnonzero(known[self.clip_of_row[self.labelled :] - len(self.ids)]) + self.labelled
        found.weight = share
        return found

    def sample_unlabelled(self, seed: int, most: int | None = None) -> np.ndarray:
        """The rows without labels of an epoch, as many with every seed; `most` windows per clip."""
        pool = window_pooling.sample_windows(self.pool, self.clip_of_row, most, seed)
        return np.random.default_rng((seed, 1)).choice(pool, round(self.weight * len(pool)), replace=False)

    def find_rows(self, clips: np.ndarray) -> np.ndarray:
        """The rows of the clips that a boolean (clips,) array picks."""
        return np.flatnonzero(clips[self.clip])


def check_extra_views(also: Sequence[str], views: Mapping[str, str], settings: TrainingFlags) -> None:
    """Raise UserError where the kinds of a head's further views are not there, or the settings would move its
    own view beneath them; `views`: view -> kind."""
    for kind in also:
        if kind not in views.values():
            raise UserError(
                f"this head also learns from {kind}, which the cache lacks (it has "
                f"{', '.join(views)}): extract it, for example with --extractor encodec --views "
                f"{' '.join([*views, kind])}"
            )
    moved = {
        "mixup": settings.mixup,
        "time_shift": settings.time_shift,
        "time_stretch": settings.time_stretch,
        "crop_share": settings.crop_share < 1,
    }
    for key in [key for key, on in moved.items() if on and also]:
        raise UserError(
            f"--{key.replace('_', '-')}: this head also predicts {', '.join(also)} frame by frame, which "
            "would no longer match: leave it out"
        )


def split_batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Row numbers in batches of one size, the last one smaller."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def load_rows(
    cache: Cache, split: str, view: str, device: Device, gigabytes: float | None = None
) -> WindowDataset:
    """One split of a cache, ready for a head; `gigabytes` as in `WindowDataset`."""
    return WindowDataset(
        cache.split(split), view, cache.classes, cache.manifest["span"], device.name, gigabytes=gigabytes
    )


def load_training_rows(
    cache: Cache,
    view: str,
    also: tuple[str, ...],
    settings: TrainingFlags,
    device: Device,
    gigabytes: float | None = None,
    unlabelled: bool = False,
) -> WindowDataset:
    """The training split with its augmented copies and the further views that a head learns from; `gigabytes`
    as in `WindowDataset`; `unlabelled`: with the clips to submit, too.

    Raises:
        UserError: a further view is missing, or the settings would move the features away from it.
    """
    check_extra_views(also, cache.kinds, settings)
    further = {kind: view for view, kind in reversed(cache.kinds.items()) if kind in also}
    more = cache.split("subm") if unlabelled else None
    return WindowDataset(
        cache.split("train"),
        view,
        cache.classes,
        cache.manifest["span"],
        device.name,
        further,
        cache.augmented(),
        gigabytes,
        more,
    )
