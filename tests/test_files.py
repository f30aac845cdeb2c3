"""Atomic writing: a failure leaves the old state, and what a kill leaves is put right."""

from __future__ import annotations

from pathlib import Path

import pytest

from earshot.core.errors import UserError
from earshot.core.files import (
    empty_folder,
    hold_lock,
    recover_folder,
    replace_file,
    replace_folder,
    write_text,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(RuntimeError):
        with replace_file(tmp_path / "a") as file:
            file.write(b"half of the n")
            raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def fill(folder: Path, text: str) -> None:
    with replace_folder(folder) as new:
        (new / "x").write_text(text)


def test_folder_is_replaced_whole(tmp_path: Path) -> None:
    fill(tmp_path / "last", "1")
    fill(tmp_path / "last", "2")
    assert (tmp_path / "last" / "x").read_text() == "2" and [p.name for p in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize(
    "state, expected",
    [
        ({"last": "1", "last.new": "half"}, "1"),  # killed while the new one was filled
        ({"last.old": "1", "last.new": "2"}, "2"),  # killed between the renames: the new one is whole
        ({"last": "2", "last.old": "1"}, "2"),  # killed before the old one was removed
        ({"last.new": "half"}, None),  # killed while the very first was filled
    ],
)
def test_kills_inside_a_replacement(tmp_path: Path, state: dict, expected: str | None) -> None:
    for name, text in state.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(text)
    assert recover_folder(tmp_path / "last") == (expected is not None)
    if expected:
        assert (tmp_path / "last" / "x").read_text() == expected
    assert [p.name for p in tmp_path.iterdir()] == (["last"] if expected else [])


def test_second_process_is_refused(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "cache", "the cache"):
        with pytest.raises(UserError, match="another process"):
            with hold_lock(tmp_path / "cache", "the cache"):
                pass
        (tmp_path / "cache" / "deep").mkdir()
        empty_folder(tmp_path / "cache")
        assert [p.name for p in (tmp_path / "cache").iterdir()] == [".lock"]
    with hold_lock(tmp_path / "cache", "the cache"):
        pass
