"""ONNX files that are broken or do harm: refused in one line, within limits of memory and time."""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path

import hostile_onnx
import numpy as np
import pytest
from test_onnx import compute, make  # which skips where a package is missing

from earshot.core.errors import UserError
from earshot.extractors import onnx, onnx_file

pytestmark = pytest.mark.slow

MEMORY, SECONDS = 1 << 30, 5  # that the trial may take here


@pytest.mark.parametrize("name", hostile_onnx.list_names())
def test_a_file_that_does_harm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MEMORY", MEMORY)
    monkeypatch.setattr(onnx_file, "SECONDS", SECONDS)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "encoder.onnx"
    content, says = hostile_onnx.build_file(name)
    path.write_bytes(content)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(UserError) as raised:
        onnx_file.inspect(path, hostile_onnx.SAMPLES).choose_output(None)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert re.search(says, str(raised.value)) and "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500 and time.monotonic() - began < 100
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS + 5
    # of the largest process so far, which may be another test's
    assert after.ru_maxrss <= max(before.ru_maxrss, 1.5 * MEMORY / 1024)
    assert list(tmp_path.iterdir()) == [path], "nothing is written"


@pytest.mark.parametrize(
    ("name", "says"), [("memory", "more memory than there is"), ("time", "longer than 2")]
)
def test_audio_that_makes_a_file_do_harm(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the trial's noise does not show: bounded while features are extracted, too."""
    path = tmp_path / "late.onnx"
    path.write_bytes(hostile_onnx.build_late(name).SerializeToString())
    monkeypatch.setattr(onnx, "PASS_SECONDS", 2)
    extractor = make(path, 1.0, hostile_onnx.SAMPLES)
    quiet = np.full((1, hostile_onnx.SAMPLES), 0.1, np.float32)
    assert np.isfinite(compute(extractor, quiet)["pooled"]).all()
    with pytest.raises(UserError, match=says):
        compute(extractor, quiet * 10)
