"""A recognised layout: the clips as a table, and what was found with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import nan
from pathlib import Path

import pandas as pd

from earshot.competition import labels
from earshot.core import spelling

TRAIN_ONLY = -2  # the fold of clips that are always trained on and never validated


@dataclass
class Layout:
    """A recognised layout; the fields are those of `load.Competition`."""

    layout: str
    clips: pd.DataFrame
    id_column: str
    label_column: str
    sample_submission: Path | None = None
    written: labels.Labels | None = None  # None: by folders
    missing: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sample: pd.DataFrame | None = None  # the sample submission's rows
    # the first row of a sample submission that is a placeholder, [] where it has none
    example: list[str] | None = None
    # the sample submission's columns of numbers, where it has several: the classes
    submission_classes: list[str] = field(default_factory=list)
    # how a label is spelled, by its key, and the other spellings that were found
    spelled: dict[str, str] = field(default_factory=dict)
    other_spellings: set[str] = field(default_factory=set)
    metric: str | None = None  # the competition's own, where it is known
    group_column: str | None = "group"  # the tables' column of sources, which need not be there
    guessed_groups: bool = False  # the groups are a guess
    renamed: Callable[[str], str] | None = None  # renames a label by --label-map; "": its clips are left out

    def unify_spellings(self, values: list) -> list:
        """The labels of clips (text, or tuples of several) with one spelling each: the one that was read
        first, else the commonest."""
        values = [self._apply_renames(value) for value in values]
        spelling.settle((label for value in values for label in labels.as_tuple(value)), self.spelled)
        return [self._unify_spelling(value) for value in values]

    def _apply_renames(self, value):
        if self.renamed is None or value == labels.MISSING:
            return value
        if isinstance(value, tuple):
            renamed = tuple(filter(None, map(self.renamed, value)))
            return renamed if renamed or not value else labels.MISSING
        return self.renamed(value)

    def _unify_spelling(self, value):
        if isinstance(value, tuple):
            unified = tuple(sorted({self._unify_spelling(label) for label in value} - {""}))
            return unified if unified or not value else labels.MISSING
        chosen = self.spelled[spelling.to_key(value)]
        if value != chosen:
            self.other_spellings.add(value)
        return chosen


def build_table(
    ids, paths, split, labels=None, folds=None, groups=None, starts=None, ends=None, weights=None
) -> pd.DataFrame:
    """The clips' table from columns; a label stays None (not NaN) where it is to be predicted."""
    n = len(ids)
    return pd.DataFrame(
        {
            "id": pd.Series(list(ids), dtype=object),
            "path": pd.Series(list(paths), dtype=object),
            "label": pd.Series([None] * n if labels is None else list(labels), dtype=object),
            "split": pd.Series([split] * n, dtype=object),
            "fold": pd.Series([-1] * n if folds is None else list(folds), dtype="int64"),
            "group": pd.Series([""] * n if groups is None else list(groups), dtype=object),
            "start": pd.Series([nan] * n if starts is None else starts, dtype=float),
            "end": pd.Series([nan] * n if ends is None else ends, dtype=float),
            "weight": pd.Series([1.0] * n if weights is None else weights, dtype=float),
        }
    )
