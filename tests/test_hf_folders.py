"""Folders of the extractor `hf` that are damaged, hostile, or published in other forms: refused in one line,
before memory is taken and before anything outside them is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_competition
from test_hf import make, refuse
from tiny_encoders import save
from waves import synthetic

import get_features
from earshot.core.errors import UserError
from earshot.extractors import hf, hub


def make_changer(whole: Path) -> Callable[..., Path]:
    """`change(name, **values)`: a copy of a folder, a JSON file of which is changed."""

    def change(name: str, **values: Any) -> Path:
        folder = whole.parent / f"changed{len(list(whole.parent.iterdir()))}"
        shutil.copytree(whole, folder)
        saved = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**saved, **values}))
        return folder

    return change


def test_folders_that_are_no_encoder(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    save("wav2vec2", whole)
    change = make_changer(whole)

    refuse(
        change("config.json", model_type="bert"),
        "holds a model of type bert, not an audio encoder .* such as wav2vec2",
    )
    refuse(change("config.json", model_type=None), "holds a model of type None")
    refuse(change("config.json", num_hidden_layers=3), "lack .* of the network's tensors")
    refuse(change("preprocessor_config.json", sampling_rate=0), "no sampling rate from 1000 to 192000")
    refuse(
        change("preprocessor_config.json", feature_size=10**12),
        "feature_size is 1000000000000, at most 10,000,000",
    )
    refuse(
        change("preprocessor_config.json", feature_extractor_type="Other"),
        "is a Other, but this network takes a",
    )
    lacking = change("config.json")
    (lacking / "preprocessor_config.json").unlink()
    refuse(lacking, "has no preprocessor_config.json")
    refuse(tmp_path / "absent", "no such folder, and not a hub id")
    refuse(change("config.json", num_hidden_layers=10**8), "num_hidden_layers is 100000000, at most 1,000")
    refuse(change("config.json", hidden_size=10**5), "describe [0-9,]+ parameters, but the files have")
    refuse(change("config.json", attn_implementation="them/kernel"), "names an implementation outside transf")


def test_settings_that_no_network_has(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    save("wav2vec2", whole)
    change = make_changer(whole)
    refuse(
        change("config.json", model_type=["wav2vec2"]), r"a model of type \['wav2vec2'\], not an audio enc"
    )
    refuse(change("config.json", conv_stride=[0, 2, 2, 2, 2, 2, 2]), "conv_stride is 0, at least 1")
    refuse(change("config.json", conv_kernel=[30000, 3, 3, 3, 3, 2, 2]), "cannot be loaded")
    refuse(
        change("preprocessor_config.json", feature_extractor_type="x" * 3000), f"is a {'x' * 60}, but this"
    )
    nested: Any = 1
    for _ in range(900):
        nested = [nested]
    refuse(change("preprocessor_config.json", deep=nested), "not readable as JSON .nested more than 50 deep")
    refuse(change("config.json", deep={"deep": nested}), "not readable as JSON .nested more than 50 deep")
    deep = change("config.json")
    (deep / "config.json").write_text("[" * 200_000)
    refuse(deep, "config.json is not readable as JSON")
    save("clap", tmp_path / "clap")
    audio = {**json.loads((tmp_path / "clap" / "config.json").read_text())["audio_config"], "depths": [10**7]}
    clap = make_changer(tmp_path / "clap")("config.json", audio_config=audio)
    refuse(clap, "depths is 10000000, at most 1,000")
    adapted = change("config.json")
    (adapted / "adapter_config.json").write_text('{"base_model_name_or_path": "them/other"}')
    refuse(adapted, "holds an adapter .*merge_and_unload")


def test_a_network_that_fails_on_every_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("hubert", tmp_path)
    loaded = hf.load_encoder

    def load(folder: Path) -> Any:
        network = loaded(folder)
        network.feature_extractor.conv_layers[0].conv.stride = (0,)
        return network

    monkeypatch.setattr(hf, "load_encoder", load)
    refuse(tmp_path, "fails on a window of 2 s .*stride.*: set other --seconds or --weights")


def test_feature_extractors_that_would_take_the_memory(tmp_path: Path) -> None:
    whole, clap = tmp_path / "whole", tmp_path / "clap"
    save("whisper", whole)
    save("clap", clap)
    change = make_changer(whole)
    name = "preprocessor_config.json"
    refuse(
        change(name, n_fft=2_000_000, feature_size=2000), "2000 bands x 2000000 samples .*at most 16,777,216"
    )
    refuse(change(name, feature_size=10**7), "10000000 bands x 400 samples|10000000 bands x 512 samples")
    refuse(change(name, n_fft=200_000, hop_length=1), "n_fft 200000 is over 64 times hop_length")
    refuse(change(name, chunk_length=10**6), "fills every window to 1e[+]06 s, outside 0.1 to 120 s")
    refuse(change(name, chunk_length=0), "fills every window to 0 s")
    refuse(change(name, n_fft="400"), "n_fft|cannot be loaded|fills every")
    refuse(make_changer(clap)(name, max_length_s=10**5), "fills every window to 100000 s")
    assert hf.WEIGHTS.load_processor(whole) and hf.WEIGHTS.load_processor(clap)


@pytest.mark.parametrize("name", ["../x/model.safetensors", "sub/model.safetensors", "a\\b.safetensors"])
def test_an_index_names_only_files_beside_it(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    save("hubert", folder)
    for place in (tmp_path / "x", folder / "sub"):
        place.mkdir()
        shutil.copy(folder / "model.safetensors", place)
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"layer_norm.weight": name}}))
    refuse(folder, "index.json names .* which is no [*].safetensors beside it")
    index.write_text(json.dumps({"weight_map": {"a": "x" * 5000 + ".safetensors"}}))
    refuse(folder, f"names '{'x' * 60}', which is no")
    index.write_text(json.dumps({"weight_map": {"a": "model.bin"}}))
    refuse(folder, "names 'model.bin', which is no")


def test_a_config_names_no_other_weights(tmp_path: Path) -> None:
    """As `transformers_weights` would: its files are in no fingerprint."""
    save("hubert", tmp_path / "w")
    wave = synthetic(1.0, 16000)
    want = make(tmp_path / "w").extract([wave], [0.0], 1)[0].views["pooled"]
    import torch
    from safetensors.torch import load_file, save_file

    state = {
        name: torch.zeros_like(value) for name, value in load_file(tmp_path / "w/model.safetensors").items()
    }
    (tmp_path / "w" / "sub").mkdir()
    save_file(state, tmp_path / "w" / "sub" / "model.safetensors", {"format": "pt"})
    folder = make_changer(tmp_path / "w")("config.json", transformers_weights="sub/model.safetensors")
    assert (make(folder).extract([wave], [0.0], 1)[0].views["pooled"] == want).all()


def test_weights_that_are_published_as_pickles(tmp_path: Path) -> None:
    """As those of WavLM: read as plain data, with the names that older versions gave; never unpickled."""
    import torch
    from safetensors.torch import load_file

    save("wavlm", tmp_path)
    wave = synthetic(1.0, 16000)
    want = make(tmp_path).extract([wave], [0.0], 1)[0].views
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    refuse(tmp_path, "has no model.safetensors")
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for name, values in state.items():
        for new, before in old.items():
            name = name.replace(new, before)
        renamed[f"wavlm.{name}"] = values
    assert any(name.endswith("weight_g") for name in renamed)
    torch.save({**renamed, "lm_head.weight": torch.zeros(3, 32)}, tmp_path / "pytorch_model.bin")
    assert tmp_path / "pytorch_model.bin" in hf.WEIGHTS.find_files(str(tmp_path)), "part of the fingerprint"
    found = make(tmp_path).extract([wave], [0.0], 1)[0].views
    for view, values in want.items():
        assert np.array_equal(values, found[view])
    torch.save({"evil": torch.nn.Linear(1, 1)}, tmp_path / "pytorch_model.bin")
    refuse(tmp_path, "cannot be loaded .*Linear")


def test_parts_of_pickles(tmp_path: Path) -> None:
    """A download that was interrupted is no network, with or without its index."""
    import torch
    from safetensors.torch import load_file

    save("wavlm", tmp_path)
    wave = synthetic(1.0, 16000)
    want = make(tmp_path).extract([wave], [0.0], 1)[0].views["pooled"]
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = [f"pytorch_model-{n:05}-of-00002.bin" for n in (1, 2)]
    for n, name in enumerate(names):
        torch.save(dict(list(state.items())[n::2]), tmp_path / name)
    found = {key: names[n % 2] for n, key in enumerate(state)}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": found}))
    assert np.array_equal(make(tmp_path).extract([wave], [0.0], 1)[0].views["pooled"], want)
    (tmp_path / names[1]).unlink()
    refuse(tmp_path, f"lacks {names[1]}, a part of the weights")
    index.unlink()
    refuse(tmp_path, f"lacks {names[1]}, a part of the weights")
    index.write_text(json.dumps({"weight_map": {"a": "../pytorch_model.bin"}}))
    refuse(tmp_path, "which is no pytorch_model[*].bin beside it")


FILES = {
    "whole": (
        [
            "model.safetensors",
            "model.fp32-00001-of-00002.safetensors",
            "pytorch_model.bin",
            "flax_model.msgpack",
        ],
        ["model.safetensors"],
    ),
    "parts": (
        ["model-00001-of-00001.safetensors", "model.safetensors.index.json", "sub/model.safetensors"],
        ["model-00001-of-00001.safetensors", "model.safetensors.index.json"],
    ),
    "pickles": (
        [
            "pytorch_model-00001-of-00001.bin",
            "pytorch_model.bin.index.json",
            "pytorch_model.fp32.bin",
            "tf.h5",
        ],
        ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_only_one_copy_is_downloaded(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    there, want = FILES[kind]

    def download(name: str, allow_patterns: list[str], **more: Any) -> str:
        for file in filter_repo_objects([*there, "config.json", "evil.py"], allow_patterns=allow_patterns):
            (tmp_path / file).write_text('{"model_type": "hubert"}')
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(hub.Pretrained, "find_folder", lambda self, weights: None)
    hf.WEIGHTS.get_folder("them/hubert")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.json", *want])


def test_many_attached_networks_are_named_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    from earshot.core import kaggle_paths

    found = {Path(f"/input/n{n}"): "hubert" for n in range(9)}
    monkeypatch.setattr(kaggle_paths, "find_networks", lambda kinds: found)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **more: 1 / 0)
    monkeypatch.setattr(hub.Pretrained, "find_folder", lambda self, weights: None)
    with pytest.raises(
        UserError, match="them/hubert is not cached and cannot be downloaded .*n3 .hubert., ...:"
    ):
        hf.WEIGHTS.get_folder("them/hubert")


def test_half_precision_and_parts(tmp_path: Path) -> None:
    """Of large networks: computed in fp32; a missing part is named."""
    import torch

    network, processor = save("whisper", tmp_path)
    network.half().save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / "model.safetensors").unlink()
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1
    extractor = make(tmp_path)
    assert {values.dtype for values in extractor.network.state_dict().values()} == {torch.float32}
    assert extractor.extract([synthetic(1.0, 16000)], [0.0], 1)[0].views["pooled"].any()
    whole = parts[1].read_bytes()
    parts[1].write_bytes(whole[: len(whole) // 2])
    refuse(tmp_path, "cannot be loaded")
    parts[1].unlink()
    refuse(tmp_path, f"lacks {parts[1].name}, a part of the weights")


def test_views_are_checked_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_competition(tmp_path / "c")
    monkeypatch.setattr(hf.Extractor, "fetch", lambda *args: pytest.fail("downloaded"))
    for views, message in (("layers", "the view layers needs --layer"), ("x", "--views x: choose from")):
        flags = ["--competition", str(tmp_path / "c"), "--out", str(tmp_path / "d"), "--views", views]
        with pytest.raises(UserError, match=message):
            get_features.main([*flags, "--extractor", "hf", "--weights", "them/absent"])
