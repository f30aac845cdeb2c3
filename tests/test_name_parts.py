"""What file names tell: sources, labels, flags to suggest, classes that are none, copies of folders."""

from __future__ import annotations

import random
import re
import shlex
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import soundfile
from conftest import script, tone

from earshot.competition import groups, suspicious
from earshot.competition.name_parts import find_sources, match_labels, suggest_flags
from earshot.core.errors import UserError

RANDOM = random.Random(18)
SPEAKERS = [f"{RANDOM.getrandbits(32):08x}" for _ in range(30)]
COMMANDS = [f"{w}/{s}_nohash_{i}.wav" for w in ("yes", "no", "up") for s in SPEAKERS for i in range(2)]
ACTED = [
    f"03-01-{e:02d}-01-{s:02d}-{r:02d}-{a:02d}.wav"
    for a, e, s, r in product(range(1, 25), range(1, 9), (1, 2), (1, 2))
    if (e, s) != (1, 2)
]
IN_FOLDERS = [f"Actor_{name[-6:-4]}/{name}" for name in ACTED]
CREMA = [
    f"AudioWAV/{a}_{s}_{e}_XX.wav"
    for a in range(1001, 1092)
    for s in ("DFA", "IEO")
    for e in ("ANG", "HAP", "SAD")
]


def folder(names: list[str]) -> list[str]:
    """The labels, where they are the folders."""
    return [name.split("/")[0] for name in names]


@pytest.mark.parametrize(
    "names, labels, source, words",
    [
        (COMMANDS, None, lambda n: n[-21:-13], "before _nohash_ of the names (30 sources of 6 clips)"),
        (
            [f"{s % 5}-{4100 * s * s + 977 * s + 9841}-{t}-{s % 5}.wav" for s in range(40) for t in "AB"],
            lambda n: n[-5],
            lambda n: n.split("-")[1],
            "(40 sources of 2 clips)",
        ),
        (IN_FOLDERS, lambda n: n.split("-")[2], lambda n: n.split("/")[0], "Actor_01 in Actor_01/03-01"),
        (
            [f"p{p}_{k:03d}.wav" for p in range(225, 240) for k in range(9)],
            lambda n: n[-5],
            lambda n: n[:4],
            "p225",
        ),
        (
            [f"{c}/Subject_{s}_{k}.wav" for c in "ab" for s in range(9) for k in range(3)],
            None,
            lambda n: n[2:-6],
            "Subject_0",
        ),
        (
            [f"{c}/rec-2016-05-{d:02d}-{k}.wav" for c in "abc" for d in range(1, 20) for k in "xyz"],
            None,
            lambda n: n[6:16].replace("-", ""),
            "20160501",
        ),
        (
            [f"H{s}_202304{d:02d}_{h:02d}0000.ogg" for s in (1, 2) for d in range(1, 20) for h in (1, 22)],
            lambda n: n[12],
            lambda n: n[3:11],
            "20230401",
        ),
        (
            [f"XC{130000 + 77 * i}_{o:05d}.ogg" for i in range(20) for o in range(0, 60000, 5000)],
            lambda n: n[-9],
            lambda n: n[:8],
            "XC130000",
        ),
    ],
)  # fmt: skip
def test_a_source_in_the_names(names: list[str], labels, source, words: str) -> None:
    """Speakers by a hash, recordings by a number, people, days; the time of the day and offsets are none."""
    found = find_sources(names, [labels(n) for n in names] if labels else folder(names))
    assert found is not None
    assert found[0] == [source(name) for name in names], Counter(found[0])
    assert found[1].startswith("groups: ") and words in found[1], found[1]


GENRES = [f"{genre}/{genre}.{i:05d}.wav" for genre in ("blues", "jazz", "rock") for i in range(100)]


@pytest.mark.parametrize(
    "names",
    [
        GENRES,
        RANDOM.sample(GENRES, 60),
        [f"{c}/{i * 500:05d}.wav" for c in "abc" for i in range(30)],  # offsets
        [f"{c}/id{i:02d}.wav" for c in "abc" for i in range(30)],
        [f"{c}/XC{134000 + 50 * k + i}.mp3" for k, c in enumerate("abc") for i in range(50)],
        [f"{c}/{c}_{w}_{i}.wav" for c in "abc" for w in "george lucas theo jackson yw".split() for i in "01"],
        [f"{k % 2}/1-{k}-{k % 3}-{t}.wav" for k in range(20) for t in range(4)],  # takes
        [f"decade/{c}_{i}.wav" for c in ("added", "faded", "decaf", "facade", "accede") for i in range(9)],
        ["x.wav"],
        ["", "/", "..wav", "ä b.wav"],
        [],
    ],
)  # fmt: skip
def test_no_source_is_claimed(names: list[str]) -> None:
    """Counters, whole or in part, offsets, ids of one clip each, words."""
    assert find_sources(names, folder(names)) is None


