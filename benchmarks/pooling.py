"""Ways to pool frames, several seeds each, on EfficientAT's features and on log-mel frames -> RESULTS.md.

    python benchmarks/pooling.py --data ESC10 FSDD --weights mn04_as_mAP_432.pt [--seeds 5] [--only WAY ...]

FSDD is a folder of spoken digits with a column of speakers, which no two folds share. scikit-learn's heads
have no seed. Times are the median of a run, without start-up and report.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT, keep_rows, machine, timed

sys.path.insert(0, str(ROOT))

HEADER = "| data, view, way | seeds | macro F1 | log loss | seconds |"
ABOUT = [
    "`python benchmarks/pooling.py --data ESC10 FSDD --weights mn04_as_mAP_432.pt`: out of fold, last epoch,",
    "mean ± sample standard deviation over the seeds. Folds of FSDD: other speakers. `attentive`'s settings",
    "were chosen on `mel` of two of FSDD's folds with another seed: that row is a little optimistic.",
]
POOLS = ("mean", "mean_max", "mean_std")
FRAMES = {
    f"{recipe} {pool}": [recipe, "--head.pool", pool] for recipe in ("linear", "logistic") for pool in POOLS
}
TOKENS = {"mlp": ["mlp"], "attentive": ["attentive"]}
# `logistic` takes its own statistics of a spectrogram
WAYS = {
    ("efficientat", "pooled"): {"linear": ["linear"], "logistic": ["logistic"]},
    ("efficientat", "frames"): {**FRAMES, **TOKENS},
    ("logmel", "mel"): {**{name: way for name, way in FRAMES.items() if way[0] == "linear"}, **TOKENS},
}


def measure(cache: Path, view: str, way: list[str], seeds: int, scratch: Path) -> tuple[str, float]:
    """Mean and deviation of the scores over the seeds as cells of a row, and the seconds of a run."""
    import train

    os.chdir(scratch)
    scores, seconds = [], []
    seeds = 1 if way[0] == "logistic" else seeds
    for seed in range(seeds):
        flags = ["--features", str(cache), "--view", view, "--seed", str(seed), "--name", "r", "--fresh"]
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            train.main(["--recipe", *way, *flags, "--no-report"])
        seconds.append(time.perf_counter() - began)
        scores.append(json.loads((scratch / "runs" / "r" / "scores.json").read_text())["last"])
    cells = []
    for key in ("f1_macro", "log_loss"):
        values = [one[key] for one in scores]
        cells.append(f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if seeds > 1 else ""))
    return f"{seeds} | {' | '.join(cells)}", float(np.median(seconds))


def main() -> None:
    """Extract, train every way with every seed; the table is written after each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of ESC-10 and FSDD")
    parser.add_argument("--weights", type=Path, required=True, help="mn04_as_mAP_432.pt")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="ways, as in the table")
    parser.add_argument("--views", nargs="+", help="views, as in the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    weights = {"efficientat": ["--weights", str(flags.weights.resolve())], "logmel": ["--n-mels", "64"]}
    with tempfile.TemporaryDirectory() as folder:
        for data in flags.data:
            for (extractor, view), ways in WAYS.items():
                if flags.views and view not in flags.views:
                    continue
                scratch = Path(folder)
                cache = scratch / "data" / data.resolve().name / extractor
                timed(
                    "get_features.py",
                    ["--competition", str(data.resolve()), "--extractor", extractor, *weights[extractor]],
                    scratch,
                )
                for name, way in ways.items():
                    if flags.only and name not in flags.only and name.split()[0] not in flags.only:
                        continue
                    cells, seconds = measure(cache, view, way, flags.seeds, scratch)
                    key = f"{data.resolve().name}, `{view}`, {name}"
                    row = f"| {key} | {cells} | {seconds:.0f} |"
                    keep_rows(
                        f"Pooling of frames on {machine()}",
                        ABOUT,
                        HEADER,
                        {key: row},
                        flags.out,
                    )
                    print(row, flush=True)


if __name__ == "__main__":
    main()
