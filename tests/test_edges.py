"""What went wrong once: odd data, odd flags, caches and runs that do not belong together."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_competition, read_csv, refused, script, tone

from earshot.core.config import TrainingFlags
from earshot.core.errors import UserError
from earshot.features import find_cache
from earshot.features.cache import Cache
from earshot.training import folds, optim
from earshot.training.dataset import WindowDataset

LINEAR = ("--recipe", "linear", "--epochs", "2", "--folds", "2")


def features(data: Path, cwd: Path, *more: object):
    return script("get_features.py", "--competition", data, "--extractor", "logmel", *more, cwd=cwd)


@pytest.mark.slow
def test_two_competitions(tmp_path: Path) -> None:
    """train.py goes on with what get_features.py did last; a run refuses another competition's cache."""
    one = make_competition(tmp_path / "one", classes=2, train=6, subm=1)
    two = make_competition(tmp_path / "two", classes=3, train=6, subm=1)
    features(two, tmp_path)
    said = features(one, tmp_path).stdout
    assert "next: python train.py --features data/one/logmel" in said
    assert "features: data/one/logmel" in script("train.py", *LINEAR, "--name", "one", cwd=tmp_path).stdout
    line = refused(
        script("predict.py", "--runs", "one", "--features", "data/two/logmel", cwd=tmp_path, ok=None)
    )
    assert "has other labels" in line and "--features" in line
    # The run's name is also that of a folder here: the run is meant.
    assert "2 rows" in script("predict.py", "--runs", "one", cwd=tmp_path).stdout
    shutil.copytree(tmp_path / "data" / "one" / "logmel", tmp_path / "data" / "one" / "again")
    again = script("train.py", *LINEAR, "--name", "one", cwd=tmp_path)
    assert "cache: data/one/logmel (finished last; others: data/one/again, data/two/logmel: " in again.stdout
    line = refused(
        script("train.py", *LINEAR, "--features", "data/one/logmel", "--out", tmp_path, cwd=tmp_path, ok=None)
    )
    assert "is a folder" in line
    with open(tmp_path / "data" / "one" / "again" / "train.pkl", "r+b") as file:
        file.seek(-100, 2)
        file.write(b"\0\1\2")
    line = refused(script("train.py", *LINEAR, "--features", "data/one/again", cwd=tmp_path, ok=None))
    assert "damaged" in line and "train.pkl" in line


@pytest.mark.slow
def test_a_refused_setting_does_not_claim_the_name(tmp_path: Path) -> None:
    data = make_competition(tmp_path / "tones", subm=1)
    assert "n_mels" in refused(
        script(
            "get_features.py",
            "--competition",
            data,
            "--extractor",
            "logmel",
            "--n-mels",
            "0",
            cwd=tmp_path,
            ok=None,
        )
    )
    assert "train: 30 clips" in features(data, tmp_path).stdout
    cache = tmp_path / "data" / "tones" / "logmel"
    before = (cache / "train.pkl").read_bytes()
    refused(
        script(
            "get_features.py",
            "--competition",
            data,
            "--extractor",
            "logmel",
            "--n-mels",
            "0",
            "--fresh",
            cwd=tmp_path,
            ok=None,
        )
    )
    assert (cache / "train.pkl").read_bytes() == before  # a refusal loses nothing
    features(data, tmp_path, "--n-mels", "32", "--fresh")
    assert Cache(cache).shapes == {"mel": (1, 32, 51)}
    with open(cache / "manifest.json") as file:
        assert not (cache / "shards").exists() and '"complete": true' in file.read()


def test_a_sample_file_that_cannot_be_answered_is_found_before_extraction(tmp_path: Path) -> None:
    data = make_competition(tmp_path / "tones", subm=1)
    rows = read_csv(data / "sample_submission.csv")
    (data / "sample_submission.csv").write_text(
        "fname,tone0,Usage\n" + "".join(f"{row['fname']},0,Public\n" for row in rows)
    )
    done = script("get_features.py", "--competition", data, "--extractor", "logmel", cwd=tmp_path, ok=None)
    assert "Usage is not a class" in refused(done) and not list(tmp_path.glob("data/tones/logmel/*"))


