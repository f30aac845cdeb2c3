"""What a run or a kept blend has to show: its curves, and its out-of-fold predictions of the final epoch."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.core.files import digest_of
from earshot.prediction import saved_blend
from earshot.training import metrics
from earshot.training.run import CONFIG, Run

BLEND = "blend.json"
DEEPEST = 8  # blends of blends


@dataclass(frozen=True)
class Results:
    """A run's results.

    about: whose predictions these are, for the reader. metric: what chose the best epoch, or the blend.
    config: config.yaml's content, empty for a blend. extra: scores.json and test.json, or blend.json.
    history: metrics.csv, a dict an epoch, numbers where they are numbers.
    ids, folds: (clips,). truth: (clips,) class indices, or (clips, classes) of 0 and 1. probabilities:
    (clips, classes); of several labels, those that have 0.5 are given: a blend's thresholds are in them
    already.
    """

    folder: Path
    about: str
    metric: str
    classes: list[str]
    config: dict[str, Any]
    extra: dict[str, Any]
    history: list[dict[str, Any]]
    ids: np.ndarray
    folds: np.ndarray
    truth: np.ndarray
    probabilities: np.ndarray

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def multilabel(self) -> bool:
        """May a clip have several labels?"""
        return self.truth.ndim == 2

    @cached_property
    def said(self) -> np.ndarray:
        """(clips,) the likeliest class, or (clips, classes) 0 and 1, in the form of `truth`."""
        if self.multilabel:
            return (self.probabilities >= metrics.THRESHOLD).astype(np.int64)
        return self.probabilities.argmax(1)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Every metric, pooled."""
        return metrics.scores(self.probabilities, self.truth, self.metric)

    def by_fold(self, metric: str) -> dict[int, float]:
        """A metric of each fold that defines it."""
        parts = {int(n): self.folds == n for n in np.unique(self.folds)}
        return {
            n: metrics.scores(self.probabilities[mine], self.truth[mine], metric)[metric]
            for n, mine in parts.items()
            if metric not in metrics.undefined(self.truth[mine])
        }

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(classes,) each: clips that have the class and were given it, that have it, that were given it."""
        every = np.eye(len(self.classes), dtype=np.int64)
        truth, said = (self.truth, self.said) if self.multilabel else (every[self.truth], every[self.said])
        return (truth * said).sum(0), truth.sum(0), said.sum(0)

    def caches(self) -> list[Path]:
        """The folders of features that the run, or the blend's members, were trained on; those that are still
        there."""
        found: list[Path] = []

        def look(folder: Path, config: dict[str, Any], extra: dict[str, Any], depth: int) -> None:
            cache = config.get("features_folder")
            if cache and Path(cache).is_dir() and Path(cache) not in found:
                found.append(Path(cache))
            for member in map(str, extra.get("members", []) if depth else []):
                inside = folder / member
                if (inside / CONFIG).is_file():
                    look(inside, Run.open(inside).config, {}, 0)
                elif (inside / BLEND).is_file():
                    look(inside, {}, sealed_or_plain(inside / BLEND), depth - 1)

        look(self.folder, self.config, self.extra, DEEPEST)
        return found

    def digest(self) -> str:
        """What tells whether a report is of these results; training's seconds, which differ each time,
        aside."""
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in self.history]
        data = [
            self.probabilities.tobytes().hex(),
            self.ids.tolist(),
            self.folds.tolist(),
            self.truth.tolist(),
        ]
        return digest_of([self.config, self.extra, history, digest_of(data)])[:16]


def is_one(folder: Path) -> bool:
    """Is there a run, or a kept blend?"""
    return (folder / CONFIG).is_file() or (folder / BLEND).is_file()


def load(folder: Path) -> Results:
    """Read a folder of runs/.

    Raises:
        UserError: there is neither run nor blend, it is damaged, or no fold is finished yet.
    """
    if (folder / CONFIG).is_file():
        run = Run.open(folder).whole()
        extra = {
            name: sealed_or_plain(folder / f"{name}.json")
            for name in ("scores", "test")
            if (folder / f"{name}.json").is_file()
        }
        path, config, classes = folder / "oof_last.csv", run.config, run.classes
        several, metric, about = (
            run.multilabel,
            run.config["record"]["training"]["metric"],
            "final epoch, out-of-fold",
        )
    elif (folder / BLEND).is_file():
        try:
            extra = dict(checksums.read(folder / BLEND, "oof.csv"))
        except checksums.Damaged as error:
            raise UserError(f"{error}: {saved_blend.anew(folder)}") from None
        path, config, classes, metric = folder / "oof.csv", {}, None, str(extra.get("metric", "f1_macro"))
        several = extra.get("multilabel")  # blends of earlier releases do not say
        about = "blend of runs, out-of-fold"
        extra |= {"test": sealed_or_plain(folder / "test.json")} if (folder / "test.json").is_file() else {}
    else:
        raise UserError(f"{folder} is no run (it has no {CONFIG}, and no {BLEND}): train.py makes runs")
    if not path.is_file():
        raise UserError(f"{path} is missing: no fold is finished yet; run train.py again, it continues")
    ids, folds, truth, probabilities, classes = _predictions(path, classes, several, extra)
    return Results(
        folder,
        about,
        metric,
        classes,
        config,
        extra,
        _history(folder / "metrics.csv"),
        ids,
        folds,
        truth,
        probabilities,
    )


def sealed_or_plain(path: Path) -> dict[str, Any]:
    """A JSON object, whether it has a checksum or not."""
    from earshot.core.files import read_json

    found = read_json(path)
    return {k: v for k, v in found.items() if k != "checksum"} if isinstance(found, dict) else {}


def _predictions(path: Path, classes: list[str] | None, several: bool | None, blend: dict[str, Any]) -> tuple:
    """ids, folds, truth, probabilities and classes of an oof csv; what is None is taken from the csv
    itself."""
    import pandas as pd

    wrong = UserError(f"{path} is not what train.py or predict.py writes: run again what made it")
    try:
        frame = pd.read_csv(path, dtype={"id": str, "label": str}, keep_default_na=False, na_values={})
        ids, folds = frame["id"].to_numpy(dtype=str), frame["fold"].to_numpy(dtype=np.int64)
        probabilities = frame.iloc[:, 3:].to_numpy(dtype=np.float64)
    except (ValueError, KeyError, pd.errors.ParserError):
        raise wrong from None
    if classes is None:
        with open(path, newline="", encoding="utf-8") as file:
            classes = [
                c.removeprefix("class ") if c in ("class id", "class fold", "class label") else c
                for c in next(csv.reader(file))[3:]
            ]
    if probabilities.shape[1] != len(classes) or not len(ids) or not np.isfinite(probabilities).all():
        raise wrong
    place, cells = {c: index for index, c in enumerate(classes)}, frame["label"].tolist()
    if several is None:
        several = (
            blend.get("thresholds") is not None
            or blend.get("metric") in set(metrics.RANKING) - set(metrics.of_task(False))
            or any(cell not in place for cell in cells)
        )
    if not several:
        if any(cell not in place for cell in cells):
            raise wrong
        return ids, folds, np.array([place[cell] for cell in cells]), probabilities, classes
    truth = np.zeros((len(ids), len(classes)), dtype=np.int64)
    for row, cell in enumerate(cells):
        found = _labels(cell, place)
        if found is None:
            raise wrong
        truth[row, found] = 1
    return ids, folds, truth, probabilities, classes


def _labels(cell: str, place: dict[str, int]) -> list[int] | None:
    """The classes of a cell such as owl|jay, or of a class that has the mark in its own name; None where one
    is unknown."""
    if cell in place or not cell:
        return [place[cell]] if cell else []
    for at in (index for index, mark in enumerate(cell) if mark == "|"):
        rest = _labels(cell[at + 1 :], place) if cell[:at] in place else None
        if rest is not None:
            return [place[cell[:at]], *rest]
    return None


def _history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {key: _number(value) for key, value in row.items() if key and value}
            for row in csv.DictReader(file)
        ]


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() and "." not in text and "e" not in text else value
