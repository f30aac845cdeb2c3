"""Which parts of a window carried a decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from earshot.app.feature_maps import cut_window
from earshot.prediction.predictor import Prediction, Predictor
from earshot.training.run import Run

STEPS, MOST_STEPS, AT_ONCE = 16, 256, 4  # of the integral, at first and at most; rows of a pass
CLOSE = 0.02  # share of the gain by which the integral may miss it
SMOOTH = (1.0, 1.5)  # bands and frames: strides of convolutions leave a grid in the gradient of a spectrogram
PIECES = 20  # of a window that are silenced, two neighbours at a time
GRADIENTS = "integrated gradients on the head's view"
OCCLUSION = "occlusion: what is lost where a part is silenced"


@dataclass(frozen=True)
class Saliency:
    """Evidence for a class (negative: against it), in log probability.

    Args:
        values: (bands, frames), one band where only time is known; they span `seconds`, and `low` to `high`
            Hz on the mel scale.
        how: in words.
    """

    values: np.ndarray
    seconds: float
    low: float
    high: float
    how: str


def explain(hearing: Predictor, run: Run, answer: Prediction, window: int, target: int) -> Saliency:
    """What in a window speaks for a class, to a run's models.

    Integrated gradients (Sundararajan et al. 2017) from silence (of a network's embeddings: from zeros) where
    the view has a time axis and the heads pass gradients; else occlusion: parts of the audio are silenced,
    and the loss of log probability counts.

    Args:
        window: its number. target: the class's.
    """
    ears = hearing.get_pipeline(run)
    heard = answer.heard[ears.key]
    window = min(window, len(heard.features.start) - 1)
    rate = ears.extractor.rate
    low, high = ears.extractor.band
    kind = ears.extractor.views[run.config["record"]["view"]]
    with hearing.lock:
        rows = hearing.build_rows(run, heard.features, pooled=False)
        x, mask = rows.load_batch(np.array([window]))
        found = None
        # Time that is one long axis of samples has no frames to be looked at.
        if 1 < x.shape[3] < rate * ears.extractor.span / 2:
            heads = [head for _, head in hearing.load_heads(run, hearing.get_checkpoint_kind(run))]
            found = compute_gradients(heads, x, mask, target, run.multilabel, kind == "spectrogram")
        if found is not None:
            return Saliency(found, ears.extractor.span, low, high, GRADIENTS)
        length = float(heard.features.length[window])
        piece = cut_window(heard.wave, heard.features.start[window] - heard.offset, length, rate)
        return Saliency(compute_occlusion(hearing, run, piece, target)[None], length, low, high, OCCLUSION)


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
        x: (1, D, F, T). levels: are these logarithms of energy? Then silence is their least value.
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
    # The evidence adds up to the gain; how many steps that takes depends on how sharply the network bends.
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
    """(F, T) the integral by so many steps, before smoothing; None where a head passes no gradient."""
    shares = (torch.arange(steps, device=x.device) + 0.5) / steps
    total = torch.zeros_like(x)
    for head in heads:
        for part in shares.split(AT_ONCE):
            between = (base + part[:, None, None, None] * (x - base)).requires_grad_()
            try:
                with torch.enable_grad():
                    found = torch.autograd.grad(score(head, between).sum(), between, allow_unused=True)[0]
            except RuntimeError:  # no path back: an estimator of scikit-learn's, a recurrent layer on a GPU
                return None
            if found is None:
                return None
            total += found.sum(0, keepdim=True)
    values = ((x - base) * total / (steps * len(heads))).sum(1)[0]
    return torch.nan_to_num(values).detach().cpu().numpy()


def compute_occlusion(hearing: Predictor, run: Run, piece: np.ndarray, target: int) -> np.ndarray:
    """(PIECES,) the log probability that a class loses when a part of a wave (samples,) is silenced."""
    edges = np.linspace(0, len(piece), PIECES + 1).astype(int)
    waves = [piece]
    for first in range(PIECES - 1):
        silenced = piece.copy()
        silenced[edges[first] : edges[first + 2]] = 0
        waves.append(silenced)
    ears = hearing.get_pipeline(run)
    scores = []
    for one in ears.extractor.extract(waves, [0.0] * len(waves), 16):
        found = hearing.predict(run, hearing.get_checkpoint_kind(run), one, pooled=True)
        scores.append(float(np.log(max(found[0, target], 1e-12))))
    lost = scores[0] - np.array(scores[1:])
    # Each part is silenced with either neighbour, for what lasts longer than a part; the lesser loss of
    # the two is its own.
    left, right = np.concatenate([lost[:1], lost]), np.concatenate([lost, lost[-1:]])
    return np.where(np.abs(left) < np.abs(right), left, right)
