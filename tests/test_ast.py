"""AST's front end and network against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from waves import clips, synthetic, window

from earshot.audio import windows
from earshot.core.errors import UserError
from earshot.extractors import ast, hub, mel


def tiny_ast(folder: Path, mean: float = -4.0, std: float = 4.2):
    """A randomly initialised AST of 1.28 s saved as a folder, with its feature extractor."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_length=128,
        num_mel_bins=64, patch_size=16, frequency_stride=10, time_stride=12,
    )  # fmt: skip
    network = ASTModel(config).eval()
    with torch.no_grad():  # all zero at birth, which would hide a grid read in the wrong order
        network.embeddings.position_embeddings.normal_(std=0.5)
    front = ASTFeatureExtractor(num_mel_bins=64, max_length=128, mean=mean, std=std)
    network.save_pretrained(folder)
    front.save_pretrained(folder)
    return network, front


def test_ast_front_end_is_transformers():
    import torch
    from transformers import ASTFeatureExtractor

    front = ASTFeatureExtractor()
    lengths = (5, 1.234, 0.5, 5, 3.3, 0.03, 5)  # not as many as there are clips
    waves = [wave[: round(seconds * 16000)] for wave, seconds in zip(clips(16000, 6), lengths, strict=False)]
    waves.append(synthetic(10.24, 16000))
    want = np.stack([front(wave, sampling_rate=16000)["input_values"][0] for wave in waves])
    batch = torch.from_numpy(np.stack([windows.fill_window(wave, 163840, "silence") for wave in waves]))
    got = mel.compute_ast_input(batch, [len(wave) / 16000 for wave in waves]).numpy()
    assert got.shape == want.shape == (len(waves), 1024, 128)
    assert np.abs(got - want).max() < 1e-3
    assert got[1, -1, 0] == pytest.approx(0.46703, abs=1e-4), "padding is 0 in log-mel, then normalised"


def test_ast_is_transformers_through_a_saved_folder(tmp_path):
    import torch

    network, front = tiny_ast(tmp_path)
    settings = ast.Settings(("tokens", "frames", "pooled"))
    extractor = ast.Extractor(settings, window(1.28, 16000, "silence"), weights=str(tmp_path))
    assert extractor.shapes == {"tokens": (32, 5, 10), "frames": (32, 1, 10), "pooled": (32, 1, 1)}
    waves = [synthetic(1.28, 16000), synthetic(0.4, 16000, 1), synthetic(2.0, 16000, 2)]
    got = extractor.extract(waves, [0.0, 0.1, 0.0], batch_size=3)
    assert [len(clip.start) for clip in got] == [1, 1, 2]
    pieces = [waves[0], waves[1], waves[2][:20480], waves[2][-20480:]]
    values = np.stack([front(piece, sampling_rate=16000)["input_values"][0] for piece in pieces])
    with torch.inference_mode():
        want = network(torch.from_numpy(values))
    tokens = want.last_hidden_state.numpy()
    joined = {
        view: np.concatenate([clip.views[view] for clip in got]).astype(np.float32)
        for view in extractor.shapes
    }
    np.testing.assert_allclose(joined["pooled"][:, :, 0, 0], want.pooler_output.numpy(), atol=2e-3)
    for f, t in ((0, 0), (0, 9), (4, 0), (2, 7)):
        np.testing.assert_allclose(joined["tokens"][:, :, f, t], tokens[:, 2 + f * 10 + t], atol=4e-3)
    np.testing.assert_allclose(joined["frames"][:, :, 0, 3], tokens[:, 2 + 3 :: 10].mean(axis=1), atol=4e-3)
    assert np.ptp(joined["tokens"]) > 1 and np.abs(tokens[0, 2] - tokens[0, 3]).max() > 0.05


def test_ast_wrap_leaves_no_padding(tmp_path):
    tiny_ast(tmp_path)
    wave = synthetic(0.4, 16000)
    made = {}
    for pad in ("wrap", "silence"):
        extractor = ast.Extractor(ast.Settings(), window(1.28, 16000, pad), weights=str(tmp_path))
        made[pad] = extractor.extract([wave], [0], 1)[0].views["pooled"]
        full = extractor.extract([windows.fill_window(wave, 20480, pad)], [0], 1)[0].views["pooled"]
        if pad == "wrap":
            np.testing.assert_array_equal(made[pad], full)
        else:
            assert np.abs(made[pad] - full).max() > 1e-3, "zeros in the wave are not the network's padding"
    assert np.abs(made["wrap"] - made["silence"]).max() > 1e-2


def test_ast_full_size_by_default(tmp_path, monkeypatch):
    import torch
    from transformers import ASTConfig, ASTModel

    with torch.device("meta"):
        network = ASTModel(ASTConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 86_187_264
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
    monkeypatch.setattr(hub.Pretrained, "get_folder", lambda self, weights: tmp_path)
    monkeypatch.setattr(hub.Pretrained, "load", lambda self, folder: network)
    extractor = ast.Extractor(ast.Settings(tuple(ast.Extractor.views)), window(10.24, 16000))
    want = {"pooled": (768, 1, 1), "frames": (768, 1, 101), "tokens": (768, 12, 101)}
    assert extractor.shapes == want
    views = extractor.extract([synthetic(5.0, 16000)], [0], 1)[0].views
    assert {name: view.shape for name, view in views.items()} == {
        name: (1, *shape) for name, shape in want.items()
    }


def test_ast_weights_files_and_refusals(tmp_path, monkeypatch):
    import huggingface_hub
    import torch

    nested = tmp_path / "dataset" / "ast"
    tiny_ast(nested)
    plain = ast.Settings()
    found = {path.name for path in ast.Extractor.find_weights(plain, str(tmp_path / "dataset"))}
    assert found == {"config.json", "preprocessor_config.json", "model.safetensors"}

    def refused(match: str, folder: Path, seconds: float = 1.28, settings=plain) -> None:
        with pytest.raises(UserError, match=match) as caught:
            ast.Extractor(settings, window(seconds, 16000), weights=str(folder))
        assert "\n" not in str(caught.value)

    refused("--views sums", nested, settings=ast.Settings(("sums",)))
    refused("set --seconds 1.28", nested, 5.0)
    refused("no such folder", tmp_path / "absent")
    refused("is a file", nested / "config.json")
    (tmp_path / "empty").mkdir()
    refused("no config.json", tmp_path / "empty")
    safe = (nested / "model.safetensors").read_bytes()
    (nested / "model.safetensors").write_bytes(safe[:1000])
    refused("cannot be loaded", nested)
    (nested / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, nested / "pytorch_model.bin")
    refused("lack", nested)
    (nested / "model.safetensors").write_bytes(safe)
    config = json.loads((nested / "config.json").read_text())
    (nested / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused("lack", nested)
    (nested / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    refused("type bert", nested)

    def offline(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    assert ast.Extractor.find_weights(ast.Settings(), None) == []
    with pytest.raises(UserError, match="online once.*--weights FOLDER.*another extractor") as caught:
        ast.Extractor.fetch(ast.Settings(), None)
    assert "\n" not in str(caught.value)
