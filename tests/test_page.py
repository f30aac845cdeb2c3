"""The page's parts: predictions, evidence, feature maps, examples, mistakes and limits."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import read_csv, tone

import predict
from earshot.app import examples, feature_maps, mistakes, plots, saliency
from earshot.app.upload_limits import UploadLimits
from earshot.audio.load import BadAudio
from earshot.competition import sample
from earshot.core.errors import UserError
from earshot.prediction import members


@pytest.mark.parametrize("name", ["cnn", "both"])
def test_the_predictor_agrees_with_predict_py(
    opened: dict, home: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    with contextlib.chdir(home):
        predict.main(["--runs", name, "--audio", "long.wav", "--out", "p.csv"])
    printed = np.array((home / "p.csv").read_text().splitlines()[1].split(",")[1:])
    found = opened[name].predict_file(home / "long.wav")
    likeliest = opened[name].classes[found.probabilities.argmax()]
    assert likeliest in printed and len(found.windows) == 3 and np.allclose(found.start, [0, 1, 2])
    if name == "cnn":
        run = opened["cnn"].runs[0]
        alone = [
            opened["cnn"].predict_file(home / "tone.wav").probabilities,
            opened["cnn"].predict(
                run,
                "best",
                opened["cnn"]
                .predict_file(home / "tone.wav")
                .inputs[opened["cnn"].get_pipeline(run).key]
                .features,
                True,
            )[0],
        ]
        assert np.array_equal(*alone) and alone[0].argmax() == 2
        assert list(found.windows.argmax(1)) == [0, 1, 2]


def test_every_head_is_loaded_once(opened: dict, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("earshot.prediction.predictor.load_slot_head", lambda *a: pytest.fail("loaded again"))
    opened["both"].predict_file(home / "tone.wav")
    assert {kind for _, kind in opened["both"]._heads} == {"last"} and {
        kind for _, kind in opened["cnn"]._heads
    } == {"best"}


def test_feature_maps_of_a_head(opened: dict, home: Path) -> None:
    cnn = opened["cnn"]
    found = feature_maps.compute_maps(
        cnn, cnn.runs[0], cnn.load_heads(cnn.runs[0], "best")[0][0], cnn.predict_file(home / "long.wav"), 2
    )
    ((whose, layers),) = found.items()
    assert "audio_cnn" in whose and list(feature_maps.group_layers(layers)) == ["conv1", "layer1", "layer2"]
    assert [one.name for one in feature_maps.group_layers(layers)["layer1"]] == [
        "layer1",
        "layer1.block0.conv",
        "layer1.block0.relu",
    ]
    html = plots.render_maps(found)
    # scale, layers, sub-layers with their layer
    assert html.count("<img") == 1 + 3 + 3 + 3 and "layer1.block0.relu" in html
    assert plots.render_maps({}).startswith("<p")


def test_hooks_know_which_axis_is_time() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.line = (
                torch.nn.Conv1d(4, 6, 3),
                torch.nn.ReLU(inplace=True),
                torch.nn.Linear(6, 5),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.act(self.conv(x))
            return self.act(self.line(x.transpose(1, 2)))

    net = Net()
    found = {one.name: one for one in feature_maps.capture_layers(net, lambda: net(torch.randn(1, 4, 700)))}
    assert {name: one.shape for name, one in found.items()} == {
        "conv": (6, 698),
        "act": (6, 698),
        "line": (698, 5),
        "act (2)": (698, 5),
    }
    assert {name: one.values.shape for name, one in found.items()} == {
        "conv": (6, 384),
        "act": (6, 384),
        "line": (5, 384),
        "act (2)": (5, 384),
    }
    short = {one.name: one for one in feature_maps.capture_layers(net, lambda: net(torch.randn(1, 4, 50)))}
    assert short["conv"].values.min() < 0 <= short["act"].values.min(), (
        "a map is copied before the next layer overwrites it"
    )
    assert not net._forward_hooks and not net.conv._forward_hooks


def test_diverging_colours_are_white_at_zero() -> None:
    import io

    from PIL import Image

    image = np.asarray(
        Image.open(io.BytesIO(plots.draw_diverging_map(np.array([[-2.0, 0.0, 1.0, 2.0]])))).convert("RGB")
    )[0]
    assert [tuple(p) for p in image[[0, 1, 3]].tolist()] == [plots.LOW, plots.MIDDLE, plots.HIGH]
    assert image[2, 0] > plots.HIGH[0] and image[2, 2] == 255


def test_evidence_adds_up_and_lies_where_the_sound_is(opened: dict, home: Path) -> None:
    """Integrated gradients sum to the gain in log probability over silence; both methods point at the half
    with sound."""
    cnn = opened["cnn"]
    run = cnn.runs[0]
    half = tone(2, 5)
    half[8000:] = 0
    soundfile.write(home / "half.wav", half, 16000)
    prediction = cnn.predict_file(home / "half.wav")
    features = prediction.inputs[cnn.get_pipeline(run).key].features
    x, mask = cnn.build_rows(run, features, False).load_batch(np.array([0]))
    heads = [head for _, head in cnn.load_heads(run, "best")]
    found = saliency.compute_gradients(heads, x, mask, 2, False, True)
    with torch.no_grad():
        silence = torch.full_like(x, x.amin())
        gain = np.mean(
            [
                float((head(x, mask).log_softmax(1) - head(silence, mask).log_softmax(1))[0, 2])
                for head in heads
            ]
        )
    assert abs(found.sum() - gain) < 0.1 * abs(gain) + 0.02
    shown = saliency.explain(cnn, run, prediction, 0, 2)
    assert shown.how == saliency.GRADIENTS and shown.values.shape == x.shape[2:]
    loss = saliency.compute_occlusion(cnn, run, half, 2)
    assert loss.shape == (saliency.PIECES,) and np.abs(loss[:10]).max() > 3 * np.abs(loss[12:]).max()
    assert plots.draw_saliency(shown, half, 16000, 0.0, "tone").startswith(b"\x89PNG")


def test_heads_without_gradients_are_explained_by_occlusion() -> None:
    class NoGradients(torch.nn.Module):
        def forward(self, x: torch.Tensor, mask: None) -> torch.Tensor:
            return torch.from_numpy(x.detach().numpy().sum((1, 2)))

    assert saliency.compute_gradients([NoGradients()], torch.randn(1, 1, 3, 4), None, 1, False, True) is None


@pytest.mark.parametrize(
    "name, reason",
    [
        ("bad.wav", "not an audio file"),
        ("list.m3u8", "not an audio file"),
        ("empty.wav", "empty"),
        ("hours.flac", "longer than 20 s"),
        ("tone.wav", None),
        ("large", "larger than 0.1 MB"),
    ],
)
def test_limits(home: Path, name: str, reason: str | None) -> None:
    (home / "large").write_bytes(b"RIFF" + bytes(100_001))
    limits = UploadLimits(20, 100_000)
    if reason is None:
        limits.check(home / name)
        return
    with pytest.raises(BadAudio, match=reason) as refusal:
        limits.check(home / name)
    assert "\n" not in str(refusal.value)


def test_mistakes_are_out_of_fold(opened: dict, home: Path) -> None:
    with contextlib.chdir(home):
        found, line = mistakes.find_mistakes(members.open_members(("lin",), "runs")[0])
        files = mistakes.find_files(members.open_members(("lin",), "runs")[0], [one.id for one in found])
    rows = [row.split(",") for row in (home / "runs" / "lin" / "oof_last.csv").read_text().splitlines()]
    classes = rows[0][3:]
    wrong = {row[0] for row in rows[1:] if classes[int(np.argmax([float(p) for p in row[3:]]))] != row[2]}
    assert (
        wrong
        and {one.id for one in found} == wrong
        and set(files) == wrong
        and line.startswith(f"{len(wrong)} of 30 clips")
    )
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)


def test_examples_are_the_competition_s_clips_or_generated(
    opened: dict, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip of each class; where the audio is gone, too large or too long, clips of the sample."""
    whole, limits = opened["cnn"].whole, UploadLimits(20, 10**6)
    with contextlib.chdir(home):
        found = examples.list_examples(whole, limits, tmp_path)
        rows = read_csv(home / "runs" / "cnn" / "oof_last.csv")
        labels = {row["id"]: row["label"] for row in rows}
        assert [label for label, _ in found] == list(dict.fromkeys(labels.values()))
        assert all(labels[path.name] == label for label, path in found)
        assert all(path.is_relative_to(tmp_path) for _, path in found), "others may not be served"
        assert examples.list_examples(whole, UploadLimits(0.001, 10**6), tmp_path) == []
    monkeypatch.setattr(examples, "find_files", lambda *ignored: {})
    found = examples.list_examples(whole, limits, tmp_path)
    assert [label for label, _ in found] == list(sample.SOUNDS)[: examples.MOST]
    assert all(soundfile.info(path).duration > 1 for _, path in found)


def test_a_mistake_concerns_its_true_and_predicted_classes() -> None:
    one = mistakes.Mistake("a.wav", 0, ("dog", "rain"), "cat", 0.876, np.zeros(4))
    assert [name for name in ("cat", "cow", "dog", "rain") if one.concerns(name)] == ["cat", "dog", "rain"]
    assert str(one) == "a.wav: cat 88%, true label dog, rain"
    one = mistakes.Mistake("a.wav", 0, ("dog, barking",), "cat", 0.876, np.zeros(4))
    assert one.concerns("dog, barking") and not one.concerns("dog"), "a comma in a class's name"


def test_the_microphone_needs_the_page() -> None:
    with pytest.raises(UserError, match="app.py opens a page with a microphone"):
        predict.main(["--runs", "cnn", "--microphone"])
