"""What a second worker of a cluster brings: extraction with one and with two workers of one core each.

    python benchmarks/cluster.py --data ESC10

Each is a cluster of its own on this machine (`--cluster local`). Timed is the work alone, from when
all workers have loaded the extractor until the last shard is written: start-up and joining the shards,
which the driver does, are listed apart. Efficiency is the time of one worker over twice that of two. With two
cores a third process (the driver) and Ray's own take part of what the second worker could have.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("--extractor", "logmel", "--workers", "1", "--augment", "4")


def extract(data: Path, workers: int) -> dict[str, float]:
    """Extract on a new cluster in this process; seconds of its parts."""
    sys.path.insert(0, str(ROOT))
    import get_features
    from earshot.cluster.pool import RayPool

    spent = {"work": 0.0}
    run = RayPool.run

    def timed(*arguments: object) -> bool:
        began = time.perf_counter()
        try:
            return run(*arguments)  # type: ignore[arg-type]
        finally:
            spent["work"] += time.perf_counter() - began

    RayPool.run = timed  # type: ignore[method-assign, assignment]
    began = time.perf_counter()
    size = ("--cluster-workers", str(workers), "--cpus-per-worker", "1")
    get_features.main(["--competition", str(data), *SETTINGS, "--cluster", "local", *size])
    return {**spent, "all": time.perf_counter() - began}


def measure(data: Path, workers: int) -> dict[str, float]:
    """`extract` in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--data", str(data), "--one", str(workers)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a competition's folder, such as ESC-10")
    parser.add_argument("--repeats", type=int, default=3, help="of each; the best counts")
    parser.add_argument("--one", type=int, help="only this many workers, here")
    flags = parser.parse_args()
    data = flags.data.resolve()
    if flags.one:
        print(json.dumps(extract(data, flags.one)))
        return
    best: dict[int, dict[str, float]] = {}
    for _ in range(flags.repeats):  # in turn, so that other load hits both alike
        for workers in (1, 2):
            found = measure(data, workers)
            print(
                f"{workers} worker{'s' if workers > 1 else ''}: {found['work']:6.1f} s of work, "
                f"{found['all'] - found['work']:5.1f} s of start-up, reading headers and joining",
                flush=True,
            )
            if workers not in best or found["work"] < best[workers]["work"]:
                best[workers] = found
    efficiency = best[1]["work"] / (2 * best[2]["work"])
    print(f"efficiency of two workers: {efficiency:.2f} (best of {flags.repeats})")


if __name__ == "__main__":
    main()
