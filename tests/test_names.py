"""Labels in several spellings, samples that name no class: read right, or said before a clip is decoded."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import read_csv, refused, script, tone
from layout_files import files, rows
from layout_files import refused as load_refused

from earshot.audio import spectrogram
from earshot.competition import sample_shape
from earshot.competition.load import load
from earshot.core import csv_table, spelling
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.prediction import submission
from earshot.training import run_cache

OWL, JAY, SEAL = "K\u00e4uz", "jay", "sea lion"
RUNS = (["emu", OWL, "7"], ["emu", "Ka\u0308uz", "7.0"], ["emu", OWL, "07"])
SPELLINGS = {
    "decomposed": (OWL, unicodedata.normalize("NFD", OWL)),
    "zero width": (JAY, "j\u200bay"),
    "byte order mark": (JAY, "\ufeffjay"),
    "direction mark": (JAY, "jay\u200e"),
    "no-break blank": (SEAL, "sea\u00a0lion"),
    "two blanks": (SEAL, "sea  lion"),
    "float": ("7", "7.0"),
    "korean": ("\uac00", "\u1100\u1161"),
}


def table(path: Path, *lines: list, mark: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=mark, lineterminator="\n").writerows(lines)


def contest(root: Path, labels: list[str], sample: list[list]) -> Path:
    """A clip for each label, a tone for each class, and the clips that the sample submission lists."""
    kinds = {text: n for n, text in enumerate(dict.fromkeys(map(spelling.to_key, labels)))}
    for part, ids in (
        ("train", [f"a{n}.wav" for n in range(len(labels))]),
        ("test", [r[0] for r in sample[1:]]),
    ):
        (root / part).mkdir(parents=True)
        for n, name in enumerate(ids):
            kind = kinds[spelling.to_key(labels[n])] if part == "train" else n % len(kinds)
            soundfile.write(root / part / name, tone(kind, n, seconds=0.5), 16000)
    table(root / "train.csv", ["fname", "label"], *([f"a{n}.wav", label] for n, label in enumerate(labels)))
    table(root / "sample_submission.csv", *sample)
    return root


def extracted(root: Path, *more: object) -> str:
    flags = ("--competition", root, "--extractor", "logmel", "--n-mels", "16", "--seconds", "0.5", *more)
    return script("get_features.py", *flags, "--device", "cpu", "--workers", "1", cwd=root.parent).stdout


def trained(root: Path) -> list[dict[str, str]]:
    flags = ("--head", "linear", "--epochs", "3", "--folds", "2", "--no-report", "--device", "cpu")
    script("train.py", *flags, cwd=root.parent)
    return read_csv(root.parent / "submissions" / "submission.csv")


# --- one label, several spellings


@pytest.mark.parametrize("one, other", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("where", ["train", "test", "columns", "cells", "folders", "lists", "zero and one"])
def test_one_label_in_two_spellings(tmp_path: Path, one: str, other: str, where: str) -> None:
    root = tmp_path / "c"
    if where == "folders":
        files(
            root,
            *(f"train/{name}/{n}.wav" for n, name in enumerate((one, other, "emu"))),
            f"test/{other}/4.wav",
        )
        comp = load(root)
        assert len(comp.classes) == 2 and len(set(comp.clips["label"])) == 2
        return
    files(root, *(f"train/{n}.wav" for n in "abcd"), "test/x.wav", "test/y.wav")
    labels = [one, one, "emu", other if where == "train" else one]
    header, body = ["fname", "label"], [[f"{n}.wav", label] for n, label in zip("abcd", labels, strict=True)]
    if where == "lists":
        body[0][1], body[3][1] = f"{one};emu", f"emu;{other}"
    if where == "zero and one":
        header, body = (
            ["fname", one, "emu"],
            [["a.wav", 1, 1], ["b.wav", 0, 1], ["c.wav", 0, 0], ["d.wav", 1, 0]],
        )
    table(root / "train.csv", header, *body)
    if where == "test":
        table(root / "test.csv", ["fname", "label"], ["x.wav", other], ["y.wav", "emu"])
    elif where == "cells":
        table(root / "sample_submission.csv", ["fname", "label"], ["x.wav", other], ["y.wav", other])
    else:
        table(root / "sample_submission.csv", ["fname", other, "emu"], ["x.wav", 0, 0], ["y.wav", 0, 0])
    comp = load(root)
    assert comp.classes == sorted([one, "emu"]) and set(comp.clips["label"][:4].explode()) <= {
        one,
        "emu",
        np.nan,
    }
    assert not any("warning" in note for note in comp.notes), comp.notes
    several = [note for note in comp.notes if "several spellings" in note]
    assert len(several) == (where in ("train", "test", "lists"))
    if where in ("columns", "lists", "zero and one", "cells"):  # the sample's own spelling is submitted
        asked = csv_table.read(root / "sample_submission.csv")
        made = submission.render(
            np.array(["x.wav", "y.wav"]),
            np.eye(2)[[comp.classes.index(one)] * 2] * 0.9 + 0.05,
            comp.classes,
            (comp.id_column, comp.label_column),
            comp.sample_submission,
            comp.multilabel,
            comp.separator,
        )[1]
        assert list(made) == list(asked) and made.iloc[0, 1] == (
            other.strip() if where == "cells" else "0.95"
        )


def test_what_is_told_apart_and_how(tmp_path: Path) -> None:
    for one, other in SPELLINGS.values():
        assert spelling.to_key(one) == spelling.to_key(other)
    for one, other in (("Dog", "dog"), ("001", "1"), ("True", "1"), ("0", "False"), ("dog", "d\u043eg")):
        assert spelling.to_key(one) != spelling.to_key(other) and spelling.to_loose_key(
            one
        ) == spelling.to_loose_key(other)
        root = tmp_path / f"{one}-{other}"
        files(root, *(f"train/{n}.wav" for n in "abcd"))
        table(root / "train.csv", ["fname", "label"], ["a", one], ["b", other], ["c", "emu"], ["d", one])
        (line,) = [note for note in load(root).notes if note.startswith("warning: ")]
        assert repr(one) in line and repr(other) in line
    assert "'d\u043eg' (U+043E)" in line
    for plain in ("dog", "1.5", "v1.0", "-1", "air_conditioner"):
        assert spelling.to_key(plain) == plain
    assert spelling.to_loose_key("-1") != spelling.to_loose_key("1")


def test_folder_names_and_cells_of_nothing_but_zero_width(tmp_path: Path) -> None:
    files(tmp_path, *(f"train/{n}.wav" for n in "abcd"))
    table(
        tmp_path / "train.csv",
        ["fname", "label"],
        ["a", "owl"],
        ["b", "\u200b"],
        ["c", "emu"],
        ["d", "\ufeff"],
    )
    comp = load(tmp_path)
    assert comp.classes == ["emu", "owl"] and [i for _, i, _ in comp.missing] == ["b", "d"]

    files(tmp_path / "c", "dog /1.wav", "\u200b/2.wav", "owl/3.wav", "owl /4.wav")
    comp = load(tmp_path / "c")
    assert [row[1:] for row in rows(comp, "train")] == [
        ("dog /1.wav", "dog"),
        ("owl /4.wav", "owl"),
        ("owl/3.wav", "owl"),
    ]
    assert comp.missing == [("train", "\u200b/2.wav", "empty label")]


def test_a_spelling_that_hides_nothing_wins(tmp_path: Path) -> None:
    files(tmp_path, *(f"train/{n}.wav" for n in "abcdefg"))
    labels = ["ja\u200by", "ja\u200by", JAY, "Ka\u0308uz", OWL, "emu\u200b", "\u0645\u06cc\u200c\u0634"]
    table(tmp_path / "train.csv", ["fname", "label"], *zip("abcdefg", labels, strict=True))
    comp = load(tmp_path)
    assert set(comp.classes) == {JAY, OWL, "emu\u200b", labels[-1]}
    (line,) = [note for note in comp.notes if note.startswith("warning: the label")]
    assert r"'emu\u200b' holds U+200B" in line


@pytest.mark.slow
def test_from_audio_to_the_samples_spelling(tmp_path: Path) -> None:
    """Floats and numbers, composed and decomposed: two classes, written as the sample has them."""
    decomposed = unicodedata.normalize("NFD", OWL)
    labels = [OWL, decomposed, "7.0"] * 4
    labels[2::3] = ["7.0", "7", "7.0", "7\u200b"]
    root = contest(
        tmp_path / "birds", labels, [["fname", "label"], *([f"t{n}.wav", decomposed] for n in range(4))]
    )
    said = extracted(root)
    assert sum("several spellings" in line for line in said.splitlines()) == 1 and "warning" not in said
    assert "U+0061 U+0308" in said and "train: 12 clips, 2 classes" in said
    assert sorted(Cache(tmp_path / "data" / "birds" / "logmel").classes) == ["7.0", OWL]
    assert {row["label"] for row in trained(root)} <= {decomposed, "7.0"}


@pytest.mark.slow
def test_from_audio_to_the_samples_header(tmp_path: Path) -> None:
    header = ["fname", "sea\u00a0lion", unicodedata.normalize("NFD", OWL), "3"]
    root = contest(
        tmp_path / "birds", ["3.0", SEAL, OWL] * 4, [header, *([f"t{n}.wav", 0, 0, 0] for n in range(3))]
    )
    assert "warning" not in extracted(root)
    made = trained(root)
    assert list(made[0]) == header and all(
        0.99 < sum(float(row[c]) for c in header[1:]) < 1.01 for row in made
    )


def test_labels_the_sample_does_not_show_are_written_in_its_kind() -> None:
    for classes, cell, want in (
        (["0.0", "1.0", "10.0"], "0", ["0", "1", "10"]),
        (["0", "1"], "0.0", ["0.0", "1.0"]),
        ([OWL, "B\u00e4r"], "Ka\u0308uz", ["Ka\u0308uz", "Ba\u0308r"]),
        (["owl", "B\u00e4r"], "owl", ["owl", "B\u00e4r"]),
    ):
        sample = pd.DataFrame({"id": ["a", "b"], "label": [cell, cell]})
        assert sample_shape.adopt_spelling(classes, sample, "id", False) == want


def test_runs_and_caches_of_two_spellings_go_together() -> None:
    made = [
        SimpleNamespace(folder=Path(n), multilabel=False, classes=c) for n, c in zip("abc", RUNS, strict=True)
    ]
    assert run_cache.check_same_classes(made[:2]) == RUNS[0]
    with pytest.raises(UserError, match="a has 3 classes, of which only it has 7; c has 3 classes"):
        run_cache.check_same_classes(made[::2])


def test_a_solution_of_another_spelling(tmp_path: Path) -> None:
    table(tmp_path / "solution.csv", ["id", "label"], ["a", "Ka\u0308uz"], ["b", "7.0"])
    made = pd.DataFrame({"id": ["b", "a"], "label": ["7", OWL]})
    assert submission.score(made, tmp_path / "solution.csv")["accuracy"] == 1


def test_columns_of_a_hold_out_in_another_spelling(tmp_path: Path) -> None:
    files(tmp_path, *(f"train/{n}.wav" for n in "abc"), "test/x.wav", "test/y.wav")
    table(tmp_path / "train.csv", ["fname", OWL, "emu"], ["a", 1, 1], ["b", 0, 1], ["c", 1, 0])
    table(tmp_path / "test.csv", ["fname", "Ka\u0308uz", "emu"], ["x", 1, 0], ["y", 1, 1])
    comp = load(tmp_path)
    assert [label for _, _, label in rows(comp, "test")] == [(OWL,), (OWL, "emu")]
    table(tmp_path / "train.csv", ["fname", OWL, "Ka\u0308uz"], ["a", 1, 1], ["b", 0, 1], ["c", 1, 0])
    assert "several columns for one label" in load_refused(tmp_path)


@pytest.mark.parametrize("one, other", [(OWL, "Ka\u0308uz"), ("1", "1.0"), (JAY, "j\u200bay")])
def test_two_columns_of_one_label_beside_a_sample(tmp_path: Path, one: str, other: str) -> None:
    files(tmp_path, *(f"train/{n}.wav" for n in "abc"), "test/x.wav")
    table(
        tmp_path / "train.csv", ["fname", one, "emu", other], ["a", 1, 1, 0], ["b", 0, 1, 0], ["c", 0, 1, 1]
    )
    for asked in (one, other, f"{one}\u200b"):
        table(tmp_path / "sample_submission.csv", ["fname", asked, "emu"], ["x", 0, 0])
        assert "train.csv has several columns for one label" in load_refused(tmp_path)


def test_options_in_another_spelling(tmp_path: Path) -> None:
    files(tmp_path, *(f"train/{n}.wav" for n in "abc"))
    name, header, clip = (unicodedata.normalize("NFD", text) for text in ("Vögel.csv", "Catégorie", "Numéro"))
    table(tmp_path / name, [clip, header, "x"], ["a", "owl", 1], ["b", JAY, 2], ["c", "owl", 3])
    comp = load(tmp_path, train_csv="Vögel.csv", label_column="Catégorie", id_column="Numéro")
    assert [label for _, _, label in rows(comp, "train")] == ["owl", JAY, "owl"] and comp.id_column == clip


def test_two_columns_of_one_label_in_a_hold_out(tmp_path: Path) -> None:
    files(tmp_path, *(f"train/{n}.wav" for n in "abc"), "test/x.wav", "test/y.wav")
    table(tmp_path / "train.csv", ["fname", JAY, "emu"], ["a", 1, 1], ["b", 0, 1], ["c", 1, 0])
    for twins in (("j\u200bay", "ja\u200by"), (JAY, "ja\u200by")):
        table(tmp_path / "test.csv", ["fname", *twins, "emu"], ["x", 1, 0, 0], ["y", 0, 1, 1])
        line = load_refused(tmp_path)
        assert "test.csv has several columns for one label" in line and "U+200B" in line


@pytest.mark.parametrize(
    "train, test, words",
    [
        (["label"], ["Label"], ("no column 'label', but 'Label'",)),
        ([JAY, "emu"], ["Jay", "Emu"], ("no column 'jay', but 'Jay'",)),
        ([JAY, "emu"], [JAY], ("no column 'emu': its clips",)),
        (["label"], ["seconds"], None),
        ([JAY, "emu"], [], None),
    ],
)
def test_a_hold_out_of_other_headers(tmp_path: Path, train: list, test: list, words: tuple | None) -> None:
    files(tmp_path, *(f"train/{n}.wav" for n in "abc"), "test/x.wav", "test/y.wav")
    table(tmp_path / "train.csv", ["fname", *train], ["a", *[1] * len(train)], ["b", *[0] * len(train)])
    table(tmp_path / "test.csv", ["fname", *test], ["x", *[1] * len(test)], ["y", *[1] * len(test)])
    comp = load(tmp_path)
    assert len(rows(comp, "subm")) == 2
    lines = [note for note in comp.notes if note.startswith("warning: test.csv has no column")]
    assert len(lines) == bool(words) and all(word in lines[0] for word in words or ())


def test_a_name_from_right_to_left_turns_nothing_around() -> None:
    name = "\u0643\u0644\u0628 \u0643\u0628\u064a\u0631"
    for title in (f"{name}  001-a.wav", f"001-a.wav: {name}, 0.93"):
        found = [text for _, text in spectrogram._split_by_font(title)]
        assert "".join(found) == title and name in found


# --- the sample against the classes, before a clip is decoded


@pytest.mark.parametrize(
    "header, words",
    [
        (["fname", "dog", "cut", "fox"], ("column cut is not a class", "did you mean 'cat'")),
        (["fname", "Dog", "Cat", "Owl"], ("column Dog is not a class", "'dog'")),
        (["fname", "d\u043eg", "cot", "owl"], ("is not a class", "'dog' (U+006F) for 'd\u043eg' (U+043E)")),
        (["fname", "dog", "dog\u200b", "cat", "owl"], ("several columns for one class", "U+200B")),
    ],
)
def test_columns_that_are_no_classes(tmp_path: Path, header: list[str], words: tuple[str, ...]) -> None:
    sample = [header, ["t0.wav", *[0] * (len(header) - 1)]]
    root = contest(tmp_path / "c", ["dog", "cat", "owl"] * 2, sample)
    done = script("get_features.py", "--competition", root, "--extractor", "logmel", cwd=tmp_path, ok=2)
    line = refused(done)
    assert all(word in line for word in words), line
    assert not list(tmp_path.glob("data/c/logmel/*"))


@pytest.mark.parametrize(
    "cells, words",
    [
        (["dog", "silence"], ("holds silence, and no training clip",)),
        (["Dog", "Dog"], ("holds Dog", "did you mean 'dog' for 'Dog'?")),
        (["d\u043eg", "cat"], ("did you mean 'dog' (U+006F) for 'd\u043eg' (U+043E)?",)),
        (["0", "0"], ("holds 0", "as the training data spells them")),
        (["dog Cat owl", "dog Cat owl"], ("holds Cat", "did you mean 'cat'")),
        (["dog", "cat"], ()),
        (["dog cat owl", "dog owl cat"], ()),
        (["Dog Cat Owl", "Dog Cat Owl"], ("did you mean 'dog' for 'Dog'?",)),
        (["", ""], ()),
    ],
)
def test_cells_that_are_no_labels(tmp_path: Path, cells: list[str], words: tuple[str, ...]) -> None:
    files(tmp_path, *(f"train/{n}.wav" for n in "abc"), "test/x.wav", "test/y.wav")
    table(tmp_path / "train.csv", ["fname", "label"], ["a", "dog"], ["b", "cat"], ["c", "owl"])
    table(tmp_path / "sample_submission.csv", ["fname", "label"], *zip(("x", "y"), cells, strict=True))
    lines = [note for note in load(tmp_path).notes if note.startswith("warning: ")]
    assert len(lines) == bool(words) and all(word in lines[0] for word in words), lines
