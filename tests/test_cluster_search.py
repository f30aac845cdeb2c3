"""The bake-off and tuning on a simulated Ray cluster whose driver and nodes are killed: decisions stay, and
the files equal a single machine's."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import script
from test_cluster import Nodes, Started, calm, data, nodes, pytestmark  # noqa: F401
from test_restart import contents

from earshot.core import checksums

SMALL = "head: {name: audio_cnn, channels: [16, 32], blocks: [1, 1]}\n"
SMALL += "training: {epochs: 6, precision: fp32}\n"


def watch_models(folder: Path, pattern: str) -> Callable[[], bool]:
    """Has a model that matches saved a checkpoint since?"""

    def stamps() -> set[int]:
        found = set()
        for path in folder.glob(f"{pattern}/fold_*/last/state.json"):
            with contextlib.suppress(FileNotFoundError):
                found.add(path.stat().st_mtime_ns)
        return found

    before = stamps()
    return lambda: not stamps() <= before


def kill_stop_and_resume(cluster: Nodes, command: tuple, cwd: Path, run: Path, pattern: str) -> str:
    """Run a command until its driver is killed, then until a signal comes, then while a node is killed; the
    last output."""
    cluster.fill()
    for number in (signal.SIGKILL, signal.SIGINT):
        begun = Started(*command, cwd=cwd)
        begun.wait_for(watch_models(run, pattern))
        assert begun.finish(number) == (-number if number == signal.SIGKILL else 128 + number)
    begun = Started(*command, cwd=cwd)
    begun.wait_for(watch_models(run, pattern))
    cluster.kill(cluster.nodes[0])
    assert begun.finish() == 0, begun.text
    assert "was lost (it died): " in begun.text and "is given to another worker" in begun.text
    assert not [*run.rglob("*.tmp"), *run.rglob("*.new"), *run.rglob("*.old"), *run.rglob(".token")]
    return begun.text


def test_a_bake_off_on_a_cluster_that_breaks(nodes: Nodes, calm: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "data").symlink_to(calm / "data")
    (tmp_path / "small.yaml").write_text(SMALL)
    command = ("train.py", "--recipe", "auto", "--candidates", "logistic", "svm", "small.yaml")
    command += ("--folds", "3", "--name", "a", "--no-report")
    run, on = tmp_path / "runs" / "a", ("--cluster", nodes.address)
    text = kill_stop_and_resume(nodes, (*command, *on), tmp_path, run, "small-*")
    assert "device: cluster of 2 nodes, 2 workers of 1 CPU thread" in text
    assert "submissions/submission.csv: 60 rows" in text
    decisions = checksums.read(run / "auto.json")["decisions"]
    assert all(one["done"] for one in decisions)
    log = (run / "training_log.txt").read_text()
    assert log.count("next: ") == len(decisions)  # none was taken again
    script(*command, "--device", "cpu", "--runs-folder", "calm", "--out", "calm.csv", cwd=tmp_path)
    names = ("oof*.csv", "*/oof*.csv", "*/fold_*/last/model.safetensors")
    one, two = contents(tmp_path / "calm" / "a", *names), contents(run, *names)
    assert one == two and len(one) > 15
    assert (tmp_path / "calm.csv").read_bytes() == (tmp_path / "submissions/submission.csv").read_bytes()


def test_tuning_on_a_cluster_that_breaks(nodes: Nodes, calm: Path, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("optuna")
    (tmp_path / "data").symlink_to(calm / "data")
    (tmp_path / "small.yaml").write_text(SMALL)
    command = ("train.py", "--recipe", "small.yaml", "--tune", "3", "--folds", "3", "--fold", "0", "1")
    command += ("--name", "t", "--no-report")
    run, on = tmp_path / "runs" / "t", ("--cluster", nodes.address)
    kill_stop_and_resume(nodes, (*command, *on), tmp_path, run, "trial_*")
    script(*command, "--device", "cpu", "--runs-folder", "calm", "--out", "calm.csv", cwd=tmp_path)
    one, two = (
        [line for line in (at / "training_log.txt").read_text().splitlines() if line.startswith("trial ")]
        for at in (tmp_path / "calm" / "t", run)
    )
    # the first trials are drawn at random, so that trials at once are those of one machine
    assert one == two and len(one) == 3
    names = ("oof*.csv", "fold_*/last/model.safetensors")
    assert contents(tmp_path / "calm" / "t", *names) == contents(run, *names)
