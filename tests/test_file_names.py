"""File names and suffixes of every kind through the scripts: nothing is lost silently, and printed commands
run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, make_competition, read_csv, refused, script, tone
from layout_files import audio, csv, files, rows

from earshot.competition import file_index
from earshot.competition.load import load
from earshot.core import checksums, file_content, file_names, shell
from earshot.core.errors import UserError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{:064x}\nsize 32044\n"
SUFFIXES = {
    "aifc": "AIFF",
    "caf": "CAF",
    "oga": "OGG",
    "w64": "W64",
    "rf64": "RF64",
    "snd": "AU",
    "WAV": "WAV",
}
NAME = "it's my data (1) $HOME"


def in_bash(line: str, cwd: Path) -> str:
    """Run a printed command as a user would who copies it; its standard output."""
    program, name, rest = line.split(" ", 2)
    assert program == "python"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / name))} {rest}"
    done = subprocess.run(["bash", "-c", line], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def undecodable(path: Path, name: bytes) -> None:
    """Give a file a name whose bytes are no UTF-8."""
    try:
        os.rename(os.fsencode(path), os.fsencode(path.parent) + b"/" + name)
    except OSError:
        pytest.skip("the file system takes no names but UTF-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    """A competition of odd names and suffixes, extracted, and trained by the printed command; what was
    printed."""
    here = tmp_path_factory.mktemp("names")
    root = make_competition(here / NAME, train=8, subm=3)
    train, test = root / "audio_train", root / "audio_test"
    text = (root / "train.csv").read_text()
    for number, (suffix, kind) in enumerate(SUFFIXES.items()):
        wave, rate = soundfile.read(train / f"{number:03d}.wav")
        (train / f"{number:03d}.wav").unlink()
        soundfile.write(train / f"{number:03d}.{suffix}", wave, rate, format=kind)
    (train / "007.wav").rename(train / "007.webm")
    (train / "007.webm").write_bytes(b"\x1aE\xdf\xa3" + b"webm" * 400)
    (train / "008.wav").rename(train / "008.xyz")
    undecodable(train / "009.wav", b"caf\xe9.wav")
    undecodable(train / "010.wav", b"na\xefve.wav")
    text = text.replace("009.wav", r"caf\xe9.wav").replace("010.wav", "na\xefve.wav")
    (root / "train.csv").write_text(text, encoding="utf-8")
    undecodable(test / "t000.wav", b"\xfcber.wav")
    undecodable(test / "t001.wav", b"sm\xf8rre.wav")
    text = (root / "sample_submission.csv").read_text()
    text = text.replace("t000.wav", "audio_test/\xfcber.wav").replace("t001.wav", r"sm\xf8rre.wav")
    (root / "sample_submission.csv").write_text(text, encoding="utf-8")
    for name in ("README.md", "Thumbs.db", "train/._000.wav", ".DS_Store", "sha256sums.txt"):
        (root / name.replace("train/", "audio_train/")).write_bytes(b"x")
    audio(train / "extra.wav")
    for number in range(5):
        (train / f"picture{number}.jpg").write_bytes(b"x")
    os.rename(root, here / NAME)
    found = script("get_features.py", "--competition", NAME, "--extractor", "logmel", cwd=here)
    line = found.stdout.rpartition("next: ")[2].strip()
    trained = in_bash(f"{line} --recipe linear --epochs 3 --folds 2 --name 'a run (1)' --no-report", here)
    return here, root, found.stdout, trained


def test_suffixes_that_are_audio_are_used(done) -> None:
    here, _, said, _ = done
    assert "\ntrain: 22 clips, 22 windows" in said, "all but the .webm and the .xyz"
    bad = {row["id"]: row["reason"] for row in read_csv(here / "data" / NAME / "logmel" / "bad_audio.csv")}
    assert bad.pop("008.wav") == "only a .xyz file, not audio"
    assert "no such file" not in bad.pop("007.wav") and bad == {}


def test_unused_files_are_one_line_each_kind(done) -> None:
    lines = done[2].splitlines()
    assert "1 audio files are in no csv and left out: audio_train/extra.wav" in lines
    first = ", ".join(f"audio_train/{name}" for name in ("008.xyz", "picture0.jpg", "picture1.jpg"))
    assert f"not used: 6 files that are not audio: {first} and 3 more" in lines
    assert not any(word in done[2] for word in ("README", "Thumbs", "._", "DS_Store", "sums"))


def test_bytes_that_are_no_utf8(done) -> None:
    here, root, _, trained = done
    submission = {row["fname"]: row["label"] for row in read_csv(here / "submissions" / "submission.csv")}
    assert list(submission) == [row["fname"] for row in read_csv(root / "sample_submission.csv")]
    assert submission["audio_test/\xfcber.wav"] == "tone0" and submission[r"sm\xf8rre.wav"] == "tone1"
    assert "prior" not in trained


@pytest.mark.slow
def test_a_folder_to_predict(done, tmp_path: Path) -> None:
    here, root, _, _ = done
    new = tmp_path / "new"
    new.mkdir()
    for kind, name in enumerate(("a.wav", "b.aifc", "c.caf")):
        soundfile.write(new / name, tone(kind, 50), 16000, format=["WAV", "AIFF", "CAF"][kind])
    soundfile.write(new / "d.wav", tone(2, 51), 16000)
    undecodable(new / "d.wav", b"d\xe9.wav")
    (new / "e.webm").write_bytes(b"\x1aE\xdf\xa3" * 99)
    for name in ("f.xyz", "g.npy", "h.zip", "._a.wav", "notes.txt"):
        (new / name).write_bytes(b"x")
    said = script("predict.py", "--runs", "a run (1)", "--audio", new, cwd=here).stdout
    found = {row["fname"]: row["label"] for row in read_csv(here / "submissions" / "predictions.csv")}
    assert list(found) == ["a.wav", "b.aifc", "c.caf", r"d\xe9.wav", "e.webm"]
    assert [found[name] for name in list(found)[:4]] == ["tone0", "tone1", "tone2", "tone2"]
    assert "not used: 2 files that are not audio: f.xyz, g.npy\n" in said and "e.webm: " in said
    assert "not used: 1 zip files (unpack them if they hold clips): h.zip\n" in said
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "f.xyz").write_bytes(b"x")
    line = refused(
        script("predict.py", "--runs", "a run (1)", "--audio", tmp_path / "none", cwd=here, ok=None)
    )
    assert "f.xyz" in line and ".webm" in line


@pytest.mark.slow
def test_a_kept_blend_is_opened_by_the_command_that_is_printed(done) -> None:
    here = done[0]
    said = script(
        "predict.py", "--runs", "a run (1)", "--name", "it's (mine)", "--no-report", cwd=here
    ).stdout
    line = next(line for line in said.splitlines() if line.startswith("blend saved: "))
    line = line.partition("; to predict with it: ")[2]
    assert line == "python predict.py --runs 'it'\"'\"'s (mine)'"
    assert "runs/it's (mine)" in in_bash(line, here)
    other = ("--runs", "a run (1)", "--name", "b", "--no-report", "--runs-folder")
    os.symlink(here / "runs", here / "o t")
    said = script("predict.py", *other, "o t", cwd=here).stdout
    line = said.partition("; to predict with it: ")[2].partition("\n")[0]
    assert line == "python predict.py --runs 'o t/b'" and "o t/b" in in_bash(line, here)
    path = here / "o t" / "b" / "blend.json"
    whole = path.read_text()
    path.write_text("{")
    said = refused(script("predict.py", "--runs", "o t/b", cwd=here, ok=None))
    assert said.endswith(
        "blend again with python predict.py --runs A B --blend auto --name b --runs-folder 'o t'"
    )
    path.write_text(whole)
    checksums.write(path, {**checksums.read(path), "fingerprints": ["other"]}, "oof.csv")
    said = refused(script("predict.py", "--runs", "o t/b", cwd=here, ok=None))
    assert "--runs 'a run (1)' --blend mean --name b --runs-folder 'o t'" in said


@pytest.mark.slow
def test_a_competition_whose_folder_is_no_utf8(tmp_path: Path) -> None:
    """Class folders: labels and ids are the escaped text."""
    for kind, name in enumerate(("dog", "cow")):
        for number in range(4):
            path = tmp_path / "c" / name / f"{name}{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, tone(kind, number), 16000)
    undecodable(tmp_path / "c" / "dog" / "dog0.wav", b"\xe9.wav")
    undecodable(tmp_path / "c" / "cow", b"v\xe6r")
    undecodable(tmp_path / "c", b"comp\xe9")
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/comp\xe9"))
    for said in ("device: ", "nothing to do: "):  # the index beside the cache is read back
        found = script("get_features.py", "--competition", folder, "--extractor", "logmel", cwd=tmp_path)
        assert f"\n{said}" in found.stdout and r"data/comp\xe9/logmel" in found.stdout
    made = load(folder)
    assert made.classes == ["dog", r"v\xe6r"] and r"\xe9.wav" in made.clips["id"].tolist()
    assert all(map(os.path.isfile, made.clips["path"]))
    moved = os.fsencode(folder) + b"/dog/dog3.wav"
    os.rename(moved, moved.replace(b"dog3", rb"\xe9"))
    line = refused(
        script("get_features.py", "--competition", folder, "--extractor", "logmel", cwd=tmp_path, ok=None)
    )
    assert r"dog/\xe9.wav" in line and "rename one" in line, "two names may not become one id"


class Raw(zipfile.ZipInfo):
    """A member whose name is written as these bytes, without the flag."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("latin-1"), self.flag_bits


