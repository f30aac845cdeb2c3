"""The page's public address behind a proxy, a path prefix and a host: parsing and checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from earshot.core.errors import UserError

# A path without characters that have a meaning in a URL, in HTML or in a header.
SEGMENTS = re.compile(r"(/(?!\.{1,2}(/|$))[\w.~@+=,-]+)*")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True)
class Address:
    """Where a proxy serves the page: a prefix such as /earshot or "", and a scheme and host where known."""

    prefix: str
    scheme: str | None = None
    host: str | None = None


def parse_address(given: str) -> Address:
    """The address in --root-path: a path, or a whole address.

    Raises:
        UserError: it is neither.
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
    """A prefix, percent-decoded and without its last slash; None where it is not a plain path."""
    plain = unquote(path.removesuffix("/")) if path.isascii() else "\n"
    return plain if SEGMENTS.fullmatch(plain) else None


def parse_host(host: str) -> str | None:
    """The host without its port; None where it is invalid."""
    found = HOST.fullmatch(host)
    return found[1].lower() if found else None
