"""doctor.py --data: planted copies and flipped labels are found, and what is not there is not claimed."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import read_csv, script

import doctor
import get_features
import train
from earshot.core.errors import UserError
from earshot.doctor import balance_and_shift, duplicates, label_errors, similarity
from earshot.doctor import embeddings as clips_of

RATE, CLASSES, EACH = 8000, ("low", "middle", "high"), 30


def recording(kind: int, seed: int) -> np.ndarray:
    """A second of noise through a filter of its own, and eight partials in the class's octaves, each with a
    tremolo of its own."""
    rng = np.random.default_rng([kind, seed])
    time = np.arange(RATE) / RATE
    hz, speed = 150 * 4.0 ** (kind + rng.uniform(0, 1, 8)), rng.uniform(1, 9, 8)
    waves = np.sin(2 * np.pi * np.minimum(hz, 3800)[:, None] * time) * (
        1 + np.sin(2 * np.pi * speed[:, None] * time + rng.uniform(0, 6))
    )
    wave = (waves * rng.uniform(0.1, 1, (8, 1))).sum(0)
    filtered = np.fft.rfft(rng.standard_normal(RATE)) * 10 ** np.interp(
        np.linspace(0, 40, RATE // 2 + 1), np.arange(41), rng.normal(0, 0.5, 41)
    )
    room = np.fft.irfft(filtered, RATE)
    return 0.2 * (wave / np.abs(wave).max() + 0.1 * room / room.std())


def copy(wave: np.ndarray, seed: int) -> np.ndarray:
    """The same recording with its start cut off, another level, noise 45 dB below."""
    rng = np.random.default_rng(seed)
    wave = wave[int(rng.uniform(0.02, 0.1) * RATE) :] * 10 ** (rng.uniform(-6, 6) / 20)
    return wave + rng.standard_normal(len(wave)) * np.sqrt(np.mean(wave**2)) * 10 ** (-45 / 20)


def competition(folder: Path, flips: int = 4, copies: int = 5) -> tuple[dict[str, str], set[frozenset]]:
    """A Kaggle layout with folds; the flipped clips with their true labels, and the pairs of copies."""
    for part in ("audio_train", "audio_test"):
        (folder / part).mkdir(parents=True)
    rows, flipped, pairs = [], {}, set()

    def add(name: str, wave: np.ndarray, label: str, fold: int) -> None:
        soundfile.write(folder / "audio_train" / name, wave, RATE, subtype="FLOAT")
        rows.append([name, label, fold])

    for index in range(len(CLASSES) * EACH):
        kind, label = index % 3, CLASSES[index % 3]
        if index % 20 == 7 and len(flipped) < flips:
            flipped[f"{index:03d}.wav"], label = label, CLASSES[(kind + 1) % 3]
        add(f"{index:03d}.wav", recording(kind, index), label, index // 3 % 5)
    for number in range(copies):
        index = 11 + 13 * number
        add(
            f"copy{number}.wav",
            copy(recording(index % 3, index), number),
            CLASSES[index % 3],
            (index // 3 + 2) % 5,
        )
        pairs.add(frozenset((f"{index:03d}.wav", f"copy{number}.wav")))
    for index in range(18):
        soundfile.write(
            folder / "audio_test" / f"t{index:02d}.wav",
            recording(index % 3, 500 + index),
            RATE,
            subtype="FLOAT",
        )
    shutil.copy(folder / "audio_train" / "080.wav", folder / "audio_test" / "t18.wav")
    for name, table in (
        ("train.csv", [["fname", "label", "fold"], *rows]),
        ("sample_submission.csv", [["fname", "label"], *([f"t{i:02d}.wav", "low"] for i in range(19))]),
    ):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows(table)
    return flipped, pairs


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict, set]:
    """A folder with the planted competition, its log-mel cache and a run on it."""
    folder, before = tmp_path_factory.mktemp("doctor"), os.getcwd()
    planted = competition(folder / "hums")
    os.chdir(folder)
    try:
        get_features.main(
            ["--competition", "hums", "--extractor", "logmel", "--device", "cpu", "--workers", "1"]
        )
        train.main(
            [
                "--recipe",
                "linear",
                "--features",
                "data/hums/logmel",
                "--name",
                "r",
                "--epochs",
                "8",
                "--device",
                "cpu",
            ]
        )
    finally:
        os.chdir(before)
    return folder, *planted


@pytest.fixture
def work(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to look at and to spoil."""
    for name in ("data", "runs", "submissions"):
        shutil.copytree(made[0] / name, tmp_path / "w" / name)
    monkeypatch.chdir(tmp_path / "w")
    return Path("data/hums/logmel")


