"""The settings of an extraction with their defaults: those of a saved run, else a recipe's, else the
extractor's own."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from earshot import extractors
from earshot.audio.load import AudioSettings
from earshot.core import config
from earshot.core.errors import UserError
from earshot.core.settings import find_former_names, suggest
from earshot.features import for_run

if TYPE_CHECKING:
    from earshot.features.for_run import SavedRun


class ExtractionSettings(NamedTuple):
    """What an extraction starts from."""

    recipe: str | None
    """The recipe whose settings these are; None where they are no recipe's."""
    extractor: str
    groups: dict[str, Any]
    """Title -> dataclass instance, in the order that `make_cache` takes."""


def list_groups(*names: str) -> dict[str, Any]:
    """Title -> defaults of the flags.

    Args:
        names: of the extractors whose flags are wanted (default: all).
    """
    return {
        "competition": config.CompetitionFlags(),
        "windows": config.WindowFlags(),
        "audio": AudioSettings(),
        **{name: extractors.load_module(name).Settings() for name in names or extractors.list_names()},
        "copies": config.AugmentFlags(),
        "machine": config.ExtractionFlags(),
    }


def build_settings(recipe: str | None, extractor: str | None, run: SavedRun | None) -> ExtractionSettings:
    """The groups of settings with their defaults.

    Args:
        recipe: a recipe's name, or its YAML file. extractor: one that is named, over the recipe's.
        run: a saved run, whose settings count instead of a recipe's.
    Raises:
        UserError: no extractor, or a recipe with an unknown key.
    """
    values = for_run.get_features(run) if run else dict(config.load_recipe(recipe).features) if recipe else {}
    chosen = extractor or values.get("extractor")
    if chosen is None:
        raise UserError(
            f"recipe {recipe} names no extractor: add --extractor {'|'.join(extractors.list_names())}"
        )
    groups = list_groups(chosen)
    if values.get("extractor") not in (None, chosen):
        recipe, values = None, {}  # the recipe's settings are another extractor's
    where = f"{run.folder}/config.yaml" if run else f"recipe {recipe}, features"
    left = dict(values)
    for title, group in groups.items():
        names = {*(field.name for field in fields(group)), *find_former_names(group)}
        own = {key: left.pop(key) for key in values if key in names}
        groups[title] = config.replace_defaults(group, own, where)
    known = [field.name for group in groups.values() for field in fields(group)]
    for key in left:
        raise UserError(f"{where}: unknown key {key}{suggest(key, known)}: choose among {', '.join(known)}")
    return ExtractionSettings(recipe, chosen, groups)
