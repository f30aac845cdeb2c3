"""A run from a cache and a recipe: its head, its clips, its folder. train.py has one, the bake-off one per
candidate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import models
from earshot import extractors
from earshot.core import disk_space, kinds, latest, memory, worker_pool
from earshot.core.config import Recipe, RunFlags, TrainingFlags, TrainMachineFlags
from earshot.core.device import Device, name_local
from earshot.core.disk_space import SLACK
from earshot.core.errors import UserError
from earshot.core.files import empty_folder, hash_value, replace_weights_path
from earshot.core.fingerprint import compute_fingerprint, to_record
from earshot.core.kaggle_paths import find_pretrained_folder, get_input_root
from earshot.features.cache import Cache
from earshot.training import (
    clip_weights,
    dataset,
    folds,
    precision,
    pseudo_labels,
    resume,
    training_clips,
)
from earshot.training.dataset import WindowDataset
from earshot.training.run import CONFIG, Run, build_metadata

if TYPE_CHECKING:
    from earshot.cluster.connect import Cluster


@dataclass(frozen=True)
class HeadSpec:
    """A head's name, view, input shape and options."""

    name: str
    view: str
    input_shape: tuple[int, int, int]
    num_classes: int
    options: dict[str, Any]

    def build(self) -> models.Head:
        """Build the head with fresh weights."""
        return models.build(self.name, self.input_shape, self.num_classes, **self.completed)

    @cached_property
    def completed(self) -> dict[str, Any]:
        """The options with what the weights say, which are read once."""
        return models.complete_options(self.name, self.options, extractors.describe_network)


def describe_head(
    recipe: Recipe,
    cache: Cache,
    head: str | None = None,
    view: str | None = None,
    options: dict[str, str] | None = None,
) -> HeadSpec:
    """The head of a recipe on this cache, with what the flags change.

    Args:
        head, view: flags, which overrule the recipe. options: of the head, as text.
    Raises:
        UserError: the cache has no view that the head takes. HeadError: an option that it does not have.
    """
    chosen = dict(recipe.head)
    name, wanted = chosen.pop("name", "linear"), chosen.pop("view", None)
    if head and head != name:
        name, wanted, chosen = head, None, {}
    chosen = locate_weights(
        chosen | {key: models.parse_option(key, value) for key, value in (options or {}).items()}
    )
    if view and view not in cache.shapes:
        raise UserError(f"{cache.folder} has no view {view}: it has {', '.join(cache.shapes)}")
    found = view or find_view(name, wanted, cache)
    if found is None:
        raise UserError(_explain_no_view(name, chosen, cache))
    if wanted and not view and found != wanted:
        print(f"view: {found}, because {cache.folder} has no {wanted}")
    view = found
    spec = HeadSpec(name, view, cache.shapes[view], len(cache.classes), chosen)
    unfit = _compare_needs(name, spec.completed, cache, view)
    if unfit:
        raise UserError(unfit)
    return spec


def find_view(name: str, wanted: str | None, cache: Cache) -> str | None:
    """The view that a head gets of a cache: the wanted one, else the first of the kind that suits it best;
    None where the cache has none."""
    if wanted in cache.shapes:
        return wanted
    return kinds.choose(models.get_kinds(name), cache.kinds)


def find_misfit(name: str, options: dict[str, Any], cache: Cache, view: str) -> str | None:
    """Why a view cannot feed the weights that a head's options name, with what to do; None where it can, or
    where there are none."""
    completed = models.complete_options(name, options, extractors.describe_network)
    return _compare_needs(name, completed, cache, view)


def _compare_needs(name: str, completed: dict[str, Any], cache: Cache, view: str) -> str | None:
    needs = models.get_needs(name, completed)
    if not needs:
        return None
    has = extractors.describe_view(cache.record, cache.shapes[view])
    differ = [key for key, value in needs.items() if has.get(key) != value]
    if not differ:
        return None
    wanted = ", ".join(f"{key} {needs[key]}" for key in differ)
    there = ", ".join(f"{key} {has.get(key, 'unknown')}" for key in differ)
    return (
        f"{cache.folder} has a {cache.kinds[view]} with other settings than the weights of {name} need "
        f"({wanted}; {view} has {there}): {_suggest_ways_out(name, needs)}"
    )


def _explain_no_view(name: str, options: dict[str, Any], cache: Cache) -> str:
    """The error for a cache without a view of a kind that a head takes."""
    with suppress(UserError, models.HeadError):  # weights that are not here are a later error
        options = models.complete_options(name, options, extractors.describe_network)
    return (
        f"{cache.folder} has no {' or '.join(models.get_kinds(name))}, which {name} needs (it has "
        f"{', '.join(cache.shapes)}): {_suggest_ways_out(name, models.get_needs(name, options))}"
    )


