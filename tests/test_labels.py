"""How csv files write several labels of a clip, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layout_files import csv as write
from layout_files import files, refused, rows

from earshot.competition import labels
from earshot.competition.holdout import find_straddling_groups
from earshot.competition.load import load


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Four training clips and two to submit, a sample submission with a column per class."""
    root = tmp_path / "birds"
    files(root, *(f"audio_train/{n}.wav" for n in "abcd"), "audio_test/x.wav", "audio_test/y.wav")
    write(root / "sample_submission.csv", "fname,owl,jay,emu x.wav,0,0,0 y.wav,0,0,0")
    return root


def table(root: Path, *cells: str, header: str = "fname,labels") -> None:
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    lines = [header, *(f"{name}.wav,{cell}" for name, cell in zip("abcd", quoted, strict=False))]
    (root / "train.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "cells, separator",
    [
        (("owl,jay", "emu", "jay", "emu,owl,emu"), ","),
        (("owl, jay", "emu", "jay", "emu, owl"), ", "),
        (("owl;jay", "emu", "jay", "emu;owl"), ";"),
        (("owl|jay", "emu", "jay", "emu| owl"), "|"),
        (("owl jay", "emu", "jay", "emu  owl"), " "),
        (("['owl', 'jay']", "['emu']", '["jay"]', "[emu, owl]"), "[]"),
    ],
)
def test_several_labels_in_a_cell(birds: Path, cells: tuple, separator: str) -> None:
    table(birds, *cells)
    comp = load(birds)  # the sample submission's columns tell
    assert comp.multilabel and comp.separator == separator and comp.classes == ["emu", "jay", "owl"]
    assert [r[2] for r in rows(comp, "train")] == [("jay", "owl"), ("emu",), ("jay",), ("emu", "owl")]
    assert [r[2] for r in rows(comp, "subm")] == [None, None]
    assert "task: multi-label" in comp.notes and "train: 4 clips, 3 classes, 1.50 labels a clip" in comp.notes
    (birds / "sample_submission.csv").unlink()
    forced = load(birds, task="multilabel")
    assert (
        forced.separator == separator
        and forced.clips["label"].tolist()[:4] == comp.clips["label"].tolist()[:4]
    )
    single = load(birds, task="single")
    assert not single.multilabel and cells[0] in single.classes


def test_a_name_may_hold_another_mark(birds: Path) -> None:
    table(birds, "Domestic sounds, home sounds;Speech", "Speech", "Rain", "Rain;Speech")
    write(birds / "sample_submission.csv", "fname,labels x.wav,? y.wav,?")
    comp = load(birds, task="multilabel")
    assert comp.separator == ";" and comp.classes == ["Domestic sounds, home sounds", "Rain", "Speech"]
    table(birds, "a|b;c", "d", "c", "c;d")  # the sample submission settles which of two marks it is
    write(birds / "sample_submission.csv", "fname,a|b,c,d x.wav,0,0,0 y.wav,0,0,0")
    assert load(birds).classes == ["a|b", "c", "d"]


@pytest.mark.parametrize("one, zero", [("1", "0"), ("1.0", "0.0")])
def test_columns_of_zero_and_one(birds: Path, one: str, zero: str) -> None:
    lines = [
        "fname,verified,owl,jay,emu,fold",
        f"a.wav,1,{one},{one},{zero},1",
        f"b.wav,0,{zero},{zero},{zero},2",
        f"c.wav,1,{zero},{one},{zero},1",
        f"d.wav,1,{zero},{zero},{zero},2",
    ]
    write(birds / "train.csv", " ".join(lines))
    comp = load(birds)
    # emu: asked for, never heard
    assert comp.multilabel and comp.separator is None and comp.classes == ["emu", "jay", "owl"]
    assert [r[2] for r in rows(comp, "train")] == [("jay", "owl"), (), ("jay",), ()] and comp.missing == []
    assert comp.clips["fold"].tolist()[:4] == [1, 2, 1, 2] and any(
        "3 label columns of 0 and 1" in n for n in comp.notes
    )
    assert "line 2: 2 of the label columns are 1: use --task multilabel" in refused(birds, task="single")