def test_what_was_planted_is_found(made, work: Path, capsys: pytest.CaptureFixture) -> None:
    """Copies across folds and into the submission, flipped labels; csv files, groups and report."""
    _, flipped, pairs = made
    doctor.main(["--data", "data/hums", "--runs", "r"])
    said = capsys.readouterr().out
    out = Path("reports/hums-logmel")
    rows = read_csv(out / "duplicates.csv")
    found = {frozenset((row["clip_a"], row["clip_b"])) for row in rows if row["straddles"] == "yes"}
    assert found == pairs, (found ^ pairs, rows)
    leaked = [row for row in rows if row["fold_b"] == "subm"]
    assert [(row["clip_a"], row["clip_b"], row["same_file"]) for row in leaked] == [
        ("080.wav", "t18.wav", "yes")
    ]
    assert (
        "warning: 5 pairs of near-duplicates in 5 clusters straddle folds" in said
        and "their labels are probably known" in said
    )
    groups = {row["id"]: row["group"] for row in read_csv(out / "groups.csv")}
    assert len(groups) == 95 and all(
        len({groups[id] for id in pair}) == 1 and groups[min(pair)] for pair in pairs
    )
    assert sum(bool(group) for group in groups.values()) == 10
    doubted = read_csv(out / "suspicious_labels.csv")
    top = {row["id"]: row["suggested"] for row in doubted[:4]}
    assert top == flipped, doubted
    assert (
        all(row["reasons"] for row in doubted)
        and "oof+neighbours" in doubted[0]["reasons"]
        and len(doubted) <= 6
    )
    assert all(float(row["whitened_cosine"]) >= 0.5 for row in rows)
    page = (out / "data_report.html").read_text()
    assert (
        page.count('<li class="warning">') == said.count("\nwarning: ")
        and "durations: 0.90 to 1.00 s" in said
    )
    assert "possibly mislabelled: " in page and '<a href="groups.csv">groups.csv</a>' in page
    assert "<td>080.wav</td><td>t18.wav</td>" in page, "the first rows of a table are on the page"
    balance = read_csv(out / "class_balance.csv")
    assert sum(int(row["clips"]) for row in balance) == 95 and int(balance[0]["fold_0"]) > 0
    like = read_csv(out / "submission_like.csv")
    assert len(like) == 95 and "ok: adversarial AUC" in said

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    doctor.main(["--data", "data/hums/logmel", "--runs", "runs/r"])
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert before == after, "the same look gives the same bytes, and nothing is left over"


def test_pictures(work: Path, capsys: pytest.CaptureFixture) -> None:
    """Four, of some size; without matplotlib a line says so."""
    pytest.importorskip("matplotlib")
    doctor.main(["--data", "data/hums", "--out", "seen"])
    for name in ("class_balance.png", "durations.png", "neighbours.png", "map.png"):
        data = (Path("seen") / name).read_bytes()
        assert (
            data.startswith(b"\x89PNG")
            and len(data) > 5000
            and f'aria-label="{name}"' in (Path("seen") / "data_report.html").read_text()
        )


def test_an_earlier_report_goes(work: Path) -> None:
    """The page that earlier releases wrote as data_report.md does not stay beside the new one."""
    Path("seen").mkdir()
    Path("seen/data_report.md").write_text("# Data report")
    doctor.main(["--data", "data/hums", "--out", "seen"])
    assert not Path("seen/data_report.md").exists() and Path("seen/data_report.html").exists()


