"""The page's pictures: a clip with its windows, the evidence, feature maps."""

from __future__ import annotations

import base64
import functools
import threading
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.app.feature_maps import FeatureMap, group_layers
from earshot.app.saliency import Saliency
from earshot.audio import spectrogram
from earshot.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours of negative values, zero and positive values.
LOW, MIDDLE, HIGH = (255, 128, 51), (255, 255, 255), (51, 128, 255)
STEPS = 127  # shades of each sign
HZ = (0, 500, 1000, 2000, 4000, 8000, 16000)
CLASSES = 6  # rows of a timeline
ENVELOPE = 1200  # points of a waveform
_lock = threading.Lock()  # matplotlib's settings are global


def draw_clip(
    wave: np.ndarray,
    rate: int,
    windows: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    classes: list[str],
    probabilities: np.ndarray,
) -> bytes:
    """A PNG: waveform, spectrogram, and for several windows the likeliest classes over time.

    Args:
        wave: (samples,). windows: (windows, classes) probabilities.
        start, length: (windows,) seconds, from the start of the wave.
        probabilities: (classes,) of the whole clip, which decide the order of the rows.
    """
    several = len(windows) > 1
    seconds = len(wave) / rate
    # Classes that are likely overall or in a window.
    order = np.argsort(-np.maximum(probabilities, windows.max(0)), kind="stable")[:CLASSES]
    order = order[np.argsort(-probabilities[order], kind="stable")]
    names = style.shorten_names(classes, 18)
    with _lock, style.apply_style():
        figure = _make_figure(4.4 + (0.7 + 0.27 * len(order) if several else 0))
        heights = [1, 2.6] + ([0.35 + 0.16 * len(order)] if several else [])
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        _draw_waveform(axes[0], wave, seconds)
        _draw_spectrogram(axes[1], wave, rate, "viridis")
        if several:
            _draw_timeline(
                figure,
                axes[2],
                windows[:, order],
                start,
                length,
                [names[c] for c in order],
                seconds,
            )
        axes[-1].set_xlabel("seconds")
        axes[0].set_xlim(0, seconds)
        return style.render_png(figure)


def _make_figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((7.2, height))


def _draw_waveform(axes: Any, wave: np.ndarray, seconds: float) -> None:
    edges = np.linspace(0, len(wave), min(ENVELOPE, len(wave)) + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(wave, edges), np.maximum.reduceat(wave, edges)
    axes.fill_between(edges / len(wave) * seconds, low, high, color=style.BLUE, linewidth=0.4)
    axes.set(ylabel="amplitude")


def _draw_spectrogram(axes: Any, wave: np.ndarray, rate: int, colours: Any) -> None:
    """The spectrogram, with rows evenly spaced on the mel scale."""
    top = float(spectrogram.to_mel(rate / 2))
    drawn = axes.imshow(
        spectrogram.compute_mel(wave, rate),
        origin="lower",
        aspect="auto",
        cmap=colours,
        vmin=-spectrogram.RANGE,
        vmax=0,
        extent=(0, len(wave) / rate, 0, top),
        interpolation="nearest",
    )
    shown = [hz for hz in HZ if hz <= rate / 2]
    axes.set_yticks([float(spectrogram.to_mel(hz)) for hz in shown], [str(hz) for hz in shown])
    axes.set(ylabel="Hz", ylim=(0, top))
    axes.figure.colorbar(drawn, ax=axes, pad=0.01, aspect=18, label="dB")


def _draw_timeline(
    figure: Figure,
    axes: Any,
    values: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    names: list[str],
    seconds: float,
) -> None:
    # Windows may overlap: the border of two is halfway between their centres.
    middle = start + length / 2
    edges = np.concatenate([[0.0], (middle[1:] + middle[:-1]) / 2, [max(seconds, float(middle[-1]) + 1e-3)]])
    edges = np.maximum.accumulate(edges)
    drawn = axes.pcolormesh(edges, np.arange(len(names) + 1), values.T, cmap="magma_r", vmin=0, vmax=1)
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.invert_yaxis()
    axes.set_title("probability in each window")
    figure.colorbar(drawn, ax=axes, pad=0.01, aspect=10)


def draw_saliency(found: Saliency, wave: np.ndarray, rate: int, start: float, title: str) -> bytes:
    """A PNG: the window's spectrogram in grey, the evidence over it in colour, and the evidence over time.

    Args:
        wave: (samples,) of the window. start: of the window, in seconds.
    """
    seconds = len(wave) / rate
    values = found.values
    # Padding at the end of a window is not shown.
    values = values[:, : max(1, round(values.shape[1] * min(1.0, seconds / found.seconds)))]
    most = float(np.percentile(np.abs(values), 99.5)) or 1e-9
    scaled = np.clip(values / most, -1, 1)
    with _lock, style.apply_style():
        figure = _make_figure(4.6)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1])
        _draw_spectrogram(top, wave, rate, _build_colormap([(255, 255, 255), (120, 120, 120)]))
        colours = np.where(scaled[..., None] > 0, HIGH, LOW) / 255
        shades = np.concatenate([colours, 0.85 * np.abs(scaled)[..., None] ** 0.7], axis=2)
        edge = (float(spectrogram.to_mel(found.low)), float(spectrogram.to_mel(min(found.high, rate / 2))))
        top.imshow(shades, origin="lower", aspect="auto", extent=(0, seconds, *edge), interpolation="nearest")
        top.set_title(title)
        over = values.sum(0)
        edges = np.linspace(0, seconds, len(over) + 1)
        for sign, colour in ((1, HIGH), (-1, LOW)):
            bottom.stairs(np.maximum(sign * over, 0) * sign, edges, fill=True, color=np.array(colour) / 255)
        bottom.axhline(0, color=style.GREY, linewidth=0.6)
        bottom.set(
            xlabel="seconds" if not start else f"seconds from {start:.4g} s",
            ylabel="evidence",
            xlim=(0, seconds),
        )
        figure.colorbar(
            _build_colorbar(most),
            ax=bottom,
            pad=0.01,
            aspect=8,
            ticks=[-most, 0, most],
            format="%.2g",
            label="colours",
        )
        return style.render_png(figure)


