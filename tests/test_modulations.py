"""Spectro-temporal modulations as further features of the scikit-learn heads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import models
from models.modulations import Modulations, compute_levels

SHAPE = (1, 32, 100)


def draw_ripples(
    count: int, seed: int, rate: float = 0.08, cycles: int = 4
) -> tuple[torch.Tensor, np.ndarray]:
    """(count, *SHAPE) dB of noise with a ripple, and whether it falls in frequency as time goes by."""
    draw = np.random.default_rng(seed)
    falls = np.arange(count) % 2
    time, band = np.arange(SHAPE[2]), np.arange(SHAPE[1])[:, None]
    phase = draw.uniform(0, 2 * np.pi, (count, 1, 1))
    sign = np.where(falls, 1, -1)[:, None, None]
    ripple = np.cos(2 * np.pi * (rate * time + sign * cycles / SHAPE[1] * band) + phase)
    x = 6 * ripple - 30 + draw.normal(0, 2, ripple.shape)
    return torch.from_numpy(x[:, None].astype(np.float32)), falls


def compute(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    return Modulations(*x.shape[2:])(*compute_levels(x, mask))


def test_a_ripple_shows_in_its_own_filter():
    """Of all rates, scales and directions the mean response is largest where the ripple's own are."""
    x, falls = draw_ripples(8, 0)
    features = Modulations(*SHAPE[1:])
    # 6 rates from 0.32 on, 0.08 is the third; 4 scales fit 32 bands: 0, 2, 4, 8, then 2, 4, 8 rising
    assert len(features.steps) == 6 and features.width == (2 + 3) * 6 * 7 * 8
    means = features(*compute_levels(x, None)).reshape(len(x), 6, 8, 2 + 3, 7)[:, :, :, 0].mean(2)
    for one, fell in zip(means, falls, strict=True):
        assert divmod(int(one.argmax()), 7) == (2, 2 if fell else 5)


def test_the_order_of_sounds_counts():
    """Of one sound at the clip's begin, middle or end the sections' means say where, the whole's do not."""
    x = torch.full((3, *SHAPE), -60.0)
    ripple = draw_ripples(1, 3)[0][0, :, :, :20]
    for clip, at in zip(x, (8, 40, 72), strict=True):
        clip[..., at : at + 20] = ripple
    found = compute(x).reshape(3, 6, 8, 2 + 3, 7)
    whole, sections = found[:, :3, :, 0].mean((1, 2, 3)), found[:, :3, :, 2:].mean((1, 2, 4))
    assert (whole - whole.mean()).abs().max() < 0.1
    assert sections.argmax(1).tolist() == [0, 1, 2]


def test_gain_and_padding_do_not_count():
    x, _ = draw_ripples(2, 1)
    torch.testing.assert_close(compute(x + 17), compute(x), atol=1e-3, rtol=1e-3)
    mask = torch.arange(SHAPE[2]) < torch.tensor([60, 100])[:, None]
    once = compute(x, mask)
    for padding in (0.0, 1000.0, float("nan")):
        assert torch.equal(compute(x.masked_fill(~mask[:, None, None], padding), mask), once)
    assert not torch.allclose(once[0], compute(x)[0], atol=1e-2)
    torch.testing.assert_close(once[1], compute(x)[1])


def test_clips_do_not_depend_on_their_batch():
    x, _ = draw_ripples(5, 2)
    features, levels = Modulations(*SHAPE[1:]), compute_levels(x, None)
    together = features(*levels)
    features.rows_at_once = 2
    torch.testing.assert_close(features(*levels), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 5), (1, 128, 40), (1, 5, 301)])
def test_any_window_has_as_many_values_as_it_says(shape):
    features = Modulations(*shape[1:])
    x = torch.randn(3, *shape)
    found = features(*compute_levels(x, None))
    assert found.shape == (3, features.width) and torch.isfinite(found).all()
    silent = features(*compute_levels(torch.full((1, *shape), -200.0), None))
    assert torch.isfinite(silent).all()


