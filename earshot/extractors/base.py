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
from earshot.core import file_content, kaggle_paths, kinds
from earshot.core.errors import UserError
from earshot.core.fingerprint import RECORDED_WHERE_CHANGED, to_record  # noqa: F401 -- for the extractors
from earshot.core.kinds import Kind

if TYPE_CHECKING:
    import torch

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Window:
    """How clips are cut into windows; decided once per data set, by the user or from the data."""

    seconds: float
    """Length of a window in seconds."""
    hop: float | None
    """Seconds between the starts of a long clip's windows; None = the window's length."""
    pad: str
    """What fills a short clip: "wrap" repeats it, "silence" adds zeros."""
    max_windows: int | None
    """Keep at most this many windows of a clip, from its start; None keeps all."""
    rate: int
    """Samples per second of the waves."""


@dataclass
class ClipFeatures:
    """The windows of one clip: n rows."""

    start: np.ndarray
    """(n,) float32: seconds from the start of the file, trimmed silence included."""
    length: np.ndarray
    """(n,) float32: seconds of real audio; the rest of the window is padding."""
    views: dict[str, np.ndarray]
    """Per view (n, D, F, T), float16 unless the view is of integers."""


class Extractor:
    """Base of all extractors: a subclass declares `views`, its rate where `Settings` has none, and `forward`.

    Its module also has `Settings`, a frozen dataclass whose fields become flags and enter the fingerprint. An
    optional field `views` picks some of the views.

    Args:
        settings: the extractor module's own `Settings`.
        window: length, hop, padding and rate of the windows.
        device: torch device of the computation.
        weights: a file, a folder or a hub id in place of the default weights.
        precision: "fp32", "bf16" or "fp16" (autocast; fp16 only on a GPU); ignored unless `half`.
    """

    views: dict[str, Kind]
    """Every view that it can make, and its kind; an instance keeps those that were chosen."""
    rate = 0
    """Samples per second of the waves; 0: `Settings.rate`, or the data's own if that is None."""
    pad = "wrap"
    """What fills a short clip, see `Window`."""
    seconds: float | None = None
    """The longest window, which is also the default; None: the window is chosen from the data."""
    limit = 10.0
    """The longest window that is chosen from the data."""
    default_weights: str | None = None
    weights_hint = "leave the flag out"
    """What to do instead of giving weights to an extractor that has none."""
    half = False
    """Does it support half precision?"""
    half_on_cpu = False
    """Also on CPUs where that is faster?"""
    at_once: int | None = None
    """Windows per pass on a CPU (chosen for its caches) where passes run in parallel, one thread each:
    threads that share a pass wait for each other at every layer. None: one pass after the other."""
    exportable: str | None = None
    """The attribute that computes the network, a function from one tensor (B, ...) to another: an export
    replaces it. None: the extractor has none."""
    shapes: dict[str, tuple[int, int, int]]
    """(D, F, T) of each chosen view; set by `prepare`, else found by a trial pass."""

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
        self.settings, self.window, self.weights = settings, window, weights
        self.precision = precision if self.half else "fp32"
        self.device = str(device)
        self.rate = window.rate
        self.samples = max(1, round(window.seconds * window.rate))
        self.span = window.seconds  # of the time axis; longer where a network's input is fixed
        self._lanes: ThreadPoolExecutor | None = None
        self.views = self.choose_views(settings)
        self.shapes = {}
        self.find_weights(settings, weights)
        self.prepare()
        if not self.shapes:
            self.shapes = self._try_shapes()

    def prepare(self) -> None:
        """Check the settings and load the network; may set `span`, and `shapes` to save a trial pass."""

    def forward(self, waves: torch.Tensor, lengths: list[float]) -> dict[str, torch.Tensor]:
        """Features of a batch of windows.

        Args:
            waves: (B, samples) float32 on the device, padded already.
            lengths: seconds of real audio in each.
        Returns:
            Per view (B, D, F, T), at least the chosen ones.
        """
        raise NotImplementedError

    @classmethod
    def get_default_seconds(cls, settings: Any) -> float | None:
        """The default window; None: chosen from the data, at most `limit`."""
        return cls.seconds

    @classmethod
    def find_weights(cls, settings: Any, weights: str | None) -> list[Path]:
        """The local files that define the network, without importing torch; [] where there are none yet.

        Raises:
            UserError: the extractor takes no weights, or they don't exist or hold no usable model.
        """
        if weights is not None:
            raise UserError(f"--weights: the extractor {cls.get_name()} has no weights; {cls.weights_hint}")
        return []

    @classmethod
    def fetch(cls, settings: Any, weights: str | None) -> None:
        """Download the weights if they are not here; UserError if that fails."""
        cls.find_weights(settings, weights)

    @classmethod
    def list_attached(cls) -> list[str]:
        """Attached weights that may be this extractor's, whatever they are called; default: none are found
        but by name."""
        return []

    @classmethod
    def configure(cls, settings: Any, weights: str | None) -> type[Extractor]:
        """The class with the rate and the window limits of these weights, which are here. Default: they are
        the same for all."""
        return cls

    @classmethod
    def describe(cls, settings: Any, rate: int) -> dict[str, Any]:
        """The settings of a view that published heads require: rate, and a spectrogram's bands, hop in
        seconds and filter bank."""
        return {"rate": rate}

    @classmethod
    def get_name(cls) -> str:
        """The extractor's name, which is its file's."""
        return cls.__module__.rpartition(".")[2]

    @property
    def band(self) -> tuple[float, float]:
        """The lowest and the highest frequency in Hz of the views."""
        return 0.0, self.rate / 2

    def make_empty(self, view: str) -> np.ndarray:
        """An empty view, (0, D, F, T), in its own dtype."""
        return np.zeros((0, *self.shapes[view]), np.int16 if self.views[view] == "codes" else np.float16)

    @classmethod
    def choose_views(cls, settings: Any) -> dict[str, Kind]:
        """The chosen views, in the order of the settings, and their kinds; UserError for an unknown one."""
        chosen = getattr(settings, "views", tuple(cls.views))
        wrong = [view for view in chosen if view not in cls.views]
        if wrong or not chosen:
            known = ", ".join(cls.views)
            raise UserError(f"{cls.get_name()}: --views {' '.join(wrong) or '(none)'}: choose from {known}")
        return {view: cls.views[view] for view in chosen}

    def _try_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(D, F, T) of each view, from a pass over one window of silence; UserError where one is not of its
        kind."""
        import torch

        with torch.inference_mode():
            made = self.forward(torch.zeros(1, self.samples, device=self.device), [self.window.seconds])
        shapes = {}
        for view, kind in self.views.items():
            tensor = made.get(view)
            shape = None if tensor is None else tuple(tensor.shape[1:])
            whole = tensor is not None and not tensor.dtype.is_floating_point
            if shape is None or len(shape) != 3 or not kinds.fits(kind, shape, whole):
                raise UserError(
                    f"{self.get_name()}: the view {view} is declared a {kind}, {kinds.LAYOUT[kind]} a "
                    f"window, but forward gives {shape or 'nothing'}"
                )
            shapes[view] = shape
        return shapes

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
        cuts = [self.cut_windows(wave) for wave in waves]
        jobs = [(wave, *piece) for wave, pieces in zip(waves, cuts, strict=True) for piece in pieces]
        parts: dict[str, list[np.ndarray]] = {}
        size = min(batch_size, self.at_once) if self.at_once and self.device == "cpu" else batch_size

        def compute_batch(first: int) -> dict[str, np.ndarray]:
            batch = jobs[first : first + size]
            pieces = [self.fill_window(wave, start, length) for wave, start, length in batch]
            return self.run_pass(np.stack(pieces), [length for _, _, length in batch])

        for batch_views in self.run_passes(compute_batch, range(0, len(jobs), size)):
            for name, values in batch_views.items():
                parts.setdefault(name, []).append(values)
        views = {name: np.concatenate(values) for name, values in parts.items()}
        clips, row = [], 0
        for pieces, offset in zip(cuts, offsets, strict=True):
            rows = slice(row, row + len(pieces))
            clips.append(build_clip(pieces, offset, {name: values[rows] for name, values in views.items()}))
            row += len(pieces)
        return clips

    def run_passes(self, work: Callable[[Any], Any], batches: Iterable[Any]) -> Iterator[Any]:
        """`work` of each batch, in order; in parallel on a CPU, see `at_once`."""
        import torch

        if self.device != "cpu" or self.at_once is None or getattr(_lane, "inside", False):
            return map(work, batches)  # a pass that waited for others in its own pool would never end
        if self._lanes is None:
            self._lanes = ThreadPoolExecutor(torch.get_num_threads(), "pass", _start_lane)
        return _map_in_order(self._lanes, work, batches, torch.get_num_threads() + 1)

    def cut_windows(self, wave: np.ndarray) -> list[tuple[float, float]]:
        """(start, length of real audio) in seconds of each window of a wave."""
        return windows.cut_windows(
            len(wave) / self.rate, self.window.seconds, self.window.hop, self.window.max_windows
        )

    def fill_window(self, wave: np.ndarray, start: float, length: float) -> np.ndarray:
        """The samples of one window, padded to (samples,)."""
        first = round(start * self.rate)
        real = max(1, round(length * self.rate))
        return windows.fill_window(wave[first : first + real], self.samples, self.window.pad)

    def run_pass(self, waves: np.ndarray, lengths: list[float]) -> dict[str, np.ndarray]:
        """One forward pass from (B, samples) to numpy views, repeated in fp32 where half precision
        overflowed."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(waves).to(self.device)
            with self.use_precision():
                views = self.forward(batch, lengths)
            if self.precision != "fp32" and not all(bool(view.isfinite().all()) for view in views.values()):
                views = self.forward(batch, lengths)
        return {name: to_numpy(views[name]) for name in self.views}

    @contextlib.contextmanager
    def use_precision(self) -> Iterator[None]:
        """Autocast to `precision`; fp16 on a CPU stays fp32, as it is no faster there."""
        import torch

        device_type = torch.device(self.device).type
        half = {"bf16": torch.bfloat16, "fp16": torch.float16 if device_type == "cuda" else None}.get(
            self.precision
        )
        if half is None:
            yield
            return
        with torch.autocast(device_type, dtype=half):
            yield


_lane = threading.local()


def _start_lane() -> None:
    """Start a thread of passes with one torch thread of its own; the setting is per thread."""
    import torch

    torch.set_num_threads(1)
    _lane.inside = True


def _map_in_order(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], batches: Iterable[Any], most: int
) -> Iterator[Any]:
    """`pool.map` with a limit on waiting results: those of hour-long recordings are large."""
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


def build_clip(
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


def find_local(weights: str) -> Path | None:
    """The path of `weights` if it is a local file or folder, or an attached one; else None.

    Raises:
        UserError: the file is only a placeholder, such as a Git LFS pointer.
    """
    path = Path(weights).expanduser()
    place = path if path.exists() else kaggle_paths.find_by_name(path.name)
    if place is not None and place.is_file():
        file_content.check_content(place)
    return place
