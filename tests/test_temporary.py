"""Failures of the machine are not the user's and no file's: one line, exit code 75, and the same command
later makes the same files."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, make_competition, read_csv, script

from earshot.core import checksums, plain_pickle
from earshot.core.errors import TemporaryError
from earshot.features import decode_ahead

EXTRACT = ("--extractor", "logmel", "--n-mels", "16", "--device", "cpu", "--workers", "2")

# Put before the script as sitecustomize: some reads of some files fail, as a network's do. What is patched is
# Python's door to the system, as no file system that fails is at hand without rights.
FAILING = """
import errno, os
real = os.pread
def pread(fd, count, offset):
    name = os.readlink(f"/proc/self/fd/{{fd}}")
    if name.endswith({name!r}) and offset + count > {offset}:
        if {error} is None:
            return b""
        raise OSError({error}, os.strerror({error}))
    return real(fd, count, offset)
os.pread = pread
"""


# Looking at one clip, once shards are being made, waits for a file.
WAITING = """
import os, sys, time
real = os.stat
def stat(path, *more, **options):
    if str(path).endswith({name!r}) and "earshot.features.extract" in sys.modules:
        while not os.path.lexists({gone!r}):
            time.sleep(0.01)
    return real(path, *more, **options)
os.stat = stat
"""


def stopped(done: subprocess.CompletedProcess) -> str:
    """The one line of a failure of the machine's."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 75, (done.returncode, done.stdout, done.stderr)
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert lines[0].endswith("(temporary: nothing is lost, the same command continues)"), lines[0]
    return lines[0]


def made(folder: Path) -> dict[str, bytes]:
    """The files of a cache, less the index of the sources, which has times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".index.json", ".verified.json", ".lock")
    }


def extract(here: Path, data: Path, **more: object) -> subprocess.CompletedProcess:
    return script("get_features.py", "--competition", data, *EXTRACT, cwd=here, **more)


def failing(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, error: int | None, offset: int) -> None:
    """Make reads of a file fail in every process from here on."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(FAILING.format(name=name, error=error, offset=offset))
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> tuple[Path, Path]:
    """A competition whose audio lies below one folder, and what an undisturbed extraction makes of it."""
    here = tmp_path_factory.mktemp("drive")
    data = make_competition(here / "tones", train=40, subm=4, seconds=0.5)
    (data / "drive").mkdir()
    for name in ("audio_train", "audio_test"):
        os.rename(data / name, data / "drive" / name)
    for suffix in ("flac", "ogg", "mp3"):  # of each format one, long enough for several reads
        wave = np.random.default_rng(0).standard_normal(16000 * 20).astype(np.float32) * 0.1
        soundfile.write(data / "drive" / "audio_train" / f"long.{suffix}", wave, 16000)
        with open(data / "train.csv", "a") as file:
            file.write(f"long.{suffix},tone0,\n")
    extract(here, data)
    return here, data


def test_a_drive_that_drops_and_returns(drive, tmp_path, monkeypatch):
    """In the second shard: reading its first clip waits until the drive is away."""
    here, data = drive
    away, gone = data.with_name("away"), tmp_path / "gone"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WAITING.format(name="040.wav", gone=str(gone)))
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "site"))
        command = [sys.executable, str(ROOT / "get_features.py"), "--competition", str(data), *EXTRACT]
        running = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    shards, until = tmp_path / "data" / "tones" / "logmel" / "shards", time.monotonic() + 120
    while not list(shards.glob("*.json")) and running.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.rename(data / "drive", away)
    try:
        gone.touch()
        out, said = running.communicate(timeout=120)
    finally:
        os.rename(away, data / "drive")
    said = stopped(subprocess.CompletedProcess(command, running.returncode, out, said))
    assert "no such file, and it was there when the files were listed" in said and str(data / "drive") in said
    again = extract(tmp_path, data)
    assert "continuing: " in again.stdout
    assert made(tmp_path / "data") == made(here / "data")
    assert read_csv(tmp_path / "data" / "tones" / "logmel" / "bad_audio.csv") == []


