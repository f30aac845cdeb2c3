"""Sample submissions as contests have them: other names, codes for labels, ids of other suffixes, spellings
of columns, ranks in columns, and those that are refused with the way out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from layout_files import files, refused

from earshot.competition.load import Competition, load
from earshot.prediction import submission

CLASSES = ("jay", "owl", "wren")


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def folders(root: Path, *tests: str) -> Path:
    """Three class folders of two clips, and clips to submit."""
    files(root, *(f"train/{c}/{c}{k}.wav" for c in CLASSES for k in range(2)))
    files(root, *(tests or ("test/10.wav", "test/11.wav")))
    return root


def listed(root: Path, *labels: str) -> Path:
    """A train.csv of four clips, and two clips to submit."""
    files(root, *(f"train/{k}.wav" for k in range(len(labels))), "test/10.wav", "test/11.wav")
    write(root / "train.csv", "id,label", *(f"{k},{label}" for k, label in enumerate(labels)))
    return root


def subm(comp: Competition) -> list[tuple[str, str]]:
    part = comp.clips[comp.clips["split"] == "subm"]
    return [(id, Path(path).name) for id, path in zip(part["id"], part["path"], strict=True)]


def said(comp: Competition, words: str) -> bool:
    return any(words in note for note in comp.notes)


def test_ids_with_another_suffix_than_the_files(tmp_path: Path) -> None:
    root = folders(tmp_path)
    write(root / "sample_submission.csv", "id,label", "11.npy,jay", "10.npy,jay")
    comp = load(root, out=tmp_path / "out")
    assert subm(comp) == [("11.npy", "11.wav"), ("10.npy", "10.wav")]
    assert said(comp, "except for their suffix")


def test_ids_that_are_no_files_are_refused_or_mapped(tmp_path: Path) -> None:
    root = folders(tmp_path, "test/a.wav", "test/b.wav", "test/c.wav")
    write(root / "sample_submission.csv", "Id,Category", "1,jay", "2,jay", "3,jay")
    line = refused(root, out=tmp_path / "out")
    assert "none of the 3 ids" in line and "put a test.csv beside it" in line
    write(root / "test.csv", "Id,filename", "2,a.wav", "1,b.wav", "3,c.wav")
    comp = load(root, out=tmp_path / "out")
    assert dict(subm(comp)) == {"1": "b.wav", "2": "a.wav", "3": "c.wav"}
    (root / "test.csv").unlink()  # of a folder that is filled later: not refused
    write(root / "sample_submission.csv", "Id,Category", *(f"{k},jay" for k in range(9)))
    assert said(
        load(root, out=tmp_path / "out"), "warning: no row of sample_submission.csv has an audio file"
    )


def test_a_test_folder_that_is_not_there_is_warned_of(tmp_path: Path) -> None:
    root = folders(tmp_path, "train/jay/more.wav")
    write(root / "sample_submission.csv", "id,label", "10.wav,jay", "11.wav,jay")
    assert said(
        load(root, out=tmp_path / "out"), "warning: no row of sample_submission.csv has an audio file"
    )


@pytest.mark.parametrize("beside", ["test_a", "test_soundscapes", "private_test", "unlabelled"])
def test_a_folder_beside_the_classes_folder_is_no_class(tmp_path: Path, beside: str) -> None:
    root = folders(tmp_path, "test_b/10.wav", "test_b/11.wav", f"{beside}/x.wav")
    write(root / "submit_sample.csv", "id,label", "10.wav,jay", "11.wav,jay")
    comp = load(root, out=tmp_path / "out")
    assert comp.classes == list(CLASSES) and len(subm(comp)) == 2


@pytest.mark.parametrize(
    "name", ["sub.csv", "sample.csv", "baseline.csv", "SubmissionFile.csv", "test_labels.csv"]
)
def test_other_names_of_a_sample(tmp_path: Path, name: str) -> None:
    root = listed(tmp_path, "0", "1", "0", "1")
    write(root / name, "clip,answer", "11,0", "10,0")
    comp = load(root, out=tmp_path / "out")
    assert subm(comp) == [("11", "11.wav"), ("10", "10.wav")] and comp.label_column == "answer"


def test_a_list_of_training_clips_is_no_sample(tmp_path: Path) -> None:
    root = listed(tmp_path, "0", "1", "0", "1")
    write(root / "sample.csv", "id,label", "0,0", "2,0")
    assert load(root, out=tmp_path / "out").sample_submission is None


@pytest.mark.parametrize("kind", ["class_map.csv", "labels.txt", "label2id.json", "id2label.json"])
@pytest.mark.parametrize("table", [False, True])
def test_numbers_for_labels_by_the_file_that_counts_them(tmp_path: Path, kind: str, table: bool) -> None:
    root = listed(tmp_path, *CLASSES, "owl") if table else folders(tmp_path)
    write(root / "sample_submission.csv", "id,target", "10,0", "11,2")
    names = ["wren", "jay", "owl"]
    number_of = {name: number for number, name in enumerate(names)}
    lines = {
        "class_map.csv": ["class_id,class_name", *(f"{n},{name}" for name, n in number_of.items())],
        "labels.txt": names,
        "label2id.json": [json.dumps(number_of)],
        "id2label.json": [json.dumps(dict(enumerate(names)))],
    }
    write(root / kind, *lines[kind])
    comp = load(root, out=tmp_path / "out")
    assert comp.classes == ["0", "1", "2"] and said(
        comp, f"by the codes in {kind}, jay is 1, owl is 2, wren is 0"
    )
    train = comp.clips[comp.clips["split"] == "train"]
    assert all(
        number_of[Path(path).parent.name] == int(label)
        for path, label in zip(train["path"], train["label"], strict=True)
        if not table
    )


def test_numbers_for_labels_without_a_list(tmp_path: Path) -> None:
    root = folders(tmp_path)
    write(root / "sample_submission.csv", "id,target", "10,0", "11,2")
    assert "give --label-map jay=0 owl=1 wren=2" in refused(root, out=tmp_path / "out")
    comp = load(root, out=tmp_path / "out", label_map=["jay=0", "owl=1", "wren=2"])
    assert comp.classes == ["0", "1", "2"]
    write(root / "sample_submission.csv", "id,target", "10,0", "11,0")  # may be a placeholder
    assert said(load(root, out=tmp_path / "out"), "for numbers, give --label-map jay=0 owl=1 wren=2")


def test_a_single_number_beside_a_column_of_codes(tmp_path: Path) -> None:
    root = folders(tmp_path)
    write(
        root / "train.csv",
        "id,label,code",
        *(f"{c}{k},{c},{n}" for n, c in enumerate(CLASSES) for k in (0, 1)),
    )
    write(root / "sample_submission.csv", "id,answer", "10,0", "11,0")
    comp = load(root, out=tmp_path / "out")
    assert comp.classes == list(CLASSES) and said(comp, "--label-column code")
    write(root / "sample_submission.csv", "id,answer", "10,0", "11,1")
    assert load(root, out=tmp_path / "out").classes == ["0", "1", "2"]


@pytest.mark.parametrize("columns", ["Wren,JAY,Owl", "wren_prob,Jay_prob,owl_prob", "p wren,p Jay,p owl"])
def test_columns_in_another_spelling_name_the_flag(tmp_path: Path, columns: str) -> None:
    root = folders(tmp_path)
    write(root / "sample_submission.csv", f"id,{columns}", "10,0,0,0", "11,0,0,0")
    line = refused(root, out=tmp_path / "out")
    wren, jay, owl = columns.split(",")
    assert "--label-map" in line and f"wren={wren}" in line
    comp = load(root, out=tmp_path / "out", label_map=[f"wren={wren}", f"jay={jay}", f"owl={owl}"])
    assert set(comp.classes) == {wren, jay, owl}


def test_a_column_per_rank(tmp_path: Path) -> None:
    sample = write(tmp_path / "s.csv", "id,first,second", "a,jay,owl", "b,jay,owl")
    found = np.array([[0.1, 0.3, 0.6], [0.5, 0.1, 0.4]])
    data, _ = submission.render(np.array(["b", "a"]), found, list(CLASSES), ("id", "label"), sample)
    assert data.decode().split() == ["id,first,second", "a,jay,wren", "b,wren,owl"]


@pytest.mark.parametrize(
    "labels, ok",
    [([f"{k}.5" for k in range(6)], False), (["1.0", "2.0"] * 3, True), (["1.5", "2"] * 3, True)],
)
def test_a_quantity_is_refused(tmp_path: Path, labels: list[str], ok: bool) -> None:
    root = listed(tmp_path, *labels)
    if ok:
        fractions = any(label.endswith(".5") for label in labels)
        assert said(load(root, out=tmp_path / "out"), "predicts no quantities") == fractions
    else:
        assert "predicts classes, not quantities; make classes of them" in refused(root, out=tmp_path / "out")


def test_several_rows_of_a_clip_are_refused_plainly(tmp_path: Path) -> None:
    root = folders(tmp_path)
    rows = [f"{id},{c},0.5" for id in (10, 11) for c in CLASSES]
    write(root / "sample_submission.csv", "id,class,probability", *rows)
    line = refused(root, out=tmp_path / "out")
    assert "6 rows for 2 ids" in line and "ids such as 10_jay and a single column probability" in line


def test_zeros_below_a_header_that_may_mean_either(tmp_path: Path) -> None:
    root = listed(tmp_path, "0", "1", "0", "1")
    files(root, "test/x.wav")
    write(root / "sample_submission.csv", "id,target", "x,0", "11,0")
    assert said(load(root, out=tmp_path / "out"), "holds only 0, so labels are submitted")


def test_labels_in_a_file_that_is_not_read_are_named(tmp_path: Path) -> None:
    files(tmp_path, *(f"train/{k}.wav" for k in range(3)))
    write(tmp_path / "train.json", json.dumps([{"file": "0.wav", "label": "jay"}]))
    assert "train.json: save it as train.csv (python -c" in refused(tmp_path, out=tmp_path / "out")


def test_a_validation_table_that_counts_anew(tmp_path: Path) -> None:
    files(tmp_path, *(f"{part}/{k:03}.wav" for part in ("train", "val", "test") for k in range(4)))
    for part in ("train", "val"):
        write(tmp_path / f"{part}.csv", "id,label", *(f"{k},{CLASSES[k % 2]}" for k in range(4)))
    write(tmp_path / "sample_submission.csv", "id,label", *(f"{k},jay" for k in range(4)))
    comp = load(tmp_path, out=tmp_path / "out")
    train = comp.clips[comp.clips["split"] == "train"]
    assert train["id"].is_unique and train["path"].is_unique and len(train) == 8
    assert subm(comp) == [(f"{k}", f"{k:03}.wav") for k in range(4)]
