"""A simulated Kaggle session: read-only attachments, a folder for outputs, and no network."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import make_competition

from earshot.kaggle import notebook

OFFLINE = '''"""No network: connections to other machines are refused and logged."""
import os
import socket


def refuse(what, *rest, **more):
    host = what[0] if isinstance(what, tuple) else what
    if host is None or host in ("localhost", ""):
        return None
    if isinstance(host, str) and host.startswith(("127.", "/")):
        return None
    with open(os.environ["ASKED_FOR"], "a") as file:
        file.write(f"{host}\\n")
    raise OSError(101, "Network is unreachable")


connect, look_up = socket.socket.connect, socket.getaddrinfo
socket.socket.connect = lambda self, address: (refuse(address), connect(self, address))[1]
socket.getaddrinfo = lambda host, *rest, **more: (refuse(host), look_up(host, *rest, **more))[1]
'''


def make_tones(folder: Path) -> Path:
    """A small competition."""
    return make_competition(folder / "tone-recognition", train=8, subm=4)


class Session:
    """The tree: `input` (attached), `working` (outputs); `env` for processes in it."""

    def __init__(self, root: Path, make: Callable[[Path], Path] | None = None):
        """`make` makes another competition in the folder of competitions and returns its folder."""
        self.root, self.input, self.working = root, root / "input", root / "working"
        self.asked = root / "asked_for.txt"
        self.competition = (make or make_tones)(self.input / "competitions")
        self.weights = self.input / "datasets" / "someone" / "light-weights" / "mn04_as_mAP_432.pt"
        self.working.mkdir(parents=True)
        (root / "offline").mkdir()
        (root / "offline" / "sitecustomize.py").write_text(OFFLINE)
        self.env = {
            **os.environ,
            "EARSHOT_ATTACHED": str(self.input),
            "EARSHOT_WORKING": str(self.working),
            "ASKED_FOR": str(self.asked),
            "PYTHONPATH": str(root / "offline"),
            "OMP_NUM_THREADS": "1",
            "HOME": str(root / "home"),
            "HF_HUB_OFFLINE": "1",
            "TORCH_HOME": str(root / "home"),
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "TMPDIR": str(root / "tmp"),
            "IPYTHONDIR": str(root / "home" / "ipython"),
            "MPLCONFIGDIR": str(Path(tempfile.gettempdir()) / "earshot-tests-mpl"),
        }  # matplotlib's list of fonts takes long to make
        self.env.pop("MPLBACKEND", None)
        (root / "tmp").mkdir()

    def attach_weights(self) -> None:
        """Random weights in the format of the published file."""
        import torch
        from test_efficientat import published

        torch.manual_seed(0)
        self.weights.parent.mkdir(parents=True)
        torch.save(published("mn04"), self.weights)

    def attach_code(self) -> Path:
        """The code as a bundle has it."""
        folder = self.input / "datasets" / "someone" / "earshot-kit" / "code"
        for path in notebook.list_files():
            target = folder / path.relative_to(notebook.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return folder

    def attach_output(self) -> None:
        """Attach the outputs so far as those of an earlier notebook, and empty the working folder."""
        target = self.input / "notebooks" / "someone" / "earshot-solution"
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.working, target)
        self.working.mkdir()

    def attached(self) -> dict[str, tuple[int, int]]:
        """Every attached file and folder, its size and the time of its last change."""
        return {
            str(path): (path.stat().st_size if path.is_file() else 0, path.stat().st_mtime_ns)
            for path in self.input.rglob("*")
        }

    def execute(self, path: Path) -> Any:
        """Run a notebook top to bottom; the executed copy is kept as <name>.executed.ipynb."""
        import nbformat
        from nbclient import NotebookClient

        content = nbformat.read(path, as_version=4)
        client = NotebookClient(
            content, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(self.working)}}
        )
        try:
            client.execute(env=self.env)
        finally:
            nbformat.write(content, self.root / f"{path.stem}.executed.ipynb")
        return content


def text(content: Any) -> str:
    """The text that a notebook printed."""
    return "".join(
        output.get("text", "")
        for cell in content.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
