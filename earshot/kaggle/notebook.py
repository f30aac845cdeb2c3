"""A notebook with the kit's code inside: what is pushed to Kaggle is one file.

python -m earshot.kaggle.notebook      notebooks/*.ipynb, each with the code in it and its metadata ->
    notebooks/built/<name>/
"""

from __future__ import annotations

import base64
import io
import json
import sys
import tarfile
from pathlib import Path

from earshot.core.errors import UserError
from earshot.core.files import read_json, write_text
from earshot.kaggle import bundle

ROOT = Path(__file__).resolve().parents[2]
CODE = (
    "get_features.py",
    "train.py",
    "predict.py",
    "doctor.py",
    "requirements.txt",
    "earshot/",
    "models/",
    "recipes/",
)
KINDS = {".py", ".yaml", ".txt"}
EMPTY = 'CODE = ""'  # the line of a notebook that takes the archive
METADATA = "kernel-metadata.json"
LARGEST = 1 << 20  # bytes: what Kaggle takes of a notebook's source


def files() -> list[Path]:
    """The product's files below ROOT, sorted: what the scripts need, neither tests nor outputs, nor what git
    does not track."""
    return sorted(
        ROOT / name for name in bundle.tracked() if name.startswith(CODE) and Path(name).suffix in KINDS
    )


def archive() -> str:
    """The code as a tar.xz in base64 (half of what a zip takes); equal code gives equal text."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz", preset=9) as packed:
        for path in files():
            entry = tarfile.TarInfo(path.relative_to(ROOT).as_posix())  # of no owner, and from 1970
            entry.size = path.stat().st_size
            with open(path, "rb") as file:
                packed.addfile(entry, file)
    return base64.b64encode(data.getvalue()).decode()


def filled(path: Path) -> str:
    """The notebook's text with the code in its line `CODE = ""`; as it is where it has no such line.

    Raises:
        UserError: no notebook, or one that becomes larger than Kaggle takes.
    """
    notebook = read_json(path)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise UserError(f"{path} is no notebook: it has no cells")
    for cell in notebook["cells"]:
        lines = "".join(cell["source"]).split("\n")
        if cell["cell_type"] == "code" and EMPTY in lines:
            lines[lines.index(EMPTY)] = f'CODE = "{archive()}"'
            cell["source"] = "\n".join(lines)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if len(text.encode("utf-8")) > LARGEST:
        raise UserError(
            f"{path} with the code in it is larger than the {LARGEST >> 20} MB that Kaggle takes: attach the "
            "code as a data set"
        )
    return text


def build(out: Path) -> list[Path]:
    """Every notebook of notebooks/ as a folder that the kaggle client pushes: OUT/<name>/<name>.ipynb and its
    metadata."""
    made = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        folder = out / path.stem
        own = path.with_name(f"{path.stem}.{METADATA}")
        write_text(folder / path.name, filled(path))
        write_text(
            folder / METADATA,
            (own if own.is_file() else path.with_name(METADATA)).read_text(encoding="utf-8"),
        )
        made.append(folder / path.name)
    return made


if __name__ == "__main__":
    for path in build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "notebooks" / "built"):
        print(f"notebook: {path}, {path.stat().st_size >> 10} KB")
