"""Outputs of earlier sessions, attached read-only: found, checked, and copied to where this session goes on
with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot import attached, cache, extract, parts, sealed, space
from earshot.errors import UserError
from earshot.files import digest, digest_of, replacing, standing
from earshot.fingerprint import differences, fingerprint, plain
from earshot.manifest import fault
from earshot.run import CONFIG, Run

if TYPE_CHECKING:
    from earshot.plan import Plan

NOT_COPIED = (".tmp", ".new", ".old", ".damaged", ".lock")


def roots(given: str | None) -> list[Path]:
    """Where to look: the folder that the user names, else what Kaggle has attached (EARSHOT_ATTACHED names
    another place).

    Raises:
        UserError: the named folder does not exist.
    """
    if given is not None:
        if not Path(given).is_dir():
            raise UserError(
                f"--continue-from {given}: no such folder: name one that holds earlier outputs, such as "
                "data/ and runs/"
            )
        return [Path(given)]
    top = attached.root()
    return [top] if top else []


def folders(given: str | None, name: str) -> Iterator[Path]:
    """The folders below the earlier outputs that hold a file of this name; links are not followed."""
    for root in roots(given):
        for folder, below, names in os.walk(root):
            below[:] = sorted(below) if len(Path(folder).relative_to(root).parts) < attached.DEPTH else []
            if name in names and not os.path.islink(os.path.join(folder, name)):
                yield Path(folder)


def caches(given: str | None) -> list[Path]:
    """The finished caches among the earlier outputs, to be read where they lie."""
    found = [folder for folder in folders(given, cache.MANIFEST) if cache.is_cache(folder)]
    return [folder for folder in found if cache.peek(folder / cache.MANIFEST).get("complete")]


def runs() -> list[Path]:
    """The attached runs that can be opened, to be read where they lie."""
    return [folder for folder in folders(None, CONFIG) if (folder / "training_log.txt").is_file()]


def features_of(run: Run, data: str = "data") -> Path | None:
    """A finished cache, here or attached, that holds what a run was trained on; of several, one with clips to
    submit."""
    wanted, found = run.config["record"], []
    for folder in [*cache.find(data), *caches(None)]:
        manifest = cache.peek(folder / cache.MANIFEST)
        record = manifest.get("record")
        if (
            not manifest.get("complete")
            or not isinstance(record, dict)
            or record.get("labels") != digest_of(wanted["classes"])[:16]
        ):
            continue
        if not differences(wanted["features"], {key: record.get(key) for key in wanted["features"]}):
            found.append((("subm" in manifest.get("splits", {})), folder))
    return next((folder for asked, folder in found if asked), found[0][1] if found else None)


def adopt_cache(plan: Plan, given: str | None) -> list[str]:
    """Copy what an earlier session made of the same cache: all of it, or the shards that are missing here.

    Every file is compared with its checksum as it is copied; one that is damaged is left where it is.

    Returns:
        lines to say, none where nothing was taken.
    """
    fitting = []
    for folder in folders(given, cache.MANIFEST):
        found = cache.peek(folder / cache.MANIFEST) if cache.is_cache(folder) else {}
        mine = plan.folder.exists() and folder.samefile(plan.folder)
        if (
            not mine
            and found.get("fingerprint") == plan.fingerprint
            and found.get("version") == cache.VERSION
        ):
            fitting.append((folder, bool(found.get("complete"))))
    notes: list[str] = []
    for folder, complete in sorted(fitting, key=lambda pair: not pair[1]):
        notes += _whole(plan, folder) if complete else _shards(plan, folder)
        if (plan.folder / cache.MANIFEST).exists() and cache.peek(plan.folder / cache.MANIFEST).get(
            "complete"
        ):
            break
    return notes or ([f"nothing in {given} goes with this cache"] if given and not fitting else [])


def _whole(plan: Plan, folder: Path) -> list[str]:
    try:
        manifest = sealed.read(folder / cache.MANIFEST)
        wrong = fault(manifest) or (
            "was made from something else" if fingerprint(manifest["record"]) != plan.fingerprint else None
        )
        if wrong:
            raise sealed.Damaged(f"{folder / cache.MANIFEST} {wrong}")
        sums = manifest["sha256"]
        total = sum((folder / name).stat().st_size for name in sums if (folder / name).is_file())
        space.check(plan.folder, total, total)
        for name, wanted in sums.items():
            _copy(folder / name, plan.folder / name, wanted)
        _copy(folder / cache.MANIFEST, plan.folder / cache.MANIFEST)  # last: it makes the rest a cache
    except sealed.Damaged as error:
        return [f"{error}: the earlier cache is not taken"]
    return [f"taken from an earlier session: the finished cache {folder}"]


def _shards(plan: Plan, folder: Path) -> list[str]:
    taken, notes = 0, []
    for part in extract.parts(plan):
        source = folder / "shards" / part.seal.name
        if part.seal.exists() or not source.is_file():
            continue
        try:
            found = sealed.read(source)
            if found.get("fingerprint") != plan.fingerprint:
                continue
            sums = found.get("sha256")
            wanted = sums.get(part.path.name) if isinstance(sums, dict) else None
            if not isinstance(wanted, str):
                raise sealed.Damaged(f"{source} does not vouch for {part.path.name}")
            _copy(folder / "shards" / part.path.name, part.path, wanted)
            _copy(source, part.seal)
            taken += part.last - part.first
        except sealed.Damaged as error:
            notes.append(f"{error}: not taken")
    return [*notes, f"taken from an earlier session: {taken} clips of {folder}"] if taken else notes


def adopt_run(folder: Path, record: dict[str, Any], given: str | None, named: bool) -> list[str]:
    """Copy an earlier session's run of the same name and settings to `folder`, which has none; lines to say.

    Args:
        record: what the run here is made from.
        named: did the user name the run? Then an earlier one of that name in the folder that the user names
            has to go with it.
    Raises:
        UserError: it does not; the differences are named.
    """
    if (folder / CONFIG).exists():
        return []
    for source in folders(given, CONFIG):
        if source.name != folder.name or folder.exists() and source.samefile(folder):
            continue
        found = differences(Run.open(source).config["record"], plain(record))
        if found and named and given:
            raise UserError(
                f"{source} was trained with other settings: {'; '.join(found[:3])}: give the new run another "
                "--name"
            )
        if found:
            continue
        files = [
            path
            for path in sorted(source.rglob("*"))
            if path.is_file()
            and not path.is_symlink()
            and path.name != CONFIG
            and not any(part.endswith(NOT_COPIED) for part in path.relative_to(source).parts)
        ]
        pairs = [(path, folder / path.relative_to(source)) for path in files]
        folds = [fold for fold in parts.folders(source) if not fold.is_symlink()]
        for checkpoint in [fold / which for fold in folds for which in ("last", "best")]:
            at = standing(checkpoint)  # the session may have died between two renames
            if at not in (None, checkpoint) and at.is_dir() and not at.is_symlink():
                pairs += [
                    (path, folder / checkpoint.relative_to(source) / path.name)
                    for path in sorted(at.iterdir())
                    if path.is_file() and not path.is_symlink()
                ]
        total = sum(path.stat().st_size for path, _ in pairs)
        space.check(folder, total, total)
        # the settings last: they make the rest a run
        for path, target in [*pairs, (source / CONFIG, folder / CONFIG)]:
            _copy(path, target)
        return [f"taken from an earlier session: the run {source}"]
    return []


def _copy(source: Path, target: Path, wanted: str | None = None) -> None:
    """Copy a file whole; sealed.Damaged where it is a link, or not what the checksum says."""
    if source.is_symlink() or not source.is_file():
        raise sealed.Damaged(f"{source} is {'a link' if source.is_symlink() else 'missing'}")
    if wanted and target.is_file() and digest(target) == wanted:
        return
    with open(source, "rb") as old, replacing(target) as new:
        found = hashlib.sha256()
        while data := old.read(1 << 20):
            found.update(data)
            new.write(data)
        if wanted and found.hexdigest() != wanted:
            raise sealed.Damaged(f"{source} is damaged (its checksum differs)")
