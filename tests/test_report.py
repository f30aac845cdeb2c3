"""Reports: figures against scikit-learn, a page that needs no network, runs compared, blends, odd names,
nothing that costs a run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_competition, read_csv
from sklearn import metrics as reference

from earshot.audio import spectrogram
from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.report import __main__ as command
from earshot.report import compare_runs, confusion, curves, hardest_clips, per_class, results
from earshot.report.make import write_report as make_report
from earshot.training.oof import Oof
from earshot.training.run import Run

NAMES = ["$x^2$", "<b>owl</b>", "jay|wren", "日本", "a name that is far too long to be written out"]


def made_up(
    folder: Path, names: list[str], clips: int, several: bool = False, seed: int = 0, metric: str = "f1_macro"
) -> Run:
    """A run's settings, predictions and history, as train.py leaves them, without training."""
    rng = np.random.default_rng(seed)
    record = {
        "features": {"extractor": "logmel", "settings": {}, "audio": {}, "window": {}, "weights": None},
        "clips": "0",
        "classes": names,
        "folds": "0",
        "view": "mel",
        "head": {"name": "linear"},
        "training": {"metric": metric, "epochs": 3, "seed": 0},
        **({"task": "multilabel"} if several else {}),
    }
    run = Run.begin(
        folder,
        record,
        {
            "recipe": "linear",
            "features_folder": "nowhere",
            "weights": None,
            "prior": [1 / len(names)] * len(names),
            "columns": ["fname", "label"],
            "precision": {"cpu": "fp32"},
            "channels_last": {"cpu": False},
        },
    )
    count = len(names)
    truth = (rng.random((clips, count)) < 0.3).astype(int) if several else np.arange(clips) % count
    shares = rng.random((clips, count)) + (truth if several else 0.4 * np.eye(count)[truth])
    shares = shares / 2 if several else shares / shares.sum(1, keepdims=True)
    ids, folds = np.array([f"{i:03d}.wav" for i in range(clips)]), np.arange(clips) % 3
    for name in ("oof", "oof_last"):
        Oof(ids, folds, truth, shares, names).write(folder / f"{name}.csv")
    lines = [
        f"{fold},{epoch},0.01,{1 / epoch:.6g},{0.5 + fold / 10 + abs(epoch - 2) / 5:.6g},"
        f"0.{7 + fold // 2},0.7{epoch},1.5"
        for fold in range(3)
        for epoch in (1, 2, 3)
    ]
    (folder / "metrics.csv").write_text(
        "\n".join(["fold,epoch,lr,train_loss,valid_loss,f1_macro,accuracy,seconds", *lines, ""])
    )
    return run


@pytest.mark.parametrize("several", [False, True])
def test_figures_are_scikit_learns(tmp_path: Path, several: bool) -> None:
    made_up(tmp_path / "r", NAMES, 60, several)
    found = results.load_results(tmp_path / "r")
    assert found.classes == NAMES and len(found.ids) == 60 and found.multilabel == several
    said = (found.probabilities >= 0.5).astype(int) if several else found.probabilities.argmax(1)
    want = reference.precision_recall_fscore_support(found.labels, said, labels=range(5), zero_division=0)
    rows = per_class.build_table(found)
    assert [row["class"] for row in rows] == NAMES
    for key, values in zip(("precision", "recall", "f1", "support"), want, strict=True):
        assert np.allclose([row[key] for row in rows], values)
    if not several:
        assert np.array_equal(
            confusion.count_confusions(found), reference.confusion_matrix(found.labels, said, labels=range(5))
        )
        truth, predicted, clips, share = confusion.list_mistakes(found)[0]
        off = confusion.count_confusions(found) * (1 - np.eye(5, dtype=int))
        assert clips == off.max() == off[NAMES.index(truth), NAMES.index(predicted)] and share == clips / 12
        assert found.labels.tolist() == (np.arange(60) % 5).tolist()  # jay|wren is one class here
        hard = hardest_clips.find_hardest(found, 60)
        assert len(hard) == (said != found.labels).sum() and hard == sorted(hard, key=lambda clip: -clip.loss)
        losses = -np.log(found.probabilities[np.arange(60), found.labels])
        assert hard[0].loss == pytest.approx(losses[said != found.labels].max())


