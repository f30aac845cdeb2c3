"""Installed fonts for the characters of a text, so that no picture shows boxes instead."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

OWN = "DejaVu Sans"  # matplotlib brings it
# Where several fonts have a character, these come first, in this order: readable, and of one style.
PREFERRED = (
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
SHOWN = 6  # names that the warning spells out


@dataclass(frozen=True)
class Font:
    """A font: its family, as matplotlib names it, and its file; `rank` orders them."""

    rank: int
    family: str
    path: str


_known: dict[str, Font | None] = {}
_lock = threading.Lock()


def find_fonts(text: str) -> list[Font | None]:
    """The font of each character, None where no installed font has it."""
    with _lock:
        unknown = set(text) - _known.keys()
        if unknown:
            _known.update(_look_up(unknown))
        return [_known[character] for character in text]


def list_families(texts: Iterable[str]) -> list[str]:
    """Font families that together cover the text as far as installed fonts do; matplotlib's own is the first.

    The order depends on the fonts only, so that equal texts give equal pictures.
    """
    fonts = {font for font in find_fonts("".join(texts)) if font is not None and font.family != OWN}
    return [OWN, *(font.family for font in sorted(fonts, key=lambda font: font.rank))]


def to_drawn_text(text: str) -> str:
    """A text for a picture: plain blanks, no control or zero-width characters."""
    text = "".join(" " if c.isspace() else c for c in text if not _is_control_mark(c))
    return "".join(c if c.isprintable() else "?" for c in text)


def is_drawable(text: str) -> bool:
    """Does a font exist for every character of `to_drawn_text(text)`?"""
    return None not in find_fonts(to_drawn_text(text))


def replace_undrawable(text: str) -> str:
    """`to_drawn_text(text)` with a question mark for each character without a font."""
    text = to_drawn_text(text)
    return "".join(c if font else "?" for c, font in zip(text, find_fonts(text), strict=True))


def list_shown_names(wanted: Sequence[str]) -> list[str]:
    """Names as pictures show them: the name, or its number (#1 is the first) if no font can draw it."""
    numbers = [f"#{number}" for number in range(1, len(wanted) + 1)]
    shown = [
        to_drawn_text(name) if is_drawable(name) else number
        for name, number in zip(wanted, numbers, strict=True)
    ]
    # a class may be called #3: then numbers stand for all
    return numbers if len(set(shown)) < len(set(map(to_drawn_text, wanted))) else shown


def build_legend(wanted: Sequence[str]) -> list[tuple[str, str]]:
    """(number, name) of the names that `list_shown_names` shows as numbers."""
    shown = list_shown_names(wanted)
    return [(label, name) for label, name in zip(shown, wanted, strict=True) if label != to_drawn_text(name)]


def format_warning(wanted: Sequence[str], where: str) -> str | None:
    """A warning about names that no installed font can draw, None without any.

    Args:
        where: a clause that says where the names are.
    """
    hidden = build_legend(wanted)
    if not hidden:
        return None
    examples = ", ".join(f"{number} is {name}" for number, name in hidden[:SHOWN])
    more = f", ... ({len(hidden)} in all)" if len(hidden) > SHOWN else ""
    return (
        f"warning: no installed font has all characters of {len(hidden)} of {len(wanted)} names: pictures "
        f"show numbers for them ({examples}{more}); {where}"
    )


def _is_control_mark(character: str) -> bool:
    """Is it invisible by itself: a joiner, a direction mark, a variation selector?"""
    selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return selector or unicodedata.category(character) == "Cf"


def _look_up(characters: set[str]) -> dict[str, Font | None]:
    from matplotlib import font_manager

    fonts: dict[str, Font | None] = dict.fromkeys(characters)
    own = font_manager.findfont(font_manager.FontProperties(family=[OWN]))
    rest = _assign_font(fonts, characters, Font(0, OWN, str(own)))
    for font in _iterate_fonts() if rest else ():
        rest = _assign_font(fonts, rest, font)
        if not rest:
            break
    return fonts


def _assign_font(fonts: dict[str, Font | None], wanted: set[str], font: Font) -> set[str]:
    """Note a font for those wanted characters that it draws; return the others."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(font.path)  # not kept: each holds its file open
        face.set_size(12, 72)
        has = {c for c in wanted if face.get_char_index(ord(c)) and (c == " " or _has_outline(face, c))}
    except (OSError, RuntimeError):
        return wanted  # a damaged file, or pixels of one size only
    fonts.update(dict.fromkeys(has, font))
    return wanted - has


def _has_outline(face: Any, character: str) -> bool:
    """Does the font draw it? Coloured emoji can be layers that matplotlib does not draw: an empty shape."""
    return face.load_char(ord(character)).width > 0


def _iterate_fonts() -> Iterator[Font]:
    """The machine's fonts, one a family, the preferred ones first, then by name."""
    from matplotlib import font_manager, get_data_path

    manager = font_manager.fontManager
    listed = {entry.fname for entry in manager.ttflist}
    for path in sorted(font_manager.findSystemFonts()):
        if path not in listed:  # matplotlib's list is from when it first ran here
            try:
                manager.addfont(path)
            except Exception:  # matplotlib itself passes over whatever such a file raises
                continue
    entries = [
        entry
        for entry in manager.ttflist
        # its own further fonts are for formulas, or have boxes for every character
        if not entry.fname.startswith(get_data_path())
        and "lastresort" not in entry.name.replace(" ", "").lower()
    ]
    place = {name: index for index, name in enumerate(PREFERRED)}
    wanted = sorted({entry.name for entry in entries}, key=lambda name: (place.get(name, len(place)), name))
    regular = {"normal": 400, "regular": 400, "book": 400, "medium": 500}
    files: dict[str, tuple] = {}
    for entry in entries:
        weight = regular.get(entry.weight, entry.weight)
        odd = abs(weight - 400) if isinstance(weight, int) else 1000
        order = (entry.style != "normal", odd, str(entry.stretch) != "normal", entry.fname)
        files[entry.name] = min(files.get(entry.name, order), order)
    for rank, name in enumerate(wanted, 1):
        yield Font(rank, name, files[name][-1])
