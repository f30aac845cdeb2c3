"""submissions/ledger.csv: a row per submission, scores filled in, CV against LB."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import read_csv

import get_features
import predict
import train
from earshot.core.errors import UserError
from earshot.core.files import hash_file
from earshot.prediction import ledger
from earshot.report import ledger as ledger_page


def test_train_and_predict_enter_their_submissions(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = (
        (tones / "sample_submission.csv")
        .read_text()
        .replace("fname,label", "fname,tone0,tone1,tone2")
        .replace(",tone0\n", ",0,0,0\n")
    )
    (tones / "sample_submission.csv").write_text(sample)  # probabilities: no two runs' are the same
    get_features.main(
        ["--competition", "tones", "--extractor", "logmel", "--n-mels", "16", "--device", "cpu"]
    )
    args = ["--recipe", "linear", "--features", "data/tones/logmel", "--device", "cpu", "--folds", "2"]
    train.main([*args, "--epochs", "1", "--name", "a"])
    (row,) = read_csv(Path("submissions/ledger.csv"))
    assert (
        row["sha256"] == hash_file("submissions/submission.csv")[:16]
        and row["competition"] == "tones"
        and row["runs"] == "a"
    )
    assert (
        row["rows"] == "12"
        and row["metric"] == "f1_macro"
        and row["public"] == row["private"] == ""
        and row["time"].endswith("Z")
    )
    scored = next(
        line for line in Path("runs/a/training_log.txt").read_text().splitlines() if line.startswith("  last")
    )
    assert f"f1_macro {float(row['oof']):.4f}" in scored, "of the last epoch: unbiased"

    Path("submissions/submission.csv").write_text("lost")
    train.main([*args, "--epochs", "1", "--name", "a"])  # the same content again
    assert (
        read_csv(Path("submissions/ledger.csv")) == [row]
        and "has this submission already" in capsys.readouterr().out
    )

    Path("submissions/submission.csv").rename("submissions/kept.csv")
    train.main([*args, "--epochs", "2", "--name", "b", "--out", "submissions/b.csv"])
    predict.main(["--runs", "a", "b", "--out", "submissions/blend.csv"])
    rows = {r["file"]: r for r in read_csv(Path("submissions/ledger.csv"))}
    distinct = {hash_file(f"submissions/{name}.csv") for name in ("kept", "b", "blend")}
    assert len(rows) == len(distinct) == 3
    assert (
        rows["blend.csv"]["runs"] == "a b"
        and rows["blend.csv"]["blend"] == "mean"
        and rows["blend.csv"]["oof"] == ""
    )

    ledger_page.main(["--score", "submissions/kept.csv", "0.913"])
    ledger_page.main(["--score", row["sha256"][:6], "0.9", "--private"])
    first = read_csv(Path("submissions/ledger.csv"))[0]
    assert (first["public"], first["private"], first["time"]) == ("0.913", "0.9", row["time"])
    capsys.readouterr()
    ledger_page.main([])
    shown = capsys.readouterr().out.splitlines()
    assert (
        shown[0].split()[:2] == ["time", "competition"]
        and len(shown) == 1 + len(rows)
        and "0.913" in shown[1]
    )


def entered(folder: Path, text: str, **more) -> str:
    path = folder / f"{text}.csv"
    path.write_text(f"id,label\n{text},x\n")
    return ledger.add_submission(path, "birds", 1, **more)


def test_two_processes_lose_no_row(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: entered(tmp_path, f"s{i}"), range(16)))
    rows = ledger.read_rows(tmp_path / "ledger.csv")
    assert {row["file"] for row in rows} == {f"s{i}.csv" for i in range(16)} and len(rows) == 16
    assert not list(tmp_path.glob("*.tmp"))


def test_a_damaged_ledger_costs_no_submission(tmp_path: Path) -> None:
    """A line says so, and the file is left as it is; a user's own columns are kept."""
    (tmp_path / "ledger.csv").write_text("something,else\n1,2\n")
    assert (
        "is not entered" in entered(tmp_path, "a")
        and (tmp_path / "ledger.csv").read_text() == "something,else\n1,2\n"
    )
    (tmp_path / "ledger.csv").write_text("file,sha256,mine\nold.csv,abcdef012345,yes\n")
    assert entered(tmp_path, "a").startswith("ledger: ")
    rows = read_csv(tmp_path / "ledger.csv")
    assert [row["mine"] for row in rows] == ["yes", ""] and rows[1]["competition"] == "birds"


@pytest.mark.parametrize(
    "args, words",
    [
        (["--score", "nothing.csv", "0.5"], "give a submission.s file"),
        (["--score", "abcd", "0.5"], "no rows"),
        (["--score", "abcd", "nan"], "a number"),
        (["--score", "abcd", "high"], "high"),
    ],
)
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str) -> None:
    (tmp_path / "submissions").mkdir()
    entered(tmp_path / "submissions", "a")
    monkeypatch.chdir(tmp_path)
    before = Path("submissions/ledger.csv").read_bytes()
    with pytest.raises(UserError, match=words):
        ledger_page.main(args)
    assert Path("submissions/ledger.csv").read_bytes() == before
