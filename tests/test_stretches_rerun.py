"""Rows to submit that the public files do not list: hidden reruns of BirdCLEF, ids of earlier years, and
tables that map rows to files and seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import read_csv
from layout_files import csv as write
from layout_files import files

from earshot.competition import segments
from earshot.competition.file_index import Files
from earshot.competition.labels import Labels
from earshot.competition.layout import Layout, build_table
from earshot.competition.load import load
from earshot.competition.submission_rows import build_submission_rows, build_unlabelled_rows
from earshot.core import csv_table
from earshot.core.errors import UserError

RATE = 1000
ZEROS = "row_id,jay,owl"


def recording(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(np.arange(round(seconds * RATE)) * 0.7 + seconds)
    soundfile.write(path, wave, RATE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "birds"
    files(root, "train_audio/owl/a.wav", "train_audio/jay/b.wav")
    write(root / "train.csv", "filename,primary_label owl/a.wav,owl jay/b.wav,jay")
    return root


def rows(root: Path, *tables: str) -> tuple[list[tuple], Layout]:
    """(id, file, start, end) of the clips to submit, and the layout that was found on the way."""
    csv = root / "sample_submission.csv"
    frame = csv_table.read(csv)
    labelled = [str(root / "train_audio" / name) for name in ("owl/a.wav", "jay/b.wav")]
    train = build_table(["a", "b"], labelled, "train", labels=["owl", "jay"])
    found = Layout("Kaggle csv", train, frame.columns[0], "label", csv, Labels(("label",)))
    read = [(root / name, csv_table.read(root / name)) for name in tables]
    return listed(build_submission_rows(Files(root), frame, csv, train, found, read)), found


def listed(clips: pd.DataFrame) -> list[tuple]:
    times = clips[["start", "end"]].astype(object).where(clips.end.notna(), None)
    return [
        (id, Path(path).name, start, end)
        for id, path, (start, end) in zip(clips.id, clips.path, times.to_numpy(), strict=True)
    ]


def sample(root: Path, *ids: str, header: str = ZEROS) -> None:
    write(root / "sample_submission.csv", " ".join([header, *(f"{id},0.5,0.25" for id in ids)]))


def test_a_rerun_has_rows_for_every_recording(root: Path, tmp_path: Path) -> None:
    """Full steps, and the rest from half a step on; by file name, then second; cells as in the first row."""
    for name, seconds in (("soundscape_20", 12.4), ("soundscape_3", 4.99), ("soundscape_100", 12.6)):
        recording(root / "test_soundscapes" / f"{name}.wav", seconds)
    recording(root / "test_soundscapes" / "soundscape_9.wav", 1)
    sample(root, "soundscape_8358733_5", "soundscape_8358733_10", "soundscape_8358733_15")
    found = load(root, out=tmp_path / "data")
    made = listed(found.clips[found.clips.split == "subm"])
    assert made == [
        ("soundscape_100_5", "soundscape_100.wav", 0, 5),
        ("soundscape_100_10", "soundscape_100.wav", 5, 10),
        ("soundscape_100_15", "soundscape_100.wav", 10, 15),
        ("soundscape_20_5", "soundscape_20.wav", 0, 5),
        ("soundscape_20_10", "soundscape_20.wav", 5, 10),
        ("soundscape_3_5", "soundscape_3.wav", 0, 5),
        ("soundscape_9_5", "soundscape_9.wav", 0, 5),
    ]
    assert not found.missing and any(
        "placeholder of 3 rows: using 7 rows, one for every 5 s of the 4 recordings" in note
        for note in found.notes
    )
    written = read_csv(found.sample_submission)
    assert found.sample_submission.parent == tmp_path / "data" / "birds"
    assert [tuple(row.values()) for row in written] == [(id, "0.5", "0.25") for id, *_ in made]


def test_the_rerun_of_2026(root: Path) -> None:
    """Recordings of a place, a date and a time; labelled recordings of the training folder are not meant."""
    stem = "BC2026_Test_0001_S05_20250227_010002"
    recording(root / "test_soundscapes" / f"{stem}.ogg", 10)
    recording(root / "train_soundscapes" / "BC2026_Train_0001_S08_20250606_030007.ogg", 10)
    write(root / "taxonomy.csv", "primary_label,class_name owl,Aves jay,Aves")
    write(
        root / "train_soundscapes_labels.csv",
        "filename,start,end,primary_label "
        "BC2026_Train_0001_S08_20250606_030007.ogg,00:00:00,00:00:05,jay;owl",
    )
    sample(root, "BC2026_Test_0007_S05_20250301_020000_5", "BC2026_Test_0007_S05_20250301_020000_10")
    found = load(root, out=root.parent / "data")
    made = listed(found.clips[found.clips.split == "subm"])
    assert made == [(f"{stem}_5", f"{stem}.ogg", 0, 5), (f"{stem}_10", f"{stem}.ogg", 5, 10)]
    sample(root, f"{stem}_5", f"{stem}_10", "BC2026_Test_0007_S05_20250301_020000_5")  # one is there
    made, found = rows(root)
    assert [row[:2] for row in made][2] == ("BC2026_Test_0007_S05_20250301_020000_5", "")
    assert found.example is None and len(found.missing) == 1


def test_recordings_that_cannot_be_read_get_the_usual_rows(root: Path) -> None:
    for name in "pqr":
        recording(root / "test_soundscapes" / f"{name}.wav", 10)
    (root / "test_soundscapes" / "q.wav").write_bytes(b"RIFF no such thing")
    sample(root, "gone_5", "gone_10")
    made, found = rows(root)
    assert [row[0] for row in made] == ["p_5", "p_10", "q_5", "q_10", "r_5", "r_10"]
    assert [note for note in found.notes if note.startswith("warning")] == [
        "warning: the length of 1 recordings can't be read (test_soundscapes/q.wav): they get rows as "
        "most have"
    ]
    for name in "pr":
        (root / "test_soundscapes" / f"{name}.wav").write_bytes(b"")
    made, found = rows(root)
    assert [row[0] for row in made] == ["gone_5", "gone_10"] and found.example is None
    assert any("they get no rows" in note for note in found.notes)


@pytest.mark.parametrize(
    "header, ids, first",
    [
        (ZEROS, "", "r_1_5"),  # a header alone
        ("id,jay,owl", "", "r_1"),
        (ZEROS, "x_20 x_40", "r_1_20"),
        (ZEROS, "x_1 x_2", "r_1_1"),
        (ZEROS, "x_05 x_10", "r_1_05"),
        ("id,jay,owl", "clip_1 clip_2", "clip_1"),  # counted clips
        (ZEROS, "r_5 r_10", "r_5"),  # called as the files are
        ("id,jay,owl", "r_8_5 r_8_10", "r_1_5"),
        (ZEROS, "x_0 x_5", "x_0"),
        (ZEROS, "x_owl_5 x_owl_10 x_jay_5", "x_owl_5"),  # a class in each
        (ZEROS, "a_5 b_5 c_5", "a_5"),  # more recordings than there are
        (ZEROS, "x_5 foo", "x_5"),
        (ZEROS, "site_r_1_5 site_r_1_10", "site_r_1_5"),  # a recording that is there
    ],
)
def test_which_samples_stand_for_stretches(root: Path, header: str, ids: str, first: str) -> None:
    for name in ("r_1", "r_2"):
        recording(root / "test_soundscapes" / f"{name}.wav", 40)
    sample(root, *ids.split(), header=header)
    made, found = rows(root)
    assert made[0][0] == first
    assert (found.example is None) == (ids != "" and first == ids.split()[0])
    assert any("has no row" in note for note in found.notes) == (header == ZEROS and not ids)


@pytest.mark.parametrize(
    "ids, there, seconds",
    [
        ("soundscape_8358733_5 soundscape_8358733_10 soundscape_8358733_15", False, 5),
        ("x_20 x_40", False, 20),
        ("r_1_5 r_1_10", True, 5),
        ("", False, 5),  # a column row_id alone
        ("x_5 foo", False, None),
        ("x_0 x_5", False, None),
        ("r_1 r_2", True, None),  # files
    ],
)
def test_how_long_rows_are_while_no_recording_is_here(
    root: Path, ids: str, there: bool, seconds: float | None
) -> None:
    if there:
        recording(root / "test_soundscapes" / "r_1.wav", 10)
        recording(root / "test_soundscapes" / "r_2.wav", 10)
    sample(root, *ids.split())
    assert load(root).stretch == seconds


def test_numbered_clips_are_no_stretches(root: Path) -> None:
    sample(root, "clip_1", "clip_2", "clip_3", header="id,jay,owl")
    assert load(root).stretch is None


def test_no_recording_is_made_of_examples_or_clips(root: Path) -> None:
    recording(root / "example_test_audio" / "e.wav", 20)
    sample(root, "x_5", "x_10")
    assert rows(root)[0] == [("x_5", "", None, None), ("x_10", "", None, None)]
    recording(root / "audio_test" / "short.wav", 0.2)
    assert rows(root)[0] == [("x_5", "", None, None), ("x_10", "", None, None)]


def test_ids_without_the_date_of_the_recording(root: Path) -> None:
    """BirdCLEF 2021's: <recording>_<site>_<second>; a table says the recording alone."""
    for name in ("2782_SSW_20170701", "11254_COR_20190904", "7_COR_20190904", "7_COR_20190905"):
        recording(root / "test_soundscapes" / f"{name}.ogg", 10)
    ids = ("2782_SSW_5", "2782_SSW_10", "11254_COR_5", "7_COR_5")
    sample(root, *ids)
    wanted = [
        ("2782_SSW_5", "2782_SSW_20170701.ogg", 0, 5),
        ("2782_SSW_10", "2782_SSW_20170701.ogg", 5, 10),
        ("11254_COR_5", "11254_COR_20190904.ogg", 0, 5),
        ("7_COR_5", "", 0, 5),
    ]
    made, found = rows(root)
    assert made == wanted and found.missing == [("subm", "7_COR_5", "no such file")]
    cells = [f"{a}_{s}_{n},{s},{a},{n}" for a, s, n in (id.split("_") for id in ids)]
    write(root / "test.csv", " ".join(["row_id,site,audio_id,seconds", *cells]))
    made, found = rows(root, "test.csv")
    assert made == wanted and any("the rows of test.csv are stretches of 5 s" in note for note in found.notes)


