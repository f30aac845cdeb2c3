"""Trackers of a run: TensorBoard always, Weights & Biases with --wandb.

A tracker that fails costs one line in the log, and training goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.core.files import append_text, read_json
from earshot.core.shell import join_command

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from earshot.training.run import Run

# seconds before TensorBoard's files are begun: the import would be a tenth of a small head's training
PATIENCE = 20.0
STARTED = "started "  # begins the line of a run's date and command
EVENTS = "events.out.tfevents."  # what the names of its files begin with


def group_by_part(history: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The epochs of each fold (and seed, where there are several), under a name for it."""
    epochs_of: dict[str, list[dict[str, Any]]] = {}
    has_seeds = len({row.get("seed") for row in history}) > 1
    for row in history:
        name = str(row["fold"]) if row["fold"] == "refit" else f"fold_{row['fold']}"
        epochs_of.setdefault(name + (f"_seed{row['seed']}" if has_seeds else ""), []).append(row)
    return epochs_of


def name_scalars(row: dict[str, Any]) -> dict[str, float]:
    """An epoch's numbers under the names that trackers show; its seconds are none of a run's results."""
    names = {"lr": "learning_rate", "train_loss": "loss/train", "valid_loss": "loss/validation"}
    return {
        names.get(key, f"validation/{key}"): float(value)
        for key, value in row.items()
        if key not in ("fold", "seed", "epoch", "seconds") and value != ""
    }


def start_tracking(run: Run, wandb: bool) -> Tracker:
    """Watch a run's metrics from now on.

    Raises:
        UserError: Weights & Biases is not installed.
    """
    # A folder called wandb, which it makes itself, would be found as a package without a file.
    if wandb and (find_spec("wandb") is None or find_spec("wandb").origin is None):
        raise UserError(
            "--wandb needs the package wandb: pip install wandb, or leave --wandb out (TensorBoard's files "
            "are written anyway)"
        )
    tracker = Tracker(
        run, [TensorBoard(run.folder / "tensorboard"), *([WeightsAndBiases(run)] if wandb else [])]
    )
    run.watching.append(tracker.log_epochs)
    log_start(run.folder)
    return tracker


def try_or_log(name: str, log: Callable[[str], None], act: Callable, *args: Any) -> bool:
    try:
        act(*args)
    except Exception as error:  # any error: the run is worth more than its pictures
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        log(f"warning: {name} failed and is skipped, the run is not affected: {reason}")
        return False
    return True


class Tracker:
    """Passes metrics and pictures to several trackers, and drops one that fails."""

    def __init__(self, run: Run, watchers: list[Any]):
        self.run, self.watchers, self.rows = run, watchers, []

    def __getstate__(self) -> dict[str, Any]:
        return {"run": self.run, "watchers": [], "rows": []}  # processes that train a fold report to this one

    def log_epochs(self, rows: list[dict[str, Any]]) -> None:
        """All epochs so far, each time from the first."""
        self.rows = rows
        self._tell_watchers(lambda watcher: watcher.log_epochs(rows))

    def finish(self) -> None:
        """Send the run's pictures and close the trackers."""
        pictures = {path.stem: path for path in sorted(self.run.folder.glob("*.png"))}
        self._tell_watchers(lambda watcher: watcher.finish(self.run, self.rows, pictures))

    def _tell_watchers(self, tell: Callable[[Any], None]) -> None:
        self.watchers = [
            watcher for watcher in self.watchers if try_or_log(watcher.name, self.run.log, tell, watcher)
        ]