def test_a_few_other_names_do_not_matter() -> None:
    names = [*COMMANDS, "noise/doing_the_dishes.wav", "noise/pink_noise.wav"]
    found = find_sources(names, folder(names))
    assert found is not None and found[0][:-2] == [n[-21:-13] for n in COMMANDS] and found[0][-2:] == ["", ""]


def flags(line: str) -> dict[str, str]:
    """The flags of a suggestion as a shell reads them."""
    words = shlex.split(re.sub(r" \([^()]*(\([^()]*\))?[^()]*\)$", "", line))
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize(
    "names, label, group",
    [
        (IN_FOLDERS, lambda n: n.split("-")[2], lambda n: n.split("/")[0]),
        (ACTED, lambda n: n.split("-")[2], lambda n: n[-6:-4]),
        (CREMA, lambda n: n.split("_")[2], lambda n: n[9:13]),
        (
            [f"train/{d}_{w}_{t}.wav" for d in "012" for w in ("george", "lucas", "theo") for t in range(50)],
            lambda n: n[6],
            lambda n: n.split("_")[1],
        ),
        ([f"x/{w}{i}.wav" for w in ("normal", "murmur") for i in range(9)], lambda n: n[2:8], None),
        ([f"train/{w}.{i}.wav" for w in ("cat", "dog") for i in range(9)], lambda n: n[6:9], None),
        ([f"{w}__{w}{i}_A.wav" for w in ("a's", "b") for i in range(9)], lambda n: n.split("__")[0], None),
    ],
)  # fmt: skip
def test_flags_are_suggested(names: list[str], label, group) -> None:
    """The first suggestion, as a shell reads it, gives the labels and the sources."""
    lines = suggest_flags(names)
    assert lines
    first = flags(lines[0])
    assert match_labels(names, first["--label-pattern"]) == [label(n) for n in names], lines[0]
    assert f"({len({label(n) for n in names})} labels: " in lines[0]
    if group is None:
        assert "--group-pattern" not in first
    else:
        assert groups.match_groups(names, first["--group-pattern"]) == [group(n) for n in names], lines[0]


def test_files_to_submit_get_no_label() -> None:
    """The last number is the label; names of a test folder lack it."""
    train = [
        f"train2/200903{d}_{m:02d}1500_{m:03d}s{m % 7}ms_TRAIN{d}{m}_{m % 3 // 2}.aif"
        for d in (28, 29, 30)
        for m in range(24)
    ]
    names = [*train, *(f"test2/20090404_{m:02d}1500_{m:03d}s0ms_Test{m}.aif" for m in range(60))]
    first = flags(suggest_flags(names)[0])
    assert match_labels(names, first["--label-pattern"]) == [*(n[-5] for n in train), *[""] * 60]
    assert groups.match_groups(names, first["--group-pattern"])[:72] == [n[7:15] for n in train]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["", "a.wav"],
        [f"{i}.wav" for i in range(50)],
        [f"{name}/{i}.wav" for name in ("Ann_B", "Carl_D") for i in range(9)],
        [f"{SPEAKERS[i]}.wav" for i in range(30)],
        [f"a_{'b_' * (i % 4)}{i % 3}.wav" for i in range(40)],
    ],
)
def test_nothing_is_suggested(names: list[str]) -> None:
    assert suggest_flags(names) == []


def test_a_label_pattern_needs_two_labels() -> None:
    assert match_labels(["a_1.wav", "b_1.wav", "c.wav"], "^(.)_") == ["a", "b", ""]
    with pytest.raises(UserError, match="gives only the label 1, as in a_1.wav"):
        match_labels(["a_1.wav", "b_1.wav"], r"_(\d)")
    with pytest.raises(UserError, match="--label-pattern x matches no clip"):
        match_labels(["a_1.wav", "b_1.wav"], "x")


