"""All that is worth knowing about a GPU in one table, in under 8 minutes: extraction, training and memory
under a cap of 16 GB.

    python benchmarks/gpu.py [--weights mn04_as_mAP_432.pt]        # into benchmarks/RESULTS.md
    python benchmarks/gpu.py --device cpu --quick --no-results     # the same code in a minute, its figures
        worth nothing

The rate of large matrix products is measured first: AST's share of the chip is that of its own operations,
by torch's counter, in this rate. Clips are noise of 10 s (AST) and 5 s, written as WAV; AST's weights are
random, and so are the recipes' features. The whole way is `extract.Worker`: decoding, front end, network,
shards and their checksums. fp16 is the way a T4 goes.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import noise  # first: it says where the kit is
import numpy as np
import soundfile
import torch
from common import keep_rows, machine
from extraction import Ours, saved_ast

from earshot.core.device import Device, choose
from earshot.core.disk_space import format_bytes

CARD, SIDE, BATCH = 16e9, 8192, 64
TARGET = 0.5  # of the matrix products' rate
MINUTES = 8  # recipes that are left when this time is over are left out, and said to be
HEADER = "| what | per second | share of the chip, or of the network alone | peak memory |"


def rate(work: Callable[[], Any], device: Device, least: float, least_rounds: int = 3) -> float:
    """Calls a second: done once before, then for so many seconds, a median of rounds."""

    def wait() -> None:
        if device.name != "cpu":
            torch.cuda.synchronize()

    work()
    wait()
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < least_rounds or time.perf_counter() - began < least:
        before = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - before)
    return 1 / median(found)


def forget(device: Device) -> None:
    """Start the count of the peak anew."""
    if device.name != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: Device) -> str:
    """The most that the allocator gave out since `forget`."""
    return "" if device.name == "cpu" else format_bytes(torch.cuda.max_memory_allocated())


def products(device: Device, side: int, least: float) -> float:
    """Operations a second of square matrix products in the device's precision."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[device.precision]
    a, b = (torch.randn(side, side, device=device.name).to(kind) for _ in range(2))
    return 2 * side**3 * rate(lambda: a @ b, device, least)


def operations(folder: Path) -> float:
    """Operations of the whole AST for one clip of 10 s, the last layer included that the kit passes over in
    part."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import ASTModel

    network = ASTModel.from_pretrained(folder, attn_implementation="eager").eval().to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 1024, 128, device="meta"))
    return float(counter.get_total_flops())


def noises(folder: Path, clips: int, seconds: float) -> Path:
    """A competition of noise."""
    (folder / "audio").mkdir(parents=True)
    random = np.random.default_rng(0)
    with open(folder / "train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fname", "label"])
        for number in range(clips):
            wave = 0.1 * random.standard_normal(int(seconds * 16000)).astype(np.float32)
            soundfile.write(folder / "audio" / f"{number}.wav", wave, 16000)
            writer.writerow([f"{number}.wav", f"class{number % 2}"])
    return folder


def extraction(
    name: str,
    weights: str | None,
    data: Path,
    scratch: Path,
    device: Device,
    quick: bool,
    flops: tuple[float, float] | None = None,
) -> list[str]:
    """Two rows: the network on windows that lie ready, and the whole way from files to shards.

    Args:
        flops: operations of a clip and the chip's rate, for the share of the chip.
    """
    forget(device)
    batch = 2 if quick else BATCH
    ours = Ours(data, scratch / f"{name}-{device.precision}", name, weights, 10**6, device, batch)
    extractor, least = ours.worker.extractor, 0.1 if quick else 3.0
    windows = 0.1 * np.random.default_rng(0).standard_normal((batch, extractor.samples)).astype(np.float32)
    with torch.inference_mode():
        ready = torch.from_numpy(windows).to(device.name)

        def network() -> None:
            with extractor.use_precision():
                extractor.forward(ready, [extractor.window.seconds] * batch)

        alone = batch * rate(network, device, least)
    ours.features()
    began = time.perf_counter()
    ours.features()
    whole = len(ours.paths) / (time.perf_counter() - began)
    ours.worker.close()
    share = f"{100 * alone * flops[0] / flops[1]:.0f} % of the chip" if flops else ""
    return [
        f"| {name}, front end and network, {device.precision} | {alone:.1f} clips | {share} | {peak(device)} "
        "|",
        f"| {name}, files to shards, {device.precision} | {whole:.1f} clips | {100 * whole / alone:.0f} % of "
        "the network alone | |",
    ]


def training(name: str, device: Device, quick: bool) -> str:
    """A recipe's steps a second at its own batch size, and their peak."""
    case = noise.case(name)
    batch = case.training.batch_size
    forget(device)
    with tempfile.TemporaryDirectory() as folder:
        fitter = noise.fitter(case, Path(folder), device, 2 * batch, epochs=1000)
        rows, number = np.arange(batch), 0

        def step() -> None:
            nonlocal number
            fitter.step(
                1 + number // fitter.steps, number % fitter.steps, fitter.rows.load_training_batch(rows)
            )
            number += 1

        steps = rate(step, device, 0.1 if quick else 2.0)
        split = f", {fitter.micro} rows a pass" if fitter.micro < batch else ""
    return f"| `{name}`, batch of {batch}{split}, {device.precision} | {steps:.2f} steps | | {peak(device)} |"


