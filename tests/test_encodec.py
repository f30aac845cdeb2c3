"""The extractor `encodec` against transformers' own encoding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_competition, read_csv
from waves import synthetic, window

import get_features
import predict
import train
from earshot.core.device import Device
from earshot.core.errors import UserError
from earshot.extractors import encodec, hub
from earshot.features.cache import Cache
from earshot.prediction import new_audio
from earshot.training.run import Run


def tiny(folder: Path, **changes):
    """A randomly initialised EnCodec with 75 frames a second and 5 bandwidths, saved as a folder."""
    import torch
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    network = EncodecModel(EncodecConfig(num_filters=2, hidden_size=16, num_lstm_layers=1, **changes)).eval()
    with torch.no_grad():
        for name, parameter in network.encoder.named_parameters():
            if name.endswith("original0"):  # untrained, its output hardly depends on the wave
                parameter.mul_(2.5)
        for layer in network.quantizer.layers:  # all zero at birth, so that every code would be 0
            layer.codebook.embed.normal_(std=0.3)
    network.save_pretrained(folder)
    return network


def made(folder: Path, seconds: float = 1.0, pad: str = "wrap", **settings) -> encodec.Extractor:
    return encodec.Extractor(encodec.Settings(**settings), window(seconds, 24000, pad), weights=str(folder))


def close_codes(codes, want):
    """Equal but where two words are equally near: each CPU rounds in its own way, and from there on a frame's
    later books code another remainder."""
    assert codes.shape == want.shape and (codes == want).mean() > 0.98, (codes == want).mean()


def test_codes_and_latents_are_those_of_transformers(tmp_path):
    import torch

    network = tiny(tmp_path)
    waves = [synthetic(1.0, 24000), synthetic(0.4, 24000, 1), synthetic(2.0, 24000, 2)]
    pieces = torch.from_numpy(
        np.stack([waves[0], np.resize(waves[1], 24000), waves[2][:24000], waves[2][24000:]])
    )[:, None]
    for bandwidth, books in ((1.5, 2), (3.0, 4), (24.0, 32)):
        extractor = made(tmp_path, bandwidth=bandwidth)
        assert extractor.shapes == {"latents": (16, 1, 75), "codes": (books, 1, 75)} and extractor.span == 1.0
        got = extractor.extract(waves, [0.0] * 3, batch_size=4)
        codes = np.concatenate([clip.views["codes"] for clip in got])
        latents = np.concatenate([clip.views["latents"] for clip in got])
        with torch.inference_mode():
            want = network.encode(pieces, bandwidth=bandwidth).audio_codes[0].numpy()
            continuous = network.encoder(pieces).numpy()
        assert codes.dtype == np.int16 and latents.dtype == np.float16
        close_codes(codes[:, :, 0], want)
        np.testing.assert_allclose(latents[:, :, 0], continuous, rtol=1e-3, atol=1e-4)
    assert len(np.unique(codes)) > 100 and codes.max() > 900


def test_a_clip_does_not_know_its_batch(tmp_path):
    tiny(tmp_path)
    waves = [synthetic(seconds, 24000, seed) for seed, seconds in enumerate((1.0, 0.4, 2.3, 0.05, 1.0))]
    one, many = (made(tmp_path).extract(waves, [0.0] * 5, batch_size) for batch_size in (1, 5))
    assert [len(clip.start) for clip in many] == [1, 1, 3, 1, 1]
    for a, b in zip(one, many, strict=True):
        close_codes(a.views["codes"], b.views["codes"])
        np.testing.assert_allclose(a.views["latents"], b.views["latents"], rtol=1e-3, atol=1e-5)


def test_padding_does_not_reach_the_real_frames(tmp_path):
    tiny(tmp_path)
    wave = synthetic(0.4, 24000)  # 30 frames
    filled = [
        made(tmp_path, pad=pad).extract([wave], [0], 1)[0].views["latents"] for pad in ("wrap", "silence")
    ]
    np.testing.assert_allclose(filled[0][..., :30], filled[1][..., :30], rtol=1e-3, atol=1e-4)
    assert np.abs(filled[0][..., 30:] - filled[1][..., 30:]).max() > 0.01


def test_a_window_that_is_no_whole_number_of_frames(tmp_path):
    tiny(tmp_path)
    extractor = made(tmp_path, 0.5051)
    assert extractor.shapes["codes"] == (2, 1, 38) and extractor.span == pytest.approx(38 / 75)
    views = extractor.extract([synthetic(0.5051, 24000)], [0], 1)[0].views
    assert views["codes"].shape == (1, 2, 1, 38) and views["latents"].shape == (1, 16, 1, 38)


def test_full_size_by_default(tmp_path, monkeypatch):
    import torch
    from transformers import EncodecConfig, EncodecModel

    network = EncodecModel(EncodecConfig())
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 14.85
    monkeypatch.setattr(hub.Pretrained, "get_folder", lambda self, weights: tmp_path)
    monkeypatch.setattr(hub.Pretrained, "load", lambda self, folder: network)
    extractor = encodec.Extractor(encodec.Settings(), window(5.0, 24000))
    assert extractor.shapes == {"latents": (128, 1, 375), "codes": (2, 1, 375)} and extractor.span == 5.0
    views = extractor.extract([synthetic(5.0, 24000)], [0], 1)[0].views
    assert {name: view.shape for name, view in views.items()} == {
        "latents": (1, 128, 1, 375),
        "codes": (1, 2, 1, 375),
    }
    with torch.inference_mode():
        # as FACTS has it
        assert network.encode(torch.zeros(1, 1, 120000)).audio_codes.shape == (1, 1, 2, 375)


def test_older_names_of_weight_norm_are_read(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny(tmp_path)
    want = made(tmp_path).extract([synthetic(1.0, 24000)], [0], 1)[0].views["codes"]
    state = load_file(tmp_path / "model.safetensors")
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for key, value in state.items():
        for new, old in names.items():
            key = key.replace(new, old)
        renamed[key] = value
    assert any(key.endswith("weight_g") for key in renamed)
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(
        made(tmp_path).extract([synthetic(1.0, 24000)], [0], 1)[0].views["codes"], want
    )


def test_refusals(tmp_path, monkeypatch):
    import huggingface_hub
    import torch

    folder = tmp_path / "dataset" / "encodec"
    tiny(folder)
    found = {
        path.name for path in encodec.Extractor.find_weights(encodec.Settings(), str(tmp_path / "dataset"))
    }
    assert found == {"config.json", "model.safetensors"}

    def refused(match: str, where: Path = folder, **settings) -> None:
        with pytest.raises(UserError, match=match) as caught:
            made(where, **settings)
        assert "\n" not in str(caught.value)

    refused(r"--views sums", views=("sums",))
    refused(r"--views \(none\)", views=())
    refused(r"--bandwidth 2: choose from 1.5, 3, 6, 12, 24 kbit/s", bandwidth=2.0)
    refused("no such folder", tmp_path / "absent")
    stereo = tmp_path / "stereo"
    tiny(stereo, audio_channels=2, normalize=True, chunk_length_s=1.0, overlap=0.01)
    refused("2 channels.*facebook/encodec_24khz", stereo)
    tiny(tmp_path / "rate", sampling_rate=32000)
    refused("take 32000 Hz, not 24000 Hz", tmp_path / "rate")
    (folder / "model.safetensors").rename(folder / "aside")
    torch.save({}, folder / "pytorch_model.bin")
    refused("lack|describe")
    (folder / "aside").rename(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_residual_layers": 2}))
    refused("cannot be loaded|lack")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mimi"}))
    refused("type mimi, not encodec")

    def offline(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match="online once.*--weights FOLDER.*another extractor"):
        encodec.Extractor.fetch(encodec.Settings(), None)


def test_by_the_commands_with_a_shard_of_bad_clips_and_loose_files(tmp_path, monkeypatch, capsys):
    """Codes stay integers where a whole shard has no good clip, and a saved run hears loose files."""
    tiny(tmp_path / "weights")
    data = make_competition(tmp_path / "tones", train=15, subm=4)
    for index in range(32):
        soundfile.write(data / "audio_train" / f"{index:03d}.wav", np.zeros(16000), 16000)
    monkeypatch.chdir(tmp_path)
    args = (
        "--competition",
        data,
        "--extractor",
        "encodec",
        "--weights",
        tmp_path / "weights",
        "--bandwidth",
        "3",
        "--device",
        "cpu",
    )
    get_features.main([str(argument) for argument in args])
    said = capsys.readouterr().out
    assert "train: 13 clips, 13 windows" in said and "latents (16, 1, 75), codes (4, 1, 75)" in said
    cache = Cache(tmp_path / "data" / "tones" / "encodec")
    assert cache.record["settings"]["bandwidth"] == 3.0
    for split in ("train", "subm"):
        content = cache.split(split)
        assert content["codes"].dtype == np.int16 and content["latents"].dtype == np.float16

    train.main("--head linear --view codes --folds 2 --epochs 1 --name r".split())
    predict.main(["--runs", "r", "--audio", str(data / "audio_test")])
    rows = read_csv(tmp_path / "submissions" / "predictions.csv")
    assert len(rows) == 12

    run = Run.open(tmp_path / "runs" / "r")
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16000), 16000)
    files = [Path(data / "audio_test" / "t000.wav"), silent]
    extractor, audio = new_audio.build_extractor(run, None, Device("cpu", "fp32", ""))

    def extract(ids: list[str], files: list[Path]) -> new_audio.ExtractedFiles:
        made = new_audio.ExtractedFiles(ids, extractor)
        with made.collect() as add:
            for bite in new_audio.extract_bites(files, extractor, audio, {"codes"}, 16, frozenset()):
                add(bite)
        return made

    made = extract(["a", "b"], files)
    split = made.build_split(run)
    subm = cache.split("subm")
    where = subm["ids"].tolist().index("t000.wav")
    np.testing.assert_array_equal(split["codes"], subm["codes"][subm["clip"] == where])
    assert made.bad == {"b": "silent"} and not any(made.noted.values()) and extractor.span == 1.0
    assert extract(["b"], [silent]).build_split(run)["codes"].dtype == np.int16
