"""The notebooks, executed top to bottom on a simulated Kaggle tree: read-only attachments, no network."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
from pathlib import Path

import pytest
import soundfile
from conftest import ROOT, read_csv, tone
from kaggle_tree import Session, text

from earshot.kaggle import notebook

NOTEBOOKS = ROOT / "notebooks"


@pytest.mark.parametrize("name", ["solution", "inference"])
def test_what_the_cells_use_of_the_code_is_there(name: str) -> None:
    """Executing them takes long: a function that was renamed is noticed here."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    tree, known = ast.parse(code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("earshot"):
            for alias in node.names:
                try:
                    thing = getattr(importlib.import_module(node.module), alias.name)
                except AttributeError:
                    thing = importlib.import_module(f"{node.module}.{alias.name}")
                known[alias.asname or alias.name] = thing
    used = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known
    ]
    assert used
    for node in used:
        assert hasattr(known[node.value.id], node.attr), ast.unparse(node)


@pytest.mark.slow
def test_a_session_that_trains_and_one_that_only_predicts(tmp_path: Path) -> None:
    """Offline, without an edit: code from the attached bundle, then from the notebook itself; the hidden
    clips are others."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    kaggle = Session(tmp_path / "kaggle")
    kaggle.attach_weights()
    code = kaggle.attach_code()
    before = kaggle.attached()
    shown = kaggle.execute(NOTEBOOKS / "solution.ipynb")
    said = text(shown)
    assert any(
        "image/png" in output.get("data", {}) for cell in shown.cells for output in cell.get("outputs", [])
    ), "no spectrograms"
    assert kaggle.attached() == before, "something attached was written to"
    assert (
        f"earshot: {code}" in said
        and "(attached)" in said
        and "extractor: efficientat, whose weights are attached" in said
    )
    assert "ok: internet: no" in said and "stop: " not in said
    sample, made = (
        read_csv(kaggle.competition / "sample_submission.csv"),
        read_csv(kaggle.working / "submission.csv"),
    )
    assert [row["fname"] for row in made] == [row["fname"] for row in sample] and {
        row["label"] for row in made
    } <= {"tone0", "tone1", "tone2"}
    assert set(kaggle.asked.read_text().split() if kaggle.asked.exists() else []) <= {"www.kaggle.com"}, (
        "it is the doctor alone that asks"
    )
    assert {path.name for path in kaggle.working.iterdir()} == {
        "data",
        "runs",
        "submission.csv",
        "ledger.csv",
    }

    # A code competition's second run: other clips to submit, more of them; neither code nor cache of
    # them attached.
    kaggle.attach_output()
    shutil.rmtree(code.parent)
    shutil.rmtree(kaggle.competition / "audio_test")
    (kaggle.competition / "audio_test").mkdir()
    hidden = [f"h{number:02d}.wav" for number in range(40)]
    for number, name in enumerate(hidden):
        soundfile.write(kaggle.competition / "audio_test" / name, tone(number % 3, 5000 + number), 16000)
    (kaggle.competition / "sample_submission.csv").write_text(
        "fname,label\n" + "".join(f"{name},tone0\n" for name in reversed(hidden))
    )
    before = kaggle.attached()
    built = notebook.build(tmp_path / "built")
    assert [path.name for path in built] == ["inference.ipynb", "solution.ipynb"]
    said = text(kaggle.execute(built[0]))
    assert kaggle.attached() == before and f"earshot: {tmp_path}/kaggle/tmp/earshot-" in said
    assert (
        "subm: 40 clips, 40 windows" in said
        and "train:" not in said.partition("features: ")[2].partition("$ python")[0]
    )
    made = read_csv(kaggle.working / "submission.csv")
    assert [row["fname"] for row in made] == hidden[::-1] and len({row["label"] for row in made}) > 1

    # Nothing to submit is visible yet: the earlier session's clips, whose cache is attached, must not
    # take its place.
    shutil.rmtree(kaggle.competition / "audio_test")
    (kaggle.competition / "sample_submission.csv").write_text("fname,label\n")
    shutil.rmtree(kaggle.working)
    kaggle.working.mkdir()
    assert "as no clip to submit is visible yet" in text(kaggle.execute(built[0]))
    assert (kaggle.working / "submission.csv").read_text() == "fname,label\n"


def test_notebooks_are_clean_and_their_metadata_complete() -> None:
    setups = []
    for name, metadata, internet in (
        ("solution", "kernel-metadata.json", True),
        ("inference", "inference.kernel-metadata.json", False),
    ):
        about = json.loads((NOTEBOOKS / metadata).read_text())
        assert (
            about["code_file"] == f"{name}.ipynb"
            and about["enable_internet"] is internet
            and about["is_private"] is True
        )
        assert (
            about["machine_shape"] == "NvidiaTeslaT4"
            and about["enable_gpu"] is True
            and about["enable_tpu"] is False
        )
        assert (
            about["id"].endswith("/" + about["title"].lower().replace(" ", "-"))
            and about["kernel_type"] == "notebook"
        )
        cells = [
            cell
            for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
            if cell["cell_type"] == "code"
        ]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
        setups.append(["".join(cell["source"]) for cell in cells if "CODE" in "".join(cell["source"])])
        for cell in cells:
            compile("".join(cell["source"]), name, "exec")
        filled = notebook.fill_in_code(NOTEBOOKS / f"{name}.ipynb")
        assert len(filled) < notebook.LARGEST and filled == notebook.fill_in_code(NOTEBOOKS / f"{name}.ipynb")
    assert setups[0] == setups[1] and len(setups[0]) == 2, "both notebooks find the kit in the same way"
