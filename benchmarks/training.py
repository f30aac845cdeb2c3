"""Training on cached features beside a plain DataLoader loop and transformers' Trainer, same head, same
features, one process.

    python benchmarks/training.py                       # everything, into benchmarks/RESULTS.md
    python benchmarks/training.py --only linear mlp --no-results

Features are made up (400 clips; speed does not depend on the audio). All train with the recipe's
optimiser and batch, without augmentation, and evaluate after every epoch: the peers by loss and macro-F1.
Rounds in turn, medians. "Bare" is the head's own forward, backward and optimiser step on batches that lie
ready, and its forward over the validation rows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from common import keep_rows, machine
from peers import NEVER, Bench, Case, trainer_fault
from synthetic import make_cache  # puts the kit on the path

import models
import train
from earshot.core.config import TrainingFlags
from earshot.core.device import choose
from earshot.features.cache import Cache
from earshot.training import dataset
from earshot.training.checkpoint import FoldFolder
from earshot.training.trainer import Fold, Trainer

SHAPES = {"pooled": (384, 1, 1), "frames": (384, 4, 16), "mel": (1, 64, 251)}
CASES = {
    "linear": Case("linear", "pooled", epochs=60, rounds=3),
    "mlp": Case("mlp", "pooled", epochs=40, rounds=3),
    "token_transformer": Case("itmo2025_tokens", "frames", clips=200, epochs=1, rounds=3),
    "small_cnn": Case("small_cnn", "mel", clips=160, epochs=1, rounds=3),
    "small_cnn, augmented": Case("small_cnn", "mel", clips=160, epochs=1, rounds=3, augmented=True),
}


def compare(name: str, cache: Cache, with_trainer: bool) -> str:
    """A head's row: medians over rounds in which all take their turn."""
    bench = Bench(CASES[name], cache)
    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: bench.ours(bench.decided),
        "bare": lambda: bench.bare(bench.decided),
        "loop": bench.loop,
    }
    ways |= {"fp32": lambda: bench.ours(bench.device)} if bench.decided != bench.device else {}
    ways |= {"trainer": bench.trainer} if with_trainer else {}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(bench.case.rounds + (bench.case.epochs > 1)):  # small heads have a round to warm up
        for way, run in ways.items():
            times[way].append(run())
    took = {way: statistics.median(found[bench.case.epochs > 1 :]) for way, found in times.items()}
    how = bench.decided.precision + (" channels-last" if bench.decided.channels_last else "")
    ratio = {way: f"{took[way] / took['ours']:.2f}" if way in took else "-" for way in ("loop", "trainer")}
    same = f" (fp32: {took['loop'] / took['fp32']:.2f})" if "fp32" in took else ""
    return (
        f"| {name} on `{bench.case.view}` | {how} | {1 / took['ours']:.3g} | {1 / took['loop']:.3g} | "
        f"{ratio['loop']}{same} | {ratio['trainer']} | {100 * (took['ours'] / took['bare'] - 1):+.0f} % |"
    )


def five_folds(folder: Path, runs: int = 3) -> str:
    """The whole `train.py --recipe linear` run, its imports done: seconds, the median."""
    found = []
    for number in range(runs + 1):  # the first one imports
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            train.main(
                [
                    "--recipe",
                    "linear",
                    "--features",
                    str(folder),
                    "--runs-folder",
                    str(folder.parents[2] / "runs"),
                    "--name",
                    str(number),
                    "--out",
                    str(folder.parents[2] / "submission.csv"),
                    "--device",
                    "cpu",
                ]
            )
        found.append(time.perf_counter() - began)
    return (
        f"| 5 folds of `linear`, 60 epochs, 400 embeddings | {statistics.median(found[1:]):.1f} s (with "
        f"imports {found[0]:.1f}) |"
    )


