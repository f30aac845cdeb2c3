"""ITMO's network, the token transformer that it should have been, and AST as a head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import make_competition, read_csv
from safetensors.torch import load_file
from torch.nn import functional as F

import get_features
import models
import train
from earshot import extractors
from earshot.core.config import load_recipe
from earshot.core.errors import UserError
from models.inception_transformer import InceptionBlock, find_square_grid

ITMO = dict(widths=(8, 12), reduce=4, d_model=16, layers=1, heads=2, feedforward=24)
TINY = dict(hidden_size=24, layers=2, heads=2, intermediate=32)
BELOW = dict(ITMO, ast=True, **{f"ast_{key}": value for key, value in TINY.items()})
TOKENS = dict(dim=16, layers=1, heads=2, feedforward=24)
BINS, FRAMES = 128, 96  # of the tiny pretrained AST


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A tiny AST with positions that differ, saved as the published one is."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_length=FRAMES
    )
    network = ASTModel(config)
    torch.nn.init.normal_(network.embeddings.position_embeddings, std=0.5)  # all zero at birth
    network.save_pretrained(folder)
    ASTFeatureExtractor(max_length=FRAMES).save_pretrained(folder)
    return folder


def published(folder: Path) -> torch.nn.Module:
    from transformers import ASTModel

    return ASTModel.from_pretrained(folder).eval()


def build(name: str, shape: tuple[int, int, int], **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(name, shape, 3, **options)


# --- as published


def test_published_sizes():
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    from transformers import ASTModel  # noqa: F401 - imported under "meta", torchaudio's constants would be on it

    with torch.device("meta"):
        head = models.build("inception_transformer", (768, 1, 1), 41)
        whole = models.build("inception_transformer", (1, 128, 1024), 41, ast=True)
        ast = models.build("ast", (1, 128, 1024), 50)
    assert [count(block) for block in head.blocks] == [4_488, 338_192, 1_348_128, 4_012_848]
    assert (count(head.reduce), count(head.norm), count(head.project)) == (196_864, 393_216, 100_663_808)
    assert (count(head.transformer), count(head.fc)) == (37_828_608, 21_033)
    assert head.size == head.grid == (24, 32) and whole.size == (24, 32)
    assert count(head) == 144_807_185 and count(whole) == 230_994_449
    assert count(ast) == 86_187_264 + 2 * 768 + 768 * 50 + 50


def test_square_grid():
    assert [find_square_grid(n) for n in (768, 384, 960, 127, 1)] == [
        (24, 32),
        (16, 24),
        (30, 32),
        (1, 127),
        (1, 1),
    ]


def test_a_vector_is_the_image_of_its_grid():
    vector, image = (
        build("inception_transformer", (24, 1, 1), **ITMO),
        build("inception_transformer", (1, 4, 6), **ITMO),
    )
    image.load_state_dict(vector.state_dict())
    x = torch.randn(3, 24, 1, 1)
    with torch.no_grad():
        assert torch.allclose(vector.eval()(x), image.eval()(x.reshape(3, 1, 4, 6)), atol=1e-6)


def test_block_is_its_formula():
    torch.manual_seed(0)
    block = InceptionBlock(3, 32, (6, 7))
    for _ in range(3):
        block(torch.randn(4, 3, 6, 7), None)  # moves the running statistics away from the identity
    block.eval()
    x = torch.randn(2, 3, 6, 7)

    def bn(x: torch.Tensor, norm: torch.nn.BatchNorm2d) -> torch.Tensor:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    def branch(x: torch.Tensor, index: int, at: int, padding: int) -> torch.Tensor:
        conv, norm = block.branches[index][at], block.branches[index][at + 1]
        assert conv.kernel_size == (2 * padding + 1,) * 2
        return bn(F.conv2d(x, conv.weight, conv.bias, padding=padding), norm).relu()

    with torch.no_grad():
        parts = [
            branch(x, 0, 0, 0),
            branch(x, 1, 0, 2),
            branch(x, 2, 0, 1),
            branch(F.avg_pool2d(x, 3, 1, 1), 3, 1, 0),
        ]
        shortcut = bn(F.conv2d(x, block.shortcut[0].weight, block.shortcut[0].bias), block.shortcut[1])
        y = torch.cat(parts, dim=1) + shortcut
        gate = block.gate[2](block.gate[0](y.mean((2, 3))).relu()).sigmoid()
        assert gate.shape == (2, 32) and block.gate[0].out_features == 2
        assert torch.allclose(block(x, None), bn(y * gate[:, :, None, None], block.norm).relu(), atol=1e-5)


def test_images_are_averaged_to_the_grid():
    head = build("inception_transformer", (2, 9, 50), grid=(4, 6), **ITMO)
    assert head.grid == (4, 6) and head.project.in_features == 4 * 4 * 6
    assert build("inception_transformer", (8, 1, 101), **ITMO).grid == (1, 32)  # no more cells than there are
    x, mask = torch.randn(1, 2, 9, 50), torch.arange(50)[None] < 20
    with torch.no_grad():
        some, whole = head.eval()(x, mask), head(x)
        assert not torch.allclose(some, whole, atol=1e-4)
        mask[0, 20:] = True
        assert torch.allclose(head(x, mask), whole, atol=1e-5)


# --- AST below and AST alone


@pytest.mark.parametrize("name, options", [("ast", TINY), ("inception_transformer", BELOW)])
def test_load_pretrained_is_transformers(weights, name, options):
    head = build(name, (1, BINS, FRAMES), weights=str(weights), **options).eval()
    x = torch.randn(2, 1, BINS, FRAMES)
    heard = []
    (head.norm if name == "ast" else head.blocks[0]).register_forward_pre_hook(
        lambda module, inputs: heard.append(inputs[0])
    )
    with torch.no_grad():
        head(x)
        head.load_pretrained(extractors.load_network)
        head(x)
        want = published(weights)(x[:, 0].transpose(1, 2)).pooler_output
    assert torch.allclose(heard[1].reshape(2, 24), want, atol=1e-5)
    assert not torch.allclose(heard[0].reshape(2, 24), want, atol=0.1)
    if name != "ast":
        assert heard[1].shape == (2, 1, 4, 6)


def test_fewer_frames_keep_their_positions(weights):
    head = build("ast", (1, BINS, 46), weights=str(weights), **TINY)
    head.load_pretrained(extractors.load_network)
    mine, theirs = (network.embeddings.position_embeddings[0] for network in (head.ast, published(weights)))
    assert torch.equal(mine[:2], theirs[:2])
    # 12 rows of 4 columns of patches, out of 12 rows of 9
    assert torch.equal(mine[2:].unflatten(0, (12, 4)), theirs[2:].unflatten(0, (12, 9))[:, :4])


@pytest.mark.parametrize(
    "name, options", [("ast", TINY), ("inception_transformer", dict(BELOW, dropout=0.0))]
)
def test_checkpointing_changes_no_gradient(name, options):
    x, found = torch.randn(3, 1, 32, 40), []
    for checkpointing in (True, False):
        head = build(name, (1, 32, 40), gradient_checkpointing=checkpointing, **options).train()
        again = []
        norm = next(
            module for module in layers_of(head.ast)[0].modules() if isinstance(module, torch.nn.LayerNorm)
        )
        norm.register_forward_pre_hook(lambda module, inputs, again=again: again.append(1))
        F.cross_entropy(head(x), torch.tensor([0, 1, 2])).backward()
        assert len(again) == (2 if checkpointing else 1)
        found.append({key: p.grad for key, p in head.named_parameters()})
    assert all(torch.allclose(found[0][key], found[1][key], atol=1e-6) for key in found[1])


def layers_of(network):
    """AST's layers, which transformers names differently from release to release."""
    return network.layers if hasattr(network, "layers") else network.encoder.layer


