"""`import earshot` as a notebook uses it: from audio to predictions, the same files as the scripts write."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, make_competition, script

import earshot

GUIDE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
HEAD = {"epochs": 4, "folds": 2, "report": False, "device": "cpu", "verbose": False}
INTERRUPTED = """
import earshot
settings = {"recipe": "linear", "epochs": 150, "folds": 2, "report": False, "device": "cpu"}
try:
    earshot.train("data/tones/logmel", name="stopped", **settings)
except KeyboardInterrupt as stopped:
    print("stopped:", stopped)
again = earshot.train("data/tones/logmel", name="stopped", **settings)
calm = earshot.train("data/tones/logmel", name="calm", **settings, verbose=False)
print("same:", again.oof().equals(calm.oof()) and again.scores.equals(calm.scores))
"""
LOGMEL = {"extractor": "logmel", "n_mels": 16, "device": "cpu", "workers": 1, "verbose": False}


def python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run code in a new process, in a folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=400
    )


def read(folder: Path, *left_out: str) -> dict[str, bytes]:
    """The content of the files below a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in left_out]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != ".lock"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tones/, what the API made in api/, and what the scripts made in scripts/."""
    home = tmp_path_factory.mktemp("home")
    make_competition(home / "tones", train=8, subm=2, seconds=0.4)
    for name in ("api", "scripts"):
        (home / name).mkdir()
    (home / "api" / "bad.wav").write_bytes(b"no audio at all" * 9)
    with contextlib.chdir(home / "api"):
        cache = earshot.extract(home / "tones", **LOGMEL)
        run = earshot.train(cache, recipe="linear", name="one", **HEAD)
        run.predict(home / "tones" / "audio_test", verbose=False)
    flags = ["--extractor", "logmel", "--n-mels", 16, "--device", "cpu", "--workers", 1]
    script("get_features.py", "--competition", home / "tones", *flags, cwd=home / "scripts")
    small = ["--epochs", 4, "--folds", 2, "--no-report", "--device", "cpu"]
    script("train.py", "--recipe", "linear", "--name", "one", *small, cwd=home / "scripts")
    new = home / "tones" / "audio_test"
    script("predict.py", "--runs", "one", "--audio", new, "--device", "cpu", cwd=home / "scripts")
    return home


@pytest.fixture
def api(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the API, as the current one."""
    monkeypatch.chdir(home / "api")
    return home / "api"


def test_import_is_instant() -> None:
    code = "import sys, earshot; print(sorted({'numpy', 'torch', 'pandas', 'yaml'} & set(sys.modules)))"
    assert python(code, ROOT).stdout == "[]\n"
    assert set(earshot.__all__) <= set(dir(earshot))
    with pytest.raises(AttributeError, match="no attribute 'extrakt'"):
        earshot.extrakt  # noqa: B018


def test_the_same_files_as_the_scripts(home: Path) -> None:
    api, scripts = home / "api", home / "scripts"
    assert read(api / "data" / "tones" / "logmel") == read(scripts / "data" / "tones" / "logmel")
    for name in ("oof.csv", "oof_last.csv", "scores.json", "config.yaml"):
        mine, theirs = (part / "runs" / "one" / name for part in (api, scripts))
        assert mine.read_bytes() == theirs.read_bytes(), name
    assert read(api / "submissions", "ledger.csv") == read(
        scripts / "submissions", "ledger.csv", "predictions.csv"
    )


def test_tables(api: Path) -> None:
    run = earshot.load("one")
    assert (run.folder, run.metric, run.multilabel) == (Path("runs/one"), "f1_macro", False)
    oof = run.oof()
    assert list(oof) == ["id", "fold", "label", *run.classes] and len(oof) == 24
    assert np.allclose(oof[run.classes].sum(axis=1), 1)
    kept = pd.read_csv("runs/one/oof_last.csv")
    assert np.allclose(oof[run.classes], kept[run.classes]) and list(oof.label) == list(kept.label)
    best = pd.read_csv("runs/one/oof.csv")
    assert np.allclose(run.oof("best")[run.classes], best[run.classes])
    scores = json.loads(Path("runs/one/scores.json").read_text())
    assert list(run.scores.index) == ["last", "best"]
    assert run.scores.loc["last", "f1_macro"] == scores["last"]["f1_macro"]
    right = (oof[run.classes].idxmax(axis=1) == oof.label).mean()
    assert run.scores.loc["last", "accuracy"] == pytest.approx(right)
    with pytest.raises(earshot.UserError, match='kind is \'first\', but must be "last" or "best"'):
        run.oof("first")  # type: ignore[arg-type]


