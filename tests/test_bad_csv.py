"""Bad csv files of every kind: each ends in the right clips or in one line that says what is wrong, where,
and what to do."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from layout_files import refused, rows

from earshot.competition.load import load
from earshot.core import csv_table
from earshot.prediction import submission

TRAIN, SAMPLE = b"fname,label\na.wav,owl\nb.wav,jay\nc.wav,owl\n", b"fname,label\nx.wav,jay\ny.wav,jay\n"
RIGHT = [("a.wav", "owl"), ("b.wav", "jay"), ("c.wav", "owl")]


@pytest.fixture(autouse=True)
def no_warnings():
    """A warning in the middle of a run helps nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def birds(
    folder: Path,
    train: bytes = TRAIN,
    sample: bytes | None = SAMPLE,
    test: bytes | None = None,
    audio: tuple[str, ...] = (),
) -> Path:
    """A competition whose audio files need not be audio: the loader opens none."""
    root = folder / "birds"
    for name in (*(f"audio_train/{n}.wav" for n in "abc"), "audio_test/x.wav", "audio_test/y.wav", *audio):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    for name, content in (("train", train), ("sample_submission", sample), ("test", test)):
        if content is not None:
            (root / f"{name}.csv").write_bytes(content)
    return root


def found(root: Path, split: str = "train", **options) -> list[tuple]:
    return [(id, label) for id, _, label in rows(load(root, **options), split)]


def text(*lines: str) -> bytes:
    return ("\n".join(lines) + "\n").encode()


# --- read as if nothing were the matter


@pytest.mark.parametrize(
    "change",
    [
        lambda t: b"\xef\xbb\xbf" + t,
        lambda t: t.decode().encode("utf-16"),
        lambda t: b"\xfe\xff" + t.decode().encode("utf-16-be"),
        lambda t: t.replace(b"\n", b"\r\n"),
        lambda t: t.replace(b"\n", b"\r"),
        lambda t: t.replace(b",", b";"),
        lambda t: t.replace(b",", b"\t"),
        lambda t: t.replace(b",", b"\t").decode().encode("utf-16"),
        lambda t: b"sep=;\r\n" + t.replace(b",", b";"),
        lambda t: t.rstrip(),
        lambda t: t.replace(b"\n", b"\n\n  \n"),
        lambda t: t + b",\n,\n",
        lambda t: t.replace(b"\n", b",\n"),
        lambda t: t.replace(b"fname", b" fname ").replace(b",", b" , ", 1),
        lambda t: b'"' + t.replace(b",", b'","').replace(b"\n", b'"\n"')[:-1],
    ],
    ids=[
        "bom",
        "utf-16",
        "utf-16-be",
        "crlf",
        "cr",
        "semicolon",
        "tab",
        "excel unicode text",
        "sep=",
        "no last line end",
        "blank lines",
        "lines of commas",
        "trailing commas",
        "blanks in header",
        "quotes",
    ],
)
def test_read_as_it_is_meant(tmp_path: Path, change) -> None:
    root = birds(tmp_path, change(TRAIN), change(SAMPLE))
    assert found(root) == RIGHT and found(root, "subm") == [("x.wav", None), ("y.wav", None)]
    made = submission.build_table(
        ["y.wav", "x.wav"],
        np.eye(2),
        ["jay", "owl"],
        ("fname", "label"),
        csv_table.read(root / "sample_submission.csv"),
    )
    assert made.to_csv(index=False) == "fname,label\nx.wav,owl\ny.wav,jay\n"


