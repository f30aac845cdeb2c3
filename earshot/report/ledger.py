"""The ledger of submissions on the terminal, and the plot of CV against leaderboard.

python -m earshot.report.ledger                              the table
python -m earshot.report.ledger --score FILE_OR_HASH 0.913   fill in a public score (--private: other)
python -m earshot.report.ledger --plot                       submissions/cv_vs_lb.png
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from earshot.core import cli
from earshot.core.errors import UserError
from earshot.core.files import write_bytes
from earshot.prediction.ledger import COLUMNS, PLACE, change, find, number, read
from earshot.report import style


@dataclass(frozen=True)
class LedgerFlags:
    """the ledger"""

    score: tuple[str, float] | None = None
    """the submission's file, or the first digits of its sha256, and what the leaderboard said of it"""
    private: bool = False
    """--score is the private leaderboard's"""
    plot: bool = False
    """draw the out-of-fold scores against the leaderboard's: cv_vs_lb.png beside the ledger"""
    ledger: str = PLACE
    """where the ledger lies: beside the submissions"""
    competition: str | None = None
    """which competition to plot (default: that of the newest scored submission)"""


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
        with style.style():
            return _draw(scored, competition, path)
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from None


def _draw(scored: list[dict[str, str]], competition: str | None, path: Path) -> str:
    figure, at = style.axes(6.2, 5.4)
    metrics = sorted({row["metric"] for row in scored})
    at.set(
        xlabel=f"out-of-fold {', '.join(metrics)}",
        ylabel="leaderboard",
        title=f"{style.short(str(competition), 40)}: CV against LB",
    )
    x, said = [number(row["oof"]) for row in scored], []
    every = list(x)
    for column, colour, marker in (("public", style.BLUE, "o"), ("private", style.VERMILION, "s")):
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
                style.short(name, 28),
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
        color=style.GREY,
        linewidth=1,
        linestyle="--",
        zorder=1,
        label="LB = CV",
    )
    at.legend(frameon=False, fontsize=8, loc="upper left")
    write_bytes(path, style.png(figure))
    return f"plot: {path}, {competition}: {'; '.join(said)}"


def spearman(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation; NaN of fewer than 3 pairs, or where a side is all one value."""
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def main(argv: list[str]) -> None:
    """Fill a score in, draw, or print the table."""
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
    cli.run(main)
