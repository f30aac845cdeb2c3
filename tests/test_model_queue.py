"""The bake-off and tuning on a cluster's workers, with workers in this process: what is queued, what is done
when one fails, and that a stopped search goes on. test_cluster.py has real ones."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_cache import make
from test_auto import AUTO, QUICK, SMALL, board
from test_restart import contents

import train
from earshot.cluster.pool import WorkersLost
from earshot.core import checksums
from earshot.core.deadline import SIGNALS, Deadline
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.prediction import saved_blend
from earshot.search import candidate_training, model_queue
from earshot.training.estimators import fit_head

CLUSTER = ["--cluster", "host:1"]
HERE = Device("cpu", "fp32", "CPU")
NEVER = Deadline(None)


class Pool:
    """Two workers in this process, the second one for the odd tasks; `lost` tasks end their workers."""

    slots = 2

    def __init__(self, cluster: Cluster, make_worker: Callable[[], Any]):
        self.cluster, self.workers = cluster, [make_worker(), make_worker()]

    def wait_until_ready(self) -> list[Any]:
        return [None, None]

    def run(self, tasks: list, on_message: Callable[[Any], None], deadline: Deadline) -> bool:
        for number, task in enumerate(tasks):  # which grow
            if number > 1 and deadline.is_over():
                return False
            self.cluster.tasks.append(task.name)
            self.cluster.most_runs = max(self.cluster.most_runs, len({one.run for one in tasks[number:]}))
            if task.name in self.cluster.lost:
                raise WorkersLost(f"{task.name} has ended 6 workers", task)
            sent, worker = pickle.loads(pickle.dumps(task)), self.workers[number % 2]
            if not worker(sent, on_message, self.inbox(deadline)):
                return False
        return True

    def inbox(self, deadline: Deadline) -> Any:
        return deadline

    def close(self) -> None:
        self.cluster.is_open = False


class Cluster:
    """Two workers; `tasks` are the names of those that ran."""

    threads = 1

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.lost: set[str] = set()
        self.most_runs = 0  # that were waiting at a time
        self.is_open = False

    def find_devices(self, name: str, precision: str) -> list[Device]:
        assert not self.is_open, "the workers have all places"
        return [HERE, HERE]

    def describe(self, devices: list[Device], threads: int | None = None) -> str:
        return f"cluster of {len(devices)}"

    def count_per_node(self, workers: int) -> int:
        return 1

    def open_pool(self, devices: list[Device], work: Any, arguments: tuple, threads: int = 1) -> Pool:
        return Pool(self, lambda: work(devices[0], *arguments))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A folder with a cache and a quick recipe; what `--cluster` connects to."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL.replace("EPOCHS", "6"))
    make(Path("data/c/one"), {"pooled": (12, 1, 1)})
    found = Cluster()

    @contextlib.contextmanager
    def connect(flags: Any) -> Iterator[Cluster]:
        assert flags.cluster == "host:1"
        yield found

    monkeypatch.setattr("earshot.cluster.connect.connect", connect)
    monkeypatch.setattr("earshot.search.cluster_training.connect", connect)
    yield found
    SIGNALS.waiting = None


def read_state(name: str = "a") -> dict[str, Any]:
    return checksums.read(Path("runs") / name / saved_blend.AUTO)


def stop_after(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A signal once so many tasks have begun."""

    def inbox(self: Pool, deadline: Deadline) -> Deadline:
        if len(cluster.tasks) == count:
            SIGNALS.waiting = 15
        return deadline

    monkeypatch.setattr(Pool, "inbox", inbox)


