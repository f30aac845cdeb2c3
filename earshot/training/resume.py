"""Runs of earlier sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from earshot.core import disk_space
from earshot.core.earlier_outputs import copy_file, find_folders
from earshot.core.errors import UserError
from earshot.core.files import find_content, hash_value
from earshot.core.fingerprint import list_differences, to_json
from earshot.features import cache
from earshot.features.resume import find_caches
from earshot.training.run import CONFIG, Run, list_slot_folders

NOT_COPIED = (".tmp", ".new", ".old", ".damaged", ".lock", ".token")


def open_run(name: str, runs_folder: str = "runs") -> Run:
    """Open a run by its folder, its name in runs/, or the name of an attached one.

    Raises:
        UserError: no such run.
    """
    here = [path for path in (Path(name), Path(runs_folder) / name) if (path / CONFIG).is_file()]
    here = here or [path for path in list_attached_runs() if path.name == name]
    there = Path(name) if Path(name).exists() else Path(runs_folder) / name
    return Run.open(here[0] if here else there).validate()


def list_attached_runs() -> list[Path]:
    """The attached runs, to be read in place."""
    return [folder for folder in find_folders(None, CONFIG) if (folder / "training_log.txt").is_file()]


def find_cache(run: Run, data: str = "data") -> Path | None:
    """A finished cache, here or attached, with the features that a run was trained on; of several, one with
    clips to submit."""
    wanted, found = run.config["record"], []
    for folder in [*cache.find_folders(data), *find_caches(None)]:
        manifest = cache.read_manifest(folder / cache.MANIFEST)
        record = manifest.get("record")
        if (
            not manifest.get("complete")
            or not isinstance(record, dict)
            or record.get("labels") != hash_value(wanted["classes"])[:16]
        ):
            continue
        if not list_differences(wanted["features"], {key: record.get(key) for key in wanted["features"]}):
            found.append((("subm" in manifest.get("splits", {})), folder))
    return next((folder for with_clips, folder in found if with_clips), found[0][1] if found else None)


def copy_run(folder: Path, record: dict[str, Any], given: str | None, named: bool) -> list[str]:
    """Copy an earlier session's run of the same name and settings to `folder`, unless it holds one; lines to
    print.

    Args:
        record: what the run here is made from.
        named: did the user name the run? Then a run of that name in the user's folder must have the same
            settings.
    Raises:
        UserError: it has others; the differences are named.
    """
    if (folder / CONFIG).exists():
        return []
    for source in find_folders(given, CONFIG):
        if source.name != folder.name or folder.exists() and source.samefile(folder):
            continue
        found = list_differences(Run.open(source).config["record"], to_json(record))
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
        folds = [fold for fold in list_slot_folders(source) if not fold.is_symlink()]
        for checkpoint in [fold / which for fold in folds for which in ("last", "best")]:
            at = find_content(checkpoint)  # the session may have been killed between two renames
            if at not in (None, checkpoint) and at.is_dir() and not at.is_symlink():
                pairs += [
                    (path, folder / checkpoint.relative_to(source) / path.name)
                    for path in sorted(at.iterdir())
                    if path.is_file() and not path.is_symlink()
                ]
        total = sum(path.stat().st_size for path, _ in pairs)
        disk_space.check_space(folder, total, total)
        # the settings last: they make the rest a run
        for path, target in [*pairs, (source / CONFIG, folder / CONFIG)]:
            copy_file(path, target)
        return [f"copied from an earlier session: the run {source}"]
    return []
