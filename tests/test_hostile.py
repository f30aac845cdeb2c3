"""Untrusted files are refused in one line, within bounds, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from conftest import ROOT

from earshot.core import config
from earshot.core.errors import Refused, UserError
from earshot.core.files import hash_file
from earshot.extractors import torch_weights
from earshot.features import cache
from earshot.features.cache import Cache
from earshot.training.run import Run


def test_the_corpus_is_refused_within_64_mb_and_runs_nothing(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "hostile.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused: 73 pickles and 15 files of weights; victim: False" in done.stdout


@pytest.mark.parametrize("name", ["reduce", "nested reduce", "inst", "obj", "object array", "partial"])
def test_the_corpus_means_harm(tmp_path: Path, name: str) -> None:
    """What the reader refuses does run where pickle or joblib reads it."""
    import io

    import joblib

    content = hostile.pickles(tmp_path / "victim")[name]
    if name in ("nested reduce", "object array"):
        joblib.load(io.BytesIO(content))
    else:
        pickle.loads(content) if name != "partial" else pickle.loads(content)["x"]()
    assert (tmp_path / "victim").is_dir()


def test_state_dicts_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    x = torch.arange(24.0).reshape(4, 6)
    state = {
        "plain": x,
        "turned": x.t(),
        "part": x[1:3, ::2],
        "half": x.half(),
        "bfloat": x.bfloat16(),
        "one": torch.tensor(5),
        "none": torch.zeros(0, 3),
        "truth": torch.tensor([True]),
        "parameter": torch.nn.Parameter(x),
        "double": x.double(),
    }
    torch.save(state, tmp_path / "a.pt")
    found = torch_weights.load(tmp_path / "a.pt")
    assert list(found) == list(state) and all(
        torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in state.items()
    )
    torch.save(torch.nn.BatchNorm1d(3).state_dict(), tmp_path / "b.pt")
    assert torch_weights.load(tmp_path / "b.pt").keys() == torch.nn.BatchNorm1d(3).state_dict().keys()
    from safetensors.torch import save_file

    save_file({"a": x}, tmp_path / "c.safetensors")
    assert torch.equal(torch_weights.load(tmp_path / "c.safetensors")["a"], x)
    (tmp_path / "d.safetensors").write_bytes((1 << 50).to_bytes(8, "little") + b"{}")
    with pytest.raises(Refused):
        torch_weights.load(tmp_path / "d.safetensors")


def test_published_weights_are_read_as_torch_reads_them(efficientat_weights: Path) -> None:
    mine, theirs = torch_weights.load(efficientat_weights), torch.load(efficientat_weights, weights_only=True)
    assert (
        len(mine) == 312
        and list(mine) == list(theirs)
        and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    )


def test_nothing_here_loads_pickles() -> None:
    """Of all the ways to read a pickle, none is called in the product.

    Except for what a driver and its own workers send each other: no file, and Ray's transport pickles, too.
    """
    product = [*ROOT.glob("*.py"), *ROOT.glob("earshot/**/*.py"), *ROOT.glob("models/*.py")]
    for path in (path for path in product if path.parent.name != "cluster"):
        text = path.read_text(encoding="utf-8")
        for call in (
            "pickle.load",
            "joblib.load(",
            "torch.load(",
            "read_pickle(",
            "allow_pickle=True",
            "trust_remote_code=True",
            "yaml.load(",
            "Unpickler(",
        ):
            assert call not in text, f"{path.name}: {call}"


def reseal(folder: Path, name: str, change) -> None:
    """A cache's file changed by somebody who knows the format: every checksum is valid again."""
    from earshot.core import checksums

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("checksum")
    sums = manifest.pop("sha256")
    if name == "manifest.json":
        change(manifest)
    else:
        content = cache.load(folder / name, mmap=False)
        change(content)
        cache.dump(folder / name, content)
    checksums.write(folder / "manifest.json", manifest, *sums)
    assert name == "manifest.json" or json.loads((folder / "manifest.json").read_text())["sha256"][
        name
    ] == hash_file(folder / name)


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("train.pkl", lambda c: c["clip"].__setitem__(0, 10**6), "to 1000000, of 42"),
        ("train.pkl", lambda c: c["clip"].__setitem__(0, -5), "rows of clip -5"),
        ("train.pkl", lambda c: c.update(clip=c["clip"].astype(float)), "clip of kind float64"),
        ("train.pkl", lambda c: c.update(mel=c["mel"][:-1]), "42 clip for 41 rows"),
        ("train.pkl", lambda c: c.update(mel=c["mel"].astype("U4")), "mel of kind"),
        ("train.pkl", lambda c: c.update(mel="mel"), "no array mel"),
        ("train.pkl", lambda c: c.pop("labels"), "no array labels"),
        ("train.pkl", lambda c: c.update(labels=np.array(["evil"] * len(c["labels"]))), "label evil"),
        ("train.pkl", lambda c: c.update(ids=c["ids"][:3]), "3 ids for 42 clips"),
        ("train.pkl", lambda c: c["ids"].__setitem__(1, c["ids"][0]), "an id twice"),
        ("subm.pkl", lambda c: c["length"].__setitem__(0, np.inf), "not finite"),
        ("augmented.pkl", lambda c: c["partner"].__setitem__(0, 99), "clips that are not there"),
        ("augmented.pkl", lambda c: c["share"].__setitem__(0, 7), "shares outside"),
        ("manifest.json", lambda m: m["shapes"].update(mel=[1, 16, 10**9]), "mel of shape"),
        ("manifest.json", lambda m: m["splits"]["train"].update(clips=3), "42 ids for 3 clips"),
    ],
)
def test_arrays_that_do_not_hold_together(calm, tmp_path, name, change, words):
    import shutil

    folder = tmp_path / "cache"
    shutil.copytree(calm, folder)
    reseal(folder, name, change)
    with pytest.raises(UserError, match=words) as error:
        made = Cache(folder)
        made.split("train"), made.split("subm"), made.augmented()
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
)


@pytest.mark.parametrize(
    "text",
    [
        "head: !!python/object/apply:os.mkdir [victim]",
        "head: !!python/name:os.system",
        LAUGHS,
        "head: " + "[" * 100_000,
        "about: " + "x" * (5 << 20),
        "head: {a: &x [*x]}",
        "head: {? [a] : b}",
        "\0",
        "head: [1",
        "- a",
    ],
)
def test_untrusted_yaml(tmp_path: Path, text: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        config.load_recipe("r.yaml")
    assert "\n" not in str(error.value) and "r.yaml" in str(error.value) and len(str(error.value)) < 400
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(UserError):
        Run.open(tmp_path / "run")
    assert not (tmp_path / "victim").exists()
