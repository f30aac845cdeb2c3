"""The head efficientat: the published network fine-tuned on its own spectrogram, from audio to submission."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_competition, read_csv, refused, script
from safetensors.torch import load_file
from test_efficientat import published
from waves import synthetic, window

import models
from earshot import extractors
from earshot.core.errors import UserError
from earshot.extractors import efficientat
from models.efficientat import build_network, convert_state

SHAPE = (1, 128, 50)


def build(**options: object) -> models.Head:
    torch.manual_seed(0)
    return models.build("efficientat", SHAPE, 3, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of two widths, under their published names."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    for name in ("mn04", "mn05"):
        torch.save(published(name), folder / efficientat.FILES[name])
    return folder


def get_norms(head: torch.nn.Module) -> list[torch.Tensor]:
    return [value.clone() for name, value in head.state_dict().items() if "running" in name]


def test_the_network_is_the_extractors(folder: Path) -> None:
    file = folder / efficientat.FILES["mn04"]
    settings = efficientat.Settings(views=("pooled", "spectrogram"))
    views = (
        efficientat.Extractor(settings, window(0.5, 32000), weights=str(file))
        .extract([synthetic(0.5, 32000)], [0], 1)[0]
        .views
    )
    head = build(weights=str(file)).eval()
    head.load_pretrained(extractors.load_network)
    x = torch.from_numpy(views["spectrogram"]).float()
    assert x.shape == (1, *SHAPE)
    with torch.no_grad():
        pooled = head.network.features(x).mean((2, 3))
        assert torch.allclose(pooled, torch.from_numpy(views["pooled"]).float().flatten(1), atol=2e-3)
        whole = build_network("mn04").eval()
        whole.load_state_dict(convert_state(torch.load(file)))
        hidden = head.network.classifier[:3](pooled)
        assert torch.allclose(hidden, whole.classifier[:3](pooled), atol=1e-6), (
            "the layer before the last, too"
        )
        assert torch.allclose(head(x), head.network.classifier[3](hidden), atol=1e-5)


def test_gradients_do_not_depend_on_the_memory_layout() -> None:
    head, x = build(dropout=0), torch.randn(4, *SHAPE)
    gradients = []
    for compute in (head, head.network):
        head.zero_grad()
        compute(x).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in head.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 + 1e-3 * float(other.abs().max()))


def test_one_convolution_in_place_of_three_layers(folder: Path) -> None:
    """Outputs and gradients are those of convolution, normalisation by fixed statistics and activation."""
    head = build(weights=str(folder / efficientat.FILES["mn04"]), dropout=0).train()
    for name, value in head.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 2)
    plain = build_network("mn04")
    plain.classifier[3] = torch.nn.Linear(plain.classifier[3].in_features, 3)
    plain.load_state_dict(head.network.state_dict())
    plain.eval()
    plain.classifier[2].p = 0.0
    x = torch.randn(4, *SHAPE)
    outputs = [head(x), plain(x)]
    for output in outputs:
        output.square().mean().backward()
    assert torch.allclose(*outputs, rtol=1e-3, atol=1e-5)
    for one, other in zip(head.network.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-2, atol=1e-3 * float(other.grad.abs().max()))


def test_statistics_stay_where_they_are_pretrained(folder: Path) -> None:
    for weights, stay in ((str(folder / efficientat.FILES["mn04"]), True), (None, False)):
        head = build(weights=weights)
        head.load_pretrained(extractors.load_network)
        before = get_norms(head)
        head.train()(torch.randn(4, *SHAPE)).sum().backward()
        moved = [not torch.equal(a, b) for a, b in zip(before, get_norms(head), strict=True)]
        assert head.training and not (any(moved) if stay else not all(moved))
        assert all(parameter.grad is not None for parameter in head.parameters())


def test_learning_rates_fall_towards_the_input() -> None:
    head = build(backbone_lr=0.5, lr_decay=0.9)
    scales = {name: head.scale_lr(name) for name, _ in head.named_parameters()}
    assert scales["network.classifier.3.weight"] == 1 and scales["network.classifier.0.weight"] == 0.5
    blocks = [scales[name] for name in scales if name.endswith(".0.weight") and ".features." in name]
    assert blocks == sorted(blocks) and blocks[-1] == pytest.approx(0.45)
    assert scales["network.features.0.0.weight"] == pytest.approx(0.5 * 0.9**17)


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((2, 128, 50), {}, "one channel.*--extractor efficientat --views spectrogram"),
        ((1, 128, 31), {}, "at least 32 bands and 32 frames"),
        (SHAPE, {"network": "mn99"}, "network is one of mn04"),
        (SHAPE, {"weights": 5}, "weights is null, published, or a file"),
        (SHAPE, {"lr_decay": 0.0}, "lr_decay"),
        (SHAPE, {"backbone_lr": -1.0}, "backbone_lr"),
    ],
)
def test_what_it_cannot_take_is_refused(shape: tuple, options: dict, message: str) -> None:
    with pytest.raises(models.HeadError, match=message):
        models.build("efficientat", shape, 3, **options)


def test_weights_that_do_not_fit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(efficientat, "URL", tmp_path.as_uri() + "/")
    other = folder / efficientat.FILES["mn05"]
    with pytest.raises(models.HeadError, match="are not of mn04: set --head.network mn05"):
        build(weights=str(other)).load_pretrained(extractors.load_network)
    for weights, message in (
        (str(folder), "has several of them"),
        (str(tmp_path / "absent.pt"), "no such file"),
        ("published", "can't be downloaded"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            build(weights=weights).load_pretrained(extractors.load_network)
        assert "\n" not in str(caught.value)
    build(weights=str(other), network="mn05").load_pretrained(extractors.load_network)


def test_as_a_member_of_an_ensemble(folder: Path) -> None:
    file = str(folder / efficientat.FILES["mn04"])
    members = [{"name": "efficientat", "weights": file, "backbone_lr": 0.5}, {"name": "mlp"}]
    needs = models.get_needs("ensemble", {"members": members})
    assert needs == models.get_needs("efficientat", {"weights": file}) and needs["rate"] == 32000
    head = models.build("ensemble", SHAPE, 3, members=members)
    scales = {name: head.scale_lr(name) for name, _ in head.named_parameters()}
    assert scales["heads.0.network.features.0.0.weight"] == 0.5
    assert {value for name, value in scales.items() if name.startswith("heads.1.")} == {1.0}
    assert models.complete_options("ensemble", {"members": members}, None)["members"] == members
    assert models.get_needs("ensemble", {"members": [{"name": "mlp"}, 7]}) == {}


def test_the_view_needs_no_weights_and_old_caches_keep_their_fingerprint(tmp_path: Path) -> None:
    alone = efficientat.Settings(views=("spectrogram",))
    made = efficientat.Extractor(alone, window(0.5, 32000))
    assert made.shapes == {"spectrogram": SHAPE}
    assert np.isfinite(made.extract([synthetic(0.5, 32000)], [0], 1)[0].views["spectrogram"]).all()
    with pytest.raises(UserError, match="leave --weights out here.*--head.weights"):
        efficientat.Extractor(alone, window(0.5, 32000), weights=str(tmp_path / "any.pt"))
    from earshot.core.fingerprint import to_record

    assert to_record(efficientat.Settings()) == {"network": "mn04"}


def test_from_audio_to_submission_interrupted(folder: Path, tmp_path: Path) -> None:
    """The recipe as a user runs it, stopped in the middle: the same weights as in one go."""
    data = make_competition(tmp_path / "tones", train=6, subm=2, seconds=0.5)
    script("get_features.py", "--competition", data, "--recipe", "efficientat_finetune", cwd=tmp_path)
    features = "data/tones/efficientat_finetune"
    weights = folder / efficientat.FILES["mn04"]
    args = ("--recipe", "efficientat_finetune", "--features", features, "--head.weights", weights)
    args += ("--epochs", "2", "--folds", "2", "--batch-size", "9")
    script("train.py", *args, "--name", "whole", cwd=tmp_path)
    stopped = script("train.py", *args, "--name", "parts", "--max-hours", "1e-9", cwd=tmp_path, ok=None)
    assert stopped.returncode == 0 and "continue with" in stopped.stdout, stopped.stdout + stopped.stderr
    done = script("train.py", *args, "--name", "parts", cwd=tmp_path)
    assert len(read_csv(tmp_path / "submissions" / "submission.csv")) == 6, done.stdout
    runs = [tmp_path / "runs" / name for name in ("whole", "parts")]
    heads = [sorted(run.glob("fold_*/last/*.safetensors")) for run in runs]
    assert heads[0] and len(heads[0]) == len(heads[1])
    for one, other in zip(*heads, strict=True):
        one, other = load_file(one), load_file(other)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_another_view_is_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    data = make_competition(tmp_path / "tones", train=4, subm=0, seconds=0.5)
    script("get_features.py", "--competition", data, "--extractor", "logmel", cwd=tmp_path)
    weights = folder / efficientat.FILES["mn04"]
    done = script(
        "train.py", "--recipe", "efficientat_finetune", "--features", "data/tones/logmel", "--head.weights",
        weights, cwd=tmp_path, ok=2,
    )  # fmt: skip
    assert "extract with --extractor efficientat --views spectrogram" in refused(done)
