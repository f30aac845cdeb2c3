"""The registry of extractors, and what all of them share: cutting, batching, splitting back, half
precision."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from waves import window

from earshot import extractors
from earshot.core import kinds
from earshot.core.errors import UserError
from earshot.extractors import base


class Sums(base.Extractor):
    """An extractor whose features say what it was given."""

    views = {"sum": "sequence"}
    half = True

    def prepare(self):
        self.shapes, self.batches = {"sum": (1, 1, 2)}, []

    def forward(self, waves, lengths):
        import torch

        self.batches.append((tuple(waves.shape), list(lengths)))
        return {"sum": torch.stack([waves.sum(1), waves[:, 0]], dim=1)[:, None, None]}


def test_registry(tmp_path, monkeypatch):
    assert {"ast", "efficientat", "encodec", "logmel", "waveform"} <= set(extractors.list_names())
    assert not {"ast_fast", "base", "hub", "mel", "torch_weights"} & set(extractors.list_names())
    (tmp_path / "mine.py").write_text("class Extractor:\n    rate = 123\n")
    (tmp_path / "_helper.py").write_text("")
    monkeypatch.setattr(extractors, "__path__", [*extractors.__path__, str(tmp_path)])
    assert "mine" in extractors.list_names() and "_helper" not in extractors.list_names()
    assert extractors.load_module("mine").Extractor.rate == 123
    with pytest.raises(UserError, match="efficientat, .*logmel"):
        extractors.load_module("base")


@pytest.mark.parametrize("name", extractors.list_names())
def test_module_has_what_the_stages_ask_for(name):
    module = extractors.load_module(name)
    assert issubclass(module.Extractor, base.Extractor) and module.__doc__
    assert module.Extractor.pad in ("wrap", "silence") and module.Extractor.limit > 0
    assert module.Extractor.choose_views(module.Settings()).items() <= module.Extractor.views.items()
    assert set(module.Extractor.views.values()) <= set(kinds.KINDS)
    json.dumps(vars(module.Settings()))


def test_importing_them_is_light():
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from earshot import extractors; from earshot.audio import load\n"
        "for name in extractors.list_names(): extractors.load_module(name)\n"
        "heavy = {'torch', 'transformers', 'torchvision', 'torchaudio', 'librosa', 'scipy', 'soundfile'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_extract_cuts_batches_and_splits_back():
    extractor = Sums(None, window(1.0, 100, "silence"))
    waves = [np.full(50, 1, np.float32), np.full(250, 2, np.float32), np.full(100, 3, np.float32)]
    got = extractor.extract(waves, [0.0, 0.5, 0.25], batch_size=2)
    assert [shape for shape, _ in extractor.batches] == [(2, 100), (2, 100), (1, 100)]
    assert extractor.batches[0][1] == [0.5, 1.0]
    assert [clip.start.tolist() for clip in got] == [[0], [0.5, 1.5, 2.0], [0.25]]
    assert [clip.length.tolist() for clip in got] == [[0.5], [1, 1, 1], [1]]
    assert [clip.views["sum"][:, 0, 0, 0].tolist() for clip in got] == [[50], [200, 200, 200], [300]]
    assert got[1].views["sum"].dtype == np.float16 and got[1].start.dtype == np.float32


def test_wrapped_clips_and_max_windows():
    extractor = Sums(None, window(1.0, 100, "wrap", hop=0.5, most=2))
    got = extractor.extract([np.arange(30, dtype=np.float32), np.ones(1000, np.float32)], [0, 0], 8)
    assert got[0].views["sum"][0, 0, 0, 0] == np.resize(np.arange(30), 100).sum()
    assert got[0].length.tolist() == [pytest.approx(0.3)]
    assert got[1].start.tolist() == [0, 0.5]


def test_overflow_is_clipped_and_integers_stay():
    import torch

    got = base.to_numpy(torch.tensor([1e6, -1e6, float("inf"), float("-inf"), float("nan"), 1.5]))
    assert got.tolist() == [65504, -65504, 65504, -65504, 0, 1.5] and got.dtype == np.float16
    assert base.to_numpy(torch.tensor([1023])).dtype == np.int16


def test_half_precision_that_overflows_is_repeated_in_full():
    import torch

    class Overflows(Sums):
        def forward(self, waves, lengths):
            super().forward(waves, lengths)
            bad = torch.is_autocast_enabled("cpu")
            return {"sum": torch.full((len(waves), 1, 1, 2), float("nan") if bad else 7.0)}

    extractor = Overflows(None, window(1.0, 100), precision="bf16")
    assert extractor.extract([np.ones(100, np.float32)], [0], 1)[0].views["sum"].tolist() == [[[[7, 7]]]]
    assert len(extractor.batches) == 2


def test_base_refuses_nonsense():
    for arguments in ({"precision": "int8"}, {"window": window(1, 100, "mirror")}):
        with pytest.raises(UserError):
            Sums(**{"settings": None, "window": window(1, 100), **arguments})
