"""More untrusted folders with correct checksums: shards, manifests and links."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import FLAGS
from test_damage import TRAIN, files
from test_untrusted import reseal

from earshot.core import checksums, config, plain_pickle
from earshot.core.errors import UserError
from earshot.core.fingerprint import compute_fingerprint
from earshot.features import cache, find_cache, make_cache, merge_shards
from earshot.features.cache import Cache
from earshot.training import resume


def test_a_flipped_digit_does_not_condemn_a_cache(scripts, data, calm, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "tones" / "logmel"
    shutil.copytree(calm, folder)
    monkeypatch.setattr(checksums, "SETTLED", -1e9)  # remembered at once
    flags = ["--competition", str(data), *FLAGS, "--out", str(tmp_path)]
    scripts[0](flags)
    index = tmp_path / "tones" / checksums.VERIFIED
    text = index.read_text()
    wrong = text.replace(checksums.read(folder / cache.MANIFEST)["sha256"]["train.pkl"], "0" * 64)
    assert wrong != text
    index.write_text(wrong)
    capsys.readouterr()
    scripts[0](flags)
    said = capsys.readouterr().out
    assert (
        "nothing to do" in said
        and "set aside" not in said
        and json.loads(index.read_text()) == json.loads(text)
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"record": {}}',
        '{"record": 5}',
        '{"record": {"extractor": "logmel"}, "version": 2, "complete": true}',
    ],
)
@pytest.mark.parametrize("recipe", ["linear", "sample"])  # without, and with features of its own
def test_what_is_no_cache_does_not_block_one(calm, tmp_path, text, recipe):
    folder = tmp_path / "data" / "tones" / "logmel"
    shutil.copytree(calm, folder)
    (tmp_path / "data" / "tones" / "other").mkdir()
    (tmp_path / "data" / "tones" / "other" / cache.MANIFEST).write_text(text)
    assert find_cache.find_for_recipe(str(tmp_path / "data"), config.load_recipe(recipe)) == folder
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no cache|version|other"):
        Cache(find_cache.find_for_recipe(str(tmp_path / "data"), config.load_recipe(recipe)))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("bad"),
        lambda m: m.update(bad="x"),
        lambda m: m["augmented"].pop("copies"),
        lambda m: m.update(recipe=5),
        lambda m: m.update(recipe=["a"]),
        lambda m: m.update(weights=[1]),
        lambda m: m.update(separator=5),
        lambda m: m["record"].pop("weights"),
        lambda m: m["record"]["clips"].pop("train"),
        lambda m: m["record"].update(augment=5),
    ],
)
def test_a_manifest_says_all_that_its_readers_need(scripts, data, calm, attached, tmp_path, change):
    folder = attached / "tones" / "logmel"
    shutil.copytree(calm, folder)

    def changed(content: dict) -> None:
        change(content)
        content["fingerprint"] = compute_fingerprint(content["record"])

    reseal(folder, changed)
    with pytest.raises(UserError, match="extract again with --fresh"):
        Cache(folder)
    scripts[0](["--competition", str(data), *FLAGS])
    assert files(tmp_path / "data" / "tones" / "logmel") == files(calm)


def reshard(folder: Path, name: str, change) -> None:
    """A shard with a change, and a new checksum."""
    path = folder / "shards" / f"{name}.pkl"
    content = plain_pickle.load(path, mmap=False)
    change(content)
    cache.dump(path, content)
    seal = checksums.read(path.with_suffix(".json"))
    seal.pop("sha256")
    checksums.write(path.with_suffix(".json"), seal, path.name)


CHANGES = {
    "shape": lambda c: c.update(mel=c["mel"][..., :-1].copy()),
    "name": lambda c: c.update(mal=c.pop("mel")),
    "kind": lambda c: c.update(mel=c["mel"].astype(np.float64)),
    "numbers": lambda c: c.update(mel=c["mel"].astype(np.int16)),
    "span": lambda c: c["meta"].update(span=77.0),
    "fingerprint": lambda c: c["meta"].update(fingerprint="x"),
    "no fingerprint": lambda c: c["meta"].pop("fingerprint"),
    "no time": lambda c: c.update(start=np.full_like(c["start"], np.nan)),
    "negative": lambda c: c.update(length=-c["length"]),
    "turned": lambda c: c.update(clip=c["clip"][::-1].copy()),
    "no windows": lambda c: c.update(clip=np.full_like(c["clip"], c["clip"][0])),
    "windows and bad": lambda c: c.update(bad=c["clip"][:1].copy(), reason=np.array(["x"])),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["train-00000", "subm-00000"])
def test_an_odd_shard_is_made_again(scripts, data, calm, begun, attached, tmp_path, capsys, name, change):
    folder = attached / "tones" / "logmel"
    shutil.copytree(begun, folder)
    reshard(folder, name, CHANGES[change])
    scripts[0](["--competition", str(data), *FLAGS])
    said = [line for line in capsys.readouterr().out.splitlines() if "set aside" in line]
    assert len(said) == 1 and f"{name}.pkl" in said[0], said
    assert files(tmp_path / "data" / "tones" / "logmel") == files(calm)


@pytest.mark.parametrize("change", ["shape", "span", "numbers"])
def test_the_odd_one_of_all_shards_is_made_again(scripts, data, calm, tmp_path, capsys, monkeypatch, change):
    flags, folder = (
        ["--competition", str(data), *FLAGS, "--out", str(tmp_path)],
        tmp_path / "tones" / "logmel",
    )
    with monkeypatch.context() as patch:
        patch.setattr(merge_shards, "merge", lambda *_: None)  # as after a kill before the join
        patch.setattr(make_cache, "print_summary", lambda *_: None)
        scripts[0](flags)
    reshard(folder, "train-00001", CHANGES[change])
    capsys.readouterr()
    scripts[0](flags)
    said = capsys.readouterr().out
    assert (
        said.count("set aside") == 1
        and "train-00001.pkl has other views, or another span, than most shards" in said
    )
    assert files(folder) == files(calm)


def get_features(scripts):
    """The script's module."""
    import sys

    return sys.modules[scripts[0].__module__]


