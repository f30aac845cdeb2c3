"""How every picture looks: colours that the colour-blind can tell apart, class names as plain text."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from earshot.core import fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito.
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
MAP = "Blues"
DPI = 120
# Colours that are the page's own in an SVG, so that it can be read in light and in dark mode.
INK, GRID, PAPER = "#1b1b1b", "#dddddd", "#fefefe"
THEMED = {INK: "currentColor", GRID: "var(--grid)", PAPER: "var(--paper)", BLUE.lower(): "var(--blue)"}
SETTINGS = {
    "text.parse_math": False,
    "font.family": [fonts.OWN],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
}


@contextlib.contextmanager
def apply_style() -> Iterator[None]:
    """Figures made within look as set here, whatever the user's own matplotlibrc has."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def make_axes(width: float, height: float, **labels: Any) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure((width, height))
    made = figure.subplots()
    made.set(**labels)
    return figure, made


def render_png(figure: Figure) -> bytes:
    """The figure as a PNG without time or version inside: equal data gives equal bytes."""
    _choose_fonts(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()


def render_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element for a page, in the page's ink and font; equal data gives equal text.

    Args:
        name: another for each figure of a page, so that their ids do not collide.
    """
    import matplotlib

    _choose_fonts(figure)
    text, no_metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "earshot"}):
        figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    # the page has its own rules
    svg = re.sub(r"<style.*?</style>|<!--.*?-->| xmlns(:xlink)?=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    # ids repeat from figure to figure: keep those that are referred to, under this figure's name
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda id: f' id="{name}-{id[1]}"' if id[1] in used else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for colour, themed in THEMED.items():
        svg = svg.replace(colour, themed)
    return re.sub(r"\n\s*\n+", "\n", svg)


def _choose_fonts(figure: Figure) -> None:
    """Give each text the installed fonts that have its characters."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if not text.get_text().isascii():  # matplotlib goes on to the next where a font lacks a character
            text.set_fontfamily([*text.get_fontfamily(), *fonts.list_families([text.get_text()])])


def choose_colours(count: int) -> list[str]:
    """A different colour for each of `count` classes: Okabe and Ito's, matplotlib's tab10 or tab20, else hues
    in steps of the golden angle, dark and light in turn."""
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb, to_hex

    if count <= len(COLOURS):
        return list(COLOURS[:count])
    if count <= 20:
        return [to_hex(colour) for colour in colormaps["tab10" if count <= 10 else "tab20"].colors[:count]]
    return [to_hex(hsv_to_rgb((i * 0.381966 % 1, 0.85, (0.55, 0.9)[i % 2]))) for i in range(count)]


def shorten(name: str, most: int = 24) -> str:
    """A text cut to `most` characters, with a question mark for what no installed font has."""
    name = fonts.replace_undrawable(name)
    return name if len(name) <= most else name[: most - 1] + "…"


def shorten_names(given: Sequence[str], most: int = 24) -> list[str]:
    """What a picture shows for classes: short names, or numbers where no installed font can draw them."""
    return [shorten(name, most) for name in fonts.list_shown_names(given)]
