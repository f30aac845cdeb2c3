"""Competitions that come as a zip, and zips that mean harm."""

import os
import stat
import zipfile
from pathlib import Path

import pytest
from layout_files import audio, csv, files, refused, rows

from earshot.competition import zip_file as competition_zip_file
from earshot.competition.load import find_competitions, load


def zipped(path: Path, folder: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            out.write(file, top + file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("top", ["", "inner/"])
def test_zip(kaggle, tmp_path, top):
    comp = load(zipped(tmp_path / "owls.zip", kaggle, top), out=tmp_path / "out")
    unpacked = tmp_path / "out" / "owls" / "unpacked"
    assert (comp.name, comp.layout, comp.root) == (
        "owls",
        "Kaggle csv",
        unpacked / "inner" if top else unpacked,
    )
    assert [r[1] for r in rows(comp, "train")] == [
        "audio_train/b.wav",
        "audio_train/a.wav",
        "audio_train/c.wav",
    ]
    assert all(map(os.path.isfile, comp.clips["path"]))
    assert find_competitions(tmp_path / "out") == [tmp_path / "out" / "owls"]
    again = load(tmp_path / "out" / "owls")
    assert again.name == "owls" and again.clips["path"].tolist() == comp.clips["path"].tolist()


def test_zip_of_classes_and_esc(tmp_path):
    files(tmp_path / "g", "genres/dog/1.au", "genres/cat/2.au", "__MACOSX/cow/3.au")
    comp = load(zipped(tmp_path / "g.zip", tmp_path / "g"), out=tmp_path / "out")
    assert comp.layout == "folder per class" and comp.classes == ["cat", "dog"]
    files(tmp_path / "e", "audio/1.wav", "audio/2.wav")
    csv(tmp_path / "e/meta/esc.csv", "filename,fold,target,category 1.wav,1,0,dog 2.wav,2,1,cat")
    assert (
        load(zipped(tmp_path / "e.zip", tmp_path / "e", "ESC-50-master/"), out=tmp_path / "out").layout
        == "ESC"
    )


def test_zip_is_unpacked_once_until_it_changes(kaggle, tmp_path, monkeypatch):
    path, into = zipped(tmp_path / "c.zip", kaggle), tmp_path / "out/c/unpacked"
    leftover = tmp_path / "out/c/.unpacked.partial/half.wav"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    calls = []
    extract = competition_zip_file.extract_members
    monkeypatch.setattr(
        competition_zip_file, "extract_members", lambda *args: (calls.append(1), extract(*args))
    )
    competition_zip_file.unpack_archive(path, into)
    competition_zip_file.unpack_archive(path, into)
    assert len(calls) == 1 and not leftover.exists()
    audio(kaggle / "audio_train/d.wav")
    competition_zip_file.unpack_archive(zipped(path, kaggle), into)
    assert len(calls) == 2 and (into / "audio_train/d.wav").exists()

    def die(*args):
        extract(*args)
        raise KeyboardInterrupt

    audio(kaggle / "audio_train/e.wav")
    monkeypatch.setattr(competition_zip_file, "extract_members", die)
    with pytest.raises(KeyboardInterrupt):
        competition_zip_file.unpack_archive(zipped(path, kaggle), into)
    assert not (into / "audio_train/e.wav").exists()
    monkeypatch.setattr(competition_zip_file, "extract_members", extract)
    competition_zip_file.unpack_archive(path, into)
    assert (into / "audio_train/e.wav").exists()


def hostile(tmp_path: Path, *names, mode: int = stat.S_IFREG | 0o644, data: bytes = b"x") -> Path:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            out.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../escape.wav",
        "a/../../escape.wav",
        "/tmp/escape.wav",
        "..\\escape.wav",
        "C:\\escape.wav",
        "\\escape.wav",
        "a/..",
    ],
)
def test_zip_that_leads_outside(tmp_path, name):
    line = refused(hostile(tmp_path, "ok.wav", name), out=tmp_path / "out")
    assert "leads outside" in line and "evil.zip" in line and repr(name) in line
    assert not list(tmp_path.rglob("escape.wav")) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644])
