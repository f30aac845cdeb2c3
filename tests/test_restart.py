"""Kill at a moment, run the same command again: the same bytes as an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, make_competition, script

TRAIN = (
    "--head",
    "audio_cnn",
    "--head.channels",
    "[16, 32]",
    "--head.blocks",
    "[1, 1]",
    "--head.dropout",
    "0.5",
    "--epochs",
    "12",
    "--folds",
    "2",
    "--ema",
    "0.9",
    "--mixup",
    "0.4",
    "--mixup-probability",
    "0.5",
    "--time-mask",
    "9",
    "--schedule",
    "onecycle",
    "--batch-size",
    "8",
    "--precision",
    "fp32",
    "--name",
    "r",
)


def kill_when(
    name: str, *args: object, cwd: Path, ready: Callable[[], bool], number: int = signal.SIGKILL
) -> tuple[int, str]:
    """Start a script and kill it as soon as `ready`; its exit code and stderr; fails if it ends before."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(ROOT / name), *map(str, args)],
        cwd=cwd,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        limit = time.monotonic() + 120
        while not ready() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        assert process.poll() is None, f"{name} ended before it could be killed"
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        return process.returncode, said


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Relative name -> bytes of the files that match."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for pattern in patterns for p in folder.glob(pattern)
    }


def test_killed_while_extracting(tmp_path: Path) -> None:
    data = make_competition(tmp_path / "tones", train=70, subm=20)  # 270 clips, 9 shards
    args = ("--competition", data, "--extractor", "logmel", "--n-mels", "96", "--hop-length", "64")
    script("get_features.py", *args, "--out", "calm", cwd=tmp_path)

    shards = tmp_path / "data" / "tones" / "logmel" / "shards"
    kill_when("get_features.py", *args, cwd=tmp_path, ready=lambda: len(list(shards.glob("*.json"))) >= 3)
    kept = {p: p.stat().st_mtime_ns for p in shards.glob("*.json")}
    assert 3 <= len(kept) < 10
    kill_when(
        "get_features.py",
        *args,
        cwd=tmp_path,
        ready=lambda: len(list(shards.glob("*.json"))) >= len(kept) + 2,
    )
    # no finished shard is made twice
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    said = script("get_features.py", *args, cwd=tmp_path).stdout
    assert "continuing: " in said
    patterns = ("*",)
    calm, killed = (contents(tmp_path / out / "tones" / "logmel", *patterns) for out in ("calm", "data"))
    assert calm == killed and set(calm) >= {
        "train.pkl",
        "subm.pkl",
        "unique_labels.pkl",
        "bad_audio.csv",
        "manifest.json",
    }


def test_killed_while_training(tmp_path: Path) -> None:
    data = make_competition(tmp_path / "tones", train=20, subm=2)
    script("get_features.py", "--competition", data, "--extractor", "logmel", cwd=tmp_path)
    script("train.py", *TRAIN, "--runs-folder", "calm", "--out", "calm.csv", cwd=tmp_path)

    run = tmp_path / "runs" / "r"
    every = (*TRAIN, "--save-every", "0")  # after every step: the setting is no part of the result
    kill_when(
        "train.py",
        *every,
        cwd=tmp_path,
        ready=lambda: (run / "fold_0" / "last" / "optimizer.safetensors").exists(),
    )
    stopped = kill_when(
        "train.py",
        *every,
        cwd=tmp_path,
        number=signal.SIGTERM,
        ready=lambda: (run / "fold_1" / "last" / "optimizer.safetensors").exists(),
    )
    assert stopped[0] == 143 and "Traceback" not in stopped[1] and "continue with: python" in stopped[1]
    assert stopped[1].count("stopped:") == 1
    said = script("train.py", *TRAIN, cwd=tmp_path).stdout
    assert "finished already: fold 0" in said
    log = (run / "training_log.txt").read_text()
    assert (
        len([line for line in log.splitlines() if "continues after epoch" in line and "step" in line]) >= 1
    ), log
    names = (
        "oof.csv",
        "oof_last.csv",
        "fold_*/best/*",
        "fold_*/last/model.safetensors",
        "report_*.txt",
        "fold_*/valid_*.npy",
    )
    calm, killed = contents(tmp_path / "calm" / "r", *names), contents(run, *names)
    assert calm == killed and len(calm) == 14
    assert (tmp_path / "calm.csv").read_bytes() == (tmp_path / "submissions" / "submission.csv").read_bytes()
    assert not [p for p in run.rglob("*") if p.suffix in (".tmp", ".new", ".old")]


@pytest.mark.slow
def test_max_hours_stops_cleanly_and_says_how_to_continue(tmp_path: Path) -> None:
    data = make_competition(tmp_path / "tones", train=40, subm=2)
    args = ("--competition", data, "--extractor", "logmel", "--max-hours", "0.0000001")
    stopped = script("get_features.py", *args, cwd=tmp_path)  # exit code 0
    assert "continue with: python" in stopped.stdout and "--max-hours" in stopped.stdout
    unfinished = script("train.py", cwd=tmp_path, ok=2)
    assert "is not finished: finish it with: python" in unfinished.stderr
    for _ in range(8):
        if "views: " in script("get_features.py", *args, cwd=tmp_path).stdout:
            break
    train = (
        "--recipe",
        "linear",
        "--folds",
        "2",
        "--epochs",
        "1",
        "--batch-size",
        "100",
        "--name",
        "r",
        "--max-hours",
        "0.0000001",
    )
    outputs = []
    # a step each, or an evaluation and the fold's predictions
    while not outputs or "continue with: python" in outputs[-1] and len(outputs) < 8:
        outputs.append(script("train.py", *train, cwd=tmp_path).stdout)
    assert (
        "epoch 1/1" not in outputs[0]
        and "continues after epoch 0, step 1" in outputs[1]
        and "fold 0/2  epoch 1/1" in outputs[1]
    )
    assert "finished already: fold 0" in outputs[2] and "out-of-fold" in outputs[-1] and len(outputs) == 4


def test_terminated_with_one_line(tmp_path: Path) -> None:
    data = make_competition(tmp_path / "tones", train=70, subm=2)
    args = [
        sys.executable,
        str(ROOT / "get_features.py"),
        "--competition",
        str(data),
        "--extractor",
        "logmel",
    ]
    shards = tmp_path / "data" / "tones" / "logmel" / "shards"
    with subprocess.Popen(
        args, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not list(shards.glob("*.pkl")) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in said and "continue with: python" in said
