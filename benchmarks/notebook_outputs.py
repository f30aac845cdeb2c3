"""Run the notebooks in a simulated Kaggle session and save their outputs in them.

    python benchmarks/notebook_outputs.py --weights mn04_as_mAP_432.pt

The session has the built-in sample competition, the weights and the code attached, and no network. First
solution.ipynb trains, then inference.ipynb predicts with its output attached. Code and text stay as they
are. The first picture is kept, made smaller; other pictures are dropped.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT

sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
COMPETITION = "everyday-sounds"
WIDTH, COLOURS = 840, 48  # of the picture


def make_sample(folder: Path) -> Path:
    """The sample competition as Kaggle would attach it: without its solution."""
    from earshot.competition import sample

    sample.write_sample(folder / COMPETITION)
    (folder / COMPETITION / "solution.csv").unlink()
    return folder / COMPETITION


def clean_outputs(cells: list[Any], root: Path) -> list[list[dict]]:
    """The outputs of each code cell for saving: no path of this machine, one small picture in all."""
    found, pictures = [], 0
    for cell in cells:
        kept: list[dict] = []
        for output in cell.get("outputs", []):
            one = json.loads(json.dumps(output).replace(str(root), "/kaggle"))
            data = one.get("data", {})
            if "image/png" in data:
                pictures += 1
                if pictures > 1:
                    continue
                data["image/png"] = shrink_picture(data["image/png"])
            if one["output_type"] == "stream" and kept and kept[-1].get("name") == one["name"]:
                kept[-1]["text"] += one["text"]
            else:
                kept.append(one)
        for one in kept:  # as notebooks are usually written: a list of lines
            if "text" in one:
                one["text"] = one["text"].splitlines(keepends=True)
        found.append(kept)
    return found


def shrink_picture(png: str) -> str:
    """A PNG in base64, narrower and with fewer colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        data, "PNG", optimize=True
    )
    return base64.b64encode(data.getvalue()).decode()


def save_outputs(path: Path, executed: Any, root: Path) -> None:
    """Put the outputs of an executed copy into a notebook."""
    content = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    done = [cell for cell in executed.cells if cell.cell_type == "code"]
    for number, (cell, outputs) in enumerate(zip(cells, clean_outputs(done, root), strict=True), 1):
        cell["outputs"], cell["execution_count"] = outputs, number
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size >> 10} KB")


def main() -> None:
    """Execute both notebooks and save them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", required=True, help="mn04_as_mAP_432.pt")
    flags = parser.parse_args()
    from kaggle_tree import Session

    with tempfile.TemporaryDirectory(prefix="notebooks-") as folder:
        root = Path(folder).resolve() / "kaggle"
        kaggle = Session(root, make_sample)
        del kaggle.env["KAGGLE_KERNEL_RUN_TYPE"]  # the doctor would take this machine's age for the session's
        kaggle.weights.parent.mkdir(parents=True)
        shutil.copyfile(flags.weights, kaggle.weights)
        kaggle.attach_code()
        for name in ("solution", "inference"):
            path = ROOT / "notebooks" / f"{name}.ipynb"
            save_outputs(path, kaggle.execute(path), root)
            kaggle.attach_output()


if __name__ == "__main__":
    main()
