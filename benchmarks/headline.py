"""The ITMO winner's four hours: AST's features cached once, against AST inside the training loop, same clips,
same head.

    python benchmarks/headline.py --data ESC10               # into benchmarks/RESULTS.md
    python benchmarks/headline.py --data ESC10 --clips 10 --no-results

What is counted: 15 epochs of one fold of 400 clips (320 trained on, 80 validated), in batches of 10, the
head that was published.
Cached: `get_features.py` as a user runs it, start-up included, then the kit's own training steps on the
features, in the precision that it would choose. In the loop: the same steps with AST in full size below the
head, in fp32, trained as published, or frozen; decoding and the front end, which such a loop does in every
epoch, are left out. AST's weights are random: the time does not depend on them. Measured are so many clips
and steps; the rest is scaled, as printed.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import noise  # first: it says where the kit is
import numpy as np
import torch
from common import keep_rows, machine, timed
from extraction import saved_ast

from earshot.core.device import choose, get_autocast
from earshot.training.precision import choose_precision
from earshot.training.trainer import predict

TRAINED, VALIDATED, EPOCHS, BATCH = 320, 80, 15, 10
STEPS, TARGET = 2, 10


def part_of(data: Path, folder: Path, count: int) -> Path:
    """A competition of so many of ESC-10's clips, from all folds and classes alike."""
    with open(next((data / "meta").glob("*.csv")), newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["filename"])
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)]
    (folder / "meta").mkdir(parents=True)
    (folder / "audio").symlink_to((data / "audio").resolve())
    with open(folder / "meta" / "clips.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(chosen)
    return folder


def extraction(data: Path, weights: Path, scratch: Path, count: int) -> float:
    """Seconds of `get_features.py` a clip, its start-up shared out among these few."""
    part_of(data, scratch / "clips", count)
    command = ["--competition", str(scratch / "clips"), "--recipe", "itmo2025", "--weights", str(weights)]
    return timed("get_features.py", command, scratch) / count


def seconds_of(work: Callable[[int], Any]) -> float:
    """Median seconds of a piece of work, done once before."""
    found = []
    for number in range(STEPS + 1):
        began = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def training(recipe: str, scratch: Path, precision: str, **changes: Any) -> tuple[float, float, Any]:
    """Seconds of a step of the kit's own training, and of a clip that is predicted; the head."""
    case = noise.case(recipe, **changes)
    device = choose("cpu", precision)
    rows = np.arange(BATCH)
    if precision == "auto":
        device = choose_precision(case.build(), noise.rows(case, 2 * BATCH), case.training, device)
        print(f"{recipe}: {device.precision}")
    fitter = noise.fitter(case, scratch / recipe, device, 2 * BATCH, epochs=STEPS + 1)
    step = seconds_of(
        lambda number: float(
            fitter.step(
                1 + number // fitter.steps, number % fitter.steps, fitter.rows.load_training_batch(rows)
            )
        )
    )
    valid = seconds_of(
        lambda number: predict(fitter.head, fitter.rows, rows, BATCH, get_autocast(fitter.device))
    )
    return step, valid / BATCH, fitter.head


def main() -> None:
    """Measure, scale, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="ESC-10 as published: audio/ and meta/")
    parser.add_argument("--clips", type=int, default=100, help="so many clips are extracted to measure")
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headline-") as name:
        scratch = Path(name)
        saved_ast(scratch / "weights")
        clip = extraction(flags.data.resolve(), scratch / "weights", scratch, flags.clips)
        own = training("itmo2025", scratch, "auto")
        # it fits here, and costs a third more
        loop = training("itmo2025_finetune", scratch, "fp32", gradient_checkpointing=False)
        network, windows = loop[2].ast.eval(), torch.zeros(BATCH, 1024, 128)
        with torch.inference_mode():
            frozen = seconds_of(lambda number: network(windows)) / BATCH
    clips, steps = TRAINED + VALIDATED, TRAINED // BATCH
    head = EPOCHS * (steps * own[0] + VALIDATED * own[1])
    ours = clips * clip + head
    ways = {
        "features cached": (
            ours,
            f"{flags.clips} clips by `get_features.py` ({1000 * clip:.0f} ms each), {STEPS} steps of the "
            f"head ({own[0]:.2f} s each)",
        ),
        "AST frozen in the loop": (
            EPOCHS * clips * frozen + head,
            f"{STEPS} passes of {BATCH} clips ({1000 * frozen:.0f} ms a clip)",
        ),
        "AST trained in the loop, as published": (
            EPOCHS * (steps * loop[0] + VALIDATED * loop[1]),
            f"{STEPS} steps ({loop[0]:.1f} s each), passes of {BATCH} clips ({1000 * loop[1]:.0f} ms a clip)",
        ),
    }
    rows = {
        key: f"| {key} | {seconds / 60:.1f} min | {seconds / ours:.1f} | {how} |"
        for key, (seconds, how) in ways.items()
    }
    print(*rows.values(), sep="\n")
    print(f"target: {TARGET} times the cached way for AST trained in the loop")
    if not flags.no_results:
        keep_rows(
            f"The headline on {machine()}",
            [
                "`python benchmarks/headline.py --data ESC10`: 15 epochs of one fold of 400 clips, batches "
                "of 10, ITMO's head",
                "as published, extraction included; SCALED from what the last column says was measured. "
                f"Target: {TARGET} times.",
                "AST in full size, random weights. In the loop it computes in fp32, without decoding or "
                "front end; the kit as it is used.",
            ],
            "| way | 15 epochs | times the cached way | measured |",
            rows,
        )


if __name__ == "__main__":
    main()