def test_rows_of_a_clip_and_a_class(root: Path) -> None:
    """BirdCLEF 2022's: each stretch is there once, and the sample stays."""
    pytest.importorskip("earshot.competition.long_format")
    recording(root / "test_soundscapes" / "soundscape_453.ogg", 10)
    pairs = [(second, bird) for second in (5, 10) for bird in ("owl", "jay")]
    name = "soundscape_453"
    asked = [f"{name}_{bird}_{second},False" for second, bird in pairs]
    write(root / "sample_submission.csv", " ".join(["row_id,target", *asked]))
    listed = [f"{name}_{bird}_{second},{name},{bird},{second}" for second, bird in pairs]
    write(root / "test.csv", " ".join(["row_id,file_id,bird,end_time", *listed]))
    for tables in ((), ("test.csv",)):
        made, found = rows(root, *tables)
        assert made == [
            ("soundscape_453_5", "soundscape_453.ogg", 0, 5),
            ("soundscape_453_10", "soundscape_453.ogg", 5, 10),
        ]
        assert found.example is None and not found.missing
        assert any("4 rows, each a class of one of 2 clips" in note for note in found.notes)


def test_what_is_known_of_ids(root: Path) -> None:
    recording(root / "test_soundscapes" / "night_1.wav", 10)
    recording(root / "test_soundscapes" / "n_20170701.wav", 10)
    known = segments.KnownIds(Files(root), {str(root / "train_audio/owl/a.wav")})
    ids = ["night_1", "night_1.wav", "night_1_5", "night_1_0", "night_2_5", "n_5", "a", "a_5", "b", "", "_5"]
    assert known(ids) == {"night_1", "night_1.wav", "night_1_5", "n_5"}


