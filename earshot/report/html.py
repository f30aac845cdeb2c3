"""Pages in one file that need no network, read on a phone and in dark mode: report.html, comparison.html,
data_report.html."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape

CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1b1b;--soft:#555;--grid:#ddd;--stripe:#0000000a;
  --shade:#0003;--link:#0563a8;--blue:#0072b2;
  --ok:#0a7d43;--warning:#b45309;--stop:#c01c1c}
@media (prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e6e6e6;--soft:#a8adb3;--grid:#3a3d42;
  --stripe:#ffffff0d;--shade:#000b;--link:#6cb6ff;--blue:#3d9be0;
  --ok:#4cc38a;--warning:#f0a44b;--stop:#ff7b72}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);
  background:var(--paper);margin:0 auto;padding:1rem;max-width:70rem}
h1{font-size:1.5rem;margin:.2rem 0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2rem 0 .5rem}
p{margin:.4rem 0;max-width:46rem}
a{color:var(--link)}
code{font-size:.85em;overflow-wrap:anywhere}
.facts{font-size:.85rem;color:var(--soft)}
img{max-width:100%;height:auto;display:block;background:#fff;border-radius:4px}
svg{display:block;max-width:100%;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif!important}
figure{margin:.6rem 0}
figcaption{font-size:.85rem;color:var(--soft);overflow-wrap:anywhere}
.wide{overflow-x:auto;background:linear-gradient(to right,var(--paper) 40%,#0000) left/2.5rem 100%,
  linear-gradient(to left,var(--paper) 40%,#0000) right/2.5rem 100%,
  linear-gradient(to right,var(--shade),#0000) left/.8rem 100%,
  linear-gradient(to left,var(--shade),#0000) right/.8rem 100%;
  background-repeat:no-repeat;background-attachment:local,local,scroll,scroll}
.hint{display:none;font-size:.8rem;color:var(--soft);margin:.2rem 0}
@media (max-width:46rem){.hint{display:block}}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem .2rem 0;text-align:right;white-space:nowrap}
th{border-bottom:1px solid var(--soft);font-weight:600}
td:first-child,th:first-child,.words td,.words th{text-align:left}
tbody tr:nth-child(even){background:var(--stripe)}
.tiles{display:flex;flex-wrap:wrap;gap:.5rem 2rem;margin:.8rem 0}
.tiles div{min-width:6rem}
.tiles b{font-size:1.5rem;display:block;line-height:1.2}
.tiles small{font-size:.95rem;font-weight:400;color:var(--soft)}
.tiles span{font-size:.85rem;color:var(--soft)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:.6rem 1.2rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:0 2rem}
.full{grid-column:1/-1}
.grid>*,.pair>*{min-width:0}
ul.lines{list-style:none;padding:0;max-width:60rem}
ul.lines li{padding:.25rem 0 .25rem 5.2rem;text-indent:-5.2rem;overflow-wrap:anywhere}
ul.lines b{display:inline-block;width:5.2rem;text-indent:0}
.ok b{color:var(--ok)}.warning b{color:var(--warning)}.stop b{color:var(--stop)}
pre{overflow-x:auto;font-size:.8rem;line-height:1.35;background:var(--stripe);padding:.7rem}
summary{cursor:pointer;font-weight:600;margin:.5rem 0}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
HINT = '<p class="hint">Scroll sideways for more &rarr;</p>'
NARROW = 5  # columns that a phone has room for
LEAST = 0.7  # of its own size: a picture shrinks so far, then it scrolls, so that its text can be read
FACTS = '<p class="facts">'  # begins the line with times, by which two reports of equal results differ


class Markup(str):
    """Text that is HTML already."""


def build_page(title: str, digest: str, parts: Iterable[str]) -> str:
    """The whole file; `digest` identifies the results that it shows."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="earshot" '
        f'content="{escape(digest)}">\n<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def format_heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def format_paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{_to_html(text)}</p>"


def format_facts(facts: Iterable[str], command: str = "") -> str:
    """When, where and by which command it was made, in one line of the file."""
    shown = " · ".join([*map(escape, facts), *([f"<code>{escape(command)}</code>"] if command else [])])
    return f"{FACTS}{shown}</p>"


def format_link(text: str, address: str) -> Markup:
    """A link to another file."""
    from urllib.parse import quote

    return Markup(f'<a href="{escape(quote(address))}">{escape(text)}</a>')


def format_lines(lines: Iterable[tuple[str, str]]) -> str:
    """A list of (level, text), the level in its colour: ok, warning, stop."""
    shown = (
        f'<li class="{escape(level)}"><b>{escape(level)}</b>{escape(text)}</li>' for level, text in lines
    )
    return '<ul class="lines">' + "\n".join(shown) + "</ul>"


def embed_svg(svg: str, about: str) -> str:
    """A figure of `style.render_svg`, as wide as the page at most; it scrolls where its text would get too
    small."""
    width = re.search(r'width="([\d.]+)pt"', svg)
    least = f"min-width:{LEAST * float(width[1]) * 4 / 3:.0f}px" if width else ""
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(about)}" style="{least}" ', 1)
    return f'<figure><div class="wide">{svg}</div></figure>'


def embed_image(png: bytes, about: str, caption: str = "") -> str:
    """A PNG within the page."""
    width = int.from_bytes(png[16:20], "big")
    tag = (
        f'<img alt="{escape(about)}" width="{width}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )
    return f"<figure>{tag}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"


def format_table(head: Sequence[str], rows: Iterable[Sequence[object]], words: bool = False) -> str:
    """A table that scrolls where it is too wide, with a hint on a phone; floats with four digits; `words`
    are aligned to the left."""

    def cell(value: object) -> str:
        return _to_html(f"{value:.4f}" if isinstance(value, float) else value)

    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>\n" for row in rows)
    return (
        (HINT if len(head) > NARROW else "")
        + f'<div class="wide"><table{" class=words" if words else ""}><thead><tr>'
        + "".join(f"<th>{escape(h)}</th>" for h in head)
        + f"</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def format_legend(what: str, legend: list[tuple[str, str]]) -> list[str]:
    """The table of (number, name) for what pictures show as a number; nothing where they have all names."""
    return [format_table(["in the pictures", what], legend)] if legend else []


def format_tiles(values: Iterable[tuple[str, str, str]]) -> str:
    """Figures to be seen first: (figure, its spread or nothing, what it is)."""
    return (
        '<div class="tiles">'
        + "".join(
            f"<div><b>{escape(score)} <small>{escape(spread)}</small></b><span>{escape(name)}</span></div>"
            for score, spread, name in values
        )
        + "</div>"
    )


def format_grid(parts: Iterable[str]) -> str:
    """Small things beside one another where there is room."""
    return '<div class="grid">' + "\n".join(parts) + "</div>"


def format_columns(blocks: Iterable[tuple[Iterable[str], bool]]) -> str:
    """Blocks in two columns where there is room; one that is marked as wide takes the whole row."""
    return (
        '<div class="pair">'
        + "\n".join(f"<div{' class=full' if wide else ''}>{''.join(block)}</div>" for block, wide in blocks)
        + "</div>"
    )


def format_details(summary: str, text: str) -> str:
    """Plain text that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _to_html(value: object) -> str:
    return value if isinstance(value, Markup) else escape(str(value))
