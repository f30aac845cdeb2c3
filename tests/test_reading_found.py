"""Faults that a reader found in how a competition's files are read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from layout_files import refused
from test_reading import noted, text, wave, waves

from earshot.competition import layouts, suspicious
from earshot.competition.load import load
from earshot.competition.reading import Reading


def test_class_folders_that_count_alike_are_no_copies(tmp_path: Path) -> None:
    for n in range(4):
        wave(tmp_path / f"audio/cat/{n}.wav", 0, n, 0.1, 8000)
        wave(tmp_path / f"audio/dog/{n}.wav", 1, n, 0.2, 16000)
    assert load(tmp_path).classes == ["cat", "dog"]


def test_audio_folder_counts_beside_other_copies(tmp_path: Path) -> None:
    for n in range(4):
        wave(tmp_path / f"a/16/{n}.wav", n % 2, n, 0.1, 16000)
        wave(tmp_path / f"a/8/{n}.wav", n % 2, n, 0.1, 8000)
        wave(tmp_path / f"b/{n}.wav", n % 2, n, 0.1)
    text(tmp_path / "train.csv", "id,label", "0,x", "1,y", "2,x", "3,y")
    comp = load(tmp_path, audio_folder="b")
    assert {Path(path).parent.name for path in comp.clips["path"]} == {"b"}
    comp = load(tmp_path, audio_folder="a")  # holds two copies: the higher rate
    assert {Path(path).parent.name for path in comp.clips["path"]} == {"16"}


def test_names_that_are_no_utf8_have_headers(tmp_path: Path) -> None:
    for folder, rate in (("16", 16000), ("8", 8000)):
        for n in range(4):
            sound = wave(tmp_path / f"audio/{folder}/x{n}.wav", n % 2, n, 0.1, rate)
            sound.rename(sound.parent / os.fsdecode(b"\xe9%d.wav" % n))
    text(tmp_path / "train.csv", "id,label", "é0,x", "é1,y", "é2,x", "é3,y")
    comp = load(tmp_path)
    assert len(comp.clips) == 4 and noted(comp, "used is audio/16 (16000 Hz)")


def test_noise_folders_with_the_same_names(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{label}/{label}{n}.wav" for label in ("yes", "no") for n in range(3)))
    for folder in ("_a_", "_b_"):
        sound = wave(tmp_path / folder / "x.wav", 0, 0, 0.3)
        sound.rename(sound.parent / os.fsdecode(b"\xe9.wav"))
    comp = load(tmp_path, noise_class="silence")
    assert len(comp.clips) == 12 and comp.clips["id"].is_unique


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{label}/{label}{n}.wav" for label in ("yes", "no") for n in range(3)))
    (tmp_path / "yes/gone.wav").symlink_to("/nowhere/gone.wav")
    assert len(load(tmp_path).clips) == 7


@pytest.mark.parametrize("more", [{}, {"label_pattern": "([a-z]+)[0-9]"}])
def test_a_map_that_leaves_nothing(tmp_path: Path, more: dict) -> None:
    waves(tmp_path, *(f"{label}/{label}{n}.wav" for label in ("yes", "no") for n in range(3)))
    assert "no training clip" in refused(tmp_path, label_map=("yes=", "no="), **more)


def test_many_copies_take_no_quadratic_time(tmp_path: Path) -> None:
    for top in ("a", "a/b"):
        for label in ("c0", "c1"):
            (tmp_path / top / label).mkdir(parents=True)
            for n in range(3000):
                (tmp_path / top / label / f"{label}x{n}.wav").write_bytes(n.to_bytes(44, "little"))
    began = time.perf_counter()
    assert len(layouts.recognise(tmp_path, Reading()).clips) == 6000
    names = [f"s{speaker}/d/{n}.wav" for speaker in range(400) for n in range(100)]
    assert suspicious.twice(names, list(range(len(names)))) == ([], "")
    assert time.perf_counter() - began < 20
