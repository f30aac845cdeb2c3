"""Stretches of recordings: neighbours are mixed, by a weight fitted on recordings that are mixed from the
training clips; overlapping windows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import read_csv, refused, script
from made_cache import make
from test_stretches import KINDS, soundscapes

import get_features
import predict
import train
from earshot.competition.segments import list_stretches, widen
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.prediction import fit_stretches, stretches
from earshot.training.run import Run


def smoothed(
    rows: list[float], recordings: list[str], middles: list[float], weight: float = 0.5
) -> list[float]:
    """One class's probabilities, smoothed."""
    found = stretches.smooth(np.array(rows, float)[:, None], np.array(recordings), np.array(middles), weight)
    return np.round(found[:, 0], 6).tolist()


def test_neighbours_of_the_same_recording_are_mixed():
    # b before a: recordings are told apart, and the ends have one neighbour
    assert smoothed([1, 0, 0, 0, 1], list("aaabb"), [0, 5, 10, 15, 20]) == [
        0.666667,
        0.25,
        0,
        0.333333,
        0.666667,
    ]


def test_the_order_of_rows_does_not_matter():
    rows, names, middles = [0.9, 0.1, 0.4, 0.7], list("abaa"), [10.0, 0.0, 5.0, 0.0]
    order = [2, 0, 3, 1]
    again = smoothed(*([list_[i] for i in order] for list_ in (rows, names, middles)))
    assert again == [smoothed(rows, names, middles)[i] for i in order]


def test_what_is_no_neighbour():
    nan = float("nan")
    assert smoothed([1, 0, 0, 0], list("aaaa"), [0, 5, 10, 50])[3] == 0  # too far away
    assert smoothed([1, 0], ["", ""], [0, 5]) == [1, 0]  # of no recording
    assert smoothed([1, 0], list("aa"), [5, 5]) == [1, 0]  # the same time
    found = smoothed([1, nan, 0.5, 0, 0, 0], list("aaabbb"), [0, nan, 10, 0, 5, 10])
    assert found[0] == 1 and np.isnan(found[1]) and found[2] == 0.5
    rows = np.ones((2, 3), np.float32)
    assert stretches.smooth(rows, np.array(["a", "a"]), np.arange(2.0), 0.0) is rows


def test_middles_of_windows():
    split = {"ids": ["x", "y", "z"], "clip": [0, 0, 2], "start": [0.0, 2.5, 5.0], "length": [5.0, 5.0, 5.0]}
    found = stretches.find_middles(split)
    assert found[[0, 2]].tolist() == [3.75, 7.5] and np.isnan(found[1])