class Unflagged(zipfile.ZipInfo):
    """A member whose name is UTF-8 and does not say so."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("utf-8"), self.flag_bits


@pytest.mark.parametrize(
    "encoding, name",
    [("latin-1", "K\u00e4uz"), ("cp932", "\u65e5\u672c"), ("cp866", "\u0441\u043e\u0432\u0430")],
)
def test_a_csv_names_the_files_of_a_zip_in_an_older_code_page(
    tmp_path: Path, encoding: str, name: str
) -> None:
    """Without the flag, names are read by the code page of DOS; the csv's are found all the same."""
    root = tmp_path / "birds"
    files(root, "audio/@.wav", "audio/b.wav")
    csv(root / "train.csv", f"fname,label {name}.wav,owl b.wav,jay")
    raw, path = name.encode(encoding), tmp_path / "birds.zip"
    with zipfile.ZipFile(path, "w") as out:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            inside = file.relative_to(root).as_posix().encode().replace(b"@", raw)
            out.writestr(Raw(inside.decode("latin-1")), file.read_bytes())
    made = load(path, out=tmp_path / "out")
    assert [row[0] for row in rows(made, "train")] == [f"{name}.wav", "b.wav"] and made.missing == []


def test_a_zip_from_a_mac(tmp_path: Path) -> None:
    """Names in UTF-8 without the flag, decomposed, with what a Mac adds; the csv has them composed."""
    root = tmp_path / "birds"
    files(root, "audio/Ka\u0308uz.wav", "audio/\u00c5gren.wav", "audio/c.wav", "__MACOSX/audio/._c.wav")
    csv(root / "train.csv", "fname,label K\u00e4uz.wav,owl \u00c5gren.wav,jay c.wav,owl")
    (root / "audio" / "._c.wav").write_bytes(b"x")
    path = tmp_path / "birds.zip"
    with zipfile.ZipFile(path, "w") as out:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            out.writestr(Unflagged(file.relative_to(root).as_posix()), file.read_bytes())
    assert not any(info.flag_bits & 0x800 for info in zipfile.ZipFile(path).infolist())
    asked = ("--competition", path, "--extractor", "logmel", "--out", "out", "--seconds", 1)
    said = script("get_features.py", *asked, cwd=tmp_path).stdout
    assert "\ntrain: 3 clips, 3 windows" in said and "without audio" not in said
    made = load(path, out=tmp_path / "out")
    assert [row[:2] for row in rows(made, "train")] == [
        ("K\u00e4uz.wav", "audio/Ka\u0308uz.wav"),
        ("\u00c5gren.wav", "audio/\u00c5gren.wav"),
        ("c.wav", "audio/c.wav"),
    ]
    assert not list((tmp_path / "out").rglob("._*")) and made.missing == []


