"""Cached rows as batches on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

RESIDENT = 0.25  # share of the device's free memory that a split may take to be kept there


class Rows:
    """The rows (windows) of one split and view.

    `span` is how many seconds the view's time axis stands for. `clip` (rows,) is each row's clip, `labels` (clips,)
    the class index or -1, `ids` (clips,) the names.
    """

    def __init__(self, split: dict[str, Any], view: str, classes: list[str], span: float, device: str):
        self.ids, self.clip = split["ids"], np.asarray(split["clip"])
        self.folds, self.groups = np.asarray(split["folds"]), np.asarray(split["groups"])
        index = {label: number for number, label in enumerate(classes)}
        self.labels = np.array([index.get(str(label), -1) for label in split["labels"]], dtype=np.int64)
        self.device = torch.device(device)
        self.features = split[view]
        frames = self.features.shape[3]
        real = np.ceil(np.asarray(split["length"], dtype=np.float64) / span * frames - 1e-3)
        self.frames = np.clip(real, 1, frames).astype(np.int64)
        # Decided for the split, not the batch: a clip's logits must not depend on its batch mates.
        self.masked = bool((self.frames < frames).any())
        self.resident = self._resident()

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, F, T) of a row."""
        return tuple(self.features.shape[1:])

    def _resident(self) -> Tensor | None:
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:
            free = _free_memory()
        if self.features.nbytes > RESIDENT * free:
            return None
        return torch.from_numpy(np.array(self.features)).to(self.device)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """(B, D, F, T) float32 and its (B, T) mask of real frames, None where every row of the split is full."""
        if self.resident is not None:
            x = self.resident[torch.from_numpy(rows).to(self.device)]
        else:
            x = torch.from_numpy(self.features[rows]).to(self.device)
        mask = None
        if self.masked:
            mask = torch.from_numpy(np.arange(self.shape[2]) < self.frames[rows][:, None]).to(self.device)
        return x.float(), mask

    def batches(self, rows: np.ndarray, size: int):
        """Batches over the given rows in order."""
        for first in range(0, len(rows), size):
            yield self.batch(rows[first:first + size])

    def of_clips(self, clips: np.ndarray) -> np.ndarray:
        """The rows of the clips that a boolean (clips,) array picks."""
        return np.flatnonzero(clips[self.clip])


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
def predict(head: torch.nn.Module, rows: Rows, which: np.ndarray, batch_size: int, autocast: Any) -> np.ndarray:
    """Probabilities of all clips of a split; NaN rows for clips of which no row is among `which`.

    Returns:
        (clips, classes) float32.
    """
    from earshot.device import out_of_memory

    head.eval()
    found, at = [], 0
    with autocast:
        while at < len(which):
            try:
                found.append(head(*rows.batch(which[at:at + batch_size])).float().cpu())
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
    return pooled.softmax(1).numpy()
