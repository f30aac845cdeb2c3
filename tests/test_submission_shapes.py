"""The sample submission decides the submission's shape: a row per clip and class, yes and no, scores, several
labels."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earshot.competition import long_format, sample_shape
from earshot.core.errors import UserError
from earshot.prediction import submission


def found(ids, classes, clips, **more):
    there = set(clips)
    return long_format.detect_long_format(list(ids), classes, lambda some: set(some) & there, **more)


def written(
    folder: Path, sample: str, ids, p, classes, multilabel: bool = False, separator=None
) -> list[str]:
    """The lines of the submission for a sample file's text."""
    path = folder / "sample_submission.csv"
    path.write_text(sample, encoding="utf-8")
    columns = (sample.split(",")[0], "label")
    submission.write(
        folder / "s.csv", np.array(ids), np.array(p, float), classes, columns, path, multilabel, separator
    )
    return (folder / "s.csv").read_text(encoding="utf-8").splitlines()


def notes(sample: str, classes, several: bool = False) -> list[str]:
    """What is said of a sample submission before the extraction."""
    lines = [line.split(",") for line in sample.splitlines()]
    frame = pd.DataFrame(lines[1:], columns=lines[0], dtype=object)
    return sample_shape.check_sample(frame, "s.csv", lines[0][0], classes, set(classes), several)


# --- a row per clip and class

BIRDS = ["asbfly", "bkskit1", "comior1", "1139490"]
STRETCHES = [f"soundscape_453028782_{second}" for second in (5, 10)]


@pytest.mark.parametrize(
    "form, clips, classes",
    [
        ("{clip}_{name}", ["a", "b"], ["owl", "jay"]),
        ("{name}|{clip}", ["a b", "b"], ["light rain", "rain"]),
        ("{clip}_classnumber_{name}", ["nips4b_testfile0001.wav", "nips4b_testfile0002.wav"], list("12345")),
        ("{clip}.wav-class-{name}", ["0001", "0002"], ["12", "1", "2"]),
        ("{clip}_class{name:0>3}", ["rec1", "rec2"], ["1", "2", "12"]),
        ("is {name} in {clip}?", ["x/1.wav", "y/2.wav"], ["Zipper_(clothing)", "Hi-hat", "jay"]),
        ("{clip}{name}", ["clip1", "clip22"], ["dog", "cat"]),
        ("{clip}_{name}", ["owl_1", "jay_2_owl", "b-3"], ["owl", "jay"]),
        ("p({name}; {clip})", ["K\u00e4uz 1", "\u732b.ogg"], ["\u9ce5", "b\u00e4r"]),
    ],
)  # fmt: skip
def test_ids_of_clip_and_class(form: str, clips: list[str], classes: list[str]) -> None:
    pairs = [(clip, name) for clip in clips for name in classes]
    for rows in (pairs, sorted(pairs, key=lambda pair: pair[1])):
        ids = [form.format(clip=clip, name=name) for clip, name in rows]
        assert found(ids, classes, clips) == tuple(map(list, zip(*rows, strict=True)))
        assert (
            long_format.looks_like_long_format(ids, classes) or "owl_1" in clips
        )  # owl_1_owl: only known clips tell


def test_a_class_in_the_middle() -> None:
    pairs = [(clip, bird) for clip in STRETCHES for bird in BIRDS]
    ids = [f"soundscape_453028782_{bird}_{clip.rpartition('_')[2]}" for clip, bird in pairs]
    # the recording is there as well: the stretch is meant
    assert list(zip(*found(ids, BIRDS, [*STRETCHES, "soundscape_453028782"]), strict=True)) == pairs
    one = found(ids[:3], BIRDS, ["soundscape_453028782", *STRETCHES])
    assert set(one.clips) == {STRETCHES[0]} and one.classes == BIRDS[:3]


