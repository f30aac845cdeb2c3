"""What watches a run: TensorBoard's files hold each epoch once whatever happens, wandb is told each once,
nothing costs a run."""

from __future__ import annotations

import importlib.machinery
import re
import sys
import types
from pathlib import Path

import pytest
from conftest import make_competition, read_csv
from test_report import made_up

from earshot.core.deadline import Deadline
from earshot.core.errors import UserError
from earshot.features import spectrogram_images
from earshot.training import tracking
from earshot.training.tracking import TensorBoard

FLAGS = ("--recipe", "linear", "--folds", "2", "--epochs", "4", "--device", "cpu", "--name", "r")


def rows(epochs: int, fold: int = 0) -> list[dict]:
    return [
        {
            "fold": fold,
            "epoch": e,
            "lr": 0.1 / e,
            "train_loss": 1 / e,
            "valid_loss": 2 / e,
            "f1_macro": 0.5,
            "seconds": 9 * e,
        }
        for e in range(1, epochs + 1)
    ]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.fixture(scope="module")
def cached(scripts, tmp_path_factory) -> Path:
    """A folder with a competition and its cache."""
    home = tmp_path_factory.mktemp("home")
    data = make_competition(home / "tones", train=4, subm=1, seconds=0.3)
    (data / "audio_train" / "000.wav").write_bytes(b"RIFFnothing")
    scripts[0](
        [
            "--competition",
            str(data),
            "--extractor",
            "logmel",
            "--n-mels",
            "16",
            "--device",
            "cpu",
            "--out",
            str(home / "data"),
        ]
    )
    return home


def test_each_epoch_once(tmp_path: Path) -> None:
    """Told piece by piece, by two processes, over a torn file: the same as told once."""
    whole = TensorBoard(tmp_path / "whole")
    whole.log_epochs(rows(6), now=True)
    part = TensorBoard(tmp_path / "part")
    part.log_epochs(rows(2))
    assert not (tmp_path / "part").exists()  # too early to be worth the import
    part.log_epochs(rows(2), now=True)
    part.log_epochs(rows(3), now=True)
    part.log_epochs(rows(3), now=True)
    (path,) = (tmp_path / "part" / "fold_0").iterdir()
    assert [step for step, _ in events(path.parent)["loss/train"]] == [1, 2, 3]
    path.write_bytes(path.read_bytes()[:-5])  # killed while it wrote
    later = TensorBoard(tmp_path / "part")
    later.log_epochs(rows(4) + rows(1, fold=3), now=True)
    later.log_epochs(rows(6) + rows(1, fold=3), now=True)
    found = events(path.parent)
    assert found == events(tmp_path / "whole" / "fold_0") and len(list(path.parent.iterdir())) == 1
    assert set(found) == {"learning_rate", "loss/train", "loss/validation", "validation/f1_macro"}
    assert found["loss/validation"] == [(e, pytest.approx(2 / e)) for e in range(1, 7)]
    later.log_epochs(rows(2), now=True)  # a damaged fold that is trained anew
    assert [step for step, _ in events(path.parent)["loss/train"]] == [1, 2]


def timeless(path: Path) -> bytes:
    """A file's bytes; a report's without the line of its date and time of training."""
    return re.sub(rb'(?m)^<p class="facts">.*\n', b"", path.read_bytes())


def test_a_run_has_its_report_and_events(cached: Path, scripts, tmp_path: Path, monkeypatch, capsys) -> None:
    """Also one that was stopped and continued: the same pictures and events."""
    monkeypatch.chdir(cached)
    train = scripts[1]
    train([*FLAGS, "--runs-folder", str(tmp_path / "calm")])
    calm = tmp_path / "calm" / "r"
    assert f"report: {calm}/report.html" in capsys.readouterr().out
    kept = {
        p.relative_to(calm)
        for p in calm.rglob("*")
        if p.suffix in (".png", ".html") or p.name == "per_class.csv"
    }
    assert {p.name for p in kept} >= {
        "loss_curves.png",
        "confusion.png",
        "report.html",
        "per_class.csv",
    }
    steps = events(calm / "tensorboard" / "fold_1")
    assert [step for step, _ in steps["loss/train"]] == [1, 2, 3, 4]
    losses = [float(row["valid_loss"]) for row in read_csv(calm / "metrics.csv") if row["fold"] == "1"]
    assert [value for _, value in steps["loss/validation"]] == pytest.approx(losses, rel=1e-4)

    for _ in range(3):
        with pytest.raises(SystemExit):
            train([*FLAGS, "--runs-folder", str(tmp_path / "torn"), "--max-hours", "0.0000001"])
    assert not (tmp_path / "torn" / "r" / "report.html").exists()
    train([*FLAGS, "--runs-folder", str(tmp_path / "torn")])
    torn = tmp_path / "torn" / "r"
    assert {path: timeless(torn / path) for path in kept} == {path: timeless(calm / path) for path in kept}
    log = (calm / "training_log.txt").read_text().splitlines()
    started = next(line for line in log if line.startswith("started "))
    assert f'<p class="facts">{started} · trained for ' in (calm / "report.html").read_text()
    for name in ("fold_0", "fold_1", "run"):
        assert events(torn / "tensorboard" / name) == events(calm / "tensorboard" / name)

    (calm / "report.html").unlink()
    train([*FLAGS, "--runs-folder", str(tmp_path / "calm"), "--no-report"])
    assert not (calm / "report.html").exists()