def test_columns_without_a_sample(birds: Path) -> None:
    (birds / "sample_submission.csv").unlink()
    write(birds / "train.csv", "fname,owl,jay a.wav,1,0 b.wav,0,1 c.wav,0,1")
    write(birds / "test.csv", "fname,owl,jay x.wav,1,0 y.wav,1,1")
    assert "use --task multilabel" in refused(birds)
    comp = load(birds, task="multilabel")
    assert comp.multilabel and [r[2] for r in rows(comp, "test")] == [("owl",), ("jay", "owl")]
    assert any("--task single" in note for note in comp.notes)
    write(birds / "test.csv", "fname,owl,jay x.wav,0,0 y.wav,0,0")  # placeholders
    assert rows(load(birds, task="multilabel"), "test") == []
    (birds / "test.csv").unlink()
    single = load(birds)  # one 1 in every row: its probabilities have to add up to one
    assert not single.multilabel and [r[2] for r in rows(single, "train")] == ["owl", "jay", "jay"]
    assert any("--task multilabel" in note for note in single.notes)
    write(birds / "train.csv", "fname,owl,jay a.wav,1,0 b.wav,1,1 c.wav,0,1")
    assert load(birds).multilabel


def test_flags_beside_a_clear_label_column_are_no_classes(birds: Path) -> None:
    write(birds / "train.csv", "fname,label,verified,noisy a.wav,owl,1,0 b.wav,jay,0,0 c.wav,emu,1,1")
    assert not load(birds).multilabel and load(birds).classes == ["emu", "jay", "owl"]
    write(birds / "train.csv", "fname,target,verified a.wav,1,1 b.wav,0,0 c.wav,1,1")
    write(birds / "sample_submission.csv", "fname,x x.wav,0 y.wav,0")
    assert load(birds).classes == ["0", "1"] and load(birds, task="multilabel").classes == [
        "target",
        "verified",
    ]
    # named: a column of lists
    assert load(birds, task="multilabel", label_column="target").classes == ["0", "1"]
    write(
        birds / "train.csv",
        "fname,mood,weather,verified,noisy a.wav,sad,wet,1,1 b.wav,gay,dry,0,0 c.wav,sad,dry,1,1",
    )
    assert "--label-column, or --task multilabel" in refused(birds)
    assert load(birds, task="multilabel").classes == ["noisy", "verified"]


def test_a_label_of_two_words_that_are_labels_too(birds: Path) -> None:
    table(birds, "guitar", "bass", "bass guitar", "bass guitar")
    write(birds / "sample_submission.csv", "fname,guitar,bass x.wav,0,0 y.wav,0,0")
    assert load(birds).multilabel
    (birds / "sample_submission.csv").write_text("fname,guitar,bass,bass guitar\nx.wav,0,0,0\ny.wav,0,0,0\n")
    assert not load(birds).multilabel and load(birds).classes == ["bass", "bass guitar", "guitar"]
    assert not any("warning" in note for note in load(birds).notes)


def test_flags_beside_a_label_of_unknown_name(birds: Path) -> None:
    (birds / "sample_submission.csv").unlink()
    write(birds / "train.csv", "fname,bird,night,rain a.wav,owl,1,0 b.wav,jay,0,0 c.wav,owl,1,1")
    assert "--label-column, or --task multilabel" in refused(birds)
    write(birds / "train.csv", "fname,length,owl,jay a.wav,1.5,1,0 b.wav,1.5,0,0 c.wav,2.5,1,1")
    assert load(birds).classes == ["jay", "owl"]


