"""The task's loss: cross-entropy against shares of the classes, binary cross-entropy where a clip may have
several labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from earshot.core.errors import UserError

if TYPE_CHECKING:
    from earshot.core.config import TrainingFlags
    from earshot.training.dataset import WindowDataset
    from models import Head


FOCAL = 2  # Lin et al.'s gamma


def balance_classes(rows: WindowDataset, which: np.ndarray) -> np.ndarray:
    """(classes,) weights that balance the classes among the given rows, which count by their clips' weights;
    if multi-label, weights that balance each class's positives with its negatives."""
    # Rows, not clips: the loss is a sum over rows.
    targets, total = rows.targets[rows.clip[which]], float(len(which))
    if rows.weights is not None:
        row_weights = rows.weights[rows.clip[which]]
        targets, total = targets * row_weights[:, None], float(row_weights.sum())
    counts = targets.sum(0)
    at_least_one = np.where(counts > 0, counts, 1)
    if rows.multilabel:  # positives of a class weigh as much as its negatives
        return (total - counts) / at_least_one
    # An absent class weighs nothing: through label smoothing it would otherwise outweigh all others.
    return (counts > 0) * counts.sum() / (np.count_nonzero(counts) * at_least_one)


def compute_prior_logits(rows: WindowDataset, which: np.ndarray, criterion: Criterion) -> np.ndarray:
    """(classes,) float32 logits that no constant prediction of the given training rows beats, by the
    criterion's weights and smoothing (a focal loss counts as cross-entropy): the class prior.

    If single-label, they are relative to the most frequent class.
    """
    targets = torch.from_numpy(rows.targets[rows.clip[which]].astype(np.float64))
    clips = (
        torch.ones(len(which)) if rows.weights is None else torch.from_numpy(rows.weights[rows.clip[which]])
    )
    weights = torch.ones(targets.shape[1]) if criterion.weights is None else criterion.weights.cpu()
    clips, weights, smoothing = clips.double(), weights.double(), criterion.smoothing
    # Half a clip more on either side: a class that no clip has, or all have, gets a finite logit.
    if rows.multilabel:
        share = (clips @ targets + 0.5) / (clips.sum() + 1)
        extra = (weights - 1) * share  # of the true positives, see `Criterion.__call__`
        positive = share * (1 - smoothing) + smoothing / 2 + extra * (1 - smoothing / 2)
        negative = (1 - share) * (1 - smoothing) + smoothing / 2 + extra * smoothing / 2
        logits = (positive.clamp(min=1e-6) / negative.clamp(min=1e-6)).log()
    else:
        smoothed = criterion.smooth_targets(targets)
        by_class = smoothed @ weights * clips
        counts = by_class @ smoothed + 0.5 * (by_class.mean() if len(which) else 1.0)
        logits = (counts / counts.max()).clamp(min=1e-6).log()
    return logits.float().numpy()


def start_at_prior(head: Head, criterion: Criterion, rows: WindowDataset, which: np.ndarray) -> None:
    """Start a fresh head at the class prior of the given training rows, see `Head.set_prior`."""
    logits = torch.from_numpy(compute_prior_logits(rows, which, criterion)).to(rows.device)
    head.eval()
    head.set_prior(logits, *rows.load_batch(which[:2]))
    head.train()


