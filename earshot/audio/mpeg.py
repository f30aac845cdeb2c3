"""MP3 files: concatenated streams, and variable bit rates without a length."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from earshot.audio.source import Source

# Offset of the mark in the frame that describes a stream; that frame has no audio.
MARKS = (36, 21, 13)
DESCRIBES = (b"Xing", b"Info")
# Kilobits per second by (MPEG 1?, layer), then by the number in the header.
LOW = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
KILOBITS = {
    (True, 1): tuple(range(0, 480, 32)),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): LOW,
    (False, 3): LOW,
}
RATES = (44100, 48000, 32000)
MOST = 1000  # most candidates to check in a file full of marks of streams
IN_A_ROW = 4  # so many consecutive frames are no coincidence
WINDOW = 1 << 16  # bytes searched at a time


class Frame(NamedTuple):
    """A frame's header."""

    size: int
    """Bytes of the frame."""
    kilobits: int
    """Kilobits per second."""
    kind: int
    """Version, layer and sampling rate, which all frames of a stream share."""


def parse_frame(head: bytes) -> Frame | None:
    """The frame with these first four bytes, None where they are not a frame's header."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate, bits = head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or layer == 4 or rate == 3 or bits in (0, 15):
        return None
    kilobits = KILOBITS[version == 3, layer][bits]
    hertz = RATES[rate] >> (3 - version if version else 2)
    padding = head[2] >> 1 & 1
    if layer == 1:
        size = (12000 * kilobits // hertz + padding) * 4
    else:
        size = (144000 if version == 3 or layer == 2 else 72000) * kilobits // hertz + padding
    return Frame(size, kilobits, (head[1] & 0xFE) << 8 | head[2] & 0x0C)


def split_streams(source: Source, first: int) -> list[Source]:
    """The streams of a file whose first frame begins at a position, each with a header that states its
    length."""
    edges = [0, *_find_cuts(source, first), source.size]
    if len(edges) == 2:
        return [_add_length(source, first)]
    return [
        _add_length(source.open_part(start, end), 0 if start else first) for start, end in pairwise(edges)
    ]


def find_first_frame(source: Source, at: int) -> int | None:
    """The start of the first frame near a position that frames of its kind follow; None without one."""
    window, found = source.read_at(at, WINDOW), -1
    for _ in range(MOST):
        found = window.find(b"\xff", found + 1)
        if found < 0:
            return None
        place, kinds = at + found, set()
        for _ in range(IN_A_ROW):
            one = parse_frame(source.read_at(place, 4))
            kinds.add(one and one.kind)
            place += one.size if one else 1
        if len(kinds) == 1 and None not in kinds:
            return at + found
    return None


def skip_tag(source: Source, at: int) -> int:
    """The end of an ID3v2 tag that begins here; the position itself without one."""
    head = source.read_at(at, 10)
    if len(head) < 10 or head[:3] != b"ID3" or any(byte > 127 for byte in head[6:]):
        return at
    return at + 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _find_cuts(source: Source, first: int) -> list[int]:
    """The start of another stream: a tag followed by frames, a frame that describes a whole stream, or the
    end of the first stream by its description."""
    found: set[int] = set()
    for mark in (b"ID3", *DESCRIBES):
        at = first
        for _ in range(MOST):
            at = source.find(mark, at + 1)
            if at < 0:
                break
            starts = [skip_tag(source, at)] if mark == b"ID3" else [at - offset for offset in MARKS]
            found |= {
                one
                for one in starts
                if one not in (at, first) and one > first and _is_stream_start(source, one)
            }
    end = _find_described_end(source, first)
    if end and _is_stream_start(source, end) and not any(first < at <= end for at in found):
        found.add(end)
    return sorted(found)


def _is_stream_start(source: Source, at: int) -> bool:
    return parse_frame(source.read_at(at, 4)) is not None


def _read_description(source: Source, first: int) -> bytes | None:
    """The description in a stream's first frame: mark, flags, frames, bytes."""
    for offset in MARKS:
        mark = source.read_at(first + offset, 16)
        if mark[:4] in DESCRIBES:
            return mark
    return None


def _find_described_end(source: Source, first: int) -> int | None:
    """The end of the first stream by its description, if it has one and more follows."""
    mark = _read_description(source, first)
    if mark is None or len(mark) < 16 or not mark[7] & 2:
        return None
    size = int.from_bytes(mark[12:16] if mark[7] & 1 else mark[8:12])
    return first + size if 0 < size < source.size - first else None


def _add_length(source: Source, first: int) -> Source:
    """The stream with a frame that describes it, added where there is none and the bit rate varies.

    mpg123 uses the first frame's bit rate for all: libsndfile then ends too early, or reports a length that
    is several times too long.
    """
    if _read_description(source, first) or source.read_at(first + 36, 4) == b"VBRI":
        return source
    count, rates = 0, set()
    for one in _read_frames(source, first):
        count += 1
        rates.add(one.kilobits)
    if len(rates) < 2:
        return source
    header = bytearray(source.read_at(first, 4))
    mono, old = header[3] >> 6 == 3, header[1] & 0x08 == 0
    mark = MARKS[(1 if old else 0) + (1 if mono else 0)]
    header[1] |= 1  # no checksum
    header[2] = header[2] & 0x0D | 0x90  # large enough for the description, no padding
    made = parse_frame(bytes(header))
    if made is None or header[1] & 0x06 != 0x02:  # another layer than MP3's
        return source
    text = b"Xing" + struct.pack(">III", 3, count, made.size + source.size - first)
    new = bytes(header) + b"\0" * (mark - 4) + text
    return source.open_part(first, source.size, new.ljust(made.size, b"\0"))


def _read_frames(source: Source, at: int) -> Iterator[Frame]:
    """The frames of a stream in order; damaged ones are skipped."""
    window, start, kind, damaged = source.read_at(at, WINDOW), at, None, 0
    while at + 4 <= source.size:
        if at + 4 > start + len(window):
            window, start = source.read_at(at, WINDOW), at
        one = parse_frame(window[at - start : at - start + 4])
        if one is None or kind not in (None, one.kind):
            damaged += 1
            if damaged > MOST:
                return
            found = window.find(b"\xff", at + 1 - start)
            at = start + (len(window) if found < 0 else found)
            continue
        kind = one.kind
        yield one
        at += one.size
