"""The worker pools' contract: one suite for processes on this machine and for workers on a Ray cluster."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RAY, ROOT

from earshot.core import worker_pool
from earshot.core.config import ClusterFlags
from earshot.core.deadline import Deadline
from earshot.core.device import Device
from earshot.core.errors import TemporaryError, UserError
from earshot.core.files import hold_lock

HERE = Device("cpu", "fp32", "CPU")
NEVER = Deadline(None)
ERRORS = {
    "user": UserError("a setting is wrong"),
    "temporary": TemporaryError("a drive is gone"),
    "io": OSError(errno.EIO, "Input/output error", "clip.wav"),
    "network": ConnectionResetError("a download was cut off"),
    "bug": ZeroDivisionError("a mistake"),
}

FLOOD, LARGE = 12, 16 << 20  # messages, and bytes of each


class Tiny:
    """A worker for these tests; `about` is the number of its process."""

    def __init__(self, on: Device, folder: Path, how: str = ""):
        if how == "refused":
            raise UserError("thirteen is refused")
        if how == "cut off":
            raise ERRORS["network"]
        if how == "freezes":  # the first one
            with contextlib.suppress(FileExistsError), open(folder / "frozen", "x") as file:
                print(os.getpid(), file=file, flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)
        self.folder, self.about = folder, os.getpid()

    def __call__(self, task: Any, say: Callable, inbox: Any) -> bool:
        if isinstance(task, int):
            print(f"task {task}\nof {torch.get_num_threads()} threads")
            say(2 * task)
        elif task in ERRORS:
            raise ERRORS[task]
        elif task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif task == "talk":
            say("hello")
            limit = time.monotonic() + 60
            while not (self.folder / "heard").exists() and time.monotonic() < limit:
                time.sleep(0.01)
            say((self.folder / "heard").exists())
        elif task == "flood":
            for number in range(FLOOD):
                say(b"x" * LARGE)
                (self.folder / "sent").write_text(str(number + 1))
        else:  # long
            (self.folder / f"began-{os.getpid()}").touch()
            while not inbox.is_over():
                time.sleep(0.01)
            return False
        return True


Open = Callable[..., contextlib.AbstractContextManager]


def need_ray() -> None:
    """Skip without Ray, which is not imported here: a cluster sets its environment first."""
    if find_spec("ray") is None:
        pytest.skip("requirements-cluster.txt is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of a head and two nodes of one CPU, on the loopback interface."""
    need_ray()
    os.environ |= RAY
    from earshot.cluster.connect import connect

    with connect(ClusterFlags(cluster="local", cluster_workers=2, cpus_per_worker=1)) as found:
        found.find_devices("cpu", "fp32")
        yield found


