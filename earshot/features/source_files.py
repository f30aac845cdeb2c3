"""The content of source files, remembered, so that a rerun need not read gigabytes to see that nothing
changed."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from earshot.core import checksums
from earshot.core.files import digest


class Sources:
    """An index file: path -> size, time of change, SHA-256, seconds, rate.

    The times stay in this file and enter no fingerprint: a remounted copy is read again and found equal.
    """

    def __init__(self, index: Path | str):
        self.index = Path(index)
        try:
            found = checksums.read(self.index).get("files")
        except checksums.Damaged:
            found = None  # an index is only a shortcut: a damaged one is made anew
        self.known: dict[str, dict] = (
            {path: entry for path, entry in found.items() if _sound(entry)} if isinstance(found, dict) else {}
        )
        self.changed = False

    def _entry(self, path: str) -> dict:
        try:
            about = os.stat(path)
        except OSError:
            return {}
        if not stat.S_ISREG(about.st_mode):  # a pipe would keep us waiting for ever
            return {}
        known = self.known.get(path)
        if not (
            isinstance(known, dict)
            and known.get("size") == about.st_size
            and known.get("time") == about.st_mtime_ns
        ):
            known = {"size": about.st_size, "time": about.st_mtime_ns}
            self.known[path] = known
            self.changed = True
        return known

    def digests(self, paths: Iterable[Path | str], workers: int = 4) -> list[str]:
        """SHA-256 per file, "" for one that cannot be read."""
        paths = [str(path) for path in paths]
        entries = [self._entry(path) for path in paths]
        todo = [
            (entry, path)
            for entry, path in zip(entries, paths, strict=True)
            if entry and "sha256" not in entry
        ]

        def fill(job: tuple[dict, str]) -> None:
            try:
                job[0]["sha256"] = digest(job[1])
            except OSError:
                pass  # not remembered: the next run may be allowed to read it

        if todo:
            self.changed = True
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(fill, todo))
        return [entry.get("sha256", "") for entry in entries]

    def headers(self, paths: Iterable[Path | str]) -> list[tuple[float, int] | None]:
        """(seconds, rate) per audio file, None for one whose header cannot be read."""
        from earshot.audio.load import BadAudio, info

        found = []
        for path in map(str, paths):
            entry = self._entry(path)
            if entry and "seconds" not in entry:
                self.changed = True
                try:
                    entry["seconds"], entry["rate"] = info(path)
                except BadAudio:
                    pass  # not remembered either
            found.append((entry["seconds"], entry["rate"]) if entry.get("seconds") else None)
        return found

    def save(self) -> None:
        """Write the index if anything is new."""
        if self.changed:
            checksums.write(self.index, {"files": self.known})
            self.changed = False


def _sound(entry: Any) -> bool:
    """Is this what `Sources` writes of a file?"""
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256", ""), str):
        return False
    if "seconds" not in entry:
        return True
    seconds, rate = entry["seconds"], entry.get("rate")
    return (
        type(seconds) in (int, float)
        and math.isfinite(seconds)
        and seconds >= 0
        and type(rate) is int
        and rate > 0
    )
