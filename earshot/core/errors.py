"""The errors that users see, each in one line."""

from __future__ import annotations

import errno
import os

# errno of a file that is missing, forbidden or of another kind
OF_THE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)
# errno of a failing disk, network or process, while the file may be fine; by name, as some are Linux's only
OF_THE_MACHINE = frozenset(
    getattr(errno, name)
    for name in (
        "EIO ESTALE ENOTCONN ETIMEDOUT EMFILE ENFILE ENOMEM EAGAIN EBUSY EINTR ENODEV EHOSTDOWN EHOSTUNREACH "
        "ENETDOWN ENETUNREACH ENETRESET ECONNRESET ECONNABORTED ECONNREFUSED ESHUTDOWN EREMOTEIO ENOLINK "
        "EREMCHG ENOMEDIUM EUCLEAN ENOKEY EKEYEXPIRED EPROTO ECOMM"
    ).split()
    if hasattr(errno, name)
)


class UserError(Exception):
    """A mistake that the user can fix: one line saying what is wrong, where, and what to do.

    The scripts print it as `error: ...` without a traceback and leave with exit code 2.
    """


class Refused(Exception):
    """The reason why an untrusted file is refused, in a few words; the caller names the file."""


class TemporaryError(OSError):
    """A drive or the network failed, or descriptors or memory ran out: no fault of the user or a file.

    The scripts print it as `error: ...` and leave with exit code 75: the same command continues later.
    """


def raise_if_temporary(path: str | os.PathLike, error: BaseException) -> None:
    """Raise TemporaryError if the disk, the network or the limit of descriptors caused an error, as the file
    is not damaged then."""
    if isinstance(error, TemporaryError):
        raise error
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        raise to_temporary(path, error) from None


def to_temporary(path: str | os.PathLike | None, error: OSError | MemoryError) -> TemporaryError:
    """The failure as a TemporaryError that names the file."""
    if isinstance(error, TemporaryError):
        return error
    reason = getattr(error, "strerror", None) or str(error) or "out of memory"
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        reason += " (raise the limit with ulimit -n, or use fewer --workers)"
    return TemporaryError(f"{path or getattr(error, 'filename', None) or 'a file'}: {reason}")
