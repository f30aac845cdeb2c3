"""A clip that a model was trained on gives a warning, by its content: on the terminal, page and API."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
import soundfile
from conftest import read_csv, script, tone

import predict
import train
from earshot.app import session, ui
from earshot.app.upload_limits import UploadLimits
from earshot.core.errors import UserError
from earshot.core.files import hash_file
from earshot.features import cache as caches
from earshot.prediction import members
from earshot.prediction.seen_clips import SeenClips


@pytest.fixture(scope="module")
def folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training clip under another name, new audio under a training clip's, and new audio."""
    made = tmp_path_factory.mktemp("clips")
    shutil.copy(home / "tones" / "audio_train" / "004.wav", made / "renamed.wav")
    soundfile.write(made / "005.wav", tone(1, 500), 16000)
    soundfile.write(made / "new.wav", tone(0, 501), 16000)
    return made


@pytest.fixture
def older(home: Path, tmp_path: Path) -> Path:
    """A folder with the run cnn as version 0.1 left it: without its clips' digests."""
    shutil.copytree(home / "runs" / "cnn", tmp_path / "runs" / "cnn")
    (tmp_path / "runs" / "cnn" / "training_clips.csv").unlink()
    return tmp_path


def seen(home: Path, run: str) -> SeenClips:
    """The training clips of a run."""
    with contextlib.chdir(home):
        return SeenClips(members.open_members((run,), "runs")[0])


def test_the_run_alone_knows_its_clips(home: Path) -> None:
    split = joblib.load(home / "data" / "tones" / "logmel" / "train.pkl")
    rows = read_csv(home / "runs" / "cnn" / "training_clips.csv")
    assert [row["id"] for row in rows] == split["ids"].tolist() and "digests" not in split
    for row in rows:
        assert row["sha256"] == hash_file(home / "tones" / "audio_train" / row["id"])
    folds = {row["id"]: row["fold"] for row in read_csv(home / "runs" / "cnn" / "oof.csv")}
    assert folds == {row["id"]: row["fold"] for row in rows}


def test_a_folder_of_audio(home: Path, folder: Path, tmp_path: Path) -> None:
    """Renamed, it is known; a name alone says nothing; the data is not needed."""
    shutil.copytree(home / "runs", tmp_path / "runs")
    done = script("predict.py", "--runs", "cnn", "--audio", folder, "--out", "p.csv", cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if line.startswith("warning:")]
    assert lines == [
        "warning: 1 of 3 files (renamed.wav) are in the training data: their predictions are optimistic"
    ]
    assert not done.stderr and len(read_csv(tmp_path / "p.csv")) == 3


@pytest.mark.parametrize("runs", [["both"], ["cnn", "lin"]])
def test_loose_files_stay_a_line_a_file(
    home: Path, folder: Path, runs: list[str], capsys: pytest.CaptureFixture
) -> None:
    """Of a kept blend, and of a mean that is not kept."""
    files = [str(folder / name) for name in ("renamed.wav", "005.wav")]
    with contextlib.chdir(home):
        predict.main(["--runs", *runs, *files])
    said = capsys.readouterr()
    assert [line.partition(": ")[0] for line in said.out.splitlines()] == files
    (line,) = [line for line in said.err.splitlines() if line.startswith("warning:")]
    assert line.startswith("warning: 1 of 2 files") and "renamed.wav" in line


def test_an_older_run_goes_by_the_name_and_says_so(
    older: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    with contextlib.chdir(older):
        predict.main(["--runs", "cnn", "--audio", str(folder), "--out", "p.csv"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
    assert (
        line.startswith("warning: 1 of 3 files (005.wav) have a training clip's name") and "older run" in line
    )


def test_what_is_damaged_is_said(older: Path, folder: Path) -> None:
    (older / "runs" / "cnn" / "training_clips.csv").write_text("id,fold,sha256\n004.wav,0,no digest\n")
    found = seen(older, "cnn")
    assert "training_clips.csv is damaged" in found.warning and found.find(folder / "005.wav").by_name


def test_a_fold_alone_was_not_trained_on_its_own_clips(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs" / "cnn", tmp_path / "runs" / "cnn")
    shutil.rmtree(tmp_path / "runs" / "cnn" / "fold_1")
    found, rows = seen(tmp_path, "cnn"), read_csv(home / "runs" / "cnn" / "training_clips.csv")
    known = {row["fold"]: found.find(home / "tones" / "audio_train" / row["id"]) for row in rows}
    assert known["0"] is None and known["1"].id in {row["id"] for row in rows if row["fold"] == "1"}


def test_one_content_in_two_folds_was_trained_on_by_all(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs" / "cnn", tmp_path / "runs" / "cnn")
    path = tmp_path / "runs" / "cnn" / "training_clips.csv"
    rows = read_csv(path)
    other = next(row for row in rows if row["fold"] != rows[0]["fold"])
    path.write_text(path.read_text().replace(other["sha256"], rows[0]["sha256"]))
    clip = home / "tones" / "audio_train" / rows[0]["id"]
    assert seen(home, "cnn").find(clip).fold == int(rows[0]["fold"])
    assert seen(tmp_path, "cnn").find(clip).fold is None


def test_the_page_and_the_api(opened: dict, home: Path, older: Path, folder: Path) -> None:
    with contextlib.chdir(home):
        desk = session.Session(opened["cnn"], UploadLimits(20, 10**6), "cnn")
    text = ui._render_warning(desk, str(folder / "renamed.wav"))
    row = next(row for row in read_csv(home / "runs" / "cnn" / "oof_last.csv") if row["id"] == "004.wav")
    best = max(desk.predictor.classes, key=lambda name: float(row[name]))
    assert "This audio is in the training data (004.wav)" in text
    assert f"(fold {row['fold']}) predict {best} {float(row[best]):.0%}." in text
    assert ui._render_warning(desk, str(folder / "005.wav")) == ""
    found = {name: desk.predict_json(folder / name, 1, name) for name in ("renamed.wav", "005.wav")}
    assert "in the training data (004.wav)" in found["renamed.wav"]["warning"]
    assert "warning" not in found["005.wav"]
    desk.seen = seen(older, "cnn")
    assert "has this name (005.wav)" in desk.predict_json(folder / "005.wav", 1, "005.wav")["warning"]
    assert "warning" not in desk.predict_json(folder / "005.wav", 1, "")


def test_a_cache_without_digests_is_read(home: Path, tmp_path: Path) -> None:
    """As version 0.1 made it: a run of it has none, and a cache with wrong ones is refused."""
    shutil.copytree(home / "data", tmp_path / "data")
    at = tmp_path / "data" / "tones" / "logmel"

    def rewritten(digests: np.ndarray | None) -> None:
        manifest = json.loads((home / "data" / "tones" / "logmel" / "manifest.json").read_text())
        names = list(manifest.pop("sha256"))
        manifest.pop("checksum")
        manifest.pop("digests")
        (at / "digests.pkl").unlink(missing_ok=True)
        if digests is not None:
            caches.dump(at / "digests.pkl", {"digests": digests})
            manifest["digests"] = hash_file(at / "digests.pkl")
        caches.checksums.write(at / "manifest.json", manifest, *names)

    rewritten(None)
    small = ("--head", "linear", "--epochs", "1", "--folds", "2", "--no-report")
    with contextlib.chdir(tmp_path):
        train.main([*small, "--name", "old"])
    assert not (tmp_path / "runs" / "old" / "training_clips.csv").exists()
    rewritten(np.zeros((2, 32), np.uint8))
    with contextlib.chdir(tmp_path), pytest.raises(UserError, match="digests"):
        train.main([*small, "--name", "bad"])
