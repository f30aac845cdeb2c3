"""What a head is computed with on a CPU: how many threads by its size, precision and layout by trying them once."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Iterator

import numpy as np
import torch
from torch import nn

from earshot.device import Device
from earshot.loss import Criterion, loss_of

if TYPE_CHECKING:
    from earshot.config import TrainingFlags
    from earshot.dataset import Rows

TINY = 1e8  # operations of a training step below which a second thread costs more than it does,
SMALL = 5e8  # and below which nothing is tried, so that small heads give the same bits on every machine
WORTH = 0.010  # seconds of a step in fp32 above which another precision is worth the trial
BETTER = 1.2  # how many times faster it has to be
ENOUGH = 0.5  # seconds that a trial may take; large heads are tried on fewer rows
BACKWARD = 3  # a training step is about three forward passes
CANDIDATES = (("fp32", True), ("bf16", False), ("bf16", True))  # precision, channels-last


def autocast(device: Device) -> Any:
    """The mixed-precision context of a device; does nothing for fp32."""
    if device.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.name.split(":")[0], {"fp16": torch.float16, "bf16": torch.bfloat16}[device.precision])


def operations(head: nn.Module, rows: Rows, which: np.ndarray) -> float:
    """Floating-point operations of a forward pass, a row: of matrix products, convolutions and attention; 0 if none are known.

    Args:
        which: rows to try it on, two of them at most.
    """
    from torch.utils.flop_counter import FlopCounterMode

    which, was = which[:2], head.training
    if not len(which):
        return 0.0
    x, mask = rows.batch(which)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head.eval()(x, mask)
    head.train(was)
    return counter.get_total_flops() / len(which)


@contextlib.contextmanager
def one_thread(when: bool) -> Iterator[None]:
    """Within, torch computes on one thread: two that wait for each other at every operation of a tiny head are slower."""
    threads = torch.get_num_threads()
    try:
        if when:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def decide(head: nn.Module, rows: Rows, settings: TrainingFlags, device: Device) -> Device:
    """The device with the precision and layout that a head trains clearly fastest with; as it was where nothing is to be tried.

    Only for --precision auto on a CPU, and heads of some size. A candidate has to give the loss of fp32, within a
    twentieth.

    Args:
        head: to try it on; its gradients and statistics are spoilt.
    """
    which = np.arange(min(len(rows), settings.batch_size))
    if device.name != "cpu" or settings.precision != "auto" or len(which) < 2:
        return device
    if BACKWARD * settings.batch_size * operations(head, rows, which) < SMALL:
        return device
    step, began = _stepper(rows, settings), time.perf_counter()
    step(head, device, which[:2])
    row = (time.perf_counter() - began) / 2  # with what a first call costs, so that the trial is rather too short
    which = which[:max(2, min(len(which), int(ENOUGH / row)))]
    plain, loss = _best(head, device, which, step)
    if plain * settings.batch_size / len(which) < WORTH:
        return device
    found, fastest = device, plain / BETTER
    for precision, channels_last in CANDIDATES:
        candidate = replace(device, precision=precision, channels_last=channels_last)
        try:
            seconds, answer = _best(head, candidate, which, step, give_up=3 * plain)
        except (RuntimeError, NotImplementedError):  # an operation that bf16 lacks
            continue
        if seconds < fastest and abs(answer - loss) <= 0.05 * abs(loss):
            found, fastest = candidate, seconds
    if found == device:
        return device
    return replace(found, about=f"{device.about}, {found.precision}{' channels-last' if found.channels_last else ''} "
                                f"({plain / fastest:.1f} x fp32)")


def _stepper(rows: Rows, settings: TrainingFlags) -> Callable[[nn.Module, Device, np.ndarray], float]:
    """Forward and backward of a head on rows; the loss."""
    criterion = Criterion.of(rows, np.arange(len(rows)), settings)

    def step(head: nn.Module, device: Device, which: np.ndarray) -> float:
        x, mask = rows.batch(which)
        targets = criterion.smooth(rows.targets_of(which))
        batch = {"x": x, "mask": mask, "plain": x, "plain_mask": mask, "plain_targets": targets, **rows.extras(which)}
        head.train().zero_grad()
        torch.manual_seed(0)  # dropout: the losses are compared
        with autocast(device):
            loss = loss_of(head, criterion, batch, targets)
        loss.backward()
        return float(loss.detach())

    return step


def _best(head: nn.Module, device: Device, which: np.ndarray, step: Callable[..., float], give_up: float = 1e9,
          times: int = 3) -> tuple[float, float]:
    head = laid_out(head, device)
    loss, best = 0.0, float("inf")
    for _ in range(times + 1):  # the first one warms up
        began = time.perf_counter()
        loss = step(head, device, which)
        seconds = time.perf_counter() - began
        best = min(best, seconds)
        if seconds > give_up:
            break
    return best, loss


def laid_out(head: nn.Module, device: Device) -> Any:
    """A head on its device, its weights in the layout that was decided there (always channels-last on a GPU)."""
    last = device.channels_last or device.name.startswith("cuda")
    return head.to(device.name).to(memory_format=torch.channels_last if last else torch.contiguous_format)
