"""A run's folder: settings, checkpoints per fold, out-of-fold predictions, log."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from earshot.core import files, plain_yaml
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.core.files import append_text, clear_temporary, hash_value, write_text
from earshot.core.fingerprint import compute_fingerprint, list_differences, to_json
from earshot.core.settings import REMOVED, suggest
from earshot.features.cache import Cache
from earshot.training import run_schema
from earshot.training.checkpoint import FoldFolder

CONFIG = "config.yaml"
RUN_FILES = (CONFIG, "blend.json")  # a run has the first, a kept blend the second
# takes the place of a fold's number in seeds for models on all clips; no fold has this number
ALL_CLIPS = 1 << 31


class ModelSlot(NamedTuple):
    """One model that a run trains: its fold (None: on all clips), its seed, and is that the run's first?"""

    fold: int | None
    seed: int = 0
    first: bool = True

    @property
    def folder(self) -> str:
        """Its folder's name in the run; that of the first seed is without the seed."""
        if self.fold is None:
            return f"refit_{self.seed}"
        return f"fold_{self.fold}" if self.first else f"fold_{self.fold}_seed{self.seed}"

    @property
    def name(self) -> str:
        """Its name in messages."""
        if self.fold is None:
            return f"refit seed {self.seed}"
        return f"fold {self.fold}" if self.first else f"fold {self.fold} seed {self.seed}"


def explain_missing(folder: Path) -> str:
    """The error line where a folder is no run: what there is instead."""
    if folder.is_file():
        return f"{folder} is a file, not a run"
    if folder.is_dir():
        return f"{folder} is not a run (it has no {CONFIG}): train.py makes runs"
    known: list[str] = []
    for near in (folder.parent, Path("runs")):
        known = known or sorted({path.parent.name for name in RUN_FILES for path in near.glob(f"*/{name}")})
    loose = f"file or run {folder if folder.is_absolute() else folder.name}"  # a clip, by its suffix
    what = loose if folder.suffix or folder.is_absolute() else f"run named {folder.name}"
    there = f"runs: {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
    if not known:
        there = f"{folder.parent} has no runs: train one with train.py"
    return f"no {what}{suggest(folder.name, known)}; {there}"


