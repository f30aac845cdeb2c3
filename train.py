"""Stage 2: cached features -> a head per fold in runs/<name>/ and submissions/submission.csv."""

from __future__ import annotations

import time
from typing import Any

from earshot.core import cli, config, help_pages
from earshot.core.deadline import Deadline
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.features.find_cache import find_for_recipe
from earshot.search import train_run
from earshot.training import contest_metric

ABOUT = (
    "Train a head on cached features, fold by fold, and write the submission.\n"
    "\n"
    "The same command continues where it stopped. --recipe auto tries many heads on all caches and submits\n"
    "their best blend.\n"
    "`python -m models` lists heads and recipes; `python -m models --head mlp` a head's options, which\n"
    "--head.OPTION VALUE sets."
)


def list_groups() -> dict[str, Any]:
    """Title -> defaults of the flags."""
    return {
        "run": config.RunFlags(),
        "training": config.TrainingFlags(),
        "machine": config.TrainMachineFlags(),
    }


def parse_args(argv: list[str]) -> tuple:
    """Find cache and recipe (each may decide the other), then parse all flags with the recipe's values as
    defaults."""
    early, _ = cli.parse_early(argv, ("recipe", "head", "features", "data", "continue-from"))
    if sum(a.split("=")[0] == "--features" for a in argv) > 1:
        raise UserError(
            "--features twice: a run is trained on one cache; train two runs, then predict.py --runs A B "
            "blends them, or let --recipe auto take both"
        )
    name = early["recipe"]
    recipe = config.load_recipe(name) if name else None
    cache = None
    if not help_pages.wants_help(argv):
        try:
            cache = Cache(
                early["features"] or find_for_recipe(early["data"] or "data", recipe, early["continue-from"])
            )
        except UserError:
            cli.parse(list_groups(), argv, ABOUT, free="head")  # a mistyped flag is named first
            raise
    if recipe is None:
        recipe = config.default_recipe(cache.manifest.get("recipe") if cache else None, early["head"])
    metric = {} if cache is None else {"metric": contest_metric.choose_default([cache], argv)[0]}
    training = config.replace_defaults(
        config.TrainingFlags(), {**metric, **recipe.training}, f"recipe {recipe.name}, training"
    )
    filled, options = cli.parse({**list_groups(), "training": training}, argv, ABOUT, free="head")
    return cache, recipe, filled, options


def run_auto(argv: list[str]) -> None:
    """--recipe auto: the bake-off."""
    from earshot.search.flags import AutoFlags

    began = time.monotonic()
    groups = {"auto": AutoFlags(), "machine": config.TrainMachineFlags()}
    filled, _ = cli.parse(groups, cli.parse_early(argv, repeated=["features"])[1], ABOUT)
    flags, machine = filled.values()
    train_run.run_bake_off(flags, machine, began, argv)


def main(argv: list[str]) -> None:
    """Parse, train, submit."""
    if cli.parse_early(argv, ["recipe"])[0]["recipe"] == "auto":
        return run_auto(argv)
    cache, recipe, flags, options = parse_args(argv)
    deadline = Deadline(flags["machine"].max_hours)
    metric_line = contest_metric.choose_default([cache], argv)[1]
    train_run.train_run(cache, recipe, flags, options, metric_line, deadline)


if __name__ == "__main__":
    cli.run(main)
