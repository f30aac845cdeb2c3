"""What a head is: a module from (B, D, F, T) to logits, and the hooks that training calls, with their
defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

LoadNetwork = Callable[[str, str], nn.Module]
DescribeNetwork = Callable[[str, str], dict[str, Any]]


class Head(nn.Module):
    """Base class of the heads: `forward` is all that a head must define.

    Its `__init__` takes `input_shape`, (D, F, T), and `num_classes`, then its options as keyword-only
    arguments. `models.build` notes all of them in `config`.
    """

    config: dict[str, Any]
    also: tuple[str, ...] = ()
    """kinds of the further views that its training batches need"""
    is_sklearn = False
    """is it fitted by scikit-learn, without epochs? (`sklearn_head.SklearnHead`)"""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of x (B, D, F, T).

        Args:
            mask: (B, T), True where a frame is real audio; None: all are.
        """
        raise NotImplementedError

    @classmethod
    def complete_options(cls, options: dict[str, Any], describe_network: DescribeNetwork) -> dict[str, Any]:
        """The options to build it with: with what the weights that they name say about the network, so that a
        checkpoint is built again without these. Default: as they are.

        Args:
            describe_network: describe_network(extractor, weights) gives the settings of a pretrained network,
                as plain JSON.
        """
        return options

    def load_pretrained(self, load: LoadNetwork) -> None:
        """Load the weights that the option `weights` names: called once before training, never when a head is
        rebuilt. Default: none.

        Args:
            load: load(extractor, weights) gives the pretrained network of an extractor, to be fine-tuned.
        """

    def scale_lr(self, parameter: str) -> float:
        """The factor of the learning rate for a parameter, by its name. Default: 1, all are trained alike."""
        return 1.0

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Compute statistics of the training set's (x, mask) into buffers: called once before training.
        Default: none."""

    @torch.no_grad()
    def set_prior(self, logits: Tensor, x: Tensor, mask: Tensor | None = None) -> None:
        """Start at the class prior: called once before training, after `adapt`, in evaluation mode.

        Default: it is added to the bias of the last layer, where at most a mean over time follows that. Heads
        without such a layer stay as they are.

        Args:
            logits: (num_classes,) of the class prior.
            x: (B, D, F, T), a few training clips, and mask (B, T): they show which bias is the last layer's.
        """
        before, step = self(x, mask).float(), torch.linspace(1, 2, len(logits), device=logits.device)
        if before.shape != (len(x), len(logits)):
            return  # training refuses such a head, and says why
        # Moved by a step, the bias of the last layer moves the logits by the same step: that finds it in any
        # head. It mostly comes last.
        for bias in reversed([p for p in self.parameters() if p.requires_grad and p.shape == logits.shape]):
            start = bias.clone()
            bias.add_(step)
            moved = self(x, mask).float() - before
            bias.copy_(start)
            if torch.allclose(moved, step.expand_as(moved), rtol=1e-2):
                bias.add_(logits)
                return

    def loss(self, batch: dict[str, Any], criterion: Callable[..., Tensor]) -> Tensor:
        """The loss of a batch, a scalar. Default: the criterion of the logits.

        Args:
            batch: "x", "mask" and the kinds of views in `also`, (B, D, F, T) each; "plain" and "plain_mask"
            are the
                clips before augmentation.
            criterion: criterion(logits) is the task's loss, criterion(logits, plain=True) the one against the
                labels before mixing.
        """
        return criterion(self(batch["x"], batch["mask"]))

    @classmethod
    def has_own_loss(cls) -> bool:
        """Does the head override `loss`?"""
        return cls.loss is not Head.loss

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The feature maps to plot, by name. Default: none, and every layer's output is plotted."""
        return {}

    def count_stored_values(self, rows: int) -> int:
        """Number of 4-byte values stored after training on this many rows. Default: the parameters."""
        return sum(parameter.numel() for parameter in self.parameters())
