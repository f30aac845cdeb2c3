"""Stage 2: cached features -> a head per fold in runs/<name>/ and submissions/submission.csv."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from earshot.core import cli, config, help_pages
from earshot.core.deadline import Deadline
from earshot.core.errors import UserError
from earshot.core.files import check_plain_name, hold_lock
from earshot.features.cache import Cache
from earshot.features.find_cache import check_kinds, find_for_recipe, list_mismatches
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
    if filled["run"].head is None and filled["run"].view is None:
        check_kinds(cache, recipe)
    return cache, recipe, filled, options


def run_auto(argv: list[str]) -> None:
    """--recipe auto: the bake-off."""
    from earshot.search import auto as search_auto
    from earshot.search.flags import AutoFlags

    began = time.monotonic()
    groups = {"auto": AutoFlags(), "machine": config.TrainMachineFlags()}
    filled, _ = cli.parse(groups, cli.parse_early(argv, repeated=["features"])[1], ABOUT)
    flags, machine = filled.values()
    opened = search_auto.open_caches(flags, machine)
    metric, line = contest_metric.choose_default(opened, argv)
    if line:
        print(line)
        flags = replace(flags, metric=metric)
    search_auto.run(opened, flags, machine, began)


def main(argv: list[str]) -> None:
    """Parse, train what is missing, score, submit."""
    if cli.parse_early(argv, ["recipe"])[0]["recipe"] == "auto":
        return run_auto(argv)
    cache, recipe, flags, options = parse_args(argv)
    what, settings, machine = flags.values()
    deadline = Deadline(machine.max_hours)
    print(f"features: {cache.folder}, recipe: {recipe.name}")
    line = contest_metric.choose_default([cache], argv)[1]
    if line and "metric" not in recipe.training:
        print(line)
    for difference in list_mismatches(cache.record, recipe):
        print(f"the cache differs from the recipe: {difference}")
    import models
    from earshot.prediction import submit
    from earshot.report.make import report_on
    from earshot.search import tune
    from earshot.training import cross_validation, run_scores, tracking
    from earshot.training.experiment import Job, describe_head

    out = Path(what.out)
    try:
        head_spec = describe_head(recipe, cache, what.head, what.view, options)
        check_plain_name("--name", what.name)
        submit.dry_run(cache, out, settings.metric)
        job = Job(cache, recipe.name, head_spec, settings, machine, flags=what)
        wanted, folder = (
            job.choose_folds(what.fold),
            Path(what.runs_folder) / (what.name or f"{job.name()}{'-tuned' if what.tune else ''}"),
        )
        with hold_lock(folder, "the run"):
            if what.tune:
                job = tune.tune(what.tune, job, folder, wanted, deadline) or deadline.leave()
            run = job.begin(folder, what.name is not None)
            tracker = tracking.start_tracking(run, machine.wandb)
            if not cross_validation.train_folds(job, run, wanted, deadline):
                deadline.leave()
            run_scores.summarise_run(run, job.rows, job.numbers)
            if what.tune:
                tune.mark_run(run, wanted)
            submit.score_and_submit(run, cache, out, job.device, machine.memory)
            if machine.report:
                report_on(run.folder, run.log)
            tracker.finish()
    # also pretrained weights that cannot be had, a view that a loss cannot use
    except models.HeadError as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    cli.run(main)
