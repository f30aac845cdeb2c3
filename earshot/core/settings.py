"""Fields of settings: bounds, former names, and conversion of values from YAML."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from earshot.core.errors import UserError

# settings of earlier versions -> the reason why they went
REMOVED = {
    "pretrain": "was removed in 0.2, because training without labels first gained nothing: leave it out"
}


class Bounds(NamedTuple):
    """The smallest and the largest value of a number, both allowed: `Annotated[float, Bounds(0, 1)]`."""

    low: float
    high: float = math.inf

    def check(self, flag: str, value: float) -> None:
        """Raise UserError for a number outside, NaN and infinity included."""
        if not self.low <= value <= self.high or math.isinf(value):
            limits = f"at least {self.low}" if math.isinf(self.high) else f"{self.low} to {self.high}"
            raise UserError(f"{flag} {value}: has to be {limits}")


def to_flag(name: str) -> str:
    """A field's flag."""
    return "--" + name.replace("_", "-")


CLOSE = 0.7  # how alike two flags are, of 1, where one may be meant by the other


def suggest(name: str, known: Iterable[str], least: float = 0.6) -> str:
    """` (did you mean x?)` with the known name that is most like it, "" where none is at `least` so alike, of
    1."""
    near = difflib.get_close_matches(name, list(known), 1, least)
    return f" (did you mean {near[0]}?)" if near else ""


def check_bounds(settings: Any) -> None:
    """Raise UserError for the first field outside its bounds."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        for bounds in getattr(hint, "__metadata__", ()):
            if isinstance(bounds, Bounds) and value is not None:
                bounds.check(to_flag(name), value)


def find_former_names(settings: Any) -> dict[str, str]:
    """Former names of fields (`fingerprint.formerly`) -> the present ones."""
    fields = dataclasses.fields(settings)
    return {f.metadata["formerly"]: f.name for f in fields if "formerly" in f.metadata}


def replace_defaults(settings: Any, values: dict[str, Any], where: str) -> Any:
    """A dataclass instance with the given fields replaced and their types checked.

    Args:
        settings: an instance.
        values: key -> value from a recipe or a saved configuration; former names are accepted.
        where: for the message, e.g. "recipes/audio_cnn.yaml, features".
    Raises:
        UserError: unknown key, value of the wrong type.
    """
    names, former = [f.name for f in dataclasses.fields(settings)], find_former_names(settings)
    hints = get_type_hints(type(settings))
    changes = {}
    for key, value in values.items():
        name = former.get(key, key)
        if name in REMOVED:
            raise UserError(f"{where}: {name} {REMOVED[name]}")
        if name not in names:
            raise UserError(
                f"{where}: unknown key {key}{suggest(key, names)}: choose among {', '.join(names)}"
            )
        options = _split_union(hints[name])
        wanted = " | ".join(map(_format_type, options))
        wrong = UserError(f"{where}: {key} is {value!r}, but must be {wanted}")
        changes[name] = _convert(value, options, wrong)
    return dataclasses.replace(settings, **changes)


def _split_union(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _format_type(hint: Any) -> str:
    """A type as it is written in a dataclass."""
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _convert(value: Any, options: tuple[Any, ...], wrong: UserError) -> Any:
    """YAML reads 1e-3 as text and 5 where 5.0 is meant; anything else must be of one of the types."""
    first = options[0]
    if get_origin(first) is tuple:
        values = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(_convert(item, get_args(first)[:1], wrong) for item in values)
    if value is None and types.NoneType in options:
        return None
    if get_origin(first) is Literal and str(value) in get_args(first):
        return str(value)
    if isinstance(value, bool) and bool not in options:
        raise wrong
    if float in options:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise wrong from None
    for kind, accepted in ((bool, bool), (int, int), (str, (str, int, float))):
        if kind in options and isinstance(value, accepted):
            return kind(value)
    raise wrong
