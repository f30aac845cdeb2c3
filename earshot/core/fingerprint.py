"""What a thing was made from, and the first difference between two such records."""

from __future__ import annotations

import json
from dataclasses import Field, asdict, fields
from typing import Any

from earshot.core.files import hash_value

# of a setting that came later: what was made before keeps its record
RECORDED_WHERE_CHANGED = {"recorded": "where changed"}


def formerly(name: str) -> dict[str, str]:
    """Metadata of a setting that had another name. Records keep that name, so that earlier caches and runs
    continue; recipes and the command line still take it."""
    return {"formerly": name}


def to_json(value: Any) -> Any:
    """The value as JSON would give it back (tuples become lists), so that records compare equal after a
    save."""
    return json.loads(json.dumps(value, ensure_ascii=False))


def to_record(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as a record has them."""
    record, values = {}, asdict(settings)
    for field in fields(settings):
        if not field.metadata.get("recorded") or values[field.name] != field.default:
            record[record_name(field)] = values[field.name]
    return record


def record_name(field: Field) -> str:
    """The name under which records have a setting."""
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
    """Lines such as `seconds: 5.0 there, 4.0 here`, one per differing entry; empty when the records are
    equal.

    Of two lists the first entry that differs is said, such as `classes[2]: owl there, jay here`.
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
    """16 hex digits that stand for the record."""
    return hash_value(to_json(record))[:16]
