"""The registry of extractors: every module of this folder but the helpers is one, named like its file.

An extractor is one file with `Settings` and `Extractor` (see `base`, and docs/add-an-extractor.md). Nothing
heavy is imported here or at the top of such a file, to keep `--help` quick.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from earshot.core.errors import UserError
from earshot.core.settings import replace_defaults, suggest

if TYPE_CHECKING:
    from torch import nn

USUAL = "logmel"  # needs no weights: error lines propose it first
_HELPERS = {"ast_fast", "base", "hf_processor", "hub", "mel", "onnx_file", "onnx_probe", "torch_weights"}


def list_names() -> list[str]:
    """The extractors' names, sorted, from the files of this folder and without importing them."""
    files = (entry.name for entry in pkgutil.iter_modules(__path__))
    return sorted(name for name in files if name not in _HELPERS and not name.startswith("_"))


def load_module(name: str) -> ModuleType:
    """The module of one extractor.

    Raises:
        UserError: no extractor has this name.
    """
    if name not in list_names():
        known = list_names()
        near = suggest(name, known)
        raise UserError(f"no extractor named {name!r}{near}: choose one of {', '.join(known)} (--extractor)")
    return importlib.import_module(f"{__name__}.{name}")


def load_network(name: str, weights: str) -> nn.Module:
    """The pretrained network of an extractor, in evaluation mode, for a head that fine-tunes it.

    Args:
        name: of an extractor whose module has `load_network`.
        weights: what its --weights takes.
    Raises:
        UserError: the weights are not here and cannot be downloaded, or do not fit.
    """
    return load_module(name).load_network(weights)


def describe_network(name: str, weights: str) -> dict[str, Any]:
    """The settings of an extractor's pretrained network as plain JSON, without its weights.

    Args:
        name, weights: see `load_network`; its module has `describe_network`, too.
    """
    return load_module(name).describe_network(weights)


def find_makers(kinds: Iterable[str], needs: Mapping[str, Any]) -> list[str]:
    """The extractors that make a view of one of these kinds with the settings that a head needs, as flags
    name them (`efficientat --views spectrogram` where the default lacks the view); the usual one first."""
    found = []
    for name in sorted(list_names(), key=lambda name: (name != USUAL, name)):
        its = load_module(name)
        settings = its.Settings()
        says = its.Extractor.describe(settings, getattr(settings, "rate", its.Extractor.rate) or 0)
        if any(says.get(key) != value for key, value in needs.items()):
            continue
        fitting = [view for view, kind in its.Extractor.views.items() if kind in kinds]
        usual = its.Extractor.choose_views(settings)
        if set(fitting) & set(usual):
            found.append(name)
        elif fitting:
            found.append(f"{name} --views {fitting[0]}")
    return found


def describe_view(record: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """Rate and bands of a cache's view (D, F, T), and its extractor's further settings."""
    says = {"rate": record["window"].get("rate"), "bands": shape[1]}
    if record["extractor"] not in list_names():  # made by one that is not in this folder any more
        return says
    its = load_module(record["extractor"])
    settings = replace_defaults(its.Settings(), record["settings"], "the cache's settings")
    return says | its.Extractor.describe(settings, says["rate"])
