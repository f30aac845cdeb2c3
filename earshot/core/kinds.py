"""The six kinds of views. Heads, the bake-off, the doctor, the page and reports match kinds, never names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

Kind = Literal["vector", "sequence", "grid", "spectrogram", "waveform", "codes"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LAYOUT: dict[Kind, str] = {
    "vector": "(D, 1, 1)",
    "sequence": "(D, 1, T)",
    "grid": "(D, F, T)",
    "spectrogram": "(1, F, T), logarithmic",
    "waveform": "(1, 1, N)",
    "codes": "(n, 1, T), whole numbers",
}
# views of caches without kinds; `frames` are a sequence for AST and a grid for EfficientAT
NAMED: dict[str, Kind] = {
    "pooled": "vector",
    "latents": "sequence",
    "tokens": "grid",
    "mel": "spectrogram",
    "fbank": "spectrogram",
    "wave": "waveform",
    "codes": "codes",
}


def derive(view: str, shape: Sequence[int]) -> Kind:
    """The kind of a view in a cache that declares none: by its name if known, else by its shape."""
    if view in NAMED:
        return NAMED[view]
    channels, bands, frames = shape
    if bands == 1 and frames == 1:
        return "vector"
    if bands == 1:
        return "waveform" if channels == 1 else "sequence"
    return "spectrogram" if channels == 1 else "grid"


def fits(kind: Kind, shape: Sequence[int], integers: bool) -> bool:
    """Can a view (D, F, T) be of this kind? `integers`: does it hold whole numbers?"""
    channels, bands, frames = shape
    if integers != (kind == "codes"):
        return False
    if kind in ("spectrogram", "waveform") and channels != 1:
        return False
    if kind == "vector" and frames != 1:
        return False
    return bands == 1 or kind in ("grid", "spectrogram")


def choose(wanted: Iterable[str], kinds: Mapping[str, str]) -> str | None:
    """The first view, in the order of `kinds` (view -> kind), of the first wanted kind present; else None."""
    for kind in wanted:
        for view, its in kinds.items():
            if its == kind:
                return view
    return None
