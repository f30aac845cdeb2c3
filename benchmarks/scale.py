"""Does anything grow with the number of clips that should not? Extraction, a restart with nothing to do,
training, at several sizes.

    python benchmarks/scale.py                            # 2,000, 8,000 and 20,000 clips, into RESULTS.md
    python benchmarks/scale.py --sizes 200 1000 --no-results

The clips are synthesised, short and all different. Memory is the peak of the anonymous memory (RssAnon) of a
script and of all its processes, every 10 ms: pages of mapped files are the system's to take back. Training
streams where train.py has a flag for it.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from common import ROOT, keep_rows, machine

sys.path.insert(0, str(ROOT))
RATE, SAMPLES, CLASSES = 8000, 2000, 10
EXTRACT = [
    "--extractor",
    "logmel",
    "--rate",
    str(RATE),
    "--n-mels",
    "64",
    "--hop-length",
    "80",
    "--cache",
    "scale",
]
TRAIN = [
    "--recipe",
    "linear",
    "--epochs",
    "1",
    "--folds",
    "2",
    "--fold",
    "0",
    "--batch-size",
    "64",
    "--device",
    "cpu",
]
STREAM = 0.004  # GB: less than any of the caches


def make(folder: Path, clips: int) -> Path:
    """A competition of so many clips of noise, 0.25 s at 8 kHz, in a Kaggle layout."""
    (folder / "audio").mkdir(parents=True)
    head = (
        b"RIFF"
        + struct.pack("<I", 36 + 2 * SAMPLES)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    )
    head += b"data" + struct.pack("<I", 2 * SAMPLES)
    noise = (3000 * np.random.default_rng(0).standard_normal(SAMPLES + clips)).astype("<i2")
    for index in range(clips):
        (folder / "audio" / f"{index:06d}.wav").write_bytes(head + noise[index : index + SAMPLES].tobytes())
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["fname", "label"], *([f"{i:06d}.wav", f"class{i % CLASSES}"] for i in range(clips))]
        )
    return folder


def anonymous(pid: int) -> int:
    """Kilobytes of anonymous memory of a process and all that it started."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        lists = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return 0  # it has just ended
    own = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")), 0)
    return own + sum(anonymous(int(child)) for text in lists for child in text.split())


def measured(script: str, args: list[str], folder: Path) -> tuple[float, float]:
    """Run a script; the seconds that it took, start-up included, and the peak of its anonymous memory in
    MB."""
    began, peak, ended = time.perf_counter(), 0, threading.Event()
    with subprocess.Popen(
        [sys.executable, str(ROOT / script), *args], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.01):
                peak = max(peak, anonymous(process.pid))

        thread = threading.Thread(target=watch)
        thread.start()
        said = process.communicate()[0]
        ended.set()
        thread.join()
    if process.returncode:
        raise SystemExit(f"error: {script} {' '.join(args)} left with {process.returncode}:\n{said[-2000:]}")
    return time.perf_counter() - began, peak / 1024


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[2000, 8000, 20000], help="numbers of clips, ascending"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work, kept afterwards (default: a temporary folder)"
    )
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    flags = parser.parse_args()
    from earshot.core.config import TrainMachineFlags

    streams = any(field.name == "memory" for field in dataclasses.fields(TrainMachineFlags))
    training = f"train.py, one epoch of a linear head, {'streaming' if streams else 'features in memory'}"
    names = (
        "get_features.py, logmel",
        "the same on two devices (cpu,cpu)",
        "the same again: nothing to do",
        training,
        "train.py again: nothing to do",
    )
    stages: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        base = (flags.folder or Path(scratch)).resolve()
        for clips in flags.sizes:
            data = make(base / f"clips{clips}", clips)
            extract = ["--competition", str(data), *EXTRACT]
            found = [
                measured("get_features.py", [*extract, "--device", "cpu"], base),
                measured("get_features.py", [*extract, "--device", "cpu,cpu", "--out", "two"], base),
            ]
            cache = Path("data") / data.name / "scale"
            one, two = (
                (base / at / data.name / "scale" / "train.pkl").read_bytes() for at in ("data", "two")
            )
            if one != two:
                raise SystemExit(f"error: {cache} differs between one device and two")
            measured("get_features.py", extract, base)  # reads the cache, which had only just been written
            found.append(measured("get_features.py", extract, base))
            memory = ["--memory", str(STREAM)] if streams else []
            found += [
                measured("train.py", [*TRAIN, *memory, "--features", str(cache), "--name", str(clips)], base)
                for _ in range(2)
            ]
            for name, figures in zip(stages, found, strict=True):
                stages[name].append(figures)
                print(f"{clips} clips, {name}: {figures[0]:.2f} s, {figures[1]:.0f} MB", flush=True)
    sizes, rows = np.array(flags.sizes), {}
    for name, figures in stages.items():
        seconds, peaks = np.array(figures).T
        slope, start = np.polyfit(sizes, seconds, 1)
        off = np.abs(start + slope * sizes - seconds).max() / seconds.max()
        rows[name] = (
            f"| {name} | {' / '.join(f'{s:.1f}' for s in seconds)} | {1000 * slope:.2f} ms a clip + "
            f"{start:.1f} s, off by {off:.0%} of the longest at most | "
            f"{' / '.join(f'{p:.0f}' for p in peaks)} | {peaks[-1] / peaks[0]:.2f} |"
        )
        print(rows[name])
    if not flags.no_results:
        many = " / ".join(f"{size:,}" for size in flags.sizes)
        keep_rows(
            "Scale: thousands of clips",
            [
                f"`python benchmarks/scale.py`, {machine()}, {os.cpu_count()} cores seen: {many} clips of "
                "0.25 s, log-mel (1, 64, 26). Memory: peak anonymous memory of all processes; the target is "
                "1.15 between the ends."
            ],
            f"| stage | seconds, {many} clips | linear fit | MB | last / first |",
            rows,
        )


if __name__ == "__main__":
    main()
