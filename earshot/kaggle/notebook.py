"""Notebooks with the kit's code inside: Kaggle takes one file."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path

from earshot.core import cli
from earshot.core.errors import UserError
from earshot.core.files import read_json, write_text
from earshot.kaggle import bundle

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("get_features.py", "train.py", "predict.py", "doctor.py", "requirements.txt")
CODE = (*SCRIPTS, "earshot/", "models/", "recipes/")
KINDS = {".py", ".yaml", ".txt"}
EMPTY = 'CODE = ""'  # the line of a notebook that the archive replaces
METADATA = "kernel-metadata.json"
LARGEST = 1 << 20  # bytes: Kaggle's limit for a notebook's source
ABOUT = (
    "Put the kit's code into each notebook of notebooks/, for the kaggle client to push.\n"
    "\n"
    "  python -m earshot.kaggle.notebook [FOLDER]   into FOLDER (default: notebooks/built)"
)


def list_files() -> list[Path]:
    """The files that the scripts need, sorted: no tests, no outputs, nothing that git does not track."""
    names = [name for name in bundle.list_product_files() if name.startswith(CODE)]
    return [ROOT / name for name in names if Path(name).suffix in KINDS]


def pack_code() -> str:
    """The code as a tar.xz in base64, half as large as a zip; equal code gives equal text."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz", preset=9) as packed:
        for path in list_files():
            entry = tarfile.TarInfo(path.relative_to(ROOT).as_posix())  # without owner and time
            entry.size = path.stat().st_size
            with open(path, "rb") as file:
                packed.addfile(entry, file)
    return base64.b64encode(data.getvalue()).decode()


def fill_in_code(path: Path) -> str:
    """A notebook's JSON with the code in its line `CODE = ""`, without saved outputs.

    Raises:
        UserError: not a notebook, or too large for Kaggle with the code in it.
    """
    notebook = read_json(path)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise UserError(f"{path} is not a notebook: it has no cells")
    for cell in notebook["cells"]:
        lines = "".join(cell["source"]).split("\n")
        if cell["cell_type"] == "code":  # Kaggle makes outputs of its own, and their size counts
            cell["outputs"], cell["execution_count"] = [], None
        if cell["cell_type"] == "code" and EMPTY in lines:
            lines[lines.index(EMPTY)] = f'CODE = "{pack_code()}"'
            cell["source"] = "\n".join(lines)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if len(text.encode("utf-8")) > LARGEST:
        raise UserError(
            f"{path} with the code in it is larger than Kaggle's limit of {LARGEST >> 20} MB: attach the "
            "code as a data set"
        )
    return text


def build(out: Path) -> list[Path]:
    """Write a folder for the kaggle client per notebook: OUT/<name>/<name>.ipynb and its metadata."""
    built = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        folder = out / path.stem
        write_text(folder / path.name, fill_in_code(path))
        metadata = path.with_name(f"{path.stem}.{METADATA}")
        if not metadata.is_file():
            metadata = path.with_name(METADATA)
        write_text(folder / METADATA, metadata.read_text(encoding="utf-8"))
        built.append(folder / path.name)
    return built


def main(argv: list[str]) -> None:
    """Build every notebook, in the folder that is named or in notebooks/built."""
    folders = cli.parse({}, argv, ABOUT, positional="folder")[0]["folder"]
    if len(folders) > 1:
        raise UserError("one folder is enough: python -m earshot.kaggle.notebook FOLDER")
    for path in build(Path(folders[0]) if folders else ROOT / "notebooks" / "built"):
        print(f"notebook: {path}, {path.stat().st_size >> 10} KB")


if __name__ == "__main__":
    cli.run(main)
