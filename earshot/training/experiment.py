"""One run from a cache and a recipe: prepared, begun, trained; train.py does it once, the bake-off for every
candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from earshot.core import disk_space, worker_pool
from earshot.core.config import Recipe, RunFlags, TrainingFlags, TrainMachineFlags
from earshot.core.deadline import Deadline
from earshot.core.device import Device
from earshot.core.disk_space import SLACK
from earshot.core.errors import UserError
from earshot.core.files import by_content, digest_of, empty
from earshot.core.fingerprint import fingerprint, recorded
from earshot.core.kaggle_paths import pretrained, root
from earshot.features.cache import Cache
from earshot.training import (
    clip_weights,
    cross_validation,
    dataset,
    folds,
    parts,
    precision,
    pseudo_labels,
    resume,
    training_clips,
)
from earshot.training.dataset import Rows
from earshot.training.run import CONFIG, Run, about, decided


@dataclass(frozen=True)
class Head:
    """Which head, on which view, with which options; `build` makes a fresh one."""

    name: str
    view: str
    options: dict[str, Any]
    build: Callable[[], Any]


def describe_head(
    heads: Any,
    recipe: Recipe,
    cache: Cache,
    head: str | None = None,
    view: str | None = None,
    options: dict[str, str] | None = None,
) -> Head:
    """The head that a recipe and the flags over it mean on this cache.

    Args:
        heads: the package `models`, handed in because nothing here imports it.
        head, view: flags, over the recipe. options: of the head, as text.
    Raises:
        UserError: the cache has no view that the head takes. HeadError: an option that it does not have.
    """
    chosen = dict(recipe.head)
    name, wanted = chosen.pop("name", "linear"), chosen.pop("view", None)
    if head and head != name:
        name, wanted, chosen = head, None, {}
    chosen = located(chosen | {key: heads.parse_option(key, value) for key, value in (options or {}).items()})
    if view and view not in cache.shapes:
        raise UserError(f"{cache.folder} has no view {view}: it has {', '.join(cache.shapes)}")
    preferred = [v for v in (wanted, *heads.views(name)) if v in cache.shapes]
    if not view and not preferred:
        raise UserError(
            f"{cache.folder} has no view that {name} takes (it has {', '.join(cache.shapes)}; {name} takes "
            f"{', '.join(heads.views(name))}): extract another, force one with --view, or choose another head"
        )
    if wanted and not view and preferred[0] != wanted:
        print(f"view: {preferred[0]}, because {cache.folder} has no {wanted}")
    view = view or preferred[0]
    return Head(
        name, view, chosen, partial(heads.build, name, cache.shapes[view], len(cache.classes), **chosen)
    )


def view_of(heads: Any, recipe: Recipe, cache: Cache) -> str | None:
    """The view that a recipe's head gets of a cache, None where it has none."""
    wanted = (recipe.head.get("view"), *heads.views(recipe.head.get("name", "linear")))
    return next((view for view in wanted if view in cache.shapes), None)