def main() -> None:
    """Measure, print, keep; exit code 2 where there is no GPU and none was done without."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script")
    parser.add_argument("--weights", help="mn04_as_mAP_432.pt, for EfficientAT")
    parser.add_argument("--recipe", action="append", help="only these (repeatable; default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes and two recipes: does it work?")
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    flags = parser.parse_args()
    began = time.perf_counter()
    if flags.device != "cpu" and not torch.cuda.is_available():
        print(
            f"error: --device {flags.device}: torch sees no GPU here; --device cpu --quick tries the script",
            file=sys.stderr,
        )
        sys.exit(2)
    if flags.device != "cpu":
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, CARD / torch.cuda.get_device_properties(flags.device).total_memory)
        )
    wanted = choose(flags.device).precision
    rows: list[str] = []
    left_out: list[str] = []

    def say(*lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        rows.extend(lines)

    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        scratch = Path(name)
        saved_ast(scratch / "ast", **({"num_hidden_layers": 2} if flags.quick else {}))
        each = operations(scratch / "ast")
        ten, five = (
            noises(scratch / "ten", 4 if flags.quick else 512, 10),
            noises(scratch / "five", 4 if flags.quick else 1024, 5),
        )
        for precision in dict.fromkeys([wanted, *(["fp32"] if flags.device == "cpu" else ["fp16", "fp32"])]):
            device = choose(flags.device, precision)
            speed = products(device, 256 if flags.quick else SIDE, 0.1 if flags.quick else 2.0)
            say(f"| matrix products, {precision} | {speed / 1e12:.1f} T operations | 100 % of the chip | |")
            say(
                *extraction(
                    "ast", str(scratch / "ast"), ten, scratch / "out", device, flags.quick, (each, speed)
                )
            )
        device = choose(flags.device)
        say(*extraction("logmel", None, five, scratch / "out", device, flags.quick))
        if flags.weights:
            say(*extraction("efficientat", flags.weights, five, scratch / "out", device, flags.quick))
    for recipe in flags.recipe or (["linear", "sample"] if flags.quick else noise.trained()):
        if time.perf_counter() - began > 60 * MINUTES:
            left_out.append(recipe)
            continue
        try:
            say(training(recipe, choose(flags.device), flags.quick))
        except RuntimeError as error:  # one that does not fit must not take the others' figures with it
            say(f"| `{recipe}` | failed: {str(error).splitlines()[0][:80]} | | |")
    if left_out:
        print(f"left out, {MINUTES} minutes are over: {', '.join(left_out)}")
    if not flags.no_results:
        keep_rows(
            f"A GPU: {machine()}",
            [
                f"`python benchmarks/gpu.py` on {choose(flags.device).about}, the allocator capped at 16 GB. "
                "Target: AST's network in",
                f"{wanted} at {100 * TARGET:.0f} % of the measured rate of matrix products, and files to "
                "shards as fast as the network alone.",
            ],
            HEADER,
            {row.split(" | ")[0].removeprefix("| "): row for row in rows},
        )


if __name__ == "__main__":
    main()
