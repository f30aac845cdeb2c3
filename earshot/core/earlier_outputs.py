"""Outputs of earlier sessions, attached read-only: find them, copy them with their checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from earshot.core import checksums, kaggle_paths
from earshot.core.errors import UserError
from earshot.core.files import hash_file, replace_file


def find_roots(named: str | None) -> list[Path]:
    """Where to look: the given folder, else Kaggle's attached inputs (EARSHOT_ATTACHED names another place).

    Raises:
        UserError: the named folder does not exist.
    """
    if named is not None:
        if not Path(named).is_dir():
            raise UserError(
                f"--continue-from {named}: no such folder: name one that holds earlier outputs, such as "
                "data/ and runs/"
            )
        return [Path(named)]
    top = kaggle_paths.get_input_root()
    return [top] if top else []


def find_folders(named: str | None, name: str) -> Iterator[Path]:
    """The folders of earlier outputs that hold a file of this name; links are not followed."""
    for root in find_roots(named):
        for folder, below, names in os.walk(root):
            below[:] = sorted(below) if len(Path(folder).relative_to(root).parts) < kaggle_paths.DEPTH else []
            if name in names and not os.path.islink(os.path.join(folder, name)):
                yield Path(folder)


def copy_file(source: Path, target: Path, wanted: str | None = None) -> None:
    """Copy a file; CorruptFile if it is a link or its checksum differs."""
    if source.is_symlink() or not source.is_file():
        raise checksums.CorruptFile(f"{source} is {'a link' if source.is_symlink() else 'missing'}")
    if wanted and target.is_file() and hash_file(target) == wanted:
        return
    with open(source, "rb") as old, replace_file(target) as new:
        checksum = hashlib.sha256()
        while data := old.read(1 << 20):
            checksum.update(data)
            new.write(data)
        if wanted and checksum.hexdigest() != wanted:
            raise checksums.CorruptFile(f"{source} is damaged (its checksum differs)")
