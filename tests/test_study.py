"""The ESC-50 study's heads (hifigan, convnext1d, causal_lm): published sizes, time, masks, the language
model's loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_competition, read_csv
from safetensors.torch import load_file
from test_encodec import tiny

import get_features
import models
import train
from earshot.core import kinds
from earshot.core.config import load_recipe
from earshot.core.errors import UserError
from models.convnext1d import Block, FrameNorm, TimeNorm

HIFIGAN = dict(channels=(8, 8, 16), strides=(4, 2), groups=(2, 4), kernels=(7, 9, 5, 3))
CONVNEXT = dict(stem=6, stem_stride=4, channels=(8, 12), stride=2, blocks=2, kernel=9)
LM = dict(channels=16, blocks=3, kernel=5, vocabulary=11)
SMALL = {
    "hifigan": ("hifigan", HIFIGAN),
    "convnext1d": ("convnext1d", CONVNEXT),
    "causal_lm": ("causal_lm", LM),
    "causal_lm-off": ("causal_lm", dict(LM, lm_weight=0.0)),
}
cases = pytest.mark.parametrize("case", SMALL)


def make(case: str, shape: tuple[int, int, int], **changes: object) -> torch.nn.Module:
    name, options = SMALL[case]
    torch.manual_seed(0)
    return models.build(name, shape, 5, **{**options, **changes}).eval()


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask_of(lengths: list[int], frames: int) -> torch.Tensor:
    return torch.arange(frames) < torch.tensor(lengths)[:, None]


def codes_of(batch: int, books: int, frames: int) -> torch.Tensor:
    return torch.randint(11, (batch, books, 1, frames), generator=torch.Generator().manual_seed(2))


# --- as published
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe, shape, count",
    [
        ("esc50_hifigan", (1, 1, 220500), 10_024_932),
        ("esc50_convnext1d", (1, 1, 220500), 36_595_186),
        ("esc50_encodec", (128, 1, 375), 33_218_354),
        ("esc50_causal_lm", (128, 1, 375), 1_377_586),
    ],
)
def test_recipes_build_the_published_networks(recipe, shape, count):
    options = load_recipe(recipe).head
    name = options.pop("name")
    assert kinds.derive(options.pop("view"), shape) in models.get_kinds(name)
    head = models.build(name, shape, 50, **options)
    assert sum(p.numel() for p in head.parameters()) == count
    defaults = json.loads(json.dumps(models.get_options(name)))
    # the defaults are the published ones
    assert recipe == "esc50_encodec" or head.config["options"] == defaults


def test_published_lengths():
    narrow = models.build("hifigan", (1, 1, 220500), 50, channels=(2,) * 6, groups=(1,) * 5).eval()
    found: list[int] = []
    for layer in narrow.layers:
        layer.register_forward_hook(lambda _, __, out: found.append(out.shape[2]))
    with torch.no_grad():
        narrow(torch.zeros(1, 1, 1, 220500))
    assert found == [220500, 55125, 13782, 3446, 862, 862, 862, 862]
    raw = models.build("convnext1d", (1, 1, 220500), 50, stem=2, channels=(2,) * 4, blocks=1)
    assert [raw.stem.frames, *(stage[0].frames for stage in raw.stages)] == [13781, 3445, 861, 215, 53]
    latents = models.build(
        "convnext1d", (128, 1, 375), 50, stem=2, stem_stride=4, channels=(2, 2), stride=2, blocks=1
    )
    assert [latents.stem.frames, *(stage[0].frames for stage in latents.stages)] == [93, 46, 23]
    assert latents.stages[1][1].depthwise.kernel_size == (49,)  # wider than what is left, as published
    assert latents.stages[1][1](torch.zeros(1, 2, 23)).shape == (1, 2, 23)


def test_weight_norm_is_on_every_layer():
    head = make("hifigan", (1, 1, 200))
    gains = [name for name in head.state_dict() if name.endswith("original0")]
    assert len(gains) == len(head.layers) == 5
    x = noise(2, 1, 1, 200)
    with torch.no_grad():
        before = head.layers[0](x[:, 0])
        head.layers[0].parametrizations.weight.original1.mul_(7.0)  # only its direction counts
        assert torch.allclose(head.layers[0](x[:, 0]), before, atol=1e-6)


# --- time and masks
# ---------------------------------------------------------------------------------------------------


@cases
def test_padding_never_reaches_the_logits_or_gradients(case):
    head = make(case, (3, 2, 64))
    x, mask = noise(3, 3, 2, 64), mask_of([64, 40, 3], 64)
    loud, broken = (x.masked_fill(~mask[:, None, None, :], value) for value in (1000.0, float("nan")))
    with torch.no_grad():
        logits = head(x, mask)
        assert torch.equal(head(loud, mask), logits) and torch.equal(head(broken, mask), logits)
        assert not torch.allclose(head(loud, None), logits, atol=1e-2)
    head(broken, mask).logsumexp(1).sum().backward()
    grads = {name: p.grad for name, p in head.named_parameters() if not name.startswith("lm.")}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())


@cases
def test_logits_do_not_depend_on_how_far_a_clip_is_padded(case):
    short, long = make(case, (2, 1, 64)), make(case, (2, 1, 160))
    long.load_state_dict(short.state_dict())
    x = noise(2, 2, 1, 160)
    with torch.no_grad():
        expected = short(x[..., :64], None)
        assert torch.allclose(long(x, mask_of([64, 64], 160)), expected, atol=1e-5)
        assert not torch.allclose(long(x, None), expected, atol=1e-3)
        # a crop of the window it was built for
        assert torch.allclose(long(x[..., :64], None), expected, atol=1e-5)


def test_a_clip_that_is_real_only_in_the_remainder_keeps_a_frame():
    head = make("convnext1d", (1, 1, 70))  # 70 = 17 * 4 + 2
    mask = torch.arange(70)[None] >= 68  # as a roll in time makes it
    with torch.no_grad():
        assert head(noise(1, 1, 1, 70), mask).isfinite().all()


def test_norms_against_torch():
    x, mask = noise(2, 6, 30), mask_of([30, 12], 30)
    time, frame = TimeNorm(6), FrameNorm(6)
    with torch.no_grad():
        for parameter in (*time.parameters(), *frame.parameters()):
            parameter.add_(noise(6, seed=3))
    assert torch.allclose(time(x), torch.nn.functional.group_norm(x, 1, time.weight, time.bias), atol=1e-6)
    assert torch.allclose(time(x, mask)[1, :, :12], time(x[1:, :, :12])[0], atol=1e-5)
    assert torch.allclose(time(x, mask)[0], time(x)[0], atol=1e-5)
    one = frame(x)[1, :, 7]
    assert torch.allclose(
        one, torch.nn.functional.layer_norm(x[1, :, 7], (6,), frame.weight, frame.bias), atol=1e-6
    )


def test_dropout_is_of_values_and_of_whole_channels():
    torch.manual_seed(0)
    block = Block(400, 3, 0.5).train()
    torch.nn.init.zeros_(block.reduce.weight)
    torch.nn.init.ones_(block.reduce.bias)
    y = block(torch.zeros(1, 400, 100))[0]
    dead = (y == 0).all(1)
    assert 0.4 < dead.float().mean() < 0.6
    assert 0.45 < (y[~dead] == 0).float().mean() < 0.55
    assert set(y.unique().tolist()) == {0.0, 4.0}
    assert set(block.eval()(torch.zeros(1, 400, 9)).unique().tolist()) == {1.0}


# --- the language model
# -----------------------------------------------------------------------------------------------


def test_no_output_sees_its_future():
    head = make("causal_lm", (6, 1, 60))
    x = noise(2, 6, 1, 60)
    other = x.clone()
    other[..., 40] += 5.0
    with torch.no_grad():
        before, after = head.forward_codes(x), head.forward_codes(other)
        assert before.shape == (2, 11, 2, 60)
        assert torch.equal(before[..., :41], after[..., :41])  # output 40 is from the frames 0 ... 39
        assert not torch.isclose(before[..., 41], after[..., 41]).any()
        early = mask_of([40, 40], 60)
        assert torch.equal(head(x, early), head(other, early))
        late = mask_of([41, 41], 60)
        assert not torch.isclose(head(x, late), head(other, late)).any()
        assert torch.allclose(head(x, early), head(x[..., :40]), atol=1e-6)
    leaky = Block(6, 5, 0.0, causal=True)
    assert torch.equal(leaky(x[:, :, 0])[..., :40], leaky(other[:, :, 0])[..., :40])
    leaky.norm = TimeNorm(6)  # the published norm: this test would notice
    assert not torch.equal(leaky(x[:, :, 0])[..., :40], leaky(other[:, :, 0])[..., :40])


def by_hand(head: torch.nn.Module, x: torch.Tensor, mask: torch.Tensor, codes: torch.Tensor) -> float:
    """Sum over codebooks of the mean, over real frames, of the cross-entropy with 0.1 of the target spread
    evenly."""
    chances = head.forward_codes(x, mask).detach().double().log_softmax(1).numpy()
    total = 0.0
    for book in range(head.codebooks):
        losses = [
            -(0.9 * chances[i, codes[i, book, 0, t], book, t] + 0.1 * chances[i, :, book, t].mean())
            for i in range(len(x))
            for t in range(x.shape[3])
            if mask[i, t]
        ]
        total += float(np.mean(losses))
    return total


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_is_its_parts(weight, masked):
    head = make("causal_lm", (6, 1, 20), lm_weight=weight)
    x, codes, labels = noise(3, 6, 1, 20), codes_of(3, 4, 20), torch.tensor([0, 4, 2])
    mask = mask_of([20, 9, 1], 20) if masked else None

    def criterion(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)

    total = head.loss({"x": x, "mask": mask, "codes": codes}, criterion)
    parts = (
        criterion(head(x, mask)).item(),
        by_hand(head, x, torch.ones(3, 20).bool() if mask is None else mask, codes),
    )
    assert total.item() == pytest.approx(parts[0] + weight * parts[1], rel=1e-5)
    total.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in head.parameters()
    )
    if masked:
        padding = ~mask[:, None, None, :]
        changed = {"x": x.masked_fill(padding, 9.0), "mask": mask, "codes": codes.masked_fill(padding, 3)}
        assert head.loss(changed, criterion).item() == total.item()
    wrong = head.loss({"x": x, "mask": mask, "codes": codes.roll(1, 1)}, criterion)
    assert wrong.item() != pytest.approx(total.item(), rel=1e-4)


def test_without_language_model_no_codes_are_asked_for():
    head, with_lm = make("causal_lm-off", (6, 1, 20)), make("causal_lm", (6, 1, 20))
    assert head.also == () and with_lm.also == ("codes",)
    assert not [name for name in head.state_dict() if name.startswith("lm")]
    x = noise(2, 6, 1, 20)
    assert head.loss({"x": x, "mask": None}, torch.sum).item() == pytest.approx(head(x).sum().item())


@pytest.mark.parametrize(
    "codes, parts",
    [
        (codes_of(2, 1, 20), ["1 codebooks", "2 to predict", "--bandwidth", "--head.codebooks 1"]),
        (codes_of(2, 2, 19), ["(n_q, 1, 20)", "(2, 1, 19)"]),
        (codes_of(2, 2, 20).float(), ["whole numbers", "float32"]),
        (codes_of(2, 2, 20) + 7, ["vocabulary is 11"]),
    ],
)
def test_codes_that_do_not_fit(codes, parts):
    head = make("causal_lm", (6, 1, 20))
    with pytest.raises(models.HeadError) as caught:
        head.loss({"x": noise(2, 6, 1, 20), "mask": None, "codes": codes}, torch.sum)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    "name, options, part",
    [
        ("hifigan", dict(groups=(4, 16, 16, 16)), "one shorter than channels"),
        ("hifigan", dict(groups=(4, 16, 16, 16, 3)), "3 does not"),
        ("hifigan", dict(kernels=(15, 41, 5)), "kernels are four"),
        ("hifigan", dict(kernels=(15, 40, 5, 3)), "odd"),
        ("hifigan", dict(strides=(4, 4, 4, 4, 0)), "whole numbers from 1"),
        ("convnext1d", dict(channels=()), "list of widths"),
        ("convnext1d", dict(kernel=48), "kernel is odd"),
        ("convnext1d", dict(stride=0), "at least 1"),
        ("convnext1d", dict(dropout=1.5), "1.5"),
        ("causal_lm", dict(blocks=0), "at least 1"),
        ("causal_lm", dict(lm_weight=-1), "lm_weight"),
    ],
)
def test_wrong_options_are_one_line(name, options, part):
    with pytest.raises(models.HeadError) as caught:
        models.build(name, (1, 1, 500), 3, **options)
    assert part in str(caught.value) and "\n" not in str(caught.value)


# --- by the scripts
# ---------------------------------------------------------------------------------------------------


def options_of(head: str, options: dict) -> list[str]:
    values = {
        key: json.dumps(value) if isinstance(value, (tuple, list)) else str(value)
        for key, value in options.items()
    }
    return ["--head", head, *(word for key, value in values.items() for word in (f"--head.{key}", value))]


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> Path:
    """A folder with data/tones/wave and data/tones/encodec, windows of 1.2 s of clips of 1 s, so with
    padding."""
    folder = tmp_path_factory.mktemp("study")
    data = make_competition(folder / "tones", train=4, subm=1)
    tiny(folder / "weights")
    common = [
        "--competition",
        str(data),
        "--seconds",
        "1.2",
        "--pad",
        "silence",
        "--out",
        str(folder / "data"),
    ]
    get_features.main([*common, "--recipe", "esc50_hifigan", "--rate", "4000"])
    get_features.main([*common, "--recipe", "esc50_causal_lm", "--weights", str(folder / "weights")])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, cache, head, options",
    [
        ("esc50_hifigan", "wave", "hifigan", HIFIGAN),
        ("esc50_convnext1d", "wave", "convnext1d", CONVNEXT),
        ("esc50_encodec", "encodec", "convnext1d", CONVNEXT),
        ("esc50_causal_lm", "encodec", "causal_lm", dict(LM, vocabulary=1024)),
    ],
)
def test_recipes_train_by_the_scripts(caches, monkeypatch, capsys, recipe, cache, head, options):
    monkeypatch.chdir(caches)
    train.main(
        [
            "--recipe",
            recipe,
            "--features",
            f"data/tones/{cache}",
            "--name",
            recipe,
            "--epochs",
            "2",
            "--folds",
            "2",
            *options_of(head, options),
        ]
    )
    assert f"head: {head} on {'wave' if cache == 'wave' else 'latents'}" in capsys.readouterr().out
    run = caches / "runs" / recipe
    losses = [float(row["train_loss"]) for row in read_csv(run / "metrics.csv")]
    # Chance is ln 3 = 1.1 for the class, and ln 1024 = 6.9 a codebook.
    assert len(losses) == 4 and all(
        10 < loss < 60 if head == "causal_lm" else 0 < loss < 10 for loss in losses
    ), losses
    weights = load_file(next(run.glob("fold_*/best/*.safetensors")))
    assert weights and all(value.isfinite().all() for value in weights.values())
    assert len(read_csv(caches / "submissions" / "submission.csv")) == 3


def test_codes_that_are_too_few_are_refused(caches, monkeypatch):
    monkeypatch.chdir(caches)
    few = options_of("causal_lm", dict(LM, codebooks=4))
    with pytest.raises(UserError, match="2 codebooks in the features, 4 to predict"):
        train.main(
            [
                "--recipe",
                "esc50_causal_lm",
                "--features",
                "data/tones/encodec",
                "--name",
                "few",
                "--folds",
                "2",
                *few,
            ]
        )