def test_a_dos_name_stays_what_it_is() -> None:
    from earshot.competition.zip_file import get_member_name

    for name in ("K\u00e4uz.wav", "\u2592\u2592.wav", "a.wav"):  # no UTF-8 in code page 437
        assert get_member_name(zipfile.ZipInfo(name)) == name


def test_none_can_be_used_says_why(tmp_path: Path) -> None:
    root = make_competition(tmp_path / "tones", train=3, subm=1)
    for number, path in enumerate(sorted((root / "audio_train").iterdir())):
        path.write_text(POINTER.format(number) if number else "")
    said = script("get_features.py", "--competition", root, "--extractor", "logmel", cwd=tmp_path, ok=None)
    line = refused(said)
    assert "none of the 9 clips" in line and ": 8 \u00d7 " in line and line.endswith(", 1 \u00d7 empty file")
    for path in (root / "audio_train").iterdir():
        soundfile.write(path, np.zeros(16000), 16000)  # can be opened
    said = script("get_features.py", "--competition", root, "--extractor", "logmel", cwd=tmp_path, ok=None)
    assert refused(said) == "error: none of the 9 training clips can be used: 9 \u00d7 silent"


@pytest.mark.parametrize(
    "content, what",
    [
        (POINTER.format(1), "Git LFS pointer (run git lfs pull)"),
        ("\n<!DOCTYPE html><html><head>", "HTML page"),
        ("<?xml version='1.0'?>\n<Error><Code>AccessDenied", "XML error"),
    ],
)
def test_weights_that_only_stand_for_weights(tones: Path, content: str, what: str) -> None:
    weights = tones.parent / "mn04_as_mAP_432.pt"
    weights.write_text(content)
    asked = ("--competition", tones, "--extractor", "efficientat", "--weights", weights)
    line = refused(script("get_features.py", *asked, cwd=tones.parent, ok=None))
    assert str(weights) in line and what in line
    folder = tones.parent / "ast"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "audio-spectrogram-transformer"}')
    (folder / "model.safetensors").write_text(content)
    asked = ("--competition", tones, "--extractor", "ast", "--weights", folder)
    line = refused(script("get_features.py", *asked, cwd=tones.parent, ok=None))
    assert "model.safetensors" in line and what in line


