"""The head `encoder`: every family against transformers' own output, masks, freezing, resuming, scripts; what
it refuses is in test_encoder_refused.py."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_encoders
import torch
from conftest import make_competition, read_csv, refused, script, tone
from test_fitter import CPU, NEVER, StopsAt, outcome
from tiny_encoders import complete_options

import models
from earshot import extractors
from earshot.core.config import TrainingFlags, load_recipe
from earshot.training.checkpoint import FoldFolder
from earshot.training.dataset import WindowDataset
from earshot.training.optim import build_optimizer
from earshot.training.trainer import Fold, Trainer

SAMPLES = 16000
NORMED = ("wav2vec2_large", "data2vec_audio")  # trained with attention masks
WAVES = (
    "wav2vec2",
    *NORMED,
    "hubert",
    "wavlm",
    "unispeech",
    "unispeech_sat",
    "sew",
    "sew_d",
    "wav2vec2_conformer",
    "moonshine",
)
FAMILIES = (*WAVES, "whisper")


def build(folder: Path, samples: int = SAMPLES, classes: int = 3, **options) -> models.Head:
    """A head from a folder, with its weights."""
    torch.manual_seed(0)
    head = models.build("encoder", (1, 1, samples), classes, **complete_options(folder, **options))
    head.load_pretrained(extractors.load_network)
    return head


def clips(*counts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (B, 1, 1, SAMPLES) and its mask: so many samples are real."""
    x = torch.randn(len(counts), 1, 1, SAMPLES, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(SAMPLES) < torch.tensor(counts)[:, None]
    return 0.1 * x * mask[:, None, None], mask


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pooled_frames_are_transformers_own(folders, family):
    head = build(folders(family)).eval()
    network, processor = tiny_encoders.FAMILIES[family]()
    network = type(network).from_pretrained(folders(family)).eval()
    if network.config.is_encoder_decoder:
        network = network.get_encoder()
    x, mask = clips(SAMPLES, 9000)
    waves = [row[:count].numpy() for row, count in zip(x[:, 0, 0], (SAMPLES, 9000), strict=True)]
    how = "max_length" if family == "whisper" else True
    inputs = processor(waves, sampling_rate=16000, return_tensors="pt", padding=how)
    assert ("attention_mask" in inputs) == (family in NORMED), "as these feature extractors are saved"
    if family in WAVES and family not in NORMED:
        # in a batch it would normalise their padding, too, so that a clip's scale depended on its batch
        alone = [processor(wave, sampling_rate=16000, return_tensors="pt").input_values[0] for wave in waves]
        inputs = {"input_values": torch.nn.utils.rnn.pad_sequence(alone, batch_first=True)}
    head.norm = torch.nn.Identity()
    head.fc = torch.nn.Identity()
    with torch.no_grad():
        want = network(**inputs).last_hidden_state
        found = head(x, mask)
    for row, count in enumerate((SAMPLES, 9000)):
        if family == "whisper":
            frames = -(-count // 320)
        elif family == "moonshine":
            frames = want.shape[1] if row == 0 else ((9000 - 127) // 64 + 1 - 7) // 3 // 2
        else:
            frames = int(network._get_feat_extract_output_lengths(torch.tensor(count)))
        torch.testing.assert_close(found[row], want[row, :frames].mean(0), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weigh_layers", [False, True])
def test_a_prediction_does_not_depend_on_its_batch(folders, family, weigh_layers):
    head = build(folders(family), weigh_layers=weigh_layers).eval()
    x, mask = clips(SAMPLES, 9000, 100)
    loud = x.masked_fill(~mask[:, None, None], float("nan"))
    with torch.no_grad():
        together = head(x, mask)
        assert together.isfinite().all() and together.std(0).max() > 1e-4
        for row in range(3):
            alone = head(x[row : row + 1], mask[row : row + 1])
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(head(x[:1], None)[0], together[0], atol=1e-5, rtol=0)
        assert torch.equal(head(loud, mask)[1], together[1]), "padding is never read"
        # where an augmentation has moved the real samples
        torch.testing.assert_close(
            head(x.roll(3000, 3), mask.roll(3000, 1))[1], together[1], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_close(folders, family):
    head = build(folders(family)).eval()
    x, mask = clips(SAMPLES, 9000)
    with torch.no_grad():
        want = head(x, mask)
    head.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(x, mask)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2]))
    loss.backward()
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients) and len(gradients) > 10
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = head.eval()(x, mask).float()
    assert (found - want).abs().max() < 0.05 * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_built_again_without_the_folder(folders, family, tmp_path):
    folder = shutil.copytree(folders(family), tmp_path / "weights")
    head = build(folder, lr_decay=0.5).eval()
    shutil.rmtree(folder)
    config = json.loads(json.dumps(head.config))
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in models.rebuild(config).state_dict().items()}
    assert shapes == {name: value.shape for name, value in head.state_dict().items()}
    again = models.rebuild(config).eval()
    assert again.config == config
    again.load_state_dict(head.state_dict())
    x, mask = clips(SAMPLES, 9000)
    with torch.no_grad():
        assert torch.equal(again(x, mask), head(x, mask))


