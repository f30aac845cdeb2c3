"""Readers of foreign files under random damage: a value of the promised kind, or one line, and never anything
else."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layout_files import files

from earshot.competition.load import load as load_competition
from earshot.core import checksums
from earshot.core.errors import Refused, UserError
from earshot.extractors import torch_weights
from earshot.features import cache

EXAMPLES = int(os.environ.get("EARSHOT_FUZZ", "150"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

# Where to change, and into what: relative places, so that they shrink and fit any file.
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "end"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=5,
)
CODES = [
    value
    for name, value in vars(pickle).items()
    if name.isupper() and isinstance(value, bytes) and len(value) == 1
]
OPCODES = st.lists(st.one_of(st.sampled_from(CODES), st.binary(max_size=6)), max_size=60).map(b"".join)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


def damaged(data: bytes, changes: list) -> bytes:
    """Some bytes set, removed, added, or the end cut off."""
    for how, where, new in changes:
        at = int(where * len(data))
        data = {
            "set": data[:at] + new + data[at + len(new) :],
            "cut": data[:at] + data[at + len(new) :],
            "insert": data[:at] + new + data[at:],
            "end": data[:at],
        }[how]
    return data


def plain(value, depth: int = 0) -> bool:
    """Arrays of numbers or text, and plain values."""
    if isinstance(value, dict):
        return depth <= 32 and all(isinstance(k, str) and plain(v, depth + 1) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return depth <= 32 and all(plain(v, depth + 1) for v in value)
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject and value.dtype.names is None
    return value is None or type(value) in (str, int, float, bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def good(folder: Path) -> bytes:
    cache.dump(
        folder / "good.pkl",
        {
            "ids": np.array(["a", "bä"]),
            "mel": np.arange(24, dtype=np.float16).reshape(2, 1, 3, 4),
            "empty": np.zeros((0, 2), np.float16),
            "meta": {"record": {"n": 1, "x": [1.5, None, True]}},
        },
    )
    return (folder / "good.pkl").read_bytes()


def read_cache(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for mmap in (True, False):
        try:
            found = cache.load(path, mmap)
        except UserError as error:
            assert "\n" not in str(error) and path.name in str(error)
        else:
            assert type(found) is dict and plain(found)


@FUZZ
@given(changes=CHANGES)
def test_damaged_caches(folder, good, changes):
    read_cache(folder / "a.pkl", damaged(good, changes))


@FUZZ
@given(body=OPCODES, inside=st.booleans())
def test_random_opcodes(folder, body, inside):
    read_cache(folder / "b.pkl", b"\x80\x04}X\x01\x00\x00\x00x" + body + b"s." if inside else body)


@FUZZ
@given(changes=CHANGES)
def test_damaged_weights(folder, changes):
    whole = folder / "whole.pt"
    if not whole.exists():
        torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}, whole)
    path = folder / "c.pt"
    path.write_bytes(damaged(whole.read_bytes(), changes))
    try:
        found = torch_weights.load(path)
    except Refused as error:
        assert "\n" not in str(error)
    else:
        assert all(type(key) is str for key in found)


@FUZZ
@given(value=VALUES, changes=CHANGES)
def test_sealed_json(folder, value, changes):
    path = folder / "state.json"
    checksums.write(path, {"value": value})
    assert checksums.read(path) == {"value": json.loads(json.dumps(value))}
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, changes))
    try:
        found = checksums.read(path)
    except checksums.CorruptFile as error:
        assert "\n" not in str(error)
    else:  # blanks and line ends are no content
        assert found == {"value": json.loads(json.dumps(value))}


CELLS = st.sampled_from(
    [
        "a.wav",
        "b.wav",
        "c",
        "x.wav",
        "y",
        "../a.wav",
        "/etc/passwd",
        "owl",
        "jay",
        "owl,jay",
        "",
        " ",
        "0",
        "1",
        "nan",
        "é",
        '"',
        "'",
    ]
)
HEADS = st.lists(
    st.sampled_from(["fname", "label", "id", "fold", "group", "owl", "jay", "", "target"]),
    min_size=1,
    max_size=4,
)
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=8)


@FUZZ
@given(
    head=HEADS,
    rows=ROWS,
    mark=st.sampled_from([",", ";", "\t", "|"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    bom=st.sampled_from(["", "\ufeff"]),
    sample=ROWS,
    quote=st.booleans(),
    junk=st.binary(max_size=4),
)
def test_csv_files(folder, head, rows, mark, end, bom, sample, quote, junk):
    root = folder / "birds"
    if not root.exists():
        files(
            root,
            "audio_train/b.wav",
            "audio_train/a.wav",
            "audio_train/c.wav",
            "audio_test/y.wav",
            "audio_test/x.wav",
        )

    def written(table: list[list[str]]) -> bytes:
        cells = [[f'"{cell}"' if quote else cell for cell in row] for row in table]
        return (bom + end.join(mark.join(row) for row in cells) + end).encode("utf-8")

    (root / "train.csv").write_bytes(written([head, *rows]) + junk)
    (root / "sample_submission.csv").write_bytes(written([["fname", "label"], *sample]))
    try:
        found = load_competition(root)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return
    clips = found.clips
    for _, part in clips.groupby("split"):
        assert part.id.is_unique
    assert all(not path or Path(path).resolve().is_relative_to(root.resolve()) for path in clips.path)
    assert set(clips.label[clips.split == "train"].map(type)) <= {str, tuple} and len(found.classes) >= 2
