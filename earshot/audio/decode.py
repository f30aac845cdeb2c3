"""From a file to blocks of samples: whatever the file claims or holds, memory stays small and nothing
hangs."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from earshot.core.errors import UserError
from earshot.core.file_names import decodable, suffix_of

if TYPE_CHECKING:
    import soundfile

LONGEST = 12 * 3600  # seconds: a compressed megabyte can unfold to days
USUAL = 96_000  # samples per second up to which a recording may last that long: 17 GB of samples
# samples to a byte: the lowest rates of codecs have 64; digital silence has more, and is decoded to be
# counted
DENSEST = 100
FASTEST = 2_000_000  # samples per second, five times what bat detectors take: beyond, the header lies
# samples of each channel: where a decoder gives up, no more than a tenth of a second before goes with it
BLOCK = 4096
STRIDE = 1 << 20  # samples of all channels asked for at once, for as long as the decoder does not give up
IN_MEMORY = 1 << 22  # samples (16 MB): dozens of clips wait for the extractor at a time
SPILL = Path("/var/tmp")  # lies on a disk; /tmp is often memory
SILENT_DECODERS = (b"RIFF", b"fLaC", b"OggS", b"FORM", b".snd", b"RF64")  # what is none of these may be MP3


class BadAudio(Exception):
    """A clip that cannot be used; `args[0]` is the short reason for the ledger, one line without a path."""


def openable(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        BadAudio: missing, empty, forbidden or no regular file: a pipe would keep us waiting, a device never
            end.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise BadAudio("is a directory")
        if not stat.S_ISREG(mode):
            raise BadAudio("not a regular file")
        with open(path, "rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        raise BadAudio("no such file") from None
    except PermissionError:
        raise BadAudio("no permission") from None
    except OSError as error:
        raise BadAudio(f"cannot be read: {error.strerror or type(error).__name__}") from None
    if not head:
        raise BadAudio("empty file")
    return head


def header(path: Path) -> tuple[int, int]:
    """Samples of each channel, as the header has it, and the rate; (-1, 0) where it does not say, or what
    cannot be true."""
    import soundfile

    with quiet(openable(path)):
        try:
            found = soundfile.info(os.fsencode(path))
        except Exception:  # whatever it is, decoding either works or words the reason
            return -1, 0
    # libsndfile answers 2**63-1 for a stream of unknown length, and any number that stands in a damaged
    # header.
    likely = min(LONGEST * found.samplerate, DENSEST * path.stat().st_size)
    return (
        (found.frames, found.samplerate)
        if 1 <= found.samplerate <= FASTEST and found.frames <= likely
        else (-1, 0)
    )


def blocks(path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """The rate of a file and its samples in blocks, (samples, channels) float32 each: by soundfile, else by
    audioread.

    A file that is cut off or damaged is decoded for as long as that goes: its first part is real audio, and
    most formats do not even tell that something is missing. Nothing is made up for the rest, whatever the
    header claims.

    Raises:
        BadAudio: not a block can be decoded, now or when the first is asked for; more than `LONGEST`.
    """
    head = openable(path)
    try:
        with quiet(head):
            file = _opened(path)
        found = _soundfile(path, file, head)
        first = list(itertools.islice(found, 1))
        return _plausible(file.samplerate), _limited(itertools.chain(first, found), file.samplerate)
    except BadAudio:
        raise
    except Exception as error:  # a decoder fed with garbage raises anything, MemoryError included
        reason = _reason(path, error)
    try:
        rate, found = _audioread(path)
    except Exception:  # no decoder, or a second one that fails: soundfile's reason is the plainer
        raise BadAudio(f"cannot be decoded: {reason}") from None
    return _plausible(rate), _limited(found, rate)


def _plausible(rate: int) -> int:
    if not 1 <= rate <= FASTEST:
        raise BadAudio(f"its header claims {rate} samples a second")
    return int(rate)


def _opened(path: Path) -> soundfile.SoundFile:
    import soundfile

    file = soundfile.SoundFile(os.fsencode(path))
    # Not seekable, as far as soundfile goes: it would seek after every block, at the cost of time and
    # of the codec's state.
    file.seekable = lambda: False
    return file


def _soundfile(path: Path, file: soundfile.SoundFile | None, head: bytes) -> Iterator[np.ndarray]:
    """Blocks as large as the whole of a short clip; where the decoder gives up within one, that stretch again
    in small ones."""
    stride = min(max(1, STRIDE // (BLOCK * file.channels)) * BLOCK, max(BLOCK, file.frames))
    done = left = 0  # samples given out; those of them to be passed over when decoding once more
    careful = False
    try:
        while True:
            try:
                with quiet(head):
                    file = file or _opened(path)
                    block = file.read(min(left, BLOCK) or stride, dtype="float32", always_2d=True)
            except Exception:  # cut off or damaged here: what came before stays good
                if careful and done == 0:
                    raise
                if careful:
                    return
                if file:
                    file.close()
                file, stride, left, careful = None, BLOCK, done, True
                continue
            if not len(block):
                return
            if left:
                left -= len(block)
                continue
            done += len(block)
            yield block
    finally:
        if file:
            file.close()


def _audioread(path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """What librosa falls back on (ffmpeg and the like), without librosa: its import and warnings suit no
    thread."""
    import audioread

    file = audioread.audio_open(str(path))
    channels = int(file.channels)

    def decoded() -> Iterator[np.ndarray]:
        rest = b""
        with file:
            try:
                for buffer in file:  # 16-bit little-endian, interleaved
                    data = rest + buffer
                    whole = len(data) - len(data) % (2 * channels)
                    rest = data[whole:]
                    pcm = np.frombuffer(data[:whole], dtype="<i2")
                    yield (pcm / np.float32(32768)).astype(np.float32).reshape(-1, channels)
            except Exception:  # as in `_soundfile`
                return

    return int(file.samplerate), decoded()


def _limited(found: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    samples = 0
    for block in filter(len, found):
        samples += len(block)
        if samples > LONGEST * min(rate, USUAL):
            raise BadAudio(
                f"longer than {LONGEST / 3600:g} h"
                if rate <= USUAL
                else f"more than {LONGEST * USUAL:,} samples"
            )
        yield block


def gather(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """One wave from pieces (samples,) float32: in memory, or read-only on an unlinked temporary file where it
    is long.

    The file lies in TMPDIR where that is set, else in /var/tmp, and needs no cleaning up.

    Raises:
        UserError: there is no room for it.
    """
    held: list[np.ndarray] = []
    waiting, file = 0, None
    try:
        for piece in pieces:
            held.append(piece)
            waiting += len(piece)
            if waiting > IN_MEMORY:
                file = file or tempfile.TemporaryFile(dir=_spill())
                np.concatenate(held).tofile(file)
                held.clear()
                waiting = 0
        joined = held[0] if len(held) == 1 else np.concatenate(held or [np.zeros(0, np.float32)])
        if file is None:
            return joined
        joined.tofile(file)
        file.flush()
    except OSError as error:  # not the clip's fault: it would be left out of the features for good
        raise UserError(
            f"no room for a long clip in {_spill()} ({error.strerror or error}): free some, or set TMPDIR to "
            "a folder on another disk"
        ) from None
    return np.asarray(np.memmap(file, dtype=np.float32, mode="r"))


def _spill() -> str:
    if not os.environ.get("TMPDIR") and SPILL.is_dir() and os.access(SPILL, os.W_OK):
        return str(SPILL)
    return tempfile.gettempdir()


_lock, _inside, _saved = threading.Lock(), 0, -1


@contextlib.contextmanager
def quiet(head: bytes) -> Iterator[None]:
    """Keeps libmpg123's notes, which it writes to file descriptor 2 itself, off the terminal while it
    decodes.

    Only for files that begin like none of the other formats. Python's own messages are safe in the scripts,
    whose `sys.stderr` has a descriptor of its own (`cli.run`).
    """
    global _inside, _saved
    if head[:4] in SILENT_DECODERS:
        yield
        return
    with _lock:  # the descriptor is the process's: the first thread in closes it, the last one out opens it
        if _inside == 0:
            sys.stderr.flush()
            _saved = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                os.dup2(_saved, 2)
                os.close(_saved)


def _reason(path: Path, error: Exception) -> str:
    """Why soundfile could not, in one line without the path."""
    suffix = suffix_of(path.name)
    if suffix and suffix not in decodable():
        return f"nothing here decodes .{suffix} files (ffmpeg might)"
    if isinstance(error, MemoryError):
        return "its header claims more audio than memory holds"
    text = getattr(error, "error_string", "") or str(error) or type(error).__name__
    # libsndfile's words for an MP3 without a single frame; the file was opened above
    if "File does not exist" in text:
        return "Format not recognised"
    text = text.replace(str(path.resolve()), path.name).replace(str(path), path.name)
    return " ".join(text.split())[:160].rstrip(".")