def test_a_zip_and_then_no_flags(tmp_path: Path) -> None:
    data = make_competition(tmp_path / "src" / "tones", subm=1)
    with zipfile.ZipFile(tmp_path / "contest.zip", "w") as archive:
        for path in sorted(p for p in data.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(data))
    features(tmp_path / "contest.zip", tmp_path)
    said = script("get_features.py", "--extractor", "logmel", cwd=tmp_path).stdout
    assert "the only one in data/" in said and "nothing to do: data/contest/logmel" in said


@pytest.mark.slow
def test_a_recipe_that_is_a_file(tmp_path: Path) -> None:
    data = make_competition(tmp_path / "tones", subm=1)
    (tmp_path / "mine.yaml").write_text(
        "features: {extractor: logmel, cache: mine, n_mels: 32}\nhead: {name: mlp, hidden: 8}\n"
        "training: {epochs: 1, folds: 2}\n"
    )
    script("get_features.py", "--competition", data, "--recipe", "mine.yaml", cwd=tmp_path)
    said = script("train.py", cwd=tmp_path).stdout
    assert "recipe: mine" in said and "head: mlp" in said


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--head.dropout", "[1"), "not valid YAML"),
        (("--head.input_shape", "3"), "not an option of a head"),
        (("--head.hiden", "3"), "no option hiden"),
        (("--name", "../x"), "a name, not a path"),
        (("--features", "a", "--features", "b"), "--features twice"),
        (("--optimizer", "sgd", "--lr", "1e30", "--head", "mlp"), "is not a number"),
    ],
)
def test_flags_that_cannot_work(shared_cache: Path, flags: tuple, words: str) -> None:
    features_flag = () if "--features" in flags else ("--features", "data/tones/logmel")
    assert words in refused(script("train.py", *LINEAR, *features_flag, *flags, cwd=shared_cache, ok=None))


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("edges")
    features(make_competition(folder / "tones", subm=1), folder)
    return folder


@pytest.mark.parametrize("total", range(1, 21))
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.2, 0.5, 1.0])
def test_onecycle_of_any_length(total: int, warmup: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight])
    schedule = optim.build_schedule(
        optimizer, TrainingFlags(epochs=total, schedule="onecycle", warmup=warmup, lr=1.0), 1
    )
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
    assert np.isfinite(rates).all() and 0 < max(rates) <= 1


def test_fewer_clips_of_a_label_than_folds() -> None:
    labels = np.repeat(np.arange(6), 3)
    with pytest.raises(UserError, match="--folds 3"):
        folds.assign_folds(labels, np.full(18, -1), np.array([""] * 18), None, 0)
    found, _ = folds.assign_folds(labels, np.full(18, -1), np.array([""] * 18), 3, 0)
    assert set(found) == {0, 1, 2}


def test_the_mask_follows_what_the_time_axis_spans() -> None:
    """A 1 s window of a network that always hears 10 s: a tenth of its frames is real."""
    split = {
        "ids": np.array(["a"]),
        "labels": np.array(["x"]),
        "folds": np.array([0]),
        "groups": np.array([""]),
        "clip": np.array([0]),
        "length": np.array([1.0], np.float32),
        "frames": np.zeros((1, 4, 1, 100), np.float16),
    }
    rows = WindowDataset(split, "frames", ["x"], 10.0, "cpu")
    assert rows.masked and rows.frames.tolist() == [10] and rows.load_batch(np.array([0]))[1].sum() == 10


def test_a_manifest_of_the_data_sets_own_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "set" / "audio").mkdir(parents=True)
    (tmp_path / "set" / "audio" / "manifest.json").write_text('["a.wav"]')
    with pytest.raises(UserError, match="no cache in"):
        find_cache.find_for_recipe(str(tmp_path), None)
    with pytest.raises(UserError):
        Cache(tmp_path / "set" / "audio")


def test_classes_called_as_columns_are(tmp_path: Path) -> None:
    for label in ("id", "label", "nan"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(4):
            soundfile.write(
                tmp_path / "set" / label / f"{label}{number}.wav", tone(len(label) - 2, number), 16000
            )
    features(tmp_path / "set", tmp_path)
    script("train.py", *LINEAR, "--name", "r", cwd=tmp_path)
    rows = read_csv(tmp_path / "runs" / "r" / "oof_last.csv")
    assert list(rows[0]) == ["id", "fold", "label", "class id", "class label", "nan"]
    assert {row["label"] for row in rows} == {"id", "label", "nan"}
