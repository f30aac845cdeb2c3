"""A run, or a bake-off, from its settings to submission and report: what train.py and `earshot.train` do."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot.core import config
from earshot.core.errors import UserError
from earshot.core.files import check_plain_name, hold_lock
from earshot.features.cache import Cache
from earshot.features.find_cache import check_kinds, list_mismatches

if TYPE_CHECKING:
    from earshot.core.deadline import Deadline
    from earshot.search.flags import AutoFlags
    from earshot.training.run import Run


def train_run(
    cache: Cache,
    recipe: config.Recipe,
    flags: Mapping[str, Any],
    options: dict[str, str],
    metric_line: str | None,
    deadline: Deadline,
) -> Run:
    """Train what is missing of a run, score it, write submission and report.

    Args:
        flags: the groups of settings by title: run, training, machine.
        options: of the head, as YAML text. metric_line: what to print about the metric.
    Raises:
        UserError: settings that cannot be used, a head that cannot be built.
    """
    what, settings, machine = flags.values()
    if what.head is None and what.view is None:
        check_kinds(cache, recipe)
    print(f"features: {cache.folder}, recipe: {recipe.name}")
    if metric_line and "metric" not in recipe.training:
        print(metric_line)
    for difference in list_mismatches(cache.record, recipe):
        print(f"the cache differs from the recipe: {difference}")
    import models
    from earshot.prediction import submit
    from earshot.report.make import report_on
    from earshot.search import tune
    from earshot.training import cross_validation, run_scores, tracking
    from earshot.training.experiment import Job, describe_head
    from earshot.training.run import list_slots

    out = Path(what.out)
    try:
        head_spec = describe_head(recipe, cache, what.head, what.view, options)
        check_plain_name("--name", what.name)
        submit.dry_run(cache, out, settings.metric)
        with contextlib.ExitStack() as stack:
            cluster = None
            if machine.cluster is not None:
                from earshot.cluster.connect import connect

                cluster = stack.enter_context(connect(machine))
            job = Job(cache, recipe.name, head_spec, settings, machine, flags=what, cluster=cluster)
            wanted = job.choose_folds(what.fold)
            folder = Path(what.runs_folder) / (what.name or f"{job.name()}{'-tuned' if what.tune else ''}")
            stack.enter_context(hold_lock(folder, "the run"))
            if what.tune:
                tuned = tune.tune(what.tune, job, folder, wanted, deadline)
                if tuned is None:
                    deadline.leave()
                else:
                    job = tuned
            run = job.begin(
                folder, what.name is not None, model_count=len(list_slots(asdict(job.settings), wanted))
            )
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
    return run


def run_bake_off(
    flags: AutoFlags, machine: config.TrainMachineFlags, began: float, argv: Sequence[str]
) -> Path:
    """Train many heads on all caches and blend the best; the folder of the blend.

    Args:
        began: when the call did, on the monotonic clock. argv: with --metric where the user chose one.
    """
    from earshot.search import auto
    from earshot.training import contest_metric

    metric: Any
    opened = auto.open_caches(flags, machine)
    metric, line = contest_metric.choose_default(opened, argv)
    if line:
        print(line)
        flags = replace(flags, metric=metric)
    return auto.run(opened, flags, machine, began)
