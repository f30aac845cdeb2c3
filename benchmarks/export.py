"""Prediction of one recording by torch, ONNX Runtime and OpenVINO, per stretch -> RESULTS.md.

    python benchmarks/export.py [--weights mn04_as_mAP_432.pt] [--repeats 15] [--only ROW ...]

A recording of a minute is one batch: 12 stretches of 5 s, for AST the 6 windows of its own length. Heads and
AST have random weights. All ways take turns in every round, and the best of each counts. Beside other work on
the machine measure with one thread (OMP_NUM_THREADS=1): torch's threads wait for each other at every layer.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, keep_rows, machine
from scipy.stats import spearmanr

sys.path.insert(0, str(ROOT))

import models
from earshot.core import graphs
from earshot.core.config import load_recipe
from earshot.export import write
from earshot.extractors import ast, efficientat
from earshot.extractors.base import Window
from earshot.features import exported
from earshot.features.precision import is_bf16_faster

MINUTE, STRETCH, CLASSES = 60.0, 5.0, 50
HEADS = {
    "small_cnn": ("small_cnn", {}),
    "crnn": ("crnn", {}),
    "timm, resnet18d": ("timm", {"backbone": "resnet18d", "weights": None}),
    "timm, efficientnet_b0": ("timm", {"weights": None}),
}
ENCODERS = ("mn04", "AST")
SMALL = 0.7  # load of the machine, before anything is measured, above which a row says so
HEADER = (
    "| network | torch, ms a stretch | ONNX Runtime | OpenVINO | ONNX Runtime, --fp16 | OpenVINO, --fp16 | "
    "largest difference, fp32 | rank correlation, --fp16 |"
)
Way = Callable[[], np.ndarray]


def name_ways() -> list[tuple[str, str, bool]]:
    """(column, runtime, fp16) of the graphs, without runtimes that are not installed."""
    names = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
    return [
        (f"{name}{', --fp16' if fp16 else ''}", runtime, fp16)
        for fp16 in (False, True)
        for runtime, name in names.items()
        if not graphs.find_missing_package(runtime)
    ]


def build_head_ways(recipe: str, options: dict[str, Any], folds: int, scratch: Path) -> dict[str, Way]:
    """Probabilities of the stretches of a minute by the folds of a recipe's head, in each way."""
    loaded = load_recipe(recipe)
    features, settings = loaded.features, {**loaded.head, **options}
    name, _ = settings.pop("name"), settings.pop("view", None)
    frames = 1 + round(STRETCH * features["rate"]) // features["hop_length"]
    shape = (1, features["n_mels"], frames)
    torch.manual_seed(0)
    heads = [models.build(name, shape, CLASSES, **settings).eval() for _ in range(folds)]
    x = torch.randn(round(MINUTE / STRETCH), *shape)
    mask = np.ones((len(x), frames), np.float32)

    @torch.inference_mode()
    def by_torch() -> np.ndarray:
        return torch.stack([head(x, None).softmax(1) for head in heads]).mean(0).numpy()

    ways: dict[str, Way] = {"torch": by_torch}
    for column, runtime, fp16 in name_ways():
        folder = scratch / f"{runtime}{fp16}"
        folder.mkdir(parents=True)
        write.write_heads(heads, 1, False, folder, runtime, fp16)
        graph = graphs.Graph(folder, "heads", runtime, 1, torch.get_num_threads())
        ways[column] = lambda graph=graph: graph.run_lanes("probabilities", x=x.numpy(), mask=mask)
    return ways


def build_encoder_ways(
    build: Callable[[], Any], view: str, scratch: Path, halves: Callable[[], Any] | None = None
) -> tuple[dict[str, Way], int]:
    """A view of the windows of a minute, from its samples, in each way; and the number of windows.

    Args:
        build: gives the extractor. halves: the same in bf16, where torch is faster with it.
    """
    first = build()
    wave = np.random.default_rng(0).standard_normal(round(MINUTE * first.rate)).astype(np.float32) / 10

    def make(extractor: Any) -> Way:
        return lambda: extractor.extract([wave], [0.0], 16)[0].views[view].astype(np.float32)

    ways = {"torch": make(first)} | ({"torch in bf16": make(halves())} if halves else {})
    trial = wave[: 2 * first.samples].reshape(2, -1)
    for column, runtime, fp16 in name_ways():
        folder, extractor = scratch / f"{runtime}{fp16}", build()
        folder.mkdir(parents=True)
        write.write_network(extractor, trial, folder, runtime, fp16)
        exported.load_network(extractor, folder, runtime)
        ways[column] = make(extractor)
    return ways, len(first.cut_windows(wave))


