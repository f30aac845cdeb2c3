"""Stage 1: audio -> cached features, data/<competition>/<cache>/*.pkl."""

from __future__ import annotations

from dataclasses import fields

from earshot import extractors
from earshot.audio.load import AudioSettings
from earshot.core import cli, config, kaggle_paths
from earshot.core.deadline import Deadline
from earshot.core.errors import UserError
from earshot.core.settings import find_former_names
from earshot.features import defaults, for_run

ABOUT = (
    "Turn a competition's audio into cached features, once.\n"
    "\n"
    "The same command again continues where it stopped, or does nothing when all is done.\n"
    "Without flags: the competition in data/, else the one that Kaggle has attached, else the built-in "
    "sample competition."
)


def parse(argv: list[str]) -> tuple:
    """The flags' groups. Parsed twice: recipe and extractor decide which flags there are, and their
    defaults."""
    early, argv = cli.parse_early(
        argv,
        ("recipe", "extractor", "competition", "weights", "out", "for-run"),
        repeated=("train-csv", "extra-csv", "label-map"),
        bare={"pictures": "0"},
    )
    helping = bool({"-h", "--help"} & set(argv))
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
        from earshot.training.resume import open_run  # what it stands on takes a tenth of a second

        run = open_run(early["for-run"])
    if name is None and chosen is None and run is None:
        name, chosen = defaults.choose_features(competition, bool(early["weights"]) or helping)
    recipe = config.load_recipe(name) if name else None
    values = for_run.get_features(run) if run else dict(recipe.features) if recipe else {}
    chosen = chosen or values.get("extractor")
    if chosen is None:
        raise UserError(
            f"recipe {name} names no extractor: add --extractor {'|'.join(extractors.list_names())}"
        )
    groups = {
        "competition": config.CompetitionFlags(),
        "windows": config.WindowFlags(),
        "audio": AudioSettings(),
        chosen: extractors.load_module(chosen).Settings(),
        "copies": config.AugmentFlags(),
        "machine": config.ExtractionFlags(),
    }
    if values.get("extractor") not in (None, chosen):
        name, values = None, {}  # another extractor than the recipe's: its settings mean nothing here
    where = f"{run.folder}/config.yaml" if run else f"recipe {name}, features"
    known = [f.name for group in groups.values() for f in fields(group)]
    left = dict(values)
    for title, group in groups.items():
        keys = {*(f.name for f in fields(group)), *find_former_names(group)}
        own = {key: left.pop(key) for key in values if key in keys}
        groups[title] = config.replace_defaults(group, own, where)
    if left:
        raise UserError(f"{where}: unknown key {next(iter(left))}: choose among {', '.join(known)}")
    filled, _ = cli.parse(groups, argv, ABOUT)
    return competition, name, chosen, run, filled


def main(argv: list[str]) -> None:
    """Parse, extract."""
    competition, recipe, extractor, run, flags = parse(argv)
    deadline = Deadline(flags["machine"].max_hours)
    from earshot.features.make_cache import make_cache
    from earshot.kaggle import download

    place = download.find_or_download(competition, flags["competition"].out)
    make_cache(place, recipe, extractor, run, flags, deadline)


if __name__ == "__main__":
    cli.run(main)