def test_no_audio_is_mistaken_for_a_page() -> None:
    for head in (b"RIFF\0\0\0\0WAVE", b"fLaC", b"ID3\3", b"", b"\xff\xfb", b"version 1", b"<b>no page"):
        assert file_content.detect_stand_in(head) is None


def test_other_sides_and_films(tmp_path: Path) -> None:
    """A stem that a sound and a film share means the sound, wherever the film lies."""
    root = tmp_path / "c"
    files(root, "audio/a.wav", "audio/b.wav")
    (root / "video").mkdir()
    for name in "ab":
        (root / "video" / f"{name}.mp4").write_bytes(b"x")
    csv(root / "train.csv", "id,label a,owl b,jay")
    made = load(root)
    assert [row[1] for row in rows(made, "train")] == ["audio/a.wav", "audio/b.wav"]
    assert any(line.startswith("2 audio files are in no csv") for line in made.notes)
    classes = tmp_path / "classes"
    files(classes, "sound/dog/1.wav", "sound/cat/1.wav")
    (classes / "video" / "dog").mkdir(parents=True)
    (classes / "video" / "dog" / "1.mp4").write_bytes(b"x")
    made = load(classes)
    assert made.classes == ["cat", "dog"]
    assert "not used: 1 files beside the class folders: video/dog/1.mp4" in made.notes


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "c", "dog/1.wav", "cat/1.wav", "secret/1.wav")
    scandir = os.scandir

    def closed(path):
        if os.fspath(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert "warning: no permission to list secret: not used" in load(tmp_path / "c").notes


def test_a_great_folder_takes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work for each file, none for each pair of files: counted in calls, as clocks depend on the machine."""
    names = [f"{number:06d}.{suffix}" for number in range(50_000) for suffix in ("wav", "jpg")]
    monkeypatch.setattr(file_index, "walk_folder", lambda root, closed: [("audio", names)])
    calls = 0

    def count(*about: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    found = file_index.Files(tmp_path)
    reasons = {found.explain_absence(f"{number:06d}x") for number in range(1000)}
    unused = found.describe_unused_files()
    sys.setprofile(None)
    assert reasons == {"no such file"} and unused[0].endswith("and 49997 more")
    assert calls < 100 * len(names)


@pytest.mark.parametrize(
    "word", ["plain", "a b", "it's (1)", "$HOME `x` \\ !", "K\u00e4uz", "tab\there", "z\u200bw"]
)
def test_quoted_words_come_back(word: str) -> None:
    shown = subprocess.run(
        ["bash", "-c", f"printf %s {shell.quote(word)}"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == word and "\n" not in shell.join_command("python", word)


def test_text_of_bytes() -> None:
    assert file_names.to_text(os.fsdecode(b"caf\xe9 \xc3\xa9.wav")) == "caf\\xe9 \u00e9.wav"
    assert file_names.to_text("plain \u00e9") == "plain \u00e9"
    assert file_names.is_audio("a.AIFC") and file_names.is_audio("a.webm")
    assert "\u043f\u0440\u0438" in file_names.list_readings(
        os.fsdecode("\u043f\u0440\u0438".encode("cp1251"))
    )
    assert not any(map(file_names.is_audio, ("a.mat", "a.raw", "wav", "a.txt", "a", "a.htk")))


def test_nothing_of_libsndfile_for_help() -> None:
    code = f"""
import runpy, sys
sys.argv = ["get_features.py", "--help"]
try:
    runpy.run_path({str(ROOT / "get_features.py")!r}, run_name="__main__")
finally:
    assert "soundfile" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]


def test_two_names_as_one_text_are_refused(tmp_path: Path) -> None:
    audio(tmp_path / "dog" / r"\xe9.wav")
    audio(tmp_path / "dog" / "x.wav")
    undecodable(tmp_path / "dog" / "x.wav", b"\xe9.wav")
    with pytest.raises(UserError, match="rename one"):
        file_index.Files(tmp_path)
