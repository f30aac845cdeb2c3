"""Rules for blends on real runs, fitted to few clips and scored on a fold that they never saw.

    python benchmarks/blends.py --runs runs --patterns "esc10-*" "fsdd-*"

Each case draws some of the runs that match a pattern, and some of the clips. For each fold a rule is fitted
to the out-of-fold predictions of those clips in the other folds, as predict.py does it, and predicts the
whole fold. `--old FILE` adds the rule of an earlier blend_weights.py, with thresholds.py and significance.py
of that time beside it (`git show REVISION:earshot/prediction/blend_weights.py > FILE`).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from common import ROOT, keep_rows, machine

sys.path.insert(0, str(ROOT))

from earshot.prediction import blend_weights, members
from earshot.training.metrics import compute_gain, compute_losses
from earshot.training.oof import Oof

CLIPS, MEMBERS, METRIC = (100, 200, 400), (3, 5, 10, 30), "f1_macro"
ABOUT = [
    "Nested: each rule is fitted to 100, 200 or 400 clips' out-of-fold predictions by 3, 5, 10 or all of the",
    "runs, without a fold, and predicts that fold. ± is the standard error over the cases, which share their",
    "clips. `worse` is the share of cases below the best run: that of lowest log loss on the same clips.",
    "",
]
Fit = Callable[..., blend_weights.BlendResult]


def load(runs: Path, pattern: str) -> tuple[Oof, np.ndarray]:
    """The finished runs that match a pattern: labels and folds, and probabilities (runs, clips, classes)."""
    folders = sorted(folder for folder in runs.glob(pattern) if (folder / "oof_last.csv").exists())
    oof, probabilities, _ = members.align_oof([members.open_member(folder) for folder in folders])
    for folder, p in zip(folders, probabilities, strict=True):
        print(f"{folder.name:28} {' '.join(f'{value:.4f}' for value in score(p, oof.labels))}")
    return oof, probabilities


def score(probabilities: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Log loss and macro-F1."""
    return float(compute_losses(probabilities, truth).mean()), compute_gain(METRIC, probabilities, truth)


def list_rules() -> dict[str, Fit]:
    """By name a function with the arguments of `blend_weights.fit_blend`."""

    def build(*methods: str) -> Fit:
        return partial(blend_weights.fit_blend, methods=methods)

    return {
        "best run": build(blend_weights.ALONE),
        "mean": build("mean"),
        "`pool`": build("pool"),
        "`auto`": build(*blend_weights.AUTO),
    }


def load_old_rule(path: Path) -> Fit:
    """`fit_blend` of an earlier file, with the modules of its time."""

    def load_module(file: Path):
        spec = importlib.util.spec_from_file_location(f"old_{file.stem}", file)
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    old = load_module(path)
    old.significance = load_module(path.with_name("significance.py"))
    old.cut = load_module(path.with_name("thresholds.py"))
    return old.fit_blend


def run_case(oof: Oof, probabilities: np.ndarray, seed: int, rules: dict[str, Fit]) -> np.ndarray:
    """(rules, 2): log loss and macro-F1 over all folds, each predicted by what is fitted to the others."""
    rng = np.random.default_rng(seed)
    count, clips = MEMBERS[seed % len(MEMBERS)], CLIPS[seed // len(MEMBERS) % len(CLIPS)]
    used = rng.choice(len(probabilities), min(count, len(probabilities)), replace=False)
    members, order = probabilities[used], rng.permutation(len(oof.ids))
    names = [f"run {number}" for number in used]
    plain, final = (np.zeros((len(rules), *members.shape[1:])) for _ in range(2))
    for fold in np.unique(oof.folds):
        few, held = np.sort(order[oof.folds[order] != fold][:clips]), oof.folds == fold
        for place, fit in enumerate(rules.values()):
            fitted = fit(members[:, few], oof.labels[few], oof.folds[few], METRIC, names).fitted
            final[place, held] = fitted.apply(members[:, held])
            # Before factors, which do not mean probabilities.
            plain[place, held] = replace(fitted, scale=None, thresholds=None).apply(members[:, held])
    return np.array(
        [(score(p, oof.labels)[0], score(q, oof.labels)[1]) for p, q in zip(plain, final, strict=True)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--patterns", nargs="+", default=["*"])
    parser.add_argument("--cases", type=int, default=24, help="of each pattern")
    parser.add_argument("--old", type=Path)
    parser.add_argument("--keep", action="store_true", help="write the table to RESULTS.md")
    flags = parser.parse_args()
    rules = list_rules() | ({"earlier rule": load_old_rule(flags.old)} if flags.old else {})
    command = f"python benchmarks/blends.py --patterns {' '.join(flags.patterns)} --cases {flags.cases}"
    header = (
        "| runs: rule | log loss | macro-F1 | gain in log loss over the best run | gain in macro-F1 | "
        "worse in log loss | worse in macro-F1 |"
    )
    for pattern in flags.patterns:
        oof, probabilities = load(flags.runs, pattern)
        found = np.stack([run_case(oof, probabilities, seed, rules) for seed in range(flags.cases)])
        lines = {}
        for place, rule in enumerate(rules):
            gains = (found[:, 0] - found[:, place]) * (1, -1)
            mean, error = found[:, place].mean(0), gains.std(0) / np.sqrt(flags.cases)
            cells = [
                f"`{pattern}`, {len(probabilities)} runs: {rule}",
                f"{mean[0]:.4f}",
                f"{mean[1]:.4f}",
                *(f"{gain:+.4f} ± {noise:.4f}" for gain, noise in zip(gains.mean(0), error, strict=True)),
                *(f"{share:.0%}" for share in (gains < -1e-9).mean(0)),
            ]
            lines[cells[0]] = f"| {' | '.join(cells)} |"
            print(lines[cells[0]], flush=True)
        if flags.keep:
            keep_rows("Rules for blends", [*ABOUT, f"`{command}`, {machine()}."], header, lines)


if __name__ == "__main__":
    main()