@pytest.fixture
def mapped(root: Path) -> Path:
    """Cornell Birdcall's: rows by a table, in a folder beside that of examples; site 3 is whole files."""
    for name in ("0a99", "1b00"):
        recording(root / "test_audio" / f"{name}.wav", 15)
    recording(root / "example_test_audio" / "e.wav", 15)
    write(
        root / "test.csv",
        "site,row_id,seconds,audio_id site_1,site_1_0a99_10,10,0a99 site_3,site_3_1b00,,1b00 "
        "site_1,site_1_0a99_5,5,0a99 site_2,site_2_gone_5,5,gone",
    )
    write(
        root / "sample_submission.csv",
        "row_id,birds site_1_0a99_5,a site_1_0a99_10,a site_2_gone_5,a site_3_1b00,a",
    )
    return root


ROWS = [
    ("site_1_0a99_5", "0a99.wav", 0, 5),
    ("site_1_0a99_10", "0a99.wav", 5, 10),
    ("site_3_1b00", "1b00.wav", None, None),
    ("site_2_gone_5", "", 0, 5),
]


def test_a_table_says_which_part_a_row_is(mapped: Path) -> None:
    made, found = rows(mapped, "test.csv")
    assert made == ROWS and found.missing == [("subm", "site_2_gone_5", "no such file")]
    # the table alone, whose first column to name files repeats
    found = Layout("Kaggle csv", build_table([], [], "train"), "audio_id", "label", None, Labels(("label",)))
    frame = csv_table.read(mapped / "test.csv")
    assert listed(build_unlabelled_rows(Files(mapped), frame, mapped / "test.csv", found)) == ROWS
    assert found.id_column == "row_id"


