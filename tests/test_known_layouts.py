"""Replicas of public data sets, as people really have them: each is read right without flags, or refused in
one line with the command that makes it right; contests end in a submission of the right kind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, SHARED, refused, script

from earshot.competition.load import Competition, load

MAKER = SHARED / "cases" / "make_layouts.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MAKER.is_file(), reason=f"the makers of layouts are not at {MAKER}"),
]
BIRDS = ["1139490", "asbfly", "ashdro1", "bkskit1", "comior1", "yebela1"]
TEN = ["down", "go", "left", "no", "off", "on", "right", "silence", "stop", "unknown", "up", "yes"]
EMOTIONS = ["angry", "calm", "disgust", "fearful", "happy", "neutral", "sad", "surprised"]
FSD = ["Acoustic_guitar", "Bark", "Flute", "Gunshot_or_gunfire", "Hi-hat", "Laughter"]
# name -> classes (or how many), clips to train on, held out and to submit, and what else is to be so
RIGHT: dict[str, tuple[list[str] | int, int, int, int, dict[str, object]]] = {
    # 1: read right before, too
    "itmo2025": (5, 40, 0, 12, {"header": "fname,label"}),
    "giz_zindi": (5, 40, 0, 10, {}),
    "av_urban": (5, 45, 0, 15, {"header": None}),
    "fsdkaggle2018_zenodo": (FSD, 36, 12, 0, {}),
    "urbansound8k": (5, 50, 0, 0, {"folds": 5, "groups": 25}),
    "urbansound8k_kaggle": (5, 50, 0, 0, {"folds": 5, "groups": 25}),
    "esc50_kaggle_onerate": (5, 50, 0, 0, {"folds": 5, "layout": "ESC"}),
    "gtzan_kaggle": (5, 40, 0, 0, {"groups": 0, "layout": "folder per class"}),
    "gtzan_tar": (4, 32, 0, 0, {"groups": 0}),
    "birdclef2023": (BIRDS, 42, 0, 4, {"stretches": 4}),
    "birdclef2024": (BIRDS, 42, 0, 3, {"metric": "roc_auc_macro"}),
    "birdclef2025": (BIRDS, 42, 0, 3, {"metric": "roc_auc_macro"}),
    "hf_audiofolder_one": (3, 30, 0, 0, {}),
    "for_norm": (2, 34, 10, 0, {}),
    "train_val_test": (3, 33, 9, 0, {}),
    "kaggle_paths": (3, 30, 0, 6, {}),
    "odd_names": (5, 40, 0, 8, {}),
    "musical_instruments": (4, 36, 12, 0, {}),
    # 2: silently wrong before
    "inclass_folders": (3, 30, 0, 12, {"header": "Id,Category"}),
    "tf_speech": (TEN, 84, 0, 14, {"header": "fname,label", "metric": "accuracy", "groups": 7}),
    "tf_speech_flat": (TEN, 84, 0, 14, {"header": "fname,label", "groups": 7}),
    "ravdess_zenodo": (EMOTIONS, 48, 0, 0, {"groups": 6}),
    "heartbeat": (5, 47, 0, 0, {}),
    "heartbeat_set_a": (4, 32, 0, 0, {}),
    "fsd50k": (8, 40, 12, 0, {"multilabel": True, "metric": "map_macro"}),
    "fsdkaggle2018": (FSD, 42, 0, 12, {"metric": "map_at_3"}),
    "fsdkaggle2018_fixed": (FSD, 42, 0, 12, {"metric": "map_at_3"}),
    "birdclef2022": (BIRDS, 42, 0, 4, {"stretches": 4, "header": "row_id,target"}),
    "birdclef2022_one_bird": (BIRDS, 42, 0, 4, {"stretches": 4}),
    "birdcall2020": (
        ["aldfly", "ameavo", "amebit", "amecro", "amegfi"],
        40,
        0,
        3,
        {"header": "row_id,birds"},
    ),
    "birdcall2020_rerun": (5, 40, 0, 3, {"stretches": 3}),
    "birdclef2025_rerun": (BIRDS, 42, 0, 8, {"stretches": 8}),
    "birdclef2025_rerun_sample": (BIRDS, 42, 0, 8, {"stretches": 8}),
    "speech_commands_v2": (12, 36, 24, 0, {}),  # two of the replica's four speakers are left to train on
    "keras_speakers": (6, 42, 0, 0, {}),
    "cats_dogs": (["cat", "dog"], 30, 0, 0, {"warning": "--label-map"}),
    "cats_dogs_nocsv": (["cat", "dog"], 30, 0, 0, {"warning": "--label-map"}),
    "sample_named_submission": (5, 40, 0, 12, {"header": "file_id,sound_class"}),
    "sample_named_submission_format": (5, 40, 0, 12, {"header": "file_id,sound_class"}),
    "int_nan_labels": (3, 30, 0, 8, {}),
    "in_the_wild": (2, 40, 0, 0, {"groups": 10}),
    # 3: refused before
    "ravdess_kaggle": (EMOTIONS, 48, 0, 0, {"groups": 6, "note": "48 audio files are duplicates"}),
    "cremad_kaggle": (["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"], 36, 0, 0, {"groups": 6}),
    "whale_redux": (["0", "1"], 40, 0, 12, {"header": "clip,probability", "metric": "roc_auc_macro"}),
    "whale_redux_zips": (["0", "1"], 40, 0, 12, {"header": "clip,probability", "note": "unpacked"}),
    "mlsp2013": (5, 20, 0, 20, {"multilabel": True, "metric": "roc_auc_micro"}),
    "nips4b": (["1", "2", "3", "4", "5"], 36, 0, 10, {"multilabel": True, "note": "no header"}),
    "fat2019": (6, 54, 0, 10, {"multilabel": True, "metric": "lwlrap", "note": "weight 0.3"}),
    "rfcx": (["s0", "s1", "s2", "s3", "s4", "s5"], 24, 0, 10, {"multilabel": True, "metric": "lwlrap"}),
    "esc50_kaggle": (5, 50, 0, 0, {"folds": 5, "note": "44100"}),
    "tut2017": (5, 40, 0, 0, {"folds": 4, "groups": 20}),
    "hf_audiofolder": (3, 24, 9, 0, {}),
}
REFUSED = {"common_voice": "--label-column gender", "seven_zip": "7z x"}


class Replicas:
    """The folder of the replicas; each is made when it is wanted."""

    def __init__(self, folder: Path):
        self.folder = folder

    def make(self, *names: str) -> None:
        env = {**os.environ, "ESC10": str(SHARED / "esc10"), "SETS": str(self.folder)}
        command = [sys.executable, str(MAKER), *names]
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=400)

    def __truediv__(self, name: str) -> Path:
        if not (self.folder / name).exists():
            self.make(name)
        return self.folder / name


@pytest.fixture(scope="session")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Replicas:
    """Where replicas are made."""
    return Replicas(tmp_path_factory.mktemp("sets"))


def of(comp: Competition, split: str) -> pd.DataFrame:
    return comp.clips[comp.clips["split"] == split]


def test_replicas_are_read_right(replicas: Replicas, tmp_path: Path) -> None:
    replicas.make()
    wrong = (
        [] if {p.name for p in replicas.folder.iterdir()} == {*RIGHT, *REFUSED} else [("not all are tried",)]
    )
    for name, (classes, train, test, subm, more) in RIGHT.items():
        comp = load(replicas / name, out=tmp_path)
        clips = of(comp, "train")
        found = {
            "classes": len(comp.classes) if isinstance(classes, int) else comp.classes,
            "clips": [len(of(comp, split)) for split in ("train", "test", "subm")],
            "multilabel": comp.multilabel,
            "metric": comp.metric,
            "layout": comp.layout,
            "groups": clips["group"].loc[clips["group"] != ""].nunique(),
            "folds": clips["fold"].loc[clips["fold"] >= 0].nunique(),
            "stretches": int(of(comp, "subm")["end"].notna().sum()),
            "header": comp.sample_submission and comp.sample_submission.read_text().splitlines()[0],
        }
        wanted = {"classes": classes, "clips": [train, test, subm], "multilabel": False} | more
        note, warning = wanted.pop("note", ""), wanted.pop("warning", "")
        wrong += [(name, key, found[key], value) for key, value in wanted.items() if found[key] != value]
        wrong += [(name, note, comp.notes)] if not any(str(note) in line for line in comp.notes) else []
        warned = [line for line in comp.notes if line.startswith("warning:") and str(warning) in line]
        wrong += [(name, warning, comp.notes)] if warning and not warned else []
        missing = {p for p in of(comp, "train")["path"] if not Path(p).is_file()}
        wrong += [(name, "no file", missing)] if missing else []
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_way_out(replicas: Replicas, tmp_path: Path, name: str) -> None:
    done = script(
        "get_features.py", "--competition", replicas / name, "--extractor", "logmel", cwd=tmp_path, ok=None
    )
    assert REFUSED[name] in refused(done), done.stderr


def test_common_voice_by_the_flag_that_its_error_names(replicas: Replicas, tmp_path: Path) -> None:
    comp = load(replicas / "common_voice", out=tmp_path, label_column="gender")
    assert comp.classes == ["female", "male"] and [len(of(comp, s)) for s in ("train", "test")] == [32, 8]
    assert of(comp, "train")["group"].nunique() == 8  # speakers


def submission(
    replicas: Replicas | Path, name: str, home: Path, *flags: object
) -> tuple[pd.DataFrame, dict, str]:
    """The two commands on a replica: the submission, the run's scores, what the commands printed."""
    small = ["--extractor", "logmel", "--n-mels", "16", *flags]
    first = script("get_features.py", "--competition", replicas / name, *small, cwd=home)
    done = script("train.py", "--recipe", "linear", "--epochs", "3", "--no-report", "--name", "r", cwd=home)
    table = pd.read_csv(home / "submissions" / "submission.csv", dtype=str, keep_default_na=False)
    return table, json.loads((home / "runs" / "r" / "scores.json").read_text()), first.stdout + done.stdout


