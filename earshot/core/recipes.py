"""Recipes: YAML files that set the defaults of the flags, section by section."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earshot.core.errors import UserError
from earshot.core.settings import suggest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SECTIONS = ("about", "features", "head", "training")

# training of a head without a recipe; AdamW and one cycle suit most networks
NEUTRAL = {
    "epochs": 60,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 2e-3,
    "schedule": "onecycle",
    "weight_decay": 0.02,
    "label_smoothing": 0.1,
}


@dataclass
class Recipe:
    """A recipe's three sections, unchecked; `name` is the file's stem."""

    name: str
    about: str = ""
    features: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def list_recipes() -> list[str]:
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
        raise UserError(
            f"no recipe named {name}{suggest(name, list_recipes())}: choose one of "
            f"{', '.join(list_recipes())}, or name a YAML file"
        )
    content = plain_yaml.read(path) or {}
    if not isinstance(content, dict) or any(not isinstance(content.get(s) or {}, dict) for s in SECTIONS[1:]):
        raise UserError(f"{path}: a recipe has the sections {', '.join(SECTIONS)}, each with keys of its own")
    unknown = sorted(map(str, set(content) - set(SECTIONS)))
    if unknown:
        raise UserError(
            f"{path}: unknown section {unknown[0]}{suggest(unknown[0], SECTIONS)}: a recipe has "
            f"{', '.join(SECTIONS)}"
        )
    return Recipe(
        path.stem, str(content.get("about") or ""), *(dict(content.get(s) or {}) for s in SECTIONS[1:])
    )


def default_recipe(made_with: str | None, head: str | None) -> Recipe:
    """The default recipe.

    Args:
        made_with: the recipe of the cache, None where it has none.
        head: the head that the user chose, None without one.
    Returns:
        the cache's recipe, else `linear`. For another head: the recipe of that name, if it takes any
        features, else `NEUTRAL` settings under the head's name.
    """
    recipe = load_recipe(made_with or "linear")
    if head is None or head == recipe.head.get("name"):
        return recipe
    if head in list_recipes():
        own = load_recipe(head)
        if own.head.get("name") == head and not own.features:
            return own
    return Recipe(head, head={"name": head}, training=dict(NEUTRAL))