class Job:
    """A run's parts, made from its settings; nothing is written before `begin`.

    Args:
        heads: the package `models`.
        what: the head. fresh: one that was built of it, to count and to try.
        fold_seed: of folds that are made, where it is not the training's.
        flags: of which --pseudo may name a run that teaches this one.
    Raises:
        UserError: a device, further views, folds or a teacher that there are not.
    """

    def __init__(
        self,
        heads: Any,
        cache: Cache,
        recipe: str,
        what: Head,
        fresh: Any,
        settings: TrainingFlags,
        machine: TrainMachineFlags,
        fold_seed: int | None = None,
        flags: RunFlags | None = None,
    ):
        flags = flags or RunFlags()
        self.heads, self.cache, self.recipe, self.what, self.fresh = heads, cache, recipe, what, fresh
        self.settings, self.machine, self.flags = settings, machine, flags
        if flags.pseudo and hasattr(fresh, "solve"):
            raise UserError(
                f"--pseudo: {what.name} is fitted at once, to labels alone: choose another head, or leave it "
                "out"
            )
        self.notes: list[str] = []
        if settings.seeds > 1 and hasattr(fresh, "solve"):
            self.settings = settings = replace(settings, seeds=1)
            self.notes.append(f"seeds: one, {what.name} is fitted at once and the same with all of them")
        self.several = worker_pool.choose(machine.device, settings.precision)
        self.at = self.several[0]
        self.load = partial(
            dataset.training_rows,
            cache,
            what.view,
            getattr(fresh, "also", ()),
            settings,
            gigabytes=machine.memory,
            unlabelled=flags.pseudo is not None and cache.has("subm"),
        )
        # Several devices: each process has the features on its own.
        self.rows: Rows = (
            self.load(self.at)
            if len(self.several) == 1
            else self.load(replace(self.at, name="cpu"), gigabytes=0)
        )
        if self.rows.weights is not None:
            ignored = hasattr(fresh, "solve") and not fresh.weighted
            self.notes.append(
                f"weights: ignored, {what.name} counts all training clips alike"
                if ignored
                else clip_weights.about(self.rows.weights)
            )
        self.parameters = sum(p.numel() for p in fresh.parameters())
        # support vectors are no parameters
        self.stored = fresh.keeps(len(self.rows)) if hasattr(fresh, "keeps") else self.parameters
        self.numbers, self.whose = folds.assign(
            self.rows.truth,
            self.rows.folds,
            self.rows.groups,
            settings.folds,
            settings.seed if fold_seed is None else fold_seed,
        )
        record = {
            "features": {k: cache.record[k] for k in ("extractor", "settings", "audio", "window", "weights")},
            "clips": cache.record["clips"]["train"],
            "classes": cache.classes,
            "folds": digest_of(self.numbers.tolist())[:12],
            "view": what.view,
            "head": {"name": what.name, **by_content(what.options)},
            "training": recorded(settings),
        }
        record |= {key: cache.record[key] for key in ("augment", "task") if key in cache.record}
        self.record = record | pseudo_labels.record(flags, record, cache, machine.continue_from)

    def other(self, settings: TrainingFlags, options: dict[str, Any]) -> Job:
        """The same with other training settings and head options."""
        what = Head(
            self.what.name,
            self.what.view,
            options,
            partial(
                self.heads.build,
                self.what.name,
                self.cache.shapes[self.what.view],
                len(self.cache.classes),
                **options,
            ),
        )
        return Job(
            self.heads, self.cache, self.recipe, what, what.build(), settings, self.machine, flags=self.flags
        )

    def name(self) -> str:
        """The run's name where the user gives none: the recipe's and 8 hex digits of the settings."""
        return f"{self.recipe}-{fingerprint(self.record)[:8]}"

    def begin(self, folder: Path, named: bool, quiet: bool = False) -> Run:
        """Make the run's folder, or continue what is there or what an earlier session left; for who holds its
        lock.

        Args:
            named: did the user name the run?
            quiet: keep what it says to its log.
        Raises:
            UserError: the folder holds a run with other settings.
        """
        if self.machine.fresh:
            empty(folder)
        else:
            for note in resume.adopt_run(folder, self.record, self.machine.continue_from, named):
                print(note)
        new = not (folder / CONFIG).exists()
        if new and not hasattr(self.fresh, "solve"):
            self.at = precision.decide(self.fresh, self.rows, self.settings, self.at)
        self.fresh = None  # up to a gigabyte
        run = Run.begin(folder, self.record, about(self.cache, self.recipe, self.at)).whole()
        training_clips.keep(run.folder, self.cache, self.numbers)
        run.quiet = quiet
        self.at = decided(run, self.at)
        rows, several_labels = self.rows, ", any number of them a clip" if self.rows.multilabel else ""
        run.log(f"run: {folder}{'' if new else ' (continued)'}")
        pseudo_labels.teach(
            run,
            self.flags,
            self.cache,
            cross_validation.every_fold(self.numbers),
            self.heads.rebuild,
            self.at,
            self.machine.continue_from,
        )
        run.log(
            f"head: {self.what.name} on {self.what.view} {rows.shape}, {self.parameters:,} parameters, "
            f"{len(run.classes)} classes{several_labels}"
        )
        for note in self.notes:
            run.log(note)
        run.log(
            f"folds: {self.whose}; {len(rows.ids)} clips, {len(rows)} windows; device: "
            f"{worker_pool.about(self.several)}"
        )
        return run

    def train(self, run: Run, wanted: list[int], deadline: Deadline) -> bool:
        """Train what is not finished of the wanted folds, and of the models on all clips; False if the time
        ran out, at a safe point."""
        every = parts.of_run(self.record["training"], wanted)
        run.log(
            disk_space.check(
                run.folder, *of_run(self.stored, len(every), len(run.missing(every)), self.settings)
            )
        )
        several: list[Device] = [replace(self.at, name=one.name) for one in self.several]
        return cross_validation.train(
            run,
            self.rows,
            self.numbers,
            wanted,
            self.settings,
            self.what.build,
            self.heads.rebuild,
            self.at,
            deadline,
            self.machine.save_every,
            several,
            self.load,
        )

    def wanted(self, fold: tuple[int, ...] = ()) -> list[int]:
        """The folds to train, in order, all of them by default."""
        return cross_validation.chosen_folds(np.asarray(self.numbers), fold)


def located(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a head that has AST inside: its weights are taken from what is attached where they are
    named by a hub id."""
    weights = options.get("weights")
    if not isinstance(weights, str) or Path(weights).expanduser().exists() or root() is None:
        return options
    from earshot.extractors import ast

    found = pretrained(ast.WEIGHTS.kind, weights, weights == ast.DEFAULT_WEIGHTS)
    return {**options, "weights": str(found)} if found else options


def of_run(parameters: int, folds: int, missing: int, settings: TrainingFlags) -> tuple[int, int]:
    """Bytes that a run will take, and those that training the missing folds still needs.

    A fold keeps the weights of its best and its last epoch. While it trains there are an optimiser's two
    tensors for each, the raw weights under a moving average, and a second set of all of it while a checkpoint
    is replaced.
    """
    weights = 4 * parameters
    working = weights * (1 + 2 + bool(settings.ema or settings.snapshots))
    return 2 * weights * folds + SLACK, 2 * weights * missing + (
        2 * working + weights if missing else 0
    ) + SLACK