def measure(ways: dict[str, Way], repeats: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Seconds of each way at its best, all in turn in every round, and what each gave."""
    found = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: min(times) for name, times in seconds.items()}, found


def format_row(
    key: str, ways: dict[str, Way], stretches: int, repeats: int, load: float
) -> list[tuple[str, str]]:
    """The table's rows of a network: its name and the line; a second one against torch in bf16.

    Args:
        load: of the machine before anything was measured.
    """
    busy = f" (machine busy, load {load:.1f})" if load > SMALL else ""
    seconds, found = measure(ways, repeats)
    columns = ["ONNX Runtime", "OpenVINO", "ONNX Runtime, --fp16", "OpenVINO, --fp16"]
    wanted = found["torch"].ravel()
    full = [float(np.abs(found[name].ravel() - wanted).max()) for name in columns[:2] if name in found]
    ranks = [spearmanr(found[name].ravel(), wanted).statistic for name in columns[2:] if name in found]
    rows = []
    for base in ("torch", "torch in bf16"):
        if base not in seconds:
            continue
        cells = [f"{1000 * seconds[base] / stretches:.2f}{busy}"]
        for name in columns:
            there = name in seconds
            cells.append(
                f"{1000 * seconds[name] / stretches:.2f} ({seconds[base] / seconds[name]:.1f}x)"
                if there
                else "-"
            )
        cells += [f"{max(full, default=np.nan):.1e}", f"{min(ranks, default=np.nan):.6f}"]
        name = f"{key}{'' if base == 'torch' else ', torch in bf16'}"
        rows.append((name, f"| {name} | {' | '.join(cells)} |"))
    return rows


def main() -> None:
    """Measure row by row; the table is written after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="mn04_as_mAP_432.pt; without it no row of mn04")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folds", type=int, default=1, help="heads in one graph")
    parser.add_argument("--only", nargs="+", choices=[*HEADS, *ENCODERS], default=[*HEADS, *ENCODERS])
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    load = os.getloadavg()[0]
    if load > SMALL:
        print(f"warning: the machine is busy (load {load:.1f}): measure again when it is idle", flush=True)
    title = f"Exported networks on {machine()}"
    about = [
        "`python benchmarks/export.py --weights mn04_as_mAP_432.pt`, with OMP_NUM_THREADS=1 for the rows",
        "of one thread. A minute of audio is one batch: milliseconds a stretch of 5 s (AST: a window of",
        "its 10.24 s), and how many times as fast as torch in the same run. Heads are timed from the",
        "features, encoders from the samples, their spectrograms by torch. Differences are of",
        "probabilities; for encoders of the features, rounded to float16. `--fp16` halves the files; sums",
        "stay in fp32. The best of the rounds counts.",
    ]
    for name in flags.only:
        with tempfile.TemporaryDirectory() as folder:
            scratch, stretches = Path(folder), round(MINUTE / STRETCH)
            key = f"{name}, {flags.folds} folds" if flags.folds > 1 and name in HEADS else name
            if name in HEADS:
                ways = build_head_ways(*HEADS[name], flags.folds, scratch)
            elif name == "mn04":
                if flags.weights is None:
                    print("mn04: skipped without --weights", flush=True)
                    continue
                ways, stretches = build_mn04_ways(scratch, str(flags.weights))
            else:
                ways, stretches = build_ast_ways(scratch)
            key += f", threads: {torch.get_num_threads()}"
            for row, line in format_row(key, ways, stretches, flags.repeats, load):
                print(line, flush=True)
                keep_rows(title, about, HEADER, {row: line}, flags.out)


def build_mn04_ways(scratch: Path, weights: str) -> tuple[dict[str, Way], int]:
    """EfficientAT mn04 on stretches."""

    def build() -> Any:
        window = Window(STRETCH, None, "wrap", None, 32000)
        return efficientat.Extractor(efficientat.Settings(), window, weights=weights)

    return build_encoder_ways(build, "pooled", scratch)


def build_ast_ways(scratch: Path) -> tuple[dict[str, Way], int]:
    """AST in full size with random weights, also in bf16 where that is faster."""
    from extraction import saved_ast

    saved_ast(scratch / "ast")

    def build(precision: str = "fp32") -> Any:
        window = Window(10.24, None, "silence", None, 16000)
        return ast.Extractor(
            ast.Settings(views=("pooled",)), window, weights=str(scratch / "ast"), precision=precision
        )

    return build_encoder_ways(build, "pooled", scratch, (lambda: build("bf16")) if is_bf16_faster() else None)


if __name__ == "__main__":
    main()
