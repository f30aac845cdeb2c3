"""Rows of a submission that are stretches of recordings: which ids mean them, what is heard in each, the
whole line."""

from __future__ import annotations

import csv
from pathlib import Path

import joblib
import numpy as np
import pytest
import soundfile
from conftest import make_competition, read_csv, refused, script, tone
from layout_files import csv as write
from layout_files import files

import get_features
import predict
import train
from earshot.audio.decode import BadAudio
from earshot.audio.load import cut_segment
from earshot.competition.load import load
from earshot.features import plan
from earshot.features.source_files import Sources

KINDS = ["tone0", "tone1", "tone2"]


def asked(root: Path, ids: str) -> tuple[list[tuple], list[str], list[tuple]]:
    """(id, file, start, end) of the clips to submit, the lines said about the csv, what is missing."""
    write(root / "sample_submission.csv", "row_id,jay,owl " + " ".join(f"{id},0,0" for id in ids.split()))
    found = load(root)
    part = found.clips[found.clips.split == "subm"]
    rows = [(r.id, Path(r.path).name, r.start, r.end) for r in part.itertuples()]
    return rows, [note for note in found.notes if "stretches" in note], found.missing


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    root = tmp_path / "birds"
    files(
        root,
        "train_audio/a.wav",
        "train_audio/b.wav",
        "test_soundscapes/night_1.wav",
        "test_soundscapes/night_2.wav",
    )
    write(root / "train.csv", "filename,primary_label a.wav,owl b.wav,jay")
    return root


def test_ids_that_end_in_seconds(birds: Path) -> None:
    rows, said, missing = asked(birds, "night_2_10 night_1_5 night_2_5 night_1_15 night_1_10")
    assert rows == [
        ("night_2_5", "night_2.wav", 0, 5),
        ("night_2_10", "night_2.wav", 5, 10),
        ("night_1_5", "night_1.wav", 0, 5),
        ("night_1_10", "night_1.wav", 5, 10),
        ("night_1_15", "night_1.wav", 10, 15),
    ]
    assert said == ["sample_submission.csv: the ids name stretches of 5 s, of 2 recordings"] and missing == []
    assert load(birds).clips[:2][["start", "end"]].isna().to_numpy().all()


def test_odd_ends_and_lost_recordings(birds: Path) -> None:
    rows, _, missing = asked(birds, "night_1_10 night_1_20 night_1_30 night_1_37 night_1_4 night_3_10")
    assert [row[2:] for row in rows] == [(0, 4), (0, 10), (10, 20), (20, 30), (27, 37), (0, 10)]
    assert rows[-1][1] == "" and missing == [("subm", "night_3_10", "no such file")]
    # one each: the recording's first
    assert [row[2:] for row in asked(birds, "night_1_20 night_2_20")[0]] == [(0, 20), (0, 20)]


@pytest.mark.parametrize(
    "ids",
    [
        "night_1 night_2",
        "night_1 night_2_5",  # files of their own
        "night_1_0 night_1_5",
        "night_1_5s night_1_10s",
        "dawn_5 dawn_10",  # not seconds of an end, no recording
        "a_5 a_10",  # a training clip is never what is asked for
    ],
)
def test_ids_that_name_no_stretches(birds: Path, ids: str) -> None:
    rows, said, _ = asked(birds, ids)
    assert said == [] and np.isnan([row[2:] for row in rows]).all()
    assert {row[1] for row in rows} <= {"", "night_1.wav", "night_2.wav"}


def test_a_stretch_of_a_wave() -> None:
    wave = np.arange(10000, dtype=np.float32)
    assert cut_segment(wave, 1000, 2, 4).tolist() == list(range(2000, 4000))
    assert len(cut_segment(wave, 1000, 8, 13)) == 2000
    for start, reason in ((10, "the recording ends at 10.0 s"), (9.995, "too short .5 ms")):
        with pytest.raises(BadAudio, match=reason):
            cut_segment(wave, 1000, start, start + 5)
    with pytest.raises(BadAudio, match="silent"):
        cut_segment(np.ones(500, np.float32), 100, 0, 5)


