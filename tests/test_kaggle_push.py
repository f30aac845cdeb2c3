"""The bundle, its upload and notebooks, with the real client against a stub of Kaggle on loopback."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from kaggle_stub import KEY, Stub
from test_kaggle import naps

from earshot.core.errors import UserError
from earshot.kaggle import __main__ as kaggle_main
from earshot.kaggle import bundle, push
from earshot.kaggle.flags import PushFlags


def run(*argv: str) -> None:
    """python -m earshot.kaggle ..."""
    kaggle_main.main(list(argv))


def test_the_bundle_holds_the_product_and_nothing_else(stub: Stub, tmp_path: Path) -> None:
    """What is tracked and runs; weights; no tests, nothing untracked, hidden, linked, or named like
    credentials."""
    stray = bundle.ROOT / "earshot" / "untracked_secret.py"
    weights = tmp_path / "ast"
    (weights / ".cache").mkdir(parents=True)
    for name in (
        "config.json",
        "model.safetensors",
        "kaggle.json",
        "access_token",
        ".env",
        ".cache/x",
        "half.tmp",
    ):
        (weights / name).write_text(KEY if name in ("kaggle.json", "access_token", ".env") else "content")
    (weights / "linked").symlink_to("/etc/passwd")
    (tmp_path / "mn04.pt").write_bytes(b"weights")
    try:
        stray.write_text(KEY)
        run("bundle", "--weights", str(weights), "mn04.pt")
    finally:
        stray.unlink()
    made = tmp_path / "bundle"
    names = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert {
        "code/get_features.py",
        "code/predict.py",
        "code/earshot/kaggle/bundle.py",
        "code/models/linear.py",
        "code/recipes/itmo2025.yaml",
        "code/requirements.txt",
        "weights/ast/config.json",
        "weights/ast/model.safetensors",
        "weights/mn04.pt",
        "SHA256SUMS",
        "dataset-metadata.json",
    } <= names
    assert {name for name in names if name.startswith("weights")} == {
        "weights/ast/config.json",
        "weights/ast/model.safetensors",
        "weights/mn04.pt",
    }
    assert not [
        name
        for name in names
        if "tests/" in name
        or "/test_" in name
        or "untracked" in name
        or "benchmark" in name
        or "/." in name
        or ".pyc" in name
    ]
    assert not [path for path in made.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=made).returncode == 0
    assert len((made / "SHA256SUMS").read_text().splitlines()) == len(names) - 2
    about = json.loads((made / "dataset-metadata.json").read_text())
    assert (
        about["id"].endswith("/earshot-kit")
        and push.slugify(about["title"]) == "earshot-kit"
        and len(about["licenses"]) == 1
    )
    # Its code runs from where nothing can be written, and bundles again without git.
    for path in (made / "code").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = subprocess.run(
        [sys.executable, "-B", str(made / "code" / "train.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--recipe" in done.stdout, done.stderr
    assert not stub.calls


def test_without_git_the_product_is_the_same(tmp_path: Path, monkeypatch) -> None:
    with_git = bundle.list_product_files()
    assert len(with_git) > 50
    for name in with_git:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.ROOT / name, tmp_path / name)
    (tmp_path / "earshot" / "kaggle.json").write_text(KEY)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.py").write_text("")
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    assert bundle.list_product_files() == with_git


def test_what_cannot_be_bundled(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "kaggle.json").write_text(KEY)
    for argv, expected in (
        (["--out", "full"], "exists and is not a bundle"),
        (["--weights", "none.pt"], "no such file"),
        (["--runs", "none"], "no such|no run"),
        (["--slug", "Kit"], "6 to 50"),
        (["--weights", "kaggle.json"], "credentials are not bundled"),
        (["--weights", "full", "full"], "two have the name full"),
    ):
        with pytest.raises(UserError, match=expected):
            run("bundle", *argv)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine" and not (tmp_path / "bundle").exists()
    with pytest.raises(UserError, match="unknown verb bundel"):
        run("bundel")


def wheel(folder: Path, name: str, version: str, needs: tuple[str, ...] = ()) -> None:
    """A wheel with nothing in it."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(
            f"{info}/METADATA",
            "\n".join(
                [
                    "Metadata-Version: 2.1",
                    f"Name: {name}",
                    f"Version: {version}",
                    *(f"Requires-Dist: {need}" for need in needs),
                    "",
                ]
            ),
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def test_wheels_are_what_the_image_lacks(tmp_path: Path, monkeypatch) -> None:
    """The packages asked for and what they need, but nothing that the image pins, and never torch."""
    shop = tmp_path / "shop"
    shop.mkdir()
    wheel(shop, "tyro", "1.0.0", ("docstring-parser", "numpy"))
    wheel(shop, "docstring_parser", "0.16")
    wheel(shop, "numpy", "2.0.2")
    wheel(shop, "heavy", "1.0", ("triton",))
    wheel(shop, "triton", "3.6.0")
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(shop),
        "PIP_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    bundle.download_wheels(tmp_path / "wheels", bundle.LACKING)
    assert {path.name for path in (tmp_path / "wheels").iterdir()} == {
        "tyro-1.0.0-py3-none-any.whl",
        "docstring_parser-0.16-py3-none-any.whl",
        "requirements.txt",
    }
    assert (tmp_path / "wheels" / "requirements.txt").read_text() == "docstring-parser==0.16\ntyro==1.0.0\n"
    bundle.download_wheels(tmp_path / "more", ("heavy",))
    assert (tmp_path / "more" / "requirements.txt").read_text() == "heavy==1.0\n" and len(
        list((tmp_path / "more").iterdir())
    ) == 2
    for package, expected in (("torch==2.10.0", "Kaggle's own is built"), ("absent", "pip install fails")):
        with pytest.raises(UserError, match=expected):
            bundle.download_wheels(tmp_path / package, (package,))


