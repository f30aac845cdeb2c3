"""Training models side by side on a CPU: a process of one thread each, beside one process with all threads.

    python benchmarks/side_by_side.py        # into benchmarks/RESULTS.md

A step is forward and backward of a batch with cross-entropy, after two that are not counted; medians.
"""

from __future__ import annotations

import multiprocessing
import sys
import time

from common import ROOT, keep_rows, machine

sys.path.insert(0, str(ROOT))

SECONDS = 4.0
HEADS = {  # name: head, shape of a row, batch
    "`efficientat` (mn04), 1 s": ("efficientat", (1, 128, 101), 16),
    "`efficientat` (mn04), 5 s": ("efficientat", (1, 128, 501), 16),
    "`efficientat` (mn04), 5 s, large batch": ("efficientat", (1, 128, 501), 64),
    "`token_transformer`": ("token_transformer", (1, 157, 480), 16),
    "`convnext1d`": ("convnext1d", (1, 128, 251), 16),
    "`crnn`": ("crnn", (1, 64, 251), 32),
    "`audio_cnn`": ("audio_cnn", (1, 64, 251), 16),
}


def measure(key: str, threads: int) -> float:
    """Median seconds of a step."""
    import numpy as np
    import torch

    import models

    name, shape, batch = HEADS[key]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    head = models.build(name, shape, 10).train()
    x, labels, times = torch.randn(batch, *shape), torch.arange(batch) % 10, []
    end = time.perf_counter() + SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        torch.nn.functional.cross_entropy(head(x, None), labels).backward()
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


def main() -> None:
    """A row a head."""
    import torch

    threads, rows = torch.get_num_threads(), {}
    context = multiprocessing.get_context("spawn")
    for key, (_, shape, batch) in HEADS.items():
        with context.Pool(1) as pool:
            alone = pool.apply(measure, (key, threads))
        with context.Pool(threads) as pool:
            beside = pool.starmap(measure, [(key, 1)] * threads, chunksize=1)
        each = sum(beside) / len(beside) / threads
        shape_text = "×".join(map(str, shape))
        case = f"{key}: {batch} of {shape_text}"
        rows[case] = f"| {case} | {1e3 * alone:.1f} | {1e3 * each:.1f} | {alone / each:.2f} |"
        print(rows[case], flush=True)
    keep_rows(
        f"Models side by side on {machine()}",
        [
            "`python benchmarks/side_by_side.py`: milliseconds of forward and backward, by one process of",
            f"{threads} threads; side by side: of one of {threads} processes of one, divided by {threads}.",
        ],
        "| head, batch | one process | side by side | one process / side by side |",
        rows,
    )


if __name__ == "__main__":
    main()
