"""Every recipe on ESC-10's official folds, as a user types it: published form beside better form ->
RESULTS.md.

    python benchmarks/systems.py --data ESC10 --weights mn04_as_mAP_432.pt [--only RECIPE ...] [--full]

On a CPU the large published networks get the budget that is named in their row (fewer epochs, fold 1);
--full trains every row as its recipe says, for a GPU. Scores are pooled out-of-fold scores of the FINAL
epoch: nothing is chosen on the clips that are scored. In brackets those of the best epoch, which was chosen
on the fold that it scores. Seconds are of whole processes, start-up included. Rows that need weights which
are not given are left out, and named.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from common import RESULTS, keep_rows, machine, timed

HEADER = "| recipe | form | parameters | trained | accuracy | macro-F1 | features | training |"
EFFICIENTAT = ["--extractor", "efficientat", "--weights", "EFFICIENTAT"]
AST, ENCODEC = ["--weights", "AST"], ["--weights", "ENCODEC"]


@dataclass
class System:
    """A recipe's row: its form, its features where they are not the recipe's own, and what a CPU can afford
    of it."""

    form: str
    features: list[str] = field(default_factory=list)
    budget: list[str] = field(default_factory=list)
    recipe: str = ""  # where the row's name is not the recipe's


SYSTEMS = {
    "linear": System("baseline", EFFICIENTAT),
    "mlp": System("baseline", EFFICIENTAT),
    "efficientat_finetune": System("beyond: fine-tuned", ["--head.weights", "EFFICIENTAT"]),
    "itmo2025": System("published head, on mn04", EFFICIENTAT, ["--fold", "1"]),
    "itmo2025_tokens, same fold": System("better, on mn04", EFFICIENTAT, ["--fold", "1"], "itmo2025_tokens"),
    "itmo2025_tokens": System("better, on mn04", EFFICIENTAT),
    "itmo2025_finetune": System("published", ["--head.weights", "AST"], ["--fold", "1", "--epochs", "1"]),
    "ast_finetune": System("better", ["--head.weights", "AST"], ["--fold", "1", "--epochs", "1"]),
    "ast_linear": System("baseline", AST),
    "convnext_ggcn": System("published", [], ["--fold", "1", "--epochs", "3"]),
    "convnext_ggcn_scratch": System("better"),
    "esc50_hifigan": System("published", [], ["--fold", "1", "--epochs", "1"]),
    "esc50_convnext1d": System("published", [], ["--fold", "1", "--epochs", "1"]),
    "esc50_encodec": System("published", ENCODEC, ["--fold", "1", "--epochs", "5"]),
    "esc50_causal_lm": System("published", ENCODEC, ["--fold", "1", "--epochs", "5"]),
    "audio_cnn": System("published", [], ["--fold", "1", "--epochs", "3"]),
    "small_cnn": System("better"),
    "genre_cnn": System("published", [], ["--fold", "1", "--epochs", "1"]),
    "genre_cnn_gap": System("better", [], ["--fold", "1", "--epochs", "3"]),
    "crnn": System("beyond"),
    "timm": System("beyond", [], ["--head.weights", "null", "--fold", "1", "--epochs", "2"]),
    "from_scratch": System("beyond: without weights"),
    "patches": System("beyond: without weights, in a minute or two"),
}


def run(name: str, flags: argparse.Namespace, scratch: Path) -> str | None:
    """One row of the table; None where weights are wanting."""
    system = SYSTEMS[name]
    given = {"EFFICIENTAT": flags.weights, "AST": flags.ast, "ENCODEC": flags.encodec}
    wanted = [word for word in system.features if word in given]
    if any(given[word] is None for word in wanted):
        return None
    words = [
        str(Path(given[word]).resolve())
        if word in given and Path(given[word]).exists()
        else given.get(word, word)
        for word in system.features
    ]
    of_head = words[:1] == ["--head.weights"]
    recipe = system.recipe or name
    extraction = ["--recipe", recipe] if not words or of_head or words[0] == "--weights" else []
    out = scratch / name
    features = timed(
        "get_features.py",
        [
            "--competition",
            str(flags.data.resolve()),
            *extraction,
            *([] if of_head else map(str, words)),
            "--out",
            str(out),
        ],
        scratch,
    )
    cache = next(out.glob("*/*/manifest.json")).parent
    budget = [] if flags.full else system.budget
    training = [
        "--recipe",
        recipe,
        "--features",
        str(cache),
        "--name",
        name,
        *(map(str, words) if of_head else []),
        *budget,
    ]
    seconds = timed("train.py", training, scratch)
    folder = scratch / "runs" / name
    scores = json.loads((folder / "scores.json").read_text())
    log = (folder / "training_log.txt").read_text()
    parameters = re.search(r"([\d,]+) parameters", log)[1]
    epochs = re.search(r"epoch +\d+/(\d+)", log)[1]
    last, best = scores["last"], scores["best"]
    folds = "5 folds" if len(last["folds"]) == 5 else f"fold {', '.join(map(str, last['folds']))} alone"
    return (
        f"| `{name}` | {system.form} | {parameters} | {epochs} epochs, {folds} | "
        f"{last['accuracy']:.4f} ({best['accuracy']:.4f}) | {last['f1_macro']:.4f} ({best['f1_macro']:.4f}) "
        f"| {features:.0f} s | {seconds:.0f} s |"
    )


def main() -> None:
    """Run the rows one after the other; the table is written after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of ESC-10 (ESC layout)")
    parser.add_argument("--weights", help="mn04_as_mAP_432.pt")
    parser.add_argument("--ast", help="AST's weights: a folder, or the hub's id")
    parser.add_argument("--encodec", help="EnCodec's weights: a folder, or the hub's id")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--full", action="store_true", help="train every row as its recipe says")
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    lacking = []
    for name in flags.only:
        with tempfile.TemporaryDirectory() as scratch:
            row = run(name, flags, Path(scratch))
        if row is None:
            lacking.append(name)
            continue
        keep_rows(
            f"Recipes on {machine()}",
            [
                "`python benchmarks/systems.py --data ESC10 --weights mn04_as_mAP_432.pt`: ESC-10, its "
                "official folds. Scores are",
                "pooled out-of-fold scores of the final epoch (nothing is chosen on the clips that are "
                "scored); in brackets those of",
                "the best epoch, chosen on the fold that it scores. Where fewer epochs or folds than the "
                "recipe's were trained, the",
                "column says so: a published network is not judged by so short a budget.",
            ],
            HEADER,
            {f"`{name}`": row},
            flags.out,
        )
        print(row, flush=True)
    if lacking:
        print(f"left out, their weights were not given (--weights, --ast, --encodec): {', '.join(lacking)}")


if __name__ == "__main__":
    main()