def soundscapes(folder: Path) -> Path:
    """Tones of a second to learn from, and to submit every second of three recordings: some are silent, the
    last one breaks off."""
    data = make_competition(folder, train=8, subm=1)
    for path in (data / "audio_test").iterdir():
        path.unlink()
    silent, rows = np.zeros(16000, np.float32), []
    for name, kinds in (("r_7", (2, 0, 1, 1)), ("r_8", (None, 1, 2)), ("r_9", (0, None, 2))):
        wave = np.concatenate(
            [silent if kind is None else tone(kind, 100 + second) for second, kind in enumerate(kinds)]
        )
        soundfile.write(data / "audio_test" / f"{name}.flac", wave[:40000] if name == "r_9" else wave, 16000)
        rows += [(f"{name}_{second + 1}", kind) for second, kind in enumerate(kinds)]
    rows += [("r_9_4", None), ("gone_1", None)]
    with open(data / "sample_submission.csv", "w", newline="") as file:
        order = np.random.default_rng(1).permutation(len(rows))
        csv.writer(file).writerows([["row_id", *KINDS], *([rows[i][0], 0, 0, 0] for i in order)])
    with open(folder.parent / "solution.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["row_id", "kind"], *([id, "" if kind is None else kind] for id, kind in rows)]
        )
    return data


def test_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Each row is answered from its own second; what cannot be heard by the prior; alone, blended, stopped
    and continued."""
    data = soundscapes(tmp_path / "night")
    monkeypatch.chdir(tmp_path)
    get_features.main(["--competition", str(data), "--extractor", "logmel", "--workers", "1", "--trim", "60"])
    said = capsys.readouterr().out
    assert "stretches of 1 s, of 3 recordings" in said and "subm: 12 clips, 8 windows" in said
    folder = tmp_path / "data" / "night" / "logmel"
    kept = joblib.load(folder / "subm.pkl")
    where = zip(kept["start"].tolist(), kept["length"].tolist(), strict=True)
    heard = dict(zip(kept["ids"][kept["clip"]], where, strict=True))
    assert heard["r_7_3"] == (2.0, 1.0) and heard["r_9_3"] == (2.0, 0.5) and heard["r_8_2"] == (1.0, 1.0)
    reasons = {row["id"]: row["reason"] for row in read_csv(folder / "bad_audio.csv")}
    assert reasons == {
        "r_8_1": "silent",
        "r_9_2": "silent",
        "r_9_4": "the recording ends at 2.5 s",
        "gone_1": "no such file",
    }

    for name, more in (("one", []), ("two", ["--pool", "max"])):
        train.main(
            ["--recipe", "linear", "--epochs", "12", "--folds", "2", "--lr", "0.02", "--name", name, *more]
        )
    predict.main(["--runs", "one", "two", "--out", "both.csv"])
    prior = [1 / 3] * 3
    for path in ("submissions/submission.csv", "both.csv"):
        made = read_csv(tmp_path / path)
        assert [row["row_id"] for row in made] == [
            row["row_id"] for row in read_csv(data / "sample_submission.csv")
        ]
        found = {row["row_id"]: [float(row[kind]) for kind in KINDS] for row in made}
        for row in read_csv(tmp_path / "solution.csv"):
            answer = found[row["row_id"]]
            assert (
                np.allclose(answer, prior, atol=1e-6)
                if row["kind"] == ""
                else int(np.argmax(answer)) == int(row["kind"])
            ), row

    # What the cache was made from has the stretches in it, the same ids or not.
    found = load(data)
    contents = plan._digest_clips(found, Sources(tmp_path / "index.json"), 1)
    part = found.clips[found.clips.split == "subm"]
    others = (part, part.assign(start=part.start / 2), part.assign(end=part.end + 1))
    assert len({plan._describe_clips(found, other, contents, False) for other in others}) == 3
    text = (data / "sample_submission.csv").read_text()
    (data / "sample_submission.csv").write_text(text.replace("r_9_4", "r_9_5"))
    assert "there" in refused(
        script(
            "get_features.py",
            "--competition",
            data,
            "--extractor",
            "logmel",
            "--trim",
            "60",
            cwd=tmp_path,
            ok=None,
        )
    )


def test_a_killed_extraction_of_stretches_continues_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Shards that part a recording: stopped between them, continued, and on two processes, the cache is the
    same."""
    from earshot.features import shards

    monkeypatch.setattr(shards, "SHARD", 3)
    data = soundscapes(tmp_path / "night")
    monkeypatch.chdir(tmp_path)
    args = ["--competition", str(data), "--extractor", "logmel", "--device", "cpu"]
    get_features.main([*args, "--out", "calm"])
    while "stopped" in said_by(get_features.main, [*args, "--max-hours", "0.0000001"], capsys):
        pass
    get_features.main([*args, "--out", "apart", "--seconds", "1", "--device", "cpu,cpu"])
    one = (tmp_path / "calm" / "night" / "logmel" / "subm.pkl").read_bytes()
    for out in ("data", "apart"):
        assert (tmp_path / out / "night" / "logmel" / "subm.pkl").read_bytes() == one


def said_by(main, args: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    try:
        main(args)
    except SystemExit:
        pass
    return capsys.readouterr().out
