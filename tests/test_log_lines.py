"""What train.py prints and keeps: a line per fold, fold numbers, diverged runs, a submission per run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import read_csv
from made_cache import make

import predict
import train
from earshot.core import checksums
from earshot.training import progress

LINEAR = ["--recipe", "linear", "--device", "cpu", "--no-report", "--epochs", "6"]
EPOCH = re.compile(r"fold (\d)/3  epoch (\d)/6  lr \S+  train \S+  valid \S+  f1 \S+ [* ] +\S+ s  eta \S+")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a cache of three folds and 15 clips to submit."""
    monkeypatch.chdir(tmp_path)
    make(Path("data/c/one"), {"pooled": (8, 1, 1)}, signal=0.6)
    return tmp_path


def list_epochs(printed: str) -> list[tuple[str, str]]:
    """(fold, epoch) of each epoch's line."""
    lines = [line for line in printed.splitlines() if re.match(r"fold .*epoch", line)]
    return [EPOCH.fullmatch(line).groups() for line in lines]


def test_quick_epochs_print_a_line_per_fold(work: Path, capsys: pytest.CaptureFixture) -> None:
    train.main([*LINEAR, "--name", "a"])
    printed = capsys.readouterr().out
    assert list_epochs(printed) == [("0", "6"), ("1", "6"), ("2", "6")]
    assert "\nfolds: 0-2 (the data's own 3 folds); 60 clips, " in printed
    assert len(read_csv(Path("runs/a/metrics.csv"))) == 18, "all epochs are in metrics.csv"
    train.main([*LINEAR, "--name", "b", "--fold", "1"])
    printed = capsys.readouterr().out
    assert list_epochs(printed) == [("1", "6")] and {r["fold"] for r in read_csv(Path("runs/b/oof.csv"))} == {
        "1"
    }
    assert "out-of-fold scores, 21 clips in 1 fold:\n  last  f1_macro " in printed
    assert "  (last epoch: unbiased)\n  best  f1_macro " in printed
    assert "  (best epoch, chosen on the validation fold: optimistic)\n" in printed


def test_slow_epochs_print_a_line_each(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "QUICK", 0.0)
    train.main([*LINEAR, "--name", "a"])
    assert list_epochs(capsys.readouterr().out) == [(f, e) for f in "012" for e in "123456"]


def test_epochs_of_about_a_second_do_not_switch_back_and_forth() -> None:
    """Quiet from the first quick epoch until a slow one; a stop logs the epoch that waits."""
    from types import SimpleNamespace

    lines: list[str] = []
    settings = SimpleNamespace(epochs=9, metric="f1_macro", lr=1, clip_grad=None)
    log = progress.EpochLog(lines.append, SimpleNamespace(title="fold 0/2", name="fold 0"), settings)
    history = []
    for epoch, seconds in enumerate((1.5, 0.9, 1.5, 2.5, 1.5, 0.9), 1):
        history.append({"epoch": epoch, "lr": 0.1, "train_loss": 1.0, "seconds": seconds})
        log.add_epoch(history, False, 0.0, False)
    assert [line.split("/9")[0][-1] for line in lines] == ["1", "4", "5"]
    log.flush()
    log.flush()
    assert [line.split("/9")[0][-1] for line in lines] == ["1", "4", "5", "6"]


