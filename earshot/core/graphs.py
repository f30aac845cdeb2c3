"""Networks as graphs without torch: exported files, run on the CPU by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from earshot.core import checksums
from earshot.core.checksums import CorruptFile
from earshot.core.errors import UserError

# The packages that each runtime needs, the faster one first; each has a requirements-*.txt.
PACKAGES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxruntime")}
SUFFIXES = {"openvino": (".xml", ".bin"), "onnx": (".onnx",)}
FOLDER, ABOUT = "export", "export.json"  # of a run, and in it
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})  # of the operators that an export has


def find_missing_package(runtime: str) -> str | None:
    """A package that a runtime lacks here; None where it is installed."""
    return next((name for name in PACKAGES[runtime] if importlib.util.find_spec(name) is None), None)


def check_installed(runtime: str) -> None:
    """Raise UserError where a package is missing that exporting needs: a graph is first one of ONNX."""
    for name in ("onnx", *PACKAGES[runtime]):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--to {runtime}: the package {name} is not installed: pip install -r "
                f"requirements-{runtime}.txt"
            )


def list_files(name: str, runtime: str) -> list[str]:
    """The names of a graph's files."""
    return [name + suffix for suffix in SUFFIXES[runtime]]


def read_export(folder: Path) -> dict[str, Any]:
    """The content of an export's export.json, the files beside it verified.

    Raises:
        CorruptFile: one of them is missing or damaged; the line has no fix.
    """
    about = checksums.read(folder / ABOUT)
    runtime, sums = about.get("runtime"), about.get("sha256")
    names = set(sums) if isinstance(sums, dict) else set()
    graphs = (
        [set(list_files(name, runtime)) for name in ("heads", "extractor")] if runtime in SUFFIXES else []
    )
    described = isinstance(about.get("models"), dict) and isinstance(about.get("features"), str)
    if not described or not graphs or names not in (graphs[0], graphs[0] | graphs[1]):
        raise CorruptFile(f"{folder / ABOUT} is not the description of an export")
    return checksums.read(folder / ABOUT, *sorted(names))


class Graph:
    """A graph that is loaded once; any thread may run it.

    Args:
        folder: of the export. name: the file's, without its ending.
        runtime: "onnx" or "openvino", which is installed.
        threads: of a pass.
        lanes: passes that run side by side, from as many threads; `run_lanes` shares its rows among them.
    Raises:
        CorruptFile: the runtime refuses the file.
    """

    shapes: dict[str, tuple[int, ...]]
    """Each input's shape without its first axis; () for one that is not fixed."""

    def __init__(self, folder: Path, name: str, runtime: str, threads: int, lanes: int = 1):
        self.path = folder / list_files(name, runtime)[0]
        self._local, self._lanes = threading.local(), lanes
        try:
            if runtime == "onnx":
                self._open_onnx(threads)
            else:
                self._open_openvino(threads, lanes)
        except Exception as error:  # neither runtime's errors have a base of their own
            if isinstance(error, (MemoryError, OSError, CorruptFile)):
                raise
            reason = " ".join(str(error).split())[:160]
            raise CorruptFile(f"{self.path} cannot be loaded by {runtime} ({reason})") from None

    def _open_onnx(self, threads: int) -> None:
        import onnx
        import onnxruntime

        _check_onnx(onnx.load_model(self.path, load_external_data=False), self.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.load_model_format", "ONNX")
        self._session = onnxruntime.InferenceSession(
            str(self.path), options, providers=["CPUExecutionProvider"]
        )
        self.shapes = {each.name: _fix_shape(each.shape) for each in self._session.get_inputs()}
        self._run = self._session.run

    def _open_openvino(self, threads: int, lanes: int) -> None:
        import openvino

        settings = {
            # on some processors the default is bf16, which is no longer the same network
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads * lanes,
            "NUM_STREAMS": lanes,
            # two processes would share a core
            "ENABLE_CPU_PINNING": False,
        }
        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(self.path), "CPU", settings)
        # a tensor's name may be that of the operation behind it
        self.shapes = {
            each.node.friendly_name: _fix_shape(
                [axis.get_length() if axis.is_static else None for axis in each.partial_shape]
            )
            for each in self._compiled.inputs
        }
        self._run = self._run_openvino

    def _run_openvino(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        self._local.request.infer(dict(enumerate(feeds.values())), share_inputs=True)
        return [self._local.request.get_tensor(name).data.copy() for name in names]

    def run(self, output: str, **feeds: np.ndarray) -> np.ndarray:
        """One output of the named inputs; those that the graph does not use are left out."""
        return self._run([output], {name: feeds[name] for name in self.shapes})[0]

    def run_lanes(self, output: str, **feeds: np.ndarray) -> np.ndarray:
        """The same, the rows in as many parts as there are lanes, side by side.

        Threads within a pass wait for each other at every layer, and one layer of a recurrent network has
        work for one of them.
        """
        rows = len(next(iter(feeds.values())))
        ends = [round(rows * lane / self._lanes) for lane in range(self._lanes + 1)]
        parts = [
            {name: feed[begin:end] for name, feed in feeds.items()}
            for begin, end in pairwise(ends)
            if end > begin
        ]
        if len(parts) == 1:
            return self.run(output, **feeds)
        return np.concatenate(list(self._pool.map(lambda part: self.run(output, **part), parts)))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._lanes, "lane")


def _fix_shape(shape: list[Any]) -> tuple[int, ...]:
    """The shape of a row; () where an axis of it may have any length."""
    return tuple(shape[1:]) if all(isinstance(axis, int) and axis > 0 for axis in shape[1:]) else ()


def _check_onnx(model: Any, path: Path) -> None:
    """CorruptFile for weights in other files and for operators that no export has: a run may be untrusted."""
    parts = [model.graph, *model.functions]
    for part in parts:
        tensors = list(getattr(part, "initializer", ()))
        for node in part.node:
            if node.domain not in DOMAINS:
                raise CorruptFile(f"{path} has an operator of the domain {node.domain[:40]!r}")
            for attribute in node.attribute:
                parts += [graph for graph in (attribute.g, *attribute.graphs) if graph.node]
                tensors += [attribute.t, *attribute.tensors]
        if any(tensor.data_location == tensor.EXTERNAL or tensor.external_data for tensor in tensors):
            raise CorruptFile(f"{path} has weights in another file")