@dataclass
class Criterion:
    """Loss of a batch. `weights` (classes,) or None; `smoothing` is the share of a target that is spread over
    all classes.

    `focal`: what is nearly right already counts less (Lin et al. 2017, gamma 2, no alpha: that is what
        `weights` are for).
    `scale`: gradients are those of the loss times this. SGD's steps, unlike Adam's, are as long as the
        gradient: the mean over a hundred classes would train each a hundredth as fast, and decay its weights
        a hundred times as strongly. Twice the number of classes: a sigmoid is a softmax over two logits.
    """

    multilabel: bool
    smoothing: float
    weights: Tensor | None
    focal: bool = False
    scale: float = 1.0

    @classmethod
    def from_rows(cls, rows: WindowDataset, which: np.ndarray, settings: TrainingFlags) -> Criterion:
        """The criterion for the given training rows."""
        weights = None
        if settings.class_weights != "none":
            weights = torch.tensor(balance_classes(rows, which), dtype=torch.float32, device=rows.device)
        scale = 2 * rows.targets.shape[1] if rows.multilabel and settings.optimizer == "sgd" else 1
        focal = settings.loss == "focal"
        return cls(rows.multilabel, settings.label_smoothing, weights, focal, scale)

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        total: Tensor | float | None = None,
        clips: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy against (B, classes) shares, rows weighted by their classes' and clips' weights.

        Where clips have several labels: binary cross-entropy, the mean over classes, positives
        weighted by their class's weight.

        Args:
            total: what the rows' weights sum to; more than they do where these rows are a part of a batch.
            clips: (B,) the weights of the rows' clips; None: all are 1. It is a weighted mean, so that the
                learning rate means the same with them.
        """
        if logits.shape != targets.shape:
            raise UserError(
                f"the head's forward returns {tuple(logits.shape)}, expected {tuple(targets.shape)}: "
                "(clips, classes)"
            )
        plain = self.weights is None and not self.multilabel and not self.focal
        if plain and total is None and clips is None:
            return nn.functional.cross_entropy(logits.float(), targets)
        if self.multilabel:
            entropy = partial(
                nn.functional.binary_cross_entropy_with_logits, logits.float(), reduction="none"
            )
            each = entropy(targets)
            if self.weights is not None:
                # Only true positives are weighted: the share that smoothing gives to negatives would
                # otherwise push rare classes towards 1.
                yes = (targets - self.smoothing / 2) / max(1 - self.smoothing, 1e-6)
                each = each + (self.weights - 1) * yes * entropy(
                    torch.full_like(targets, 1 - self.smoothing / 2)
                )
            # for targets of 0 and 1 this is (1 - p)^2 of the right answer's p; Li et al. 2020
            # have it for shares
            if self.focal:
                each = each * (targets - logits.float().sigmoid()) ** FOCAL
            each = each.mean(1)
        else:
            each = targets * logits.float().log_softmax(1)
            if self.focal:
                each = each * (1 - logits.float().softmax(1)) ** FOCAL
            each = -each.sum(1)
        weight = self.weigh_rows(targets, clips)
        return (each * weight).sum() / (weight.sum() if total is None else total)

    def weigh_rows(self, targets: Tensor, clips: Tensor | None = None) -> Tensor:
        """(B,) how much each row counts: by its classes, times `clips`, the weight of its clip."""
        plain = self.weights is None or self.multilabel
        weights = targets.new_ones(len(targets)) if plain else targets @ self.weights
        return weights if clips is None else weights * clips

    def smooth_targets(self, targets: Tensor) -> Tensor:
        """The targets with their smoothing share spread."""
        if not self.smoothing:
            return targets
        return targets * (1 - self.smoothing) + self.smoothing / (2 if self.multilabel else targets.shape[1])


class WholeBatch(NamedTuple):
    """A batch of which parts are computed one by one: its rows, and what the weights of its rows sum to, and
    those of its plain rows, which are neither masked nor mixed."""

    rows: int
    weight: Tensor
    plain: Tensor | None


def compute_loss(
    head: Head,
    criterion: Criterion,
    batch: dict[str, Any],
    targets: Tensor,
    whole: WholeBatch | None = None,
) -> Tensor:
    """A head's loss on a batch, its own where it has one. A clip's weight is about its label: what a head
    learns besides counts all rows alike.

    Args:
        batch: "x", "mask" and "weights", (B,) or None, for a head with a loss of its own also "plain",
            "plain_mask", "plain_targets", "plain_weights" and further views.
        whole: the batch that this is a part of.
    """
    clips = batch.get("weights")
    if not head.has_own_loss():
        return criterion(head(batch["x"], batch["mask"]), targets, whole and whole.weight, clips)
    share = 1.0 if whole is None else len(targets) / whole.rows

    def entropy(logits: Tensor, plain: bool = False) -> Tensor:
        # The head's loss is multiplied by the share of the rows; the classes' part goes by their weights.
        total = whole and (whole.plain if plain else whole.weight)
        total = None if total is None else share * total
        if plain:
            return criterion(logits, batch["plain_targets"], total, batch.get("plain_weights"))
        return criterion(logits, targets, total, clips)

    return share * head.loss(batch, entropy)


def accumulate_gradients(
    head: Head,
    criterion: Criterion,
    batch: dict[str, Any],
    targets: Tensor,
    max_rows: int,
    autocast: Any,
    scaler: torch.amp.GradScaler,
) -> Tensor:
    """Add a batch's gradients, times the criterion's scale, to the head's, at most so many rows a pass; the
    whole batch's loss."""
    passes = -(-len(targets) // max_rows)
    if passes == 1:
        with autocast:
            loss = compute_loss(head, criterion, batch, targets)
        scaler.scale(criterion.scale * loss).backward()
        return loss.detach()
    total, plain = torch.zeros((), device=targets.device), batch.get("plain_targets")
    whole_batch = WholeBatch(
        len(targets),
        criterion.weigh_rows(targets, batch.get("weights")).sum(),
        None if plain is None else criterion.weigh_rows(plain, batch.get("plain_weights")).sum(),
    )
    for part in torch.tensor_split(torch.arange(len(targets), device=targets.device), passes):
        pass_batch = {name: v if v is None else v[part] for name, v in batch.items()}
        with autocast:
            loss = compute_loss(head, criterion, pass_batch, targets[part], whole_batch)
        scaler.scale(criterion.scale * loss).backward()
        total += loss.detach()
    return total
