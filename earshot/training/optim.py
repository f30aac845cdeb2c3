"""Optimisers, schedules, sharpness-aware steps, averaged weights; their states as tensors and JSON: no
pickle."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from earshot.core.config import TrainingFlags


def optimizer(head: torch.nn.Module, settings: TrainingFlags) -> torch.optim.Optimizer:
    """AdamW (SAM's too), Adam or SGD over all trainable parameters of a head."""
    parameters = [p for p in head.parameters() if p.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            settings.lr,
            momentum=0.9,
            nesterov=True,
            fused=True,
            weight_decay=settings.weight_decay,
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, settings.lr, weight_decay=settings.weight_decay, fused=True)


class Schedule:
    """The learning rate (and OneCycle's momentum) as a function of the steps done; torch's schedulers cost
    more than a tiny head.

    Args:
        optim: whose groups get it.
        values: steps done -> learning rate, and momentum or None.
    """

    def __init__(self, optim: torch.optim.Optimizer, values: Callable[[int], tuple[float, float | None]]):
        self.optim, self.values, self.done = optim, values, 0
        self._set()

    def _set(self) -> None:
        rate, momentum = self.values(self.done)
        for group in self.optim.param_groups:
            group["lr"] = rate
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif momentum is not None:
                group["momentum"] = momentum

    def step(self) -> None:
        """One step further."""
        self.done += 1
        self._set()

    def state_dict(self) -> dict[str, int]:
        """The steps done, under the name that torch's schedulers gave it."""
        return {"last_epoch": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.done = state["last_epoch"]
        self._set()


def schedule(optim: torch.optim.Optimizer, settings: TrainingFlags, steps_per_epoch: int) -> Schedule:
    """The learning rate over steps: OneCycle (Smith 2018, as torch has it), cosine after a linear warm-up,
    drops, or constant."""
    total, top = steps_per_epoch * settings.epochs, settings.lr
    if settings.schedule == "onecycle" and total > 2:
        # Neither part may be empty.
        rising = min(max(settings.warmup, 1.5 / total), 1 - 0.5 / total) * total - 1

        def cycle(step: int) -> tuple[float, float | None]:
            if step <= rising:
                share = step / rising
                return _cosine(top / 25, top, share), _cosine(0.95, 0.85, share)
            share = (step - rising) / (total - 1 - rising)
            return _cosine(top, top / 25e4, share), _cosine(0.85, 0.95, share)

        return Schedule(optim, cycle)
    rising = max(1, round(settings.warmup * total))

    def rate(step: int) -> tuple[float, float | None]:
        if settings.schedule == "step":
            return top * settings.step_gamma ** (step // steps_per_epoch // settings.step_epochs), None
        if settings.schedule == "constant":
            return top, None
        if step < rising:
            return top * (step + 1) / rising, None
        return top * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising))), None

    return Schedule(optim, rate)


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


def pack(optim: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors, and the rest as JSON-able values."""
    state = optim.state_dict()
    tensors, numbers = {}, {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if torch.is_tensor(value):
                tensors[f"{index}.{key}"] = value.contiguous()
            else:
                numbers[f"{index}.{key}"] = value
    return tensors, {"groups": state["param_groups"], "numbers": numbers}


def unpack(optim: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
    """Put a packed state back; learning rates, betas and moments come back bit for bit."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *rest["numbers"].items()]:
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in rest["groups"]]
    optim.load_state_dict({"state": state, "param_groups": groups})
    # fused steps go through memory: moments have to lie as their weights do
    for parameter, entries in optim.state.items():
        for key, value in entries.items():
            if (
                torch.is_tensor(value)
                and value.shape == parameter.shape
                and value.stride() != parameter.stride()
            ):
                entries[key] = torch.empty_like(parameter).copy_(value)


@torch.no_grad()
def climb(head: torch.nn.Module, rho: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Move the weights by `rho` up the gradient, SAM's first step (Foret et al. 2021, eq. 2).

    Returns:
        (parameter, its value before) of all that moved; none where the gradient is zero or not finite.
    """
    moved = [p for p in head.parameters() if p.grad is not None]
    norm = torch.stack([p.grad.float().norm() for p in moved]).norm() if moved else torch.zeros(())
    if not (norm.isfinite() and norm > 0):
        return []
    before = [(p, p.clone()) for p in moved]
    for parameter in moved:
        parameter.add_(parameter.grad * (rho / norm).to(parameter.grad.dtype))
    return before


@torch.no_grad()
def descend(before: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Put the weights back to where `climb` found them."""
    for parameter, value in before:
        parameter.copy_(value)


@contextlib.contextmanager
def still_statistics(head: torch.nn.Module) -> Iterator[None]:
    """Batch normalisation's running statistics stand still: SAM's second pass sees weights that are not the
    network's."""
    norms = [m for m in head.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum


class Average:
    """The exponential moving average of a head's weights and statistics, as a head of its own.

    The decay rises as (1 + step) / (10 + step) to its value, so that the random start is soon forgotten.

    Args:
        head: the head that is trained; copied.
        decay: share of the average that stays at each step.
    """

    def __init__(self, head: torch.nn.Module, decay: float):
        self.head, self.decay = copy.deepcopy(head).requires_grad_(False), decay
        self._pairs: tuple[list[torch.Tensor], ...] | None = None

    def update(self, head: torch.nn.Module, step: int) -> None:
        """Take in the weights after a step (from 0)."""
        self._take(head, 1 - min(self.decay, (1 + step) / (10 + step)))

    def end(self, head: torch.nn.Module, epoch: int) -> None:
        """Called after an epoch (from 1)."""

    @torch.no_grad()
    def _take(self, head: torch.nn.Module, share: float) -> None:
        if self._pairs is None:  # collecting them costs more than averaging
            pairs = list(zip(self.head.state_dict().values(), head.state_dict().values(), strict=True))
            self._pairs = (
                *([p[i] for p in pairs if p[0].is_floating_point()] for i in (0, 1)),
                *([p[i] for p in pairs if not p[0].is_floating_point()] for i in (0, 1)),
            )
        mine, new, counts, counted = self._pairs
        torch._foreach_lerp_(mine, new, share)
        for one, other in zip(counts, counted, strict=True):
            one.copy_(other)


class Snapshots(Average):
    """The mean of a head's weights after each of the last epochs (Izmailov et al. 2018), as a head of its
    own.

    Until then it is the head after the last epoch. Batch normalisation's running statistics are averaged with
    the weights.

    Args:
        count: how many epochs' ends. epochs: that are trained.
    """

    def __init__(self, head: torch.nn.Module, count: int, epochs: int):
        super().__init__(head, 0.0)
        self.before = max(0, epochs - count)

    def update(self, head: torch.nn.Module, step: int) -> None:
        """Steps inside an epoch count for nothing."""

    def end(self, head: torch.nn.Module, epoch: int) -> None:
        """Take in the weights after an epoch (from 1)."""
        self._take(head, 1 / max(1, epoch - self.before))


def average(head: torch.nn.Module, settings: TrainingFlags) -> Average | None:
    """The average of the weights that is to predict; None where the weights themselves do."""
    if settings.snapshots:
        return Snapshots(head, settings.snapshots, settings.epochs)
    return Average(head, settings.ema) if settings.ema else None
