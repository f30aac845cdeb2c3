"""Every check of this machine, as lines; a warning or a stop comes with a fix."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from earshot.doctor import environment, gpu
from earshot.doctor.findings import Finding, report_ok, stop, warn
from earshot.kaggle import packages

OLDEST = (3, 11)
CODE = Path(__file__).resolve().parents[2]


def check_code() -> Iterator[Finding]:
    """The place of the code, the Python and the packages."""
    python = sys.version.split()[0]
    yield report_ok(f"earshot: {CODE}, Python {python}")
    if sys.version_info < OLDEST:
        yield stop(f"Python {python} is too old: install 3.11 or newer")
    lacking, others = packages.find_missing_packages(), packages.find_unfit()
    if lacking:
        level = warn if all(package.name in packages.OPTIONAL for package in lacking) else stop
        yield level(
            f"packages: {', '.join(package.name for package in lacking)} missing: python -m "
            f"earshot.kaggle.packages, or pip install -r {packages.REQUIREMENTS}"
        )
    if others:
        listed = ", ".join(f"{one.name} {have} (wanted: {one.specifier})" for one, have in others)
        yield warn(f"packages: {listed}: untested; pip install -r {packages.REQUIREMENTS}")
    extras = [package.name for package in packages.find_missing_extras()]
    if extras:
        yield warn(
            f"packages: {', '.join(extras)} of the bundle not installed: python -m earshot.kaggle.packages"
        )
    if not lacking and not others:
        yield report_ok(f"packages: all {len(packages.read_requirements())} of requirements.txt")


def check_machine(log: Callable[[str], None]) -> list[Finding]:
    """Run the checks one by one, print each line at once; returns the findings."""
    began, internet = time.monotonic(), environment.Internet()
    findings: list[Finding] = []

    def weights() -> Iterable[Finding]:
        return environment.check_weights(internet)

    for check in (
        check_code,
        gpu.check_libraries,
        gpu.check_gpus,
        environment.check_competition,
        internet.check_internet,
        weights,
        environment.list_outputs,
        environment.check_disk,
        environment.check_memory,
        environment.check_session,
    ):
        try:
            lines = list(check())
        except Exception as error:  # a check that fails must not stop the others
            where = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
            lines = [
                warn(
                    f"{where} could not be checked ({type(error).__name__}: "
                    f"{' '.join(str(error).split())[:120]})"
                )
            ]
        findings += lines
        for line in lines:
            log(" ".join(str(line).split()))
    log_counts(findings, time.monotonic() - began, log)
    return findings


def log_counts(findings: list[Finding], seconds: float, log: Callable[[str], None]) -> None:
    """Print how many findings there are of each level."""
    counts = Counter(finding.level for finding in findings)
    stops, warnings = (
        f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in ("stop", "warning")
    )
    log(f"{stops}, {warnings}, {counts['ok']} ok, in {seconds:.1f} s")
