"""What the tests share: a small competition of tones, the scripts run as a user runs them, the shared real
data."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import layout_files
import numpy as np
import pytest
import soundfile
from kaggle_stub import stub  # noqa: F401 - a fixture

# In a shell's background it is ignored, which the scripts would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
EFFICIENTAT = SHARED / "weights" / "efficientat" / "mn04_as_mAP_432.pt"
# The environment of simulated clusters: the same everywhere, as Ray keeps the first token of a process.
RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Of the caches that are damaged, stopped and attached.
FLAGS = ("--extractor", "logmel", "--n-mels", "16", "--augment", "1", "--device", "cpu", "--workers", "1")


def script(name: str, *args: object, cwd: Path, ok: int | None = 0) -> subprocess.CompletedProcess:
    """Run one of the three scripts; its outputs land in `cwd`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / name), *map(str, args)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ok is None or done.returncode == ok, (
        f"{name} {args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done


def refused(done: subprocess.CompletedProcess) -> str:
    """The one line of a refusal; fails unless it is one line, exit code 2 and no traceback."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def tone(kind: int, seed: int, rate: int = 16000, seconds: float = 1.0) -> np.ndarray:
    """(samples,) a noisy tone whose pitch says its class."""
    rng = np.random.default_rng([kind, seed])
    time = np.arange(int(rate * seconds)) / rate
    pitch = 300 * 2.2**kind * rng.uniform(0.9, 1.1)
    return (
        0.3 * np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6)) + 0.1 * rng.standard_normal(len(time))
    ).astype(np.float32)


def make_competition(
    folder: Path, classes: int = 3, train: int = 10, subm: int = 4, seconds: float = 1.0
) -> Path:
    """A Kaggle layout: train.csv (fname,label,group), audio_train/, audio_test/, a shuffled
    sample_submission.csv."""
    names = [f"tone{kind}" for kind in range(classes)]
    for part in ("audio_train", "audio_test"):
        (folder / part).mkdir(parents=True)
    rows, ids = [], []
    for index in range(classes * train):
        kind, number = index % classes, index // classes
        soundfile.write(
            folder / "audio_train" / f"{index:03d}.wav", tone(kind, number, seconds=seconds), 16000
        )
        rows.append([f"{index:03d}.wav", names[kind], f"g{index // (2 * classes)}-{kind}"])
    for index in range(classes * subm):
        soundfile.write(
            folder / "audio_test" / f"t{index:03d}.wav",
            tone(index % classes, 1000 + index, seconds=seconds),
            16000,
        )
        ids.append(f"t{index:03d}.wav")
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fname", "label", "group"], *rows])
    shuffled = np.random.default_rng(0).permutation(ids)
    with open(folder / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fname", "label"], *([i, names[0]] for i in shuffled)])
    return folder


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """A small competition in tmp_path/tones."""
    return make_competition(tmp_path / "tones")


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Three training clips and two to submit, in tmp_path/birds, each csv in an order of its own."""
    root = tmp_path / "birds"
    layout_files.files(
        root,
        "audio_train/b.wav",
        "audio_train/a.wav",
        "audio_train/c.wav",
        "audio_test/y.wav",
        "audio_test/x.wav",
    )
    layout_files.csv(root / "train.csv", "fname,label b.wav,owl a.wav,jay c.wav,owl")
    layout_files.csv(root / "sample_submission.csv", "fname,label y.wav,jay x.wav,jay")
    return root


@pytest.fixture(scope="session")
def esc10() -> Path:
    """The real recordings, where they are at hand."""
    if not (SHARED / "esc10" / "meta").is_dir():
        pytest.skip(f"the shared ESC-10 recordings are not at {SHARED}")
    return SHARED / "esc10"


@pytest.fixture(scope="session")
def efficientat_weights() -> Path:
    """EfficientAT's real weights, where they are at hand."""
    if not EFFICIENTAT.is_file():
        pytest.skip(f"EfficientAT's weights are not at {EFFICIENTAT}")
    return EFFICIENTAT


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folders(family) is a folder of an encoder's tiny weights, made once."""
    import tiny_encoders

    top = tmp_path_factory.mktemp("encoders")

    def get(family: str) -> Path:
        if not (top / family).exists():
            tiny_encoders.save(family, top / family)
        return top / family

    return get


@pytest.fixture(scope="module")
def scripts():
    """The two stages' `main`, in this process."""
    sys.path.insert(0, str(ROOT))
    import get_features
    import train

    yield get_features.main, train.main
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A competition of 2 shards of training clips."""
    return make_competition(tmp_path_factory.mktemp("data") / "tones", train=14, subm=4, seconds=0.3)


@pytest.fixture(scope="module")
def calm(scripts, data, tmp_path_factory) -> Path:
    """A finished cache."""
    out = tmp_path_factory.mktemp("calm")
    scripts[0](["--competition", str(data), *FLAGS, "--out", str(out)])
    return out / "tones" / "logmel"


@pytest.fixture(scope="module")
def begun(scripts, data, tmp_path_factory, calm) -> Path:
    """A cache whose extraction was stopped before the end: three shards."""
    out = tmp_path_factory.mktemp("begun")
    for _ in range(3):
        with pytest.raises(SystemExit):
            scripts[0](["--competition", str(data), *FLAGS, "--out", str(out), "--max-hours", "0.0000001"])
    found = out / "tones" / "logmel"
    assert len(list((found / "shards").glob("*.json"))) == 3 and not (found / "train.pkl").exists()
    return found


@pytest.fixture
def attached(tmp_path, monkeypatch) -> Path:
    """What earlier sessions left, as Kaggle attaches it."""
    folder = tmp_path / "attached"
    folder.mkdir()
    monkeypatch.setenv("EARSHOT_ATTACHED", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs cnn and lin and their kept blend both, and clips: tone.wav, long.wav and bad
    ones."""
    import get_features
    import predict
    import train

    home = tmp_path_factory.mktemp("page")
    make_competition(home / "tones", subm=1)
    with contextlib.chdir(home):
        get_features.main(["--competition", "tones", "--extractor", "logmel"])
        small = ["--folds", "2", "--no-report", "--lr", "1e-2"]
        shape = ["--head.channels", "[8, 16]", "--head.blocks", "[1, 1]", "--head.standardise", "true"]
        train.main(
            ["--head", "audio_cnn", *shape, "--epochs", "20", "--batch-size", "5", "--name", "cnn", *small]
        )
        train.main(["--head", "linear", "--epochs", "1", "--name", "lin", *small[:-1], "1e-9"])
        predict.main(["--runs", "cnn", "lin", "--blend", "pool", "--name", "both"])
    (home / "runs" / "cnn" / "report.html").write_text(
        "<h1>what was reached</h1><script>document.title='ran'</script>"
    )
    soundfile.write(home / "tone.wav", tone(2, 77), 16000)
    soundfile.write(home / "long.wav", np.concatenate([tone(kind, 78) for kind in (0, 1, 2)]), 16000)
    soundfile.write(home / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(home / "hours.flac", np.zeros(8000 * 21), 8000)
    (home / "bad.wav").write_bytes(b"<b>no audio</b>" * 99)
    (home / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")
    (home / "empty.wav").write_bytes(b"")
    return home


@pytest.fixture(scope="session")
def opened(home: Path) -> dict:
    """The run cnn and the blend both, opened: name -> `Hearing`."""
    from earshot.core import device
    from earshot.prediction import members, predictor

    with contextlib.chdir(home):
        return {
            name: predictor.Predictor(members.open_members((name,), "runs")[0], device.choose("cpu"))
            for name in ("cnn", "both")
        }


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A real browser."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (apt install chromium)")
    sync = pytest.importorskip("playwright.sync_api", reason="no playwright here (pip install playwright)")
    with sync.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=BROWSER_FLAGS)
        yield browser
        browser.close()


def read_csv(path: Path) -> list[dict[str, str]]:
    """A csv's rows as dicts."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
