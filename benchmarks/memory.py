"""What every recipe takes of a GPU's memory and of the disk, at its own batch size -> RESULTS.md.

    python benchmarks/memory.py [--recipe R ...] [--no-results]

Where there is a GPU: by the CUDA allocator, two steps of the kit's own Fitter under a cap of 16 GB. Else it
is computed: the storages that are alive at the worst moment of two steps (forward, loss, backward, optimiser)
and of an evaluation, without computing any of it (fake.py). That leaves out what kernels take inside
themselves, the allocator's rounding and CUDA's own half gigabyte: hence a target of 15 GB and not of 16.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fake
import noise  # first: it says where the kit is
import numpy as np
import torch
from common import keep_rows, machine

from earshot.core import config, disk_space
from earshot.core.device import choose
from earshot.features.plan import estimate_bytes
from earshot.training import experiment, optim
from earshot.training.loss import Criterion

# bytes; a quarter of the card may hold the features themselves
CARD, LIMIT, RESIDENT, KAGGLE = 16e9, 15e9, 4e9, 20e9
EXTRACTED = config.ExtractionFlags().batch_size
CLIPS = (2000, 10000)


def computed_peaks(case: noise.Case, precision: str) -> tuple[int, int]:
    """Bytes of training and of an evaluation in its course; fp16 is autocast's: the weights stay float32
    beside their copies."""
    settings = case.training
    networks = [case.build() for _ in range(2 if settings.ema else 1)]

    def work(head: torch.nn.Module, *average: torch.nn.Module) -> Iterator[None]:
        optimizer = optim.build_optimizer(head, settings)
        for group in optimizer.param_groups:
            group["foreach"] = True  # as on a GPU: all tensors at a time
        batch, targets = _batch(case, head, settings.batch_size)
        criterion = Criterion(False, settings.label_smoothing, None)

        def gradients() -> None:
            optimizer.zero_grad(set_to_none=True)
            with _autocast(precision):
                if head.has_own_loss():
                    loss = head.loss(batch, lambda logits, plain=False: criterion(logits, targets))
                else:
                    loss = criterion(head(batch["x"], None), targets)
            loss.backward()

        for _ in range(2):  # the optimiser's tensors are there from the first step on
            gradients()
            if settings.optimizer == "sam":
                before = optim.ascend_sam(head, settings.rho)
                gradients()
                optim.restore_sam(before)
            optimizer.step()
        yield
        batch.clear()
        with torch.no_grad(), _autocast(precision):
            head.eval()(_batch(case, head, evaluated(case))[0]["x"], None)
        yield

    training, evaluation = fake.peaks(networks, work)
    return training, evaluation


def evaluated(case: noise.Case) -> int:
    """Rows of an evaluation's pass, as `Run.at_once` has it."""
    return min(64, 2 * case.training.batch_size)


def _batch(case: noise.Case, head: torch.nn.Module, size: int) -> tuple[dict, torch.Tensor]:
    x = torch.empty(size, *case.shapes[case.view])
    batch = {"x": x, "mask": None}
    if head.has_own_loss():
        further = {name: torch.zeros(size, *case.shapes[name], dtype=torch.int64) for name in head.also}
        batch |= {"plain": torch.empty_like(x), "plain_mask": None, **further}
    return batch, torch.empty(size, noise.CLASSES)


def _autocast(precision: str):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32")


def extraction_peaks(precision: str) -> dict[str, int]:
    """Bytes of the published AST's and EnCodec's forward passes at the default batch size, computed; less
    their front ends."""
    from transformers import ASTConfig, ASTModel, EncodecConfig, EncodecModel

    def ast(network: torch.nn.Module) -> Iterator[None]:
        with torch.no_grad(), _autocast(precision):
            network.eval()(torch.empty(EXTRACTED, 1024, 128))
        yield

    def encodec(network: torch.nn.Module) -> Iterator[None]:
        with torch.no_grad():  # in fp32 always
            network.eval().quantizer.encode(network.encoder(torch.empty(EXTRACTED, 1, 24000 * 5)), 1.5)
        yield

    # EnCodec reckons its padding with tensors.
    return {
        "ast": fake.peaks([ASTModel(ASTConfig())], ast)[0],
        "encodec": fake.peaks([EncodecModel(EncodecConfig())], encodec, values=True)[0],
    }


def measured_peaks(case: noise.Case, precision: str, device: str = "cuda") -> tuple[float, float]:
    """As `computed_peaks`, by the CUDA allocator from the kit's own Fitter; infinite where the batch did not
    fit."""
    from earshot.training.trainer import get_autocast, predict

    batch, found = case.training.batch_size, []
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        fitter = noise.fitter(
            case, Path(folder), choose(device, precision), max(2 * batch, evaluated(case)), epochs=1
        )
        for work in (
            lambda: [
                fitter.step(1, number, fitter.rows.load_training_batch(np.arange(batch)))
                for number in range(2)
            ],
            lambda: predict(
                fitter.predictor,
                fitter.rows,
                np.arange(evaluated(case)),
                evaluated(case),
                get_autocast(fitter.device),
            ),
        ):
            torch.cuda.reset_peak_memory_stats()
            work()
            found.append(float(torch.cuda.max_memory_allocated()))
    if fitter.micro < batch:
        found[0] = float("inf")
    return found[0], found[1]


