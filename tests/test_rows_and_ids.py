"""Quotes that are prose, and ids that lost their zeros: no row is lost, and each clip gets its own file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import read_csv, tone
from layout_files import files, rows
from layout_files import refused as load_refused
from test_names import extracted, table, trained

from earshot.competition.load import load
from earshot.core import csv_table

# --- quotes


SENTENCE = ["path", "sentence", "up", "label"]


@pytest.mark.parametrize("name", ["train.tsv", "train.csv"])
def test_stray_quotes_between_tabs(tmp_path: Path, name: str) -> None:
    """Prose with quotes that open and never close hides no row, up to the next quote or to the end."""
    said = [
        '"Hello',
        "plain",
        'and bye"',
        '"Both"',
        '"He said" so',
        'a "b" c',
        '"to the end',
        "it's",
        'x, "y',
    ]
    files(tmp_path, *(f"clips/{n}.wav" for n in range(len(said))))
    body = [[f"{n}.wav", text, "2", "owl" if n % 2 else "jay"] for n, text in enumerate(said)]
    (tmp_path / name).write_text(
        "\n".join("\t".join(row) for row in [SENTENCE, *body]) + "\n", encoding="utf-8"
    )
    comp = load(tmp_path)
    assert [(i, label) for i, _, label in rows(comp, "train")] == [(row[0], row[3]) for row in body]
    (line,) = [note for note in comp.notes if "stray" in note]
    assert "3 cells of column sentence" in line and "line 2, 6, 8" in line and comp.missing == []


def test_a_stray_quote_does_not_move_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('id\ta\tb\tlabel\n1\t"x\ty"\towl\n2\tx\ty\tjay\n', encoding="utf-8")
    assert csv_table.read(path)["label"].tolist() == ["owl", "jay"]


def test_quotes_of_a_csv_stay(tmp_path: Path) -> None:
    cells = [
        "a, b",
        'say ""x""',
        'say "x"',
        "two\nlines",
        "two\r\nlines, with, more\n\nand, so",
        '"',
        "",
        "\n",
        "x\n",
    ]
    for mark in ",;\t":
        table(
            tmp_path / "t.csv",
            ["id", "note", "label"],
            *([n, c, "owl"] for n, c in enumerate(cells)),
            mark=mark,
        )
        frame = csv_table.read(tmp_path / "t.csv")
        assert (
            frame["note"].tolist() == cells and set(frame["label"]) == {"owl"} and frame.attrs["stray"] == {}
        )
        assert frame.index.tolist() == [2, 3, 4, 5, 7, 11, 12, 13, 15]
    table(
        tmp_path / "t.csv", ["id", "label", "note"], ["a", "owl", "one\ntwo, three\nfour"], ["b", "jay", ""]
    )
    assert csv_table.read(tmp_path / "t.csv")["id"].tolist() == ["a", "b"]


def test_a_lone_column_of_several_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('note\n"two\nlines"\nx\n')
    assert csv_table.read(tmp_path / "t.csv")["note"].tolist() == ["two\nlines", "x"]


@pytest.mark.parametrize("column, cell", [("label", '"owl'), ("path", '"b.wav')])
def test_a_stray_quote_in_an_id_or_a_label_is_refused(tmp_path: Path, column: str, cell: str) -> None:
    files(tmp_path, "a.wav", "b.wav")
    row = {"path": "b.wav", "label": "owl", column: cell}
    (tmp_path / "train.tsv").write_text(f"path\tlabel\na.wav\tjay\n{row['path']}\t{row['label']}\n")
    line = load_refused(tmp_path)
    assert "train.tsv, line 3: the quote that begins" in line and f"column {column}" in line


def test_repeated_rows_are_named(tmp_path: Path) -> None:
    files(tmp_path, "a.wav", "b.wav")
    table(tmp_path / "train.csv", ["id", "label"], ["a", "owl"], ["b", "jay"], ["b", "jay"])
    assert any("1 repeated rows left out" in n and "first b in line 4" in n for n in load(tmp_path).notes)


def test_a_row_inside_a_quoted_field_is_found(tmp_path: Path) -> None:
    """In a csv, too: a pair of quotes in two lines which are rows by themselves, as all lines are."""
    files(tmp_path, *(f"{n}.wav" for n in "abcde"))
    lines = ["id,note,label", 'a,"x,owl', "b,y,jay", 'c,z",owl', "d,x,jay", 'e,"never closed,owl']
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    comp = load(tmp_path)
    assert [(i, label) for i, _, label in rows(comp, "train")] == [
        (n, "owl" if n in "ace" else "jay") for n in "abcde"
    ]
    assert any("2 cells of column note begin with a stray quote (line 2, 6)" in note for note in comp.notes)
    (tmp_path / "train.csv").write_text("\n".join([*lines[:3], "c,z", *lines[4:]]) + "\n")
    assert "c" in {i for _, i, _ in load(tmp_path).missing}


def test_cells_of_several_lines_stay_where_quotes_are_used_as_a_csv_does(tmp_path: Path) -> None:
    """Also where each of their lines could be a row: then it is said."""
    files(tmp_path, "1.wav", "2.wav")
    path = tmp_path / "train.csv"
    path.write_text('id,label,note\n1.wav,dog,"rain\n4.5,km,away"\n2.wav,cat,"quiet, far"\n')
    assert csv_table.read(path)["note"].tolist() == ["rain\n4.5,km,away", "quiet, far"]
    comp = load(tmp_path)
    assert len(rows(comp, "train")) == 2
    assert any(note.startswith("warning: train.csv: 1 rows take several lines") for note in comp.notes)
    path.write_text('id,comment\n1.wav,"a ""cat"" purrs\nnot far, not near"\n2.wav,"one, two"\n')
    assert csv_table.read(path)["comment"].tolist() == ['a "cat" purrs\nnot far, not near', "one, two"]


# --- ids without their zeros


def number_csv(root: Path, ids: list[str]) -> None:
    table(root / "train.csv", ["id", "label"], *([i, "owl" if n % 2 else "jay"] for n, i in enumerate(ids)))


@pytest.mark.parametrize(
    "ids", [["7", "8", "12"], ["7.0", "8.0", "12.0"], ["07", "008", "12"], ["7.wav", "8.wav", "12.wav"]]
)
def test_ids_without_zeros(tmp_path: Path, ids: list[str]) -> None:
    files(tmp_path, "audio/0007.wav", "audio/0008.wav", "audio/0012.wav")
    number_csv(tmp_path, ids)
    comp = load(tmp_path)
    assert [path for _, path, _ in rows(comp, "train")] == [
        f"audio/{n}.wav" for n in ("0007", "0008", "0012")
    ]
    (line,) = [note for note in comp.notes if "leading zeros" in note]
    assert line == (
        f"3 ids match their files as numbers, except for leading zeros: first {ids[0]} is audio/0007.wav"
    )


def test_ids_of_mixed_widths_and_exact_ones_first(tmp_path: Path) -> None:
    files(tmp_path, "audio/7.wav", "audio/07.wav", "audio/08.wav", "audio/100.wav")
    number_csv(tmp_path, ["7", "07", "8", "100", "9"])
    comp = load(tmp_path)
    assert [path for _, path, _ in rows(comp, "train")] == [
        f"audio/{n}.wav" for n in ("7", "07", "08", "100")
    ]
    assert comp.missing == [("train", "9", "no such file")]
    number_csv(tmp_path, ["7", "8", "100", "08"])  # the file is 08's
    assert load(tmp_path).missing == [("train", "8", "no such file")]


def test_ids_that_may_be_two_files_are_named(tmp_path: Path) -> None:
    files(tmp_path, "audio/007.wav", "audio/07.wav", "audio/008.wav")
    number_csv(tmp_path, ["7", "8"])
    assert "7 may be audio/007.wav or audio/07.wav" in load_refused(tmp_path)
    (tmp_path / "audio" / "07.wav").unlink()
    number_csv(tmp_path, ["7", "07", "8"])
    assert "7 and 07 may both be audio/007.wav" in load_refused(tmp_path)
    (tmp_path / "train.csv").write_text("7,owl\n8,jay\n")  # no header, but two clips
    assert any("train.csv has no header" in note for note in load(tmp_path).notes)
    (tmp_path / "train.csv").write_text("7,8\n7,owl\n8,jay\n")
    assert load(tmp_path).id_column == "7"


def test_a_number_on_its_own_side_before_a_name_on_the_other(tmp_path: Path) -> None:
    files(tmp_path, "train/001.wav", "train/002.wav", "test/1.wav", "test/2.wav", "test/3.wav")
    number_csv(tmp_path, ["1", "2"])
    table(tmp_path / "sample_submission.csv", ["id", "label"], ["002", "owl"], ["3", "owl"])
    comp = load(tmp_path)
    assert [path for _, path, _ in rows(comp, "train")] == ["train/001.wav", "train/002.wav"]
    assert rows(comp, "subm") == [("002", "test/2.wav", None), ("3", "test/3.wav", None)]


def test_a_column_of_numbers_beside_the_ids(tmp_path: Path) -> None:
    files(tmp_path, *(f"audio/{n:03d}.wav" for n in range(6)))
    body = [[5 - n, f"{n:03d}", n % 2] for n in range(6)]
    table(tmp_path / "train.csv", ["row", "name", "label"], *body)
    assert load(tmp_path).id_column == "name"
    table(tmp_path / "train.csv", ["name", "kind", "label"], *([f"z{n}", n % 3, "owl"] for n in range(6)))
    assert "names audio files" in load_refused(tmp_path)  # numbers of classes are no ids


def test_numbers_of_another_column_do_not_take_over(tmp_path: Path) -> None:
    """What other columns hold may be the name of a file by chance, all of it or a single cell."""
    files(tmp_path, *(f"audio/{n:03d}.wav" for n in range(1, 61)))
    numbers = range(1, 13)
    for header, other in (
        (["id", "label", "bpm"], lambda n: 40 + n),  # all 040.wav to 060.wav
        (["id", "label", "bpm"], lambda n: f"0{40 + n}" if n == 3 else 150 + n),
        (["clip", "label", "note"], lambda n: "012" if n == 7 else f"take {n}"),
    ):
        table(tmp_path / "train.csv", header, *([n, "owl" if n % 2 else "jay", other(n)] for n in numbers))
        comp = load(tmp_path)
        assert comp.id_column == header[0]
        assert rows(comp, "train")[0] == ("1", "audio/001.wav", "owl")
    files(tmp_path, *(f"audio/{n}.wav" for n in range(101, 113)))
    table(
        tmp_path / "train.csv",
        ["bpm", "label", "id"],
        *([100 + n, "owl" if n % 2 else "jay", n] for n in numbers),
    )
    assert load(tmp_path).id_column == "id"
    body = [[n, f"{n + 30:03d}.wav" if n < 5 else f"gone{n}.wav", "oj"[n % 2]] for n in numbers]
    table(tmp_path / "train.csv", ["row", "name", "label"], *body)
    assert load(tmp_path).id_column == "name"  # names with a suffix, of which most files are gone


def test_a_file_that_begins_with_a_blank(tmp_path: Path) -> None:
    files(tmp_path, "audio/ a.wav", "audio/a.wav", "audio/b.wav")
    number_csv(tmp_path, [" a.wav", "a.wav", " b"])
    assert [path for _, path, _ in rows(load(tmp_path), "train")] == [
        "audio/ a.wav",
        "audio/a.wav",
        "audio/b.wav",
    ]


def test_row_numbers_of_a_csv_beside_class_folders(tmp_path: Path) -> None:
    files(tmp_path, *(f"{('owl', 'jay')[n % 2]}/{n:03d}.wav" for n in range(4)))
    table(tmp_path / "features.csv", ["", "mean", "label"], *([n, n / 7, "owl"] for n in range(4)))
    assert load(tmp_path).layout == "folder per class"


@pytest.mark.slow
def test_from_audio_to_ids_with_line_ends(tmp_path: Path) -> None:
    """A file may be called so; the submission's rows stay whole, as do the run's own csv files."""
    root = tmp_path / "c"
    names = {"train": [f"a\r{n}.wav" for n in range(8)], "test": ["x\ry.wav", "x\nz.wav", 'q"\r\n.wav']}
    for part, ids in names.items():
        (root / part).mkdir(parents=True)
        for n, name in enumerate(ids):
            soundfile.write(root / part / name, tone(n % 2, n, seconds=0.5), 16000)
    quoted = [f'"{n}",{("owl", "jay")[i % 2]}' for i, n in enumerate(names["train"])]
    (root / "train.csv").write_text("\n".join(["id,label", *quoted, ""]), newline="")
    asked = ['"{}",owl'.format(name.replace('"', '""')) for name in names["test"]]
    (root / "sample_submission.csv").write_text("\n".join(["id,label", *asked, ""]), newline="")
    assert "subm: 3 clips" in extracted(root)
    assert [row["id"] for row in trained(root)] == names["test"]
    (run,) = (tmp_path / "runs").glob("[!.]*")
    for name in ("oof_last.csv", "training_clips.csv"):
        assert [row["id"] for row in read_csv(run / name)] == names["train"]


@pytest.mark.slow
def test_from_audio_to_ids_without_zeros(tmp_path: Path) -> None:
    """The submission keeps the sample's ids, and each is answered by its own clip."""
    root = tmp_path / "c"
    for part, count in (("train", 24), ("test", 12)):
        (root / part).mkdir(parents=True)
        for n in range(count):
            soundfile.write(
                root / part / f"{n:04d}.wav", tone(n % 2, n + 50 * (part == "test"), seconds=0.5), 16000
            )
    table(root / "train.csv", ["id", "label"], *([n, ("owl", "jay")[n % 2]] for n in range(24)))
    order = [f"{n}.0" for n in (3, 11, 0, 8, 5, 10, 1, 2, 4, 6, 7, 9)]
    table(root / "sample_submission.csv", ["id", "label"], *([i, "owl"] for i in order))
    said = extracted(root)
    assert said.count("leading zeros") == 1 and "train: 24 clips" in said and "subm: 12 clips" in said
    made = trained(root)
    assert [row["id"] for row in made] == order
    right = [row["label"] == ("owl", "jay")[int(float(row["id"])) % 2] for row in made]
    assert np.mean(right) > 0.9