def table(*rows: tuple[str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["split", "start", "end"])


def test_stretches_are_cut_wider_where_windows_overlap():
    nan = float("nan")
    clips = table(("train", 0, 5), ("subm", 0, 5), ("subm", 5, 10), ("subm", nan, nan), ("subm", 0, 30))
    found = widen(clips, 5.0, 2.5)
    assert found.start.tolist()[:3] == [0, 0, 2.5] and found.end.tolist()[:3] == [5, 7.5, 12.5]
    assert found[3:].equals(clips[3:]) and clips.start[2] == 5
    for window, hop in ((5.0, None), (5.0, 5.0), (2.0, 1.0), (10.0, 5.0)):
        assert widen(table(("subm", 5, 10)), window, hop).equals(table(("subm", 5, 10)))
    assert list_stretches(3, 5.0, 5.0, 2.5) == ((0, 7.5), (2.5, 12.5), (7.5, 17.5))
    assert list_stretches(2, 5.0, 5.0, None) == list_stretches(2, 5.0, 10.0, 2.5) == ((0, 5), (5, 10))


def made(signal: float) -> tuple[np.ndarray, ...]:
    """Predictions of one class in 40 recordings of 12 stretches, in four folds; every event lasts for two
    stretches, and is predicted with noise. A signal of 0: neighbours have nothing in common."""
    rng = np.random.default_rng(3)
    truth = np.repeat(rng.random((40, 6)) < 0.3, 2, axis=1)
    if not signal:
        truth = rng.random((40, 12)) < 0.3
    seen = truth + rng.normal(0, 0.7, truth.shape)
    recordings = np.repeat(np.arange(40).astype(str), 12)
    return (
        seen.reshape(-1, 1),
        truth.reshape(-1, 1).astype(np.int8),
        recordings,
        np.tile(np.arange(12) * 5.0, 40),
        np.repeat(np.arange(40) % 4, 12),
    )


def test_the_weight_is_kept_only_where_it_gains():
    found = fit_stretches.choose_weight(*made(1))
    assert found.weight > 0.2 and found.gain > 3 * found.error > 0
    found = fit_stretches.choose_weight(*made(0))
    assert found.weight == 0 and found.gain <= found.error


def test_a_mixed_recording_is_labelled_where_its_events_are(monkeypatch: pytest.MonkeyPatch):
    events = [(np.full(3000, 0.5, np.float32), [1]), None, (np.full(200, 0.1, np.float32), [0, 2])]

    def mix(seed: int, *events: tuple | None) -> fit_stretches.Mixture:
        rng = np.random.default_rng(seed)
        return fit_stretches.mix_recording(events.__getitem__, len(events), 4, 1.0, 1000, rng)

    one, other, again = (mix(seed, *events) for seed in (1, 2, 1))
    assert np.array_equal(one.wave, again.wave) and not np.array_equal(one.wave, other.wave)
    assert one.wave.shape == (12000,) and one.truth.shape == (12, 4) and not one.truth[:, 3].any()
    assert np.array_equal(one.truth[:, 0], one.truth[:, 2]) and mix(1, None).truth.sum() == 0

    # a single event without a background: where it is can be seen
    monkeypatch.setattr(fit_stretches, "_draw_pink_noise", lambda samples, rng: np.zeros(samples))
    monkeypatch.setattr(fit_stretches, "EVENTS", (1, 1))
    for seed in range(20):
        found = mix(seed, events[0])
        seconds = (found.wave.reshape(12, 1000) != 0).mean(1)
        assert np.isclose(seconds.sum(), 3)
        assert np.array_equal(found.truth[:, 1], seconds >= 0.5)


def test_a_damaged_weight_is_refused(tmp_path: Path):
    run = Run(tmp_path)
    assert stretches.read_weight(run) == 0
    stretches.write_weight(run, 0.3, 0.01, 0.001, 64, 5.0)
    assert stretches.read_weight(run) == 0.3 and stretches.find_seconds([Run(tmp_path / "no"), run]) == 5
    path = tmp_path / stretches.NAME
    path.write_text(path.read_text().replace("0.3", "0.4"))
    with pytest.raises(UserError, match="predict.py --fit-stretches"):
        stretches.read_weight(run)
    stretches.write_weight(run, 7.0, 0.01, 0.001, 64, 5.0)
    with pytest.raises(UserError, match="weight 7.0"):
        stretches.read_weight(run)


def test_a_bake_off_smooths_as_predict_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """By what was fitted for each member, and only the clips to submit."""
    monkeypatch.chdir(tmp_path)
    others = {}
    for split, each in (("subm", 5), ("test", 3)):
        at = np.arange(3 * each)
        start = (5.0 * (at % each)).astype(np.float32)
        others[split] = {"groups": np.array(["r", "s", "t"])[at // each], "start": start}
    make(Path("data/c/one"), {"pooled": (12, 1, 1)}, signal=0.4, test=9, others=others)
    learn = ["--recipe", "auto", "--candidates", "logistic", "svm", "--name", "a", "--no-report"]
    train.main([*learn, "--device", "cpu"])
    submission = Path("submissions/submission.csv")
    plain, tested = submission.read_bytes(), Path("runs/a/test.json").read_bytes()
    shown = capsys.readouterr().out
    hint = "stretches: to fit how much neighbours count: python predict.py --runs runs/a --fit-stretches"
    assert shown.count(hint) == shown.count("stretches: ") == 1, "one line for the whole blend"
    for path in Path("runs/a").glob("*/config.yaml"):
        stretches.write_weight(Run(path.parent), 1.0, 0.01, 0.001, 64, 5.0)
    submission.unlink()
    Path("runs/a/test.json").unlink()
    train.main([*learn, "--device", "cpu"])
    assert "neighbours count 1, as fitted in runs/a/" in capsys.readouterr().out
    mixed = submission.read_bytes()
    predict.main(["--runs", "a", "--out", "again.csv", "--device", "cpu"])
    assert Path("again.csv").read_bytes() == mixed != plain
    assert Path("runs/a/test.json").read_bytes() == tested


@pytest.mark.slow
def test_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Fitted by predict.py, kept with the run, used by predict.py and train.py; switched off; three windows
    a stretch."""
    data = soundscapes(tmp_path / "night")
    monkeypatch.chdir(tmp_path)
    get_features.main(["--competition", str(data), "--extractor", "logmel"])
    learn = [
        "--recipe",
        "linear",
        "--epochs",
        "12",
        "--folds",
        "2",
        "--lr",
        "0.02",
        "--name",
        "one",
        "--no-report",
    ]
    train.main(learn)
    plain = Path("submissions/submission.csv").read_bytes()
    capsys.readouterr()

    predict.main(["--runs", "one", "--fit-stretches", str(data), "--out", "a.csv"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "macro ROC AUC" in line)
    assert "64 recordings mixed from the folds' own clips" in line
    content = json.loads((tmp_path / "runs" / "one" / stretches.NAME).read_text())
    assert content["recordings"] == 64 and content["error"] > 0 and content["seconds"] == 1
    first = content

    run = Run.open(Path("runs/one"))
    stretches.write_weight(run, 0.5, 0.1, 0.01, 64, 1.0)  # whatever was fitted to these tones
    predict.main(["--runs", "one", "--out", "b.csv"])
    assert "neighbours count 0.5" in capsys.readouterr().out
    split = Cache(Path("data/night/logmel")).split("subm")
    assert set(split["groups"].tolist()) >= {
        "audio_test/r_7.flac",
        "audio_test/r_8.flac",
        "audio_test/r_9.flac",
    }

    def read(path: str) -> tuple[list[str], np.ndarray]:
        rows = read_csv(tmp_path / path)
        return [row["row_id"] for row in rows], np.array(
            [[float(row[kind]) for kind in KINDS] for row in rows]
        )

    ids, before = read("submissions/one.csv")
    place = {id: row for row, id in enumerate(ids)}
    after = read("b.csv")[1]
    r = [place[f"r_7_{end}"] for end in (1, 2, 3, 4)]
    assert np.allclose(after[r[0]], (before[r[0]] + 0.5 * before[r[1]]) / 1.5, atol=1e-6)
    assert np.allclose(after[r[1]], (before[r[1]] + 0.5 * (before[r[0]] + before[r[2]])) / 2, atol=1e-6)
    for id in ("gone_1", "r_8_1", "r_9_4"):
        assert np.allclose(after[place[id]], 1 / 3, atol=1e-6)
    predict.main(["--runs", "one", "--no-smooth", "--out", "c.csv"])
    assert (tmp_path / "c.csv").read_bytes() == plain
    train.main(learn)
    assert Path("submissions/submission.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()

    predict.main(["--runs", "one", "--fit-stretches", str(data), "--out", "d.csv"])
    assert json.loads((tmp_path / "runs" / "one" / stretches.NAME).read_text()) == first
    assert (tmp_path / "d.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()

    capsys.readouterr()
    get_features.main(
        [
            "--competition",
            str(data),
            "--extractor",
            "logmel",
            "--cache",
            "two",
            "--seconds",
            "1",
            "--hop",
            "0.5",
        ]
    )
    assert "stretches: three windows each" in capsys.readouterr().out
    two = Cache(Path("data/night/two")).split("subm")
    windows = {
        id: two["start"][two["clip"] == number].tolist() for number, id in enumerate(two["ids"].tolist())
    }
    assert windows["r_7_2"] == [0.5, 1.0, 1.5] and windows["r_7_1"] == [0.0, 0.5] and windows["gone_1"] == []


@pytest.mark.slow
def test_what_cannot_be_fitted(tmp_path: Path) -> None:
    data = soundscapes(tmp_path / "night")
    script("get_features.py", "--competition", data, "--extractor", "logmel", cwd=tmp_path)
    learn = [
        "--recipe",
        "linear",
        "--epochs",
        "1",
        "--folds",
        "2",
        "--fold",
        "0",
        "--name",
        "one",
        "--no-report",
    ]
    script("train.py", *learn, cwd=tmp_path)
    fit = ["--runs", "one", "--fit-stretches", data]
    assert "two finished folds" in refused(script("predict.py", *fit, cwd=tmp_path, ok=None))
    wrong = script("predict.py", *fit, "--audio", data, cwd=tmp_path, ok=None)
    assert "leave out --audio" in refused(wrong)
