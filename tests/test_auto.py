"""`train.py --recipe auto`: many heads on all caches, within the time, to a blend that is honest."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import read_csv, refused, script
from made_cache import make
from test_restart import contents, kill_when

import predict
import train
from earshot.core import checksums
from earshot.core.errors import UserError
from earshot.features.cache import Cache
from earshot.prediction import saved_blend
from earshot.search import candidate_training, candidates, fold_results
from earshot.training import cross_validation, metrics

DRAWN = ["--recipe", "auto", "--device", "cpu"]
AUTO = [*DRAWN, "--no-report"]
QUICK = ["--candidates", "logistic", "svm", "knn", "small.yaml"]
SMALL = "head: {name: mlp, hidden: [16]}\ntraining: {epochs: EPOCHS, batch_size: 16, lr: 3e-3}\n"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a quick recipe."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL.replace("EPOCHS", "6"))
    return tmp_path


def board(folder: Path = Path("runs")) -> dict[str, dict[str, str]]:
    return {Path(row["run"]).name: row for row in read_csv(folder / "leaderboard.csv")}


def shares(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(clips, classes) probabilities of an oof.csv, and whether each class is among the clip's labels."""
    rows = read_csv(path)
    names = list(rows[0])[3:]
    return (
        np.array([[float(row[n]) for n in names] for row in rows]),
        np.array([[n in row["label"].split("|") for n in names] for row in rows]),
    )


def test_two_caches_a_blend_and_a_submission(work: Path, capsys: pytest.CaptureFixture) -> None:
    make(Path("data/c/one"), {"pooled": (12, 1, 1)}, signal=0.6, test=9)
    make(Path("data/c/two"), {"pooled": (8, 1, 1)}, signal=0.6, seed=5, test=9)
    train.main([*DRAWN, *QUICK, "--name", "a"])
    said = capsys.readouterr().out
    rows = board()
    assert (
        "report: runs/a/report.html" in said
        and "were fitted on the other folds" in Path("runs/a/report.html").read_text()
    )
    assert set(rows) == {
        "a",
        *(f"{r}-pooled-{c}" for r in ("logistic", "svm", "knn", "small") for c in ("one", "two")),
    }
    assert all(
        row["status"] == "finished" and row["folds"] == "0 1 2" for name, row in rows.items() if name != "a"
    )
    assert rows["a"]["status"].startswith("blend") and "cross-fitted" in rows["a"]["status"]
    scores = [float(row["oof_f1_macro"]) for row in read_csv(Path("runs/leaderboard.csv"))]
    assert scores == sorted(scores, reverse=True)
    found, truth = shares(Path("runs/a/oof.csv"))
    assert np.allclose(found.sum(1), 1, atol=1e-6) and len(found) == 60
    assert (
        abs(metrics.compute_gain("f1_macro", found, truth.argmax(1)) - float(rows["a"]["oof_f1_macro"]))
        < 1e-6
    )
    told = checksums.read(Path("runs/a/test.json"))
    assert (
        told["clips"] == 9
        and "hold-out, 9 clips" in said
        and "submissions/submission.csv: 15 rows, 2 columns, validated" in said
    )

    # predict.py opens the blend, and each member, as it opens any run.
    predict.main(["--runs", "a", "--out", "again.csv", "--device", "cpu"])
    assert Path("again.csv").read_bytes() == Path("submissions/submission.csv").read_bytes()
    predict.main(
        ["--runs", "runs/a/svm-pooled-one", "runs/a/knn-pooled-two", "--out", "two.csv", "--device", "cpu"]
    )
    assert len(read_csv(Path("two.csv"))) == 15
    with pytest.raises(UserError, match="holds a bake-off with its runs"):
        predict.main(["--runs", "runs/a/svm-pooled-one", "--name", "a", "--device", "cpu"])

    # Again: nothing is done; with another cache under the same name it is refused.
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file() and p.name != ".lock"}
    train.main([*AUTO, *QUICK, "--name", "a"])
    assert "is finished" in capsys.readouterr().out
    assert {
        p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file() and p.name != ".lock"
    } == before
    with pytest.raises(
        UserError, match="runs/a is a bake-off with other settings: features.two: .* there, nothing here"
    ):
        train.main([*AUTO, *QUICK, "--name", "a", "--features", "data/c/one"])