def test_a_clean_competition_gets_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Neither copies nor doubtful labels are claimed where there are none; no folds of its own, nothing known
    of groups."""
    competition(tmp_path / "clean", flips=0, copies=0)
    (tmp_path / "clean" / "audio_test" / "t18.wav").write_bytes(
        (tmp_path / "clean" / "audio_test" / "t17.wav").read_bytes()
    )
    monkeypatch.chdir(tmp_path)
    get_features.main(
        ["--competition", "clean", "--extractor", "logmel", "--device", "cpu", "--workers", "1"]
    )
    doctor.main(["--data", "data/clean"])
    said = capsys.readouterr().out
    lines = [
        line
        for line in said.splitlines()
        if line.startswith(("warning", "stop")) and "matplotlib" not in line
    ]
    assert not lines and "no near-duplicates straddle folds" in said and "labels: no likely errors" in said


@pytest.mark.parametrize(
    "args, words",
    [
        (["--data", "nowhere"], "no cache there"),
        (["--data", "data/hums", "--runs", "none"], "none"),
        (["--data", "data/hums", "--threshold", "2"], "--threshold 2"),
        (["--data", "data/hums", "--out", "runs/r/oof.csv"], "is a file"),
    ],
)
def test_refused_in_a_line(work: Path, args: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        doctor.main(args)
    assert "\n" not in str(caught.value)


def test_a_run_of_other_labels(work: Path) -> None:
    text = Path("runs/r/oof_last.csv").read_text()
    Path("runs/r/oof_last.csv").write_text(text.replace("low", "deep"))
    with pytest.raises(UserError, match="other labels"):
        doctor.main(["--data", "data/hums", "--runs", "r"])


def test_a_single_fold_stops(tmp_path: Path, tones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1 and a line with a fix; no submission split, no picture needed."""
    rows = read_csv(tones / "train.csv")
    with open(tones / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["fname", "label", "fold"], *([row["fname"], row["label"], 0] for row in rows)]
        )
    (tones / "sample_submission.csv").unlink()
    shutil.rmtree(tones / "audio_test")
    monkeypatch.chdir(tmp_path)
    get_features.main(
        ["--competition", str(tones), "--extractor", "logmel", "--device", "cpu", "--workers", "1"]
    )
    said = script("doctor.py", "--data", "data/tones", cwd=tmp_path, ok=2).stdout
    assert (
        "stop: folds: the data has a single fold of its own: give --folds K" in said
        and "no clips to submit" in said
    )


def test_doubts_single_and_multilabel() -> None:
    """Each class is judged by its own standard."""
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.45, 0.55], [0.05, 0.95]])
    truth = np.array([0, 0, 1, 1, 0])
    doubted, margin = label_errors.find_doubts(p, truth)
    assert np.argwhere(doubted).tolist() == [[4, 1]] and margin[4, 1] == pytest.approx(0.9)
    p[4] = np.nan
    assert (
        not label_errors.find_doubts(p, truth)[0].any()
        and np.isnan(label_errors.find_doubts(p, truth)[1][4]).all()
    )
    several = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [1, 1]])
    q = np.array([[0.9, 0.1], [0.95, 0.05], [0.1, 0.9], [0.97, 0.9], [0.1, 0.8], [0.9, 0.02]])
    assert np.argwhere(label_errors.find_doubts(q, several)[0]).tolist() == [[3, 0], [5, 1]]


def test_the_likeliest_errors_come_first() -> None:
    """By the number of reasons, then the margin; a clip with one label has one row."""
    votes, suspicion = (
        np.array([[0, 1, 1], [0, 0, 2], [1, 0, 0]]),
        np.array([[0, 0.3, 0.6], [0, 0, 0.1], [0.9, 0, 0]]),
    )
    assert label_errors._rank_pairs(votes, suspicion, False) == [(1, 2), (2, 0), (0, 2)]
    assert label_errors._rank_pairs(votes, suspicion, True) == [(1, 2), (2, 0), (0, 2), (0, 1)]


