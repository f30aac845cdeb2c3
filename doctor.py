"""The doctor: is this data fit to learn from, and will its score hold? What to do if not, a line each."""

from __future__ import annotations

import sys

from earshot import cli
from earshot.doctor.flags import DataFlags
from earshot.errors import UserError

ABOUT = """Look at a competition's data, by its cached features.

  python doctor.py --data data/esc10            duplicates, labels, classes, durations, shift -> reports/esc10-<cache>/
  python doctor.py --data data/esc10 --runs A   labels judged by a run's out-of-fold predictions, too

Lines begin with ok, warning (a score suffers) or stop (the next stage refuses: exit code 1)."""


def main(argv: list[str]) -> None:
    """Parse, look, say."""
    filled, _ = cli.parse({"data": DataFlags()}, argv, ABOUT)
    flags = filled["data"]
    if flags.data is None:
        raise UserError("which data? name a cache or its competition: --data data/<competition>")
    print(f"doctor: {flags.data}", flush=True)  # before numpy is imported
    from earshot.doctor import data

    findings = data.look(flags, print)
    if any(finding.level == "stop" for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
