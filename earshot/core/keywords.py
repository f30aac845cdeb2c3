"""Settings from the keywords of a Python call: the same names as the flags, with underscores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from earshot.core.config import check
from earshot.core.errors import UserError
from earshot.core.settings import CLOSE, REMOVED, find_former_names, replace_defaults, suggest


def fill_from_keywords(
    groups: Mapping[str, Any], keywords: Mapping[str, Any], call: str, others: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Groups of settings with the values that a call gives.

    Args:
        groups: title -> dataclass instance with the defaults.
        keywords: name of a field -> value. Paths, lists and numpy numbers are converted.
        call: what messages call the function.
        others: names that the function takes besides, for the suggestion in the message.
    Returns:
        title -> filled instance.
    Raises:
        UserError: an unknown name, with the nearest known one, or a value of the wrong type or out of bounds.
    """
    left, filled = {key: to_plain(value) for key, value in keywords.items()}, {}
    for title, group in groups.items():
        names = {*(field.name for field in fields(group)), *find_former_names(group)}
        own = {key: left.pop(key) for key in list(left) if key in names}
        filled[title] = replace_defaults(group, own, call)
    for key in left:
        if key in REMOVED:
            raise UserError(f"{call}: {key} {REMOVED[key]}")
        known = [*others, *(field.name for group in groups.values() for field in fields(group))]
        hint = suggest(key, known, CLOSE) or f": choose among {', '.join(sorted(set(known)))}"
        raise UserError(f"{call} has no setting {key}{hint}")
    for group in filled.values():
        check(group)
    return filled


def to_plain(value: Any) -> Any:
    """Paths as text, numpy numbers as Python's, lists of them likewise; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return tuple(map(to_plain, value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value