@pytest.mark.parametrize(
    "train, want, note",
    [
        (
            text("fname,label", "a.wav,nan", "b.wav,NA", "c.wav,null"),
            [("a.wav", "nan"), ("b.wav", "NA"), ("c.wav", "null")],
            "NA is read as a label",
        ),
        (
            text("fname,label", "a.wav,None", "b.wav,True", "c.wav,1e5"),
            [("a.wav", "None"), ("b.wav", "True"), ("c.wav", "1e5")],
            "None is read",
        ),
        (
            text("fname,label", "a.wav, owl ", "b.wav,jay", "c.wav,Owl"),
            [("a.wav", "owl"), ("b.wav", "jay"), ("c.wav", "Owl")],
            "'Owl', 'owl' are",
        ),
        (
            text("fname,label", "a.wav,Ka\u0308uz", "b.wav,K\u00e4uz"),
            None,
            None,
        ),
        (
            text(",fname,label", "0,a.wav,owl", "1,b.wav,jay"),
            [("a.wav", "owl"), ("b.wav", "jay")],
            "id column fname",
        ),
        (
            text("Unnamed: 0,fname,mood", "5,a.wav,owl", "6,b.wav,jay"),
            [("a.wav", "owl"), ("b.wav", "jay")],
            "label column mood",
        ),
        (
            text("fname,label", "a.wav,owl", "b.wav,jay", "a.wav,owl"),
            [("a.wav", "owl"), ("b.wav", "jay")],
            "1 repeated rows left out",
        ),
        (
            text("fname,label", "a.wav,owl", "c.wav", "b.wav,jay"),
            [("a.wav", "owl"), ("b.wav", "jay")],
            "(empty label), first c.wav",
        ),
        (text("fname,label", "a.wav,owl", "b.wav,", "c.wav,  "), None, None),
        (
            text("fname,label", "a.wav,owl", " ,owl", "b.wav,jay"),
            [("a.wav", "owl"), ("b.wav", "jay")],
            "empty id",
        ),
        (
            text("fname,label", "a.wav,owl", "gone.wav,emu", "b.wav,jay"),
            [("a.wav", "owl"), ("b.wav", "jay")],
            "file), first gone.wav",
        ),
        (
            text("fname,label", "a.wav,owl", "b.wav,jay"),
            [("a.wav", "owl"), ("b.wav", "jay")],
            "1 audio files are in no csv",
        ),
        (
            text("fname,label", "a.wav,owl", "a,owl", "b.wav,jay"),
            [("a.wav", "owl"), ("a", "owl"), ("b.wav", "jay")],
            "several training ids",
        ),
        (text("fname,label,fold", "a.wav,owl,1", "b.wav,jay,", "c.wav,owl,3.0"), RIGHT, "folds 1, 3"),
        (text("fname,label,fold", "a.wav,owl,-1", "b.wav,jay,2", "c.wav,owl,3"), RIGHT, "folds 2, 3"),
        (
            text("fname,label,fold", "a.wav,owl,1", "b.wav,jay,2.5", "c.wav,owl,3"),
            RIGHT,
            "not whole numbers: 2.5 in line 3",
        ),
        (
            text("fname,label,fold", "a.wav,owl,x", "b.wav,jay,-7", "c.wav,owl,3"),
            RIGHT,
            "not whole numbers: x in line 2",
        ),
        (
            text("fname,label,fold", "a.wav,owl," + 30 * "9", "b.wav,jay,2", "c.wav,owl,3"),
            RIGHT,
            "column fold is not used",
        ),
        (
            text("fname,label,group", "a.wav,owl,", "b.wav,jay, ", "c.wav,owl,"),
            RIGHT,
            "train: 3 clips, 2 classes",
        ),
        (
            text(
                "fname,label",
                "../../../../etc/passwd,owl",
                "../birds/audio_train/a.wav,jay",
                "../../birds.wav,owl",
                "b.wav,jay",
                "c.wav,owl",
            ),
            [("../birds/audio_train/a.wav", "jay"), ("b.wav", "jay"), ("c.wav", "owl")],
            "2 without audio",
        ),  # the folder that it lies in
        (
            text("fname,note,label", 'a.wav,"two', 'lines",owl', "b.wav,x,jay"),
            [("a.wav", "owl"), ("b.wav", "jay")],
            "label column label",
        ),
    ],
)
def test_read_and_said(tmp_path: Path, train: bytes, want: list | None, note: str | None) -> None:
    root = birds(tmp_path, train)
    if want is None:  # one clip is left, so one class
        assert "two classes are needed" in refused(root)
        return
    comp = load(root)
    assert [(id, label) for id, _, label in rows(comp, "train")] == want
    assert any(note in line for line in comp.notes), comp.notes
    assert all(Path(p).is_relative_to(root) for p in comp.clips["path"] if p)


