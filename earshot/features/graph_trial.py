"""Try a graph of an export in a process of its own, under limits of memory and time: a run may be untrusted.

    python -P -m earshot.features.graph_trial FOLDER NAME RUNTIME MEMORY SECONDS

runs the graph on two rows of zeros. MEMORY is in bytes, beyond what Python and the libraries take; SECONDS
are those of the processor.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from earshot.core import graphs
from earshot.core.checksums import CorruptFile
from earshot.extractors.onnx_probe import limit_resources

ROOT = Path(__file__).resolve().parents[2]
MEMORY, COPIES = 4 << 30, 6  # bytes that the trial may take: so many, and so many times the files
SECONDS, WALL = 60, 300  # that the trial may take: of the processor, and of the clock
LARGEST = 1 << 26  # numbers of a row
OUTPUTS = {"heads": ("logits", "probabilities"), "extractor": ("features",)}


def try_graph(folder: Path, name: str, runtime: str) -> None:
    """Raise CorruptFile for a graph that crashes, or takes too much memory or time."""
    try:
        states = [(folder / file).stat() for file in graphs.list_files(name, runtime)]
    except FileNotFoundError as error:
        raise CorruptFile(f"{error.filename} is missing") from None
    changed = tuple((state.st_size, state.st_mtime_ns) for state in states)
    if not _passes(folder.absolute(), name, runtime, changed):
        raise CorruptFile(
            f"{folder / graphs.list_files(name, runtime)[0]} fails, or takes too much memory or time"
        )


@functools.lru_cache(maxsize=64)
def _passes(folder: Path, name: str, runtime: str, changed: tuple[tuple[int, int], ...]) -> bool:
    memory = MEMORY + COPIES * sum(size for size, _ in changed)
    command = [sys.executable, "-P", "-m", "earshot.features.graph_trial", str(folder), name, runtime]
    # the packages of this process, wherever they are; not those of the current folder
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [*command, str(memory), str(SECONDS)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=WALL,
        )
        return done.returncode == 0
    return False


def main(folder: Path, name: str, runtime: str, memory: int, seconds: int) -> int:
    """Load the graph and run it; the exit code."""
    for package in graphs.PACKAGES[runtime]:
        importlib.import_module(package)  # what they take is not the file's
    limit_resources(memory, seconds)
    graph = graphs.Graph(folder, name, runtime, 1)
    if any(not shape or int(np.prod(shape, dtype=np.float64)) > LARGEST for shape in graph.shapes.values()):
        return 1
    feeds = {key: np.zeros((2, *shape), np.float32) for key, shape in graph.shapes.items()}
    for output in OUTPUTS[name]:
        graph.run(output, **feeds)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
