"""How every picture looks: colours that the colour-blind tell apart, no frame, no mathematics in class
names."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's.
BLUE, ORANGE, GREEN, VERMILION, PINK, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#8A8A8A",
)
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PINK, SKY)
MAP = "viridis"
DPI = 120
SETTINGS = {
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
}
# Fonts with the scripts that matplotlib's own lacks; those that the machine has stand in for it where a
# character is missing.
SCRIPTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans CJK KR",
    "Noto Sans JP",
    "Noto Sans SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "IPAGothic",
    "NanumGothic",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans",
    "FreeSans",
)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Within, figures look as they do here, whatever the user's own matplotlibrc says."""
    import matplotlib
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    with warnings.catch_warnings(), matplotlib.rc_context():
        # a script that the font lacks shows as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *(name for name in SCRIPTS if name in there)]
        yield


def axes(width: float, height: float, **labels: Any) -> tuple[Figure, Any]:
    """A figure of so many inches with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure((width, height))
    made = figure.subplots()
    made.set(**labels)
    return figure, made


def png(figure: Figure) -> bytes:
    """The figure as a PNG without time or version inside, so that equal data gives equal bytes."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()


def short(name: str, most: int = 24) -> str:
    """A class or clip name that fits, without characters that do not print."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= most else name[: most - 1] + "…"
