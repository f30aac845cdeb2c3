"""Commands for the user to copy: printed so that a shell reads them as they are meant."""

from __future__ import annotations

import os
import shlex


def quote(word: object) -> str:
    r"""A word as bash reads it back: quoted where it has to be, as `$'caf\xe9'` where it is not printable."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{''.join(plain)}'"


def join_command(*words: object) -> str:
    """The words as one line that bash runs."""
    return " ".join(map(quote, words))
