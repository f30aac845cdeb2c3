"""How long the page takes for a clip of 5 s, once it is open: over HTTP, decoding and all five folds included
-> RESULTS.md.

    python benchmarks/page.py --data ESC10 --weights mn04_as_mAP_432.pt [--clips 40] [--no-results]

The runs are trained for an epoch beforehand: what they have learnt makes no difference to the time. Clips
are sent one after the other to /api/predict; on the page itself pictures follow, which are drawn after the
classes are there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

from common import ROOT, keep_rows, machine, timed

LIMIT = 300.0  # milliseconds
HEADER = "| run | opened after | median | slowest | of it in the model's process, median |"


def measure(run: str, clips: list[Path], cwd: Path) -> tuple[float, list[float], list[float]]:
    """Seconds until the page is open; per clip the milliseconds of a request, and those that the reply
    tells."""
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / "app.py"), "--run", run, "--port", "0"]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        address = re.search(r"http://[\d.:]+", process.stdout.readline())[0]
        opened = time.perf_counter() - began
        urllib.request.urlopen(f"{address}/docs").read()  # the server's loop has begun
        whole, inside = [], []
        for clip in clips:
            body = clip.read_bytes()
            start = time.perf_counter()
            request = urllib.request.Request(
                f"{address}/api/predict", body, {"content-type": "application/octet-stream"}
            )
            reply = json.loads(urllib.request.urlopen(request).read())
            whole.append(1000 * (time.perf_counter() - start))
            inside.append(reply["milliseconds"])
        return opened, whole, inside
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def main() -> None:
    """Train, measure, report; exit code 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True, help="ESC-10's folder")
    parser.add_argument("--weights", required=True, help="mn04_as_mAP_432.pt")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    flags = parser.parse_args()
    data, weights = os.path.abspath(flags.data), os.path.abspath(flags.weights)
    runs = {
        "linear": ["--extractor", "efficientat", "--weights", weights],
        "small_cnn": ["--recipe", "small_cnn"],
    }
    about = {"linear": "EfficientAT mn04 + `linear`, 5 folds", "small_cnn": "log-mel + `small_cnn`, 5 folds"}
    clips, rows, missed = sorted((Path(data) / "audio").iterdir())[: flags.clips], {}, False
    with tempfile.TemporaryDirectory(prefix="page-") as scratch:
        for name, features in runs.items():
            timed("get_features.py", ["--competition", data, *features], Path(scratch))
            cache = f"data/{Path(data).name}/{'efficientat' if name == 'linear' else name}"
            training = ["--recipe", name, "--features", cache, "--epochs", "1", "--name", name, "--no-report"]
            timed("train.py", training, Path(scratch))
            opened, whole, inside = measure(name, clips, Path(scratch))
            missed |= max(whole) > LIMIT
            rows[about[name]] = (
                f"| {about[name]} | {opened:.1f} s | {median(whole):.0f} ms | {max(whole):.0f} ms "
                f"| {median(inside):.0f} ms |"
            )
    print(*rows.values(), f"{'missed' if missed else 'within'}: {LIMIT:g} ms for the slowest", sep="\n")
    if not flags.no_results:
        keep_rows(
            "The page",
            [
                f"`python benchmarks/page.py --data ESC10 --weights mn04_as_mAP_432.pt --clips {len(clips)}` "
                f"on {machine()}:",
                f"{len(clips)} clips of 5 s, sent one by one to `/api/predict` of the open page. Target: "
                f"{LIMIT:g} ms.",
                f"Load average of the machine at the end: {os.getloadavg()[0]:.1f}, this benchmark's own "
                "work included.",
            ],
            HEADER,
            rows,
        )
    sys.exit(missed)


if __name__ == "__main__":
    main()
