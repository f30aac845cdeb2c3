"""Masked prediction before the folds: a head learns the clips themselves, labels unseen, and every fold
starts from that.

The clips to submit take part, and so do those that the folds are asked about: as sounds, never with their
labels. A clip's weight, which is about its label, plays no part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from earshot.core.deadline import clock
from earshot.core.device import autocast, laid_out
from earshot.core.errors import UserError
from earshot.core.seeding import reseed, seed_of
from earshot.training import optim
from earshot.training.checkpoint import FoldFolder

if TYPE_CHECKING:
    from earshot.core.config import TrainingFlags
    from earshot.core.deadline import Deadline
    from earshot.core.device import Device
    from earshot.training.dataset import Rows

PLACE = (1 << 31) + 1  # stands for a fold's number where random numbers are drawn
SAVE_SECONDS = 60.0
LINES = 10  # that are said about it


def folder_of(run: Path, seed: int) -> FoldFolder:
    """Where what a seed's folds start from lies in a run's folder."""
    return FoldFolder(run / f"pretrain_{seed}")


def load(head: torch.nn.Module, fold: FoldFolder, seed: int) -> None:
    """Put what was learnt without labels into a fresh fold's head; its last layer stays as it is.

    Raises:
        UserError: there is nothing, or it is damaged.
    """
    saved = folder_of(fold.folder.parent, seed).load_last("cpu")
    if not saved or not saved[2]["finished"]:
        raise UserError(
            f"{folder_of(fold.folder.parent, seed).folder} is not finished: run the same command again"
        )
    head.load_state_dict({**head.state_dict(), **saved[0]})


def fit(
    folder: FoldFolder,
    build: Callable[[], torch.nn.Module],
    rows: Rows,
    settings: TrainingFlags,
    device: Device,
    log: Callable[[str], None],
    deadline: Deadline,
) -> bool:
    """Train without labels to the end; False if the time ran out, at a safe point before it.

    Args:
        rows: the training split's, and those without labels where there are some.
        settings: `pretrain` epochs; optimiser, rate and batches are those of the training with labels.
    Raises:
        UserError: the head has no such training, or its weights are no numbers any more.
    """
    if folder.finished():
        return True
    settings = replace(settings, epochs=settings.pretrain)
    torch.manual_seed(seed_of(settings.seed, PLACE))
    head = build()
    if not hasattr(head, "pretraining"):
        raise UserError(
            "--pretrain: this head has no masked prediction: choose --head token_transformer, or leave it out"
        )
    if hasattr(head, "load_pretrained"):
        head.load_pretrained()
    everything = np.concatenate([np.arange(len(rows)), np.arange(rows.labelled, len(rows.whose))])
    if hasattr(head, "adapt"):
        head.to(device.name).adapt(rows.batches(everything, 256))
    model = laid_out(head.pretraining(), device).train()
    steps = max(1, -(-len(everything) // settings.batch_size))
    optimizer = optim.optimizer(model, settings)
    schedule = optim.schedule(optimizer, settings, steps)
    scaler = torch.amp.GradScaler(device.name.split(":")[0], enabled=device.precision == "fp16")
    done, total = 0, 0.0
    saved = folder.load_last(device.name)
    if saved:
        weights, tensors, state = saved
        model.load_state_dict(weights)
        optim.unpack(optimizer, tensors, state["optimizer"])
        schedule.last_epoch = state["schedule"]["last_epoch"]
        scaler.load_state_dict(state["scaler"])
        done, total = state["progress"]["step"], state["progress"]["total"]
        log(f"pretraining seed {settings.seed}  continues after step {done}/{steps * settings.epochs}")

    def save(finished: bool) -> None:
        weights = model.kept() if finished else model.state_dict()
        if not all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point()):
            raise UserError(
                "--pretrain: the weights are not numbers any more: give a lower --lr, or --clip-grad 1"
            )
        progress = {"step": done, "total": total, "history": [], "best": None}
        state: dict[str, Any] = {"progress": progress, "finished": finished}
        if finished:
            return folder.save_last(weights, None, state)
        tensors, rest = optim.pack(optimizer)
        folder.save_last(
            weights,
            tensors,
            {
                **state,
                "optimizer": rest,
                "schedule": {"last_epoch": schedule.last_epoch},
                "scaler": scaler.state_dict(),
            },
        )

    began, first, written = time.perf_counter(), done, time.perf_counter()
    said = max(1, settings.epochs // LINES)
    while done < steps * settings.epochs:
        epoch = done // steps
        order = np.random.default_rng(seed_of(settings.seed, PLACE, epoch)).permutation(everything)
        for batch in rows.ahead(np.array_split(order, steps)[done % steps :]):
            reseed(seed_of(settings.seed, PLACE, epoch, done % steps + 1), device)
            optimizer.zero_grad()
            with autocast(device):
                loss = model(*rows.batch(batch))
            scaler.scale(loss).backward()
            if settings.clip_grad:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            done, total, now = done + 1, total + float(loss.detach()), time.perf_counter()
            stop = deadline.passed() and done < steps * settings.epochs
            if stop or now - written > SAVE_SECONDS:
                save(False)
                written = now
            if stop:
                return False
        if (epoch + 1) % said == 0 or epoch + 1 == settings.epochs:
            left = (now - began) / (done - first) * (steps * settings.epochs - done)
            log(
                f"pretraining seed {settings.seed}  epoch {epoch + 1}/{settings.epochs}  error "
                f"{total / steps / ((epoch % said) + 1):.4f}  eta {clock(left)}"
            )
            total = 0.0
    save(True)
    return True
