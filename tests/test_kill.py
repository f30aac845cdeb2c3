"""The kill harness in a reduced form: no difference, and a difference where the product is sabotaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

HARNESS = ROOT / "benchmarks" / "kill.py"


def harness(folder: Path, *args: str, before: str = "") -> subprocess.CompletedProcess:
    """Run the harness, with a line of Python before it where something is to be sabotaged."""
    code = (
        f"import runpy, sys; sys.path[:0] = [{str(HARNESS.parent)!r}, {str(ROOT)!r}]; sys.argv[0] = "
        f"{str(HARNESS)!r}\n{before}\n"
    )
    code += f"runpy.run_path({str(HARNESS)!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, "--folder", str(folder), "--no-results", *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=env, cwd=folder.parent)


def test_every_stage_survives_being_killed(tmp_path: Path) -> None:
    done = harness(tmp_path / "scratch", "--kills", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and all(" 4 kills (" in line and ", 0 faults," in line for line in lines), (
        done.stdout
    )


@pytest.mark.parametrize(
    "stage, sabotage, words",
    [
        (
            "extract",
            "from earshot.features import extract\n"
            "def remake(shards, *_): [shard.seal.unlink(missing_ok=True) for shard in shards]\n"
            "extract._set_other_forms_aside = remake",
            "clips decoded where the unfinished shards have",
        ),
        (
            "train",
            "import time; from earshot.training import trainer\ntrainer.derive_seed = lambda *parts: "
            "time.time_ns() % 2**31",
            "differs",
        ),
    ],
)
def test_the_harness_notices_what_is_broken(tmp_path: Path, stage: str, sabotage: str, words: str) -> None:
    done = harness(tmp_path / "scratch", "--kills", "20", "--stage", stage, before=sabotage)
    assert done.returncode == 1 and words in done.stdout + done.stderr, done.stdout + done.stderr