@pytest.mark.slow
def test_a_drive_that_is_away_when_the_files_are_listed(drive, tmp_path):
    """Of a cache that was begun: its clips are not taken for others, and nothing is recorded."""
    here, data = drive
    script("get_features.py", "--competition", data, *EXTRACT, "--max-hours", "1e-9", cwd=tmp_path)
    for folder in (data / "drive", data / "drive" / "audio_test"):
        away = data.with_name("away")
        os.rename(folder, away)
        try:
            said = stopped(extract(tmp_path, data, ok=None))
        finally:
            os.rename(away, folder)
        assert "audio files that were read before are gone" in said and str(folder) in said
    os.rename(data / "drive" / "audio_test", data.with_name("away"))
    try:
        said = stopped(
            script("get_features.py", "--competition", data, *EXTRACT, "--cache", "b", cwd=tmp_path, ok=None)
        )
    finally:
        os.rename(data.with_name("away"), data / "drive" / "audio_test")
    assert "clips have no file" in said and not (tmp_path / "data" / "tones" / "b" / "manifest.json").exists()
    extract(tmp_path, data)
    assert made(tmp_path / "data") == made(here / "data")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(
    "error", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENOMEM, None]
)
def test_a_read_that_fails_is_no_short_clip(tmp_path, monkeypatch, suffix, error):
    """None: the file ends before the size that the system tells."""
    from earshot.audio import load, source

    path = tmp_path / f"clip.{suffix}"
    wave = np.random.default_rng(0).standard_normal(16000 * 5).astype(np.float32) * 0.1
    soundfile.write(path, wave, 16000)
    real, size = os.pread, path.stat().st_size

    def pread(fd: int, count: int, offset: int) -> bytes:
        if offset + count > size * 0.6:
            if error is None:
                return b""
            raise OSError(error, os.strerror(error))
        return real(fd, count, offset)

    monkeypatch.setattr(source.os, "pread", pread)
    for function, *options in ((load.read, 16000, load.AudioSettings()), (load.read_info,)):
        if function is load.read_info and suffix in ("wav", "flac"):
            continue  # their headers stand at the front
        with pytest.raises(TemporaryError, match=str(path)):
            function(path, *options)
    monkeypatch.setattr(source.os, "pread", real)
    assert len(load.read(path, 16000, load.AudioSettings()).wave) >= len(wave)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, error, offset",
    [("long.flac", errno.EIO, 100_000), ("long.mp3", errno.ESTALE, 50_000), ("005.wav", None, 0)],
)
def test_reads_that_fail_while_features_are_extracted(drive, tmp_path, monkeypatch, name, error, offset):
    here, data = drive
    with monkeypatch.context() as patch:
        failing(patch, tmp_path / "site", name, error, offset)
        said = stopped(extract(tmp_path, data, ok=None))
    assert name in said and (os.strerror(error) if error else "ends before its size") in said
    extract(tmp_path, data)
    assert made(tmp_path / "data") == made(here / "data")


def test_reads_that_fail_while_new_audio_is_classified(home, tmp_path, monkeypatch):
    folder = tmp_path / "new"
    folder.mkdir()
    for name in ("a.wav", "b.wav"):
        shutil.copy(home / "tone.wav", folder / name)
    args = ("--runs", "lin", "--runs-folder", home / "runs", "--audio", folder)
    with monkeypatch.context() as patch:
        failing(patch, tmp_path / "site", "b.wav", errno.EIO, 0)
        said = stopped(script("predict.py", *args, cwd=tmp_path, ok=None))
    assert "b.wav" in said and not (tmp_path / "submissions").exists()
    script("predict.py", *args, cwd=tmp_path)
    assert len(read_csv(tmp_path / "submissions" / "predictions.csv")) == 2


@pytest.mark.slow
def test_few_descriptors_are_enough(drive, tmp_path):
    here, data = drive
    done = subprocess.run(
        [sys.executable, str(ROOT / "get_features.py"), "--competition", str(data), *EXTRACT],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)),
    )
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "data") == made(here / "data")


def test_a_file_that_changed_behind_the_same_size_and_time(tmp_path):
    data = make_competition(tmp_path / "tones", train=4, subm=1, seconds=0.3)
    extract(tmp_path, data)
    assert "nothing to do" in extract(tmp_path, data).stdout
    path, other = data / "audio_train" / "000.wav", data / "audio_train" / "001.wav"
    about, content = os.stat(path), path.read_bytes()
    assert about.st_size == other.stat().st_size
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert os.stat(path).st_mtime_ns == about.st_mtime_ns
    done = extract(tmp_path, data, ok=None)
    assert done.returncode == 2 and "clips.train" in done.stderr
    path.write_bytes(content)
    os.utime(other)  # a false alarm costs nothing but reading
    assert "nothing to do" in extract(tmp_path, data).stdout


