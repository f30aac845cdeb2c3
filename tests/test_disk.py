"""A disk that is full, read-only, or too small; two processes at one place: one line, nothing half-written,
and it goes on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import FLAGS, ROOT, make_competition, refused, script
from test_checkpoints import contents, train
from test_damage import files

from earshot.core import disk_space
from earshot.core.config import TrainingFlags
from earshot.core.errors import UserError
from earshot.core.files import hold_lock, replace_file, write_text
from earshot.training import experiment


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_competition(tmp_path_factory.mktemp("data") / "tones", train=14, subm=4, seconds=0.3)


@pytest.mark.slow
def test_a_real_disk_that_fills_up_and_one_that_cannot_be_written(data, tmp_path):
    own = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    trial = [*own, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a small disk")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*own, sys.executable, str(ROOT / "tests" / "full_disk.py"), str(data)],
        cwd=tmp_path,
        env=env,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    full = list(map(int, done.stdout.split("full disks:")[1].split()))
    assert full[0] >= 3 and full[1] >= 3 and full[2] >= 1, "each stage met a full disk, at several places"


class Full:
    """os.fsync and os.replace, of which the nth call, and only that, finds the disk full."""

    def __init__(self, monkeypatch, nth: int):
        self.left = nth
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, call):
        def maybe(*args):
            self.left -= 1
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args)

        return maybe


def test_extraction_survives_a_full_disk_at_any_write(scripts, data, tmp_path, monkeypatch):
    scripts[0](["--competition", str(data), *FLAGS, "--out", str(tmp_path / "calm")])
    calm, nth, met = files(tmp_path / "calm" / "tones" / "logmel"), 0, 0
    while nth < 400:
        nth += 1 + nth // 6  # the first ones one by one, then in strides
        out = tmp_path / str(nth)
        with monkeypatch.context() as patch:
            disk = Full(patch, nth)
            try:
                scripts[0](["--competition", str(data), *FLAGS, "--out", str(out)])
            except OSError as error:
                assert error.errno == errno.ENOSPC and error.filename
                met += 1
        if disk.left > 0:
            break  # fewer writes than that
        assert not list(out.rglob("*.tmp"))
        scripts[0](["--competition", str(data), *FLAGS, "--out", str(out)])
        assert files(out / "tones" / "logmel") == calm
        shutil.rmtree(out)
    assert met >= 12


def test_training_survives_a_full_disk_at_any_write(tmp_path, monkeypatch):
    train(tmp_path / "calm", save_every=0)
    calm, nth, met = contents(tmp_path / "calm"), 0, 0
    while True:
        nth += 1 + nth // 5
        run = tmp_path / str(nth)
        with monkeypatch.context() as patch:
            disk = Full(patch, nth)
            try:
                train(run, save_every=0)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                met += 1
        if disk.left > 0:
            break
        train(run)
        assert contents(run) == calm and not [
            p for p in run.rglob("*") if p.suffix in (".tmp", ".new", ".old")
        ]
    assert met >= 15


def test_space_is_reckoned_before_a_stage_begins(scripts, data, tmp_path, monkeypatch, capsys):
    weights = 4 * 1_000_000
    assert experiment.estimate_bytes(1_000_000, 5, 5, TrainingFlags()) == (
        10 * weights + disk_space.SLACK,
        17 * weights + disk_space.SLACK,
    )
    assert experiment.estimate_bytes(1_000_000, 5, 0, TrainingFlags(ema=0.9))[1] == disk_space.SLACK
    usage = shutil.disk_usage(tmp_path)
    args = ["--competition", str(data), *FLAGS, "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        with pytest.raises(
            UserError, match=r"logmel needs about \d+ MB more on the disk and 1 MB is free: make space"
        ):
            scripts[0](args)
        assert not list((tmp_path / "tones" / "logmel" / "shards").glob("*"))
    scripts[0](args)
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("disk: about "))
    took = sum(len(data) for data in files(tmp_path / "tones" / "logmel").values())
    assert took <= float(line.split()[2]) * 1e6 + 1e6 and took > 50_000


def test_two_writers_of_one_file_take_turns(tmp_path):
    order = []

    def slow() -> None:
        with replace_file(tmp_path / "a") as file:
            order.append("slow begins")
            file.write(b"slow " * 1000)
            time.sleep(0.3)
            order.append("slow ends")

    thread = threading.Thread(target=slow)
    thread.start()
    while not order:
        time.sleep(0.01)
    write_text(tmp_path / "a", "quick")
    order.append("quick ends")
    thread.join()
    assert order == ["slow begins", "slow ends", "quick ends"]
    assert (tmp_path / "a").read_text() == "quick" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_second_process_is_told_or_waits(scripts, data, tmp_path):
    scripts[0](["--competition", str(data), *FLAGS, "--out", str(tmp_path / "data")])
    with (
        hold_lock(tmp_path / "data" / "tones" / "logmel", "the cache"),
        hold_lock(tmp_path / "runs" / "r", "the run"),
    ):
        before = files(tmp_path)
        line = refused(script("get_features.py", "--competition", data, *FLAGS, cwd=tmp_path, ok=None))
        assert "another process is working on the cache data/tones/logmel" in line
        line = refused(script("train.py", "--name", "r", "--recipe", "linear", cwd=tmp_path, ok=None))
        assert "another process is working on the run runs/r" in line
        assert {k: v for k, v in files(tmp_path).items() if k in before} == before


def test_two_processes_build_the_sample_at_once(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from earshot.competition.load import load; "
        "print(len(load('sample').clips))"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] == "400\n" and not list(tmp_path.rglob("*.tmp")) + list(
        tmp_path.rglob("*.partial")
    )
