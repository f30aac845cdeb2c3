"""Records of what a cache or run was made from, and the differences between two records."""

from __future__ import annotations

import json
from dataclasses import Field, asdict, fields
from typing import Any

from earshot.core.files import hash_value

# for settings added later: earlier caches and runs keep their records
RECORDED_WHERE_CHANGED = {"recorded": "where changed"}


def formerly(name: str) -> dict[str, str]:
    """Metadata of a renamed setting. Records keep the former name, so that earlier caches and runs continue;
    recipes and the command line still accept it."""
    return {"formerly": name}


def to_json(value: Any) -> Any:
    """The value after a round trip through JSON (tuples become lists), so that saved records compare
    equal."""
    return json.loads(json.dumps(value, ensure_ascii=False))


def to_record(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as a record."""
    record, values = {}, asdict(settings)
    for field in fields(settings):
        if not field.metadata.get("recorded") or values[field.name] != field.default:
            record[record_name(field)] = values[field.name]
    return record


def record_name(field: Field) -> str:
    """A setting's name in records."""
    return field.metadata.get("formerly", field.name)


def flatten(record: dict, prefix: str = "") -> dict[str, Any]:
    """A nested record as {"a.b": value}."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def list_differences(before: dict, now: dict) -> list[str]:
    """Lines such as `seconds: 5.0 there, 4.0 here`, one per differing entry; empty for equal records.

    For lists it is the first differing item, such as `classes[2]: owl there, jay here`.
    """
    old, new = flatten(to_json(before)), flatten(to_json(now))
    missing, lines = "nothing", []
    for key in sorted(old.keys() | new.keys()):
        there, here = old.get(key, missing), new.get(key, missing)
        if isinstance(there, list) and isinstance(here, list) and there != here:
            at = next(
                (i for i, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1]),
                min(len(there), len(here)),
            )
            key, there, here = (
                f"{key}[{at}]",
                *(items[at] if at < len(items) else missing for items in (there, here)),
            )
        if there != here:
            lines.append(f"{key}: {there} there, {here} here")
    return lines


def compute_fingerprint(record: dict) -> str:
    """The first 16 hex digits of the record's hash."""
    return hash_value(to_json(record))[:16]
