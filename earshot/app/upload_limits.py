"""What a stranger's upload may be: refused in one line, before it costs memory or time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from earshot.audio import decode
from earshot.audio.load import BadAudio

# How formats begin, by their first bytes (or those from the fifth on). What is none of these is given to no
# decoder: ffmpeg would also open playlists, which name other files and addresses.
BEGINNINGS = (
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
MPEG = (0xE0, 0xFF)  # eleven bits of ones begin a frame of MP3, and of AAC
CHANNELS = 2  # of the largest rate for the longest time: more samples in all are refused


@dataclass(frozen=True)
class UploadLimits:
    """How long a clip may be (seconds), and how large its file (bytes)."""

    seconds: float
    size: int

    def __str__(self) -> str:
        return f"at most {self.seconds:g} s and {self.size / 1e6:g} MB"

    def check(self, path: Path | str) -> None:
        """BadAudio, in words for the page, for a file that is too large, too long or no audio; it is decoded,
        not kept."""
        path = Path(path)
        size = path.stat().st_size
        if size > self.size:
            raise BadAudio(self.describe_too_large())
        if size == 0:
            raise BadAudio("the file is empty")
        with open(path, "rb") as file:
            if not _is_audio(file.read(12)):
                raise BadAudio(
                    "this is no audio file that can be decoded here: try WAV, FLAC, OGG, MP3 or M4A"
                )
        rate, blocks = decode.read_blocks(path)
        samples = everything = 0
        for block in blocks:
            samples += len(block)
            everything += block.size
            if samples > self.seconds * rate:
                raise BadAudio(f"the clip is longer than {self.seconds:g} s, the limit here: cut it")
            most = self.seconds * decode.USUAL * CHANNELS
            if everything > most:
                raise BadAudio(f"the clip has more than {most:,.0f} samples, the limit here: cut it")

    def describe_too_large(self) -> str:
        """What is said of too large an upload."""
        return f"the file is larger than {self.size / 1e6:g} MB, the limit here"


def _is_audio(head: bytes) -> bool:
    mpeg = len(head) > 1 and head[0] == MPEG[1] and head[1] & MPEG[0] == MPEG[0]
    return mpeg or head[4:8] == b"ftyp" or head.startswith(BEGINNINGS)
