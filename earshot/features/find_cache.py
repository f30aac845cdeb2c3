"""Choose the cache for a recipe, and the caches of a bake-off."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from earshot import extractors
from earshot.core import latest
from earshot.core.config import AugmentFlags, CompetitionFlags, ExtractionFlags, Recipe
from earshot.core.errors import UserError
from earshot.core.fingerprint import record_name
from earshot.core.shell import quote
from earshot.core.spelling import to_keys
from earshot.features import cache
from earshot.features.schema import validate_record

# they choose the data or the speed, not the features
NOT_SETTINGS = {f.name for group in (CompetitionFlags, ExtractionFlags) for f in fields(group)} - {
    "extractor"
}
RECORD_NAMES = {f.name: record_name(f) for f in fields(AugmentFlags)}


def list_mismatches(record: dict[str, Any], recipe: Recipe) -> list[str]:
    """Differences between a cache and a recipe's `features` section: lines such as `n_mels: 64, recipe 128`.

    Keys that are absent or null in the recipe are chosen from the data and match anything.
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


def check_kinds(found: cache.Cache, recipe: Recipe) -> None:
    """Raise UserError where a recipe's own extractor makes views of other kinds than the cache holds."""
    name, own = recipe.features.get("extractor"), found.record["extractor"]
    if name == own or name not in extractors.list_names():
        return
    views = extractors.load_module(name).Extractor.views
    named = recipe.head.get("view")
    expected = [views[named]] if named in views else list(views.values())
    here = list(found.kinds.values())
    if not set(expected) & set(here):
        raise UserError(
            f"recipe {recipe.name} expects {name} features ({', '.join(expected)}), {found.folder} has {own} "
            f"features ({', '.join(here)}): extract others with python get_features.py --recipe "
            f"{quote(recipe.name)}, or choose another recipe"
        )


def _is_same(cached: Any, wanted: Any) -> bool:
    if isinstance(cached, float) and not isinstance(wanted, bool):
        try:
            return float(wanted) == cached  # YAML reads 1e-5 as text
        except (TypeError, ValueError):
            return False
    return str(cached) == str(wanted)


def find_for_recipe(data: str, recipe: Recipe | None, continue_from: str | None = None) -> Path:
    """The cache to train on: the one that matches the recipe, else the only one there is, else the one that
    get_features.py finished last, which is printed.

    Args:
        continue_from: where earlier sessions' outputs lie, read where they are if there is none here.

    Raises:
        UserError: there is none; it is not finished; there are several and it is not recorded which is the
            latest.
    """
    from earshot.features import resume

    found = cache.find_folders(data) or resume.find_caches(continue_from)
    if not found:
        raise UserError(
            f"no cache in {data}/: run get_features.py first, or say where one is with --features FOLDER"
        )
    manifests = {folder: cache.read_manifest(folder / cache.MANIFEST) for folder in found}
    # else opening it says why
    found = [folder for folder in found if not validate_record(manifests[folder])] or found
    # --for-run makes caches without training clips
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
    alike = [f for f in found if recipe and recipe.features.get("extractor") == _get_extractor(manifests[f])]
    among = fitting or alike or found
    if len(among) > 1:
        chosen = _choose_latest(data, among, manifests)
        others = ", ".join(str(folder) for folder in among if folder != chosen)
        print(f"cache: {chosen} (finished last; others: {others}: choose with --features FOLDER)")
        return chosen
    check_finished(among[0], manifests[among[0]])
    return among[0]


def _get_extractor(manifest: dict[str, Any]) -> str:
    record = manifest.get("record")
    return str(record.get("extractor")) if isinstance(record, dict) else ""


def _choose_latest(data: str, among: list[Path], manifests: dict[Path, dict[str, Any]]) -> Path:
    """The cache that get_features.py finished last.

    Raises:
        UserError: it is not recorded which; a later one is not finished.
    """
    found = latest.find_latest(among, 2)
    if found is None:  # an earlier version noted the competition alone
        here = [folder for folder in among if folder.parent.name in latest.read(Path(data))]
        found = (here[0], "") if len(here) == 1 else None
    if found is None:
        raise UserError(
            f"which cache? there are {', '.join(map(str, among))}: choose one with --features FOLDER"
        )
    check_finished(found[0], manifests[found[0]])
    return found[0]


def check_finished(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise UserError for an unfinished cache, with the command that finishes it."""
    found = latest.find_latest([folder], 2)
    if not manifest.get("complete", True) and found and found[1]:
        raise UserError(
            f"{folder} is not finished: finish it with: {found[1]}; or choose another cache with --features "
            "FOLDER"
        )


def find_all(
    data: str, named: tuple[str, ...], continue_from: str | None
) -> tuple[list[cache.Cache], list[str]]:
    """The caches of a bake-off, and lines about those that are skipped.

    Args:
        data: the folder of all competitions, data/<competition>/<cache>, or of one.
        named: use only these.
    Raises:
        UserError: there is none; they are of several competitions and it is not recorded which was the last,
            or have different labels.
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
    opened, lines = [], []
    if not named and len(places) > 1 and (last := latest.find_latest(found, 2)):
        others = ", ".join(place for place in places if place != str(last[0].parent))
        lines.append(f"competition: {last[0].parent} (the last one; others: {others}: choose with --data)")
        found = [folder for folder in found if folder.parent == last[0].parent]
        places = [str(last[0].parent)]
    if not named and len(places) > 1:
        raise UserError(
            f"which competition? there are {', '.join(places)}: choose one with --data {quote(places[0])}, "
            "or name its caches with --features FOLDER, each"
        )
    for folder in dict.fromkeys(found):
        if not named and not cache.read_manifest(folder / cache.MANIFEST).get("complete"):
            lines.append(f"{folder} is skipped: it is not finished; get_features.py continues it")
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
                f"{len(other.classes)}), or another order or task: they are not of one competition; choose "
                "with --features FOLDER"
            )
    return opened, lines
