"""Optimisers and learning-rate schedules, and their states as tensors and JSON: no pickle."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from earshot.config import TrainingFlags


def optimizer(head: torch.nn.Module, settings: TrainingFlags) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD over all trainable parameters of a head."""
    parameters = [p for p in head.parameters() if p.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.lr, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, settings.lr, weight_decay=settings.weight_decay)


def schedule(optim: torch.optim.Optimizer, settings: TrainingFlags, steps_per_epoch: int) -> Any:
    """The learning rate over steps: OneCycle (Smith 2018, torch's), cosine after a linear warm-up, drops, or constant."""
    total = steps_per_epoch * settings.epochs
    if settings.schedule == "onecycle" and total > 2:
        # torch divides by warmup * total - 1 and by total - warmup * total: neither may be 0.
        warmup = min(max(settings.warmup, 1.5 / total), 1 - 0.5 / total)
        return torch.optim.lr_scheduler.OneCycleLR(optim, settings.lr, total_steps=total, pct_start=warmup)
    rising = max(1, round(settings.warmup * total))

    def factor(step: int) -> float:
        if settings.schedule == "step":
            return settings.step_gamma ** (step // steps_per_epoch // settings.step_epochs)
        if settings.schedule == "constant":
            return 1.0
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))

    return torch.optim.lr_scheduler.LambdaLR(optim, factor)


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
