"""Cached rows as batches on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from earshot.errors import UserError

if TYPE_CHECKING:
    from earshot.config import TrainingFlags

RESIDENT = 0.25  # share of the device's free memory that a split may take to be kept there


class Rows:
    """The rows (windows) of one split and view, and its augmented copies where the cache has some.

    `span` is how many seconds the view's time axis stands for. `clip` (rows,) is each row's clip, `ids` (clips,) the names,
    `labels` (clips,) the class index or -1, `targets` (clips, classes) 0/1 with a row of zeros where there is no label.
    Row numbers from `len(self)` on are copies: training alone asks for them, by `of_epoch`.

    Args:
        also: further views that batches bring in training, for heads with targets of their own.
        augmented: `Cache.augmented()` of the training split.
    """

    def __init__(self, split: dict[str, Any], view: str, classes: list[str], span: float, device: str,
                 also: Sequence[str] = (), augmented: dict[str, Any] | None = None):
        self.ids, self.clip = split["ids"], np.asarray(split["clip"])
        self.folds, self.groups = np.asarray(split["folds"]), np.asarray(split["groups"])
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
        self.also = tuple(also)
        self.parts = [split] if augmented is None else [split, augmented]
        self.shape: tuple[int, int, int] = tuple(split[view].shape[1:])
        self.whose = np.concatenate([np.asarray(part["clip"]) for part in self.parts])
        self.copy = None if augmented is None else np.asarray(augmented["copy"])
        self.partner = None if augmented is None else np.asarray(augmented["partner"])
        self.share = None if augmented is None else np.asarray(augmented["share"], dtype=np.float32)
        frames = self.shape[2]
        lengths = np.concatenate([np.asarray(part["length"], dtype=np.float64) for part in self.parts])
        self.frames = np.clip(np.ceil(lengths / span * frames - 1e-3), 1, frames).astype(np.int64)
        # Decided for the split, not the batch: a clip's logits must not depend on its batch mates.
        self.masked = bool((self.frames < frames).any())
        self.views = {name: self._place([part[name] for part in self.parts]) for name in (view, *self.also)}
        self.view = view

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def truth(self) -> np.ndarray:
        """What scores compare with: (clips,) class indices, or (clips, classes) 0/1 where clips have several labels."""
        return self.targets.astype(np.int64) if self.multilabel else self.labels

    def _place(self, arrays: list[np.ndarray]) -> Tensor | list[np.ndarray]:
        """A view on the device where it takes a fair part of the memory at most, else as it lies on disk."""
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:
            free = _free_memory()
        if sum(array.nbytes for array in arrays) > RESIDENT * free:
            return arrays
        return torch.from_numpy(np.concatenate(arrays)).to(self.device)

    def _take(self, name: str, rows: np.ndarray) -> Tensor:
        found = self.views[name]
        if isinstance(found, Tensor):
            x = found[torch.from_numpy(rows).to(self.device)]
        elif len(found) == 1:
            x = torch.from_numpy(found[0][rows]).to(self.device)
        else:
            own, copies = found
            values = np.empty((len(rows), *own.shape[1:]), own.dtype)
            made = rows >= len(own)
            values[~made], values[made] = own[rows[~made]], copies[rows[made] - len(own)]
            x = torch.from_numpy(values).to(self.device)
        return x.float() if x.is_floating_point() else x.long()

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """(B, D, F, T) float32 and its (B, T) mask of real frames, None where every row of the split is full."""
        mask = None
        if self.masked:
            mask = torch.from_numpy(np.arange(self.shape[2]) < self.frames[rows][:, None]).to(self.device)
        return self._take(self.view, rows).float(), mask

    def extras(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The further views of the same rows: (B, D, F, T), float32 or int64."""
        return {name: self._take(name, rows) for name in self.also}

    def targets_of(self, rows: np.ndarray) -> Tensor:
        """(B, classes) shares of the classes; a copy that is mixed of two clips has both clips' labels."""
        found = self.targets[self.whose[rows]]
        if self.share is not None:
            made = np.flatnonzero(rows >= len(self))
            number = rows[made] - len(self)
            made, number = made[self.partner[number] >= 0], number[self.partner[number] >= 0]
            own, other, share = found[made], self.targets[self.partner[number]], self.share[number][:, None]
            found[made] = np.maximum(own, other) if self.multilabel else share * own + (1 - share) * other
        return torch.from_numpy(found).to(self.device)

    def _usable(self, rows: np.ndarray) -> np.ndarray:
        """(copies,) which copies hold nothing but clips of the given rows."""
        allowed = np.zeros(len(self.ids), dtype=bool)
        allowed[self.clip[rows]] = True
        return allowed[self.whose[len(self):]] & ((self.partner < 0) | allowed[self.partner])

    def with_copies(self, rows: np.ndarray) -> np.ndarray:
        """The given rows and all their copies that hold nothing from outside: what training will see in the end."""
        return rows if self.copy is None else np.concatenate([rows, np.flatnonzero(self._usable(rows)) + len(self)])

    def of_epoch(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """The rows that stand for the given ones in an epoch: every clip as it is, then its copies, in turn by epoch.

        A copy that is mixed with a clip outside the given rows is passed over for the next: nothing of a validation
        fold gets into training. Clips start their turns at different places, so that every epoch sees all kinds.

        Args:
            rows: the training rows, none of them copies.
            epoch: from 1.
        """
        if self.copy is None or not len(self.copy):
            return rows
        count = int(self.copy.max()) + 1
        made, good = self.whose[len(self):], self._usable(rows)
        usable = np.zeros((len(self.ids), count + 1), dtype=bool)
        usable[:, 0] = True
        usable[made[good], self.copy[good] + 1] = True
        turn = (epoch - 1 + np.arange(len(self.ids)))[:, None] + np.arange(count + 1)  # the order in which a clip tries
        order = turn % (count + 1)
        first = np.take_along_axis(usable, order, 1).argmax(1)
        chosen = np.take_along_axis(order, first[:, None], 1)[:, 0]
        copies = np.flatnonzero(good & (self.copy + 1 == chosen[made])) + len(self)
        return np.concatenate([rows[chosen[self.clip[rows]] == 0], copies])

    def batches(self, rows: np.ndarray, size: int):
        """Batches over the given rows in order."""
        for first in range(0, len(rows), size):
            yield self.batch(rows[first:first + size])

    def of_clips(self, clips: np.ndarray) -> np.ndarray:
        """The rows of the clips that a boolean (clips,) array picks."""
        return np.flatnonzero(clips[self.clip])


def check_further(also: Sequence[str], views: Iterable[str], settings: TrainingFlags) -> None:
    """Raise UserError where a head's further views are not there, or the settings would move its own view beneath them."""
    views = list(views)
    for name in also:
        if name not in views:
            raise UserError(f"this head learns from the view {name} too, which the cache lacks (it has {', '.join(views)}): "
                            f"extract it, for example with --extractor encodec --views {' '.join([*views, name])}")
    moved = {"mixup": settings.mixup, "time_shift": settings.time_shift, "time_stretch": settings.time_stretch,
             "crop": settings.crop < 1}
    for key in [key for key, on in moved.items() if on and also]:
        raise UserError(f"--{key.replace('_', '-')}: this head also predicts {', '.join(also)} frame by frame, which would no "
                        "longer match: leave it out")


def _free_memory() -> int:
    import os

    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def pool_windows(logits: Tensor, clip: Tensor, clips: int) -> Tensor:
    """One row of logits per clip: the mean over its windows.

    Args:
        logits: (windows, classes).
        clip: (windows,) each window's clip, in 0 ... clips - 1.
        clips: how many there are.
    Returns:
        (clips, classes); NaN for a clip without windows.
    """
    total = torch.zeros(clips, logits.shape[1], dtype=logits.dtype).index_add_(0, clip, logits)
    return total / torch.bincount(clip, minlength=clips)[:, None]


@torch.inference_mode()
def predict(head: torch.nn.Module, rows: Rows, which: np.ndarray, batch_size: int, autocast: Any, shifts: int = 1) -> np.ndarray:
    """Probabilities of all clips of a split; NaN rows for clips of which no row is among `which`.

    Args:
        shifts: mean of the logits over so many circular shifts in time, evenly spaced; 1 = as it is.
    Returns:
        (clips, classes) float32: softmax, or a sigmoid of each class where clips have several labels.
    """
    from earshot.device import out_of_memory

    head.eval()
    found, at = [], 0
    frames = rows.shape[2]
    shifts = min(shifts, frames)
    offsets = [round(number * frames / shifts) for number in range(shifts)]
    with autocast:
        while at < len(which):
            try:
                x, mask = rows.batch(which[at:at + batch_size])
                logits = sum(head(x.roll(by, 3) if by else x, mask if mask is None else mask.roll(by, 1)).float()
                             for by in offsets) / len(offsets)
                found.append(logits.cpu())
            except RuntimeError as error:
                if not out_of_memory(error) or batch_size == 1:
                    raise
                batch_size //= 2  # the answers stay the same: no row knows its batch mates
                continue
            at += batch_size
    clips = len(rows.ids)
    if not found:
        return np.full((clips, 0), np.nan, dtype=np.float32)
    pooled = pool_windows(torch.cat(found), torch.from_numpy(rows.clip[which]).long(), clips)
    return (pooled.sigmoid() if rows.multilabel else pooled.softmax(1)).numpy()
