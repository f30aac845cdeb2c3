"""Every head on EfficientAT's features of ESC-10, several seeds each, beside logistic regression ->
RESULTS.md.

    python benchmarks/heads.py --data ESC10 --weights mn04_as_mAP_432.pt [--seeds 5] [--only HEAD ...]

One clip is 0.0025 of accuracy: what matters is the mean and the spread, not the luckiest seed. `linear` and
`token_transformer` are trained by their recipes, all others by recipe `mlp`'s settings, in sizes that a CPU
trains in seconds (the options are in the table): this compares that a head works on such features, it is no
ranking.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from common import RESULTS, correct, keep_rows, machine, timed

HEADER = "| head | options | parameters | seeds | accuracy, final epoch | best epochs | worst and best seed |"
HEADS = {
    "linear": ("linear", {}),
    "mlp": ("mlp", {}),
    "token_transformer": ("itmo2025_tokens", {}),
    "inception_transformer": (
        "mlp",
        {"widths": [4, 8], "reduce": 8, "d_model": 64, "layers": 2, "heads": 4, "feedforward": 128},
    ),
    "functionals": ("mlp", {"hidden": 256}),
    "audio_cnn": ("mlp", {"channels": [256, 256], "blocks": [1, 1]}),
    "crnn": ("mlp", {"channels": [256, 256], "hidden": 128}),
    "genre_cnn": ("mlp", {"pool": "gap", "channels": [256, 256], "hidden": [128], "standardise": True}),
    "convnext_ggcn": (
        "mlp",
        {
            "depths": [1, 1],
            "dims": [128, 256],
            "attention": 128,
            "heads": 4,
            "graph": 128,
            "hidden": [128],
            "layer_scale": 0,
            "standardise": True,
        },
    ),
    "convnext1d": ("mlp", {"stem": 256, "channels": [256], "blocks": 1}),
    "hifigan": (
        "mlp",
        {"channels": [256, 256, 256], "strides": [2, 2], "groups": [4, 4], "kernels": [7, 9, 5, 3]},
    ),
    "causal_lm": ("mlp", {"channels": 256, "blocks": 2, "lm_weight": 0.0}),
    "timm": ("mlp", {"backbone": "test_resnet", "weights": None}),
    "ensemble": ("mlp", {"members": [{"name": "linear"}, {"name": "mlp"}]}),
}


def logistic_regression(cache: Path) -> tuple[int, int]:
    """scikit-learn's, C = 0.1 on standardised embeddings, fold by fold: clips right, clips asked."""
    import joblib
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = joblib.load(cache / "train.pkl")
    # a few clips have a second window, a fraction of a second on
    first = np.unique(rows["clip"], return_index=True)[1]
    x, labels, folds = rows["pooled"][first, :, 0, 0].astype(np.float32), rows["labels"], rows["folds"]
    right = 0
    for fold in np.unique(folds):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        right += int(
            (
                model.fit(x[folds != fold], labels[folds != fold]).predict(x[folds == fold])
                == labels[folds == fold]
            ).sum()
        )
    return right, len(x)


def row(name: str, cache: Path, seeds: int, scratch: Path) -> str:
    """A head's row: mean and deviation over the seeds."""
    recipe, options = HEADS[name]
    found, best = [], []
    for seed in range(seeds):
        run = f"{name}-{seed}"
        timed(
            "train.py",
            [
                "--recipe",
                recipe,
                "--features",
                str(cache),
                "--head",
                name,
                "--view",
                "pooled",
                "--seed",
                str(seed),
                "--name",
                run,
                *(w for k, v in options.items() for w in (f"--head.{k}", json.dumps(v))),
            ],
            scratch,
        )
        for scores, kind in ((found, "oof_last"), (best, "oof")):
            right, asked = correct(scratch / "runs" / run, kind)
            scores.append(right / asked)
    log = (scratch / "runs" / f"{name}-0" / "training_log.txt").read_text()
    parameters = log.partition(" parameters")[0].rpartition(" ")[2]
    said = ", ".join(f"{k} {json.dumps(v)}" for k, v in options.items()) or "as built"
    spread = [f" ± {np.std(scores, ddof=1):.4f}" if seeds > 1 else "" for scores in (found, best)]
    return (
        f"| `{name}` | {said} | {parameters} | {seeds} | {np.mean(found):.4f}{spread[0]} | "
        f"{np.mean(best):.4f}{spread[1]} | {min(found):.4f}, {max(found):.4f} |"
    )


def main() -> None:
    """Extract once, train every head with every seed; the table is written after each head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of ESC-10 (ESC layout)")
    parser.add_argument("--weights", type=Path, required=True, help="mn04_as_mAP_432.pt")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        timed(
            "get_features.py",
            [
                "--competition",
                str(flags.data.resolve()),
                "--extractor",
                "efficientat",
                "--weights",
                str(flags.weights.resolve()),
            ],
            scratch,
        )
        cache = next((scratch / "data").glob("*/*/manifest.json")).parent
        right, asked = logistic_regression(cache)
        rows = {
            "logistic regression": f"| logistic regression | scikit-learn, C 0.1 | | | {right / asked:.4f} | "
            "| |"
        }
        for name in flags.only:
            rows[f"`{name}`"] = row(name, cache, flags.seeds, scratch)
            keep_rows(
                f"Heads on EfficientAT mn04 features on {machine()}",
                [
                    "`python benchmarks/heads.py --data ESC10 --weights mn04_as_mAP_432.pt`: view `pooled`, "
                    "out-of-fold accuracy over the",
                    "seeds, mean ± sample standard deviation. Final epoch: nothing is chosen on the clips "
                    "that are scored. Best",
                    "epochs: each chosen on the fold that it scores. Sizes are chosen for a CPU; this is no "
                    "ranking of architectures.",
                ],
                HEADER,
                rows,
                flags.out,
            )
            print(rows[f"`{name}`"], flush=True)


if __name__ == "__main__":
    main()
