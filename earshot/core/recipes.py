"""Recipes: YAML files that set the defaults of the flags, section by section."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earshot.core.errors import UserError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SECTIONS = ("about", "features", "head", "training")
# settings that are gone, and why


@dataclass
class Recipe:
    """A recipe's three sections, unknown keys and all; `name` is the file's stem."""

    name: str
    about: str = ""
    features: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def recipe_names() -> list[str]:
    """The recipes that come with the kit."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Read recipes/NAME.yaml or the YAML file NAME.

    Raises:
        UserError: unknown recipe (lists them), damaged YAML, unknown section.
    """
    from earshot.core import plain_yaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no recipe {name}: choose one of {', '.join(recipe_names())}, or name a YAML file")
    content = plain_yaml.read(path) or {}
    if not isinstance(content, dict) or any(not isinstance(content.get(s) or {}, dict) for s in SECTIONS[1:]):
        raise UserError(f"{path}: a recipe has the sections {', '.join(SECTIONS)}, each with keys of its own")
    unknown = sorted(map(str, set(content) - set(SECTIONS)))
    if unknown:
        raise UserError(f"{path}: unknown section {unknown[0]}: a recipe has {', '.join(SECTIONS)}")
    return Recipe(
        path.stem, str(content.get("about") or ""), *(dict(content.get(s) or {}) for s in SECTIONS[1:])
    )