@pytest.fixture(params=["processes", pytest.param("cluster", marks=pytest.mark.slow)])
def open_pool(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """open_pool(*arguments) is a pool of two `Tiny` workers, ready."""
    many = request.getfixturevalue("cluster") if request.param == "cluster" else None

    @contextlib.contextmanager
    def opened(*arguments: Any) -> Iterator[worker_pool.WorkerPool]:
        pool: worker_pool.WorkerPool
        with hold_lock(tmp_path, "it"):
            given = (tmp_path, *arguments)
            if many is None:
                pool = worker_pool.ProcessPool([HERE, HERE], Tiny, given, tmp_path)
            else:
                pool = many.open_pool([HERE, HERE], Tiny, given)
            with contextlib.closing(pool):
                assert pool.slots == len(set(pool.wait_until_ready())) == 2
                yield pool

    return opened


def run(
    open_pool: Open, tasks: list, *arguments: Any, deadline: Deadline = NEVER, heard: Any = None
) -> tuple[bool, list]:
    """Run tasks; the pool's answer, and the messages."""
    found: list = []
    with open_pool(*arguments) as pool:
        return pool.run(tasks, heard or found.append, deadline), sorted(found)


def test_all_tasks_are_done_and_printed_lines_are_whole(open_pool: Open, capsys: Any) -> None:
    with open_pool() as pool:
        found: list[int] = []
        assert pool.run([1, 2, 3, 4, 5], found.append, NEVER) and sorted(found) == [2, 4, 6, 8, 10]
        assert pool.run([6], found.append, NEVER) and found[-1] == 12  # the workers are kept
    said = capsys.readouterr().out.splitlines()
    threads = {line.partition(": ")[2] for line in said if "threads" in line}
    assert len(said) == 12 and len(threads) == 1
    tasks = {line.partition(": ")[2] for line in said} - threads
    assert tasks == {f"task {n}" for n in range(1, 7)}
    assert {line.partition(": ")[0] for line in said} in (
        {"cpu (1)", "cpu (2)"},
        {"node 127.0.0.3", "node 127.0.0.4"},
    )


def test_messages_arrive_while_the_workers_work(open_pool: Open, tmp_path: Path) -> None:
    found: list = []

    def hear(value: Any) -> None:
        found.append(value)
        (tmp_path / "heard").touch()

    assert run(open_pool, ["talk"], heard=hear)[0] and found == ["hello", True]


def test_a_worker_waits_for_a_driver_that_is_behind(open_pool: Open, tmp_path: Path) -> None:
    ahead = []

    def heard(message: bytes) -> None:
        time.sleep(0.5)
        ahead.append(int((tmp_path / "sent").read_text()) - len(ahead) - 1)

    with open_pool() as pool:
        assert pool.run(["flood"], heard, NEVER)
    # two or three wait on the board, as many were taken by the driver at once, one is on its way
    assert len(ahead) == FLOOD and max(ahead) <= 7


@pytest.mark.slow
def test_messages_add_tasks_on_a_cluster(cluster: Any, tmp_path: Path) -> None:
    """The free worker begins them while the other one still works."""
    tasks, found = ["talk"], []

    def hear(value: Any) -> None:
        found.append(value)
        if value == "hello":
            tasks.append(3)
        elif value == 6:
            (tmp_path / "heard").touch()

    with contextlib.closing(cluster.open_pool([HERE, HERE], Tiny, (tmp_path,))) as pool:
        pool.wait_until_ready()
        assert pool.run(tasks, hear, NEVER) and found == ["hello", 6, True]


def test_at_the_deadline_the_workers_stop_at_a_safe_point(open_pool: Open, tmp_path: Path) -> None:
    # each begins one task in any case
    assert run(open_pool, ["long", "long", 3], deadline=Deadline(0)) == (False, [])
    assert len(list(tmp_path.glob("began-*"))) == 2
    assert run(open_pool, [1, 2, 3], deadline=Deadline(0)) == (False, [2, 4])
    began = time.monotonic()
    assert run(open_pool, ["long", 2], deadline=Deadline(2 / 3600)) == (False, [4])
    assert time.monotonic() - began > 2


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_stops_the_others_and_reaches_the_user_unchanged(
    open_pool: Open, kind: str, request: Any, capsys: Any
) -> None:
    """Those of the machine are first tried on the other node, where they fail again."""
    with pytest.raises(type(ERRORS[kind])) as error:
        run(open_pool, [kind, "long", 3] if kind in ("user", "bug") else [kind])
    assert str(error.value) == str(ERRORS[kind]) and error.type is type(ERRORS[kind])
    again = "cluster" in request.node.name and kind in ("temporary", "io")
    assert capsys.readouterr().out.count("another node tries again") == again
    if kind == "bug":
        assert "in __call__" in "".join(error.value.__notes__)  # where it was
    if kind == "io":
        assert (error.value.errno, error.value.filename) == (errno.EIO, "clip.wav")


def test_an_error_of_a_worker_that_starts_reaches_the_user(open_pool: Open) -> None:
    with pytest.raises(UserError, match="^thirteen is refused$"):
        run(open_pool, [1], "refused")
    with pytest.raises(ConnectionResetError, match="^a download was cut off$"):
        run(open_pool, [1], "cut off")


@pytest.mark.slow
def test_a_worker_that_freezes_while_it_starts_is_replaced(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EARSHOT_LEASE", "3")
    monkeypatch.setattr("earshot.cluster.pool.PATIENCE", 12.0)
    found: list[int] = []
    try:
        with contextlib.closing(cluster.open_pool([HERE, HERE], Tiny, (tmp_path, "freezes"))) as pool:
            assert pool.wait_until_ready()
            assert pool.run([1, 2], found.append, NEVER) and sorted(found) == [2, 4]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / "frozen").read_text()), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_on_a_node_that_was_not_compared_is_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that joined later."""
    monkeypatch.setattr(cluster, "expected", cluster.expected._replace(kind="another CPU"))
    with contextlib.closing(cluster.open_pool([HERE, HERE], Tiny, (tmp_path,))) as pool:
        with pytest.raises(UserError, match=r"^node 127\.0\.0\.\d has another device, other versions"):
            pool.wait_until_ready()


def test_a_worker_that_dies_is_named(open_pool: Open, request: Any) -> None:
    remote = "cluster" in request.node.name
    with pytest.raises(UserError if remote else TemporaryError) as error:
        run(open_pool, ["die"])
    text = str(error.value)
    if remote:
        assert text.startswith("task die has ended 6 workers, the last one on node 127.0.0."), text
        assert error.value.task == "die"  # which a bake-off gives up
    else:
        assert text == "the process for cpu (1) died (signal 9, out of memory?)"


DRIVER = """
import os, sys
from contextlib import closing
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import test_worker_pools as suite
from earshot.core import worker_pool
from earshot.core.config import ClusterFlags
from earshot.core.files import hold_lock
folder = Path({folder!r})
with hold_lock(folder, "it"):
    if {remote}:
        from earshot.cluster.connect import connect
        with connect(ClusterFlags(cluster="local", cluster_workers=2, cpus_per_worker=1)) as many:
            many.find_devices("cpu", "fp32")
            with closing(many.open_pool([suite.HERE] * 2, suite.Tiny, (folder,))) as pool:
                pool.wait_until_ready()
                pool.run(["long", "long"], print, suite.NEVER)
    else:
        with worker_pool.ProcessPool([suite.HERE] * 2, suite.Tiny, (folder,), folder) as pool:
            pool.wait_until_ready()
            pool.run(["long", "long"], print, suite.NEVER)