class TensorBoard:
    """runs/<name>/tensorboard/<fold>/: each fold's scalars in one file, started by each process and then
    added to.

    Only epochs that a checkpoint holds come here, so a run that was killed has each of them once. An event's
    time is its epoch: a process that continues a run first writes the earlier epochs.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path):
        self.folder, self.began = folder, time.monotonic()
        self.writers: dict[str, SummaryWriter] = {}
        self.written: dict[str, int] = {}

    def log_epochs(self, rows: list[dict[str, Any]], now: bool = False) -> None:
        """Add the epochs that are new."""
        if not now and time.monotonic() - self.began < PATIENCE:
            return
        for part, epochs in group_by_part(rows).items():
            if part not in self.written or self.written[part] > len(epochs):  # or the fold was started again
                self._begin_file(part)
            writer = self.writers[part]
            for row in epochs[self.written[part] :]:
                for tag, value in name_scalars(row).items():
                    writer.add_scalar(tag, value, row["epoch"], walltime=row["epoch"])
            writer.flush()
            self.written[part] = len(epochs)

    def finish(self, run: Run, rows: list[dict[str, Any]], pictures: dict[str, Path]) -> None:
        """All epochs, the settings and the pictures."""
        import matplotlib.image
        import yaml

        self.log_epochs(rows, now=True)
        self._begin_file("run")
        settings = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
        self.writers["run"].add_text("config", f"```\n{settings}\n```")
        for name, path in pictures.items():
            self.writers["run"].add_image(name, matplotlib.image.imread(path), dataformats="HWC")
        for writer in self.writers.values():
            writer.close()

    def _begin_file(self, part: str) -> None:
        """Open the file of a part in place of those that it has."""
        # it opens files by tensorflow where Kaggle has it, whose import takes seconds, but for this marker
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
        from torch.utils.tensorboard import SummaryWriter

        if part in self.writers:
            self.writers[part].close()
        for path in (self.folder / part).glob(f"{EVENTS}*"):
            path.unlink()
        self.writers[part], self.written[part] = SummaryWriter(str(self.folder / part)), 0


class WeightsAndBiases:
    """The same to Weights & Biases; wandb.json remembers the run's id and how many epochs of each fold were
    sent."""

    name = "Weights & Biases"

    def __init__(self, run: Run):
        self.run, self.open, self.path = run, None, run.folder / "wandb.json"
        try:
            self.kept = checksums.read(self.path)
        except checksums.CorruptFile:
            self.kept = {}

    def _open_run(self) -> Any:
        if self.open is None:
            import secrets

            import wandb

            self.kept = {"id": secrets.token_hex(4), "sent": {}, **self.kept}
            self._keep()
            self.open = wandb.init(
                project="earshot",
                name=self.run.folder.resolve().name,
                id=self.kept["id"],
                resume="allow",
                dir=str(self.run.folder),
                config=self.run.config["record"],
            )
        return self.open

    def _keep(self) -> None:
        checksums.write(self.path, self.kept)

    def log_epochs(self, rows: list[dict[str, Any]]) -> None:
        """Send the epochs that are new, each fold against its own epochs."""
        for part, epochs in group_by_part(rows).items():
            known = self.kept.get("sent", {}).get(part, 0)
            if known >= len(epochs):
                continue
            to = self._open_run()
            to.define_metric(f"{part}/epoch")
            to.define_metric(f"{part}/*", step_metric=f"{part}/epoch")
            for row in epochs[known:]:
                to.log(
                    {
                        f"{part}/epoch": row["epoch"],
                        **{f"{part}/{tag}": value for tag, value in name_scalars(row).items()},
                    }
                )
            self.kept["sent"][part] = len(epochs)
            self._keep()

    def finish(self, run: Run, rows: list[dict[str, Any]], pictures: dict[str, Path]) -> None:
        """The scores, the pictures, the end; nothing where an earlier process has sent all."""
        self.log_epochs(rows)
        if self.open is None:
            if self.kept.get("done"):
                return
            self._open_run()
        import wandb

        for kind, found in read_json(run.folder / "scores.json").items():
            self.open.summary.update(
                {f"{kind}/{key}": value for key, value in found.items() if isinstance(value, float)}
            )
        self.open.log({f"pictures/{name}": wandb.Image(str(path)) for name, path in pictures.items()})
        self.open.finish()
        self.kept["done"] = True
        self._keep()


def log_start(folder: Path) -> None:
    """A line of training_log.txt, not of the screen: when training started, and by which command."""
    is_script = Path(sys.argv[0]).name == "train.py"  # in a notebook and in tests it is another program's
    command = f"  {join_command('python', 'train.py', *sys.argv[1:])}" if is_script else ""
    append_text(folder / "training_log.txt", f"{STARTED}{time.strftime('%Y-%m-%d %H:%M %Z')}{command}\n")
