"""predict.py --blend and --name on trained runs: tables, submissions, kept blends, and what cannot be
blended."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import read_csv, refused, script

import get_features
import predict
import train
from earshot.core import checksums, csv_table
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.prediction import blend_weights, members, saved_blend, submission
from earshot.training import metrics
from earshot.training.oof import Oof
from earshot.training.run import Run

BOTH = ["--runs", "lin", "mlp", "--device", "cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample competition and runs on it: two of the same folds, one of fewer, one of others."""
    folder, before = tmp_path_factory.mktemp("blends"), os.getcwd()
    os.chdir(folder)
    try:
        get_features.main(["--extractor", "logmel", "--n-mels", "16", "--device", "cpu"])
        for name, recipe, *more in (
            ("lin", "linear"),
            ("mlp", "mlp"),
            ("part", "linear", "--fold", "1"),
            ("other", "linear", "--seed", "5"),
        ):
            train.main(
                [
                    "--recipe",
                    recipe,
                    "--epochs",
                    "2",
                    "--folds",
                    "3",
                    "--device",
                    "cpu",
                    "--name",
                    name,
                    *more,
                ]
            )
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in; the folder of its runs."""
    shutil.copytree(made, tmp_path / "w")
    shutil.rmtree(tmp_path / "w" / "submissions")
    monkeypatch.chdir(tmp_path / "w")
    return Path("runs")


def said(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def oof(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, truth and folds of an oof csv of the sample's classes."""
    rows = read_csv(path)
    names = list(rows[0])[3:]
    return (
        np.array([[float(row[name]) for name in names] for row in rows]),
        np.array([names.index(row["label"]) for row in rows]),
        np.array([int(row["fold"]) for row in rows]),
    )


def test_a_blend_from_the_table_to_the_submission(work: Path) -> None:
    """As a user runs it; kept, and opened again as a run."""
    text = script("predict.py", *BOTH, "--blend", "auto", "--name", "both", cwd=Path.cwd()).stdout
    lines = text.splitlines()
    assert lines[-1] == "report: runs/both/report.html" and (work / "both" / "hardest.png").exists()
    assert lines[0] == "runs: runs/lin (linear on mel), runs/mlp (mlp on mel)"
    assert {"lin", "mlp", "mean", "pool", "chosen:"} <= {line.split()[0] for line in lines}
    for name in ("lin", "mlp"):  # the honest figures, of the final epochs
        p, truth, folds = oof(work / name / "oof_last.csv")
        found = metrics.compute_scores(p, truth)
        spread = np.std(
            [metrics.compute_scores(p[folds == n], truth[folds == n])["f1_macro"] for n in range(3)]
        )
        shown = [float(cell) for cell in next(line for line in lines if line.startswith(name)).split()[1:]]
        assert np.allclose(shown, [found["f1_macro"], spread, found["log_loss"]], atol=6e-5)
    p, truth, folds = oof(work / "both" / "oof.csv")
    shown = float(next(line for line in lines if line.startswith("chosen")).split()[-3])
    assert shown == pytest.approx(metrics.compute_scores(p, truth)["f1_macro"], abs=6e-5) and np.allclose(
        p.sum(1), 1, atol=1e-6
    )
    assert shown == pytest.approx(checksums.read(work / "both" / "blend.json", "oof.csv")["score"], abs=6e-5)

    first = Path("submissions/submission.csv").read_bytes()
    cache = Cache(members.open_member(work / "lin").run.config["features_folder"])
    table = csv_table.read(Path("submissions/submission.csv"))
    sample = csv_table.read(submission.find_sample(cache))
    submission.check_table(table, "fname", sample["fname"].tolist(), list(sample.columns), cache.classes)
    before = {path: path.read_bytes() for path in (work / "both").iterdir()}
    predict.main([*BOTH, "--blend", "auto", "--name", "both"])
    assert before == {path: path.read_bytes() for path in (work / "both").iterdir()}, "the same again"
    predict.main(["--runs", "both", "--device", "cpu", "--out", "again.csv"])
    assert Path("again.csv").read_bytes() == first


