"""The ESC-50 study's questions on the data's own folds: dropout, SAM, the language model, raw audio or
features?

    python benchmarks/study.py --data ESC50 --encodec facebook/encodec_24khz
    python benchmarks/study.py --data ESC10 --width 8 --rate 16000 --epochs 40 --lr 1e-3 --batch-size 32

The first is the published size, for a GPU; the second fits a CPU and is another, smaller experiment: the
table says which it was. Every case is trained as a user would, by get_features.py and train.py. The pairs
that answer a question differ in nothing else, save where the inputs are compared: raw audio and features each
have their published network. Scores are pooled out-of-fold scores of the final epoch; in brackets those of
the best epochs, which were chosen on the folds that they score. With --scratch FOLDER the same command
continues where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from dataclasses import dataclass, field
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, machine, timed

sys.path.insert(0, str(ROOT))
from earshot.core.config import load_recipe  # noqa: E402

# 128 mels at 75 frames a second: as many numbers, of the same band, as EnCodec's latents.
MEL = ["--rate", "24000", "--n-fft", "1024", "--hop-length", "320", "--n-mels", "128", "--standardise"]
CACHES = {
    "wave": ["--recipe", "esc50_convnext1d"],
    "mel": [
        "--extractor",
        "logmel",
        "--cache",
        "mel",
        "--mono",
        "first",
        "--seconds",
        "5",
        "--pad",
        "silence",
        *MEL,
    ],
    "encodec": ["--recipe", "esc50_causal_lm"],
}
ABOUT = {"wave": "raw audio", "mel": "log-mel", "encodec": "EnCodec latents"}


@dataclass
class Case:
    """One thing to train: a recipe's head on a cache, and what differs from the recipe."""

    about: str
    cache: str
    recipe: str
    head: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def cases() -> dict[str, Case]:
    """All cases by name."""
    found = {}
    for name, cache, recipe in (
        ("raw", "wave", "esc50_convnext1d"),
        ("mel", "mel", "esc50_encodec"),
        ("latents", "encodec", "esc50_encodec"),
    ):
        rate = load_recipe(recipe).head["dropout"]
        found[name] = Case(f"ConvNeXt, dropout {rate}", cache, recipe)
        found[f"{name}-no-dropout"] = Case("ConvNeXt, dropout 0", cache, recipe, {"dropout": 0.0})
        found[f"{name}-sam"] = Case(f"ConvNeXt, dropout {rate}, SAM", cache, recipe, {}, {"optimizer": "sam"})
    found["hifigan"] = Case("HiFi-GAN discriminator", "wave", "esc50_hifigan")
    found["lm"] = Case("causal, language model, SAM", "encodec", "esc50_causal_lm")
    found["lm-off"] = Case("causal, no language model, SAM", "encodec", "esc50_causal_lm", {"lm_weight": 0.0})
    found["lm-adamw"] = Case(
        "causal, language model, AdamW", "encodec", "esc50_causal_lm", {}, {"optimizer": "adamw"}
    )
    return found


# Question, the case that says yes, the case that says no.
QUESTIONS = [
    *(
        (f"dropout, {ABOUT[cache]}", name, f"{name}-no-dropout")
        for name, cache in (("raw", "wave"), ("mel", "mel"), ("latents", "encodec"))
    ),
    *(
        (f"SAM, {ABOUT[cache]}", f"{name}-sam", name)
        for name, cache in (("raw", "wave"), ("mel", "mel"), ("latents", "encodec"))
    ),
    ("SAM, causal language model", "lm", "lm-adamw"),
    ("language model", "lm", "lm-off"),
    ("log-mel rather than raw audio", "mel", "raw"),
    ("EnCodec latents rather than raw audio", "latents", "raw"),
    ("EnCodec latents rather than log-mel", "latents", "mel"),
    ("ConvNeXt rather than HiFi-GAN, raw audio", "raw", "hifigan"),
]


