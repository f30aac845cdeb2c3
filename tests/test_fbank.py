"""The extractor `fbank`: AST's input as transformers makes it, as a cached view."""

from __future__ import annotations

import numpy as np
import pytest
from waves import clips, synthetic, window

from earshot.core.errors import UserError
from earshot.extractors import fbank


def theirs(waves: list[np.ndarray], **settings: float) -> np.ndarray:
    """(N, 128, max_length) by transformers' ASTFeatureExtractor."""
    from transformers import ASTFeatureExtractor

    front = ASTFeatureExtractor(**settings)
    return np.stack([front(wave, sampling_rate=16000)["input_values"][0].T for wave in waves])


def test_fbank_is_transformers():
    lengths = (5, 1.234, 5, 3.3, 0.5)  # more than there are clips, where there are no real ones
    waves = [wave[: round(seconds * 16000)] for wave, seconds in zip(clips(16000, 3), lengths, strict=False)]
    waves.append(synthetic(10.24, 16000))
    extractor = fbank.Extractor(fbank.Settings(), window(10.24, 16000))
    assert extractor.shapes == {"fbank": (1, 128, 1024)} and extractor.span == 10.24
    got = extractor.extract(waves, [0.0] * len(waves), batch_size=4)
    view = np.concatenate([clip.views["fbank"] for clip in got])
    assert view.shape == (len(waves), 1, 128, 1024) and view.dtype == np.float16
    # half precision of values up to 2
    assert np.abs(view[:, 0].astype(np.float32) - theirs(waves)).max() < 3e-3
    assert view[1, 0, 5, -1] == pytest.approx(0.46703, abs=1e-3), "padding is 0 in log-mel, then normalised"


def test_shorter_windows_and_a_normalisation_of_ones_own():
    settings = fbank.Settings(max_length=128, mean=-6.6, std=5.4)
    extractor = fbank.Extractor(settings, window(1.28, 16000))
    wave = synthetic(3.0, 16000)
    got = extractor.extract([wave], [0.0], batch_size=2)[0]
    assert got.views["fbank"].shape == (3, 1, 128, 128) and extractor.span == 1.28
    want = theirs([wave[:20480]], max_length=128, mean=-6.6, std=5.4)
    assert np.abs(got.views["fbank"][0, 0] - want[0]).max() < 3e-3


def test_a_repeated_clip_is_real_to_its_end():
    wave = synthetic(0.5, 16000)
    silent, wrapped = (
        fbank.Extractor(fbank.Settings(max_length=128), window(1.28, 16000, pad)).extract([wave], [0.0], 1)[0]
        for pad in ("silence", "wrap")
    )
    last = silent.views["fbank"][0, 0, :, 60:]
    assert np.ptp(last) == 0 and np.ptp(wrapped.views["fbank"][0, 0, :, 60:120]) > 0.5


@pytest.mark.parametrize(
    "settings, seconds, weights, match",
    [
        (dict(max_length=512), 10.24, None, "add --seconds 5.12"),
        (dict(max_length=15), 0.1, None, "at least 16 frames"),
        (dict(std=0.0), 1.0, None, "deviation above 0"),
        ({}, 1.0, "some/weights", "--head.weights"),
    ],
)
def test_refusals(settings, seconds, weights, match):
    with pytest.raises(UserError, match=match) as error:
        fbank.Extractor(fbank.Settings(**settings), window(seconds, 16000), weights=weights)
    assert "\n" not in str(error.value)