def test_sklearn_heads_have_no_learning_rate(work: Path, capsys: pytest.CaptureFixture) -> None:
    train.main(["--recipe", "logistic", "--device", "cpu", "--no-report", "--name", "a"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fold ")]
    assert [line[:25] for line in lines] == [f"fold {n}/3  epoch 1/1  train"[:25] for n in range(3)]
    assert not any(" lr " in line for line in lines)


def test_a_diverged_run_is_named(work: Path, capsys: pytest.CaptureFixture) -> None:
    train.main([*LINEAR, "--name", "a", "--lr", "1e7"])
    printed = capsys.readouterr().out
    warnings = [line for line in printed.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 4 and [line[:15] for line in warnings[:3]] == [
        f"warning: fold {n}" for n in range(3)
    ]
    assert "training diverged, its loss is " in warnings[0]
    for line in (warnings[0], warnings[3]):
        assert line.endswith(": lower --lr (it was 1e+07) or set --clip-grad 1"), line
    assert "training diverged in fold 0, 1, 2, so these scores are of no use" in warnings[3]
    assert printed.index("last  f1_macro") < printed.index(warnings[3])
    assert all(re.search(r"  train \d\.\de\+\d\d  ", line) for line in printed.splitlines() if "eta" in line)
    train.main([*LINEAR, "--name", "a", "--lr", "1e7"])  # finished already: the summary alone
    assert [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")
    ] == warnings[3:]


def test_multilabel_scores_lead_with_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("data/c/one"), {"pooled": (8, 1, 1)}, multilabel=True, test=12)
    train.main([*LINEAR, "--name", "a"])
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("out-of-fold scores"))
    starts = ("  last  map_macro ", "  last  f1_macro ", "  best  map_macro ", "  best  f1_macro ")
    assert all(line.startswith(start) for line, start in zip(lines[first + 1 :], starts, strict=False))
    assert lines[first + 2].endswith("  (at threshold 0.5)") and "f1_macro by fold" in lines[first + 2]
    holdout = next(line for line in lines if line.startswith("hold-out"))
    assert holdout.index("map_macro") < holdout.index("f1_macro")
    train.main([*LINEAR, "--name", "b", "--metric", "map_macro"])
    assert "map_macro by fold" in next(
        line for line in capsys.readouterr().out.splitlines() if "last  map" in line
    )


def test_each_run_keeps_its_submission(work: Path, capsys: pytest.CaptureFixture) -> None:
    latest = Path("submissions/submission.csv")
    kept = {}
    for name, lr in (("a", "1e-3"), ("b", "1")):
        train.main([*LINEAR, "--name", name, "--lr", lr])
        kept[name] = Path(f"submissions/{name}.csv").read_bytes()
        assert latest.read_bytes() == kept[name]
    assert kept["a"] != kept["b"] and Path("submissions/a.csv").read_bytes() == kept["a"]
    assert (
        f"{latest}: 15 rows, 2 columns, validated (no sample submission), kept as submissions/b.csv\n"
        in capsys.readouterr().out
    )
    Path("submissions/b.csv").unlink()  # as if killed before it was written
    train.main([*LINEAR, "--name", "b", "--lr", "1"])
    assert Path("submissions/b.csv").read_bytes() == kept["b"]
    train.main([*LINEAR, "--name", "b", "--lr", "1e-3", "--fresh"])
    assert Path("submissions/b.csv").read_bytes() == kept["a"], "a run that is trained anew replaces its own"

    # A blend is kept where it has a name; beside --out.
    both = ["--runs", "a", "b", "--device", "cpu", "--no-report"]
    predict.main([*both, "--out", "far/s.csv"])
    assert {path.name for path in Path("far").iterdir() if path.suffix == ".csv"} == {"s.csv", "ledger.csv"}
    predict.main([*both, "--blend", "pool", "--name", "c", "--out", "far/s.csv"])
    assert Path("far/c.csv").read_bytes() == Path("far/s.csv").read_bytes()


def test_a_file_of_the_users_is_not_replaced(work: Path, capsys: pytest.CaptureFixture) -> None:
    Path("a.csv").write_text("mine\n")
    train.main([*LINEAR, "--name", "a", "--out", "s.csv"])
    assert Path("a.csv").read_text() == "mine\n" and len(read_csv(Path("s.csv"))) == 15
    assert "(not kept as a.csv: another file has this name)" in capsys.readouterr().out
    train.main([*LINEAR, "--name", "ledger", "--out", "s.csv"])
    assert "sha256" in read_csv(Path("ledger.csv"))[0]


def test_a_bake_off_fills_its_row_of_the_ledger(work: Path) -> None:
    recipes = ["--candidates", "logistic", "knn"]
    train.main(["--recipe", "auto", "--device", "cpu", "--no-report", *recipes, "--name", "ladder"])
    (row,) = read_csv(Path("submissions/ledger.csv"))
    assert set(row["runs"].split()) <= {"logistic-pooled-one", "knn-pooled-one"} and row["runs"]
    board = {Path(line["run"]).name: line for line in read_csv(Path("runs/leaderboard.csv"))}
    assert (row["metric"], row["oof"]) == ("f1_macro", board["ladder"]["oof_f1_macro"])
    assert row["blend"] == checksums.read(Path("runs/ladder/blend.json"))["method"]
    assert Path("submissions/ladder.csv").read_bytes() == Path("submissions/submission.csv").read_bytes()