def test_a_bake_off_has_the_files_of_one_machine(cluster: Cluster, capsys: pytest.CaptureFixture) -> None:
    train.main([*AUTO, *QUICK, "--name", "a", *CLUSTER])
    said = capsys.readouterr().out
    assert "device: cluster of 2" in said and "submissions/submission.csv: 15 rows" in said
    recipes = ("logistic", "svm", "knn", "small")
    assert sorted(cluster.tasks) == sorted(
        f"{recipe}-pooled-one, fold {fold}" for recipe in recipes for fold in range(3)
    )
    assert cluster.most_runs > 1, "one candidate waited for another"
    assert not list(Path("runs").rglob(".token")) and all(one["done"] for one in read_state()["decisions"])
    assert {one["devices"] for one in read_state()["of"].values()} == {2}
    train.main([*AUTO, *QUICK, "--name", "b"])
    names = ("oof.csv", "*/oof_last.csv", "*/metrics.csv", "*/fold_*/valid_*.npy")
    one, two = contents(Path("runs/a"), *names[:2], names[3]), contents(Path("runs/b"), *names[:2], names[3])
    assert one == two and len(one) == 1 + 4 + 24
    assert len(contents(Path("runs/a"), names[2])) == 4


def test_a_candidate_that_fails_is_out_and_the_others_continue(
    cluster: Cluster, capsys: pytest.CaptureFixture
) -> None:
    Path("bad.yaml").write_text(SMALL.replace("EPOCHS", "6").replace("3e-3", "1e30"))
    cluster.lost = {"svm-pooled-one, fold 1"}
    train.main([*AUTO, *QUICK, "bad.yaml", "--name", "a", *CLUSTER])
    rows = board()
    assert rows["bad-pooled-one"]["status"].startswith("failed fold ")
    assert rows["svm-pooled-one"]["status"] == "failed svm-pooled-one, fold 1 has ended 6 workers"
    assert {rows[f"{name}-pooled-one"]["status"] for name in ("logistic", "knn", "small")} == {"finished"}
    assert all(one["done"] for one in read_state()["decisions"])
    # again, with more time: what has failed is not tried again
    cluster.tasks.clear()
    train.main([*AUTO, *QUICK, "bad.yaml", "--name", "a", "--max-hours", "2", *CLUSTER])
    assert cluster.tasks == []


@pytest.mark.parametrize("continued", [CLUSTER, []])
def test_a_stopped_bake_off_takes_its_decisions_first(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, continued: list[str]
) -> None:
    args = [*AUTO, *QUICK, "--name", "a"]
    stop_after(cluster, monkeypatch, 5)
    with pytest.raises(SystemExit) as end:
        train.main([*args, *CLUSTER])
    assert end.value.code == 128 + 15
    SIGNALS.waiting = None
    before = read_state()["decisions"]
    open_ones = [one["name"] for one in before if not one["done"]]
    assert open_ones
    cluster.tasks.clear()
    monkeypatch.setattr(Pool, "inbox", lambda self, deadline: deadline)
    train.main([*args, *continued])
    after = read_state()["decisions"]
    assert [one["name"] for one in after[: len(before)]] == [one["name"] for one in before]
    assert all(one["done"] for one in after) and len({one["name"] for one in after}) == len(after) == 4
    if continued:
        assert cluster.tasks[0].startswith(open_ones[0])
    assert all(row["status"] == "finished" for name, row in board().items() if name != "a")


