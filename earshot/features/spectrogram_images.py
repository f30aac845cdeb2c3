"""get_features.py --pictures: every clip's mel spectrogram, Spectrogram/<class>/<clip>.png."""

from __future__ import annotations

import hashlib
import re
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from earshot.audio import spectrogram
from earshot.audio.decode import BadAudio
from earshot.competition.labels import as_tuple
from earshot.core import fonts
from earshot.core.file_names import is_audio, to_text
from earshot.core.files import clear_temporary, write_bytes
from earshot.features import clip_files

if TYPE_CHECKING:
    from earshot.competition.load import Competition
    from earshot.core.deadline import Deadline

FOLDER = "Spectrogram"
NUMBERS = "class_numbers.tsv"  # of classes whose names no installed font can draw
NONE = "_no label"
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def make_safe_name(name: str, taken: dict[str, str], whole: str | None = None) -> str:
    """A name for a file or folder that is valid on any system and not taken yet.

    Args:
        name: what it should look like. whole: what it stands for, where that says more than the name.
        taken: what was given so far, in one case -> what it stands for; gets the new one.
    """
    whole = name if whole is None else whole
    plain = re.sub(r"[^\w .+()&,'-]", "_", name).strip(" .")
    plain = plain.encode()[:100].decode(errors="ignore").strip(" .")
    if not plain or plain.startswith("-") or plain.split(".")[0].lower() in RESERVED:
        plain = f"_{plain}"
    if taken.get(plain.casefold(), whole) != whole:
        plain = f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    taken[plain.casefold()] = whole
    return plain


def list_pictures(competition: Competition, most: int) -> list[tuple[str, str, str]]:
    """What to draw: (file, class, name of the picture below Spectrogram/), by class; clips of several labels
    under each of them.

    Args:
        most: clips of each class, spread over its clips; 0: all.
    """
    clips = competition.clips[(competition.clips["split"] != "subm") & (competition.clips["path"] != "")]
    by_class: dict[str, list[tuple[str, str]]] = {label: [] for label in competition.classes}
    for id, path, label in zip(clips["id"], clips["path"], clips["label"], strict=True):
        for one in as_tuple(label) or (NONE,):
            by_class.setdefault(one, []).append((str(id), str(path)))
    folders: dict[str, str] = {}
    found = []
    for label, members in by_class.items():
        if not members:
            continue
        folder, names, count = make_safe_name(label, folders), {}, len(members)
        named = []
        for id, path in members:
            stem = id[: -len(Path(id).suffix)] if is_audio(id) else id
            named.append((path, f"{make_safe_name(stem, names, to_text(path))}.png"))
        chosen = (
            range(count)
            if not most or most >= count
            else sorted({index * count // most for index in range(most)})
        )
        found += [(named[index][0], label, f"{folder}/{named[index][1]}") for index in chosen]
    return found


def draw(competition: Competition, out: Path, most: int, workers: int, deadline: Deadline) -> bool:
    """Draw the missing pictures and print how many; False if the time ran out.

    Args:
        out: the folder that Spectrogram/ comes into. workers: threads that decode and draw.
    """
    from tqdm import tqdm

    folder, every = out / FOLDER, list_pictures(competition, most)
    if folder.is_dir():
        clear_temporary(folder)
    todo = [picture for picture in every if not (folder / picture[2]).exists()]
    for parent in sorted({(folder / name).parent for _, _, name in todo}):
        parent.mkdir(parents=True, exist_ok=True)
    began, bad, done = time.monotonic(), 0, 0
    classes = competition.classes
    shown = dict(zip(classes, fonts.list_shown_names(classes), strict=True))
    hidden = fonts.build_legend(classes)
    if hidden:  # a folder's name has only the letters that any system takes
        lines = "".join(f"{number}\t{label}\n" for number, label in hidden)
        write_bytes(folder / NUMBERS, f"number\tclass\n{lines}".encode())

    def draw_picture(path: str, label: str, name: str) -> bool:
        try:
            title = f"{shown.get(label, label)}  ·  {to_text(Path(path).name)}"
            image = clip_files.draw_spectrogram(Path(path), title)
        except BadAudio:
            return False
        write_bytes(folder / name, spectrogram.encode_png(image))
        return True

    bar = tqdm(
        total=len(todo), desc="pictures", unit="picture", leave=False, disable=None, dynamic_ncols=True
    )
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future] = deque()
        for job in todo:
            if deadline.is_over():
                break
            waiting.append(pool.submit(draw_picture, *job))
            if len(waiting) > 4 * workers:  # so that a deadline does not wait for thousands of them
                bad += not waiting.popleft().result()
                done += 1
                bar.update()
        for future in waiting:
            bad += not future.result()
            done += 1
    bar.close()
    rate = f", {done / max(time.monotonic() - began, 1e-3):.0f} a second" if done > 20 else ""
    left_out = f", {bad} unreadable" if bad else ""
    print(f"pictures: {folder}, {len(every) - len(todo)} were there, {done - bad} drawn{left_out}{rate}")
    unnamed = fonts.format_warning(classes, f"{folder / NUMBERS} has the names")
    if unnamed:
        print(unnamed)
    return done == len(todo)
