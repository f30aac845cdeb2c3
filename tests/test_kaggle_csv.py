"""The Kaggle layout: which csv, which columns, which file an id means, and every line that a user may get
instead."""

import os

import pytest
from layout_files import csv, files, refused, rows

from earshot.competition.load import load, sort_classes


def test_kaggle_csv(kaggle):
    comp = load(kaggle)
    assert (comp.name, comp.layout, comp.root) == ("birds", "Kaggle csv", kaggle)
    assert rows(comp, "train") == [
        ("b.wav", "audio_train/b.wav", "owl"),
        ("a.wav", "audio_train/a.wav", "jay"),
        ("c.wav", "audio_train/c.wav", "owl"),
    ]
    assert rows(comp, "subm") == [("y.wav", "audio_test/y.wav", None), ("x.wav", "audio_test/x.wav", None)]
    assert list(comp.clips) == ["id", "path", "label", "split", "fold", "group", "start", "end", "weight"]
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


@pytest.mark.parametrize(
    "name", ["train_post_competition.csv", "train_curated.csv", "meta/sub/train_metadata.csv", "labels.csv"]
)
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


@pytest.mark.parametrize(
    "style",
    [
        lambda n: n,
        lambda n: f"{n}.wav",
        lambda n: f"{n}.WAV",
        lambda n: n.upper(),
        lambda n: f"train/{n}.wav",
        lambda n: f"./train/{n}",
        lambda n: f"train\\{n}.wav",
        lambda n: f"/kaggle/input/comp/train/{n}.wav",
        lambda n: f"comp/train/{n}.wav",
        lambda n: f"{n}.mp3",
    ],
)
def test_id_styles(tmp_path, style):
    root = tmp_path / "comp"
    files(root, "train/blues.01.wav", "train/jazz.02.wav")
    ids = [style("blues.01"), style("jazz.02")]
    csv(root / "train.csv", f"n,clip,label 7,{ids[0]},blues 8,{ids[1]},jazz")
    comp = load(root)
    assert rows(comp, "train") == [
        (ids[0], "train/blues.01.wav", "blues"),
        (ids[1], "train/jazz.02.wav", "jazz"),
    ]
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
    assert sort_classes(["10", "9", "a"]) == ["10", "9", "a"]
    assert sort_classes(["10", "-1", "9"]) == ["-1", "9", "10"]


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
    files(
        root,
        "audio_test/0001.wav",
        "audio_test/0003.wav",
        "audio_train/0002.wav",
        "audio_train/0003.wav",
        "audio_train/0004.wav",
    )
    csv(root / "train.csv", "id,label 0001,a 0002,b 0003,a")
    csv(root / "sample_submission.csv", "id,label 0001,a 0004,a 0003,a")
    comp = load(root)
    assert [r[1] for r in rows(comp, "train")] == ["audio_train/0002.wav", "audio_train/0003.wav"]
    assert [r[1] for r in rows(comp, "subm")] == ["audio_test/0001.wav", "", "audio_test/0003.wav"]
    reason = "no such file in its own split's folders"
    assert comp.missing == [("train", "0001", reason), ("subm", "0004", reason)]


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
    assert rows(comp, "train") == [
        ("abc/1.ogg", "train_audio/abc/1.ogg", "abc"),
        ("xyz/1.ogg", "train_audio/xyz/1.ogg", "xyz"),
    ]
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
    assert (
        "clip, label" in line
        and "audio_test (2 files), audio_train (3 files)" in line
        and "--id-column" in line
    )


def test_overrides(kaggle):
    csv(
        kaggle / "train.csv",
        "fname,other,label,mood b.wav,a.wav,owl,sad a.wav,b.wav,jay,gay c.wav,c.wav,owl,sad",
    )
    comp = load(kaggle, id_column="other", label_column="mood")
    assert [(r[0], r[2]) for r in rows(comp, "train")] == [
        ("a.wav", "sad"),
        ("b.wav", "gay"),
        ("c.wav", "sad"),
    ]
    assert comp.id_column == "fname"  # the submission keeps the sample file's header
    for flag, option in (("--id-column", "id_column"), ("--label-column", "label_column")):
        line = refused(kaggle, **{option: "nope"})
        assert "nope" in line and flag in line and "fname, other, label, mood" in line
    assert "column label begins with owl" in refused(kaggle, id_column="label", label_column="mood")


@pytest.mark.parametrize(
    "header, sample, expected",
    [
        ("fname,target,category", "fname,prediction", "category"),
        ("fname,target,category", "fname,target", "target"),
        ("fname,category,target", "fname,Target2", "category"),
        ("fname,target,Genre", "fname,x", "Genre"),
        ("fname,x,mood", "fname,mood", "mood"),
        ("fname,fold,whatever", "fname,x", "whatever"),
    ],
)
def test_label_column(kaggle, header, sample, expected):
    values = {"target": ("0", "1"), "x": ("5", "6"), "fold": ("1", "2")}
    body = [
        ",".join([f, *(values.get(c, ("p", "q"))[i] for c in header.split(",")[1:])])
        for i, f in enumerate(("a.wav", "b.wav"))
    ]
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
    assert comp.clips["fold"].tolist() == [1, 2, -1, -1, -1] and comp.clips["group"].tolist() == [
        "g",
        "h",
        "",
        "",
        "",
    ]
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
    assert comp.missing == [
        ("train", "gone.wav", "no such file"),
        ("train", "c.wav", "empty label"),
        ("train", "", "empty id"),
        ("subm", "lost.wav", "no such file"),
    ]
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
    assert rows(comp, "test") == [
        ("x.wav", "audio_test/x.wav", "owl"),
        ("y.wav", "audio_test/y.wav", "emu"),
        ("z.wav", "", "owl"),
    ]
    assert comp.classes == ["emu", "jay", "owl"] and rows(comp, "subm") == []
    assert ("test", "z.wav", "no such file") in comp.missing
    assert any("nothing to submit" in n for n in comp.notes)
    assert "already" in refused(kaggle, holdout="0.5")


@pytest.mark.parametrize("suffix", ["", ".wav"])
def test_test_folder_without_any_csv(kaggle, suffix):
    (kaggle / "sample_submission.csv").unlink()
    csv(kaggle / "train.csv", f"clip,label b{suffix},owl a{suffix},jay")
    comp = load(kaggle)
    assert rows(comp, "subm") == [
        (f"x{suffix}", "audio_test/x.wav", None),
        (f"y{suffix}", "audio_test/y.wav", None),
    ]
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
    assert "owl" in line and "two classes are needed" in line