def test_whole_numbers() -> None:
    ids = [str(rec * 100 + species) for rec in (0, 1, 3, 39) for species in range(19)]
    classes = [str(n) for n in range(19)]
    read = found(ids, classes, [str(n) for n in range(40)])
    assert read.clips[::19] == ["0", "1", "3", "39"] and read.classes[:19] == classes
    assert found([id.zfill(6) for id in ids], classes, ["0000", "0001", "0003", "0039"]).clips[-1] == "0039"
    assert found(ids, classes, ["7"]) is None and found(ids, ["owl", "jay"], ["0", "1"]) is None
    assert found(["9" * 5000 + n for n in "012"], list("0123"), ["9" * 5000]).classes == list("012")
    assert found(ids, classes, ids) is None  # files are called so: a row per clip


WORDS = st.text("abcxyz\u00e4", min_size=1, max_size=4)
SIGNS = st.sampled_from(["_", "-", " ", ".", "__", ":", " - "])


@st.composite
def asked(draw):
    """Clips, classes, ids, and what each id means."""
    number = draw(st.booleans())
    if number:
        classes = draw(st.lists(st.integers(0, 300).map(str), min_size=2, max_size=6, unique=True))
    else:
        parts = st.tuples(WORDS, st.sampled_from(["", "_", " ", "1", "-"]), WORDS).map("".join)
        # a capital: no clip and no constant word has one
        classes = draw(
            st.lists(parts.map(lambda text: text.capitalize()), min_size=2, max_size=6, unique_by=str.lower)
        )
    head = draw(WORDS)
    numbers = draw(st.lists(st.integers(1000, 99999), min_size=2, max_size=5, unique=True))
    between, tail = draw(SIGNS), draw(st.sampled_from(["", ".wav", "_left", "-b"]))
    clips = [f"{head}{between}{n}{tail}" for n in numbers]
    first, last = draw(st.sampled_from(["", "row:", "q_"])), draw(st.sampled_from(["", "?", "_end"]))
    glue = draw(
        st.builds(lambda a, word, b: a + word + b, SIGNS, st.sampled_from(["", "class", "is_it"]), SIGNS)
    )
    where = draw(st.sampled_from(["before", "behind", "middle"]))
    pairs = [(clip, name) for clip in clips for name in classes]
    if draw(st.booleans()):
        pairs = draw(st.permutations(pairs))

    def id_of(clip: str, name: str) -> str:
        if where == "middle":
            return f"{first}{head}{between}{name}{between}{clip[len(head + between) :]}{last}"
        return first + (f"{name}{glue}{clip}" if where == "before" else f"{clip}{glue}{name}") + last

    return clips, classes, [id_of(*pair) for pair in pairs], pairs


@settings(max_examples=150, deadline=None)
@given(asked())
def test_what_is_composed_is_found_again(made) -> None:
    clips, classes, ids, pairs = made
    assert list(zip(*found(ids, classes, clips), strict=True)) == pairs


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=12), st.lists(st.text(max_size=5), max_size=5))
def test_any_text_ends_well(ids: list[str], classes: list[str]) -> None:
    for clips in ([], ids, [id[:2] for id in ids]):
        try:
            read = found(ids, classes, clips, strict=False)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert read is None or len(read.clips) == len(read.classes) == len(ids)
    long_format.looks_like_long_format(ids, classes)


def test_what_is_no_row_per_clip_and_class() -> None:
    clips = [f"clip{n}" for n in range(9)]
    for ids in (
        clips,
        [],
        ["clip1_owl"],
        [f"{clip}_owl" for clip in clips],  # one class alone
        [f"{clip}_{name}" for clip, name in zip(clips, ["owl", "jay", "emu"] * 3, strict=True)],
        [f"other{n}_{name}" for n in range(9) for name in ("owl", "jay")],  # no known clip
        [f"{clip}_{name}" for clip in clips for name in ("owl", "fox", "cow", "pig", "hen")],
        ["clip1_owl", "clip1_jay"] * 2,
    ):
        assert found(ids, ["owl", "jay", "emu"], clips) is None, ids


