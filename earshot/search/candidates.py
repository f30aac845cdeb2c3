"""The bake-off's candidates: recipes for each kind of view that the caches have, those with the most gain for
their time first."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import models
from earshot.core import config
from earshot.core.errors import UserError
from earshot.core.kinds import Kind
from earshot.features.cache import Cache
from earshot.training import experiment

BASELINES = ("logistic", "svm", "knn")
# To add a recipe, measure its gain on several data sets (benchmarks/anytime.py record --candidates NAME),
# then put its name here, and into FURTHER for further views. schedule.LEVELS says what is expected of it.
# Recipes with published weights are left out on views that cannot feed those.
# Baselines take seconds. On log-mel, a support vector machine on statistics over time is better than most
# small networks.
LADDER: dict[Kind, tuple[str, ...]] = {
    "vector": (*BASELINES, "linear", "mlp", "itmo2025_tokens", "itmo2025"),
    "sequence": (*BASELINES, "mlp", "itmo2025_tokens", "esc50_encodec"),
    "grid": (*BASELINES, "mlp", "itmo2025_tokens"),
    "spectrogram": (
        *BASELINES,
        "modulations",
        "patches",
        "efficientat_finetune",
        "from_scratch",
        "small_cnn",
        "crnn",
        "convnext_ggcn_scratch",
        "audio_cnn",
    ),
    "waveform": ("esc50_convnext1d", "esc50_hifigan"),
}
# Further views of a cache mostly repeat what is in the first one.
FURTHER = (("logistic", "svm", "mlp", "itmo2025_tokens"), ("itmo2025_tokens",))
SEEDS = (1, 2)  # trained once all other candidates are done
SEEDED = ("mlp", "itmo2025_tokens", "efficientat_finetune", "from_scratch", "small_cnn")
# further seeds of these come before those of other recipes, which are weaker
STRONG = ("efficientat_finetune", "from_scratch")


@dataclass(frozen=True)
class Candidate:
    """A recipe on a view of a cache, with a seed; `after` names the one of seed 0 that has to be finished
    first."""

    name: str
    cache: Cache
    recipe: config.Recipe
    view: str
    seed: int
    after: str | None = None

    def get_training_settings(self, folds: int | None, metric: str) -> config.TrainingFlags:
        """The recipe's training settings, with those that all candidates share."""
        settings = config.replace_defaults(
            config.TrainingFlags(), self.recipe.training, f"recipe {self.recipe.name}, training"
        )
        # a further seed is a candidate of its own
        return replace(settings, folds=folds, metric=metric, seed=self.seed, seeds=1, refit=False)


def list_candidates(opened: list[Cache], recipes: tuple[str, ...]) -> list[Candidate]:
    """All of them in order, further seeds last.

    Args:
        recipes: the user's choice, each on every cache that has a view for it; empty: the ladder.
    Raises:
        UserError: a recipe that no cache has a view for.
    """
    ladder: list[tuple[int, Candidate]] = []
    labels = _label_caches(opened)

    def add(place: int, cache: Cache, name: str, view: str) -> None:
        recipe = config.load_recipe(name)
        plain = re.sub(r"[^\w.-]+", "_", f"{recipe.name}-{view}-{labels[cache.folder]}")
        ladder.append((place, Candidate(plain, cache, recipe, view, 0)))

    if recipes:
        for place, name in enumerate(recipes):
            recipe = config.load_recipe(name)
            head, wanted = recipe.head.get("name", "linear"), recipe.head.get("view")
            fitting = 0
            for cache in opened:
                view = experiment.find_view(head, wanted, cache)
                unfit = experiment.find_misfit(head, recipe.head, cache, view) if view else None
                if unfit:
                    print(f"--candidates {name} is left out: {unfit}")
                elif view:
                    add(place, cache, name, view)
                    fitting += 1
            if not fitting:
                raise UserError(
                    f"--candidates {name}: no cache has a view for it: extract one, or leave it out"
                )
    else:
        for cache in opened:
            for rank, view in enumerate(_rank_views(cache)):
                fitting_names = LADDER[cache.kinds[view]]
                if rank:
                    short = FURTHER[min(rank, len(FURTHER)) - 1]
                    fitting_names = tuple(name for name in short if name in fitting_names)
                for place, name in enumerate(fitting_names):
                    if _feeds_weights(cache, name, view):
                        add(place, cache, name, view)
        if not ladder:
            views = ", ".join(view for cache in opened for view in cache.shapes)
            raise UserError(f"the ladder has no head for {views}: name recipes with --candidates")
    first = [candidate for _, candidate in sorted(ladder, key=lambda pair: pair[0])]
    names = [candidate.name for candidate in first]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--candidates: {twice} comes twice: give the recipes different names")
    again = [candidate for candidate in first if candidate.recipe.name in SEEDED]
    seeds = [
        replace(c, name=f"{c.name}-seed{seed}", seed=seed, after=c.name) for seed in SEEDS for c in again
    ]
    return (
        first if recipes else first + sorted(seeds, key=lambda candidate: candidate.recipe.name not in STRONG)
    )


def _feeds_weights(cache: Cache, name: str, view: str) -> bool:
    """Can a view feed the weights that a recipe names? Weights that have to be read first may not be here."""
    head = config.load_recipe(name).head
    try:
        return experiment.find_misfit(head.get("name", "linear"), head, cache, view) is None
    except (UserError, models.HeadError):
        return False


def _rank_views(cache: Cache) -> list[str]:
    """A cache's views that the ladder has recipes for, in the order of its kinds."""
    return [view for kind in LADDER for view, its in cache.kinds.items() if its == kind]


def _label_caches(opened: list[Cache]) -> dict[Path, str]:
    names = [cache.folder.name for cache in opened]
    return {
        cache.folder: name if names.count(name) == 1 else f"{cache.folder.parent.name}-{name}"
        for cache, name in zip(opened, names, strict=True)
    }
