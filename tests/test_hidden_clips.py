"""predict.py --hidden and --dry-run: a code competition's clips extracted and predicted side by side, and how
long that will take."""

from __future__ import annotations

import csv
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import make_competition, read_csv, refused, script, tone

import get_features
import predict
import train
from earshot.core.deadline import parse_duration
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.extractors import logmel
from earshot.features import precision, shards
from earshot.prediction import dry_run, dry_run_report, hidden_clips, new_audio, stretches
from earshot.training.run import Run

CPU = ["--device", "cpu"]
NAMES = ["tone0", "tone1", "tone2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one set of features and one on another; the clips to submit are seconds of recordings, one
    of which is half a second long, so that its window is padded."""
    folder, before = tmp_path_factory.mktemp("hidden"), os.getcwd()
    data = make_competition(folder / "night", train=8, subm=1)
    for path in (data / "audio_test").iterdir():
        path.unlink()
    rows = []
    for number in range(4):
        wave = np.concatenate([tone((number + second) % 3, 50 + second) for second in range(5)])
        wave = wave[: 4 * 16000 + 8000] if number == 2 else wave
        soundfile.write(data / "audio_test" / f"r_{number}.flac", wave, 16000)
        rows += [f"r_{number}_{second + 1}" for second in range(5)]
    with open(data / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([["row_id", *NAMES], *([id, 0, 0, 0] for id in [*rows, "gone_1"])])
    os.chdir(folder)
    try:
        features = ["--competition", "night", "--extractor", "logmel", "--seconds", "1", *CPU]
        for cache, mels in (("small", "16"), ("large", "24")):
            get_features.main([*features, "--n-mels", mels, "--cache", cache])
        short = ["--recipe", "linear", "--epochs", "8", "--folds", "2", "--lr", "0.02", *CPU, "--no-report"]
        # of so few rows at a time, there are several batches before the first padded window
        for name, cache, more in (
            ("a", "small", ["--batch-size", "2"]),
            ("b", "small", ["--batch-size", "3", "--pool", "max", "--tta", "2"]),
            ("c", "large", []),
        ):
            train.main([*short, "--features", f"data/night/{cache}", "--name", name, *more])
        predict.main(["--runs", "a", "b", "c", "--blend", "pool", "--name", "kept", "--no-report", *CPU])
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def session(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the competition and the runs, as a later session has them, and no features."""
    for name in ("night", "runs"):
        os.symlink(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "SHARD", 3)
    return tmp_path


HIDDEN = ["--hidden", "--competition", "night", *CPU]


@pytest.mark.parametrize("runs", [["a"], ["a", "b"], ["a", "b", "c"], ["kept"]])
def test_hidden_clips_are_predicted_as_from_their_cache(
    session: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    taken = []
    take = hidden_clips.EarlyPredictions.get_prediction
    monkeypatch.setattr(
        hidden_clips.EarlyPredictions,
        "get_prediction",
        lambda self, *rest: (taken.append(take(self, *rest)), taken[-1])[1],
    )
    predict.main(["--runs", *runs, *HIDDEN, "--out", "early.csv"])
    assert taken and all(one is not None for one in taken), "nothing was predicted beside the extraction"
    assert "subm: 21 clips, 20 windows" in capsys.readouterr().out
    shutil.rmtree("data")
    for run in ["a", "c"]:
        get_features.main(["--competition", "night", "--for-run", run, *CPU])
    predict.main(["--runs", *runs, "--out", "late.csv", *CPU])
    assert Path("early.csv").read_bytes() == Path("late.csv").read_bytes()
    assert len(read_csv(session / "early.csv")) == 21


def test_hidden_clips_continue_and_end_in_time(session: Path, capsys: pytest.CaptureFixture) -> None:
    predict.main(["--runs", "a", *HIDDEN, "--out", "whole.csv"])
    first = Path("data/night/small_subm")
    (first / "subm.pkl").unlink()
    shutil.rmtree("data")
    predict.main(["--runs", "a", *HIDDEN, "--max-hours", "0.0000001", "--out", "late.csv"])
    assert "clips skipped, filled with class priors" in capsys.readouterr().out
    late, whole = read_csv(session / "late.csv"), read_csv(session / "whole.csv")
    assert len(late) == 21 and late != whole
    # what an earlier session extracted was not seen beside the heads: the cache is predicted as a whole
    predict.main(["--runs", "a", *HIDDEN, "--out", "again.csv"])
    assert Path("again.csv").read_bytes() == Path("late.csv").read_bytes()


def test_flags_that_do_not_fit(session: Path) -> None:
    for line, words in (
        ("--hidden --audio night", "leave out --audio"),
        ("--max-hours 1", "add --hidden"),
        ("--files 3", "add --dry-run"),
        ("--dry-run --budget 90", "--budget 90: has to be a time such as 90m"),
        ("--dry-run --budget 0m", "--budget 0m: has to be a time such as 90m"),
        ("--dry-run --cores 0", "--cores 0: has to be at least 1"),
        ("--dry-run --name x", "leave out --name"),
        ("--dry-run --submit", "leave out --submit"),
    ):
        assert words in refused(script("predict.py", "--runs", "a", *line.split(), cwd=session, ok=None))


@pytest.mark.parametrize(
    "text, seconds", [("90m", 5400), ("1.5h", 5400), ("5400s", 5400), (" 2 H", 7200), ("0.5m", 30)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration("--budget", text) == seconds


@pytest.mark.parametrize("text", ["", "90", "m", "1h30", "-5m", "0s", "nanh", "1e3s", "five m"])
def test_no_times(text: str) -> None:
    with pytest.raises(UserError, match="has to be a time such as"):
        parse_duration("--budget", text)


def test_a_dry_run_of_a_blend(
    session: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """On the recordings that are here; nothing is predicted; what each member costs and brings."""
    monkeypatch.setattr(dry_run, "MEASURED", 0.1)
    predict.main(["kept", "--dry-run", *HIDDEN, "--files", "100000", "--budget", "0.01s", "--cores", "4096"])
    text = capsys.readouterr().out
    assert "100000 recordings of 4.88 s" in text and "recordings that are here" in text
    assert re.search(r"^logmel for a, b: decode \d.*, features \d.*, heads \d.*; side by side \d", text, re.M)
    assert "logmel for c: decode " in text and "4096 cores are an extrapolation" in text
    assert "does not fit" in text
    without = re.findall(r"without (\w): ([\d.]+) min less; out-of-fold f1_macro (\S+) becomes", text)
    kept = read_csv(session / "runs" / "kept" / "oof.csv")
    assert sorted(name for name, *_ in without) == ["a", "b", "c"] and kept
    minutes = {name: float(value) for name, value, _ in without}
    assert minutes["c"] > minutes["a"], "a shares its features with b, c has its own"
    assert "shifts (train.py --tta 1)" in text and not Path("data").exists()
    assert not list(session.glob("*.csv")) and not Path("submissions").exists()


def count_windows(folder: str, files: list[Path]) -> tuple[int, dry_run.GroupTimes]:
    """The windows that a dry run makes of recordings, and what it measures."""
    run = Run.open(Path("runs") / folder)
    work = dry_run.Workload(len(files), 4.9, 4.9, files, 1.0, "")
    with ThreadPoolExecutor(2) as pool:
        stages = dry_run._Stages([(run, "best")], work, None, Device("cpu", "fp32", ""))
        _, length = stages.extract(list(stages.decode(files, pool)))
    return len(length), dry_run.measure([(run, "best")], work, None, Device("cpu", "fp32", ""))


def test_a_dry_run_counts_shifted_windows(
    session: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As many as the cache of the same recordings has; also of noise, while no recording is here."""
    monkeypatch.setattr(dry_run, "MEASURED", 0.1)
    os.unlink("runs")
    shutil.copytree((session / "night").resolve().parent / "runs" / "a", "runs/a")
    files = sorted(Path("night/audio_test").iterdir())
    features = ["--competition", "night", "--extractor", "logmel", "--n-mels", "16", "--seconds", "1"]
    get_features.main([*features, "--hop", "0.5", "--trim", "60", "--cache", "shifted", *CPU])
    made = int(re.search(r"subm: 21 clips, (\d+) windows", capsys.readouterr().out)[1])
    learn = ["--recipe", "linear", "--epochs", "2", "--folds", "2", "--features", "data/night/shifted"]
    train.main([*learn, "--name", "wide", *CPU, "--no-report"])
    found, times = count_windows("wide", files)
    assert found == made == 51 and times.shifted
    found, times = count_windows("a", files)
    assert found == 20 and not times.shifted
    wave = np.concatenate([np.zeros(16000), tone(0, 50, seconds=4.0)])
    soundfile.write("quiet_at_first.flac", wave, 16000)
    assert count_windows("wide", [Path("quiet_at_first.flac")])[0] == 13, "stretches are not trimmed"

    capsys.readouterr()
    dry = ["--runs", "wide", "--dry-run", "--seconds", "4", "--budget", "0.01s", *CPU]
    predict.main(dry)  # nothing says that rows are stretches
    text = capsys.readouterr().out
    assert "600 recordings of 4 s, measured" in text and "three windows" not in text
    stretches.write_weight(Run(Path("runs/wide")), 0.0, 0.0, 0.1, 64, 1.0)
    for more in ([], ["--hidden", "--competition", "night"], ["--hidden", "--audio", "night/audio_train"]):
        predict.main([*dry, *more, *(["--competition", "night"] if "--audio" in more else [])])
        text = capsys.readouterr().out
        assert "recordings of 4 s in stretches of 1 s, measured" in text
        assert "logmel for wide, three windows a stretch: decode" in text
        assert "an export of a run (python -m earshot.export) may" in text
    predict.main([*dry, "--audio", "night/audio_test"])
    assert "in stretches" not in capsys.readouterr().out, "--audio predicts whole recordings"


def test_a_dry_run_measures_the_precision_that_is_used(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of stored features for hidden clips, fp32 for --audio."""
    monkeypatch.setattr(dry_run, "MEASURED", 0.1)
    monkeypatch.setattr(precision, "is_bf16_faster", lambda: True)
    assert precision.choose_cpu_precision("logmel") == "fp32"
    monkeypatch.setattr(logmel.Extractor, "half_on_cpu", True)
    used, build = [], new_audio.build_extractor
    monkeypatch.setattr(
        new_audio,
        "build_extractor",
        lambda run, *rest: (used.append(rest[1].precision), build(run, *rest))[1],
    )
    dry = ["--runs", "a", "--dry-run", "--seconds", "1", *CPU]
    for more in ([], HIDDEN[:3], ["--audio", "night/audio_test"]):
        predict.main([*dry, *more])
    assert used == ["bf16", "bf16", "fp32"]


@pytest.mark.parametrize("known, kind", [(True, "wav at 16000 Hz"), (False, "wav at 44100 Hz")])
def test_a_dry_run_on_noise(
    made: Path,
    session: Path,
    known: bool,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Of the format of the training files, as far as it is known here."""
    monkeypatch.setattr(dry_run, "MEASURED", 0.1)
    monkeypatch.chdir(made if known else session)
    predict.main(["--runs", "a", "--dry-run", "--files", "600000", "--seconds", "3", *CPU])
    text = capsys.readouterr().out
    assert "dry run: 600000 recordings of 3 s, measured with " in text and f"noise, {kind}" in text
    assert "budget 90.0 min: " in text


def test_the_time_of_recordings() -> None:
    """The stages one after the other for the first piece, side by side after it."""
    key = Path("a"), "best"
    times = dry_run.GroupTimes("logmel", 5.0, 1.0, 2.0, 1.5, 10, {key: 0.5})
    assert times.count_seconds(10) == 35.0
    assert times.count_seconds(110) == 35.0 + 100 * 2.0
    assert times.count_seconds(10, {(Path("b"), "best")}) == 0.0


def test_what_shifted_windows_cost() -> None:
    """Of features and heads two thirds, of decoding nothing."""
    times = dry_run.GroupTimes("logmel", 5.0, 1.0, 2.0, 0.0, 10, {(Path("a"), "best"): 0.4}, shifted=True)
    whole = SimpleNamespace(fitted=None, list_checkpoints=list)
    work = dry_run.Workload(75, 60, 60, [], 5.0, "noise")
    estimate = dry_run_report.Estimate(whole, [times], work, 1.0, 2, 2, Device("cpu", "fp32", ""))
    assert estimate.count_seconds() == 6 + 75 * 3.4
    assert dry_run_report.list_savings(estimate) == [
        "to save time: logmel with one window a stretch (get_features.py without --hop, then train.py): "
        "2.0 min less"
    ]
