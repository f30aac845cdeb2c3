"""Several devices, here several processes on the CPU: the same bytes as one, and no way to stop them leaves
one behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import ROOT, make_competition, refused, script
from test_restart import contents

import train
from earshot.core import device, memory, worker_pool
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.features import extract
from earshot.training import precision, progress

EXTRACT = ("--extractor", "logmel", "--n-mels", "96", "--hop-length", "64", "--workers", "2")
TRAIN = (
    "--head",
    "audio_cnn",
    "--head.channels",
    "[16, 32]",
    "--head.blocks",
    "[1, 1]",
    "--head.dropout",
    "0.5",
    "--epochs",
    "6",
    "--folds",
    "3",
    "--ema",
    "0.9",
    "--mixup",
    "0.4",
    "--time-mask",
    "9",
    "--batch-size",
    "16",
    "--precision",
    "fp32",  # where bf16 is hardly faster, timing decides otherwise from run to run
    "--name",
    "r",
)
RESULTS = (
    "oof*.csv",
    "fold_*/best/*",
    "fold_*/last/model.safetensors",
    "report_*.txt",
    "fold_*/valid_*.npy",
    "scores.json",
    "config.yaml",
)
NEVER = "0.0000001"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    # 270 clips, 9 shards
    found = make_competition(tmp_path_factory.mktemp("data") / "tones", train=70, subm=20, seconds=0.5)
    soundfile.write(found / "audio_train" / "003.wav", torch.zeros(8000).numpy(), 16000)
    (found / "audio_test" / "t004.wav").write_bytes(b"no audio")
    return found


@pytest.fixture(scope="module")
def calm(data, tmp_path_factory) -> Path:
    """A cache with copies, and a run, made by one process each."""
    folder = tmp_path_factory.mktemp("calm")
    script(
        "get_features.py", "--competition", data, *EXTRACT, "--augment", "1", "--device", "cpu", cwd=folder
    )
    script("train.py", *TRAIN, "--device", "cpu", cwd=folder)
    return folder


def session(leader: int) -> list[int]:
    """The processes of a session that are alive, multiprocessing's helper aside."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            about = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z" and b"resource_tracker" not in about:
            found.append(int(stat.parent.name))
    return found


