"""Caches and shards that were harmed: named, set aside and made again to the same bytes; earlier sessions'
outputs picked up."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import FLAGS

from earshot.core import deadline
from earshot.core.errors import UserError
from earshot.features import decode_ahead, extract
from earshot.features.cache import Cache


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def harm(path: Path, how: str) -> None:
    """Damage a file; "flipped" is one bit."""
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[: {"empty": 0, "cut": len(data) // 2}[how]])


@pytest.mark.parametrize("how", ["missing", "flipped", "empty", "cut"])
@pytest.mark.parametrize("name", ["shards/train-00001.pkl", "shards/train-00000.json", "manifest.json"])
def test_a_damaged_shard_is_made_again(scripts, data, calm, begun, tmp_path, capsys, monkeypatch, name, how):
    folder = tmp_path / "tones" / "logmel"
    shutil.copytree(begun, folder)
    harm(folder / name, how)
    read = []
    whole = decode_ahead.decode
    monkeypatch.setattr(
        decode_ahead, "decode", lambda path, *more: (read.append(path), whole(path, *more))[1]
    )
    scripts[0](["--competition", str(data), *FLAGS, "--out", str(tmp_path)])
    said = [line for line in capsys.readouterr().out.splitlines() if "set aside" in line]
    # a shard without checksum, a folder without manifest: as after a kill
    told = not (how == "missing" and not name.endswith("pkl"))
    assert len(said) == told and all(Path(name).name.partition(".")[0] in line for line in said), said
    assert files(folder) == files(calm)
    again = [path for path in read if Path(path).parent.name == "audio_train"]
    assert len(again) < 2 * 42, "sound shards are not decoded again"


@pytest.mark.parametrize("how", ["missing", "flipped", "empty", "cut"])
@pytest.mark.parametrize(
    "name",
    [
        "train.pkl",
        "subm.pkl",
        "augmented.pkl",
        "unique_labels.pkl",
        "bad_audio.csv",
        "sample_submission.csv",
        "manifest.json",
    ],
)
def test_a_damaged_cache_is_refused_by_readers_and_made_anew(
    scripts, data, calm, tmp_path, capsys, name, how
):
    folder = tmp_path / "tones" / "logmel"
    shutil.copytree(calm, folder)
    harm(folder / name, how)
    # what readers use of those two is compared elsewhere
    if name not in ("bad_audio.csv", "sample_submission.csv"):
        with pytest.raises(UserError) as error:
            cache = Cache(folder)
            cache.split("train"), cache.split("subm"), cache.augmented()
        assert (
            name in str(error.value)
            and "\n" not in str(error.value)
            and "get_features.py" in str(error.value)
        )
    scripts[0](["--competition", str(data), *FLAGS, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert (
        said.count("set aside") == (0 if (name, how) == ("manifest.json", "missing") else 1)
        and "nothing to do" not in said
    )
    assert files(folder) == files(calm)


def test_shards_of_other_settings_are_not_mixed_in(scripts, data, begun, calm, tmp_path, capsys):
    """As after a kill in the middle of --fresh: the manifest is gone, shards of the old settings are still
    there."""
    folder = tmp_path / "tones" / "logmel"
    shutil.copytree(begun, folder)
    for path in (folder / "shards").glob("*.json"):
        path.unlink() if path.name == "train-00000.json" else None
    (folder / "manifest.json").unlink()
    with pytest.raises(SystemExit):
        scripts[0](
            [
                "--competition",
                str(data),
                *FLAGS,
                "--seconds",
                "0.2",
                "--out",
                str(tmp_path),
                "--max-hours",
                "0.0000001",
            ]
        )
    assert capsys.readouterr().out.count("belongs to another cache") == 2
    scripts[0](["--competition", str(data), *FLAGS, "--fresh", "--out", str(tmp_path)])
    assert files(folder) == files(calm)


def test_a_cache_of_another_version_is_refused_and_kept(scripts, data, calm, tmp_path):
    folder = tmp_path / "tones" / "logmel"
    shutil.copytree(calm, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 1}))
    before = files(folder)
    for refusal in (
        lambda: Cache(folder),
        lambda: scripts[0](["--competition", str(data), *FLAGS, "--out", str(tmp_path)]),
    ):
        with pytest.raises(UserError, match="cache version 1, this is version 2"):
            refusal()
    assert files(folder) == before


def test_a_folder_of_other_files_is_never_emptied(scripts, data, tmp_path):
    (tmp_path / "tones" / "mine").mkdir(parents=True)
    (tmp_path / "tones" / "mine" / "a.wav").write_text("mine")
    for more in ((), ("--fresh",)):
        with pytest.raises(UserError, match="holds files that are not a cache"):
            scripts[0](["--competition", str(data), *FLAGS, "--cache", "mine", "--out", str(tmp_path), *more])
    assert (tmp_path / "tones" / "mine" / "a.wav").read_text() == "mine"


@pytest.mark.parametrize("by_flag", [True, False])
def test_an_earlier_cache_is_taken(scripts, data, calm, attached, tmp_path, capsys, monkeypatch, by_flag):
    shutil.copytree(calm, attached / "notebooks" / "me" / "kit" / "data" / "tones" / "logmel")
    more = ("--continue-from", str(attached)) if by_flag else ()
    if by_flag:
        monkeypatch.delenv("EARSHOT_ATTACHED")
    before = files(attached)
    monkeypatch.setattr(extract, "run", None)  # nothing is extracted
    scripts[0](["--competition", str(data), *FLAGS, *more])
    said = capsys.readouterr().out
    assert "copied from an earlier session: the finished cache" in said and "nothing to do" in said
    assert files(tmp_path / "data" / "tones" / "logmel") == files(calm) and files(attached) == before


def test_earlier_shards_are_taken_and_damaged_ones_are_not(
    scripts, data, calm, begun, attached, tmp_path, capsys
):
    shutil.copytree(begun, attached / "kit" / "tones" / "logmel")
    harm(attached / "kit" / "tones" / "logmel" / "shards" / "train-00001.pkl", "flipped")
    scripts[0](["--competition", str(data), *FLAGS])
    said = capsys.readouterr().out
    assert (
        "train-00001.pkl is damaged (its checksum differs): not copied" in said
        and "copied from an earlier session: 44 clips" in said
    )
    assert files(tmp_path / "data" / "tones" / "logmel") == files(calm)


def test_a_damaged_earlier_cache_is_not_taken(scripts, data, calm, attached, tmp_path, capsys):
    shutil.copytree(calm, attached / "tones" / "logmel")
    harm(attached / "tones" / "logmel" / "subm.pkl", "flipped")
    (attached / "tones" / "logmel" / "bad_audio.csv").unlink()
    (attached / "tones" / "logmel" / "bad_audio.csv").symlink_to("/etc/hostname")
    scripts[0](["--competition", str(data), *FLAGS])
    assert "the earlier cache is not copied" in capsys.readouterr().out
    assert files(tmp_path / "data" / "tones" / "logmel") == files(calm)


TRAIN = ("--recipe", "linear", "--epochs", "3", "--folds", "2", "--batch-size", "8", "--device", "cpu")


def results(run: Path) -> dict[str, bytes]:
    return {
        name: data
        for name, data in files(run).items()
        if name.startswith("oof") or name.endswith((".npy", "model.safetensors"))
    }


def test_an_earlier_run_is_continued_and_its_cache_read_where_it_lies(
    scripts, calm, attached, tmp_path, capsys, monkeypatch
):
    shutil.copytree(calm, tmp_path / "data" / "tones" / "logmel")
    scripts[1]([*TRAIN, "--runs-folder", "calm", "--out", "calm.csv"])
    (name,) = [p.name for p in (tmp_path / "calm").iterdir() if p.is_dir()]
    with pytest.raises(SystemExit):
        scripts[1]([*TRAIN, "--runs-folder", "old", "--max-hours", "0.0000001"])
    shutil.move(tmp_path / "data", attached / "data")
    shutil.move(tmp_path / "old" / name, attached / "kit" / "runs" / name)
    before = files(attached)
    capsys.readouterr()
    scripts[1]([*TRAIN])
    said = capsys.readouterr().out
    assert "copied from an earlier session: the run" in said and "continues after epoch 0, step 1" in said
    assert results(tmp_path / "runs" / name) == results(tmp_path / "calm" / name)
    assert (tmp_path / "submissions" / "submission.csv").read_bytes() == (tmp_path / "calm.csv").read_bytes()
    assert files(attached) == before and not (tmp_path / "data").exists()
    with pytest.raises(UserError, match="epochs: 3 there, 4 here"):
        scripts[1](
            [
                *TRAIN,
                "--name",
                name,
                "--epochs",
                "4",
                "--runs-folder",
                "new",
                "--continue-from",
                str(attached),
            ]
        )


def test_where_there_is_nothing_to_continue_from(scripts, data, calm, attached, tmp_path, capsys):
    for main, flags in zip(scripts, (["--competition", str(data), *FLAGS], [*TRAIN]), strict=True):
        with pytest.raises(UserError, match="--continue-from nowhere: no such folder"):
            main([*flags, "--continue-from", "nowhere"])
    shutil.copytree(calm, tmp_path / "data" / "tones" / "logmel", dirs_exist_ok=True)
    (attached / "loop").symlink_to(attached)
    scripts[0](
        [
            "--competition",
            str(data),
            *FLAGS,
            "--seconds",
            "0.2",
            "--cache",
            "short",
            "--continue-from",
            str(attached),
        ]
    )
    assert "nothing in" in capsys.readouterr().out


def test_the_command_that_continues(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", [os.path.join(os.getcwd(), "train.py"), "--name", "my run", "--fresh", "--max-hours", "2"]
    )
    assert deadline.build_continue_command() == "python train.py --name 'my run' --max-hours 2"
