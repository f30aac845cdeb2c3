"""report.html: one file that needs no network, readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

CSS = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1b1b1b;background:#fff;
  margin:0 auto;padding:1rem;max-width:70rem}
h1{font-size:1.5rem;margin:.2rem 0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2rem 0 .5rem}
p{margin:.4rem 0;max-width:46rem}
img{max-width:100%;height:auto;display:block}
figure{margin:.6rem 0}
figcaption{font-size:.85rem;color:#444;overflow-wrap:anywhere}
.wide{overflow-x:auto}.wide>img{max-width:none}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem .2rem 0;text-align:right;white-space:nowrap}
th{border-bottom:1px solid #999;font-weight:600}
td:first-child,th:first-child{text-align:left}tbody tr:nth-child(even){background:#f5f5f5}
.tiles{display:flex;flex-wrap:wrap;gap:.5rem 2rem;margin:.8rem 0}
.tiles div{min-width:6rem}
.tiles b{font-size:1.5rem;display:block;line-height:1.2}
.tiles span{font-size:.85rem;color:#444}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:.6rem 1.2rem}
pre{overflow-x:auto;font-size:.8rem;line-height:1.35;background:#f5f5f5;padding:.7rem}
summary{cursor:pointer;font-weight:600;margin:.5rem 0}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def build_page(title: str, digest: str, parts: Iterable[str]) -> str:
    """The whole file; `digest` tells what it was made of."""
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
    return f"<p>{escape(text)}</p>"


def embed_image(png: bytes, about: str, caption: str = "", wide: bool = False) -> str:
    """A picture within the page; a wide one keeps its size and is scrolled."""
    width = int.from_bytes(png[16:20], "big")
    tag = (
        f'<img alt="{escape(about)}" width="{width}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )
    tag = f'<div class="wide">{tag}</div>' if wide else tag
    return f"<figure>{tag}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"


def format_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table that is scrolled where it is too wide; floats with four digits."""

    def cell(value: object) -> str:
        return escape(f"{value:.4f}" if isinstance(value, float) else str(value))

    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>\n" for row in rows)
    return (
        '<div class="wide"><table><thead><tr>'
        + "".join(f"<th>{escape(h)}</th>" for h in head)
        + f"</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def format_legend(what: str, legend: list[tuple[str, str]]) -> list[str]:
    """The table of (number, name) for what pictures show as a number; nothing where they have all names."""
    return [format_table(["in the pictures", what], legend)] if legend else []


def format_tiles(values: Iterable[tuple[str, str]]) -> str:
    """Figures to be seen first: (figure, what it is)."""
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{escape(v)}</b><span>{escape(n)}</span></div>" for v, n in values)
        + "</div>"
    )


def format_grid(parts: Iterable[str]) -> str:
    """Things beside one another where there is room."""
    return '<div class="grid">' + "\n".join(parts) + "</div>"


def format_details(summary: str, text: str) -> str:
    """Plain text that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