def stop_when(
    ready: Callable[[], bool], stop: Callable[[int, list[int]], None], name: str, *args: object, cwd: Path
) -> tuple[int, str, str]:
    """Run a script, do something to it as soon as `ready`, and see that no process of it is left; exit code
    and outputs."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(ROOT / name), *map(str, args)],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        limit = time.monotonic() + 120
        while not ready() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        assert process.poll() is None, f"{name} ended before it could be stopped: {process.communicate()}"
        stop(process.pid, [pid for pid in session(process.pid) if pid != process.pid])
        outputs = process.communicate(timeout=120)
    limit = time.monotonic() + 20
    while session(process.pid) and time.monotonic() < limit:
        time.sleep(0.005)
    assert not session(process.pid), "a worker is left behind"
    return process.returncode, *outputs


def kill(parent: int, workers: list[int]) -> None:
    assert len(workers) == 2
    os.kill(parent, signal.SIGKILL)


def terminate(parent: int, workers: list[int]) -> None:
    os.killpg(parent, signal.SIGTERM)  # as `timeout` and Slurm do


def interrupt(parent: int, workers: list[int]) -> None:
    os.killpg(parent, signal.SIGINT)  # as a terminal does


def kill_a_worker(parent: int, workers: list[int]) -> None:
    os.kill(workers[0], signal.SIGKILL)


@pytest.mark.slow
def test_extraction_is_the_same_and_survives_being_stopped(data, calm, tmp_path):
    args = ("get_features.py", "--competition", data, *EXTRACT, "--augment", "1", "--device", "cpu,cpu")
    shards = tmp_path / "data" / "tones" / "logmel" / "shards"

    def after(count: int) -> Callable[[], bool]:
        before = len(list(shards.glob("*.json")))
        return lambda: len(list(shards.glob("*.json"))) >= before + count

    assert stop_when(after(2), kill, *args, cwd=tmp_path)[0] == -signal.SIGKILL
    code, _, said = stop_when(after(1), terminate, *args, cwd=tmp_path)
    assert (
        code == 143 and "Traceback" not in said and said.count("stopped:") == 1 and "--device cpu,cpu" in said
    )
    done = script(*args, cwd=tmp_path)
    assert "continuing: " in done.stdout and "CPU, 2 processes of 1 thread" in done.stdout
    one, two = (contents(at / "data" / "tones" / "logmel", "*.*") for at in (calm, tmp_path))
    assert one == two and {"train.pkl", "subm.pkl", "augmented.pkl", "bad_audio.csv"} <= set(one)


@pytest.mark.slow
def test_folds_side_by_side_are_the_same_and_survive_being_stopped(calm, tmp_path):
    (tmp_path / "data").symlink_to(calm / "data")
    args, run = ("train.py", *TRAIN, "--device", "cpu,cpu"), tmp_path / "runs" / "r"
    every = (*args, "--save-every", "0")

    def saved() -> Callable[[], bool]:
        """Have both folds been saved since now?"""
        now = time.time_ns()
        files = [run / f"fold_{fold}" / "last" / "optimizer.safetensors" for fold in (0, 1)]
        return lambda: all(file.exists() and file.stat().st_mtime_ns > now for file in files)

    assert stop_when(saved(), kill, *every, cwd=tmp_path)[0] == -signal.SIGKILL
    code, _, said = stop_when(saved(), interrupt, *every, cwd=tmp_path)
    assert code == 130 and "Traceback" not in said and said.count("stopped:") == 1
    code, _, said = stop_when(saved(), kill_a_worker, *every, cwd=tmp_path)
    assert (
        code == 75
        and "died (signal 9, out of memory?) (temporary: nothing is lost" in said
        and "Traceback" not in said
    )
    said = script(*args, cwd=tmp_path).stdout
    assert {f"fold {n}/3" for n in range(3)} <= {line[:8] for line in said.splitlines() if "epoch" in line}
    log = [
        line
        for line in (run / "training_log.txt").read_text().splitlines()
        if "  epoch " in line or "continues" in line
    ]
    assert len(log) > 3 and all(
        re.match(r"fold [012]/3  (epoch [1-6]/6  |continues after epoch )", line) for line in log
    ), log
    one, two = contents(calm / "runs" / "r", *RESULTS), contents(run, *RESULTS)
    assert (
        one.pop("config.yaml").count(b"features_folder")
        == two.pop("config.yaml").count(b"features_folder")
        == 1
    )
    assert one == two and len(one) == 20
    one, two = ((at / "submissions" / "submission.csv").read_bytes() for at in (calm, tmp_path))
    assert one == two
    rows = [
        [line.split(",")[:4] for line in (at / "metrics.csv").read_text().splitlines()]
        for at in (calm / "runs" / "r", run)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 19


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_a_cpu_trains_long_runs_side_by_side_where_memory_allows(
    calm, tmp_path, capsys, monkeypatch, request
):
    cache, run = calm / "data" / "tones" / "logmel", tmp_path / "runs" / "r"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(precision, "WORTH_PROCESSES", 0)
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)
    args = [*TRAIN, "--features", str(cache), "--no-report"]
    with pytest.raises(SystemExit):
        train.main([*args, "--max-hours", NEVER])  # two folds begin, and the third is for later
    said = capsys.readouterr().out
    assert "CPU, 2 processes of 1 thread" in said and "fold 3/3" not in said
    with monkeypatch.context() as less:  # a continued run has its threads, however little memory is left
        less.setattr(memory, "get_free", lambda device: 3 << 30)
        train.main(args)
    said = capsys.readouterr().out
    assert "CPU, 1 process of 1 thread" in said and "threads:\n  cpu: 1" in (run / "config.yaml").read_text()
    one, two = (
        contents(at, "oof*.csv", "fold_*/last/model.safetensors") for at in (calm / "runs" / "r", run)
    )
    assert one == two and len(one) == 5
    monkeypatch.setattr(memory, "get_free", lambda device: 3 << 30)
    train.main([*args, "--fresh", "--epochs", "1", "--name", "scarce"])
    assert "device: CPU, 2 threads" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    train.main([*args, "--epochs", "1", "--name", "short"])  # over before a process has started
    assert "processes of" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_run_without_its_predictions_makes_them(calm, tmp_path):
    """As after a kill right before them: there is nothing to train, and still something to do."""
    (tmp_path / "data").symlink_to(calm / "data")
    shutil.copytree(calm / "runs", tmp_path / "runs")
    for path in (tmp_path / "runs" / "r").glob("fold_[01]/valid_*"):
        path.unlink()
    stopped = script("train.py", *TRAIN, "--device", "cpu,cpu", "--max-hours", NEVER, cwd=tmp_path).stdout
    # two folds, a process each: nothing is left to do when the time is looked at
    assert "finished already" in stopped
    script("train.py", *TRAIN, "--device", "cpu,cpu", cwd=tmp_path)
    assert contents(calm / "runs" / "r", *RESULTS[:-1]) == contents(tmp_path / "runs" / "r", *RESULTS[:-1])


def test_what_a_worker_refuses_is_one_line(data, calm, tmp_path):
    bad = ("--extractor", "logmel", "--f-min", "7900", "--f-max", "100", "--device", "cpu,cpu")
    refused(script("get_features.py", "--competition", data, *bad, cwd=tmp_path, ok=None))
    assert not list(tmp_path.rglob("shards"))
    line = refused(
        script(
            "train.py",
            *TRAIN,
            "--features",
            calm / "data" / "tones" / "logmel",
            "--device",
            "cpu,cpu",
            "--lr",
            "1e30",
            cwd=tmp_path,
            ok=None,
        )
    )
    assert (
        "the loss is not a number" in line
        or "the prediction is not a number" in line
        or "weights became NaN or infinite" in line
    )


def test_devices_are_chosen_by_name(monkeypatch):
    assert [one.name for one in worker_pool.choose("cpu,cpu")] == ["cpu", "cpu"]
    assert len(worker_pool.choose("cpu")) == 1
    kinds = {"auto": "bf16", "cuda:0": "bf16", "cuda:1": "fp16", "cuda:2": "bf16", "cpu": "fp32"}

    def pick(name: str, precision: str) -> Device:
        if name == "cuda:3":
            raise UserError("no kernels for it")
        return Device("cuda:0" if name == "auto" else name, kinds[name], name)

    monkeypatch.setattr(device, "choose", pick)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [one.name for one in worker_pool.choose()] == ["cuda:0", "cuda:2"]  # those as good as the first
    assert [(one.name, one.precision) for one in worker_pool.choose("cuda:1, cuda:2")] == [
        ("cuda:1", "fp16"),
        ("cuda:2", "fp16"),
    ]
    assert "2 devices, a process each: cuda:0" in worker_pool.describe_devices(worker_pool.choose())
    for name, words in (
        ("cuda:1,cuda:1", "twice"),
        ("cpu,cuda:1", "not both"),
        ("cuda:0,cuda:3", "no kernels"),
    ):
        with pytest.raises(UserError, match=words):
            worker_pool.choose(name)


def test_what_the_rest_will_take_is_said_once(data, tmp_path, capsys, monkeypatch):
    sys.path.insert(0, str(ROOT))
    import get_features
    import train

    for module in (progress, extract):
        monkeypatch.setattr(module, "LONG", 0.0)
    monkeypatch.setattr(progress, "MEASURED", 0.0)
    get_features.main(
        ["--competition", str(data), *EXTRACT, "--device", "cpu", "--out", str(tmp_path / "data")]
    )
    said = [line for line in (capsys.readouterr().out).splitlines() if "estimate" in line]
    assert len(said) == 1 and "for the other 238 clips" in said[0] and "MB of features" in said[0]
    train.main(
        [
            *TRAIN,
            "--epochs",
            "2",
            "--device",
            "cpu",
            "--features",
            str(tmp_path / "data" / "tones" / "logmel"),
            "--runs-folder",
            str(tmp_path / "runs"),
            "--out",
            str(tmp_path / "s.csv"),
        ]
    )
    said = [line for line in capsys.readouterr().out.splitlines() if "estimate" in line]
    assert [line[:8] for line in said] == [
        "fold 0/3",
        "fold 1/3",
        "fold 2/3",
    ] and "for this fold and 2 more folds (2 epochs of" in said[0]
    sys.path.remove(str(ROOT))