def _suggest_ways_out(name: str, needs: dict[str, Any]) -> str:
    makers = extractors.find_makers(models.get_kinds(name), needs)
    rate = ""
    if not makers and "rate" in needs:  # not the default of any extractor
        others = {key: value for key, value in needs.items() if key != "rate"}
        makers, rate = extractors.find_makers(models.get_kinds(name), others), f" --rate {needs['rate']}"
    extract = f"extract with --extractor {makers[0]}{rate}, or " if makers else ""
    return f"{extract}choose another head"


class Job:
    """A run's parts, made from its settings; nothing is written before `begin`.

    Args:
        fold_seed: of the folds that are made, if other than the training's.
        flags: --pseudo among them names the run that predicts pseudo-labels.
        cluster: whose workers train the folds; everything else is done here.
    Raises:
        UserError: a device, view, fold or run of pseudo-labels is missing.
    """

    def __init__(
        self,
        cache: Cache,
        recipe: str,
        head_spec: HeadSpec,
        settings: TrainingFlags,
        machine: TrainMachineFlags,
        fold_seed: int | None = None,
        flags: RunFlags | None = None,
        cluster: Cluster | None = None,
    ):
        flags = flags or RunFlags()
        self.cache, self.recipe, self.head_spec, self.flags = cache, recipe, head_spec, flags
        self.settings, self.machine, self.cluster = settings, machine, cluster
        # A head to count parameters and try precisions with. It may take a gigabyte, so `begin` releases it.
        head = head_spec.build()
        self.head: models.Head | None = head
        if flags.pseudo and head.is_sklearn:
            raise UserError(
                f"--pseudo: {head_spec.name} is a scikit-learn head, which cannot be trained on "
                "pseudo-labels: choose another head, or leave --pseudo out"
            )
        self.notes: list[str] = []
        if settings.seeds > 1 and head.is_sklearn:
            self.settings = settings = replace(settings, seeds=1)
            self.notes.append(
                f"seeds: only one, since {head_spec.name} is a scikit-learn head, which is the same with "
                "every seed"
            )
        # of this machine, which makes the submission in any case
        self.devices = worker_pool.choose(name_local(machine.device, cluster), settings.precision)
        self.device = self.devices[0]
        if cluster is not None:
            self.devices = cluster.find_devices(machine.device, settings.precision)
        self.threads: int | None = None  # of each process; None: an equal share
        self.load = partial(
            dataset.load_training_rows,
            cache,
            head_spec.view,
            head.also,
            settings,
            gigabytes=machine.memory,
            unlabelled=flags.pseudo is not None and cache.has_split("subm"),
        )
        # Several devices: each process has the features on its own.
        self.rows: WindowDataset = (
            self.load(self.device)
            if len(self.devices) == 1 and cluster is None
            else self.load(replace(self.device, name="cpu"), gigabytes=0)
        )
        if self.rows.weights is not None:
            ignored = head.is_sklearn and not head.weighted
            self.notes.append(
                f"weights: ignored, because {head_spec.name} cannot weight clips"
                if ignored
                else clip_weights.format_weights(self.rows.weights)
            )
        self.parameters = sum(p.numel() for p in head.parameters())
        # support vectors are no parameters
        self.stored = head.count_stored_values(len(self.rows))
        self.numbers, self.fold_note = folds.assign_folds(
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
            "folds": hash_value(self.numbers.tolist())[:12],
            "view": head_spec.view,
            "head": {"name": head_spec.name, **replace_weights_path(head_spec.options)},
            "training": to_record(settings),
        }
        record |= {key: cache.record[key] for key in ("augment", "task") if key in cache.record}
        self.record = record | pseudo_labels.describe_source(flags, record, cache, machine.continue_from)

    def copy_with(self, settings: TrainingFlags, options: dict[str, Any]) -> Job:
        """The same with other training settings and head options."""
        head_spec = replace(self.head_spec, options=options)
        return Job(self.cache, self.recipe, head_spec, settings, self.machine, None, self.flags, self.cluster)

    def name(self) -> str:
        """The default name of the run: the recipe's and 8 hex digits of the settings."""
        return f"{self.recipe}-{compute_fingerprint(self.record)[:8]}"

    def begin(self, folder: Path, named: bool, quiet: bool = False, model_count: int = 1) -> Run:
        """Make the run's folder, or continue the run that is there or in an earlier session's output.

        The caller holds the folder's lock.

        Args:
            named: did the user name the run?
            quiet: write its lines to the log file only.
            model_count: models that the command trains: with --device auto a CPU trains them side by side.
        Raises:
            UserError: the folder holds a run with other settings.
        """
        if self.machine.fresh:
            empty_folder(folder)
        else:
            for note in resume.copy_run(folder, self.record, self.machine.continue_from, named):
                print(note)
        new, head = not (folder / CONFIG).exists(), self.head
        if head is not None and not head.is_sklearn:
            if new:
                self.device = precision.choose_precision(head, self.rows, self.settings, self.device)
            if self.cluster is not None and self.devices[0].name == self.device.name == "cpu":
                self.devices = [self.device] * len(self.devices)
            elif self.cluster is None and self.machine.device == "auto" and self.device.name == "cpu":
                count = precision.count_processes(head, self.rows, self.settings, model_count)
                self.devices = [self.device] * count
        self.head = head = None
        at = self.device if self.cluster is None else self.devices[0]
        run = Run.begin(folder, self.record, build_metadata(self.cache, self.recipe, at)).validate()
        training_clips.write_clips(run.folder, self.cache, self.numbers)
        run.quiet = quiet
        if not quiet:
            latest.begin(folder.parent, folder.name, "train.py")
        self.device = run.adapt_device(self.device)
        self.devices = [run.adapt_device(each) for each in self.devices]
        if self.cluster is not None:
            # kept, like those of local processes
            on_cpu = self.devices[0].name == "cpu"
            self.threads = run.keep_threads(self.cluster.threads) if on_cpu else self.cluster.threads
        elif self.machine.device == "auto" and self.device.name == "cpu":
            several = len(self.devices) > 1
            # Kept, since with other threads a continued run would compute other bits.
            self.threads = run.keep_threads(worker_pool.count_threads(len(self.devices)) if several else None)
            if several:  # each process loads its own
                self.rows = self.load(self.device, gigabytes=0)
        rows, several_labels = self.rows, ", multi-label" if self.rows.multilabel else ""
        run.log(f"run: {folder}{'' if new else ' (continued)'}")
        pseudo_labels.write_pseudo_labels(
            run,
            self.flags,
            self.cache,
            folds.list_folds(self.numbers),
            self.device,
            self.machine.continue_from,
        )
        run.log(
            f"head: {self.head_spec.name} on {self.head_spec.view} {rows.shape}, {self.parameters:,} "
            f"parameters, {len(run.classes)} classes{several_labels}"
        )
        for note in self.notes:
            run.log(note)
        run.log(
            f"folds: {folds.format_numbers(self.numbers)} ({self.fold_note}); {len(rows.ids)} clips, "
            f"{len(rows)} windows; device: {self._describe_devices()}"
        )
        return run

    def _describe_devices(self) -> str:
        if self.cluster is None:
            return worker_pool.describe_devices(self.devices, self.threads)
        return self.cluster.describe(self.devices, self.threads)

    def load_for_processes(self, count: int) -> Callable[[Device], WindowDataset]:
        """What loads the rows in each of several processes: on a CPU they share the memory that one may
        take."""
        if self.cluster is not None:
            return partial(_load_share, self.load, self.machine.memory, self.cluster.count_per_node(count))
        if self.device.name != "cpu":
            return self.load
        gigabytes = self.machine.memory
        if gigabytes is None:
            gigabytes = dataset.RESIDENT * memory.get_free(torch.device("cpu")) / 1e9
        return partial(self.load, gigabytes=gigabytes / count)

    def check_disk_space(self, run: Run, models_wanted: int, models_missing: int) -> str:
        """The line about the disk space of the run; UserError where less is free."""
        whole, missing = estimate_bytes(self.stored, models_wanted, models_missing, self.settings)
        return disk_space.check_space(run.folder, whole, missing)

    def choose_folds(self, fold: tuple[int, ...] = ()) -> list[int]:
        """The folds to train, in order, all of them by default."""
        return folds.choose_folds(np.asarray(self.numbers), fold)


