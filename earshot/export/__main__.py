"""`python -m earshot.export RUN --to onnx` writes a run's networks as files for fast prediction on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from earshot.core import cli, graphs
from earshot.core.errors import UserError

ABOUT = (
    "Export a run or a kept blend for prediction on a CPU: all folds' heads as one graph, and the\n"
    "extractor's network. predict.py, the page and the inference notebook then use it.\n"
    "\n"
    "  python -m earshot.export RUN --to openvino   runs/RUN/export/, by OpenVINO (the fastest)\n"
    "  python -m earshot.export RUN --to onnx       by ONNX Runtime"
)


@dataclass(frozen=True)
class ExportFlags:
    """how"""

    to: Literal["onnx", "openvino"] = "openvino"
    """openvino: pip install -r requirements-openvino.txt; onnx: pip install -r requirements-onnx.txt"""
    fp16: bool = False
    """store the weights in fp16: half the bytes, results within fp16's rounding"""
    features: str | None = None
    """cache whose rows are compared (default: the one that the run was trained on; noise without one)"""
    weights: str | None = None
    """the extractor's weights, if they have moved"""
    runs_folder: str = "runs"
    """folder of the runs"""


def main(argv: list[str]) -> None:
    """Parse the flags, export each run."""
    filled, _ = cli.parse({"export": ExportFlags()}, argv, ABOUT, positional="run")
    flags, names = filled["export"], filled["run"]
    if len(names) != 1:
        raise UserError("export which run? Name one: python -m earshot.export RUN --to onnx")
    graphs.check_installed(flags.to)
    from earshot.prediction import members

    found = members.open_members((names[0],), flags.runs_folder)[0].list_checkpoints()
    print(f"export: {', '.join(f'{run.folder} ({kind})' for run, kind in found)}", flush=True)
    from earshot.export.write import export_run  # torch, which takes seconds

    for run, kind in found:
        folder = export_run(run, kind, flags.to, flags.fp16, flags.weights, flags.features)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"export: {folder}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
