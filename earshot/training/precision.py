"""Processes, threads, precision and memory layout of a head on a CPU, chosen by its size and by timing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from earshot.core import memory
from earshot.core.device import Device, get_autocast, to_device, use_one_thread
from earshot.training.loss import Criterion, compute_loss

if TYPE_CHECKING:
    from earshot.core.config import TrainingFlags
    from earshot.training.dataset import WindowDataset

TINY = 1e8  # operations of a training step below which a second thread costs more than it saves
SMALL = 5e8  # and below which nothing is timed, so that small heads give equal results on every machine
WORTH = 0.010  # seconds of a step in fp32 above which other precisions are timed
BETTER = 1.2  # how many times faster another precision has to be
TRIAL = 4.0  # seconds after which timing a step ends
WARM_UP, STEPS = 2, 7  # steps that are not counted, and the most that are
ENOUGH = 0.1  # seconds that a timed step may take; large heads are timed on fewer rows
# in turn, so that other load on the machine affects all alike; the first one warms up, the best counts
ROUNDS = 6
# a run of fewer operations ends before more processes would have started
WORTH_PROCESSES = 5e12
PROCESS_BYTES = 1 << 30  # what a process takes besides its head and batch
LOSS = 0.05  # how far from that of fp32 the loss may be, relatively
BACKWARD = 3  # a training step is about three forward passes
# Precision, channels-last. Not fp32 channels-last: oneDNN 3.10's backward pass of a few channels overwrites
# memory there.
CANDIDATES = (("fp32", False), ("bf16", False), ("bf16", True))

Step = Callable[[nn.Module, Device, np.ndarray], float]  # forward and backward of a head on rows; the loss


def count_flops(head: nn.Module, rows: WindowDataset, which: np.ndarray) -> float:
    """Floating-point operations of a forward pass, a row: of matrix products, convolutions and attention; 0
    if none are known.

    Args:
        which: rows to try it on, two of them at most.
    """
    from torch.utils.flop_counter import FlopCounterMode

    which, was_training = which[:2], head.training
    if not len(which):
        return 0.0
    x, mask = rows.load_batch(which)
    fast = torch.backends.mha.get_fastpath_enabled()
    # torch's fused layer, whose operations the counter does not know
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            head.eval()(x, mask)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    head.train(was_training)
    return counter.get_total_flops() / len(which)


def choose_precision(head: nn.Module, rows: WindowDataset, settings: TrainingFlags, device: Device) -> Device:
    """The device with the precision and layout in which a head trains clearly fastest.

    The device stays as it is unless --precision is auto, the device a CPU and the head large enough.

    Args:
        head: used for timing, which changes its gradients and statistics.
    """
    which = np.arange(min(len(rows), settings.batch_size))
    if device.name != "cpu" or settings.precision != "auto" or len(which) < 2:
        return device
    if BACKWARD * settings.batch_size * count_flops(head, rows, which) < SMALL:
        return device
    step = _make_step(rows, settings)
    # includes the cost of a first call, so that timing rather ends too early
    row_seconds = _time_step(step, head, device, which[:2])[0] / 2
    which = which[: max(2, min(len(which), int(ENOUGH / row_seconds)))]
    candidates = [replace(device, precision=precision, channels_last=last) for precision, last in CANDIDATES]
    times = measure_steps(head, candidates, which, step)
    plain, best = times[0], min(times)
    if plain * settings.batch_size / len(which) < WORTH or BETTER * best > plain:
        return device
    fastest = candidates[times.index(best)]
    layout = " channels-last" if fastest.channels_last else ""
    about = f"{device.about}, {fastest.precision}{layout} ({plain / best:.1f} times as fast as fp32)"
    return replace(fastest, about=about)


def count_processes(head: nn.Module, rows: WindowDataset, settings: TrainingFlags, models: int) -> int:
    """How many processes train models side by side on the CPU.

    Threads wait for each other at every operation, and processes do not: two of one thread train 1.02 to 1.7
    times as many models an hour as one of two threads (benchmarks/side_by_side.py, 2 cores). At most as many
    as there are threads and models, and as fit in half of the free memory.

    Args:
        models: how many are to be trained.
    """
    which = np.arange(min(len(rows), settings.batch_size))
    most = min(models, torch.get_num_threads())
    if most < 2 or len(which) < 2:
        return 1
    steps = models * settings.epochs * math.ceil(len(rows) / settings.batch_size)
    if steps * BACKWARD * settings.batch_size * count_flops(head, rows, which) < WORTH_PROCESSES:
        return 1
    weights = 5 * sum(4 * p.numel() for p in head.parameters())  # with gradients, AdamW's moments, averages
    batch = 2 * settings.batch_size * count_saved_bytes(head, rows, which)  # with gradients of activations
    try:
        free = memory.get_free(torch.device("cpu"))
    except (OSError, ValueError):  # a system that does not tell
        return 1
    return max(1, min(most, int(free / 2 / (PROCESS_BYTES + weights + batch))))


def count_saved_bytes(head: nn.Module, rows: WindowDataset, which: np.ndarray) -> float:
    """Bytes that a forward pass keeps for the backward pass, a row, without the weights.

    Args:
        which: rows to try it on, two of them at most.
    """
    which, kept = which[:2], {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*head.parameters(), *head.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, mask = rows.load_batch(which)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        head.train()(x, mask)
    return sum(kept.values()) / len(which)


def measure_steps(head: nn.Module, candidates: list[Device], which: np.ndarray, step: Step) -> list[float]:
    """Seconds of a step with each candidate, the best of several; infinity where it does not work, or gives
    another loss.

    Args:
        candidates: the first is what the others are compared with; one that takes three times as long is
            given up.
    """
    times, losses = [math.inf] * len(candidates), [math.nan] * len(candidates)
    for number in range(ROUNDS):
        for at, candidate in enumerate(candidates):
            too_slow = number > 1 and times[at] > 3 * times[0]
            if number and (too_slow or times[at] == math.inf):
                continue
            try:
                seconds, losses[at] = _time_step(step, to_device(head, candidate), candidate, which)
            except (RuntimeError, NotImplementedError):  # an operation that bf16 lacks
                if not at:
                    raise
                times[at] = math.inf
                continue
            times[at] = seconds if number < 2 else min(times[at], seconds)
    for at, loss in enumerate(losses):
        if not abs(loss - losses[0]) <= LOSS * abs(losses[0]):
            times[at] = math.inf
    return times


def measure_row_seconds(
    head: nn.Module, rows: WindowDataset, settings: TrainingFlags, device: Device
) -> float:
    """Seconds of a training step per row, as the run will train: the median of a few after warming up; timing
    changes the head's gradients."""
    which = np.arange(min(len(rows), settings.batch_size))
    # with as many threads as the run will train with
    tiny = BACKWARD * settings.batch_size * count_flops(to_device(head, device), rows, which) < TINY
    step, times = _make_step(rows, settings), []
    with use_one_thread(tiny and device.name == "cpu"):
        while len(times) < 2 or len(times) < WARM_UP + STEPS and sum(times) < TRIAL:
            times.append(_time_step(step, head, device, which)[0])
    passes = 2 if settings.optimizer == "sam" else 1
    return passes * float(np.median(times[WARM_UP:] or times[-1:])) / len(which)


def _time_step(step: Step, head: nn.Module, device: Device, which: np.ndarray) -> tuple[float, float]:
    began = time.perf_counter()
    loss = step(head, device, which)
    return time.perf_counter() - began, loss


def _make_step(rows: WindowDataset, settings: TrainingFlags) -> Step:
    """Forward and backward of a head on rows; the loss."""
    criterion = Criterion.from_rows(rows, np.arange(len(rows)), settings)

    def step(head: nn.Module, device: Device, which: np.ndarray) -> float:
        loaded = rows.load_training_batch(which)
        targets = criterion.smooth_targets(loaded.targets)
        batch = {
            "x": loaded.x,
            "mask": loaded.mask,
            "plain": loaded.x,
            "plain_mask": loaded.mask,
            "plain_targets": targets,
            **loaded.extra_views,
        }
        head.train().zero_grad()
        torch.manual_seed(0)  # dropout: the losses are compared
        with get_autocast(device):
            loss = compute_loss(head, criterion, batch, targets)
        loss.backward()
        return float(loss.detach())

    return step
