"""Every recipe on real recordings, by the scripts: small heads, few clips, one epoch; skipped where they are
not at hand."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import tiny_encoders
import torch
from conftest import EFFICIENTAT, read_csv
from test_encodec import tiny
from tiny_onnx import export_stand_ins

import get_features
import train
from earshot.core.config import list_recipes, load_recipe

pytestmark = pytest.mark.slow

SMALL_CNN = {"channels": [6, 8], "blocks": [1, 1]}
ITMO = {"widths": [8, 12], "reduce": 4, "d_model": 16, "layers": 1, "heads": 2, "feedforward": 24}
AST = {"hidden_size": 24, "layers": 1, "heads": 2, "intermediate": 32}
# What shrinks a recipe's head; "weights" in a head are those of tiny networks.
REDUCED = {
    "ast_finetune": {**AST, "weights": "AST"},
    "ast_linear": {},
    "audio_cnn": SMALL_CNN,
    "birdnet": {},
    "convnext_ggcn": {
        "depths": [1, 1],
        "dims": [8, 12],
        "attention": 8,
        "heads": 2,
        "graph": 6,
        "hidden": [8],
    },
    "convnext_ggcn_scratch": {
        "depths": [1, 1],
        "dims": [8, 12],
        "attention": 8,
        "heads": 2,
        "graph": 6,
        "hidden": [8],
    },
    "attentive": {"queries": 2, "dim": 8},
    "crnn": {"channels": [4, 6], "hidden": 6},
    "efficientat_finetune": {"weights": str(EFFICIENTAT)},
    "esc50_causal_lm": {"channels": 12, "blocks": 2, "kernel": 9},
    "esc50_convnext1d": {"stem": 6, "channels": [8, 12], "blocks": 1},
    "esc50_encodec": {"stem": 6, "channels": [8], "blocks": 1},
    "esc50_hifigan": {"channels": [8, 8, 16], "strides": [4, 4], "groups": [2, 4]},
    "from_scratch": {
        "members": [{"name": "functionals", "augment": False}, {"name": "audio_cnn", **SMALL_CNN}]
    },
    "genre_cnn": {"channels": [4, 6], "hidden": [8], "grid": [8, 20]},
    "genre_cnn_gap": {"channels": [4, 6], "hidden": [8]},
    "hf_finetune": {"weights": "WAVLM"},
    "itmo2025": ITMO,
    "itmo2025_finetune": {**ITMO, **{f"ast_{key}": value for key, value in AST.items()}, "weights": "AST"},
    "itmo2025_tokens": {"dim": 16, "layers": 1, "heads": 2, "feedforward": 24},
    "knn": {},
    "linear": {},
    "logistic": {},
    "mlp": {"hidden": [8]},
    "modulations": {},
    "patches": {"words": 10},
    "perch": {},
    "sample": {},
    "small_cnn": SMALL_CNN,
    "svm": {},
    "timm": {"backbone": "test_efficientnet", "weights": None},
}


@pytest.fixture(scope="module")
def bench(esc10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips/ (24 real clips of 3 classes in two of the official folds) and tiny AST and EnCodec
    weights."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    folder = tmp_path_factory.mktemp("recipes")
    rows = [
        row
        for row in read_csv(esc10 / "meta" / "esc10.csv")
        if row["category"] in ("rain", "dog", "clock_tick")
    ]
    kept = [
        row
        for kind in ("rain", "dog", "clock_tick")
        for fold in "12"
        for row in [r for r in rows if (r["category"], r["fold"]) == (kind, fold)][:4]
    ]
    (folder / "clips" / "audio").mkdir(parents=True)
    (folder / "clips" / "meta").mkdir()
    for row in kept:
        shutil.copy(esc10 / "audio" / row["filename"], folder / "clips" / "audio")
    with open(folder / "clips" / "meta" / "clips.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, kept[0])
        writer.writeheader()
        writer.writerows(kept)
    torch.manual_seed(0)
    for name, frames in (("AST", 1024), ("AST512", 512)):
        config = ASTConfig(
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_length=frames,
        )
        ASTModel(config).save_pretrained(folder / name)
        ASTFeatureExtractor(max_length=frames).save_pretrained(folder / name)
    tiny(folder / "ENCODEC")
    tiny_encoders.save("wavlm", folder / "WAVLM")
    if all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime")):
        export_stand_ins(folder)
    return folder


def test_every_recipe_is_here():
    assert sorted(REDUCED) == list_recipes()


@pytest.mark.parametrize("name", REDUCED)
def test_recipe_end_to_end(
    bench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    monkeypatch.chdir(bench)
    recipe = load_recipe(name)
    if recipe.features.get("extractor") == "onnx":
        pytest.importorskip("onnxruntime", reason="pip install -r requirements-onnx.txt")
    wanted = recipe.features.get("extractor")
    weights = {"ast": ["--weights", "AST"], "encodec": ["--weights", "ENCODEC"]}.get(wanted, [])
    extraction = ["--recipe", name] if wanted else ["--extractor", "logmel", "--cache", "plain"]
    get_features.main(["--competition", "clips", *extraction, *weights])
    cache = Path("data/clips") / (recipe.features.get("cache", wanted) if wanted else "plain")
    options = {
        key: "AST512" if value == "AST" and name == "ast_finetune" else value
        for key, value in REDUCED[name].items()
    }
    train.main(
        [
            "--recipe",
            name,
            "--features",
            str(cache),
            "--name",
            name,
            "--epochs",
            "1",
            "--device",
            "cpu",
            "--precision",
            "fp32",
            *(word for key, value in options.items() for word in (f"--head.{key}", json.dumps(value))),
        ]
    )
    said = capsys.readouterr().out
    assert "(the data's own 2 folds); 24 clips" in said and "nothing to submit" in said
    assert "differs from the recipe" not in said
    for table in ("oof.csv", "oof_last.csv"):
        rows = read_csv(bench / "runs" / name / table)
        assert len(rows) == 24 and {row["fold"] for row in rows} == {"1", "2"}
        sums = [sum(float(row[c]) for c in ("rain", "dog", "clock_tick")) for row in rows]
        assert all(abs(total - 1) < 1e-4 for total in sums), "probabilities, none of them NaN"
        assert len({row["rain"] for row in rows}) > 12, "clips differ"
