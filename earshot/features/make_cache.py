"""From a competition to a finished cache and its summary: what get_features.py and `earshot.extract` do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot.competition.load import Competition, get_name
from earshot.competition.load import load as load_competition
from earshot.competition.reading import Reading
from earshot.core import latest
from earshot.core.errors import UserError
from earshot.core.files import check_plain_name, hold_lock, read_json
from earshot.core.shell import join_command
from earshot.features import cache, for_run, plan, resume, source_files, spectrogram_images
from earshot.features.reasons import NOTES, format_warning

if TYPE_CHECKING:
    from earshot.core.config import CompetitionFlags, ExtractionFlags
    from earshot.core.deadline import Deadline
    from earshot.features.extract import Watch
    from earshot.features.for_run import SavedRun


def make_cache(
    place: str,
    recipe: str | None,
    extractor: str,
    run: SavedRun | None,
    flags: Mapping[str, Any],
    deadline: Deadline,
    show_next: bool = True,
    watch: Watch | None = None,
) -> Path | None:
    """Extract what is missing of a cache and print its summary.

    Args:
        place: the competition's folder or zip, or "sample".
        recipe: the recipe's name, where the settings are a recipe's.
        run: a saved run whose clips to submit are wanted, and nothing else.
        flags: the groups of settings by title: competition, windows, audio, the extractor's, copies, machine.
        show_next: print the command of the next stage.
        watch: see `extract.run`.
    Returns:
        the cache's folder; None where a run's clips to submit are wanted and there are none.
    Raises:
        UserError: clips, settings or weights that cannot be used.
    """
    what, windows, audio, settings, copies, machine = flags.values()
    clips = _load_clips(place, what, machine)
    print(*clips.notes, sep="\n", end="\n" if clips.notes else "")
    if run and for_run.keep_test_clips(clips).clips.empty:
        return None
    check_plain_name("--cache", what.cache)
    workers = machine.workers or len(os.sched_getaffinity(0))
    weights = what.weights or (for_run.find_weights(run) if run else None)
    made = plan.make_plan(
        clips,
        Path(what.out),
        extractor,
        settings,
        audio,
        windows,
        weights,
        what.cache,
        recipe,
        workers,
        copies,
        run.config["record"]["features"] if run else None,
    )
    made = replace(made, saved_run=run)
    print(f"features: {extractor}{f' (recipe {recipe})' if recipe else ''} -> {made.folder}")
    print(*made.notes, sep="\n", end="\n" if made.notes else "")
    with hold_lock(made.folder, "the cache"):
        state = "new" if machine.fresh and cache.is_cache(made.folder) else plan.find_state(made)
        if state != "complete" and not machine.fresh:
            taken = resume.copy_cache(made, machine.continue_from)
            print(*taken, sep="\n", end="\n" if taken else "", flush=True)
            state = plan.find_state(made) if taken else state
        if state == "complete":
            cache.remove_shards(made.folder)  # a kill may have come just before
            print(f"nothing to do: {made.folder} is complete")
        else:
            _extract(made, machine, workers, deadline, bool(run), watch)
            source_files.forget(made.folder.parent, clips.clips.path)
    latest.finish(Path(what.out), f"{clips.name}/{made.folder.name}")
    print_summary(made.folder, show_next)
    shown, below = machine.pictures, Path(machine.pictures_out or made.folder)
    if shown is not None and not spectrogram_images.draw(clips, below, shown, workers, deadline):
        deadline.leave()
    return made.folder


def _extract(
    made: plan.Plan,
    machine: ExtractionFlags,
    workers: int,
    deadline: Deadline,
    finish: bool,
    watch: Watch | None,
) -> None:
    """Extract on this machine's devices, or on a cluster's."""
    from earshot.core import worker_pool
    from earshot.features import extract, precision

    run = (machine.batch_size, workers, deadline, machine.fresh, finish)
    if machine.cluster is None:
        found = worker_pool.choose(machine.device, machine.precision)
        at = precision.choose_precision(made, found, machine.precision)
        print(f"device: {worker_pool.describe_devices(at)}", flush=True)
        return extract.run(made, at, *run, watch=watch)
    from earshot.cluster.connect import connect
    from earshot.features import remote_shards

    with connect(machine) as cluster:
        found = cluster.find_devices(machine.device, machine.precision)
        at = precision.choose_precision(
            made, found, machine.precision, lambda: cluster.call(precision.is_bf16_faster)
        )
        print(f"device: {cluster.describe(at)}", flush=True)
        extract.run(made, at, *run, partial(remote_shards.open_pool, cluster))


def _load_clips(place: str, what: CompetitionFlags, machine: ExtractionFlags) -> Competition:
    """The competition's clips; TemporaryError where files that an earlier call found are gone."""
    reading = {
        field.name: getattr(what, field.name) for field in fields(Reading) if hasattr(what, field.name)
    }
    try:
        clips = load_competition(place, holdout=what.holdout, out=what.out, **reading)
    except UserError as error:
        if not machine.fresh:
            source_files.check_files_exist(Path(what.out) / get_name(place), place, error)
        raise
    if not machine.fresh and not all(clips.clips.path):
        lacking = UserError(f"{place}: {sum(not path for path in clips.clips.path)} clips have no file")
        source_files.check_files_exist(Path(what.out) / clips.name, clips.root, lacking)
    return clips


def print_summary(folder: Path, show_next: bool = True) -> None:
    """Print what the cache holds, and the command of the next stage."""
    manifest = read_json(folder / cache.MANIFEST)
    for split, count in manifest["splits"].items():
        copies = manifest.get("augmented") if split == "train" else None
        more = f"; augmented: {copies['copies']} copies, {copies['rows']} windows" if copies else ""
        print(f"{split}: {count['clips']} clips, {count['rows']} windows{more}")
    print("views: " + ", ".join(f"{view} {tuple(shape)}" for view, shape in manifest["shapes"].items()))
    if manifest["bad"]:
        print(f"skipped: {manifest['bad']} clips, reasons in {folder / 'bad_audio.csv'}")
    for note in NOTES:
        if note in manifest:
            print(format_warning(note, manifest[note]["clips"], manifest[note]["first"]))
    if show_next:
        script = "train.py" if "train" in manifest["splits"] else "predict.py"
        print("next: " + join_command("python", script, "--features", folder))
