"""Example clips to try: from the run's own competition, else from the built-in sample."""

from __future__ import annotations

import shutil
from pathlib import Path

import soundfile

from earshot.app.mistakes import find_files, list_labels
from earshot.app.upload_limits import UploadLimits
from earshot.audio.load import BadAudio
from earshot.competition import sample
from earshot.core.errors import UserError
from earshot.prediction.members import Member

MOST = 6
CANDIDATES = 60  # clips of the competition whose files are looked for: some may be gone or too large
LARGEST = 4_000_000  # bytes: an example loads at once


def list_examples(whole: Member, limits: UploadLimits, scratch: Path) -> list[tuple[str, Path]]:
    """(label, audio file) of clips of different classes; nothing is downloaded.

    Args:
        scratch: a folder for the files, below the system's temporary folder, from which gradio may serve. Not
            gradio's own, where files are deleted after an hour.
    Returns:
        copies of clips of the competition that the run was trained on, where their files still exist; else
        clips of the built-in sample.
    """
    limits = UploadLimits(limits.seconds, min(limits.size, LARGEST))
    return _pick_clips(whole, limits, scratch) or _generate_clips(limits, scratch)


def _pick_clips(whole: Member, limits: UploadLimits, scratch: Path) -> list[tuple[str, Path]]:
    try:
        oof = whole.read_oof()
    except UserError:
        return []
    labels: dict[str, str] = {}  # the first clip of each label, by id
    for id, row in zip(oof.ids, oof.labels, strict=True):
        labels.setdefault(", ".join(list_labels(whole.classes, row)) or "none", str(id))
        if len(labels) == CANDIDATES:
            break
    files = find_files(whole, labels.values())
    found: list[tuple[str, Path]] = []
    for label, id in labels.items():
        if id in files and len(found) < MOST and _is_accepted(files[id], limits):
            folder = scratch / f"example_{len(found)}"  # the file keeps its name, which an older run goes by
            folder.mkdir()
            found.append((label, Path(shutil.copyfile(files[id], folder / files[id].name))))
    return found


def _generate_clips(limits: UploadLimits, scratch: Path) -> list[tuple[str, Path]]:
    found = []
    for index, label in enumerate(list(sample.SOUNDS)[:MOST]):
        path = scratch / f"{label}.wav"
        soundfile.write(path, sample.make_clip(index, 0, 0), sample.RATE, subtype="PCM_16")
        if _is_accepted(path, limits):
            found.append((label, path))
    return found


def _is_accepted(path: Path, limits: UploadLimits) -> bool:
    try:
        limits.check(path)
    except (BadAudio, OSError):
        return False
    return True
