"""Patch dictionaries: what is counted, the varied copies, and clips that only a pattern tells apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import models
from models.modulations import compute_levels
from models.patches import _sample_patches

SHAPE = (1, 16, 60)


def noise(clips: int, seed: int = 0) -> torch.Tensor:
    """(clips, 1, 16, 60) dB."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(-40, -20, (clips, *SHAPE)).astype(np.float32))


def chirps(clips: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Clips with a line somewhere that rises or falls, at any pitch: statistics over time are the same; the
    classes."""
    draw, x = np.random.default_rng(seed), noise(clips, seed)
    kinds = np.arange(clips) % 2
    for clip, kind in enumerate(kinds):
        for at in draw.integers(0, 50, 3):
            for step in range(8):
                x[clip, 0, 4 + (step if kind else 7 - step), at + step] = 0
    return x, kinds


def learnt(x: torch.Tensor, mask: torch.Tensor | None = None, **options: object) -> torch.nn.Module:
    head = models.build("patches", SHAPE, 2, words=12, **options)
    for number in range(len(head.sizes)):
        head._learn(number, [(x, mask)])
    return head


def test_words_are_counted_as_by_hand() -> None:
    x = noise(3)
    head = learnt(x, sizes=[[4, 6]])
    assert head.stride == (2, 2) and head.parts[1] == 2 * 12 * 3
    filters, against, soft = head.words0.flatten(1).double(), head.against0.double(), float(head.soft0)
    clip = (x[1, 0] - x[1].max()).clamp(min=-80).double()
    grid = np.zeros((12, 7, 28))
    for row in range(7):
        for column in range(28):
            patch = clip[2 * row : 2 * row + 4, 2 * column : 2 * column + 6]
            unit = (patch - patch.mean()) / (patch.std(unbiased=False) + soft)
            found = (filters @ unit.flatten() - against).numpy()
            grid[:, row, column] = np.maximum(found - found.mean() - found.std(ddof=1), 0)
    want = []
    for area in np.array_split(grid, 3, axis=1):
        want += [area.mean((1, 2)), area.max(1).std(1)]
    np.testing.assert_allclose(head._counts(x, None)[0][1].numpy() ** 2, np.concatenate(want), atol=2e-4)


def test_the_dictionary_is_whitened_and_centred() -> None:
    """Over the patches it was learnt from, filters answer 0 on average, and the words together are no larger
    than unit vectors allow."""
    x = noise(40)
    head = learnt(x, sizes=[[4, 6]])
    patches = _sample_patches([(x, None)], (4, 6), head.stride)
    unit = (patches - patches.mean(1, keepdim=True)) / (
        patches.std(1, unbiased=False, keepdim=True) + head.soft0
    )
    answers = unit @ head.words0.flatten(1).T - head.against0
    assert answers.mean(0).abs().max() < 1e-3 and answers.std() < 1.2
    again = learnt(x, sizes=[[4, 6]])
    assert torch.equal(again.words0, head.words0), "the same clips give the same words"


def test_gain_and_padding_do_not_matter() -> None:
    x, mask = noise(2), torch.arange(60).repeat(2, 1) < 40
    head = learnt(x)
    torch.testing.assert_close(
        head.compute_vectors(x + 15, None), head.compute_vectors(x, None), atol=2e-3, rtol=1e-3
    )
    loud = x.masked_fill(~mask[:, None, None], 30.0)
    assert torch.equal(head.compute_vectors(loud, mask), head.compute_vectors(x, mask))
    short = torch.arange(60).repeat(2, 1) < 3  # shorter than any patch
    assert torch.isfinite(head.compute_vectors(x, short)).all()


def test_copies_are_moved_and_stretched() -> None:
    x = torch.full((1, *SHAPE), -40.0)
    x[:, :, 8, 20] = 0
    mask = torch.arange(60)[None] < 50
    head = models.build("patches", (1, 40, 60), 2)
    tall = torch.full((1, 1, 40, 60), -40.0)
    tall[:, :, 20, 20] = 0
    assert [int(head._copy(tall, mask, n)[0][0, 0].amax(1).argmax()) for n in range(5)] == [
        20,
        18,
        22,
        16,
        24,
    ]
    head = models.build("patches", SHAPE, 2)
    for number, share in ((5, 0.8), (6, 1.25)):
        moved, real = head._copy(x, mask, number)
        assert moved.shape == x.shape and int(real.sum()) == min(60, round(50 * share))
        assert abs(int(moved[0, 0, 8, real[0]].argmax()) - 20 * share) <= 1
    assert head._copy(x, mask, 0)[0] is x and all(
        head._copy(x, None, n)[0].shape == x.shape for n in range(7)
    )


def test_a_pattern_is_heard_where_statistics_hear_nothing() -> None:
    """Rising against falling lines, trained and saved by the usual way; as many copies as the rows leave room
    for."""
    (x, y), (new, truth) = chirps(80, 1), chirps(60, 2)
    right = {}
    for name, options in (("svm", {}), ("patches", {"words": 40, "sizes": [[6, 6]]})):
        head = models.build(name, SHAPE, 2, **options)
        head.solve([(x[:50], None), (x[50:], None)], np.eye(2)[y], np.arange(80), False)
        again = models.rebuild(head.config)
        again.load_state_dict(head.state_dict())
        with torch.inference_mode():
            found = again.eval()(new, None)
            assert torch.equal(found, head.eval()(new, None)) and found.shape == (60, 2)
        right[name] = float((found.argmax(1).numpy() == truth).mean())
    assert right["patches"] >= 0.9 > right["svm"] + 0.1, right


@pytest.mark.parametrize("name", ["svm", "knn", "logistic", "patches"])
def test_a_reloaded_head_gives_identical_predictions(name: str) -> None:
    """On every CPU: tensors of another memory layout would be summed by another kernel."""
    x, y = chirps(40, 7)
    options = {"words": 20, "sizes": [[6, 6]]} if name == "patches" else {}
    head = models.build(name, SHAPE, 3, **options)
    # A class that no row has: coefficients are then chosen by column, which leaves them transposed in memory.
    head.solve([(x, None)], np.eye(3)[y], np.arange(40), False)
    assert all(value.is_contiguous() for value in head.state_dict().values())
    again = models.rebuild(head.config)
    again.load_state_dict({key: value.clone() for key, value in head.state_dict().items()})
    with torch.inference_mode():
        assert torch.equal(again.eval()(x, None), head.eval()(x, None))


def test_many_rows_leave_less_room_for_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    x, y = chirps(20, 3)
    for most in (6000, 60, 5):
        monkeypatch.setattr("models.patches.MOST_ROWS", most)
        head = models.build("patches", SHAPE, 2, words=5, sizes=[[6, 6]])
        monkeypatch.setattr(
            head, "_fit_machine", lambda vectors, *rest: seen.append((len(vectors), rest[-1]))
        )
        head.solve([(x, None)], np.eye(2)[y], np.arange(20), False)
    assert seen == [(140, [0, 1, 2, 3, 4]), (60, [0, 1, 2]), (20, [0])]


def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.svm.MOST", 10)
    with pytest.raises(models.HeadError, match="20 rows are too many"):
        models.build("svm", SHAPE, 2).solve(
            [(noise(20), None)], np.eye(2)[np.arange(20) % 2], np.arange(20), False
        )
    for shape, options, words in (
        ((1, 3, 60), {}, "4 bands"),
        ((2, 16, 60), {}, "one channel"),
        ((8, 1, 1), {}, "spectrogram"),
        (SHAPE, {"words": 1}, "words are at least 2"),
        (SHAPE, {"sizes": [[4]]}, "pairs"),
    ):
        with pytest.raises(models.HeadError, match=words):
            models.build("patches", shape, 2, **options)
    assert models.build("patches", (1, 5, 4), 2).sizes == [(2, 4), (2, 4)]  # no larger than the clip
    levels, real = compute_levels(torch.zeros(1, 1, 4, 5) - 200, None)
    assert not levels.any() and real.tolist() == [5]


def test_gradients_are_numbers_in_silence_too() -> None:
    """What carried the decision is asked of the gradient."""
    x, y = chirps(12, 5)
    head = models.build("patches", SHAPE, 2, words=5, sizes=[[6, 6]])
    head.solve([(x, None)], np.eye(2)[y], np.arange(12), False)
    x = x[:2].clone()
    x[1, :, :, 20:] = -200
    head(x.requires_grad_(), None)[:, 1].sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad.abs().sum((1, 2, 3)) > 0).all()


def test_what_it_keeps_is_what_was_said() -> None:
    x, y = chirps(30, 4)
    for name in ("patches", "svm", "knn"):
        head = models.build(name, SHAPE, 2)
        said = 4 * head.count_stored_values(30)
        head.solve([(x, None)], np.eye(2)[y], np.arange(30), False)
        kept = sum(
            v.numel() * v.element_size()
            for k, v in head.state_dict().items()
            if k not in ("standardise.mean", "standardise.std")
        )
        assert 0.5 * said < kept <= said + 4096, (name, said, kept)