def disk(case: noise.Case, parameters: int) -> tuple[tuple[int, int], list[int]]:
    """Bytes that a run of five folds leaves and takes while it is made, and those of a cache for each of
    CLIPS."""
    plan = SimpleNamespace(windows=1.0)
    return experiment.estimate_bytes(parameters, 5, 5, case.training), [
        estimate_bytes(plan, _cached(case), clips, 0)[0] for clips in CLIPS
    ]


def _cached(case: noise.Case) -> dict:
    # AST caches two of its three views by default.
    return {view: shape for view, shape in case.shapes.items() if view != "tokens" or case.view == "tokens"}


def row(name: str, gpu: bool, **changes: bool) -> tuple[str, list[str]]:
    """A recipe's line, and what it fails; changes are of its head's options."""
    case = noise.case(name, **changes)
    fp32, fp16 = (
        (measured_peaks if gpu else computed_peaks)(case, precision) for precision in ("fp32", "fp16")
    )
    parameters = sum(p.numel() for p in case.build().parameters())
    (left, making), caches = disk(case, parameters)
    failed = [
        f"{disk_space.format_bytes(value)} of memory"
        for value in (fp32[0], fp16[0])
        if value + (0 if gpu else RESIDENT) > LIMIT
    ]
    if making + caches[-1] > KAGGLE:
        failed.append(f"{disk_space.format_bytes(making + caches[-1])} of disk with {CLIPS[-1]:,} clips")
    size = "×".join(map(str, case.shapes[case.view]))
    cells = [
        ", ".join([f"`{name}`", *(f"{option} {value}" for option, value in changes.items())]),
        f"{parameters / 1e6:.2f} M",
        f"{case.training.batch_size} of {size}",
        *(
            disk_space.format_bytes(value) if value < float("inf") else "did not fit"
            for value in (fp32[0], fp16[0], fp32[1], fp16[1])
        ),
        f"{disk_space.format_bytes(left)} ({disk_space.format_bytes(making)})",
        *map(disk_space.format_bytes, caches),
        "no" if failed else "yes",
    ]
    return f"| {' | '.join(cells)} |", failed


def main() -> None:
    """A row a recipe; exit code 1 where one needs more than there is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--recipe", action="append", help="only this one (repeatable)")
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    flags = parser.parse_args()
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, CARD / torch.cuda.get_device_properties(0).total_memory)
        )
    rows, missed = {}, {}
    for name in flags.recipe or noise.trained():
        rows[f"`{name}`"], failed = row(name, gpu)
        missed |= {name: failed} if failed else {}
        print(rows[f"`{name}`"], flush=True)
        if name == "hf_finetune":  # what checkpointing saves; no recipe, so it need not fit
            full = f"`{name}`, gradient_checkpointing False"
            rows[full], _ = row(name, gpu, gradient_checkpointing=False)
            print(rows[full], flush=True)
    if not flags.recipe:
        fp32, half = extraction_peaks("fp32"), extraction_peaks("fp16")
        for name in fp32:
            fits = "yes" if max(fp32[name], half[name]) < LIMIT else "no"
            rows[f"extracting `{name}`"] = (
                f"| extracting `{name}` | | {EXTRACTED} windows | {disk_space.format_bytes(fp32[name])} | "
                f"{disk_space.format_bytes(half[name])} | | | | | | {fits} |"
            )
            print(rows[f"extracting `{name}`"])
    print(
        *(f"{name} does not fit: {', '.join(failed)}" for name, failed in missed.items()),
        sep="\n",
        end="\n" if missed else "",
    )
    if not flags.no_results:
        how = (
            "measured by the CUDA allocator under a cap of 16 GB, features included; extraction alone is "
            "computed."
            if gpu
            else "COMPUTED, not measured: tensors alive at the worst moment, less kernels' workspaces and "
            "CUDA's own memory."
        )
        keep_rows(
            "Memory and disk",
            [
                f"`python benchmarks/memory.py` on {machine()}. Five-second clips of 50 classes at 44.1 kHz.",
                f"Memory: {how}",
                "Training: two steps at the recipe's batch size; evaluating: twice the batch while it "
                "trains, 64 rows at the most (a pass",
                "that does not fit is halved by itself). fp16 is autocast's, as on a T4. Disk: what five "
                "folds' best and last weights",
                f"take (in brackets: at the most, while they are made), and caches of {CLIPS[0]:,} and "
                f"{CLIPS[1]:,} clips. It fits where",
                "training, with 4 GB for features kept on the card, stays below 15 GB, and run and larger "
                "cache below 20 GB",
                "of disk, Kaggle's.",
            ],
            "| recipe | parameters | batch | training, fp32 | fp16 | evaluating, fp32 | fp16 | a run on disk "
            f"| {CLIPS[0]:,} clips | {CLIPS[1]:,} clips | fits |",
            rows,
        )
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