CONTESTS = {
    "mlsp2013": ("Id,Probability", 100, "roc_auc_micro"),
    "whale_redux_zips": ("clip,probability", 12, "roc_auc_macro"),
    "fat2019": ("fname,Accelerating_and_revving_and_vroom", 10, "lwlrap"),
    "tf_speech": ("fname,label", 14, "accuracy"),
    "birdclef2025_rerun": ("row_id,1139490", 8, "roc_auc_macro"),
    "birdclef2022": ("row_id,target", 12, "f1_macro"),
    "nips4b": ("ID,Probability", 50, "roc_auc_micro"),
    "inclass_folders": ("Id,Category", 12, None),
    "fsdkaggle2018": ("fname,label", 12, "map_at_3"),
    "rfcx": ("recording_id,s0", 10, "lwlrap"),
}


@pytest.mark.parametrize("name", CONTESTS)
def test_two_commands_end_in_a_submission_of_the_right_kind(
    replicas: Replicas, tmp_path: Path, name: str
) -> None:
    header, rows, metric = CONTESTS[name]
    before = sorted((p, p.stat().st_mtime_ns) for p in (replicas / name).rglob("*"))
    table, scores, said = submission(replicas, name, tmp_path)
    assert ",".join(table.columns).startswith(header) and len(table) == rows
    answers = table.drop(columns=table.columns[0])
    if name in ("mlsp2013", "nips4b", "fat2019", "whale_redux_zips", "birdclef2025_rerun", "rfcx"):
        values = answers.astype(float).to_numpy()
        assert ((values >= 0) & (values <= 1)).all() and values.std() > 0
    if name == "tf_speech":
        assert set(answers["label"]) <= set(TEN)
    if name == "birdclef2022":
        assert set(answers["target"]) <= {"True", "False"}
    if name == "fsdkaggle2018":
        assert (answers["label"].str.split().str.len() == 3).all()
    if metric:
        assert f"metric: {metric}" in said and metric in scores["last"]
    assert sorted((p, p.stat().st_mtime_ns) for p in (replicas / name).rglob("*")) == before