def test_upload_new_then_a_version(stub: Stub, tmp_path: Path, capsys) -> None:
    stub.states = ["BLOBS_RECEIVED", "READY"]
    run("bundle", "--push")
    said = capsys.readouterr().out
    assert (
        "new private dataset stubuser/earshot-kit" in said and "blobs received" in said and "ready (" in said
    )
    created = stub.asked("CreateDataset")[0]
    assert (
        created["isPrivate"] is True
        and created["slug"] == "earshot-kit"
        and created["ownerSlug"] == "stubuser"
    )
    assert {file["token"] for file in created["files"]} == {"BLOB-code.zip", "BLOB-SHA256SUMS"}
    inside = [
        zipfile.ZipFile(io.BytesIO(content)).namelist() for content in stub.uploads if content[:2] == b"PK"
    ]
    assert any(name.endswith("earshot/kaggle/bundle.py") for name in inside[0])
    stub.states = ["READY"]
    run("bundle", "--push", "-m", "better")
    assert (
        stub.asked("CreateDatasetVersion")[0]["body"]["versionNotes"] == "better"
        and "new version of" in capsys.readouterr().out
    )
    assert (
        json.loads((tmp_path / "bundle" / "dataset-metadata.json").read_text())["id"]
        == "stubuser/earshot-kit"
    )