def test_zip_with_a_link(tmp_path, mode):
    line = refused(hostile(tmp_path, "audio", mode=mode, data=b"/etc"), out=tmp_path / "out")
    assert "link or a device" in line and "'audio'" in line and not (tmp_path / "out").exists()


def test_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(competition_zip_file, "MAX_SMALL", 10_000)
    path = hostile(tmp_path, "zeros.wav", data=bytes(1_000_000))
    assert "more than 100 times" in refused(path, out=tmp_path / "out") and not (tmp_path / "out").exists()
    monkeypatch.setattr(competition_zip_file, "MAX_SMALL", 2_000_000)  # small in all, so not a bomb
    assert (
        competition_zip_file.unpack_archive(path, tmp_path / "fine") / "zeros.wav"
    ).stat().st_size == 1_000_000
    monkeypatch.setattr(competition_zip_file, "MAX_MEMBERS", 2)
    assert "3 members" in refused(hostile(tmp_path, "a", "b", "c"), out=tmp_path / "out")


def test_zip_whose_sizes_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(competition_zip_file, "MAX_SMALL", 10_000)
    path = hostile(tmp_path, "zeros.wav", data=bytes(1_000_000))

    def liars(zip_file, path):
        (info,) = zip_file.infolist()
        return [(type("Small", (), {"file_size": 5})(), info.filename)]

    monkeypatch.setattr(competition_zip_file, "check_members", liars)
    real_open = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, info, *a, **k: real_open(self, "zeros.wav"))
    assert "more than it declares" in refused(path, out=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.wav"))


def test_zip_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(
        competition_zip_file.shutil, "disk_usage", lambda p: type("Usage", (), {"free": 10})()
    )
    line = refused(hostile(tmp_path, "a.wav", data=b"x" * 100), out=tmp_path / "out")
    assert "free" in line and "--out" in line


def test_broken_zips(kaggle, tmp_path):
    path = zipped(tmp_path / "c.zip", kaggle)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a complete zip" in refused(path, out=tmp_path / "out")
    path.write_bytes(whole[:200] + b"\0" * 50 + whole[250:])  # damaged content: the CRC tells
    assert "c.zip" in refused(path, out=tmp_path / "out")
    assert not (tmp_path / "out/c/unpacked").exists() and not (tmp_path / "out/c/.unpacked.partial").exists()
    clash = hostile(tmp_path, "a", "a/b.wav")
    assert "can't unpack" in refused(clash, out=tmp_path / "out")


def test_a_folder_in_the_way_is_not_deleted(kaggle, tmp_path):
    mine = audio(tmp_path / "out/c/unpacked/mine.wav")
    assert "in the way" in refused(zipped(tmp_path / "c.zip", kaggle), out=tmp_path / "out") and mine.exists()


@pytest.mark.parametrize("names", [("a", "a/b.wav"), ("a/b.wav", "a"), ("x" * 300 + ".wav",)])
def test_zip_that_no_folder_can_hold(tmp_path, names):
    line = refused(hostile(tmp_path, *names), out=tmp_path / "out")
    assert (
        "can't unpack" in line
        and not list(tmp_path.rglob("*.partial"))
        and not list(tmp_path.rglob("unpacked"))
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_odd_names_stays_inside(tmp_path):
    path = hostile(
        tmp_path, "a.wav", "a.wav", "n\0.wav", "line\nbreak.wav", ".unpacked", "./b//c.wav", "é😀.wav"
    )
    into = competition_zip_file.unpack_archive(path, tmp_path / "out" / "unpacked")
    assert into == tmp_path / "out" / "unpacked"
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.wav"))
    assert found == [f"out/unpacked/{name}" for name in ("a.wav", "b/c.wav", "line\nbreak.wav", "é😀.wav")]
