"""The audio files of a cache's clips, and their spectrograms."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from earshot.audio import decode, load, spectrogram
from earshot.core.file_names import list_readings
from earshot.features.source_files import INDEX, Sources

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

LONGEST = 60.0  # seconds that one picture shows


def find_audio(cache: Path, ids: Iterable[str]) -> dict[str, Path]:
    """The files of clips, by the index that get_features.py keeps beside the caches; only those that are
    there.

    The index has paths and a cache has ids, so they are matched by name: the whole id, else its stem. A name
    that two files have is left out.

    Args:
        cache: its folder, data/<competition>/<cache>.
    """
    known: dict[str, set[str]] = {}
    for path in Sources(cache.parent / INDEX).known:
        names = map(PurePosixPath, list_readings(path))
        for key in {key for file in names for key in (file.name, file.stem)}:
            known.setdefault(key, set()).add(path)
    found = {}
    for id in map(str, ids):
        name = PurePosixPath(id).name
        matching = known.get(name) or known.get(PurePosixPath(id).stem) or set()
        exact = {
            path for path in matching if any(one.endswith("/" + id) for one in list_readings(path))
        } or matching
        if len(exact) == 1 and Path(path := exact.pop()).is_file():
            found[id] = Path(path)
    return found


def read_start(path: Path) -> tuple[np.ndarray, int, float]:
    """The first minute of a file, its rate, and the seconds that it has in all; BadAudio where it cannot
    be read."""
    import numpy as np

    seconds, rate = load.read_info(path)
    if seconds <= LONGEST:
        wave, rate, *_ = load.read(path, None, load.AudioSettings())
        return wave, rate, len(wave) / rate
    rate, blocks = decode.read_blocks(path)
    parts, count = [], 0
    for block in blocks:
        parts.append(block.mean(axis=1, dtype=np.float32))
        count += len(block)
        if count >= LONGEST * rate:
            break
    wave = np.concatenate(parts)[: int(LONGEST * rate)]
    if not np.isfinite(wave).all() or float(np.ptp(wave)) < load.SILENCE:
        raise decode.BadAudio("NaN, infinite or silent")
    return wave, rate, seconds


def draw_spectrogram(path: Path, title: str, width: int = 640, height: int = 256) -> Image.Image:
    """A file's mel spectrogram; of a long one its first minute, which the title says. BadAudio where it
    cannot be read."""
    wave, rate, seconds = read_start(path)
    shown = len(wave) / rate
    more = "" if seconds <= shown + 0.01 else f"  (first {shown:.0f} s of {seconds:.0f})"
    return spectrogram.draw_picture(
        spectrogram.compute_mel(wave, rate), shown, 0, rate / 2, title + more, width=width, height=height
    )
