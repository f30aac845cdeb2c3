"""Which folders and files of the driver a node of the cluster sees."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from earshot.core.errors import UserError
from earshot.core.files import TOKEN, write_text


@contextmanager
def hold_token(folder: Path) -> Iterator[str]:
    """Within the block a new token lies in a folder that this process has locked."""
    token = uuid4().hex
    write_text(folder / TOKEN, token)
    try:
        yield token
    finally:
        (folder / TOKEN).unlink(missing_ok=True)


def has_token(folder: Path, token: str) -> bool:
    """Is a folder here the one that `hold_token` was called with?"""
    try:
        return (folder / TOKEN).read_text(encoding="ascii", errors="replace") == token
    except OSError:
        return False


def check_seen(paths: Iterable[str | Path], what: str) -> None:
    """Raise UserError for the first path that is missing on this node."""
    for path in paths:
        if not os.path.exists(path):
            raise UserError(
                f"{socket.gethostname()} does not see the {what} {path}: mount it on every node of the "
                "cluster, in the same place"
            )


def check_folder(folder: Path, token: str, what: str) -> None:
    """Raise UserError where a folder here is not the one that `hold_token` was called with."""
    if not has_token(folder, token):
        raise UserError(
            f"{socket.gethostname()} does not see {what} {folder}: put it on a file system that every node "
            "of the cluster mounts in the same place"
        )


def check_weights(found: str | None, wanted: str | None, what: str) -> None:
    """Raise UserError where the digest of weights on this node is not that of the driver."""
    if found != wanted:
        raise UserError(
            f"{socket.gethostname()} has other weights of {what} than the machine where the command runs: "
            "copy those there, or mount them"
        )