def test_the_metric_orders_the_board(work: Path, capsys: pytest.CaptureFixture) -> None:
    """Each metric has its column, and a loss is better where it is smaller."""
    make(Path("data/c/one"), {"pooled": (8, 1, 1)}, signal=0.5)
    usual = ["oof_f1_macro", "log_loss", "accuracy", "fold_std"]
    for metric, columns, sign in (("log_loss", usual, 1), ("map_at_3", ["oof_map_at_3", *usual], -1)):
        train.main([*AUTO, *QUICK, "--metric", metric, "--name", metric])
        rows = read_csv(Path("runs/leaderboard.csv"))
        assert list(rows[0])[5:-2] == columns
        found = [float(row[columns[0] if metric == "map_at_3" else metric]) for row in rows]
        assert found == sorted(found, key=lambda value: sign * value) and len(set(found)) > 2
        capsys.readouterr()
        train.main([*AUTO, *QUICK, "--metric", metric, "--name", metric])
        assert ("map_at_3  f1_macro" in capsys.readouterr().out) == (metric == "map_at_3")
    with pytest.raises(UserError, match="--metric lwlrap is for clips with several labels"):
        train.main([*AUTO, *QUICK, "--metric", "lwlrap"])


def test_features_are_named_once_each(work: Path, capsys: pytest.CaptureFixture) -> None:
    for name, seed in (("one", 0), ("two", 1), ("three", 2)):
        make(Path("data/c") / name, {"pooled": (6, 1, 1)}, seed=seed)
    train.main(
        [*AUTO, "--candidates", "knn", "--features", "data/c/two", "--features=data/c/one", "--name", "a"]
    )
    assert set(board()) == {"a", "knn-pooled-two", "knn-pooled-one"}
    make(Path("data/other/one"), {"pooled": (6, 1, 1)})
    with pytest.raises(
        UserError, match="which competition. there are data/c, data/other: choose one with --data data/c"
    ):
        train.main(AUTO)
    train.main([*AUTO, "--candidates", "knn", "--data", "data/other", "--name", "b"])
    assert set(board()) == {"b", "knn-pooled-one"}
    with pytest.raises(UserError, match="--features twice"):
        train.main(["--recipe", "linear", "--features", "data/c/one", "--features", "data/c/two"])


def test_other_folds_and_labels_do_not_mix(work: Path) -> None:
    make(Path("data/c/one"), {"pooled": (6, 1, 1)})
    make(Path("data/c/two"), {"pooled": (6, 1, 1)}, folds=4)
    train.main([*AUTO, "--candidates", "knn", "--name", "a"])
    rows = board()
    assert (
        rows["knn-pooled-two"]["status"].startswith("failed")
        and "other training clips or folds" in rows["knn-pooled-two"]["status"]
    )
    assert (
        rows["knn-pooled-one"]["status"] == "finished"
        and len(read_csv(Path("submissions/submission.csv"))) == 15
    )
    make(Path("data/c/three"), {"pooled": (6, 1, 1)}, classes=4)
    with pytest.raises(UserError, match="different labels"):
        train.main(AUTO)


def test_labels_dealt_out_anew_score_at_chance(work: Path) -> None:
    """Whatever is chosen among many members, nothing of it is chosen on the fold that it scores."""
    for name, seed in (("one", 0), ("two", 1)):
        make(Path("data/c") / name, {"pooled": (30, 1, 1)}, clips=240, classes=4, shuffled=True, seed=seed)
    train.main([*AUTO, *QUICK, "--name", "a"])
    found, truth = shares(Path("runs/a/oof.csv"))
    accuracy, error = (found.argmax(1) == truth.argmax(1)).mean(), np.sqrt(0.25 * 0.75 / 240)
    assert abs(accuracy - 0.25) < 3 * error, accuracy


