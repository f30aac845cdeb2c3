"""Stage 2: cached features -> a trained head per fold, runs/<name>/, and submissions/submission.csv."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from earshot import attached, cli, config
from earshot.cache import Cache
from earshot.errors import UserError
from earshot.files import by_content, digest_of, empty, locked, plain_name
from earshot.fingerprint import fingerprint
from earshot.match import mismatches, pick

ABOUT = """Train a head on cached features, fold by fold, and write the submission.

The same command again continues where it stopped. `python -m models` lists heads and recipes."""


def parse(argv: list[str]) -> tuple:
    """The cache and the recipe (each may decide the other), then all flags with the recipe's values as defaults."""
    early = cli.peek(argv, "recipe", "features", "data", "continue-from")
    if sum(a.split("=")[0] == "--features" for a in argv) > 1:
        raise UserError("--features twice: a run is trained on one cache; train two runs, then predict.py --runs A B blends them")
    name = early["recipe"]
    recipe = config.load_recipe(name) if name else None
    helping = {"-h", "--help"} & set(argv)
    cache = None if helping else Cache(early["features"] or pick(early["data"] or "data", recipe, early["continue-from"]))
    if recipe is None:
        recipe = config.load_recipe(cache.manifest.get("recipe") or "linear" if cache else "linear")
    training = config.with_defaults(config.TrainingFlags(), recipe.training, f"recipe {recipe.name}, training")
    groups = {"run": config.RunFlags(), "training": training, "machine": config.TrainMachineFlags()}
    filled, options = cli.parse(groups, argv, ABOUT, free="head")
    return cache, recipe, filled, options


def describe_head(recipe: config.Recipe, flags: config.RunFlags, options: dict[str, str], cache: Cache) -> tuple[str, str, dict]:
    """Name, view and options of the head: flags over the recipe."""
    import models

    chosen = dict(recipe.head)
    name, view = chosen.pop("name", "linear"), chosen.pop("view", None)
    if flags.head and flags.head != name:
        name, view, chosen = flags.head, None, {}
    chosen = attached.located(chosen | {key: models.parse_option(key, value) for key, value in options.items()})
    if flags.view and flags.view not in cache.shapes:
        raise UserError(f"{cache.folder} has no view {flags.view}: it has {', '.join(cache.shapes)}")
    preferred = [v for v in (view, *models.views(name)) if v in cache.shapes]
    if not flags.view and not preferred:
        raise UserError(f"{cache.folder} has no view that {name} takes (it has {', '.join(cache.shapes)}; {name} takes "
                        f"{', '.join(models.views(name))}): extract another, force one with --view, or choose another head")
    if view and not flags.view and preferred[0] != view:
        print(f"view: {preferred[0]}, because {cache.folder} has no {view}")
    return name, flags.view or preferred[0], chosen


def main(argv: list[str]) -> None:
    """Parse, train what is missing, score, submit."""
    cache, recipe, flags, options = parse(argv)
    what, settings, machine = flags.values()
    deadline = cli.Deadline(machine.max_hours)
    print(f"features: {cache.folder}, recipe: {recipe.name}")
    for difference in mismatches(cache.record, recipe):
        print(f"the cache differs from the recipe: {difference}")
    import models
    from earshot import blend, crossval, devices, earlier, folds, probe, space, stage
    from earshot.run import CONFIG, Run

    try:
        name, view, chosen = describe_head(recipe, what, options, cache)
        shape, classes = cache.shapes[view], cache.classes
        head = models.build(name, shape, len(classes), **chosen)
    except models.HeadError as error:
        raise UserError(str(error)) from None
    several = devices.choose(machine.device, settings.precision)
    at = several[0]
    plain_name("--name", what.name)
    stage.rehearse(cache, Path(what.out), settings.metric)
    load = partial(blend.training_rows, cache, view, getattr(head, "also", ()), settings, gigabytes=machine.memory)
    rows = load(at) if len(several) == 1 else load(replace(at, name="cpu"), gigabytes=0)  # each process has its own on its device
    parameters = sum(p.numel() for p in head.parameters())
    numbers, whose = folds.assign(rows.truth, rows.folds, rows.groups, settings.folds, settings.seed)
    wanted = crossval.chosen_folds(numbers, what.fold)
    record = {"features": {k: cache.record[k] for k in ("extractor", "settings", "audio", "window", "weights")},
              "clips": cache.record["clips"]["train"], "classes": classes, "folds": digest_of(numbers.tolist())[:12],
              "view": view, "head": {"name": name, **by_content(chosen)}, "training": asdict(settings)}
    record |= {key: cache.record[key] for key in ("augment", "task") if key in cache.record}
    folder = Path(what.runs_folder) / (what.name or f"{recipe.name}-{fingerprint(record)[:8]}")
    with locked(folder, "the run"):
        if machine.fresh:
            empty(folder)
        else:
            for note in earlier.adopt_run(folder, record, machine.continue_from, what.name is not None):
                print(note)
        fresh = not (folder / CONFIG).exists()
        if fresh:
            at = probe.decide(head, rows, settings, at)
        del head  # up to a gigabyte
        run = Run.begin(folder, record, stage.about(cache, recipe.name, at)).whole()
        at = stage.decided(run, at)
        run.log(f"run: {folder}{'' if fresh else ' (continued)'}")
        several_labels = ", any number of them a clip" if rows.multilabel else ""
        run.log(f"head: {name} on {view} {shape}, {parameters:,} parameters, {len(classes)} classes{several_labels}")
        run.log(f"folds: {whose}; {len(rows.ids)} clips, {len(rows)} windows; device: {devices.about(several)}")
        missing = len(set(wanted) - set(run.finished_folds()))
        run.log(space.check(folder, *space.of_run(parameters, len(wanted), missing, settings)))
        try:
            build, several = partial(models.build, name, shape, len(classes), **chosen), [replace(at, name=d.name) for d in several]
            if not crossval.train(run, rows, numbers, wanted, settings, build, models.rebuild, at, deadline, machine.save_every,
                                  several, load):
                deadline.leave()
        except models.HeadError as error:  # pretrained weights that cannot be had, a view that a loss cannot use
            raise UserError(str(error)) from None
        crossval.summarise(run, rows, numbers)
        stage.finish(run, cache, Path(what.out), models.rebuild, at, machine.memory)


if __name__ == "__main__":
    cli.run(main)
