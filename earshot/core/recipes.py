"""Recipes: YAML files that set the defaults of the flags, section by section, every value checked against its
field."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earshot.core.errors import UserError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SECTIONS = ("about", "features", "head", "training")
# settings that are gone, and why
REMOVED = {
    "pretrain": "was removed in 0.2, because training without labels first gained nothing: leave it out"
}
# How a head is trained that has no recipe. AdamW and one cycle suit most networks.
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


def default_recipe(made_with: str | None, head: str | None) -> Recipe:
    """The recipe where the user names none.

    Args:
        made_with: the recipe of the cache, None where it has none.
        head: the head that the user names, None where there is none.
    Returns:
        the cache's recipe, else `linear`. For a head that is not that recipe's: the recipe that has its
        name, if that suits any features, else `NEUTRAL` settings under the head's name.
    """
    recipe = load_recipe(made_with or "linear")
    if head is None or head == recipe.head.get("name"):
        return recipe
    if head in recipe_names():
        own = load_recipe(head)
        if own.head.get("name") == head and not own.features:
            return own
    return Recipe(head, head={"name": head}, training=dict(NEUTRAL))


def with_defaults(settings: Any, values: dict[str, Any], where: str) -> Any:
    """A dataclass instance with the given fields replaced, types checked.

    Args:
        settings: an instance.
        values: key -> value out of a recipe or a saved configuration.
        where: for the message, e.g. "recipes/audio_cnn.yaml, features".
    Raises:
        UserError: unknown key, value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(settings)}
    for key in values:
        if key in REMOVED:
            raise UserError(f"{where}: {key} {REMOVED[key]}")
        if key not in fields:
            raise UserError(f"{where}: unknown key {key}: choose among {', '.join(fields)}")
    return dataclasses.replace(
        settings, **{k: _typed(k, v, str(fields[k].type), where) for k, v in values.items()}
    )


def _typed(key: str, value: Any, kind: str, where: str) -> Any:
    """YAML writes 1e-3 as a string and 5 for 5.0; anything else must be of the field's own type."""
    options = [part.strip() for part in kind.split("|")]
    wrong = UserError(f"{where}: {key} is {value!r}, but must be {kind}")
    if value is None:
        if "None" in options:
            return None
        raise wrong
    if kind.startswith("tuple"):
        inner = kind.removeprefix("tuple[").split(",")[0]
        return tuple(
            _typed(key, v, inner, where) for v in (value if isinstance(value, (list, tuple)) else (value,))
        )
    if kind.startswith("Literal"):
        if f'"{value}"' not in kind and f"'{value}'" not in kind:
            raise wrong
        return str(value)
    if isinstance(value, bool):
        if "bool" in options:
            return value
        raise wrong
    if "float" in options:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise wrong from None
    if "int" in options and isinstance(value, int):
        return value
    if "str" in options and isinstance(value, (str, int, float)):
        return str(value)
    raise wrong
