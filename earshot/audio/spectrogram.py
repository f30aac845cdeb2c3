"""Draws mel spectrograms quickly (10 ms each): axes in seconds and Hz, a colour bar in decibels."""

from __future__ import annotations

import functools
import io
import itertools
import math
import re
from typing import TYPE_CHECKING

import numpy as np

from earshot.core import fonts

if TYPE_CHECKING:
    from PIL import Image, ImageFont

N_FFT, BANDS = 2048, 128
RANGE = 80.0  # dB that the colours span below the loudest point
FRAMES = 2000  # largest width
# indices of a palette: colours first, then greys for antialiased text
BLACK, WHITE, COLOURS = 240, 255, 240
# words of Hebrew, Arabic and other right-to-left scripts, with the blanks between them
LETTER = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
RIGHT_TO_LEFT = re.compile(rf"({LETTER}+(?:\s+{LETTER}+)*)")
LEFT, TOP, RIGHT, BOTTOM = 52, 24, 76, 38  # pixels around the spectrogram


def to_mel(hz: float | np.ndarray, scale: str = "htk") -> float | np.ndarray:
    """Hz on the mel scale, htk's or slaney's formula."""
    if scale == "htk":
        return 2595 * np.log10(1 + np.asarray(hz) / 700)
    hz = np.asarray(hz, dtype=np.float64)
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / math.log(6.4))


@functools.lru_cache(maxsize=8)
def _build_bank(rate: int) -> np.ndarray:
    # Triangles between neighbours on the mel scale. `extractors.mel.build_mel_bank` has more choices and
    # takes 1.4 s to import.
    edges = 700 * (10 ** (np.linspace(0, to_mel(rate / 2), BANDS + 2) / 2595) - 1)
    # the lowest are narrower than a bin of the transform
    edges = np.maximum(edges, np.arange(BANDS + 2) * 0.5 * rate / N_FFT)
    bins = np.arange(N_FFT // 2 + 1) * rate / N_FFT
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


def compute_mel(wave: np.ndarray, rate: int) -> np.ndarray:
    """(bands, frames) float32: dB below the loudest point, at least -80; from 0 Hz to half the rate.

    Args:
        wave: (samples,) float32, any number of them.
    """
    from scipy.fft import rfft

    hop = max(N_FFT // 4, len(wave) // FRAMES)
    padded = np.pad(wave, N_FFT // 2, mode="constant")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::hop]
    spectrum = rfft(frames * np.hanning(N_FFT).astype(np.float32), axis=1)
    found = 10 * np.log10(np.maximum(_build_bank(rate) @ (spectrum.real**2 + spectrum.imag**2).T, 1e-12))
    return np.maximum(found - found.max(), -RANGE)


@functools.cache
def _build_palette() -> list[int]:
    from matplotlib import colormaps

    colours = (np.asarray(colormaps["viridis"](np.linspace(0, 1, COLOURS)))[:, :3] * 255).round().astype(int)
    greys = np.linspace(0, 255, WHITE - BLACK + 1).round().astype(int).repeat(3)
    return [*colours.ravel().tolist(), *greys.tolist()]


@functools.cache
def _load_font(size: int, path: str | None = None) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(path or f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _split_by_font(text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """A text in pieces, left to right, each with a font that has its characters.

    A right-to-left name is a separate piece: else it would reorder the text beside it, such as a file name.
    """
    runs = []
    for part in filter(None, RIGHT_TO_LEFT.split(text)):
        pieces = itertools.groupby(zip(fonts.find_fonts(part), part, strict=True), lambda pair: pair[0])
        for font, run in pieces:
            path = None if font is None or font.family == fonts.OWN else font.path
            runs.append((_load_font(12, path), "".join(c for _, c in run)))
    return runs


def _measure_text(text: str) -> float:
    return sum(font.getlength(run) for font, run in _split_by_font(text))


def choose_ticks(length: float, most: int = 8) -> list[float]:
    """Round numbers from 0 to `length`, at most so many."""
    raw = max(length, 1e-9) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [round(index * step, 10) for index in range(int(length / step + 1e-9) + 1)]


def draw_picture(
    levels: np.ndarray,
    seconds: float,
    low: float,
    high: float,
    title: str,
    scale: str = "htk",
    begin: float = 0.0,
    width: int = 640,
    height: int = 256,
) -> Image.Image:
    """A spectrogram with its axes.

    Args:
        levels: (bands, frames) dB from -80 to 0, bands evenly spaced on the mel scale from `low` to `high`
            Hz.
        seconds: their duration. begin: their start.
        width, height: pixels of the spectrogram alone.
    """
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (LEFT + width + RIGHT, TOP + height + BOTTOM), WHITE)
    shades = (
        np.clip((levels[::-1] + RANGE) * ((COLOURS - 1) / RANGE), 0, COLOURS - 1).round().astype(np.uint8)
    )
    canvas.paste(Image.fromarray(shades).resize((width, height), Image.Resampling.BILINEAR), (LEFT, TOP))
    pen, font, foot = ImageDraw.Draw(canvas), _load_font(12), TOP + height

    def write(x: float, y: float, text: str, anchor: str) -> None:
        pen.text((x, y), text, fill=BLACK, font=font, anchor=anchor)

    x = float(LEFT)
    for face, run in _split_by_font(_shorten_text(title, width + RIGHT)):
        pen.text((x, TOP // 2), run, fill=BLACK, font=face, anchor="lm")
        x += face.getlength(run)
    for value in choose_ticks(seconds):
        x = LEFT + value / seconds * (width - 1)
        pen.line([(x, foot), (x, foot + 4)], fill=BLACK)
        write(x, foot + 6, f"{begin + value:g}", "ma")
    write(LEFT + width / 2, foot + 21, "seconds", "ma")
    bottom, top, last = to_mel(low, scale), to_mel(high, scale), math.inf
    for value in (0, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000):
        y = foot - 1 - (to_mel(value, scale) - bottom) / (top - bottom) * (height - 1)
        if low <= value <= high and last - y >= 15:
            pen.line([(LEFT - 5, y), (LEFT - 1, y)], fill=BLACK)
            write(LEFT - 8, y, str(value), "rm")
            last = y
    write(LEFT - 8, TOP // 2, "Hz", "rm")
    edge = LEFT + width + 16
    bar = np.linspace(COLOURS - 1, 0, height).round().astype(np.uint8)[:, None].repeat(12, 1)
    canvas.paste(Image.fromarray(bar), (edge, TOP))
    for value in (0, -20, -40, -60, -80):
        write(edge + 16, TOP + 5 + -value / RANGE * (height - 10), f"{value}".replace("-", "\u2212"), "lm")
    write(edge, foot + 6, "dB", "la")
    canvas = canvas.convert("L")
    canvas.putpalette(_build_palette())
    return canvas


def _shorten_text(text: str, pixels: float) -> str:
    text = fonts.replace_undrawable(text)
    while len(text) > 2 and _measure_text(text) > pixels:
        text = text[: int(len(text) * min(0.98, pixels / _measure_text(text)))].rstrip("…") + "…"
    return text


def encode_png(image: Image.Image) -> bytes:
    """The picture's bytes."""
    data = io.BytesIO()
    image.save(data, format="PNG", compress_level=6)
    return data.getvalue()