def test_freeze_leaves_the_lower_layers():
    head = build("ast", (1, 32, 40), freeze=1, **TINY).train()
    F.cross_entropy(head(torch.randn(2, 1, 32, 40)), torch.tensor([0, 1])).backward()
    still = {
        key.replace(".encoder.layer.", ".layers.") for key, p in head.named_parameters() if p.grad is None
    }
    still = {".".join(key.split(".")[:3]) for key in still}
    assert "ast.layers.0" in still and all(
        key == "ast.layers.0" or key.startswith("ast.embeddings.") for key in still
    ), still


def test_ast_keeps_its_config_and_rebuilds(weights):
    head = build("ast", (1, 32, 40), weights="never/read-on-rebuilding", **TINY).eval()
    again = models.rebuild(json.loads(json.dumps(head.config)))
    again.load_state_dict(head.state_dict())
    x = torch.randn(1, 1, 32, 40)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), head(x))


def test_weights_that_do_not_fit(weights, tmp_path, monkeypatch):
    def refused(match: str, shape=(1, BINS, FRAMES), folder=weights, **options) -> None:
        with pytest.raises(models.HeadError, match=match) as error:
            build("ast", shape, weights=str(folder), **{**TINY, **options}).load_pretrained(
                extractors.load_network
            )
        assert "\n" not in str(error.value)

    refused("have hidden_size 24, the head 32: set its option hidden_size to 24", hidden_size=32)
    refused("have num_hidden_layers 2, the head 1: set its option layers to 2", layers=1)
    refused("num_mel_bins 128, the head 64: extract with --extractor fbank", shape=(1, 64, FRAMES))
    refused(
        "take 96 frames, the view has 106: extract with --max-length 96 --seconds 0.96", shape=(1, BINS, 106)
    )
    refused("no such folder", folder=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    refused("cannot be loaded.*go online once", folder=tmp_path / "empty")
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no\nroute")),
    )
    refused(
        "not here and the hub doesn't give them.*no route.*--head.weights FOLDER.*another head",
        folder="nobody/no-such-model",
    )


