"""What to classify: any known layout of a competition's files becomes one table of clips."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from earshot.competition import (
    archive_names,
    inner_archives,
    layouts,
    placeholder,
    sample,
    sample_answers,
    tar_file,
    zip_file,
)
from earshot.competition.file_index import walk_folder
from earshot.competition.labels import as_tuple
from earshot.competition.layout import TRAIN_ONLY
from earshot.competition.reading import Reading
from earshot.core import csv_table, spelling
from earshot.core.csv_table import shown, some
from earshot.core.errors import TemporaryError, UserError
from earshot.core.file_names import is_audio, text_of
from earshot.core.files import locked


@dataclass
class Competition:
    """A competition's clips and names; what every later stage starts from.

    `clips` has a row a clip, train before test before subm, each in the csv's order (folders: by path):
        id: text as the csv has it, unique within its split.
        path: absolute, as it is opened; "" for a clip to be scored or submitted without a file.
        label: text, a tuple of any number of texts where multi-label; None where it is to be predicted.
        split: "train", "test" (labelled hold-out) or "subm" (to be submitted).
        fold: the data's own fold, -1 unknown.
        group: clips of one group belong on the same side of a split; "" unknown.
        start, end: seconds of the file that the clip is; NaN where it is the whole file. Such clips follow
            recording by recording.
        weight: what the clip counts in the training loss, 1 unless its source counts less.
    """

    name: str
    root: Path
    layout: str  # "Kaggle csv", "ESC", "folder per class" or "sample"
    clips: pd.DataFrame
    classes: list[str]
    sample_submission: Path | None
    id_column: str
    label_column: str
    missing: list[tuple[str, str, str]]  # (split, id, reason)
    notes: list[str]
    solution: Path | None
    multilabel: bool = False
    # between a cell's labels, as the train csv writes them; None: 0/1 columns, or single-label
    separator: str | None = None
    metric: str | None = None  # the contest's own, where it is known


def load(
    path,
    *,
    train_csv=None,
    id_column=None,
    label_column=None,
    task="auto",
    holdout=None,
    out="data",
    seed=0,
    **reading,
) -> Competition:
    """Recognise a competition's folder or zip, or build the sample competition.

    Args:
        path: a folder, a zip or tar (unpacked below `out`, as are those in a folder), or "sample".
        train_csv, id_column, label_column: override what is found; train_csv may be several.
        reading: what else overrules, by the names of `Reading`'s fields.
        task: "single" or "multilabel": has a clip one label or several; "auto": as the csv looks.
        holdout: a fraction in (0, 1) of the labelled clips, or one of the data's own folds: these become
            "test".
        out: the folder of the outputs.
        seed: of the hold-out's draw.
    Raises:
        UserError: whatever the user can mend, in one line.
    """
    unpacked: list[str] = []
    if str(path) == "sample":
        with locked(Path(out) / "sample", "the sample competition", wait=True):
            root = sample.build_sample(Path(out) / "sample")
        name = "sample"
    else:
        root, name = Path(os.path.abspath(path)), get_name(path)
        if not root.exists():
            if zip_file.find_mirrored(Path(out) / name / "unpacked") == root:
                raise TemporaryError(f"{path} is not there, and was when its archives were unpacked")
            raise UserError(
                f"no competition at {path}: give its folder, its zip, or sample for the built-in one"
            )
        if root.is_file():
            if archive_names.is_unreadable_archive(root.name):
                raise UserError(f"Earshot cannot read {archive_names.format_unpack_hint([str(path)])}")
            if not archive_names.is_zip(root.name) and not archive_names.is_tar(root.name):
                raise UserError(f"{path} is a file but no zip: give the competition's folder or its zip")
            kind = zip_file if archive_names.is_zip(root.name) else tar_file
            root = kind.unpack_archive(root, Path(out) / name / "unpacked")
        elif (root / "unpacked" / zip_file.MARKER).is_file():  # an earlier run unpacked a zip here
            root = inner_archives.find_original_folder(root / "unpacked")
        root, unpacked = inner_archives.open_folder(root, Path(out) / name)
    root = Path(os.path.abspath(root))
    more: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in reading.items()}
    csvs = (train_csv,) if isinstance(train_csv, (str, os.PathLike)) else tuple(train_csv or ())
    found = layouts.recognise_layout(
        root,
        Reading(
            tuple(map(str, csvs)),
            id_column=id_column,
            label_column=label_column,
            task=task or "auto",
            place=str(path),
            **more,
        ),
    )
    several = found.written is not None and found.written.multilabel
    clips = found.clips
    if holdout is not None:
        clips = hold_out(clips, str(holdout), seed)
        if gone := len(found.clips) - len(clips):
            found.notes.append(f"{gone} clips of --extra-csv share a group with the hold-out: not trained on")
    shared = find_straddling_groups(clips)
    if shared and holdout is not None:
        raise UserError(
            f"--holdout {holdout} would part {len(shared)} groups (first: {shared[0]}), so that clips of one "
            "source were trained on and scored: give a fraction, which keeps groups whole"
        )
    own = found.written.classes if several and found.renamed is None else None
    known = set(own or ()) | collect_classes(clips["label"])
    asked = [c for c in found.asked if c not in known]
    # A probability column per class, most of them known: a class without a clip gets a column as well, though
    # no model can learn it.
    known |= set(asked) if 2 * len(asked) < len(found.asked) else set()
    classes = sort_classes(known)
    heard = collect_classes(clips["label"][clips["split"] == "train"])
    if len(heard) < 2 and not several:
        classes = sorted(heard)
    if not classes:
        raise UserError(
            f"no training clip of {root} has a label left: does --label-map leave all of them out?"
        )
    if len(classes) < 2:
        raise UserError(f"all training clips of {root} have the label {classes[0]}: nothing to tell apart")

    is_sample = sample.is_complete(root)
    layout = "sample" if is_sample else found.layout
    notes = [
        f"layout: {layout}",
        *unpacked,
        *found.notes,
        *(["task: multi-label"] if several else []),
        *format_counts(clips, found.missing),
    ]
    if (clips["split"] == "subm").sum() == 0:
        notes.append("nothing to submit: no sample submission, test csv or test folder")
    untrained = [c for c in classes if c not in heard]
    if untrained:
        left = sorted(set(heard) - set(found.asked))
        notes.append(
            f"warning: no training clip has the label {some(untrained, 5)}: the model cannot learn it"
            f"{sample_answers.suggest_label(untrained[0], left)}"
        )
    unasked = [c for c in classes if c not in found.asked]
    if found.asked and unasked and len(unasked) < len(classes):
        notes.append(
            f"warning: the sample submission has no column for the label {some(unasked, 5)}: it is trained, "
            "and not submitted"
        )
    notes += warn_odd_labels(classes) + describe_spellings(found)
    if found.sample is not None and found.sample_submission:
        notes += sample_answers.check_sample(
            found.sample, found.sample_submission.name, found.id_column, classes, heard, several
        )
    if shared:
        notes.append(
            f"warning: {len(shared)} groups (first: {shared[0]}) have clips in train and in test: the test "
            "scores are optimistic"
        )
    if found.example is not None:
        asked = list(clips["id"][clips["split"] == "subm"])
        found.sample_submission = placeholder.write_sample(
            Path(out) / name / ".sample_submission.csv",
            list(csv_table.read(found.sample_submission).columns),
            found.id_column,
            asked,
            found.example,
        )
    elif found.sample_submission:
        notes.append(f"submission as in {found.sample_submission.name}")
    return Competition(
        name,
        root,
        layout,
        clips,
        classes,
        found.sample_submission,
        found.id_column,
        found.label_column,
        found.missing,
        list(map(text_of, notes)),
        root / "solution.csv" if is_sample else None,
        several,
        found.written.separator if several else None,
        found.metric,
    )


def get_name(path: Path | str) -> str:
    """What the competition at a path is called: its folder's name, or its zip's without the suffix."""
    root = Path(os.path.abspath(path))
    packed = archive_names.is_zip(root.name) or archive_names.is_tar(root.name)
    return text_of(
        archive_names.strip_archive_suffix(root.name) if packed and not root.is_dir() else root.name
    )


def warn_odd_labels(classes: list[str]) -> list[str]:
    """Warnings on labels that may not be meant so: the words for "missing" of other programs, and labels that
    look alike."""
    lines = [
        f"warning: {name} is read as a label of its own: leave the cell empty if it means none"
        for name in classes
        if name.lower() in ("nan", "na", "n/a", "<na>", "null", "none", "#n/a")
    ]
    lines += [
        f"warning: the label {name!r} holds {', '.join(hidden)}, which nobody sees: take it out if it is not "
        "meant"
        for name in classes
        if (hidden := spelling.unseen(name))
    ]
    return lines + [
        f"warning: {some(spelling.apart(*names), 3)} are different labels to the letter: if they mean one, "
        "spell them alike"
        for names in spelling.alike(classes, spelling.loose)
    ]


def describe_spellings(found: layouts.Layout) -> list[str]:
    """A line on the labels that were found in more than one spelling."""
    pairs = [
        " as ".join(spelling.apart(other, found.spelled[spelling.key(other)]))
        for other in sorted(found.other_spellings)
    ]
    more = f" ... ({len(pairs)} in all)" if len(pairs) > 3 else ""
    return [f"one label in several spellings, read as one: {'; '.join(pairs[:3])}{more}"] if pairs else []


def find_competitions(out="data") -> list[Path]:
    """The subfolders of `out`, sorted, that hold a competition's own audio (so not the sample, not caches
    alone)."""
    out = Path(out)
    if not out.is_dir():
        return []
    folders = sorted(
        p for p in out.iterdir() if p.is_dir() and p.name != "sample" and not p.name.startswith(".")
    )
    return [
        p
        for p in folders
        if zip_file.find_mirrored(p / "unpacked")
        or any(any(map(is_audio, names)) for _, names in walk_folder(p))
    ]


def find_straddling_groups(clips: pd.DataFrame) -> list[str]:
    """The groups that have labelled clips on both sides, train and test."""
    named = clips[clips["group"] != ""]
    return sorted(
        set(named["group"][named["split"] == "train"]) & set(named["group"][named["split"] == "test"])
    )


def collect_classes(column: pd.Series) -> set[str]:
    """The labels that occur in a column of the clips."""
    return {label for value in column.dropna().unique() for label in as_tuple(value)}


def sort_classes(labels) -> list[str]:
    """Labels in order: numerically if all are whole numbers, else by text."""
    labels = [str(label) for label in labels]
    whole = all(re.fullmatch(r"[+-]?\d+", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label), label)) if whole else sorted(labels)


def format_counts(clips: pd.DataFrame, missing: list[tuple[str, str, str]]) -> list[str]:
    """One line per split, and one on what is missing, for the user to see what was read."""
    lines = []
    for split in ("train", "test", "subm"):
        part = clips[clips["split"] == split]
        if len(part):
            facts = [f"{len(part)} clips"]
            facts += [f"{len(collect_classes(part['label']))} classes"] if part["label"].notna().any() else []
            several = [len(label) for label in part["label"] if isinstance(label, tuple)]
            facts += [f"{np.mean(several):.2f} labels a clip"] if several else []
            folds = sorted(int(f) for f in part["fold"].unique() if f >= 0)
            facts += [f"folds {', '.join(map(str, folds))}"] if folds else []
            groups = part["group"][part["group"] != ""].nunique()
            facts += [f"{groups} groups"] if groups else []
            lines.append(f"{split}: {', '.join(facts)}")
    for (split, reason), n in Counter((split, reason) for split, _, reason in missing).items():
        first = next(i for s, i, r in missing if (s, r) == (split, reason))
        lines.append(f"{split}: {n} without audio or label ({reason}), first {shown(first) or '(empty)'}")
    return lines


def hold_out(clips: pd.DataFrame, holdout: str, seed: int) -> pd.DataFrame:
    """Move labelled clips to the split "test": a fraction, or one of the data's own folds. Clips of their
    groups that are only to be trained on are left out.

    Raises:
        UserError: neither a fraction nor a fold of the data, or there is a labelled hold-out already.
    """
    try:
        value = float(holdout)
    except ValueError:
        value = -1.0
    if value < 0 or not (value < 1 or value.is_integer()):
        raise UserError(f"--holdout {holdout}: give a fraction between 0 and 1, or the number of a fold")
    if (clips["split"] == "test").any():
        raise UserError(
            f"--holdout {holdout}: the data brings {(clips['split'] == 'test').sum()} labelled clips to "
            "hold out already: leave --holdout away"
        )
    train = (clips["split"].eq("train") & clips["fold"].ne(TRAIN_ONLY)).to_numpy()
    if 0 < value < 1:
        chosen = draw_holdout(clips[train], value, seed)
    else:
        folds = sorted(int(f) for f in clips["fold"][train].unique() if f >= 0)
        if int(value) not in folds:
            known = f"folds {', '.join(map(str, folds))}" if folds else "no folds of its own"
            raise UserError(
                f"--holdout {holdout}: the data has {known}; give one of them, or a fraction such as 0.2"
            )
        chosen = clips["fold"][train].to_numpy() == value
    if not chosen.any() or chosen.all():
        raise UserError(
            f"--holdout {holdout} would hold out {chosen.sum()} of {len(chosen)} labelled clips: "
            "choose another size (classes and groups are kept whole)"
        )
    clips = clips.copy()
    split = clips["split"].to_numpy(dtype=object, copy=True)
    split[np.flatnonzero(train)[chosen]] = "test"
    clips["split"] = pd.Series(split, dtype=object)
    held = set(clips["group"][clips["split"] == "test"]) - {""}
    clips = clips[~(clips["fold"].eq(TRAIN_ONLY) & clips["group"].isin(held))].reset_index(drop=True)
    order = clips["split"].map({"train": 0, "test": 1, "subm": 2})
    return clips.iloc[np.argsort(order.to_numpy(), kind="stable")].reset_index(drop=True)


def draw_holdout(train: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """A stratified draw of whole groups: groups in a seeded order, each taken if it brings the classes closer
    to their share and leaves training clips of each.

    Returns:
        (clips,) bool, True where held out.
    """
    # A clip without group is a group of its own. (Not a zero: text ends there for pandas 2.2, which
    # Kaggle has, and all would be one.)
    alone = pd.Series([f"\1{i}" for i in train["id"]], index=train.index)
    groups, names = pd.factorize(train["group"].where(train["group"] != "", alone), sort=True)
    # clips without any label get their share, too
    labels = [as_tuple(label) or ("",) for label in train["label"]]
    classes = {
        label: index for index, label in enumerate(sorted({one for several in labels for one in several}))
    }
    per_group = np.zeros((len(names), len(classes)))
    for group, several in zip(groups, labels, strict=True):
        per_group[group, [classes[label] for label in several]] += 1
    total = per_group.sum(0)
    taken, held = np.zeros(len(names), dtype=bool), np.zeros(len(classes))
    for group in np.random.default_rng(seed).permutation(len(names)):
        more = held + per_group[group]
        closer = (
            np.square((more - fraction * total) / total).sum()
            < np.square((held - fraction * total) / total).sum()
        )
        if closer and ((more < total) | (per_group[group] == 0)).all():
            taken[group], held = True, more
    return taken[groups]
