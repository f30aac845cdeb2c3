"""A run's folder: settings, checkpoints per fold, out-of-fold predictions, log."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.core import plain_yaml
from earshot.core.csv_text import as_text
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.core.files import append_text, clear_temporary, digest_of, write_json, write_text
from earshot.core.fingerprint import differences, fingerprint, plain
from earshot.core.recipes import REMOVED
from earshot.features.cache import Cache
from earshot.training import parts, run_schema
from earshot.training.checkpoint import FoldFolder
from earshot.training.parts import Part

if TYPE_CHECKING:
    pass

CONFIG = "config.yaml"


class Run:
    """runs/<name>/ with its settings checked against those of now."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config: dict[str, Any] = {}
        self.quiet = False  # a bake-off says a line a run, and keeps the rest in the run's log
        # told all rows of metrics.csv whenever it is written
        self.watching: list[Callable[[list[dict]], None]] = []

    @classmethod
    def begin(cls, folder: Path, record: dict, about: dict) -> Run:
        """Make or continue a run.

        Args:
            record: what the run is made from; an equal record continues, another is refused.
            about: what else to keep in config.yaml: where the cache lies, what was decided for this machine.
        Raises:
            UserError: the folder holds a run with other settings; the differences are named.
        """
        run, record = cls(folder), plain(record)
        if (folder / CONFIG).exists():
            run._read()
            for key in REMOVED.keys() & run.config["record"].get("training", {}):
                raise UserError(f"{folder} was trained with --{key}, which {REMOVED[key]}, in another --name")
            found = differences(run.config["record"], record)
            # digests: what a person set says more
            found.sort(key=lambda text: text.startswith(("clips", "folds")))
            if found:
                more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
                raise UserError(
                    f"{folder} was trained with other settings: {'; '.join(found[:3])}{more}: "
                    "give the new run another --name, or start over with --fresh"
                )
            run.mend()
            # an earlier session had it elsewhere
            if about.get("features_folder") != run.config.get("features_folder"):
                run.config["features_folder"] = about["features_folder"]
                run._write()
            return run
        run.config = {"fingerprint": fingerprint(record), "record": record, **plain(about)}
        run._write()
        return run

    def _write(self) -> None:
        import yaml

        content = {**self.config, "checksum": digest_of(plain(self.config))}
        write_text(self.folder / CONFIG, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    @classmethod
    def open(cls, folder: Path) -> Run:
        """A run that exists.

        Raises:
            UserError: no run there.
        """
        run = cls(folder)
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} is no run (it has no {CONFIG}): train.py makes runs")
        run._read()
        return run

    def _read(self) -> None:
        found = plain_yaml.read(self.folder / CONFIG)
        if not isinstance(found, dict) or not isinstance(found.get("record"), dict):
            raise UserError(f"{self.folder / CONFIG} is damaged: start over with --fresh")
        checksum = found.pop("checksum", None)
        if checksum != digest_of(plain(found)) or fingerprint(found["record"]) != found.get("fingerprint"):
            raise UserError(
                f"{self.folder / CONFIG} was changed by hand, or is damaged: undo that, or start over with "
                "--fresh"
            )
        self.config = found

    def whole(self) -> Run:
        """This run, where its settings say all that predicting needs; UserError where a stranger's do not."""
        wrong = run_schema.fault(self.config)
        if wrong:
            raise UserError(
                f"{self.folder / CONFIG} {wrong}: it is no whole run's; train it anew with train.py --fresh"
            )
        return self

    @property
    def multilabel(self) -> bool:
        """May a clip have several labels?"""
        return self.config["record"].get("task") == "multilabel"

    @property
    def classes(self) -> list[str]:
        """The labels in the order of the logits."""
        return self.config["record"]["classes"]

    @property
    def at_once(self) -> int:
        """Rows of a pass that predicts: heads that train few at a time would take more than a card has for
        64."""
        size = self.config["record"]["training"].get("batch_size", 32)
        return max(1, min(64, 2 * size)) if type(size) is int else 64

    @property
    def shifts(self) -> int:
        """How many circular shifts in time its predictions are the mean of."""
        return self.config["record"]["training"].get("tta", 1)

    @property
    def pool(self) -> str:
        """How the windows of a clip become its prediction."""
        return self.config["record"]["training"].get("pool", "mean")

    def fold(self, number: int) -> FoldFolder:
        """One fold's folder, of the first seed."""
        return FoldFolder(self.folder / f"fold_{number}")

    def part(self, part: Part) -> FoldFolder:
        """The folder of a fold with a seed, or of a model on all clips."""
        return FoldFolder(self.folder / part.folder)

    def finished_folds(self) -> list[int]:
        """The numbers of the folds that are trained to their end, with every seed."""
        numbers = sorted(
            int(p.name[5:]) for p in self.folder.glob("fold_*") if p.name[5:].lstrip("-").isdigit()
        )
        return [
            number
            for number in numbers
            if not self.missing(parts.of_fold(self.config["record"]["training"], number))
        ]

    def missing(self, wanted: list[Part]) -> list[Part]:
        """Those of the parts that are not trained to their end."""
        return [part for part in wanted if not self.part(part).finished()]

    def mend(self) -> None:
        """Set damaged checkpoints of any fold aside, and clear away what a kill left half-written."""
        clear_temporary(self.folder)
        log = self.folder / "training_log.txt"
        if log.exists() and not log.read_bytes().endswith(b"\n"):  # a kill can leave half a line
            append_text(log, "\n")
        for folder in parts.folders(self.folder):
            said = FoldFolder(folder).mend()
            if said:
                self.log(said)

    def log(self, text: str) -> None:
        """Print a line and keep it in training_log.txt."""
        from tqdm import tqdm

        if not self.quiet:
            tqdm.write(text)
        append_text(self.folder / "training_log.txt", text + "\n")

    def write_metrics(self, wanted: list[Part]) -> None:
        """metrics.csv: a row per fold (and seed, where there are several) and epoch, of all that have
        begun."""
        several, rows = any(not part.first for part in wanted), []
        for part in wanted:
            about = {"fold": "refit" if part.fold is None else part.fold} | (
                {"seed": part.seed} if several else {}
            )
            rows += [{**about, **row, **about} for row in self.part(part).history()]
        if rows:
            text = io.StringIO()
            # An epoch of an older version may lack a score.
            writer = csv.DictWriter(
                text, list(dict.fromkeys(key for row in rows for key in row)), restval="", lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
            )
            write_text(self.folder / "metrics.csv", text.getvalue())
            for watch in self.watching:
                watch(rows)

    def write_oof(
        self, name: str, ids: np.ndarray, folds: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
    ) -> None:
        """A csv of out-of-fold predictions: id, fold, label, a probability column per class.

        Several labels of a clip stand as owl|jay in the one column, none at all as nothing.

        Args:
            name: "oof" or "oof_last".
            ids, folds: (clips,).
            labels: (clips,) class indices, or (clips, classes) of 0 and 1.
            probabilities: (clips, classes).
        """
        # A class may be called as one of the first columns is; two columns of one name would be read wrongly.
        names = [f"class {c}" if c in ("id", "fold", "label") else c for c in self.classes]
        rows: list[list[object]] = [["id", "fold", "label", *names]]
        for id, fold, label, row in zip(ids, folds, labels, probabilities, strict=True):
            true = (
                "|".join(self.classes[c] for c in np.flatnonzero(label))
                if labels.ndim == 2
                else self.classes[label]
            )
            rows.append([id, int(fold), true, *(f"{p:.8f}" for p in row)])
        write_text(self.folder / f"{name}.csv", as_text(rows))

    def keep(self, name: str, value: dict) -> None:
        """Write <name>.json into the run."""
        write_json(self.folder / f"{name}.json", json.loads(json.dumps(value)))


def about(cache: Cache, recipe: str, device: Device) -> dict[str, Any]:
    """What a run keeps besides its settings: where its cache lay, the answer for unheard clips, what was
    decided here."""
    import os

    return {
        "recipe": recipe,
        "features_folder": os.path.relpath(cache.folder),
        "weights": cache.manifest.get("weights"),
        "prior": cache.prior().tolist(),
        "columns": cache.manifest["columns"],
        "precision": {device.name.split(":")[0]: device.precision},
        "channels_last": {device.name.split(":")[0]: device.channels_last},
    }


def decided(run: Run, device: Device) -> Device:
    """The device with the precision and layout that this run began with on this kind of device: another GPU
    changes neither."""
    kind = device.name.split(":")[0]
    precision, last = run.config["precision"].get(kind), run.config.get("channels_last", {}).get(kind, False)
    return replace(device, precision=precision, channels_last=last) if precision else device