def test_birdclef_2026(replicas: Replicas, tmp_path: Path) -> None:
    """Its rerun: the public sample's recordings are not there, others are."""
    root = tmp_path / "birdclef-2026"
    shutil.copytree(replicas / "birdclef2025_rerun", root)
    lines = ["filename,start,end,primary_label"]
    lines += [
        f"{path.name},00:00:00,00:00:05,asbfly;yebela1" for path in (root / "train_soundscapes").iterdir()
    ]
    (root / "train_soundscapes_labels.csv").write_text("\n".join(lines) + "\n")
    for number, path in enumerate(sorted((root / "test_soundscapes").glob("*.ogg"))):
        path.rename(path.with_name(f"BC2026_Test_{number:04d}_S05_20250227_010002.ogg"))
    sample = [",".join(["row_id", *BIRDS])]
    sample += [",".join([f"BC2026_Test_9999_S05_20250227_010002_{s}", *["0.16"] * 6]) for s in (5, 10, 15)]
    (root / "sample_submission.csv").write_text("\n".join(sample) + "\n")
    table, scores, said = submission(tmp_path, "birdclef-2026", tmp_path)
    ids = [f"BC2026_Test_{n:04d}_S05_20250227_010002_{s}" for n in range(2) for s in (5, 10, 15, 20)]
    assert list(table.columns) == ["row_id", *BIRDS] and table["row_id"].tolist() == ids
    assert "metric: roc_auc_macro" in said and "train_soundscapes_labels.csv" in said and scores["last"]


def test_the_page_on_data_names_every_known_layout() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "earshot" / "competition" / "known").glob("*.yaml")):
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert known["layout"] in page and set(known) <= {"layout", "files", "absent", "columns", "read"}


def test_the_raw_folder_names_of_the_speech_commands(replicas: Replicas, tmp_path: Path) -> None:
    """MLE-bench's copy scores them: a flag decides."""
    comp = load(replicas / "tf_speech", out=tmp_path, label_map=("none",), noise_class="none")
    assert len(comp.classes) == 12 and "bed" in comp.classes and "silence" not in comp.classes
    assert any("--label-map none" in note for note in load(replicas / "tf_speech", out=tmp_path).notes)


def test_suggested_flags_work_as_they_are_printed(tmp_path: Path) -> None:
    """Labels in names of no known data set: the error's own flags make it right."""
    import numpy as np
    import soundfile

    for speaker in range(6):
        for code in ("AAA", "BBB", "CCC"):
            path = tmp_path / "set" / "wavs" / f"spk{speaker:02d}_{code}_take1.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.full(800, 0.1), 8000)
    done = script("get_features.py", "--competition", "set", "--extractor", "logmel", cwd=tmp_path, ok=None)
    line = refused(done)
    flags = shlex.split(line[line.index("--label-pattern") :].split(" (")[0])
    comp = load(tmp_path / "set", label_pattern=flags[1], out=tmp_path)
    assert comp.classes == ["AAA", "BBB", "CCC"]