@pytest.mark.parametrize("family", ["wavlm", "sew_d", "wav2vec2_conformer", "whisper", "moonshine"])
def test_checkpointing_gives_the_same_gradients(folders, family):
    x, mask = clips(SAMPLES, 9000)
    found, computed = [], []
    for checkpointing in (False, True):
        head = build(folders(family), gradient_checkpointing=checkpointing).train()
        calls = []
        first = head.network.get_submodule(head.layers)[0]
        inner = next(module for module in first.modules() if isinstance(module, torch.nn.LayerNorm))
        inner.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(5)  # dropout
        loss = head(x, mask).logsumexp(1).sum()
        loss.backward()
        computed.append(len(calls))
        found.append({name: p.grad for name, p in head.named_parameters() if p.grad is not None})
    assert computed == [1, 2], "a layer is computed again"
    assert found[0].keys() == found[1].keys() and any(
        "layers" in name or "layer." in name for name in found[0]
    )
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("freeze", [0, 1, 2])
def test_frozen_layers_do_not_change(folders, family, freeze):
    head = build(folders(family), freeze=freeze).train()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], 0.01)
    x, mask = clips(SAMPLES, 9000)
    for _ in range(2):
        optimizer.zero_grad()
        head(x, mask).logsumexp(1).sum().backward()
        optimizer.step()
    after = head.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    place = re.compile(rf"network\.{re.escape(head.layers)}\.(\d+)\.")
    layers = {int(found[1]) for name in changed if (found := place.match(name))}
    assert layers == set(range(freeze, 2)) and {"fc.weight", "norm.weight"} <= changed
    outside = {name for name in changed if name.startswith("network.") and not place.match(name)}
    assert bool(outside) == (freeze == 0), outside
    assert not any("feature_extractor" in name or "running" in name for name in changed)
    assert not head.network.get_submodule(head.layers)[0].training or freeze == 0, (
        "no dropout in frozen layers"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_frozen_layers_get_does_not_vary(folders, family, tmp_path):
    folder = shutil.copytree(folders(family), tmp_path / "weights")
    config = json.loads((folder / "config.json").read_text())
    config |= {key: 0.5 for key in config if key.endswith("dropout")}
    (folder / "config.json").write_text(json.dumps(config))
    for freeze, varies in ((1, False), (0, family != "moonshine")):  # which has no dropout in front
        head = build(folder, freeze=freeze).train()
        layers = head.network.get_submodule(head.layers)
        found = []
        layers[0].register_forward_pre_hook(lambda _, x, found=found: found.append(x[0].detach()))
        for _ in range(2):
            head(*clips(SAMPLES, 9000))
        assert torch.equal(*found) != varies, freeze
        assert layers[1].training, "what is trained keeps its dropout"


def test_convolutions_are_trained_where_asked(folders):
    head = build(folders("wavlm"), freeze_convolutions=False).train()
    head(*clips(SAMPLES)).sum().backward()
    assert head.network.feature_extractor.conv_layers[0].conv.weight.grad.abs().sum() > 0


def test_learning_rates_fall_layer_by_layer(folders):
    head = build(folders("wavlm"), lr_decay=0.5, head_lr=8)
    rate = {name: head.scale_lr(name) for name, _ in head.named_parameters()}
    assert rate["fc.weight"] == rate["norm.bias"] == 8
    assert rate["network.encoder.layers.1.attention.q_proj.weight"] == 1
    assert rate["network.encoder.layers.0.attention.rel_attn_embed.weight"] == 0.5
    assert (
        rate["network.feature_projection.projection.weight"]
        == rate["network.encoder.layer_norm.weight"]
        == 0.25
    )
    groups = build_optimizer(head, TrainingFlags(lr=1e-3)).param_groups
    assert sorted(group["lr"] for group in groups) == pytest.approx([2.5e-4, 5e-4, 1e-3, 8e-3])


def test_default_sizes_are_the_published_ones():
    """Base sizes have 94.4 (WavLM, wav2vec 2.0, HuBERT) and 93.2 M (data2vec), wav2vec 2.0 large 315.4 M,
    Whisper's small encoder 88.2 M."""
    large = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
    }
    small = {"d_model": 768, "encoder_layers": 12, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072}
    published = [
        ({"model_type": "wavlm"}, 94_381_936),
        ({"model_type": "wav2vec2"}, 94_371_712),
        ({"model_type": "hubert"}, 94_371_712),
        ({"model_type": "data2vec-audio"}, 93_164_288),
        ({"model_type": "wav2vec2", **large}, 315_438_720),
        ({"model_type": "whisper", **small}, 88_154_112),
    ]
    for config, want in published:
        network = {"config": config, "rate": 16000, "normalise": True, "masked": False}
        network |= {"samples": 480000, "fft": 400, "hop": 160} if config["model_type"] == "whisper" else {}
        with torch.device("meta"):
            head = models.build("encoder", (1, 1, 80000), 50, network=network)
        width = head.fc.in_features
        # less the vector that replaces masked frames in pretraining
        masked = 0 if config["model_type"] == "whisper" else width
        assert sum(p.numel() for p in head.network.parameters()) == want - masked, config
    with torch.device("meta"):
        assert models.build("encoder", (1, 1, 80000), 50).network.config.model_type == "wavlm"