@pytest.mark.parametrize("name", ["logistic", "svm", "patches"])
def test_directions_are_learned_with_them_alone_and_kept(name, tmp_path):
    """Statistics over time and correlations of bands are the same for rising and falling ripples."""
    (x, falls), (unseen, want) = draw_ripples(60, 3), draw_ripples(60, 4)
    options = {"words": 4, "sizes": [[4, 1]]} if name == "patches" else {}
    right = {}
    for modulations in (False, True):
        head = models.build(name, SHAPE, 2, modulations=modulations, **options)
        head.solve([(x, None)], np.eye(2)[falls], np.arange(60), False)
        with torch.no_grad():
            right[modulations] = (head(unseen).argmax(1).numpy() == want).mean()
    assert right[True] > 0.9 > 0.75 > right[False], right
    torch.save(head.state_dict(), tmp_path / "head.pt")
    again = models.rebuild(json.loads(json.dumps(head.config)))
    again.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(again(unseen), head(unseen))


def test_other_views_are_refused_in_a_line():
    for name in ("logistic", "svm"):
        with pytest.raises(
            models.HeadError, match=f"{name}: option modulations needs a spectrogram"
        ) as error:
            models.build(name, (384, 4, 16), 2, modulations=True)
        assert "\n" not in str(error.value)


def test_a_head_of_stretched_copies_predicts_by_their_mean():
    """Fitted in batches of two sizes: a copy keeps its clip's class and weight."""
    x, want = draw_ripples(60, 7)
    unseen, truth = draw_ripples(40, 8)
    targets, groups = np.eye(2)[want], np.arange(len(x))
    plain, copied, weighted = (
        models.build("logistic", SHAPE, 2, modulations=True, stretches=on) for on in (False, True, True)
    )
    plain.solve([(x, None)], targets, groups, False)
    copied.solve([(x[:37], None), (x[37:], None)], targets, groups, False)
    # clips of no weight and a wrong class do not count
    wrong, count = np.arange(60) < 20, np.where(np.arange(60) < 20, 0.0, 1.0)
    targets[wrong] = 1 - targets[wrong]
    weighted.solve([(x[:37], None), (x[37:], None)], targets, groups, False, count)
    with torch.no_grad():
        for head in (copied, weighted):
            assert (head(unseen).argmax(1).numpy() == truth).mean() > 0.9
        parts = [unseen, *(models.common.stretch_time(unseen, None, by)[0] for by in (0.8, 1.25))]
        masks = [torch.ones(40, 100).bool(), torch.arange(100) < torch.full((40, 1), 80), None]
        logits = [
            copied.fc(copied.compute_standardised(part, mask))
            for part, mask in zip(parts, masks, strict=True)
        ]
        torch.testing.assert_close(copied(unseen), torch.stack(logits).mean(0))
        assert not torch.allclose(copied(unseen), plain(unseen), atol=1e-3)


def test_a_stretched_clip_keeps_what_is_real():
    x = torch.ones(2, 1, 4, 10)
    mask = torch.arange(10) < torch.tensor([5, 10])[:, None]
    slower, longer = models.common.stretch_time(x.masked_fill(~mask[:, None, None], float("nan")), mask, 1.25)
    faster, shorter = models.common.stretch_time(x, mask, 0.8)
    assert longer.sum(1).tolist() == [6, 10] and shorter.sum(1).tolist() == [4, 8]
    assert slower.shape == faster.shape == x.shape and not slower.isnan().any()
    assert (faster[0, 0, 0, :4] == 1).all() and (faster[1, 0, 0, 8:] == 0).all()


def test_stretches_need_a_spectrogram():
    with pytest.raises(models.HeadError, match="logistic: option stretches needs a spectrogram"):
        models.build("logistic", (384, 1, 1), 2, stretches=True)