def _build_colormap(colours: list[tuple[int, int, int]]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ramp", [np.array(c) / 255 for c in colours])


def _build_colorbar(most: float) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(-most, most), _build_colormap([LOW, MIDDLE, HIGH]))


@functools.cache
def _build_palette() -> list[int]:
    share = np.linspace(0, 1, STEPS + 1)[:, None]
    low = np.array(LOW) * (1 - share) + np.array(MIDDLE) * share
    high = np.array(MIDDLE) * (1 - share) + np.array(HIGH) * share
    return np.concatenate([low[:-1], high]).round().astype(int).ravel().tolist()


def draw_diverging_map(values: np.ndarray) -> bytes:
    """A PNG of (rows, columns), one pixel per cell, the first row at the bottom.

    Values are scaled by the largest absolute value; zero is white.
    """
    from PIL import Image

    most = float(np.abs(values).max()) or 1.0
    image = Image.fromarray(np.clip((values[::-1] / most + 1) * STEPS, 0, 2 * STEPS).round().astype(np.uint8))
    image.putpalette(_build_palette())
    return spectrogram.encode_png(image)


def to_data_url(png: bytes) -> str:
    """A picture as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def render_maps(found: dict[str, list[FeatureMap]]) -> str:
    """The HTML of feature maps: the colour scale, the layers side by side, and their sub-layers to open."""
    if not found:
        return (
            '<p class="quiet">No feature maps: neither this head nor its extractor has a layer with a time '
            "axis.</p>"
        )
    ramp = to_data_url(draw_diverging_map(np.linspace(-1, 1, 2 * STEPS + 1)[None].repeat(4, 0)))
    parts = [
        '<div class="scale"><span>−1</span><img alt="orange is negative, white zero, blue positive" '
        f'src="{ramp}"><span>+1</span> <span class="quiet">of each map\'s largest value</span></div>'
    ]
    for whose, maps in found.items():
        parts.append(f"<h3>{escape(whose)}</h3>")
        layers = group_layers(maps)
        parts.append(
            '<div class="maps">'
            + "".join(_render_map(inside[0], name) for name, inside in layers.items())
            + "</div>"
        )
        for name, inside in layers.items():
            if len(inside) > 1:
                inner = "".join(_render_map(one, one.name) for one in inside)
                parts.append(
                    f"<details><summary>{escape(name)}: {len(inside)} sub-layers</summary>"
                    f'<div class="maps">{inner}</div></details>'
                )
    return "\n".join(parts)


def _render_map(one: FeatureMap, name: str) -> str:
    most = float(np.abs(one.values).max())
    shape = " × ".join(map(str, one.shape))
    return (
        f'<figure><img alt="feature map {escape(name)}" src="{to_data_url(draw_diverging_map(one.values))}">'
        f"<figcaption><b>{escape(name)}</b> {shape}, ±{most:.3g}</figcaption></figure>"
    )
