"""The results of a run or of a saved blend: its history and its out-of-fold predictions."""

from __future__ import annotations

import csv
import re
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
from earshot.training.run import CONFIG, Run, explain_missing
from earshot.training.tracking import STARTED

BLEND = "blend.json"
DEEPEST = 8  # blends of blends


@dataclass(frozen=True)
class Results(Oof):
    """Out-of-fold predictions of a run (last epoch) or of a blend, and what a report shows beside them.

    Multi-label: labels with a probability of 0.5 or more are predicted. A blend's probabilities are already
    scaled so that its thresholds lie at 0.5.

    Args:
        about: which predictions these are, for the reader. metric: the one that chose the best epoch, or the
            blend. config: config.yaml's content, empty for a blend. extra: scores.json and test.json, or
            blend.json. history: metrics.csv, a dict per epoch, numbers as numbers.
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
        """(clips,) the predicted class, or (clips, classes) 0 and 1, in the form of `labels`."""
        if self.multilabel:
            return (self.probabilities >= metrics.THRESHOLD).astype(np.int64)
        return self.probabilities.argmax(1)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Every metric, pooled."""
        return self.score(self.metric)

    @property
    def headline(self) -> str:
        """The metric to lead with: the run's own, but for multi-label one that needs no threshold."""
        return "map_macro" if self.multilabel and self.metric in metrics.OF_SEVERAL else self.metric

    def compute_spread(self, metric: str) -> float | None:
        """The standard deviation of a metric over the folds; None for a single fold."""
        values = list(self.score_folds(metric).values())
        return float(np.std(values)) if len(values) > 1 else None

    def list_facts(self) -> tuple[list[str], str]:
        """When the run started, its device and its time of training, and the command: as far as recorded."""
        log = self.folder / "training_log.txt"
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        started = re.search(rf"^{STARTED}(\d+-\d+-\d+ \d+:\d+ \S*)(?:  (.+))?$", text, re.MULTILINE)
        device = re.search(r"; device: (.+)$", text, re.MULTILINE)
        seconds = sum(row.get("seconds", 0) for row in self.history)
        minutes, rest = divmod(round(seconds), 60)
        spent = f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
        facts = [
            *([f"started {started[1].strip()}"] if started else []),
            *([f"trained for {spent}"] if seconds else []),
            *([device[1]] if device else []),
        ]
        return facts, started[2] or "" if started else ""

    def count_labels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(classes,) each: true positives, clips that have the class, clips predicted to have it."""
        true, predicted = self.labels, self.predicted
        if not self.multilabel:
            every = np.eye(len(self.classes), dtype=np.int64)
            true, predicted = every[true], every[predicted]
        return (true * predicted).sum(0), true.sum(0), predicted.sum(0)

    def find_caches(self) -> list[Path]:
        """The caches that the run, or the blend's members, were trained on, as far as they still exist."""
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
        """A digest of these results, by which a report of them is recognised; without times."""
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in self.history]
        data = [
            self.probabilities.tobytes().hex(),
            self.ids.tolist(),
            self.folds.tolist(),
            self.labels.tolist(),
        ]
        return hash_value([self.config, self.extra, history, hash_value(data)])[:16]


def is_run_or_blend(folder: Path) -> bool:
    """Does the folder hold a run, or a saved blend?"""
    return (folder / CONFIG).is_file() or (folder / BLEND).is_file()


def load_results(folder: Path) -> Results:
    """Read a run or a saved blend.

    Raises:
        UserError: neither is there, it is damaged, or no fold is finished yet.
    """
    if (folder / CONFIG).is_file():
        run = Run.open(folder).validate()
        path, classes, multilabel = folder / "oof_last.csv", run.classes, run.multilabel
        config, metric = run.config, run.config["record"]["training"]["metric"]
        extra, about = {}, "out-of-fold, last epoch"
        shown = ("scores", "test")
    elif (folder / BLEND).is_file():
        try:
            extra = dict(checksums.read(folder / BLEND, saved_blend.OOF))
        except checksums.CorruptFile as error:
            raise UserError(f"{error}: {saved_blend.format_refit_hint(folder)}") from None
        path, classes = folder / saved_blend.OOF, None
        config, metric = {}, str(extra.get("metric", "f1_macro"))
        multilabel, about = extra.get("multilabel"), "blend, out-of-fold"
        # blends of earlier releases do not record whether they are multi-label
        only_multilabel = set(metrics.list_for_task(True)) - set(metrics.list_for_task(False))
        if multilabel is None and (extra.get("thresholds") is not None or metric in only_multilabel):
            multilabel = True
        shown = ("test",)
    else:
        raise UserError(explain_missing(folder))
    for name in shown:
        if (folder / f"{name}.json").is_file():
            extra[name] = read_json_object(folder / f"{name}.json")
    if not path.is_file():
        raise UserError(f"{path} is missing: no fold is finished yet: run train.py again to continue")
    oof = Oof.read(path, classes, multilabel)
    if not len(oof.ids) or not np.isfinite(oof.probabilities).all():
        raise UserError(
            f"{path} is damaged (no clips, or a probability that is not a number): make it again with "
            "train.py or predict.py"
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
    """A JSON object without its checksum, if it has one."""
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
