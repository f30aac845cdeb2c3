"""Archives that lie in a competition's folder: unpacked elsewhere, shown in place, refused where they mean
harm."""

import io
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from layout_files import audio, csv, files, refused
from test_archive import zipped

from earshot.competition import zip_file
from earshot.competition.load import find_competitions, load
from earshot.core.errors import TemporaryError, UserError


@pytest.fixture
def owls(tmp_path: Path) -> Path:
    """A competition as it is downloaded: a zip of flat files, one of a folder, a csv in a zip, one csv
    loose."""
    root, loose = tmp_path / "owls", tmp_path / "loose"
    files(loose, "train/a.wav", "train/b.wav", "train/c.wav", "more/test/x.wav", "more/test/y.wav")
    csv(loose / "csv/train.csv", "fname,label a.wav,owl b.wav,jay c.wav,owl")
    csv(root / "sample_submission.csv", "fname,label y.wav,jay x.wav,jay")
    zipped(root / "train.zip", loose / "train")
    zipped(root / "test.zip", loose / "more")
    zipped(root / "train.csv.zip", loose / "csv")
    return root


def paths(comp) -> list[str]:
    return [os.path.relpath(path, comp.root) for path in comp.clips["path"]]


def tarred(path: Path, *members: tuple[str, bytes], mode: str = "w:gz", **fields) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            out.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def test_zips_are_shown_as_if_they_were_unpacked_in_place(owls, tmp_path):
    before = sorted(owls.rglob("*"))
    comp = load(owls, out=tmp_path / "out")
    assert paths(comp) == ["train/a.wav", "train/b.wav", "train/c.wav", "test/y.wav", "test/x.wav"]
    assert comp.name == "owls" and comp.root == tmp_path / "out/owls/unpacked"
    line = next(n for n in comp.notes if n.startswith("unpacked: "))
    assert "test.zip, train.csv.zip, train.zip -> " in line and str(owls) in line
    assert not any("zip files" in n for n in comp.notes)
    assert sorted(owls.rglob("*")) == before and all(map(os.path.isfile, comp.clips["path"]))
    assert find_competitions(tmp_path / "out") == [tmp_path / "out/owls"]
    again = load(tmp_path / "out/owls", out=tmp_path / "out")  # as get_features.py does without flags
    assert (again.name, again.root, paths(again)) == (comp.name, comp.root, paths(comp))


def test_a_read_only_folder_a_second_run_and_a_folder_that_moved(owls, tmp_path):
    owls.chmod(0o555)
    comp = load(owls, out=tmp_path / "out")
    owls.chmod(0o755)
    made = {path: path.lstat().st_ino for path in (tmp_path / "out").rglob("*") if path.name != ".lock"}
    load(owls, out=tmp_path / "out")
    assert made == {p: p.lstat().st_ino for p in (tmp_path / "out").rglob("*") if p.name != ".lock"}
    owls.rename(tmp_path / "elsewhere")
    with pytest.raises(TemporaryError, match="is missing, and was there"):  # a drive may be away
        load(owls, out=tmp_path / "out")
    with pytest.raises(TemporaryError, match="which is missing"):
        load(tmp_path / "out/owls", out=tmp_path / "out")
    (tmp_path / "new").mkdir()
    moved = load((tmp_path / "elsewhere").rename(tmp_path / "new/owls"), out=tmp_path / "out")
    assert paths(moved) == paths(comp) and moved.root == comp.root
    assert all(map(os.path.isfile, moved.clips["path"]))
    store = {p: i for p, i in made.items() if ".archives" in p.parts}
    assert all(p.lstat().st_ino == i for p, i in store.items())  # nothing was unpacked again


