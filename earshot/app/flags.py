"""The page's flags."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PageFlags:
    """what answers, and to whom"""

    run: str | None = None
    """a run or a kept blend: a folder, or a name in --runs-folder (default: the only one)"""
    host: str = "127.0.0.1"
    """address to listen at: this machine alone, unless changed (0.0.0.0: whoever reaches this machine,
    without a password)"""
    port: int = 7860
    """port to listen at; 0: any free one"""
    root_path: str | None = None
    """path below which a reverse proxy serves the page, such as /earshot, or its whole address; without it
    the proxy's X-Forwarded headers say"""
    longest: float = 600.0
    """seconds of audio that a clip may last"""
    largest: float = 50.0
    """megabytes that an upload may have"""
    weights: str | None = None
    """the extractor's weights, where they moved"""
    runs_folder: str = "runs"
    """where runs are looked for by name"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
