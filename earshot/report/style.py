"""How every picture looks: colours that the colour-blind tell apart, no frame, no mathematics in class
names."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from earshot.core import fonts

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
    "font.family": [fonts.OWN],
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


@contextlib.contextmanager
def apply_style() -> Iterator[None]:
    """Within, figures look as they do here, whatever the user's own matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def make_axes(width: float, height: float, **labels: Any) -> tuple[Figure, Any]:
    """A figure of so many inches with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure((width, height))
    made = figure.subplots()
    made.set(**labels)
    return figure, made


def render_png(figure: Figure) -> bytes:
    """The figure as a PNG without time or version inside, so that equal data gives equal bytes.

    Each text is drawn with the installed fonts that have its characters.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if not text.get_text().isascii():  # matplotlib goes on to the next where a font lacks a character
            text.set_fontfamily([*text.get_fontfamily(), *fonts.list_families([text.get_text()])])
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()


def shorten(name: str, most: int = 24) -> str:
    """A name or another text that fits, with a question mark for what no installed font has."""
    name = fonts.replace_undrawable(name)
    return name if len(name) <= most else name[: most - 1] + "…"


def shorten_names(given: Sequence[str], most: int = 24) -> list[str]:
    """What a picture shows for classes: names that fit, numbers for those that no installed font can draw."""
    return [shorten(name, most) for name in fonts.list_shown_names(given)]
