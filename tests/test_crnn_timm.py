"""The CRNN, and timm's networks as heads: what their options do, weights, refusals, recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm as library
import torch
from conftest import make_competition
from safetensors.torch import save_file

import get_features
import models
import train
from earshot import extractors

TINY = "test_efficientnet"


# --- crnn


def crnn(shape=(1, 16, 40), **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build("crnn", shape, 3, **{**dict(channels=(8, 12), hidden=6), **options}).eval()


def test_crnn_halves_frequencies_and_the_first_frames():
    head = crnn(channels=(4, 4, 4), time_pools=2)
    assert head.frames == 10 and head.time_stride == 4 and head.gru.input_size == 4 * 2
    assert crnn(channels=(4, 4, 4), time_pools=0).frames == 40
    assert crnn((1, 1, 30000)).frames == 512 and crnn((5, 1, 1)).gru.input_size == 12


def test_crnn_hears_the_order_of_sounds():
    head = crnn(standardise=False)
    x = torch.zeros(1, 1, 16, 40)
    x[:, :, 3, 5:10], x[:, :, 12, 25:30] = 5.0, 5.0
    swapped = torch.roll(x, 20, 3)
    with torch.no_grad():
        assert not torch.allclose(head(x), head(swapped), atol=1e-4)


def test_crnn_attends_to_real_frames_only():
    head = crnn()
    x, mask = torch.randn(2, 1, 16, 40), torch.arange(40)[None].expand(2, -1) < torch.tensor([[40], [16]])
    seen = []
    head.pool.register_forward_hook(lambda pool, inputs, pooled: seen.append((*inputs, pooled)))
    with torch.no_grad():
        head(x, mask)
        frames, real, pooled = seen[0]
        assert real.sum(1).tolist() == [10, 4]
        assert torch.allclose(pooled[1:], head.pool(frames[1:, :4], None), atol=1e-6)


def test_crnn_names_wrong_options():
    for options in (dict(channels=()), dict(hidden=0), dict(time_pools=-1)):
        with pytest.raises(models.HeadError, match="whole number") as caught:
            crnn(**options)
        assert "\n" not in str(caught.value)


# --- timm


def build(shape=(1, 40, 50), **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build("timm", shape, 3, **{**dict(backbone=TINY), **options})


def test_timm_is_the_librarys_network():
    head = build(dropout=0.3, drop_path=0.1)
    reference = library.create_model(TINY, in_chans=1, num_classes=3).eval()
    reference.load_state_dict(head.net.state_dict())
    x = torch.randn(2, 1, 40, 50)
    with torch.no_grad():
        assert torch.allclose(head.eval()(x), reference(x), atol=1e-6)
    assert head.net.drop_rate == 0.3
    assert build().training


@pytest.mark.parametrize(
    "backbone, shape, size",
    [
        (TINY, (2, 40, 50), (40, 50)),
        (TINY, (16, 1, 75), (32, 75)),
        ("test_vit", (1, 40, 50), (160, 160)),
        ("test_maxvit", (1, 40, 50), None),
    ],
)
def test_timm_resizes_where_a_network_needs_it(backbone, shape, size):
    head = build(shape, backbone=backbone).eval()
    own = tuple(library.get_pretrained_cfg(backbone).input_size[1:])
    assert head.size == (size or own)
    with torch.no_grad():
        assert head(torch.randn(2, *shape)).shape == (2, 3)


def test_timm_names_close_backbones():
    for backbone, word in (
        ("efficentnet_b0", "efficientnet_b0"),
        ("resnt18", "resnet18"),
        ("zzzz", "list_models"),
        ("resnet18.no_such_tag", "no_such_tag"),
    ):
        with pytest.raises(models.HeadError, match=word) as caught:
            build(backbone=backbone)
        assert "\n" not in str(caught.value)
    with pytest.raises(models.HeadError, match="option weights"):
        build(weights="")


def test_timm_loads_local_weights_of_three_channels(tmp_path: Path):
    source = library.create_model(TINY, num_classes=1000)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    for weights in (tmp_path / "model.safetensors", tmp_path):
        head = build(weights=str(weights))
        before = head.net.conv_stem.weight.clone()
        assert head.config["options"]["weights"] == str(weights)
        head.load_pretrained(extractors.load_network)
        # timm: a grey image through the three channels' sum
        wanted = source.conv_stem.weight.sum(1, keepdim=True)
        assert torch.allclose(head.net.conv_stem.weight, wanted, atol=1e-6) and not torch.equal(
            before, wanted
        )
        assert torch.equal(head.net.conv_head.weight, source.conv_head.weight)
        assert head.net.classifier.weight.shape == (3, source.num_features)
    plain = build()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    plain.load_pretrained(extractors.load_network)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_timm_says_in_one_line_that_weights_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("broken", "other", "absent")]
    for weights in ("timm", "nobody/nothing", *files):
        head = build(weights=weights)
        with pytest.raises(models.HeadError, match="--head.weights") as caught:
            head.load_pretrained(extractors.load_network)
        assert "\n" not in str(caught.value) and weights in str(caught.value)


# --- recipes


@pytest.mark.slow
def test_recipes_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    make_competition(tmp_path / "tones", classes=2, train=4, subm=1, seconds=0.6)
    tiny = {
        "crnn": ("--head.channels", "4,4", "--head.hidden", "4"),
        "timm": ("--head.backbone", TINY, "--head.weights", "null"),
    }
    for recipe, options in tiny.items():
        get_features.main(["--competition", "tones", "--recipe", recipe, "--workers", "1"])
        train.main(["--recipe", recipe, *options, "--epochs", "1", "--folds", "2"])
        assert "submission.csv: 2 rows" in capsys.readouterr().out


def test_timm_refuses_raw_audio_at_once():
    with pytest.raises(
        models.HeadError, match="image of 32x220500, too large: extract spectrograms"
    ) as caught:
        models.build("timm", (1, 1, 220500), 5, backbone="test_efficientnet")
    assert "\n" not in str(caught.value)
