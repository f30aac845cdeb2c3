"""Placeholders for files, recognised by their first bytes: pointers and web pages instead of content."""

from __future__ import annotations

import re
from pathlib import Path

from earshot.core.errors import UserError

HEAD = 512  # bytes to read
KINDS = (
    (rb"version https?://(git-lfs|hawser|git-media)", "Git LFS pointer (run git lfs pull)"),
    (rb"(\.\./)*(\.git)?/annex/objects/", "git-annex pointer (run git annex get)"),
    (
        rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b",
        "HTML page (download the file itself)",
    ),
    (rb"<\?xml[^>]*>\s*<error\b", "XML error message (download it again)"),
)


def detect_stand_in(head: bytes) -> str | None:
    """What a file with these first bytes is a placeholder for, with a fix; None for any other file."""
    text = head[:HEAD].removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((name for start, name in KINDS if re.match(start, text, re.IGNORECASE | re.DOTALL)), None)


def check_content(path: Path) -> None:
    """Raise UserError for a placeholder: a pointer, or a page with an error."""
    with open(path, "rb") as file:
        stand_in = detect_stand_in(file.read(HEAD))
    if stand_in:
        raise UserError(f"{path} holds no weights: {stand_in}")
