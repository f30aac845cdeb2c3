"""Caches: equal bytes, memory maps, and untrusted pickles that must not run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest

from earshot.core.errors import UserError
from earshot.features import cache


def content() -> dict:
    return {
        "ids": np.array(["a", "bä"]),
        "mel": np.arange(24, dtype=np.float16).reshape(2, 1, 3, 4),
        "clip": np.array([0, 1], dtype=np.int32),
        "empty": np.zeros((0, 2), np.float16),
        "meta": {"fingerprint": "f", "record": {"n": 1, "x": [1.5, None, True]}},
    }


def test_round_trip_and_memory_map(tmp_path: Path) -> None:
    cache.dump(tmp_path / "a.pkl", content())
    for mmap in (True, False):
        back = cache.load(tmp_path / "a.pkl", mmap)
        assert back["meta"] == content()["meta"]
        for key in ("ids", "mel", "clip", "empty"):
            assert np.array_equal(back[key], content()[key]) and back[key].dtype == content()[key].dtype
    mapped = cache.load(tmp_path / "a.pkl")["mel"]
    assert isinstance(mapped, np.memmap)
    with pytest.raises(ValueError):
        mapped[0] = 0


def test_joblib_reads_it_too(tmp_path: Path) -> None:
    cache.dump(tmp_path / "a.pkl", content())
    assert joblib.load(tmp_path / "a.pkl")["ids"].tolist() == ["a", "bä"]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    shared = "pooled"
    one = {"meta": {"a": shared, "b": shared}}
    other = {"meta": {"a": "poo" + "led"[:], "b": "".join(["p", "ooled"])}}
    cache.dump(tmp_path / "a.pkl", one)
    cache.dump(tmp_path / "b.pkl", other)
    assert (tmp_path / "a.pkl").read_bytes() == (tmp_path / "b.pkl").read_bytes()


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        cache.dump(tmp_path / "a.pkl", {"x": np.array([{}, []], dtype=object)})
    assert not list(tmp_path.iterdir())


class Harm:
    """Pickles into a call that leaves a file behind."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Caller:
    """Pickles into a call of a class that the reader must otherwise allow."""

    def __reduce__(self):
        return np.ndarray, ((1 << 40,),)


def poisoned_class(path: Path) -> bytes:
    """Changes joblib's wrapper class itself, so that the next array would be read by something else."""
    return b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n(N}(X\x04\x00\x00\x00readX\x01\x00\x00\x00xutb."


@pytest.mark.parametrize(
    "kind",
    [
        "reduce",
        "nested",
        "object array",
        "builtin",
        "allowed class",
        "poisoned class",
        "deep key",
        "compressed",
        "truncated",
        "text",
        "nothing",
        "list",
    ],
)
def test_untrusted_pickles_are_refused_and_run_nothing(tmp_path: Path, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.pkl"
    if kind == "reduce":
        path.write_bytes(pickle.dumps(Harm(victim)))
    elif kind == "nested":
        joblib.dump({"ids": np.array(["a"]), "meta": {"deep": [Harm(victim)]}}, path)
    elif kind == "object array":
        joblib.dump({"ids": np.array([Harm(victim)], dtype=object)}, path)
    elif kind == "builtin":
        path.write_bytes(b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.")
    elif kind == "allowed class":
        path.write_bytes(pickle.dumps(Caller()))
    elif kind == "poisoned class":
        path.write_bytes(poisoned_class(victim))
    elif kind == "deep key":  # Python's own hash of it ends the process
        path.write_bytes(b"\x80\x04})" + b"\x85" * 900_000 + b"Ns.")
    elif kind == "compressed":
        joblib.dump(content(), path, compress=3)
    elif kind == "truncated":
        cache.dump(path, {"mel": np.zeros((100, 1, 8, 8), np.float16)})
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "text":
        path.write_text("fname,label\n")
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "list":
        path.write_bytes(pickle.dumps([1, 2]))
    for mmap in (True, False):
        with pytest.raises(UserError) as error:
            cache.load(path, mmap)
        assert "a.pkl" in str(error.value) and "\n" not in str(error.value)
    assert not victim.exists()
    from joblib.numpy_pickle import NumpyArrayWrapper

    assert callable(NumpyArrayWrapper.read)


def test_missing_cache_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a cache .it has no manifest.json.: make one"):
        cache.Cache(tmp_path)
    with pytest.raises(UserError, match="get_features.py"):
        cache.load(tmp_path / "train.pkl")