def streaming(cache: Cache) -> str:
    """Epochs of a small CNN from the memory map against features that are kept."""
    settings, device, found = TrainingFlags(epochs=2), choose("cpu"), {}
    for _ in range(3):
        for name, gigabytes in (("kept", None), ("streamed", 0.0)):
            rows = dataset.load_training_rows(cache, "mel", (), settings, device, gigabytes)
            with tempfile.TemporaryDirectory() as folder:
                fold = Fold(1, 5, rows.folds != 1, rows.folds == 1)
                fitter = Trainer(
                    lambda: models.build("audio_cnn", SHAPES["mel"], 10, channels=[8, 16], blocks=[1, 1]),
                    rows,
                    fold,
                    settings,
                    10,
                    FoldFolder(Path(folder)),
                    device,
                )
                began = time.perf_counter()
                fitter.fit(str, NEVER, 0)
                found.setdefault(name, []).append(time.perf_counter() - began)
    ratio = statistics.median(found["streamed"]) / statistics.median(found["kept"])
    return (
        f"| `--memory 0` (read from the disk) against kept, time of an epoch of a small CNN | {ratio:.2f} |"
    )


def one_token() -> list[str]:
    """inception_transformer at its published size against nn.TransformerEncoder over the one token: forward
    and backward."""
    from models import inception_transformer as module

    head, x = models.build("inception_transformer", (768, 1, 1), 41).train(), torch.randn(2, 768, 1, 1)
    token, alone, found = torch.randn(32, 512), module.isolate_clips, {}

    def encoder() -> torch.Tensor:
        out = token
        for layer in head.transformer.layers:
            out = module.isolate_clips(layer, out)
        return out

    for number in range(4):
        for way, one in (("before", lambda layer, x: layer(x[:, None])[:, 0]), ("after", alone)):
            module.isolate_clips = one
            for part, run in (("transformer", encoder), ("whole", lambda: head(x, None))):
                head.zero_grad()
                began = time.perf_counter()
                run().square().mean().backward()
                if number:
                    found.setdefault((part, way), []).append(time.perf_counter() - began)
    module.isolate_clips = alone
    took = {key: statistics.median(values) for key, values in found.items()}
    return [
        f"| `inception_transformer` as published, {what}: before / after | {1000 * took[part, 'before']:.0f} "
        f"/ {1000 * took[part, 'after']:.0f} ms, {took[part, 'before'] / took[part, 'after']:.2f} |"
        for part, what in (("transformer", "its 12 layers, 32 clips"), ("whole", "the whole step, 2 clips"))
    ]


def main() -> None:
    """Make the features, run the comparisons, print and keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=[*CASES, "others"], default=[*CASES, "others"])
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    flags = parser.parse_args()
    warnings.filterwarnings("ignore")
    fault = trainer_fault()
    if fault:
        print(f"without transformers' Trainer: {fault}")
    rows, others = {}, []
    with tempfile.TemporaryDirectory() as folder:
        whole = make_cache(Path(folder) / "data" / "synthetic" / "all", SHAPES)
        for name in CASES:
            if name in flags.only:
                line = compare(name, Cache(whole), fault is None)
                rows[line.split(" | ")[0].removeprefix("| ")] = line
                print(line, flush=True)
        if "others" in flags.only:
            small = make_cache(Path(folder) / "data" / "synthetic" / "pooled", {"pooled": SHAPES["pooled"]})
            others = [five_folds(small), streaming(Cache(whole)), *one_token()]
            print("\n".join(others))
    if flags.no_results:
        return
    about = [
        f"`python benchmarks/training.py` on {machine()}; {torch.get_num_threads()} threads. Medians of "
        "rounds in turn."
    ]
    if rows:
        keep_rows(
            "Training beside its peers",
            [
                *about,
                "Ours with the precision and layout that a trial chose, all peers in fp32. Without "
                "augmentation, except where the",
                "head says so: there ours augments and the peers do not. Overhead: over the head's own "
                "forward, backward and optimiser step.",
            ],
            "| head | ours computes in | ours, epochs/s | DataLoader loop | times as fast | than Trainer | "
            "overhead |",
            rows,
        )
    if others:
        keep_rows(
            "Training, more",
            about,
            "| what | measured |",
            {line.split(" | ")[0].removeprefix("| "): line for line in others},
        )


if __name__ == "__main__":
    sys.exit(main())
