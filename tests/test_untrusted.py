"""Untrusted folders with correct checksums: nothing is written outside, impossible values are refused, no
traceback."""

from __future__ import annotations

import csv
import json
import lzma
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import FLAGS, make_competition, read_csv, refused, script
from test_damage import TRAIN, files

from earshot.audio import load
from earshot.competition import zip_file
from earshot.core import checksums, plain_pickle
from earshot.core.errors import Refused, UserError
from earshot.core.files import hash_file
from earshot.extractors import torch_weights
from earshot.features import cache, schema
from earshot.features.cache import Cache
from earshot.features.source_files import Sources

KEYS = ["fingerprint", "record", "splits", "shapes", "span", "columns", "sha256"]


def reseal(folder: Path, change) -> None:
    """A cache's manifest with a change, and a new checksum."""
    content = checksums.read(folder / cache.MANIFEST)
    change(content)
    checksums.write(folder / cache.MANIFEST, content)


def test_names_that_lead_outside_are_not_copied(scripts, data, calm, attached, tmp_path, capsys):
    folder = attached / "tones" / "logmel"
    shutil.copytree(calm, folder)
    (tmp_path / "mine.py").write_text("mine")
    (attached.parent / "attached" / "mine.py").write_text("theirs")
    reseal(folder, lambda m: m["sha256"].update({"../../mine.py": hash_file(attached / "mine.py")}))
    scripts[0](["--competition", str(data), *FLAGS, "--out", str(tmp_path)])
    assert "has an invalid sha256: the earlier cache is not copied" in capsys.readouterr().out
    assert (tmp_path / "mine.py").read_text() == "mine" and files(tmp_path / "tones" / "logmel") == files(
        calm
    )


def test_names_that_lead_outside_are_not_set_aside(scripts, data, calm, tmp_path, capsys):
    folder = tmp_path / "tones" / "logmel"
    shutil.copytree(calm, folder)
    (tmp_path / "mine.py").write_text("mine")
    reseal(folder, lambda m: m["sha256"].update({"../../mine.py": "0" * 64}))
    scripts[0](["--competition", str(data), *FLAGS, "--out", str(tmp_path)])
    assert (tmp_path / "mine.py").read_text() == "mine" and "set aside" in capsys.readouterr().out
    assert files(folder) == files(calm)


@pytest.mark.parametrize(
    "text", ['["record"]', "[" * 100_000, '"record"', '{"record": 5}', '{"record": {}, "version": 2}', ""]
)
def test_files_named_like_ours(scripts, data, attached, tmp_path, text, capsys):
    (attached / "web").mkdir()
    (attached / "web" / cache.MANIFEST).write_text(text)
    (tmp_path / "data" / "tones" / "other").mkdir(parents=True)
    (tmp_path / "data" / "tones" / "other" / cache.MANIFEST).write_text(text)
    scripts[0](["--competition", str(data), *FLAGS])
    assert (tmp_path / "data" / "tones" / "logmel" / "train.pkl").exists()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, 5, [1], {"train": 1}, {"x": [1, 2]}, 0, "x"])
def test_manifests_that_lack_something(calm, tmp_path, key, value):
    folder = tmp_path / "c"
    shutil.copytree(calm, folder)
    if key == "span" and value == 5 or key == "fingerprint" and value == "x":
        return

    def change(content: dict) -> None:
        content.pop(key)
        if value is not None:
            content[key] = value

    reseal(folder, change)
    with pytest.raises(UserError) as caught:
        Cache(folder)
    assert key in str(caught.value) or "another program's" in str(caught.value), str(caught.value)


def test_a_manifest_of_ours_has_no_fault(calm, begun):
    for folder in (calm, begun):
        assert schema.validate_manifest(checksums.read(folder / cache.MANIFEST)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"bad": np.array([500], np.int32), "reason": np.array(["x"])},
        {"clip": 1000},
        {"clip": -1},
        {"start": np.zeros(1, np.float32)},
        {"reason": np.array(["x"])},
        {"mel": 5},
        {"mel": None},
        {"length": "text"},
        {"meta": {"fingerprint": "keep", "span": "x"}},
    ],
)
def test_shards_that_do_not_hold_together(scripts, data, calm, begun, attached, tmp_path, changes, capsys):
    folder = attached / "tones" / "logmel"
    shutil.copytree(begun, folder)
    path = folder / "shards" / "train-00000.pkl"
    content = plain_pickle.load(path, mmap=False)
    for key, value in changes.items():
        if isinstance(value, int) and isinstance(content[key], np.ndarray) and content[key].ndim == 1:
            content[key] = np.full_like(content[key], value)
        elif key == "meta":
            content[key] = {**value, "fingerprint": content["meta"]["fingerprint"]}
        elif value is None:
            content.pop(key)
        else:
            content[key] = value
    cache.dump(path, content)
    seal = checksums.read(path.with_suffix(".json"))
    seal.pop("sha256")
    checksums.write(path.with_suffix(".json"), seal, path.name)
    scripts[0](["--competition", str(data), *FLAGS])
    assert "train-00000.pkl" in capsys.readouterr().out.split("set aside")[0]
    assert files(tmp_path / "data" / "tones" / "logmel") == files(calm)