@pytest.mark.parametrize(
    "name",
    [
        "0012.wav",
        "1e5.wav",
        "007.wav",
        "two\nlines.wav",
        'quo"te.wav',
        "com,ma.wav",
        "K\u00e4uz.wav",
        "Ka\u0308uz.wav",
        "nan.wav",
        "-1.wav",
    ],
)
@pytest.mark.parametrize("suffix", [True, False])
def test_ids_of_any_spelling(tmp_path: Path, name: str, suffix: bool) -> None:
    """Text stays text; a name that macOS wrote decomposed is found by the composed id, and the other way
    round."""
    import unicodedata

    root = birds(tmp_path, audio=(f"audio_train/{name}",))
    id = name if suffix else name.removesuffix(".wav")
    for form in ("NFC", "NFD"):
        cell = unicodedata.normalize(form, id).replace('"', '""')
        (root / "train.csv").write_bytes(text("fname,label", f'"{cell}",owl', "b.wav,jay"))
        made = load(root)
        assert made.clips["path"][0] == str(root / "audio_train" / name) and made.clips["id"][
            0
        ] == unicodedata.normalize(form, id)


def test_two_ids_of_one_file_stay_together(tmp_path: Path) -> None:
    groups = (
        load(birds(tmp_path, text("fname,label", "a.wav,owl", "a,jay", "b.wav,jay"))).clips["group"].tolist()
    )
    assert groups[:3] == ["audio_train/a.wav", "audio_train/a.wav", ""]
    assert found(birds(tmp_path, sample=text("fname,label", "x.wav,jay", "x,jay")), "subm") == [
        ("x.wav", None),
        ("x", None),
    ]


# --- refused


@pytest.mark.parametrize(
    "train, words",
    [
        (b"", ("train.csv", "is empty")),
        (b"\n \n,,,\n", ("is empty",)),
        (b"fname,label", ("a header and no row",)),
        (text("fname,label"), ("a header and no row",)),
        (TRAIN.replace(b"jay", "Häher".encode("latin-1")), ("line 3", "UTF-8")),
        (TRAIN.decode().encode("utf-16-le"), ("line 1", "NUL", "UTF-16")),
        (TRAIN.replace(b"jay", b"j\0y"), ("line 3", "NUL")),
        (bytes(range(256)) * 9, ("UTF-8",)),
        (TRAIN[:20] + b"\xed\xa0\x80" + TRAIN[20:], ("UTF-8",)),
        (text("fname", "a.wav", "b.wav"), ("which column", "--label-column")),
        (text(",fname", "0,a.wav", "1,b.wav"), ("which column",)),
        (text("fname,label,label", "a.wav,owl,x", "b.wav,jay,y"), ("two columns label",)),
        (text("fname,label,label ", "a.wav,owl,x", "b.wav,jay,y"), ("two columns label",)),
        (text("fname,fname,label", "a.wav,b.wav,x", "b.wav,a.wav,y"), ("two columns fname",)),
        (
            text("fname,label", "a.wav,owl", "b.wav,jay,emu", "c.wav,owl"),
            ("line 3", "3 fields", "2 in the header"),
        ),
        (text("fname,label", "a.wav,owl,1", "b.wav,jay,2"), ("line 2", "3 fields")),
        (text("fname,label", "a.wav,owl\\,x", "b.wav,jay"), ("line 2", "quotes")),
        (text("# mine", "fname,label", "a.wav,owl"), ("line 2",)),
        (text("fname,label", 'a.wav,"owl', "b.wav,jay"), ("line 2", "quote")),
        (text("fname,label", 'a.wav,"owl" x', "b.wav,jay"), ("line 2", "quote")),
        (text("fname,label", "b.wav,jay", 'a.wav,"ow', 'l"'), ("line 3", "line break")),
        (text('fname,"la', 'bel"', "a.wav,owl"), ("header", "line break")),
        (
            text("fname,note,label", 'b.wav,"two', 'lines",jay', "a.wav,x,owl,emu"),
            ("line 4", "4 fields"),
        ),  # as an editor counts
        (
            text("fname,label", "a.wav,owl", "b.wav,jay", "a.wav,jay"),
            ("a.wav two labels, owl and jay", "lines 2 and 4"),
        ),
        (text("fname,label", "a.wav,owl", "b.wav,owl"), ("two classes are needed",)),
        (text("clip,label", "q.wav,owl", "r.wav,jay"), ("--id-column",)),
        (text("fname,label", "a.wav," + "x" * 200_000, "b.wav,jay"), ("line 2", "limit")),
        (text(",".join(f"c{i}" for i in range(30_000)), "1"), ("too large", "30,000 columns")),
        (
            text(",".join(f"c{i}" for i in range(9_000)), "1"),
            ("9000 in all",),
        ),  # the line does not list them all
        (text("fname,owl,jay", "a.wav,1,0", "b.wav,1,1"), ("line 3", "2 of the label columns")),
    ],
)
def test_refused_train_csv(tmp_path: Path, train: bytes, words: tuple[str, ...]) -> None:
    line = refused(birds(tmp_path, train), task="single")
    assert all(word in line for word in words) and len(line) < 900, line


