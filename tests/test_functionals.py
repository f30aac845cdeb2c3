"""Statistics over time as a head, and several heads as one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import models
from models.functionals import QUANTILES


def decibels(frames: int = 40, bands: int = 6, seed: int = 0) -> torch.Tensor:
    """(2, 1, bands, frames) dB, no deeper than 60 below the loudest cell."""
    return torch.from_numpy(
        np.random.default_rng(seed).uniform(-60, -1, (2, 1, bands, frames)).astype(np.float32)
    )


def test_statistics_are_numpys():
    x = decibels()
    found = models.build("functionals", (1, 6, 40), 3, groups=3, modulations=4).compute_statistics(x).numpy()
    for row, clip in zip(found, x.numpy()[:, 0], strict=True):
        clip = clip - clip.max()
        change = np.abs(np.diff(clip, axis=1))
        want = [clip.mean(1), clip.std(1)]
        want += [np.sort(clip, 1)[:, round(share * 39)] for share in QUANTILES]
        want += [change.mean(1), change.std(1)]
        np.testing.assert_allclose(row[:54], np.concatenate(want), rtol=1e-3, atol=1e-3)
        groups = (clip - clip.mean(1, keepdims=True)).reshape(3, 2, 40).mean(1)
        np.testing.assert_allclose(row[-3:], np.corrcoef(groups)[np.triu_indices(3, 1)], atol=1e-4)


def test_gain_does_not_matter_and_silence_has_a_floor():
    head = models.build("functionals", (1, 6, 40), 3)
    x = decibels()
    torch.testing.assert_close(
        head.compute_statistics(x + 17), head.compute_statistics(x), atol=1e-3, rtol=1e-4
    )
    x[:, :, 0, :20] = -200
    deeper = x.clone()
    deeper[:, :, 0, :20] = -300
    assert torch.equal(head.compute_statistics(x), head.compute_statistics(deeper))


def test_a_rotor_shows_in_its_modulation_step():
    """A level that beats 20 times in 160 frames has its power in the step that holds 20, in every group."""
    head = models.build("functionals", (1, 8, 160), 3, groups=2, modulations=6)
    beat = 10 * torch.cos(2 * np.pi * 20 * torch.arange(160) / 160)
    x = decibels(160, 8)[:1] / 10 + beat - 30
    modulation = head._compute_modulation(
        (x - x.mean(3, keepdim=True))[:, 0].unflatten(1, (2, 4)).mean(2), torch.tensor([[[160]]])
    )
    step = next(i for i, (low, high) in enumerate(pairwise(head.edges)) if low <= 20 < high)
    assert (modulation.argmax(2) == step).all()


def test_padding_is_not_counted():
    head = models.build("functionals", (1, 6, 40), 3, groups=3)
    x, mask = decibels(), torch.arange(40).repeat(2, 1) < 25
    whole = models.build("functionals", (1, 6, 40), 3, groups=3).compute_statistics(x[..., :25])
    loud = x.masked_fill(~mask[:, None, None], 50.0)
    assert torch.equal(head.compute_statistics(loud, mask), head.compute_statistics(x, mask))
    modulations = 3 * (len(head.edges) - 1)
    plain = list(range(54)) + list(range(54 + modulations, whole.shape[1]))
    torch.testing.assert_close(
        head.compute_statistics(x, mask)[:, plain], whole[:, plain], atol=2e-3, rtol=1e-3
    )


def test_ensemble_is_the_mean_of_members_that_learn_apart():
    torch.manual_seed(0)
    members = [
        {"name": "functionals", "dropout": 0.0},
        {"name": "audio_cnn", "channels": [4, 6], "blocks": [1, 1], "dropout": 0.0},
    ]
    head = models.build("ensemble", (1, 6, 40), 3, members=members).eval()
    x = decibels()
    head.adapt(iter([(x, None)]))
    first, second = head.heads
    assert not torch.equal(first.standardise.mean, torch.zeros_like(first.standardise.mean))
    torch.testing.assert_close(head(x), (first(x) + second(x)) / 2)

    def criterion(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2]))

    head.loss({"x": x, "mask": None}, criterion).backward()
    together = {name: p.grad.clone() for name, p in head.named_parameters()}
    for index, member in enumerate(head.heads):
        member.zero_grad()
        (criterion(member(x)) / 2).backward()
        for name, parameter in member.named_parameters():
            torch.testing.assert_close(parameter.grad, together[f"heads.{index}.{name}"])
    assert models.rebuild(head.config).config == head.config


@pytest.mark.parametrize(
    "members, words",
    [
        ([], "no members"),
        (["linear"], "written"),
        ([{"name": "linnear"}], "no head called 'linnear'"),
        ([{"name": "linear", "depth": 3}], "linear has no option depth"),
        ([{"name": "causal_lm"}], "loss of its own"),
        ([{"name": "linear", "num_classes": 4}], "follow from the features"),
        ([{"name": "linear", "augment": "no"}], "true or false"),
    ],
)
def test_ensemble_refuses_in_one_line(members, words):
    with pytest.raises(models.HeadError, match=words) as error:
        models.build("ensemble", (128, 1, 40), 3, members=members)
    assert "\n" not in str(error.value)
    with pytest.raises(models.HeadError, match="at least 1"):
        models.build("functionals", (1, 6, 40), 3, groups=0)
