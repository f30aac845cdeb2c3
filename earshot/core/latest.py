"""Which caches or runs were worked on last: the file `.latest` beside them, a line each, the latest first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from earshot.core.deadline import build_continue_command
from earshot.core.file_names import VISIBLE
from earshot.core.files import write_text

NAME = ".latest"
KEPT = 100  # lines


def read(root: Path) -> dict[str, str]:
    """Name -> the command that finishes it, "" where it is finished; the latest first."""
    try:
        lines = (root / NAME).read_text(encoding="utf-8", errors=VISIBLE).splitlines()
    except OSError:
        return {}
    return {name: command for name, _, command in (line.partition("\t") for line in lines) if name}


def begin(root: Path, name: str, script: str) -> None:
    """Put what `script` begins or continues in first place, with the running command, which finishes it."""
    called = os.path.basename(sys.argv[0]) == script
    _put_first(root, name, build_continue_command() if called else "the call that began it")


def finish(root: Path, name: str) -> None:
    """Put what is finished in first place."""
    _put_first(root, name, "")


def _put_first(root: Path, name: str, command: str) -> None:
    others = [(other, text) for other, text in read(root).items() if other != name][: KEPT - 1]
    lines = [f"{other}\t{text}".rstrip("\t") for other, text in [(name, command), *others]]
    write_text(root / NAME, "\n".join(lines) + "\n")


def find_latest(folders: Iterable[Path], levels: int) -> tuple[Path, str] | None:
    """Of these folders the one that was worked on last, and the command that finishes it, "" where it is
    finished; None where that was not recorded.

    Args:
        levels: how deep below `.latest` they lie: 1 for runs/<name>, 2 for data/<competition>/<cache>.
    """
    folders = list(folders)
    for root in dict.fromkeys(folder.parents[levels - 1] for folder in folders):
        by_name = {"/".join(folder.parts[-levels:]): folder for folder in folders}
        for name, command in read(root).items():
            if name in by_name:
                return by_name[name], command
    return None
