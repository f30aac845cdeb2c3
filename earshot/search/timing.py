"""Predicted seconds of the bake-off's candidates: computed at first, then timed on a few steps or a part of
the rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from earshot.core import config
from earshot.features.cache import Cache
from earshot.training import estimators, experiment, precision

if TYPE_CHECKING:
    from earshot.core.device import Device
    from earshot.training.dataset import WindowDataset
    from models import Head

CPU_PARAMETERS = 20_000_000  # larger heads need a GPU
# operations a second that a few cores do not exceed: heads too slow even for that are not timed
CPU_LIMIT = 5e11
OVERHEAD = 0.5  # seconds of a fold beside its steps
STEP = 3e-3  # seconds of a step beside its operations
CPU_SPEED, GPU_SPEED = 3e10, 3e12  # operations a second, a middling guess
OPERATIONS = 6  # of a training step per parameter and row, where they cannot be counted
WITH_THE_REST = 1.2  # time of a fold with validation and overhead, relative to its training steps
PART_SECONDS = 5.0  # a scikit-learn head is timed on so many rows that it takes about this
FEWEST = 250  # rows of that part
FIXED = 1.5  # seconds that do not grow with the rows, above which a part says little about the whole


def guess_fold_seconds(
    spec: experiment.HeadSpec, cache: Cache, settings: config.TrainingFlags, gpu: bool
) -> tuple[float, float, int, float]:
    """What can be computed without training: seconds of a fold, of a row in a training step, the parameters,
    and the operations of a fold (0: unknown)."""
    rows = cache.manifest["splits"]["train"]["rows"]
    if estimators.is_sklearn_head(spec.build):
        fold, row = spec.build().estimate_seconds(rows)
        return fold, precision.BACKWARD * row, 0, 0.0
    parameters, work = _count_parameters_and_flops(spec, cache, settings.epochs)
    known = work or OPERATIONS * parameters * rows * settings.epochs
    steps = settings.epochs * max(1, rows // settings.batch_size)
    seconds = OVERHEAD + steps * STEP + known / (GPU_SPEED if gpu else CPU_SPEED)
    return seconds, 0.0, parameters, work


def _count_parameters_and_flops(spec: experiment.HeadSpec, cache: Cache, epochs: int) -> tuple[int, float]:
    """Parameters, and operations of training a fold of all clips (0: unknown); the head takes no memory."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        head = spec.build().eval()
        parameters = sum(p.numel() for p in head.parameters())
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                head(torch.empty(2, *cache.shapes[spec.view]), None)
            each = counter.get_total_flops() / 2
        except (RuntimeError, NotImplementedError, ValueError, AssertionError):
            each = 0.0
    return parameters, precision.BACKWARD * each * epochs * cache.manifest["splits"]["train"]["rows"]


def measure_fold_seconds(
    build: Callable[[], Head], rows: WindowDataset, settings: config.TrainingFlags, device: Device, folds: int
) -> tuple[float, float] | None:
    """Seconds of a fold, and of a row in a training step, from a measurement; None where that would say
    little."""
    head = build()
    if head.is_sklearn:
        return _measure_fit(head, rows)
    row = precision.measure_row_seconds(head, rows, settings, device)
    seconds = WITH_THE_REST * row * len(rows) * (1 - 1 / folds) * settings.epochs
    return OVERHEAD + seconds, row


def _measure_fit(head: Head, rows: WindowDataset) -> tuple[float, float] | None:
    """Fit to a part of the rows; the rest by how the head's own estimate grows with the rows."""
    count = part = len(rows)
    while part > 2 * FEWEST and head.estimate_seconds(part)[0] > PART_SECONDS:
        part //= 2
    constant, here, whole = (head.estimate_seconds(number)[0] for number in (1, part, count))
    # all rows would take as long as a fold, which is kept
    if part == count or constant > FIXED or here > 2 * PART_SECONDS:
        return None
    which = np.sort(np.random.default_rng(0).permutation(count)[:part])
    clips = rows.clip[which]
    began = time.perf_counter()
    head.solve(rows.iterate_batches(which, estimators.BATCH), rows.targets[clips], clips, rows.multilabel)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    few = which[: estimators.BATCH]
    with torch.inference_mode():
        for x, mask in rows.iterate_batches(few, estimators.BATCH):
            head.cpu()(x.cpu(), None if mask is None else mask.cpu())
    row = (time.perf_counter() - began) / len(few)
    growth = max(1.0, (whole - constant) / max(here - constant, 1e-9))
    return seconds * growth + count * row, precision.BACKWARD * row
