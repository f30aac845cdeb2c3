"""Rules for blends on real runs: fitted to few of the clips, scored on all the others.

    python benchmarks/blends.py --runs runs --pattern "esc10-*" "fsdd-*"

Each case draws some of a pattern's runs and some of their clips. Every rule is fitted to the out-of-fold
predictions of those clips, and what it would ship is scored on the clips that were left out. Beside that stands
the cross-fitted score that the rule reports itself. `--old FILE` adds the rule of an earlier blend_weights.py
(`git show REVISION:earshot/prediction/blend_weights.py > FILE`, and its significance.py beside it).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import ROOT, keep_rows, machine

sys.path.insert(0, str(ROOT))

from earshot.prediction import blend_weights, members
from earshot.training.metrics import compute_gain, compute_losses
from earshot.training.oof import Oof

CLIPS, MEMBERS, METRIC = (100, 200, 400), (3, 5, 10, 30), "f1_macro"
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

    def fit(*methods: str, pseudo_clips: float = blend_weights.PSEUDO_CLIPS) -> Fit:
        def call(*args) -> blend_weights.BlendResult:
            own = blend_weights.fit_simplex
            blend_weights.fit_simplex = lambda p, truth: own(p, truth, pseudo_clips)
            try:
                return blend_weights.fit_blend(*args, methods=methods)
            finally:
                blend_weights.fit_simplex = own

        return call

    return {
        "best run": fit(blend_weights.ALONE),
        "mean": fit("mean"),
        "lowest log loss": fit("simplex", pseudo_clips=0),
        "shrunk (`simplex`)": fit("simplex"),
        "shrunk or best run (`auto`)": fit(*blend_weights.AUTO),
    }


def load_old_rule(path: Path) -> Fit:
    """`fit_blend` of an earlier file, with the significance.py of its time."""
    import importlib.util

    def load_module(name: str, file: Path):
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    old = load_module("old_blend_weights", path)
    old.significance = load_module("old_significance", path.with_name("significance.py"))
    return old.fit_blend


def run_case(oof: Oof, probabilities: np.ndarray, seed: int, rules: dict[str, Fit]) -> np.ndarray:
    """(rules, 4): log loss and macro-F1 on the clips left out, then as reported."""
    rng, clips = np.random.default_rng(seed), len(oof.ids)
    size = min(int(rng.choice(CLIPS)), clips // 2)
    used = rng.choice(len(probabilities), min(int(rng.choice(MEMBERS)), len(probabilities)), replace=False)
    order = rng.permutation(clips)
    few, others = np.sort(order[:size]), order[size:]
    names, rows = [f"run {m}" for m in used], []
    for fit in rules.values():
        found = fit(probabilities[used][:, few], oof.labels[few], oof.folds[few], METRIC, names)
        plain = blend_weights.average_members(probabilities[used][:, others], found.fitted.weights)
        shipped = found.fitted.apply(probabilities[used][:, others])
        # Log loss before factors, which do not mean probabilities.
        rows.append(
            (
                score(plain, oof.labels[others])[0],
                score(shipped, oof.labels[others])[1],
                found.table[-1]["log_loss"],
                found.score,
            )
        )
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--pattern", nargs="+", default=["*"])
    parser.add_argument("--cases", type=int, default=100, help="of each pattern")
    parser.add_argument("--old", type=Path)
    parser.add_argument("--keep", action="store_true", help="write the table to RESULTS.md")
    flags = parser.parse_args()
    rules = list_rules() | ({"earlier rule": load_old_rule(flags.old)} if flags.old else {})
    lines = {}
    for pattern in flags.pattern:
        oof, probabilities = load(flags.runs, pattern)
        found = np.stack([run_case(oof, probabilities, seed, rules) for seed in range(flags.cases)])
        best = found[:, 0]
        for rule, of_rule in zip(rules, found.swapaxes(0, 1), strict=True):
            loss, f1 = of_rule[:, 0] - best[:, 0], of_rule[:, 1] - best[:, 1]
            error = np.std([loss, f1], axis=1) / np.sqrt(flags.cases)
            below = [np.mean(loss > 1e-9), np.mean(f1 < -1e-9), np.mean(of_rule[:, 3] < best[:, 3] - 1e-9)]
            mean = of_rule.mean(0)
            cells = [
                f"{pattern}: {rule}",
                f"{mean[0]:.4f}",
                f"{mean[1]:.4f}",
                f"{loss.mean():+.4f} ± {error[0]:.4f}",
                f"{f1.mean():+.4f} ± {error[1]:.4f}",
                *(f"{share:.0%}" for share in below[:2]),
                f"{mean[2]:.4f}, {mean[3]:.4f}",
                f"{below[2]:.0%}",
            ]
            lines[cells[0]] = "| " + " | ".join(cells) + " |"
            print(lines[cells[0]], flush=True)
    header = (
        "| runs: rule | log loss | macro-F1 | log loss against the best run | macro-F1 against it | "
        "log loss worse | macro-F1 worse | reported | reported below the best run's |"
    )
    if flags.keep:
        about = [
            f"`python benchmarks/blends.py --pattern {' '.join(flags.pattern)} --cases {flags.cases}`, {machine()}.",
        ]
        keep_rows("Rules for blends", about, header, lines)


if __name__ == "__main__":
    main()
