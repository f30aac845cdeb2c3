"""A run's heads and its extractor's network by an export that lies beside the run, where its runtime is here.

`python -m earshot.export` writes runs/<name>/export/<kind>_<runtime>/: export.json with checksums, `heads`, a
graph of all models, and `extractor`, the extractor's network, where it can be exported.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from earshot.core import graphs
from earshot.core.checksums import CorruptFile
from earshot.core.device import Device
from earshot.core.shell import join_command
from earshot.features import graph_trial
from earshot.training.dataset import WindowDataset
from earshot.training.predict import list_predictors
from earshot.training.run import Run


def get_folder(run: Run, kind: str, runtime: str) -> Path:
    """Where the export of a run's "best" or "last" checkpoints lies."""
    return run.folder / graphs.FOLDER / f"{kind}_{runtime}"


def describe_weights(run: Run, kind: str) -> dict[str, str]:
    """What an export stands for: the folder of each model that predicts, and the hash of its weights."""
    return {slot.folder: run.get_slot_folder(slot).read_weights_hash(kind) for slot in list_predictors(run)}


class ExportedHeads:
    """All models of a run as one graph.

    Args:
        run: which it belongs to. folder: of the export. runtime: "onnx" or "openvino".
    Raises:
        CorruptFile: the runtime refuses the file.
    """

    def __init__(self, run: Run, folder: Path, runtime: str):
        self.folder, self.runtime, self.batch_size = folder, runtime, run.predict_batch_size
        self.graph = graphs.Graph(folder, "heads", runtime, 1, torch.get_num_threads())

    def compute_logits(self, rows: WindowDataset, which: np.ndarray) -> torch.Tensor:
        """Logits (rows, models, classes) of the rows `which`."""
        return torch.from_numpy(self.compute("logits", rows, which))

    def compute(self, output: str, rows: WindowDataset, which: np.ndarray | None = None) -> np.ndarray:
        """An output of the graph for the rows `which`, by default all: "logits", or "probabilities" (rows,
        classes), the models' mean."""
        which = np.arange(len(rows)) if which is None else which
        return np.concatenate(
            [
                self.graph.run_lanes(output, x=_to_numpy(x), mask=_fill_mask(x, mask))
                for x, mask in rows.iterate_batches(which, self.batch_size)
            ]
        )


def _to_numpy(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.cpu().numpy())


def _fill_mask(x: torch.Tensor, mask: torch.Tensor | None) -> np.ndarray:
    """(B, T) float32, 1 where a frame is real; without a mask all are."""
    if mask is None:
        return np.ones((len(x), x.shape[3]), np.float32)
    return _to_numpy(mask.float())


def open_heads(
    run: Run, kind: str, device: Device, report: Callable[[str], None] = print
) -> ExportedHeads | None:
    """The export of a run's heads, None where torch has to predict.

    Args:
        kind: the checkpoint to predict with, "best" or "last".
        device: an export is for the CPU alone.
        report: called with a line that says which export predicts, or why one is not used.
    """
    reasons = []
    # what predicts by the last checkpoints is a blend, whose export is that of its members
    what, named = ("the run", str(run.folder)) if kind == "best" else ("the blend", "BLEND")
    for runtime in graphs.PACKAGES if device.name == "cpu" else ():
        folder = get_folder(run, kind, runtime)
        if not folder.is_dir():
            continue
        lacking = graphs.find_missing_package(runtime)
        again = join_command("python", "-m", "earshot.export", named, "--to", runtime)
        if lacking:
            reasons.append(
                f"{folder} is not used: {lacking} is not installed: pip install -r requirements-{runtime}.txt"
            )
            continue
        try:
            if graphs.read_export(folder)["models"] == describe_weights(run, kind):
                graph_trial.try_graph(folder, "heads", runtime)
                found = ExportedHeads(run, folder, runtime)
                report(f"{run.folder}: {runtime} predicts, by {folder}")
                return found
            reasons.append(f"{folder} is not used: the run was trained since: export {what} again: {again}")
        except CorruptFile as error:
            reasons.append(f"{error}: export {what} again: {again}")
    other = "last" if kind == "best" else "best"
    for runtime in graphs.PACKAGES if device.name == "cpu" and not reasons else ():
        folder = get_folder(run, other, runtime)
        if folder.is_dir():
            again = join_command("python", "-m", "earshot.export", named, "--to", runtime)
            reasons.append(
                f"{folder} is not used: here the {kind} checkpoints predict: export {what}"
                f"{' (--name keeps it)' if kind == 'last' else ''}, too: {again}"
            )
    for reason in reasons:
        report(f"warning: {reason}")
    if reasons:
        report(f"{run.folder}: torch predicts")
    return None
