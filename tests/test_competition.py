"""Every layout on real audio files, and every line that a user may get instead."""

import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from earshot import archive, competition
from earshot.competition import find, load
from earshot.errors import UserError

ESC10 = Path(__file__).resolve().parents[1].parent / "shared" / "esc10"


def audio(path: Path, hz: int = 440) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(hz * np.arange(800) / 8000), 8000)
    return path


def files(root: Path, *names: str) -> None:
    for hz, name in enumerate(names):
        audio(root / name, 200 + 7 * hz)


def csv(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(" ", "\n") + "\n", encoding="utf-8")
    return path


def rows(comp, split: str) -> list[tuple]:
    part = comp.clips[comp.clips["split"] == split]
    root = f"{comp.root}/"
    return [(r.id, r.path.removeprefix(root), r.label) for r in part.itertuples()]


def refused(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(*args, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture
def kaggle(tmp_path) -> Path:
    root = tmp_path / "birds"
    files(root, "audio_train/b.wav", "audio_train/a.wav", "audio_train/c.wav", "audio_test/y.wav", "audio_test/x.wav")
    csv(root / "train.csv", "fname,label b.wav,owl a.wav,jay c.wav,owl")
    csv(root / "sample_submission.csv", "fname,label y.wav,jay x.wav,jay")
    return root


# --- Kaggle csv

def test_kaggle_csv(kaggle):
    comp = load(kaggle)
    assert (comp.name, comp.layout, comp.root) == ("birds", "Kaggle csv", kaggle)
    assert rows(comp, "train") == [("b.wav", "audio_train/b.wav", "owl"), ("a.wav", "audio_train/a.wav", "jay"),
                                   ("c.wav", "audio_train/c.wav", "owl")]
    assert rows(comp, "subm") == [("y.wav", "audio_test/y.wav", None), ("x.wav", "audio_test/x.wav", None)]
    assert list(comp.clips) == ["id", "path", "label", "split", "fold", "group"]
    assert comp.classes == ["jay", "owl"] and comp.missing == [] and comp.solution is None
    assert comp.sample_submission == kaggle / "sample_submission.csv"
    assert (comp.id_column, comp.label_column) == ("fname", "label")
    assert comp.clips["fold"].tolist() == [-1] * 5 and comp.clips["group"].tolist() == [""] * 5
    assert "layout: Kaggle csv" in comp.notes and "train: 3 clips, 2 classes" in comp.notes
    assert "subm: 2 clips" in comp.notes


def test_relative_path_gives_absolute_paths(kaggle, monkeypatch):
    monkeypatch.chdir(kaggle)
    comp = load(".")
    assert comp.name == "birds" and all(os.path.isabs(p) and os.path.isfile(p) for p in comp.clips["path"])


@pytest.mark.parametrize("name", ["train_post_competition.csv", "train_curated.csv", "meta/sub/train_metadata.csv",
                                  "labels.csv"])
def test_train_csv_by_other_names(kaggle, name):
    csv(kaggle / "test_post_competition.csv", "fname,label x.wav,owl")
    (kaggle / name).parent.mkdir(parents=True, exist_ok=True)
    (kaggle / "train.csv").rename(kaggle / name)
    assert [r[0] for r in rows(load(kaggle), "train")] == ["b.wav", "a.wav", "c.wav"]


def test_two_train_csvs_need_the_flag(kaggle):
    (kaggle / "train.csv").rename(kaggle / "train_curated.csv")
    csv(kaggle / "train_noisy.csv", "fname,label c.wav,owl a.wav,jay")
    line = refused(kaggle)
    assert "train_curated.csv, train_noisy.csv" in line and "--train-csv" in line
    for given in (kaggle / "train_noisy.csv", "train_noisy.csv"):
        assert [r[0] for r in rows(load(kaggle, train_csv=given), "train")] == ["c.wav", "a.wav"]
    line = refused(kaggle, train_csv="nope.csv")
    assert "nope.csv" in line and "train_noisy.csv" in line


def test_train_csv_is_preferred_to_others_with_train_in_the_name(kaggle):
    csv(kaggle / "train_noisy.csv", "fname,label c.wav,owl")
    assert len(rows(load(kaggle), "train")) == 3


def test_two_unnamed_csvs(kaggle):
    (kaggle / "train.csv").rename(kaggle / "one.csv")
    csv(kaggle / "two.csv", "fname,label c.wav,owl a.wav,jay")
    for folder in ("audio_train", "audio_test"):
        (kaggle / folder).rename(kaggle / folder.removeprefix("audio_"))
    line = refused(kaggle)
    assert "one.csv, two.csv" in line and "--train-csv" in line


@pytest.mark.parametrize("style", [lambda n: n, lambda n: f"{n}.wav", lambda n: f"{n}.WAV", lambda n: n.upper(),
                                   lambda n: f"train/{n}.wav", lambda n: f"./train/{n}", lambda n: f"train\\{n}.wav",
                                   lambda n: f"/kaggle/input/comp/train/{n}.wav", lambda n: f"comp/train/{n}.wav",
                                   lambda n: f"{n}.mp3"])
def test_id_styles(tmp_path, style):
    root = tmp_path / "comp"
    files(root, "train/blues.01.wav", "train/jazz.02.wav")
    ids = [style("blues.01"), style("jazz.02")]
    csv(root / "train.csv", f"n,clip,label 7,{ids[0]},blues 8,{ids[1]},jazz")
    comp = load(root)
    assert rows(comp, "train") == [(ids[0], "train/blues.01.wav", "blues"), (ids[1], "train/jazz.02.wav", "jazz")]
    assert comp.id_column == "clip" and any("clip" in note for note in comp.notes)


def test_exact_case_wins(tmp_path):
    files(tmp_path / "c", "audio/A.wav", "audio/a.wav")
    csv(tmp_path / "c/train.csv", "f,label a.wav,x A.wav,y")
    assert [r[1] for r in rows(load(tmp_path / "c"), "train")] == ["audio/a.wav", "audio/A.wav"]


def test_numeric_looking_ids_and_labels_survive(tmp_path):
    root = tmp_path / "c"
    files(root, "audio/0012.wav", "audio/0007.wav", "audio/NA.wav")
    (root / "train.csv").write_bytes("\ufeff id ,target\n0012,10\n0007,9\nNA,010\n".encode())
    comp = load(root)
    assert [(r[0], r[2]) for r in rows(comp, "train")] == [("0012", "10"), ("0007", "9"), ("NA", "010")]
    assert comp.classes == ["9", "010", "10"] and comp.id_column == "id"


def test_classes_as_text_unless_all_are_numbers(tmp_path):
    assert competition.sort_classes(["10", "9", "a"]) == ["10", "9", "a"]
    assert competition.sort_classes(["10", "-1", "9"]) == ["-1", "9", "10"]


def test_same_file_name_in_train_and_test(tmp_path):
    root = tmp_path / "c"
    files(root, "test/0001.wav", "test/0002.wav", "train/0001.wav", "train/0002.wav")
    csv(root / "train.csv", "id,label 0001,a 0002,b")
    csv(root / "sampleSubmission.csv", "id,label 0001,a 0002,a")
    comp = load(root)
    assert [r[1] for r in rows(comp, "train")] == ["train/0001.wav", "train/0002.wav"]
    assert [r[1] for r in rows(comp, "subm")] == ["test/0001.wav", "test/0002.wav"]


def test_never_the_other_sides_audio(tmp_path):
    root = tmp_path / "c"
    files(root, "audio_test/0001.wav", "audio_test/0003.wav", "audio_train/0002.wav", "audio_train/0003.wav",
          "audio_train/0004.wav")
    csv(root / "train.csv", "id,label 0001,a 0002,b 0003,a")
    csv(root / "sample_submission.csv", "id,label 0001,a 0004,a 0003,a")
    comp = load(root)
    assert [r[1] for r in rows(comp, "train")] == ["audio_train/0002.wav", "audio_train/0003.wav"]
    assert [r[1] for r in rows(comp, "subm")] == ["audio_test/0001.wav", "", "audio_test/0003.wav"]
    assert comp.missing == [("train", "0001", "no such file"), ("subm", "0004", "no such file")]


def test_all_clips_in_one_folder_named_like_a_split(tmp_path):
    root = tmp_path / "c"
    files(root, "train_audio/0001.wav", "train_audio/0002.wav", "train_audio/0003.wav")
    csv(root / "train.csv", "id,label 0001,a 0002,b")
    csv(root / "sample_submission.csv", "id,label 0003,a")
    assert rows(load(root), "subm") == [("0003", "train_audio/0003.wav", None)]


def test_folder_of_the_id_decides(tmp_path):
    root = tmp_path / "birdclef"
    files(root, "train_audio/abc/1.ogg", "train_audio/xyz/1.ogg")
    csv(root / "train.csv", "primary_label,filename abc,abc/1.ogg xyz,xyz/1.ogg xyz,xyz/2.ogg")
    comp = load(root)
    assert rows(comp, "train") == [("abc/1.ogg", "train_audio/abc/1.ogg", "abc"),
                                   ("xyz/1.ogg", "train_audio/xyz/1.ogg", "xyz")]
    assert comp.missing == [("train", "xyz/2.ogg", "no such file")]


def test_several_different_files_for_an_id(tmp_path):
    root = tmp_path / "c"
    files(root, "one/a.wav", "two/b.wav", "two/a.wav")
    csv(root / "train.csv", "id,label a,x b,y")
    line = refused(root)
    assert "one/a.wav" in line and "two/a.wav" in line and "a may be" in line
    (root / "two/a.wav").write_bytes((root / "one/a.wav").read_bytes())  # copies are no question
    assert rows(load(root), "train")[0] == ("a", "one/a.wav", "x")


def test_no_column_resolves(kaggle):
    csv(kaggle / "train.csv", "clip,label q.wav,owl r.wav,jay")
    line = refused(kaggle)
    assert "clip, label" in line and "audio_test (2 files), audio_train (3 files)" in line and "--id-column" in line


def test_overrides(kaggle):
    csv(kaggle / "train.csv", "fname,other,label,mood b.wav,a.wav,owl,sad a.wav,b.wav,jay,gay c.wav,c.wav,owl,sad")
    comp = load(kaggle, id_column="other", label_column="mood")
    assert [(r[0], r[2]) for r in rows(comp, "train")] == [("a.wav", "sad"), ("b.wav", "gay"), ("c.wav", "sad")]
    assert comp.id_column == "fname"  # the submission keeps the sample file's header
    for flag, option in (("--id-column", "id_column"), ("--label-column", "label_column")):
        line = refused(kaggle, **{option: "nope"})
        assert "nope" in line and flag in line and "fname, other, label, mood" in line
    assert "column label begins with owl" in refused(kaggle, id_column="label", label_column="mood")


@pytest.mark.parametrize("header, sample, expected", [
    ("fname,target,category", "fname,prediction", "category"),
    ("fname,target,category", "fname,target", "target"),
    ("fname,category,target", "fname,Target2", "category"),
    ("fname,target,Genre", "fname,x", "Genre"),
    ("fname,x,mood", "fname,mood", "mood"),
    ("fname,fold,whatever", "fname,x", "whatever"),
])
def test_label_column(kaggle, header, sample, expected):
    values = {"target": ("0", "1"), "x": ("5", "6"), "fold": ("1", "2")}
    body = [",".join([f, *(values.get(c, ("p", "q"))[i] for c in header.split(",")[1:])])
            for i, f in enumerate(("a.wav", "b.wav"))]
    csv(kaggle / "train.csv", " ".join([header, *body]))
    csv(kaggle / "sample_submission.csv", f"{sample} x.wav,0")
    comp = load(kaggle)
    assert [r[2] for r in rows(comp, "train")] == list(values.get(expected, ("p", "q")))
    assert comp.label_column == sample.split(",")[1]


def test_unclear_label_column(kaggle):
    csv(kaggle / "train.csv", "fname,mood,weather b.wav,x,y a.wav,y,z")
    line = refused(kaggle, train_csv="train.csv")
    assert "fname, mood, weather" in line and "--label-column" in line


def test_fold_and_group_columns(kaggle):
    csv(kaggle / "train.csv", "fname,fold,group,label b.wav,1,g,owl a.wav,2,h,jay c.wav,,,owl")
    comp = load(kaggle)
    assert comp.clips["fold"].tolist() == [1, 2, -1, -1, -1] and comp.clips["group"].tolist() == ["g", "h", "", "", ""]
    assert "train: 3 clips, 2 classes, folds 1, 2, 2 groups" in comp.notes
    csv(kaggle / "train.csv", "fname,fold,label b.wav,one,owl a.wav,two,jay")
    comp = load(kaggle)
    assert comp.clips["fold"].eq(-1).all() and any("fold is not used" in n for n in comp.notes)


def test_missing_rows(kaggle):
    csv(kaggle / "train.csv", "fname,label b.wav,owl gone.wav,jay a.wav,jay c.wav, ,owl")
    csv(kaggle / "sample_submission.csv", "fname,label y.wav,jay lost.wav,jay")
    comp = load(kaggle)
    assert [r[0] for r in rows(comp, "train")] == ["b.wav", "a.wav"]
    assert rows(comp, "subm") == [("y.wav", "audio_test/y.wav", None), ("lost.wav", "", None)]
    assert comp.missing == [("train", "gone.wav", "no such file"), ("train", "c.wav", "empty label"),
                            ("train", "", "empty id"), ("subm", "lost.wav", "no such file")]
    assert "train: 1 without audio or label (empty label), first c.wav" in comp.notes


def test_duplicates(kaggle):
    csv(kaggle / "train.csv", "fname,label b.wav,owl a.wav,jay b.wav,owl")
    comp = load(kaggle)
    assert [r[0] for r in rows(comp, "train")] == ["b.wav", "a.wav"]
    assert any("1 repeated rows" in n for n in comp.notes)
    csv(kaggle / "train.csv", "fname,label b.wav,owl a.wav,jay b.wav,jay")
    line = refused(kaggle)
    assert "b.wav" in line and "owl" in line and "jay" in line
    csv(kaggle / "train.csv", "fname,label b.wav,owl a.wav,jay")
    csv(kaggle / "sample_submission.csv", "fname,label x.wav,jay y.wav,jay x.wav,jay")
    line = refused(kaggle)
    assert "x.wav twice" in line and "sample_submission.csv" in line


def test_hidden_test_set(kaggle):
    """A code competition shows a sample submission whose audio is not there yet."""
    csv(kaggle / "sample_submission.csv", "row_id,owl,jay q_5,0.5,0.5 q_10,0.5,0.5")
    comp = load(kaggle)
    assert rows(comp, "subm") == [("q_5", "", None), ("q_10", "", None)]
    assert (comp.id_column, comp.label_column) == ("row_id", "label")


def test_sample_submission_with_ids_not_first(kaggle):
    csv(kaggle / "my_sample_SUBmission_2.csv", "label,fname jay,x.wav")
    (kaggle / "sample_submission.csv").unlink()
    comp = load(kaggle)
    assert rows(comp, "subm") == [("x.wav", "audio_test/x.wav", None)]
    assert (comp.id_column, comp.label_column) == ("fname", "label")
    assert comp.sample_submission == kaggle / "my_sample_SUBmission_2.csv"


def test_test_csv_without_sample(kaggle):
    (kaggle / "sample_submission.csv").unlink()
    csv(kaggle / "test.csv", "file x.wav z.wav")
    comp = load(kaggle)
    assert rows(comp, "subm") == [("x.wav", "audio_test/x.wav", None), ("z.wav", "", None)]
    assert (comp.id_column, comp.label_column, comp.sample_submission) == ("file", "label", None)


def test_labelled_test_csv_is_a_holdout(kaggle):
    (kaggle / "sample_submission.csv").unlink()
    csv(kaggle / "test.csv", "fname,label x.wav,owl y.wav,emu z.wav,owl")
    comp = load(kaggle)
    assert rows(comp, "test") == [("x.wav", "audio_test/x.wav", "owl"), ("y.wav", "audio_test/y.wav", "emu"),
                                  ("z.wav", "", "owl")]
    assert comp.classes == ["emu", "jay", "owl"] and rows(comp, "subm") == []
    assert ("test", "z.wav", "no such file") in comp.missing
    assert any("nothing to submit" in n for n in comp.notes)
    assert "already" in refused(kaggle, holdout="0.5")


@pytest.mark.parametrize("suffix", ["", ".wav"])
def test_test_folder_without_any_csv(kaggle, suffix):
    (kaggle / "sample_submission.csv").unlink()
    csv(kaggle / "train.csv", f"clip,label b{suffix},owl a{suffix},jay")
    comp = load(kaggle)
    assert rows(comp, "subm") == [(f"x{suffix}", "audio_test/x.wav", None), (f"y{suffix}", "audio_test/y.wav", None)]
    assert (comp.id_column, comp.label_column) == ("clip", "label")


def test_nothing_to_submit(kaggle):
    (kaggle / "sample_submission.csv").unlink()
    for path in (kaggle / "audio_test").iterdir():
        path.unlink()
    comp = load(kaggle)
    assert comp.clips["split"].tolist() == ["train"] * 3 and any("nothing to submit" in n for n in comp.notes)


def test_unreadable_csv(kaggle):
    (kaggle / "train.csv").write_bytes("fname,label\na.wav,Käuzchen\n".encode("latin-1"))
    assert "UTF-8" in refused(kaggle)
    (kaggle / "train.csv").write_bytes(b"")
    assert "cannot read" in refused(kaggle) and "train.csv" in refused(kaggle)


def test_one_class(kaggle):
    csv(kaggle / "train.csv", "fname,label a.wav,owl b.wav,owl")
    line = refused(kaggle)
    assert "owl" in line and "nothing to tell apart" in line


# --- hold-out

@pytest.fixture
def folded(tmp_path) -> Path:
    root = tmp_path / "f"
    files(root, *(f"audio/{i:02d}.wav" for i in range(20)))
    csv(root / "train.csv", " ".join(["id,label,fold,group"] + [f"{i:02d},{'ab'[i % 2]},{i % 4 + 1},g{i // 4}"
                                                               for i in range(20)]))
    return root


def test_holdout_fold(folded):
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
    assert f"--holdout {holdout}" in refused(folded, holdout=holdout) and "fraction" in refused(folded, holdout=holdout)


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
    csv(root / "meta/esc50.csv",
        "filename,fold,target,category,src_file 1-10-A-0.wav,1,0,dog,10 2-11-A-1.wav,2,1,cat,11")
    comp = load(root)
    assert comp.layout == "ESC" and (comp.id_column, comp.label_column) == ("filename", "category")
    assert rows(comp, "train") == [("1-10-A-0.wav", "audio/1-10-A-0.wav", "dog"),
                                   ("2-11-A-1.wav", "audio/2-11-A-1.wav", "cat")]
    assert comp.clips["fold"].tolist() == [1, 2] and comp.clips["group"].tolist() == ["10", "11"]


@pytest.mark.skipif(not ESC10.is_dir(), reason=f"no real ESC-10 at {ESC10}")
def test_real_esc10():
    comp = load(ESC10, holdout=5)
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
    files(root, "train/dog/1.wav", "train/cat/1.wav", "train/cat/2.wav", "valid/dog/3.wav", "test/dog/1.wav",
          "test/loose.wav", "notes.wav")
    comp = load(root)
    assert rows(comp, "train") == [("train/cat/1.wav", "train/cat/1.wav", "cat"), ("2.wav", "train/cat/2.wav", "cat"),
                                   ("train/dog/1.wav", "train/dog/1.wav", "dog"), ("3.wav", "valid/dog/3.wav", "dog")]
    assert rows(comp, "test") == [("1.wav", "test/dog/1.wav", "dog")]
    assert rows(comp, "subm") == [("loose.wav", "test/loose.wav", None)]
    assert comp.missing == [("train", "notes.wav", "not in a class folder")]
    assert any("validation folder" in n for n in comp.notes)


def test_classes_that_are_called_like_splits(tmp_path):
    root = tmp_path / "vehicles"
    files(root, "train/1.wav", "bus/2.wav", "test_siren/3.wav")
    assert rows(load(root), "train") == [("2.wav", "bus/2.wav", "bus"), ("3.wav", "test_siren/3.wav", "test_siren"),
                                         ("1.wav", "train/1.wav", "train")]


def test_ignored_files(tmp_path):
    root = tmp_path / "c"
    files(root, "dog/1.wav", "cat/2.WAV", "__MACOSX/cow/3.wav", ".git/cow/4.wav", "dog/.5.wav", "cat/readme.flac")
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


# --- zip

def zipped(path: Path, folder: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            out.write(file, top + file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("top", ["", "inner/"])
def test_zip(kaggle, tmp_path, top):
    comp = load(zipped(tmp_path / "owls.zip", kaggle, top), out=tmp_path / "out")
    unpacked = tmp_path / "out" / "owls" / "unpacked"
    assert (comp.name, comp.layout, comp.root) == ("owls", "Kaggle csv", unpacked / "inner" if top else unpacked)
    assert [r[1] for r in rows(comp, "train")] == ["audio_train/b.wav", "audio_train/a.wav", "audio_train/c.wav"]
    assert all(map(os.path.isfile, comp.clips["path"]))
    assert find(tmp_path / "out") == [tmp_path / "out" / "owls"]
    again = load(tmp_path / "out" / "owls")
    assert again.name == "owls" and again.clips["path"].tolist() == comp.clips["path"].tolist()


def test_zip_of_classes_and_esc(tmp_path):
    files(tmp_path / "g", "genres/dog/1.au", "genres/cat/2.au", "__MACOSX/cow/3.au")
    comp = load(zipped(tmp_path / "g.zip", tmp_path / "g"), out=tmp_path / "out")
    assert comp.layout == "folder per class" and comp.classes == ["cat", "dog"]
    files(tmp_path / "e", "audio/1.wav", "audio/2.wav")
    csv(tmp_path / "e/meta/esc.csv", "filename,fold,target,category 1.wav,1,0,dog 2.wav,2,1,cat")
    assert load(zipped(tmp_path / "e.zip", tmp_path / "e", "ESC-50-master/"), out=tmp_path / "out").layout == "ESC"


def test_zip_is_unpacked_once_until_it_changes(kaggle, tmp_path, monkeypatch):
    path, into = zipped(tmp_path / "c.zip", kaggle), tmp_path / "out/c/unpacked"
    leftover = tmp_path / "out/c/.unpacked.partial/half.wav"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    calls = []
    extract = archive.extract
    monkeypatch.setattr(archive, "extract", lambda *args: (calls.append(1), extract(*args)))
    archive.unpack(path, into)
    archive.unpack(path, into)
    assert len(calls) == 1 and not leftover.exists()
    audio(kaggle / "audio_train/d.wav")
    archive.unpack(zipped(path, kaggle), into)
    assert len(calls) == 2 and (into / "audio_train/d.wav").exists()

    def die(*args):
        extract(*args)
        raise KeyboardInterrupt

    audio(kaggle / "audio_train/e.wav")
    monkeypatch.setattr(archive, "extract", die)
    with pytest.raises(KeyboardInterrupt):
        archive.unpack(zipped(path, kaggle), into)
    assert not (into / "audio_train/e.wav").exists()
    monkeypatch.setattr(archive, "extract", extract)
    archive.unpack(path, into)
    assert (into / "audio_train/e.wav").exists()


def hostile(tmp_path: Path, *names, mode: int = stat.S_IFREG | 0o644, data: bytes = b"x") -> Path:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            out.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize("name", ["../escape.wav", "a/../../escape.wav", "/tmp/escape.wav", "..\\escape.wav",
                                  "C:\\escape.wav", "\\escape.wav", "a/.."])
def test_zip_that_leads_outside(tmp_path, name):
    line = refused(hostile(tmp_path, "ok.wav", name), out=tmp_path / "out")
    assert "leads outside" in line and "evil.zip" in line and repr(name) in line
    assert not list(tmp_path.rglob("escape.wav")) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644])
def test_zip_with_a_link(tmp_path, mode):
    line = refused(hostile(tmp_path, "audio", mode=mode, data=b"/etc"), out=tmp_path / "out")
    assert "link or a device" in line and "'audio'" in line and not (tmp_path / "out").exists()


def test_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_SMALL", 10_000)
    path = hostile(tmp_path, "zeros.wav", data=bytes(1_000_000))
    assert "more than 100 times" in refused(path, out=tmp_path / "out") and not (tmp_path / "out").exists()
    monkeypatch.setattr(archive, "MAX_SMALL", 2_000_000)  # small in all, so not a bomb
    assert (archive.unpack(path, tmp_path / "fine") / "zeros.wav").stat().st_size == 1_000_000
    monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
    assert "3 members" in refused(hostile(tmp_path, "a", "b", "c"), out=tmp_path / "out")


def test_zip_whose_sizes_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_SMALL", 10_000)
    path = hostile(tmp_path, "zeros.wav", data=bytes(1_000_000))

    def liars(zip_file, path):
        (info,) = zip_file.infolist()
        return [(type("Small", (), {"file_size": 5})(), info.filename)]

    monkeypatch.setattr(archive, "check", liars)
    real_open = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, info, *a, **k: real_open(self, "zeros.wav"))
    assert "more than it declares" in refused(path, out=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.wav"))


def test_zip_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda p: type("Usage", (), {"free": 10})())
    line = refused(hostile(tmp_path, "a.wav", data=b"x" * 100), out=tmp_path / "out")
    assert "free" in line and "--out" in line


def test_broken_zips(kaggle, tmp_path):
    path = zipped(tmp_path / "c.zip", kaggle)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    assert "not a whole zip" in refused(path, out=tmp_path / "out")
    path.write_bytes(whole[:200] + b"\0" * 50 + whole[250:])  # damaged content: the CRC tells
    assert "c.zip" in refused(path, out=tmp_path / "out")
    assert not (tmp_path / "out/c/unpacked").exists() and not (tmp_path / "out/c/.unpacked.partial").exists()
    clash = hostile(tmp_path, "a", "a/b.wav")
    assert "cannot unpack" in refused(clash, out=tmp_path / "out")


def test_a_folder_in_the_way_is_not_deleted(kaggle, tmp_path):
    mine = audio(tmp_path / "out/c/unpacked/mine.wav")
    assert "in the way" in refused(zipped(tmp_path / "c.zip", kaggle), out=tmp_path / "out") and mine.exists()


# --- nothing known

def test_not_recognised(tmp_path):
    root = tmp_path / "c"
    files(root, "one/a.wav", "one/b.flac", "c.wav")
    (root / "photos").mkdir()
    (root / "audio.zip").write_bytes(b"PK")
    line = refused(root)
    for part in ("train csv", "meta/*.csv", "class folders", "0 csv files", "3 audio files (1 .flac, 2 .wav)",
                 "2 subfolders (one, photos)", "audio.zip", str(root)):
        assert part in line, part


def test_nothing_there(tmp_path):
    assert "no competition at" in refused(tmp_path / "nope") and "nope" in refused(tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    line = refused(tmp_path / "empty")
    assert "0 csv files, 0 audio files, 0 subfolders" in line
    (tmp_path / "note.txt").write_text("hello")
    assert "no zip" in refused(tmp_path / "note.txt")


def test_train_csv_without_audio(kaggle):
    for path in kaggle.rglob("*.wav"):
        path.unlink()
    assert "audio folders found" in refused(kaggle) and "none" in refused(kaggle)


def test_find(kaggle, tmp_path):
    data = tmp_path / "data"
    assert find(data) == []
    files(data, "zebra/dog/1.wav", "apes/cat/2.wav", "sample/audio_train/3.wav", ".hidden/4.wav")
    (data / "cached/logmel").mkdir(parents=True)
    (data / "cached/logmel/manifest.json").write_text("{}")
    (data / "README.md").write_text("outputs")
    assert find(data) == [data / "apes", data / "zebra"]


def test_a_large_folder_is_quick(tmp_path):
    """20,000 files: an index, not a search per id."""
    import time
    root = tmp_path / "c"
    (root / "audio_train").mkdir(parents=True)
    names = [f"{i:05d}.wav" for i in range(20_000)]
    for name in names:
        (root / "audio_train" / name).touch()
    pd.DataFrame({"fname": names, "label": [n[4] for n in names], "fold": 1}).to_csv(root / "train.csv", index=False)
    start = time.perf_counter()
    comp = load(root, holdout="0.2")
    assert time.perf_counter() - start < 15
    assert comp.clips["split"].value_counts().to_dict() == {"train": 16_000, "test": 4_000}
