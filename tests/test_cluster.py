"""The scripts on a simulated Ray cluster, a head and two nodes of one CPU: whatever happens to driver and
nodes, the files equal a single machine's byte for byte."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import RAY, ROOT, make_competition, refused, script
from test_devices import NEVER, RESULTS, TRAIN
from test_docs import list_blocks, make_project, run_block
from test_restart import contents

from earshot.cluster import connect
from earshot.core import files
from earshot.core.config import ClusterFlags
from earshot.core.errors import TemporaryError, UserError

pytestmark = [
    pytest.mark.slow,
    # not imported: the environment is set first
    pytest.mark.skipif(find_spec("ray") is None, reason="requirements-cluster.txt is not installed"),
]
EXTRACT = ("--extractor", "logmel", "--n-mels", "96", "--hop-length", "64", "--workers", "1")
EXTRACT += ("--augment", "1", "--stretch", "1.2")
LEASE = 5


class Nodes:
    """The cluster: `address`, and its two nodes."""

    def __init__(self) -> None:
        os.environ |= RAY
        from ray.cluster_utils import Cluster

        self.last = 2
        head = {"num_cpus": 0, "node_ip_address": "127.0.0.2", "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head | self.size)
        self.address = self.cluster.address
        self.fill()

    size = {"object_store_memory": 100 << 20, "num_gpus": 0}

    @property
    def nodes(self) -> list[Any]:
        """The nodes that work."""
        return list(self.cluster.worker_nodes)

    def fill(self) -> None:
        """Start nodes until there are two."""
        while len(self.nodes) < 2:
            self.last += 1
            self.cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{self.last}", **self.size)

    def kill(self, node: Any) -> None:
        """Kill a node with all that runs on it."""
        processes = find_processes(node)
        self.cluster.remove_node(node, allow_graceful=False)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def signal(self, node: Any, number: int) -> None:
        """Send a signal to all processes of a node."""
        for pid in find_processes(node):
            os.kill(pid, number)


def find_processes(node: Any) -> list[int]:
    """A node's raylet, and its workers and agents."""
    (raylet,) = [about.process.pid for about in node.all_processes["raylet"]]
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    return [raylet, *map(int, children)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    found = Nodes()
    try:
        yield found
    finally:
        found.cluster.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 270 clips, 9 shards and 7 of copies
    found = make_competition(tmp_path_factory.mktemp("data") / "tones", train=70, subm=20, seconds=0.5)
    (found / "audio_test" / "t004.wav").write_bytes(b"no audio")
    return found


@pytest.fixture(scope="module")
def calm(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache and a run, made by one process of one thread."""
    folder = tmp_path_factory.mktemp("calm")
    script("get_features.py", "--competition", data, *EXTRACT, "--device", "cpu", cwd=folder)
    script("train.py", *TRAIN, "--device", "cpu", "--no-report", cwd=folder)
    return folder


class Started:
    """A script that runs in the background; its output so far is `text`."""

    def __init__(self, name: str, *arguments: object, cwd: Path):
        self.out = cwd / "out.txt"
        with open(self.out, "w") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / name), *map(str, arguments)],
                cwd=cwd,
                env={**os.environ, "OMP_NUM_THREADS": "1", "EARSHOT_LEASE": str(LEASE)},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.out.read_text()

    def wait_for(self, ready: Callable[[], bool], seconds: float = 180) -> None:
        """Wait until something is so, while the script runs."""
        limit = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None, f"it ended too early:\n{self.text}"
            assert time.monotonic() < limit, self.text
            time.sleep(0.01)

    def finish(self, number: int | None = None) -> int:
        """Send a signal; the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=240)
        assert "Traceback" not in self.text, self.text
        return code


def stop_and_resume(
    nodes: Nodes, command: tuple, cwd: Path, progress: Callable[[], Callable[[], bool]], number: int
) -> str:
    """Run a command again and again: its driver is killed, gets a signal, is out of time; then a node is
    frozen, wakes up, and the other one is killed; the last output.

    Args:
        progress: returns a function: has more been written since? number: the signal's.
    """
    nodes.fill()
    begun = Started(*command, cwd=cwd)
    begun.wait_for(progress())
    assert begun.finish(signal.SIGKILL) == -signal.SIGKILL
    begun = Started(*command, cwd=cwd)
    begun.wait_for(progress())
    assert begun.finish(number) == 128 + number
    assert begun.text.count("stopped: what was finished is kept; continue with: ") == 1
    begun = Started(*command, "--max-hours", NEVER, cwd=cwd)
    assert begun.finish() == 0 and "stopped at a safe point after --max-hours" in begun.text
    begun = Started(*command, cwd=cwd)
    begun.wait_for(progress())
    frozen, killed = nodes.nodes
    nodes.signal(frozen, signal.SIGSTOP)
    try:
        begun.wait_for(lambda: f"was lost (silent for {LEASE} s)" in begun.text)
    finally:
        nodes.signal(frozen, signal.SIGCONT)  # beside its replacement
    nodes.signal(killed, signal.SIGSTOP)  # while its worker has a task
    nodes.kill(killed)
    assert begun.finish() == 0, begun.text
    assert f"node {killed.node_ip_address} was lost (" in begun.text
    return begun.text


def test_extraction_on_a_cluster_that_breaks(nodes: Nodes, data: Path, calm: Path, tmp_path: Path) -> None:
    cache = tmp_path / "data" / "tones" / "logmel"
    command = ("get_features.py", "--competition", data, *EXTRACT, "--cluster", nodes.address)

    def progress() -> Callable[[], bool]:
        before = len(list((cache / "shards").glob("*.json")))
        return lambda: len(list((cache / "shards").glob("*.json"))) > before

    said = stop_and_resume(nodes, command, tmp_path, progress, signal.SIGTERM)
    assert "continuing: " in said and "device: cluster of 2 nodes, 2 workers of 1 CPU thread" in said
    one, two = (contents(at / "data" / "tones" / "logmel", "*") for at in (calm, tmp_path))
    assert one == two and {"train.pkl", "augmented.pkl", "bad_audio.csv", "manifest.json"} <= set(one)


def test_folds_on_a_cluster_that_breaks(nodes: Nodes, calm: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(calm / "data")
    run = tmp_path / "runs" / "r"
    command = ("train.py", *TRAIN, "--save-every", "0", "--no-report", "--cluster", nodes.address)

    def progress() -> Callable[[], bool]:
        def stamps() -> dict[str, int]:
            found = {}
            for path in run.glob("fold_*/last/state.json"):
                with contextlib.suppress(FileNotFoundError):
                    found[path.parent.parent.name] = path.stat().st_mtime_ns
            return found

        before = stamps()
        return lambda: sum(stamps()[name] != before.get(name) for name in stamps()) >= 2

    stop_and_resume(nodes, command, tmp_path, progress, signal.SIGINT)
    for path in [*run.rglob("*.tmp"), *run.rglob("*.new"), *run.rglob("*.old"), *run.rglob(".token")]:
        raise AssertionError(f"{path} is left behind")
    patterns = [pattern for pattern in RESULTS if pattern != "config.yaml" and "report" not in pattern]
    one, two = contents(calm / "runs" / "r", *patterns), contents(run, *patterns)
    assert one == two and len(one) > 15
    assert "threads:\n  cpu: 1" in (run / "config.yaml").read_text()


@contextlib.contextmanager
def other_token(folder: Path) -> Iterator[str]:
    """A token that no folder has: as if the nodes saw other folders than the driver."""
    yield "another folder's"


@pytest.fixture
def driver(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is a driver on the cluster, in an empty folder, which the nodes don't see."""
    nodes.fill()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("earshot.cluster.storage.hold_token", other_token)
    return tmp_path


def test_nodes_that_do_not_see_the_cache_send_their_bytes(
    nodes: Nodes, data: Path, calm: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import get_features
    from earshot.features import extract

    names: list[str] = []

    def write_bytes(path: Path, content: bytes) -> None:
        names.append(path.suffix)
        files.write_bytes(path, content)

    monkeypatch.setattr(extract, "write_bytes", write_bytes)
    get_features.main(["--competition", str(data), *EXTRACT, "--cluster", nodes.address])
    one, two = (contents(at / "data" / "tones" / "logmel", "*") for at in (calm, driver))
    assert one == two and len(one) > 8
    assert names.count(".pkl") == names.count(".json") == 16


def test_nodes_that_do_not_see_the_run_are_refused(nodes: Nodes, calm: Path, driver: Path) -> None:
    import train

    (driver / "data").symlink_to(calm / "data")
    on = ["--no-report", "--cluster", nodes.address]
    with pytest.raises(UserError, match=r"does not see the run runs/r: put it on a file system that every"):
        train.main([*TRAIN, *on])
    with pytest.raises(UserError, match=r"does not see the runs' folder runs/a: put it on a file system"):
        train.main(["--recipe", "auto", "--candidates", "knn", "--name", "a", *on])


def test_a_busy_cluster_is_one_line(nodes: Nodes, driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "PATIENCE", 3.0)
    with connect.connect(ClusterFlags(cluster=nodes.address)) as found:
        # a lambda, which nodes get by value: they do not have this file
        sleepers = [found.ray.remote(num_cpus=1)(lambda: time.sleep(60)).remote() for _ in range(2)]
        with pytest.raises(TemporaryError) as error:
            found.find_devices("auto", "auto")
        text = str(error.value)
        assert text.startswith("no node of the cluster is free: node 127.0.0."), text
        assert text.count(" has had no free slot for 3 s") == 2
        for sleeper in sleepers:
            found.ray.cancel(sleeper, force=True)
        monkeypatch.undo()
        found.choose_nodes("auto")
        with pytest.raises(TemporaryError, match=r"^node 127\.0\.0\.\d+: .*No such file"):
            found.call_on(found.nodes, os.path.getsize, "/nowhere")
        with pytest.raises(UserError, match="--device cpu,cpu: with --cluster it is auto, cpu or cuda"):
            found.find_devices("cpu,cpu", "auto")
        with pytest.raises(UserError, match="no node with GPUs"):
            found.find_devices("cuda", "auto")


def test_a_machine_that_is_not_a_node_is_one_line(nodes: Nodes, tmp_path: Path) -> None:
    address = nodes.address.replace("127.0.0.2:", "127.0.0.99:")  # as if this were another machine
    line = refused(script("doctor.py", "--cluster", address, cwd=tmp_path, ok=None))
    assert f"is this machine one of its nodes? `ray start --address {address}` makes it one" in line


def test_the_doctor_lists_nodes_and_a_worker_s_error_is_one_line(
    nodes: Nodes, calm: Path, tmp_path: Path
) -> None:
    nodes.fill()
    said = script("doctor.py", "--cluster", nodes.address, cwd=tmp_path).stdout
    assert said.count("ok: node 127.0.0.") == 2 and f"all nodes see {tmp_path}" in said
    assert "ok: workers: 2, of 1 CPU thread each" in said and "0 stops, 0 warnings" in said
    said = script("doctor.py", "--cluster", nodes.address, "--device", "cuda", cwd=tmp_path, ok=2).stdout
    assert "stop: nodes: the cluster has no node with GPUs" in said
    (tmp_path / "data").symlink_to(calm / "data")
    wrong = ("--lr", "1e30", "--cluster", nodes.address)
    line = refused(script("train.py", *TRAIN, *wrong, cwd=tmp_path, ok=None))
    assert "is not a number" in line or "weights became NaN or infinite" in line


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of docs/cluster.md; `ray stop` would end the clusters of other tests, too."""
    blocks = [
        block
        for block in list_blocks(ROOT / "docs" / "cluster.md")
        if block.order == "run by: tests/test_cluster.py"
    ]
    assert len(blocks) == 2
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    project, ray = make_project(tmp_path / "project"), tempfile.mkdtemp(prefix="ray-")
    monkeypatch.setenv("RAY_TMPDIR", ray)  # short: names of sockets have a limit
    try:
        said = [run_block(project, block) for block in blocks]
    finally:
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"RAY_TMPDIR={ray}\0".encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
        shutil.rmtree(ray, ignore_errors=True)
    assert "0 stops" in said[0] and "cluster of 2 nodes, 2 workers of 1 CPU thread" in said[0]
    assert "validated against sample_submission.csv" in said[0]
    assert "cluster of 2 nodes, 2 workers of 1 CPU thread" in said[1]
    one, two = (contents(project / "data" / "sample" / name, "*.pkl") for name in ("logmel", "again"))
    assert one == two and "train.pkl" in one


def test_a_lost_head_is_one_line_and_the_same_command_resumes(calm: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(calm / "data")
    run = tmp_path / "runs" / "r"
    command = ("train.py", *TRAIN, "--save-every", "0", "--no-report")
    begun = Started(*command, "--cluster", "local", "--cpus-per-worker", "1", cwd=tmp_path)
    begun.wait_for(lambda: bool(list(run.glob("fold_*/last/state.json"))))
    children = Path(f"/proc/{begun.process.pid}/task/{begun.process.pid}/children").read_text().split()
    heads = [pid for pid in children if b"/gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(heads) == 1
    os.kill(int(heads[0]), signal.SIGKILL)
    assert begun.finish() == 75
    errors = [line for line in begun.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.match(r"error: the head of the cluster, \S+, has not responded", errors[0])
    assert "run: runs/r (continued)" in script(*command, "--device", "cpu", cwd=tmp_path).stdout
    patterns = [pattern for pattern in RESULTS if pattern != "config.yaml" and "report" not in pattern]
    assert contents(calm / "runs" / "r", *patterns) == contents(run, *patterns)
