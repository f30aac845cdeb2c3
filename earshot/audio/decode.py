"""From a file to blocks of samples: whatever the file claims or holds, memory stays small and nothing
hangs."""

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
USUAL = 96_000  # samples per second up to which a recording may last that long: 17 GB of samples
# samples to a byte: the lowest rates of codecs have 64; digital silence has more, and is decoded to be
# counted
DENSEST = 100
FASTEST = 2_000_000  # samples per second, five times what bat detectors take: beyond, the header lies
# samples of each channel: where a decoder gives up, no more than a tenth of a second before goes with it
BLOCK = 4096
STRIDE = 1 << 20  # samples of all channels asked for at once, for as long as the decoder does not give up
SHORT = 0.9  # of the length that a header states: encoders pad by less than the rest
HEADERLESS = ("gsm", "vox", "sd2")
SILENT_DECODERS = (b"RIFF", b"fLaC", b"OggS", b"FORM", b".snd", b"RF64")  # what is none of these may be MP3


def read_header(path: Path) -> tuple[int, int]:
    """Samples of each channel, as the header has it, and the rate; (-1, 0) where it does not say, or what
    cannot be true.

    Raises:
        BadAudio: no file that can be opened, or an empty one.
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
            except Exception:  # whatever it is, decoding either works or words the reason
                return -1, 0
            # libsndfile answers 2**63-1 for a stream of unknown length, and any number that stands in a
            # damaged header.
            likely = min(LONGEST * its, DENSEST * source.size)
            if not 1 <= its <= FASTEST or found > likely or rate not in (0, its):
                return -1, 0
            frames, rate = frames + found, its
        return frames, rate


def read_blocks(path: Path, partial: list[str] | None = None) -> tuple[int, Iterator[np.ndarray]]:
    """The rate of a file and its samples in blocks, (samples, channels) float32 each: by soundfile, else by
    audioread.

    All streams that are joined in a file are decoded; the first one's rate is the file's. A file that is cut
    off or damaged is decoded for as long as that goes: its first part is real audio, and most formats do not
    even tell that something is missing. Nothing is made up for the rest, whatever the header claims.

    Args:
        partial: takes a reason where something of the file could not be decoded, once that is known.
    Raises:
        BadAudio: not a block can be decoded, now or when the first is asked for; more than `LONGEST`.
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
                del streams[0]  # nothing of it can be decoded; those behind it may be whole
        rate = file.samplerate
        return _check_rate(rate), _limit_length(itertools.chain(first, found), rate)
    except (BadAudio, TemporaryError):
        source.close()
        raise
    except Exception as error:  # a decoder fed with garbage raises anything
        reason = _explain_failure(source, start, error)
    try:
        rate, found = _decode_by_audioread(source)
        return _check_rate(rate), _limit_length(found, rate)
    except (BadAudio, TemporaryError):
        raise
    except Exception:  # no decoder, or a second one that fails: soundfile's reason is the plainer
        source.read_through()
        Source.open(path).close()  # ffmpeg opens the file itself: is it still there?
        raise BadAudio(f"cannot be decoded: {reason}") from None


def _check_rate(rate: int) -> int:
    if not 1 <= rate <= FASTEST:
        raise BadAudio(f"its header claims {rate} samples a second")
    return int(rate)


def _open_stream(stream: Source) -> soundfile.SoundFile:
    """soundfile on a stream; TemporaryError where it is the disk that failed, or memory."""
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
        file = soundfile.SoundFile(os.fsencode(stream.path))  # libsndfile goes by the name
        stream.read_through()
    finally:
        stream.check()
    # Not seekable, as far as soundfile goes: it would seek after every block, at the cost of time and
    # of the codec's state.
    file.seekable = lambda: False
    return file


def _join_streams(
    streams: list[Source], first: soundfile.SoundFile, head: bytes, lost: list[str]
) -> Iterator[np.ndarray]:
    """Blocks of all streams, at the first one's rate. What cannot be decoded behind the first is left out."""
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
    """Blocks as large as the whole of a short clip; where the decoder gives up within one, that stretch again
    in small ones."""
    file: soundfile.SoundFile | None = opened
    stride = min(max(1, STRIDE // (BLOCK * opened.channels)) * BLOCK, max(BLOCK, opened.frames))
    likely = min(LONGEST * opened.samplerate, DENSEST * stream.size)
    stated = opened.frames if opened.frames <= likely else 0  # what cannot be true says nothing
    done = left = 0  # samples given out; those of them to be passed over when decoding once more
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
            except Exception:  # cut off or damaged here: what came before stays good
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
    """What librosa falls back on (ffmpeg and the like), without librosa: its import and warnings suit no
    thread."""
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
    """One wave from pieces (samples,) float32; no more memory than it takes and one piece."""
    found = iter(pieces)
    wave = next(found, np.zeros(0, np.float32))
    samples = len(wave)
    for number, piece in enumerate(found):
        if number == 0:
            wave = wave.copy()
        if samples + len(piece) > len(wave):
            # In place, by moving pages: a second array beside the first would double what a long clip takes.
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
    """Why soundfile could not, in one line without the path."""
    known = containers.describe_content(head)
    if known:
        return known
    path = Path(source.path)
    suffix = get_suffix(path.name)
    if suffix and suffix not in list_decodable():
        return f"nothing here decodes .{suffix} files (ffmpeg might)"
    text = getattr(error, "error_string", "") or str(error) or type(error).__name__
    # libsndfile's words for an MP3 without a single frame; the file was opened above
    if "File does not exist" in text:
        return "Format not recognised"
    text = text.replace(str(path.resolve()), path.name).replace(str(path), path.name)
    return " ".join(text.split())[:160].rstrip(".")
