"""A run's heads and its extractor's network as graphs beside the run, compared with torch before they are
kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earshot.core import checksums, graphs
from earshot.core.errors import UserError
from earshot.core.files import hold_lock, replace_folder
from earshot.export import trace
from earshot.export.compare import CPU, Comparison, compare_features, compare_heads
from earshot.features import exported as exported_network
from earshot.features import for_run
from earshot.prediction import new_audio
from earshot.prediction.exported import ExportedHeads, describe_weights, get_folder
from earshot.training.predict import list_predictors, load_slot_head
from earshot.training.run import Run
from earshot.training.window_pooling import to_probabilities

WINDOWS = 6  # of noise, from silent to loud, by which an extractor's graph is compared


class Ensemble(nn.Module):
    """All models of a run on one view: probabilities (B, classes), their mean, and logits (B, models,
    classes).

    Args:
        heads: in the order of `list_predictors`.
        shifts: circular shifts in time that logits are averaged over.
        multilabel: a sigmoid of each class, in place of a softmax.
    """

    def __init__(self, heads: list[nn.Module], shifts: int, multilabel: bool):
        super().__init__()
        self.heads, self.shifts, self.multilabel = nn.ModuleList(heads), shifts, multilabel

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D, F, T) and mask (B, T), 1 where a frame is real, else 0."""
        real, frames = mask > 0.5, int(x.shape[3])
        shifts = min(self.shifts, frames)
        offsets = [round(number * frames / shifts) for number in range(shifts)]
        inputs = [(x.roll(by, 3), real.roll(by, 1)) if by else (x, real) for by in offsets]
        logits = [sum(head(*each).float() for each in inputs) / shifts for head in self.heads]
        each = [to_probabilities(one, self.multilabel) for one in logits]
        return torch.stack(each).mean(0), torch.stack(logits, 1)


class _Network(nn.Module):
    """An extractor's network: the function that its attribute `exportable` names."""

    def __init__(self, extractor: Any):
        super().__init__()
        self.compute = getattr(extractor, extractor.exportable)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x).float()


def export_run(
    run: Run,
    kind: str,
    runtime: str,
    fp16: bool,
    weights: str | None,
    features: str | None,
    report: Callable[[str], None] = print,
) -> Path:
    """Write the export of a run's "best" or "last" checkpoints, replacing an earlier one of that runtime.

    Args:
        runtime: "onnx" or "openvino". fp16: store the weights in half the bytes.
        weights: the extractor's, where they moved. features: the run's cache, where it moved.
        report: called with a line for each graph.
    Returns:
        the export's folder.
    Raises:
        UserError: the run is not finished, a head cannot be exported, or a graph differs from torch.
    """
    described = describe_weights(run, kind)
    folder = get_folder(run, kind, runtime)
    with hold_lock(folder.parent, "the export"), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        new = Path(scratch)
        heads, compared = _export_heads(run, kind, new, runtime, fp16, features)
        report(f"heads: {compared}")
        network = _export_network(run, heads, new, runtime, fp16, weights)
        report(f"extractor: {network}")
        about = {
            "runtime": runtime,
            "fp16": fp16,
            "kind": kind,
            "models": described,
            "features": exported_network.hash_features(run),
            "classes": run.classes,
            "compared": {"heads": str(compared), "extractor": network},
        }
        with replace_folder(folder) as target:
            files = sorted(path.name for path in new.iterdir())
            for file in files:
                shutil.copyfile(new / file, target / file)
            checksums.write(target / graphs.ABOUT, about, *files)
    return folder


def _export_heads(
    run: Run, kind: str, folder: Path, runtime: str, fp16: bool, features: str | None
) -> tuple[ExportedHeads, Comparison]:
    slots = list_predictors(run)
    heads = [load_slot_head(run, slot, kind, CPU).eval() for slot in slots]
    for head in heads:
        for module in head.modules():
            if hasattr(module, "rows_at_once"):  # a loop over rows would be of the traced number
                module.rows_at_once = 1 << 30
    name, shape = heads[0].config["name"], heads[0].config["input_shape"]
    generator = torch.Generator().manual_seed(0)
    example = (torch.randn(2, *shape, generator=generator), torch.ones(2, shape[2]))
    ensemble = Ensemble(heads, run.shifts, run.multilabel)
    try:
        trace.write_graph(
            ensemble, example, ("x", "mask"), ("probabilities", "logits"), folder, "heads", runtime, fp16
        )
        graph = ExportedHeads(run, folder, runtime)
        return graph, compare_heads(run, kind, graph, tuple(shape), fp16, features)
    except (UserError, checksums.CorruptFile) as error:
        raise UserError(f"{run.folder}: the head {name}: {error}") from None
    except Exception as error:  # neither runtime's errors have a base of their own
        if isinstance(error, (MemoryError, OSError)):
            raise
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{run.folder}: the head {name}: {runtime} fails ({reason}): predict with torch"
        ) from None


def _export_network(
    run: Run, heads: ExportedHeads, folder: Path, runtime: str, fp16: bool, weights: str | None
) -> str:
    """Export the extractor's network; how it compares with torch, or why there is none, in words."""
    name = run.config["record"]["features"]["extractor"]
    hashed = run.config["record"]["features"]["weights"]
    if hashed and not weights and not for_run.find_weights_files(run):
        return f"{name} stays in torch, as its weights are not here: name them with --weights"
    extractor, _ = new_audio.build_extractor(run, weights, CPU)
    if extractor.exportable is None:
        return f"{name} stays as it is: there is no network in it that can be exported"
    random = np.random.default_rng(0)
    noise = random.standard_normal((WINDOWS, extractor.samples)).astype(np.float32)
    noise *= np.logspace(-3, -0.5, WINDOWS, dtype=np.float32)[:, None]
    lengths = [extractor.window.seconds] * WINDOWS
    view, wanted, inputs = run.config["record"]["view"], [], []
    network = getattr(extractor, extractor.exportable)

    def watch(x: Tensor) -> Tensor:
        inputs.append(x.clone())
        return network(x)

    setattr(extractor, extractor.exportable, watch)
    wanted = extractor.run_pass(noise, lengths)[view]
    names = (exported_network.INPUT,), (exported_network.OUTPUT,)
    example, problem = (inputs[0][:2].contiguous(),), ""
    for halved in (True, False) if fp16 else (False,):
        setattr(extractor, extractor.exportable, network)
        try:
            trace.write_graph(_Network(extractor), example, *names, folder, "extractor", runtime, halved)
            exported_network.load_network(extractor, folder, runtime)
            parts = [extractor.run_pass(noise[:1], lengths[:1]), extractor.run_pass(noise[1:], lengths[1:])]
            found = np.concatenate([part[view] for part in parts])
            compared = compare_features(run, heads, wanted, found, extractor.span, halved)
            return f"{compared}{', weights in fp32' if fp16 and not halved else ''}"
        except (UserError, checksums.CorruptFile) as error:
            problem = str(error)
            for file in folder.glob("extractor.*"):
                file.unlink()
    return f"{name} stays in torch: {problem}"