def test_several_labels_a_clip(work: Path) -> None:
    make(
        Path("data/c/one"), {"pooled": (20, 1, 1)}, clips=90, classes=4, multilabel=True, signal=1.5, test=12
    )
    train.main([*AUTO, *QUICK, "--metric", "map_macro", "--name", "a"])
    found, truth = shares(Path("runs/a/oof.csv"))
    assert truth.sum(1).max() == 2 and metrics.compute_gain("map_macro", found, truth.astype(int)) > 0.8
    assert all(float(row["oof_f1_macro"]) > 0.5 for row in board().values())
    rows = read_csv(Path("submissions/submission.csv"))
    assert len(rows) == 22 and any("," in row["category"] for row in rows)


def test_too_little_time_is_a_submission_all_the_same_and_more_goes_on(
    work: Path, capsys: pytest.CaptureFixture
) -> None:
    make(Path("data/c/one"), {"pooled": (12, 1, 1)})
    train.main([*AUTO, *QUICK, "--name", "a", "--max-hours", "0.0000001"])
    rows = board()
    finished = [name for name, row in rows.items() if row["status"] == "finished"]
    assert len(finished) == 1 and sum(row["status"].startswith("no time") for row in rows.values()) == 3
    assert (
        len(read_csv(Path("submissions/submission.csv"))) == 15
        and "is finished" not in capsys.readouterr().out
    )
    train.main([*AUTO, *QUICK, "--name", "a", "--max-hours", "0.0000001"])
    assert "is finished" in capsys.readouterr().out
    train.main([*AUTO, *QUICK, "--name", "a", "--max-hours", "1"])
    assert all(row["status"] == "finished" for name, row in board().items() if name != "a")