def test_calibration_by_hand(tmp_path: Path) -> None:
    made_up(tmp_path / "r", ["a", "b"], 4)
    found = results.load_results(tmp_path / "r")
    shares = np.array([[0.95, 0.05], [0.91, 0.09], [0.6, 0.4], [0.3, 0.7]])
    found = results.Results(**{**vars(found), "probabilities": shares, "labels": np.array([0, 1, 0, 0])})
    counts, mean, share, error = per_class.compute_reliability(found)
    assert (
        counts.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0, 2]
        and mean[9] == pytest.approx(0.93)
        and share[9] == 0.5
    )
    assert error == pytest.approx((0.4 + 0.7 + 2 * 0.43) / 4)
    low, high = per_class.compute_wilson(np.array([0.0, 0.5, 1.0]), np.array([1, 10, 1000]))
    assert (
        low[0] == pytest.approx(0, abs=1e-9)
        and high[0] == pytest.approx(0.793, abs=1e-3)
        and high[2] == pytest.approx(1)
    )
    assert (low[1], high[1]) == (pytest.approx(0.237, abs=1e-3), pytest.approx(0.763, abs=1e-3))


def test_the_chosen_epoch_is_training_s(tmp_path: Path) -> None:
    """Of equal scores the lower loss, as the trainer decides."""
    made_up(tmp_path / "r", ["a", "b"], 6)
    parts = curves.group_by_part(results.load_results(tmp_path / "r").history)
    assert list(parts) == ["fold_0", "fold_1", "fold_2"]
    assert [curves.choose_epoch(rows, "f1_macro")["epoch"] for rows in parts.values()] == [2, 2, 2]
    assert curves.choose_epoch(parts["fold_0"], "accuracy")["epoch"] == 3


