"""docs/add-a-head.md as a reader follows it: its head in a copy of the project, from audio to submission."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_competition, read_csv

import models

GUIDE = (ROOT / "docs" / "add-a-head.md").read_text(encoding="utf-8")
PARTS = ("earshot", "models", "recipes", "get_features.py", "train.py", "predict.py", "doctor.py", "app.py")
# What the page answers: the predictor behind it, without a browser.
PAGE = """
from earshot.app.session import Session
from earshot.app.upload_limits import UploadLimits
from earshot.core import device
from earshot.prediction import members, predictor
import models, sys

opened = predictor.Predictor(members.open_members((sys.argv[1],), "runs")[0], device.choose("cpu"))
session = Session(opened, UploadLimits(20, 10**6), sys.argv[1])
print(session.predict_json(sys.argv[2], 1, "clip")["classes"])
"""


def get_blocks(language: str) -> list[str]:
    """The guide's blocks of code in one language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def run(folder: Path, *arguments: str) -> str:
    """What python prints with the arguments, run in a folder."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def test_the_head_is_short_and_obeys_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = get_blocks("python")
    lines = [line for line in code.partition("@register")[2].splitlines() if line.strip()]
    assert len(lines) <= 25
    (tmp_path / "tiny_cnn.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.setattr(models, "_HEADS", dict(models._HEADS))
    head = models.build("tiny_cnn", (1, 24, 40), 3, width=8)
    monkeypatch.delitem(sys.modules, "models.tiny_cnn")
    assert isinstance(head, models.Head) and head.config["options"] == {"width": 8, "dropout": 0.2}
    x, mask = torch.randn(4, 1, 24, 40), torch.ones(4, 40, dtype=torch.bool)
    mask[0, 20:] = False
    head.adapt([(x, mask)])
    head.eval()
    logits = head(x, mask)
    padded = x.masked_fill(~mask[:, None, None], 9.0)
    assert logits.shape == (4, 3) and torch.allclose(head(padded, mask), logits, atol=1e-5)
    assert torch.allclose(head(x[:1], mask[:1]), logits[:1], atol=1e-5)


@pytest.mark.slow
def test_from_audio_to_the_page(tmp_path: Path) -> None:
    """The guide's commands, on a smaller competition."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (code,), (recipe,) = get_blocks("python"), get_blocks("yaml")
    (folder / "models" / "tiny_cnn.py").write_text(code, encoding="utf-8")
    (folder / "recipes" / "tiny_cnn.yaml").write_text(recipe, encoding="utf-8")
    make_competition(folder / "tones", subm=2)
    shutil.copy(next((folder / "tones" / "audio_test").iterdir()), folder / "clip.wav")
    own = {"get_features.py": ["--competition", "tones"]}
    runs: list[str] = []
    for block in get_blocks("bash"):
        for line in block.splitlines():
            program, *arguments = line.partition("#")[0].split()
            assert program == "python", line
            if arguments[0] == "app.py":
                continue
            arguments = [runs[0] if word.startswith("tiny_cnn-") else word for word in arguments]
            printed = run(folder, *arguments, *own.get(arguments[0], []))
            if arguments[1:3] == ["--head", "tiny_cnn"]:
                runs = [path.name for path in (folder / "runs").glob("tiny_cnn-*")]
                assert len(runs) == 1 and "recipe: tiny_cnn" in printed
                sample = read_csv(folder / "tones" / "sample_submission.csv")
                answers = read_csv(folder / "submissions" / "submission.csv")
                assert [row["fname"] for row in answers] == [row["fname"] for row in sample]
                assert "tiny_cnn" in (folder / "runs" / runs[0] / "report.html").read_text(encoding="utf-8")
    assert "tiny_cnn-mel-logmel" in (folder / "runs" / "leaderboard.csv").read_text(encoding="utf-8")
    assert "tone" in run(folder, "-c", PAGE, runs[0], "clip.wav")
