"""What an ONNX file takes and gives, found in a process with limits before this one loads it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earshot.core.errors import UserError, raise_if_temporary
from earshot.core.settings import suggest
from earshot.extractors import onnx_probe

ROOT = Path(__file__).resolve().parents[2]
LARGEST = (1 << 31) - 1  # bytes: what the format can hold in one file
MEMORY, COPIES = 4 << 30, 6  # bytes that the trial may take: so many, and so many times the file
SECONDS, WALL = 60, 300  # that the trial may take: of the processor, and of the clock
SHOWN = 6  # outputs that a message lists
LETTERS = "BDFT"
REQUIREMENTS = "requirements-onnx.txt"


@dataclass(frozen=True)
class Output:
    """An output; what a trial found is None where the window's length was not known."""

    name: str
    """As the file has it: for messages there is `str`."""
    shape: tuple[int, ...] | None = None
    """Of one window, or of a fixed batch."""
    batch: bool = False
    """Does a window give the same beside others as alone?"""
    moves: tuple[int, ...] = ()
    """The axes that are longer for a longer window."""
    finite: bool = True
    silent: bool = True
    """Is it finite for silence, too?"""
    steady: bool = True

    def __str__(self) -> str:
        name = onnx_probe.shorten(self.name)
        return name if self.shape is None else f"{name} {self.shape}"


@dataclass(frozen=True)
class Network:
    """The network of a file."""

    file: str
    input: str
    kind: str
    """The input's type as ONNX Runtime writes it, for example tensor(float)."""
    axes: int
    """Of the input: 2 (batch, samples) or 3 (batch, 1, samples)."""
    batch: int | None
    """The batch size that it takes; None: any."""
    samples: int | None
    """The length of window that it takes; None: any."""
    outputs: tuple[Output, ...]

    def choose_output(self, name: str | None) -> Output:
        """The output of that name; without one the only one, or the one that is called an embedding.

        Raises:
            UserError: there is none, or several could be meant; its numbers cannot be used.
        """
        named = [output for output in self.outputs if output.name == name]
        exact = [output for output in self.outputs if output.name.lower() in ("embedding", "embeddings")]
        like = [output for output in self.outputs if "embed" in output.name.lower()]
        chosen = (
            named
            if name is not None
            else next((few for few in (self.outputs, exact, like) if len(few) == 1), ())
        )
        if not chosen:
            more = ", ..." if len(self.outputs) > SHOWN else ""
            listed = ", ".join(map(str, self.outputs[:SHOWN])) + more
            wrong = (
                f"--output {name}: {self.file} has no such output"
                if name is not None
                else (f"{self.file} has {len(self.outputs)} outputs: choose one with --output")
            )
            known = [onnx_probe.shorten(output.name) for output in self.outputs]
            near = suggest(name, known) if name is not None else ""
            raise UserError(f"onnx: {wrong}{near}: {listed}")
        output = chosen[0]
        if not output.steady:
            raise UserError(
                f"onnx: {self.file} is not deterministic: export it in evaluation mode (network.eval())"
            )
        if 0 in (output.shape or ()):
            raise UserError(
                f"onnx: the output {output} of {self.file} is empty: choose another with --output"
            )
        if not output.finite:
            raise UserError(f"onnx: the output {output} of {self.file} is NaN or infinite for noise")
        return output

    def find_axes(self, output: Output, named: str | None) -> str:
        """A letter for each axis of an output: B batch, D channels, F frequency, T time, 1 of length one.

        Args:
            named: the letters of --axes; None: found from what follows the window's length.
        Raises:
            UserError: it does not fit, or cannot be found.
        """
        shape = output.shape or ()
        axes = (named or "").upper()
        if named is not None:
            fits = len(axes) == len(shape) and len(set(axes)) == len(axes) and set(axes) <= set(LETTERS)
            if not fits or "D" not in axes or "F" in axes and "T" not in axes or axes.find("B") > 0:
                raise UserError(
                    f"onnx: --axes {named}: the output {output} needs {len(shape)} different letters of B "
                    "(batch, first), D (channels), F (frequency), T (time), for example BTD"
                )
            if "B" not in axes and (self.batch or 1) > 1:
                raise UserError(f"onnx: --axes {named}: the batch size is {self.batch}, so B has to be there")
            return axes
        first = 1 if shape and shape[0] == (self.batch or 1) else 0
        wide = [axis for axis in range(first, len(shape)) if shape[axis] > 1 or axis in output.moves]
        letters = ["B"] * first + ["1"] * (len(shape) - first)
        still = [axis for axis in wide if axis not in output.moves]
        if len(wide) - len(still) == 1 and len(still) == 1:
            letters[wide[0]], letters[wide[1]] = "TD" if wide[0] in output.moves else "DT"
        elif len(wide) == len(still) <= 1 and (wide or len(shape) > first):
            letters[wide[0] if wide else -1] = "D"
        else:
            raise UserError(
                f"onnx: which axis of the output {output} of {self.file} is time? Name all of them by "
                "--axes: B batch, D channels, F frequency, T time, for example --axes BTD"
            )
        return "".join(letters)


def inspect(path: Path, samples: int | None) -> Network:
    """The network of a file, tried on noise.

    Args:
        samples: the window's length; None: not known yet.
    Raises:
        UserError: it is not an ONNX file, not one of audio, or takes too much memory or time; or ONNX Runtime
            is not installed.
    """
    check_installed()
    status = path.stat()
    if status.st_size > LARGEST:
        raise UserError(f"onnx: {path} is larger than {LARGEST >> 20} MB, the most that an ONNX file can be")
    return _inspect(path, status.st_size, status.st_mtime_ns, samples or 0)


def check_installed() -> None:
    """Raise UserError where a package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        lacking = error.name or "ONNX Runtime"
        raise UserError(
            f"onnx: the package {lacking} is not installed: pip install -r {REQUIREMENTS}"
        ) from None


@functools.lru_cache(maxsize=16)
def _inspect(path: Path, size: int, changed: int, samples: int) -> Network:
    memory = MEMORY + COPIES * size
    command = [sys.executable, "-P", "-m", "earshot.extractors.onnx_probe", str(path.absolute())]
    command += map(str, (samples, memory, SECONDS))
    # the packages of this process, wherever they are; not those of the current folder
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    output, errors, code = b"", b"", -signal.SIGXCPU
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, timeout=WALL
        )
        output, errors, code = done.stdout, done.stderr, done.returncode
    try:
        found = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        last = (
            onnx_probe.escape(" ".join(errors.decode(errors="replace").split()[-20:]))[-160:]
            if code > 0
            else ""
        )
        why = f"ONNX Runtime crashes, or takes more than {memory >> 20} MB ({last or f'exit code {code}'})"
        if code == -signal.SIGXCPU:
            why = f"it takes longer than {SECONDS} s to load and run on one window"
        found = {"refused": why}
    if "errno" in found:
        raise_if_temporary(path, OSError(found["errno"], found["refused"]))
    if "refused" in found:
        raise UserError(f"onnx: {path} cannot be used: {found['refused']}")
    return _read(path.name, found)


def _read(file: str, found: dict[str, Any]) -> Network:
    name, kind, shape = found["input"]
    outputs = []
    for each in found["outputs"]:
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in each.items()
        }
        outputs.append(Output(**fields))
    return Network(file, name, kind, len(shape), shape[0], shape[-1], tuple(outputs))