def test_columns_of_true_and_false_and_of_neither(birds: Path) -> None:
    write(
        birds / "train.csv",
        "fname,owl,jay,emu a.wav,True,True,False b.wav,False,False,False c.wav,FALSE,true,False",
    )
    assert [r[2] for r in rows(load(birds), "train")] == [("jay", "owl"), (), ("jay",)]
    for cell in ("0.5", ""):
        write(birds / "train.csv", f"fname,owl,jay,emu a.wav,1,1,0 b.wav,0,{cell},0")
        assert f"column jay, which the sample submission has too, holds '{cell}'" in refused(birds)


def test_hints(birds: Path) -> None:
    write(birds / "sample_submission.csv", "fname,labels x.wav,? y.wav,?")
    table(birds, "owl,jay", "owl", "jay", "emu")
    comp = load(birds)  # by the column's name, and as both occur alone
    assert comp.multilabel and comp.classes == ["emu", "jay", "owl"]
    assert any("--task single reads each as one label" in note for note in comp.notes)
    (birds / "train.csv").write_text((birds / "train.csv").read_text().replace("labels", "label"))
    comp = load(birds)
    assert not comp.multilabel and "owl,jay" in comp.classes
    assert any(
        note == "warning: owl,jay is read as one label: if it means 2, give --task multilabel"
        for note in comp.notes
    )
    table(birds, "Bark, dog", "Meow, cat", "owl", "emu")  # names with a comma
    assert not any("warning" in note for note in load(birds).notes)
    table(birds, "owl", "jay", "owl", "emu")
    assert any(
        "no row of train.csv has several labels" in note for note in load(birds, task="multilabel").notes
    )


def test_missing_repeated_and_contradicting_rows(birds: Path) -> None:
    table(birds, "owl,jay", "", "emu", "[]")
    comp = load(birds, task="multilabel")
    assert [(i, reason) for _, i, reason in comp.missing] == [("b.wav", "empty label")]
    text = (birds / "train.csv").read_text()
    (birds / "train.csv").write_text(text + 'a.wav,"jay,owl"\n')
    assert any("1 repeated rows" in note for note in load(birds, task="multilabel").notes)
    (birds / "train.csv").write_text(text + "a.wav,emu\n")
    assert "a.wav two labels, jay, owl and emu" in refused(birds, task="multilabel")
    table(birds, "['owl']", "[]", "['jay']", "['jay', 'owl']")
    assert [i for _, i, reason in load(birds, task="multilabel").missing if reason == "empty label"] == [
        "b.wav"
    ]


def test_other_layouts_have_one_label_a_clip(tmp_path: Path) -> None:
    files(tmp_path / "c", "dog/1.wav", "cat/2.wav")
    assert "--task multilabel" in refused(tmp_path / "c", task="multilabel")


def test_holdout_keeps_the_shares_of_the_labels(tmp_path: Path) -> None:
    root, rng = tmp_path / "c", np.random.default_rng(0)
    files(root, *(f"audio/{i:03d}.wav" for i in range(120)))
    marks = rng.random((120, 3)) < (0.5, 0.3, 0.15)
    body = [f"{i:03d},g{i // 2},{a:d},{b:d},{c:d}" for i, (a, b, c) in enumerate(marks)]
    write(root / "train.csv", " ".join(["id,group,owl,jay,emu", *body]))
    comp = load(root, holdout="0.25")
    held = comp.clips["split"] == "test"
    assert 24 <= held.sum() <= 36 and not find_straddling_groups(comp.clips)
    for name in ("owl", "jay", "emu"):
        has = comp.clips["label"].map(lambda several, name=name: name in several)
        assert abs((has & held).sum() / has.sum() - 0.25) < 0.1


@pytest.mark.parametrize("separator", [",", ", ", ";", "|", " ", labels.LIST])
def test_join_is_what_split_takes_apart(separator: str) -> None:
    for several in (["owl"], ["owl", "jay"], ["owl", "d'Or"]):
        assert labels.split_cell(labels.join_labels(several, separator), separator) == several