def _load_share(
    load: Callable[..., WindowDataset], gigabytes: float | None, share: int, device: Device
) -> WindowDataset:
    """The rows in one of `share` workers of a node, with an equal share of the memory that all may take."""
    if gigabytes is None and device.name == "cpu":
        gigabytes = dataset.RESIDENT * memory.get_free(torch.device("cpu")) / 1e9
    return load(device, gigabytes=None if gigabytes is None else gigabytes / share)


def locate_weights(options: dict[str, Any]) -> dict[str, Any]:
    """A head's options, in which weights named by a hub id or a file's name are replaced by attached ones if
    there are any."""
    weights = options.get("weights")
    if not isinstance(weights, str) or Path(weights).expanduser().exists() or get_input_root() is None:
        return options
    if "/" not in weights and not Path(weights).suffix:  # a word of the head's own
        return options
    from earshot.extractors import ast, base, hf

    default = weights == ast.WEIGHTS.default
    found = find_pretrained_folder(ast.WEIGHTS.kinds if default else hf.WEIGHTS.kinds, weights, default)
    found = found or base.find_local(weights)
    return {**options, "weights": str(found)} if found else options


def estimate_bytes(parameters: int, folds: int, missing: int, settings: TrainingFlags) -> tuple[int, int]:
    """Bytes that a run will take, and bytes that training its missing folds still needs.

    A fold keeps the weights of its best and its last epoch. A checkpoint in training also has the optimiser's
    two tensors per weight and the raw weights beneath a moving average. While it is replaced there are two.
    """
    weights = 4 * parameters
    working = weights * (1 + 2 + bool(settings.ema or settings.snapshots))
    return 2 * weights * folds + SLACK, 2 * weights * missing + (
        2 * working + weights if missing else 0
    ) + SLACK