@pytest.mark.slow
def test_a_file_that_changes_while_features_are_extracted(tmp_path):
    """Both contents must not come into one cache; found as the shards are joined."""
    data = make_competition(tmp_path / "tones", train=4, subm=1, seconds=0.3)
    stop = ("--max-hours", "1e-9")
    script("get_features.py", "--competition", data, *EXTRACT, *stop, cwd=tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from earshot.features import extract
check = extract.check_unchanged
def change(plan):
    Path({str(data / "audio_train" / "000.wav")!r}).write_bytes(
        Path({str(data / "audio_train" / "001.wav")!r}).read_bytes()
    )
    check(plan)
extract.check_unchanged = change
import get_features
from earshot.core import cli
cli.run(get_features.main)
"""
    command = [sys.executable, "-c", code, "--competition", str(data), *EXTRACT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "were changed while features were extracted" in done.stderr
    assert not (tmp_path / "data" / "tones" / "logmel" / "train.pkl").exists()
    again = extract(tmp_path, data, ok=None)
    assert again.returncode == 2 and "clips.train" in again.stderr
    script("get_features.py", "--competition", data, *EXTRACT, "--fresh", cwd=tmp_path)


@pytest.mark.slow
def test_a_clip_that_was_taken_out_is_no_drive(tmp_path):
    """What is wrong is said as ever, and a cache without the clip leaves nothing behind."""
    data = make_competition(tmp_path / "tones", train=4, subm=1, seconds=0.3)
    extract(tmp_path, data)
    (data / "audio_train" / "000.wav").unlink()
    wrong = script(
        "get_features.py", "--competition", data, *EXTRACT, "--label-column", "nope", cwd=tmp_path, ok=2
    )
    assert "nope" in wrong.stderr
    other = extract(tmp_path, data, ok=None)
    assert other.returncode == 2 and "clips.train" in other.stderr
    script("get_features.py", "--competition", data, *EXTRACT, "--fresh", cwd=tmp_path)
    index = (tmp_path / "data" / "tones" / ".index.json").read_text()
    assert "001.wav" in index and "000.wav" not in index.replace("t000.wav", "")
    shutil.rmtree(data / "audio_train")
    (data / "audio_train").mkdir()
    said = stopped(extract(tmp_path, data, ok=None))
    assert "11 audio files that were read before are gone" in said
    fresh = script("get_features.py", "--competition", data, *EXTRACT, "--fresh", cwd=tmp_path, ok=2)
    assert "gone" not in fresh.stderr


def test_long_clips_are_decoded_ahead_one_at_a_time():
    """As many as `HELD` samples, whatever the number of threads; short ones a shard."""
    for samples, most in ((decode_ahead.HELD, 1), (decode_ahead.HELD // 4, 4), (1000, 32)):
        started = []

        def jobs(samples=samples, started=started):
            for number in range(100):
                future: Future = Future()
                future.set_result(decode_ahead.Decoded(np.zeros(samples, np.float32), 0.0))
                started.append(number)
                yield None, [future]

        ahead = decode_ahead.decode_in_order(jobs())
        waiting = [len(started) - number for number, _ in enumerate(ahead)]
        assert max(waiting[1:]) <= most + 1 and waiting[0] == 2 and len(started) == 100


@pytest.mark.slow
def test_links_that_lead_nowhere(tmp_path):
    """One is a bad file; twenty in a row, or one that led somewhere before, mean that a drive is away."""
    data = make_competition(tmp_path / "tones", train=10, subm=1, seconds=0.3)
    (tmp_path / "drive").mkdir()
    names = sorted(path.name for path in (data / "audio_train").iterdir())
    for name in names[:25]:
        os.rename(data / "audio_train" / name, tmp_path / "drive" / name)
        (data / "audio_train" / name).symlink_to(tmp_path / "drive" / name)
    (tmp_path / "drive" / names[0]).unlink()
    extract(tmp_path, data)
    bad = read_csv(tmp_path / "data" / "tones" / "logmel" / "bad_audio.csv")
    assert [(row["id"], row["reason"]) for row in bad] == [(names[0], "no such file")]
    os.rename(tmp_path / "drive", tmp_path / "away")
    assert names[1] in stopped(extract(tmp_path, data, ok=None))
    first = tmp_path / "first"
    first.mkdir()
    assert "19 files before it" in stopped(extract(first, data, ok=None))
    assert not list((first / "data").rglob("manifest.json"))
    os.rename(tmp_path / "away", tmp_path / "drive")
    assert "nothing to do" in extract(tmp_path, data).stdout


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_cache_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, code):
    checksums.write(tmp_path / "a.json", {"x": 1})
    (tmp_path / "a.pkl").write_bytes(b"x")

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("pathlib.Path.read_text", fail)
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(TemporaryError, match="a.json"):
        checksums.read(tmp_path / "a.json")
    with pytest.raises(TemporaryError, match="a.pkl"):
        plain_pickle.load(tmp_path / "a.pkl")