def narrow(recipe: str, width: int) -> dict[str, Any]:
    """The recipe's channels divided by `width`, as options of its head; none for width 1."""
    import models

    head = load_recipe(recipe).head
    options = {**models.get_options(head["name"]), **head}
    if width == 1:
        return {}
    found: dict[str, Any] = {key: max(1, options[key] // width) for key in ("stem",) if key in options}
    channels = options["channels"]
    if isinstance(channels, int):
        return {"channels": max(1, channels // width)}
    found["channels"] = [max(1, number // width) for number in channels]
    if "groups" in options:
        sides = zip(options["groups"], pairwise(found["channels"]), strict=True)
        found["groups"] = [gcd(group, *channels) for group, channels in sides]
    return found


def train(name: str, case: Case, seed: int, cache: Path, flags: argparse.Namespace, scratch: Path) -> Path:
    """Train a case with a seed on all folds asked for; its run folder."""
    folder = scratch / "runs" / f"{name}-{seed}"
    options = {**narrow(case.recipe, flags.width), **case.head}
    training = {
        "epochs": flags.epochs,
        "lr": flags.lr,
        "batch-size": flags.batch_size,
        "seed": seed,
        **case.training,
    }
    view = {"wave": "wave", "mel": "mel", "encodec": "latents"}[case.cache]
    timed(
        "train.py",
        [
            "--recipe",
            case.recipe,
            "--features",
            str(cache),
            "--view",
            view,
            "--name",
            folder.name,
            *(word for key, value in options.items() for word in (f"--head.{key}", json.dumps(value))),
            *(
                word
                for key, value in training.items()
                if value is not None
                for word in (f"--{key}", str(value))
            ),
            *(["--fold", *map(str, flags.fold)] if flags.fold else []),
        ],
        scratch,
    )
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def right(run: Path) -> dict[str, bool]:
    """Clip -> was the final epoch's most likely class the clip's own?"""
    rows = read(run / "oof_last.csv")
    classes = [column for column in rows[0] if column not in ("id", "fold", "label")]
    return {
        row["id"]: max(classes, key=lambda name: float(row[name])).removeprefix("class ") == row["label"]
        for row in rows
    }


def difference(yes: list[Path], no: list[Path]) -> tuple[float, float]:
    """Accuracy of the first runs (one a seed) less that of the second, and its standard error over clips, in
    points.

    Paired: every clip's own difference, the mean over seeds; both runs had the same folds.
    """
    pairs = [(right(a), right(b)) for a, b in zip(yes, no, strict=True)]
    each = np.array([np.mean([float(a[clip]) - float(b[clip]) for a, b in pairs]) for clip in pairs[0][0]])
    return 100 * float(each.mean()), 100 * float(each.std(ddof=1) / np.sqrt(len(each)))


def row(case: Case, runs: list[Path]) -> str:
    """A case's line of the table: means over its seeds."""
    scores = [json.loads((run / "scores.json").read_text()) for run in runs]
    cells = [
        " ".join(
            form.format(np.mean([found[kind][key] for found in scores]))
            for kind, form in (("last", "{:.4f}"), ("best", "({:.4f})"))
        )
        for key in ("accuracy", "f1_macro")
    ]
    seconds = np.mean([sum(float(epoch["seconds"]) for epoch in read(run / "metrics.csv")) for run in runs])
    words = next(
        line for line in (runs[0] / "training_log.txt").read_text().splitlines() if " parameters, " in line
    )
    parameters = words.split(" parameters, ")[0].split()[-1]
    return (
        f"| {ABOUT[case.cache]} | {case.about} | {parameters} | {cells[0]} | {cells[1]} | {seconds:.0f} s |"
    )


def main() -> None:
    """Run the cases and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of ESC-50 or ESC-10 (ESC layout)")
    parser.add_argument(
        "--encodec", help="EnCodec's weights, a local folder or hub id; without: no rows that need them"
    )
    parser.add_argument(
        "--only", nargs="+", choices=cases(), metavar="CASE", help=f"of {', '.join(cases())}; default: all"
    )
    parser.add_argument(
        "--width", type=int, default=1, help="divide all channels by this (default 1: as published)"
    )
    parser.add_argument(
        "--rate", type=int, help="of raw audio, in Hz (default: the data's own, as published)"
    )
    parser.add_argument("--epochs", type=int, help="default: the recipes'")
    parser.add_argument("--lr", type=float, help="default: the recipes'")
    parser.add_argument("--batch-size", type=int, help="default: the recipes'")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="several: rows are their means")
    parser.add_argument("--fold", type=int, nargs="+", help="only these folds (default: all)")
    parser.add_argument("--scratch", type=Path, help="keep features and runs here, and continue from them")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "STUDY.md")
    flags = parser.parse_args()
    if flags.width < 1:
        parser.error("--width is at least 1")
    if flags.only and not flags.encodec and all(cases()[name].cache == "encodec" for name in flags.only):
        parser.error(f"--only {' '.join(flags.only)} needs --encodec")
    asked = {
        key: value
        for key, value in vars(flags).items()
        if key not in ("scratch", "out") and value != parser.get_default(key)
    }
    # Paths of the machine say nothing to a reader.
    asked |= {
        key: Path(asked[key]).name
        for key in ("data", "encodec")
        if key in asked and Path(asked[key]).exists()
    }
    words = [
        f"--{key.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, list) else v}"
        for key, v in asked.items()
    ]
    with tempfile.TemporaryDirectory() as temporary:
        text = table(flags, (flags.scratch or Path(temporary)).resolve(), " ".join(words))
    flags.out.write_text(text)
    print(text)


def table(flags: argparse.Namespace, scratch: Path, command: str) -> str:
    """Extract, train, and the Markdown; `command` is what it says it was made by."""
    scratch.mkdir(parents=True, exist_ok=True)
    chosen = {name: case for name, case in cases().items() if not flags.only or name in flags.only}
    left_out = [name for name, case in chosen.items() if case.cache == "encodec" and not flags.encodec]
    chosen = {name: case for name, case in chosen.items() if name not in left_out}
    weights = (
        str(Path(flags.encodec).resolve())
        if flags.encodec and Path(flags.encodec).exists()
        else flags.encodec
    )
    extra = {
        "wave": ["--rate", str(flags.rate)] if flags.rate else [],
        "mel": [],
        "encodec": ["--weights", weights],
    }
    folders, seconds = {}, {}
    for cache in dict.fromkeys(case.cache for case in chosen.values()):
        data = ["--competition", str(flags.data.resolve()), "--out", str(scratch / "data")]
        # an earlier call's: what is left to do takes no one's time
        kept = any((scratch / "data").glob(f"*/{cache}"))
        took = timed("get_features.py", [*data, *CACHES[cache], *extra[cache]], scratch)
        seconds[cache] = "kept from before" if kept else f"{took:.0f} s"
        folders[cache] = next((scratch / "data").glob(f"*/{cache}/manifest.json")).parent
    runs = {
        name: [train(name, case, seed, folders[case.cache], flags, scratch) for seed in flags.seed]
        for name, case in chosen.items()
    }
    answers = []
    for question, yes, no in QUESTIONS:
        if yes in runs and no in runs:
            gain, error = difference(runs[yes], runs[no])
            answers.append(f"| {question} | {gain:+.2f} | {error:.2f} |")
    size = "the published widths" if flags.width == 1 else f"the published widths divided by {flags.width}"
    changed = {
        "rate of raw audio": flags.rate,
        "epochs": flags.epochs,
        "lr": flags.lr,
        "batch": flags.batch_size,
    }
    told = (
        ", ".join(f"{key} {value:g}" for key, value in changed.items() if value) or "all else by the recipes"
    )
    lines = [
        "# The ESC-50 study's questions",
        "",
        f"`python benchmarks/study.py {command}` on {machine()}.",
        "",
        f"{flags.data.name}, "
        f"{'folds ' + ', '.join(map(str, flags.fold)) if flags.fold else 'all its folds'}, seeds "
        f"{', '.join(map(str, flags.seed))}; {size}, {told}.",
        "",
        "Scores are of all clips pooled, after the final epoch; in brackets those of the best epochs, chosen "
        "on the folds that",
        "they score. Seconds are of training, one seed. The log-mel has 128 bands and 75 frames a second, "
        "the shape of EnCodec's",
        "latents; raw audio and features each have the network (and, where none is named, the batch) "
        "published for them.",
        "",
        "| input | case | parameters | accuracy | macro-F1 | training |",
        "|---|---|---|---|---|---|",
        *(row(case, runs[name]) for name, case in chosen.items()),
        "",
        "Gain in accuracy of the final epoch, in points, with its standard error over the clips (paired; it "
        "does not hold the",
        "spread over seeds). A gain below twice its error is no answer.",
        "",
        "| yes rather than no | gain | standard error |",
        "|---|---|---|",
        *answers,
        "",
        "Features: " + ", ".join(f"{ABOUT[cache]} {took}" for cache, took in seconds.items()) + ".",
        "",
    ]
    if left_out:
        lines += [
            "Left out for want of EnCodec's weights (--encodec), with their questions: "
            f"{', '.join(left_out)}.",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
