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
from earshot.core.file_names import format_ids, get_suffix, list_decodable


def find_split(name: str) -> str | None:
    """The split that a folder is named after (test, audio_test, ...); None for a class such as train_horn."""
    words = list_words(name)
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if len(splits) != 1 or not all(word in SPLIT_WORDS or word in FILLER_WORDS for word in words):
        return None
    return splits.pop()


Parts = dict[str, tuple[str, ...]]  # the folders of each file
Rows = dict[str, dict[str, str | None]]  # the label of each file, by split


def strip_common_prefix(parts: Parts) -> Parts:
    """Folder parts of each file without the leading folders that all files share, loose files aside."""
    while len({folders[0] for folders in parts.values() if folders}) == 1:
        if not any(len(folders) > 1 for folders in parts.values()):
            break  # the last folder may be the label
        parts = {path: folders[1:] for path, folders in parts.items()}
    return parts


def recognise_class_folders(
    files: Files, tables: Tables, sample: str | None, reading: Reading
) -> Layout | None:
    """The layout of two or more class folders, below train/, test/ and valid/ or not; None if it is another.

    The sample submission, where there is one, decides which clips are submitted. Where videos lie in folders
    of their own beside the audio, the audio alone may have this layout.
    """
    layout = _read_class_folders(files, files.audio, tables, sample, reading)
    if layout is None:
        sounds = [path for path in files.audio if get_suffix(path) in list_decodable()]
        if len(sounds) < len(files.audio):
            layout = _read_class_folders(files, sounds, tables, sample, reading)
        if layout:
            films = set(files.audio) - set(sounds)
            layout.notes.append(f"not used: {len(films)} files beside the class folders: {format_ids(films)}")
    if layout:
        layout.notes += files.describe_unused_files()
    return layout


def _group_by_split(audio: list[str]) -> dict[str | None, Parts]:
    """The folders of each file below its split's, by split."""
    by_split: dict[str | None, Parts] = {"train": {}, "test": {}, "valid": {}, None: {}}
    all_folders = {path: tuple(path.split("/")[:-1]) for path in audio}
    for path, folders in strip_common_prefix(all_folders).items():
        split = find_split(folders[0]) if folders else None
        by_split[split][path] = folders[1:] if split else folders
    plain, train = by_split[None], by_split["train"]
    if train and plain and not any(train.values()):  # "train", the vehicle, among other classes
        plain.update({path: ("train",) for path in train})
        train.clear()
    if len({folders[0] for folders in strip_common_prefix(train).values() if folders}) > 1:
        # test_a, private_test, unlabelled: folders beside the folder of the classes are not classes
        for path, folders in list(plain.items()):
            if folders and find_side(folders[0]) == "subm":
                by_split["test"][path] = plain.pop(path)[1:]
            elif len(folders) == 1:
                plain[path] = ()
    return by_split


def _label_by_folder(by_split: dict[str | None, Parts]) -> tuple[Rows, list[str]] | None:
    """The label of each file, and the files beside the class folders; None if class folders have
    subfolders."""
    rows: Rows = {"train": {}, "test": {}, "subm": {}}
    loose: list[str] = []
    for split, parts in by_split.items():
        for path, folders in strip_common_prefix(parts).items():
            if len(folders) > 1:
                return None
            if folders:
                rows["test" if split == "test" else "train"][path] = folders[0].strip()
            elif split == "test":
                rows["subm"][path] = None
            else:
                loose.append(path)
    held_out = set(rows["test"].values())
    if len(held_out) == 1 and not held_out & set(rows["train"].values()) and not rows["subm"]:
        rows["subm"], rows["test"] = dict.fromkeys(rows["test"]), {}  # test/audio/: a folder, no class
    return rows, loose