def made_rows(counts: int = 24) -> WindowDataset:
    """Noisy tones of three classes, some of them shorter than the window of 0.25 s."""
    length = np.where(np.arange(counts) % 4 == 1, 0.15, 0.25).astype(np.float32)
    waves = np.stack([tone(i % 3, i, seconds=0.25) for i in range(counts)])
    waves[np.arange(4000) >= 16000 * length[:, None]] = 0
    split = {
        "ids": np.array([f"c{i}" for i in range(counts)]),
        "labels": np.array(["a", "b", "c"])[np.arange(counts) % 3],
        "wave": waves[:, None, None].astype(np.float16),
        "clip": np.arange(counts),
        "folds": np.full(counts, -1),
        "groups": np.full(counts, ""),
        "length": length,
    }
    return WindowDataset(split, "wave", ["a", "b", "c"], 0.25, "cpu")


def fitter(folder: Path, weights: Path, settings: TrainingFlags, **options) -> Trainer:
    rows = made_rows()
    valid = np.arange(len(rows)) % 4 == 3
    make_head = partial(models.build, "encoder", (1, 1, 4000), 3, **complete_options(weights, **options))
    return Trainer(make_head, rows, Fold(1, 5, ~valid, valid), settings, 3, FoldFolder(folder), CPU)


BUSY = TrainingFlags(
    epochs=2, batch_size=6, lr=1e-3, mixup=0.4, time_shift=0.4, label_smoothing=0.1, clip_grad=1.0, ema=0.9
)


@pytest.mark.parametrize("family", ["wavlm", "data2vec_audio", "wav2vec2_conformer"])
def test_a_stopped_fold_ends_as_if_never_stopped(folders, tmp_path, family):
    make_fitter = partial(fitter, weights=folders(family), settings=BUSY, lr_decay=0.8, freeze=1)
    whole = make_fitter(tmp_path / "whole")
    assert whole.fit(str, NEVER, 0)
    want = outcome(tmp_path / "whole")
    for stop in (1, whole.steps + 2):
        assert not make_fitter(tmp_path / str(stop)).fit(str, StopsAt(stop), 0)
        torch.manual_seed(stop)
        assert make_fitter(tmp_path / str(stop)).fit(str, NEVER, 0)
        found = outcome(tmp_path / str(stop))
        assert found[2:] == want[2:]
        for one, other in zip(found[:2], want[:2], strict=True):
            assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wavlm", "wav2vec2_large"])
def test_training_learns_tones(folders, tmp_path, family):
    settings = replace(TrainingFlags(), epochs=20, batch_size=6, lr=3e-3, schedule="onecycle")
    made = fitter(tmp_path, folders(family), settings, lr_decay=0.9, head_lr=1, dropout=0.0)
    assert made.fit(str, NEVER, 0)
    losses = [row["train_loss"] for row in made.progress.history]
    assert losses[-1] < 0.5 * losses[0], losses


def test_the_recipe_takes_its_defaults():
    recipe = load_recipe("hf_finetune")
    known = models.get_options("encoder")
    assert set(recipe.head) - {"name", "view"} <= set(known) and recipe.features["extractor"] == "waveform"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wavlm", "data2vec_audio", "whisper"])
def test_from_audio_to_a_submission(folders, tmp_path, family):
    make_competition(tmp_path / "tones", train=4, subm=2)
    weights = shutil.copytree(folders(family), tmp_path / "weights")
    script("get_features.py", "--competition", "tones", "--recipe", "hf_finetune", cwd=tmp_path)
    words = ["--recipe", "hf_finetune", "--name", "run", "--epochs", "2", "--folds", "2"]
    if family == "wavlm":
        said = refused(script("train.py", *words, cwd=tmp_path, ok=None))
        assert "microsoft/wavlm-base-plus is not cached and cannot be downloaded" in said
        assert "--head.weights" in said
    script("train.py", *words, "--head.weights", weights, cwd=tmp_path)
    assert len(read_csv(tmp_path / "submissions" / "submission.csv")) == 6
    rows = read_csv(tmp_path / "runs" / "run" / "metrics.csv")
    assert len(rows) == 4 and all(0 < float(row["train_loss"]) < 5 for row in rows)
    first = (tmp_path / "submissions" / "submission.csv").read_bytes()
    shutil.rmtree(weights)  # another machine
    script("predict.py", "--runs", "run", "--out", "again.csv", cwd=tmp_path)
    assert (tmp_path / "again.csv").read_bytes() == first
    script("predict.py", "--runs", "run", "--audio", "tones/audio_test", cwd=tmp_path)
    assert len(read_csv(tmp_path / "submissions" / "predictions.csv")) == 6
