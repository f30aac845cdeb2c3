"""The errors that a user is meant to see, each in one line."""

from __future__ import annotations

import errno
import os

# What an OSError says about the file itself. Everything else (EIO, ESTALE, ENOTCONN, ETIMEDOUT, EMFILE,
# ...) is about the disk, the network or this process, and the file may be sound.
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
# What a program meets that follows the numbers of a damaged file.
OF_THE_CONTENT = frozenset({errno.EINVAL, errno.EOVERFLOW, errno.EFBIG})
# What only the user can change: where the outputs go, or how much room there is.
OF_THE_USER = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR}
)


class UserError(Exception):
    """A mistake that the user can fix: one line saying what is wrong, where, and what to do.

    The scripts print it as `error: ...` without a traceback and leave with exit code 2.
    """


class TemporaryError(OSError):
    """The machine failed, not the user and not a file: a drive, the network, descriptors or memory ran out.

    The scripts print it as `error: ...` and leave with exit code 75: the same command continues later.
    """


def unless_temporary(path: str | os.PathLike, error: BaseException) -> None:
    """Raise TemporaryError if it is the disk, the network or the number of descriptors that failed; a file
    must not be called damaged for it."""
    if isinstance(error, TemporaryError):
        raise error
    if (
        isinstance(error, OSError)
        and error.errno
        and error.errno not in OF_THE_FILE | OF_THE_USER | OF_THE_CONTENT
    ):
        raise temporary(path, error) from None


def temporary(path: str | os.PathLike | None, error: OSError | MemoryError) -> TemporaryError:
    """The same failure as a TemporaryError whose text names the file."""
    if isinstance(error, TemporaryError):
        return error
    reason = getattr(error, "strerror", None) or str(error) or "out of memory"
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        reason += " (raise the limit with ulimit -n, or use fewer --workers)"
    return TemporaryError(f"{path or getattr(error, 'filename', None) or 'a file'}: {reason}")
