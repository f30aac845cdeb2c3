"""Masked prediction: a head learns the sound of a data set before it learns its labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedPatches(nn.Module):
    """A transformer over patches tells from the patches that it sees what is in those that it does not.

    SimMIM's recipe (Xie et al. 2022): the hidden patches are replaced by one learned token, all go through
    the transformer, and a linear layer gives back their standardised content. Only the transformer is kept;
    the layer and the token are not.

    Args:
        head: a `TokenTransformer` over an image's patches; it is trained in place, all but its last layer.
        share: of the patches that are hidden.
    """

    def __init__(self, head: nn.Module, share: float = 0.5) -> None:
        super().__init__()
        self.head, self.share = head, share
        self.token = nn.Parameter(torch.zeros(head.position.shape[2]))
        self.decode = nn.Linear(head.position.shape[2], head.embed.weight[0].numel())

    def kept(self) -> dict[str, Tensor]:
        """What a fresh head of the same kind starts from: all but the last layer, which has learnt
        nothing."""
        return {name: value for name, value in self.head.state_dict().items() if not name.startswith("fc.")}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean squared error, a scalar, on the hidden patches that are real; which are hidden is drawn from
        torch's generator.

        Args:
            x: (B, D, F, T). mask: (B, T), True where real.
        """
        head = self.head
        x = head.input(x, mask)
        tokens, real = head.patches(x, mask)
        hidden = torch.rand(tokens.shape[:2]).to(x.device) < self.share
        tokens = torch.where(hidden[..., None], self.token.to(tokens.dtype), tokens)
        found = self.decode(
            head.transformer(
                head.dropout(tokens + head.position), src_key_padding_mask=None if real is None else ~real
            )
        )
        wanted = F.unfold(head.padded(x), head.patch, stride=head.patch).transpose(1, 2)
        asked = hidden if real is None else hidden & real
        return ((found.float() - wanted.float()).square().mean(2) * asked).sum() / asked.sum().clamp(min=1)
