"""What of the cluster needs no nodes: leases, nodes that fit together, what is refused, what is imported."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_cache
import pandas
import pytest
from conftest import ROOT, refused, script

from earshot.cluster import board, connect, head, pool, probe, storage, worker
from earshot.core import files
from earshot.core.config import ClusterFlags
from earshot.core.deadline import Deadline
from earshot.core.device import Device
from earshot.core.errors import TemporaryError, UserError
from earshot.extractors import logmel
from earshot.features import remote_shards
from earshot.features.cache import Cache


def test_a_lost_worker_is_not_heard_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(board.time, "monotonic", lambda: now)
    here = board.Board()
    assert here.beat(1) == here.post(2, "say", "a") == "go"
    for now in (100.5, 101.0, 101.5):  # as the driver looks
        here.beat(1)
        messages, silent = here.take()
        assert messages == ([(2, "say", "a")] if now == 100.5 else [])
    assert silent == {1: 0.5, 2: 1.5}
    here.post(2, "say", "b")
    here.revoke(2)
    assert here.beat(2) == here.post(2, "say", "c") == "lost" and here.take() == ([], {1: 0.5})
    here.give_order("stop")
    assert here.beat(1) == "stop" and here.beat(2) == "lost"
    now += 1000  # the driver was frozen itself, so nobody is late
    assert here.take()[1] == {1: 1.0}


def test_a_guard_decides_before_a_file_or_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(BaseException):
        pass

    def check() -> None:
        raise Lost

    files.write_text(tmp_path / "a", "old")
    with files.replace_folder(tmp_path / "last") as new:
        (new / "b").write_text("old")
    monkeypatch.setattr(files.GUARD, "suffix", ".host-7")
    with files.replace_folder(tmp_path / "last") as new:
        assert new.name == "last.host-7.new"
        (new / "b").write_text("newer")
    with pytest.raises(Lost), files.replace_folder(tmp_path / "last") as new:
        (new / "b").write_text("new")
        monkeypatch.setattr(files.GUARD, "check", check)
    with pytest.raises(Lost):
        files.write_text(tmp_path / "a", "new")
    (tmp_path / "last.other-8.new").mkdir()  # a replacement's
    with pytest.raises(Lost), files.replace_folder(tmp_path / "last") as new:
        raise AssertionError("it may not begin")
    assert (tmp_path / "a").read_text() == "old" and (tmp_path / "last" / "b").read_text() == "newer"
    assert {path.name for path in tmp_path.glob("*.*")} == {"last.host-7.new", "last.other-8.new"}
    files.recover_folder(tmp_path / "last")  # as its replacement on another machine does
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "last"]


def test_a_lost_head_is_noticed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    at: dict[str, Any] = {"now": 100.0}
    monkeypatch.setattr(head.time, "monotonic", lambda: at["now"])
    monkeypatch.setattr(head, "is_there", lambda address: at["there"])
    watch = head.HeadWatch("127.0.0.2:1", 30)
    for now, there in ((103, True), (106, False), (134, True), (137, False), (166, False)):
        at |= {"now": float(now), "there": there}
        watch.check()
    at["now"] = 168.0
    with pytest.raises(TemporaryError, match="head of the cluster, 127.0.0.2:1, has not responded for 30 s"):
        watch.check()
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert head.is_there(address)
    assert not head.is_there(address) and not head.is_there("nowhere")


def test_the_bytes_that_wait_for_the_driver_are_counted() -> None:
    here = board.Board()
    here.post(1, "say", b"abc")
    here.post(2, "say", b"a")
    here.post(1, "text", "line")
    assert here.count_bytes(1) == 7 and here.count_bytes(2) == 1 and here.count_bytes(3) == 0
    here.take()
    assert here.count_bytes(1) == 0


def test_nodes_of_two_kinds_or_versions_do_not_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    here = probe.probe("cpu", "fp32", 1)._replace(node="a")
    assert probe.check_alike([here, here]) is probe.check_versions([here]) is None
    gpu = here._replace(node="b", kind="x86_64 T4", device=Device("cuda:0", "fp16", "T4"))
    for other in (gpu, here._replace(node="b", device=Device("cpu", "bf16", ""))):
        assert "are of 2 kinds" in str(probe.check_alike([here, other]))
    old = here._replace(node="b", versions={**here.versions, "torch": "1.0"})
    assert str(probe.check_versions([here, old])).startswith("node b has torch 1.0, this machine ")
    assert "another version of Earshot" in str(probe.check_versions([here._replace(code="0")]))
    for versions, fits in (({"openvino": "1"}, True), ({"openvino": "2"}, False), ({"timm": "0"}, False)):
        monkeypatch.setattr(probe, "list_versions", lambda: {"openvino": "1"})
        other = here._replace(versions=versions)
        assert (probe.check_versions([other]) is None) == fits
    monkeypatch.undo()
    probe.check_node(here, 1, "node c")
    for other in (here._replace(kind="x86_64 AVX512"), here._replace(code="0"), old):
        with pytest.raises(UserError, match="^node c has another device, other versions"):
            probe.check_node(other, 1, "node c")


def test_workers_without_a_gpu_are_probed_as_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = connect.Cluster(None, ClusterFlags()), []
    found.nodes = [{"NodeManagerAddress": "a", "Resources": {"CPU": 1, "GPU": 1}}]
    here = probe.probe("cpu", "fp32", 1)
    monkeypatch.setattr(found, "call_on", lambda nodes, function, name, *more: asked.append(name) or [here])
    for gpus in (0, 1):
        found.resources = {"num_gpus": gpus}
        assert found.probe_nodes("auto") == [here._replace(node="a")]
    assert asked == ["cpu", "cuda"]


class Ray:
    """What the pool and a worker use of Ray, without a cluster; calls are functions."""

    class exceptions:
        RayError = ActorUnavailableError = ZeroDivisionError

    @staticmethod
    def get(call: Any) -> Any:
        return call()

    @staticmethod
    def wait(calls: list, num_returns: int, timeout: float) -> tuple[list, list]:
        return calls, []


def build_pool() -> Any:
    found = pool.RayPool.__new__(pool.RayPool)
    found.ray, found.lease, found.members, found.names = Ray, 30.0, [], {"id": "host"}
    found.head = SimpleNamespace(check=lambda: None)
    return found


def test_only_errors_of_ray_mean_a_lost_connection() -> None:
    for error in (BrokenPipeError(32, "Broken pipe"), ConnectionResetError(104, "reset")):
        with pytest.raises(type(error)), build_pool()._translate_errors():
            raise error
    for error in (ConnectionError("no head"), ZeroDivisionError()):
        with pytest.raises(TemporaryError, match="^the connection to the cluster is lost"):
            with build_pool()._translate_errors():
                raise error


def test_workers_of_a_node_have_names_of_their_own() -> None:
    found, names = build_pool(), ["node host", "node host (2)", "node host (3)"]
    for number in (0, 1, 2):
        slot = pool._Slot(number, None, None, f"worker {number + 1}", node="id")
        found.members.append(slot)
        slot.name = found._name_slot(slot)
    assert [slot.name for slot in found.members] == names
    del found.members[1]  # it was lost
    found.members.append(pool._Slot(3, None, None, "worker 4", node="id"))
    assert found._name_slot(found.members[-1]) == "node host (2)"


def test_a_message_right_before_the_end_of_a_task_is_not_lost() -> None:
    found, board_, heard = build_pool(), board.Board(), []

    def take() -> Any:
        taken = board_.take()
        if slot.pending is not None and not ended:  # now the worker sends its last message, and ends
            board_.post(0, "say", pickle.dumps("last"))
            ended.append(True)
        return taken

    ended: list[bool] = []
    found.ray = type("Late", (Ray,), {"wait": lambda calls, **more: (calls if ended else [], [])})
    found.board = SimpleNamespace(take=SimpleNamespace(remote=lambda: take))
    task = SimpleNamespace(remote=lambda loads: lambda: ("done", True))
    slot = pool._Slot(0, SimpleNamespace(run=task), None, "worker 1", ready=True)
    found.members = [slot]
    assert pool._Round(found, ["task"], heard.append, Deadline(None)).run() and heard == ["last"]


def test_a_worker_waits_for_its_board_and_cleans_up_when_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    def leave(code: int) -> None:
        raise Ended

    one = worker.NodeWorker.__new__(worker.NodeWorker)
    one.ray, one.stopped, closed = Ray, threading.Event(), []
    one.worker = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(worker, "BEAT", 0.0)
    monkeypatch.setattr(worker.os, "_exit", leave)
    orders = iter([ZeroDivisionError, ZeroDivisionError, "stop", "lost"])

    def beat() -> str:
        order = next(orders)
        if isinstance(order, str):
            return order
        raise order

    one._obey(lambda: beat)
    assert one.is_over() and not closed
    with pytest.raises(Ended):
        one._obey(lambda: beat)
    assert closed


@pytest.mark.parametrize("text", ["30s", "", "0", "nan"])
def test_a_wrong_lease_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARSHOT_LEASE", text)
    with pytest.raises(UserError, match=f"^EARSHOT_LEASE={text}: has to be a number of seconds above 0$"):
        board.read_lease()


def test_a_node_with_other_audio_or_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(tmp_path / f"{number}.wav") for number in range(4)]
    for name in names:
        Path(name).write_text(name)
    clips = pandas.DataFrame({"path": [*names, ""], "split": ["train"] * 3 + ["subm"] * 2})
    digests = (*map(files.hash_file, names[:2]), "")  # the third could not be read
    plan = SimpleNamespace(competition=SimpleNamespace(clips=clips), digests=digests)
    remote_shards.check_audio(plan)
    Path(names[1]).write_text("another")
    with pytest.raises(UserError, match=r"has another file as .*/1.wav: mount the same audio"):
        remote_shards.check_audio(plan)
    Path(names[1]).unlink()
    with pytest.raises(UserError, match=r"does not see the audio .*/1.wav"):
        remote_shards.check_audio(plan)
    monkeypatch.setattr(logmel.Extractor, "find_weights", lambda settings, weights: [Path(names[0])])
    plan = SimpleNamespace(extractor="logmel", settings=None, weights=None, record={})
    plan.record["weights"] = files.hash_value([files.hash_file(names[0])])[:16]
    remote_shards.check_weights(plan)
    Path(names[0]).write_text("another")
    with pytest.raises(UserError, match="has other weights of logmel than the machine where"):
        remote_shards.check_weights(plan)


def test_another_process_checks_a_cache_again(tmp_path: Path) -> None:
    here = Cache(made_cache.make(tmp_path / "c" / "one", {"pooled": (4, 1, 1)}))
    here.split("train")
    there = pickle.dumps(here)
    assert pickle.loads(there).split("train")
    with open(here.folder / "train.pkl", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(UserError, match="train.pkl is missing or damaged"):
        pickle.loads(there).split("train")


def test_a_folder_is_recognised_by_its_token(tmp_path: Path) -> None:
    with storage.hold_token(tmp_path) as token:
        assert storage.has_token(tmp_path, token) and not storage.has_token(tmp_path, "other")
        storage.check_folder(tmp_path, token, "the run")
        with pytest.raises(UserError, match="does not see the run .*/else: put it on a file system"):
            storage.check_folder(tmp_path / "else", token, "the run")
    assert not storage.has_token(tmp_path, token) and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="does not see the audio /nowhere/a.wav: mount it"):
        storage.check_seen([tmp_path, "/nowhere/a.wav"], "audio")


@pytest.mark.parametrize(
    "address, words",
    [("ray://host:10001", "HOST:PORT"), ("host", "HOST:PORT"), ("127.0.0.1:1", "nothing listens there")],
)
def test_a_wrong_address_is_one_line(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words), connect.connect(ClusterFlags(cluster=address)):
        pass


@pytest.mark.skipif(find_spec("ray") is None, reason="requirements-cluster.txt is not installed")
def test_a_missing_token_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray looks for a token
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        line = refused(script("doctor.py", "--cluster", address, cwd=tmp_path, ok=None))
    assert line.startswith(f"error: --cluster {address}: cannot connect") and "set RAY_AUTH_TOKEN" in line


def test_without_ray_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install -r requirements-cluster.txt"):
        with connect.connect(ClusterFlags(cluster="auto")):
            pass


def test_what_does_not_run_on_a_cluster_is_refused_and_no_run_begun(tones: Path, tmp_path: Path) -> None:
    script("get_features.py", "--competition", tones, "--extractor", "logmel", cwd=tmp_path)
    on = ("--cluster", "127.0.0.1:1")
    for arguments in (("--recipe", "auto"), ("--tune", "3")):
        line = refused(script("train.py", *arguments, *on, cwd=tmp_path, ok=None))
        assert "--cluster 127.0.0.1:1: nothing listens there" in line
    for arguments in ((), ("--hidden",), ("--audio", tones, "--dry-run")):
        line = refused(script("predict.py", *arguments, *on, cwd=tmp_path, ok=None))
        assert "--cluster extracts the features of --audio FOLDER" in line
    line = refused(script("doctor.py", "--data", "data/tones", *on, cwd=tmp_path, ok=None))
    assert "--cluster checks machines" in line
    line = refused(script("doctor.py", "--device", "cpu", cwd=tmp_path, ok=None))
    assert "give --cluster, too" in line
    assert not list(tmp_path.glob("runs/*/config.yaml"))


def test_nothing_of_it_is_imported_without_its_flag(tones: Path, tmp_path: Path) -> None:
    text = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import get_features, train\n"
        f"get_features.main(['--competition', {str(tones)!r}, '--extractor', 'logmel'])\n"
        "train.main(['--head', 'mlp', '--epochs', '1', '--no-report'])\n"
        "found = [name for name in sys.modules if name.split('.')[0] == 'ray' or 'earshot.cluster' in name]\n"
        "assert not found, found"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=env, check=True, timeout=300)
