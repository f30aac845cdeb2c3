"""A run's heads and its extractor's network as graphs beside the run, compared with torch before they are
kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earshot.core import checksums, graphs
from earshot.core.errors import TemporaryError, UserError
from earshot.core.files import hold_lock, recover_folder, replace_folder
from earshot.export import trace
from earshot.export.compare import CPU, Comparison, compare_features, compare_heads, round_input
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
    described, folder = describe_weights(run, kind), get_folder(run, kind, runtime)
    with hold_lock(folder.parent, "the export"):
        try:
            with replace_folder(folder) as new:
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
                    "compared": {"heads": str(compared), "extractor": network},
                }
                checksums.write(new / graphs.ABOUT, about, *sorted(path.name for path in new.iterdir()))
        except BaseException:
            recover_folder(folder)  # an earlier export stays
            raise
    return folder


@contextlib.contextmanager
def _name_failures(what: str) -> Iterator[None]:
    """What goes wrong within the block as a UserError that begins with `what`."""
    try:
        yield
    except (MemoryError, TemporaryError):
        raise
    except (UserError, checksums.CorruptFile) as error:
        raise UserError(f"{what}: {error}") from None
    except Exception as error:  # neither runtime's errors have a base of their own
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{what}: the graph fails ({reason}): predict with torch") from None


def write_heads(
    heads: Sequence[nn.Module], shifts: int, multilabel: bool, folder: Path, runtime: str, fp16: bool
) -> None:
    """Write heads of one view and their mean as one graph, see `Ensemble` and `trace.write_graph`."""
    for head in heads:
        for module in head.modules():
            if hasattr(module, "rows_at_once"):  # a loop over rows would be of the traced number
                module.rows_at_once = 1 << 30
    shape = heads[0].config["input_shape"]
    example = (torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)), torch.ones(2, shape[2]))
    outputs = ("probabilities", "logits")
    ensemble = Ensemble(list(heads), shifts, multilabel)
    trace.write_graph(ensemble, example, ("x", "mask"), outputs, folder, "heads", runtime, fp16)


def write_network(
    extractor: Any, waves: np.ndarray, folder: Path, runtime: str, fp16: bool
) -> dict[str, np.ndarray]:
    """Write an extractor's network as a graph; torch's views of the windows (n, samples) that it was traced
    with, two or more."""
    network, inputs = getattr(extractor, extractor.exportable), []

    def watch(x: Tensor) -> Tensor:
        inputs.append(x.clone())
        return network(x)

    setattr(extractor, extractor.exportable, watch)
    try:
        views = extractor.run_pass(waves, [extractor.window.seconds] * len(waves))
    finally:
        setattr(extractor, extractor.exportable, network)
    names = (exported_network.INPUT,), (exported_network.OUTPUT,)
    example = (inputs[0][:2].contiguous(),)
    trace.write_graph(_Network(extractor), example, *names, folder, "extractor", runtime, fp16)
    return views


def _export_heads(
    run: Run, kind: str, folder: Path, runtime: str, fp16: bool, features: str | None
) -> tuple[ExportedHeads, Comparison]:
    heads = [load_slot_head(run, slot, kind, CPU).eval() for slot in list_predictors(run)]
    config = heads[0].config
    with _name_failures(f"{run.folder}: the head {config['name']}"):
        write_heads(heads, run.shifts, run.multilabel, folder, runtime, fp16)
        graph = ExportedHeads(run, folder, runtime)
        return graph, compare_heads(run, kind, graph, tuple(config["input_shape"]), fp16, features)


def _export_network(
    run: Run, heads: ExportedHeads, folder: Path, runtime: str, fp16: bool, weights: str | None
) -> str:
    """Export the extractor's network; how it compares with torch, or why there is none, in words."""
    made = run.config["record"]["features"]
    name, view = made["extractor"], run.config["record"]["view"]
    if made["weights"] and not weights and not for_run.find_weights_files(run):
        return f"{name} stays in torch, as its weights are not here: name them with --weights"
    extractor, _ = new_audio.build_extractor(run, weights, CPU)
    if extractor.exportable is None:
        return f"{name} stays as it is: there is no network in it that can be exported"
    noise = np.random.default_rng(0).standard_normal((WINDOWS, extractor.samples)).astype(np.float32)
    noise *= np.logspace(-3, -0.5, WINDOWS, dtype=np.float32)[:, None]
    lengths, network, problem = [extractor.window.seconds] * WINDOWS, extractor.exportable, ""
    original, again = getattr(extractor, network), extractor.run_pass(round_input(noise), lengths)[view]
    for halved in (True, False) if fp16 else (False,):
        setattr(extractor, network, original)
        try:
            with _name_failures(f"{name} stays in torch"):
                wanted = write_network(extractor, noise, folder, runtime, halved)[view]
                exported_network.load_network(extractor, folder, runtime)
                parts = [
                    extractor.run_pass(noise[rows], lengths[rows]) for rows in (slice(1), slice(1, None))
                ]
                found = np.concatenate([part[view] for part in parts])
                compared = compare_features(run, heads, wanted, again, found, extractor.span, halved)
                return f"{compared}{', weights in fp32' if fp16 and not halved else ''}"
        except UserError as error:
            problem = str(error)
            for file in folder.glob("extractor.*"):
                file.unlink()
    return problem
