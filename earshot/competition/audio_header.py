"""The length and sampling rate in a file's header, without decoding."""

from __future__ import annotations

from earshot.core.errors import raise_if_temporary

LONGEST = 1e6  # seconds: a longer length in a header is wrong


def read_seconds_and_rate(path: str) -> tuple[float, int] | None:
    """A file's seconds and sampling rate; None where its header can't be read or is implausible.

    Raises:
        TemporaryError: the disk or the network fails.
    """
    try:
        import soundfile  # imported here: --help needs no libsndfile

        with open(path, "rb") as file:  # not by its name, which soundfile encodes as text
            info = soundfile.info(file)
    except (ImportError, OSError, RuntimeError, TypeError) as error:
        raise_if_temporary(path, error)
        return None
    return (info.duration, info.samplerate) if 0 < info.duration < LONGEST else None
