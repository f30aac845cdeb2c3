"""The bytes of an audio file for a decoder; keeps every error of the disk or network."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

from earshot.core.errors import OF_THE_FILE, to_temporary

CHUNK = 1 << 20  # bytes searched at a time


class BadAudio(Exception):
    """A clip that cannot be used; `args[0]` is the short reason, one line without a path."""


class Unreadable(BadAudio):
    """A file that is missing or may not be read. If it was listed just before, the drive may have failed."""


class Source(io.RawIOBase):
    """`head` and the bytes [start, end) of an open file, as a file object for a decoder.

    Decoders take a failed read for the end of the audio. So the first failure is kept in `fault`, also where
    the file ends before its size on the disk, and `check` raises it.
    """

    def __init__(self, path: str, file: io.FileIO, start: int, end: int, head: bytes = b"") -> None:
        self.path, self.file, self.start, self.end, self.head = path, file, start, end, head
        self.at = 0
        self.fault: OSError | None = None
        self.whole: Source | None = None  # the whole file: it stays open with it

    @classmethod
    def open(cls, path: Path | str) -> Source:
        """A whole file.

        Raises:
            Unreadable: missing or forbidden.
            BadAudio: empty, a folder, or not a regular file: a pipe could block, a device never end.
            TemporaryError: the system failed.
        """
        name = os.fspath(path)
        try:
            mode = os.stat(name).st_mode
            if stat.S_ISDIR(mode):
                raise BadAudio("is a directory")
            if not stat.S_ISREG(mode):
                raise BadAudio("not a regular file")
            file = io.FileIO(os.fsencode(name))
            size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise to_error(name, error) from None
        if not size:
            file.close()
            raise BadAudio("empty file")
        return cls(name, file, 0, size)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.head) + self.end - self.start

    def open_part(self, start: int, end: int, head: bytes = b"") -> Source:
        """The bytes [start, end) of this file, which has no head, as another file object."""
        found = Source(self.path, self.file, self.start + start, self.start + end, head)
        found.whole = self
        return found

    def check(self) -> None:
        """Raise TemporaryError if a read has failed."""
        if self.fault:
            raise to_temporary(self.path, self.fault)

    def read_at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes from a position, fewer only at the end; TemporaryError where that fails."""
        before, self.at = self.at, position
        buffer = bytearray(max(0, min(count, self.size - position)))
        got = self.readinto(buffer)
        self.at = before
        self.check()
        return bytes(buffer[:got])

    def find(self, wanted: bytes, position: int) -> int:
        """The next position of some bytes at or after a position, -1 where there is none."""
        count = 1 << 12  # matches are mostly near: a file full of them must not be read many times
        while position < self.size:
            at = self.read_at(position, count + len(wanted) - 1).find(wanted)
            if at >= 0:
                return position + at
            position += count
            count = min(2 * count, CHUNK)
        return -1

    def read_through(self) -> None:
        """Read the whole file, so that an I/O error, which ffmpeg hides, raises TemporaryError."""
        for position in range(0, self.size, CHUNK):
            self.read_at(position, CHUNK)

    def close(self) -> None:
        super().close()
        if self.whole is None:
            self.file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        self.at = max(0, base + offset)
        return self.at

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.size - self.at)]
        done = 0
        if self.at < len(self.head):
            piece = self.head[self.at : self.at + len(view)]
            done = len(piece)
            view[:done] = piece
        while done < len(view) and self.fault is None:
            try:
                place = self.start + self.at + done - len(self.head)
                data = os.pread(self.file.fileno(), len(view) - done, place)
                if not data:
                    self.fault = OSError(
                        errno.EIO, "ends before its size: it is being changed, or can't be read"
                    )
                view[done : done + len(data)] = data
                done += len(data)
            except OSError as error:
                self.fault = error
        self.at += done
        return done


def to_error(path: str, error: OSError) -> BadAudio | OSError:
    """The error for a file that can't be opened: Unreadable, or TemporaryError where the system is at
    fault."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Unreadable("no such file")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Unreadable("no permission")
    if error.errno in OF_THE_FILE:
        return Unreadable(f"can't be read: {error.strerror}")
    return to_temporary(path, error)