def test_the_public_view_of_a_table(mapped: Path) -> None:
    for name in ("0a99", "1b00"):
        (mapped / "test_audio" / f"{name}.wav").unlink()
    made, found = rows(mapped, "test.csv")
    assert sorted(made) == sorted((id, "", start, end) for id, _, start, end in ROWS)
    assert len(found.missing) == 4 and found.example is None


def test_a_table_in_place_of_a_placeholder(mapped: Path) -> None:
    write(mapped / "sample_submission.csv", "row_id,birds site_1_x_5,b site_1_x_10,b")
    made, found = rows(mapped, "test.csv")
    assert made == ROWS and found.example == ["site_1_x_5", "b"]
    assert any("using the 4 rows of test.csv" in note for note in found.notes)


@pytest.mark.parametrize(
    "columns, cells, wanted",
    [
        ("start,end", "2.5,4 0,2.5 0,3", [(0, 2.5), (2.5, 4), (0, 3)]),
        ("start_time,end_time", "0:02,0:04 0:00,0:02 00:00:00,00:01:00", [(0, 2), (2, 4), (0, 60)]),
        ("offset", "5,- 0,- 0,-", [(0, 5), (5, 10), (0, 5)]),
        ("seconds", "5,- 0,- 0,-", [(0, 5), (5, 10), (0, 5)]),  # nothing ends at 0
        ("onset,offset", "1,4 0,3 0,3", [(0, 3), (1, 4), (0, 3)]),
        ("start_time,note", "06:30:00,x 06:30:00,x 07:30:00,x", None),  # of the day; a file's rows alike
    ],
)
def test_columns_of_seconds(root: Path, columns: str, cells: str, wanted: list | None) -> None:
    for name in "pq":
        recording(root / "audio_test" / f"{name}.wav", 60)
    times = [cell.removesuffix(",-") for cell in cells.split()]
    listed = [f"row{i},{file},{cell}" for i, (file, cell) in enumerate(zip("ppq", times, strict=True))]
    write(root / "test.csv", " ".join([f"id,file,{columns}", *listed]))
    sample(root, "row0", "row1", "row2", header="id,jay,owl")
    made = rows(root, "test.csv")[0]
    if wanted is None:
        assert all(row[1] == "" for row in made)
    else:
        assert [(row[0], *row[2:]) for row in made] == [
            ("row1", *wanted[0]),
            ("row0", *wanted[1]),
            ("row2", *wanted[2]),
        ]


@pytest.mark.parametrize(
    "columns, cells, line",
    [
        ("seconds", "-5", "line 2: -5 in column seconds is not a time in seconds"),
        ("seconds", "soon", "line 2: soon in column seconds is not a time in seconds"),
        ("seconds", "1e300", "line 2: 1e300 in column seconds is not a time in seconds"),
        ("start,end", "5,5", "line 2: ends at 5 s, not after its start at 5 s"),
        ("start,end", "5,", "line 2: starts at 5 s, but no column has its end"),
    ],
)
def test_seconds_that_do_not_fit(root: Path, columns: str, cells: str, line: str) -> None:
    recording(root / "audio_test" / "p.wav", 10)
    more = "5" if columns == "seconds" else "0,5"
    write(root / "test.csv", f"id,file,{columns} x,p,{cells} y,p,{more}")
    sample(root, "x", "y", header="id,jay,owl")
    with pytest.raises(UserError, match=line):
        rows(root, "test.csv")


def test_a_table_of_whole_files_and_one_that_is_none(root: Path) -> None:
    recording(root / "audio_test" / "p.wav", 10)
    recording(root / "audio_test" / "q.wav", 10)
    sample(root, "0", "1", "2", header="id,jay,owl")
    write(root / "test.csv", "id,clip 0,q.wav 1,p.wav")
    made, found = rows(root, "test.csv")
    assert made == [("0", "q.wav", None, None), ("1", "p.wav", None, None), ("2", "", None, None)]
    assert any("the rows of test.csv are 2 recordings" in note for note in found.notes)
    write(root / "test.csv", "id,clip 0,q.wav 0,p.wav 1,p.wav")  # an id twice: no row's file
    assert {row[1] for row in rows(root, "test.csv")[0]} == {""}


def test_counted_clips(root: Path) -> None:
    """Ids such as clip_1 beside files of such names are files, no stretches."""
    files(root, *(f"audio_test/clip_{number}.wav" for number in (11, 12, 13)))
    sample(root, "clip_1", "clip_2")
    made, found = rows(root)
    assert [row[0] for row in made] == ["clip_11", "clip_12", "clip_13"] and found.example[0] == "clip_1"
    assert all(row[3] is None for row in made)
