"""How soon the bake-off is good: its score against time, by its schedule, the order before and an oracle.

    python benchmarks/anytime.py record --features data/x/mn04 --features data/x/logmel --out records
    python benchmarks/anytime.py replay --records records --out docs

`record` trains each candidate of the ladder once, the quickest first. It keeps what each was predicted to
take, what it took, and its out-of-fold predictions; the same command continues it. A copy of a bake-off's
folder is a record already; with --max-hours 0 only its table is written. `replay` plays these back
within 15 and 60 minutes. It trains nothing, so a change of the schedule is measured in a minute.

The score is that of the blend of the candidates finished by then, with weights fitted on the other folds. The
oracle knows all scores and times beforehand. The old order gets the new predictions of time, which are better
than those it had.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anytime_replay import Record, choose_oracle, replay_halving, replay_schedule, score_at
from common import machine

from earshot.search.schedule import Entry, FoldResult

MINUTES = (15, 60)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of a budget, at which scores are compared
NAME = "records.csv"
HEAD = (
    "# Score against time",
    "",
    "What `--recipe auto` has after a part of its time, by its schedule, by the order of version 0.1, and by",
    "an oracle that knows all scores and times beforehand. Only candidates that were recorded take part, so",
    "that the longer time may end early.",
    "",
    "![Score against minutes, within 15 and 60 minutes](anytime.svg)",
    "",
)
COLUMNS = (
    "candidate",
    "recipe",
    "source",
    "family",
    "after",
    "fold",
    "guess",
    "timed",
    "seconds",
    "error",
    "log_loss",
    "folder",
)


def read_records(folder: Path) -> tuple[list[Record], list[int]]:
    """The candidates whose folds are all recorded, and the folds."""
    with open(folder / NAME, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    folds = sorted({int(row["fold"]) for row in rows})
    records = []
    for name in dict.fromkeys(row["candidate"] for row in rows):
        mine = [row for row in rows if row["candidate"] == name]
        results = {
            int(row["fold"]): FoldResult(float(row["seconds"]), float(row["error"]), float(row["log_loss"]))
            for row in mine
        }
        if sorted(results) != folds:
            continue
        row = mine[0]
        entry = Entry(
            name, row["recipe"], row["source"], row["family"], float(row["guess"]), after=row["after"] or None
        )
        records.append(Record(entry, float(row["timed"]), results, folder / row["folder"]))
    known = {record.name for record in records}
    return [record for record in records if (record.entry.after or record.name) in known], folds


def write_records(trainer, order: Sequence[str]) -> None:
    """records.csv: a row per fold that is finished."""
    from earshot.core.files import write_text

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name in order:
        entry, candidate = trainer.state["of"][name], trainer.candidates[name]
        first = trainer.state["of"][candidate.after or name]
        for fold, result in trainer.read_results(name).items():
            writer.writerow(
                [
                    name,
                    candidate.recipe.name,
                    f"{candidate.cache.folder.name}/{candidate.view}",
                    "sklearn" if entry["sklearn"] else "network",
                    candidate.after or "",
                    fold,
                    f"{first['computed']:.3f}",
                    f"{first['guess']:.3f}",
                    # of folds that ran side by side, each one's share
                    f"{result.seconds / (entry['devices'] or 1):.3f}",
                    f"{result.error:.6f}",
                    f"{result.log_loss:.6f}",
                    name,
                ]
            )
    write_text(trainer.folder / NAME, text.getvalue())


def record(flags: argparse.Namespace) -> None:
    """Train what is missing of the ladder, the quickest candidates first, within --max-hours."""
    from earshot.core.config import TrainMachineFlags
    from earshot.core.files import hold_lock
    from earshot.features.cache import Cache
    from earshot.search import auto, candidates
    from earshot.search.candidate_training import FINISHED, OPEN, CandidateTrainer
    from earshot.search.flags import AutoFlags

    began = time.monotonic()
    options = AutoFlags(candidates=tuple(flags.candidates), metric=flags.metric)
    opened = [Cache(folder) for folder in flags.features]
    with hold_lock(flags.out, "the records"):
        state = auto.read_state(flags.out, auto.describe_inputs(opened, options), 1e6)
        listed = candidates.list_candidates(opened, options.candidates)
        if not flags.seeds:
            listed = [one for one in listed if one.after is None]
        machine_flags = TrainMachineFlags(device=flags.device, report=False)
        trainer = CandidateTrainer(listed, options, machine_flags, flags.out, state, began)
        first = [name for name, one in trainer.candidates.items() if one.after is None]
        trainer.attempt(first[0], trainer.prepare)
        for name in first:
            if name in trainer.list_with_status(OPEN):
                trainer.attempt(name, trainer.guess, flags.device.startswith("cuda"))
        if state["folds"]:
            write_records(trainer, list(trainer.candidates))
        order = sorted(trainer.list_with_status(OPEN, first), key=lambda n: trainer.state["of"][n]["guess"])
        for name in [*order, *(name for name in trainer.candidates if name not in first)]:
            after = trainer.candidates[name].after
            if after and trainer.state["of"][after]["status"] != FINISHED:
                continue
            if not after and not (trainer.state["of"][name]["timed"] or trainer.state["of"][name]["tried"]):
                trainer.attempt(name, trainer.time)
            for fold in trainer.state["folds"]:
                if time.monotonic() - began > 3600 * flags.max_hours:
                    print("the time is used up: the same command continues")
                    return
                entry = trainer.state["of"][name]
                if fold not in entry["folds"] and entry["status"] == OPEN:
                    step = {"name": name, "folds": [fold], "seconds": math.inf, "anyhow": True, "done": False}
                    trainer.attempt(name, trainer.train, step)
                    write_records(trainer, list(trainer.candidates))
        trainer.save()
    failed = trainer.list_with_status("failed")
    print(
        f"{flags.out / NAME}: all candidates are recorded{', except ' if failed else ''}{', '.join(failed)}"
    )


def build_scoring(records: Sequence[Record], metric: str):
    """Functions of names: the cross-fitted score of their blend, and `Compare`; and the log loss of the class
    prior."""
    import numpy as np

    from earshot.prediction import blend_weights, significance
    from earshot.training import metrics
    from earshot.training.oof import Oof

    oofs = {one.name: Oof.read(one.folder / "oof_last.csv") for one in records}
    first = next(iter(oofs.values()))
    probabilities = {}
    for name, oof in oofs.items():
        at = {id: index for index, id in enumerate(oof.ids)}
        probabilities[name] = oof.probabilities[[at[id] for id in first.ids]]

    @lru_cache(None)
    def score(names: frozenset) -> float:
        chosen = sorted(names)
        found = blend_weights.fit_blend(
            np.stack([probabilities[name] for name in chosen]),
            first.labels,
            first.folds,
            metric,
            chosen,
        )
        return metrics.to_gain(metric, found.score)

    def compare(name: str, best: str, folds: Sequence[int]) -> tuple[float, float]:
        rows = np.isin(first.folds, folds)
        mine, other = probabilities[name][rows], probabilities[best][rows]
        blocks = significance.draw_blocks(int(rows.sum()))
        return significance.estimate_gain(metric, mine, other, first.labels[rows], blocks)

    counts = first.labels if first.labels.ndim == 2 else np.eye(len(first.classes))[first.labels]
    prior = np.tile(counts.mean(0), (len(first.ids), 1))
    return score, compare, float(metrics.compute_losses(prior, first.labels).mean())


def replay(flags: argparse.Namespace) -> None:
    """The table and the picture."""
    records, folds = read_records(flags.records)
    score, compare, chance = build_scoring(records, flags.metric)
    curves: dict[int, dict[str, list[float]]] = {}
    for minutes in MINUTES:
        budget = 60.0 * minutes
        new = replay_schedule(records, folds, budget, chance)
        old = replay_halving(records, folds, budget, compare)
        curves[minutes] = {
            "schedule": [score_at(new, share * budget, score) for share in SHARES],
            "order before": [score_at(old, share * budget, score) for share in SHARES],
            "oracle": [choose_oracle(records, share * budget, score) for share in SHARES],
        }
    lines = [
        f"`python benchmarks/anytime.py replay` of {len(records)} recorded candidates, {len(folds)} folds; "
        f"{flags.metric} of the blend, cross-fitted. Recorded on {machine()}.",
        f"Features: {', '.join(sorted({one.entry.source for one in records}))}.",
        "The oracle is chosen by the score itself, so it is optimistic.",
    ]
    for minutes, found in curves.items():
        lines += ["", f"| of {minutes} minutes | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
        for index, share in enumerate(SHARES):
            cells = [
                f"{values[index]:.4f}" if math.isfinite(values[index]) else "-" for values in found.values()
            ]
            lines.append(f"| {share:.0%} | {' | '.join(cells)} |")
    print("\n".join(lines))
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "anytime.md").write_text("\n".join([*HEAD, *lines, ""]))
    draw(curves, flags.metric, flags.out / "anytime.svg")


def draw(curves: dict[int, dict[str, list[float]]], metric: str, path: Path) -> None:
    """A panel per budget: score against minutes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(curves), figsize=(9, 3.2), sharey=True, layout="constrained")
    for panel, (minutes, found) in zip(panels, curves.items(), strict=True):
        for (name, values), style in zip(found.items(), ("-", "--", ":"), strict=True):
            known = [(minutes * s, v) for s, v in zip(SHARES, values, strict=True) if math.isfinite(v)]
            panel.plot(*zip(*known, strict=True), style, label=name) if known else None
        panel.set(xscale="log", xlabel=f"minutes of {minutes}")
    panels[0].set_ylabel(metric)
    panels[0].legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Record or replay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("record", help="train each candidate once")
    first.add_argument(
        "--features", type=Path, action="append", required=True, help="a cache; may be repeated"
    )
    first.add_argument("--candidates", nargs="+", default=(), help="recipes instead of the ladder")
    first.add_argument("--out", type=Path, required=True, help="folder of the records")
    first.add_argument("--max-hours", type=float, default=1.0)
    first.add_argument("--device", default="cpu")
    first.add_argument("--seeds", action="store_true", help="further seeds, too")
    first.set_defaults(run=record)
    second = commands.add_parser("replay", help="play the records back")
    second.add_argument("--records", type=Path, required=True)
    second.add_argument("--out", type=Path, required=True, help="folder of the table and the picture")
    second.set_defaults(run=replay)
    for one in (first, second):
        one.add_argument("--metric", default="f1_macro")
    flags = parser.parse_args()
    flags.run(flags)


if __name__ == "__main__":
    main()
