"""Settings for reading a competition's files: the user's flags, else those of a known layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from earshot.core import spelling
from earshot.core.errors import UserError
from earshot.core.shell import quote

OTHERS = "others"  # in a label map: all labels that it does not name


@dataclass(frozen=True)
class Reading:
    """Settings that override what is recognised; the fields are the flags, empty where not set."""

    train_csv: tuple[str, ...] = ()
    extra_csv: tuple[str, ...] = ()  # FILE:WEIGHT
    id_column: str | None = None
    label_column: str | None = None
    label_pattern: str | None = None
    label_map: tuple[str, ...] = ()
    group_column: str | None = None
    group_pattern: str | None = None
    noise_class: str | None = None
    audio_folder: str | None = None
    task: str = "auto"
    place: str = ""  # the competition as the user named it, for the commands in messages
    # of known layouts alone
    empty: str = "missing"  # what an empty label cell means: "missing", or "none" of the classes
    metric: str | None = None
    layout: str | None = None  # its name
    note: str | None = None
    soft_groups: bool = False  # a known layout's groups: ignored if there are too few, or no such column

    def merge_layout(self, known: Reading) -> Reading:
        """These settings, and those of a known layout where nothing is set; `none` as a label map or a
        pattern disables the layout's."""
        blank = Reading()
        unset = {
            field.name: getattr(known, field.name)
            for field in fields(self)
            if getattr(self, field.name) == getattr(blank, field.name)
        }
        off = {
            name: getattr(blank, name)
            for name in ("label_map", "label_pattern", "group_pattern", "noise_class")
            if getattr(self, name) in ("none", ("none",))
        }
        if self.label_map and known.label_map and not off.get("label_map"):  # the others among those it keeps
            unset["label_map"] = (*known.label_map, *self.label_map)
        if self.group_column or self.group_pattern:
            unset.pop("group_column", None)
            unset.pop("group_pattern", None)
        if self.train_csv or self.label_column:
            unset.pop("label_pattern", None)
        if self.label_pattern:
            unset.pop("train_csv", None)
        unset["soft_groups"] = any(
            name in unset and bool(getattr(known, name)) for name in ("group_pattern", "group_column")
        )
        return replace(self, **{**unset, **off})

    def format_command(self, flags: str) -> str:
        """The get_features.py command for the same files with more flags.

        Args:
            flags: as they are typed, quoted.
        """
        return f"python get_features.py --competition {quote(self.place)} {flags}"

    @property
    def extras(self) -> list[tuple[str, float]]:
        """The extra csv files and their weights.

        Raises:
            UserError: one without a weight between 0 and 1.
        """
        extras = []
        for text in self.extra_csv:
            name, _, weight = text.rpartition(":")
            try:
                value = float(weight)
            except ValueError:
                value = -1.0
            if not name or not 0 < value <= 1:
                raise UserError(
                    f"--extra-csv {text}: give FILE:WEIGHT with a weight above 0 and up to 1, such as "
                    f"{name or text}:0.3"
                )
            extras.append((name, value))
        return extras


def build_mapper(pairs: Sequence[str], known: Sequence[str] = ()) -> Callable[[str], str] | None:
    """The function that renames a label by a label map; None without one.

    Args:
        pairs: OLD=NEW, OLD= (its clips are left out), a bare NAME (it stays), others=NEW (all labels that are
            not named).
        known: other labels that stay: those with a column in the sample submission.
    Raises:
        UserError: an entry that is none of these, or `others` where no label is named.
    """
    if not pairs:
        return None
    names: dict[str, str] = {}
    rest: str | None = None
    for pair in pairs:
        old, equals, new = (part.strip() for part in pair.partition("="))
        if not old or "=" in new:
            raise UserError(f"--label-map {pair}: give OLD=NEW, a NAME that stays, or others=NEW")
        if old == OTHERS and equals:
            rest = new
        else:
            names[spelling.to_key(old)] = new if equals else old
    if rest is not None and not names and not known:
        raise UserError(
            f"--label-map others={rest}: name the labels that stay as well, such as --label-map yes no "
            f"others={rest}"
        )
    if rest is not None:
        names = {spelling.to_key(name): name for name in (*known, rest)} | names
    return lambda label: names.get(spelling.to_key(label), label if rest is None else rest)


def find_train_file(root: Path, named: str, csvs: Sequence[str]) -> Path:
    """The csv that a flag names: a path from here, or one in the competition, in any case of its letters.

    Raises:
        UserError: there is none.
    """
    alike = [c for c in csvs if spelling.to_key(c) == spelling.to_key(named)]
    alike += [c for c in csvs if c.rpartition("/")[2] == named]
    path = next((p for p in (Path(named), *(root / c for c in (named, *alike))) if p.is_file()), None)
    if path is None:
        raise UserError(
            f"no train csv {named}, neither here nor in {root}; csv files there: {', '.join(csvs) or 'none'}"
        )
    return path
