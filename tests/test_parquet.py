"""Audio embedded in parquet files, as Hugging Face's data sets have it."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from layout_files import refused

from earshot.competition import parquet, zip_file
from earshot.competition.load import load

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet as pq  # noqa: E402


def wave(hz: int, kind: str = "WAV") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, 0.3 * np.sin(hz * np.arange(800) / 8000), 8000, format=kind)
    return out.getvalue()


def written(path: Path, cells: list, classes=("cat", "dog"), group: int = 3, **columns) -> Path:
    """A parquet file as `datasets` writes it; a cell is (path, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    audio = pyarrow.array([{"path": p, "bytes": b} for p, b in cells], struct)
    table = pyarrow.table({"audio": audio, **columns})
    features = {"audio": {"_type": "Audio"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)
    return path


def clips(*names) -> list:
    return [(name, wave(300 + 9 * n)) for n, name in enumerate(names)]


def test_a_data_set_of_splits_and_shards(tmp_path):
    root = tmp_path / "barks"
    written(
        root / "data/train-00000-of-00002.parquet",
        clips("a.wav", "b.wav", "c.wav", "d.wav"),
        label=[0, 1, 0, 1],
    )
    written(root / "data/train-00001-of-00002.parquet", clips("e.wav", "a.wav"), label=[1, 0])
    written(root / "data/test-00000-of-00001.parquet", clips("a.wav", "y.wav"), label=[0, 1])
    comp = load(root, out=tmp_path / "out")
    train = comp.clips[comp.clips["split"] == "train"]
    assert list(train["label"]) == ["cat", "dog", "cat", "dog", "dog", "cat"] and comp.classes == [
        "cat",
        "dog",
    ]
    assert len(set(train["path"])) == 6 and list(comp.clips["split"]).count("test") == 2
    assert Path(train["path"].iloc[1]).read_bytes() == wave(309)
    assert [p.name for p in root.rglob("*")].count("train.csv") == 0
    again = load(root, out=tmp_path / "out")
    assert again.clips["path"].tolist() == comp.clips["path"].tolist()
    written(root / "data/train-00001-of-00002.parquet", clips("e.wav"), label=[1])
    assert (load(root, out=tmp_path / "out").clips["split"] == "train").sum() == 5


def test_every_kind_of_cell(tmp_path):
    path = written(
        tmp_path / "c/train.parquet",
        [
            (None, wave(300, "FLAC")),
            ("", wave(310, "OGG")),
            ("sub/x.WAV", None),
            (None, None),
            ("n", wave(9, "MP3")),
        ],
        label=[0, -1, None, 7, 1],
        text=["a,b", 'quote "', None, "line\nbreak", "ü"],
        score=[0.5, float("nan"), None, 1e300, -1.0],
        flag=[True, False, None, True, False],
        tags=[["x, y", "z"], [], None, ["w"], ["z"]],
        vector=[[0.5], [], None, [1.0], [2.0]],
        kind=pyarrow.array(["u", "v", "u", None, "v"]).dictionary_encode(),
    )
    parquet.unpack_parquet([path], "train", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/train.csv", dtype=str, keep_default_na=False)
    assert list(table.columns) == ["file_name", "label", "text", "score", "flag", "tags", "kind"]
    assert list(table["file_name"]) == [
        "train/000000.flac",
        "train/000001.ogg",
        "sub/x.WAV",
        "",
        "train/n.mp3",
    ]
    assert list(table["label"]) == ["cat", "", "", "7", "dog"]
    assert list(table["text"]) == ["a,b", 'quote "', "", "line\nbreak", "ü"]
    assert list(table["score"]) == ["0.5", "", "", "1e+300", "-1.0"]
    assert list(table["tags"]) == ["['x, y', 'z']", "", "", "['w']", "['z']"]


def test_paths_stay_inside(tmp_path):
    names = [
        "../../escape.wav",
        "/tmp/escape.wav",
        "..\\escape.wav",
        "..",
        ".hidden.wav",
        "a\0b.wav",
        "x" * 999,
        "ESCAPE.wav",
    ]
    path = written(tmp_path / "c/train.parquet", [(n, wave(300)) for n in names], label=[0, 1] * 4)
    parquet.unpack_parquet([path], "train", tmp_path / "out" / "into")
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    inside = [p for p in found if p.startswith("out/into/train/") and p.endswith(".wav")]
    assert len(inside) == 8 and len(found) == 10 and not any("/." in p for p in inside)


def test_a_huge_cell_and_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "LARGEST_CELL", 10_000)
    written(tmp_path / "c/train.parquet", [("a.wav", bytes(50_000))], label=[0])
    assert "has a cell of more than" in refused(tmp_path / "c", out=tmp_path / "out")
    monkeypatch.setattr(parquet, "LARGEST_CELL", 1 << 30)
    monkeypatch.setattr(zip_file, "MAX_SMALL", 20_000)
    # one value in the dictionary, for every row
    written(tmp_path / "c/train.parquet", [("a.wav", bytes(15_000))] * 400, label=[0] * 400, group=400)
    line = refused(tmp_path / "c", out=tmp_path / "out")
    assert "not safe to unpack" in line or "more than 100 times" in line
    assert not list((tmp_path / "out").rglob("*.wav"))


def test_damaged_files_end_in_one_line(tmp_path):
    path = written(tmp_path / "c/train.parquet", clips(*(f"{n}.wav" for n in range(8))), label=[0, 1] * 4)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    path.write_bytes(whole[:-50])
    assert "not a complete parquet file" in refused(tmp_path / "c", out=tmp_path / "out")
    for _ in range(60):
        spoilt = bytearray(whole)
        for at in random.integers(len(whole) - 2000, len(whole) - 8, 2):
            spoilt[at] = random.integers(256)
        path.write_bytes(spoilt)
        try:
            parquet.check_files([path])
            parquet.unpack_parquet([path], "train", tmp_path / f"out{_}")
        except parquet.UserError as error:
            assert "\n" not in str(error)


def test_without_pyarrow_and_beside_other_audio(kaggle, tmp_path, monkeypatch):
    written(tmp_path / "c/train.parquet", clips("a.wav", "b.wav"), label=[0, 1])
    written(kaggle / "extra.parquet", clips("a.wav", "b.wav"), label=[0, 1])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "pip install pyarrow" in refused(tmp_path / "c", out=tmp_path / "out")
    comp = load(kaggle, out=tmp_path / "out")
    assert len(comp.clips) == 5 and any("warning: not used: " in n and "pip install" in n for n in comp.notes)


def test_tables_and_pictures_are_left_alone(kaggle, tmp_path):
    pq.write_table(pyarrow.table({"id": [1, 2]}), kaggle / "table.parquet")
    comp = load(kaggle, out=tmp_path / "out")
    assert comp.root == kaggle and not any("parquet" in n for n in comp.notes)