"""


@pytest.mark.parametrize("remote", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_workers_end_when_the_driver_is_killed(tmp_path: Path, remote: bool) -> None:
    if remote:
        need_ray()
    text = DRIVER.format(
        root=str(ROOT), tests=str(Path(__file__).parent), folder=str(tmp_path), remote=remote
    )
    with subprocess.Popen([sys.executable, "-c", text], cwd=tmp_path) as driver:
        limit = time.monotonic() + 120
        while len(workers := list(tmp_path.glob("began-*"))) < 2 and time.monotonic() < limit:
            assert driver.poll() is None
            time.sleep(0.05)
        pids = [int(path.name.removeprefix("began-")) for path in workers]
        assert len(pids) == 2 and all(map(is_alive, pids))
        driver.kill()
    limit = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(is_alive, pids)), "a worker is left behind"


def is_alive(pid: int) -> bool:
    """Is there a process of this number that is no zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_chunks_of_tasks_get_smaller_so_that_workers_end_together() -> None:
    cut = worker_pool.split_tasks
    assert cut(list(range(9)), 2, 8) == [[0, 1], *([number] for number in range(2, 9))]
    sizes = [len(chunk) for chunk in cut(list(range(50)), 2, 8)]
    assert sizes == [8, 8, 8, 6, 5, 3, 3, 2] + [1] * 7
    assert [len(chunk) for chunk in cut(list(range(1000)), 2, 8)][:120] == [8] * 120
    assert cut([], 2, 8) == [] and cut([1], 2, 8) == [[1]]
