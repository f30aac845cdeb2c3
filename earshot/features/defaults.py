"""Defaults of get_features.py: the competition and its recipe."""

from __future__ import annotations

from pathlib import Path

from earshot import extractors
from earshot.core import kaggle_paths, latest
from earshot.core.errors import UserError

RECIPE = "itmo2025_tokens"


def find_competition(out: str) -> tuple[Path | None, str]:
    """The only competition in `out`, else the attached one, and where it is; None without one, and where it
    isn't.

    Raises:
        UserError: there are several.
    """
    from earshot.competition import load

    here = load.find_competitions(out)
    if len(here) > 1:
        raise UserError(
            f"several competitions in {out}/: choose one with --competition: {', '.join(map(str, here))}"
        )
    if here:
        return here[0], f"the only one in {out}/"
    there = kaggle_paths.find_competition()
    return there, "attached" if there else f"in {out}/" + (
        ", none attached" if kaggle_paths.get_input_root() else ""
    )


def choose_competition(out: str) -> str:
    """The competition of `find_competition`, else the sample; prints which."""
    path, where = find_competition(out)
    before = next((name.partition("/")[0] for name in latest.read(Path(out))), "sample")
    if path is None and before != "sample":
        raise UserError(
            f"which competition? {out}/{before} has features of files that lie elsewhere: name them again "
            "with --competition PATH, or take the built-in sample with --competition sample"
        )
    print(
        f"competition: {path} ({where})"
        if path
        else f"competition: the built-in sample competition (no --competition, and none {where})"
    )
    return str(path or "sample")


def choose_features(competition: str, weighted: bool) -> tuple[str | None, str | None]:
    """A competition's default recipe, or without a recipe its extractor.

    Args:
        weighted: True if weights are given (or for --help): attached weights then change nothing.
    """
    if competition == "sample":
        return "sample", None
    if not weighted and has_only_attached_data("efficientat", "ast"):
        print("extractor: efficientat, whose weights are attached; those of ast, the default, are not")
        return None, "efficientat"
    return RECIPE, None


def has_only_attached_data(name: str, other: str) -> bool:
    """Are the weights of the first extractor attached, and those of the other neither attached nor here?"""
    place = kaggle_paths.get_input_root()
    if place is None:
        return False
    first, second = (
        module.Extractor.find_weights(module.Settings(), None)
        for module in map(extractors.load_module, (name, other))
    )
    return bool(first) and first[0].is_relative_to(place) and not second
