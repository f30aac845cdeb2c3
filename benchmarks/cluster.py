"""What a second worker of a cluster brings: extraction with one and with two workers of one core each.

    python benchmarks/cluster.py --data ESC10

Each is a cluster of its own on this machine (`--cluster local`). Timed is the work alone, from when
all workers have loaded the extractor until the last shard is written: start-up and joining the shards,
which the driver does, are listed apart. Efficiency is the time of one worker over twice that of two.

Each worker is bound to one core, as a worker has threads that decode beside the one that computes, and one
worker would use both cores of a small machine. Driver and Ray's own processes run wherever there is room. So
with two cores they take part of what two workers could have: their CPU time is listed, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("--extractor", "logmel", "--workers", "1", "--augment", "4")
WORKER = b"ray::NodeWorker"  # how Ray names the process of a worker


def list_processes() -> tuple[list[int], list[int]]:
    """The workers below this process, and this process with the others."""
    parents: dict[int, int] = {}
    workers: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(WORKER):
                workers.add(pid)
    below = [os.getpid()]
    for pid in below:
        below += [child for child, parent in parents.items() if parent == pid]
    return [pid for pid in below if pid in workers], [pid for pid in below if pid not in workers]


def bind(workers: list[int]) -> None:
    """Give each worker, with all its threads, a core of its own."""
    for pid, core in zip(workers, sorted(os.sched_getaffinity(0)), strict=False):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def count_seconds(processes: list[int]) -> float:
    """The CPU time that processes have used."""
    ticks = 0
    for pid in processes:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def extract(data: Path, workers: int) -> dict[str, float]:
    """Extract on a new cluster in this process; seconds of its parts."""
    sys.path.insert(0, str(ROOT))
    import get_features
    from earshot.cluster.pool import RayPool

    spent = {"work": 0.0, "workers": 0.0, "others": 0.0}
    run = RayPool.run

    def timed(*arguments: object) -> bool:
        ours, others = list_processes()
        assert len(ours) == workers, f"{len(ours)} workers"
        bind(ours)
        before, began = (count_seconds(ours), count_seconds(others)), time.perf_counter()
        try:
            return run(*arguments)  # type: ignore[arg-type]
        finally:
            spent["work"] += time.perf_counter() - began
            spent["workers"] += count_seconds(ours) - before[0]
            spent["others"] += count_seconds(others) - before[1]

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
                f"{workers} worker{'s' if workers > 1 else ''}: {found['work']:6.1f} s of work (CPU time: "
                f"workers {found['workers']:.1f} s, driver and Ray {found['others']:.1f} s), "
                f"{found['all'] - found['work']:5.1f} s of start-up, reading headers and joining",
                flush=True,
            )
            if workers not in best or found["work"] < best[workers]["work"]:
                best[workers] = found
    efficiency = best[1]["work"] / (2 * best[2]["work"])
    print(f"efficiency of two workers: {efficiency:.2f} (best of {flags.repeats})")


if __name__ == "__main__":
    main()
