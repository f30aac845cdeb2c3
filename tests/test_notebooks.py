"""The notebooks, run top to bottom in a simulated Kaggle session: read-only attachments, no network."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
from conftest import ROOT, read_csv, tone
from kaggle_tree import Session, text

from earshot.competition.load import Competition
from earshot.core import deadline, graphs
from earshot.export import __main__ as export
from earshot.kaggle import notebook

NOTEBOOKS = ROOT / "notebooks"


@pytest.mark.parametrize("name", ["solution", "inference"])
def test_what_the_cells_use_of_the_code_is_there(name: str) -> None:
    """A renamed function is noticed without running the notebooks, which takes long."""
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
    """Offline and unedited: code from the attached bundle, then from the notebook itself, with other clips to
    submit."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    kaggle = Session(tmp_path / "kaggle")
    kaggle.attach_weights()
    code = kaggle.attach_code()
    before = kaggle.attached()
    shown = kaggle.execute(NOTEBOOKS / "solution.ipynb")
    printed = text(shown)
    assert any(
        "image/png" in output.get("data", {}) for cell in shown.cells for output in cell.get("outputs", [])
    ), "no spectrograms"
    assert kaggle.attached() == before, "something attached was written to"
    assert (
        f"earshot: {code}" in printed
        and "(attached)" in printed
        and "extractor: efficientat, whose weights are attached" in printed
    )
    assert "ok: internet: no" in printed and "stop: " not in printed
    sample, made = (
        read_csv(kaggle.competition / "sample_submission.csv"),
        read_csv(kaggle.working / "submission.csv"),
    )
    assert [row["fname"] for row in made] == [row["fname"] for row in sample] and {
        row["label"] for row in made
    } <= {"tone0", "tone1", "tone2"}
    assert set(kaggle.asked.read_text().split() if kaggle.asked.exists() else []) <= {"www.kaggle.com"}, (
        "only the doctor looks for the network"
    )
    kept = [f"{path.name}.csv" for path in (kaggle.working / "runs").iterdir() if path.is_dir()]
    assert {path.name for path in kaggle.working.iterdir()} == {
        "data",
        "runs",
        "submission.csv",
        "ledger.csv",
        *kept,
    }

    # A code competition's second run: other and more clips to submit; neither the code nor a cache of these
    # clips is attached.
    # By an export where packages for one are installed.
    able = not graphs.find_missing_package("onnx")
    runtime = next(name for name in graphs.PACKAGES if not (able and graphs.find_missing_package(name)))
    run = next(path.parent for path in kaggle.working.glob("runs/*/config.yaml"))
    if able:
        export.main([str(run), "--to", runtime, "--weights", str(kaggle.weights)])
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
    printed = text(kaggle.execute(built[0]))
    assert kaggle.attached() == before and f"earshot: {tmp_path}/kaggle/tmp/earshot-" in printed
    assert (
        "subm: 40 clips, 40 windows" in printed
        and "train:" not in printed.partition("features: ")[2].partition("$ python")[0]
    )
    assert (f": {runtime} predicts, by " in printed) == able
    assert (f": {runtime} computes efficientat's network, by " in printed) == able
    made = read_csv(kaggle.working / "submission.csv")
    assert [row["fname"] for row in made] == hidden[::-1] and len({row["label"] for row in made}) > 1

    # No clips to submit yet: those of the earlier session, whose cache is attached, must not take their
    # place.
    shutil.rmtree(kaggle.competition / "audio_test")
    (kaggle.competition / "sample_submission.csv").write_text("fname,label\n")
    shutil.rmtree(kaggle.working)
    kaggle.working.mkdir()
    assert "there are no clips to submit yet" in text(kaggle.execute(built[0]))
    assert (kaggle.working / "submission.csv").read_text() == "fname,label\n"


def test_notebooks_are_saved_with_outputs_and_complete_metadata() -> None:
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
        check_outputs(cells)
        setups.append(["".join(cell["source"]) for cell in cells if "CODE" in "".join(cell["source"])])
        for cell in cells:
            compile("".join(cell["source"]), name, "exec")
        loaders = [cell for cell in cells if "CODE" in "".join(cell["source"])]
        assert all(cell["metadata"]["jupyter"]["source_hidden"] for cell in loaders), "collapsed in Jupyter"
        assert all(cell["metadata"]["_kg_hide-input"] for cell in loaders), "collapsed on Kaggle"
        filled = notebook.fill_in_code(NOTEBOOKS / f"{name}.ipynb")
        assert len(filled.encode()) < notebook.LARGEST
        assert filled == notebook.fill_in_code(NOTEBOOKS / f"{name}.ipynb")
        built = [cell for cell in json.loads(filled)["cells"] if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in built)
    assert setups[0] == setups[1] and len(setups[0]) == 2, "both notebooks load the code in the same way"


def check_outputs(cells: list[dict]) -> None:
    """Of a whole run without errors; small, and without paths of the machine that made them."""
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(json.dumps(outputs)) < 200_000 and "submission.csv: 100 rows" in json.dumps(outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    for output in outputs:
        printed = "".join(output.get("text", [])) + "".join(output.get("data", {}).get("text/html", []))
        paths = re.findall(r"(?<![\w.:/<])/[\w.-]+/[\w./-]+", printed)
        assert all(path.startswith("/kaggle/") for path in paths), paths
        assert "\nstop: " not in printed and "Traceback" not in printed


@pytest.mark.parametrize("stretch", [5.0, None])
def test_neighbours_are_fitted_where_rows_are_stretches(
    stretch: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the submission that uses them; the notebook goes on where that is refused."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((NOTEBOOKS / "solution.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert "competition = load_competition(place)" in "\n".join(code) and hasattr(Competition, "stretch")
    calls: list[tuple] = []
    scope = {
        "run": lambda *flags, required=True: calls.append((*flags, required)),
        "runs": [Path("runs/a"), Path("runs/b")],
        "competition": SimpleNamespace(stretch=stretch),
        "place": "birds",
        "PREDICT_FLAGS": ["--blend", "auto"],
        "Path": Path,
    }
    exec(next(text for text in code if "--fit-stretches" in text), scope)
    start, end = ("predict.py", "--runs", "a", "b"), ("--out", "submission.csv")
    assert calls[-1] == (*start, "--blend", "auto", *end, True)
    assert calls[:-1] == ([(*start, "--fit-stretches", "birds", *end, False)] if stretch else [])


def test_settings_become_flags() -> None:
    """None is left to the recipe; the first code cell holds the settings, one per line."""
    code = [
        "".join(cell["source"])
        for cell in json.loads((NOTEBOOKS / "solution.ipynb").read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    scope: dict = {}
    exec(code[0], scope)
    assert scope["RECIPE"] == "linear" and scope["EPOCHS"] is scope["LEARNING_RATE"] is None
    loader = next(text for text in code if "def as_flags" in text)
    exec(loader[loader.index("def as_flags") : loader.index("def run(")], scope)
    assert scope["as_flags"](epochs=40, max_hours=0.5, seed=None) == ["--epochs", "40", "--max-hours", "0.5"]
    assert "stopped at a safe point" in inspect.getsource(deadline), (
        "how the notebook sees the time limit's end"
    )