# --- what is refused


@pytest.mark.parametrize(
    "call, parts",
    [
        (("inception_transformer", (768, 1, 1), dict(widths=(6,))), ["widths", "multiples of 4"]),
        (("inception_transformer", (768, 1, 1), dict(grid=(3,))), ["grid", "(3,)"]),
        (("inception_transformer", (768, 1, 1), dict(d_model=10)), ["heads divides d_model", "10 by 8"]),
        (("inception_transformer", (768, 1, 1), dict(weights="a/b")), ["weights is of AST", "ast true"]),
        (
            ("inception_transformer", (768, 1, 1), dict(ast=True)),
            ["one channel", "(768, 1, 1)", "--extractor fbank"],
        ),
        (("ast", (1, 128, 15), {}), ["16 frames"]),
        (("ast", (1, 128, 64), dict(hidden_size=10)), ["10 by 12"]),
        (("ast", (1, 128, 64), dict(freeze=13)), ["freeze", "0 to 12"]),
        (("token_transformer", (8, 1, 9), dict(patch=(0, 1))), ["patch", "(0, 1)"]),
        (("token_transformer", (8, 1, 9), dict(dim=10)), ["heads divides dim", "10 by 4"]),
    ],
)
def test_options_that_are_refused(call, parts):
    name, shape, options = call
    with pytest.raises(models.HeadError) as error:
        models.build(name, shape, 3, **options)
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


# --- the recipes, by the scripts


def flags(**options: object) -> list[str]:
    words = {
        key: json.dumps(list(value)) if isinstance(value, tuple) else str(value)
        for key, value in options.items()
    }
    return [word for key, value in words.items() for word in (f"--head.{key}", value)]


@pytest.fixture(scope="module")
def caches(tmp_path_factory, weights) -> Path:
    """A folder with data/tones/: what the recipes extract, in windows of 0.96 s."""
    folder = tmp_path_factory.mktemp("itmo")
    data = make_competition(folder / "tones", train=4, subm=1)
    common = [
        "--competition",
        str(data),
        "--seconds",
        "0.96",
        "--max-windows",
        "1",
        "--out",
        str(folder / "data"),
    ]
    get_features.main([*common, "--recipe", "itmo2025", "--weights", str(weights)])
    get_features.main([*common, "--recipe", "ast_finetune", "--max-length", str(FRAMES)])
    return folder


@pytest.mark.parametrize(
    "recipe, cache, options",
    [
        ("itmo2025", "itmo2025", ITMO),
        ("itmo2025_tokens", "itmo2025", TOKENS),
        ("itmo2025_finetune", "ast_finetune", BELOW),
        ("ast_finetune", "ast_finetune", TINY),
    ],
)
def test_recipes_by_the_scripts(caches, weights, monkeypatch, recipe, cache, options):
    monkeypatch.chdir(caches)
    pretrained = cache == "ast_finetune"
    options = dict(options, weights=weights) if pretrained else options
    train.main(
        [
            "--recipe",
            recipe,
            "--features",
            f"data/tones/{cache}",
            "--name",
            recipe,
            "--epochs",
            "2",
            "--folds",
            "2",
            *flags(**options),
        ]
    )
    run = caches / "runs" / recipe
    assert all(0 < float(row["train_loss"]) < 5 for row in read_csv(run / "metrics.csv"))
    assert len(read_csv(caches / "submissions" / "submission.csv")) == 3
    if pretrained:  # trained, from the weights: a few steps of 1e-5 away
        trained = load_file(next(run.glob("fold_*/best/*.safetensors")))["ast.embeddings.position_embeddings"]
        away = (trained - published(weights).embeddings.position_embeddings).abs().max()
        assert 0 < away < 1e-3


def test_weights_that_are_missing_stop_training_in_one_line(caches, monkeypatch):
    monkeypatch.chdir(caches)
    with pytest.raises(UserError, match="no such folder") as error:
        train.main(
            [
                "--recipe",
                "ast_finetune",
                "--features",
                "data/tones/ast_finetune",
                "--name",
                "gone",
                "--folds",
                "2",
                *flags(**TINY, weights="gone/nowhere/at-all"),
            ]
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["itmo2025", "itmo2025_finetune"])
def test_recipes_hear_the_first_window_alone_as_published(name):
    assert load_recipe(name).features["max_windows"] == 1
