"""The layout in which a clip's label is the name of its folder."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from earshot.competition.file_index import Files, words
from earshot.competition.layout import Layout, table
from earshot.core.file_names import decodable, first_few, suffix_of

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "subm": "test",
    "submission": "test",
    "eval": "test",
    "evaluation": "test",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
}
FILLER_WORDS = {"audio", "audios", "data", "set", "clips", "files", "wav", "wavs", "sounds"}


def folder_split(name: str) -> str | None:
    """The split that a folder is named after (test, audio_test, ...); None for a class such as train_horn."""
    found = words(name)
    splits = {SPLIT_WORDS[w] for w in found if w in SPLIT_WORDS}
    return (
        splits.pop()
        if len(splits) == 1 and all(w in SPLIT_WORDS or w in FILLER_WORDS for w in found)
        else None
    )


def without_common_head(parts: dict[str, tuple]) -> dict[str, tuple]:
    """Folder parts of each file, less the leading folders that all (but loose files) share."""
    while len({p[0] for p in parts.values() if p}) == 1 and any(len(p) > 1 for p in parts.values()):
        parts = {path: p[1:] for path, p in parts.items()}
    return parts


def folder_per_class(files: Files) -> Layout | None:
    """Two or more class folders, below train/, test/, valid/ or not; None if the folders do not look so.

    Where films lie beside the sounds in folders of their own, the sounds alone may look so.
    """
    found = _folder_per_class(files, files.audio)
    if found is None:
        sounds = [path for path in files.audio if suffix_of(path) in decodable()]
        found = _folder_per_class(files, sounds) if len(sounds) < len(files.audio) else None
        if found:
            films = set(files.audio) - set(sounds)
            found.notes.append(f"not used: {len(films)} files beside the class folders: {first_few(films)}")
    if found:
        found.notes += files.unused()
    return found


def _folder_per_class(files: Files, audio: list[str]) -> Layout | None:
    by_split = {"train": {}, "test": {}, "valid": {}, None: {}}
    for path, parts in without_common_head({p: tuple(p.split("/")[:-1]) for p in audio}).items():
        split = folder_split(parts[0]) if parts else None
        by_split[split][path] = parts[1:] if split else parts
    plain, train = by_split[None], by_split["train"]
    if train and plain and not any(train.values()):  # "train", the vehicle, among other classes
        plain.update({path: ("train",) for path in train})
        train.clear()

    found = Layout("folder per class", table([], [], "train"), "fname", "label")
    rows = {"train": {}, "test": {}, "subm": {}}
    for split, parts in by_split.items():
        for path, below in without_common_head(parts).items():
            if len(below) > 1:
                return None
            if below:
                rows["test" if split == "test" else "train"][path] = below[0].strip()
            elif split == "test":
                rows["subm"][path] = None
            else:
                found.missing.append(("train", path, "not in a class folder"))
    for split in ("train", "test"):
        rows[split] = dict(zip(rows[split], found.settle(list(rows[split].values())), strict=True))
        empty = [path for path, label in rows[split].items() if not label]  # nothing but zero width
        found.missing += [(split, path, "empty label") for path in empty]
        rows[split] = {path: label for path, label in rows[split].items() if label}
    if len(set(rows["train"].values())) < 2:
        return None
    if by_split["valid"]:
        found.notes.append(f"{len(by_split['valid'])} files of the validation folder count as train")
    clips = []
    for split, named in rows.items():
        paths = sorted(named)
        names = Counter(p.rpartition("/")[2] for p in paths)
        ids = [p.rpartition("/")[2] if names[p.rpartition("/")[2]] == 1 else p for p in paths]
        clips.append(table(ids, [files.absolute(p) for p in paths], split, [named[p] for p in paths]))
    found.clips = pd.concat(clips, ignore_index=True)
    return found