def test_the_weights_and_checkpoints_that_predict(work: Path, capsys: pytest.CaptureFixture) -> None:
    """A kept blend's answer is its weights times its members' final epochs, for the caches' clips and for
    audio alike."""
    predict.main([*BOTH, "--blend", "simplex", "--name", "b"])  # an old name
    path = work / "b" / "blend.json"
    value = checksums.read(path)
    assert value["method"] == "pool" and value.pop("power") > 0
    classes = Run.open(work / "lin").classes
    value |= {
        "members": ["../lin", "../mlp"],
        "weights": [0.25, 0.75],
        "method": "simplex",  # of an earlier release, without a power: the weighted mean
        "scale": [2.0] + [1.0] * (len(classes) - 1),
        "fingerprints": [Run.open(work / name).config["fingerprint"] for name in ("lin", "mlp")],
    }
    checksums.write(path, value, "oof.csv")
    whole, asked = members.open_member(work / "b"), []

    def ask(run: Run, kind: str) -> np.ndarray:
        asked.append((run.folder.name, kind))
        return (
            np.eye(len(classes))[[0, 1]]
            if run.folder.name == "lin"
            else np.full((2, len(classes)), 1 / len(classes))
        )

    found = whole.predict(ask)
    p = (0.25 * np.eye(len(classes))[[0, 1]] + 0.75 / len(classes)) * value["scale"]
    assert asked == [("lin", "last"), ("mlp", "last")] and np.allclose(found, p / p.sum(1, keepdims=True))
    asked.clear()
    mean = members.mean_blend([whole, members.open_member(work / "mlp")])
    assert np.allclose(mean.predict(ask), (found + 1 / len(classes)) / 2)
    assert asked == [("lin", "last"), ("mlp", "last"), ("mlp", "best")]

    predict.main(["--runs", "b", "--device", "cpu", "--out", "b.csv"])
    answers = {row["fname"]: row["label"] for row in read_csv(Path("b.csv"))}
    audio = next(path for path in Path.cwd().rglob("*") if path.name in answers and "runs" not in path.parts)
    predict.main(["--runs", "b", "--device", "cpu", "--audio", str(audio.parent), "--out", "new.csv"])
    new = {row["fname"]: row["label"] for row in read_csv(Path("new.csv"))}
    assert {name: new[name] for name in answers} == answers
    capsys.readouterr()
    predict.main(["--runs", "b", "--device", "cpu", str(audio)])
    assert capsys.readouterr().out.split(": ")[1].startswith(answers[audio.name])


def test_blends_of_blends_and_runs_with_fewer_folds(work: Path, capsys: pytest.CaptureFixture) -> None:
    predict.main([*BOTH, "--blend", "mean", "--name", "m"])
    assert (
        checksums.read(work / "m" / "blend.json")["weights"] == [0.5, 0.5]
        and "offsets" not in capsys.readouterr().out
    )
    whole, found, common, lines = members.fit_members(
        members.open_members(("m", "part", "lin"), "runs"), "auto"
    )
    one = oof(work / "part" / "oof_last.csv")
    assert len(common.ids) == len(one[1]) and set(common.folds) == {1} and len(lines) == 2
    assert lines[0] == "runs/m: only the folds that all have are used, 1"
    assert [row["name"] for row in found.table][:3] == ["m", "part", "lin"]
    saved_blend.save(work / "n", [m.folder for m in whole.of], "f1_macro", found, common)
    assert members.open_member(work / "n").fitted.weights.sum() == pytest.approx(1)
    predict.main(["--runs", "m", "mlp", "--device", "cpu", "--blend", "greedy", "--name", "g"])
    shown = str(members.open_member(work / "g"))  # which of the two depends on the weights that were fitted
    assert shown.startswith(("runs/g (the same as runs/m (mean of runs/", "runs/g (pool of runs/m")), shown
    # What a member was, it has to be: m made anew from something else is noticed by who stands on it.
    predict.main(["--runs", "m", "mlp", "--device", "cpu", "--blend", "mean", "--name", "g"])
    predict.main(["--runs", "mlp", "--device", "cpu", "--blend", "mean", "--name", "m"])
    assert "which has changed" in said(members.open_member, work / "g")


@pytest.mark.parametrize(
    "names, flags, words",
    [
        (
            ("lin", "other"),
            ("--blend", "auto"),
            "runs/lin and runs/other have different folds for the same clips: weights fitted",
        ),
        (("lin", "lin2"), ("--blend", "auto"), "runs/lin and runs/lin2 have different clips: "),
        (("lin", "lin3"), ("--blend", "auto"), "runs/lin and runs/lin3 have different labels for "),
        (
            ("lin", "lin4"),
            ("--blend", "pool"),
            "runs/lin4 has no complete out-of-fold predictions (fold 2 is not finished)",
        ),
        (
            ("lin", "lin5"),
            ("--blend", "auto"),
            "runs/lin5/oof_last.csv differs from the predictions of fold 0",
        ),
        (("lin", "mlp"), ("--blend", "auto", "--name", "lin"), "--name lin: runs/lin is a trained run"),
        (("lin", "mlp"), ("--blend", "auto", "--name", "../x"), "--name ../x: a name, not a path"),
        (("lin", "gone"), ("--blend", "auto"), "no run named gone; runs: lin"),
    ],
)
def test_what_cannot_be_blended(work: Path, names: tuple, flags: tuple, words: str) -> None:
    other = work / names[1]
    if names[1].startswith("lin"):
        shutil.copytree(work / "lin", other)
        path = other / "oof_last.csv"
        rows = path.read_text().splitlines()
        classes = rows[0].split(",")[3:]
        if names[1] == "lin2":  # other clips
            path.write_text("\n".join(row if i != 3 else "x" + row for i, row in enumerate(rows)) + "\n")
        if names[1] == "lin3":
            cells = rows[3].split(",")
            cells[2] = next(name for name in classes if name != cells[2])
            path.write_text("\n".join([*rows[:3], ",".join(cells), *rows[4:]]) + "\n")
        if names[1] == "lin4":
            shutil.rmtree(other / "fold_2" / "last")
        if names[1] == "lin5":
            np.save(other / "fold_0" / "valid_last.npy", np.load(other / "fold_0" / "valid_last.npy")[::-1])
            checksums.write(other / "fold_0" / "valid_last.json", {}, "valid_last.npy")
    assert words in said(predict.main, ["--runs", *names, "--device", "cpu", *flags])
    assert not Path("submissions/submission.csv").exists()


