"""Small competitions on disk, in any layout, and what `competition.load` makes of them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from earshot.competition.load import load
from earshot.core.errors import UserError


def audio(path: Path, hz: int = 440) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(hz * np.arange(800) / 8000), 8000)
    return path


def files(root: Path, *names: str) -> None:
    for hz, name in enumerate(names):
        audio(root / name, 200 + 7 * hz)


def csv(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(" ", "\n") + "\n", encoding="utf-8")
    return path


def rows(comp, split: str) -> list[tuple]:
    part = comp.clips[comp.clips["split"] == split]
    root = f"{comp.root}/"
    return [(r.id, r.path.removeprefix(root), r.label) for r in part.itertuples()]


def refused(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(*args, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line
