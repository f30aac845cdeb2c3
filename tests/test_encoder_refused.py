"""What the head `encoder` refuses, in one line each: weights, options and settings that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from made_cache import make
from tiny_encoders import complete_options

import models
from earshot import extractors
from earshot.core.errors import UserError
from earshot.core.recipes import Recipe
from earshot.extractors import hf
from earshot.features.cache import Cache
from earshot.training import experiment

SAMPLES = 16000


def copy_changed(folder: Path, to: Path, name: str = "config.json", **changes) -> Path:
    """A copy of a folder of weights, with other settings."""
    shutil.copytree(folder, to)
    (to / name).write_text(json.dumps({**json.loads((to / name).read_text()), **changes}))
    return to


def test_what_cannot_be_built_is_one_line(folders, tmp_path):
    def refuse(match: str, shape=(1, 1, SAMPLES), **options) -> None:
        with pytest.raises((models.HeadError, UserError), match=match) as caught:
            if "weights" in options:
                options = complete_options(options.pop("weights"), **options)
            models.build("encoder", shape, 3, **options)
        assert "\n" not in str(caught.value)

    wavlm, whisper = folders("wavlm"), folders("whisper")
    described = complete_options(wavlm)["network"]
    refuse("take --recipe ast_finetune", weights=folders("ast"))
    refuse("type clap, which this head cannot fine-tune: train a head on its frozen", weights=folders("clap"))
    refuse("--head.weights nowhere/at/all: no such folder", weights="nowhere/at/all")
    refuse("is a file: give the folder", weights=wavlm / "config.json")
    refuse("--extractor waveform", shape=(1, 128, 100), weights=wavlm)
    refuse("give no frame: extract with --seconds 0.1", shape=(1, 1, 300), weights=wavlm)
    refuse("up to 30 s, the view has 31 s: extract with --seconds 30", shape=(1, 1, 496000), weights=whisper)
    refuse("layers from 0 to 2, not 3", weights=wavlm, freeze=3)
    refuse("option lr_decay is a number above 0 and at most 1, not 1.5", weights=wavlm, lr_decay=1.5)
    refuse("option head_lr is a number above 0, not 0", weights=wavlm, head_lr=0)
    refuse("option dropout is a number from 0 to below 1, not 1", weights=wavlm, dropout=1)
    refuse("model_type is 'bert', not one of", network={**described, "config": {"model_type": "bert"}})
    refuse("rate is 'x', not of type int from 1: take other weights", network={**described, "rate": "x"})
    refuse("is a mapping", network=5)
    with pytest.raises(models.HeadError, match="option weights is a folder or a hub id .*, not 5"):
        models.build("encoder", (1, 1, SAMPLES), 3, weights=5)
    with pytest.raises(models.HeadError, match="option weights is a folder or a hub id .*, not 5"):
        models.complete_options("encoder", {"weights": 5}, extractors.describe_network)
    config = {
        **described["config"],
        "attn_implementation": "someone/kernel",
        "auto_map": {"AutoModel": "x.Y"},
    }
    built = models.build("encoder", (1, 1, SAMPLES), 3, network={**described, "config": config})
    assert built.network.config._attn_implementation in ("eager", "sdpa"), "what names code is not read"
    other = shutil.copytree(wavlm, tmp_path / "other")
    options = complete_options(other)
    options["network"]["config"]["num_hidden_layers"] = 1
    head = models.build("encoder", (1, 1, SAMPLES), 3, **options)
    with pytest.raises(models.HeadError, match="do not fit the option network: encoder.layers.1") as caught:
        head.load_pretrained(extractors.load_network)
    assert "\n" not in str(caught.value)


SIZES = [
    ("wavlm", "num_hidden_layers", 10**6, "num_hidden_layers is 1e[+]06, not from 1 to 1000"),
    ("wavlm", "num_hidden_layers", -1, "num_hidden_layers is -1, not from 1 to 1000"),
    ("wavlm", "num_hidden_layers", 0, "num_hidden_layers is 0, not from 1"),
    ("wavlm", "hidden_size", 10**12, "hidden_size is 1e[+]12, not from 1 to 1000000"),
    ("wavlm", "hidden_size", 0, "hidden_size is 0, not from 1"),
    ("wavlm", "hidden_size", 33, "no network can be built from its settings"),
    ("wavlm", "hidden_size", "two", "no network can be built from its settings"),
    ("wavlm", "hidden_act", "foo", "no network can be built from its settings .unknown value.*foo"),
    ("wavlm", "conv_dim", [10**9], "conv_dim is 1e[+]09"),
    ("wavlm", "conv_dim", [8] * 101, "conv_dim has 101 entries, more than 100"),
    ("wavlm", "conv_stride", [0] * 7, "conv_stride is 0, not from 1"),
    ("wavlm", "conv_dim", [0] * 7, "no network can be built from its settings|has a size of 0"),
    ("wavlm", "num_attention_heads", 0, "no network can be built from its settings"),
    (
        "data2vec_audio",
        "num_conv_pos_embeddings",
        1001,
        "num_conv_pos_embeddings is 1001, not from 0 to 1000",
    ),
    ("moonshine", "rope_parameters", {"rope_type": "foo"}, "settings .*unknown value 'foo'"),
    ("whisper", "num_mel_bins", 0, "num_mel_bins is 0, not from 1 to 1000"),
    ("whisper", "max_source_positions", 1000, "3000 frames, but the network takes 2 x .*, 2000"),
]


@pytest.mark.parametrize("family, key, value, match", SIZES)
def test_settings_that_cannot_be_are_one_line(folders, family, key, value, match):
    network = complete_options(folders(family))["network"]
    network["config"][key] = value
    with pytest.raises(models.HeadError, match=match) as caught:
        models.build("encoder", (1, 1, SAMPLES), 3, network=network)
    assert "\n" not in str(caught.value) and "option network" in str(caught.value)


def test_a_hop_that_does_not_fit_whispers_positions(folders):
    network = complete_options(folders("whisper"))["network"]
    for key, value in (("hop", 320), ("samples", 160000)):
        with pytest.raises(models.HeadError, match="frames, but the network takes 2 x max_source_positions"):
            models.build("encoder", (1, 1, SAMPLES), 3, network={**network, key: value})


def test_what_a_length_check_raises_is_one_line(folders, monkeypatch):
    network = models.build("encoder", (1, 1, SAMPLES), 3, **complete_options(folders("wavlm"))).network

    def divide(self, samples):
        raise RuntimeError("ZeroDivisionError\nin two lines")

    monkeypatch.setattr(type(network), "_get_feat_extract_output_lengths", divide)
    with pytest.raises(models.HeadError, match="no network can be built .*ZeroDivisionError in two lines"):
        models.build("encoder", (1, 1, SAMPLES), 3, **complete_options(folders("wavlm")))


@pytest.mark.parametrize(
    "family, changes, match",
    [
        ("hubert", {"intermediate_size": 10**6}, "settings describe .* parameters, but the files have"),
        ("hubert", {"hidden_act": "foo"}, "cannot be loaded .unknown value 'foo'"),
        ("hubert", {"conv_dim": [8] * 2000}, "conv_dim has more than 1000 entries"),
        (
            "data2vec_audio",
            {"num_conv_pos_embeddings": 10**6},
            "conv_pos_embeddings is 1000000, at most 1,000",
        ),
    ],
)
def test_a_folder_takes_no_memory_beyond_its_weights(folders, tmp_path, monkeypatch, family, changes, match):
    folder = copy_changed(folders(family), tmp_path / "weights", **changes)
    cache = Cache(make(tmp_path / "c" / "one", {"wave": (1, 1, SAMPLES)}, clips=6))
    monkeypatch.setattr(models, "build", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(UserError, match=match) as caught:
        recipe = Recipe("x", head={"name": "encoder", "weights": str(folder)})
        experiment.describe_head(recipe, cache).build()
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_view_of_another_rate_is_refused(folders, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(folders("wavlm"), weights)
    cache = Cache(make(tmp_path / "c" / "one", {"wave": (1, 1, SAMPLES)}, clips=6))
    cache.record["window"]["rate"] = 22050
    recipe = Recipe("x", head={"name": "encoder", "weights": str(weights)})
    want = r"\(rate 16000; wave has rate 22050\): extract with --extractor waveform, or"
    with pytest.raises(UserError, match=want) as caught:
        experiment.describe_head(recipe, cache)
    assert "\n" not in str(caught.value)
    saved = json.loads((weights / "preprocessor_config.json").read_text())
    (weights / "preprocessor_config.json").write_text(json.dumps({**saved, "sampling_rate": 24000}))
    with pytest.raises(UserError, match="extract with --extractor waveform --rate 24000, or"):
        experiment.describe_head(recipe, cache)
    cache.record["window"]["rate"] = 24000
    spec = experiment.describe_head(recipe, cache)
    assert "network" not in spec.options, "the record has the weights alone"
    assert spec.build().config["options"]["network"]["rate"] == 24000


def test_without_a_view_the_rate_of_the_weights_is_named(folders, tmp_path):
    weights = copy_changed(
        folders("wavlm"), tmp_path / "weights", "preprocessor_config.json", sampling_rate=24000
    )
    cache = Cache(make(tmp_path / "c" / "one", {"emb": (8, 1, 1)}, clips=6))
    for named, way in ((str(weights), "waveform --rate 24000, or"), ("nowhere/at/all", "waveform, or")):
        recipe = Recipe("x", head={"name": "encoder", "weights": named})
        with pytest.raises(UserError, match=f"has no waveform, .* extract with --extractor {way}"):
            experiment.describe_head(recipe, cache)


def test_the_weights_are_described_once(folders, tmp_path, monkeypatch):
    seen, describe = [], hf.describe_network
    monkeypatch.setattr(hf, "describe_network", lambda weights: seen.append(weights) or describe(weights))
    cache = Cache(make(tmp_path / "c" / "one", {"wave": (1, 1, SAMPLES)}, clips=6))
    cache.record["window"]["rate"] = 16000
    spec = experiment.describe_head(
        Recipe("x", head={"name": "encoder", "weights": str(folders("wavlm"))}), cache
    )
    for _ in range(2):
        spec.build()
    assert len(seen) == 1
