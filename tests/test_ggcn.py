"""ConvNeXt-GGCN: the published size, the graph of one clip's tokens, masks, and its two recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, make_competition

import get_features
import models
import train
from models.convnext_ggcn import fit_grid
from models.graph import GraphConv, TokenGraph, find_neighbours, normalise_adjacency
from models.maps import halve_window, pool_to_grid, resize_mask

SMALL = dict(
    depths=(1, 1), dims=(8, 12), kernel=5, attention=8, heads=2, graph=6, k=3, hidden=(8,), layer_scale=1.0
)


def small(shape=(1, 16, 40), **options) -> torch.nn.Module:
    torch.manual_seed(0)
    head = models.build("convnext_ggcn", shape, 4, **{**SMALL, **options})
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head.eval()


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- as published
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes, parameters", [(2, 30_770_528), (50, 30_776_720)])
def test_the_published_size(classes, parameters):
    with torch.device("meta"):
        head = models.build("convnext_ggcn", (1, 64, 250), classes)
        tokens, real = head.eval().compute_tokens(torch.zeros(1, 1, 64, 250))
    assert count(head) == parameters
    assert [count(part) for part in (head.backbone, head.attention, head.graph)] == [
        28_437_726,
        1_838_592,
        198_144,
    ]
    assert tokens.shape == (1, 60, 768) and real is None


def test_the_published_start():
    head = models.build("convnext_ggcn", (1, 64, 250), 2, dims=(96, 8, 8, 8), depths=(3, 1, 1, 1))
    blocks = [module for module in head.backbone if hasattr(module, "dwconv")]
    assert all(torch.equal(block.scale.gamma, torch.full_like(block.scale.gamma, 1e-6)) for block in blocks)
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks] == pytest.approx(
        [0, 0.02, 0.04, 0.06, 0.08, 0.1]
    )
    assert (
        blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
        and not blocks[0].mlp.fc1.bias.any()
    )
    assert blocks[0].dwconv.kernel_size == blocks[-1].dwconv.kernel_size == (9, 9)
    assert [m.eps for m in head.backbone if type(m).__name__ == "LayerNorm2d"] == [1e-5, 1e-6, 1e-6, 1e-6]
    plain = models.build("convnext_ggcn", (1, 16, 20), 2, **{**SMALL, "layer_scale": 0})
    assert not any("gamma" in name for name, _ in plain.named_parameters())


# --- the graph
# --------------------------------------------------------------------------------------------------------


def test_neighbours_are_scikit_learns():
    from sklearn.neighbors import kneighbors_graph

    x = torch.randn(3, 20, 7, generator=torch.Generator().manual_seed(0))
    found = find_neighbours(x, 4).numpy()
    for clip, edges in zip(x.numpy(), found, strict=True):
        directed = kneighbors_graph(clip, 4).toarray() > 0
        assert np.array_equal(edges, directed | directed.T)


def test_nobody_is_joined_to_padding():
    x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, 3:] = False
    edges = find_neighbours(x, 5, real)
    assert torch.equal(edges[0], find_neighbours(x[:1], 5)[0])
    assert torch.equal(edges[1, :3, :3], ~torch.eye(3, dtype=torch.bool))  # fewer others than k: all of them
    assert not edges[1, 3:].any() and not edges[1, :, 3:].any()
    assert find_neighbours(x[:, :1], 5).tolist() == [[[False]], [[False]]]


def test_equal_tokens_have_a_graph_of_their_own_order():
    x = torch.zeros(1, 6, 4)
    edges = find_neighbours(x, 2)
    assert torch.equal(edges, find_neighbours(x + 1e-5 * torch.randn(1, 6, 4), 2))
    assert edges[0, 5].nonzero().flatten().tolist() == [0, 1]


def test_graph_convolution_is_kipf_and_wellings():
    torch.manual_seed(0)
    x, conv = torch.randn(1, 5, 3), GraphConv(3, 2)
    edges = find_neighbours(x, 2)
    loops = edges[0].double().numpy() + np.eye(5)
    scale = np.diag(loops.sum(1) ** -0.5)
    weight = conv.linear.weight.detach().double().numpy().T
    want = scale @ loops @ scale @ x[0].double().numpy() @ weight + conv.bias.detach().numpy()
    np.testing.assert_allclose(conv(x, normalise_adjacency(edges))[0].detach().numpy(), want, atol=1e-6)


def test_residual_from_the_second_layer_on():
    torch.manual_seed(0)
    graph = TokenGraph(3, 4, 3, 2, 0.0).eval()
    x = torch.randn(2, 6, 3)
    with torch.no_grad():
        graph.norms[0].weight.zero_()
        assert not graph.norms[0].bias.any()
        for norm in graph.norms[1:]:
            norm.weight.zero_()
            norm.bias.fill_(1.0)
        twice = 2 * torch.nn.functional.gelu(torch.tensor(1.0))
        assert torch.allclose(graph(x), twice.expand(2, 6, 4))


def test_a_clip_is_predicted_alone():
    head = small()
    generator = torch.Generator().manual_seed(3)
    clip, near = (
        torch.randn(1, 1, 16, 40, generator=generator),
        torch.randn(4, 1, 16, 40, generator=generator),
    )
    with torch.no_grad():
        alone = head(clip)
        beside_copies = head(torch.cat([clip, clip + 1e-3 * near]))[:1]
        beside_others = head(torch.cat([clip, 50 * near + 20]))[:1]
        other = head(near[:1])
    assert torch.allclose(alone, beside_copies, atol=1e-5) and torch.allclose(alone, beside_others, atol=1e-5)
    assert not torch.allclose(alone, other, atol=1e-3)


# --- maps and masks
# ---------------------------------------------------------------------------------------------------


def test_halving_drops_the_odd_one_and_stops_at_one():
    assert halve_window((64, 125)) == ((2, 2), (2, 2), (0, 0), (32, 62))
    assert halve_window((1, 3)) == ((1, 2), (1, 2), (0, 0), (1, 1))
    assert halve_window((3, 9), 4).out == (1, 2)


def test_frames_of_a_dropped_cell_count_for_the_last():
    mask = torch.zeros(3, 11, dtype=torch.bool)
    mask[0, :5] = mask[1, 10:] = True
    mask[2] = True
    assert resize_mask(mask, 4, 2).tolist() == [[True, True], [False, True], [True, True]]
    assert resize_mask(None, 4, 2) is None


def test_to_grid_averages_real_frames_only():
    x = torch.arange(12.0).view(1, 1, 2, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]]).bool()
    pooled, real = pool_to_grid(x.masked_fill(~mask, float("nan")), mask, (1, 3))
    assert real.tolist() == [[True, True, False]]
    assert pooled.flatten().tolist() == pytest.approx([(0 + 1 + 6 + 7) / 4, (2 + 8) / 2, 0])
    plain, none = pool_to_grid(x, None, (2, 3))
    full, _ = pool_to_grid(x, torch.ones_like(mask), (2, 3))
    assert none is None and torch.allclose(plain, full) and pool_to_grid(x, mask, (2, 6))[0] is x


@pytest.mark.parametrize(
    "rows, columns, most, want",
    [
        (4, 15, 512, (4, 15)),
        (8, 64, 512, (8, 64)),
        (1, 13781, 512, (1, 512)),
        (8, 200, 512, (4, 128)),
        (300, 2, 100, (100, 1)),
        (9, 9, 1, (1, 1)),
    ],
)
def test_the_grid_of_tokens_is_bounded(rows, columns, most, want):
    found = fit_grid(rows, columns, most)
    assert found == want and found[0] * found[1] <= max(most, 1) and found[0] <= rows and found[1] <= columns


@pytest.mark.parametrize("shape", [(1, 16, 41), (3, 1, 1), (3, 1, 2), (2, 1, 700), (1, 130, 5)])
def test_any_shape_and_one_token(shape):
    head = small(shape, max_tokens=20).train()
    x = torch.randn(2, *shape)
    mask = torch.ones(2, shape[2], dtype=torch.bool)
    mask[1, (shape[2] + 1) // 2 :] = False
    logits = head(x, mask)
    logits.square().sum().backward()
    assert logits.shape == (2, 4) and all(
        p.grad is not None and p.grad.isfinite().all() for p in head.parameters()
    )
    assert head.compute_tokens(x)[0].shape[1] <= 20


def test_a_clip_that_lies_in_the_dropped_frames_has_logits():
    head = small((1, 16, 43))
    mask = torch.zeros(1, 43, dtype=torch.bool)
    mask[0, 42] = True
    assert head(torch.randn(1, 1, 16, 43), mask).isfinite().all()


@pytest.mark.parametrize(
    "options, word",
    [
        (dict(depths=(1,), dims=(8, 8)), "as long as"),
        (dict(kernel=4), "odd"),
        (dict(attention=10, heads=4), "multiple"),
        (dict(dropout=1.0), "probabilities"),
        (dict(k=0), "whole numbers"),
        (dict(hidden=(0,)), "whole numbers"),
    ],
)
def test_wrong_options_are_named(options, word):
    with pytest.raises(models.HeadError, match=word) as caught:
        models.build("convnext_ggcn", (1, 16, 40), 4, **{**SMALL, **options})
    assert "\n" not in str(caught.value)


# --- the recipes
# ------------------------------------------------------------------------------------------------------


def test_scratch_shares_small_cnns_cache():
    ours, theirs = (
        yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())["features"]
        for name in ("convnext_ggcn_scratch", "small_cnn")
    )
    assert ours == theirs


@pytest.mark.slow
def test_both_recipes_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    make_competition(tmp_path / "tones", classes=2, train=4, subm=1, seconds=0.6)
    tiny = (
        "--head.depths",
        "1,1",
        "--head.dims",
        "8,12",
        "--head.attention",
        "8",
        "--head.heads",
        "2",
        "--head.graph",
        "6",
        "--head.hidden",
        "[8]",
        "--epochs",
        "1",
        "--folds",
        "2",
    )
    for recipe, cache in (("convnext_ggcn", "convnext_ggcn"), ("convnext_ggcn_scratch", "small_cnn")):
        get_features.main(["--competition", "tones", "--recipe", recipe, "--workers", "1"])
        assert (tmp_path / "data" / "tones" / cache / "train.pkl").is_file()
        train.main(["--recipe", recipe, *tiny])
        assert "submission.csv: 2 rows" in capsys.readouterr().out
