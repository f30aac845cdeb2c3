"""A run's heads and its extractor's network as graphs beside the run, compared with torch before they are
kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earshot.core import checksums, graphs
from earshot.core.device import Device
from earshot.core.disk_space import format_bytes
from earshot.core.errors import UserError
from earshot.core.files import hold_lock, replace_folder
from earshot.export import trace
from earshot.features import exported as exported_network
from earshot.features import for_run
from earshot.prediction import new_audio
from earshot.prediction.exported import ExportedHeads, describe_weights, get_folder
from earshot.training import run_cache
from earshot.training.dataset import WindowDataset
from earshot.training.predict import list_predictors, load_slot_head, predict_with_windows
from earshot.training.run import Run
from earshot.training.window_pooling import to_probabilities

CPU = Device("cpu", "fp32", "CPU")
CLOSE = 1e-4  # probabilities: the most that a graph may differ from torch
SAME_ORDER = 0.9999  # rank correlation with torch that a graph in fp16 needs
ROWS = 64  # that are compared, at most
VALUES = 1 << 24  # numbers of those rows, at most


@dataclass(frozen=True)
class Checked:
    """How far a graph is from torch."""

    rows: str
    """Which rows were compared, in words."""
    difference: float
    """The largest one, of probabilities or features."""
    correlation: float
    """Spearman's, over all numbers."""

    def __str__(self) -> str:
        return (
            f"{self.rows}: {self.difference:.1e} at most from torch, rank correlation {self.correlation:.6f}"
        )


class Ensemble(nn.Module):
    """All models of a run on one view: probabilities (B, classes), their mean, and logits (B, models,
    classes).

    Args:
        heads: in the order of `list_predictors`. shifts: circular shifts in time that logits are averaged over.
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
    """Write the export of a run's "best" or "last" checkpoints; an earlier one of the same runtime is replaced.

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
    made = run.config["record"]["features"]
    with hold_lock(folder.parent, "the export"), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        new = Path(scratch)
        checked = {"heads": _export_heads(run, kind, new, runtime, fp16, features)}
        line = _export_network(run, new, runtime, fp16, weights, checked)
        for name, found in checked.items():
            size = sum((new / file).stat().st_size for file in graphs.list_files(name, runtime))
            report(f"{name}: {format_bytes(size)}, {found}")
        if line:
            report(line)
        about = {
            "runtime": runtime,
            "fp16": fp16,
            "kind": kind,
            "models": described,
            "features": exported_network.hash_features(made),
            "classes": run.classes,
            "checked": {name: str(found) for name, found in checked.items()},
        }
        with replace_folder(folder) as target:
            files = sorted(path.name for path in new.iterdir())
            for file in files:
                shutil.copyfile(new / file, target / file)
            checksums.write(target / graphs.ABOUT, about, *files)
    return folder


def _export_heads(
    run: Run, kind: str, folder: Path, runtime: str, fp16: bool, features: str | None
) -> Checked:
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
        return _compare_heads(run, kind, graph, tuple(shape), fp16, features)
    except (UserError, checksums.CorruptFile) as error:
        raise UserError(f"{run.folder}: the head {name}: {error}") from None
    except Exception as error:  # neither runtime's errors have a base of their own
        if isinstance(error, (MemoryError, OSError)):
            raise
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{run.folder}: the head {name}: {runtime} fails ({reason}): predict with torch"
        ) from None


def _compare_heads(
    run: Run, kind: str, graph: ExportedHeads, shape: tuple[int, int, int], fp16: bool, features: str | None
) -> Checked:
    """Compare a graph with the prediction that it replaces, on cached rows or noise, full and partly masked,
    and a row alone."""
    plain = Run(run.folder)
    plain.config = {**run.config, "precision": {}, "channels_last": {}}  # fp32, whatever it was trained in
    what, split, span = _find_rows(run, shape, features)
    view = run.config["record"]["view"]
    wanted, found = [], []
    short = {**split, "length": split["length"] * np.linspace(0.3, 1, len(split["ids"]), dtype=np.float32)}
    alone = {key: values[:1] for key, values in split.items()}
    for rows in (split, short, alone):
        dataset = WindowDataset(rows, view, run.classes, span, "cpu")
        wanted += list(predict_with_windows(plain, dataset, CPU, kind))
        found += list(predict_with_windows(plain, dataset, CPU, kind, graph))
        probabilities = [
            graph.graph.run("probabilities", x=x.numpy(), mask=_to_float_mask(x, mask))
            for x, mask in dataset.iterate_batches(np.arange(len(dataset)), 7)
        ]
        wanted.append(wanted[-1])
        found.append(np.concatenate(probabilities))
    return _check(what, np.concatenate(wanted), np.concatenate(found), fp16)