@pytest.mark.parametrize(
    "sample, words",
    [
        (b"", ("sample_submission.csv", "is empty")),
        (SAMPLE + b"x.wav,jay\n", ("x.wav twice", "line 4")),
        (SAMPLE + b",jay\n", ("line 4", "no id")),
        (text("x.wav,jay", "y.wav,jay"), ("line 1", "no header")),
        (text(",fname,label", "0,x.wav,jay"), ("without a name",)),
        (SAMPLE.replace(b"jay", b"j\0y"), ("line 2", "NUL")),
        (text("fname,label", "x.wav,jay,1"), ("line 2", "3 fields")),
        (text("fname,owl,owl", "x.wav,0,0"), ("two columns owl",)),
    ],
)
def test_refused_sample(tmp_path: Path, sample: bytes, words: tuple[str, ...]) -> None:
    line = refused(birds(tmp_path, sample=sample))
    assert all(word in line for word in words), line
    root = birds(tmp_path, sample=None, test=sample.replace(b"label", b"note"))
    (root / "sample_submission.csv").unlink()
    # a pandas index, or no header, does no harm where no submission is built on it
    if b",fname" not in sample and not sample.startswith(b"x.wav"):
        assert "test.csv" in refused(root)


def test_labels_only_in_the_sample_and_labels_that_it_lacks(tmp_path: Path) -> None:
    comp = load(birds(tmp_path, sample=text("fname,owl,jay,emu", "x.wav,0,0,0", "y.wav,0,0,0")))
    assert comp.classes == ["emu", "jay", "owl"] and any(
        "no training clip has the label emu" in n for n in comp.notes
    )
    comp = load(
        birds(
            tmp_path,
            TRAIN.replace(b"c.wav,owl", b"c.wav,emu"),
            text("fname,owl,jay", "x.wav,0,0", "y.wav,0,0"),
        )
    )
    assert comp.classes == ["emu", "jay", "owl"] and any(
        "no column for the label emu" in n for n in comp.notes
    )
    # columns of something else: refused before any clip is decoded
    assert "column one is not a class" in refused(birds(tmp_path, sample=text("fname,one,two", "x.wav,0,0")))


def test_what_is_no_plain_file_of_a_sane_size(tmp_path: Path) -> None:
    root = birds(tmp_path)
    with open(root / "train.csv", "ab") as file:
        file.truncate(2**31)  # sparse
    assert "2.1 GB" in refused(root)
    for make in (
        os.mkfifo,
        lambda p: os.symlink("/dev/zero", p),
        lambda p: os.symlink("gone.csv", p),
        lambda p: os.symlink(p, p),
    ):
        (root / "train.csv").unlink()
        make(root / "train.csv")
        assert "cannot read" in refused(root) or os.path.islink(root / "train.csv")


def test_a_broken_csv_that_is_not_needed_is_no_matter(tmp_path: Path) -> None:
    root = tmp_path / "c"
    for name in ("dog/1.wav", "cat/2.wav"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"")
    (root / "features.csv").write_bytes(b"\xff\xff,\0")
    assert load(root).layout == "folder per class"
    (root / "cat/2.wav").unlink()
    assert "features.csv" in refused(root)  # nothing else is there
