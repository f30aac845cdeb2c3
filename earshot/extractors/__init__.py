"""The registry of extractors: every module of this folder that is not a helper is one, under its file's name.

An extractor is one file with `Settings`, `RATE`, `PAD`, `SECONDS`, `LIMIT`, `DEFAULT_WEIGHTS`,
`weights_files`, `fetch` and `Extractor` (see `base`); `HALF_ON_CPU` and `seconds` where they apply. Nothing
heavy is imported here or at the top of such a file: `--help` needs them all.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from earshot.core.errors import UserError

_HELPERS = {"ast_fast", "base", "hub", "mel", "torch_weights"}


def names() -> list[str]:
    """The extractors' names, sorted, from the files of this folder and without importing them."""
    found = (entry.name for entry in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if name not in _HELPERS and not name.startswith("_"))


def module(name: str) -> ModuleType:
    """The module of one extractor.

    Raises:
        UserError: no extractor has this name.
    """
    if name not in names():
        raise UserError(f"no extractor is called {name!r}: choose one of {', '.join(names())} (--extractor)")
    return importlib.import_module(f"{__name__}.{name}")
