"""Decodes a file into blocks of samples, with bounded memory and time whatever the file holds."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from earshot.audio import containers
from earshot.audio.source import BadAudio, Source
from earshot.core import file_content
from earshot.core.errors import TemporaryError, to_temporary
from earshot.core.file_names import get_suffix, list_decodable

if TYPE_CHECKING:
    import soundfile

LONGEST = 12 * 3600  # seconds: a compressed megabyte can unfold to days
USUAL = 96_000  # samples per second up to which a recording may have that length: 17 GB of samples
# samples per byte: the lowest bit rates of codecs have 64; digital silence has more, and is decoded to be
# counted
DENSEST = 100
FASTEST = 2_000_000  # samples per second, five times a bat detector's: a higher rate in a header is wrong
# samples of each channel: where a decoder gives up, at most a tenth of a second before it is lost
BLOCK = 4096
STRIDE = 1 << 20  # samples of all channels that are read at once, until the decoder gives up
SHORT = 0.9  # share of the length in the header: encoders pad by less than the rest
HEADERLESS = ("gsm", "vox", "sd2")
SILENT_DECODERS = (b"RIFF", b"fLaC", b"OggS", b"FORM", b".snd", b"RF64")  # other files may be MP3


def read_header(path: Path) -> tuple[int, int]:
    """Samples of each channel and the sampling rate, from the header; (-1, 0) where they are missing or
    impossible.

    Raises:
        BadAudio: the file can't be opened, or is empty.
        TemporaryError: the disk, the network or this process failed.
    """
    with Source.open(path) as source:
        frames = rate = 0
        for stream in containers.split_streams(source):
            try:
                with silence_mpg123(source.read_at(0, 4)), _open_stream(stream) as file:
                    found, its = file.frames, file.samplerate
            except TemporaryError:
                raise
            except Exception:  # decoding either works or gives the reason
                return -1, 0
            # libsndfile returns 2**63-1 for a stream of unknown length, and any number from a
            # damaged header.
            likely = min(LONGEST * its, DENSEST * source.size)
            if not 1 <= its <= FASTEST or found > likely or rate not in (0, its):
                return -1, 0
            frames, rate = frames + found, its
        return frames, rate


def read_blocks(path: Path, partial: list[str] | None = None) -> tuple[int, Iterator[np.ndarray]]:
    """The sampling rate of a file and its samples in blocks, (samples, channels) float32 each, by soundfile,
    else by audioread.

    All streams of a file are decoded, at the first one's rate. A file that is cut off or damaged is decoded
    as far as possible: its first part is real audio, and most formats do not show that something is missing.
    Nothing is added for the rest, whatever the header claims.

    Args:
        partial: receives a reason if some of the file can't be decoded, once that is known.
    Raises:
        BadAudio: no block can be decoded, now or when the first is read; more than `LONGEST`.
        TemporaryError: the disk, the network or this process failed, then or at a later block.
    """
    source, lost = Source.open(path), [] if partial is None else partial
    try:
        start = source.read_at(0, file_content.HEAD)
        streams = containers.split_streams(source)
        while True:
            try:
                with silence_mpg123(start):
                    file = _open_stream(streams[0])
                found = _join_streams(streams, file, start, lost)
                first = list(itertools.islice(found, 1))
                break
            except (BadAudio, TemporaryError):
                raise
            except Exception:
                if len(streams) == 1:
                    raise
                lost.append("a stream")
                del streams[0]  # this stream can't be decoded; later ones may be fine
        rate = file.samplerate
        return _check_rate(rate), _limit_length(itertools.chain(first, found), rate)
    except (BadAudio, TemporaryError):
        source.close()
        raise
    except Exception as error:  # a decoder may raise anything on garbage
        reason = _explain_failure(source, start, error)
    try:
        rate, found = _decode_by_audioread(source)
        return _check_rate(rate), _limit_length(found, rate)
    except (BadAudio, TemporaryError):
        raise
    except Exception:  # no decoder, or a second one that fails: soundfile's reason is clearer
        source.read_through()
        Source.open(path).close()  # ffmpeg opens the file itself: check that it still exists
        raise BadAudio(f"cannot be decoded: {reason}") from None


def _check_rate(rate: int) -> int:
    if not 1 <= rate <= FASTEST:
        raise BadAudio(f"its header claims {rate} samples a second")
    return int(rate)


def _open_stream(stream: Source) -> soundfile.SoundFile:
    """soundfile on a stream; TemporaryError where the disk or memory failed."""
    import soundfile

    stream.seek(0)
    try:
        file = soundfile.SoundFile(stream)
    except MemoryError as error:
        raise to_temporary(stream.path, error) from None
    except Exception:
        stream.check()
        if get_suffix(stream.path) not in HEADERLESS:
            raise
        file = soundfile.SoundFile(os.fsencode(stream.path))  # libsndfile goes by the file name
        stream.read_through()
    finally:
        stream.check()
    # Not seekable for soundfile: it would seek after every block, which costs time and the codec's state.
    file.seekable = lambda: False
    return file


def _join_streams(
    streams: list[Source], first: soundfile.SoundFile, head: bytes, lost: list[str]
) -> Iterator[np.ndarray]:
    """Blocks of all streams, at the first one's rate. Later streams that can't be decoded are left out."""
    rate = first.samplerate
    yield from _read_stream(streams[0], first, head, lost)
    for stream in streams[1:]:
        try:
            with silence_mpg123(head):
                file = _open_stream(stream)
            found = _read_stream(stream, file, head, lost)
            yield from found if file.samplerate == rate else _resample_blocks(found, file, rate)
        except TemporaryError:
            raise
        except Exception:
            lost.append("a stream")


def _resample_blocks(
    found: Iterator[np.ndarray], file: soundfile.SoundFile, rate: int
) -> Iterator[np.ndarray]:
    import soxr

    stream = soxr.ResampleStream(
        _check_rate(file.samplerate), rate, file.channels, dtype="float32", quality="HQ"
    )
    for block in found:
        yield stream.resample_chunk(block).reshape(-1, file.channels)
    rest = np.zeros((0, file.channels), np.float32)
    yield stream.resample_chunk(rest, last=True).reshape(-1, file.channels)


def _read_stream(
    stream: Source, opened: soundfile.SoundFile, head: bytes, lost: list[str]
) -> Iterator[np.ndarray]:
    """Blocks as large as a whole short clip; where the decoder gives up within one, it is read again in small
    blocks."""
    file: soundfile.SoundFile | None = opened
    stride = min(max(1, STRIDE // (BLOCK * opened.channels)) * BLOCK, max(BLOCK, opened.frames))
    likely = min(LONGEST * opened.samplerate, DENSEST * stream.size)
    stated = opened.frames if opened.frames <= likely else 0  # an impossible length is ignored
    done = left = 0  # samples returned; samples to skip when decoding again
    careful = False
    try:
        while True:
            try:
                with silence_mpg123(head):
                    file = file or _open_stream(stream)
                    block = file.read(min(left, BLOCK) or stride, dtype="float32", always_2d=True)
                stream.check()
            except TemporaryError:
                raise
            except MemoryError as error:
                raise to_temporary(stream.path, error) from None
            except Exception:  # cut off or damaged here: the samples before are valid
                stream.check()
                if careful and done == 0:
                    raise
                if careful:
                    lost.append("damaged")
                    return
                if file:
                    file.close()
                file, stride, left, careful = None, BLOCK, done, True
                continue
            if not len(block):
                if done < SHORT * stated:
                    lost.append("cut off")
                return
            if left:
                left -= len(block)
                continue
            done += len(block)
            yield block
    finally:
        if file:
            file.close()


def _decode_by_audioread(source: Source) -> tuple[int, Iterator[np.ndarray]]:
    """audioread (ffmpeg and the like), which librosa also falls back on; librosa's import and warnings are
    not thread-safe."""
    import audioread

    file = audioread.audio_open(source.path)
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
            except Exception:  # as in `_read_stream`
                pass
            code = getattr(getattr(file, "proc", None), "returncode", None)
            if code is not None and code < 0:
                raise TemporaryError(f"{source.path}: ffmpeg was ended by signal {-code}")
        source.read_through()

    return int(file.samplerate), decoded()


def _limit_length(found: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
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
    """One wave from pieces (samples,) float32, in the memory of the wave and one piece."""
    found = iter(pieces)
    wave = next(found, np.zeros(0, np.float32))
    samples = len(wave)
    for number, piece in enumerate(found):
        if number == 0:
            wave = wave.copy()
        if samples + len(piece) > len(wave):
            # In place, by moving pages: a second array would double the memory of a long clip.
            wave.resize(samples + len(piece) + samples // 8, refcheck=False)
        wave[samples : samples + len(piece)] = piece
        samples += len(piece)
    if samples < len(wave):
        wave.resize(samples, refcheck=False)
    return wave


_lock, _inside, _saved = threading.Lock(), 0, -1


@contextlib.contextmanager
def silence_mpg123(head: bytes) -> Iterator[None]:
    """Keeps libmpg123's notes, which it writes to file descriptor 2 itself, off the terminal while it
    decodes.

    Only for files that begin like none of the other formats. Python's own messages stay visible in the
    scripts, whose `sys.stderr` has another descriptor (`cli.run`).
    """
    global _inside, _saved
    if head[:4] in SILENT_DECODERS:
        yield
        return
    # The descriptor belongs to the process: the first thread in closes it, the last one out reopens it.
    with _lock:
        if _inside == 0:
            sys.stderr.flush()
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                try:
                    _saved = os.dup(2)
                    os.dup2(nowhere, 2)
                finally:
                    os.close(nowhere)
            except OSError as error:  # no descriptor is left, which is not the file's fault
                raise to_temporary(os.devnull, error) from None
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                os.dup2(_saved, 2)
                os.close(_saved)


def _explain_failure(source: Source, head: bytes, error: Exception) -> str:
    """Why soundfile failed, in one line without the path."""
    known = containers.describe_content(head)
    if known:
        return known
    path = Path(source.path)
    suffix = get_suffix(path.name)
    if suffix and suffix not in list_decodable():
        return f"no decoder for .{suffix} files (ffmpeg may have one: install it)"
    text = getattr(error, "error_string", "") or str(error) or type(error).__name__
    # libsndfile's words for an MP3 without a single frame; the file was opened above
    if "File does not exist" in text:
        return "Format not recognised"
    text = text.replace(str(path.resolve()), path.name).replace(str(path), path.name)
    return " ".join(text.split())[:160].rstrip(".")
