"""ITMO's transformer over a single token: the same function, gradients and dropout as torch's, without
queries and keys."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import models
from models.inception_transformer import isolate_clips

SIZES = dict(widths=(8, 12), reduce=4, d_model=16, layers=2, heads=4, feedforward=24)


def encoder(dropout: float, layers: int = 3) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    made = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 48, dropout, batch_first=True), layers, enable_nested_tensor=False
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)  # biases are zero at birth
    return made


def ours(whole: nn.TransformerEncoder, x: torch.Tensor) -> torch.Tensor:
    for layer in whole.layers:
        x = isolate_clips(layer, x)
    return x


@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_torchs(training):
    theirs = encoder(0.0).train(training)
    mine, x = copy.deepcopy(theirs), torch.randn(7, 32)
    want, found = theirs(x[:, None])[:, 0], ours(mine, x)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)
    want.square().sum().backward()
    found.square().sum().backward()
    for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)
    dead = mine.layers[0].self_attn.in_proj_weight.grad[:64]
    assert torch.equal(dead, torch.zeros_like(dead)), (
        "gradients of zero, not none: weight decay and moments go on as ever"
    )


def test_dropout_drops_whole_heads_as_torch_does():
    """With all other dropout off, what attention adds is a sum over heads, each kept with the same chance and
    weight."""
    layer = encoder(0.3, 1).layers[0].train()
    for name in ("dropout", "dropout1", "dropout2"):
        getattr(layer, name).p = 0.0
    layer.norm1, layer.norm2 = nn.Identity(), nn.Identity()
    nn.init.zeros_(layer.linear2.weight), nn.init.zeros_(layer.linear2.bias)
    x, count = torch.randn(1, 32), 4000
    many = x.expand(count, 32)
    values = nn.functional.linear(x, layer.self_attn.in_proj_weight[64:], layer.self_attn.in_proj_bias[64:])
    heads = torch.stack(
        [
            layer.self_attn.out_proj.weight[:, 8 * h : 8 * h + 8] @ values[0, 8 * h : 8 * h + 8]
            for h in range(4)
        ]
    )
    with torch.no_grad():
        for found in (isolate_clips(layer, many), layer(many[:, None])[:, 0]):
            added = found - x - layer.self_attn.out_proj.bias
            shares = torch.linalg.lstsq(heads.T, added.T).solution.T * 0.7  # 0 or 1 of each head
            torch.testing.assert_close(shares, shares.round(), atol=1e-3, rtol=0)
            assert (shares.round().mean(0) - 0.7).abs().max() < 0.03 and len(
                shares.round().unique(dim=0)
            ) == 16


def test_the_head_is_what_it_was():
    torch.manual_seed(0)
    head = models.build("inception_transformer", (24, 1, 1), 3, **SIZES).eval()
    assert "transformer.layers.0.self_attn.in_proj_weight" in head.state_dict()
    caught, x = [], torch.randn(5, 24, 1, 1)
    head.project.register_forward_hook(lambda module, args, out: caught.append(out))
    with torch.no_grad():
        found = head(x)
        want = head.fc(head.transformer(caught[0].relu()[:, None])[:, 0])
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)
