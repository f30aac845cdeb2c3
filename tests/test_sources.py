"""Fingerprints of settings, and what is remembered of source files."""

from __future__ import annotations

import json
import os
import time

import pytest

from earshot.core.errors import TemporaryError
from earshot.core.fingerprint import compute_fingerprint, list_differences
from earshot.features import source_files
from earshot.features.source_files import Sources


def test_fingerprints_are_of_values():
    one = {"a": (1, 2), "b": {"x": 1.0, "y": None}}
    assert (
        compute_fingerprint(one) == compute_fingerprint({"b": {"y": None, "x": 1.0}, "a": [1, 2]})
        and len(compute_fingerprint(one)) == 16
    )
    others = [
        {**one, "a": [2, 1]},
        {**one, "b": {"x": 1.0}},
        {**one, "b": {"x": 1.0, "y": 0}},
        {**one, "c": None},
    ]
    assert len({compute_fingerprint(other) for other in [one, *others]}) == 5
    assert list_differences(one, {"b": {"y": None, "x": 1.0}, "a": [1, 2]}) == []
    assert list_differences(one, {"a": [1, 3], "b": {"x": 1.0}, "c": {}}) == [
        "a[1]: 2 there, 3 here",
        "b.y: None there, nothing here",
        "c: nothing there, {} here",
    ]


def test_sources_notice_content_and_nothing_else(tmp_path, monkeypatch):
    import hashlib

    index, file = tmp_path / "index.json", tmp_path / "a.wav"
    file.write_bytes(b"one")
    first = Sources(index)
    (tmp_path / "nowhere.wav").symlink_to(tmp_path / "gone.wav")
    (digest, nothing, gone) = first.compute_digests([file, "", tmp_path / "nowhere.wav"])
    assert (digest, nothing, gone) == (hashlib.sha256(b"one").hexdigest(), "", "")
    with pytest.raises(TemporaryError, match="gone.wav"):
        first.compute_digests([file, tmp_path / "gone.wav"])
    first.save()
    assert Sources(index).known[str(file)] == {"size": 3, "sha256": digest}, "it might change again at once"
    # a moment later
    monkeypatch.setattr(source_files.time, "time_ns", lambda now=time.time_ns: now() + 10**10)
    first.changed = True
    first.save()
    reads, real = [], source_files.hash_file
    monkeypatch.setattr(source_files, "hash_file", lambda path: (reads.append(path), real(path))[1])
    assert Sources(index).compute_digests([file]) == [digest] and reads == [], "remembered"
    os.utime(file, ns=(1, 1))
    again = Sources(index)
    assert again.compute_digests([file]) == [digest] and reads == [str(file)], (
        "another time: read again, found equal"
    )
    again.save()
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert Sources(index).compute_digests([file]) == [hashlib.sha256(b"two").hexdigest()], (
        "the same size and time, other content"
    )
    file.write_bytes(b"longer")
    os.utime(file, ns=(1, 1))
    assert Sources(index).compute_digests([file]) == [hashlib.sha256(b"longer").hexdigest()], (
        "the same time, another size"
    )


@pytest.mark.parametrize(
    "damage", [b"{", b"[1]", b"\xff\xfe", b'{"PATH": 3}', b'{"files": {"PATH": 3}}', b"null", b""]
)
def test_a_damaged_index_is_made_anew(tmp_path, damage):
    index, file = tmp_path / "index.json", tmp_path / "a.wav"
    file.write_bytes(b"one")
    index.write_bytes(damage.replace(b"PATH", str(file).encode()))
    made = Sources(index)
    want = made.compute_digests([file])
    made.save()
    assert len(want[0]) == 64 and json.loads(index.read_text())["files"][str(file)]["sha256"] == want[0]
    assert Sources(index).compute_digests([file]) == want


def test_headers_are_remembered(tmp_path, monkeypatch):
    import soundfile

    soundfile.write(tmp_path / "a.wav", [0.1] * 4000, 8000)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    (tmp_path / "nowhere.wav").symlink_to(tmp_path / "gone.wav")
    paths = [tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "nowhere.wav"]
    monkeypatch.setattr(source_files.time, "time_ns", lambda now=time.time_ns: now() + 10**10)
    first = Sources(tmp_path / "index.json")
    assert first.read_headers(paths) == [(0.5, 8000), None, None]
    first.save()
    asked = []
    monkeypatch.setattr("earshot.audio.load.read_info", lambda path: asked.append(path) or (2.0, 16000))
    assert Sources(tmp_path / "index.json").read_headers(paths) == [(0.5, 8000), (2.0, 16000), None]
    # a failure is not remembered: the file may have become readable
    assert asked == [str(tmp_path / "b.wav")]
