"""The token transformer: its patches, its tokens, and what it can learn that a statistic over time cannot."""

from __future__ import annotations

import torch
from test_itmo import TOKENS, build
from torch.nn import functional as F

import models
from models.token_transformer import choose_patch


def test_choose_patch():
    assert choose_patch((1, 128, 1024)) == (16, 32) and choose_patch((1, 64, 250)) == (16, 16)
    assert choose_patch((768, 1, 101)) == (1, 1) and choose_patch((768, 12, 101)) == (1, 8)
    assert choose_patch((384, 4, 16)) == (1, 1) and choose_patch((1, 1, 22050)) == (1, 128)
    assert choose_patch((2, 300, 1)) == (2, 1)


def test_tokens_of_a_vector_and_of_an_image():
    vector = build("token_transformer", (24, 1, 1), **TOKENS)
    assert vector.grid == (4, 1) and vector.embed.weight.shape == (4 * 16, 6, 1)
    image = build("token_transformer", (3, 5, 11), patch=(2, 4), **TOKENS)
    assert image.grid == (3, 3)
    # Two frames of the second column of patches are real, so it is attended to; the third is not.
    x, mask = torch.randn(1, 3, 5, 11), torch.arange(11)[None] < 6
    heard = []
    image.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: heard.append(kwargs), with_kwargs=True
    )
    image.eval()(x, mask)
    assert (~heard[0]["src_key_padding_mask"]).tolist() == [[True, True, False] * 3]


def test_tokens_learn_what_comes_first():
    """Which of two patterns comes first: no linear layer on statistics over time can tell."""
    generator = torch.Generator().manual_seed(0)

    def data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, label = 0.3 * torch.randn(count, 4, 1, 6, generator=generator), torch.arange(count) % 2
        for i in range(count):
            first, second = torch.randperm(6, generator=generator)[:2].sort().values
            x[i, 0, 0, first if label[i] else second] += 2
            x[i, 1, 0, second if label[i] else first] += 2
        return x, label

    torch.manual_seed(0)
    head = models.build("token_transformer", (4, 1, 6), 2, **dict(TOKENS, dim=32, layers=2, dropout=0.0))
    (x, y), (other, truth) = data(512), data(256)
    head.adapt([(x, None)])
    optimiser = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for step in range(150):
        batch = torch.arange(64) + 64 * (step % 8)
        optimiser.zero_grad()
        F.cross_entropy(head(x[batch]), y[batch]).backward()
        optimiser.step()
    with torch.no_grad():
        assert (head.eval()(other).argmax(1) == truth).float().mean() > 0.9
