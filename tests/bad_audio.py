"""Bad and odd audio files of every kind, with what each has to end as; shared by a test and a benchmark."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import soundfile

USABLE = "usable"
NAMES = {
    "space": "a b  c.wav",
    "quote": 'it\'s "q".wav',
    "comma": "a,b;c.wav",
    "newline": "line\nbreak.wav",
    "emoji": "\U0001f426.wav",
    "nfc": "caf\u00e9.wav",
    "nfd": "no\u0308el.wav",
    "dots": "a.b..c.wav",
    "percent": "all 100%.wav",
    "long": "x" * 251 + ".wav",
}
CODECS = {
    "u8.wav": "PCM_U8",
    "s16.wav": "PCM_16",
    "s24.wav": "PCM_24",
    "s32.wav": "PCM_32",
    "f32.wav": "FLOAT",
    "f64.wav": "DOUBLE",
    "ulaw.wav": "ULAW",
    "a.flac": "PCM_16",
    "a.ogg": "VORBIS",
    "a.opus": "OPUS",
    "a.mp3": None,
    "a.au": "PCM_16",
    "a.aiff": "PCM_16",
}


def make_bad(folder: Path) -> dict[str, str]:
    """Write one file of each kind.

    Returns:
        the file's name -> a pattern that its reason has to match, or `USABLE`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.standard_normal(48000)).astype(np.float32)
    kinds: dict[str, str] = {}

    def raw(name: str, data: bytes, end: str) -> None:
        (folder / name).write_bytes(data)
        kinds[name] = end

    def wave(
        name: str,
        samples: np.ndarray,
        end: str,
        rate: int = 48000,
        subtype: str | None = "FLOAT",
        **more: str,
    ) -> bytes:
        soundfile.write(folder / name, samples, rate, subtype=subtype, **more)
        kinds[name] = end
        return (folder / name).read_bytes()

    for name, subtype in CODECS.items():
        form = {"format": "OGG"} if name.endswith("opus") else {}
        whole = wave(f"whole_{name}", np.tile(noise, 3), USABLE, subtype=subtype, **form)
        raw(f"half_{name}", whole[: len(whole) * 3 // 4], USABLE)
        raw(f"head_{name}", whole[:30], "cannot be decoded|no samples|too short")
    raw("empty.wav", b"", "empty file")
    raw("random.wav", rng.bytes(5000), "cannot be decoded")
    raw("random.mp3", rng.bytes(5000), "cannot be decoded")
    raw("random.m4a", rng.bytes(5000), "cannot be decoded")
    raw("text.wav", b"this is no audio\n" * 50, "cannot be decoded")
    raw("page.mp3", b"<html>404 Not Found</html>", "cannot be decoded")
    raw("flac_named.wav", (folder / "whole_a.flac").read_bytes(), USABLE)
    raw("wav_named.mp3", (folder / "whole_s16.wav").read_bytes(), USABLE)
    wave("none.wav", noise[:0], "no samples")
    wave("one.wav", noise[:1], "too short")
    wave("short.wav", noise[:100], "too short")
    wave("silence.wav", noise * 0, "silent")
    wave("faint.wav", noise * 1e-6, "silent")
    wave("denormal.wav", noise * np.float32(1e-39), "silent")
    wave("constant.wav", noise * 0 + 0.5, "silent: all samples are equal")
    wave("cancel.wav", np.stack([noise, -noise], 1), USABLE)
    for name, value in (("nan", np.nan), ("inf", -np.inf)):
        spoilt = noise.copy()
        spoilt[-100] = value
        wave(f"{name}.wav", spoilt, "NaN or infinite")
    wave("huge.wav", noise * np.float32(1e38), "full scale")
    wave("huge_stereo.wav", np.full((48000, 2), 3e38, np.float32), "full scale")
    wave("integers.wav", noise * 2**31, USABLE)
    for rate in (1, 100, 384000):
        wave(f"rate{rate}.wav", noise[: max(20, rate // 4)], USABLE, rate)
    for channels in range(2, 9):
        wave(f"channels{channels}.wav", np.repeat(noise[:24000, None], channels, 1), USABLE)
    plain = (folder / "whole_s16.wav").read_bytes()
    raw(
        "rate_claim.wav",
        plain[:24] + struct.pack("<II", 2**31 - 1, 2**31 - 2) + plain[32:],
        "2147483647 samples a second",
    )
    raw("size_claim.wav", plain[:40] + struct.pack("<I", 2**32 - 16) + plain[44:], USABLE)
    raw(
        "channel_claim.wav",
        plain[:22] + struct.pack("<H", 1000) + plain[24:32] + struct.pack("<H", 2000) + plain[34:],
        "too short",
    )
    (folder / "device.wav").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.wav")
    kinds |= {"device.wav": "not a regular file", "pipe.wav": "not a regular file"}
    (folder / "dangling.wav").symlink_to(folder / "nowhere.wav")
    kinds["dangling.wav"] = "no such file"
    (folder / "folder.wav").mkdir()
    kinds |= {"folder.wav": "no such file|is a directory", "missing.wav": "no such file"}
    for name in NAMES.values():
        wave(name, noise[:24000], USABLE, subtype="PCM_16")
    return kinds
