"""The page's flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from earshot.core.fingerprint import formerly
from earshot.core.settings import Bounds


@dataclass(frozen=True)
class PageFlags:
    """what answers, and to whom"""

    run: str | None = None
    """a run or a kept blend: a folder, or a name in --runs-folder (default: the only one)"""
    host: str = "127.0.0.1"
    """address to listen at: this machine alone, unless changed (0.0.0.0: whoever reaches this machine,
    without a password)"""
    port: Annotated[int, Bounds(0, 65535)] = 7860
    """port to listen at; 0: any free one"""
    root_path: str | None = None
    """path below which a reverse proxy serves the page, such as /earshot, or its whole address; without it
    the proxy's X-Forwarded headers say"""
    max_seconds: Annotated[float, Bounds(1, 43200)] = field(default=600.0, metadata=formerly("longest"))
    """seconds of audio that a clip may last"""
    max_upload_mb: Annotated[float, Bounds(0.001, 10000)] = field(default=50.0, metadata=formerly("largest"))
    """megabytes that an upload may have"""
    weights: str | None = None
    """the extractor's weights, where they moved"""
    runs_folder: str = "runs"
    """where runs are looked for by name"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