@pytest.mark.parametrize("sums", [[1], "x", 5, {"train-00000.pkl": 5}])
@pytest.mark.parametrize("earlier", [True, False])
def test_invalid_checksums_of_a_shard(scripts, data, calm, begun, attached, tmp_path, capsys, sums, earlier):
    folder = (attached if earlier else tmp_path / "data") / "tones" / "logmel"
    shutil.copytree(begun, folder)
    path = folder / "shards" / "train-00000.json"
    checksums.write(path, {**checksums.read(path), "sha256": sums})
    scripts[0](["--competition", str(data), *FLAGS])
    assert ("not copied" if earlier else "set aside") in capsys.readouterr().out
    assert files(tmp_path / "data" / "tones" / "logmel") == files(calm)


@pytest.mark.parametrize("what", ["fold", "checkpoint", "file", "no folder"])
def test_links_in_an_earlier_run_are_not_followed(scripts, calm, attached, tmp_path, monkeypatch, what):
    """Not where a checkpoint stands under the name of a replacement that was cut off, either."""
    shutil.copytree(calm, tmp_path / "data" / "tones" / "logmel")
    scripts[1]([*TRAIN, "--name", "r", "--runs-folder", "old"])
    run, secret = tmp_path / "old" / "r", tmp_path / "secret"
    shutil.copytree(run / "fold_0" / "last", secret / "last.old")
    (secret / "last.old" / "id_rsa").write_text("key")
    if what == "fold":
        shutil.rmtree(run / "fold_0")
        (run / "fold_0").symlink_to(secret)
    else:
        (run / "fold_0" / "last").rename(run / "fold_0" / "last.old")
    if what == "file":
        (run / "fold_0" / "last.old" / "id_rsa").symlink_to(secret / "last.old" / "id_rsa")
    elif what != "fold":
        shutil.rmtree(run / "fold_0" / "last.old")
        there = run / "fold_0" / "last.old"
        there.symlink_to(secret / "last.old") if what == "checkpoint" else there.touch()
    shutil.move(tmp_path / "old", attached / "runs")
    copied, copy = [], resume.copy_file
    monkeypatch.setattr(
        resume,
        "copy_file",
        lambda source, *more: (copied.append(source.resolve()), copy(source, *more))[1],
    )
    scripts[1]([*TRAIN, "--name", "r"])
    assert copied and all(path.is_relative_to(attached.resolve()) for path in copied)
    assert (tmp_path / "runs" / "r" / "oof.csv").exists()
