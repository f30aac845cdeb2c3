"""The GTZAN CNN: the published size, flattened and averaged, and its recipes on a folder of .au files."""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import ROOT, read_csv, tone

import get_features
import models
import train

SMALL = dict(channels=(4, 6), hidden=(8,))


def test_the_published_size():
    with torch.device("meta"):
        head = models.build("genre_cnn", (1, 128, 1292), 10)
        assert head.eval()(torch.zeros(1, 1, 128, 1292)).shape == (1, 10)
    assert sum(p.numel() for p in head.parameters()) == 169_049_802
    assert sum(p.numel() for p in head.conv.parameters()) == 93_120
    assert head.fc[0].weight.shape == (512, 128 * 16 * 161)
    kinds = [type(layer).__name__ for layer in head.fc]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2 + ["Linear"] and head.fc[3].p == 0.5


@pytest.mark.parametrize(
    "shape, inputs",
    [
        ((1, 128, 1292), 128 * 16 * 161),
        ((1, 128, 431), 128 * 16 * 53),
        ((1, 500, 4000), 128 * 16 * 161),
        ((768, 1, 101), 128 * 12),
        ((768, 1, 1), 128),
        ((1, 1, 220500), 128 * 161),
    ],
)
def test_the_wide_layer_never_outgrows_the_published_one(shape, inputs):
    with torch.device("meta"):
        head = models.build("genre_cnn", shape, 10)
        assert head.eval()(torch.zeros(2, *shape)).shape == (2, 10)
    assert head.fc[0].in_features == inputs


def test_gap_leaves_the_wide_layer_out():
    head = models.build("genre_cnn", (1, 128, 1292), 10, pool="gap")
    assert head.fc[0].in_features == 128 and sum(p.numel() for p in head.parameters()) < 300_000


def test_flattened_cells_without_audio_are_zeros():
    head = models.build("genre_cnn", (1, 16, 40), 3, **SMALL).eval()
    x = torch.randn(2, 1, 16, 40)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 20:] = False
    seen = {}
    head.fc[0].register_forward_hook(
        lambda layer, inputs, output: seen.update(flat=inputs[0].view(2, 6, 4, 10))
    )
    with torch.no_grad():
        head(x, mask)
        short = seen["flat"]
        head(x)
    assert torch.equal(short[0], seen["flat"][0]) and torch.equal(
        short[1, :, :, :5], seen["flat"][1, :, :, :5]
    )
    assert not short[1, :, :, 5:].any() and seen["flat"][1, :, :, 5:].any()


def test_gap_is_the_mean_over_real_frames():
    head = models.build("genre_cnn", (1, 16, 40), 3, **SMALL, pool="gap").eval()
    x = torch.randn(1, 1, 16, 40)
    mask = torch.arange(40)[None] < 24
    with torch.no_grad():
        want = head.fc(head.conv(x)[:, :, :, :6].mean((2, 3)))
        assert torch.allclose(head(x, mask), want, atol=1e-6)


@pytest.mark.parametrize(
    "options, word",
    [
        (dict(pool="max"), "flatten or gap"),
        (dict(grid=(16,)), "two numbers"),
        (dict(channels=()), "not empty"),
        (dict(hidden=(0,)), "whole numbers"),
    ],
)
def test_wrong_options_are_named(options, word):
    with pytest.raises(models.HeadError, match=word) as caught:
        models.build("genre_cnn", (1, 16, 40), 3, **options)
    assert "\n" not in str(caught.value)


def test_both_recipes_have_one_input():
    published, gap = (
        yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())
        for name in ("genre_cnn", "genre_cnn_gap")
    )
    assert published["features"] == gap["features"] and gap["head"]["pool"] == "gap"


def test_a_folder_of_au_files_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """GTZAN's layout, genres/<genre>/<genre>.<number>.au; one file is damaged, as jazz.00054 is in GTZAN's
    copies."""
    monkeypatch.chdir(tmp_path)
    for kind, genre in enumerate(("blues", "jazz")):
        folder = tmp_path / "gtzan" / "genres" / genre
        folder.mkdir(parents=True)
        for number in range(4):
            wave = 0.2 * tone(kind, number, 22050, 1.3)
            soundfile.write(folder / f"{genre}.{number:05d}.au", wave, 22050, subtype="PCM_16")
    (folder / "jazz.00054.au").write_bytes(b"not a sound")
    get_features.main(
        ["--competition", "gtzan", "--recipe", "genre_cnn", "--seconds", "1.2", "--workers", "1"]
    )
    cache = joblib.load(tmp_path / "data" / "gtzan" / "genre_cnn" / "train.pkl")
    assert cache["mel"].shape == (8, 1, 128, 52) and set(cache["labels"]) == {"blues", "jazz"}
    # A quiet clip is as loud as any after its peak has been brought to 1.
    assert np.ptp(cache["mel"].max((1, 2, 3)).astype(float)) < 3 and cache["mel"].max() > 10
    assert "jazz.00054" in (tmp_path / "data" / "gtzan" / "genre_cnn" / "bad_audio.csv").read_text()
    capsys.readouterr()
    for recipe in ("genre_cnn", "genre_cnn_gap"):
        train.main(
            [
                "--recipe",
                recipe,
                "--features",
                "data/gtzan/genre_cnn",
                "--head.channels",
                "4,4,4",
                "--head.hidden",
                "8,8",
                "--epochs",
                "2",
                "--folds",
                "2",
                "--name",
                recipe,
            ]
        )
        assert "accuracy" in capsys.readouterr().out
        assert len(read_csv(tmp_path / "runs" / recipe / "oof_last.csv")) >= 8
