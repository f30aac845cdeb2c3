"""Limits for untrusted uploads: checked before a file costs memory or time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from earshot.audio import decode
from earshot.audio.load import BadAudio

# The first bytes of audio formats. Other files never reach a decoder: ffmpeg would also open playlists, which
# name other files and addresses.
MAGIC = (
    b"RIFF",
    b"RIFX",
    b"RF64",
    b"FORM",
    b"fLaC",
    b"OggS",
    b".snd",
    b"dns.",
    b"ID3",
    b"caff",
    b"riff",
    b"\x1aE\xdf\xa3",
)
MPEG = (0xE0, 0xFF)  # a frame of MP3 or AAC begins with eleven ones
CHANNELS = 2  # at the highest rate for the longest time: more samples in total are refused


@dataclass(frozen=True)
class UploadLimits:
    """The longest clip in seconds, and the largest file in bytes."""

    seconds: float
    size: int

    def __str__(self) -> str:
        return f"at most {self.seconds:g} s and {self.size / 1e6:g} MB"

    def check(self, path: Path | str) -> None:
        """Decode a file and discard the samples.

        Raises:
            BadAudio: it is too large, too long or not audio.
        """
        path = Path(path)
        size = path.stat().st_size
        if size > self.size:
            raise BadAudio(self.describe_too_large())
        if size == 0:
            raise BadAudio("it is empty")
        with open(path, "rb") as file:
            if not _is_audio(file.read(12)):
                raise BadAudio("not an audio file of a known format (WAV, FLAC, OGG, MP3, M4A and others)")
        rate, blocks = decode.read_blocks(path)
        samples = total = 0
        for block in blocks:
            samples += len(block)
            total += block.size
            if samples > self.seconds * rate:
                raise BadAudio(f"it is longer than {self.seconds:g} s, the limit here (--max-seconds)")
            most = self.seconds * decode.USUAL * CHANNELS
            if total > most:
                raise BadAudio(f"it has more than {most:,.0f} samples, the limit here (--max-seconds)")

    def describe_too_large(self) -> str:
        """The refusal of an upload that is too large."""
        return f"it is larger than {self.size / 1e6:g} MB, the limit here (--max-upload-mb)"


def _is_audio(head: bytes) -> bool:
    mpeg = len(head) > 1 and head[0] == MPEG[1] and head[1] & MPEG[0] == MPEG[0]
    return mpeg or head[4:8] == b"ftyp" or head.startswith(MAGIC)
