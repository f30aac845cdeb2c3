"""Training on a cluster whose worker is in this process; test_cluster.py has real ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_cache import make

import train
from earshot.core import files, worker_pool
from earshot.core.deadline import Deadline
from earshot.core.device import Device
from earshot.core.errors import TemporaryError, UserError
from earshot.training.cross_validation import RemoteFoldWorker
from earshot.training.run import Run

HERE = Device("cpu", "fp32", "CPU")
TRAIN = ["--head", "linear", "--epochs", "3", "--name", "r", "--no-report", "--cluster", "host:1"]


class Cluster:
    """A worker, which is its own pool; `then` is called when all is trained."""

    threads, slots = 1, 1

    def __init__(self) -> None:
        self.then: Callable[[], None] = lambda: None

    def find_devices(self, name: str, precision: str) -> list[Device]:
        return [HERE]

    def describe(self, devices: list[Device], threads: int | None = None) -> str:
        return "cluster"

    def count_per_node(self, workers: int) -> int:
        return 1

    def open_pool(self, devices: list[Device], work: Any, arguments: tuple, threads: int) -> Cluster:
        self.worker = work(devices[0], *arguments)
        return self

    def wait_until_ready(self) -> list[None]:
        return [None]

    def run(self, tasks: list, on_message: Callable[[Any], None], deadline: Deadline) -> bool:
        done = all([self.worker(task, on_message, deadline) for task in tasks])
        self.then()
        return done

    def close(self) -> None:
        pass


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """What `--cluster` connects to; the current folder has a cache."""
    monkeypatch.chdir(tmp_path)
    make(Path("data/c/one"), {"pooled": (12, 1, 1)})
    found = Cluster()

    @contextlib.contextmanager
    def connect(flags: Any) -> Iterator[Cluster]:
        yield found

    monkeypatch.setattr("earshot.cluster.connect.connect", connect)
    return found


def test_a_fold_whose_checkpoint_is_damaged_is_trained_again(
    cluster: Cluster, capsys: pytest.CaptureFixture
) -> None:
    """It must not be scored without that fold."""
    cluster.then = lambda: Path("runs/r/fold_1/last/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(TemporaryError, match="^a checkpoint was damaged and set aside: the same command"):
        train.main(TRAIN)
    assert "set aside as runs/r/fold_1/last.damaged" in capsys.readouterr().out
    assert not list(Path("runs/r").glob("oof*"))
    cluster.then = lambda: None
    train.main(TRAIN)
    assert "finished already: fold 0, 2" in capsys.readouterr().out and list(Path("runs/r").glob("oof*"))


def test_a_stale_file_only_delays_the_metrics(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    write, failing = Run.write_metrics, [True]

    def write_metrics(run: Run, wanted: list) -> None:
        if failing:
            failing.pop()
            raise TemporaryError("state.json: Stale file handle")
        write(run, wanted)

    monkeypatch.setattr(Run, "write_metrics", write_metrics)
    train.main(TRAIN)
    assert not failing and len(Path("runs/r/metrics.csv").read_text().splitlines()) == 10


@pytest.mark.parametrize("name, here", [("auto", "auto"), ("cuda", "auto"), ("cpu", "cpu")])
def test_with_device_cpu_this_machine_uses_its_cpu_too(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: str, here: str
) -> None:
    def choose(name: str, precision: str) -> list[Device]:
        raise UserError(f"chosen: {name}")

    monkeypatch.setattr(worker_pool, "choose", choose)
    with pytest.raises(UserError, match=f"^chosen: {here}$"):
        train.main([*TRAIN, "--device", name])


def test_a_node_with_other_weights_of_the_head_is_refused(tmp_path: Path) -> None:
    weights, token = tmp_path / "weights.pt", tmp_path / files.TOKEN
    weights.write_text("others")
    token.write_text("t")
    for path, wanted in ((str(weights), "0123456789abcdef"), (str(tmp_path / "none.pt"), "0123456789abcdef")):
        run: Any = SimpleNamespace(folder=tmp_path, config={"record": {"head": {"weights": wanted}}})
        with pytest.raises(UserError, match="has other weights of the head, .*pt, than the machine where"):
            RemoteFoldWorker(HERE, "t", {"weights": path}, run)
