"""cloud/modal_app.py as a module, a volume that needs no account, and a script that saves when stopped."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from conftest import ROOT

PATH = ROOT / "cloud" / "modal_app.py"
SAVES = """
import signal, sys, time
def save(number, frame):
    open("saved", "w").write(str(number))
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, save)
open("begun", "w").close()
time.sleep(60)
"""


def load(path: Path = PATH) -> ModuleType:
    """The file as a module."""
    spec = importlib.util.spec_from_file_location("modal_app", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cloud = load()


class Volume:
    """Writes down what it is asked for; its commits fail in turn, as `failing` says."""

    def __init__(self, *failing: bool):
        self.failing, self.calls = list(failing), []

    def reload(self) -> None:
        self.calls.append("reload")

    def commit(self) -> None:
        self.calls.append("commit")
        if self.failing and self.failing.pop(0):
            raise RuntimeError("conflict")