class Run:
    """runs/<name>/: its settings, which are compared with the current ones, and its files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config: dict[str, Any] = {}
        self.quiet = False  # in a bake-off: write lines to the run's log only
        # called with all rows of metrics.csv whenever it is written
        self.watching: list[Callable[[list[dict]], None]] = []

    @classmethod
    def begin(cls, folder: Path, record: dict, about: dict) -> Run:
        """Make or continue a run.

        Args:
            record: the settings and data of the run; an equal record continues it, another is refused.
            about: other content of config.yaml, such as the folder of the cache.
        Raises:
            UserError: the folder holds a run with other settings; the differences are named.
        """
        run, record = cls(folder), to_json(record)
        if (folder / CONFIG).exists():
            run._read()
            for key in REMOVED.keys() & run.config["record"].get("training", {}):
                raise UserError(f"{folder} was trained with --{key}, which {REMOVED[key]}, in another --name")
            found = list_differences(run.config["record"], record)
            # digests last: settings that a person chose are clearer
            found.sort(key=lambda text: text.startswith(("clips", "folds")))
            if found:
                more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
                raise UserError(
                    f"{folder} was trained with other settings: {'; '.join(found[:3])}{more}: give the new "
                    "run another --name, or start over with --fresh"
                )
            run.quarantine_corrupt()
            # an earlier session had it elsewhere
            if about.get("features_folder") != run.config.get("features_folder"):
                run.config["features_folder"] = about["features_folder"]
                run._write()
            return run
        run.config = {"fingerprint": compute_fingerprint(record), "record": record, **to_json(about)}
        run._write()
        return run

    def _write(self) -> None:
        import yaml

        content = {**self.config, "checksum": hash_value(to_json(self.config))}
        write_text(self.folder / CONFIG, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run.

        Raises:
            UserError: no run there.
        """
        run = cls(folder)
        if not (folder / CONFIG).is_file():
            raise UserError(explain_missing(folder))
        run._read()
        return run

    def _read(self) -> None:
        found = plain_yaml.read(self.folder / CONFIG)
        if not isinstance(found, dict) or not isinstance(found.get("record"), dict):
            raise UserError(f"{self.folder / CONFIG} is damaged: start over with --fresh")
        checksum = found.pop("checksum", None)
        if checksum != hash_value(to_json(found)) or compute_fingerprint(found["record"]) != found.get(
            "fingerprint"
        ):
            raise UserError(
                f"{self.folder / CONFIG} was edited by hand, or is damaged: undo that, or start over with "
                "--fresh"
            )
        self.config = found

    def validate(self) -> Run:
        """This run; UserError where its settings lack something that predicting needs. The run may be
        untrusted."""
        wrong = run_schema.validate_run(self.config)
        if wrong:
            raise UserError(
                f"{self.folder / CONFIG} {wrong}: the run is incomplete; train it again with train.py --fresh"
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
    def predict_batch_size(self) -> int:
        """Rows per pass when predicting: twice the training batch, 64 at most, to fit the same memory."""
        size = self.config["record"]["training"].get("batch_size", 32)
        return max(1, min(64, 2 * size)) if type(size) is int else 64

    @property
    def shifts(self) -> int:
        """The number of circular time shifts that predictions are averaged over."""
        return self.config["record"]["training"].get("tta", 1)

    @property
    def pool(self) -> str:
        """How the windows of a clip are pooled."""
        return self.config["record"]["training"].get("pool", "mean")

    def adapt_device(self, device: Device) -> Device:
        """The device with the precision and layout that this run started with on this kind of device."""
        device_type = device.name.split(":")[0]
        precision = self.config.get("precision", {}).get(device_type)
        channels_last = self.config.get("channels_last", {}).get(device_type, False)
        return replace(device, precision=precision, channels_last=channels_last) if precision else device

    def keep_threads(self, threads: int | None) -> int | None:
        """Threads of each process that trains models side by side on a CPU, as this run first had them; None
        where it never had several.

        Args:
            threads: of such a process now; None: there is one alone.
        """
        if threads and "threads" not in self.config:
            self.config["threads"] = {"cpu": threads}
            self._write()
        return self.config.get("threads", {}).get("cpu")

    def get_fold_folder(self, number: int) -> FoldFolder:
        """One fold's folder, of the first seed."""
        return FoldFolder(self.folder / f"fold_{number}")

    def get_slot_folder(self, slot: ModelSlot) -> FoldFolder:
        """The folder of a fold with a seed, or of a model on all clips."""
        return FoldFolder(self.folder / slot.folder)

    def list_finished_folds(self) -> list[int]:
        """The numbers of the folds that are trained to their end, with every seed."""
        numbers = sorted(
            int(p.name[5:]) for p in self.folder.glob("fold_*") if p.name[5:].lstrip("-").isdigit()
        )
        return [
            number
            for number in numbers
            if not self.list_open_slots(list_fold_slots(self.config["record"]["training"], number))
        ]

    def list_open_slots(self, wanted: list[ModelSlot]) -> list[ModelSlot]:
        """Those of the parts that are not trained to their end."""
        return [part for part in wanted if not self.get_slot_folder(part).is_complete()]

    def quarantine_corrupt(self) -> None:
        """Rename damaged checkpoints and remove half-written files, which a kill may have left."""
        clear_temporary(self.folder)
        log = self.folder / "training_log.txt"
        if log.exists() and not log.read_bytes().endswith(b"\n"):  # a kill can leave half a line
            append_text(log, "\n")
        for folder in list_slot_folders(self.folder):
            line = FoldFolder(folder).quarantine_corrupt()
            if line:
                self.log(line)

    def log(self, text: str) -> None:
        """Print a line and keep it in training_log.txt."""
        from tqdm import tqdm

        if not self.quiet:
            tqdm.write(text)
        append_text(self.folder / "training_log.txt", text + "\n")

    def write_metrics(self, wanted: list[ModelSlot]) -> None:
        """metrics.csv: a row per fold (and seed, where there are several) and epoch, of all that have
        begun."""
        several, rows = any(not part.first for part in wanted), []
        for part in wanted:
            about = {"fold": "refit" if part.fold is None else part.fold} | (
                {"seed": part.seed} if several else {}
            )
            rows += [{**about, **row, **about} for row in self.get_slot_folder(part).read_history()]
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

    def write_json(self, name: str, value: dict) -> None:
        """Write <name>.json into the run."""
        files.write_json(self.folder / f"{name}.json", json.loads(json.dumps(value)))


def build_metadata(cache: Cache, recipe: str, device: Device) -> dict[str, Any]:
    """The content of config.yaml beside the record: folder of the cache, class priors, precision."""
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


def list_fold_slots(training: dict[str, Any], number: int) -> list[ModelSlot]:
    """A fold with each seed.

    Args:
        training: a run's training settings; older runs have one seed.
    """
    seed = training.get("seed", 0)
    return [ModelSlot(number, seed + index, not index) for index in range(training.get("seeds", 1))]


def list_refit_slots(training: dict[str, Any]) -> list[ModelSlot]:
    """The models on all clips, none without --refit."""
    return (
        [slot._replace(fold=None) for slot in list_fold_slots(training, 0)] if training.get("refit") else []
    )


def list_slots(training: dict[str, Any], folds: Sequence[int]) -> list[ModelSlot]:
    """All that is to be trained, in order: all folds with a seed before the next seed, all clips last."""
    by_fold = [list_fold_slots(training, number) for number in folds]
    return [slot for one in zip(*by_fold, strict=True) for slot in one] + list_refit_slots(training)


def format_slots(slots: Sequence[ModelSlot]) -> str:
    """Names of models as text, such as "fold 0, 1, fold 0 seed 8, refit seed 7"."""
    plain = [str(slot.fold) for slot in slots if slot.first and slot.fold is not None]
    others = [slot.name for slot in slots if not slot.first or slot.fold is None]
    return ", ".join([*(["fold " + ", ".join(plain)] if plain else []), *others])


def list_slot_folders(run: Path) -> list[Path]:
    """The existing folders of a run's models."""
    return [folder for pattern in ("fold_*", "refit_*") for folder in sorted(run.glob(pattern))]
