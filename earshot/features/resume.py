"""Outputs of earlier sessions, attached read-only: found, checked, and copied to where this session goes on
with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from earshot.core import checksums, disk_space
from earshot.core.earlier_outputs import copy_file, find_folders
from earshot.core.fingerprint import compute_fingerprint
from earshot.features import cache, shards
from earshot.features.schema import validate_manifest

if TYPE_CHECKING:
    from earshot.features.plan import Plan


def find_caches(given: str | None) -> list[Path]:
    """The finished caches among the earlier outputs, to be read where they lie."""
    found = [folder for folder in find_folders(given, cache.MANIFEST) if cache.is_cache(folder)]
    return [folder for folder in found if cache.read_manifest(folder / cache.MANIFEST).get("complete")]


def copy_cache(plan: Plan, given: str | None) -> list[str]:
    """Copy what an earlier session made of the same cache: all of it, or the shards that are missing here.

    Every file is compared with its checksum as it is copied; one that is damaged is left where it is.

    Returns:
        lines to say, none where nothing was taken.
    """
    fitting = []
    for folder in find_folders(given, cache.MANIFEST):
        found = cache.read_manifest(folder / cache.MANIFEST) if cache.is_cache(folder) else {}
        mine = plan.folder.exists() and folder.samefile(plan.folder)
        if (
            not mine
            and found.get("fingerprint") == plan.fingerprint
            and found.get("version") == cache.VERSION
        ):
            fitting.append((folder, bool(found.get("complete"))))
    notes: list[str] = []
    for folder, complete in sorted(fitting, key=lambda pair: not pair[1]):
        notes += _copy_complete_cache(plan, folder) if complete else _copy_shards(plan, folder)
        if (plan.folder / cache.MANIFEST).exists() and cache.read_manifest(plan.folder / cache.MANIFEST).get(
            "complete"
        ):
            break
    return notes or ([f"nothing in {given} goes with this cache"] if given and not fitting else [])


def _copy_complete_cache(plan: Plan, folder: Path) -> list[str]:
    try:
        manifest = checksums.read(folder / cache.MANIFEST)
        wrong = validate_manifest(manifest) or (
            "was made from something else"
            if compute_fingerprint(manifest["record"]) != plan.fingerprint
            else None
        )
        if wrong:
            raise checksums.CorruptFile(f"{folder / cache.MANIFEST} {wrong}")
        sums = dict(manifest["sha256"])
        if isinstance(manifest.get("digests"), str) and (folder / "digests.pkl").is_file():
            sums["digests.pkl"] = manifest["digests"]
        total = sum((folder / name).stat().st_size for name in sums if (folder / name).is_file())
        disk_space.check_space(plan.folder, total, total)
        for name, wanted in sums.items():
            copy_file(folder / name, plan.folder / name, wanted)
        copy_file(folder / cache.MANIFEST, plan.folder / cache.MANIFEST)  # last: it makes the rest a cache
    except checksums.CorruptFile as error:
        return [f"{error}: the earlier cache is not taken"]
    return [f"taken from an earlier session: the finished cache {folder}"]


def _copy_shards(plan: Plan, folder: Path) -> list[str]:
    taken, notes = 0, []
    for part in shards.list_shards(plan):
        source = folder / "shards" / part.seal.name
        if part.seal.exists() or not source.is_file():
            continue
        try:
            found = checksums.read(source)
            if found.get("fingerprint") != plan.fingerprint:
                continue
            sums = found.get("sha256")
            wanted = sums.get(part.path.name) if isinstance(sums, dict) else None
            if not isinstance(wanted, str):
                raise checksums.CorruptFile(f"{source} does not vouch for {part.path.name}")
            copy_file(folder / "shards" / part.path.name, part.path, wanted)
            copy_file(source, part.seal)
            taken += part.last - part.first
        except checksums.CorruptFile as error:
            notes.append(f"{error}: not taken")
    return [*notes, f"taken from an earlier session: {taken} clips of {folder}"] if taken else notes
