"""What seeds, models on all clips and pseudo-labels are worth on ESC-10 -> RESULTS.md.

    python benchmarks/unlabelled.py --data ESC10 --weights mn04_as_mAP_432.pt [--only CASE ...] \\
        [--labelled 4 1] [--seeds 3]

Of the five official folds some keep their labels, the others become clips to submit: their labels are
hidden, and score what predicts them in the end. Every choice of neighbouring folds is tried, and the scores
are pooled: with four labelled folds each clip is hidden once, with one labelled fold four times. Nothing is
chosen on hidden labels.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
from common import RESULTS, keep_rows, machine, timed
from synthetic import write_cache  # puts the kit on the path

import train
from earshot.core.device import Device
from earshot.features.cache import Cache
from earshot.training import dataset, predict
from earshot.training.run import Run, list_fold_slots, list_refit_slots

HEADER = (
    "| labelled folds, head on view, learns from | seeds | hidden clips | one seed, folds | all seeds, folds "
    "| one seed, all clips | all seeds, all clips | OOF |"
)
CPU = Device("cpu", "fp32", "CPU")
MORE = "and pseudo-labels"
CASES = {  # head on view: cache, recipe
    "linear on pooled": ("efficientat", "linear"),
    "mlp on pooled": ("efficientat", "mlp"),
    "linear on mel": ("logmel", "linear"),
}


def hidden(whole: Cache, folds: list[int], folder: Path) -> Path:
    """The cache again, with labels in the given folds alone; the other clips are to be submitted."""
    rows = whole.split("train")
    kept, splits = np.isin(rows["folds"], folds), {}
    for name, clips in (("train", kept), ("subm", ~kept)):
        here = clips[rows["clip"]]
        splits[name] = {
            key: np.array(values[clips if key in ("ids", "labels", "folds", "groups") else here])
            for key, values in rows.items()
            if key != "meta"
        }
        splits[name]["clip"] = (np.cumsum(clips) - 1)[rows["clip"][here]].astype(np.int32)
    labels = splits["subm"]["labels"]
    splits["subm"] |= {"labels": np.full(len(labels), ""), "folds": np.full(len(labels), -1, np.int32)}
    return write_cache(
        folder, whole.classes, splits, whole.shapes, labels.tolist(), float(whole.manifest["span"])
    )


def fit(cache: Path, name: str, seeds: int, *args: str) -> Run:
    """A run of train.py, in this process and in silence."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train.main(
            [
                "--features",
                str(cache),
                "--name",
                name,
                "--device",
                "cpu",
                "--seeds",
                str(seeds),
                "--refit",
                *args,
            ]
        )
    return Run.open(Path("runs") / name)


def right(run: Run, cache: Path) -> list[int]:
    """Hidden clips predicted correctly by one and several seeds of the folds' models, by one and several
    on all clips."""
    rows = dataset.load_rows(Cache(cache), "subm", run.config["record"]["view"], CPU)
    truth = [line.split(",")[1] for line in (cache / "solution.csv").read_text().splitlines()[1:]]
    training, found = run.config["record"]["training"], []
    by_fold = [list_fold_slots(training, number) for number in run.list_finished_folds()]
    refits = list_refit_slots(training)
    for some in (
        [seeds[0] for seeds in by_fold],
        [part for seeds in by_fold for part in seeds],
        refits[:1],
        refits,
    ):
        mean = np.mean([predict.predict_slot(run, part, "last", rows, CPU) for part in some], 0)
        said = [run.classes[c] for c in mean.argmax(1)]
        found.append(sum(name == label for name, label in zip(said, truth, strict=True)))
    return found


def oof(run: Run) -> int:
    """Labelled clips predicted correctly out-of-fold, final epoch, mean of the seeds."""
    lines = [line.split(",") for line in (run.folder / "oof_last.csv").read_text().splitlines()[1:]]
    return sum(run.classes[int(np.argmax([float(p) for p in line[3:]]))] == line[2] for line in lines)


def measure(whole: Cache, case: str, labelled: int, seeds: int) -> dict[str, str]:
    """Two rows of the table: learnt from labelled clips alone, and with more."""
    every = sorted(set(whole.split("train")["folds"].tolist()))
    sums = {"labelled clips": np.zeros(5, int), MORE: np.zeros(5, int)}
    asked = known = 0
    for first in range(len(every)):
        folds = [every[(first + i) % len(every)] for i in range(labelled)]
        name = f"{case.replace(' ', '-')}-{labelled}-{first}"
        cache = hidden(whole, folds, Path("data") / "hidden" / name)
        args = (
            "--recipe",
            CASES[case][1],
            "--view",
            case.split()[-1],
            *(("--folds", "4") if labelled == 1 else ()),
        )
        runs = [
            fit(cache, name, seeds, *args),
            fit(cache, f"{name}-more", seeds, *args, "--pseudo", name),
        ]
        for key, run in zip(sums, runs, strict=True):
            sums[key] += [*right(run, cache), oof(run)]
        counts = Cache(cache).manifest["splits"]
        asked, known = asked + counts["subm"]["clips"], known + counts["train"]["clips"]
        print(f"{name}: {sums}, of {asked} and {known}", flush=True)
    rows = {}
    for key, count in sums.items():
        cell = f"{labelled}, {case.replace('linear', '`linear`').replace('mlp', '`mlp`')}, {key}"
        cells = " | ".join(f"{one / asked:.4f}" for one in count[:4])
        rows[cell] = f"| {cell} | {seeds} | {asked} | {cells} | {count[4] / known:.4f} |"
    return rows


def main() -> None:
    """Extract once, hide labels in all ways, train; the table is written after each head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of ESC-10 (ESC layout)")
    parser.add_argument("--weights", type=Path, required=True, help="mn04_as_mAP_432.pt")
    parser.add_argument(
        "--caches",
        type=Path,
        help="the folder of the caches efficientat and logmel, where they are there already",
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--labelled", nargs="+", type=int, default=[4, 1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    out, caches = flags.out.resolve(), flags.caches and flags.caches.resolve()
    with tempfile.TemporaryDirectory() as folder:
        if caches is None:
            for more in (("efficientat", "--weights", str(flags.weights.resolve())), ("logmel",)):
                timed(
                    "get_features.py",
                    ["--competition", str(flags.data.resolve()), "--extractor", *more],
                    Path(folder),
                )
            caches = next((Path(folder) / "data").glob("*/*/manifest.json")).parents[1]
        os.chdir(folder)
        for labelled in flags.labelled:
            for case in flags.only:
                rows = measure(Cache(caches / CASES[case][0]), case, labelled, flags.seeds)
                keep_rows(
                    f"Seeds, all labelled clips, clips without labels on {machine()}",
                    [
                        "`python benchmarks/unlabelled.py --data ESC10 --weights mn04_as_mAP_432.pt`: "
                        "ESC-10, EfficientAT mn04's `pooled` and",
                        "`frames`, log-mel's `mel`; accuracy on clips whose labels were hidden, by final "
                        "epochs, for every choice of neighbouring",
                        "official folds, pooled (four labelled folds: each clip is hidden once; one: four "
                        "times, and those counts are not",
                        "independent). The labelled folds are cross-validated (a single one in four "
                        "stratified folds): the mean of these models is",
                        "*folds*; `--refit` is *all clips*. Pseudo-labels: `--pseudo` with its defaults, "
                        "from the run of the row above.",
                        "OOF is that of all seeds, on the labelled clips.",
                    ],
                    HEADER,
                    rows,
                    out,
                )
                print("\n".join(rows.values()), flush=True)


if __name__ == "__main__":
    main()
