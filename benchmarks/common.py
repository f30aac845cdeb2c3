"""What the benchmarks share: the scripts run and timed as a user runs them, and RESULTS.md kept section by
section."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"


def timed(script: str, args: list[str], cwd: Path) -> float:
    """Seconds that a script took, start-up included; its output passes through; stops with it where it
    fails."""
    began = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / script), *args], cwd=cwd, check=True)
    return time.perf_counter() - began


def machine() -> str:
    """What the figures were measured on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores, kind = len(os.sched_getaffinity(0)), torch.backends.cpu.get_cpu_capability()
    return f"{cores} cores of {model} ({kind}), {gpu}, torch {torch.__version__}"


def correct(run: Path, name: str, folds: list[int] | None = None) -> tuple[int, int]:
    """Clips predicted correctly and all clips in a run's out-of-fold file, of some folds or of all.

    Args:
        run: the run's folder.
        name: "oof_last" (last epoch, unbiased) or "oof" (best epoch, optimistic).
    """
    with open(run / f"{name}.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if folds is None or int(row["fold"]) in folds]
    classes = list(rows[0])[3:]
    right = [max(classes, key=lambda c: float(row[c])).removeprefix("class ") == row["label"] for row in rows]
    return sum(right), len(right)


def keep_rows(title: str, about: list[str], header: str, rows: dict[str, str], path: Path = RESULTS) -> None:
    """Put rows into the table below a heading of RESULTS.md; rows of the same key are replaced, other
    sections stay.

    Args:
        title: the section's heading.
        about: lines between heading and table.
        header: the table's first line, "| a | b |".
        rows: the first cell -> the whole line.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else "# All measurements\n"
    before, found, after = text.partition(f"\n## {title}\n")
    old, more, rest = after.partition("\n## ") if found else ("", "", "")
    kept = {
        line.split(" | ")[0].removeprefix("| "): line for line in old.splitlines() if line.startswith("| ")
    }
    kept.pop(header.split(" | ")[0].removeprefix("| "), None)  # an older header is no row
    kept = {key: line for key, line in kept.items() if key not in rows} | rows
    rule = "|" + "---|" * (header.count("|") - 1)
    section = "\n".join([f"\n## {title}\n", *about, "", header, rule, *kept.values(), ""])
    path.write_text(before.rstrip("\n") + "\n" + section + more + rest, encoding="utf-8")
