"""The folder of a fold: its last and best checkpoints and its predictions."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earshot.core import checksums
from earshot.core.errors import UserError, raise_if_temporary
from earshot.core.files import find_content, recover_folder, replace_folder, write_bytes

if TYPE_CHECKING:
    from models import Head

HEADER = 100 << 20  # bytes: safetensors' own limit


class FoldFolder:
    """runs/<name>/fold_<n>/ or refit_<seed>/: `last/` for resuming, `best/` for predicting, and the fold's
    out-of-fold predictions.

    `last/state.json` and `best/head.json` hold checksums of the other files, which are verified before use.
    """

    STATE, HEAD, WEIGHTS, OPTIMIZER = "state.json", "head.json", "model.safetensors", "optimizer.safetensors"

    def __init__(self, folder: Path):
        self.folder = folder

    def _read_with_checksum(self, which: str) -> dict:
        """The JSON of `last` or `best` after its files are verified; UserError where one is damaged."""
        try:
            return self._verify(which)
        except checksums.CorruptFile as error:
            raise UserError(
                f"{error}: run train.py again, which sets it aside and trains the fold again"
            ) from None

    def _verify(self, which: str) -> dict:
        name = self.STATE if which == "last" else self.HEAD
        path, files = self._find(which) / name, (self.WEIGHTS,)
        if which == "last" and not checksums.read(path).get("finished"):
            files += (self.OPTIMIZER,)
        return checksums.read(path, *files)

    def _find(self, which: str) -> Path:
        # Readers hold no lock: they must not tidy up beneath a process that is just writing.
        return find_content(self.folder / which) or self.folder / which

    def quarantine_corrupt(self) -> str | None:
        """Rename a damaged checkpoint to last.damaged or best.damaged; the line to log, None if none is.

        A fold without its best weights is trained from its start, so `last` is then removed as well.
        """
        for which in ("last", "best"):
            if not recover_folder(self.folder / which):
                continue
            try:
                self._verify(which)
            except checksums.CorruptFile as error:
                aside = self.folder / f"{which}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                if which == "best":
                    shutil.rmtree(self.folder / "last", ignore_errors=True)
                os.replace(self.folder / which, aside)
                self.forget_predictions()
                return f"{error}: set aside as {aside}, this fold is trained from its start"
        last, best = self.folder / "last", self.folder / "best"
        if last.exists() and not best.exists() and self._verify("last")["progress"]["best"] is not None:
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
        last = find_content(self.folder / "last")
        if last is None:
            return None
        state = self._read_with_checksum("last")
        optimizer = None if state["finished"] else _load_tensors(last / self.OPTIMIZER, "cpu")
        return _load_tensors(last / self.WEIGHTS, device), optimizer, state

    def save_last(self, weights: dict, optimizer: dict | None, state: dict) -> None:
        """Replace `last/`: weights, optimiser (unless finished), state."""
        files = (self.WEIGHTS,) if optimizer is None else (self.WEIGHTS, self.OPTIMIZER)
        with replace_folder(self.folder / "last") as new:
            for name, tensors in zip(files, (weights, optimizer), strict=False):
                _save_tensors(new / name, tensors)
            checksums.write(new / self.STATE, state, *files)

    def save_best(self, weights: dict, about: dict) -> None:
        """Replace `best/`: weights, and under "head" the config that rebuilds it."""
        with replace_folder(self.folder / "best") as new:
            _save_tensors(new / self.WEIGHTS, weights)
            checksums.write(new / self.HEAD, about, self.WEIGHTS)

    def load_head(self, which: str, device: str) -> Head:
        """The best or last head, rebuilt from its own description.

        Args:
            which: "best" or "last" (described by `best/head.json`, which every fold has).
        """
        if find_content(self.folder / which) is None or find_content(self.folder / "best") is None:
            raise UserError(f"{self.folder} has no {which} checkpoint yet: continue training with train.py")
        about, weights = self._read_with_checksum("best"), self._find(which) / self.WEIGHTS
        if which == "last":
            self._read_with_checksum("last")
        head = build_head(about.get("head"), weights, self._find("best") / self.HEAD)
        head.load_state_dict(_load_tensors(weights, "cpu"))
        return head.to(device)

    def _read_state(self) -> dict | None:
        """The content of `last/state.json`, None where nothing was saved; the weights are not read."""
        if find_content(self.folder / "last") is None:
            return None
        try:
            return checksums.read(self._find("last") / self.STATE)
        except checksums.CorruptFile as error:
            raise UserError(
                f"{error}: run train.py again, which sets it aside and trains the fold again"
            ) from None

    def read_weights_hash(self, which: str) -> str:
        """The SHA-256 of the "best" or "last" weights, as their checkpoint records it; they are not read."""
        found = find_content(self.folder / which)
        name = self.STATE if which == "last" else self.HEAD
        if found is None:
            raise UserError(f"{self.folder} has no {which} checkpoint yet: continue training with train.py")
        return str(checksums.read(found / name).get("sha256", {}).get(self.WEIGHTS))

    def is_complete(self) -> bool:
        """Is this fold trained to its end?"""
        state = self._read_state()
        return state is not None and bool(state.get("finished"))

    def read_history(self) -> list[dict]:
        """The rows of metrics.csv that this fold has so far."""
        state = self._read_state()
        return state["progress"]["history"] if state else []

    def save_predictions(self, kind: str, found: np.ndarray) -> None:
        """valid_<kind>.npy, (clips of the fold, classes), and its checksum in valid_<kind>.json."""
        checksums.write_array(self.folder / f"valid_{kind}.npy", found)

    def load_predictions(self, kind: str) -> np.ndarray | None:
        """What `save_predictions` wrote; None where it is missing or its checksum differs."""
        return checksums.read_array(self.folder / f"valid_{kind}.npy")

    def forget_predictions(self) -> None:
        """Remove the fold's predictions, because its head will be another."""
        for path in self.folder.glob("valid_*"):
            path.unlink()


def build_head(described: Any, weights: Path, where: Path) -> Head:
    """The head that a checkpoint describes, its size compared with that of the weights before memory is taken
    for it.

    Args:
        described: the head's config.
        weights: the safetensors that will be loaded into it.
        where: the description's file, for the message.
    Raises:
        UserError: no head can be built from it, or the weights belong to another head.
    """
    import torch

    import models  # `predict.py --help` does not wait for it

    there = read_shapes(weights)
    try:
        with torch.device("meta"):
            here = {
                name: list(tensor.shape) for name, tensor in models.rebuild(described).state_dict().items()
            }
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
        MemoryError,
        OverflowError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where} describes no head that can be built here: {reason}") from None
    if here != there:
        odd = next(name for name in (*here, *there) if here.get(name) != there.get(name))
        raise UserError(
            f"{weights} does not fit the head that {where} describes: {odd} is {there.get(odd, 'missing')} "
            f"there, {here.get(odd, 'missing')} in the head: it is another run's"
        )
    return models.rebuild(described)


def read_shapes(path: Path) -> dict[str, list[int]]:
    """The tensors' shapes by name, out of a safetensors header.

    Raises:
        UserError: no such header.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(HEADER, path.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        return {
            name: [int(n) for n in about["shape"]] for name, about in header.items() if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise_if_temporary(path, error)
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())[:100]}): train this fold again from its start"
        ) from None


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
        raise_if_temporary(path, error)
        raise UserError(
            f"{path} is damaged ({error}): delete {path.parent} to train this fold again from its start"
        ) from None
