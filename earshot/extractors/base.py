"""What every extractor shares: windows in, batches through `forward`, float16 arrays out."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.audio import windows
from earshot.core import file_content, kaggle_paths
from earshot.core.errors import UserError
from earshot.core.fingerprint import RECORDED_WHERE_CHANGED, recorded  # noqa: F401 -- for the extractors

if TYPE_CHECKING:
    import torch

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Window:
    """How clips become windows; decided once for a data set, by the user or from the data."""

    seconds: float
    """Length of a window in seconds."""
    hop: float | None
    """Seconds between the starts of a long clip's windows; None = the window's length."""
    pad: str
    """What fills a short clip: "wrap" repeats it, "silence" adds zeros."""
    max_windows: int | None
    """Keep only the first so many windows of a clip; None keeps all."""
    rate: int
    """Samples per second of the waves."""


@dataclass
class ClipFeatures:
    """The windows of one clip: n rows."""

    start: np.ndarray
    """(n,) float32: seconds from the start of the file, what was trimmed included."""
    length: np.ndarray
    """(n,) float32: seconds of real audio; the rest of the window is padding."""
    views: dict[str, np.ndarray]
    """Per view (n, D, F, T), float16 unless the view is of integers."""


class Extractor:
    """Base of all extractors: subclasses set `shapes` and write `forward`, or override `extract`.

    `span` is how many seconds the time axis of the views stands for: the window, unless a network always
    hears more. `at_once` is how many windows a pass takes on a CPU, by its caches, where passes then run side
    by side on a thread each: threads that share a pass would wait for each other at every layer, the longer
    the busier the decoders keep the cores.

    Args:
        settings: the extractor module's own `Settings`.
        window: length, hop, padding and rate of the windows.
        device: torch device of the computation.
        weights: a file, a folder or a hub id in place of the default weights.
        precision: "fp32", "bf16" or "fp16" (autocast; fp16 only on a GPU).
    """

    shapes: dict[str, tuple[int, int, int]]
    integers: tuple[str, ...] = ()  # views that are numbers of something, int16
    at_once: int | None = None  # None: passes of the batch size, one after the other, on all threads

    def __init__(
        self,
        settings: Any,
        window: Window,
        device: str = "cpu",
        weights: str | None = None,
        precision: str = "fp32",
    ) -> None:
        if precision not in ("fp32", "bf16", "fp16"):
            raise UserError(f"precision {precision!r}: has to be fp32, bf16 or fp16")
        if window.pad not in ("wrap", "silence"):
            raise UserError(f"--pad {window.pad}: has to be wrap or silence")
        self.settings, self.window, self.weights, self.precision = settings, window, weights, precision
        self.device = str(device)
        self.rate = window.rate
        self.samples = max(1, round(window.seconds * window.rate))
        self.span = window.seconds
        self._lanes: ThreadPoolExecutor | None = None

    def none(self, view: str) -> np.ndarray:
        """A view of no windows, (0, D, F, T) in its own type."""
        return np.zeros((0, *self.shapes[view]), np.int16 if view in self.integers else np.float16)

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """Features of a batch of windows.

        Args:
            waves: (B, samples) float32 on the device, filled already.
            lengths: seconds of real audio in each.
        Returns:
            Per view (B, D, F, T).
        """
        raise NotImplementedError

    def extract(
        self, waves: Sequence[np.ndarray], offsets: Sequence[float], batch_size: int
    ) -> list[ClipFeatures]:
        """Features of whole clips, their windows batched across clips in the order given.

        Args:
            waves: per clip (samples,) float32 at `rate`.
            offsets: seconds that were trimmed from the front of each clip.
            batch_size: windows per forward pass, at most.
        Returns:
            One ClipFeatures a clip.
        """
        cuts = [self.cut(wave) for wave in waves]
        jobs = [(wave, *piece) for wave, pieces in zip(waves, cuts, strict=True) for piece in pieces]
        parts: dict[str, list[np.ndarray]] = {}
        size = min(batch_size, self.at_once) if self.at_once and self.device == "cpu" else batch_size

        def passed(first: int) -> dict[str, np.ndarray]:
            batch = jobs[first : first + size]
            pieces = [self.piece(wave, start, length) for wave, start, length in batch]
            return self.run(np.stack(pieces), [length for _, _, length in batch])

        for found in self.passes(passed, range(0, len(jobs), size)):
            for name, values in found.items():
                parts.setdefault(name, []).append(values)
        views = {name: np.concatenate(values) for name, values in parts.items()}
        clips, row = [], 0
        for pieces, offset in zip(cuts, offsets, strict=True):
            rows = slice(row, row + len(pieces))
            clips.append(
                clip_features(pieces, offset, {name: values[rows] for name, values in views.items()})
            )
            row += len(pieces)
        return clips

    def passes(self, work: Callable[[Any], Any], batches: Iterable[Any]) -> Iterator[Any]:
        """`work` of each batch, in order; on a CPU side by side, see `at_once`."""
        import torch

        if self.device != "cpu" or self.at_once is None or getattr(_lane, "inside", False):
            return map(work, batches)  # a pass that waited for others in its own pool would wait for ever
        if self._lanes is None:
            self._lanes = ThreadPoolExecutor(torch.get_num_threads(), "pass", _enter)
        return _bounded(self._lanes, work, batches, torch.get_num_threads() + 1)

    def cut(self, wave: np.ndarray) -> list[tuple[float, float]]:
        """(start, length of real audio) in seconds of each window of a wave."""
        return windows.cut(
            len(wave) / self.rate, self.window.seconds, self.window.hop, self.window.max_windows
        )

    def piece(self, wave: np.ndarray, start: float, length: float) -> np.ndarray:
        """The samples of one window, filled to (samples,)."""
        first = round(start * self.rate)
        real = max(1, round(length * self.rate))
        return windows.fill(wave[first : first + real], self.samples, self.window.pad)

    def run(self, waves: np.ndarray, lengths: list[float]) -> dict[str, np.ndarray]:
        """One forward pass from (B, samples) to numpy views, repeated in fp32 where half precision
        overflowed."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(waves).to(self.device)
            with self.autocast():
                views = self.forward(batch, lengths)
            if self.precision != "fp32" and not all(bool(view.isfinite().all()) for view in views.values()):
                views = self.forward(batch, lengths)
        return {name: to_numpy(view) for name, view in views.items()}

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast as `precision` says; fp16 on a CPU stays fp32, for it is no faster there."""
        import torch

        kind = torch.device(self.device).type
        half = {"bf16": torch.bfloat16, "fp16": torch.float16 if kind == "cuda" else None}.get(self.precision)
        if half is None:
            yield
            return
        with torch.autocast(kind, dtype=half):
            yield


_lane = threading.local()


def _enter() -> None:
    """Begins a thread of passes: it has one thread of torch's for itself, a setting that the others do not
    share."""
    import torch

    torch.set_num_threads(1)
    _lane.inside = True


def _bounded(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], batches: Iterable[Any], most: int
) -> Iterator[Any]:
    """`pool.map`, with no more than so many results waiting: those of recordings of hours are large."""
    running: deque[Future] = deque()
    try:
        for batch in batches:
            if len(running) == most:
                yield running.popleft().result()
            running.append(pool.submit(work, batch))
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def clip_features(
    pieces: list[tuple[float, float]], offset: float, views: dict[str, np.ndarray]
) -> ClipFeatures:
    """ClipFeatures from the windows of one clip; `offset` is what was trimmed from its front, in seconds."""
    starts = np.array([start + offset for start, _ in pieces], dtype=np.float32)
    return ClipFeatures(starts, np.array([length for _, length in pieces], dtype=np.float32), views)


def to_numpy(view: torch.Tensor) -> np.ndarray:
    """A float tensor as float16, clipped to its range (NaN becomes 0); integers keep their values as
    int16."""
    import torch

    if not view.dtype.is_floating_point:
        return np.ascontiguousarray(view.to(torch.int16).cpu().numpy())
    finite = view.float().nan_to_num(nan=0.0, posinf=FLOAT16_MAX, neginf=-FLOAT16_MAX)
    return np.ascontiguousarray(finite.clamp(-FLOAT16_MAX, FLOAT16_MAX).half().cpu().numpy())


def no_weights(extractor: str, weights: str | None, instead: str = "leave the flag out") -> list[Path]:
    """The files of an extractor that has no weights: none; UserError, saying what to do instead, if some are
    given."""
    if weights is not None:
        raise UserError(f"--weights: the extractor {extractor} has no weights; {instead}")
    return []


def local(weights: str) -> Path | None:
    """The path of `weights` if it names a file or folder here, or one of that name is attached; else None.

    Raises:
        UserError: a file that only stands for the weights, such as a pointer of Git LFS.
    """
    path = Path(weights).expanduser()
    found = path if path.exists() else kaggle_paths.named(path.name)
    if found is not None and found.is_file():
        file_content.check(found)
    return found
