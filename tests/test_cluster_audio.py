"""predict.py --audio on a simulated Ray cluster that breaks, or is stopped."""

# ruff: noqa: F811  (fixtures by their names)
from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import soundfile
from conftest import refused, script, tone
from test_cluster import Nodes, Started, calm, data, driver, nodes, pytestmark  # noqa: F401

from earshot.core.device import use_threads


@pytest.fixture(scope="module")
def audio(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio in 10 groups of files: short clips, one that cannot be read, recordings of many windows."""
    folder = tmp_path_factory.mktemp("new") / "audio"
    shutil.copytree(data, folder)
    (folder / "train.csv").unlink()
    for number in range(20):
        soundfile.write(folder / f"long{number:02d}.wav", tone(number % 3, number, seconds=4.2), 16000)
    return folder


def read_predictions(folder: Path) -> list[bytes]:
    """The table of predictions, and that of the events."""
    names = ("predictions.csv", "predictions_events.csv")
    return [(folder / "submissions" / name).read_bytes() for name in names]


def test_new_audio_on_a_cluster_that_breaks(
    nodes: Nodes, calm: Path, audio: Path, driver: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import predict
    from earshot.prediction.new_audio import Bite, ExtractedFiles

    alone = driver / "alone"
    alone.mkdir()
    command = ("--runs", calm / "runs" / "r", "--audio", audio)
    said = script("predict.py", *command, "--device", "cpu", cwd=alone).stdout
    assert "290 rows, 1 filled" in said
    add, killed = ExtractedFiles._add, []

    def add_and_kill(made: ExtractedFiles, bite: Bite) -> None:
        if not killed:  # the first files are here, and both nodes work on others
            killed.append(nodes.nodes[0])
            nodes.kill(killed[0])
        add(made, bite)

    monkeypatch.setattr(ExtractedFiles, "_add", add_and_kill)
    with use_threads(1):
        predict.main([*map(str, command), "--cluster", nodes.address])
    found = capsys.readouterr().out
    assert "device: cluster of 2 nodes, 2 workers of 1 CPU thread; the heads predict on this" in found
    assert re.search(r"warning: node \S+ was lost \(it died\): files? \S+\.wav .*another worker", found)
    assert "can't read this file: t004.wav: " in found and killed
    assert read_predictions(driver) == read_predictions(alone)


def test_new_audio_on_a_cluster_can_be_stopped(nodes: Nodes, calm: Path, audio: Path, tmp_path: Path) -> None:
    nodes.fill()
    command = ("predict.py", "--runs", calm / "runs" / "r", "--audio", audio, "--cluster")
    begun = Started(*command, nodes.address, cwd=tmp_path)
    begun.wait_for(lambda: "device: cluster of 2 nodes" in begun.text)
    assert begun.finish(signal.SIGINT) == 130
    assert begun.text.count("stopped: ") == 1 and not list(tmp_path.rglob("*.csv"))
    line = refused(script(*command, "127.0.0.2:1", cwd=tmp_path, ok=None))
    assert "--cluster 127.0.0.2:1: nothing listens there" in line
