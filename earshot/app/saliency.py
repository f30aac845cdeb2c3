"""Evidence for a prediction: which parts of a window speak for or against a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from earshot.app.feature_maps import cut_window
from earshot.prediction.predictor import Prediction, Predictor
from earshot.training.run import Run

STEPS, MOST_STEPS, AT_ONCE = 16, 256, 4  # of the integral, at first and at most; rows per pass
CLOSE = 0.02  # largest difference of the integral from the gain, as a share of it
SMOOTH = (1.0, 1.5)  # bands and frames: strided convolutions leave a grid in a spectrogram's gradient
PIECES = 20  # of a window; two neighbouring ones are silenced at a time
GRADIENTS = "Integrated gradients: the contribution of each part to the log probability."
OCCLUSION = "Occlusion: how much log probability is lost when a part is silenced."


@dataclass(frozen=True)
class Saliency:
    """Evidence for a class (negative: against it), in log probability.

    Args:
        values: (bands, frames), with a single band where only time is resolved; they span `seconds`, and
            `low` to `high` Hz on the mel scale.
        how: the method in a sentence.
    """

    values: np.ndarray
    seconds: float
    low: float
    high: float
    how: str


def explain(predictor: Predictor, run: Run, prediction: Prediction, window: int, target: int) -> Saliency:
    """The evidence for a class in one window, by a run's models.

    Integrated gradients (Sundararajan et al. 2017) where the view has a time axis and the heads pass
    gradients; the baseline is silence, for embeddings zeros. Else occlusion: parts of the audio are silenced,
    and the drop in log probability counts.

    Args:
        window, target: indices of the window and of the class.
    """
    pipeline = predictor.get_pipeline(run)
    decoded = prediction.inputs[pipeline.key]
    window = min(window, len(decoded.features.start) - 1)
    rate = pipeline.extractor.rate
    low, high = pipeline.extractor.band
    kind = pipeline.extractor.views[run.config["record"]["view"]]
    with predictor.lock:
        rows = predictor.build_rows(run, decoded.features, pooled=False)
        x, mask = rows.load_batch(np.array([window]))
        found = None
        # A waveform has samples instead of frames: occlusion is used.
        if 1 < x.shape[3] < rate * pipeline.extractor.span / 2:
            heads = [head for _, head in predictor.load_heads(run, predictor.get_checkpoint_kind(run))]
            found = compute_gradients(heads, x, mask, target, run.multilabel, kind == "spectrogram")
        if found is not None:
            return Saliency(found, pipeline.extractor.span, low, high, GRADIENTS)
        length = float(decoded.features.length[window])
        piece = cut_window(decoded.wave, decoded.features.start[window] - decoded.offset, length, rate)
        return Saliency(compute_occlusion(predictor, run, piece, target)[None], length, low, high, OCCLUSION)


def compute_gradients(
    heads: list[torch.nn.Module],
    x: torch.Tensor,
    mask: torch.Tensor | None,
    target: int,
    multilabel: bool,
    levels: bool,
) -> np.ndarray | None:
    """(F, T) integrated gradients of a class's log probability, the mean of heads; None where one passes no
    gradient.

    Args:
        x: (1, D, F, T). levels: are the values log energies? Then silence is their minimum.
    """
    from scipy.ndimage import gaussian_filter

    base = x.amin().expand_as(x) if levels else torch.zeros_like(x)

    def score(head: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        logits = head(rows, None if mask is None else mask.expand(len(rows), -1)).float()
        return (torch.nn.functional.logsigmoid(logits) if multilabel else logits.log_softmax(1))[:, target]

    steps = STEPS
    values = _integrate(heads, x, base, score, steps)
    if values is None:
        return None
    with torch.no_grad():
        gain = sum(float(score(head, x) - score(head, base)) for head in heads) / len(heads)
    # The evidence must add up to the gain; a strongly non-linear network needs more steps for that.
    while steps < MOST_STEPS and abs(values.sum() - gain) > CLOSE * abs(gain) + 0.01:
        steps *= 2
        finer = _integrate(heads, x, base, score, steps)
        if finer is None:
            break
        values = finer
    return gaussian_filter(values, SMOOTH) if levels else values


def _integrate(
    heads: list[torch.nn.Module],
    x: torch.Tensor,
    base: torch.Tensor,
    score: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor],
    steps: int,
) -> np.ndarray | None:
    """(F, T) the integral in so many steps, before smoothing; None where a head passes no gradient."""
    shares = (torch.arange(steps, device=x.device) + 0.5) / steps
    total = torch.zeros_like(x)
    for head in heads:
        for part in shares.split(AT_ONCE):
            between = (base + part[:, None, None, None] * (x - base)).requires_grad_()
            try:
                with torch.enable_grad():
                    found = torch.autograd.grad(score(head, between).sum(), between, allow_unused=True)[0]
            except RuntimeError:  # no gradient: a scikit-learn head, or a recurrent layer on a GPU
                return None
            if found is None:
                return None
            total += found.sum(0, keepdim=True)
    values = ((x - base) * total / (steps * len(heads))).sum(1)[0]
    return torch.nan_to_num(values).detach().cpu().numpy()


def compute_occlusion(predictor: Predictor, run: Run, piece: np.ndarray, target: int) -> np.ndarray:
    """(PIECES,) the drop in a class's log probability when a part of a wave (samples,) is silenced."""
    edges = np.linspace(0, len(piece), PIECES + 1).astype(int)
    waves = [piece]
    for first in range(PIECES - 1):
        silenced = piece.copy()
        silenced[edges[first] : edges[first + 2]] = 0
        waves.append(silenced)
    pipeline = predictor.get_pipeline(run)
    scores = []
    for one in pipeline.extractor.extract(waves, [0.0] * len(waves), 16):
        found = predictor.predict(run, predictor.get_checkpoint_kind(run), one, pooled=True)
        scores.append(float(np.log(max(found[0, target], 1e-12))))
    lost = scores[0] - np.array(scores[1:])
    # Each part is silenced with either neighbour, so that sounds longer than a part count. The smaller of the
    # two losses is the part's own.
    left, right = np.concatenate([lost[:1], lost]), np.concatenate([lost, lost[-1:]])
    return np.where(np.abs(left) < np.abs(right), left, right)