def test_what_is_clearly_worse_is_dropped_when_time_is_short(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The ladder's costs are made up: folds for two of three, and the one that learns nothing is the one to
    go."""
    make(Path("data/c/one"), {"pooled": (12, 1, 1), "frames": (12, 1, 3)}, clips=120, signal=1.0)
    for name, rate in (("good", "3e-3"), ("bad", "1e-9"), ("fair", "2e-3")):
        Path(f"{name}.yaml").write_text(
            f"head: {{name: mlp, hidden: [16]}}\ntraining: {{epochs: 8, batch_size: 16, lr: {rate}}}\n"
        )
    passed, trained = [0.0], cross_validation.train_folds

    def hours(made, run, wanted, deadline) -> bool:
        passed[0] += 600 * len(set(wanted) - set(run.list_finished_folds()))
        return trained(made, run, wanted, deadline)

    monkeypatch.setattr(cross_validation, "train_folds", hours)
    monkeypatch.setattr(
        candidate_training, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0])
    )
    monkeypatch.setattr(candidate_training.timing, "guess_fold_seconds", lambda *args: (600.0, 0.0, 1, 1.0))
    monkeypatch.setattr(candidate_training.timing, "measure_fold_seconds", lambda *args: (600.0, 0.0))
    train.main(
        [*AUTO, "--candidates", "bad.yaml", "good.yaml", "fair.yaml", "--name", "a", "--max-hours", "1.35"]
    )
    rows = board()
    assert (
        rows["bad-pooled-one"]["status"].startswith("dropped after fold 0: f1_macro")
        and rows["bad-pooled-one"]["folds"] == "0"
    )
    assert rows["good-pooled-one"]["status"] == rows["fair-pooled-one"]["status"] == "finished"
    assert (
        "is not cross-fitted" in capsys.readouterr().out
        and "so the choice depends on these folds' labels" in rows["bad-pooled-one"]["status"]
    )


@pytest.mark.parametrize("guess", [30.0, 1e6])
def test_a_time_that_cannot_be_measured_stays_a_guess(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, guess: float
) -> None:
    make(Path("data/c/one"), {"pooled": (12, 1, 1)})
    monkeypatch.setattr(candidate_training.timing, "guess_fold_seconds", lambda *args: (guess, 0.03, 1, 1.0))
    monkeypatch.setattr(candidate_training.timing, "measure_fold_seconds", lambda *args: None)
    args = [*AUTO, "--candidates", "knn", "logistic", "--name", "a", "--max-hours", "0.05"]
    if guess > 60:
        with pytest.raises(UserError, match="no candidate was finished"):
            train.main(args)
    else:
        train.main(args)
    entries = checksums.read(Path("runs/a") / saved_blend.AUTO)["of"]
    assert "logistic-pooled-one: a part of the rows would say little" in capsys.readouterr().out
    # the first one's fold corrects the other's guess
    tried = {name.split("-")[0] for name, entry in entries.items() if entry["tried"]}
    assert tried == ({"knn", "logistic"} if guess > 60 else {"logistic"})
    assert not any(entry["timed"] for entry in entries.values())
    # predicting a row is as much quicker than guessed
    assert (entries["logistic-pooled-one"]["row"] == 0.03) == (guess > 60)
    assert guess > 60 or entries["logistic-pooled-one"]["row"] < 0.01
    status = {entry["status"] for entry in entries.values()}
    assert status == {"no time" if guess > 60 else "finished"}
    assert all("which is only guessed" in entry["note"] for entry in entries.values()) == (guess > 60)


def test_a_metric_without_a_value_on_a_fold_counts_as_nothing_right(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(make(Path("data/c/one"), {"pooled": (12, 1, 1)}))
    train.main([*AUTO, "--candidates", "knn", "--name", "a"])
    monkeypatch.setattr(fold_results.metrics, "compute_gain", lambda *args: float("nan"))
    found = fold_results.read_fold_results(Path("runs/a/knn-pooled-one"), cache, [0, 1], "roc_auc")
    assert [result.error for result in found.values()] == [1.0, 1.0]


def test_an_earlier_version_s_account_is_continued(work: Path) -> None:
    make(Path("data/c/one"), {"pooled": (12, 1, 1)})
    args = [*AUTO, *QUICK, "--name", "a"]
    train.main([*args, "--max-hours", "0.0000001"])
    path = Path("runs/a") / saved_blend.AUTO
    state = checksums.read(path)
    del state["decisions"]
    for entry in state["of"].values():
        for key in ("guess", "computed", "timed", "tried", "least", "walls", "sklearn"):
            entry.pop(key, None)
        entry["each"] = 1e6
    checksums.write(path, state)
    train.main([*args, "--max-hours", "1"])
    assert all(row["status"] == "finished" for name, row in board().items() if name != "a")


def test_a_decision_is_carried_out_after_an_interruption(work: Path, capsys: pytest.CaptureFixture) -> None:
    """As if the command had been killed once it had decided on a fold that it would not choose again."""
    make(Path("data/c/one"), {"pooled": (12, 1, 1)})
    args = [*AUTO, *QUICK, "--name", "a"]
    train.main([*args, "--max-hours", "0.0000001"])
    path = Path("runs/a") / saved_blend.AUTO
    state = checksums.read(path)
    name = [name for name, entry in state["of"].items() if entry["status"] == "no time"][-1]
    assert all(one["done"] for one in state["decisions"])
    before = [one["name"] for one in state["decisions"]]
    pending = {"name": name, "folds": [1], "seconds": 1.0, "why": "", "anyhow": False, "done": False}
    state["decisions"].append(pending)
    checksums.write(path, state)
    capsys.readouterr()
    train.main([*args, "--max-hours", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if " folds, out-of-fold " in line]
    assert lines[0].startswith(f"{name}: 1/3 folds")
    after = checksums.read(path)["decisions"]
    assert [one["name"] for one in after[: len(before) + 1]] == [*before, name]
    assert all(one["done"] for one in after)
    assert f"next: {after[-1]['name']}, " in Path("runs/a/training_log.txt").read_text()


@pytest.mark.slow
def test_killed_and_run_again(work: Path) -> None:
    """The same files as undisturbed."""
    Path("small.yaml").write_text(SMALL.replace("EPOCHS", "25"))
    make(Path("data/c/one"), {"pooled": (12, 1, 1)})
    args = ["--recipe", "auto", *QUICK, "--name", "a", "--device", "cpu"]
    # as many threads as those that are killed
    script("train.py", *args, "--runs-folder", "calm", "--out", "calm.csv", cwd=work)
    last = work / "runs" / "a" / "small-pooled-one" / "fold_1"
    kill_when("train.py", *args, cwd=work, ready=last.exists)
    script("train.py", *args, cwd=work)
    names = ("a/oof.csv", "a/blend.json", "a/*/oof_last.csv", "a/*/fold_*/last/model.safetensors")
    calm, killed = contents(work / "calm", *names), contents(work / "runs", *names)
    assert calm == killed and len(calm) == 18
    assert Path("calm.csv").read_bytes() == Path("submissions/submission.csv").read_bytes()


@pytest.mark.slow
def test_the_ladder_on_the_sample_competition(tmp_path: Path) -> None:
    """The whole line: audio, the built-in ladder in little time, a score against the solution, the first line
    at once."""
    script(
        "get_features.py", "--competition", "sample", "--n-mels", "24", "--extractor", "logmel", cwd=tmp_path
    )
    said = script("train.py", "--recipe", "auto", "--max-hours", "0.001", cwd=tmp_path).stdout
    assert (
        said.startswith("bake-off: data/sample/logmel; 0.001 h\n")
        and "scored with solution.csv: f1_macro" in said
    )
    rows = board(tmp_path / "runs")
    assert {f"{r}-mel-logmel" for r in ("logistic", "svm", "knn", "from_scratch", "audio_cnn")} <= set(rows)
    assert sum(row["status"] == "finished" for row in rows.values()) == 1 and rows["audio_cnn-mel-logmel"][
        "status"
    ].startswith("no time")
    message = refused(script("train.py", "--recipe", "auto", "--max-hour", "1", cwd=tmp_path, ok=None))
    assert "unknown flag --max-hour" in message


def test_every_recipe_of_the_ladder_is_there() -> None:
    from earshot.core.config import load_recipe

    for names in candidates.LADDER.values():
        assert all(load_recipe(name).head for name in names)
    assert set(candidates.SEEDED) <= {name for names in candidates.LADDER.values() for name in names}


def test_further_seeds_come_last_the_strongest_recipe_s_first(work: Path) -> None:
    views = {"one": {"mel": (1, 16, 40)}, "two": {"pooled": (8, 1, 1)}}
    found = candidates.list_candidates(
        [Cache(make(Path("data/c") / name, view)) for name, view in views.items()], ()
    )
    seeds = [(c.recipe.name, c.seed) for c in found if c.seed]
    assert all(c.seed == 0 for c in found[: -len(seeds)]) and {c.after for c in found if c.seed} <= {
        c.name for c in found if not c.seed
    }
    assert seeds[:2] == [("from_scratch", 1), ("from_scratch", 2)]
    assert seeds[2:] == [(name, seed) for seed in (1, 2) for name in ("mlp", "itmo2025_tokens", "small_cnn")]


def test_the_ladder_leaves_out_weights_that_a_view_cannot_feed(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(make(Path("data/c/one"), {"mel": (1, 16, 40)}))
    found = [c.recipe.name for c in candidates.list_candidates([cache], ())]
    assert "svm" in found and "efficientat_finetune" not in found
    monkeypatch.setattr(candidates.experiment, "find_misfit", lambda *args: None)
    more = [c.recipe.name for c in candidates.list_candidates([cache], ())]
    assert set(more) - set(found) == {"efficientat_finetune"}


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_account_is_made_anew(work: Path, damage: str) -> None:
    make(Path("data/c/one"), {"pooled": (6, 1, 1)})
    args = [*AUTO, "--candidates", "knn", "logistic", "--name", "a"]
    train.main(args)
    before = Path("runs/a/oof.csv").read_bytes()
    path = Path("runs/a") / saved_blend.AUTO
    path.write_text(path.read_text()[:40]) if damage == "cut" else path.unlink()
    train.main(args)
    assert Path("runs/a/oof.csv").read_bytes() == before and checksums.read(path)["done"]
    member = checksums.read(Path("runs/a/blend.json"))["members"][0]
    shutil.rmtree(Path("runs/a") / member)  # the blend says so instead of predicting without it
    with pytest.raises(UserError, match=f"{member}, which is missing"):
        predict.main(["--runs", "a", "--out", "x.csv", "--device", "cpu"])