def test_a_kept_blend_whose_members_went_or_changed(work: Path) -> None:
    predict.main([*BOTH, "--blend", "mean", "--name", "b"])
    os.rename(work / "mlp", work / "away")
    line = refused(script("predict.py", "--runs", "b", "--device", "cpu", cwd=Path.cwd(), ok=None))
    assert "runs/b is a blend of runs/mlp, which is missing (" in line and "--name b" in line
    shutil.copytree(work / "other", work / "mlp")
    line = said(members.open_member, work / "b")
    assert "which has changed" in line and Run.open(work / "other").config["fingerprint"] in line
    shutil.rmtree(work / "mlp")
    os.rename(work / "away", work / "mlp")
    assert members.open_member(work / "b").fitted.method == "mean"
    assert "--name b: runs/b is itself one of the --runs" in said(
        predict.main, ["--runs", "b", "--name", "b", "--device", "cpu"]
    )
    path = work / "b" / "blend.json"
    value = checksums.read(path)
    for change in (
        {"weights": [1.0]},
        {"weights": [float("nan"), 1.0]},
        {"scale": [1.0]},
        {"members": ["../lin", 3]},
        {"kind": "first"},
        {"power": 0.0},
        {"thresholds": [0.0] * value["classes"]},
        {"classes": 2},
        {"members": [], "weights": [], "fingerprints": []},
    ):
        checksums.write(path, {**value, **change}, "oof.csv")
        assert "blend again" in said(members.open_member, work / "b"), change
    checksums.write(path, {**value, "method": "greedy", "fingerprints": ["0" * 16] * 2}, "oof.csv")
    assert "--blend auto --name b" in said(members.open_member, work / "b"), "a method of earlier releases"
    checksums.write(path, value, "oof.csv")
    path.write_text(path.read_text().replace('"classes"', '"class"'))
    assert "runs/b/blend.json is damaged" in said(members.open_member, work / "b")
    checksums.write(path, value, "oof.csv")
    (work / "b" / "oof.csv").write_text("id,fold\n")
    assert "oof.csv is damaged" in said(members.open_member, work / "b")


def test_folds_that_share_clips() -> None:
    """Renumbered or coarser folds can be blended; the coarsest count."""
    fine = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    assert members.merge_folds([fine, fine]).tolist() == fine.tolist()
    assert members.merge_folds([fine, 10 - fine]).tolist() == fine.tolist()
    assert members.merge_folds([fine, fine // 2, 5 - fine]).tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
    assert members.merge_folds([fine, np.array([0, 1, 1, 2, 2, 3, 3, 0])]).tolist() == [0] * 8


def test_out_of_fold_files_with_several_labels(tmp_path: Path) -> None:
    """Written and read back; a blend's thresholds are kept."""
    classes, rng = ["a", "label", "c d"], np.random.default_rng(0)
    truth = (rng.random((40, 3)) < 0.4).astype(np.int8)
    p, folds = rng.random((40, 3)), np.arange(40) % 4
    (tmp_path / "r").mkdir()
    path = tmp_path / "r" / "oof.csv"
    Oof(np.array([f"{i}, x" for i in range(40)]), folds, truth, p, classes).write(path)
    found = Oof.read(path, classes, True)
    assert (
        (found.labels == truth).all()
        and (found.folds == folds).all()
        and np.allclose(found.probabilities, p, atol=1e-8)
    )
    assert found.ids[7] == "7, x"
    assert "is damaged, or not from train.py or predict.py" in said(Oof.read, path, classes[:2], True)
    fitted = blend_weights.FittedBlend(
        "pool", np.array([0.3, 0.0, 0.7]), 1.5, None, np.array([0.1, 0.5, 0.9]), multilabel=True
    )
    for name in "xyz":
        shutil.copytree(tmp_path / "r", tmp_path / name)
        (tmp_path / name / "config.yaml").touch()
    blended = blend_weights.BlendResult(fitted, p, 0.5, 0.1, [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_blend, "read_fingerprint", lambda folder: folder.name)
        saved_blend.save(tmp_path / "b", [tmp_path / name for name in "xyz"], "f1_macro", blended, found)
    value = json.loads((tmp_path / "b" / "blend.json").read_text())
    assert value["members"] == ["../x", "../z"] and value["fingerprints"] == ["x", "z"]
    again = saved_blend.build_fitted_blend(saved_blend.read(tmp_path / "b"))
    assert (
        again.weights.tolist() == [0.3, 0.7]
        and again.thresholds.tolist() == [0.1, 0.5, 0.9]
        and (again.power, again.multilabel) == (1.5, True)
        and again.scale is None
    )
