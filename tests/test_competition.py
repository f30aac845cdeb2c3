"""Hold-outs and the layouts besides Kaggle's csv on real audio files, and every line that a user may get
instead."""

import os
from pathlib import Path

import pandas as pd
import pytest
from layout_files import audio, csv, files, refused, rows

from earshot.competition.load import find_competitions, load

# --- hold-out


@pytest.fixture
def folded(tmp_path) -> Path:
    root = tmp_path / "f"
    files(root, *(f"audio/{i:02d}.wav" for i in range(20)))
    csv(
        root / "train.csv",
        " ".join(
            ["id,label,fold,group"] + [f"{i:02d},{'ab'[i % 2]},{i % 4 + 1},g{i // 4}" for i in range(20)]
        ),
    )
    return root


def test_holdout_fold_keeps_groups_whole(folded):
    line = refused(folded, holdout="3")
    assert "--holdout 3 would split 5 groups (first: g0)" in line and "fraction" in line


def test_holdout_fold(folded):
    table = folded / "train.csv"
    # without groups
    table.write_text("\n".join(row.rpartition(",")[0] for row in table.read_text().splitlines()) + "\n")
    comp = load(folded, holdout="3")
    assert [r[0] for r in rows(comp, "test")] == ["02", "06", "10", "14", "18"]
    assert len(rows(comp, "train")) == 15 and comp.clips["split"].tolist() == ["train"] * 15 + ["test"] * 5
    assert comp.clips["label"].notna().all()
    line = refused(folded, holdout=9)
    assert "folds 1, 2, 3, 4" in line and "9" in line


def test_holdout_fraction_keeps_groups(folded):
    comp = load(folded, holdout=0.4)
    held, kept = (set(comp.clips["group"][comp.clips["split"] == s]) for s in ("test", "train"))
    assert len(held) == 2 and len(kept) == 3 and not held & kept


@pytest.mark.parametrize("holdout", ["abc", "-1", "1.5", "nan", "inf"])
def test_holdout_that_means_nothing(folded, holdout):
    assert f"--holdout {holdout}" in refused(folded, holdout=holdout) and "fraction" in refused(
        folded, holdout=holdout
    )


def test_holdout_without_folds_or_too_small(kaggle):
    assert "no folds of its own" in refused(kaggle, holdout="1")
    assert "0 of 3" in refused(kaggle, holdout="0.01")


def test_holdout_leaves_every_class_something_to_learn_from(kaggle):
    comp = load(kaggle, holdout="0.9")
    assert [(r[2]) for r in rows(comp, "test")] == ["owl"]
    assert sorted(r[2] for r in rows(comp, "train")) == ["jay", "owl"]


# --- ESC


def test_esc(tmp_path):
    root = tmp_path / "esc"
    files(root, "audio/1-10-A-0.wav", "audio/2-11-A-1.wav")
    csv(
        root / "meta/esc50.csv",
        "filename,fold,target,category,src_file 1-10-A-0.wav,1,0,dog,10 2-11-A-1.wav,2,1,cat,11",
    )
    comp = load(root)
    assert comp.layout == "ESC" and (comp.id_column, comp.label_column) == ("filename", "category")
    assert rows(comp, "train") == [
        ("1-10-A-0.wav", "audio/1-10-A-0.wav", "dog"),
        ("2-11-A-1.wav", "audio/2-11-A-1.wav", "cat"),
    ]
    assert comp.clips["fold"].tolist() == [1, 2] and comp.clips["group"].tolist() == ["10", "11"]


def test_real_esc10(esc10):
    comp = load(esc10, holdout=5)
    assert comp.layout == "ESC" and comp.name == "esc10" and len(comp.classes) == 10 and comp.missing == []
    assert comp.clips["split"].value_counts().to_dict() == {"train": 320, "test": 80}
    assert sorted(comp.clips["fold"].unique()) == [1, 2, 3, 4, 5] and (comp.clips["group"] != "").all()
    assert set(comp.clips["fold"][comp.clips["split"] == "test"]) == {5}
    assert all(map(os.path.isfile, comp.clips["path"]))


# --- a folder per class


def test_gtzan(tmp_path):
    root = tmp_path / "gtzan"
    files(root, *(f"Data/genres_original/{g}/{g}.0000{i}.au" for g in ("jazz", "blues") for i in range(2)))
    csv(root / "Data/features_3_sec.csv", "filename,label blues.00000.wav,blues")
    csv(root / "Data/features_30_sec.csv", "filename,label blues.00000.wav,blues")
    comp = load(root)
    assert comp.layout == "folder per class" and comp.classes == ["blues", "jazz"]
    assert rows(comp, "train")[0] == ("blues.00000.au", "Data/genres_original/blues/blues.00000.au", "blues")
    assert [r[2] for r in rows(comp, "train")] == ["blues", "blues", "jazz", "jazz"]


