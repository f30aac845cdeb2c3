"""What a file's header says of its length and sampling rate, before anything is decoded."""

from __future__ import annotations

from earshot.core.errors import raise_if_temporary

LONGEST = 1e6  # seconds: a header that says more does not know


def read_seconds_and_rate(path: str) -> tuple[float, int] | None:
    """A file's seconds and its samples a second; None where its header cannot be read, or says nothing
    plausible.

    Raises:
        TemporaryError: the disk or the network fails.
    """
    try:
        import soundfile  # not at the top: --help needs no libsndfile

        with open(path, "rb") as file:  # not by its name, which soundfile encodes as text
            info = soundfile.info(file)
    except (ImportError, OSError, RuntimeError, TypeError) as error:
        raise_if_temporary(path, error)
        return None
    return (info.duration, info.samplerate) if 0 < info.duration < LONGEST else None
