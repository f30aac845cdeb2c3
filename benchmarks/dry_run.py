"""What a dry run says, against the time that the real prediction then takes.

    python benchmarks/dry_run.py --data ESC10 --runs lin cnn

Writes recordings (clips in a row), runs `predict.py RUN --dry-run` and `predict.py --audio` as a user would,
in turn, and prints the predicted and the measured seconds, start-up included. With `--measured noise` the dry
run knows nothing but the number and the length of the recordings.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, keep_rows, machine

sys.path.insert(0, str(ROOT))


def write_recordings(data: Path, folder: Path, count: int, seconds: float) -> None:
    """Recordings of clips in random order, in their format."""
    import soundfile

    clips, rng = sorted(data.rglob("*.ogg")) or sorted(data.rglob("*.wav")), np.random.default_rng(0)
    rate = soundfile.info(clips[0]).samplerate
    folder.mkdir()
    for number in range(count):
        path, left = folder / f"r{number:03d}{clips[0].suffix}", round(seconds * rate)
        with soundfile.SoundFile(path, "w", rate, 1) as file:
            while left > 0:
                wave = soundfile.read(clips[rng.integers(len(clips))], dtype="float32")[0][:left]
                file.write(wave)
                left -= len(wave)


def run_predict(*flags: str) -> tuple[float, str]:
    """Seconds of predict.py as a process, and what it printed."""
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / "predict.py"), *flags, "--device", "cpu"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, done.stdout


def main() -> None:
    """Write recordings, compare, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--data", required=True, type=Path, help="a folder of clips, such as ESC-10")
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measured", choices=("noise", "recordings"), default="noise")
    parser.add_argument("--keep", action="store_true", help="put the rows into RESULTS.md")
    flags = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory(prefix="dry-run-") as name:
        folder = Path(name) / "audio"
        write_recordings(flags.data, folder, flags.files, flags.seconds)
        several = [flags.runs] if len(flags.runs) > 1 else []
        for runs in [*([run] for run in flags.runs), *several]:
            predicted, measured = [], []
            for _ in range(flags.repeats):
                on = ["--audio", str(folder)] if flags.measured == "recordings" else []
                count = ["--files", str(flags.files), "--seconds", f"{flags.seconds:g}"]
                _, text = run_predict("--runs", *runs, "--dry-run", *count, *on)
                found = re.search(r"^total: [\d.]+ min \(([\d.]+) s\)", text, re.M)
                assert found, text
                predicted.append(float(found[1]))
                out = str(Path(name) / "predictions.csv")
                measured.append(run_predict("--runs", *runs, "--audio", str(folder), "--out", out)[0])
            said, took = float(np.median(predicted)), float(np.median(measured))
            each = ", ".join(f"{a / b:.2f}" for a, b in zip(predicted, measured, strict=True))
            label = " + ".join(Path(run).name for run in runs)
            cells = [label, flags.measured, f"{said:.1f} s", f"{took:.1f} s", f"{said / took:.2f} ({each})"]
            rows[f"{label} | {flags.measured}"] = "| " + " | ".join(cells) + " |"
            print(rows[f"{label} | {flags.measured}"], flush=True)
    if flags.keep:
        about = [
            f"`benchmarks/dry_run.py`: {flags.files} recordings of {flags.seconds:g} s, median of "
            f"{flags.repeats}, start-up included. {machine()}."
        ]
        header = "| runs | dry run on | predicted | measured | ratio (each) |"
        keep_rows("Dry run", about, header, {key.partition(" | ")[0]: row for key, row in rows.items()})


if __name__ == "__main__":
    main()
