"""Check the machine, or a competition's data: problems that would cost a run or a score, each with a fix."""

from __future__ import annotations

import sys
from typing import Any

from earshot.core import cli
from earshot.core.errors import UserError
from earshot.doctor.flags import DataFlags

ABOUT = (
    "Check the machine, or a competition's data by its cached features.\n"
    "\n"
    "  python doctor.py                              GPUs, packages, what is attached, disk, memory, "
    "time, internet: seconds\n"
    "  python doctor.py --cluster auto               nodes of a Ray cluster, their devices and versions, the "
    "shared folder\n"
    "  python doctor.py --data data/esc10            duplicates, labels, classes, durations, shift -> "
    "reports/esc10-<cache>/\n"
    "  python doctor.py --data data/esc10 --runs A   labels are checked by a run's out-of-fold predictions, "
    "too\n"
    "\n"
    "Lines begin with ok, warning (a score or a session suffers) or stop (the next stage refuses: exit "
    "code 2)."
)


def list_groups() -> dict[str, Any]:
    """Title -> defaults of the flags."""
    return {"data": DataFlags()}


def main(argv: list[str]) -> None:
    """Parse the flags, run the checks, exit with code 2 on a stop."""
    filled, _ = cli.parse({"data": DataFlags()}, argv, ABOUT)
    flags = filled["data"]
    if flags.data is not None and flags.cluster is not None:
        raise UserError("--cluster checks machines, --data clips: give one of them")
    if flags.device != "auto" and flags.cluster is None:
        raise UserError("--device chooses nodes of a cluster: give --cluster, too")
    cluster = flags.cluster and f"cluster {flags.cluster}"
    # before numpy and torch are imported
    print(f"doctor: {flags.data or cluster or 'this machine'}", flush=True)
    if flags.cluster is not None:
        from earshot.doctor.cluster import check_cluster

        findings = check_cluster(flags, print)
    elif flags.data is None:
        from earshot.doctor import machine

        findings = machine.check_machine(print)
    else:
        from earshot.doctor import data

        findings = data.check_data(flags, print)
    if any(finding.level == "stop" for finding in findings):
        sys.exit(2)


if __name__ == "__main__":
    cli.run(main)
