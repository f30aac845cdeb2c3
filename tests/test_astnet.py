"""AST's own pass against transformers' (full width, two layers), and the short-clip mode."""

from __future__ import annotations

import numpy as np
import pytest
from test_ast import tiny_ast
from waves import synthetic, window

from earshot.extractors import ast, ast_fast, base


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import ASTConfig, ASTModel

    torch.manual_seed(0)
    network = ASTModel(ASTConfig(num_hidden_layers=2)).eval().requires_grad_(False)
    # all zero at birth, which would hide a wrong place
    network.embeddings.position_embeddings.normal_(std=0.5)
    return network


def test_the_pass_is_transformers(model):
    import torch

    mel = torch.randn(2, 1024, 128, generator=torch.Generator().manual_seed(1))
    mine = ast_fast.Network(model, 101)
    with torch.inference_mode():
        want = model(mel)
        full, special = mine(mel, torch.float32), mine(mel, torch.float32, patches=False)
        half = mine(mel, torch.bfloat16)
    assert (full - want.last_hidden_state).abs().max() < 1e-4 and special.shape == (2, 2, 768)
    assert (special.mean(1) - want.pooler_output).abs().max() < 1e-4
    similar = torch.nn.functional.cosine_similarity
    frames, plain = (
        t[:, 2:].unflatten(1, (12, 101)).mean(1).flatten(1) for t in (half, want.last_hidden_state)
    )
    assert (
        similar(half[:, :2].mean(1), want.pooler_output).min() > 0.999
        and similar(frames, plain).min() > 0.999
    )


def test_fewer_columns_keep_their_places(model):
    """The same as transformers' network built for 496 frames with the first 49 columns of the position
    embedding."""
    import torch
    from transformers import ASTConfig, ASTModel

    state = dict(model.state_dict())
    position = state["embeddings.position_embeddings"]
    grid = position[:, 2:].reshape(1, 12, 101, 768)[:, :, :49].reshape(1, -1, 768)
    state["embeddings.position_embeddings"] = torch.cat([position[:, :2], grid], dim=1)
    small = ASTModel(ASTConfig(num_hidden_layers=2, max_length=496)).eval()
    small.load_state_dict(state)
    mel = torch.randn(1, 498, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want = small(mel[:, :496]).last_hidden_state
        assert (ast_fast.Network(model, 49)(mel, torch.float32) - want).abs().max() < 1e-4


def test_an_unknown_structure_takes_its_own_pass(tmp_path, monkeypatch):
    tiny_ast(tmp_path)
    made = []
    for _ in range(2):
        extractor = ast.Extractor(ast.Settings(), window(1.28, 16000), weights=str(tmp_path))
        made.append(extractor.extract([synthetic(1.28, 16000)], [0.0], 1)[0].views)
        monkeypatch.setattr(ast_fast, "NAMES", {**ast_fast.NAMES, "up": ("mlp.renamed", "renamed")})
    assert extractor.network is None
    for view in made[0]:
        np.testing.assert_allclose(
            made[0][view].astype(np.float32), made[1][view].astype(np.float32), atol=4e-3
        )


@pytest.mark.parametrize("seconds, columns", [(1.28, 10), (0.64, 4), (0.1, 1)])
def test_short_clips(tmp_path, seconds, columns):
    tiny_ast(tmp_path)
    views = ("pooled", "frames", "tokens")
    extractor = ast.Extractor(ast.Settings(views, True), window(seconds, 16000), weights=str(tmp_path))
    assert extractor.grid == (5, columns) and extractor.span == seconds
    waves = [synthetic(seconds, 16000), synthetic(seconds / 2, 16000)]
    short = extractor.extract(waves, [0.0, 0.0], 2)
    assert short[0].views["tokens"].shape == (1, 32, 5, columns)
    if seconds == 1.28:  # nothing is left out of a full window
        plain = ast.Extractor(ast.Settings(views), window(seconds, 16000), weights=str(tmp_path)).extract(
            waves, [0.0, 0.0], 2
        )
        for mine, full in zip(short, plain, strict=True):
            for view in views:
                np.testing.assert_array_equal(mine.views[view], full.views[view])


def test_records_without_short_clips_stay_what_they_were():
    assert base.to_record(ast.Settings()) == {"views": ("pooled", "frames")}
    assert base.to_record(ast.Settings(short_clips=True)) == {
        "views": ("pooled", "frames"),
        "short_clips": True,
    }
    assert (
        ast.Extractor.get_default_seconds(ast.Settings()) == 10.24
        and ast.Extractor.get_default_seconds(ast.Settings(short_clips=True)) is None
    )
