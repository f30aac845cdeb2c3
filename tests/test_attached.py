"""What Kaggle attaches is found wherever it is mounted; hidden clips are answered, whatever the sample
submission shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import layout_files
import pytest
import soundfile
from conftest import make_competition, read_csv, tone

import get_features
import predict
import train
from earshot import extractors
from earshot.competition.load import load
from earshot.core import kaggle_paths
from earshot.core.errors import UserError
from earshot.extractors import ast, base
from earshot.features import defaults
from earshot.training import experiment
from earshot.training.resume import find_cache
from earshot.training.run import Run


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """An empty /kaggle/input, with the working folder beside it as the current one."""
    kaggle_paths._walk_once.cache_clear()
    (tmp_path / "input").mkdir()
    (tmp_path / "working").mkdir()
    for name, value in {
        "EARSHOT_ATTACHED": tmp_path / "input",
        "EARSHOT_WORKING": tmp_path / "working",
        "TORCH_HOME": tmp_path / "none",
        "HF_HUB_CACHE": tmp_path / "none",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path / "working")
    return tmp_path / "input"


def touch(root: Path, *names: str) -> None:
    """Files of a byte: only their names are looked at."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def network(folder: Path, kind: str = "audio-spectrogram-transformer") -> Path:
    """A folder that looks like a network of transformers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("where", ["competitions/birds", "datasets/someone/birds", "birds"])
def test_a_competition_wherever_it_is_mounted(place: Path, where: str) -> None:
    touch(place / where, "audio_train/a.wav", "audio_train/b.wav")
    layout_files.csv(place / where / "train.csv", "fname,label a.wav,owl b.wav,jay")
    touch(place / "datasets/me/noises", "noise/rain.wav")  # audio, and no competition
    touch(
        place / "notebooks/me/old",
        "data/sample/audio_train/a.wav",
        "data/sample/logmel/unique_labels.pkl",
        "data/sample/train.csv",
    )
    assert kaggle_paths.find_competition() == place / where and defaults.find_competition("data") == (
        place / where,
        "attached",
    )
    assert kaggle_paths.resolve_slug("birds") == str(place / where) and kaggle_paths.resolve_slug(
        "competitions/birds"
    ) == str(place / where)
    assert kaggle_paths.resolve_slug("sample") == "sample" and kaggle_paths.resolve_slug("absent") == "absent"
    touch(place / "competitions/frogs", "audio/a.wav", "audio/train.csv")
    kaggle_paths._walk_once.cache_clear()
    if where.startswith("competitions"):
        with pytest.raises(UserError, match="several competitions are attached.*--competition.*birds.*frogs"):
            kaggle_paths.find_competition()
    else:
        assert kaggle_paths.find_competition() == place / "competitions/frogs", (
            "what Kaggle calls a competition goes first"
        )


def test_weights_by_what_they_are(place: Path) -> None:
    assert ast.Extractor.find_weights(ast.Settings(), None) == [] and not defaults.has_only_attached_data(
        "efficientat", "ast"
    )
    touch(place / "datasets/me/light", "mn04_as_mAP_432.pt")
    kaggle_paths._walk_once.cache_clear()
    efficientat = extractors.load_module("efficientat")
    assert efficientat.Extractor.find_weights(efficientat.Settings(), None) == [
        place / "datasets/me/light/mn04_as_mAP_432.pt"
    ]
    assert (
        base.find_local("/kaggle/input/elsewhere/mn04_as_mAP_432.pt")
        == place / "datasets/me/light/mn04_as_mAP_432.pt"
    )
    assert defaults.choose_features("birds", False) == (None, "efficientat") and defaults.choose_features(
        "birds", True
    ) == (defaults.RECIPE, None)

    network(place / "datasets/me/codec", "encodec")
    folder = network(place / "datasets/me/my-ast/model")
    kaggle_paths._walk_once.cache_clear()
    assert {file.parent for file in ast.Extractor.find_weights(ast.Settings(), None)} == {folder}
    assert defaults.choose_features("birds", False) == (defaults.RECIPE, None), "ast, the usual one, is there"
    assert ast.WEIGHTS.find_folder("MIT/ast-finetuned-audioset-14-14-0.443") is None, (
        "another network than the one that was named"
    )
    assert experiment.locate_weights({"weights": ast.WEIGHTS.default, "ast": True}) == {
        "weights": str(folder),
        "ast": True,
    }
    assert experiment.locate_weights({"weights": None}) == {"weights": None}
    network(place / "datasets/you/second")
    kaggle_paths._walk_once.cache_clear()
    with pytest.raises(UserError, match="2 attached folders may be MIT/ast.*--weights.*my-ast.*second"):
        ast.Extractor.find_weights(ast.Settings(), None)
    named = network(place / "models/mit/ast-finetuned-audioset-10-10-0-4593")
    kaggle_paths._walk_once.cache_clear()
    assert {file.parent for file in ast.Extractor.find_weights(ast.Settings(), None)} == {named}, (
        "its name settles it"
    )


def hidden(root: Path, sample: str, *files: str):
    """The birds of `kaggle`, with another sample submission and test folder, loaded; ids and files to
    submit."""
    (root / "sample_submission.csv").write_text(sample)
    shutil.rmtree(root / "audio_test")
    layout_files.files(root, *(f"audio_test/{name}" for name in files)) if files else (
        root / "audio_test"
    ).mkdir()
    found = load(root, out=root.parent / "data")
    asked = found.clips[found.clips["split"] == "subm"]
    return found, list(asked["id"]), [Path(path).name for path in asked["path"]]


def test_placeholders_of_a_sample_submission(kaggle: Path) -> None:
    """Fewer rows than files, none of them a file's: the files are what is asked for, in the sample's own
    form."""
    many = ("m.wav", "n.wav", "o.wav", "p.wav")
    found, ids, files = hidden(kaggle, "fname,jay,owl\nfoo,0.5,0.5\nbar,0.5,0.5\nbaz,0.5,0.5\n", *many)
    assert ids == ["m", "n", "o", "p"] and files == list(many) and not found.missing
    assert any("placeholder of 3 rows" in note for note in found.notes)
    assert (
        found.sample_submission.read_text() == "fname,jay,owl\nm,0.5,0.5\nn,0.5,0.5\no,0.5,0.5\np,0.5,0.5\n"
    )
    found, ids, files = hidden(kaggle, "fname,label\n", *many)  # a header alone
    assert ids == list(many) and found.sample_submission.read_text() == "fname,label\n" + "".join(
        f"{name},\n" for name in many
    )
    # no test clip is visible
    found, ids, files = hidden(kaggle, "fname,label\nfoo.wav,jay\nbar.wav,jay\nbaz.wav,jay\n")
    assert ids == ["foo.wav", "bar.wav", "baz.wav"] and files == ["", "", ""] and len(found.missing) == 3
    found, ids, files = hidden(kaggle, "fname,label\n")
    assert ids == [] and any("nothing to submit" in note for note in found.notes)
    # one is a file's: no placeholder
    found, ids, files = hidden(kaggle, "fname,label\nm.wav,jay\nfoo.wav,jay\n", *many)
    assert ids == ["m.wav", "foo.wav"] and files == ["m.wav", ""]
    # parts of recordings
    found, ids, files = hidden(kaggle, "row_id,label\nsoundscape_1_5,jay\nsoundscape_1_10,jay\n", *many)
    assert (
        ids == ["soundscape_1_5", "soundscape_1_10"]
        and found.sample_submission == kaggle / "sample_submission.csv"
    )


def test_the_clips_to_submit_alone_within_the_time(place: Path, capsys) -> None:
    """An attached run's settings, no training clip; clips skipped at the time limit get the prior, and a line
    says so."""
    root = make_competition(place / "competitions" / "tones", train=6, subm=2)
    get_features.main(["--extractor", "logmel", "--n-mels", "32"])
    train.main(
        ["--recipe", "linear", "--epochs", "3", "--folds", "2", "--name", "a", "--out", "submission.csv"]
    )
    shown = Path("submission.csv").read_bytes()
    (place / "old").mkdir()
    for name in ("data", "runs"):
        shutil.move(name, place / "old" / name)
    kaggle_paths._walk_once.cache_clear()

    get_features.main(["--for-run", "a"])  # the same clips
    cached = json.loads(Path("data/tones/logmel_subm/manifest.json").read_text())
    assert (
        cached["splits"] == {"subm": {"clips": 6, "rows": 6}} and cached["record"]["settings"]["n_mels"] == 32
    )
    predict.main(["--out", "again.csv"])
    assert Path("again.csv").read_bytes() == shown
    run = Run.open(place / "old/runs/a")
    assert find_cache(run) == Path("data/tones/logmel_subm"), "here before there, with clips to submit"
    with pytest.raises(UserError, match="no clips of the split train.*without --for-run"):
        train.main(["--features", "data/tones/logmel_subm", "--recipe", "linear"])
    with pytest.raises(UserError, match="features differ from the run's .*n_mels"):
        get_features.main(["--for-run", "a", "--n-mels", "64", "--cache", "b"])

    names = [f"h{number:02d}.wav" for number in range(40)]  # more than a shard
    for number, name in enumerate(names):
        soundfile.write(root / "audio_test" / name, tone(number % 3, 100 + number), 16000)
    (root / "sample_submission.csv").write_text(
        "fname,label\n" + "".join(f"{name},tone0\n" for name in names)
    )
    shutil.rmtree("data")
    capsys.readouterr()
    get_features.main(["--for-run", "a", "--max-hours", "0"])
    printed = capsys.readouterr().out
    assert "warning: time limit reached: 8 of 40 clips skipped, filled with class priors" in printed
    late = [
        row["id"]
        for row in read_csv(Path("data/tones/logmel_subm/bad_audio.csv"))
        if row["reason"] == "time limit reached"
    ]
    assert late == names[32:]
    predict.main(["--out", "late.csv"])
    assert "8 of 40 clips skipped, filled with class priors" in capsys.readouterr().out
    assert [row["fname"] for row in read_csv(Path("late.csv"))] == names
    get_features.main(["--for-run", "a"])
    assert "is complete" in capsys.readouterr().out

    shutil.rmtree(root / "audio_test")
    (root / "sample_submission.csv").write_text("fname,label\n")
    get_features.main(["--for-run", "a", "--out", "other"])
    assert "nothing to submit" in capsys.readouterr().out and not Path("other/tones").exists()