def test_missing_clips_unknown_classes_and_odd_rows() -> None:
    classes, clips = ["owl", "jay", "snow owl"], ["a", "b", "c"]
    ids = [f"{clip}_{name}" for clip in (*clips, "gone") for name in ("owl", "jay")]
    assert found(ids, classes, clips).clips[-2:] == ["gone", "gone"]
    with_fox = [f"{clip}_{name}" for clip in clips for name in ("owl", "jay", "red owl")]
    with pytest.raises(
        UserError, match=r"id a_red owl is for the class red owl, which the training data does not have.*'"
    ):
        found(with_fox, classes, clips)
    assert found(with_fox, classes, clips, strict=False).classes[2] == "red owl"
    # a class in another spelling is that class
    assert found([id.replace("owl", "Owl") for id in ids], classes, clips).classes[0] == "owl"
    many = [f"clip{n}_{name}" for n in range(30) for name in ("owl", "jay")]
    with pytest.raises(
        UserError, match=r"id total names no clip and class like the others \(clip0_owl: clip clip0"
    ):
        found([*many, "total"], classes, [f"clip{n}" for n in range(30)])
    with pytest.raises(UserError, match="is for the class 7"):
        found([str(100 * clip + n) for clip in (1, 2) for n in (1, 2, 7)], ["1", "2"], ["1", "2"])


@pytest.mark.slow
def test_half_a_million_rows() -> None:
    clips = [f"nips4b_birds_testfile{n:04d}.wav" for n in range(5800)]
    classes = [str(n) for n in range(1, 88)]
    ids = [f"{clip}_classnumber_{name}" for clip in clips for name in classes]
    start, asked = time.process_time(), []
    read = long_format.detect_long_format(
        ids, classes, lambda some: asked.append(len(some)) or set(some) & set(clips)
    )
    assert time.process_time() - start < 60 and sum(asked) < 20_000
    assert read.clips[::87] == clips and read.classes[:87] == classes


SPECIES = ["0", "1", "2"]
P3 = [[0.1, 0.2, 0.9], [0.4, 0.5, 0.6]]


def test_a_submission_by_numbers(tmp_path: Path) -> None:
    sample = "Id,Probability\n" + "".join(f"{clip * 100 + n},0\n" for clip in (1, 39) for n in range(3))
    want = ["100,0.1", "101,0.2", "102,0.9", "3900,0.4", "3901,0.5", "3902,0.6"]
    for several in (True, False):
        assert written(tmp_path, sample, ["39", "1"], P3[::-1], SPECIES, several)[1:] == want
    assert notes(sample, SPECIES, True) == []
    # no training clip has the class 3: 0; the class 1 is not asked about
    more = "Id,Probability\n100,0\n102,0\n103,0\n3900,0\n3902,0\n3903,0\n"
    assert written(tmp_path, more, ["1", "39"], P3, SPECIES, True)[1:] == [
        "100,0.1", "102,0.9", "103,0.0", "3900,0.4", "3902,0.6", "3903,0.0",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"3 ids of the sample submission have no prediction \(first: 39\)"):
        written(tmp_path, sample, ["1", "40"], P3, SPECIES, True)


@pytest.mark.parametrize(
    "cells, want",
    [
        (["False"], ["False", "True", "True", "False"]),
        (["true"], ["false", "true", "true", "false"]),
        (["NO", "YES"], ["NO", "YES", "YES", "NO"]),
        (["0", "1"], ["0", "1", "1", "0"]),
        (["0"], ["0.2", "0.5", "0.7", "0.3"]),
        (["0.0", "1.0"], ["0.2", "0.5", "0.7", "0.3"]),
    ],
)
def test_yes_and_no_as_the_sample_writes_them(tmp_path: Path, cells: list[str], want: list[str]) -> None:
    names, p = ["asbfly", "bkskit1"], [[0.2, 0.5], [0.7, 0.3]]
    ids = [f"soundscape_1_{bird}_{second}" for second in (5, 10) for bird in names]
    rows = [f"{id},{cells[n % len(cells)]}" for n, id in enumerate(ids)]
    sample = "\n".join(["row_id,target", *rows])
    made = written(tmp_path, sample, ["soundscape_1_5", "soundscape_1_10"], p, names, True)
    assert [line.split(",")[1] for line in made[1:]] == want
    assert not any("warning" in line for line in notes(sample, names, True))
    sample = f"id,bkskit1,asbfly\nx,{cells[0]},{cells[-1]}\ny,{cells[-1]},{cells[0]}\n"
    made = written(tmp_path, sample, ["x", "y"], p, names, True)
    numbers = cells[0][0] in "01"  # without words a column per class has probabilities
    assert made[1:] == (
        ["x,0.5,0.2", "y,0.3,0.7"] if numbers else [f"x,{want[1]},{want[0]}", f"y,{want[3]},{want[2]}"]
    )


