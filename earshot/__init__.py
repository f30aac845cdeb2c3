"""Earshot: from a competition's audio to a submission. One concept a file; nothing here imports a script.

`extract`, `train` and `load` are the Python interface (docs/python.md). They are imported when they are first
used, so that `import earshot` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from earshot.core.version import __version__

if TYPE_CHECKING:
    from earshot.api import (
        Cache,
        TemporaryError,
        TimeLimitReached,
        TrainedRun,
        UserError,
        extract,
        load,
        train,
    )

__all__ = [
    "Cache",
    "TemporaryError",
    "TimeLimitReached",
    "TrainedRun",
    "UserError",
    "__version__",
    "extract",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from earshot import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
