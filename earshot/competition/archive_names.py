"""File names of archives, and the commands that unpack those that Earshot can't read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from earshot.core import shell
from earshot.core.file_names import format_ids

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
PARTS = re.compile(r"\.(z\d\d|(zip|7z|rar|tar|gz|tgz)\.\d{2,3}|r\d\d)$", re.IGNORECASE)
COMMANDS = {
    ".7z": "7z x",
    ".rar": "unrar x",
    ".tar.zst": "tar --zstd -xf",
    ".tzst": "tar --zstd -xf",
    ".zst": "unzstd",
    ".gz": "gunzip -k",
    ".bz2": "bunzip2 -k",
    ".xz": "unxz -k",
    ".lzma": "unlzma -k",
    ".lz4": "lz4 -dk",
    ".z": "uncompress -k",
}


def is_zip(name: str) -> bool:
    """Whether a file name is that of a zip."""
    return name.lower().endswith(".zip")


def is_tar(name: str) -> bool:
    """Whether a file name is that of a tar that Python can read, compressed or not."""
    return name.lower().endswith(TARS)


def is_unreadable_archive(name: str) -> bool:
    """Whether a file name is that of an archive, or part of one, that Earshot can't read."""
    return not is_tar(name) and (name.lower().endswith(tuple(COMMANDS)) or bool(PARTS.search(name)))


def strip_archive_suffix(name: str) -> str:
    """The name of a zip or tar without its suffix."""
    suffix = next((s for s in sorted(TARS, key=len, reverse=True) if name.lower().endswith(s)), ".zip")
    return name[: -len(suffix)]


def format_unpack_hint(names: Sequence[str]) -> str:
    """Names of archives that Earshot can't read, and the command that unpacks the first one."""
    first = sorted(names)[0]
    if part := PARTS.search(first):
        # a zip in parts is unpacked from its last, x.zip; others from their first
        whole = f"{first[: part.start()]}.zip" if part[1].lower().startswith("z") else first
        command = shell.join_command("7z", "x", whole if part[1][1:].isdigit() else first)
    else:
        unpack_command = next(c for s, c in COMMANDS.items() if first.lower().endswith(s))
        command = f"{unpack_command} {shell.quote(first)}"
    python = f" (or {shell.join_command('python', '-m', 'py7zr', 'x', first)} after pip install py7zr)"
    return f"{format_ids(names)}: {command}{python if command.startswith('7z x') and not part else ''}"
