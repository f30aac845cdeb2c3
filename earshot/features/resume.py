"""Caches of earlier sessions, attached read-only: find, check and copy them to continue."""

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
    """The finished caches among the earlier outputs, to be read in place."""
    found = [folder for folder in find_folders(given, cache.MANIFEST) if cache.is_cache(folder)]
    return [folder for folder in found if cache.read_manifest(folder / cache.MANIFEST).get("complete")]


def copy_cache(plan: Plan, given: str | None) -> list[str]:
    """Copy an earlier session's version of this cache: all of it, or the shards that are missing here.

    Each file is compared with its checksum; damaged ones are skipped.

    Returns:
        lines to print, none if nothing was copied.
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
    return notes or ([f"nothing in {given} matches this cache"] if given and not fitting else [])


def _copy_complete_cache(plan: Plan, folder: Path) -> list[str]:
    try:
        manifest = checksums.read(folder / cache.MANIFEST)
        wrong = validate_manifest(manifest) or (
            "was made from other data or settings"
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
        return [f"{error}: the earlier cache is not copied"]
    return [f"copied from an earlier session: the finished cache {folder}"]


def _copy_shards(plan: Plan, folder: Path) -> list[str]:
    copied, notes = 0, []
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
                raise checksums.CorruptFile(f"{source} has no checksum of {part.path.name}")
            copy_file(folder / "shards" / part.path.name, part.path, wanted)
            copy_file(source, part.seal)
            copied += part.last - part.first
        except checksums.CorruptFile as error:
            notes.append(f"{error}: not copied")
    return [*notes, f"copied from an earlier session: {copied} clips of {folder}"] if copied else notes
