"""Download and submission with the real client against a stub of Kaggle on loopback; every failure in one
line."""

from __future__ import annotations

import io
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import make_competition, read_csv, refused, script
from kaggle_stub import KEY, NAME, Stub

from earshot.core.errors import TemporaryError, UserError
from earshot.kaggle import client, download, submit
from earshot.kaggle.flags import SubmitFlags


def zipped(folder: Path, *more: tuple[str, bytes]) -> bytes:
    """A folder's files as a zip, and some more."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
        for name, data in more:
            archive.writestr(name, data)
    return content.getvalue()


@pytest.fixture
def tones_zip(tmp_path: Path) -> bytes:
    """The small competition as Kaggle would send it."""
    return zipped(make_competition(tmp_path / "made", train=6, subm=2))


def naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's pauses between its own attempts pass at once."""
    real = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: real(min(seconds, 0.01)))


def test_from_the_download_to_the_score(stub: Stub, tones_zip: bytes, tmp_path: Path, capsys) -> None:
    """The three scripts as a user runs them, with nothing here but the competition's name."""
    import get_features
    import predict
    import train

    stub.files["archive.zip"] = tones_zip
    get_features.main(
        ["--competition", "tone-hunt", "--extractor", "logmel", "--device", "cpu", "--workers", "1"]
    )
    assert (tmp_path / "data" / "tone-hunt" / "unpacked" / "train.csv").is_file() and not list(
        (tmp_path / "data" / ".downloads").iterdir()
    )
    train.main(["--recipe", "linear", "--epochs", "2", "--folds", "2", "--device", "cpu", "--name", "lin"])
    stub.limits = {"numToday": 4, "numTotal": 9, "numAllowedNow": 1, "limitedByTotal": False}
    with pytest.raises(UserError, match="the last submission of the day.*--yes"):
        predict.main(["--device", "cpu", "--submit", "-m", "first, a test"])
    assert not stub.asked("StartSubmissionUpload")
    capsys.readouterr()
    predict.main(["--device", "cpu", "--submit", "-m", "first, a test", "--yes"])
    said = capsys.readouterr().out
    assert (
        "4 today, 1 left, 9 in all" in said
        and "waiting for its score" in said
        and "score: public 0.913" in said
    )
    assert stub.uploads == [(tmp_path / "submissions" / "submission.csv").read_bytes()]
    assert stub.asked("CreateSubmission") == [
        {"competitionName": "tone-hunt", "blobFileTokens": "TOKEN", "submissionDescription": "first, a test"}
    ]
    rows = read_csv(tmp_path / "submissions" / "ledger.csv")
    assert [(row["runs"], row["public"], row["message"], row["ref"], row["competition"]) for row in rows] == [
        ("lin", "0.913", "first, a test", "70", "tone-hunt")
    ]
    # The same content again: asked before it is sent; a second download: nothing to do.
    stub.limits["numAllowedNow"] = 3
    with pytest.raises(UserError, match="this content was already submitted at .*ref 70, public 0.913"):
        predict.main(["--device", "cpu", "--submit"])
    assert len(stub.uploads) == 1
    get_features.main(["--competition", "tone-hunt", "--extractor", "logmel", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "downloaded earlier" in said and "nothing to do" in said and len(stub.ranges) == 1
    with pytest.raises(UserError, match="remove the audio files"):
        predict.main(["--device", "cpu", "--submit", "--audio", "made"])
    assert KEY not in said


def test_a_broken_download_goes_on(stub: Stub, tones_zip: bytes, tmp_path: Path, monkeypatch) -> None:
    naps(monkeypatch)
    whole = zipped(tmp_path / "made", ("notes.bin", bytes(8 << 20)))
    # the client writes by the MB, and tries five times more
    stub.files["archive.zip"], stub.cut = whole, (1 << 20) + 5
    with pytest.raises(UserError, match="tones: the connection broke off; the same command continues"):
        download.find_or_download("tones", "data")
    kept = tmp_path / "data" / ".downloads" / "tones" / "tones.zip"
    assert kept.stat().st_size == 6 << 20 and not (tmp_path / "data" / "tones").exists()
    stub.cut, stub.ranges = None, []
    assert download.find_or_download("tones", "data") == "data/tones"
    assert (
        stub.ranges == [None, f"bytes={6 << 20}-"]
        and (tmp_path / "data" / "tones" / "unpacked" / "notes.bin").stat().st_size == 8 << 20
    )


def test_another_file_since_then_begins_anew(stub: Stub, tones_zip: bytes, monkeypatch) -> None:
    naps(monkeypatch)
    stub.files["archive.zip"], stub.cut = tones_zip[::-1], 1000
    with pytest.raises(UserError):
        download.find_or_download("tones", "data")
    stub.files["archive.zip"], stub.cut, stub.etag = tones_zip, None, '"2"'
    assert download.find_or_download("tones", "data") == "data/tones"


def test_damage_and_malice(stub: Stub, tones_zip: bytes, tmp_path: Path) -> None:
    # in a clip's samples: stored, so that only the checksum tells
    place = tones_zip.index(b"audio_train") + 3000
    stub.files["archive.zip"] = tones_zip[:place] + bytes([tones_zip[place] ^ 1]) + tones_zip[place + 1 :]
    with pytest.raises(UserError, match="not a complete zip.*it is removed"):
        download.find_or_download("tones", "data")
    stub.files["archive.zip"] = tones_zip  # of the same size and date, but the damaged one is gone
    assert download.find_or_download("tones", "data") == "data/tones"
    # cut off, and no length that would tell
    stub.files["archive.zip"], stub.lengthless = tones_zip[:-200], True
    with pytest.raises(UserError, match="not a complete zip"):
        download.find_or_download("short", "data")
    stub.files["archive.zip"], stub.lengthless = zipped(tmp_path / "none", ("../../evil.txt", b"x")), False
    with pytest.raises(UserError, match="leads outside"):
        download.find_or_download("evil", "data")
    assert not list(tmp_path.rglob("evil.txt"))


def test_datasets_inner_zips_and_esc50(stub: Stub, tones_zip: bytes, tmp_path: Path, monkeypatch) -> None:
    from earshot.competition.load import load as load_competition

    made = tmp_path / "made"
    inner = zipped(made / "audio_train")
    stub.files["archive.zip"] = zipped(
        tmp_path / "none", ("train.csv", (made / "train.csv").read_bytes()), ("audio_train.zip", inner)
    )
    assert download.find_or_download("datasets/some-one/old-tones", "data") == "data/old-tones"
    assert stub.asked("DownloadDataset")[0]["ownerSlug"] == "some-one"
    assert len(load_competition("data/old-tones").clips) == 18 and not list(tmp_path.rglob("audio_train.zip"))
    stub.files["esc50.zip"] = tones_zip
    monkeypatch.setattr(download, "ESC50", "http://localhost/files/esc50.zip")
    stub.cut = 500
    with pytest.raises(TemporaryError, match="ESC-50 broke off after .* bytes: it starts again"):
        download.find_or_download("esc50", "data")
    stub.cut = None
    assert (
        download.find_or_download("esc50", "data") == "data/esc50"
        and (tmp_path / "data/esc50/unpacked/train.csv").is_file()
    )
    stub.errors["esc50.zip"] = (404, "gone")
    assert download.find_or_download("esc50", "data") == "data/esc50"  # it is here
    with pytest.raises(UserError, match="404"):
        download.find_or_download("esc50", "elsewhere")


def test_what_is_here_is_not_asked_for(stub: Stub, tones_zip: bytes, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.zip").write_bytes(tones_zip)
    make_competition(tmp_path / "data" / "a", train=2, subm=1)
    assert [
        download.find_or_download(name, "data")
        for name in (None, "sample", "made", "a", "b", "no/such/path", "x.zip")
    ] == [None, "sample", "made", "data/a", "data/b.zip", "no/such/path", "x.zip"]
    assert not stub.calls


FAILURES = [
    (401, "bad", "rejects the credentials.*settings"),
    (403, "must accept rules", "competitions/tones/rules"),
    (404, "none", "no competition tones"),
    (429, "slow down", "wait some minutes"),
    (503, "down", "internal error"),
    (400, "odd request", "Kaggle refuses .400.: odd request"),
]


@pytest.mark.parametrize("status, answer, expected", FAILURES)
def test_every_refusal_is_a_line(
    stub: Stub, status: int, answer: str, expected: str, monkeypatch, tmp_path
) -> None:
    naps(monkeypatch)
    (tmp_path / "s.csv").write_text("id,label\n1,a\n")
    flags = SubmitFlags(submit=True, competition="tones")
    for name, call in {
        "ListDataFiles": lambda: download.find_or_download("tones", "data"),
        "DownloadDataFiles": lambda: download.find_or_download("tones", "data"),
        "GetSubmissionLimits": lambda: submit.prepare_submission(flags, [], None, False),
        "CreateSubmission": lambda: submit.prepare_submission(flags, [], None, False)(tmp_path / "s.csv"),
        "StartSubmissionUpload": lambda: submit.prepare_submission(flags, [], None, False)(
            tmp_path / "s.csv"
        ),
        "ListSubmissions": lambda: submit.update_scores("tones", tmp_path / "none.csv"),
        "CreateCodeSubmission": lambda: submit.submit_notebook(
            SubmitFlags(True, competition="tones", kernel="me/book/2")
        ),
    }.items():
        stub.errors = {name: (status, answer)}
        with pytest.raises(UserError, match=expected) as caught:
            call()
        assert "\n" not in str(caught.value) and KEY not in str(caught.value)
    assert not (tmp_path / "ledger.csv").exists() and not (tmp_path / "submissions").exists()


def test_no_credentials_no_network_no_secrets(stub: Stub, monkeypatch, tmp_path: Path) -> None:
    """As separate processes: exit code 2, one line, and no credentials in it, even where an answer repeats
    them or VERBOSE is set."""
    from kaggle.api.kaggle_api_extended import KaggleApi

    monkeypatch.setenv("VERBOSE", "1")
    stub.errors["ListDataFiles"] = (403, f"{NAME} with {KEY} may not")
    done = script("get_features.py", "--competition", "tones", cwd=tmp_path, ok=None)
    assert "competitions/tones/rules" in refused(done) and "no folder or zip tones here" in refused(done)
    assert KEY not in done.stdout + done.stderr and "Authorization" not in done.stdout + done.stderr
    monkeypatch.setattr(KaggleApi, "args", ["--local", "--verbose"])
    assert client.connect().args == ["--local"]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="reach Kaggle.*switch Internet on"):
        download.find_or_download("tones", "data")
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(UserError, match="no Kaggle credentials found.*settings"):
        download.find_or_download("tones", "data")


def test_a_token_does_as_well(stub: Stub, monkeypatch) -> None:
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", KEY)
    assert client.get_user(client.connect()) == NAME


@pytest.fixture
def sent(stub: Stub, tmp_path: Path):
    """Submit a small file to `tones`, with flags."""

    def call(text: str = "id,label\n1,a\n", **flags) -> list[dict]:
        path = tmp_path / "out" / "submission.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        submit.prepare_submission(SubmitFlags(True, competition="tones", **flags), [], None, False)(path)
        return read_csv(path.parent / "ledger.csv")

    return call


def test_limits(stub: Stub, sent, monkeypatch, capsys) -> None:
    stub.limits = {"numToday": 5, "numTotal": 7, "numAllowedNow": 0, "limitedByTotal": False}
    with pytest.raises(UserError, match="none is left today: the limit resets at 0:00 UTC"):
        sent(yes=True)
    stub.limits = {"numToday": 0, "numTotal": 90, "numAllowedNow": 0, "limitedByTotal": True}
    with pytest.raises(UserError, match="none is left in this competition"):
        sent(yes=True)
    assert not stub.uploads
    stub.limits["numAllowedNow"] = 1
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    questions, answers = [], ["n", "y"]
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or answers.pop(0))
    with pytest.raises(UserError, match="nothing was sent"):
        sent()
    assert "last submission of the competition" in questions[0] and not stub.uploads
    assert len(sent()) == 1 and len(questions) == 2
    # of who is on no team yet
    stub.limits = {"numToday": 0, "numTotal": 0, "numAllowedNow": 0, "limitedByTotal": False}
    assert len(sent("id,label\n1,b\n")) == 2 and "known after the first" in capsys.readouterr().out


def test_a_failed_upload_submits_nothing(stub: Stub, sent, tmp_path: Path) -> None:
    stub.errors["PUT"] = (403, "expired")
    with pytest.raises(UserError, match="the upload of .* failed.*nothing was submitted"):
        sent()
    assert not stub.asked("CreateSubmission") and not (tmp_path / "out" / "ledger.csv").exists()


def test_scores_that_fail_or_come_late(stub: Stub, sent, tmp_path: Path, capsys) -> None:
    stub.pending = 99
    assert sent(wait=0.0005)[0]["public"] == "" and "no score after" in capsys.readouterr().out
    stub.pending, stub.scored = 0, {"status": "COMPLETE", "publicScore": "0.5", "privateScore": "0.4"}
    submit.update_scores(None, tmp_path / "out" / "ledger.csv")
    row = read_csv(tmp_path / "out" / "ledger.csv")[0]
    assert (row["public"], row["private"], row["ref"]) == (
        "0.5",
        "0.4",
        "70",
    ) and "70  2026-11-20 10:00" in capsys.readouterr().out
    stub.scored = {"status": "ERROR", "errorDescription": "column missing"}
    with pytest.raises(UserError, match="could not score submission 71: column missing"):
        sent("id,label\n1,b\n")
    assert len(read_csv(tmp_path / "out" / "ledger.csv")) == 2
    with pytest.raises(UserError, match="no submission sent from here"):
        submit.update_scores(None, tmp_path / "none.csv")


def test_a_code_competition(stub: Stub, tmp_path: Path) -> None:
    import predict

    predict.main(
        ["--submit", "--competition", "tones", "--kernel", "stubuser/solution/3", "-m", "from a notebook"]
    )
    assert stub.asked("CreateCodeSubmission") == [
        {
            "competitionName": "tones",
            "kernelOwner": "stubuser",
            "kernelSlug": "solution",
            "kernelVersion": 3,
            "fileName": "submission.csv",
            "submissionDescription": "from a notebook",
        }
    ]
    row = read_csv(tmp_path / "submissions" / "ledger.csv")[0]
    assert (row["file"], row["public"], row["message"]) == ("stubuser/solution/3", "0.913", "from a notebook")
    for flags in (
        ["--kernel", "solution/3", "--submit", "--competition", "tones"],
        ["--kernel", "a/b/3", "--submit"],
        ["--kernel", "a/b/3"],
    ):
        with pytest.raises(UserError, match="needs all of --submit"):
            predict.main(flags)
    with pytest.raises(UserError, match="this content was already submitted"):
        predict.main(["--submit", "--competition", "tones", "--kernel", "stubuser/solution/3"])
