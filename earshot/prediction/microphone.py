"""The microphone: what is heard now, a line every moment, until Ctrl-C."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from earshot.audio.load import BadAudio
from earshot.core.errors import UserError
from earshot.prediction.predictor import Hearing

EVERY = 1.0  # seconds between two answers, at least


def device() -> tuple[Any, float]:
    """The module that records, and the rate of this machine's default microphone.

    Raises:
        UserError: no sounddevice, or no microphone.
    """
    try:
        import sounddevice
    except ImportError:
        raise UserError("--microphone needs sounddevice: pip install sounddevice") from None
    except OSError as error:  # the library beneath it is the system's
        raise UserError(
            f"--microphone: sounddevice cannot load PortAudio ({' '.join(str(error).split())}): install it "
            "(apt install libportaudio2)"
        ) from None
    try:
        found = sounddevice.query_devices(kind="input")
    except (sounddevice.PortAudioError, ValueError):
        raise UserError(
            "--microphone: this machine has no audio device to record from: give files instead"
        ) from None
    return sounddevice, float(found["default_samplerate"])


def listen(
    hearing: Hearing, recorder: Any, rate: float, top: int, say: Callable[[str], None] = print
) -> None:
    """Answer what the last window held, again and again.

    Args:
        recorder, rate: as `device` gives them.
        top: classes a line names.
    Raises:
        UserError: the microphone fails.
    """
    import soundfile

    run = hearing.runs[0]
    extractor = hearing.ears(run).extractor
    held = np.zeros(0, np.float32)
    began, rate = time.monotonic(), round(rate)
    with tempfile.TemporaryDirectory(prefix="earshot-") as folder:
        path = Path(folder) / "heard.wav"
        try:
            with recorder.InputStream(samplerate=rate, channels=1, dtype="float32") as stream:
                while True:
                    # What came in while the last answer was found counts, too.
                    block, _ = stream.read(max(round(EVERY * rate), stream.read_available))
                    held = np.concatenate([held, block[:, 0]])[-round(extractor.window.seconds * rate) :]
                    soundfile.write(path, held, rate, subtype="FLOAT")
                    say(f"{time.monotonic() - began:6.1f} s  {_line(hearing, path, top)}")
        except recorder.PortAudioError as error:
            raise UserError(
                f"--microphone: the recording broke off ({' '.join(str(error).split())})"
            ) from None
        except KeyboardInterrupt:
            return


def _line(hearing: Hearing, path: Path, top: int) -> str:
    try:
        row = hearing.hear(path).probabilities
    except BadAudio as error:
        return str(error)
    return "  ".join(f"{hearing.classes[i]} {row[i]:.3f}" for i in np.argsort(-row, kind="stable")[:top])
