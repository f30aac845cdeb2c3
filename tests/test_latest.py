"""What each stage continues with where no flag says it: the cache or run that was finished last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_competition, refused, script
from made_cache import make

from earshot.core import latest
from earshot.core.config import Recipe
from earshot.core.errors import UserError
from earshot.features import find_cache

LINEAR = ("--recipe", "linear", "--epochs", "2", "--folds", "2")
TINY = ("--extractor", "logmel", "--workers", "1", "--competition", "tones")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two caches of one competition; `b` was finished last."""
    folder = tmp_path_factory.mktemp("work")
    make_competition(folder / "tones", train=8, subm=2, seconds=0.3)
    for name in ("a", "b"):
        script("get_features.py", *TINY, "--cache", name, cwd=folder)
    return folder


def test_the_order_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert latest.read(tmp_path) == {}
    for name in ("x/a", "x/b", "x/a"):
        latest.finish(tmp_path, name)
    monkeypatch.setattr("sys.argv", ["train.py", "--name", "my run", "--fresh"])
    latest.begin(tmp_path, "x/c", "train.py")
    assert list(latest.read(tmp_path).items()) == [
        ("x/c", "python train.py --name 'my run'"),
        ("x/a", ""),
        ("x/b", ""),
    ]
    folders = [tmp_path / "x" / name for name in "ab"]
    assert latest.find_latest(folders, 2) == (folders[0], "")
    assert latest.find_latest([tmp_path / "x" / "d"], 2) is None
    latest.begin(tmp_path, "x/c", "get_features.py")
    assert latest.read(tmp_path)["x/c"] == "the call that began it", "called from Python"


def test_the_note_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    for competition in ("birds", "tones"):
        folder = tmp_path / competition / "logmel"
        folder.mkdir(parents=True)
        record = {"extractor": "logmel", "settings": {}, "audio": {}, "window": {}}
        (folder / "manifest.json").write_text(json.dumps({"record": record}))
    with pytest.raises(UserError, match="which cache"):
        find_cache.find_for_recipe(str(tmp_path), Recipe("linear"))
    (tmp_path / latest.NAME).write_text("tones\n")
    assert find_cache.find_for_recipe(str(tmp_path), Recipe("linear")) == tmp_path / "tones" / "logmel"


def test_plain_commands_continue_with_what_was_finished_last(work: Path) -> None:
    quick = (*LINEAR, "--no-report")
    done = script("train.py", *quick, "--name", "one", cwd=work)
    assert "cache: data/tones/b (finished last; others: data/tones/a: choose with --features" in done.stdout
    script("get_features.py", *TINY, "--cache", "a", cwd=work)  # complete already: the latest from here on
    done = script("train.py", *quick, "--name", "two", cwd=work)
    assert "cache: data/tones/a (finished last; others: data/tones/b" in done.stdout
    done = script("predict.py", cwd=work)
    assert "run: runs/two (finished last; others: runs/one: choose with --runs)" in done.stdout
    assert not list((work / "data" / "tones").rglob(latest.NAME)), "no cache holds when it was made"


def test_the_sample_is_not_taken_where_another_competitions_features_are(work: Path) -> None:
    line = refused(script("get_features.py", cwd=work, ok=None))
    assert "data/tones has features of files that lie elsewhere" in line and "--competition sample" in line
    assert not (work / "data" / "sample").exists()


def test_a_bake_off_takes_the_competition_that_was_worked_on_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for competition in ("birds", "tones"):
        make(tmp_path / competition / "one", {"pooled": (4, 1, 1)})
    with pytest.raises(UserError, match="which competition[?] there are "):
        find_cache.find_all(str(tmp_path), (), None)
    latest.finish(tmp_path, "birds/one")
    opened, lines = find_cache.find_all(str(tmp_path), (), None)
    assert [cache.folder for cache in opened] == [tmp_path / "birds" / "one"]
    assert lines[0].startswith(
        f"competition: {tmp_path / 'birds'} (the last one; others: {tmp_path / 'tones'}"
    )


@pytest.mark.slow
def test_what_is_newer_and_not_finished_is_refused_with_the_command_that_finishes_it(work: Path) -> None:
    begun = script("get_features.py", *TINY, "--cache", "c", "--max-hours", "0", cwd=work).stdout
    command = begun.rstrip().rpartition("continue with: ")[2]
    line = refused(script("train.py", *LINEAR, cwd=work, ok=None))
    assert f"data/tones/c is not finished: finish it with: {command}; or" in line and "--cache c" in command
    script("get_features.py", *TINY, "--cache", "b", cwd=work)
    begun = script("train.py", *LINEAR, "--name", "begun", "--max-hours", "0", cwd=work).stdout
    command = begun.rstrip().rpartition("continue with: ")[2]
    line = refused(script("predict.py", cwd=work, ok=None))
    assert f"runs/begun is not finished: finish it with: {command}; or choose a run" in line
    script("train.py", *LINEAR, "--name", "begun", "--epochs", "30", "--fresh", "--no-report", cwd=work)
    assert "runs: runs/begun (linear on mel)" in script("predict.py", cwd=work).stdout