def test_no_failure_costs_a_run(tmp_path: Path, monkeypatch, capsys) -> None:
    from earshot.report import make as pages

    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no room\nfor pictures")

    run = made_up(tmp_path / "r", ["a", "b"], 12)
    tracker = tracking.start_tracking(run, wandb=False)
    monkeypatch.setattr(pages, "write_report", broken)
    monkeypatch.setattr(TensorBoard, "log_epochs", broken)
    for watch in run.watching:
        watch(rows(2))
        watch(rows(3))
    pages.report_on(run.folder, run.log)
    tracker.finish()
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "warning: TensorBoard failed and is skipped, the run is not affected: no room for pictures",
        "warning: the report failed and is skipped, the run is not affected: no room for pictures",
    ]


def test_weights_and_biases(tmp_path: Path, monkeypatch) -> None:
    """A stand-in for the package: each epoch is sent once by whichever process, and the run keeps its id."""
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    run = made_up(tmp_path / "r", ["a", "b"], 12)
    with pytest.raises(UserError, match="pip install wandb"):
        tracking.start_tracking(run, wandb=True)
    monkeypatch.undo()

    sent, begun = [], []

    class Remote:
        summary: dict = {}

        def define_metric(self, *_: object, **__: object) -> None: ...

        def log(self, values: dict) -> None:
            sent.append(values)

        def finish(self) -> None:
            begun.append("end")

    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="wandb/__init__.py")
    fake.init = lambda **settings: begun.append(settings) or Remote()
    fake.Image = lambda path: path
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run.write_json("scores", {"last": {"f1_macro": 0.5, "folds": [0]}})
    tracking.start_tracking(run, wandb=True).log_epochs(rows(2))
    tracker = tracking.start_tracking(run, wandb=True)  # another process
    tracker.log_epochs(rows(2))
    tracker.log_epochs(rows(3))
    tracker.finish()
    again = tracking.start_tracking(run, wandb=True)
    again.log_epochs(rows(3))
    again.finish()
    assert [values["fold_0/epoch"] for values in sent if "fold_0/epoch" in values] == [1, 2, 3]
    assert sent[0]["fold_0/loss/train"] == 1.0 and "pictures/" not in str(list(sent[0]))
    settings = [one for one in begun if one != "end"]
    assert len(settings) == 2 and len({one["id"] for one in settings}) == 1 and begun[-1] == "end"
    assert settings[0]["config"]["classes"] == ["a", "b"] and Remote.summary == {"last/f1_macro": 0.5}


def test_pictures_per_class(cached: Path, scripts, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(cached)
    flags = [
        "--competition",
        str(cached / "tones"),
        "--extractor",
        "logmel",
        "--n-mels",
        "16",
        "--device",
        "cpu",
        "--pictures",
    ]
    scripts[0](flags)
    folder = cached / "data" / "tones" / "logmel" / spectrogram_images.FOLDER
    made = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.png")}
    assert set(made) == {f"tone{i % 3}/{i:03d}.png" for i in range(1, 12)}  # 000.wav cannot be heard
    assert "11 drawn, 1 unreadable" in capsys.readouterr().out
    before = {name: path.read_bytes() for name, path in made.items()}
    made["tone1/004.png"].unlink()
    (folder / "tone1" / "004.png.tmp").write_bytes(b"half")
    times = {name: path.stat().st_mtime_ns for name, path in made.items() if path.exists()}
    scripts[0](flags)  # the cache is complete, and takes no offence at the folder within
    assert "10 were there, 1 drawn" in capsys.readouterr().out and not list(folder.rglob("*.tmp"))
    assert {name: path.read_bytes() for name, path in made.items()} == before
    assert times == {name: made[name].stat().st_mtime_ns for name in times}
    scripts[0]([*flags, "2", "--pictures-out", str(tmp_path / "few")])
    assert len(list((tmp_path / "few").rglob("*.png"))) == 5
    with pytest.raises(UserError, match="--pictures -1"):
        scripts[0]([*flags, "-1"])


def test_names_for_files() -> None:
    taken: dict[str, str] = {}
    odd = [
        "a/b",
        "a:b",
        "../../etc",
        "..",
        "",
        "CON",
        "con.txt",
        "Dog",
        "dog",
        "-rf",
        "日本",
        "x" * 300,
        "x" * 301,
        "a\0b\n",
        ".",
    ]
    given = [spectrogram_images.make_safe_name(name, taken) for name in odd]
    assert len({name.casefold() for name in given}) == len(odd)
    for name in given:
        assert (
            name
            and "/" not in name
            and "\0" not in name
            and name not in (".", "..")
            and len(name.encode()) < 140
        )
        assert (
            not name.startswith(("-", " ", "."))
            and name.split(".")[0].lower() not in spectrogram_images.RESERVED
        )
    assert (
        given[7] == "Dog"
        and given[10] == "日本"
        and [spectrogram_images.make_safe_name(name, taken) for name in odd] == given
    )


def test_a_deadline_stops_the_drawing(cached: Path, tmp_path: Path, capsys) -> None:
    from earshot.competition.load import load as load_competition

    clips = load_competition(str(cached / "tones"))
    assert (
        not spectrogram_images.draw(clips, tmp_path, 0, 1, Deadline(0))
        and "0 drawn" in capsys.readouterr().out
    )
