"""The weights in a bundle: those of hub ids and of runs, none in the place of another of the same name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from earshot.core import kaggle_paths
from earshot.core.errors import UserError
from earshot.core.files import hash_file, hash_value
from earshot.extractors import efficientat, hf
from earshot.features import for_run
from earshot.kaggle import __main__ as kaggle_main
from earshot.kaggle import bundle
from earshot.training import run as training_run


def save(folder: Path, kind: str, weights: bytes) -> Path:
    """A folder that looks like a network of transformers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights * 100)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with links, as the hub's client makes it, and nothing attached."""
    kaggle_paths._walk_once.cache_clear()
    for name, kind in {
        "facebook/encodec_24khz": "encodec", "one/base": "wavlm", "two/base": "hubert"
    }.items():  # fmt: skip
        cached = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        blobs = save(cached / "blobs", kind, name.encode())
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("abc")
        (cached / "snapshots" / "abc").mkdir(parents=True)
        for file in blobs.iterdir():
            (cached / "snapshots" / "abc" / file.name).symlink_to(file)
        (cached / "snapshots" / "abc" / "README.md").write_text("not needed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("EARSHOT_ATTACHED", str(tmp_path / "bundle"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def make_run(
    monkeypatch: pytest.MonkeyPatch, extractor: str, *weights: str
) -> tuple[list[Path], list[SimpleNamespace]]:
    """Runs whose features were made with these weights, by name: their folders, and they themselves."""
    runs = {}
    for number, name in enumerate(weights):
        settings = bundle_settings(extractor)
        made_by = for_run.extractors.load_module(extractor).Extractor
        hashed = hash_value([hash_file(file) for file in made_by.find_weights(settings, name)])[:16]
        features = {"extractor": extractor, "settings": {}, "weights": hashed}
        config = {"weights": name, "record": {"features": features}}
        runs[Path(f"runs/{number}")] = SimpleNamespace(config=config, folder=Path(f"runs/{number}"))
    monkeypatch.setattr(training_run.Run, "open", lambda path: runs[path])
    return list(runs), list(runs.values())


def bundle_settings(extractor: str) -> object:
    return for_run.extractors.load_module(extractor).Settings()


def attach(parts: dict[str, list[tuple[Path, str]]], to: Path) -> None:
    """Copy the parts of a bundle to where they are attached."""
    for part, files in parts.items():
        for file, name in files:
            target = to / part / name if name else to / part
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    kaggle_paths._walk_once.cache_clear()


def test_a_hub_id_of_any_extractor(hub: Path, tmp_path: Path) -> None:
    kaggle_main.main(["bundle", "--weights", "facebook/encodec_24khz"])
    made = tmp_path / "bundle" / "weights" / "encodec_24khz"
    assert {file.name for file in made.iterdir()} == {
        "config.json", "preprocessor_config.json", "model.safetensors"
    }  # fmt: skip
    assert (made / "model.safetensors").read_bytes() == b"facebook/encodec_24khz" * 100
    assert not any(file.is_symlink() for file in made.iterdir())
    with pytest.raises(UserError, match="--weights one/absent: no such file"):
        kaggle_main.main(["bundle", "--weights", "one/absent"])


def test_two_hub_ids_of_one_last_name(hub: Path, tmp_path: Path) -> None:
    parts = bundle.find_weights(("one/base", "two/base"), [])
    assert list(parts) == ["weights/one-base", "weights/two-base"]
    attach(parts, tmp_path / "bundle")
    (hub).rename(tmp_path / "gone")
    for owner in ("one", "two"):
        assert hf.WEIGHTS.find_folder(f"{owner}/base") == tmp_path / "bundle" / "weights" / f"{owner}-base"
    save(tmp_path / "x" / "base", "wavlm", b"x")
    (tmp_path / "gone").rename(hub)
    with pytest.raises(UserError, match="two have the name base: rename the folder"):
        bundle.find_weights(("one/base", "x/base"), [])


@pytest.mark.parametrize("extractor", ["hf", "onnx", "efficientat"])
def test_weights_of_runs_that_have_one_name(
    extractor: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run finds its own again, by content; the same content is there once."""
    suffix = {"hf": "", "onnx": ".onnx", "efficientat": ".pt"}[extractor]
    places = [str(tmp_path / owner / f"encoder{suffix}") for owner in ("A", "B", "C", "x/A", "named")]
    for place, content in zip(places, (b"a", b"b", b"a", b"d", b"n"), strict=True):
        if extractor == "hf":
            save(Path(place), "wavlm", content)
        else:
            Path(place).parent.mkdir(parents=True)
            Path(place).write_bytes(content * 100)
    folders, runs = make_run(monkeypatch, extractor, *places[:4])
    names = ["A-encoder", "B-encoder", "A-encoder-2"]
    parts = bundle.find_weights((), folders)
    assert list(parts) == [f"weights/{name}{suffix}" for name in names]
    parts = bundle.find_weights((places[4],), folders)
    assert list(parts) == [f"weights/{name}{suffix}" for name in ["encoder", *names]]
    assert list(bundle.find_weights((places[0],), folders[:1])) == [f"weights/encoder{suffix}"], "once"
    attach(parts, tmp_path / "bundle")
    for owner in ("A", "B", "C", "x", "named"):
        (tmp_path / owner).rename(tmp_path / f"gone-{owner}")
    for run, name in zip(runs, ("A-encoder", "B-encoder", "A-encoder", "A-encoder-2"), strict=True):
        found = for_run.find_weights_files(run)
        place = tmp_path / "bundle" / "weights" / f"{name}{suffix}"
        assert found == (sorted(place.iterdir()) if extractor == "hf" else [place])


def test_large_attached_files_are_not_read(hub: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "bundle").mkdir()
    for name, size in (("small.pt", 5), ("large.pt", 50), ("small.txt", 5)):
        (tmp_path / "bundle" / name).write_bytes(bytes(size))
    monkeypatch.setattr(efficientat, "LARGEST", 10)
    assert efficientat.Extractor.list_attached() == [str(tmp_path / "bundle" / "small.pt")]
