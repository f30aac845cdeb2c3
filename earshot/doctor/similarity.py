"""Which clips are alike: cosines of embeddings, block by block, so that memory stays bounded."""

from __future__ import annotations

import numpy as np

BLOCK = 512  # rows whose cosines with all clips are held at a time: 40 MB for 20,000 clips
SHRINKAGE = 0.05  # of the mean eigenvalue


def normalise(x: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def centre(x: np.ndarray) -> np.ndarray:
    """(clips, dims) without the mean, rows of length 1: clips of one class are close."""
    return normalise(x - x.mean(0))


def compute_principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(clips, dims) float64 without the mean; the eigenvalues of its covariance, ascending; their vectors,
    (dims, dims)."""
    x = (x - x.mean(0)).astype(np.float64)
    return x, *np.linalg.eigh(x.T @ x / len(x))


def whiten(x: np.ndarray) -> np.ndarray:
    """(clips, dims) with the variances evened out, rows of length 1: only copies of one recording stay close.

    What clips of a class share dominates an embedding's variance, and hides what is a recording's own. Small
    eigenvalues are noise: they are shrunk. Of 30 clips of ESC-10 per kind of copy, those beyond 4 robust
    deviations (`duplicates.estimate_threshold`): louder or softer 100 % by EfficientAT's embeddings, 100 % by
    log-mel;
    with noise 45 dB below 93 and 97 %, 30 dB 47 and 87 %; 0.1 to 0.5 s cut off 70 and 97 %; cut off, louder,
    with noise at once 50 and 100 %. Hence log-mel is taken where there is one.
    """
    x, values, vectors = compute_principal(x)
    values = np.maximum(values, 0)
    return normalise(x @ (vectors / np.sqrt(values + SHRINKAGE * values.mean() + 1e-30)))


def find_nearest(x: np.ndarray, parts: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k clips nearest to each, among those of other parts.

    Args:
        x: (clips, dims), rows of length 1.
        parts: (clips,) numbers; clips of one part are never each other's neighbours.
    Returns:
        cosines (clips, k), descending, -inf where there are fewer; their indices (clips, k).
    """
    k = min(k, len(x))
    cosines, indices = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int64)
    for first in range(0, len(x), BLOCK):
        rows = slice(first, first + BLOCK)
        block = x[rows] @ x.T
        block[parts[rows, None] == parts[None]] = -np.inf
        top = np.argpartition(-block, k - 1, axis=1)[:, :k]
        value = np.take_along_axis(block, top, 1)
        order = np.lexsort((top, -value), axis=1)
        cosines[rows], indices[rows] = np.take_along_axis(value, order, 1), np.take_along_axis(top, order, 1)
    return cosines, indices
