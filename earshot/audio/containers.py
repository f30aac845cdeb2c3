"""What a file holds: several streams one behind the other, a recorder's unfinished header, or no audio."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

from earshot.audio.source import Source
from earshot.core import file_content

WAVES = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">"}  # kinds of RIFF, with their byte order
OPEN = 0x7FFFF000  # a length from here on is a recorder's "not known yet"
# Bytes from the start of a frame of MPEG audio to the mark of the frame that describes a whole stream.
MARKS = (36, 21, 13)
TEXT = bytes(range(32, 127)) + b"\t\r\n\f"

# First bytes -> what a file is that no decoder reads.
NO_AUDIO = (
    (b"PK\x03\x04", "zip archive (unpack it)"),
    (b"\x1f\x8b", "gzip archive (unpack it)"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive (unpack it)"),
    (b"Rar!", "RAR archive (unpack it)"),
    (b"%PDF", "PDF document"),
    (b"\x89PNG", "PNG picture"),
    (b"\xff\xd8\xff", "JPEG picture"),
    (b"GIF8", "GIF picture"),
    (b"MThd", "MIDI file, which holds notes and no sound"),
    (b"\x93NUMPY", "numpy array"),
    (b"\x89HDF", "HDF5 file"),
)
# What ffmpeg decodes and nothing else here does.
OTHER_CODECS = (
    (b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (b"#!AMR", "AMR"),
    (b"#!SILK", "SILK"),
    (b"\x02#!SILK", "SILK"),
    (b"0&\xb2u\x8ef\xcf\x11", "WMA"),
    (b"MAC ", "Monkey's Audio"),
    (b"wvpk", "WavPack"),
    (b"DSD ", "DSD"),
    (b"FLV", "Flash video"),
)


def kind(head: bytes) -> str | None:
    """What a file that no decoder takes is, from its first bytes, and what to do; None where they say
    nothing."""
    found = file_content.mistaken(head)
    if found:
        return found
    for start, name in NO_AUDIO:
        if head.startswith(start):
            return name
    codec = next((name for start, name in OTHER_CODECS if head.startswith(start)), None)
    if head[4:8] == b"ftyp":
        codec = "MP4 or M4A"
    elif head[:1] == b"\xff" and head[1:2] in (b"\xf0", b"\xf1", b"\xf8", b"\xf9"):
        codec = "AAC"
    if codec:
        return f"{codec}, which only ffmpeg decodes (install ffmpeg)"
    text = head.removeprefix(b"\xef\xbb\xbf").strip()
    return "text, not audio" if text and not text.translate(None, TEXT) else None


def streams(source: Source) -> list[Source]:
    """The streams that follow each other in a file, in order: mostly one, the file itself.

    Ogg and MP3 files may be joined by writing one behind the other, and internet radio is recorded so; the
    libraries stop after the first. A WAV file whose header is unfinished gets a new one.
    """
    first = _behind_tag(source, 0)
    head = source.read_at(first, 12)
    if _frame(source, first):
        cuts = list(_mpeg(source, first))
    else:
        if 0 < first < source.size:  # libsndfile takes the tag's length off the end of the samples
            source = source.part(first, source.size)
        if head[:4] in WAVES and head[8:] == b"WAVE":
            return list(_waves(source)) or [source]
        cuts = list(_ogg(source) if head[:4] == b"OggS" else _flac(source) if head[:4] == b"fLaC" else ())
    edges = [0, *cuts, source.size]
    return [source.part(start, end) for start, end in itertools.pairwise(edges)] if cuts else [source]


def _behind_tag(source: Source, at: int) -> int:
    """Where an ID3v2 tag ends that begins here; the place itself without one."""
    head = source.read_at(at, 10)
    if len(head) < 10 or head[:3] != b"ID3" or any(byte > 127 for byte in head[6:]):
        return at
    return at + 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _ogg(source: Source) -> Iterator[int]:
    """Where a chained stream begins: a page that opens a stream behind pages that continue one."""
    at, going = 0, False
    while at >= 0 and at + 27 <= source.size:
        page = source.read_at(at, 27 + 255)
        if page[:4] != b"OggS":  # damaged here
            at = source.find(b"OggS", at + 1)
            continue
        opens = bool(page[5] & 2)
        if opens and going:
            yield at
        going = not opens
        segments = page[26]
        at += 27 + segments + sum(page[27 : 27 + segments])


def _flac(source: Source) -> Iterator[int]:
    at = 4
    while (at := source.find(b"fLaC", at)) >= 0:
        if source.read_at(at + 4, 4) in (
            b"\0\0\0\x22",
            b"\x80\0\0\x22",
        ):  # its first block, always of 34 bytes
            yield at
        at += 4


def _mpeg(source: Source, first: int) -> Iterator[int]:
    """Where another stream begins: a tag with frames behind it, or a frame that describes a whole stream."""
    found: set[int] = set()
    for mark in (b"ID3", b"Xing", b"Info"):
        at = source.find(mark, first + 1)
        while at >= 0:
            starts = [_behind_tag(source, at)] if mark == b"ID3" else [at - offset for offset in MARKS]
            found |= {
                start for start in starts if start > first + 36 and start != at and _frame(source, start)
            }
            at = source.find(mark, at + 1)
    described = _described(source, first)
    if described and _frame(source, described) and not any(first < at <= described for at in found):
        found.add(described)
    yield from sorted(found)


def _frame(source: Source, at: int) -> bool:
    """Does a frame of MPEG audio begin here?"""
    head = source.read_at(at, 4)
    return (
        len(head) == 4
        and head[0] == 0xFF
        and head[1] & 0xE0 == 0xE0
        and head[1] & 0x18 != 0x08
        and head[1] & 0x06 != 0
        and head[2] & 0xF0 not in (0, 0xF0)
        and head[2] & 0x0C != 0x0C
    )


def _described(source: Source, first: int) -> int | None:
    """Where the first stream ends as its own description has it, if it has one and more follows."""
    for offset in MARKS:
        mark = source.read_at(first + offset, 16)
        if mark[:4] in (b"Xing", b"Info") and len(mark) == 16:
            flags = int.from_bytes(mark[4:8])
            if flags & 2:
                size = int.from_bytes(mark[12:16] if flags & 1 else mark[8:12])
                return first + size if 0 < size < source.size - first else None
    return None


def _waves(source: Source) -> Iterator[Source]:
    """The WAV files one behind the other; each as it is where its header holds together, else behind a new
    one."""
    at = 0
    while True:
        head = source.read_at(at, 12)
        if head[:4] not in WAVES or head[8:] != b"WAVE":
            return
        form, body, end, sound = _wave(source, at, WAVES[head[:4]])
        following = end + (end & 1)
        if source.read_at(following, 4) not in WAVES:
            following = end if source.read_at(end, 4) in WAVES else source.size
        last = following >= source.size
        if sound or form is None:
            yield source if at == 0 and last else source.part(at, following)
        else:
            size = min(end - body, 0xFFFFFFFF)
            chunk = b"fmt " + struct.pack("<I", len(form)) + form + b"\0" * (len(form) & 1)
            whole = min(4 + len(chunk) + 8 + size, 0xFFFFFFFF)
            new = b"RIFF" + struct.pack("<I", whole) + b"WAVE" + chunk + b"data" + struct.pack("<I", size)
            if head[:4] == b"RIFX":
                new = _swapped(new)
            yield source.part(body, end, new)
        if last:
            return
        at = following


def _swapped(header: bytes) -> bytes:
    """A header written with the other byte order; the format itself is in the file's own already."""
    size = struct.unpack("<I", header[16:20])[0]
    return b"".join(
        (
            b"RIFX",
            header[4:8][::-1],
            header[8:16],
            header[16:20][::-1],
            header[20 : 20 + size + (size & 1)],
            b"data",
            header[-4:][::-1],
        )
    )


