"""Atomic writes, locks and hashes of files: a kill leaves the old file or the new one, never half of one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from earshot.core import file_content
from earshot.core.errors import UserError, raise_if_temporary
from earshot.core.file_names import VISIBLE

LARGEST_JSON = 64 << 20  # bytes: a thousand epochs' history takes one
LOCK = ".lock"
TOKEN = ".token"  # by which workers on other machines recognise the folder that a process has locked
WORKERS = 1  # the byte of a lock file that worker processes hold together


@dataclass
class WriteGuard:
    """How this process writes where processes of other machines write, too.

    Args:
        suffix: in the names of unfinished files and folders, ".host-pid": no lock keeps two machines apart.
        check: called right before a file or folder takes its name, and before what others left half-written
            is removed; it may raise, or end the process.
    """

    suffix: str = ""
    check: Callable[[], None] = lambda: None


GUARD = WriteGuard()


def _flush_folder(folder: Path) -> None:
    # Without this a power cut may undo the rename although the file's bytes are on disk.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse to sync a folder
    finally:
        os.close(handle)


@contextmanager
def replace_file(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file to write that takes the place of `path` when the block ends, and vanishes if it raises.

    The temporary name is fixed, so that a rerun after a kill overwrites the remains instead of adding to
    them; of two processes that write the same path at once, one waits for the other. An OSError of the block
    names the path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}{GUARD.suffix}.tmp")
    try:
        with _open_exclusive(beside) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                GUARD.check()
                os.replace(beside, path)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno and (not error.filename or str(error.filename) == str(beside)):
            error.filename = str(path)  # a failed write or flush does not know its file
        raise
    _flush_folder(path.parent)


@contextmanager
def _open_exclusive(path: Path) -> Iterator[BinaryIO]:
    """Open an empty file for this process only."""
    import fcntl

    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass  # a file system without locks
            try:
                same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except FileNotFoundError:
                same = False
            if not same:  # who held it has renamed or removed it while we waited
                continue
            file.truncate()
            yield file
            return


def append_text(path: Path | str, text: str) -> None:
    """Add text to a file; an OSError names it."""
    try:
        with open(path, "a", encoding="utf-8", errors=VISIBLE) as file:
            file.write(text)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def clear_temporary(folder: Path | str) -> None:
    """Remove half-written files of killed processes below a folder that this process holds."""
    for path in Path(folder).rglob("*.tmp"):
        if path.is_file():
            path.unlink()


def check_output(path: Path | str) -> None:
    """Raise UserError early if a file cannot be written there."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file, for example {path / 'submission.csv'}")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out {path}: cannot write into {parent}: choose another place")


def check_plain_name(flag: str, name: str | None) -> None:
    """Raise UserError for a name that is a path."""
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise UserError(f"{flag} {name}: a name, not a path")


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace the file at `path` with `data`, atomically."""
    with replace_file(path) as file:
        file.write(data)


def write_text(path: Path | str, text: str) -> None:
    """Replace the file at `path` with `text` in UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8", VISIBLE))


def write_json(path: Path | str, value: Any) -> None:
    """Replace the file at `path` with `value` as readable JSON, atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    # The index of source files names paths that may be no UTF-8: a lone surrogate becomes JSON's own escape.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path | str) -> Any:
    """The value in a JSON file; UserError if it is missing or damaged."""
    try:
        if os.path.getsize(path) > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON >> 20} MB")
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise_if_temporary(path, error)
        raise UserError(f"{path} cannot be read ({error}): delete it, or start over with --fresh") from None


@contextmanager
def replace_folder(folder: Path | str) -> Iterator[Path]:
    """A new folder to fill that replaces `folder` when the block ends.

    This takes two renames, so a kill between them leaves no `folder`: `recover_folder` fixes that.
    """
    folder = Path(folder)
    GUARD.check()  # a worker that was lost would remove what its replacement is writing
    recover_folder(folder)
    new, old = folder.with_name(f"{folder.name}{GUARD.suffix}.new"), folder.with_name(folder.name + ".old")
    new.mkdir(parents=True)
    yield new
    for file in new.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    _flush_folder(new)
    GUARD.check()
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    _flush_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def find_content(folder: Path | str) -> Path | None:
    """Where the content of `folder` is, also in the middle of a replacement; None if there is none. Changes
    nothing, so it is for readers."""
    folder = Path(folder)
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if folder.exists() or not old.exists():
        return folder if folder.exists() else None
    return new if new.exists() else old  # the old folder is moved away only after the new one is whole


def recover_folder(folder: Path | str) -> bool:
    """Repair what a kill inside `replace_folder` left; True if `folder` exists afterwards. The caller holds
    the lock."""
    folder = Path(folder)
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        # The old folder is moved away only after the new one is whole and flushed.
        os.replace(new if new.exists() else old, folder)
    # those of other machines' processes, too, which have lost their work to this one
    for left in (new, *folder.parent.glob(f"{folder.name}.*.new"), old):
        shutil.rmtree(left, ignore_errors=True)
    return folder.exists()


@contextmanager
def hold_lock(folder: Path | str, what: str, wait: bool = False) -> Iterator[None]:
    """Lock `folder` for this process; a second process gets one line, or waits. A kill releases the lock.

    A killed process's workers are waited for: they end by themselves, at once.
    """
    import fcntl

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            fcntl.lockf(handle, fcntl.LOCK_EX, 1, WORKERS)
            fcntl.lockf(handle, fcntl.LOCK_UN, 1, WORKERS)
        except BlockingIOError:
            raise UserError(
                f"another process is working on {what} {folder}: wait for it, or stop it first"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


@contextmanager
def share_lock(lock: Path | str) -> Iterator[None]:
    """Share the parent's lock in a worker process: after the parent's death others wait until the worker has
    ended, too."""
    import fcntl

    with open(lock, "rb") as handle:
        try:
            # of another kind than flock's: both may be held
            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, WORKERS)
        except OSError:
            pass
        yield


def empty_folder(folder: Path | str, first: str = "") -> None:
    """Remove everything in a folder except this process's lock file and token, beginning with `first`."""
    for path in sorted(Path(folder).iterdir(), key=lambda path: path.name != first):
        if path.name not in (LOCK, TOKEN):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_value(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def replace_weights_path(options: dict) -> dict:
    """A head's options with the path of local pretrained weights replaced by a hash of their content, as
    paths change."""
    path = Path(str(options.get("weights") or "")).expanduser()
    if not options.get("weights") or not path.exists():
        return options
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if file == path or file.suffix == ".safetensors":  # what else lies in the folder is not read
            file_content.check_content(file)
    return {**options, "weights": hash_value([hash_file(p) for p in files])[:16]}
