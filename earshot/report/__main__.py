"""`python -m earshot.report RUN` makes a run's pictures and report.html; `RUN RUN ...` compares runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from earshot.core import cli
from earshot.core.errors import UserError
from earshot.core.shell import quote

ABOUT = (
    "Report on a run, or compare runs.\n"
    "\n"
    "  python -m earshot.report RUN       curves, confusion, classes, calibration, hardest clips: "
    "runs/RUN/report.html\n"
    "  python -m earshot.report runs/*    their scores side by side: reports/comparison.html, .png and .csv"
)


@dataclass(frozen=True)
class ReportFlags:
    """where"""

    runs_folder: str = "runs"
    """folder of the runs that are given by name"""
    out: str = "reports"
    """folder for the comparison"""


def main(argv: list[str]) -> None:
    """Parse the flags, write the report or the comparison."""
    filled, _ = cli.parse({"report": ReportFlags()}, argv, ABOUT, positional="runs")
    flags, names = filled["report"], filled["runs"]
    if not names:
        raise UserError(
            "which run? give one for its report, several to compare them: python -m earshot.report "
            f"{quote(flags.runs_folder)}/*"
        )
    # before pandas and matplotlib are imported
    print(f"report: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}", flush=True)
    from earshot.report import compare_runs, results
    from earshot.report.make import write_report as make_report
    from earshot.training.run import explain_missing

    folders = []
    for name in names:
        here = next(
            (p for p in (Path(name), Path(flags.runs_folder) / name) if results.is_run_or_blend(p)), None
        )
        if here is not None:
            folders.append(here)
        elif len(names) == 1 or not Path(name).exists():
            missing = Path(name) if Path(name).exists() else Path(flags.runs_folder) / name
            raise UserError(explain_missing(missing))
        elif Path(name).is_dir():
            print(f"skipped: {name} is not a run")
    if len(names) == 1:
        print(f"report: {make_report(folders[0])}")
        return
    if not folders:
        raise UserError(f"none of {', '.join(names[:5])} is a run: train one with train.py")
    for line in compare_runs.write_comparison(folders, Path(flags.out)):
        print(line)


if __name__ == "__main__":
    cli.run(main)
