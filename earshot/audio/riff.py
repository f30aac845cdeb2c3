"""WAV files with an unfinished header, and several in one file."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from earshot.audio.source import Source

KINDS = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">"}  # with their byte order
MOST = 10_000  # most chunks of a file; three to ten are usual


def split_files(source: Source) -> Iterator[Source]:
    """The concatenated WAV files; each unchanged where its header is consistent, else with a new one."""
    at = 0
    while True:
        head = source.read_at(at, 12)
        if head[:4] not in KINDS or head[8:] != b"WAVE":
            return
        order = KINDS[head[:4]]
        form, body, end, sound = _read_wave(source, at, order)
        following = end + (end & 1)
        if source.read_at(following, 4) not in KINDS:
            following = end if source.read_at(end, 4) in KINDS else source.size
        last = following >= source.size
        if sound or form is None:
            yield source if at == 0 and last else source.open_part(at, following)
        else:
            size = min(end - body, 0xFFFFFFFF)
            whole = min(4 + 8 + len(form) + (len(form) & 1) + 8 + size, 0xFFFFFFFF)
            kind = b"RIFX" if order == ">" else b"RIFF"
            new = struct.pack(f"{order}4sI8sI", kind, whole, b"WAVEfmt ", len(form))
            new += form + b"\0" * (len(form) & 1) + struct.pack(f"{order}4sI", b"data", size)
            yield source.open_part(body, end, new)
        if last:
            return
        at = following


def _read_wave(source: Source, at: int, order: str) -> tuple[bytes | None, int, int, bool]:
    """The chunks of one WAV file.

    Returns:
        the format chunk (None: not found), where the samples begin and end, and whether the header is
        consistent. The end is where the file's chunks end, where it does.
    """
    size, pos, form, sound, wide, odd = source.size, at + 12, None, True, 0, 0
    stated = at + 8 + struct.unpack(f"{order}I", source.read_at(at + 4, 4))[0]
    for _ in range(MOST):
        if pos + 8 > size:
            break
        name, count = struct.unpack(f"{order}4sI", source.read_at(pos, 8))
        if not _is_chunk(name, pos + 8 + count, size):
            # An odd chunk that was written without its byte of padding.
            name, count = struct.unpack(f"{order}4sI", source.read_at(pos - 1, 8))
            if not odd or not _is_chunk(name, pos + 7 + count, size):
                break
            pos, sound = pos - 1, False
        if name == b"fmt ":
            form = source.read_at(pos + 8, min(count, 128))
        elif name == b"ds64":
            wide = int.from_bytes(source.read_at(pos + 16, 8), "little")
        elif name == b"data" and form is not None:
            body = pos + 8
            length = wide if count == 0xFFFFFFFF and wide else count
            end = body + length
            if length and end <= size and not _exceeds_header(source, end, stated, order):
                after = end + (length & 1)
                more = stated if after <= stated <= size else after
                return form, body, (more if sound else end), sound
            empty = not length and (body >= size or _is_followed_by_chunk(source, body, order))
            # Longer than the file: the planned size, which decoders can read.
            # The length of an RF64 is elsewhere, and may be zero.
            known = length > size - body and (wide > 0 or source.read_at(at, 4) in (b"RIFF", b"RIFX"))
            return form, body, (body if empty else size), sound and (empty or known)
        odd = count & 1
        pos += 8 + count + odd
    return None, 0, size, True


def _is_chunk(name: bytes, end: int, size: int) -> bool:
    printable = all(32 <= byte < 127 for byte in name) and name[:1].isalnum()
    return printable and (name == b"data" or end <= size + 1)


def _is_followed_by_chunk(source: Source, at: int, order: str) -> bool:
    """Does a chunk or another file begin here?"""
    head = source.read_at(at, 8)
    if len(head) < 8:
        return True
    name, count = struct.unpack(f"{order}4sI", head)
    return _is_chunk(name, at + 8 + count, source.size)


def _exceeds_header(source: Source, end: int, stated: int, order: str) -> bool:
    """Do samples go on after the length in the header?

    They do where a recorder stopped between two updates of its header, and in a file of more than 4 GB, whose
    length starts again at zero. The file length in the header shows it.
    """
    covered = stated == source.size or source.size - stated >= 1 << 32
    return (
        covered
        and source.size - end > 8
        and not _is_followed_by_chunk(source, end, order)
        and not _is_followed_by_chunk(source, end + 1, order)
    )