def test_predict(home: Path, api: Path, capsys: pytest.CaptureFixture) -> None:
    run = earshot.load(Path("runs") / "one")
    table = run.predict(home / "tones" / "audio_test")
    theirs = pd.read_csv(home / "scripts" / "submissions" / "predictions.csv")
    assert list(table) == ["file", "label", "problem", *run.classes]
    assert list(table.file) == list(theirs.iloc[:, 0]) and list(table.label) == list(theirs.iloc[:, 1])
    assert list(table[run.classes].idxmax(axis=1)) == list(table.label) and set(table.problem) == {""}
    two = run.predict([home / "tones" / "audio_test" / "t001.wav", "bad.wav"])
    assert np.allclose(two.loc[0, run.classes].astype(float), table.loc[1, run.classes].astype(float))
    assert pd.isna(two.loc[1, "label"]) and two.loc[1, "problem"]
    assert np.allclose(two.loc[1, run.classes].astype(float), 1 / 3)
    capsys.readouterr()
    run.predict(str(home / "tones" / "audio_train" / "000.wav"))
    assert "warning: 1 of 1 files" in capsys.readouterr().out
    with pytest.raises(earshot.UserError, match=r"no file or folder nowhere\.wav"):
        run.predict("nowhere.wav")


def test_the_submission(api: Path, tmp_path: Path) -> None:
    table = earshot.load("one").write_submission(tmp_path / "mine.csv", verbose=False)
    theirs = api.parent / "scripts" / "submissions" / "submission.csv"
    assert (tmp_path / "mine.csv").read_bytes() == theirs.read_bytes()
    assert len(table) == 6 and list(table) == ["fname", "label"]


def test_the_same_call_does_nothing_more(api: Path, capsys: pytest.CaptureFixture) -> None:
    names = ("oof.csv", "oof_last.csv", "scores.json", "config.yaml", "metrics.csv")
    before = [(api / "runs" / "one" / name).read_bytes() for name in names]
    cache = earshot.extract(api.parent / "tones", **{**LOGMEL, "verbose": True})
    assert "nothing to do" in capsys.readouterr().out
    run = earshot.train(cache, recipe="linear", name="one", **{**HEAD, "verbose": True})
    printed = capsys.readouterr().out
    assert "finished already: fold 0, 1" in printed and "next: python" not in printed
    assert [(api / "runs" / "one" / name).read_bytes() for name in names] == before
    assert earshot.extract(api.parent / "tones", **LOGMEL).fingerprint == cache.fingerprint
    assert capsys.readouterr().out == ""  # verbose=False
    assert os.fspath(run) == "runs/one" and "linear on mel" in repr(run)
    assert "24 train, 6 subm; 3 classes" in repr(cache)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epoch": 3}, "earshot.train has no setting epoch (did you mean epochs?)"),
        ({"n_mels": 3}, "earshot.train has no setting n_mels: choose among batch_size, "),
        ({"epochs": "many"}, "earshot.train: epochs is 'many', but must be int"),
        ({"epochs": 0}, "--epochs 0: has to be at least 1"),
        ({"head": "nothing"}, "there is no head called 'nothing'; the heads are "),
        ({"head": {"dropuot": 0.1}}, "linear has no option dropuot; its options are dropout"),
        ({"recipe": "liner"}, "no recipe named liner (did you mean linear?)"),
        ({"features": "nowhere"}, "nowhere is not a cache"),
        ({"recipe": "auto", "head": "mlp"}, 'recipe="auto" chooses the head itself'),
    ],
)
def test_mistakes(api: Path, settings: dict, message: str) -> None:
    call = {"features": "data/tones/logmel", "recipe": "linear", **settings}
    with pytest.raises(earshot.UserError) as caught:
        earshot.train(**call, verbose=False)
    assert message in str(caught.value)


