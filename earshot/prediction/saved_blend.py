"""A saved blend: runs/<name>/blend.json with a checksum, and the blend's own oof.csv."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.core import checksums, latest
from earshot.core.errors import UserError
from earshot.core.files import check_plain_name, empty_folder, hash_value, hold_lock
from earshot.core.shell import join_command
from earshot.prediction.blend_schema import validate_blend
from earshot.training.oof import Oof
from earshot.training.run import CONFIG, Run

if TYPE_CHECKING:
    from earshot.prediction.blend_weights import BlendResult, FittedBlend

NAME, OOF = "blend.json", "oof.csv"
AUTO = "auto.json"  # marks a bake-off's folder, which holds the blend and its members' runs


def read_fingerprint(folder: Path) -> str | None:
    """The fingerprint of a run or a saved blend; None where there is neither."""
    if (folder / CONFIG).is_file():
        return str(Run.open(folder).config["fingerprint"])
    return hash_value(read(folder))[:16] if (folder / NAME).is_file() else None


def check_name(name: str | None, folder: Path, members: list[Path]) -> None:
    """UserError where a blend can't be saved under that name."""
    check_plain_name("--name", name)
    if (folder / CONFIG).exists():
        raise UserError(f"--name {name}: {folder} is a trained run: choose another name for the blend")
    if (folder / AUTO).exists():
        raise UserError(
            f"--name {name}: {folder} holds a bake-off with its runs: choose another name for the blend"
        )
    if folder.resolve() in [member.resolve() for member in members]:
        raise UserError(f"--name {name}: {folder} is itself one of the --runs: choose another name")


def save(folder: Path, members: list[Path], metric: str, found: BlendResult, oof: Oof) -> None:
    """Write a blend into its folder, replacing an earlier one; arguments as in `write`."""
    with hold_lock(folder, "the blend"):
        empty_folder(folder, NAME)
        write(folder, members, metric, found, oof)
        latest.finish(folder.parent, folder.name)


def write(folder: Path, members: list[Path], metric: str, found: BlendResult, oof: Oof) -> None:
    """Write blend.json and oof.csv into a folder that this process has locked.

    Args:
        members: their folders, in the order of the weights; those without weight are left out.
        oof: the blend's out-of-fold predictions.
    """
    fitted = found.fitted
    used = [member for member, weight in zip(members, fitted.weights, strict=True) if weight > 0]
    oof.take(oof.folds >= 0).write(folder / OOF)
    checksums.write(
        folder / NAME,
        {
            "members": [os.path.relpath(member.resolve(), folder.resolve()) for member in used],
            "fingerprints": [read_fingerprint(member) for member in used],
            "kind": "last",
            "method": fitted.method,
            "weights": fitted.weights[fitted.weights > 0].tolist(),
            **({} if fitted.power is None else {"power": fitted.power}),
            "scale": None if fitted.scale is None else fitted.scale.tolist(),
            "thresholds": None if fitted.thresholds is None else fitted.thresholds.tolist(),
            "metric": metric,
            "classes": len(oof.classes),
            "multilabel": oof.multilabel,
            "score": found.score,
            "spread": found.spread,
            "table": found.table,
            "gains": found.gains,
        },
        OOF,
    )


def format_run_name(folder: Path) -> str:
    """The value of --runs for a run or blend: its name in runs/, else its path."""
    return folder.name if folder.parent == Path("runs") else str(folder)


def format_refit_hint(
    folder: Path, method: str = "auto", runs: Sequence[Path] = (Path("runs/A"), Path("runs/B"))
) -> str:
    """The command that fits a damaged blend again.

    Args:
        runs: its members, if known.
    """
    where = () if folder.parent == Path("runs") else ("--runs-folder", folder.parent)
    from earshot.prediction.blend_weights import METHODS

    how = method if method in METHODS else "auto"  # an earlier release's, or the best run alone
    words = ("--runs", *map(format_run_name, runs), "--blend", how, "--name", folder.name, *where)
    return f"blend again with {join_command('python', 'predict.py', *words)}"


def read(folder: Path) -> dict[str, Any]:
    """The content of blend.json.

    Raises:
        UserError: it is damaged or incomplete.
    """
    try:
        found = checksums.read(folder / NAME, OOF)
    except checksums.CorruptFile as error:
        raise UserError(f"{error}: {format_refit_hint(folder)}") from None
    if validate_blend(found):
        raise UserError(f"{folder / NAME} is not a valid blend: {format_refit_hint(folder)}")
    return found


def build_fitted_blend(content: dict[str, Any]) -> FittedBlend:
    """The fitted blend of a blend.json's content."""
    from earshot.prediction.blend_weights import FittedBlend

    def as_array(key: str) -> np.ndarray | None:
        return None if content.get(key) is None else np.array(content[key], dtype=np.float64)

    weights = np.array(content["weights"], dtype=np.float64)
    return FittedBlend(
        content["method"],
        weights / weights.sum(),
        content.get("power"),
        as_array("scale"),
        as_array("thresholds"),
        bool(content.get("multilabel")),  # earlier releases did not record it, and pooled nothing
    )
