"""The extractor `waveform`: samples in, the same samples out, through the command too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import script
from waves import synthetic, window

from earshot.audio import windows
from earshot.core.errors import UserError
from earshot.extractors import waveform
from earshot.features.cache import Cache


def test_windows_are_the_samples():
    extractor = waveform.Extractor(waveform.Settings(), window(1.0, 8000, "wrap"))
    waves = [synthetic(0.3, 8000), synthetic(2.5, 8000, 1)]
    short, long = extractor.extract(waves, [0.0, 0.25], 2)
    assert extractor.shapes == {"wave": (1, 1, 8000)} and extractor.span == 1.0
    assert short.views["wave"].dtype == np.float16 and short.views["wave"].shape == (1, 1, 1, 8000)
    np.testing.assert_array_equal(
        short.views["wave"][0, 0, 0], windows.fill_window(waves[0], 8000, "wrap").astype(np.float16)
    )
    assert long.start.tolist() == [0.25, 1.25, 1.75] and short.length.tolist() == [pytest.approx(0.3)]
    np.testing.assert_array_equal(long.views["wave"][2, 0, 0], waves[1][-8000:].astype(np.float16))


def test_silence_fills_where_asked():
    extractor = waveform.Extractor(waveform.Settings(), window(1.0, 8000, "silence"))
    got = extractor.extract([synthetic(0.3, 8000)], [0.0], 1)[0].views["wave"][0, 0, 0]
    assert got[:2400].any() and not got[2400:].any()


def test_no_weights():
    assert waveform.Extractor.find_weights(waveform.Settings(), None) == []
    with pytest.raises(UserError, match="has no weights"):
        waveform.Extractor.fetch(waveform.Settings(), "somewhere")


def test_by_the_command_at_the_datas_own_rate(tones: Path, tmp_path: Path):
    said = script(
        "get_features.py", "--competition", tones, "--extractor", "waveform", "--rate", "None", cwd=tmp_path
    ).stdout
    assert (
        "rate: 16000 Hz, the most common one of the training clips" in said
        and "views: wave (1, 1, 16000)" in said
    )
    made = Cache(tmp_path / "data" / "tones" / "waveform")
    train = made.split("train")
    samples, _ = soundfile.read(tones / "audio_train" / str(train["ids"][4]), dtype="float32")
    np.testing.assert_array_equal(train["wave"][4, 0, 0], samples.astype(np.float16))
