"""Clips whose labels are part of the file names, read by a pattern."""

from __future__ import annotations

import pandas as pd

from earshot.competition import copies, name_parts, noise_clips, placeholder, sources
from earshot.competition.file_index import Files
from earshot.competition.layout import Layout, build_table
from earshot.competition.names import find_side
from earshot.competition.reading import Reading, build_mapper
from earshot.competition.tables import Tables
from earshot.competition.with_sample import build_requested_rows, find_requested_files, read_sample


def read_from_names(files: Files, tables: Tables, sample: str | None, reading: Reading) -> Layout:
    """The layout in which `reading.label_pattern` gives each training clip's label.

    Clips of a test folder are to be submitted, whatever the pattern gives for them.

    Raises:
        UserError: no pattern, one that gives fewer than two labels.
    """
    layout = Layout("labels in names", build_table([], [], "train"), "fname", "label")
    layout.renamed = build_mapper(reading.label_map) if reading.label_map else None
    requested = read_sample(tables, sample, reading.id_column) if sample else None
    double = copies.find_duplicates(files, files.audio)
    files.leave_out(double.left_out)
    layout.notes += double.notes
    apart = {
        path
        for path in files.audio
        if find_side(path.rpartition("/")[0]) == "subm" or noise_clips.is_noise(path)
    }
    if requested is not None:
        apart |= find_requested_files(files, requested)
    names = [path for path in files.audio if path not in apart]
    labels = dict(zip(names, name_parts.match_labels(names, reading.label_pattern or ""), strict=True))
    left = [path for path in names if not labels[path]]
    layout.missing += [("train", path, "the label pattern does not match its name") for path in left]
    kept = [path for path in names if labels[path]]
    settled = layout.unify_spellings([labels[path] for path in kept])
    rows = [(path, label) for path, label in zip(kept, settled, strict=True) if label]
    names = [path.rpartition("/")[2] for path, _ in rows]
    clips = build_table(
        names if len(set(names)) == len(names) else [path for path, _ in rows],
        [files.to_absolute(path) for path, _ in rows],
        "train",
        [label for _, label in rows],
    )
    layout.notes.append(f"labels by the pattern {reading.label_pattern} in the files' names")
    parts = [sources.add_name_groups(files, clips, layout, reading)]
    if requested is not None:
        parts += build_requested_rows(files, requested, parts[0], layout)
    else:
        loose = placeholder.find_unlisted_audio(files, set(clips["path"]))
        parts.append(
            build_table(
                placeholder.make_ids_like(list(clips["id"]), loose),
                [files.to_absolute(p) for p in loose],
                "subm",
            )
        )
    layout.clips = pd.concat(parts, ignore_index=True)
    layout.notes += files.describe_unused_files()
    return layout
