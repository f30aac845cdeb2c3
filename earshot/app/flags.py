"""The page's flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from earshot.core.fingerprint import formerly
from earshot.core.settings import Bounds


@dataclass(frozen=True)
class PageFlags:
    """the run to serve, and the address"""

    run: str | None = None
    """a run or a kept blend: a folder, or a name in --runs-folder (default: the only one)"""
    host: str = "127.0.0.1"
    """address to listen at: this machine only, unless changed (0.0.0.0: everyone who can reach this machine,
    no password)"""
    port: Annotated[int, Bounds(0, 65535)] = 7860
    """port to listen at; 0: any free one"""
    root_path: str | None = None
    """path below which a reverse proxy serves the page, such as /earshot, or its whole address (default: from
    the proxy's X-Forwarded headers)"""
    max_seconds: Annotated[float, Bounds(1, 43200)] = field(default=600.0, metadata=formerly("longest"))
    """longest clip, in seconds"""
    max_upload_mb: Annotated[float, Bounds(0.001, 10000)] = field(default=50.0, metadata=formerly("largest"))
    """largest upload, in megabytes"""
    weights: str | None = None
    """the extractor's weights, if they moved since training"""
    runs_folder: str = "runs"
    """folder in which runs are found by name"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
