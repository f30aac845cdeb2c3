"""A stage that can be killed at a chosen moment, and that writes down what it works on; no instrument is in
the product itself."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The events of sys.addaudithook that come before something changes on the disk.
CHANGES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "shutil.rmtree",
    "os.truncate",
    "os.link",
    "os.symlink",
)


def install(trace: Path, folder: Path, kill_at: int) -> None:
    """Write every decoded clip, training step and change on the disk into a trace; kill -9 this process
    before one of the changes.

    Args:
        trace: a line is added per event: "decode PATH", "step FOLD EPOCH STEP", "change NAME".
        folder: only changes below it count.
        kill_at: the change to die before, from 1; 0: none.
    """
    log = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    inside, changes = str(folder.resolve()), 0

    def say(text: str) -> None:
        os.write(log, f"{text}\n".encode())  # one call: the lines of threads do not mix

    def audit(event: str, args: tuple) -> None:
        nonlocal changes
        opened = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if not opened and event not in CHANGES or not isinstance(args[0], (str, os.PathLike)):
            return
        path = os.path.abspath(os.fspath(args[0]))
        if not path.startswith(inside) or path == str(trace):
            return
        changes += 1
        say(f"change {os.path.relpath(path, inside)}")
        if changes == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    from earshot.features import decode_ahead
    from earshot.training import trainer

    decode, step = decode_ahead.decode, trainer.Trainer.step

    def decoding(path: str, *more):
        say(f"decode {os.path.basename(path)}")
        return decode(path, *more)

    def stepping(self, epoch: int, number: int, rows):
        say(f"step {self.fold.number} {epoch} {number}")
        return step(self, epoch, number, rows)

    decode_ahead.decode, trainer.Trainer.step = decoding, stepping
    sys.addaudithook(audit)


def run(script: str, args: list[str]) -> None:
    """Run one of the scripts as `python SCRIPT ARGS` would, in this process."""
    sys.argv = [str(ROOT / script), *args]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    install(Path(sys.argv[1]), Path.cwd(), int(sys.argv[2]))
    run(sys.argv[3], sys.argv[4:])
