"""Commands for the user to copy, quoted for a shell."""

from __future__ import annotations

import os
import shlex


def quote(word: object) -> str:
    r"""A word quoted for bash if needed, as `$'caf\xe9'` if it is not printable."""
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
