"""docs/add-an-extractor.md as a reader follows it: its code in a copy of the project, and its commands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, read_csv

from earshot import extractors
from earshot.core import device, kinds
from earshot.features.cache import Cache

GUIDE = (ROOT / "docs" / "add-an-extractor.md").read_text(encoding="utf-8")
PARTS = ("earshot", "models", "recipes", "get_features.py", "train.py", "predict.py", "doctor.py", "app.py")


def blocks(language: str) -> list[str]:
    """The guide's blocks of code in one language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def run(folder: Path, line: str) -> str:
    """What a command of the guide prints, run in a folder."""
    program, *arguments = line.split()
    assert program == "python", line
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the guide's extractor in it, after the guide's commands."""
    folder = tmp_path_factory.mktemp("guide") / "project"
    folder.mkdir()
    for name in PARTS:
        source, copied = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copied)
    (code,) = blocks("python")
    (folder / "earshot" / "extractors" / "chroma.py").write_text(code, encoding="utf-8")
    assert "Points of the Fourier transform" in run(
        folder, "python get_features.py --extractor chroma --help"
    )
    (commands,) = blocks("bash")
    for line in commands.splitlines():
        run(folder, line)
    return folder


def test_the_guide_names_all_kinds() -> None:
    for kind, layout in kinds.LAYOUT.items():
        assert f"| `{kind}` | {layout.partition(')')[0]})" in GUIDE
    for attribute in re.findall(r"\| `(\w+)(?: = .*?)?`[ ,|]", GUIDE.partition("## More than that")[2]):
        assert hasattr(extractors.load_module("encodec").Extractor, attribute), attribute


def test_the_code_is_short_and_light(tmp_path: Path) -> None:
    (code,) = blocks("python")
    body = code.partition("class Extractor")[2].splitlines()
    assert len(body) <= 16 and "import torch" not in code.partition("def forward")[0]


@pytest.mark.slow
def test_from_audio_to_a_submission(project: Path) -> None:
    cache = Cache(project / "data" / "sample" / "chroma")
    assert cache.kinds == {"chroma": "sequence"} and cache.shapes["chroma"][:2] == (12, 1)
    assert cache.manifest["kinds"] == cache.split("train")["meta"]["kinds"] == cache.kinds
    assert cache.record["settings"] == {"n_fft": 2048, "hop_length": 800}
    sample = read_csv(cache.folder / "sample_submission.csv")
    submission = read_csv(project / "submissions" / "submission.csv")
    assert [next(iter(row.values())) for row in submission] == [next(iter(row.values())) for row in sample]
    report = (project / "runs" / "notes" / "report.html").read_text(encoding="utf-8")
    assert "chroma" in report
    assert list((project / "reports").glob("sample-chroma/data_report.*"))


@pytest.mark.slow
def test_the_bake_off_has_heads_for_it(project: Path) -> None:
    out = run(
        project,
        "python train.py --recipe auto --features data/sample/chroma --max-hours 0.01 --name all --no-report",
    )
    assert "mlp-chroma-chroma" in out and "bake-off: " in out
    assert (project / "runs" / "all" / "leaderboard.csv").is_file()


@pytest.mark.slow
def test_the_page_predicts(project: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio")
    clip = next((project / "data" / "sample" / "audio_test").iterdir())
    process = subprocess.Popen(
        [sys.executable, "app.py", "--run", "notes", "--port", "0"],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        address = re.search(r"http://127\.0\.0\.1:\d+", lines[1])
        assert address, lines
        request = urllib.request.Request(f"{address[0]}/api/predict", clip.read_bytes())
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer = json.loads(reply.read())
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert set(Cache(project / "data" / "sample" / "chroma").classes) >= {
        row["class"] for row in answer["classes"]
    }


@pytest.mark.slow
def test_why_it_predicts_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from earshot.app import saliency
    from earshot.prediction import members, predictor

    folder = project / "earshot" / "extractors"
    monkeypatch.setattr(extractors, "__path__", [*extractors.__path__, str(folder)])
    clip = next((project / "data" / "sample" / "audio_test").iterdir())
    with contextlib.chdir(project):
        hearing = predictor.Predictor(members.open_members(("notes",), "runs")[0], device.choose("cpu"))
        answer = hearing.predict_file(clip)
    shown = saliency.explain(hearing, hearing.runs[0], answer, 0, 0)
    assert (shown.low, shown.high) == (0.0, 8000.0)
    sys.modules.pop("earshot.extractors.chroma")
