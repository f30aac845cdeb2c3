"""The audio folder taken away and brought back while features are extracted, as networks and drives do."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CLASSES, CLIPS = 4, {"train": 80, "subm": 20}  # of each class: 400 clips
MOUNT = "drive"  # the folder below the competition's that holds all audio
AWAY = 1.0  # seconds for which it is away, at most
TEMPORARY = 75
EXTRACT = ["--extractor", "logmel", "--device", "cpu", "--workers", "2"]


@dataclass
class Drops:
    """What the drops did: how many, how many stopped the stage, and what went wrong."""

    drops: int = 0
    stopped: int = 0
    faults: list[str] = field(default_factory=list)


def prepare(data: Path) -> Path:
    """Move a competition's audio below one folder, which stands for a drive."""
    (data / MOUNT).mkdir()
    for name in ("audio_train", "audio_test"):
        os.rename(data / name, data / MOUNT / name)
    return data


def drop(
    data: Path,
    scratch: Path,
    drops: int,
    seed: int,
    start: Callable[[list[str], Path], int],
    contents: Callable[[Path], dict[str, bytes]],
) -> Drops:
    """Take the drive away at random moments of extractions that start again until so many drops were made.

    Every second time it comes back only after the stage has ended. All files are compared with an undisturbed
    run's.

    Args:
        start: runs get_features.py with these arguments in a folder; the process's number.
        contents: relative name -> bytes of the files in a folder that have to be the same.
    """
    rng, found = random.Random(seed), Drops()
    args = ["--competition", str(data), *EXTRACT]
    calm = scratch / "calm"
    calm.mkdir(parents=True)
    began = time.perf_counter()
    if _wait(start(args, calm)):
        raise SystemExit("error: the undisturbed extraction failed")
    seconds, expected = time.perf_counter() - began, contents(calm)
    series = 0
    while found.drops < drops and not found.faults:
        folder = scratch / f"drops{series}"
        folder.mkdir()
        while True:
            if found.drops < drops:
                code = _disturbed(start(args, folder), data, rng, seconds)
                found.drops += 1
            else:
                code = _wait(start(args, folder))
            if code == 0:
                break
            found.stopped += 1
            if code != TEMPORARY:
                found.faults.append(f"{folder}: exit code {code} after a drop: {_said(scratch)}")
                break
        made = contents(folder)
        found.faults += [
            f"{folder}: {name} differs, is stray or missing"
            for name in sorted(expected.keys() | made.keys())
            if expected.get(name) != made.get(name)
        ]
        if not found.faults:
            shutil.rmtree(folder)
        series += 1
    return found


def _disturbed(pid: int, data: Path, rng: random.Random, seconds: float) -> int:
    mount, away = data / MOUNT, data.with_name(f"{data.name}.away")
    time.sleep(rng.uniform(0, seconds))
    os.rename(mount, away)
    try:
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, AWAY))
        else:
            return _wait(pid)
    finally:
        os.rename(away, mount)
    return _wait(pid)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _said(scratch: Path) -> str:
    log = scratch / "log"
    return " ".join(log.read_text().splitlines()[-1:]) if log.exists() else ""