def _hold_out_listed_clips(files: Files, rows: Rows, layout: Layout, has_sample: bool) -> None:
    """Move the training clips that a list such as testing_list.txt names to the hold-out, unless there are
    other clips to submit."""
    listed, used = file_lists.find_held_out(files)
    if not listed & set(rows["train"]):
        return
    names = file_lists.format_names(used)
    if has_sample or rows["subm"] or rows["test"]:
        layout.notes.append(f"the clips of {names} count as train: there are others to submit")
        return
    train = rows["train"]
    rows["test"] = {path: label for path, label in train.items() if path in listed}
    rows["train"] = {path: label for path, label in train.items() if path not in listed}
    layout.notes.append(f"hold-out by {names}: {len(rows['test'])} clips")


def _drop_unknown_classes(rows: Rows, layout: Layout) -> None:
    """Leave out the hold-out's clips whose class no training clip has."""
    known = {str(label) for label in rows["train"].values()}
    odd = {path: str(label) for path, label in rows["test"].items() if label not in known}
    if odd:
        rows["test"] = {path: label for path, label in rows["test"].items() if path not in odd}
        layout.missing += [("test", path, "its folder is no class of the training clips") for path in odd]
        layout.notes += suspicious.warn_unknown_test_classes(known, set(odd.values()), left_out=True)


def _build_split(files: Files, split: str, label_of: dict[str, str | None]) -> pd.DataFrame:
    """The clips of a split, whose ids are their file names where these are unique, else their paths."""
    paths = sorted(label_of)
    names = [path.rpartition("/")[2] for path in paths]
    counts = Counter(names)
    ids = [name if counts[name] == 1 else path for path, name in zip(paths, names, strict=True)]
    absolute = [files.to_absolute(path) for path in paths]
    return build_table(ids, absolute, split, [label_of[path] for path in paths])


def _read_class_folders(
    files: Files, audio: list[str], tables: Tables, sample: str | None, reading: Reading
) -> Layout | None:
    noise = [path for path in audio if noise_clips.is_noise(path)]
    folders = {path.rpartition("/")[0] for path in audio}
    noise_folders = {path.rpartition("/")[0] for path in noise}
    if len(folders) > len(noise_folders):
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
    labelled = _label_by_folder(by_split)
    if labelled is None:
        return None
    rows, loose = labelled
    requested = read_sample(tables, sample, reading.id_column) if sample else None
    if requested is not None:  # its clips are not a hold-out, whatever folder they are in
        named = find_requested_files(files, requested)
        for split, label_of in rows.items():
            rows[split] = {path: label for path, label in label_of.items() if path not in named}
        loose = [path for path in loose if path not in named]
    if len(set(rows["train"].values())) < 2:
        return None
    if not reading.label_map:
        coded = codes.find_label_codes(tables, requested, map(str, rows["train"].values()))
        if coded:
            layout.renamed, line = coded
            layout.notes.append(line)
    layout.missing += [("train", path, "not in a class folder") for path in loose]
    for split in ("train", "test"):
        labels = layout.unify_spellings(list(rows[split].values()))
        settled = list(zip(rows[split], labels, strict=True))
        # empty: of zero width, or left out by a map
        layout.missing += [(split, path, "empty label") for path, label in settled if not label]
        rows[split] = {path: label for path, label in settled if label}
    if by_split["valid"]:
        layout.notes.append(f"{len(by_split['valid'])} files of the validation folder count as train")
    if noise:
        hint = "" if reading.noise_class else " (--noise-class silence makes a class of it)"
        layout.notes.append(f"left out: {len(noise)} files in {format_ids(sorted(noise_folders))}{hint}")
    _hold_out_listed_clips(files, rows, layout, has_sample=requested is not None)
    _drop_unknown_classes(rows, layout)
    clips = [_build_split(files, split, label_of) for split, label_of in rows.items()]
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
        test_paths = [path for path in tables.paths if path != sample and get_role(path) == "test"]
        tests = [tables.read_table(path) for path in test_paths]
        clips[2:] = build_requested_rows(files, requested, train, layout, tests)
    layout.clips = pd.concat(clips, ignore_index=True)
    return layout
