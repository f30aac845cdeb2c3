"""The extractor `onnx` against the torch networks that the files were exported from, and files that do
harm."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hostile_onnx
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
from earshot.core.errors import Refused, UserError
from earshot.core.files import hash_file, hash_value
from earshot.extractors import onnx, onnx_file, onnx_probe
from earshot.features import for_run
from earshot.features.cache import Cache
from earshot.prediction import members, predictor

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason="pip install -r requirements-onnx.txt")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 -- after the skip

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
    with pytest.raises(UserError, match="the folder --weights .*folder has no ONNX file: give the path"):
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
    with pytest.raises(UserError, match=f"and put it at {tmp_path / 'w' / 'birdnet_backbone.onnx'}"):
        find(settings, str(tmp_path / "w" / "birdnet_backbone.onnx"))
    monkeypatch.setenv("EARSHOT_ATTACHED", str(tmp_path))
    assert find(settings, "elsewhere/b.onnx") == [tmp_path / "folder" / "b.onnx"]
    there = [tmp_path / name for name in ("lfs.onnx", "folder/a.onnx", "folder/b.onnx")]
    assert onnx.Extractor.list_attached() == list(map(str, there))
    moved = {
        "extractor": "onnx",
        "settings": {"rate": RATE},
        "weights": hash_value([hash_file(there[2])])[:16],
    }
    run = SimpleNamespace(config={"weights": "gone/c.onnx", "record": {"features": moved}}, folder=tmp_path)
    assert for_run.find_weights_files(run) == [there[1]], "the first of this content"
    with pytest.raises(UserError, match="which encoder[?] Name it with --weights FILE.onnx"):
        onnx.Extractor.fetch(settings, None)
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    with pytest.raises(UserError, match="is larger than"):
        onnx_file.inspect(tmp_path / "folder" / "a.onnx", None)


def build(nodes: list[Any], path: Path, outputs: Any = None, **more: Any) -> Any:
    """Write a model of `hostile_onnx.build`; returns it."""
    model = hostile_onnx.build(nodes, more.get("tensors", ()), outputs=outputs)
    path.write_bytes(model.SerializeToString())
    return model


def test_numbers_that_are_not_finite_for_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of a network that divides by the loudness: silent windows are zeros, counted in a few lines."""
    nodes = [hostile_onnx.node("ReduceMax", "x", "m", axes=[1]), hostile_onnx.node("Div", "x m")]
    build(nodes, tmp_path / "loudness.onnx")
    extractor = make(tmp_path / "loudness.onnx", 1.0, hostile_onnx.SAMPLES)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("warning: onnx: loudness.onnx gives NaN or infinite")
    waves = np.stack([synthetic(1.0, hostile_onnx.SAMPLES, seed) for seed in range(25)])
    quiet = waves * (np.arange(25) % 2 == 0)[:, None]
    made, alone = compute(extractor, quiet)["pooled"], compute(extractor, waves[:1])["pooled"]
    assert np.isfinite(made).all() and not made[1::2].any() and (made[0] == alone[0]).all()
    assert extractor.not_finite == 12
    shown = [line.partition("windows so far: ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown == [f"{count}; their features are zeros" for count in (1, 10)]


def test_an_output_that_is_empty(tmp_path: Path) -> None:
    tensors = [numpy_helper.from_array(np.zeros(1, np.int64), name) for name in ("from", "to")]
    tensors.append(numpy_helper.from_array(np.ones(1, np.int64), "axis"))
    build([hostile_onnx.node("Slice", "x from to axis")], tmp_path / "empty.onnx", tensors=tensors)
    with pytest.raises(UserError, match=r"the output y \(1, 0\) of empty.onnx is empty"):
        make(tmp_path / "empty.onnx", 1.0, hostile_onnx.SAMPLES)


def test_names_that_move_the_cursor(tmp_path: Path) -> None:
    evil = "\x1b[2J\u202eembed\n" * 2
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (evil, evil + "b")]
    nodes = [helper.make_node("Identity", ["x"], [output.name]) for output in outputs]
    model = build(nodes, tmp_path / "evil.onnx", outputs)
    with pytest.raises(UserError, match="has 2 outputs") as raised:
        make(tmp_path / "evil.onnx", 1.0, hostile_onnx.SAMPLES)
    with pytest.raises(UserError, match="no such output") as again:
        make(tmp_path / "evil.onnx", 1.0, hostile_onnx.SAMPLES, output="embed")
    model.graph.input[0].name = evil + "in"
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    for node in model.graph.node:
        node.op_type, node.input[:] = "Cast", [evil + "in"]
        node.attribute.append(helper.make_attribute("to", 1))
    (tmp_path / "input.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="its input is") as third:
        make(tmp_path / "input.onnx", 1.0, hostile_onnx.SAMPLES)
    for error in (raised, again, third):
        text = str(error.value)
        assert text.isprintable() and text.isascii() and "\\x1b[2J" in text
    assert onnx_probe.explain(RuntimeError(f"failed:{evil}")).isprintable()


def test_weights_in_other_files_wherever_a_model_names_them() -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    inner = helper.make_graph([], "inner", [], [], [tensor])
    default, graph = helper.make_attribute("value", tensor), helper.make_attribute("body", inner)
    for part in ("default", "graph", "initialization", "algorithm"):
        model = hostile_onnx.build([hostile_onnx.node("Identity", "x")])
        if part in ("default", "graph"):
            function = model.functions.add(name="F", domain="own")
            function.attribute_proto.append(default if part == "default" else graph)
        else:
            getattr(model.training_info.add(), part).CopyFrom(inner)
        with pytest.raises(Refused, match="another file"):
            onnx_probe.check_model(model)


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
