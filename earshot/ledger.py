"""The ledger: a row per submission, what it was made from, its out-of-fold score, and what the leaderboard
said.

python -m earshot.ledger                                  the table
python -m earshot.ledger --score FILE_OR_HASH 0.913       fill in a public score (--private: the other one)
python -m earshot.ledger --plot                           submissions/cv_vs_lb.png
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from earshot.errors import UserError
from earshot.files import digest, read_json, replacing

if TYPE_CHECKING:
    from earshot.run import Run

NAME = "ledger.csv"
COLUMNS = (
    "time",
    "competition",
    "file",
    "rows",
    "sha256",
    "runs",
    "blend",
    "metric",
    "oof",
    "public",
    "private",
    "message",
)


@dataclass(frozen=True)
class LedgerFlags:
    """the ledger"""

    score: tuple[str, float] | None = None
    """the submission's file, or the first digits of its sha256, and what the leaderboard said of it"""
    private: bool = False
    """--score is the private leaderboard's"""
    plot: bool = False
    """draw the out-of-fold scores against the leaderboard's: cv_vs_lb.png beside the ledger"""
    ledger: str = f"submissions/{NAME}"
    """where the ledger lies: beside the submissions"""
    competition: str | None = None
    """which competition to plot (default: that of the newest scored submission)"""


def read(path: Path) -> list[dict[str, str]]:
    """The rows, oldest first; none where there is no ledger.

    Raises:
        UserError: a file that is no ledger.
    """
    if not path.exists():
        return []
    from earshot import tables

    table = tables.read(path)
    if not {"sha256", "file"} <= set(table.columns):
        raise UserError(
            f"{path} is no ledger (it has no column sha256): move it away, the next submission begins a new "
            "one"
        )
    return [{**dict.fromkeys(COLUMNS, ""), **row} for row in table.to_dict("records")]


