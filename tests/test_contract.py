"""What does not belong together is refused with the two values that differ: labels, settings, clips,
files."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import make_competition, refused, script

import get_features
import models
import predict
import train
from earshot import extractors
from earshot.core import checksums
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.core.files import hash_file, hash_value
from earshot.core.fingerprint import compute_fingerprint, list_differences
from earshot.core.plain_pickle import load
from earshot.features.cache import Cache, dump
from earshot.prediction import new_audio, submission, submit
from earshot.training import dataset, run_cache, run_scores
from earshot.training.predict import predict_run
from earshot.training.run import Run

CPU = Device("cpu", "fp32", "cpu")
TRAIN = ["--recipe", "linear", "--epochs", "1", "--folds", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A cache of tones and a run on it."""
    folder, before = tmp_path_factory.mktemp("contract"), os.getcwd()
    make_competition(folder / "tones", train=4, subm=1)
    os.chdir(folder)
    try:
        get_features.main(
            ["--competition", "tones", "--extractor", "logmel", "--n-mels", "16", "--device", "cpu"]
        )
        train.main([*TRAIN, "--features", "data/tones/logmel", "--name", "r"])
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil."""
    shutil.copytree(made, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return Path("data/tones/logmel")


def said(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(cache: Path, **changes) -> None:
    """The cache as if it had been made from another record: everything in it agrees with everything else."""
    manifest = checksums.read(cache / "manifest.json")
    record = {**manifest["record"], **changes}
    for path in cache.glob("*.pkl"):
        content = load(path, mmap=False)
        dump(path, {**content, "meta": {**content["meta"], "fingerprint": compute_fingerprint(record)}})
        manifest["sha256"][path.name], manifest["bytes"][path.name] = hash_file(path), path.stat().st_size
    manifest |= {"record": record, "fingerprint": compute_fingerprint(record)}
    checksums.write(cache / "manifest.json", manifest)


def relabel(cache: Path, names: list[str]) -> None:
    """Another order, or another set, of labels: honestly recorded."""
    content = load(cache / "unique_labels.pkl", mmap=False)
    dump(cache / "unique_labels.pkl", {**content, "unique_labels": np.array(names)})
    rewrite(cache, labels=hash_value(names)[:16], classes=len(names))


def other_run(change) -> Run:
    """A second run, of a record that `change` changes."""
    shutil.copytree("runs/r", "runs/other")
    return changed(Path("runs/other"), lambda config: change(config["record"]))


def changed(folder: Path, change) -> Run:
    """A run whose settings are others, its checksums right all the same."""
    run = Run.open(folder)
    change(run.config)
    run.config["fingerprint"] = compute_fingerprint(run.config["record"])
    run._write()
    return Run.open(folder)


# --- labels


def test_a_cache_of_another_label_order_than_it_was_made_with(work: Path) -> None:
    content = load(work / "unique_labels.pkl", mmap=False)
    wanted = Cache(work).record["labels"]
    dump(work / "unique_labels.pkl", {**content, "unique_labels": content["unique_labels"][::-1].copy()})
    rewrite(work)
    line = said(Cache, work)
    assert (
        "unique_labels.pkl" in line
        and wanted in line
        and hash_value(["tone2", "tone1", "tone0"])[:16] in line
    )


ORDER, FEWER, OTHER = ["tone0", "tone2", "tone1"], ["tone0", "tone1"], ["tone0", "tone1", "tone9"]


@pytest.mark.parametrize(
    "names, blended, words",
    [
        (
            ORDER,
            "the same classes in another order",
            ("label[1]: tone1 there, tone2 here", "3 there, 3 here"),
        ),
        (FEWER, "only it has tone2; runs/other has 2 classes:", ("label[2]: tone2 there, nothing here",)),
        (
            OTHER,
            "runs/other has 3 classes, of which only it has tone9",
            ("label[2]: tone2 there, tone9 here",),
        ),
    ],
)
def test_other_labels(work: Path, names: list[str], blended: str, words: tuple[str, ...]) -> None:
    """In a blend, in predict.py and where a run is continued."""
    run = Run.open(Path("runs/r"))
    line = said(run_cache.check_same_classes, [run, other_run(lambda record: record.update(classes=names))])
    assert line.startswith("can't blend runs/r with runs/other: ") and blended in line, line
    relabel(work, names)
    line = said(run_cache.open_run_cache, run, str(work))
    assert all(word in line for word in ("runs/r", str(work), "--features", *words)), line
    if names != ORDER:  # some training clips' label is no label any more
        line = said(train.main, [*TRAIN, "--features", str(work), "--name", "r"])
        assert "train.pkl has the label tone2, and unique_labels.pkl has tone0, tone1" in line
    else:
        line = said(train.main, [*TRAIN, "--features", str(work), "--name", "r"])
        assert words[0].replace("label", "classes") in line and "--fresh" in line


# --- settings and files


@pytest.mark.parametrize(
    "key, inner, value",
    [
        ("weights", None, "0123456789abcdef"),
        ("window", "hop", 0.25),
        ("audio", "normalize", "?"),
        ("settings", "n_mels", 64),
        ("extractor", None, "fbank"),
    ],
)
def test_a_run_and_a_cache_of_other_settings(work: Path, key: str, inner: str | None, value: object) -> None:
    record = Cache(work).record
    before = record[key][inner] if inner and inner in record[key] else record[key] if not inner else "nothing"
    rewrite(work, **{key: {**record[key], inner: value} if inner else value})
    name = f"{key}.{inner}" if inner else key
    line = said(run_cache.open_run_cache, Run.open(Path("runs/r")), str(work))
    assert f"{name}: {before} there, {value} here" in line and "runs/r" in line, line
    line = said(train.main, [*TRAIN, "--features", str(work), "--name", "r"])
    assert f"features.{name}: {before} there, {value} here" in line, line


@pytest.mark.parametrize(
    "change, words",
    [
        ({"clips": {"train": "12 clips 000000000000"}}, "clips: 12 clips"),
        ({"augment": {"augment": 2}}, "augment.augment: nothing there, 2 here"),
    ],
)
def test_a_run_continued_on_other_clips_or_copies(work: Path, change: dict, words: str) -> None:
    rewrite(work, **{key: {**Cache(work).record.get(key, {}), **value} for key, value in change.items()})
    line = said(train.main, [*TRAIN, "--features", str(work), "--name", "r"])
    assert words in line and "there" in line and "here" in line, line


def test_runs_that_predict_other_clips(work: Path) -> None:
    shutil.copytree(work, "data/tones/other")
    clips = Cache(work).record["clips"]
    rewrite(Path("data/tones/other"), clips={**clips, "subm": "3 clips 0123456789ab"})
    shutil.copytree("runs/r", "runs/s")
    changed(Path("runs/s"), lambda config: config.update(features_folder="data/tones/other"))
    line = refused(script("predict.py", "--runs", "r", "s", cwd=Path.cwd(), ok=None))
    assert (
        clips["subm"] in line
        and "3 clips 0123456789ab" in line
        and "runs/s" in line
        and not Path("submissions/x.csv").exists()
    )


def test_loose_audio_with_other_weights(work: Path) -> None:
    Path("weights.pt").write_bytes(b"of another network")
    here = hash_value([hash_file("weights.pt")])[:16]
    module = extractors.load_module("efficientat")
    features = {"extractor": "efficientat", "settings": asdict(module.Settings()), "weights": "feed" * 4}
    run = other_run(lambda record: record["features"].update(features))
    line = said(new_audio.build_extractor, run, "weights.pt", CPU)
    assert f"hash {here} here, {'feed' * 4} in the run" in line and "--weights" in line


@pytest.mark.parametrize("change", ["edit", "remove", "add"])
def test_the_sample_file_beside_the_cache(work: Path, change: str) -> None:
    sample, wanted = work / "sample_submission.csv", Cache(work).record["sample_submission"]
    if change == "edit":
        sample.write_text(sample.read_text().replace("tone0", "tone1"))
    elif change == "remove":
        sample.unlink()
    else:
        rewrite(work, sample_submission=None)
    there, here = {
        "edit": (wanted, hash_file(sample)[:12] if sample.exists() else ""),
        "remove": (wanted, "none"),
        "add": ("none", wanted),
    }[change]
    line = said(submit.dry_run, Cache(work), Path("s.csv"), "f1_macro")
    assert f"hash {here} now, {there} then" in line and str(sample) in line, line
    assert said(submission.find_sample, Cache(work)) == line
    assert (
        line == said(predict.main, ["--runs", "r", "--out", "x.csv", "--device", "cpu"])
        and not Path("x.csv").exists()
    )


# --- a run's own parts


def test_a_head_and_predictions_of_another_number_of_labels(work: Path) -> None:
    run, cache = Run.open(Path("runs/r")), Cache(work)
    rows = dataset.load_rows(cache, "subm", "mel", CPU)
    head = models.build("linear", cache.shapes["mel"], 5)
    fold = run.get_fold_folder(0)
    fold.save_best(head.state_dict(), {"head": head.config, "epoch": 1})
    line = said(predict_run, run, rows, CPU)
    assert "fold_0 holds a head of 5 labels, and runs/r has 3" in line
    fold.save_predictions("last", np.full((6, 5), 0.2, dtype=np.float32))
    rows = dataset.load_rows(cache, "train", "mel", CPU)
    numbers = np.full(12, 1)
    numbers[
        [
            i
            for i, f in enumerate(np.genfromtxt("runs/r/oof.csv", delimiter=",", skip_header=1, usecols=1))
            if f == 0
        ]
    ] = 0
    count = int((numbers == 0).sum())
    line = said(run_scores.summarise_run, run, rows, numbers)
    assert f"valid_last.npy holds predictions of 6 x 5, and the fold has {count} clips x 3 labels" in line


# --- the competition's own files


@pytest.mark.parametrize("change", ["label", "add", "remove", "rename", "content"])
def test_files_that_changed_after_the_extraction(
    work: Path, change: str, capsys: pytest.CaptureFixture
) -> None:
    table, audio = Path("tones/train.csv"), Path("tones/audio_train")
    text = table.read_text()
    if change == "label":
        table.write_text(text.replace("000.wav,tone0", "000.wav,tone1"))
    elif change == "add":
        shutil.copy(audio / "000.wav", audio / "more.wav")
        table.write_text(text + "more.wav,tone0,\n")
    elif change == "remove":
        (audio / "000.wav").unlink()
    elif change == "rename":
        (audio / "000.wav").rename(audio / "new.wav")
        table.write_text(text.replace("000.wav", "new.wav"))
    else:
        shutil.copy(audio / "001.wav", audio / "000.wav")
    args = ["--competition", "tones", "--extractor", "logmel", "--n-mels", "16", "--device", "cpu"]
    before = Cache(work).record["clips"]["train"]
    line = said(get_features.main, args)
    here = {"add": "13 clips ", "remove": "11 clips "}.get(change, "12 clips ")
    assert f"clips.train: {before} there, {here}" in line and "--cache NAME" in line and "--fresh" in line, (
        line
    )
    assert Cache(work).record["clips"]["train"] == before  # nothing lost


# --- the difference itself


@pytest.mark.parametrize(
    "there, here, line",
    [
        ({"a": [1, 2]}, {"a": [1, 3]}, "a[1]: 2 there, 3 here"),
        ({"a": [1]}, {"a": [1, 3]}, "a[1]: nothing there, 3 here"),
        ({"a": [1]}, {"a": 1}, "a: [1] there, 1 here"),
        ({"a": {"b": 1}}, {}, "a.b: 1 there, nothing here"),
        ({"a": []}, {"a": ["x"]}, "a[0]: nothing there, x here"),
    ],
)
def test_a_difference_is_two_values(there: dict, here: dict, line: str) -> None:
    assert (
        list_differences(there, here) == [line]
        and list_differences(there, json.loads(json.dumps(there))) == []
    )
