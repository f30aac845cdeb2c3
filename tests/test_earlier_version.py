"""Caches and runs that version 0.1.0 left, finished or not, are taken up by the same commands."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import joblib
import numpy as np
import pytest
from conftest import ROOT, make_competition, script

EARLIER = "cc5e4c0"  # the last commit of 0.1.0
EXTRACT = ("--competition", "tones", "--extractor", "logmel", "--device", "cpu")
TRAIN = (
    "--name",
    "r",
    "--recipe",
    "linear",
    "--epochs",
    "6",
    "--folds",
    "3",
    "--device",
    "cpu",
    "--no-report",
)
NO_TIME = ("--max-hours", "0.0000001")

pytestmark = pytest.mark.slow


def earlier(home: Path, name: str, *args: object) -> str:
    """Run a script of the earlier version in home; what it printed."""
    done = subprocess.run(
        [sys.executable, str(home.parent / "earlier" / name), *map(str, args)],
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, bytes]:
    """All but the remembered checksums (with the times at which they were seen), the logs and TensorBoard's
    files."""
    skipped = (".verified.json", ".index.json", "training_log.txt")
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in skipped]
    paths = [p for p in paths if not p.name.startswith("events.out.tfevents.")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the earlier version leaves: `whole` with all finished, `begun` with a cache and a run that are
    not."""
    packed = subprocess.run(["git", "archive", EARLIER], cwd=ROOT, capture_output=True)
    if packed.returncode:
        pytest.skip(
            f"commit {EARLIER} is not in this checkout: the earlier version's code comes from its history"
        )
    top = tmp_path_factory.mktemp("versions")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(top / "earlier", filter="data")
    for name in ("whole", "begun"):
        make_competition(top / name / "tones", train=24)
    whole, begun = top / "whole", top / "begun"
    earlier(whole, "get_features.py", *EXTRACT)
    earlier(whole, "train.py", *TRAIN)
    earlier(whole, "train.py", *TRAIN[2:], "--name", "machines", "--recipe", "svm")
    earlier(
        whole, "predict.py", "--runs", "r", "machines", "--blend", "simplex", "--name", "both", "--no-report"
    )
    earlier(begun, "get_features.py", *EXTRACT, *NO_TIME)
    return top


def test_what_is_finished_is_taken_as_it_is(left: Path) -> None:
    home = left / "whole"
    before = files(home)
    assert "nothing to do" in script("get_features.py", *EXTRACT, cwd=home).stdout
    kept = {k.removeprefix("data/"): v for k, v in before.items() if k.startswith("data/")}
    kept[".latest"] = b"tones/logmel\n" + kept[".latest"]  # which cache was finished last, not only of what
    assert files(home / "data") == kept
    script("train.py", *TRAIN, cwd=home)
    after = files(home)
    texts = ("runs/r/report_best.txt", "runs/r/report_last.txt")  # written again, in other words
    kept = [name for name in before if name.startswith("runs/r/") and name not in texts]
    assert len(kept) > 20 and [name for name in kept if after[name] != before[name]] == []


@pytest.mark.parametrize("runs", [("r",), ("machines",), ("r", "machines"), ("both",)])
def test_its_runs_and_blends_predict_as_it_did(left: Path, runs: tuple[str, ...]) -> None:
    home = left / "whole"
    earlier(home, "predict.py", "--runs", *runs, "--out", "submissions/there.csv")
    script("predict.py", "--runs", *runs, "--out", "submissions/here.csv", cwd=home)
    there, here = ((home / "submissions" / name).read_bytes() for name in ("there.csv", "here.csv"))
    assert there == here and there.count(b"\n") == 13


def test_what_is_unfinished_is_finished_the_same(left: Path) -> None:
    home, whole = left / "begun", left / "whole"
    assert list((home / "data" / "tones" / "logmel" / "shards").glob("*.json")), "no shard was left"
    assert not (home / "data" / "tones" / "logmel" / "train.pkl").exists()
    script("get_features.py", *EXTRACT, cwd=home)
    for split in ("train", "subm"):
        mine, its = (joblib.load(at / "data" / "tones" / "logmel" / f"{split}.pkl") for at in (home, whole))
        assert mine.keys() == its.keys()
        for key in its.keys() - {"meta"}:
            np.testing.assert_array_equal(mine[key], its[key])
        assert mine["meta"]["fingerprint"] == its["meta"]["fingerprint"]
    earlier(home, "train.py", *TRAIN, *NO_TIME)
    run = home / "runs" / "r"
    assert (run / "fold_0" / "last").exists() and not (run / "oof.csv").exists()
    script("train.py", *TRAIN, cwd=home)
    for name in ("oof.csv", "oof_last.csv"):
        assert (run / name).read_bytes() == (whole / "runs" / "r" / name).read_bytes()
