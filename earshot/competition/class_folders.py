"""The layout in which a clip's label is the name of its folder."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from earshot.competition import codes, copies, file_lists, noise_clips, sources, suspicious
from earshot.competition.file_index import Files
from earshot.competition.layout import Layout, build_table
from earshot.competition.names import find_side, list_words
from earshot.competition.reading import Reading, build_mapper
from earshot.competition.split_words import FILLER_WORDS, SPLIT_WORDS
from earshot.competition.tables import Tables, get_role
from earshot.competition.with_sample import build_requested_rows, find_requested_files, read_sample
from earshot.core.file_names import decodable, first_few, suffix_of


def find_split(name: str) -> str | None:
    """The split that a folder is named after (test, audio_test, ...); None for a class such as train_horn."""
    name_words = list_words(name)
    splits = {SPLIT_WORDS[w] for w in name_words if w in SPLIT_WORDS}
    return (
        splits.pop()
        if len(splits) == 1 and all(w in SPLIT_WORDS or w in FILLER_WORDS for w in name_words)
        else None
    )


Parts = dict[str, tuple[str, ...]]


def strip_common_prefix(parts: Parts) -> Parts:
    """Folder parts of each file, less the leading folders that all (but loose files) share."""
    while len({p[0] for p in parts.values() if p}) == 1 and any(len(p) > 1 for p in parts.values()):
        parts = {path: p[1:] for path, p in parts.items()}
    return parts


def recognise_class_folders(
    files: Files, tables: Tables, sample: str | None, reading: Reading
) -> Layout | None:
    """Two or more class folders, below train/, test/, valid/ or not; None if the folders do not look so.

    The sample submission, where there is one, says which clips are to be submitted. Where films lie beside
    the sounds in folders of their own, the sounds alone may look so.
    """
    layout = _read_class_folders(files, files.audio, tables, sample, reading)
    if layout is None:
        sounds = [path for path in files.audio if suffix_of(path) in decodable()]
        if len(sounds) < len(files.audio):
            layout = _read_class_folders(files, sounds, tables, sample, reading)
        if layout:
            films = set(files.audio) - set(sounds)
            layout.notes.append(f"not used: {len(films)} files beside the class folders: {first_few(films)}")
    if layout:
        layout.notes += files.describe_unused_files()
    return layout


def _group_by_split(audio: list[str]) -> dict[str | None, Parts]:
    """The folders of each file below its split's, by split."""
    by_split: dict[str | None, Parts] = {"train": {}, "test": {}, "valid": {}, None: {}}
    for path, parts in strip_common_prefix({p: tuple(p.split("/")[:-1]) for p in audio}).items():
        split = find_split(parts[0]) if parts else None
        by_split[split][path] = parts[1:] if split else parts
    plain, train = by_split[None], by_split["train"]
    if train and plain and not any(train.values()):  # "train", the vehicle, among other classes
        plain.update({path: ("train",) for path in train})
        train.clear()
    if len({parts[0] for parts in strip_common_prefix(train).values() if parts}) > 1:
        # test_a, private_test, unlabelled: what lies beside the folder of the classes is none of them
        for path, parts in list(plain.items()):
            if parts and find_side(parts[0]) == "subm":
                by_split["test"][path] = plain.pop(path)[1:]
            elif len(parts) == 1:
                plain[path] = ()
    return by_split


