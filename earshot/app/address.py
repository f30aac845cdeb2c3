"""Where a browser finds the page: a prefix of the path, a host; as a flag or a proxy says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from earshot.core.errors import UserError

# Of a path, without what means something to a URL, to HTML or to a header.
SEGMENTS = re.compile(r"(/(?!\.{1,2}(/|$))[\w.~@+=,-]+)*")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True)
class Address:
    """Where a proxy serves the page: a prefix such as /earshot or "", and a scheme and host where known."""

    prefix: str
    scheme: str | None = None
    host: str | None = None


def parse_address(given: str) -> Address:
    """What --root-path says: a path, or a whole address.

    Raises:
        UserError: neither.
    """
    whole = re.fullmatch("(https?)://([^/]*)(.*)", given)
    prefix = clean_prefix(whole[3] if whole else given)
    if prefix is None or whole and not parse_host(whole[2]):
        raise UserError(
            f"--root-path {given!r}: give the path below which the proxy serves the page, such as /earshot, "
            "or its whole address, such as https://example.org/earshot"
        )
    return Address(prefix, whole[1], whole[2]) if whole else Address(prefix)


def clean_prefix(path: str) -> str | None:
    """A prefix without its last slash and with nothing encoded; None for what is no plain path."""
    plain = unquote(path.removesuffix("/")) if path.isascii() else "\n"
    return plain if SEGMENTS.fullmatch(plain) else None


def parse_host(host: str) -> str | None:
    """The host without its port, None for what is no host."""
    found = HOST.fullmatch(host)
    return found[1].lower() if found else None
