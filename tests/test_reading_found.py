"""Faults that a reader found in how a competition's files are read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from layout_files import refused
from test_reading import noted, split, text, wave, waves

from earshot.competition import layouts, suspicious
from earshot.competition.load import Competition, load
from earshot.competition.reading import Reading


def test_class_folders_that_count_alike_are_no_copies(tmp_path: Path) -> None:
    for n in range(4):
        wave(tmp_path / f"audio/cat/{n}.wav", 0, n, 0.1, 8000)
        wave(tmp_path / f"audio/dog/{n}.wav", 1, n, 0.2, 16000)
    assert load(tmp_path).classes == ["cat", "dog"]


def test_audio_folder_counts_beside_other_copies(tmp_path: Path) -> None:
    for n in range(4):
        wave(tmp_path / f"a/16/{n}.wav", n % 2, n, 0.1, 16000)
        wave(tmp_path / f"a/8/{n}.wav", n % 2, n, 0.1, 8000)
        wave(tmp_path / f"b/{n}.wav", n % 2, n, 0.1)
    text(tmp_path / "train.csv", "id,label", "0,x", "1,y", "2,x", "3,y")
    comp = load(tmp_path, audio_folder="b")
    assert {Path(path).parent.name for path in comp.clips["path"]} == {"b"}
    comp = load(tmp_path, audio_folder="a")  # holds two copies: the higher rate
    assert {Path(path).parent.name for path in comp.clips["path"]} == {"16"}


def test_names_that_are_no_utf8_have_headers(tmp_path: Path) -> None:
    for folder, rate in (("16", 16000), ("8", 8000)):
        for n in range(4):
            sound = wave(tmp_path / f"audio/{folder}/x{n}.wav", n % 2, n, 0.1, rate)
            sound.rename(sound.parent / os.fsdecode(b"\xe9%d.wav" % n))
    text(tmp_path / "train.csv", "id,label", "é0,x", "é1,y", "é2,x", "é3,y")
    comp = load(tmp_path)
    assert len(comp.clips) == 4 and noted(comp, "using audio/16 (16000 Hz)")


def test_noise_folders_with_the_same_names(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{label}/{label}{n}.wav" for label in ("yes", "no") for n in range(3)))
    for folder in ("_a_", "_b_"):
        sound = wave(tmp_path / folder / "x.wav", 0, 0, 0.3)
        sound.rename(sound.parent / os.fsdecode(b"\xe9.wav"))
    comp = load(tmp_path, noise_class="silence")
    assert len(comp.clips) == 12 and comp.clips["id"].is_unique


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{label}/{label}{n}.wav" for label in ("yes", "no") for n in range(3)))
    (tmp_path / "yes/gone.wav").symlink_to("/nowhere/gone.wav")
    assert len(load(tmp_path).clips) == 7


@pytest.mark.parametrize("more", [{}, {"label_pattern": "([a-z]+)[0-9]"}])
def test_a_map_that_leaves_nothing(tmp_path: Path, more: dict) -> None:
    waves(tmp_path, *(f"{label}/{label}{n}.wav" for label in ("yes", "no") for n in range(3)))
    assert "no training clip" in refused(tmp_path, label_map=("yes=", "no="), **more)


def test_many_copies_take_no_quadratic_time(tmp_path: Path) -> None:
    for top in ("a", "a/b"):
        for label in ("c0", "c1"):
            (tmp_path / top / label).mkdir(parents=True)
            for n in range(3000):
                (tmp_path / top / label / f"{label}x{n}.wav").write_bytes(n.to_bytes(44, "little"))
    began = time.perf_counter()
    assert len(layouts.recognise_layout(tmp_path, Reading()).clips) == 6000
    names = [f"s{speaker}/d/{n}.wav" for speaker in range(400) for n in range(100)]
    assert suspicious.find_duplicate_files(names, list(range(len(names)))) == ([], "")
    assert time.perf_counter() - began < 20


def labelled(path: Path, rows: range, *, header: str = "id,label", more: str = "") -> None:
    """A table of clips, two of each label in turn."""
    text(path, header, *(f"{n},{'xy'[n // 2 % 2]}{more.format(n=n, of=n % 7)}" for n in rows))


def groups_of(comp: Competition, name: str) -> set[str]:
    return set(comp.clips["group"][comp.clips["split"] == name])


def test_groups_of_validation_and_hold_out_by_their_names(tmp_path: Path) -> None:
    names = [f"speaker{n % 8}_{n}" for n in range(60)]
    waves(tmp_path, *(f"audio/{name}.wav" for name in names))
    for table, rows in (("train", range(40)), ("valid", range(40, 50)), ("test", range(50, 60))):
        text(tmp_path / f"{table}.csv", "id,label", *(f"{names[n]},{'xy'[n // 8 % 2]}" for n in rows))
    comp = load(tmp_path)
    speakers = {f"speaker{n}" for n in range(8)}
    assert groups_of(comp, "train") == groups_of(comp, "test") == speakers
    assert noted(comp, "8 groups (first: speaker0) have clips in train and in test")
    assert list(comp.clips["split"]) == ["train"] * 50 + ["test"] * 10


def test_one_column_of_groups_for_all_tables(tmp_path: Path) -> None:
    waves(tmp_path, *(f"audio/{n}.wav" for n in range(70)))
    labelled(tmp_path / "a.csv", range(40), header="id,label,speaker", more=",s{of}")
    labelled(tmp_path / "b.csv", range(40, 44), header="id,label,speaker", more=",s1")  # few, and the same
    labelled(tmp_path / "noisy.csv", range(44, 60))
    labelled(tmp_path / "test.csv", range(60, 70), header="id,label,speaker", more=",s{of}")
    comp = load(tmp_path, train_csv=("a.csv", "b.csv"), extra_csv=("noisy.csv:0.3",))
    assert list(comp.clips["group"][40:44]) == ["s1"] * 4
    assert noted(comp, "7 groups (first: s0) have clips in train and in test")


@pytest.mark.parametrize("weight", ["0.3", "1"])
def test_an_extra_table_and_the_hold_out(tmp_path: Path, weight: str) -> None:
    waves(tmp_path, *(f"audio/{n}.wav" for n in range(60)))
    labelled(tmp_path / "train.csv", range(40), header="id,label,speaker", more=",s{of}")
    labelled(tmp_path / "all.csv", range(60), header="id,label,speaker", more=",s{of}")
    comp = load(tmp_path, extra_csv=(f"all.csv:{weight}",), holdout="0.2")  # draws whole groups
    extra = comp.clips[comp.clips["fold"] == -2]
    assert 0 < len(extra) < 20 and not groups_of(comp, "test") & set(extra["group"])
    assert noted(comp, "share a group with the hold-out: not trained on")
    labelled(tmp_path / "test.csv", range(40, 50))
    comp = load(tmp_path, extra_csv=(f"all.csv:{weight}",))
    assert list(comp.clips["split"].value_counts()) == [50, 10] and comp.clips["path"].is_unique
    assert noted(comp, "10 clips of --extra-csv are in the hold-out: not trained on")


@pytest.mark.parametrize("hidden", ["", "?"])
def test_a_split_column_without_labels_is_to_be_submitted(tmp_path: Path, hidden: str) -> None:
    waves(tmp_path, *(f"audio/{n}.wav" for n in range(12)))
    rows = [f"{n},{'xy'[n % 2] if n < 8 else hidden},{'train' if n < 8 else 'test'}" for n in range(12)]
    text(tmp_path / "metadata.csv", "id,label,split", *rows)
    assert [id for id, _ in split(load(tmp_path), "subm")] == ["8", "9", "10", "11"]
    text(tmp_path / "metadata.csv", "id,label,split", *rows[:8], "8,x,test", "9,y,odd")
    assert noted(load(tmp_path), "warning: metadata.csv: column split is not used")


def test_a_sample_takes_no_training_clips_of_the_same_names(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{folder}/{n}.wav" for folder in ("cat", "dog", "test") for n in range(4)))
    text(tmp_path / "sample_submission.csv", "id,label", *(f"{n},cat" for n in range(4)))
    comp = load(tmp_path)
    assert comp.classes == ["cat", "dog"] and len(split(comp, "train")) == 8 and len(split(comp, "subm")) == 4


def test_the_ends_of_names_on_both_sides(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{side}/clip_{n}.wav" for side in ("train", "test") for n in range(6)))
    text(tmp_path / "train.csv", "id,label", *(f"{n},{'xy'[n % 2]}" for n in range(6)))
    text(tmp_path / "sample_submission.csv", "id,label", *(f"{n},x" for n in range(6)))
    comp = load(tmp_path)
    for name, folder in (("train", "train"), ("subm", "test")):
        paths = comp.clips["path"][comp.clips["split"] == name]
        assert [path.split("/")[-2:] for path in paths] == [[folder, f"clip_{n}.wav"] for n in range(6)]


def test_a_group_pattern_need_not_match_the_hold_out(tmp_path: Path) -> None:
    waves(tmp_path, *(f"train/{label}/s{n % 2}_{n}.wav" for label in ("cat", "dog") for n in range(4)))
    waves(tmp_path, *(f"test/{label}/{n}.wav" for label in ("cat", "dog") for n in range(4)))
    comp = load(tmp_path, group_pattern=r"/(s\d)_")
    assert groups_of(comp, "train") == {"s0", "s1"} and groups_of(comp, "test") == {""}


def test_groups_by_names_of_clips_with_several_labels(tmp_path: Path) -> None:
    names = [f"speaker{n % 8}_{n}" for n in range(64)]
    waves(tmp_path, *(f"audio/{name}.wav" for name in names))
    sets = [",".join(x for bit, x in enumerate("uvwxyz") if not bit or (n + 1) >> bit & 1) for n in range(64)]
    rows = (f'{name},"{one}"' for name, one in zip(names, sets, strict=True))
    text(tmp_path / "train.csv", "id,labels", *rows)
    assert groups_of(load(tmp_path), "train") == {f"speaker{n}" for n in range(8)}


def test_sources_of_the_hold_out_alone_make_no_groups(tmp_path: Path) -> None:
    for part, speakers in (("train", [0]), ("test", range(1, 8))):
        for label in ("cat", "dog"):
            waves(tmp_path, *(f"{part}/{label}/speaker{s}_{n}.wav" for s in speakers for n in range(4)))
    assert groups_of(load(tmp_path), "train") == {""}