def test_times_are_measured_by_the_workers(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As if heads took half of the time, so that a few steps are timed before their folds."""
    monkeypatch.setattr(candidate_training.timing, "guess_fold_seconds", lambda *args: (20.0, 0.0, 1, 1.0))
    args = [*AUTO, "--candidates", "small.yaml", "knn", "--name", "a", "--max-hours", "0.05"]
    train.main([*args, *CLUSTER])
    timed = [name for name, one in read_state()["of"].items() if one["timed"]]
    assert timed == ["small-pooled-one"] and "small-pooled-one, timing" in cluster.tasks
    assert "small-pooled-one: about 0:0" in capsys.readouterr().out
    assert all(row["status"] == "finished" for name, row in board().items() if name != "a")


def test_too_little_time_is_a_submission_all_the_same(cluster: Cluster) -> None:
    train.main([*AUTO, *QUICK, "--name", "a", "--max-hours", "0.0000001", *CLUSTER])
    rows = board()
    assert sum(row["status"] == "finished" for row in rows.values()) == 1
    assert sum(row["status"].startswith("no time") for row in rows.values()) == 3
    train.main([*AUTO, *QUICK, "--name", "a", "--max-hours", "1", *CLUSTER])
    assert all(row["status"] == "finished" for name, row in board().items() if name != "a")


def test_a_fold_far_longer_than_predicted_is_stopped(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the worker, and the others go on; what it has taken is known from then on."""
    Path("slow.yaml").write_text(SMALL.replace("EPOCHS", "400"))
    monkeypatch.setattr("earshot.search.cluster_training.PATIENCE", 0.0)

    def guess(spec: Any, cache: Any, settings: Any, gpu: bool) -> tuple:
        return (0.01 if settings.epochs == 400 else 0.001, 0.0, 1, 1.0)

    monkeypatch.setattr(candidate_training.timing, "guess_fold_seconds", guess)
    train.main([*AUTO, "--candidates", "knn", "slow.yaml", "--name", "a", "--max-hours", "0.003", *CLUSTER])
    assert read_state()["of"]["slow-pooled-one"]["least"] > 0.02
    assert board()["knn-pooled-one"]["status"] == "finished"


TUNE = ["--recipe", "small.yaml", "--tune", "5", "--device", "cpu", "--no-report"]


def test_tuning_draws_the_same_however_often_it_is_stopped(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("optuna")

    def list_trials(said: str) -> list[str]:
        return [line for line in said.splitlines() if line.startswith("trial ")]

    monkeypatch.setattr("earshot.training.cross_validation.open_pool", open_here)
    train.main([*TUNE, "--name", "calm", *CLUSTER])
    calm = list_trials(capsys.readouterr().out)
    assert len(calm) == 5 and "lr 0.003" in calm[0] and calm[0].startswith("trial 1/5: f1_macro ")
    assert len({line.split("  ", 1)[1] for line in calm}) == 5 and cluster.most_runs == 2
    for count in (2, 5, 3):
        cluster.tasks.clear()
        stop_after(cluster, monkeypatch, count)
        with pytest.raises(SystemExit):
            train.main([*TUNE, "--name", "t", *CLUSTER])
        SIGNALS.waiting = None
    monkeypatch.setattr(Pool, "inbox", lambda self, deadline: deadline)
    train.main([*TUNE, "--name", "t", *CLUSTER])
    assert list_trials(capsys.readouterr().out) == calm
    names = ("oof_last.csv", "fold_*/last/model.safetensors")
    assert contents(Path("runs/calm"), *names) == contents(Path("runs/t"), *names)
    assert not list(Path("runs/t").glob("trial_*")) and not list(Path("runs").rglob(".token"))


@contextlib.contextmanager
def open_here(job: Any, run: Any, devices: Any, arguments: tuple, threads: int) -> Iterator[Any]:
    """In place of the pool that trains the tuned run."""
    from earshot.training.cross_validation import FoldWorker

    worker = FoldWorker(devices[0], *arguments)
    yield SimpleNamespace(
        wait_until_ready=list,
        run=lambda tasks, report, deadline: all(worker(task, report, deadline) for task in tasks),
    )


def test_a_trial_that_fails_is_told_and_the_others_continue(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("optuna")
    failed = []

    def fit(*args: Any) -> None:
        if not failed:
            failed.append(1)
            raise UserError("the loss is not a number")
        fit_head(*args)

    monkeypatch.setattr("earshot.training.estimators.fit_head", fit)
    monkeypatch.setattr("earshot.training.cross_validation.open_pool", open_here)
    train.main(["--recipe", "svm", *TUNE[2:], "--name", "s", *CLUSTER])
    said = capsys.readouterr().out
    assert "trial 1/5 failed: the loss is not a number" in said and "best of 5: " in said


def test_a_worker_keeps_to_a_tasks_own_time(tmp_path: Path) -> None:
    over = model_queue._Limit(NEVER, float("inf"))
    assert not over.is_over() and model_queue._Limit(NEVER, 0.0).is_over()
    assert model_queue._Limit(Deadline(0), float("inf")).is_over()
