"""Which cache a recipe means, and which ones a bake-off takes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from earshot.core.config import AugmentFlags, CompetitionFlags, ExtractionFlags, Recipe
from earshot.core.errors import UserError
from earshot.core.fingerprint import record_name
from earshot.core.shell import quote
from earshot.core.spelling import to_keys
from earshot.features import cache
from earshot.features.schema import validate_record

# They say where from, or how fast, not how.
NOT_SETTINGS = {f.name for group in (CompetitionFlags, ExtractionFlags) for f in fields(group)} - {
    "extractor"
}
RECORD_NAMES = {f.name: record_name(f) for f in fields(AugmentFlags)}


LATEST = ".latest"  # in data/: the competition that get_features.py worked on last


def list_mismatches(record: dict[str, Any], recipe: Recipe) -> list[str]:
    """Where a cache differs from what a recipe's `features` section fixes: lines such as `n_mels: 64, recipe
    128`.

    What the recipe leaves open (absent, or null) is decided by the data and matches anything.
    """
    here = {
        "extractor": record["extractor"],
        **record["settings"],
        **record["audio"],
        **record["window"],
        "augment": 0,
        **record.get("augment", {}),
    }
    found = []
    for key, value in recipe.features.items():
        if key in NOT_SETTINGS or value is None:
            continue
        name, mine = RECORD_NAMES.get(key, key), list(value) if isinstance(value, tuple) else value
        if isinstance(here.get(name), list) and not isinstance(mine, list):
            mine = [mine]  # a recipe may write a single value plainly
        if name not in here:
            found.append(f"{key}: none, recipe {mine}")
        elif not _is_same(here[name], mine):
            found.append(f"{key}: {here[name]}, recipe {mine}")
    return found


def _is_same(cached: Any, wanted: Any) -> bool:
    if isinstance(cached, float) and not isinstance(wanted, bool):
        try:
            return float(wanted) == cached  # YAML reads 1e-5 as text
        except (TypeError, ValueError):
            return False
    return str(cached) == str(wanted)


def find_for_recipe(data: str, recipe: Recipe | None, continue_from: str | None = None) -> Path:
    """The cache to train on: the one that matches the recipe, else the only one there is.

    Where several competitions have one, that of the competition which get_features.py worked on last.

    Args:
        continue_from: where earlier sessions' outputs lie, read where they are if there is none here.

    Raises:
        UserError: there is none, or several that the recipe does not tell apart.
    """
    from earshot.features import resume

    found = cache.find_folders(data) or resume.find_caches(continue_from)
    if not found:
        raise UserError(
            f"no cache in {data}/: run get_features.py first, or say where one is with --features FOLDER"
        )
    manifests = {folder: cache.read_manifest(folder / cache.MANIFEST) for folder in found}
    # else the reader says why
    found = [folder for folder in found if not validate_record(manifests[folder])] or found
    # not --for-run's
    found = [folder for folder in found if "train" in (manifests[folder].get("splits") or {"train"})] or found
    if recipe is not None and recipe.features:
        fitting = [
            f
            for f in found
            if not validate_record(manifests[f]) and not list_mismatches(manifests[f]["record"], recipe)
        ]
        named = [f for f in fitting if f.name == recipe.features.get("cache")]
        fitting = named or fitting
    else:
        fitting = []
    if len(fitting) == 1:
        return fitting[0]
    if len(found) == 1:
        return found[0]
    among = fitting or found
    latest = Path(data) / LATEST
    here = [
        f for f in among if latest.is_file() and f.parent.name == latest.read_text(encoding="utf-8").strip()
    ]
    if len(here) == 1:
        return here[0]
    raise UserError(f"which cache? there are {', '.join(map(str, among))}: choose one with --features FOLDER")


def find_all(
    data: str, named: tuple[str, ...], continue_from: str | None
) -> tuple[list[cache.Cache], list[str]]:
    """The caches of a bake-off, and lines about those that are left out.

    Args:
        data: where they are looked for: data/<competition>/<cache>, or data is the competition's folder
            itself.
        named: these and no others.
    Raises:
        UserError: none, those of several competitions, or of other labels.
    """
    from earshot.features import resume

    found = list(map(Path, named))
    if not found:
        own = sorted(p.parent for p in Path(data).glob(f"*/{cache.MANIFEST}") if cache.is_cache(p.parent))
        found = own or cache.find_folders(data) or resume.find_caches(continue_from)
    if not found:
        raise UserError(
            f"no cache in {data}/: run get_features.py first, or say where one is with --features FOLDER"
        )
    places = sorted({str(folder.parent) for folder in found})
    if not named and len(places) > 1:
        raise UserError(
            f"which competition? there are {', '.join(places)}: choose one with --data {quote(places[0])}, "
            "or name its caches with --features FOLDER, each"
        )
    opened, lines = [], []
    for folder in dict.fromkeys(found):
        if not named and not cache.read_manifest(folder / cache.MANIFEST).get("complete"):
            lines.append(f"{folder} is not finished and left out: get_features.py continues it")
            continue
        opened.append(cache.Cache(folder))
    if not opened:
        raise UserError(
            f"no finished cache in {', '.join(places)}: run get_features.py again, it continues where it "
            "stopped"
        )
    first = opened[0]
    for other in opened[1:]:
        if to_keys(other.classes) != to_keys(first.classes) or other.multilabel != first.multilabel:
            raise UserError(
                f"{first.folder} and {other.folder} have different labels ({len(first.classes)} and "
                f"{len(other.classes)}), or another order or task: they are no one competition's; choose "
                "with --features FOLDER"
            )
    return opened, lines
