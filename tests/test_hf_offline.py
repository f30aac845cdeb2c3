"""Encoders of `hf` without the hub: found among attached folders by name or content, bundled with runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import soundfile
from conftest import make_competition, refused, script, tone
from tiny_encoders import save

from earshot.core import kaggle_paths
from earshot.core.errors import UserError
from earshot.extractors import ast, hf
from earshot.features.cache import Cache
from earshot.training import experiment


@pytest.fixture
def attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /kaggle/input, and no hub."""
    kaggle_paths._walk_once.cache_clear()
    (tmp_path / "input").mkdir()
    for name, value in {"EARSHOT_ATTACHED": "input", "HF_HUB_CACHE": "none", "TORCH_HOME": "none"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "input"


def network(folder: Path, kind: str, weights: str = "model.safetensors") -> Path:
    """A folder that looks like a network of transformers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / weights).write_bytes(b"x" * 100)
    return folder


@pytest.mark.parametrize("kind", hf.WEIGHTS.kinds)
def test_a_hub_id_finds_the_attached_folder_of_every_family(attached: Path, kind: str) -> None:
    named = network(attached / "datasets" / "me" / "my-encoder-1-0" / "v1", kind)
    whole = network(attached / "models" / "them" / "them-other", kind, "pytorch_model.bin")
    network(attached / "datasets" / "me" / "unnamed", "bert")
    assert hf.WEIGHTS.find_folder("them/my_encoder-1.0") == named
    assert hf.WEIGHTS.find_folder("them/other") == whole, "a folder that is named by the whole id"
    assert hf.WEIGHTS.find_folder("them/absent") is None
    with pytest.raises(UserError, match="no connection.*attached are .*my-encoder.*choose one with") as error:
        hf.WEIGHTS.get_folder("them/absent")
    assert "\n" not in str(error.value) and "unnamed" not in str(error.value)
    assert experiment.locate_weights({"weights": "them/my-encoder-1.0"}) == {"weights": str(named)}
    assert experiment.locate_weights({"weights": "them/absent"}) == {"weights": "them/absent"}


def test_a_heads_weights_are_found_whatever_kind_it_takes(attached: Path) -> None:
    network(attached / "wavlm-base-plus", "wavlm")
    assert experiment.locate_weights({"weights": ast.WEIGHTS.default}) == {"weights": ast.WEIGHTS.default}
    for name in ("mn04_as_mAP_432.pt", "timm"):
        (attached / name).mkdir() if name == "timm" else (attached / name).write_bytes(b"x")
    (attached / "timm" / "file.txt").write_text("x")
    kaggle_paths._walk_once.cache_clear()
    found = experiment.locate_weights({"weights": "weights/mn04_as_mAP_432.pt"})
    assert found == {"weights": str(attached / "mn04_as_mAP_432.pt")}
    assert experiment.locate_weights({"weights": "timm"}) == {"weights": "timm"}, "a word, not a place"


def predicted(run: Path, cwd: Path, ok: int = 0, **more: object):
    return script("predict.py", "new.wav", "--runs", run, *more.get("flags", ()), cwd=cwd, ok=ok)


@pytest.mark.slow
def test_a_run_is_bundled_with_its_encoder(attached: Path, tmp_path: Path) -> None:
    """And the notebook finds it by name or by content; else the doctor says so."""
    save("wavlm", tmp_path / "w" / "wavlm-base-plus")
    make_competition(tmp_path / "c", train=4, subm=1)
    soundfile.write(tmp_path / "new.wav", tone(0, 99, seconds=3.0), 16000)
    script(
        "get_features.py", "--competition", "c", "--extractor", "hf", "--weights", "w/wavlm-base-plus",
        cwd=tmp_path,
    )  # fmt: skip
    script("train.py", "--recipe", "knn", "--name", "speech", "--folds", "2", "--no-report", cwd=tmp_path)
    want = predicted(Path("speech"), tmp_path).stdout
    assert "tone" in want

    done = script_module("bundle", "--runs", "speech", cwd=tmp_path)
    names = {path.name for path in (tmp_path / "bundle" / "weights" / "wavlm-base-plus").iterdir()}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors"}, done
    shutil.rmtree(tmp_path / "bundle")
    done = script_module("bundle", "--runs", "speech", "--weights", "w/wavlm-base-plus", cwd=tmp_path)
    assert len(list((tmp_path / "bundle" / "weights").iterdir())) == 1, "once"

    shutil.move(tmp_path / "bundle", attached / "kit")
    shutil.rmtree(tmp_path / "w")
    shutil.rmtree(tmp_path / "runs")
    run, weights = attached / "kit" / "runs" / "speech", attached / "kit" / "weights"
    notebook = tmp_path / "working"
    notebook.mkdir()
    shutil.copy(tmp_path / "new.wav", notebook)
    assert predicted(run, notebook).stdout == want
    said = script("doctor.py", cwd=notebook, ok=None).stdout
    assert f"ok: weights: for --extractor hf --weights {weights / 'wavlm-base-plus'} (wavlm)" in said
    assert "for new audio" not in said
    (weights / "wavlm-base-plus").rename(weights / "renamed")
    assert predicted(run, notebook).stdout == want, "by content"
    shutil.rmtree(weights)
    assert "w/wavlm-base-plus is not cached" in refused(predicted(run, notebook, ok=None))
    said = script("doctor.py", cwd=notebook, ok=None).stdout
    assert f"warning: weights: {run} needs w/wavlm-base-plus for new audio" in said
    said = script_module("bundle", "--runs", run, cwd=notebook)
    assert "bundle: warning: the weights of speech (w/wavlm-base-plus) are not here: attach" in said


def script_module(*args: object, cwd: Path) -> str:
    """The output of `python -m earshot.kaggle`."""
    import subprocess
    import sys

    from conftest import ROOT

    done = subprocess.run(
        [sys.executable, "-m", "earshot.kaggle", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_extraction_is_resumed_and_windows_are_the_same(attached: Path, tmp_path: Path) -> None:
    """Long and very short recordings, stopped by the time limit and continued, in half precision."""
    save("whisper", tmp_path / "w")
    make_competition(tmp_path / "c", train=4, subm=2)
    soundfile.write(tmp_path / "c" / "audio_train" / "000.wav", tone(0, 5, seconds=70.0), 16000)
    soundfile.write(tmp_path / "c" / "audio_train" / "001.wav", tone(1, 5, seconds=0.03), 16000)
    flags = "--competition c --extractor hf --weights w --seconds 30 --device cpu".split()
    script("get_features.py", *flags, "--cache", "whole", cwd=tmp_path)
    stopped = script("get_features.py", *flags, "--cache", "parts", "--max-hours", "1e-6", cwd=tmp_path)
    assert "continue" in stopped.stdout
    assert not json.loads((tmp_path / "data" / "c" / "parts" / "manifest.json").read_text())["complete"]
    script("get_features.py", *flags, "--cache", "parts", cwd=tmp_path)
    whole, parts = (Cache(tmp_path / "data" / "c" / name).split("train") for name in ("whole", "parts"))
    assert list(whole["clip"]).count(0) == 3 and whole["length"][:3].tolist() == [30] * 3
    for view in ("pooled", "frames"):
        assert (whole[view] == parts[view]).all()
    short = whole["frames"][3, :, 0]
    assert short[:, 0].any() and not short[:, 10:].any(), "0.03 s are computed as 0.1 s, the rest is not"
    script("get_features.py", *flags, "--cache", "bf16", "--precision", "bf16", cwd=tmp_path)
    half = Cache(tmp_path / "data" / "c" / "bf16").split("train")["pooled"]
    one, other = (values.reshape(len(values), -1).astype("float64") for values in (half, whole["pooled"]))
    cosines = (one * other).sum(1) / ((one**2).sum(1) * (other**2).sum(1)) ** 0.5
    assert cosines.min() > 0.999 and (one != other).any()