def test_neighbours_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks change nothing; clips of one part are never neighbours; whitening brings a copy out that the
    class hides."""
    rng = np.random.default_rng(0)
    x = (10 * rng.standard_normal((4, 32))[np.arange(60) % 4] + rng.standard_normal((60, 32))).astype(
        np.float32
    )
    x[59] = x[0] + 10 * rng.standard_normal(32) * 0.01
    parts = np.arange(60) // 2
    whole = similarity.find_nearest(similarity.centre(x), parts, 5)
    monkeypatch.setattr(similarity, "BLOCK", 7)
    small = similarity.find_nearest(similarity.centre(x), parts, 5)
    assert (whole[1] == small[1]).all() and np.allclose(whole[0], small[0], atol=1e-6)
    assert (parts[whole[1]] != parts[:, None]).all() and (np.diff(whole[0], axis=1) <= 0).all()
    cosines, indices = similarity.find_nearest(similarity.whiten(x), parts, 5)
    assert indices[0, 0] == 59 and cosines[0, 0] > 2 * cosines[0, 1]
    assert (
        duplicates.estimate_threshold(np.full(50, 0.3)) < 0.31
        and duplicates.estimate_threshold(np.full(50, 0.9999)) == duplicates.CERTAIN
    )


def test_few_clips(work: Path) -> None:
    """Where whitening says nothing, a pair must be alike without it, too; identical files are pairs."""
    whole = clips_of.load_clips(work)
    ids = whole.ids.tolist()

    def few(names: list[str]) -> tuple[duplicates.Duplicates, list[set]]:
        rows = [ids.index(name) for name in names]
        by_clip = ("ids", "splits", "place", "groups", "embeddings", "seconds", "covered")
        part = {name: getattr(whole, name)[rows] for name in by_clip}
        clips = replace(whole, **part, digests=[whole.digests[row] for row in rows])
        found = duplicates.find_duplicates(clips, None)
        return found, [{clips.ids[a], clips.ids[b]} for a, b, _ in found.pairs]

    apart = [f"{index:03d}.wav" for index in range(0, 30)]
    found, pairs = few(apart)
    assert not pairs and "whitened cosine" in found.least and "plain cosine of at least 0.9" in found.least
    found, pairs = few([*apart, "copy0.wav", "080.wav", "t18.wav"])
    assert {"011.wav", "copy0.wav"} in pairs and {"080.wav", "t18.wav"} in pairs and len(pairs) == 2
    assert all(found.plain[a, b] >= duplicates.LEAST_PLAIN for a, b, _ in found.pairs)
    assert not duplicates.find_duplicates(whole, None).plain, "enough clips"


def test_shift_is_seen(work: Path, tmp_path: Path) -> None:
    """The same clips with the submission moved: an AUC near 1; as they are: near 0.5."""
    clips = clips_of.load_clips(work)
    moved = clips.embeddings.copy()
    moved[clips.splits == "subm", :20] += 3
    (line,) = balance_and_shift.check_shift(replace(clips, embeddings=moved), tmp_path)
    assert line.level == "warning" and float(line.text.split()[2]) > 0.9 and "a strong shift" in line.text
    (line,) = balance_and_shift.check_shift(clips, tmp_path)
    assert line.level == "ok" and float(line.text.split()[2]) < 0.75


def test_several_labels_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Multi-label caches are looked at like others; a label too few and one too many are named with their
    sign."""
    competition(tmp_path / "mixed", flips=0, copies=1)
    rows = read_csv(tmp_path / "mixed" / "train.csv")
    for row in rows:
        row["label"] = {"low": "low,deep", "middle": "middle", "high": "high,bright"}[row["label"]]
    rows[0]["label"], rows[2]["label"] = "low,deep,bright", "high"
    with open(tmp_path / "mixed" / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    monkeypatch.chdir(tmp_path)
    get_features.main(
        [
            "--competition",
            "mixed",
            "--extractor",
            "logmel",
            "--task",
            "multilabel",
            "--device",
            "cpu",
            "--workers",
            "1",
        ]
    )
    doctor.main(["--data", "data/mixed"])
    assert "5 classes" in capsys.readouterr().out
    top = {
        (row["id"], row["suggested"])
        for row in read_csv(Path("reports/mixed-logmel/suspicious_labels.csv"))[:2]
    }
    assert top == {("000.wav", "-bright"), ("002.wav", "+bright")}


def test_real_recordings(esc10: Path, tmp_path: Path) -> None:
    """ESC-10 by log-mel: clips of one source are more alike than others and never straddle; one unmarked pair
    does."""
    script("get_features.py", "--competition", esc10, "--extractor", "logmel", cwd=tmp_path)
    said = script("doctor.py", "--data", "data/esc10", cwd=tmp_path).stdout
    rows = read_csv(tmp_path / "reports" / "esc10-logmel" / "duplicates.csv")
    over = [(row["clip_a"], row["clip_b"]) for row in rows if row["straddles"]]
    assert ("3-151080-A.ogg", "5-151085-A.ogg") in over and len(over) <= 3, rows
    assert "straddle folds" in said
    clips = clips_of.load_clips(tmp_path / "data" / "esc10" / "logmel")
    x = similarity.whiten(clips.embeddings)
    source = np.array([id.split("-")[1] for id in clips.ids])
    same = (source[:, None] == source) & ~np.eye(len(x), dtype=bool)
    assert (
        same.sum() == 2 * 149
        and (clips.place[np.argwhere(same)[:, 0]] == clips.place[np.argwhere(same)[:, 1]]).all()
    )
    cosines = x @ x.T
    assert np.median(cosines[same]) > 0.3 > np.quantile(cosines[~same], 0.95)
