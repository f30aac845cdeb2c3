"""The extractor `onnx` against the torch networks that the files were exported from, and files that do
harm."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_competition, read_csv, refused, script
from tiny_onnx import Frames, Pooled, Spectrum, export, export_stand_ins, seeded
from waves import synthetic, window

import get_features
import predict
import train
from earshot.app import saliency
from earshot.core import device
from earshot.core.errors import UserError
from earshot.extractors import onnx, onnx_file
from earshot.features.cache import Cache
from earshot.prediction import members, predictor

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason="pip install -r requirements-onnx.txt")

RATE = 16000


def make(file: Path, seconds: float = 1.0, rate: int = RATE, **settings: Any) -> onnx.Extractor:
    chosen = onnx.Settings(rate=rate, **settings)
    kind = onnx.Extractor.configure(chosen, str(file))
    return kind(chosen, window(seconds, rate), weights=str(file))


def compute(extractor: onnx.Extractor, waves: np.ndarray) -> dict[str, np.ndarray]:
    """Views of windows, not rounded to float16."""
    with torch.inference_mode():
        made = extractor.forward(torch.from_numpy(waves), [1.0] * len(waves))
    return {view: values.numpy() for view, values in made.items()}


def run_torch(network: torch.nn.Module, waves: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(waves)).numpy()


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "any batch, any length": ((Pooled,), {}, {}, "BD"),
    "one window of one length": ((Pooled,), {"fixed": ("batch", "samples")}, {}, "BD"),
    "a batch of three": ((Pooled,), {"fixed": ("batch", "samples"), "shape": (3, RATE)}, {}, "BD"),
    "with a channel": ((Pooled,), {"shape": (1, 1, RATE)}, {}, "BD"),
    "channels, frames": ((Frames,), {}, {}, "BDT"),
    "frames, channels": ((Frames, 24, (0, 2, 1)), {}, {}, "BTD"),
    "frames, channels of one length": (
        (Frames, 24, (0, 2, 1)),
        {"fixed": ("batch", "samples")},
        {"axes": "btd"},
        "BTD",
    ),
    "map, with its own STFT": ((Spectrum,), {"fixed": ("samples",)}, {"axes": "BDFT"}, "BDFT"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_embedding_is_torchs_own_alone_and_in_a_batch(case: str, tmp_path: Path) -> None:
    arguments, how, settings, axes = CASES[case]
    network = export(seeded(*arguments), tmp_path / "encoder.onnx", RATE, **how)
    extractor = make(tmp_path / "encoder.onnx", **settings)
    assert extractor.axes == axes
    waves = np.stack([synthetic(1.0, RATE, seed) for seed in range(7)])
    assert extractor.rows == (extractor.network.batch or 1)
    if extractor.output.batch:  # as on a GPU
        extractor.rows = extractor.network.batch
    together = compute(extractor, waves)
    for row in range(len(waves)):
        for view, values in compute(extractor, waves[row : row + 1]).items():
            np.testing.assert_allclose(values[0], together[view][row], rtol=0, atol=1e-5)
    want = run_torch(network, waves[:, None] if case == "with a channel" else waves)
    if axes == "BTD":
        want = want.transpose(0, 2, 1)
    want = want.reshape(*want.shape[:2], *(want.shape[2:] if want.ndim == 4 else (1, -1)))
    whole = together.get("map", together.get("frames", together["pooled"]))
    np.testing.assert_allclose(whole, want, rtol=1e-4, atol=1e-4)
    flat, wanted = whole.reshape(7, -1), want.reshape(7, -1)
    cosine = (flat * wanted).sum(1) / np.linalg.norm(flat, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() >= 0.9999
    np.testing.assert_allclose(together["pooled"][..., 0, 0], want.mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert {view: values.shape[1:] for view, values in together.items()} == extractor.shapes


def test_a_batch_axis_that_the_network_ignores_is_not_used(tmp_path: Path) -> None:
    class Mixing(Pooled):
        def forward(self, waves: torch.Tensor) -> torch.Tensor:
            return super().forward(waves - waves.mean(0, keepdim=True) * 0.5)

    network = export(seeded(Mixing), tmp_path / "mixing.onnx", RATE)
    waves = np.stack([synthetic(1.0, RATE, seed) for seed in range(3)])
    views = compute(make(tmp_path / "mixing.onnx"), waves)
    for row in range(3):
        alone = run_torch(network, waves[row : row + 1])[0]
        np.testing.assert_allclose(views["pooled"][row, :, 0, 0], alone, atol=1e-5)
    fixed = {"fixed": ("batch", "samples"), "shape": (3, RATE)}
    export(seeded(Mixing), tmp_path / "fixed.onnx", RATE, **fixed)
    with pytest.raises(UserError, match="depends on the other windows of a batch"):
        make(tmp_path / "fixed.onnx")


def test_an_onnxruntime_without_cuda_on_a_machine_with_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(seeded(Pooled), tmp_path / "encoder.onnx", RATE)
    settings, weights = onnx.Settings(rate=RATE), str(tmp_path / "encoder.onnx")
    extractor = onnx.Extractor(settings, window(1.0, RATE), "cuda:0", weights)
    assert "encoder.onnx runs on the CPU: this ONNX Runtime has no CUDA" in capsys.readouterr().out
    assert compute(extractor, np.zeros((2, RATE), np.float32))["pooled"].shape == (2, 24, 1, 1)


def test_lanes_side_by_side_give_what_one_gives(tmp_path: Path) -> None:
    export(seeded(Frames), tmp_path / "encoder.onnx", RATE)
    extractor = make(tmp_path / "encoder.onnx")
    assert extractor.session.get_session_options().intra_op_num_threads == 1
    waves = [synthetic(seconds, RATE, seed) for seed, seconds in enumerate((3.2, 0.4, 1.0, 7.0, 2.0, 1.0))]
    alone, together = (extractor.extract(waves, [0.0] * len(waves), size) for size in (1, 16))
    assert [len(clip.start) for clip in together] == [4, 1, 1, 7, 2, 1]
    for one, other in zip(alone, together, strict=True):
        for view, values in one.views.items():
            np.testing.assert_allclose(values, other.views[view], rtol=1e-3, atol=1e-5)


def test_rate_window_and_output_are_found_or_asked_for(tmp_path: Path) -> None:
    export_stand_ins(tmp_path)
    perch, birdnet = tmp_path / "perch_v2_no_dft.onnx", tmp_path / "birdnet_backbone.onnx"
    kind = onnx.Extractor.configure(onnx.Settings(rate=32000), str(perch))
    assert (kind.seconds, kind.get_name(), kind.get_default_seconds(onnx.Settings())) == (5.0, "onnx", 5.0)
    extractor = make(perch, 5.0, 32000)
    assert extractor.output.name == "embedding" and extractor.shapes == {"pooled": (1536, 1, 1)}
    assert make(birdnet, 3.0, 48000).shapes == {"pooled": (1024, 1, 1)}
    places = make(perch, 5.0, 32000, output="spatial_embedding", axes="BTFD", views=("map",))
    assert places.shapes == {"map": (1536, 4, 16)} and places.views == {"map": "grid"}
    for error, arguments in {
        "which sampling rate does perch_v2_no_dft.onnx take": (5.0, None),
        "takes windows of 160000 samples, 5 s at 32000 Hz, not 2 s": (2.0, 32000),
        r"no such output \(did you mean label[?]\): embedding \(1, 1536\), spatial": (5.0, 32000, "labels"),
        r"which axis of the output spectrogram \(1, 999, 128\)": (5.0, 32000, "spectrogram"),
        "--axes BD: the output .* needs 3 different letters": (5.0, 32000, "spectrogram", "BD"),
        "--axes BFD: ": (5.0, 32000, "spectrogram", "BFD"),
        "--views map: the output .* gives pooled, frames only": (5.0, 32000, "spectrogram", "BTD", ("map",)),
        "--views mop: choose from pooled, frames, map": (5.0, 32000, None, None, ("mop",)),
    }.items():
        seconds, rate, *others = arguments
        names = ("output", "axes", "views")
        with pytest.raises(UserError, match=error) as raised:
            make(perch, seconds, rate, **dict(zip(names, others, strict=False)))
        assert "\n" not in str(raised.value)
    export(torch.nn.ModuleList([seeded(Two)])[0], tmp_path / "two.onnx", RATE, ("first", "second"))
    with pytest.raises(UserError, match=r"has 2 outputs: choose one with --output: first \(1, 24\), second"):
        make(tmp_path / "two.onnx")
    assert make(tmp_path / "two.onnx", output="second").shapes == {"pooled": (24, 1, 1)}


class Two(Pooled):
    def forward(self, waves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = super().forward(waves)
        return first, first * 2


def test_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find, settings = onnx.Extractor.find_weights, onnx.Settings()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="a folder with 0 ONNX files: name the file"):
        find(settings, str(tmp_path / "folder"))
    export(seeded(Pooled), tmp_path / "folder" / "a.onnx", RATE)
    assert find(settings, str(tmp_path / "folder")) == [tmp_path / "folder" / "a.onnx"]
    shutil.copy(tmp_path / "folder" / "a.onnx", tmp_path / "folder" / "b.onnx")
    with pytest.raises(UserError, match=r"a folder with 2 ONNX files \(a.onnx, b.onnx\)"):
        find(settings, str(tmp_path / "folder"))
    (tmp_path / "lfs.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        find(settings, str(tmp_path / "lfs.onnx"))
    with pytest.raises(UserError, match="no such file: get it from https://huggingface.co/justinchuby/Perch"):
        find(settings, "perch_v2_no_dft.onnx")
    monkeypatch.setenv("EARSHOT_ATTACHED", str(tmp_path))
    assert find(settings, "elsewhere/b.onnx") == [tmp_path / "folder" / "b.onnx"]
    with pytest.raises(UserError, match="which encoder[?] Name it with --weights FILE.onnx"):
        onnx.Extractor.fetch(settings, None)
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    with pytest.raises(UserError, match="is larger than"):
        onnx_file.inspect(tmp_path / "folder" / "a.onnx", None)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed: pip install -r requirements-onnx.txt"):
        make(tmp_path / "a.onnx")


def test_a_hostile_file_by_the_script(tmp_path: Path) -> None:
    make_competition(tmp_path / "c")
    (tmp_path / "evil.onnx").write_bytes(b"\x08\x08" * 1000)
    flags = ("--competition", "c", "--extractor", "onnx", "--weights", "evil.onnx", "--rate", "8000")
    line = refused(script("get_features.py", *flags, cwd=tmp_path, ok=2))
    assert "evil.onnx cannot be used: it is not an ONNX file, or is damaged" in line


def test_from_audio_to_a_submission_and_new_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export(seeded(Frames), tmp_path / "encoder.onnx", RATE)
    make_competition(tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    flags = ["--competition", "c", "--extractor", "onnx", "--weights", "encoder.onnx", "--rate", str(RATE)]
    get_features.main([*flags, "--precision", "bf16"])
    cache = Cache(tmp_path / "data" / "c" / "onnx")
    assert cache.kinds == {"pooled": "vector", "frames": "sequence"}
    train.main(["--recipe", "linear", "--epochs", "2", "--folds", "2", "--no-report", "--name", "a"])
    submission = read_csv(tmp_path / "submissions" / "submission.csv")
    assert len(submission) == len(read_csv(tmp_path / "c" / "sample_submission.csv"))
    clip = next((tmp_path / "c").rglob("*.wav"))
    predict.main(["--runs", "a", "--audio", str(clip)])
    page = predictor.Predictor(members.open_members(("a",), "runs")[0], device.choose("cpu"))
    answer = page.predict_file(clip)
    shown = saliency.explain(page, page.runs[0], answer, 0, 0)
    assert np.isfinite(shown.values).all() and np.abs(shown.values).max() > 0
    export(seeded(Frames, 12), tmp_path / "encoder.onnx", RATE)
    with pytest.raises(UserError, match="the weights encoder.onnx differ from those of runs/a"):
        predict.main(["--runs", "a", "--audio", str(clip)])
    with pytest.raises(UserError, match="made with other settings"):
        get_features.main(flags)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "size"), [("perch", 1536), ("birdnet", 1024)])
def test_recipes_on_stand_ins(recipe: str, size: int, tmp_path: Path) -> None:
    """By the scripts, as a user does; the extraction is stopped and continued."""
    make_competition(tmp_path / "c")
    command = ("get_features.py", "--competition", "c", "--recipe", recipe)
    lacking = refused(script(*command, cwd=tmp_path, ok=2))
    assert "no such file: get it from https://huggingface.co/" in lacking and "licence" in lacking
    export_stand_ins(tmp_path)
    assert "continue with" in script(*command, "--max-hours", "0", cwd=tmp_path).stdout
    assert f"pooled ({size}, 1, 1)" in script(*command, cwd=tmp_path).stdout
    script("train.py", "--epochs", "2", "--folds", "2", "--no-report", cwd=tmp_path)
    submission, sample = (
        read_csv(tmp_path / name) for name in ("submissions/submission.csv", "c/sample_submission.csv")
    )
    assert [row["fname"] for row in submission] == [row["fname"] for row in sample]
