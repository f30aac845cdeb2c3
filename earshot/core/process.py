"""Prepare a process: standard streams, descriptors, cache folders of libraries."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from earshot.core.file_names import VISIBLE

FILES = 1 << 16
# cache folders of libraries, by default in HOME; some fail without one
CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "NUMBA_CACHE_DIR": "numba",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}


def prepare() -> None:
    """Let this process and its children work without a terminal, a home or a user name.

    Call it before torch, matplotlib or numba is imported.
    """
    _open_streams()
    _escape_output()
    _raise_descriptor_limit()
    _set_home()


def _open_streams() -> None:
    """Open the null device for closed standard streams: else the next opened file would take their descriptor
    and receive what is printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))


def _escape_output() -> None:
    """Escape characters that the terminal cannot show, so that no line raises."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # a notebook's stream
            stream.reconfigure(errors=VISIBLE)  # type: ignore[union-attr]


def _raise_descriptor_limit() -> None:
    """Raise the limit of open files as far as allowed; the usual 1024 is for programs that use select."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _set_home() -> None:
    if not hasattr(os, "getuid"):
        return
    try:
        import pwd

        pwd.getpwuid(os.getuid())
        named = True
    except (ImportError, KeyError):
        named = False
    if not named and not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        os.environ["USER"] = f"user{os.getuid()}"  # torch needs a name; any will do
    home = os.environ.get("HOME") or (os.path.expanduser("~") if named else "")
    if home and os.path.isdir(home) and _is_writable(home):
        return
    own = _make_private_folder()
    if not os.path.isdir(home):
        os.environ["HOME"] = str(own)
    for variable, name in CACHES.items():
        if not os.environ.get(variable):
            os.environ[variable] = str(own / name)
            (own / name).mkdir(exist_ok=True)


def _is_writable(folder: str) -> bool:
    """Test by writing: on a read-only disk permissions don't tell."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder):
        return True
    return False


def _make_private_folder() -> Path:
    """A private folder for temporary files, usually the same in every process."""
    folder = Path(tempfile.gettempdir()) / f"earshot-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(folder)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="earshot-"))