@pytest.mark.parametrize(
    "classes, words",
    [
        (("train", "test"), "parts of the data set"),
        (("set_a", "set_b"), "parts of the data set"),
        (("fold1", "fold2", "fold10"), "parts of the data set"),
        (("FSD50K.dev_audio", "FSD50K.eval_audio"), "parts of the data set"),
        (("train_curated", "train_noisy", "test"), "parts of the data set"),
        (("cat", "dog", "test"), "test is read as a class beside cat, dog"),
        (("bus", "car", "train"), ""),
        (("class_1", "class_2"), ""),
        (("speaker1", "speaker2"), ""),
        (("battery_set", "tv_set"), ""),
        (("a", "b"), ""),
        (("0", "1"), ""),
        (("normal", ""), ""),
    ],
)
def test_classes_that_are_none(classes: tuple[str, ...], words: str) -> None:
    names = [f"{one}/{index}.wav" for one in classes for index in range(5)]
    lines = suspicious.warn_class_folders(names, folder(names))
    assert len(lines) == bool(words) and all(line.startswith("warning: ") for line in lines)
    assert words in "".join(lines)


def test_people_as_classes() -> None:
    """With the flags that give the labels; names without codes are a task of speakers."""
    (line,) = suspicious.warn_class_folders(IN_FOLDERS, folder(IN_FOLDERS))
    assert "look like people or recordings (Actor_01, Actor_02, Actor_03, ...)" in line
    assert "give --label-pattern '(?:^|/)" in line and "--label-pattern, such as" not in line


def test_classes_of_the_hold_out() -> None:
    (line,) = suspicious.warn_unknown_test_classes({"cat", "dog"}, {"cats", "test"})
    assert "2 classes that training lacks: cats (cat?), test; training has cat, dog" in line
    assert suspicious.warn_unknown_test_classes({"cat", "dog"}, {"cat"}) == []


def tree(*tops: str) -> list[str]:
    return [f"{top}{one}/{index}.wav" for top in tops for one in ("x", "y") for index in range(5)]


@pytest.mark.parametrize(
    "tops, alike, where",
    [
        (("", "copy/"), True, "copy/ and ."),
        (("", "copy/deep/"), True, "copy/deep/ and ."),
        (("train/", "data/train/"), True, "data/ and ."),
        (("one/", "two/"), False, "two/ and one/"),
        (("one/", "two/"), True, ""),  # all sizes alike: may be other clips
        (("train/", "test/"), False, ""),
    ],
)
def test_a_folder_that_lies_there_twice(tops: tuple[str, str], alike: bool, where: str) -> None:
    names = tree(*tops)
    sizes = [32044 if alike else 1000 + 37 * (index % 10) for index in range(20)]
    left, note = suspicious.find_duplicate_files(names, sizes)
    assert left == (list(range(10, 20)) if where else [])
    assert note == (f"10 audio files are duplicates ({where}): one copy is used" if where else "")


def test_copies_by_their_contents(tmp_path: Path) -> None:
    """One byte that differs: no copy, though names and sizes agree."""
    names = tree("", "copy/")
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes([index % 10] * 100))
    assert suspicious.find_duplicate_files(names, [100] * 20, tmp_path)[0] == list(range(10, 20))
    (tmp_path / names[13]).write_bytes(bytes(100))
    assert suspicious.find_duplicate_files(names, [100] * 20, tmp_path) == ([], "")
    assert suspicious.find_duplicate_files([], []) == ([], "")


def test_the_doctor_says_so(tmp_path: Path) -> None:
    """Classes named like folds, one of which only the hold-out has."""
    (tmp_path / "tones").mkdir()
    rows: dict[str, list[str]] = {"train": ["fname,label"], "test": ["fname,label"]}
    for index, (part, name) in enumerate([("train", "fold1"), ("train", "fold2"), ("test", "fold3")] * 4):
        soundfile.write(tmp_path / "tones" / f"{index}.wav", tone(index % 3, index), 16000)
        rows[part].append(f"{index}.wav,{name}")
    for part, lines in rows.items():
        (tmp_path / "tones" / f"{part}.csv").write_text("\n".join(lines) + "\n")
    script("get_features.py", "--competition", "tones", "--extractor", "logmel", cwd=tmp_path)
    said = script("doctor.py", "--data", "data/tones", cwd=tmp_path, ok=None).stdout
    assert "warning: the classes look like parts of the data set (fold1, fold2)" in said
    assert "warning: the hold-out has 1 class that training lacks: fold3 (fold" in said
    assert "a plain cosine of at least 0.9 (fewer than 50 clips)" in said