def test_a_checksum_file_without_its_shard(scripts, data, calm, begun, attached, tmp_path, capsys):
    folder = attached / "tones" / "logmel"
    shutil.copytree(begun, folder)
    seal = checksums.read(folder / "shards" / "train-00000.json")
    checksums.write(folder / "shards" / "train-00000.json", {**seal, "sha256": None})
    scripts[0](["--competition", str(data), *FLAGS])
    assert "has no checksum of train-00000.pkl: not copied" in capsys.readouterr().out
    assert files(tmp_path / "data" / "tones" / "logmel") == files(calm)


@pytest.mark.parametrize("moved", [("last", "last.old"), ("best", "best.old"), ("last", "last.new")])
def test_an_earlier_run_that_died_between_two_renames(scripts, calm, attached, tmp_path, capsys, moved):
    shutil.copytree(calm, tmp_path / "data" / "tones" / "logmel")
    scripts[1]([*TRAIN, "--name", "r", "--runs-folder", "old"])
    fold = tmp_path / "old" / "r" / "fold_0"
    (fold / moved[0]).rename(fold / moved[1])
    if moved[1] == "last.new":  # the old one was moved away, too
        shutil.copytree(fold / "last.new", fold / "last.old")
        (fold / "last.old" / "state.json").write_text("old")
    shutil.move(tmp_path / "old", attached / "runs")
    capsys.readouterr()
    scripts[1]([*TRAIN, "--name", "r"])
    said = capsys.readouterr().out
    assert (
        "finished already: fold 0, 1" in said
        and "epoch" not in said.split("finished already")[1].split("out-of-fold")[0]
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(seconds="x"),
        lambda e: e.pop("rate"),
        lambda e: e.update(sha256=5),
        lambda e: e.update(seconds=float("inf")),
        lambda e: e.update(rate=0),
    ],
)
def test_an_invalid_index_is_made_again(data, tmp_path, change):
    path = next((data / "audio_train").glob("*.wav"))
    sources = Sources(tmp_path / ".index.json")
    digests, headers = sources.compute_digests([path]), sources.read_headers([path])
    sources.save()
    content = checksums.read(tmp_path / ".index.json")
    change(content["files"][str(path)])
    checksums.write(tmp_path / ".index.json", content)
    again = Sources(tmp_path / ".index.json")
    assert again.known == {} and (again.compute_digests([path]), again.read_headers([path])) == (
        digests,
        headers,
    )


def test_a_flipped_digit_of_the_index_changes_nothing(scripts, data, tmp_path, capsys):
    flags = ["--competition", str(data), *FLAGS, "--out", str(tmp_path)]
    scripts[0](flags)
    index = tmp_path / "tones" / ".index.json"
    text = index.read_text()
    at = text.index('"sha256": "') + 20
    index.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    capsys.readouterr()
    scripts[0](flags)
    assert "nothing to do" in capsys.readouterr().out


def lying(path: Path, wave: np.ndarray, rate: int) -> None:
    """A FLAC file whose header claims 68 billion samples."""
    soundfile.write(path, wave, rate, format="FLAC")
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)


@pytest.mark.parametrize("rate", [8, 16000, 96000])
def test_a_header_with_a_wrong_length(tmp_path, rate):
    wave = (0.1 * np.random.default_rng(0).standard_normal(20000)).astype(np.float32)
    lying(tmp_path / "a.flac", wave, rate)
    assert soundfile.info(tmp_path / "a.flac").frames > 10**10
    assert load.read_info(tmp_path / "a.flac") == (pytest.approx(20000 / rate, rel=0.01), rate)


