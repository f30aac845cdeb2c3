"""The content of a file: several concatenated streams, an unfinished header, or no audio."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from earshot.audio import mpeg, riff
from earshot.audio.source import Source
from earshot.core import file_content

TEXT = bytes(range(32, 127)) + b"\t\r\n\f"

# Formats with their own header: not searched for MP3 frames.
CONTAINERS = (*riff.KINDS, b"OggS", b"fLaC", b"FORM", b".snd", b"dns.", b"caff", b"riff")

# First bytes -> the type of a file that no decoder reads.
NO_AUDIO = (
    (b"PK\x03\x04", "zip archive (unpack it)"),
    (b"\x1f\x8b", "gzip archive (unpack it)"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive (unpack it)"),
    (b"Rar!", "RAR archive (unpack it)"),
    (b"%PDF", "PDF document"),
    (b"\x89PNG", "PNG picture"),
    (b"\xff\xd8\xff", "JPEG picture"),
    (b"GIF8", "GIF picture"),
    (b"MThd", "MIDI file, which holds notes, not audio"),
    (b"\x93NUMPY", "numpy array"),
    (b"\x89HDF", "HDF5 file"),
)
# Formats that only ffmpeg decodes.
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


def describe_content(head: bytes) -> str | None:
    """The type of a file that can't be decoded, by its first bytes, and what to do; None if it is unknown."""
    found = file_content.detect_stand_in(head)
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


def split_streams(source: Source) -> list[Source]:
    """The concatenated streams of a file, in order: mostly one, the file itself.

    Ogg and MP3 files may be joined by concatenation, and recordings of internet radio are; the libraries stop
    after the first stream. A WAV file whose header is unfinished gets a new one.
    """
    first = mpeg.skip_tag(source, 0)
    head = source.read_at(first, 12)
    if mpeg.parse_frame(head):
        return mpeg.split_streams(source, first)
    if head[:4] not in CONTAINERS and (start := mpeg.find_first_frame(source, first)) is not None:
        source = source.open_part(
            start, source.size
        )  # the file begins in the middle of a frame, or with zeros
        return mpeg.split_streams(source, 0)
    if 0 < first < source.size:  # libsndfile takes the tag's length off the end of the samples
        source = source.open_part(first, source.size)
    if head[:4] in riff.KINDS and head[8:] == b"WAVE":
        return list(itertools.islice(riff.split_files(source), mpeg.MOST)) or [source]
    found = (
        _find_ogg_streams(source)
        if head[:4] == b"OggS"
        else _find_flac_streams(source)
        if head[:4] == b"fLaC"
        else iter(())
    )
    cuts = list(itertools.islice(found, mpeg.MOST))
    edges = [0, *cuts, source.size]
    return [source.open_part(start, end) for start, end in itertools.pairwise(edges)] if cuts else [source]


def _find_ogg_streams(source: Source) -> Iterator[int]:
    """The start of a chained stream: a page that opens a stream after pages that continue one.

    A page may be cut off where a stream was appended to a broken one: the next is searched within it.
    """
    at, going = 0, False
    while at >= 0 and at + 27 <= source.size:
        page = source.read_at(at, 27 + 255)
        opens = bool(page[5] & 2)
        if opens and going:
            yield at
        going = not opens
        segments = page[26]
        following = at + 27 + segments + sum(page[27 : 27 + segments])
        if following == source.size:
            return
        whole = source.read_at(following, 4) == b"OggS"
        at = following if whole else source.find(b"OggS", at + 4)


def _find_flac_streams(source: Source) -> Iterator[int]:
    at = 4
    while (at := source.find(b"fLaC", at)) >= 0:
        # Its first block is always of 34 bytes.
        if source.read_at(at + 4, 4) in (b"\0\0\0\x22", b"\x80\0\0\x22"):
            yield at
        at += 4
