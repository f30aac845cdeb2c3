"""Attention pooling by learned queries: what it computes, padding, an encoder's layers, and training where a
mean loses the sound."""

from __future__ import annotations

import json
from pathlib import Path

import made_cache
import numpy as np
import pytest
import torch
from conftest import refused, script

import models


def make(shape: tuple[int, int, int], seed: int = 0, **options) -> models.Head:
    """A head with random queries, in evaluation mode."""
    torch.manual_seed(seed)
    head = models.build("attentive", shape, 5, **{"queries": 4, "dim": 8, **options}).eval()
    torch.nn.init.normal_(head.query)
    return head


def test_it_is_attention_with_projections_of_keys_and_values():
    head = make((6, 2, 9))
    x = torch.randn(3, 6, 2, 9)
    tokens = head.compute_tokens(x)[0]
    assert tokens.shape == (3, 18, 6) and torch.equal(tokens[1, 9 + 4], x[1, :, 1, 4]), "a cell is a token"
    # each query as torch has it, with the values projected before the mean
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            query.expand(3, 1, 6), tokens, tokens @ value, scale=1.0
        )[:, 0]
        for query, value in zip(head.query, head.value, strict=True)
    ]
    torch.testing.assert_close(head(x), head.fc(head.norm(torch.cat(parts, 1))))


def test_queries_start_as_the_mean_and_part():
    torch.manual_seed(0)
    head = models.build("attentive", (6, 1, 9), 5, queries=4, dim=8, dropout=0.0)
    x = torch.randn(16, 6, 1, 9)
    torch.testing.assert_close(head(x), head(x.mean(3, keepdim=True).expand_as(x)))
    optimizer = torch.optim.SGD(head.parameters(), 0.5)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(x), torch.arange(16) % 5).backward()
        optimizer.step()
    assert torch.pdist(head.query.detach()).min() > 1e-3


@pytest.mark.parametrize("shape", [(6, 1, 9), (6, 3, 9), (1, 7, 9)])
@pytest.mark.parametrize("layers", [False, True])
def test_padding_counts_for_nothing(shape, layers):
    head = make(shape, layers=layers)
    head.adapt([(torch.randn(8, *shape) * 3 + 1, None)])
    x = torch.randn(2, *shape)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    want = head(x[1:, :, :, :4])
    for filling in (0.0, 1e4, float("nan")):
        padded = x.clone()
        padded[1, :, :, 4:] = filling
        torch.testing.assert_close(head(padded, mask)[1:], want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head(x, mask)[:1], head(x[:1]), rtol=1e-4, atol=1e-5)


def test_layers_are_weighted_by_a_softmax():
    head = make((6, 3, 9), layers=True)
    x = torch.randn(2, 6, 3, 9)
    torch.testing.assert_close(head.compute_tokens(x)[0], x.mean(2).transpose(1, 2))
    with torch.no_grad():
        head.layer_weights.copy_(torch.tensor([0.0, 30.0, 0.0]))
    torch.testing.assert_close(head.compute_tokens(x)[0], x[:, :, 1].transpose(1, 2))
    head(x).sum().backward()
    assert head.layer_weights.grad.abs().sum() > 0


def test_a_frame_of_a_spectrogram_is_a_token():
    head = make((1, 7, 9))
    x = torch.randn(2, 1, 7, 9)
    assert torch.equal(head.compute_tokens(x)[0], x[:, 0].transpose(1, 2))


@pytest.mark.parametrize("options", [{"queries": 0}, {"dim": 0}, {"queries": 3, "dim": 8}])
def test_wrong_sizes_are_refused(options):
    with pytest.raises(models.HeadError, match="queries divides dim"):
        make((6, 1, 9), **options)


def cues(folder: Path, clips: int = 240) -> Path:
    """A cache whose classes differ in one token of 40, in any place; its first number marks it."""
    random, labels = np.random.default_rng(0), np.arange(clips) % 3
    frames = random.normal(size=(clips, 12, 1, 40))
    frames[:, :4] = 0.0
    at = random.integers(0, 40, clips)
    frames[np.arange(clips), 0, 0, at] = 4.0
    frames[np.arange(clips), 4:, 0, at] = 0.0
    frames[np.arange(clips), 4 + labels, 0, at] = 1.5
    made_cache.make(folder, {"frames": (12, 1, 40)}, clips, train={"frames": frames.astype(np.float16)})
    return folder


@pytest.mark.slow
def test_it_finds_what_a_mean_loses_and_goes_on_after_a_stop(tmp_path):
    cache, found = cues(tmp_path / "data" / "cues" / "made"), {}
    flags = ("--features", cache, "--device", "cpu", "--no-report")
    for name, recipe, options in (
        ("linear", "linear", ()),
        ("deviation", "linear", ("--head.pool", "mean_std")),
        ("attentive", "attentive", ("--epochs", "60")),
    ):
        script("train.py", *flags, "--recipe", recipe, *options, "--name", name, cwd=tmp_path)
        found[name] = json.loads((tmp_path / "runs" / name / "scores.json").read_text())["last"]["f1_macro"]
    assert found["attentive"] > 0.9 > 0.6 > max(found["linear"], found["deviation"]), found
    again = ("train.py", *flags, "--recipe", "attentive", "--epochs", "60", "--name", "stopped")
    script(*again, "--max-hours", "0.0000001", cwd=tmp_path)
    assert not (tmp_path / "runs" / "stopped" / "oof.csv").exists()
    script(*again, cwd=tmp_path)
    whole, stopped = (
        (tmp_path / "runs" / name / "oof_last.csv").read_bytes() for name in ("attentive", "stopped")
    )
    assert whole == stopped
    line = refused(
        script("train.py", *flags, "--recipe", "attentive", "--head.queries", "5", cwd=tmp_path, ok=None)
    )
    assert "queries divides dim" in line
