"""How long each script makes its user wait: --help, the first line, the first line of work -> RESULTS.md.

    python benchmarks/startup.py [--rounds 5] [--no-results]

On the sample competition, whose features are made beforehand. Processes are timed from their start, their
output through a pipe, as in a notebook's log; all are taken in turn, so that a busy machine slows them alike,
and the figures are medians. Peers in the same turns: Python importing torch, and importing torch and
transformers' AST, which no such script can do without.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import ROOT, keep_rows, machine, timed

HELP_LIMIT, LINE_LIMIT = 1.0, 4.0  # seconds
# Per script: its arguments in round N, and what the first line of its work begins with.
SCRIPTS = {
    "get_features.py": (["--competition", "sample", "--recipe", "sample", "--cache", "new{}"], "device:"),
    "train.py": (
        ["--recipe", "linear", "--features", "data/sample/logmel", "--epochs", "1", "--name", "new{}"],
        "fold 0/",
    ),
    "predict.py": (["--runs", "ready"], "submissions/submission.csv:"),
}
PEERS = {
    "import torch": "import torch",
    "import torch, transformers.ASTModel": "import torch; from transformers import ASTModel",
}


def lines(command: list[str], cwd: Path, until: str | None = None) -> list[tuple[float, str]]:
    """(seconds from the start, line) of a command's output; it is ended after the first line that begins with
    `until`."""
    began, found = time.perf_counter(), []
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        found.append((time.perf_counter() - began, line.rstrip()))
        if until and line.startswith(until):
            process.terminate()
            break
    process.stdout.read()
    said = process.stderr.read()
    if process.wait() and not (until and found and found[-1][1].startswith(until)):
        raise SystemExit(f"error: {' '.join(command)} left with {process.returncode}: {said[-500:]}")
    return found + [(time.perf_counter() - began, "")]


def measure(rounds: int, scratch: Path) -> dict[str, dict[str, float]]:
    """Per script or peer the medians: "help", "line" (the first), "work" (the first of the work)."""
    found: dict[str, dict[str, list[float]]] = {}

    def note(name: str, kind: str, seconds: float) -> None:
        found.setdefault(name, {}).setdefault(kind, []).append(seconds)

    timed("get_features.py", ["--competition", "sample", "--recipe", "sample"], scratch)
    timed(
        "train.py",
        ["--recipe", "linear", "--features", "data/sample/logmel", "--epochs", "1", "--name", "ready"],
        scratch,
    )
    for number in range(rounds):
        for script, (args, work) in SCRIPTS.items():
            command = [sys.executable, str(ROOT / script)]
            note(script, "help", lines([*command, "--help"], scratch)[-1][0])
            said = lines([*command, *(a.format(number) for a in args)], scratch, work)
            note(script, "line", said[0][0])
            note(script, "work", said[-2][0])
        for name, code in PEERS.items():
            note(name, "help", lines([sys.executable, "-c", code], scratch)[-1][0])
    return {name: {kind: median(values) for kind, values in kinds.items()} for name, kinds in found.items()}


def main() -> None:
    """Measure, report; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="startup-") as scratch:
        found = measure(flags.rounds, Path(scratch))
    rows = {
        f"`{name}`": f"| `{name}` | {kinds['help']:.2f} s | "
        + " | ".join(f"{kinds[kind]:.2f} s" if kind in kinds else "" for kind in ("line", "work"))
        + " |"
        for name, kinds in found.items()
    }
    print(*rows.values(), sep="\n")
    missed = [
        f"{name} {kind}"
        for name, kinds in found.items()
        if name in SCRIPTS
        for kind, limit in (("help", HELP_LIMIT), ("line", LINE_LIMIT))
        if kinds[kind] > limit
    ]
    print(
        f"missed: {', '.join(missed)}"
        if missed
        else f"--help within {HELP_LIMIT:g} s and first lines within {LINE_LIMIT:g} s"
    )
    if not flags.no_results:
        keep_rows(
            "Start-up",
            [
                f"`python benchmarks/startup.py --rounds {flags.rounds}` on {machine()}:",
                "seconds from the process's start, medians, taken in turn, output through a pipe.",
                f"Targets: `--help` {HELP_LIMIT:g} s, first line {LINE_LIMIT:g} s. Peers: what any script on "
                "them waits for.",
                "First line of work: the device (features), the first epoch of `linear` on 300 cached clips "
                "(training), the",
                "submission of a finished run (prediction).",
            ],
            "| script | --help, or the peer's whole process | first line | first line of work |",
            rows,
        )
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
