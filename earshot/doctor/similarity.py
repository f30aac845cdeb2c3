"""Similarity of clips: cosines of embeddings, block by block, so that memory stays bounded."""

from __future__ import annotations

import numpy as np

BLOCK = 512  # rows whose cosines with all clips are held at a time: 40 MB for 20,000 clips
SHRINKAGE = 0.05  # of the mean eigenvalue


def normalise(x: np.ndarray) -> np.ndarray:
    """The rows, scaled to length 1."""
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def centre(x: np.ndarray) -> np.ndarray:
    """(clips, dims) without the mean, rows of length 1: clips of a class are close to each other."""
    return normalise(x - x.mean(0))


def compute_principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The principal components.

    Returns:
        (clips, dims) float64 without the mean; the eigenvalues of its covariance, ascending; the
        eigenvectors (dims, dims).
    """
    x = (x - x.mean(0)).astype(np.float64)
    return x, *np.linalg.eigh(x.T @ x / len(x))


def whiten(x: np.ndarray) -> np.ndarray:
    """(clips, dims) with equalised variances, rows of length 1: only copies of one recording stay close.

    What the clips of a class share dominates the variance of an embedding and hides what is specific to a
    recording. Small eigenvalues are noise: they are shrunk.

    Share of copies found beyond 4 robust deviations (`duplicates.estimate_threshold`), 30 clips of ESC-10 per
    kind of copy, by EfficientAT's embeddings and by log-mel: louder or softer 100 and 100 %; noise at -45 dB
    93 and 97 %, at -30 dB 47 and 87 %; 0.1 to 0.5 s cut off 70 and 97 %; all of these 50 and 100 %. Hence
    log-mel is preferred where there is one.
    """
    x, values, vectors = compute_principal(x)
    values = np.maximum(values, 0)
    return normalise(x @ (vectors / np.sqrt(values + SHRINKAGE * values.mean() + 1e-30)))


def find_nearest(x: np.ndarray, parts: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest clips of each clip, among those of other parts.

    Args:
        x: (clips, dims), rows of length 1.
        parts: (clips,) numbers; clips of the same part are not neighbours.
    Returns:
        cosines (clips, k), descending, -inf if there are fewer; their indices (clips, k).
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
