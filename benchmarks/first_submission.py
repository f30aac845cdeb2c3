"""From a fresh clone to a first submission.csv, on ESC-10 cut as a Kaggle competition -> RESULTS.md.

    python benchmarks/first_submission.py --data ESC10 --weights mn04_as_mAP_432.pt [--recipe linear]

The competition has folds 1 to 4 with a train.csv, fold 5 as its test clips, and a sample_submission.csv.
Making it is not timed. Timed are `git clone` of this repository into an empty folder and each command of
the quickstart there, as whole processes in this Python environment: installing it is not counted. The
submission is scored against fold 5's labels, which the commands never see.

The peer, in the same run, is what no such script can do without: a process that imports torch and decodes
all clips once. A busy machine slows both, so the ratio says more than the seconds.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import RESULTS, ROOT, keep_rows, machine

COMPETITION, HELD_OUT = "esc10-cut", 5
HEADER = "| train.py | clone | get_features.py | train.py | together | accuracy on fold 5 | times the peer |"
PEER = """
import sys
from pathlib import Path

import soundfile
import torch

for path in sorted(Path(sys.argv[1]).rglob("*.ogg")):
    torch.from_numpy(soundfile.read(path, dtype="float32")[0])
"""


def cut_competition(data: Path, folder: Path) -> dict[str, str]:
    """Make the competition from ESC-10 as it is published; the test clips' true labels, by file name."""
    with open(next((data / "meta").glob("*.csv")), newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["filename"])
    train = [row for row in rows if int(row["fold"]) != HELD_OUT]
    test = [row for row in rows if int(row["fold"]) == HELD_OUT]
    for name, part in (("audio_train", train), ("audio_test", test)):
        (folder / name).mkdir(parents=True)
        for row in part:
            shutil.copy(data / "audio" / row["filename"], folder / name)
    first = train[0]["category"]
    write_csv(folder / "train.csv", [(row["filename"], row["category"]) for row in train])
    write_csv(folder / "sample_submission.csv", [(row["filename"], first) for row in test])
    return {row["filename"]: row["category"] for row in test}


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    """A table of file names and labels."""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("fname", "label"), *rows])


def score(path: Path, truth: dict[str, str]) -> float:
    """The accuracy of a submission; stops where it has other clips than the competition asks for."""
    with open(path, newline="") as file:
        found = {row["fname"]: row["label"] for row in csv.DictReader(file)}
    if found.keys() != truth.keys():
        raise SystemExit(f"error: {path} has {len(found)} clips, and the competition {len(truth)} others")
    return sum(found[name] == label for name, label in truth.items()) / len(truth)


def measure(command: list[str], cwd: Path) -> float:
    """Seconds of a command, start-up included; its output passes through; stops with it where it fails."""
    words = ["..." if word == PEER else word for word in command]
    print("$", *(Path(word).name if word == sys.executable else word for word in words), flush=True)
    began = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Clone, cut, run, score, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="ESC-10 as published: audio/ and meta/")
    parser.add_argument("--weights", type=Path, required=True, help="EfficientAT's mn04_as_mAP_432.pt")
    parser.add_argument("--recipe", default="linear", help="of train.py")
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the row is kept")
    flags = parser.parse_args()
    data, weights = flags.data.resolve(), flags.weights.resolve()
    with tempfile.TemporaryDirectory(prefix="first-submission-") as scratch:
        clone = Path(scratch) / "earshot"
        seconds = {"clone": measure(["git", "clone", "--quiet", str(ROOT), str(clone)], Path(scratch))}
        truth = cut_competition(data, clone / "data" / COMPETITION)
        peer = measure([sys.executable, "-c", PEER, str(clone / "data" / COMPETITION)], clone)
        extraction = ["--extractor", "efficientat", "--weights", str(weights)]
        commands = {"get_features.py": extraction, "train.py": ["--recipe", flags.recipe]}
        for script, arguments in commands.items():
            seconds[script] = measure([sys.executable, script, *arguments], clone)
        accuracy = score(clone / "submissions" / "submission.csv", truth)
    together = sum(seconds.values())
    cells = [*(f"{one:.1f} s" for one in (*seconds.values(), together)), f"{accuracy:.4f}"]
    key = f"`--recipe {flags.recipe}`"
    row = f"| {key} | {' | '.join(cells)} | {together / peer:.1f} (of {peer:.1f} s) |"
    print(HEADER, row, sep="\n")
    if not flags.no_results:
        keep_rows(
            f"First submission on {machine()}",
            [
                f"`python benchmarks/first_submission.py --data ESC10 --weights {weights.name}`: whole",
                "processes in a fresh clone, from `git clone` to a submission.csv, without the installation.",
                "Training clips: folds 1 to 4 of ESC-10. Clips to submit: fold 5, its labels unseen.",
                "Peer: a process that imports torch and decodes all 400 clips.",
            ],
            HEADER,
            {key: row},
            flags.results,
        )


if __name__ == "__main__":
    main()