def test_mistakes_in_extract(api: Path) -> None:
    with pytest.raises(earshot.UserError, match=r"extract has no setting n_mel \(did you mean n_mels\?\)"):
        earshot.extract(api.parent / "tones", extractor="logmel", n_mel=3)
    with pytest.raises(earshot.UserError, match="no extractor named 'logmell'"):
        earshot.extract(api.parent / "tones", extractor="logmell")
    with pytest.raises(earshot.UserError, match="not there|no run"):
        earshot.load("nothing")


def test_values_from_numpy_and_head_options(api: Path) -> None:
    head = {"name": "audio_cnn", "channels": (8, 16), "blocks": [1, 1], "standardise": True, "dropout": 0.25}
    run = earshot.train(
        "data/tones/logmel", head=head, name="cnn", lr=np.float32(0.5), fold=np.int64(1), **HEAD
    )
    record = json.loads(json.dumps(run._member.run.config["record"]))
    assert record["training"]["lr"] == 0.5 and record["head"]["channels"] == [8, 16]
    assert set(run.oof().fold) == {1}


def test_for_a_run_and_its_blend(api: Path, capsys: pytest.CaptureFixture) -> None:
    one = earshot.load("one")
    cache = earshot.extract(api.parent / "tones", for_run=one, device="cpu", verbose=False)
    assert set(cache.manifest["splits"]) == {"subm"}
    made = one.write_submission(api / "again.csv", features=cache, verbose=False)
    assert made.equals(pd.read_csv(api.parent / "scripts" / "submissions" / "submission.csv"))
    earshot.train("data/tones/logmel", recipe="linear", name="two", **{**HEAD, "epochs": 2})
    script("predict.py", "--runs", "one", "two", "--blend", "pool", "--name", "both", "--no-report", cwd=api)
    both = earshot.load("both")
    assert list(both.scores.index) == ["last"] and len(both.oof()) == 24
    assert list(both.predict(api.parent / "tones" / "audio_test", verbose=False)) == [
        *("file", "label", "problem"),
        *both.classes,
    ]
    with pytest.raises(earshot.UserError, match="cross-fitted"):
        both.oof("best")


def test_the_time_limit(api: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = earshot.load("one")
    monkeypatch.chdir(tmp_path)
    stops, tones = 0, api.parent / "tones"
    while True:
        try:
            cache = earshot.extract(tones, **LOGMEL, max_hours=1e-7)
            run = earshot.train(cache, recipe="linear", name="one", **HEAD, max_hours=1e-7)
            break
        except earshot.TimeLimitReached as stopped:
            assert str(stopped).endswith("max_hours=1e-07: the same call continues")
            stops += 1
    assert stops > 2
    assert read(tmp_path / "data" / "tones" / "logmel") == read(api / "data" / "tones" / "logmel")
    assert (run.folder / "oof_last.csv").read_bytes() == (api / calm.folder / "oof_last.csv").read_bytes()


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_call_continues(api: Path, tmp_path: Path) -> None:
    shutil.copytree(api / "data", tmp_path / "data")
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", INTERRUPTED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "runs" / "stopped" / "fold_0" / "last").is_dir():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=300)[0]
    assert "stopped: what was finished is kept: the same call continues\n" in printed
    assert process.returncode == 0 and "same: True" in printed, printed


def test_not_in_the_main_thread(api: Path) -> None:
    found: list[object] = []

    def call() -> None:
        found.append(earshot.train("data/tones/logmel", recipe="linear", name="one", **HEAD))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert len(found) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_two_devices_from_a_program_without_a_guard(api: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import earshot\n"
        "print('once')\n"
        f"cache = earshot.extract({str(api.parent / 'tones')!r}, extractor='logmel', device='cpu,cpu')\n"
        "earshot.train(cache, recipe='linear', folds=2, epochs=1, device='cpu,cpu', report=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("once") == 1 and done.stdout.count("CPU, 2 processes") == 2


@pytest.mark.slow
def test_the_guide(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    done = python("\n".join(blocks), tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(blocks) >= 5 and "Traceback" not in done.stderr
    for line in re.findall(r"```text\n(.*?)```", GUIDE, re.DOTALL)[-1].splitlines():
        assert line in done.stdout  # the message of the last block
    for name in re.findall(r"earshot\.(\w+)", GUIDE):
        assert hasattr(earshot, name), name