def _to_float_mask(x: Tensor, mask: Tensor | None) -> np.ndarray:
    return np.ones((len(x), x.shape[3]), np.float32) if mask is None else mask.float().numpy()


def _find_rows(
    run: Run, shape: tuple[int, int, int], features: str | None
) -> tuple[str, dict[str, Any], float]:
    """Some rows of the run's cache, each as a clip of its own, else noise; what they are, in words, and the
    seconds of the time axis."""
    count, view = max(2, min(ROWS, VALUES // int(np.prod(shape)))), run.config["record"]["view"]
    span = float(run.config["record"]["features"]["window"]["seconds"])
    what, values, length = f"{count} rows of noise", None, np.full(count, span, np.float32)
    try:
        cache = run_cache.open_run_cache(run, features)
        split, span = cache.split("train"), cache.manifest["span"]
        rows = np.unique(np.linspace(0, len(split["clip"]) - 1, count).astype(int))
        if len(rows) > 1 and tuple(split[view].shape[1:]) == shape:
            values, length = np.asarray(split[view][rows]), np.asarray(split["length"][rows])
            what = f"{len(rows)} rows of {cache.folder}"
    except (UserError, KeyError):  # an attached run, without its cache
        if features:
            raise
    if values is None:
        values = np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)
    ids = np.array([str(number) for number in range(len(values))])
    labels = np.zeros((len(ids), len(run.classes)), np.int8) if run.multilabel else np.full(len(ids), "")
    return (
        what,
        {
            "ids": ids,
            "labels": labels,
            "folds": np.full(len(ids), -1),
            "groups": np.full(len(ids), ""),
            "clip": np.arange(len(ids), dtype=np.int32),
            "start": np.zeros(len(ids), np.float32),
            "length": length,
            view: values,
        },
        span,
    )


def _check(what: str, wanted: np.ndarray, found: np.ndarray, fp16: bool, close: float = CLOSE) -> Checked:
    """The comparison; UserError where it is outside the tolerance."""
    from scipy.stats import spearmanr

    if not np.isfinite(found).all() or found.shape != wanted.shape:
        raise UserError("the graph gives numbers that are not finite: predict with torch")
    flat = wanted.ravel(), found.ravel()
    # equal numbers have no rank
    rank = 1.0 if np.ptp(flat[0]) == 0 else float(spearmanr(*flat).statistic)
    checked = Checked(what, float(np.abs(flat[0] - flat[1]).max()), rank)
    if fp16 and not rank >= SAME_ORDER:
        raise UserError(f"in fp16 the order differs ({checked}): leave out --fp16")
    if not fp16 and not checked.difference <= close:
        raise UserError(f"the graph differs ({checked}, allowed are {close:g}): predict with torch")
    return checked


def _export_network(
    run: Run, folder: Path, runtime: str, fp16: bool, weights: str | None, checked: dict[str, Checked]
) -> str | None:
    """Export the extractor's network and note its comparison; a line where it has none to export."""
    name = run.config["record"]["features"]["extractor"]
    hashed = run.config["record"]["features"]["weights"]
    if hashed and not weights and not for_run.find_weights_files(run):
        return f"extractor: {name} stays in torch, as its weights are not here: name them with --weights"
    extractor, _ = new_audio.build_extractor(run, weights, CPU)
    if extractor.exportable is None:
        return f"extractor: {name} stays as it is: it has no network that can be exported"
    noise = np.random.default_rng(0).standard_normal((5, extractor.samples)).astype(np.float32) / 10
    lengths = [extractor.window.seconds] * len(noise)
    seen: list[Tensor] = []
    original = getattr(extractor, extractor.exportable)

    def watch(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return original(x)

    setattr(extractor, extractor.exportable, watch)
    wanted = extractor.run_pass(noise, lengths)
    setattr(extractor, extractor.exportable, original)
    try:
        trace.write_graph(
            _Network(extractor),
            (seen[0][:2].contiguous(),),
            (exported_network.INPUT,),
            (exported_network.OUTPUT,),
            folder,
            "extractor",
            runtime,
            fp16,
        )
        exported_network.load_network(extractor, folder, runtime)
        found = extractor.run_pass(noise, lengths)
        one = extractor.run_pass(noise[:1], lengths[:1])
        pairs = [(wanted[view], found[view]) for view in wanted] + [(wanted[v][:1], one[v]) for v in wanted]
        both = [np.concatenate([pair[side].ravel() for pair in pairs]).astype(np.float32) for side in (0, 1)]
        scale = float(np.abs(both[0]).max())
        # features are stored in float16
        checked["extractor"] = _check("5 windows of noise", *both, fp16, max(CLOSE, 2e-3 * scale))
    except (UserError, checksums.CorruptFile) as error:
        for file in folder.glob("extractor.*"):
            file.unlink()
        return f"extractor: {name} stays in torch: {error}"
    return None
