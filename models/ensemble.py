"""Several heads in one: trained side by side on the same batches, each with its own loss, then averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import HeadError, build, complete_options, get_needs, register
from .head import DescribeNetwork, Head, LoadNetwork


def find_needs(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the members' weights require of the view."""
    members = [member for member in options.get("members") or () if isinstance(member, dict)]
    return {
        key: value
        for member in members
        if "name" in member
        for key, value in get_needs(member["name"], member).items()
    }


@register(
    "ensemble",
    kinds=("spectrogram", "sequence", "grid", "vector", "waveform"),
    about="several heads trained side by side, their logits averaged (deep ensemble)",
    needs=find_needs,
)
class Ensemble(Head):
    """Members train on the same batches, each with its own loss; the output is the mean of their logits.

    A loss on the mean would let members rely on each other; trained apart, they make different errors
    (Lakshminarayanan et al. 2017). The mean of logits is the geometric mean of the probabilities.

    Args:
        input_shape: (D, F, T).
        num_classes: width of the logits.
        members: a list of heads with their options, [{name: audio_cnn, dropout: 0.2}, {name: functionals,
            augment: false}]; a member with `augment: false` trains on the clips without masks or mixing.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        members: tuple[Any, ...] = ({"name": "functionals", "augment": False}, {"name": "audio_cnn"}),
    ) -> None:
        super().__init__()
        heads = []
        for member in members:
            if not isinstance(member, dict) or "name" not in member:
                raise HeadError(
                    f"ensemble: a member is written {{name: HEAD, option: value}}, not {member!r}"
                )
            options = {key: value for key, value in member.items() if key not in ("name", "augment")}
            if {"input_shape", "num_classes"} & set(options) or not isinstance(
                member.get("augment", True), bool
            ):
                raise HeadError(
                    "ensemble: shape and classes follow from the features, and augment is true or false: "
                    f"not {member!r}"
                )
            heads.append(build(member["name"], input_shape, num_classes, **options))
            if heads[-1].also or heads[-1].has_own_loss():
                raise HeadError(f"ensemble: {member['name']} has a loss of its own, so it cannot be a member")
        if not heads:
            raise HeadError("ensemble: there are no members")
        self.heads = nn.ModuleList(heads)
        self.augmented = [member.get("augment", True) for member in members]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean logits (B, num_classes) of x (B, D, F, T); mask (B, T) True where real."""
        return torch.stack([head(x, mask) for head in self.heads]).mean(0)

    def loss(self, batch: dict[str, Any], criterion: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean of the members' own losses."""
        losses = [
            criterion(head(batch["x"], batch["mask"]))
            if augmented
            else criterion(head(batch["plain"], batch["plain_mask"]), plain=True)
            for head, augmented in zip(self.heads, self.augmented, strict=True)
        ]
        return torch.stack(losses).mean()

    @classmethod
    def complete_options(cls, options: dict[str, Any], describe_network: DescribeNetwork) -> dict[str, Any]:
        """See `Head.complete_options`; each member's own."""
        members = options.get("members")
        if not isinstance(members, (list, tuple)):
            return options
        completed = [
            complete_options(member["name"], member, describe_network)
            if isinstance(member, dict) and "name" in member
            else member
            for member in members
        ]
        return {**options, "members": completed}

    def scale_lr(self, parameter: str) -> float:
        """See `Head.scale_lr`; each member's own."""
        _, number, name = parameter.split(".", 2)
        return self.heads[int(number)].scale_lr(name)

    def load_pretrained(self, load: LoadNetwork) -> None:
        """Load the members' pretrained weights."""
        for head in self.heads:
            head.load_pretrained(load)

    def set_prior(self, logits: Tensor, x: Tensor, mask: Tensor | None = None) -> None:
        """Start each member at the class prior."""
        for head in self.heads:
            head.set_prior(logits, x, mask)

    def adapt(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Compute the members' statistics of the training set."""
        batches = list(batches)
        for head in self.heads:
            head.adapt(batches)