def _read_class_folders(
    files: Files, audio: list[str], tables: Tables, sample: str | None, reading: Reading
) -> Layout | None:
    noise = [path for path in audio if noise_clips.is_noise(path)]
    if len({path.rpartition("/")[0] for path in audio}) > len({path.rpartition("/")[0] for path in noise}):
        left_out = set(noise)
        audio = [path for path in audio if path not in left_out]
    else:
        noise = []
    double = copies.find_duplicates(files, audio)
    left_out = set(double.left_out)
    audio = [path for path in audio if path not in left_out]

    layout = Layout("folder per class", build_table([], [], "train"), "fname", "label")
    layout.renamed = build_mapper(reading.label_map) if reading.label_map else None
    layout.notes += double.notes
    by_split = _group_by_split(audio)
    rows: dict[str, dict[str, str | None]] = {"train": {}, "test": {}, "subm": {}}
    loose: list[str] = []
    for split, parts in by_split.items():
        for path, below in strip_common_prefix(parts).items():
            if len(below) > 1:
                return None
            if below:
                rows["test" if split == "test" else "train"][path] = below[0].strip()
            elif split == "test":
                rows["subm"][path] = None
            else:
                loose.append(path)
    classes = set(rows["train"].values())
    held = set(rows["test"].values())
    if len(held) == 1 and not held & classes and not rows["subm"]:  # test/audio/: a folder, no class
        rows["subm"], rows["test"] = dict.fromkeys(rows["test"]), {}
    requested = read_sample(tables, sample, reading.id_column) if sample else None
    if requested is not None:  # what it asks for is no hold-out, whatever folder it lies in
        named = find_requested_files(files, requested)
        rows = {
            split: {p: label for p, label in part.items() if p not in named} for split, part in rows.items()
        }
        loose = [path for path in loose if path not in named]
    if len(set(rows["train"].values())) < 2:
        return None
    if not reading.label_map and (
        coded := codes.find_label_codes(tables, requested, map(str, rows["train"].values()))
    ):
        layout.renamed, line = coded
        layout.notes.append(line)
    layout.missing += [("train", path, "not in a class folder") for path in loose]
    for split in ("train", "test"):
        settled = dict(zip(rows[split], layout.unify_spellings(list(rows[split].values())), strict=True))
        empty = [path for path, label in settled.items() if not label]  # zero width, or left out by a map
        layout.missing += [(split, path, "empty label") for path in empty]
        rows[split] = {path: label for path, label in settled.items() if label}
    if by_split["valid"]:
        layout.notes.append(f"{len(by_split['valid'])} files of the validation folder count as train")
    if noise:
        folders = sorted({path.rpartition("/")[0] for path in noise})
        hint = "" if reading.noise_class else " (--noise-class silence makes a class of it)"
        layout.notes.append(f"left out: {len(noise)} files in {first_few(folders)}{hint}")
    lists, used = file_lists.find_held_out(files)
    if lists & set(rows["train"]):
        if requested is None and not rows["subm"] and not rows["test"]:
            rows["test"] = {path: label for path, label in rows["train"].items() if path in lists}
            rows["train"] = {path: label for path, label in rows["train"].items() if path not in lists}
            layout.notes.append(f"hold-out by {file_lists.format_names(used)}: {len(rows['test'])} clips")
        else:
            layout.notes.append(
                f"the clips of {file_lists.format_names(used)} count as train: there are others to submit"
            )
    strange = {label for label in rows["test"].values() if label not in set(rows["train"].values())}
    if strange:
        known = {str(label) for label in rows["train"].values()}
        odd = {path: label for path, label in rows["test"].items() if label in strange}
        rows["test"] = {path: label for path, label in rows["test"].items() if path not in odd}
        layout.missing += [("test", path, "its folder is no class of the training clips") for path in odd]
        layout.notes += suspicious.warn_unknown_test_classes(
            known, {str(label) for label in strange}, left_out=True
        )
    clips = []
    for split, part in rows.items():
        paths = sorted(part)
        names = Counter(p.rpartition("/")[2] for p in paths)
        ids = [p.rpartition("/")[2] if names[p.rpartition("/")[2]] == 1 else p for p in paths]
        clips.append(build_table(ids, [files.to_absolute(p) for p in paths], split, [part[p] for p in paths]))
    both = sources.group_all_clips(files, clips[:2], layout, reading)
    train, clips[1] = both[both["split"] == "train"], both[both["split"] == "test"]
    layout.notes += suspicious.warn_class_folders(
        [files.to_relative(path) for path in train["path"]], list(train["label"])
    )
    if reading.noise_class:
        silence = noise_clips.cut_noise_clips(files, noise, train, reading.noise_class, layout)
        train = pd.concat([train, silence], ignore_index=True)
    clips[0] = train
    if requested is not None:
        tests = [
            tables.read_table(path) for path in tables.paths if path != sample and get_role(path) == "test"
        ]
        clips[2:] = build_requested_rows(files, requested, train, layout, tests)
    layout.clips = pd.concat(clips, ignore_index=True)
    return layout