def test_one_wrong_header_does_not_stop_a_stage(tmp_path):
    root = make_competition(tmp_path / "tones", classes=2, train=4, subm=1)
    wave, rate = soundfile.read(root / "audio_train" / "000.wav")
    (root / "audio_train" / "000.wav").unlink()
    lying(root / "audio_train" / "000.flac", wave, rate)
    (root / "train.csv").write_text((root / "train.csv").read_text().replace("000.wav", "000.flac"))
    done = script("get_features.py", "--competition", root, *FLAGS, cwd=tmp_path)
    assert "train: 8 clips, 8 windows" in done.stdout


def test_tensors_that_share_their_numbers_a_thousand_times(tmp_path):
    count = 1_000_000
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()  # noqa: E731
    body = b"\x80\x02}("
    for index in range(1500):
        body += (
            text(f"k{index}")
            + b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + text("storage")
            + b"ctorch\nFloatStorage\n"
            + text("0")
        )
        body += (
            text("cpu")
            + b"J"
            + struct.pack("<i", count)
            + b"tQK\x00J"
            + struct.pack("<i", count)
            + b"\x85K\x01\x85\x89}tR"
        )
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as file:
        file.writestr("a/data.pkl", body + b"u.")
        file.writestr("a/data/0", bytes(4 * count))
    with pytest.raises(Refused, match="share their numbers"):
        torch_weights.load(tmp_path / "bomb.pt")
    tied = torch.zeros(1000)
    torch.save({"in": tied, "out": tied}, tmp_path / "tied.pt")
    assert set(torch_weights.load(tmp_path / "tied.pt")) == {"in", "out"}


def test_damaged_zips_of_every_compression_end_in_one_line(tmp_path):
    random, wave = np.random.default_rng(0), bytes(range(256)) * 40
    refusals = 0
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "whole.zip", "w", kind) as file:
            file.writestr("a/1.wav", wave)
            file.writestr("a/2.wav", wave[::-1])
        whole = (tmp_path / "whole.zip").read_bytes()
        for number in range(150):
            spoilt = bytearray(whole)
            for at in random.integers(0, len(whole), 3):
                spoilt[at] = random.integers(256)
            (tmp_path / "a.zip").write_bytes(spoilt[: len(spoilt) - number % 3])
            try:
                zip_file.unpack_archive(tmp_path / "a.zip", tmp_path / f"out{kind}-{number}")
            except UserError as error:
                refusals += "\n" not in str(error)
    assert refusals > 200 and lzma.LZMAError in zip_file.DAMAGED


def test_a_hold_out_s_score_that_was_altered_is_made_again(tmp_path):
    root = make_competition(tmp_path / "tones", classes=2, train=8, subm=1)
    script("get_features.py", "--competition", root, *FLAGS, "--holdout", "0.25", cwd=tmp_path)
    train = (
        "train.py",
        "--recipe",
        "linear",
        "--epochs",
        "2",
        "--folds",
        "2",
        "--device",
        "cpu",
        "--name",
        "r",
    )
    script(*train, cwd=tmp_path)
    path = tmp_path / "runs" / "r" / "test.json"
    right = json.loads(path.read_text())
    path.write_text(path.read_text().replace(f'"f1_macro": {right["f1_macro"]}', '"f1_macro": 0.123'))
    done = script(*train, cwd=tmp_path)
    assert "the hold-out is scored again" in done.stdout and json.loads(path.read_text()) == right


def test_features_that_are_nan_are_not_filled_with_the_prior(tmp_path):
    root = make_competition(tmp_path / "tones", classes=2, train=6, subm=2)
    with open(root / "sample_submission.csv", "a", newline="") as file:
        csv.writer(file).writerow(["missing.wav", "tone0"])
    script("get_features.py", "--competition", root, *FLAGS, cwd=tmp_path)
    script(
        "train.py",
        "--recipe",
        "linear",
        "--epochs",
        "2",
        "--folds",
        "2",
        "--device",
        "cpu",
        "--name",
        "r",
        cwd=tmp_path,
    )
    assert len(read_csv(tmp_path / "submissions" / "submission.csv")) == 5  # the missing one by the prior
    folder = tmp_path / "data" / "tones" / "logmel"
    content = plain_pickle.load(folder / "subm.pkl", mmap=False)
    content["mel"][1] = np.nan
    cache.dump(folder / "subm.pkl", content)
    reseal(folder, lambda m: m["sha256"].update({"subm.pkl": hash_file(folder / "subm.pkl")}))
    line = refused(script("predict.py", "--runs", "r", "--device", "cpu", cwd=tmp_path, ok=None))
    assert "not a number" in line and str(content["ids"][content["clip"][1]]) in line
