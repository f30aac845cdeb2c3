"""What of the cluster needs no nodes: leases, nodes that fit together, what is refused, what is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, refused, script

from earshot.cluster import board, connect, probe, storage
from earshot.core import files
from earshot.core.config import ClusterFlags
from earshot.core.device import Device
from earshot.core.errors import UserError


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
    monkeypatch.setattr(files.GUARD, "check", check)
    with pytest.raises(Lost):
        files.write_text(tmp_path / "a", "new")
    with pytest.raises(Lost), files.replace_folder(tmp_path / "last") as new:
        (new / "b").write_text("new")
    assert (tmp_path / "a").read_text() == "old" and (tmp_path / "last" / "b").read_text() == "newer"
    assert [path.name for path in tmp_path.glob("*.*")] == ["last.host-7.new"]
    files.recover_folder(tmp_path / "last")  # as its replacement on another machine does
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "last"]


def test_nodes_of_two_kinds_or_versions_do_not_fit_together() -> None:
    here = probe.probe("cpu", "fp32", 1)._replace(node="a")
    assert probe.check_alike([here, here]) is probe.check_versions([here]) is None
    gpu = here._replace(node="b", kind="x86_64 T4", device=Device("cuda:0", "fp16", "T4"))
    for other in (gpu, here._replace(node="b", device=Device("cpu", "bf16", ""))):
        assert "are of 2 kinds" in str(probe.check_alike([here, other]))
    old = here._replace(node="b", versions={**here.versions, "torch": "1.0"})
    assert str(probe.check_versions([here, old])).startswith("node b has torch 1.0, this machine ")
    assert "another version of Earshot" in str(probe.check_versions([here._replace(code="0")]))


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
    assert "unknown flag --cluster" in refused(script("predict.py", *on, cwd=tmp_path, ok=None))
    line = refused(script("doctor.py", "--data", "data/tones", *on, cwd=tmp_path, ok=None))
    assert "--cluster checks machines" in line
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