def test_a_kill_while_it_unpacks(owls, tmp_path, monkeypatch):
    extract = zip_file.extract_members

    def die(*args):
        extract(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(zip_file, "extract_members", die)
    with pytest.raises(KeyboardInterrupt):
        load(owls, out=tmp_path / "out")
    monkeypatch.setattr(zip_file, "extract_members", extract)
    assert len(load(owls, out=tmp_path / "out").clips) == 5
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_zip_that_changes_and_one_that_goes(owls, tmp_path):
    load(owls, out=tmp_path / "out")
    audio(tmp_path / "loose/train/d.wav")
    zipped(owls / "train.zip", tmp_path / "loose/train")
    csv(owls / "train.csv", "fname,label a.wav,owl b.wav,jay c.wav,owl d.wav,jay")
    comp = load(owls, out=tmp_path / "out")
    assert "train/d.wav" in paths(comp)
    assert any("warning: train.csv differs" in n for n in comp.notes)  # the user's own is read
    for path in owls.glob("*.zip"):
        path.unlink()
    files(owls, "train/a.wav", "train/b.wav", "train/c.wav", "train/d.wav", "test/x.wav", "test/y.wav")
    assert load(owls, out=tmp_path / "out").root == owls


def test_the_outputs_may_lie_in_the_folder_itself(owls, tmp_path, monkeypatch):
    monkeypatch.chdir(owls)
    first = load(".", out="data")
    again = load(".", out="data")
    assert paths(first) == paths(again) == paths(load(owls, out=tmp_path / "out"))
    assert len(first.clips) == 5
    monkeypatch.chdir(tmp_path)
    here = load("owls", out=".")  # the folder of outputs is the competition's
    assert paths(here) == paths(first) == paths(load("owls", out="."))


@pytest.mark.parametrize("top", ["", "train"])
def test_what_is_unpacked_already_is_not_unpacked_again(owls, tmp_path, top):
    with zipfile.ZipFile(owls / "train.zip") as archive:
        archive.extractall(owls / "train" / top)
    with zipfile.ZipFile(owls / "test.zip") as archive:
        archive.extractall(owls)
    csv(owls / "train.csv", "fname,label a.wav,owl b.wav,jay c.wav,owl")
    (owls / "train.csv.zip").unlink()
    if top:  # of a zip of one folder, as Kaggle's own page unpacks it
        (owls / "train.zip").unlink()
        zipped(owls / "train.zip", owls / "train")
    comp = load(owls, out=tmp_path / "out")
    assert comp.root == owls and not (tmp_path / "out").exists()
    assert any(n.startswith("not unpacked again: test.zip, train.zip") for n in comp.notes)


def test_a_folder_that_holds_some_of_a_zip_is_completed(owls, tmp_path):
    shutil.copytree(tmp_path / "loose/train", owls / "train")
    (owls / "train/c.wav").unlink()
    assert paths(load(owls, out=tmp_path / "out"))[:3] == ["train/a.wav", "train/b.wav", "train/c.wav"]


@pytest.mark.parametrize(
    "suffix, mode", [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2")]
)
def test_tars(tmp_path, suffix, mode):
    files(tmp_path / "made", "dog/1.wav", "dog/2.wav", "cat/1.wav", "cat/2.wav")
    (tmp_path / "c").mkdir()
    with tarfile.open(tmp_path / f"c/genres.{suffix}", mode) as out:
        out.add(tmp_path / "made", "genres")
    comp = load(tmp_path / "c", out=tmp_path / "out")
    assert comp.classes == ["cat", "dog"] and "genres/cat/1.wav" in paths(comp)
    itself = load(tmp_path / f"c/genres.{suffix}", out=tmp_path / "out")
    assert itself.name == "genres" and "cat/1.wav" in paths(itself)


def test_zips_in_a_zip_at_two_levels_and_no_more(owls, tmp_path):
    zipped(tmp_path / "birds.zip", owls)
    comp = load(tmp_path / "birds.zip", out=tmp_path / "out")
    assert len(comp.clips) == 5 and "train/a.wav" in paths(comp)
    assert paths(load(tmp_path / "out/birds", out=tmp_path / "out")) == paths(comp)
    (tmp_path / "deep").mkdir()
    zipped(tmp_path / "deep/a.zip", owls)
    assert len(load(tmp_path / "deep", out=tmp_path / "out").clips) == 5
    (tmp_path / "deeper").mkdir()
    zipped(tmp_path / "deeper/b.zip", tmp_path / "deep")
    line = refused(tmp_path / "deeper", out=tmp_path / "out")
    assert "b/a/train.zip" in line


def test_zips_without_audio_or_tables_stay_packed(kaggle, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.png").write_bytes(b"png")
    zipped(kaggle / "pictures.zip", tmp_path / "docs")
    comp = load(kaggle, out=tmp_path / "out")
    assert comp.root == kaggle and any("1 zip files" in n and "pictures.zip" in n for n in comp.notes)


def test_archives_that_cannot_be_read_are_named_with_a_command(kaggle, tmp_path):
    root = tmp_path / "speech"
    root.mkdir()
    for name in ("train.7z", "test.7z", "dev.zip", "dev.z01", "old.rar", "new.tar.zst"):
        (root / name).write_bytes(b"7z")
    line = refused(root, out=tmp_path / "out")
    assert "dev.z01, dev.zip, new.tar.zst and 3 more: 7z x dev.zip" in line
    for name in ("dev.zip", "dev.z01", "old.rar", "new.tar.zst"):
        (root / name).unlink()
    assert "test.7z, train.7z: 7z x test.7z" in refused(root, out=tmp_path / "out")
    assert "7z x" in refused(root / "train.7z", out=tmp_path / "out")
    (kaggle / "train.7z").write_bytes(b"7z")
    (kaggle / "x.zip").write_bytes(b"PK")
    notes = load(kaggle, out=tmp_path / "out").notes
    assert any(n.startswith("not used: 1 archives") and "train.7z" in n for n in notes)
    assert any(n.startswith("warning: not used: ") and "x.zip is not a complete zip" in n for n in notes)


# --- archives that mean harm


def evil_zip(path: Path, name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> Path:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        out.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


def only_refused(root: Path, tmp_path: Path) -> str:
    line = refused(root, out=tmp_path / "out")
    assert not list(tmp_path.rglob("escape*")) and not list((tmp_path / "out").rglob("*.wav"))
    return line


@pytest.mark.parametrize("name", ["../escape.wav", "/tmp/escape.wav", "..\\escape.wav"])
def test_an_inner_zip_that_leads_outside(tmp_path, name):
    evil_zip(tmp_path / "c/evil.zip", name)
    assert "leads outside" in only_refused(tmp_path / "c", tmp_path)
    evil_zip(tmp_path / "d/inner/evil.zip".replace("inner/", ""), name)
    zipped(tmp_path / "outer.zip", tmp_path / "d")
    assert "leads outside" in only_refused(tmp_path / "outer.zip", tmp_path)


def test_an_inner_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_file, "MAX_SMALL", 10_000)
    evil_zip(tmp_path / "c/evil.zip", "zeros.wav", bytes(1_000_000))
    assert "more than 100 times" in only_refused(tmp_path / "c", tmp_path)


def test_many_small_bombs_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_file, "MAX_SMALL", 100_000)
    for number in range(40):
        evil_zip(tmp_path / f"d/{number}.zip", "zeros.wav", bytes(90_000))
    zipped(tmp_path / "c.zip", tmp_path / "d")
    try:
        load(tmp_path / "c.zip", out=tmp_path / "out")
    except UserError as error:
        assert "\n" not in str(error)
    inner = [p.stat().st_size for p in (tmp_path / "out").rglob("zeros.wav")]
    assert sum(inner) <= 100 * sum(p.stat().st_size for p in (tmp_path / "d").iterdir())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_a_link_or_a_device(tmp_path, kind):
    tarred(tmp_path / "c/evil.tar.gz", ("audio", b""), type=kind, linkname="/etc")
    assert "link or a device" in only_refused(tmp_path / "c", tmp_path)


@pytest.mark.parametrize("name", ["../escape.wav", "/tmp/escape.wav", "a/../../escape.wav"])
def test_a_tar_that_leads_outside(tmp_path, name):
    tarred(tmp_path / "c/evil.tar", (name, b"x"), mode="w")
    assert "leads outside" in only_refused(tmp_path / "c", tmp_path)


def test_tar_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_file, "MAX_SMALL", 10_000)
    tarred(tmp_path / "c/evil.tar.gz", ("zeros.wav", bytes(5_000_000)))
    assert "more than 100 times" in only_refused(tmp_path / "c", tmp_path)
    tarred(tmp_path / "d/evil.tar.gz", ("a" * 3_000_000, b"x"))  # of its header alone
    assert "not a complete tar" in only_refused(tmp_path / "d", tmp_path)


def test_tars_that_are_cut_off_or_altered(tmp_path):
    files(tmp_path / "made", *(f"{kind}/{n}.wav" for kind in ("dog", "cat") for n in range(5)))
    path = tmp_path / "c/birds.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as out:
        out.add(tmp_path / "made", "birds")
    whole = path.read_bytes()
    second = whole.index(b"birds/dog/")
    for spoilt in (
        whole[:5000],
        whole[: second // 512 * 512],
        whole[:second] + b"X" * 512 + whole[second + 512 :],
    ):
        path.write_bytes(spoilt)
        assert "not a complete tar" in only_refused(tmp_path / "c", tmp_path)


def test_a_csv_whose_paths_begin_with_the_folder_s_name(tmp_path):
    files(tmp_path / "made", "x.wav")
    root = tmp_path / "owls"
    files(root, "a.wav", "b.wav")
    csv(root / "train.csv", "path,label owls/a.wav,owl owls/b.wav,jay")
    zipped(root / "test.zip", tmp_path / "made")
    assert paths(load(root, out=tmp_path / "out"))[:2] == ["a.wav", "b.wav"]


def test_no_space(owls, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert "make space" in refused(owls, out=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.wav"))