def test_one_label_a_clip_as_yes_and_no_per_class(tmp_path: Path) -> None:
    made = written(tmp_path, "id,a,b,c\nx,True,False,False\n", ["x"], [[0.3, 0.45, 0.25]], ["a", "b", "c"])
    assert made[1] == "x,False,True,False"


def test_columns_that_name_classes_by_their_number(tmp_path: Path) -> None:
    sample = "recording_id,s0,s2,s1\nx,0,0,0\ny,0,0,0\n"
    assert written(tmp_path, sample, ["x", "y"], P3, SPECIES, True) == [
        "recording_id,s0,s2,s1", "x,0.1,0.9,0.2", "y,0.4,0.6,0.5",
    ]  # fmt: skip
    assert notes(sample, SPECIES, True) == []
    with pytest.raises(UserError, match="column s0 is not a class"):
        written(tmp_path, sample.replace("s2", "s7"), ["x", "y"], P3, SPECIES, True)


# --- one column: score or labels


@pytest.mark.parametrize(
    "header, cell, classes, of",
    [
        ("probability", "0", ["0", "1"], "1"),
        ("Probability", "0", ["1", "2"], "2"),
        ("probability", "", ["0.0", "1.0"], "1.0"),
        ("predProba", "0.5", ["no", "yes"], "yes"),
        ("label", "0.5", ["cat", "dog"], "dog"),
        ("score", "1", ["abnormal", "normal"], "abnormal"),
        ("confidence", "0", ["whale", "no_whale"], "whale"),
        ("p", "x", ["noise", "whale"], "whale"),
        ("prob_cat", "0", ["cat", "dog"], "cat"),
        ("is_whale", "0.25", ["whale", "zebra"], "whale"),
        ("prediction_probability", "0", ["False", "True"], "True"),
        ("target", "0,3", ["a", "b"], "b"),
    ],
)
def test_a_score(tmp_path: Path, header: str, cell: str, classes: list[str], of: str) -> None:
    sample = f'clip,{header}\nx,"{cell}"\ny,"{cell}"\n'
    p = np.array([[0.75, 0.25], [0.5, 0.5]])
    assert written(tmp_path, sample, ["x", "y"], p, classes)[1] == f"x,{p[0, classes.index(of)]}"
    lines = notes(sample.replace("0,3", "0.3").replace('"', ""), classes)
    assert lines == [f"s.csv: column {header} is about the class {of}: its probability is submitted"]


@pytest.mark.parametrize(
    "header, cell, classes, want",
    [
        ("label", "0", ["0", "1"], "0"),
        ("target", "0", ["0.0", "1.0"], "0"),
        ("target", "1.0", ["0", "1"], "0.0"),
        ("Category", "1", ["0", "1"], "0"),
        ("probability", "owl", ["jay", "owl"], "jay"),
        ("score", "0", ["0", "1", "2"], "0"),
    ],
)
def test_labels(tmp_path: Path, header: str, cell: str, classes: list[str], want: str) -> None:
    p = [[0.6, 0.4], [0.2, 0.8]] if len(classes) == 2 else [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]
    made = written(tmp_path, f"clip,{header}\nx,{cell}\ny,{cell}\n", ["x", "y"], p, classes)
    assert made[1] == f"x,{want}"


