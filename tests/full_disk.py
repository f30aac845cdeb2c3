"""Run by test_disk.py in a mount namespace of its own: the stages on a small disk that fills up, grows, and
becomes read-only.

The estimate of the space is taken out: what is tested is what happens when it was wrong, or when something
else filled the disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import get_features
import predict
import train
from earshot.core import cli, disk_space

LOGMEL = ["--extractor", "logmel", "--n-mels", "32", "--device", "cpu", "--workers", "1"]
TRAIN = [
    "--head",
    "mlp",
    "--head.hidden",
    "64",
    "--epochs",
    "3",
    "--folds",
    "2",
    "--device",
    "cpu",
    "--name",
    "r",
    "--save-every",
    "0",
]
RESULTS = ("*.pkl", "oof*.csv", "submission.csv", "model.safetensors", "*.npy", "bad_audio.csv")


def attempt(main, *args: str) -> tuple[int, str]:
    """Exit code and stderr of a stage, run as a script runs it."""
    sys.argv = [main.__module__ + ".py", *args]
    said, real = io.StringIO(), os.fdopen
    try:
        os.fdopen = lambda *a, **k: said  # cli.run writes its errors to a descriptor of its own
        with contextlib.redirect_stdout(io.StringIO()):
            cli.run(main)
        return 0, said.getvalue()
    except SystemExit as left:
        return left.code or 0, said.getvalue()
    finally:
        os.fdopen = real


def mount(*options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", "disk"], check=True)


def unmount() -> None:
    # Lazily: a file that a stage mapped may be let go of later, and the namespace ends with this process.
    subprocess.run(["umount", "--lazy", "disk"], check=True)


def results() -> dict[str, bytes]:
    return {
        p.relative_to("disk").as_posix(): p.read_bytes()
        for pattern in RESULTS
        for p in sorted(Path("disk").rglob(pattern))
    }


def until_done(main, *args: str, size: int, step: int) -> int:
    """Let the disk grow until the stage gets through; how often it was full."""
    full = 0
    while True:
        mount("remount", f"size={size}k")
        code, said = attempt(main, *args)
        if code == 0:
            return full
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1 and "No space left" in lines[0] and "disk/" in lines[0], (
            code,
            said,
        )
        assert "Traceback" not in said and not list(Path("disk").rglob("*.tmp")), list(
            Path("disk").rglob("*.tmp")
        )
        full, size = full + 1, size + step


def main(data: str) -> None:
    """All stages: a calm run on a roomy disk, then on one that is too small, then one that cannot be
    written."""
    disk_space.check_space = lambda *any: "not estimated"
    Path("disk").mkdir()
    stages = [
        (get_features.main, ["--competition", data, *LOGMEL, "--out", "disk/data"], 40),
        (
            train.main,
            [
                *TRAIN,
                "--features",
                "disk/data/tones/logmel",
                "--runs-folder",
                "disk/runs",
                "--out",
                "disk/s/submission.csv",
            ],
            60,
        ),
        (predict.main, ["--runs", "disk/runs/r", "--out", "disk/s/again.csv", "--device", "cpu"], 4),
    ]
    mount("size=64m")
    for stage, args, _ in stages:
        assert attempt(stage, *args)[0] == 0
    calm, before = results(), {p: p.read_bytes() for p in Path("disk").rglob("*") if p.is_file()}
    mount("remount", "ro")
    for stage, args, _ in stages:
        code, said = attempt(stage, *args, *(["--fresh"] if stage is not predict.main else []))
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1 and "Traceback" not in said, (code, said)
    assert before == {p: p.read_bytes() for p in Path("disk").rglob("*") if p.is_file()}, (
        "nothing changes on a read-only disk"
    )
    unmount()
    mount("size=8k")
    full = []
    for stage, args, step in stages:
        there = os.statvfs("disk")
        used = (there.f_blocks - there.f_bfree) * there.f_bsize // 1024
        full.append(until_done(stage, *args, size=max(used, 8), step=step))  # a size of 0 would be no limit
    assert results() == calm
    unmount()
    print("full disks:", *full)


if __name__ == "__main__":
    main(sys.argv[1])