def test_class_folders_with_splits(tmp_path):
    root = tmp_path / "c"
    files(
        root,
        "train/dog/1.wav",
        "train/cat/1.wav",
        "train/cat/2.wav",
        "valid/dog/3.wav",
        "test/dog/1.wav",
        "test/loose.wav",
        "notes.wav",
    )
    comp = load(root)
    assert rows(comp, "train") == [
        ("train/cat/1.wav", "train/cat/1.wav", "cat"),
        ("2.wav", "train/cat/2.wav", "cat"),
        ("train/dog/1.wav", "train/dog/1.wav", "dog"),
        ("3.wav", "valid/dog/3.wav", "dog"),
    ]
    assert rows(comp, "test") == [("1.wav", "test/dog/1.wav", "dog")]
    assert rows(comp, "subm") == [("loose.wav", "test/loose.wav", None)]
    assert comp.missing == [("train", "notes.wav", "not in a class folder")]
    assert any("validation folder" in n for n in comp.notes)


def test_classes_that_are_called_like_splits(tmp_path):
    root = tmp_path / "vehicles"
    files(root, "train/1.wav", "bus/2.wav", "test_siren/3.wav")
    assert rows(load(root), "train") == [
        ("2.wav", "bus/2.wav", "bus"),
        ("3.wav", "test_siren/3.wav", "test_siren"),
        ("1.wav", "train/1.wav", "train"),
    ]


def test_ignored_files(tmp_path):
    root = tmp_path / "c"
    files(
        root,
        "dog/1.wav",
        "cat/2.WAV",
        "__MACOSX/cow/3.wav",
        ".git/cow/4.wav",
        "dog/.5.wav",
        "cat/readme.flac",
    )
    (root / "cat/readme.flac").rename(root / "cat/readme.txt")
    (root / "logmel/cow").mkdir(parents=True)
    (root / "logmel/manifest.json").write_text("{}")
    audio(root / "logmel/cow/6.wav")
    csv(root / "logmel/bad_audio.csv", "id,reason 1,x")
    comp = load(root)
    assert [r[1] for r in rows(comp, "train")] == ["cat/2.WAV", "dog/1.wav"]


def test_lone_csv_that_is_no_train_csv(tmp_path):
    root = tmp_path / "c"
    files(root, "dog/1.wav", "cat/2.wav")
    csv(root / "licences.csv", "file,licence,author 1.wav,CC0,me 2.wav,CC0,you")
    assert load(root).layout == "folder per class"
    csv(root / "licences.csv", "genre,year pop,1999")
    assert load(root).layout == "folder per class"


def test_link_back_up_is_no_endless_walk(tmp_path):
    root = tmp_path / "c"
    files(root, "dog/1.wav", "cat/2.wav")
    (root / "dog/up").symlink_to(root)
    assert len(load(root).clips) == 2


# --- nothing known


def test_not_recognised(tmp_path):
    root = tmp_path / "c"
    files(root, "one/a.wav", "one/b.flac", "c.wav")
    (root / "photos").mkdir()
    (root / "audio.zip").write_bytes(b"PK")
    line = refused(root)
    for part in (
        "train csv",
        "meta/*.csv",
        "class folders",
        "0 csv files",
        "3 audio files (1 .flac, 2 .wav)",
        "2 subfolders (one, photos)",
        "audio.zip",
        str(root),
    ):
        assert part in line, part


def test_nothing_there(tmp_path):
    assert "no competition at" in refused(tmp_path / "nope") and "nope" in refused(tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    line = refused(tmp_path / "empty")
    assert "0 csv files, 0 audio files, 0 subfolders" in line
    (tmp_path / "note.txt").write_text("hello")
    assert "is not a zip" in refused(tmp_path / "note.txt")


def test_train_csv_without_audio(kaggle):
    for path in kaggle.rglob("*.wav"):
        path.unlink()
    assert "audio folders found" in refused(kaggle) and "none" in refused(kaggle)


def test_find(kaggle, tmp_path):
    data = tmp_path / "data"
    assert find_competitions(data) == []
    files(data, "zebra/dog/1.wav", "apes/cat/2.wav", "sample/audio_train/3.wav", ".hidden/4.wav")
    (data / "cached/logmel").mkdir(parents=True)
    (data / "cached/logmel/manifest.json").write_text("{}")
    (data / "README.md").write_text("outputs")
    assert find_competitions(data) == [data / "apes", data / "zebra"]


def test_a_large_folder_is_quick(tmp_path):
    """20,000 files: an index, not a search per id."""
    import time

    root = tmp_path / "c"
    (root / "audio_train").mkdir(parents=True)
    names = [f"{i:05d}.wav" for i in range(20_000)]
    for name in names:
        (root / "audio_train" / name).touch()
    pd.DataFrame({"fname": names, "label": [n[4] for n in names], "fold": 1}).to_csv(
        root / "train.csv", index=False
    )
    start = time.perf_counter()
    comp = load(root, holdout="0.2")
    assert time.perf_counter() - start < 15
    assert comp.clips["split"].value_counts().to_dict() == {"train": 16_000, "test": 4_000}