def test_yes_and_no_for_one_of_two_classes(tmp_path: Path) -> None:
    sample = "clip,has_bird\nx,False\ny,False\n"
    made = written(tmp_path, sample, ["x", "y"], [[0.4, 0.6], [0.8, 0.2]], ["0", "1"])
    assert made == ["clip,has_bird", "x,True", "y,False"]
    assert notes(sample, ["0", "1"]) == [
        "s.csv: column has_bird is about the class 1: True where it is the likelier"
    ]
    assert written(tmp_path, sample, ["x"] + ["y"], [[0.4, 0.6]] * 2, ["False", "True"])[1] == "x,True"


def test_warnings_before_the_extraction() -> None:
    (line,) = notes("clip,probability\nx,0\ny,0\n", ["a", "b", "c"])
    assert line.startswith("warning: column probability of s.csv asks for a score, and there are 3 classes")
    (line,) = notes("clip,prediction\nx,0\ny,0\n", ["a", "b", "c"])
    assert line.startswith("warning: column prediction of s.csv holds 0, and no training clip has that label")
    (line,) = notes("clip,label\nx,True\ny,True\n", ["a", "b", "c"])
    assert "holds True, and no training clip" in line
    for sample in (
        "clip,label\nx,a\ny,b\n",
        "clip,score\nx,a\ny,b\n",
        "clip,label\nx,\ny,\n",
        "clip,label\n",
    ):
        assert notes(sample, ["a", "b", "c"]) == [], sample


def test_a_row_per_clip_and_class_is_no_column_of_labels() -> None:
    rows = [f"{clip}.wav_classnumber_{n}" for clip in ("x1", "x2") for n in range(3)]
    for header, cells in (("Probability", "0"), ("target", "False"), ("present", "0"), ("label", "False")):
        sample = "\n".join([f"ID,{header}", *(f"{id},{cells}" for id in rows)])
        assert not any("warning" in line for line in notes(sample, ["0", "1", "2"], True))
    two = "\n".join(["ID,Probability", *(f"{clip}_{name},0" for clip in "xyz" for name in ("owl", "jay"))])
    assert notes(two, ["jay", "owl"]) == []


# --- several labels a cell

SOUNDS = ["Bark", "Flute", "Hi-hat", "Laughter", "light rain"]
P5 = [[0.1, 0.2, 0.3, 0.05, 0.35], [0.5, 0.2, 0.15, 0.1, 0.05]]


@pytest.mark.parametrize(
    "cell, want",
    [
        ("Laughter Hi-Hat Flute", "light rain Hi-hat Flute"),
        ("Laughter Hi-hat", "light rain Hi-hat"),
        ("Laughter;Flute;Tuba", "light rain;Hi-hat;Flute"),
        ('"Laughter, Flute"', '"light rain, Hi-hat"'),
        ("\"['Laughter', 'Flute']\"", "\"['light rain', 'Hi-hat']\""),
        ("Bark Bark Bark", "light rain Hi-hat Flute"),
        ("light rain", "light rain"),
        ("Light Rain", "light rain"),
        ("Light drizzle", "light rain"),
        ("Bark drizzle", "light rain"),
        ("Bark", "light rain"),
    ],
)
def test_the_shape_of_a_cell_decides(tmp_path: Path, cell: str, want: str) -> None:
    made = written(tmp_path, f"fname,label\nx,{cell}\ny,{cell}\n", ["x", "y"], P5, SOUNDS)
    assert made[1] == f"x,{want}"


def test_a_word_that_is_no_class_is_named() -> None:
    sample = "fname,label\nx,Laughter Hi-Hat Flute\ny,Laughter Hi-Hat Flute\n"
    (line,) = notes(sample, SOUNDS[:4])
    assert "holds Hi-Hat, and no training clip has that label" in line and "did you mean 'Hi-hat'" in line
    assert "the label light rain contains the separator" in notes(sample, SOUNDS)[0]
