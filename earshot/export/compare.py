"""Graphs compared with the torch modules that they replace, by what the run predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.prediction.exported import ExportedHeads
from earshot.training import run_cache
from earshot.training.dataset import WindowDataset
from earshot.training.predict import predict_with_windows
from earshot.training.run import Run

CPU = Device("cpu", "fp32", "CPU")
CLOSE = 1e-4  # probabilities: the most that a graph may differ from torch
ROUNDING = 4  # times as far on noise as what rounding the input changes in torch
SAME_ORDER = 0.9999  # rank correlation with torch that a graph in fp16 needs
ROWS = 64  # that are compared, at most
VALUES = 1 << 24  # numbers of those rows, at most
SHORTEST = 0.3  # share of the window that is real in the shortest of the masked rows


@dataclass(frozen=True)
class Comparison:
    """How far a graph's probabilities are from torch's."""

    rows: str
    """What was predicted, in words."""
    difference: float
    """The largest one."""
    correlation: float
    """Spearman's, over all numbers."""

    def __str__(self) -> str:
        return (
            f"{self.rows}: probabilities {self.difference:.1e} at most from torch, rank correlation "
            f"{self.correlation:.6f}"
        )


def compare_heads(
    run: Run, kind: str, heads: ExportedHeads, shape: tuple[int, int, int], fp16: bool, features: str | None
) -> Comparison:
    """Compare the graph of a run's heads with torch's prediction on rows of its cache, else on noise: full
    ones, partly masked ones, and a row alone.

    Args:
        shape: (D, F, T) of the view. fp16: the order counts, not the numbers.
        features: the run's cache, where it moved.
    Raises:
        UserError: they differ; `features` has no rows of the run's.
    """
    plain = Run(run.folder)
    plain.config = {**run.config, "precision": {}, "channels_last": {}}  # fp32, whatever it was trained in
    what, values, length, span = _find_rows(run, shape, features)
    shares = np.linspace(SHORTEST, 1, len(values), dtype=np.float32)
    wanted: list[np.ndarray] = []
    found: list[np.ndarray] = []
    for rows, lengths in ((values, length), (values, length * shares), (values[:1], length[:1])):
        dataset = build_rows(run, rows, lengths, span)
        wanted += predict_with_windows(plain, dataset, CPU, kind)
        found += predict_with_windows(plain, dataset, CPU, kind, heads)
        wanted.append(wanted[-1])
        found.append(heads.compute("probabilities", dataset))
    change = 0.0
    if what.endswith("noise"):
        again = predict_with_windows(plain, build_rows(run, round_input(values), length, span), CPU, kind)
        change = float(np.abs(again[0] - wanted[0]).max())
    return _check(what, np.concatenate(wanted), np.concatenate(found), fp16, change)


def compare_features(
    run: Run,
    heads: ExportedHeads,
    wanted: np.ndarray,
    again: np.ndarray,
    found: np.ndarray,
    span: float,
    fp16: bool,
) -> Comparison:
    """Compare what the heads predict from torch's features and from those of an extractor's graph.

    Args:
        wanted, found: (windows, D, F, T) of the run's view, of windows of noise.
        again: torch's of the same windows, rounded by `round_input`.
        span: seconds of the time axis.
    Raises:
        UserError: they differ.
    """
    length = np.full(len(wanted), span, np.float32)
    one, rounded, other = (
        heads.compute("probabilities", build_rows(run, each, length, span)) for each in (wanted, again, found)
    )
    change = float(np.abs(one - rounded).max())
    return _check(f"{len(wanted)} windows of noise", one, other, fp16, change)


def round_input(values: np.ndarray) -> np.ndarray:
    """Numbers moved by float32's rounding, up or down: what that changes in torch is no fault of a graph.

    Noise is far from what a head was trained on, where its logits may be so large that rounding moves them.
    """
    signs = np.random.default_rng(1).choice(np.array([-1, 1], np.float32), values.shape)
    return values.astype(np.float32) * (1 + np.float32(2**-23) * signs)


def build_rows(run: Run, values: np.ndarray, length: np.ndarray, span: float) -> WindowDataset:
    """Rows (n, D, F, T) as the run's view, each a clip of its own; `length` (n,) seconds of real audio."""
    ids = np.array([str(number) for number in range(len(values))])
    view = run.config["record"]["view"]
    split = {
        "ids": ids,
        "labels": np.zeros((len(ids), len(run.classes)), np.int8)
        if run.multilabel
        else np.full(len(ids), ""),
        "folds": np.full(len(ids), -1),
        "groups": np.full(len(ids), ""),
        "clip": np.arange(len(ids), dtype=np.int32),
        "start": np.zeros(len(ids), np.float32),
        "length": length,
        view: values,
    }
    return WindowDataset(split, view, run.classes, span, "cpu")


def _find_rows(
    run: Run, shape: tuple[int, int, int], features: str | None
) -> tuple[str, np.ndarray, np.ndarray, float]:
    """Some rows of the run's cache, else noise: what they are, the rows, the seconds of real audio in each,
    and the seconds of the time axis."""
    count, record = max(2, min(ROWS, VALUES // int(np.prod(shape)))), run.config["record"]
    try:
        cache = run_cache.open_run_cache(run, features)
        split = cache.split("train")
    except UserError:  # an attached run without its cache
        if features:
            raise
        split = {}
    view = split.get(record["view"])  # a cache of an earlier version may lack it
    if view is not None and len(view) > 1 and tuple(view.shape[1:]) == shape:
        rows = np.unique(np.linspace(0, len(view) - 1, count).astype(int))
        what = f"{len(rows)} rows of {cache.folder}"
        return what, np.array(view[rows]), np.array(split["length"][rows]), cache.manifest["span"]
    if features:
        raise UserError(f"{features} has no two rows of the view {record['view']}: leave out --features")
    values: Any = np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)
    span = float(record["features"]["window"]["seconds"])
    return f"{count} rows of noise", values, np.full(count, span, np.float32), span


def _check(what: str, wanted: np.ndarray, found: np.ndarray, fp16: bool, change: float = 0.0) -> Comparison:
    """The comparison; UserError where it is outside the tolerance.

    Args:
        change: what rounding the input changes in torch.
    """
    from scipy.stats import spearmanr

    if wanted.shape != found.shape or not np.isfinite(found).all():
        raise UserError("the graph gives numbers that are not finite: predict with torch")
    one, other = wanted.ravel(), found.ravel()
    difference = float(np.abs(one - other).max())
    # equal numbers have no rank
    rank = 1.0 if difference == 0 or np.ptp(one) == 0 else float(spearmanr(one, other).statistic)
    comparison = Comparison(what, difference, rank)
    if fp16 and not rank >= SAME_ORDER:
        raise UserError(f"in fp16 the order differs ({comparison}; {SAME_ORDER} is needed): leave out --fp16")
    close = max(CLOSE, ROUNDING * change)
    if not fp16 and not difference <= close:
        raise UserError(f"the graph differs ({comparison}; {close:.1g} is allowed): predict with torch")
    return comparison
