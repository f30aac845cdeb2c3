"""Files as people have them: class folders with a sample submission, tables without a header, several tables,
joined tables, labels in names, lists, splits, noise folders, and the flags that overrule."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import soundfile
from conftest import script, tone
from layout_files import refused

from earshot.competition.load import Competition, load
from earshot.core.errors import TemporaryError


def wave(path: Path, kind: int = 0, number: int = 0, seconds: float = 0.1, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(kind, number, rate, seconds), rate)
    return path


def waves(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        wave(root / name, number % 3, number)
    return root


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def split(comp: Competition, name: str) -> list[tuple]:
    part = comp.clips[comp.clips["split"] == name]
    return list(zip(part["id"], part["label"], strict=True))


def noted(comp: Competition, words: str) -> bool:
    return any(words in note for note in comp.notes)


def folders(root: Path) -> Path:
    """Two classes of three clips, and three to submit."""
    waves(root, *(f"train/{c}/{c}{k}.wav" for c in ("jay", "owl") for k in range(3)))
    return waves(root, *(f"test/{k:02d}.wav" for k in range(3)))


@pytest.mark.parametrize(
    "where", ["sample_submission.csv", "sub/SampleSubmission.csv", "submission_format.csv"]
)
def test_class_folders_take_the_shape_of_the_sample(tmp_path: Path, where: str) -> None:
    root = folders(tmp_path / "set")
    text(root / where, "Id,Category", "02.wav,owl", "00.wav,owl", "01.wav,owl")
    comp = load(root, out=tmp_path)
    assert [id for id, _ in split(comp, "subm")] == ["02.wav", "00.wav", "01.wav"]
    assert (comp.id_column, comp.label_column, comp.classes) == ("Id", "Category", ["jay", "owl"])
    assert comp.sample_submission == root / where and noted(comp, f"submission as in {Path(where).name}")


def test_class_folders_end_in_a_submission_of_the_samples_shape(tmp_path: Path) -> None:
    root = folders(tmp_path / "set")
    text(root / "sample_submission.csv", "Id,owl,jay", "02,0,0", "00,0,0", "01,0,0")
    small = ("--extractor", "logmel", "--n-mels", "16", "--device", "cpu")
    script("get_features.py", "--competition", "set", *small, cwd=tmp_path)
    flags = ("--recipe", "linear", "--epochs", "2", "--folds", "2", "--no-report")
    script("train.py", *flags, cwd=tmp_path)
    lines = (tmp_path / "submissions" / "submission.csv").read_text().splitlines()
    assert lines[0] == "Id,owl,jay" and [line[:3] for line in lines[1:]] == ["02,", "00,", "01,"]


def test_a_lone_folder_of_the_test_side_is_no_class(tmp_path: Path) -> None:
    waves(tmp_path, *(f"train/audio/{c}/{k}.wav" for c in ("jay", "owl") for k in range(2)))
    waves(tmp_path, "test/audio/x.wav", "test/audio/y.wav")
    comp = load(tmp_path)
    assert comp.classes == ["jay", "owl"] and [i for i, _ in split(comp, "subm")] == ["x.wav", "y.wav"]
    assert split(comp, "test") == []


def test_hold_out_folders_that_are_no_class_are_left_out_and_a_map_takes_them(tmp_path: Path) -> None:
    waves(tmp_path, *(f"train/{c}/{k}.wav" for c in ("cat", "dog") for k in range(3)))
    waves(tmp_path, "test/cats/7.wav", "test/dog/8.wav")
    comp = load(tmp_path)
    assert split(comp, "test") == [("8.wav", "dog")] and noted(comp, "--label-map cats=cat")
    comp = load(tmp_path, label_map=("cats=cat",))
    assert split(comp, "test") == [("7.wav", "cat"), ("8.wav", "dog")]


def test_noise_folders_are_left_out_or_become_a_class(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{c}/{k}.wav" for c in ("go", "stop") for k in range(3)))
    wave(tmp_path / "_background_noise_" / "wind.wav", seconds=0.35)
    comp = load(tmp_path)
    assert comp.classes == ["go", "stop"] and noted(comp, "--noise-class silence")
    comp = load(tmp_path, noise_class="silence")
    cut = comp.clips[comp.clips["label"] == "silence"]
    assert cut[["start", "end"]].values.tolist() == [[0.0, 0.1], [0.1, 0.2], [0.2, 0.3]]
    assert set(cut["group"]) == {"_background_noise_/wind.wav"} and len(comp.classes) == 3
    script(
        "get_features.py",
        "--competition",
        str(tmp_path),
        "--noise-class",
        "silence",
        "--extractor",
        "logmel",
        "--n-mels",
        "16",
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
        cwd=tmp_path,
    )
    assert "no folder such as _background_noise_" in refused(folders(tmp_path / "set"), noise_class="silence")


def test_noise_beside_a_table(tmp_path: Path) -> None:
    waves(tmp_path, *(f"clips/{k}.wav" for k in range(4)))
    wave(tmp_path / "_noise_" / "hum.wav", seconds=0.25)
    text(tmp_path / "train.csv", "fname,label", *(f"{k}.wav,{'xy'[k % 2]}" for k in range(4)))
    assert load(tmp_path).classes == ["x", "y"]
    comp = load(tmp_path, noise_class="none of them")
    assert comp.classes == ["none of them", "x", "y"] and comp.clips["end"].notna().sum() == 2


def test_official_lists_are_the_hold_out(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{c}/{k}.wav" for c in ("go", "stop") for k in range(4)))
    text(tmp_path / "testing_list.txt", "go/3.wav", "stop/3.wav")
    text(tmp_path / "validation_list.txt", "go/2.wav")
    comp = load(tmp_path)
    assert split(comp, "test") == [("2.wav", "go"), ("go/3.wav", "go"), ("stop/3.wav", "stop")]
    assert len(split(comp, "train")) == 5 and noted(comp, "testing_list.txt, validation_list.txt: 3 clips")


def test_official_fold_lists(tmp_path: Path) -> None:
    waves(tmp_path, *(f"audio/{k}.wav" for k in range(6)))
    text(tmp_path / "meta.txt", *(f"audio/{k}.wav\t{'ab'[k % 2]}" for k in range(6)))
    for fold in (1, 2, 3):
        text(
            tmp_path / "setup" / f"fold{fold}_train.txt",
            *(f"audio/{k}.wav\ta" for k in range(6) if k // 2 != fold - 1),
        )
        text(
            tmp_path / "setup" / f"fold{fold}_evaluate.txt",
            *(f"audio/{k}.wav\ta" for k in range(6) if k // 2 == fold - 1),
        )
    comp = load(tmp_path, train_csv="meta.txt")
    assert comp.clips["fold"].tolist() == [1, 1, 2, 2, 3, 3] and comp.classes == ["a", "b"]


def test_tables_without_a_header(tmp_path: Path) -> None:
    waves(tmp_path, *(f"a{k}.wav" for k in range(4)))
    text(tmp_path / "train.csv", "a0.wav,owl", "a1.wav,jay", "a2.wav,owl", "a3.wav,jay")
    comp = load(tmp_path)
    assert [label for _, label in split(comp, "train")] == ["owl", "jay", "owl", "jay"]
    assert noted(comp, "train.csv has no header: its columns are named column 1, column 2")
    # a matrix of 0 and 1, the file by the number that ends its name
    text(tmp_path / "train.csv", "0,1,0,1", "1,0,1,1", "2,1,1,0", "3,0,0,1")
    comp = load(tmp_path)
    assert (
        comp.multilabel and comp.classes == ["1", "2", "3"] and split(comp, "train")[0] == ("0", ("1", "3"))
    )


def test_several_tables_and_a_noisier_one(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{k}.wav" for k in range(6)))
    text(tmp_path / "a.csv", "fname,label", "0.wav,x", "1.wav,y")
    text(tmp_path / "b.csv", "fname,label", "2.wav,x", "3.wav,y")
    text(tmp_path / "noisy.csv", "fname,label", "3.wav,x", "4.wav,x", "5.wav,y")
    line = refused(tmp_path)
    command = f"python get_features.py --competition {tmp_path} --train-csv a.csv --train-csv b.csv"
    assert command in line and "--extra-csv noisy.csv:0.3" in line
    comp = load(tmp_path, train_csv=("a.csv", "b.csv"), extra_csv=("noisy.csv:0.25",))
    assert comp.clips[["id", "label", "weight", "fold"]].values.tolist() == [
        ["0.wav", "x", 1.0, -1],
        ["1.wav", "y", 1.0, -1],
        ["2.wav", "x", 1.0, -1],
        ["3.wav", "y", 1.0, -1],  # the first table's word counts
        ["4.wav", "x", 0.25, -2],
        ["5.wav", "y", 0.25, -2],
    ]
    for odd in ("noisy.csv", "noisy.csv:x", "noisy.csv:0", "noisy.csv:1.5", ":0.5"):
        assert "give FILE:WEIGHT" in refused(tmp_path, train_csv="a.csv", extra_csv=(odd,))
    assert "no train csv none.csv" in refused(tmp_path, train_csv=("a.csv", "none.csv"))
    (tmp_path / "noisy.csv").unlink()
    assert len(split(load(tmp_path), "train")) == 4  # of one header, of different clips: both


def test_repeated_flags_reach_the_reader(tmp_path: Path) -> None:
    waves(tmp_path / "set", *(f"{k}.wav" for k in range(6)))
    for name, rows in {"a": "0.wav,x 1.wav,y", "b": "2.wav,x 3.wav,y", "c": "4.wav,z 5.wav,y"}.items():
        text(tmp_path / "set" / f"{name}.csv", "fname,label", *rows.split())
    flags = "--train-csv a.csv --train-csv b.csv --extra-csv c.csv:0.5 --label-map z=x --label-map y".split()
    small = ("--extractor", "logmel", "--n-mels", "16", "--device", "cpu")
    done = script("get_features.py", "--competition", "set", *flags, *small, cwd=tmp_path)
    assert (
        "train: 6 clips, 2 classes" in done.stdout
        and "2 more training clips, each with weight 0.5" in done.stdout
    )


def test_ids_through_another_table_and_labels_of_any_number(tmp_path: Path) -> None:
    waves(tmp_path, "wavs/PC1_a.wav", "wavs/PC2_b.wav", "wavs/PC3_c.wav")
    text(tmp_path / "id2file.txt", "rec_id,filename", "0,PC1_a", "1,PC2_b", "2,PC3_c")
    text(tmp_path / "labels.txt", "rec_id,[labels]", "0,4,7", "1", "2,?")
    comp = load(
        tmp_path,
        train_csv="labels.txt",
        id_column="rec_id",
        label_column="[labels]",
        task="multilabel",
        empty="none",
    )
    assert split(comp, "train") == [("0", ("4", "7")), ("1", ())] and noted(comp, "1 rows have the label ?")


def test_rows_that_are_events_and_a_column_of_splits(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{k}.wav" for k in range(4)))
    rows = [
        "0.wav,0.1,0.5,owl,train",
        "0.wav,0.5,0.9,jay,train",
        "1.wav,0,1,owl,train",
        "2.wav,0,1,jay,val",
        "3.wav,0,1,jay,test",
    ]
    text(tmp_path / "meta.csv", "fname,t_min,t_max,label,split", *rows)
    comp = load(tmp_path)
    assert comp.multilabel and split(comp, "train") == [
        ("0.wav", ("jay", "owl")),
        ("1.wav", ("owl",)),
        ("2.wav", ("jay",)),
    ]
    assert split(comp, "test") == [("3.wav", ("jay",))]


def test_labels_in_names_and_sources(tmp_path: Path) -> None:
    waves(tmp_path, *(f"AudioWAV/{a}_DFA_{e}.wav" for a in range(1001, 1008) for e in ("ANG", "SAD")))
    line = refused(tmp_path)
    assert "--label-pattern" in line and "no known layout" in line
    comp = load(tmp_path, label_pattern=r"_([A-Z]+)\.wav$", group_pattern=r"(\d+)_")
    assert comp.classes == ["ANG", "SAD"] and comp.clips["group"].nunique() == 7
    names = {"label_pattern": r"_([A-Z]+)\.wav$", "label_map": ("ANG=angry", "others=other")}
    comp = load(tmp_path, **names, group_column="none")
    assert comp.classes == ["angry", "other"] and set(comp.clips["group"]) == {""}
    assert "not a regular expression" in refused(tmp_path, label_pattern="(")
    assert "matches no" in refused(tmp_path, label_pattern="zzz(.)")
    assert "give OLD=NEW" in refused(tmp_path, label_pattern=r"_([A-Z]+)\.wav$", label_map=("a=b=c",))


def test_a_group_column_is_found_named_and_overruled(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{k:02d}.wav" for k in range(20)))
    rows = [f"{k:02d}.wav,{'xy'[k % 2]},p{k // 4},s{k // 10}" for k in range(20)]
    text(tmp_path / "train.csv", "fname,label,patient_id,ward", *rows)
    comp = load(tmp_path)
    assert comp.clips["group"].nunique() == 5 and noted(comp, "patient_id")
    assert set(load(tmp_path, group_column="ward").clips["group"]) == {"s0", "s1"}
    assert set(load(tmp_path, group_column="none").clips["group"]) == {""}
    assert "no column nurse" in refused(tmp_path, group_column="nurse")
    # the data's own folds win, and say so
    text(
        tmp_path / "train.csv",
        "fname,label,patient_id,fold",
        *(f"{row.rpartition(',')[0]},{k % 2}" for k, row in enumerate(rows)),
    )
    comp = load(tmp_path)
    assert (
        noted(comp, "the folds are kept")
        and set(comp.clips["fold"]) == {0, 1}
        and set(comp.clips["group"]) == {""}
    )


def test_the_same_clips_at_two_rates(tmp_path: Path) -> None:
    for rate in (8000, 16000):
        for k in range(4):
            wave(tmp_path / "audio" / str(rate) / f"{k}.wav", k % 2, k, rate=rate)
    text(tmp_path / "meta.csv", "filename,category", *(f"{k}.wav,{'ab'[k % 2]}" for k in range(4)))
    comp = load(tmp_path)
    assert all("/16000/" in path for path in comp.clips["path"]) and noted(comp, "--audio-folder")
    comp = load(tmp_path, audio_folder="audio/8000")
    assert all("/8000/" in path for path in comp.clips["path"])
    assert "no audio in that folder" in refused(tmp_path, audio_folder="audio/44100")


def test_a_table_that_names_the_audio_beats_folders(tmp_path: Path) -> None:
    waves(tmp_path, *(f"set_{s}/{k}{s}.wav" for s in "ab" for k in range(4)))
    text(tmp_path / "set_a.csv", "fname,label", *(f"set_a/{k}a.wav,{'xy'[k % 2]}" for k in range(4)))
    text(tmp_path / "set_b.csv", "fname,label", *(f"set_b/{k}b.wav,{'xy'[k % 2]}" for k in range(4)))
    assert load(tmp_path).classes == ["x", "y"] and len(split(load(tmp_path), "train")) == 8


def test_classes_of_the_samples_columns_by_a_common_head(tmp_path: Path) -> None:
    waves(tmp_path, *(f"train/{k}.wav" for k in range(4)), "test/t.wav")
    text(tmp_path / "train.csv", "fname,species_id", *(f"{k}.wav,{k % 2}" for k in range(4)))
    text(tmp_path / "sample_submission.csv", "fname,s0,s1", "t.wav,0,0")
    comp = load(tmp_path, label_column="species_id")
    assert comp.classes == ["s0", "s1"] and not noted(comp, "warning")


def test_long_names_of_folders_are_no_traceback(tmp_path: Path) -> None:
    """Speaker, video and file folders: the way out is named."""
    waves(tmp_path, *(f"id1027{s}/v{v}/{k:05d}.wav" for s in range(3) for v in range(2) for k in range(2)))
    line = refused(tmp_path)
    assert "--label-pattern" in line
    assert len(load(tmp_path, label_pattern="^([^/]+)/").classes) == 3


def test_a_list_of_bare_names_that_several_classes_have_holds_nothing_out(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{c}/{k}.wav" for c in ("go", "stop") for k in range(3)))
    text(tmp_path / "testing_list.txt", "0.wav", "1.wav")
    assert split(load(tmp_path), "test") == []


def test_a_text_that_fails_to_be_read_is_no_missing_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drive that fails stops the reading; the table it holds would be left out otherwise."""
    waves(tmp_path, *(f"{c}/{k}.wav" for c in ("go", "stop") for k in range(3)))
    text(tmp_path / "meta.txt", "go/0.wav\tx", "stop/0.wav\ty")

    def fails(path: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("earshot.competition.tables.os.path.getsize", fails)
        with pytest.raises(TemporaryError, match="meta.txt: Input/output error"):
            load(tmp_path)
