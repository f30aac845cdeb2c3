"""The misclassified clips with the largest loss, and their spectrograms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.audio import spectrogram
from earshot.audio.decode import BadAudio
from earshot.core import fonts, kinds
from earshot.core.errors import UserError
from earshot.features import clip_files
from earshot.report.results import Results

if TYPE_CHECKING:
    from PIL import Image

MOST = 12
WIDTH, HEIGHT = 400, 150  # pixels of a spectrogram


@dataclass(frozen=True)
class HardClip:
    """A clip: its true and its predicted labels with their probabilities, and its loss."""

    id: str
    fold: int
    truth: str
    predicted: str
    loss: float


def find_hardest(results: Results, most: int = MOST) -> list[HardClip]:
    """The wrong clips with the largest loss, the worst first; for multi-label the loss is the mean over
    labels."""
    p = np.clip(results.probabilities, 1e-15, 1 - 1e-15)
    if results.multilabel:
        loss = -np.where(results.labels == 1, np.log(p), np.log1p(-p)).mean(1)
        wrong = (results.predicted != results.labels).any(1)
    else:
        loss = -np.log(p[np.arange(len(p)), results.labels])
        wrong = results.predicted != results.labels
    order = np.argsort(-np.where(wrong, loss, -1), kind="stable")[:most]
    return [
        HardClip(str(results.ids[i]), int(results.folds[i]), *_describe_labels(results, i), float(loss[i]))
        for i in order
        if wrong[i]
    ]


def _describe_labels(results: Results, clip: int) -> tuple[str, str]:
    """The clip's true labels and its predicted ones, each with its probability."""

    def named(which: np.ndarray) -> str:
        return (
            ", ".join(f"{results.classes[c]} {results.probabilities[clip, c]:.2f}" for c in which) or "none"
        )

    if results.multilabel:
        return named(np.flatnonzero(results.labels[clip])), named(np.flatnonzero(results.predicted[clip]))
    return named(results.labels[[clip]]), named(results.predicted[[clip]])


def draw_clips(results: Results, clips: list[HardClip]) -> dict[str, Image.Image]:
    """Spectrograms by clip id: from a cached spectrogram, else from the audio; clips with neither are left
    out."""
    named = make_titles(clips)
    folders = results.find_caches() if clips else []
    drawn: dict[str, Image.Image] = {}
    for folder in folders:
        drawn |= _draw_from_cache(folder, {clip.id: named[clip.id] for clip in clips if clip.id not in drawn})
    found: dict[str, Path] = {}
    for folder in {folder.parent: folder for folder in folders}.values():  # one index a competition
        found |= clip_files.find_audio(folder, [clip.id for clip in clips if clip.id not in drawn])
    for clip in clips:
        if clip.id in found:
            try:
                drawn[clip.id] = clip_files.draw_spectrogram(found[clip.id], named[clip.id], WIDTH, HEIGHT)
            except BadAudio:
                pass  # changed since it was extracted; its row is shown without a picture
    return drawn


def make_titles(clips: list[HardClip]) -> dict[str, str]:
    """A title for each clip id: the id, or a number where no installed font can draw it."""
    ids = [clip.id for clip in clips]
    return dict(zip(ids, fonts.list_shown_names(ids), strict=True))


def _draw_from_cache(folder: Path, titles: dict[str, str]) -> dict[str, Image.Image]:
    from earshot.features.cache import Cache

    try:
        cache = Cache(folder)
        view = kinds.choose(["spectrogram"], cache.kinds)
        unit = _find_decibel_unit(cache.record["settings"]) if view else None
        split = cache.split("train") if unit else {}
    except UserError:  # gone or replaced by now: the report does without
        return {}
    if not unit or not view:
        return {}
    settings, drawn = cache.record["settings"], {}
    high = settings.get("fmax") or settings["rate"] / 2
    place = {str(id): index for index, id in enumerate(split["ids"])}
    for id, name in titles.items():
        rows = np.flatnonzero(split["clip"] == place.get(id, -1))
        if not len(rows):
            continue
        levels, (start, length) = (
            np.asarray(split[view][rows[0], 0], dtype=np.float32),
            (split[k][rows[0]] for k in ("start", "length")),
        )
        span = float(cache.manifest["span"])
        real = max(1, min(levels.shape[1], round(levels.shape[1] * float(length) / span)))
        title = name if len(rows) == 1 else f"{name}  (first of {len(rows)} windows)"
        shown = unit * (levels[:, :real] - levels[:, :real].max())
        drawn[id] = spectrogram.draw_picture(
            shown,
            span * real / levels.shape[1],
            settings["fmin"],
            high,
            title,
            settings["scale"],
            float(start),
            WIDTH,
            HEIGHT,
        )
    return drawn


def _find_decibel_unit(settings: dict[str, Any]) -> float | None:
    """The factor from a spectrogram's unit to dB; None where its settings do not determine it."""
    known = settings.get("level") in ("db", "log") and settings.get("scale") in ("htk", "slaney")
    if not known or settings.get("standardise") or not (settings.get("fmax") or settings.get("rate")):
        return None
    return 1.0 if settings["level"] == "db" else 20 / settings.get("power", 2.0) / np.log(10)


def paste_sheet(drawn: list[Image.Image]) -> Image.Image | None:
    """The pictures as one, three in a row; None if there are none."""
    from PIL import Image

    if not drawn:
        return None
    columns = min(3, len(drawn))
    width, height = (max(one.size[axis] for one in drawn) for axis in (0, 1))
    made = Image.new("P", (columns * width, -(-len(drawn) // columns) * height), spectrogram.WHITE)
    made.putpalette(drawn[0].getpalette())
    for index, one in enumerate(drawn):
        made.paste(one, (index % columns * width, index // columns * height))
    return made
