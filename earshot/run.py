"""A run's folder: settings, checkpoints per fold, out-of-fold predictions, log."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot import described, parts, plainyaml, sealed
from earshot.errors import UserError
from earshot.files import (
    append_text,
    clear_temporary,
    digest_of,
    recover_folder,
    replacing_folder,
    standing,
    write_bytes,
    write_json,
    write_text,
)
from earshot.fingerprint import differences, fingerprint, plain
from earshot.parts import Part

if TYPE_CHECKING:
    import torch

CONFIG = "config.yaml"


class FoldFolder:
    """runs/<name>/fold_<n>/, or another part's: `last/` for resuming, `best/` for predicting, the fold's own
    predictions.

    Every file is vouched for by the checksums in `last/state.json` and `best/head.json`; what does not match
    is never used.
    """

    STATE, HEAD, WEIGHTS, OPTIMIZER = "state.json", "head.json", "model.safetensors", "optimizer.safetensors"

    def __init__(self, folder: Path):
        self.folder = folder

    def _sealed(self, which: str) -> dict:
        """The JSON of `last` or `best`, its files checked; UserError with the way out where one is
        damaged."""
        try:
            return self._checked(which)
        except sealed.Damaged as error:
            raise UserError(
                f"{error}: run train.py again, it sets that aside and trains the fold anew"
            ) from None

    def _checked(self, which: str) -> dict:
        name = self.STATE if which == "last" else self.HEAD
        path, files = self._at(which) / name, (self.WEIGHTS,)
        if which == "last" and not sealed.read(path).get("finished"):
            files += (self.OPTIMIZER,)
        return sealed.read(path, *files)

    def _at(self, which: str) -> Path:
        # Readers hold no lock: they must not tidy up beneath a process that is just writing.
        return standing(self.folder / which) or self.folder / which

    def mend(self) -> str | None:
        """Set a damaged checkpoint aside, as last.damaged or best.damaged; the line to say about it, None
        where all is sound.

        Without its best weights a fold has to be trained from its start, so `last` then goes as well.
        """
        for which in ("last", "best"):
            if not recover_folder(self.folder / which):
                continue
            try:
                self._checked(which)
            except sealed.Damaged as error:
                aside = self.folder / f"{which}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                if which == "best":
                    shutil.rmtree(self.folder / "last", ignore_errors=True)
                os.replace(self.folder / which, aside)
                self.forget_predictions()
                return f"{error}: set aside as {aside}, this fold is trained from its start"
        last, best = self.folder / "last", self.folder / "best"
        if last.exists() and not best.exists() and self._checked("last")["progress"]["best"] is not None:
            shutil.rmtree(last)
            self.forget_predictions()
            return f"{best} is missing: this fold is trained from its start"
        return None

    def load_last(self, device: str) -> tuple[dict, dict | None, dict] | None:
        """(weights, the optimiser's tensors or None when finished, state), or None if nothing was saved.

        The optimiser's tensors are on the CPU: it moves what belongs elsewhere, and its step counts belong
        there.

        Raises:
            UserError: a damaged checkpoint.
        """
        last = standing(self.folder / "last")
        if last is None:
            return None
        state = self._sealed("last")
        optimizer = None if state["finished"] else _load_tensors(last / self.OPTIMIZER, "cpu")
        return _load_tensors(last / self.WEIGHTS, device), optimizer, state

    def save_last(self, weights: dict, optimizer: dict | None, state: dict) -> None:
        """Replace `last/`: weights, optimiser (unless finished), state."""
        files = (self.WEIGHTS,) if optimizer is None else (self.WEIGHTS, self.OPTIMIZER)
        with replacing_folder(self.folder / "last") as new:
            for name, tensors in zip(files, (weights, optimizer), strict=False):
                _save_tensors(new / name, tensors)
            sealed.write(new / self.STATE, state, *files)

    def save_best(self, weights: dict, about: dict) -> None:
        """Replace `best/`: weights, and under "head" all that rebuilding it needs."""
        with replacing_folder(self.folder / "best") as new:
            _save_tensors(new / self.WEIGHTS, weights)
            sealed.write(new / self.HEAD, about, self.WEIGHTS)

    def load_head(
        self, which: str, rebuild: Callable[[dict], torch.nn.Module], device: str
    ) -> torch.nn.Module:
        """The best or last head, rebuilt from its own description.

        Args:
            which: "best" or "last" (described by `best/head.json`, which every fold has).
            rebuild: makes a head out of its description; handed in because nothing here imports the heads.
        """
        if standing(self.folder / which) is None or standing(self.folder / "best") is None:
            raise UserError(f"{self.folder} has no {which} checkpoint yet: run train.py on")
        about, weights = self._sealed("best"), self._at(which) / self.WEIGHTS
        if which == "last":
            self._sealed("last")
        head = described.build(about.get("head"), weights, rebuild, self._at("best") / self.HEAD)
        head.load_state_dict(_load_tensors(weights, "cpu"))
        return head.to(device)

    def _state(self) -> dict | None:
        """What `last/state.json` says, None where nothing was saved; without reading the weights."""
        if standing(self.folder / "last") is None:
            return None
        try:
            return sealed.read(self._at("last") / self.STATE)
        except sealed.Damaged as error:
            raise UserError(
                f"{error}: run train.py again, it sets that aside and trains the fold anew"
            ) from None

    def finished(self) -> bool:
        """Is this fold trained to its end?"""
        state = self._state()
        return state is not None and bool(state.get("finished"))

    def history(self) -> list[dict]:
        """The rows of metrics.csv that this fold has so far."""
        state = self._state()
        return state["progress"]["history"] if state else []

    def save_predictions(self, kind: str, found: np.ndarray) -> None:
        """valid_<kind>.npy, (clips of the fold, classes), and its checksum in valid_<kind>.json."""
        sealed.write_array(self.folder / f"valid_{kind}.npy", found)

    def predictions(self, kind: str) -> np.ndarray | None:
        """What `save_predictions` wrote; None where there is none, or none that its checksum vouches for."""
        return sealed.read_array(self.folder / f"valid_{kind}.npy")

    def forget_predictions(self) -> None:
        """Remove the fold's predictions: its head will be another."""
        for path in self.folder.glob("valid_*"):
            path.unlink()


def _save_tensors(path: Path, tensors: dict) -> None:
    from safetensors.torch import save

    # Tied or strided tensors must be written out on their own.
    write_bytes(path, save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}))


def _load_tensors(path: Path, device: str) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=device)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete {path.parent} to train this fold again from its start"
        ) from None


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
        found = plainyaml.read(self.folder / CONFIG)
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
        wrong = described.fault(self.config)
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
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        # A class may be called as one of the first columns is; two columns of one name would be read wrongly.
        names = [f"class {c}" if c in ("id", "fold", "label") else c for c in self.classes]
        writer.writerow(["id", "fold", "label", *names])
        for id, fold, label, row in zip(ids, folds, labels, probabilities, strict=True):
            true = (
                "|".join(self.classes[c] for c in np.flatnonzero(label))
                if labels.ndim == 2
                else self.classes[label]
            )
            writer.writerow([id, int(fold), true, *(f"{p:.8f}" for p in row)])
        write_text(self.folder / f"{name}.csv", text.getvalue())

    def keep(self, name: str, value: dict) -> None:
        """Write <name>.json into the run."""
        write_json(self.folder / f"{name}.json", json.loads(json.dumps(value)))