def test_uploads_that_fail(stub: Stub, tmp_path: Path, monkeypatch) -> None:
    naps(monkeypatch)
    for errors, expected in (
        ({"PUT": (400, "no")}, "the upload: Upload unsuccessful"),
        ({"GetDatasetStatus": (401, "no")}, "rejects the cred"),
        ({"CreateDataset": (403, "no")}, "phone number"),
        ({"CreateDataset": (429, "no")}, "wait some minutes"),
    ):
        stub.errors = errors
        with pytest.raises(UserError, match=expected):
            run("bundle", "--push")
        stub.created = False
    stub.errors, stub.dataset = (
        {},
        {**stub.dataset, "status": "error", "error": "The requested title is already in use"},
    )
    with pytest.raises(UserError, match="the upload failed: The requested title is already in use"):
        run("bundle", "--push")
    stub.dataset, stub.states = {**stub.dataset, "status": "ok", "error": ""}, ["READY", "FAILED"]
    with pytest.raises(UserError, match="failed to process stubuser/earshot-kit"):
        run("bundle", "--push")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A notebook, and the metadata of another beside it."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cell = {
        "cell_type": "code",
        "source": ["print(1)"],
        "outputs": [],
        "metadata": {},
        "execution_count": None,
    }
    (folder / "solution.ipynb").write_text(
        json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    return folder / "solution.ipynb"


def about(book: Path, **changed) -> None:
    """Write a notebook's metadata."""
    found = {
        "id": "someone/solution",
        "title": "Solution",
        "code_file": "solution.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "enable_internet": False,
        "enable_gpu": "true",
        "competition_sources": ["tones"],
        "dataset_sources": ["stubuser/earshot-kit"],
    }
    (book.parent / "kernel-metadata.json").write_text(json.dumps({**found, **changed}))


def test_a_notebook_runs_there_and_comes_back(stub: Stub, book: Path, tmp_path: Path, capsys) -> None:
    about(book)
    stub.files["submission.csv"] = b"id,label\n1,a\n"
    run("push", "notebooks/solution.ipynb")
    sent = stub.asked("SaveKernel")[0]
    assert (
        sent["slug"],
        sent["newTitle"],
        sent["enableInternet"],
        sent["enableGpu"],
        sent["isPrivate"],
        sent["machineShape"],
    ) == ("stubuser/solution", "Solution", False, True, True, "NvidiaTeslaT4")
    assert (
        sent["competitionDataSources"] == ["tones"]
        and sent["datasetDataSources"] == ["stubuser/earshot-kit"]
        and "print(1)" in sent["text"]
    )
    said = capsys.readouterr().out
    assert "queued" in said and "running" in said and "complete" in said and "  | fold 1/5\n  | done" in said
    assert "predict.py --submit --competition tones --kernel stubuser/solution/3" in said
    folder = tmp_path / "outputs" / "solution"
    assert (folder / "submission.csv").read_bytes() == b"id,label\n1,a\n" and (
        folder / "solution.log"
    ).read_text() == "fold 1/5\ndone\n"
    # Flags win over the metadata, a folder does as well, and metadata are made where there are none.
    run(
        "push",
        "notebooks",
        "--competition",
        "birds",
        "--internet",
        "on",
        "--accelerator",
        "cpu",
        "--wait",
        "0",
    )
    sent = stub.asked("SaveKernel")[1]
    assert (sent["enableInternet"], sent["enableGpu"], sent["competitionDataSources"]) == (
        True,
        False,
        ["birds"],
    )
    (book.parent / "kernel-metadata.json").unlink()
    run("push", str(book), "--title", "My own try", "--wait", "0")
    sent = stub.asked("SaveKernel")[2]
    assert (sent["slug"], sent["enableInternet"], sent["machineShape"], sent["enableGpu"]) == (
        "stubuser/my-own-try",
        True,
        "NvidiaTeslaT4",
        True,
    )


def test_notebooks_that_fail(stub: Stub, book: Path, tmp_path: Path, capsys) -> None:
    stub.runs = ["RUNNING", "ERROR"]
    with pytest.raises(
        UserError,
        match="the notebook ended with error: out of memory; its log: outputs/solution/solution.log",
    ):
        run("push", str(book))
    assert "  | done" in capsys.readouterr().out
    stub.kernel = {"error": "Maximum batch GPU session count of 2 reached"}
    with pytest.raises(UserError, match="the push failed: Maximum batch GPU"):
        run("push", str(book))
    stub.kernel = {
        "ref": "x",
        "url": "u",
        "versionNumber": 4,
        "invalidDatasetSources": ["a/gone"],
        "invalidCompetitionSources": ["birds"],
    }
    with pytest.raises(UserError, match="did not attach datasets a/gone; competitions birds"):
        run("push", str(book), "--datasets", "a/gone", "--competition", "birds")
    for name, status, expected in (
        ("SaveKernel", 403, "phone number"),
        ("SaveKernel", 404, "not found"),
        ("SaveKernel", 401, "credentials"),
        ("SaveKernel", 429, "wait some minutes"),
        ("SaveKernel", 500, "internal error"),
    ):
        stub.errors = {name: (status, "no")}
        with pytest.raises(UserError, match=expected):
            run("push", str(book))
    stub.errors, stub.runs = {"submission.csv": (403, "expired")}, ["COMPLETE"]
    stub.kernel, stub.files["submission.csv"] = {"ref": "x", "url": "u", "versionNumber": 4}, b"x"
    with pytest.raises(UserError, match="the notebook's output: Kaggle forbids it"):
        run("push", str(book))
    assert not (tmp_path / "outputs" / "solution" / "submission.csv").exists()


@pytest.mark.parametrize(
    "changed, expected",
    [
        ({"machine_shape": "NvidiaTeslaP100"}, "NvidiaTeslaP100 is retired"),
        ({"enable_internet": "maybe"}, "enable_internet is 'maybe'"),
        ({"title": "ab"}, "needs 5 to 50"),
        ({"dataset_sources": ["kit"]}, "kit among dataset_sources: give OWNER/SLUG"),
        ({"competition_sources": ["c/tones"]}, "give SLUG"),
        ({"enable_interent": True}, "unknown key enable_interent"),
    ],
)
def test_metadata_that_kaggle_would_misread(book: Path, changed: dict, expected: str) -> None:
    about(book, **changed)
    with pytest.raises(UserError, match=expected):
        push.load_metadata(book, PushFlags())


def test_what_is_no_notebook(book: Path, tmp_path: Path) -> None:
    book.write_text("{}")
    (tmp_path / "x.txt").write_text("")
    for path, expected in (
        (book, "has no cells"),
        (tmp_path / "none.ipynb", "no notebook "),
        (tmp_path, "no notebook "),
        (tmp_path / "x.txt", "is not a notebook"),
    ):
        with pytest.raises(UserError, match=expected):
            push.load_metadata(path, PushFlags())
