"""Earshot: from a competition's audio to a submission. One concept a file; nothing here imports `models` or a
script."""

__version__ = "0.2.0"
