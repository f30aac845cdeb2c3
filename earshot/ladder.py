"""What the bake-off tries: recipes for the views that the caches have, the most gain for the time first."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earshot import cache, config, earlier, job, probe
from earshot.cache import Cache
from earshot.errors import UserError

BASELINES = ("logistic", "svm", "knn")
# Baselines take seconds. On log-mel, statistics over time and a support vector machine reach more than most small networks.
LADDER: dict[str, tuple[str, ...]] = {
    "pooled": (*BASELINES, "linear", "mlp", "itmo2025_tokens", "itmo2025"),
    "frames": ("logistic", "svm", "mlp", "itmo2025_tokens"),
    "mel": (*BASELINES, "from_scratch", "small_cnn", "crnn", "convnext_ggcn_scratch", "audio_cnn"),
    "tokens": ("itmo2025_tokens",),
    "latents": (*BASELINES, "mlp", "itmo2025_tokens", "esc50_encodec"),
    "fbank": (*BASELINES, "itmo2025_tokens"),
    "wave": ("esc50_convnext1d", "esc50_hifigan"),
}
SEEDS = (1, 2)  # once the others are done: the same again, begun and mixed differently
SEEDED = ("mlp", "itmo2025_tokens", "from_scratch", "small_cnn")
CPU_PARAMETERS = 20_000_000  # above: a GPU's work
CPU_SPEED = 1e11  # operations a second that a few cores hardly exceed; what is too much even so is not tried
WITH_THE_REST = 1.2  # validation and what surrounds the steps, over the steps


@dataclass(frozen=True)
class Candidate:
    """A recipe on a view of a cache, with a seed; `after` names the one of seed 0 that has to be finished first."""

    name: str
    cache: Cache
    recipe: config.Recipe
    view: str
    seed: int
    after: str | None = None

    def settings(self, folds: int | None, metric: str) -> config.TrainingFlags:
        """The recipe's training settings, with what is the same for all candidates."""
        made = config.with_defaults(config.TrainingFlags(), self.recipe.training, f"recipe {self.recipe.name}, training")
        return replace(made, folds=folds, metric=metric, seed=self.seed)


def caches(data: str, named: tuple[str, ...], continue_from: str | None) -> tuple[list[Cache], list[str]]:
    """The caches of a bake-off, and lines about those that are left out.

    Args:
        data: where they are looked for: data/<competition>/<cache>, or data is the competition's folder itself.
        named: these and no others.
    Raises:
        UserError: none, those of several competitions, or of other labels.
    """
    found = list(map(Path, named))
    if not found:
        own = sorted(p.parent for p in Path(data).glob(f"*/{cache.MANIFEST}") if cache.is_cache(p.parent))
        found = own or cache.find(data) or earlier.caches(continue_from)
    if not found:
        raise UserError(f"no cache in {data}/: run get_features.py first, or say where one is with --features FOLDER")
    places = sorted({str(folder.parent) for folder in found})
    if not named and len(places) > 1:
        raise UserError(f"which competition? there are {', '.join(places)}: choose one with --data {places[0]}, or name its caches with "
                        "--features FOLDER, each")
    opened, lines = [], []
    for folder in dict.fromkeys(found):
        if not named and not cache.peek(folder / cache.MANIFEST).get("complete"):
            lines.append(f"{folder} is not finished and left out: get_features.py continues it")
            continue
        opened.append(Cache(folder))
    if not opened:
        raise UserError(f"no finished cache in {', '.join(places)}: run get_features.py again, it continues where it stopped")
    first = opened[0]
    for other in opened[1:]:
        if other.classes != first.classes or other.multilabel != first.multilabel:
            raise UserError(f"{first.folder} and {other.folder} have different labels ({len(first.classes)} and {len(other.classes)}), or "
                            "another order of them, or another task: they are no one competition's; choose with --features FOLDER")
    return opened, lines


def candidates(opened: list[Cache], recipes: tuple[str, ...], heads: Any) -> list[Candidate]:
    """All of them in order, further seeds last.

    Args:
        recipes: the user's choice, each on every cache that has a view for it; empty: the ladder.
        heads: the package `models`.
    Raises:
        UserError: a recipe that no cache has a view for.
    """
    found: list[tuple[int, Candidate]] = []
    labels = _labels(opened)

    def add(place: int, one: Cache, name: str, view: str) -> None:
        recipe = config.load_recipe(name)
        plain = re.sub(r"[^\w.-]+", "_", f"{recipe.name}-{view}-{labels[one.folder]}")
        found.append((place, Candidate(plain, one, recipe, view, 0)))

    if recipes:
        for place, name in enumerate(recipes):
            recipe = config.load_recipe(name)
            fitting = [(one, job.view_of(heads, recipe, one)) for one in opened]
            if not any(view for _, view in fitting):
                raise UserError(f"--candidates {name}: no cache has a view that it takes: extract one, or leave it out")
            for one, view in fitting:
                if view:
                    add(place, one, name, view)
    else:
        for one in opened:
            for view in LADDER:
                if view in one.shapes:
                    for place, name in enumerate(LADDER[view]):
                        add(place, one, name, view)
        if not found:
            raise UserError(f"the ladder has no head for {', '.join(v for one in opened for v in one.shapes)}: name recipes with --candidates")
    first = [candidate for _, candidate in sorted(found, key=lambda pair: pair[0])]
    names = [candidate.name for candidate in first]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--candidates: {twice} comes twice: give the recipes different names")
    seeds = [replace(c, name=f"{c.name}-seed{seed}", seed=seed, after=c.name) for seed in SEEDS for c in first if c.recipe.name in SEEDED]
    return first + ([] if recipes else seeds)


def _labels(opened: list[Cache]) -> dict[Path, str]:
    names = [one.folder.name for one in opened]
    return {one.folder: name if names.count(name) == 1 else f"{one.folder.parent.name}-{name}" for one, name in zip(opened, names)}


def size(candidate: Candidate, what: job.Head, epochs: int) -> tuple[int, float]:
    """Parameters, and the operations of training a fold of all clips; without giving the head memory. 0 operations: not known."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        head = what.build().eval()
        parameters = sum(p.numel() for p in head.parameters())
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                head(torch.empty(2, *candidate.cache.shapes[candidate.view]), None)
            each = counter.get_total_flops() / 2
        except (RuntimeError, NotImplementedError, ValueError, AssertionError):
            each = 0.0
    return parameters, probe.BACKWARD * each * epochs * candidate.cache.manifest["splits"]["train"]["rows"]


def at_once(name: str, rows: int, width: int, classes: int) -> float:
    """Seconds, roughly, that a baseline's fold takes: so that none is begun that is not worth it."""
    if name == "svm":
        return 1 + 2e-9 * rows**2 * width / 10 + 6e-7 * classes * rows**2
    if name == "logistic":
        return 1 + 8e-8 * rows * width * classes
    return 1 + 2e-10 * rows**2 * width
