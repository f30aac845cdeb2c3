"""Stage 1: audio -> features, cached as data/<competition>/<cache>/*.pkl."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from earshot import extractors
from earshot.audio.load import AudioSettings
from earshot.core import cli, config, help_pages, kaggle_paths, latest
from earshot.core.deadline import Deadline
from earshot.core.errors import UserError
from earshot.core.settings import find_former_names, suggest
from earshot.features import defaults, for_run

ABOUT = (
    "Extract features from a competition's audio, once, and cache them.\n"
    "\n"
    "The same command continues where it stopped, or does nothing when all is done.\n"
    "Without --competition: the one in data/, else the one attached on Kaggle, else the built-in sample "
    "competition."
)


def list_groups(*names: str) -> dict[str, Any]:
    """Title -> defaults of the flags.

    Args:
        names: of the extractors whose flags are wanted (default: all).
    """
    return {
        "competition": config.CompetitionFlags(),
        "windows": config.WindowFlags(),
        "audio": AudioSettings(),
        **{name: extractors.load_module(name).Settings() for name in names or extractors.list_names()},
        "copies": config.AugmentFlags(),
        "machine": config.ExtractionFlags(),
    }


def parse(argv: list[str]) -> tuple:
    """Parse the flags, twice: recipe and extractor decide which flags there are, and their defaults."""
    early, argv = cli.parse_early(
        argv,
        ("recipe", "extractor", "competition", "weights", "out", "for-run"),
        repeated=("train-csv", "extra-csv", "label-map"),
        bare={"pictures": "0"},
    )
    helping = help_pages.wants_help(argv)
    competition = early["competition"]
    if not helping:
        competition = (
            kaggle_paths.resolve_slug(competition)
            if competition
            else defaults.choose_competition(early["out"] or "data")
        )
    name, chosen = early["recipe"], early["extractor"]
    run = None
    if early["for-run"] and not helping:
        from earshot.training.resume import open_run  # its imports take a tenth of a second

        run = open_run(early["for-run"])
    if name is None and chosen is None and run is None:
        name, chosen = defaults.choose_features(competition or "", bool(early["weights"]) or helping)
    recipe = config.load_recipe(name) if name else None
    values = for_run.get_features(run) if run else dict(recipe.features) if recipe else {}
    chosen = chosen or values.get("extractor")
    if chosen is None:
        raise UserError(
            f"recipe {name} names no extractor: add --extractor {'|'.join(extractors.list_names())}"
        )
    groups = list_groups(chosen)
    if values.get("extractor") not in (None, chosen):
        name, values = None, {}  # not the recipe's extractor: its settings don't apply
    where = f"{run.folder}/config.yaml" if run else f"recipe {name}, features"
    known = [f.name for group in groups.values() for f in fields(group)]
    left = dict(values)
    for title, group in groups.items():
        keys = {*(f.name for f in fields(group)), *find_former_names(group)}
        own = {key: left.pop(key) for key in values if key in keys}
        groups[title] = config.replace_defaults(group, own, where)
    for key in left:
        raise UserError(f"{where}: unknown key {key}{suggest(key, known)}: choose among {', '.join(known)}")
    filled, _ = cli.parse(groups, argv, ABOUT)
    return competition, name, chosen, run, filled


def main(argv: list[str]) -> None:
    """Parse, plan, extract."""
    name, recipe, extractor, run, flags = parse(argv)
    what, windows, audio, settings, copies, machine = flags.values()
    deadline = Deadline(machine.max_hours)
    from earshot.competition.load import get_name
    from earshot.competition.load import load as load_competition
    from earshot.competition.reading import Reading
    from earshot.core.files import check_plain_name, hold_lock
    from earshot.features import cache, plan, resume, source_files, spectrogram_images
    from earshot.kaggle import download

    place = download.find_or_download(name, what.out)
    try:
        clips = load_competition(
            place,
            holdout=what.holdout,
            out=what.out,
            **{
                field.name: getattr(what, field.name)
                for field in fields(Reading)
                if hasattr(what, field.name)
            },
        )
    except UserError as error:
        if not machine.fresh:
            source_files.check_files_exist(Path(what.out) / get_name(place), place, error)
        raise
    if not machine.fresh and not all(clips.clips.path):
        lacking = UserError(f"{place}: {sum(not path for path in clips.clips.path)} clips have no file")
        source_files.check_files_exist(Path(what.out) / clips.name, clips.root, lacking)
    print(*clips.notes, sep="\n", end="\n" if clips.notes else "")
    if run and for_run.keep_test_clips(clips).clips.empty:
        return
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
        run and run.config["record"]["features"],
    )
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
            from earshot.core import worker_pool
            from earshot.features import extract, precision

            at = precision.choose_precision(
                made, worker_pool.choose(machine.device, machine.precision), machine.precision
            )
            print(f"device: {worker_pool.describe_devices(at)}", flush=True)
            extract.run(made, at, machine.batch_size, workers, deadline, machine.fresh, answered=bool(run))
            source_files.forget(made.folder.parent, clips.clips.path)
    latest.finish(Path(what.out), f"{clips.name}/{made.folder.name}")
    print_summary(made.folder)
    shown, below = machine.pictures, Path(machine.pictures_out or made.folder)
    if shown is not None and not spectrogram_images.draw(clips, below, shown, workers, deadline):
        deadline.leave()


def print_summary(folder: Path) -> None:
    """Say what the cache holds and what comes next."""
    from earshot.core.files import read_json
    from earshot.core.shell import join_command
    from earshot.features.cache import MANIFEST
    from earshot.features.reasons import NOTES, format_warning

    manifest = read_json(folder / MANIFEST)
    for split, count in manifest["splits"].items():
        copies = manifest.get("augmented") if split == "train" else None
        more = f"; augmented: {copies['copies']} copies, {copies['rows']} windows" if copies else ""
        print(f"{split}: {count['clips']} clips, {count['rows']} windows{more}")
    print("views: " + ", ".join(f"{view} {tuple(shape)}" for view, shape in manifest["shapes"].items()))
    if manifest["bad"]:
        print(f"bad audio: {manifest['bad']} clips, see {folder / 'bad_audio.csv'}")
    for note in NOTES:
        if note in manifest:
            print(format_warning(note, manifest[note]["clips"], manifest[note]["first"]))
    print(
        "next: "
        + join_command(
            "python", "train.py" if "train" in manifest["splits"] else "predict.py", "--features", folder
        )
    )


if __name__ == "__main__":
    cli.run(main)
