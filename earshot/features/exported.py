"""An extractor's network as a graph of an export that lies beside a run, in place of torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.core import graphs
from earshot.core.checksums import CorruptFile
from earshot.core.files import hash_value
from earshot.core.shell import join_command
from earshot.features import graph_trial

if TYPE_CHECKING:
    import torch

    from earshot.features.for_run import SavedRun

INPUT, OUTPUT = "x", "features"


def hash_features(run: SavedRun) -> str:
    """What the graph of an extractor stands for: the hash of a run's features, their weights included."""
    return hash_value(run.config["record"]["features"])


def replace_network(extractor: Any, run: SavedRun, report: Callable[[str], None] = print) -> None:
    """Let an extractor on the CPU compute its network by an export of the run, where one fits and its runtime
    is installed; `report` is called with a line that says so, or why one is not used.

    In bf16, on processors that are faster at it, torch is faster than a graph and stays.

    Args:
        run: made with the features that the extractor computes.
    """
    if extractor.exportable is None or extractor.device != "cpu" or extractor.precision != "fp32":
        return
    faults = []
    for runtime in graphs.PACKAGES:
        for folder in sorted((run.folder / graphs.FOLDER).glob(f"*_{runtime}")):
            if graphs.find_missing_package(runtime):
                continue
            try:
                about = graphs.read_export(folder)
                there = graphs.list_files("extractor", runtime)[0] in about["sha256"]
                if there and about["features"] == hash_features(run):
                    graph_trial.try_graph(folder, "extractor", runtime)
                    load_network(extractor, folder, runtime)
                    report(f"{run.folder}: {runtime} computes {extractor.get_name()}'s network, by {folder}")
                    return
            except CorruptFile as error:
                again = join_command("python", "-m", "earshot.export", run.folder, "--to", runtime)
                faults.append(f"warning: {error}: torch computes the network; export the run again: {again}")
    for fault in faults:
        report(fault)


def load_network(extractor: Any, folder: Path, runtime: str) -> None:
    """Let an extractor compute its network by an export's graph; CorruptFile where that cannot be loaded."""
    import torch

    threads = torch.get_num_threads()
    side_by_side = extractor.at_once is not None  # its passes have a thread each
    graph = graphs.Graph(
        folder, "extractor", runtime, 1 if side_by_side else threads, threads if side_by_side else 1
    )

    def compute(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(graph.run(OUTPUT, **{INPUT: np.ascontiguousarray(x.numpy())}))

    setattr(extractor, extractor.exportable, compute)
