"""Load a competition: any known layout of its files becomes one table of clips."""

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
    label_suggestions,
    layouts,
    placeholder,
    sample,
    sample_shape,
    tar_file,
    zip_file,
)
from earshot.competition.file_index import walk_folder
from earshot.competition.holdout import find_straddling_groups, hold_out
from earshot.competition.labels import as_tuple
from earshot.competition.layout import Layout
from earshot.competition.reading import Reading
from earshot.core import csv_table, spelling
from earshot.core.csv_table import format_cell, format_list
from earshot.core.errors import TemporaryError, UserError
from earshot.core.file_names import is_audio, to_text
from earshot.core.files import hold_lock


@dataclass
class Competition:
    """A competition's clips and classes, the input of every later stage.

    `clips` has a row a clip, train before test before subm, each in the csv's order (folders: by path): id:
    text as the csv has it, unique within its split. path: absolute, as it is opened; "" for a clip without a
    file that is scored or submitted. label: text, a tuple of any number of texts where multi-label; None
    where it is to be predicted. split: "train", "test" (labelled hold-out) or "subm" (to be submitted). fold:
    the data's own fold, -1 unknown. group: clips of one group belong on the same side of a split; "" unknown.
    start, end: seconds of the file that the clip is; NaN where it is the whole file. Such clips are
            sorted by recording.
        weight: the clip's weight in the training loss, 1 unless its source counts less.
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
    metric: str | None = None  # the competition's own, where it is known

    @property
    def stretch(self) -> float | None:
        """Seconds of a row to submit, where rows are stretches of recordings; None where they are files."""
        return placeholder.find_stretch(self.clips, self.id_column)


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
        train_csv, id_column, label_column: override what is found; train_csv may be a list.
        reading: other overrides, the fields of `Reading`.
        task: "single" or "multilabel": one label a clip or several; "auto": by the csv.
        holdout: a fraction in (0, 1) of the labelled clips, or one of the data's own folds: these become
            "test".
        out: the folder of the outputs.
        seed: of the hold-out's draw.
    Raises:
        UserError: something the user can fix, in one line.
    """
    root, name, unpacked = _open_root(path, Path(out))
    more: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in reading.items()}
    csvs = (train_csv,) if isinstance(train_csv, (str, os.PathLike)) else tuple(train_csv or ())
    recognised = layouts.recognise_layout(
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
    is_multilabel = recognised.written is not None and recognised.written.multilabel
    clips = recognised.clips if holdout is None else _apply_holdout(recognised, str(holdout), seed)
    training_classes = collect_classes(clips["label"][clips["split"] == "train"])
    classes = _choose_classes(recognised, clips, training_classes, is_multilabel)
    _check_classes(classes, root)

    is_sample = sample.is_complete(root)
    layout = "sample" if is_sample else recognised.layout
    notes = [f"layout: {layout}", *unpacked, *recognised.notes]
    notes += ["task: multi-label"] if is_multilabel else []
    notes += format_counts(clips, recognised.missing)
    notes += _describe_submission(recognised, clips, classes, training_classes, is_multilabel)
    if recognised.example is not None:
        recognised.sample_submission = placeholder.write_sample(
            Path(out) / name / ".sample_submission.csv",
            list(csv_table.read(recognised.sample_submission).columns),
            recognised.id_column,
            list(clips["id"][clips["split"] == "subm"]),
            recognised.example,
        )
    elif recognised.sample_submission:
        notes.append(f"submission as in {recognised.sample_submission.name}")
    return Competition(
        name,
        root,
        layout,
        clips,
        classes,
        recognised.sample_submission,
        recognised.id_column,
        recognised.label_column,
        recognised.missing,
        list(map(to_text, notes)),
        root / "solution.csv" if is_sample else None,
        is_multilabel,
        recognised.written.separator if is_multilabel else None,
        recognised.metric,
    )


def _open_root(path: Any, out: Path) -> tuple[Path, str, list[str]]:
    """The folder of a path, the competition's name, and lines about unpacked archives. The sample is built,
    and archives are unpacked below `out`."""
    if str(path) == "sample":
        with hold_lock(out / "sample", "the sample competition", wait=True):
            return Path(os.path.abspath(sample.build_sample(out / "sample"))), "sample", []
    root, name = Path(os.path.abspath(path)), get_name(path)
    if not root.exists():
        if zip_file.find_mirror_source(out / name / "unpacked") == root:
            raise TemporaryError(f"{path} is missing, and was there when its archives were unpacked")
        raise UserError(f"no competition at {path}: give its folder, its zip, or sample for the built-in one")
    if root.is_file():
        if archive_names.is_unreadable_archive(root.name):
            raise UserError(f"Earshot can't read {archive_names.format_unpack_hint([str(path)])}")
        if not archive_names.is_zip(root.name) and not archive_names.is_tar(root.name):
            raise UserError(f"{path} is not a zip: give the competition's folder or its zip")
        archive = zip_file if archive_names.is_zip(root.name) else tar_file
        root = archive.unpack_archive(root, out / name / "unpacked")
    elif (root / "unpacked" / zip_file.MARKER).is_file():  # an earlier run unpacked a zip here
        root = inner_archives.find_original_folder(root / "unpacked")
    root, unpacked = inner_archives.open_folder(root, out / name)
    return Path(os.path.abspath(root)), name, unpacked


def _apply_holdout(recognised: Layout, holdout: str, seed: int) -> pd.DataFrame:
    """The clips with the hold-out of --holdout; UserError where it would split groups."""
    clips = hold_out(recognised.clips, holdout, seed)
    if gone := len(recognised.clips) - len(clips):
        recognised.notes.append(
            f"{gone} clips of --extra-csv share a group with the hold-out: not trained on"
        )
    shared = find_straddling_groups(clips)
    if shared:
        raise UserError(
            f"--holdout {holdout} would split {len(shared)} groups (first: {shared[0]}), so that clips of "
            "one source were trained on and scored: give a fraction, which keeps groups whole"
        )
    return clips


def _choose_classes(
    recognised: Layout, clips: pd.DataFrame, training_classes: set[str], is_multilabel: bool
) -> list[str]:
    """The classes in order: those of the clips, and those that only the sample's header has, where most of it
    is known."""
    own = recognised.written.classes if is_multilabel and recognised.renamed is None else None
    known = set(own or ()) | collect_classes(clips["label"])
    unknown = [c for c in recognised.submission_classes if c not in known]
    # The sample has a column per class, most of them known: a class without a clip gets a column, too, though
    # no model can learn it.
    if 2 * len(unknown) < len(recognised.submission_classes):
        known |= set(unknown)
    if len(training_classes) < 2 and not is_multilabel:
        return sorted(training_classes)
    return sort_classes(known)


def _check_classes(classes: list[str], root: Path) -> None:
    if not classes:
        raise UserError(f"no training clip of {root} has a label left: does --label-map remove them all?")
    if len(classes) < 2:
        raise UserError(f"all training clips of {root} have the label {classes[0]}: two classes are needed")


def _describe_submission(
    recognised: Layout,
    clips: pd.DataFrame,
    classes: list[str],
    training_classes: set[str],
    is_multilabel: bool,
) -> list[str]:
    """Lines about the clips to submit, and warnings about classes that only training or the sample has."""
    notes = []
    if (clips["split"] == "subm").sum() == 0:
        notes.append("nothing to submit: no sample submission, test csv or test folder")
    untrained = [c for c in classes if c not in training_classes]
    if untrained:
        left = sorted(set(training_classes) - set(recognised.submission_classes))
        notes.append(
            f"warning: no training clip has the label {format_list(untrained, 5)}: the model cannot learn it"
            f"{label_suggestions.suggest_label(untrained[0], left)}"
        )
    not_submitted = [c for c in classes if c not in recognised.submission_classes]
    if recognised.submission_classes and not_submitted and len(not_submitted) < len(classes):
        notes.append(
            f"warning: the sample submission has no column for the label "
            f"{format_list(not_submitted, 5)}: it is trained, but not submitted"
        )
    notes += warn_odd_labels(classes) + describe_spellings(recognised)
    if recognised.sample is not None and recognised.sample_submission:
        notes += sample_shape.check_sample(
            recognised.sample,
            recognised.sample_submission.name,
            recognised.id_column,
            classes,
            training_classes,
            is_multilabel,
        )
    shared = find_straddling_groups(clips)
    if shared:
        notes.append(
            f"warning: {len(shared)} groups (first: {shared[0]}) have clips in train and in test: the test "
            "scores are optimistic"
        )
    return notes


def get_name(path: Path | str) -> str:
    """The name of the competition at a path: its folder's, or its zip's without the suffix."""
    root = Path(os.path.abspath(path))
    packed = archive_names.is_zip(root.name) or archive_names.is_tar(root.name)
    return to_text(
        archive_names.strip_archive_suffix(root.name) if packed and not root.is_dir() else root.name
    )


def warn_odd_labels(classes: list[str]) -> list[str]:
    """Warnings about labels that may be mistakes: words for missing values, and labels that look alike."""
    lines = [
        f"warning: {name} is read as a label: leave the cell empty if it means none"
        for name in classes
        if name.lower() in ("nan", "na", "n/a", "<na>", "null", "none", "#n/a")
    ]
    lines += [
        f"warning: the label {name!r} holds {', '.join(hidden)}, which is invisible: remove it unless it is "
        "meant"
        for name in classes
        if (hidden := spelling.find_invisible(name))
    ]
    return lines + [
        f"warning: {format_list(spelling.quote_apart(*names), 3)} are different labels: if they are meant "
        "as one, spell them alike"
        for names in spelling.group_alike(classes, spelling.to_loose_key)
    ]


def describe_spellings(layout: Layout) -> list[str]:
    """A line about labels that were found in several spellings."""
    pairs = [
        " as ".join(spelling.quote_apart(other, layout.spelled[spelling.to_key(other)]))
        for other in sorted(layout.other_spellings)
    ]
    more = f" ... ({len(pairs)} in all)" if len(pairs) > 3 else ""
    return [f"one label in several spellings, read as one: {'; '.join(pairs[:3])}{more}"] if pairs else []


def find_competitions(out="data") -> list[Path]:
    """The subfolders of `out` with a competition's audio, sorted; not the sample, nor folders with just
    caches."""
    out = Path(out)
    if not out.is_dir():
        return []
    folders = sorted(
        p for p in out.iterdir() if p.is_dir() and p.name != "sample" and not p.name.startswith(".")
    )
    return [
        p
        for p in folders
        if zip_file.find_mirror_source(p / "unpacked")
        or any(any(map(is_audio, names)) for _, names in walk_folder(p))
    ]


def collect_classes(column: pd.Series) -> set[str]:
    """The labels in a column of the clips."""
    return {label for value in column.dropna().unique() for label in as_tuple(value)}


def sort_classes(labels) -> list[str]:
    """Labels sorted, numerically if all are whole numbers."""
    labels = [str(label) for label in labels]
    whole = all(re.fullmatch(r"[+-]?\d+", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label), label)) if whole else sorted(labels)


def format_counts(clips: pd.DataFrame, missing: list[tuple[str, str, str]]) -> list[str]:
    """One line per split, and one about missing audio or labels, so that the user sees what was read."""
    lines = []
    for split in ("train", "test", "subm"):
        part = clips[clips["split"] == split]
        if len(part):
            facts = [f"{len(part)} clips"]
            facts += [f"{len(collect_classes(part['label']))} classes"] if part["label"].notna().any() else []
            label_counts = [len(label) for label in part["label"] if isinstance(label, tuple)]
            facts += [f"{np.mean(label_counts):.2f} labels a clip"] if label_counts else []
            folds = sorted(int(f) for f in part["fold"].unique() if f >= 0)
            facts += [f"folds {', '.join(map(str, folds))}"] if folds else []
            groups = part["group"][part["group"] != ""].nunique()
            facts += [f"{groups} groups"] if groups else []
            lines.append(f"{split}: {', '.join(facts)}")
    for (split, reason), n in Counter((split, reason) for split, _, reason in missing).items():
        first = next(i for s, i, r in missing if (s, r) == (split, reason))
        lines.append(
            f"{split}: {n} without audio or label ({reason}), first {format_cell(first) or '(empty)'}"
        )
    return lines
