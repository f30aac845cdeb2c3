"""What bad input of every kind ends as: audio through both stages, hostile caches and weights, csv files,
zips, damaged state, fuzzing.

    python benchmarks/harm.py        # a few minutes, into benchmarks/RESULTS.md

The files are those of the tests, which make them; here they are counted. A kind that ends otherwise than it
should fails the run.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, keep_rows, machine

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

HEADER = "| input | tried | ended as it should | how |"
TESTED = {
    "csv files": (
        ["test_bad_csv.py"],
        "read as meant, or refused in one line that names the file and the row",
    ),
    "zips": (["test_archive.py"], "unpacked inside their folder, or refused before anything is written"),
    "archives in a competition's folder: bombs, paths and links that lead outside, cut off": (
        ["test_inner_archives.py"],
        "unpacked beside the outputs, inside their folder, or refused in one line; many small ones as one",
    ),
    "parquet files: paths that lead outside, huge cells, damage": (
        ["test_parquet.py"],
        "written inside their folder, or refused in one line",
    ),
    "damaged shards, caches, checkpoints": (
        ["test_damage.py", "test_checkpoints.py"],
        "named, set aside and made again, or refused",
    ),
    "label orders, settings, files that differ": (["test_contract.py"], "refused with both values"),
    "full and read-only disks, two processes at once": (
        ["test_disk.py"],
        "one line; continues once there is space",
    ),
    "scores that are undefined, losses that are no number": (
        ["test_numbers.py"],
        "a tested answer, or a stop that names the clips",
    ),
    "drives that drop, reads that fail, descriptors, memory": (
        ["test_temporary.py"],
        "one line and exit code 75, no clip blamed; the same command later gives the same bytes",
    ),
    "no name, no home, no UTF-8, closed streams": (["test_process.py"], "as everywhere"),
    "joined streams, unfinished headers, channels that cancel, pages for audio": (
        ["test_streams.py"],
        "decoded to the end, or named",
    ),
    "labels in two spellings, ids without zeros, stray quotes": (
        ["test_names.py", "test_rows_and_ids.py"],
        "one label, the right file, no row lost, and said; or refused with the line",
    ),
    "file names of any bytes, zips from a Mac, files not used, commands": (
        ["test_file_names.py"],
        "used and named as text; commands run as they are copied",
    ),
    "the page below a prefix, class names in any script, renamed training clips": (
        ["test_page_proxy.py", "test_fonts.py", "test_seen_clips.py"],
        "works, can be read, is recognised",
    ),
    "ONNX files: memory, endless loops, weights outside, foreign operators, damage": (
        ["test_onnx_untrusted.py"],
        "refused in one line by a process with limits of memory and time",
    ),
    "foreign arrays, YAML and settings": (["test_hostile.py"], "refused, nothing executed"),
}
FUZZED = 2000  # inputs a property


def bad_audio(folder: Path) -> tuple[str, bool]:
    """Every kind of bad and odd audio as training clips, through both stages: the table's row, and whether
    each ended right."""
    from bad_audio import USABLE, make_bad
    from conftest import make_competition

    root = make_competition(folder / "tones", classes=2, train=4, subm=1)
    kinds = make_bad(root / "audio_train")
    with open(root / "train.csv", "a", newline="") as file:
        csv.writer(file).writerows([[kind, "tone0", ""] for kind in kinds])
    extract = ["--competition", str(root), "--extractor", "logmel", "--seconds", "1", "--max-windows", "2"]
    for script, args in (
        ("get_features.py", extract),
        ("train.py", ["--head", "linear", "--epochs", "1", "--folds", "2"]),
    ):
        subprocess.run(
            [sys.executable, str(ROOT / script), *args], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    with open(folder / "data" / "tones" / "logmel" / "bad_audio.csv", newline="") as file:
        ledger = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    right = sum(
        kind not in ledger if end == USABLE else bool(re.search(end, ledger.get(kind, "")))
        for kind, end in kinds.items()
    )
    usable = sum(end == USABLE for end in kinds.values())
    return (
        f"| kinds of bad and odd audio | {len(kinds)} | {right} | {usable} are used as far as they decode, "
        f"{len(kinds) - usable} are left out and named in bad_audio.csv; peak memory of the larger stage "
        f"{peak} MB |"
    ), right == len(kinds)


def hostile(folder: Path) -> dict[str, str]:
    """The rows of the corpus of malicious pickles and weights; stops where one is not refused."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "hostile.py"), str(folder)], capture_output=True, text=True
    )
    found = re.search(r"refused: (\d+) pickles and (\d+) files of weights", done.stdout)
    if not found or done.returncode:
        raise SystemExit(f"error: the corpus was not refused:\n{done.stdout}{done.stderr}")
    how = "refused in one line within 64 MB, nothing executed, opened for writing or imported"
    return {
        name: f"| {name} | {count} | {count} | {how} |"
        for name, count in (("malicious caches", found[1]), ("malicious files of weights", found[2]))
    }


def tested(files: list[str], environment: dict[str, str] | None = None) -> tuple[int, int]:
    """Cases that a few test files try, and those that pass."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(str(ROOT / "tests" / name) for name in files),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    counts = {
        kind: int(number)
        for number, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout.splitlines()[-1])
    }
    if counts.get("failed", 0) + counts.get("error", 0):
        print(done.stdout[-3000:])
    return sum(counts.values()) - counts.get("skipped", 0), counts.get("passed", 0)


def main() -> None:
    """Try everything, write the table; exit code 1 if something ends otherwise than it should."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--no-results", action="store_true", help="leave benchmarks/RESULTS.md as it is")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harm-") as folder:
        line, whole = bad_audio(Path(folder))
        rows = {"kinds of bad and odd audio": line, **hostile(Path(folder))}
    print(*rows.values(), sep="\n", flush=True)
    for name, (files, how) in TESTED.items():
        tried, passed = tested(files)
        rows[name] = f"| {name} | {tried} | {passed} | {how} (`tests/{'`, `tests/'.join(files)}`) |"
        whole &= tried == passed > 0
        print(rows[name], flush=True)
    tried, passed = tested(["test_fuzz.py"], {"EARSHOT_FUZZ": str(FUZZED)})
    rows["fuzzed"] = (
        f"| fuzzed | {tried} properties, {FUZZED} inputs each | {passed} | caches, opcodes, weights, sealed "
        "JSON, csv files: a plain answer or one line |"
    )
    whole &= tried == passed > 0
    print(rows["fuzzed"], flush=True)
    if not flags.no_results and whole:
        about = [f"`python benchmarks/harm.py` on {machine()}. The cases of a test file are its tests."]
        keep_rows("Bad and hostile input", about, HEADER, rows)
    sys.exit(not whole)


if __name__ == "__main__":
    main()
