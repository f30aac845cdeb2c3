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
from earshot.core.files import hash_value
from earshot.prediction import saved_blend
from earshot.training import metrics
from earshot.training.oof import Oof
from earshot.training.run import CONFIG, Run

BLEND = "blend.json"
DEEPEST = 8  # blends of blends


@dataclass(frozen=True)
class Results(Oof):
    """A run's or a blend's out-of-fold predictions of the final epoch with what a report shows beside them.

    Of several labels a clip, those that have 0.5 are predicted: a blend's thresholds are in its
    probabilities already.

    Args:
        about: whose predictions these are, for the reader. metric: what chose the best epoch, or the blend.
        config: config.yaml's content, empty for a blend. extra: scores.json and test.json, or blend.json.
        history: metrics.csv, a dict an epoch, numbers where they are numbers.
    """

    folder: Path
    about: str
    metric: str
    config: dict[str, Any]
    extra: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @cached_property
    def predicted(self) -> np.ndarray:
        """(clips,) the likeliest class, or (clips, classes) 0 and 1, in the form of `labels`."""
        if self.multilabel:
            return (self.probabilities >= metrics.THRESHOLD).astype(np.int64)
        return self.probabilities.argmax(1)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Every metric, pooled."""
        return self.score(self.metric)

    def count_labels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(classes,) each: clips that have the class and were given it, that have it, that were given it."""
        true, predicted = self.labels, self.predicted
        if not self.multilabel:
            every = np.eye(len(self.classes), dtype=np.int64)
            true, predicted = every[true], every[predicted]
        return (true * predicted).sum(0), true.sum(0), predicted.sum(0)

    def find_caches(self) -> list[Path]:
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
                    look(inside, {}, read_json_object(inside / BLEND), depth - 1)

        look(self.folder, self.config, self.extra, DEEPEST)
        return found

    def compute_digest(self) -> str:
        """What tells whether a report is of these results; training's seconds, which differ each time,
        aside."""
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in self.history]
        data = [
            self.probabilities.tobytes().hex(),
            self.ids.tolist(),
            self.folds.tolist(),
            self.labels.tolist(),
        ]
        return hash_value([self.config, self.extra, history, hash_value(data)])[:16]


def is_run_or_blend(folder: Path) -> bool:
    """Is there a run, or a kept blend?"""
    return (folder / CONFIG).is_file() or (folder / BLEND).is_file()


def load_results(folder: Path) -> Results:
    """Read a folder of runs/.

    Raises:
        UserError: there is neither run nor blend, it is damaged, or no fold is finished yet.
    """
    if (folder / CONFIG).is_file():
        run = Run.open(folder).validate()
        path, classes, multilabel = folder / "oof_last.csv", run.classes, run.multilabel
        config, metric = run.config, run.config["record"]["training"]["metric"]
        extra, about = {}, "final epoch, out-of-fold"
        shown = ("scores", "test")
    elif (folder / BLEND).is_file():
        try:
            extra = dict(checksums.read(folder / BLEND, saved_blend.OOF))
        except checksums.CorruptFile as error:
            raise UserError(f"{error}: {saved_blend.format_refit_hint(folder)}") from None
        path, classes = folder / saved_blend.OOF, None
        config, metric = {}, str(extra.get("metric", "f1_macro"))
        multilabel, about = extra.get("multilabel"), "blend of runs, out-of-fold"
        # Blends of earlier releases do not say whether a clip may have several labels.
        only_multilabel = set(metrics.list_for_task(True)) - set(metrics.list_for_task(False))
        if multilabel is None and (extra.get("thresholds") is not None or metric in only_multilabel):
            multilabel = True
        shown = ("test",)
    else:
        raise UserError(f"{folder} is no run (it has no {CONFIG}, and no {BLEND}): train.py makes runs")
    for name in shown:
        if (folder / f"{name}.json").is_file():
            extra[name] = read_json_object(folder / f"{name}.json")
    if not path.is_file():
        raise UserError(f"{path} is missing: no fold is finished yet; run train.py again, it continues")
    oof = Oof.read(path, classes, multilabel)
    if not len(oof.ids) or not np.isfinite(oof.probabilities).all():
        raise UserError(
            f"{path} is not what train.py or predict.py writes (no clips, or a probability that is no "
            "number): run again what made it"
        )
    return Results(
        **vars(oof),
        folder=folder,
        about=about,
        metric=metric,
        config=config,
        extra=extra,
        history=_read_history(folder / "metrics.csv"),
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object, whether it has a checksum or not."""
    from earshot.core.files import read_json

    found = read_json(path)
    return {k: v for k, v in found.items() if k != "checksum"} if isinstance(found, dict) else {}


def _read_history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {key: _parse_number(value) for key, value in row.items() if key and value}
            for row in csv.DictReader(file)
        ]


def _parse_number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() and "." not in text and "e" not in text else value