def change(path: Path, by: Callable[[list[dict[str, str]]], None]) -> None:
    """Read the ledger, let `by` change its rows, write it; of two processes at once, one waits for the
    other."""
    # holds the lock of the file beside it from before the reading to after the rename
    with replacing(path) as file:
        rows = read(path)
        by(rows)
        text = io.StringIO()
        # columns of the user's own
        more = dict.fromkeys(key for row in rows for key in row if key not in COLUMNS)
        writer = csv.DictWriter(text, (*COLUMNS, *more), lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
        file.write(text.getvalue().encode("utf-8"))


def known_oof(runs: Sequence[Run]) -> tuple[str, float] | None:
    """Metric and out-of-fold score of a single run's final epoch (honest), where it is known; of a blend, who
    blends says it."""
    if len(runs) != 1 or not (runs[0].folder / "scores.json").is_file():
        return None
    metric = runs[0].config["record"]["training"].get("metric")
    found = read_json(runs[0].folder / "scores.json")
    value = found.get("last", {}).get(metric) if isinstance(found, dict) else None
    return (metric, float(value)) if isinstance(value, (int, float)) else None


def record(
    out: Path,
    competition: str,
    rows: int,
    runs: Sequence[Run] = (),
    blend: str = "",
    oof: tuple[str, float] | None = None,
    message: str = "",
) -> str:
    """Enter a submission that was just written into the ledger beside it; the line to say. No error: a
    submission counts more.

    Args:
        out: the submission's file.
        rows: how many it has.
        runs: what it was made from.
        blend: how several were blended.
        oof: metric and honest out-of-fold score; None: a single run's own, where known.
    """
    path = out.parent / NAME
    try:
        content = digest(out)
        oof = oof or known_oof(runs)
        row = {
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "competition": competition,
            "file": out.name,
            "rows": str(rows),
            "sha256": content[:16],
            "runs": " ".join(run.folder.name for run in runs),
            "blend": blend,
            "metric": oof[0] if oof else "",
            "oof": f"{oof[1]:.6f}" if oof else "",
            "public": "",
            "private": "",
            "message": message,
        }
        if any(content.startswith(old["sha256"]) for old in read(path) if old["sha256"]):
            return f"ledger: {path} has this submission already ({content[:12]})"

        def add(rows: list[dict[str, str]]) -> None:
            if not any(content.startswith(old["sha256"]) for old in rows if old["sha256"]):
                rows.append(row)

        change(path, add)
    except (UserError, OSError) as error:
        return f"ledger: the submission stands, but is not entered in {path}: {' '.join(str(error).split())}"
    where = "" if path == Path(LedgerFlags().ledger) else f" --ledger {path}"
    return (
        f"ledger: {path}, {content[:12]}; once it is scored: python -m earshot.ledger --score "
        f"{content[:8]} SCORE{where}"
    )


def find(rows: list[dict[str, str]], what: str, path: Path) -> int:
    """The row of a submission's file (as it is now), or of the first digits of its hash.

    Raises:
        UserError: none such, or several.
    """
    wanted = digest(what) if Path(what).is_file() else what.lower()
    if not re.fullmatch("[0-9a-f]{4,64}", wanted):
        raise UserError(f"--score {what}: no such file, and no hash of at least 4 hex digits")
    known = [row["sha256"] for row in rows]
    found = [i for i, has in enumerate(known) if has and (has.startswith(wanted) or wanted.startswith(has))]
    if len(found) != 1:
        raise UserError(
            f"--score {what}: {len(found) or 'no'} rows of {path} have this content: `python -m "
            "earshot.ledger` lists them"
        )
    return found[0]


def number(cell: str) -> float:
    """A cell as a number; NaN where it is empty or none."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def shown(rows: list[dict[str, str]]) -> list[str]:
    """The table's lines, aligned, without the columns that no row fills."""
    columns = [c for c in COLUMNS if any(row[c] for row in rows) or c in ("oof", "public")]
    cells = [columns, *([row[c][:12] if c == "sha256" else row[c] for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def plot(rows: list[dict[str, str]], competition: str | None, path: Path) -> str:
    """Out-of-fold against leaderboard scores of a competition's submissions as a picture; the line to say.

    Raises:
        UserError: nothing to plot, or no matplotlib.
    """
    scored = [
        row
        for row in rows
        if math.isfinite(number(row["oof"]))
        and (math.isfinite(number(row["public"])) or math.isfinite(number(row["private"])))
    ]
    if not competition and scored:
        competition = scored[-1]["competition"]
    scored = [row for row in scored if row["competition"] == competition]
    if not scored:
        raise UserError(
            "nothing to plot: no submission has both an out-of-fold score and a leaderboard's: enter one "
            "with --score FILE_OR_HASH SCORE"
        )
    try:
        from earshot.doctor.pictures import BLUE, GREY, VERMILION, axes, save

        figure, at = axes(6.2, 5.4)
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from None
    metrics = sorted({row["metric"] for row in scored})
    at.set(
        xlabel=f"out-of-fold {', '.join(metrics)}",
        ylabel="leaderboard",
        title=f"{competition}: CV against LB",
    )
    x, said = [number(row["oof"]) for row in scored], []
    every = list(x)
    for column, colour, marker in (("public", BLUE, "o"), ("private", VERMILION, "s")):
        pairs = [
            (a, number(row[column]), row)
            for a, row in zip(x, scored, strict=True)
            if math.isfinite(number(row[column]))
        ]
        if not pairs:
            continue
        every += [b for _, b, _ in pairs]
        rho = spearman([a for a, _, _ in pairs], [b for _, b, _ in pairs])
        said.append(
            f"{column} {len(pairs)} scores" + (f", Spearman {rho:+.2f}" if math.isfinite(rho) else "")
        )
        at.scatter(
            [a for a, _, _ in pairs],
            [b for _, b, _ in pairs],
            color=colour,
            marker=marker,
            label=said[-1],
            zorder=3,
        )
        for a, b, row in (
            pairs if column == "public" or not math.isfinite(number(scored[0]["public"])) else []
        ):
            name = row["message"] or row["runs"] or row["sha256"][:8]
            at.annotate(
                name if len(name) <= 28 else name[:27] + "…",
                (a, b),
                (6, 4),
                textcoords="offset points",
                fontsize=7,
            )
    low, high = min(every), max(every)
    edge = 0.08 * (high - low) or 0.01
    at.plot(
        [low - edge, high + edge],
        [low - edge, high + edge],
        color=GREY,
        linewidth=1,
        linestyle="--",
        zorder=1,
        label="LB = CV",
    )
    at.legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, path)
    return f"plot: {path}, {competition}: {'; '.join(said)}"


def spearman(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation; NaN of fewer than 3 pairs, or where a side is all one value."""
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def main(argv: list[str]) -> None:
    """Fill a score in, draw, or print the table."""
    from earshot import cli

    filled, _ = cli.parse({"ledger": LedgerFlags()}, argv, __doc__ or "")
    flags = filled["ledger"]
    path = Path(flags.ledger)
    if flags.score:
        what, score = flags.score
        if not math.isfinite(score):
            raise UserError(f"--score {what} {score}: a number, please")
        place, column = find(read(path), what, path), "private" if flags.private else "public"

        def fill(rows: list[dict[str, str]]) -> None:
            rows[find(rows, what, path)][column] = (
                f"{score:g}" if float(f"{score:g}") == score else repr(score)
            )

        change(path, fill)
        row = read(path)[place]
        print(
            f"{path}: {row['file']} {row['sha256'][:12]}, out-of-fold {row['oof'] or 'unknown'}, {column} "
            f"{row[column]}"
        )
    rows = read(path)
    if flags.plot:
        print(plot(rows, flags.competition, path.with_name("cv_vs_lb.png")))
    elif not flags.score:
        print(
            "\n".join(shown(rows))
            if rows
            else f"no submission is entered in {path} yet: train.py and predict.py do that"
        )


if __name__ == "__main__":
    from earshot import cli

    cli.run(main)
