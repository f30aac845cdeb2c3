"""The precision that a cache is made in: decided once, kept with its shards, refused where it would
change."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_competition, refused, script
from test_ast import tiny_ast

from earshot.core import checksums
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.features import precision as features_precision


class Plan:
    """What `decide` looks at of a plan."""

    def __init__(self, folder: Path, extractor: str = "ast", fingerprint: str = "f"):
        self.folder, self.extractor, self.fingerprint = folder, extractor, fingerprint


def shard(folder: Path, number: int, precision: str, fingerprint: str = "f") -> None:
    (folder / "shards").mkdir(exist_ok=True)
    checksums.write(
        folder / "shards" / f"train-{number:05d}.json", {"fingerprint": fingerprint, "precision": precision}
    )


CPU = [Device("cpu", "fp32", "CPU, 2 threads")]
GPU = [Device("cuda:0", "fp16", "T4, fp16"), Device("cuda:1", "fp16", "T4, fp16")]


@pytest.mark.parametrize("fast", [True, False])
def test_a_cpu_is_tried_for_ast_alone(tmp_path, monkeypatch, fast):
    monkeypatch.setattr(features_precision, "is_bf16_faster", lambda: fast)
    assert [d.precision for d in features_precision.choose_precision(Plan(tmp_path), CPU * 2, "auto")] == [
        "bf16" if fast else "fp32"
    ] * 2
    assert features_precision.choose_precision(Plan(tmp_path, "logmel"), CPU, "auto") == CPU
    assert (
        features_precision.choose_precision(Plan(tmp_path), GPU, "auto") == GPU
        and features_precision.choose_precision(Plan(tmp_path), CPU, "fp32") == CPU
    )


@pytest.mark.parametrize("fast", [True, False])
def test_what_was_begun_goes_on_as_it_was(tmp_path, monkeypatch, fast):
    monkeypatch.setattr(features_precision, "is_bf16_faster", lambda: fast)
    shard(tmp_path, 0, "cpu fp32", fingerprint="another cache's")
    shard(tmp_path, 1, "cuda fp16")
    shard(tmp_path, 2, "cpu bf16")
    assert features_precision.choose_precision(Plan(tmp_path), CPU, "auto")[0].precision == "bf16"
    assert [d.precision for d in features_precision.choose_precision(Plan(tmp_path), GPU, "auto")] == [
        "fp16",
        "fp16",
    ]
    with pytest.raises(UserError, match="was begun in bf16, --precision is fp32"):
        features_precision.choose_precision(Plan(tmp_path), CPU, "fp32")
    (tmp_path / "shards" / "train-00002.json").write_text("{")  # damaged: it will be made again
    assert features_precision.choose_precision(Plan(tmp_path), CPU, "fp32")[0].precision == "fp32"


def test_the_trial_gives_an_answer():
    assert features_precision.is_bf16_faster() in (True, False)


@pytest.mark.slow
def test_a_cache_in_bf16_is_that_in_fp32_nearly(tmp_path):
    import joblib
    import numpy as np

    tiny_ast(tmp_path / "ast")
    root = make_competition(tmp_path / "tones", classes=2, train=4, subm=1)
    for precision in ("fp32", "bf16"):
        script(
            "get_features.py",
            "--competition",
            root,
            "--extractor",
            "ast",
            "--weights",
            tmp_path / "ast",
            "--seconds",
            1,
            "--precision",
            precision,
            "--cache",
            precision,
            "--device",
            "cpu",
            cwd=tmp_path,
        )
    made = [joblib.load(tmp_path / "data" / "tones" / name / "train.pkl") for name in ("fp32", "bf16")]
    for view in ("pooled", "frames"):
        one, other = (content[view].astype(np.float64).reshape(len(content[view]), -1) for content in made)
        cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        assert (one != other).any() and cosine.min() > 0.999
    done = script(
        "get_features.py",
        "--competition",
        root,
        "--extractor",
        "ast",
        "--weights",
        tmp_path / "ast",
        "--precision",
        "half",
        cwd=tmp_path,
        ok=None,
    )
    assert "--precision" in refused(done)
