"""Stage 1: audio -> features, cached as data/<competition>/<cache>/*.pkl."""

from __future__ import annotations

from earshot.core import cli, help_pages, kaggle_paths
from earshot.core.deadline import Deadline
from earshot.features import defaults
from earshot.features.settings import build_settings, list_groups  # noqa: F401 -- docs/cli.md is made of its groups

ABOUT = (
    "Extract features from a competition's audio, once, and cache them.\n"
    "\n"
    "The same command continues where it stopped, or does nothing when all is done.\n"
    "Without --competition: the one in data/, else the one attached on Kaggle, else the built-in sample "
    "competition."
)


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
    start = build_settings(name, chosen, run)
    filled, _ = cli.parse(start.groups, argv, ABOUT)
    return competition, start.recipe, start.extractor, run, filled


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
