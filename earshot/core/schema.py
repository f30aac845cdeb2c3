"""Schemas of untrusted JSON objects and dicts of arrays; the first fault is named."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np

from earshot.core.settings import Bounds

# bounds of a text, list or dict are those of its length
Count = Annotated[int, Bounds(0)]
Size = Annotated[int, Bounds(1)]
Share = Annotated[float, Bounds(0, 1)]
Digest = Annotated[str, re.compile("[0-9a-f]{64}")]
TwoNames = Annotated[list[str], Bounds(2, 2)]


def find_fault(schema: type, value: Any, path: str = "") -> str | None:
    """Such as `has no span`: the first key of an object that its schema needs, or that is of another type.

    Args:
        schema: a TypedDict of text, numbers, lists, dicts, `Literal`, unions, `Annotated` with `Bounds` or a
            pattern, and other TypedDicts. Keys that it does not name may be there.
        path: prefix of a key's name in the result.
    """
    if not isinstance(value, dict):
        return "is no object"
    # evaluated hints: with postponed annotations a TypedDict doesn't know its NotRequired keys
    for key, hint in get_type_hints(schema, include_extras=True).items():
        if get_origin(hint) is NotRequired:
            (hint,) = get_args(hint)
            if key not in value:
                continue
        if key not in value:
            return f"has no {path}{key}"
        if is_typeddict(hint) and isinstance(value[key], dict):
            fault = find_fault(hint, value[key], f"{path}{key}.")
            if fault:
                return fault
        elif not is_valid(hint, value[key]):
            return f"has an invalid {path}{key}"
    return None


def is_valid(hint: Any, value: Any) -> bool:
    """Is a value of this type? A whole number is a float, too; NaN, infinity and booleans are no numbers."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return is_valid(arguments[0], value) and all(_is_within_rule(rule, value) for rule in arguments[1:])
    if origin is UnionType:
        return any(is_valid(argument, value) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(is_valid(arguments[0], item) for item in value)
    if origin is dict:
        items = value.items() if isinstance(value, dict) else [(None, None)]
        return all(is_valid(arguments[0], key) and is_valid(arguments[1], item) for key, item in items)
    if is_typeddict(hint):
        return find_fault(hint, value) is None
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is int if hint is int else isinstance(value, hint)


def _is_within_rule(rule: Bounds | re.Pattern, value: Any) -> bool:
    if isinstance(rule, re.Pattern):
        return rule.fullmatch(value) is not None
    return rule.low <= (value if isinstance(value, int | float) else len(value)) <= rule.high


@dataclass(frozen=True)
class Column:
    """An array with an item per `of`, such as "rows"; `kinds` are numpy's, `shape` is an item's."""

    kinds: str
    of: str
    shape: tuple[int, ...] = ()


def find_array_fault(
    content: dict[str, Any], columns: dict[str, Column], counts: dict[str, int]
) -> str | None:
    """Such as `has 3 ids for 42 clips`: the first array that is missing, of another kind, shape or length.

    Args:
        counts: how many there are of an `of`; else the first such column decides.
    """
    counts = dict(counts)
    for name, column in columns.items():
        array = content.get(name)
        if not isinstance(array, np.ndarray):
            return f"has no array {name}"
        if array.dtype.kind not in column.kinds or not array.ndim:
            return f"has {name} of kind {array.dtype}, {array.ndim} axes"
        expected = counts.setdefault(column.of, len(array))
        if array.shape[1:] != column.shape:
            return f"has {name} of shape {array.shape}, expected {(expected, *column.shape)}"
        if len(array) != expected:
            return f"has {len(array)} {name} for {expected} {column.of}"
    return None