def _wave(source: Source, at: int, order: str) -> tuple[bytes | None, int, int, bool]:
    """The chunks of one WAV file.

    Returns:
        the format chunk (None: not found), where the samples begin and end, and whether the header holds
        together. The end is where the file's chunks end, where it does.
    """
    size, pos, form, sound, wide, odd = source.size, at + 12, None, True, 0, 0
    stated = at + 8 + struct.unpack(f"{order}I", source.read_at(at + 4, 4))[0]
    while pos + 8 <= size:
        name, count = struct.unpack(f"{order}4sI", source.read_at(pos, 8))
        if not _chunk(name, pos + 8 + count, size):
            # An odd chunk that was written without its byte of padding.
            name, count = struct.unpack(f"{order}4sI", source.read_at(pos - 1, 8))
            if not odd or not _chunk(name, pos + 7 + count, size):
                break
            pos, sound = pos - 1, False
        if name == b"fmt ":
            form = source.read_at(pos + 8, min(count, 128))
        elif name == b"ds64":
            wide = struct.unpack(f"{order}Q", source.read_at(pos + 16, 8))[0]
        elif name == b"data" and form is not None:
            body = pos + 8
            length = wide if count == 0xFFFFFFFF and wide else count
            end = body + length
            if length and end <= size and not _runs_on(source, end, stated, order):
                after = end + (length & 1)
                more = stated if after <= stated <= size else after
                return form, body, (more if sound else end), sound
            empty = not length and (body >= size or _follows(source, body, order))
            # Longer than the file: as large as the file was to be, which decoders know how to read.
            return form, body, (body if empty else size), sound and (empty or length > size - body)
        odd = count & 1
        pos += 8 + count + odd
    return None, 0, size, True


def _chunk(name: bytes, end: int, size: int) -> bool:
    printable = all(32 <= byte < 127 for byte in name) and name[:1].isalnum()
    return printable and (name == b"data" or end <= size + 1)


def _follows(source: Source, at: int, order: str) -> bool:
    """Does a chunk begin here, or another file?"""
    head = source.read_at(at, 8)
    if len(head) < 8:
        return True
    name, count = struct.unpack(f"{order}4sI", head)
    return _chunk(name, at + 8 + count, source.size)


def _runs_on(source: Source, end: int, stated: int, order: str) -> bool:
    """Do samples go on behind the length that the header states?

    So it is where a recorder died between two updates of its header, and in a file of more than 4 GB, whose
    length starts again at nothing. The length of the whole file, which the header states too, tells.
    """
    covered = stated == source.size or source.size - stated >= 1 << 32
    return (
        covered
        and source.size - end > 8
        and not _follows(source, end, order)
        and not _follows(source, end + 1, order)
    )
