"""A head trained in several ways on the same features: ours, a plain DataLoader loop, transformers' Trainer,
and its bare work."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import synthetic  # noqa: F401 - first: it puts the kit on the path
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import models
from earshot.core.config import TrainingFlags, load_recipe, replace_defaults
from earshot.core.device import Device, choose, get_autocast, to_device, use_one_thread
from earshot.features.cache import Cache
from earshot.training import dataset, optim, precision
from earshot.training.checkpoint import FoldFolder
from earshot.training.trainer import Fold, Trainer

NEVER = type("Never", (), {"is_over": lambda self: False})()
PLAIN = dict(
    mixup=0.0,
    time_mask=0,
    frequency_mask=0,
    time_shift=0.0,
    gain=0.0,
    label_smoothing=0.0,
    clip_grad=0.0,
    ema=0.0,
)


@dataclass
class Case:
    """A head on a view: the recipe whose settings train it, how many clips and epochs a round, how many
    rounds."""

    recipe: str
    view: str
    clips: int = 400
    epochs: int = 10
    rounds: int = 5
    augmented: bool = False


class Cached(Dataset):
    """What one writes first: float16 rows to float tensors, one at a time."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        return {"x": torch.from_numpy(self.x[index]).float(), "labels": int(self.y[index])}


class Wrapped(nn.Module):
    """A head as Trainer wants it."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(x, None)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        )


class Bench:
    """A head, its rows and settings, and the ways to train it; every way returns seconds an epoch."""

    def __init__(self, case: Case, cache: Cache):
        recipe = load_recipe(case.recipe)
        options = {k: v for k, v in recipe.head.items() if k not in ("name", "view")}
        settings = replace_defaults(TrainingFlags(), recipe.training, case.recipe)
        self.case, self.settings = (
            case,
            replace(settings, epochs=case.epochs, **({} if case.augmented else PLAIN)),
        )
        self.device = choose("cpu")
        self.rows = dataset.load_training_rows(cache, case.view, (), self.settings, self.device)
        self.build = lambda: models.build(
            recipe.head["name"], cache.shapes[case.view], len(cache.classes), **options
        )
        asked = np.arange(len(self.rows.ids)) < case.clips
        self.valid, self.learnt = asked & (self.rows.folds == 1), asked & (self.rows.folds != 1)
        split = cache.split("train")
        self.x, self.y = split[case.view], self.rows.labels
        self.decided = precision.choose_precision(self.build(), self.rows, self.settings, self.device)

    def _head(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build()

    def _optimizer(self, head: nn.Module) -> torch.optim.Optimizer:
        if self.settings.optimizer == "sgd":
            return torch.optim.SGD(
                head.parameters(),
                self.settings.lr,
                0.9,
                nesterov=True,
                weight_decay=self.settings.weight_decay,
            )
        return torch.optim.AdamW(head.parameters(), self.settings.lr, weight_decay=self.settings.weight_decay)

    def ours(self, device: Device) -> float:
        """`Fitter.fit`: augmentation where asked for, schedule, evaluation by every metric, log lines, the
        checkpoints."""
        with tempfile.TemporaryDirectory() as folder:
            fold = Fold(1, 5, self.learnt, self.valid)
            fitter = Trainer(self._head, self.rows, fold, self.settings, 10, FoldFolder(Path(folder)), device)
            began = time.perf_counter()
            fitter.fit(str, NEVER, 0)
            return (time.perf_counter() - began) / self.case.epochs

    def loop(self) -> float:
        """The plain loop."""
        from sklearn.metrics import f1_score

        head, settings = self._head(), self.settings
        optimizer = self._optimizer(head)
        steps = -(-int(self.learnt.sum()) // settings.batch_size) * self.case.epochs
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        learn = DataLoader(
            Cached(self.x[self.learnt], self.y[self.learnt]), settings.batch_size, shuffle=True
        )
        ask = DataLoader(Cached(self.x[self.valid], self.y[self.valid]), settings.batch_size)
        began = time.perf_counter()
        for _ in range(self.case.epochs):
            head.train()
            total = 0.0
            for batch in learn:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(head(batch["x"], None), batch["labels"])
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
            head.eval()
            with torch.no_grad():
                logits = torch.cat([head(batch["x"], None) for batch in ask])
            f1_score(self.y[self.valid], logits.argmax(1).numpy(), average="macro")
        return (time.perf_counter() - began) / self.case.epochs

    def trainer(self) -> float:
        """transformers' Trainer."""
        from sklearn.metrics import f1_score
        from transformers import Trainer, TrainingArguments

        head, settings = Wrapped(self._head()), self.settings
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=settings.batch_size,
                per_device_eval_batch_size=settings.batch_size,
                num_train_epochs=self.case.epochs,
                eval_strategy="epoch",
                logging_strategy="epoch",
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                lr_scheduler_type="cosine",
                learning_rate=settings.lr,
                max_grad_norm=0.0,
            )
            made = Trainer(
                head,
                arguments,
                train_dataset=Cached(self.x[self.learnt], self.y[self.learnt]),
                eval_dataset=Cached(self.x[self.valid], self.y[self.valid]),
                optimizers=(self._optimizer(head), None),
                compute_metrics=lambda p: {
                    "f1": f1_score(p.label_ids, p.load_predictions.argmax(1), average="macro")
                },
            )
            began = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                made.train()
            return (time.perf_counter() - began) / self.case.epochs

    def bare(self, device: Device) -> float:
        """The head's own work, with the optimiser and the threads of ours."""
        head = to_device(self._head(), device).train()
        optimizer = optim.build_optimizer(head, self.settings)
        learn = [
            self.rows.load_batch(part)[0]
            for part in np.array_split(
                np.flatnonzero(self.learnt), -(-int(self.learnt.sum()) // self.settings.batch_size)
            )
        ]
        targets = [self.rows.load_training_batch(np.arange(len(x))).targets for x in learn]
        ask, found = (
            self.rows.load_batch(np.flatnonzero(self.valid))[0].split(2 * self.settings.batch_size),
            [],
        )
        work = (
            precision.count_flops(head, self.rows, np.arange(2))
            * precision.BACKWARD
            * self.settings.batch_size
        )
        with use_one_thread(work < precision.TINY):
            for _ in range(self.case.epochs):
                began = time.perf_counter()
                head.train()
                for x, wanted in zip(learn, targets, strict=True):
                    optimizer.zero_grad()
                    with get_autocast(device):
                        loss = nn.functional.cross_entropy(head(x, None).float(), wanted)
                    loss.backward()
                    optimizer.step()
                head.eval()
                with torch.inference_mode(), get_autocast(device):
                    for x in ask:
                        head(x, None)
                found.append(time.perf_counter() - began)
        return statistics.median(found)


def trainer_fault() -> str | None:
    """Why Trainer cannot run here, None where it can."""
    try:
        import accelerate  # noqa: F401
        from transformers import Trainer  # noqa: F401
    except ImportError as error:
        return str(error).splitlines()[0]
    return None