@pytest.mark.parametrize("several", [False, True])
def test_a_page_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, several: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    made_up(tmp_path / "runs" / "r", NAMES, 40, several)
    command.main(["r"])
    assert "runs/r/report.html" in capsys.readouterr().out
    folder = tmp_path / "runs" / "r"
    text = (folder / "report.html").read_text(encoding="utf-8")
    for name in ("loss_curves", "accuracy_curves", "f1_curves", "confusion", "per_class", "calibration"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert text.count("<svg role=") == 6 and "width=device-width" in text
    # nothing is fetched: what is named lies in the page
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\((?!#)|@import|<script|https?://", text)
    named, used = (re.findall(form, text) for form in (r' id="([^"]+)"', r'(?:href="|url\()#([^")]+)'))
    assert set(used) <= set(named) and len(set(named)) == len(named), "pictures do not share what they define"
    assert "prefers-color-scheme:dark" in text and "currentColor" in text
    assert "<b>owl</b>" not in text and "&lt;b&gt;owl&lt;/b&gt;" in text and "日本" in text
    assert [row["class"] for row in read_csv(folder / "per_class.csv")] == NAMES
    before = {p: p.read_bytes() for p in folder.iterdir()}
    assert make_report(folder, again=False) is None  # of these results already
    make_report(folder)
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_results_that_changed_are_drawn_again(tmp_path: Path) -> None:
    run = made_up(tmp_path / "r", ["a", "b"], 12)
    make_report(tmp_path / "r")
    text = (tmp_path / "r" / "metrics.csv").read_text()
    (tmp_path / "r" / "metrics.csv").write_text(text.replace(",1.5\n", ",2.5\n"))
    assert make_report(tmp_path / "r", again=False) is None  # seconds are no results
    run.write_json("scores", {"best": {"f1_macro": 0.9}})
    assert make_report(tmp_path / "r", again=False) is not None
    assert "best epoch (optimistic)" in (tmp_path / "r" / "report.html").read_text()


def test_more_than_folds_in_the_history(tmp_path: Path) -> None:
    """Several seeds a fold, and models on all clips that nobody validated; folders that are no folds."""
    made_up(tmp_path / "r", ["a", "b"], 12)
    (tmp_path / "r" / "metrics.csv").write_text(
        "fold,seed,epoch,lr,train_loss,valid_loss,f1_macro,accuracy,seconds\n"
        "0,7,1,0.1,1,1,0.5,0.5,1\n0,8,1,0.1,1,1,0.6,0.5,1\nrefit,7,1,0.1,0.9,,,,1\n"
    )
    (tmp_path / "r" / "fold_0_seed8").mkdir()
    found = results.load_results(tmp_path / "r")
    assert list(curves.group_by_part(found.history)) == ["fold_0_seed7", "fold_0_seed8", "refit_seed7"]
    assert make_report(tmp_path / "r") and (tmp_path / "r" / "loss_curves.png").exists()


def blend(folder: Path, source: Path, several: bool) -> None:
    folder.mkdir()
    shutil.copy(source / "oof_last.csv", folder / "oof.csv")
    count = len(read_csv(folder / "oof.csv")[0]) - 3
    checksums.write(
        folder / "blend.json",
        {
            "members": ["../r", "../s"],
            "weights": [0.25, 0.75],
            "metric": "f1_macro",
            "thresholds": [0.4] * count if several else None,
        },
        "oof.csv",
    )


@pytest.mark.parametrize("several", [False, True])
def test_a_kept_blend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    made_up(tmp_path / "r", ["owl", "fold", "jay"], 30, several)
    blend(tmp_path / "both", tmp_path / "r", several)
    found, run = results.load_results(tmp_path / "both"), results.load_results(tmp_path / "r")
    assert (
        found.classes == ["owl", "fold", "jay"]
        and np.array_equal(found.labels, run.labels)
        and not found.history
    )
    assert np.array_equal(
        found.predicted, run.predicted
    )  # a blend's thresholds are in its predictions already
    assert found.find_caches() == []
    cache = tmp_path / "nowhere"  # where the member's features are, as seen from here
    monkeypatch.chdir(tmp_path)
    cache.mkdir()
    assert [path.name for path in found.find_caches()] == ["nowhere"]
    text = make_report(tmp_path / "both").read_text()
    assert "../s" in text and not (tmp_path / "both" / "loss_curves.png").exists()
    with open(tmp_path / "both" / "oof.csv", "a") as file:
        file.write("x")
    with pytest.raises(UserError, match="checksum differs"):
        results.load_results(tmp_path / "both")


def test_runs_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    made_up(tmp_path / "runs" / "r", ["a", "b"], 40, seed=1)
    made_up(tmp_path / "runs" / "s", ["a", "b"], 40, seed=2).write_json(
        "scores", {"best": {"f1_macro": 0.97}}
    )
    made_up(tmp_path / "runs" / "empty", ["a", "b"], 40)
    (tmp_path / "runs" / "empty" / "oof_last.csv").unlink()
    (tmp_path / "runs" / "stray").mkdir()
    (tmp_path / "runs" / "README.md").write_text("runs")
    command.main(sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "runs").iterdir()))
    said = capsys.readouterr().out
    rows = read_csv(tmp_path / "reports" / "comparison.csv")
    assert (
        {row["run"] for row in rows} == {"r", "s"}
        and "skipped: runs/stray is not a run" in said
        and "empty/oof_last.csv is missing" in said
    )
    scores = {name: results.load_results(tmp_path / "runs" / name).scores["f1_macro"] for name in "rs"}
    assert [row["run"] for row in rows] == sorted("rs", key=lambda name: -scores[name])
    assert all(float(row["f1_macro"]) == pytest.approx(scores[row["run"]], abs=1e-4) for row in rows)
    assert next(row["best epoch"] for row in rows if row["run"] == "s") == "0.9700" and "warning" not in said
    made_up(tmp_path / "runs" / "t", ["a", "b"], 44)
    assert any(
        "same clips" in line
        for line in compare_runs.write_comparison(
            [tmp_path / "runs" / "r", tmp_path / "runs" / "t"], tmp_path / "reports"
        )
    )
    page = (tmp_path / "reports" / "comparison.html").read_text()
    assert page.count("<svg role=") == 1 and "<td>t</td>" in page and "No report yet: " in page
    make_report(tmp_path / "runs" / "t")
    compare_runs.write_comparison([tmp_path / "runs" / "t"], tmp_path / "reports")
    page = (tmp_path / "reports" / "comparison.html").read_text()
    address = re.search(r'<td><a href="([^"]+)">t</a></td>', page)[1]
    assert (tmp_path / "reports" / address).resolve() == tmp_path / "runs" / "t" / "report.html"
    assert "No report yet" not in page


def test_what_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for names, words in (
        ([], "which run"),
        (["gone"], "no run named gone; runs has no runs"),
        ([str(tmp_path)], "is not a run"),
    ):
        with pytest.raises(UserError, match=words):
            command.main(names)
    made_up(tmp_path / "r", ["a", "b"], 12)
    with pytest.raises(UserError, match=r"no run named rr \(did you mean r\?\)"):
        command.main(["rr", "--runs-folder", "."])
    with pytest.raises(UserError, match="no run named other; runs: r$"):
        command.main(["other", "--runs-folder", "."])
    for change in (
        lambda text: text.replace(",a,", ",c,"),
        lambda text: text.replace(",0.", ",x."),
        lambda text: text.split("\n")[0] + "\n",
    ):
        path = tmp_path / "r" / "oof_last.csv"
        whole = path.read_text()
        path.write_text(change(whole))
        with pytest.raises(UserError, match="train.py or predict.py"):
            results.load_results(tmp_path / "r")
        path.write_text(whole)


def test_a_tone_lies_at_its_frequency() -> None:
    """The brightest row of the picture, and the tick beside it."""
    time = np.arange(32000) / 16000
    levels = spectrogram.compute_mel(np.sin(2 * np.pi * 2000 * time).astype(np.float32), 16000)
    assert levels.max() == 0 and levels.min() == -80 and levels.shape[0] == spectrogram.BANDS
    band = int(levels.mean(1).argmax())
    assert (band + 1) * spectrogram.to_mel(8000) / (spectrogram.BANDS + 1) == pytest.approx(
        spectrogram.to_mel(2000), abs=25
    )
    image = spectrogram.draw_picture(levels, 2.0, 0, 8000, "a tone")
    pixels = np.asarray(image)
    box = pixels[spectrogram.TOP : spectrogram.TOP + 256, spectrogram.LEFT : spectrogram.LEFT + 640]
    row = int(box.mean(1).argmax())
    marks = np.flatnonzero(
        pixels[spectrogram.TOP : spectrogram.TOP + 256, spectrogram.LEFT - 3] == spectrogram.BLACK
    )
    assert min(abs(marks - row)) <= 3  # 2000 Hz has a tick
    assert spectrogram.choose_ticks(5) == [0, 1, 2, 3, 4, 5] and spectrogram.choose_ticks(0.3) == [
        0,
        0.05,
        0.1,
        0.15,
        0.2,
        0.25,
        0.3,
    ]


def test_slaneys_scale_is_librosas() -> None:
    import librosa

    hz = np.array([0, 250.0, 999, 1000, 3000, 11025])
    assert np.allclose(spectrogram.to_mel(hz, "slaney"), librosa.hz_to_mel(hz))
    assert np.allclose(spectrogram.to_mel(hz), librosa.hz_to_mel(hz, htk=True))


def test_hardest_clips_from_the_view_and_from_the_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts
) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_competition(tmp_path / "tones", train=3, subm=1, seconds=0.4)
    features, _ = scripts
    features(["--competition", str(data), "--extractor", "logmel", "--n-mels", "16", "--device", "cpu"])
    features(["--competition", str(data), "--extractor", "waveform", "--device", "cpu"])
    clips = [
        hardest_clips.HardClip(id, 0, "tone0", "tone1", 1.0) for id in ("000.wav", "004.wav", "gone.wav")
    ]
    made_up(tmp_path / "r", ["a", "b"], 6)
    for cache in ("logmel", "waveform"):
        found = results.Results(
            **{
                **vars(results.load_results(tmp_path / "r")),
                "config": {"features_folder": f"data/tones/{cache}"},
            }
        )
        drawn = hardest_clips.draw_clips(found, clips)
        assert set(drawn) == {"000.wav", "004.wav"}
        assert hardest_clips.paste_sheet(list(drawn.values())).size[0] == 2 * (
            hardest_clips.WIDTH + spectrogram.LEFT + spectrogram.RIGHT
        )
    shutil.rmtree(data)
    assert hardest_clips.draw_clips(found, clips) == {}
